"""Captioners as people have them: of two processors, of old folders, and those that cannot caption,
which is told when they are opened."""

import json
import shutil

import pytest
import torch
from PIL import Image

from dnp.errors import WeightsError
from dnp.sd.captioner import load_captioner
from test_prompting import PICTURES, folders  # noqa: F401 - a fixture


def edit(path, **entries):
    d = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({k: v for k, v in d.items() if v != "gone"}))


@pytest.fixture
def two_processors(tmp_path):
    """A ViT with GPT-2: an image processor and a tokenizer, and no processor of both."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        GPT2Config,
        PreTrainedTokenizerFast,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
    )

    words = ["<pad>", "<eos>", "a", "cat", "red", "dog"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    vision = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8,
    )  # fmt: skip
    text = GPT2Config(
        vocab_size=6, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id = config.eos_token_id = 1
    config.pad_token_id = 0
    torch.manual_seed(0)
    model = VisionEncoderDecoderModel(config)
    own = model.generation_config
    own.decoder_start_token_id = own.eos_token_id = 1
    own.pad_token_id = 0
    model.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", bos_token="<eos>",
        unk_token="a",
    ).save_pretrained(tmp_path)  # fmt: skip
    size = {"height": 16, "width": 16}
    said = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size}
    said |= {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    return tmp_path


def test_a_captioner_of_an_image_processor_and_a_tokenizer_captions(two_processors):
    captioner = load_captioner(two_processors, batch=2, most_tokens=6)
    captions = captioner(PICTURES)
    assert len(captions) == 3 and captions[2] == captioner(PICTURES[2:])[0]
    assert all(set(c.split()) <= {"a", "cat", "red", "dog"} for c in captions)


def test_a_captioner_of_two_processors_without_one_of_them_is_refused(two_processors):
    for gone in ("tokenizer.json", "preprocessor_config.json"):
        copy = two_processors / "copy" / gone
        shutil.copytree(two_processors, copy, ignore=shutil.ignore_patterns(gone, "copy"))
        with pytest.raises(WeightsError, match="not a captioner"):
            load_captioner(copy)


def test_a_blip_2_of_before_image_tokens_captions_as_the_new_one(folders, tmp_path):  # noqa: F811
    shutil.copytree(folders / "blip-2", tmp_path / "old")
    edit(tmp_path / "old" / "config.json", image_token_index="gone", image_token_id="gone")
    edit(tmp_path / "old" / "processor_config.json", num_query_tokens="gone")
    new, old = (load_captioner(p) for p in (folders / "blip-2", tmp_path / "old"))
    assert new(PICTURES) == old(PICTURES)


def test_a_captioner_that_cannot_caption_is_told_when_it_is_opened(folders, tmp_path):  # noqa: F811
    shutil.copytree(folders / "blip", tmp_path / "a")
    size = {"height": 24, "width": 24}  # not its network's
    file = next((tmp_path / "a").glob("*processor*.json"))
    said = json.loads(file.read_text())
    inside = said.get("image_processor", said)
    inside["size"] = size
    file.write_text(json.dumps(said))
    with pytest.raises(WeightsError, match="it cannot caption"):
        load_captioner(tmp_path / "a")


def test_a_full_device_is_not_called_a_bad_captioner(folders, monkeypatch):  # noqa: F811
    from transformers import BlipForConditionalGeneration

    captioner = load_captioner(folders / "blip")

    def full(*args, **kw):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(BlipForConditionalGeneration, "generate", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        captioner([Image.new("RGB", (8, 8))])

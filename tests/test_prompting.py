"""DNP and auto-DNP on the public contract: captions, their failures, every kind of captioner."""

import functools
import json
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import dnp
from conftest import MINI
from dnp.errors import SettingsError, WeightsError
from dnp.evaluation import answer_readings as readings
from dnp.methods.words import APART
from dnp.sd.captioner import load_captioner
from experiments import world

PICTURES = [Image.new("RGB", (64, 64), c) for c in ("red", "green", "blue")]


small = functools.partial(dnp.generate, size=(32, 32))


@pytest.fixture(scope="module")
def model():
    """Small random networks; where it matters what they have learnt, a test takes `mini`."""
    return dnp.load(world())


def texts(*captions):
    return lambda images: list(captions)[: len(images)]


# -------------------------------------------------------------------------------- the procedures


def test_dnp_is_a_dns_image_words_for_it_and_eq4(model):
    seen = []
    words = lambda image: (seen.append(image), "a green bowl")[1]
    r = small(model, "a cat", "dnp", captioner=words, s=2.0, s_dns=1.5, steps=3, seed=4)
    dns = small(model, "a cat", "dns", s=1.5, steps=3, seed=4)
    final = small(model, "a cat", "np", "a green bowl", s=2.0, steps=3, seed=4)
    assert seen[0].tobytes() == dns.images[0].tobytes() == r.dns_images[0].tobytes()
    assert_close(r.latents[0], dns.latents[0], rtol=0, atol=0)  # the same initial noise
    assert r.images[0].tobytes() == final.images[0].tobytes()
    assert r.negative == "a green bowl" and r.nfe == dns.nfe + final.nfe == 2 * 3 + 3 * 3


def test_every_seed_has_words_of_its_own_and_is_made_again_from_them(model):
    captioner = texts("a red apple", "a dog")
    r = small(model, "a cat", "auto-dnp", captioner=captioner, steps=2, seed=1, images=2)
    assert r.negatives == ["a red apple", "a dog"] and len(r.dns_images) == 2
    dns = small(model, "a cat", "dns", steps=2, seed=2)
    assert r.dns_images[1].tobytes() == dns.images[0].tobytes()
    again = small(model, "a cat", "auto-dnp", "a dog", steps=2, seed=2)
    assert again.images[0].tobytes() == r.images[1].tobytes()
    assert again.nfe == 3 * 2 and again.dns_images == []  # given words need no DNS image


def test_one_caption_per_prompt_and_several_dns_images(model):
    asked = []
    captioner = lambda images: (asked.append(len(images)), ["a dog", "a bear"])[1]
    options = {"dns_images": 2, "caption_per": "prompt", "steps": 2, "seed": 3}
    r = small(model, "a cat", "auto-dnp", captioner=captioner, images=3, **options)
    assert asked == [2] and r.negatives == ["a dog, a bear"] * 3
    second = small(model, "a cat", "dns", seed=3 + APART, steps=2)
    assert r.dns_images[1].tobytes() == second.images[0].tobytes()


@pytest.mark.parametrize("images", [1, 3, 4])
@pytest.mark.parametrize("per", ["seed", "prompt"])
def test_nfe_is_what_was_evaluated_for_each_picture_also_for_a_shared_caption(
    model, monkeypatch, per, images
):
    counted, forward = [], model.unet.forward
    monkeypatch.setattr(
        model.unet, "forward", lambda z, *a: (counted.append(len(z)), forward(z, *a))[1]
    )
    captioner = lambda shown: ["a dog"] * len(shown)
    options = {"captioner": captioner, "caption_per": per, "steps": 2, "images": images}
    r = small(model, "a cat", "auto-dnp", dns_images=2, **options)
    assert r.nfe * images == pytest.approx(sum(counted), rel=1e-12)
    assert isinstance(r.nfe, int) == (sum(counted) % images == 0)


def test_the_scale_of_the_dns_image_is_the_recommended_one(model):
    r = small(model, "a cat", "auto-dnp", captioner=texts("a dog"), steps=2)
    assert r.settings["s_dns"] == model.config.scales["dns"]


def test_an_empty_caption_is_phi_and_says_so(model):
    with pytest.warns(UserWarning, match="no words for picture 1 of 1"):
        r = small(model, "a cat", "auto-dnp", captioner=texts("  \n"), steps=2, s=3.0)
    plain = small(model, "a cat", "cfg", steps=2, s=3.0)
    assert r.negative == ""
    assert_close(r.latents[1], plain.latents[1], rtol=0, atol=1e-4)  # Eq. (4) with phi is Eq. (3)


@pytest.mark.parametrize("wrong", ["a dog", None, ["a", "b"], [3]], ids=repr)
def test_a_captioner_must_return_one_text_for_each_picture(model, wrong):
    with pytest.raises(SettingsError, match="one text for each"):
        small(model, "a cat", "auto-dnp", captioner=lambda images: wrong, steps=1)


def test_a_caption_over_the_token_limit_is_cut_and_says_so(model):
    long = "a red apple and " * 20
    with pytest.warns(UserWarning, match="the limit is 30"):
        small(model, "a cat", "auto-dnp", captioner=texts(long), steps=1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "dnp"}, "needs words"),
        ({"method": "cfg", "s_dns": 1.0}, "belongs to method dnp or auto-dnp or answer"),
        ({"method": "np", "negative": "a", "dns_images": 2}, "belongs to method dnp"),
        ({"method": "auto-dnp", "dns_images": 0}, "choose a whole number from 1 to 100"),
        ({"method": "auto-dnp", "caption_per": "picture"}, "seed or prompt"),
        ({"method": "cfg", "K": 2}, "K belongs to method answer"),
        ({"method": "answer", "K": -1}, "0 to 1000"),
        ({"method": "answer", "normalize": "x"}, "True or False"),
        ({"method": "answer", "negative": "a"}, "takes no negative prompt"),
        ({"method": "answer", "colour": 1}, "colour is not a setting"),
    ],
    ids=str,
)
def test_settings_that_are_not_possible_are_refused(model, settings, sentence):
    with pytest.raises(SettingsError, match=sentence):
        small(model, "a cat", steps=1, **settings)


def test_answer_without_inner_steps_is_cfg_and_counts_what_it_asks_for(model, monkeypatch):
    cfg = small(model, "a cat", "cfg", s=3.0, steps=4)
    none = small(model, "a cat", "answer", s=3.0, steps=4, K=0)
    assert none.images[0].tobytes() == cfg.images[0].tobytes() and none.nfe == cfg.nfe
    counted, forward = [], model.unet.forward
    counting = lambda z, *a: (counted.append(len(z)), forward(z, *a))[1]
    monkeypatch.setattr(model.unet, "forward", counting)
    for kind in ("answer", readings.Unconditional, readings.Jump, readings.PerChannel):
        counted.clear()
        r = small(model, "a cat", kind, steps=4, K=3)
        assert sum(counted) == r.nfe and r.settings["method"] == getattr(kind, "name", kind)
        assert r.images[0].tobytes() != cfg.images[0].tobytes()


# -------------------------------------------------------------------------------------- captioners


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny random captioners of every kind, as transformers saves them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipProcessor,
        GitConfig,
        GitForCausalLM,
        GitProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "red", "bowl", "and", "dog"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", bos_token="[CLS]", eos_token="[SEP]",
    )  # fmt: skip
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    text = {**small, "vocab_size": len(words), "bos_token_id": 2, "sep_token_id": 3}
    text |= {"eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 64}
    vision = {**small, "image_size": 16, "patch_size": 8, "initializer_range": 0.02}
    size = {"height": 16, "width": 16}
    root = tmp_path_factory.mktemp("captioners")
    torch.manual_seed(0)
    blip = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    BlipProcessor(BlipImageProcessorPil(size=size), tokenizer).save_pretrained(root / "blip")
    blip.save_pretrained(root / "blip")
    opt = {"model_type": "opt", "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1}
    opt |= {"num_attention_heads": 2, "vocab_size": len(words) + 1, "word_embed_proj_dim": 16}
    opt |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    opt |= {"max_position_embeddings": 128}
    q = {**small, "vocab_size": len(words), "encoder_hidden_size": 16}
    config = Blip2Config(
        vision_config=vision, qformer_config=q, text_config=opt, num_query_tokens=4,
        image_token_index=len(words),
    )  # fmt: skip
    blip2 = Blip2ForConditionalGeneration(config)
    own = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(inner.to_str()), pad_token="[PAD]", unk_token="[UNK]",
        bos_token="[CLS]", eos_token="[SEP]",
    )  # fmt: skip
    Blip2Processor(BlipImageProcessorPil(size=size), own, num_query_tokens=4).save_pretrained(
        root / "blip-2"
    )
    blip2.save_pretrained(root / "blip-2")
    git = GitForCausalLM(GitConfig(vision_config=vision, **text))
    clip_size = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
    GitProcessor(clip_size, tokenizer).save_pretrained(root / "git")
    git.save_pretrained(root / "git")
    return root


@pytest.mark.parametrize("kind", ["blip", "blip-2", "git"])
def test_a_captioner_of_each_kind_loads_and_answers_in_batches(folders, kind):
    captioner = load_captioner(folders / kind, batch=2, most_tokens=6)
    captions = captioner(PICTURES)
    assert len(captions) == 3 and all(isinstance(c, str) for c in captions)
    known = {"a", "cat", "red", "bowl", "and", "dog"}
    assert all(set(c.split()) <= known | {"[UNK]"} for c in captions)
    assert captions[2] == captioner(PICTURES[2:])[0]  # no picture depends on its batch mates


def test_the_miniature_has_a_captioner_of_its_own(mini):
    captioner = load_captioner(MINI / "captioner")
    r = small(mini, "a cat", "auto-dnp", steps=2)
    assert r.negatives == captioner(r.dns_images) and mini.captioner is mini.captioner


def test_weights_without_a_captioner_ask_for_one(tiny):
    with pytest.raises(SettingsError, match="captioner=FOLDER") as told:
        dnp.generate(dnp.load(tiny), "a cat", "auto-dnp", steps=1)
    assert "--captioner FOLDER" in told.value.typed


def test_folders_that_are_no_captioner_are_refused(folders, tmp_path, tiny):
    def refused(folder, sentence):
        with pytest.raises(WeightsError, match=sentence):
            load_captioner(folder)

    refused(tmp_path / "none", "no captioner is there")
    refused(tiny, "no captioner is there")
    refused(MINI / "clip", "not a captioner")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "cannot be read as JSON")


def test_a_captioner_with_a_missing_weight_is_refused(folders, tmp_path):
    for file in (folders / "blip").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("vision_model.post_layernorm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="post_layernorm"):
        load_captioner(tmp_path)


def test_a_captioner_that_is_a_pickle_is_refused(folders, tmp_path):
    for file in (folders / "blip").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="not a captioner"):
        load_captioner(tmp_path)


def test_nothing_is_downloaded_without_the_flag(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(WeightsError, match="--allow-download"):
        load_captioner("Salesforce/blip-image-captioning-base")


def test_notes_of_transformers_on_itself_are_not_shown(folders, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_captioner(folders / "blip")
    assert "torchvision" not in capfd.readouterr().err
    assert json.loads((folders / "blip" / "config.json").read_text())["model_type"] == "blip"

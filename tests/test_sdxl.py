"""SDXL against diffusers and transformers, on random weights at reduced widths, real depths."""

import json
import shutil

import pytest
import torch
from torch.testing import assert_close

import dnp
from conftest import MINI, agrees_with_pipeline, exact_tables, slow_but
from dnp.errors import SettingsError, WeightsError
from dnp.methods import METHODS
from dnp.methods.attend_excite import OfSubjects
from dnp.sd import families
from dnp.sd.clip import CLIPTextModel
from dnp.sd.unet import UNet
from single_files import opened

PROMPT, NEGATIVE = "a red car and a cat", "a dog in the snow"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_single_forwards_agree(sdxl, dtype, tolerance):
    pipeline, folder = sdxl
    model, close = dnp.load(folder, dtype=dtype), {"atol": tolerance, "rtol": tolerance}
    parts = [getattr(pipeline, n) for n in ("text_encoder", "text_encoder_2", "unet", "vae")]
    try:
        for part in parts:
            part.to(dtype)
        prompts = [PROMPT, "", "glasses"]
        context, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
        c = model.encode(prompts, phi="text", original_size=(90, 80), crop=(3, 5))
        assert_close(c.context, context, **close)
        assert_close(c.pooled, pooled, **close)
        assert c.numbers.tolist() == [[90, 80, 3, 5, 128, 128]] * 3
        z = torch.randn(3, 4, 12, 12, dtype=dtype)
        added = {"text_embeds": pooled, "time_ids": c.numbers.to(dtype)}
        for t in (torch.tensor(0), torch.tensor([3, 500, 981])):
            want = pipeline.unet(z, t, context, added_cond_kwargs=added).sample
            assert_close(model.eps(z, t, c), want, **close)
        assert_close(model.vae.decode(z), pipeline.vae.decode(z).sample, **close)
    finally:
        for part in parts:
            part.float()


@pytest.mark.parametrize("method", slow_but(["dns"], ["cfg", "np2", "dns"]))
def test_complete_run_agrees(sdxl, method):
    """CFG with phi = zeros; DNS at s is an empty prompt, negative p, scale s + 1 (phi = text)."""
    pipeline, folder = sdxl
    model, s = opened(folder), 2.5
    exact_tables(pipeline, model)
    negative = NEGATIVE if method == "np2" else None
    phi = "text" if method == "dns" else None
    ours = dnp.generate(model, PROMPT, method, negative, s=s, steps=5, seed=3, images=2, phi=phi)
    assert ours.settings["phi"] == (phi or "zeros")
    agrees_with_pipeline(pipeline, ours, PROMPT, NEGATIVE, s)


@pytest.mark.parametrize("method", ["cfg", "np2", "dns", "answer", "auto-dnp", "ae", "neglect"])
def test_every_method_runs(sdxl, method):
    model = opened(sdxl[1])
    negative = NEGATIVE if method in ("np2", "auto-dnp") else None
    reads_maps = issubclass(METHODS[method], OfSubjects)
    own = {"subjects": "car, cat", "ae_level": 1} if reads_maps else {}
    own |= {"ae_refinements": 1} if method == "ae" else {}
    made = dnp.generate(model, PROMPT, method, negative, steps=2, s=2.0, size=(64, 64), **own)
    assert len(made.images) == 1 and made.settings["phi"] == "zeros"
    zeros, text = model.encode(""), model.encode("", phi="text")
    assert not zeros.context.any() and not zeros.pooled.any() and text.context.any()


def test_what_belongs_to_sdxl_is_refused_elsewhere():
    with pytest.raises(SettingsError, match="phi belongs to SDXL weights"):
        dnp.generate(dnp.load(MINI), PROMPT, steps=1, phi="zeros")


def test_published_sizes_and_families():
    row = families.FAMILIES["sdxl"]
    with torch.device("meta"):
        unet, text_2 = UNet(row.unet), CLIPTextModel(row.text_2)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    assert sum(p.numel() for p in text_2.parameters()) == 694_659_840
    assert [families.of(f.unet).name for f in families.FAMILIES.values()] == [*families.FAMILIES]


def test_tokenizers_of_two_lengths_are_refused(sdxl, tmp_path):
    folder = tmp_path / "sdxl"
    shutil.copytree(sdxl[1], folder)
    file = folder / "tokenizer_2" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 3}))
    with pytest.raises(WeightsError, match=r"the two tokenizers give \d+ and 3 tokens"):
        dnp.load(folder).encode("a cat")

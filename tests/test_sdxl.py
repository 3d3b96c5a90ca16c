"""SDXL against diffusers and transformers, on random weights at reduced widths, real depths."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import dnp
from conftest import MINI, randomise
from dnp.errors import SettingsError
from dnp.sd import families
from dnp.sd.clip import CLIPTextModel
from dnp.sd.unet import UNet

PROMPT, NEGATIVE = "a red car and a cat", "a dog in the snow"


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """(pipeline of diffusers, its folder)"""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    torch.manual_seed(0)
    one = CLIPTokenizer.from_pretrained(MINI / "tokenizer", model_max_length=20)
    two = CLIPTokenizer.from_pretrained(MINI / "tokenizer", model_max_length=20, pad_token="!")
    sizes = dict(
        vocab_size=len(one), max_position_embeddings=20,
        bos_token_id=one.bos_token_id, eos_token_id=one.eos_token_id,
    )  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=3, **sizes
    )
    text_2 = CLIPTextConfig(
        hidden_size=40, intermediate_size=80, num_hidden_layers=4, num_attention_heads=4,
        hidden_act="gelu", projection_dim=40, **sizes,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32, 48), layers_per_block=2, attention_head_dim=[2, 4, 6],
        cross_attention_dim=64, norm_num_groups=8, use_linear_projection=True, sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10], addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=40 + 6 * 8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 24, 24), layers_per_block=2, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.13025, force_upcast=False,
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        randomise(vae, 1), randomise(CLIPTextModel(text), 2),
        randomise(CLIPTextModelWithProjection(text_2), 3), one, two, randomise(unet, 4),
        DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        add_watermarker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    folder = tmp_path_factory.mktemp("sdxl")
    pipeline.save_pretrained(folder)
    return pipeline, folder


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


@pytest.mark.parametrize("method", ["cfg", "np2", "dns"])
def test_complete_run_agrees(sdxl, method):
    """CFG with phi = zeros; DNS at s is an empty prompt, negative p, scale s + 1 (phi = text)."""
    pipeline, folder = sdxl
    model, s = dnp.load(folder), 2.5
    pipeline.scheduler.alphas_cumprod = model.schedule.abar
    final = torch.tensor(model.schedule.abar_final, dtype=torch.float64)
    pipeline.scheduler.final_alpha_cumprod = final
    negative = NEGATIVE if method == "np2" else None
    phi = "text" if method == "dns" else None
    ours = dnp.generate(model, PROMPT, method, negative, s=s, steps=10, seed=3, images=2, phi=phi)
    assert ours.settings["phi"] == (phi or "zeros")
    call = {
        "cfg": dict(prompt=PROMPT, guidance_scale=s),
        "np2": dict(prompt=PROMPT, negative_prompt=NEGATIVE, guidance_scale=s),
        "dns": dict(prompt="", negative_prompt=PROMPT, guidance_scale=s + 1),
    }[method]
    z_T, z_0 = ours.latents
    kw = dict(num_inference_steps=10, num_images_per_prompt=2, latents=z_T.clone())
    want = pipeline(**call, **kw, output_type="latent").images
    assert_close(z_0, want, atol=1e-4, rtol=1e-4)
    kw["latents"] = z_T.clone()
    for mine, theirs in zip(ours.images, pipeline(**call, **kw).images):
        a, b = (np.asarray(i, dtype=int) for i in (mine, theirs))
        assert abs(a - b).max() <= 1


@pytest.mark.parametrize("method", ["cfg", "np2", "dns", "answer", "auto-dnp", "ae"])
def test_every_method_runs(sdxl, method):
    model = dnp.load(sdxl[1])
    negative = NEGATIVE if method in ("np2", "auto-dnp") else None
    own = {"subjects": "car, cat", "ae_level": 1} if method == "ae" else {}
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

"""Small random Stable Diffusions, made and saved by diffusers and transformers: the oracles."""

import gc
import json
import os
import re
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a hub

import numpy as np
import pytest
import torch

import dnp
from browser import a_study, chromium  # noqa: F401 - for test_browser*.py
from command_line import cli, pixels, refused, small_cli  # noqa: F401 - for the tests of commands
from dnp.sd import speed
from experiments import world
from runs import copy, finished, made, weights_are_opened_once  # noqa: F401 - for test_runs*.py
from single_files import both, family, tokenizers_once  # noqa: F401 - for the tests of files

torch.set_num_threads(1)  # two on a busy machine are slower, and sums stay the same anywhere


ORACLES = {"oracle", "sdxl", "tiny", "family", "both"}  # fixtures that diffusers makes


def pytest_collection_modifyitems(items):
    """The files that need diffusers or torch's compiler first: their imports take seconds, and of
    two processes that begin with a half of the tests each, one is spared them."""
    need = {i.path for i in items if ORACLES & set(i.fixturenames)}
    slow = re.compile(r"^ +(import|from) diffusers|^from tiny_pipelines|torch\.compile\(", re.M)
    need |= {path for path in {i.path for i in items} - need if slow.search(path.read_text())}
    items.sort(key=lambda item: item.path not in need)


def pytest_collection_finish():
    """What was imported lives until the end, and is not looked at again and again."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "weights" / "mini"


# name: (U-Net, VAE, text encoder, scheduler) as diffusers' and transformers' own arguments.
CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"


def blocks(kinds, way):
    return tuple(kind.format(way) for kind in kinds)


ARCHITECTURES = {
    "four levels": dict(  # Stable Diffusion 1.x in small
        unet=dict(
            block_out_channels=(16, 32, 48, 48),
            layers_per_block=2,
            attention_head_dim=4,
            cross_attention_dim=24,
            norm_num_groups=8,
            down_block_types=blocks((CROSS, CROSS, CROSS, PLAIN), "Down"),
            up_block_types=blocks((PLAIN, CROSS, CROSS, CROSS), "Up"),
            sample_size=16,
        ),
        vae=dict(block_out_channels=(8, 16, 24), layers_per_block=2, norm_num_groups=4),
        text=dict(hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=3),
        scheduler={},
    ),
    "linear, v": dict(  # Stable Diffusion 2.x in small: linear projections, head width, v, GELU
        unet=dict(
            block_out_channels=(24, 48),
            layers_per_block=1,
            attention_head_dim=[2, 6],
            cross_attention_dim=40,
            norm_num_groups=6,
            use_linear_projection=True,
            down_block_types=blocks((CROSS, PLAIN), "Down"),
            up_block_types=blocks((CROSS, CROSS), "Up"),
            sample_size=(12, 8),
        ),
        vae=dict(
            block_out_channels=(8, 24), layers_per_block=1, norm_num_groups=8, scaling_factor=0.7
        ),
        text=dict(
            max_position_embeddings=33,  # more than the tokenizer's limit
            hidden_size=40,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=4,
            hidden_act="gelu",
        ),
        scheduler=dict(prediction_type="v_prediction", set_alpha_to_one=True, beta_end=0.02),
    ),
}


def slow_but(kept, values):
    """`values` for parametrize: those of `kept` in the default tests, the others with -m slow."""
    return [v if v in kept else pytest.param(v, marks=pytest.mark.slow) for v in values]


def randomise(network, seed):
    """Every parameter random, norms and biases too, so that a wrong one shows."""
    g = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=g) * (p.data.std() if p.dim() > 1 else 1)
    return network.requires_grad_(False).eval()


def make_pipeline(unet, vae, text, scheduler, length=20):
    """A StableDiffusionPipeline with random weights and the miniature's tokenizer."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(MINI / "tokenizer", model_max_length=length)
    ends = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    sizes = dict(vocab_size=len(tokenizer), max_position_embeddings=length)
    text_config = CLIPTextConfig(**{**ends, **sizes, **text})
    levels = len(vae["block_out_channels"])
    return StableDiffusionPipeline(
        vae=randomise(
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                **vae,
            ),
            1,
        ),
        text_encoder=randomise(CLIPTextModel(text_config), 2),
        tokenizer=tokenizer,
        unet=randomise(UNet2DConditionModel(**unet), 3),
        scheduler=DDIMScheduler(
            **{
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
                "clip_sample": False,
                "set_alpha_to_one": False,
                "steps_offset": 1,
                **scheduler,
            }
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def exact_tables(pipeline, model):
    """diffusers keeps its noise levels in float32; give it the float64 ones."""
    pipeline.scheduler.alphas_cumprod = model.schedule.abar
    final = torch.tensor(model.schedule.abar_final, dtype=torch.float64)
    pipeline.scheduler.final_alpha_cumprod = final


# Widths of SDXL in small: heads of a fixed width, and the published depths 1/2/10.
SDXL = dict(
    text=dict(hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=3),
    text_2=dict(
        hidden_size=40, intermediate_size=80, num_hidden_layers=4, num_attention_heads=4,
        projection_dim=40,
    ),
    unet=dict(
        block_out_channels=(16, 32, 48), attention_head_dim=[2, 4, 6], cross_attention_dim=64,
        norm_num_groups=8, sample_size=16, addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=40 + 6 * 8,
    ),
    vae=dict(block_out_channels=(8, 16, 24, 24), norm_num_groups=4),
)  # fmt: skip
# What is of SDXL at every width, as diffusers' and transformers' own arguments.
SDXL_UNET = dict(
    layers_per_block=2, use_linear_projection=True, transformer_layers_per_block=[1, 2, 10],
    down_block_types=blocks((PLAIN, CROSS, CROSS), "Down"),
    up_block_types=blocks((CROSS, CROSS, PLAIN), "Up"), addition_embed_type="text_time",
)  # fmt: skip
SDXL_VAE = dict(
    layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.13025, force_upcast=False,
)  # fmt: skip


def make_sdxl(text, text_2, unet, vae, tokenizers=None):
    """A StableDiffusionXLPipeline with random weights; the miniature's tokenizer if none is given,
    which pads as each text encoder does."""
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
    one, two = tokenizers or (
        CLIPTokenizer.from_pretrained(MINI / "tokenizer", model_max_length=20, **pad)
        for pad in ({}, {"pad_token": "!"})
    )
    sizes = dict(
        vocab_size=len(one), max_position_embeddings=one.model_max_length,
        bos_token_id=one.bos_token_id, eos_token_id=one.eos_token_id,
    )  # fmt: skip
    first = CLIPTextModel(CLIPTextConfig(**text, **sizes))
    second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_act="gelu", **text_2, **sizes))
    pipeline = StableDiffusionXLPipeline(
        randomise(AutoencoderKL(**SDXL_VAE, **vae), 1), randomise(first, 2), randomise(second, 3),
        one, two, randomise(UNet2DConditionModel(**SDXL_UNET, **unet), 4),
        DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        add_watermarker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory):
    """(pipeline of diffusers, its folder)"""
    pipeline, folder = make_sdxl(**SDXL), tmp_path_factory.mktemp("sdxl")
    pipeline.save_pretrained(folder)
    return pipeline, folder


@pytest.fixture(scope="session", params=[*ARCHITECTURES, "miniature"])
def oracle(request, tmp_path_factory):
    """(pipeline of diffusers, folder that holds it)."""
    from diffusers import StableDiffusionPipeline

    if request.param == "miniature":
        pipeline, folder = StableDiffusionPipeline.from_pretrained(MINI), MINI
        for part in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
            part.requires_grad_(False)
    else:
        pipeline = make_pipeline(**ARCHITECTURES[request.param])
        folder = tmp_path_factory.mktemp("weights")
        pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with the smallest random model, for tests of files and settings."""
    folder = tmp_path_factory.mktemp("tiny")
    make_pipeline(**ARCHITECTURES["linear, v"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def mini():
    """The miniature with the speed measures, as the commands have it."""
    model = dnp.load(MINI)
    speed.apply(model)
    return model


@pytest.fixture(scope="session")
def small_model():
    """Small random networks with the speed measures, as `small_cli` has them."""
    model = dnp.load(world())
    speed.apply(model)
    return model


def change_json(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def agrees_with_pipeline(pipeline, ours, prompt, negative, s):
    """Five steps of diffusers from the z_T of `ours`: latents to 1e-4, pictures to 1 of 255.

    DNS at s is the pipeline with an empty prompt, negative p, guidance s + 1.
    """
    call = {
        "cfg": dict(prompt=prompt, guidance_scale=s),
        "np2": dict(prompt=prompt, negative_prompt=negative, guidance_scale=s),
        "dns": dict(prompt="", negative_prompt=prompt, guidance_scale=s + 1),
    }[ours.settings["method"]]
    (z_T, z_0), want = ours.latents, []
    images = pipeline(
        **call, num_inference_steps=5, num_images_per_prompt=2, latents=z_T.clone(),
        callback_on_step_end=lambda *told: (want.append(told[-1]["latents"]), {})[1],
    ).images  # fmt: skip
    assert len(want) == 5
    torch.testing.assert_close(z_0, want[-1], atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(ours.images, images, strict=True):
        a, b = (np.asarray(i, dtype=int) for i in (mine, theirs))
        assert abs(a - b).max() <= 1

"""Small folders of diffusers, and single files with the same tensors: of 1.x, 2.x and SDXL.

No test changes them, nor a model that `opened` opens: they are made and opened once.
"""

import functools

import pytest
import torch
from safetensors.torch import load_file, save_file

import dnp
from dnp.sd.config import TextConfig
from dnp.sd.files import names
from originals import openclip, unet_to_original, vae_to_original, without_prefix

FAMILIES = {  # small ones with the structure of 1.x and of 2.x
    "1.x": dict(
        unet=dict(
            block_out_channels=(32, 64, 64, 64), attention_head_dim=8, cross_attention_dim=64
        ),
        text=dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3),
    ),
    "2.x": dict(
        unet=dict(
            block_out_channels=(64, 128, 128, 128),
            attention_head_dim=[1, 2, 2, 2],
            cross_attention_dim=128,
            use_linear_projection=True,
        ),
        text=dict(
            hidden_size=128, intermediate_size=160, num_hidden_layers=23, hidden_act="gelu",
            projection_dim=128,
        ),
    ),
}  # fmt: skip


def to_original(folder, second):
    """The tensors of a diffusers folder under the names of the original layout."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    text = without_prefix(load_file(folder / "text_encoder" / "model.safetensors"))
    out = unet_to_original(unet) | vae_to_original(vae)
    if not second:
        start = "cond_stage_model.transformer.text_model."
        out |= {start + k: x for k, x in text.items()}
        out[start + "embeddings.position_ids"] = torch.arange(77)[None]
    else:  # of 24 layers, of which the last one is never used
        start = "cond_stage_model.model."
        out |= openclip(text, 24, start)
        width = text["final_layer_norm.bias"].shape[0]
        out[start + "text_projection"] = torch.zeros(width, width)
        out[start + "logit_scale"] = torch.tensor(1.0)
    out["model_ema.decay"] = torch.tensor(0.99)
    out["betas"] = out["alphas_cumprod"] = torch.zeros(1000).clone()
    out["alphas_cumprod"] = torch.zeros(1000)
    return {k: x.contiguous() for k, x in out.items()}


def make_family(sizes, vae, second, folder):
    """(pipeline of diffusers, its folder, a single file with the same tensors)."""
    from conftest import CROSS, PLAIN, make_pipeline

    pipeline = make_pipeline(
        unet=dict(
            layers_per_block=2, norm_num_groups=32, sample_size=64,
            down_block_types=[k.format("Down") for k in (CROSS, CROSS, CROSS, PLAIN)],
            up_block_types=[k.format("Up") for k in (PLAIN, CROSS, CROSS, CROSS)],
            **sizes["unet"],
        ),
        vae=dict(block_out_channels=vae, layers_per_block=2, norm_num_groups=32),
        text={
            **sizes["text"], "vocab_size": 49408, "max_position_embeddings": 77,
            "num_attention_heads": max(1, sizes["text"]["hidden_size"] // 64),
        },
        scheduler={},
    )  # fmt: skip
    last = pipeline.unet.up_blocks[3].attentions[2].transformer_blocks[0].norm1
    last.bias.data *= 0.1  # little spread: a network that predicts eps
    pipeline.tokenizer = names.clip_tokenizer(
        TextConfig(hidden_act="gelu" if second else "quick_gelu")
    )
    pipeline.save_pretrained(folder / "diffusers")
    path = folder / "model.safetensors"
    save_file(to_original(folder / "diffusers", second), path, metadata={"format": "pt"})
    return pipeline, folder / "diffusers", path


@pytest.fixture(scope="session", autouse=True)
def tokenizers_once():
    """CLIP's 49,408 tokens are read once for each way to pad, and no test changes them."""
    read = names.clip_tokenizer

    @functools.cache
    def kept(act, length):
        return read(TextConfig(hidden_act=act, max_position_embeddings=length))

    with pytest.MonkeyPatch.context() as patch:
        once = lambda config: kept(config.hidden_act, config.max_position_embeddings)
        patch.setattr(names, "clip_tokenizer", once)
        yield


@pytest.fixture(scope="session", params=FAMILIES)
def family(request, tmp_path_factory):
    """(name, pipeline of diffusers, its folder, a single file with the same tensors)."""
    name, folder = request.param, tmp_path_factory.mktemp("family")
    return name, *make_family(FAMILIES[name], (32, 32, 64, 64), name == "2.x", folder)


@functools.cache
def opened(path):
    """The weights of a folder or file that no test changes."""
    return dnp.load(path)


# --------------------------------------------------------------------------------------- SDXL

FIRST, SECOND = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
PARTS = {
    "text_encoder": "model", "text_encoder_2": "model", "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}  # fmt: skip


def sdxl_to_original(parts):
    """The tensors of each part of a folder under the names of the original layout."""
    text, text_2 = (without_prefix(parts[n]) for n in ("text_encoder", "text_encoder_2"))
    layers = 1 + max(int(k.split(".")[2]) for k in text_2 if k.startswith("encoder.layers."))
    out = unet_to_original(parts["unet"]) | vae_to_original(parts["vae"])
    out |= {FIRST + k: x for k, x in text.items()} | openclip(text_2, layers, SECOND)
    out[SECOND + "text_projection"] = text_2["text_projection.weight"].T.contiguous()
    out[SECOND + "logit_scale"] = torch.tensor(1.0)
    out[FIRST + "embeddings.position_ids"] = torch.arange(77)[None]
    out["denoiser.sigmas"] = torch.zeros(1000)
    return out


def make_both(root, **widths):
    """(pipeline of diffusers, its folder, a single file with the same tensors), CLIP's tokens."""
    from conftest import make_sdxl

    kinds = TextConfig(), TextConfig(hidden_act="gelu")
    pipeline = make_sdxl(**widths, tokenizers=[names.clip_tokenizer(kind) for kind in kinds])
    pipeline.save_pretrained(root / "folder")
    parts = {n: load_file(root / "folder" / n / f"{stem}.safetensors") for n, stem in PARTS.items()}
    save_file(sdxl_to_original(parts), root / "xl.safetensors", metadata={"format": "pt"})
    return pipeline, root / "folder", root / "xl.safetensors"


@pytest.fixture(scope="session")
def both(tmp_path_factory):
    """Depths 1/2/10, both text encoders, and a projection that is not square."""
    return make_both(
        tmp_path_factory.mktemp("both"),
        text=dict(
            hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=1
        ),
        text_2=dict(
            hidden_size=128, intermediate_size=160, num_hidden_layers=11, num_attention_heads=2,
            projection_dim=96,
        ),
        unet=dict(
            block_out_channels=(32, 64, 128), attention_head_dim=[1, 1, 2],
            cross_attention_dim=192, norm_num_groups=32, sample_size=128,
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=96 + 6 * 8,
        ),
        vae=dict(block_out_channels=(32, 32, 64, 64), norm_num_groups=32),
    )  # fmt: skip

"""Random weights of published sizes, and of tiny ones, as diffusers folders, for the benchmark."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from dnp.errors import SettingsError
from dnp.sd.clip import CLIPTextModel
from dnp.sd.config import TextConfig, UNetConfig, VAEConfig
from dnp.sd.files import names
from dnp.sd.unet import UNet
from dnp.sd.vae import VAE

# The configs, where they differ from what diffusers and transformers assume.
CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"


def _text(width: int, inner: int, layers: int, heads: int, **kw: object) -> dict:
    return {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": width,
        "intermediate_size": inner, "num_attention_heads": heads, "num_hidden_layers": layers,
        "max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu", **kw,
    }  # fmt: skip


def _text_2(width: int, inner: int, layers: int, heads: int) -> dict:
    kind = {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": width}
    return _text(width, inner, layers, heads, hidden_act="gelu", **kind)


def _unet(down: str, up: str, **kw: object) -> dict:
    """A U-Net; `down` and `up` have a letter for each level, C with cross-attention or P plain."""
    kinds = {"C": CROSS, "P": PLAIN}
    return {
        "_class_name": "UNet2DConditionModel", **kw,
        "down_block_types": [kinds[x].format("Down") for x in down],
        "up_block_types": [kinds[x].format("Up") for x in up],
    }  # fmt: skip


def _vae(channels: list[int], layers: int, **kw: object) -> dict:
    return {
        "_class_name": "AutoencoderKL", "block_out_channels": channels, "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels), **kw,
    }  # fmt: skip


XL = {"use_linear_projection": True, "addition_embed_type": "text_time"}
XL_VAE = {"scaling_factor": 0.13025, "force_upcast": True}  # diffusers decodes it in float32
SIZES = {
    "sd1": {
        "text_encoder": _text(768, 3072, 12, 12),
        "unet": _unet("CCCP", "PCCC", cross_attention_dim=768, sample_size=64),
        "vae": _vae([128, 256, 512, 512], 2),
    },
    "sdxl": {
        "text_encoder": _text(768, 3072, 12, 12),
        "unet": _unet(
            "PCC", "CCP", cross_attention_dim=2048, sample_size=128, **XL,
            block_out_channels=[320, 640, 1280], attention_head_dim=[5, 10, 20],
            transformer_layers_per_block=[1, 2, 10], addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=1280 + 6 * 256,
        ),
        "vae": _vae([128, 256, 512, 512], 2, **XL_VAE),
        "text_encoder_2": _text_2(1280, 5120, 32, 20),
    },
    "tiny": {
        "text_encoder": _text(32, 64, 2, 4),
        "unet": _unet(
            "CP", "PC", cross_attention_dim=32, sample_size=8, block_out_channels=[16, 32],
            layers_per_block=1, attention_head_dim=4, norm_num_groups=8,
        ),
        "vae": _vae([16, 16], 1, norm_num_groups=8),
    },
    "tiny-xl": {
        "text_encoder": _text(24, 48, 3, 4),
        "unet": _unet(
            "PC", "CP", cross_attention_dim=64, sample_size=8, **XL, block_out_channels=[16, 32],
            layers_per_block=1, attention_head_dim=[2, 4], norm_num_groups=8,
            transformer_layers_per_block=[1, 2], addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=40 + 6 * 8,
        ),
        "vae": _vae([16, 16], 1, norm_num_groups=8, **XL_VAE),
        "text_encoder_2": _text_2(40, 80, 3, 4),
    },
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False,
    "steps_offset": 1, "num_train_timesteps": 1000,
}  # fmt: skip
CLASSES = {
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}
NETWORKS = {"unet": (UNet, UNetConfig), "vae": (VAE, VAEConfig)}


def network_of(part: str, config: dict):
    """A network of this package by a config of diffusers or transformers, with random weights."""
    build, kind = NETWORKS.get(part, (CLIPTextModel, TextConfig))
    known = kind.from_dict(config)
    if "projection_dim" in config:
        known = TextConfig(**vars(known) | {"pooled_dim": config["projection_dim"]})
    return build(known)


def write_random_weights(
    folder: Path, size: str, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """A folder of one of SIZES with torch's own random initial weights, drawn on `device`.

    SettingsError where the disk is too small.
    """
    parts, second = SIZES[size], "text_encoder_2" in SIZES[size]
    with torch.device("meta"):
        numbers = (p.numel() for n in parts for p in network_of(n, parts[n]).parameters())
        need = sum(numbers) * dtype.itemsize
    free = shutil.disk_usage(folder).free
    if free < 1.1 * need:
        raise SettingsError(
            f"{folder} has {free / 1e9:.1f} GB free and the random weights take {need / 1e9:.1f}; "
            "set TMPDIR to a larger disk, or give --weights FOLDER."
        )
    torch.manual_seed(0)
    for part, config in parts.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
        with torch.device(device):
            network = network_of(part, config).requires_grad_(False)
        for name, p in network.named_parameters():
            if "embedding.weight" in name:
                p.normal_(std=0.02)
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        path = folder / part / f"{stem}.safetensors"
        save_file(network.to(dtype).state_dict(), path, metadata={"format": "pt"})
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    for part, act in (("tokenizer", "quick_gelu"), ("tokenizer_2", "gelu"))[: 1 + second]:
        names.clip_tokenizer(TextConfig(hidden_act=act)).save_pretrained(folder / part)
    kind = "StableDiffusionXLPipeline" if second else "StableDiffusionPipeline"
    index = {"_class_name": kind, "_diffusers_version": "0.35.0"}
    index |= {n: c for n, c in CLASSES.items() if second or not n.endswith("_2")}
    index |= {"force_zeros_for_empty_prompt": True} if second else {}
    (folder / "model_index.json").write_text(json.dumps(index))

"""Random weights of Stable Diffusion 1.5's size, as a diffusers folder, for the benchmark."""

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

# Stable Diffusion 1.5's configs, where they differ from what diffusers and transformers assume.
SD1 = {
    "text_encoder": {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 768,
        "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
        "max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu",
    },
    "unet": {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "sample_size": 64},
    "vae": {
        "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2, "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "scheduler": {
        "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False,
        "steps_offset": 1, "num_train_timesteps": 1000,
    },
    "tokenizer": {},
}  # fmt: skip
CLASSES = {
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}


def write_random_weights(folder: Path) -> None:
    """A folder of Stable Diffusion 1.5's size with torch's own random initial weights."""
    free = shutil.disk_usage(folder).free
    if free < 5e9:
        raise SettingsError(
            f"{folder} has {free / 1e9:.1f} GB free and the random weights take 4.3; set TMPDIR to "
            "a larger disk, or give --weights FOLDER."
        )
    torch.manual_seed(0)
    for part, config in SD1.items():
        (folder / part).mkdir()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps(config))
    for part, build, kind in (
        ("text_encoder", CLIPTextModel, TextConfig),
        ("unet", UNet, UNetConfig),
        ("vae", VAE, VAEConfig),
    ):
        network = build(kind.from_dict(SD1[part])).requires_grad_(False)
        for name, p in network.named_parameters():
            if "embedding.weight" in name:
                p.normal_(std=0.02)
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        path = folder / part / f"{stem}.safetensors"
        save_file(network.state_dict(), path, metadata={"format": "pt"})
    names.clip_tokenizer(TextConfig()).save_pretrained(folder / "tokenizer")
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.35.0", **CLASSES}
    (folder / "model_index.json").write_text(json.dumps(index))

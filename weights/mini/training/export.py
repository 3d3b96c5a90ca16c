"""Writes trained checkpoints as a folder that diffusers, transformers and `dnp.load` open."""

from __future__ import annotations

import argparse
import json

import torch

from common import HERE, load_ema, networks, tokenizer, write
from dnp.sd.config import MINI_TEXT, MINI_UNET, MINI_VAE
from dnp.sd.vae import VAE


def export(args: argparse.Namespace) -> None:
    """The EMA weights as a diffusers folder. U-Net and VAE in float16, the text encoder in float32:
    transformers loads a half-precision text encoder as half, which diffusers' pipeline then mixes
    with a float32 U-Net."""
    tok = tokenizer()
    model = load_ema(networks(len(tok)), args.out / "unet.safetensors")
    vae = load_ema(VAE(MINI_VAE), args.out / "vae.safetensors")
    scale = json.loads((args.out / "scaling_factor.json").read_text())
    save = {
        "unet/diffusion_pytorch_model": (model["unet"], torch.float16, ""),
        "vae/diffusion_pytorch_model": (vae, torch.float16, ""),
        "text_encoder/model": (model["text"], torch.float32, "text_model."),
    }
    for name, (module, dtype, prefix) in save.items():
        tensors = {prefix + k: v.to(dtype).contiguous() for k, v in module.state_dict().items()}
        write(args.to / f"{name}.safetensors", tensors)
    for name, config in configs(tok, scale).items():
        path = args.to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=2) + "\n")
    for name in ("vocab.json", "merges.txt", "LICENSE"):
        source, target = HERE.parent / "tokenizer" / name, args.to / "tokenizer" / name
        target.write_bytes(source.read_bytes())
    print(f"wrote {args.to}")


def configs(tok, scale: float) -> dict[str, dict]:
    """Every JSON file of the folder, as diffusers and transformers write them."""
    ends = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id}
    kinds = {True: "CrossAttn{}Block2D", False: "{}Block2D"}
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "DDIMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": False,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "timestep_spacing": "leading",
        },
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            **MINI_TEXT.__dict__,
            "vocab_size": len(tok),
            **ends,
            "pad_token_id": tok.pad_token_id,
            "layer_norm_eps": 1e-5,
            "projection_dim": MINI_TEXT.hidden_size,
        },
        "tokenizer/tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "model_max_length": MINI_TEXT.max_position_embeddings,
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "attention_head_dim": list(MINI_UNET.heads),  # diffusers' name for the number of heads
            "block_out_channels": MINI_UNET.block_out_channels,
            "cross_attention_dim": MINI_UNET.cross_attention_dim,
            "down_block_types": [kinds[a].format("Down") for a in MINI_UNET.down_attention],
            "up_block_types": [kinds[a].format("Up") for a in MINI_UNET.up_attention],
            "in_channels": MINI_UNET.in_channels,
            "out_channels": MINI_UNET.out_channels,
            "layers_per_block": MINI_UNET.layers_per_block,
            "norm_num_groups": MINI_UNET.norm_num_groups,
            "sample_size": MINI_UNET.sample_size[0],
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL",
            **MINI_VAE.__dict__,
            "down_block_types": ["DownEncoderBlock2D"] * len(MINI_VAE.block_out_channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(MINI_VAE.block_out_channels),
            "sample_size": MINI_UNET.sample_size[0] * MINI_VAE.factor,
            "scaling_factor": scale,
        },
    }

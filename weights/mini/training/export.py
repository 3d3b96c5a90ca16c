"""Writes trained checkpoints as a folder that diffusers, transformers and `dnp.load` open."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPModel, CLIPProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from common import HERE, load_ema, text_tower, tokenizer, write
from dnp.sd.config import MINI_TEXT, MINI_UNET, MINI_VAE
from dnp.sd.unet import UNet
from dnp.sd.vae import VAE
from perception import captioner_config, captioner_tokenizer, clip_config

PICTURE = {"size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def export(args: argparse.Namespace) -> None:
    """The EMA weights in float16, as a diffusers folder with CLIP and captioner beside it. With
    `--warm FOLDER` it is that folder with the trained U-Net.

    `"dtype": "float32"` in a transformers config makes transformers load them as float32, as
    diffusers does by itself; half precision on a CPU is slow and mixes badly.
    """
    tok = tokenizer()
    out, to = args.out, args.to
    if args.warm:  # another U-Net for the parts of a folder
        shutil.copytree(args.warm, to, dirs_exist_ok=True)
        unet = load_ema(UNet(MINI_UNET), out / "unet.safetensors")
        tensors = {k: v.half().contiguous() for k, v in unet.state_dict().items()}
        write(to / "unet/diffusion_pytorch_model.safetensors", tensors)
        print(f"wrote {to}")
        return
    unet, vae = (
        load_ema(UNet(MINI_UNET), out / "unet.safetensors"),
        load_ema(VAE(MINI_VAE), out / "vae.safetensors"),
    )
    text = text_tower(out / "clip.safetensors", len(tok))
    scale = json.loads((out / "scaling_factor.json").read_text())
    save = {
        "unet/diffusion_pytorch_model": (unet, ""),
        "vae/diffusion_pytorch_model": (vae, ""),
        "text_encoder/model": (text, "text_model."),
    }
    for name, (module, prefix) in save.items():
        tensors = {prefix + k: v.half().contiguous() for k, v in module.state_dict().items()}
        write(to / f"{name}.safetensors", tensors)
    for name, config in configs(tok, scale).items():
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=2) + "\n")
    for name in ("vocab.json", "merges.txt", "LICENSE"):
        source, target = HERE.parent / "tokenizer" / name, to / "tokenizer" / name
        target.write_bytes(source.read_bytes())
    clip = CLIPModel(clip_config(len(tok), tok.eos_token_id))
    eyes = CLIPImageProcessorPil(**PICTURE, crop_size=PICTURE["size"])
    transformers_folder(clip, out / "clip.safetensors", CLIPProcessor(eyes, tok), to / "clip")
    blip, words = BlipForConditionalGeneration(captioner_config()), captioner_tokenizer()
    processor = BlipProcessor(BlipImageProcessorPil(**PICTURE), words)
    transformers_folder(blip, out / "captioner.safetensors", processor, to / "captioner")
    (to / "training").mkdir(exist_ok=True)
    target = to / "training" / "recogniser.safetensors"
    target.write_bytes((out / "recogniser-weights.safetensors").read_bytes())
    print(f"wrote {to}")


def transformers_folder(model, checkpoint: Path, processor, folder: Path) -> None:
    """EMA weights `ema.model.*`, config and processor, as transformers saves them."""
    start = "ema.model."
    tensors = load_file(checkpoint)
    tensors = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    model.load_state_dict(tensors)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        model.half().save_pretrained(temporary)
        processor.save_pretrained(temporary)
        path = Path(temporary) / "config.json"
        config = json.loads(path.read_text()) | {"dtype": "float32"}
        path.write_text(json.dumps(config, indent=2) + "\n")
        folder.mkdir(exist_ok=True)
        for file in Path(temporary).iterdir():
            os.replace(file, folder / file.name)


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
            "dtype": "float32",
            **MINI_TEXT.__dict__,
            "vocab_size": len(tok),
            **ends,
            "pad_token_id": tok.pad_token_id,
            "layer_norm_eps": 1e-5,
            "projection_dim": 128,
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

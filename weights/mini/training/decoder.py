"""Trains the decoder alone: the encoder's latents stay as they are to the bit.

Pictures become sharper, and every latent, U-Net and caption model that was made with this
autoencoder stays valid. The autoencoder of `--warm` may be shallower than `MINI_VAE`, as the one
that the miniature's came from. AutoencoderKL has one depth for both halves, so the encoder gets
blocks too; the last convolution of each added block is zero, so that it returns its input.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

import world
from common import Trainer, new_unet, take, text_tower, tokenizer, write
from data import pixels, scenes
from dnp.sampling import ddim_step
from dnp.schedule import Schedule
from dnp.sd.config import MINI_VAE
from dnp.sd.vae import VAE

TRIOS, DENOISED = 0.4, 0.25  # shares of a batch: scenes of three things; latents of the U-Net's
NOISIEST = 150  # the level up to which a scene is noised before the U-Net cleans it


def deeper(state: dict[str, Tensor]) -> VAE:
    """`MINI_VAE` with a state that may lack blocks: the same function as without, to the bit."""
    vae = VAE(MINI_VAE)
    for name, p in vae.named_parameters():
        if name.endswith(("conv2.weight", "conv2.bias")):
            nn.init.zeros_(p)
    lacking, unknown = vae.load_state_dict(state, strict=False)
    if unknown or not all(".resnets." in name for name in lacking):
        raise ValueError(f"not an autoencoder of this shape: {[*lacking, *unknown][:3]}")
    return vae


@torch.inference_mode()
def pairs(args: argparse.Namespace, vae: VAE) -> dict[str, Tensor]:
    """Latents of every scene, kept in `out`: the posterior's mean and deviation, and for a part of
    the scenes what two steps of the U-Net leave of a noised latent."""
    path = args.out / "decoder-latents.safetensors"
    images, all_scenes = scenes(args.out, args.scenes, args.seed)
    if not path.exists():
        batches = [
            [h.clone() for h in vae.encode(pixels(images[i : i + 200], args.device))]
            for i in tqdm(range(0, len(images), 200), desc="encoding", unit="batch")
        ]
        mean, logvar = (torch.cat(parts).contiguous() for parts in zip(*batches))
        take(args.warm, args.out)
        tok, unet, schedule = tokenizer(), new_unet(), Schedule.stable_diffusion()
        text = text_tower(args.out / "clip.safetensors", len(tok))
        unet.load_state_dict(load_file(args.warm / "unet/diffusion_pytorch_model.safetensors"))
        scale = json.loads((args.warm / "vae/config.json").read_text())["scaling_factor"]
        rng, cleaned = np.random.default_rng((args.seed, 5)), []
        count = len(images) // 10
        for i in tqdm(range(0, count, 100), desc="noising and denoising", unit="batch"):
            rows = range(i, min(i + 100, count))
            said = [world.caption(all_scenes[r], rng) for r in rows]
            ids = tok(said, padding="max_length", truncation=True, return_tensors="pt").input_ids
            c = text(ids)
            t = torch.from_numpy(rng.integers(2, NOISIEST + 1, len(rows)))
            eps = torch.from_numpy(rng.standard_normal(mean[rows].shape, dtype=np.float32))
            z = schedule.add_noise(scale * mean[rows], eps, t)
            for t_i, t_next in ((t, t // 2), (t // 2, torch.full_like(t, -1))):
                z, _ = ddim_step(z, unet(z, t_i, c), schedule.level(t_i), schedule.level(t_next))
            cleaned.append(z / scale)
        std = (0.5 * logvar).exp()
        write(path, {"mean": mean, "std": std, "cleaned": torch.cat(cleaned).contiguous()})
    return load_file(path)


def train_decoder(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    vae = deeper(load_file(args.warm / "vae/diffusion_pytorch_model.safetensors"))
    latents = pairs(args, vae)
    images, all_scenes = scenes(args.out, args.scenes, args.seed)
    three = np.array([len(s.things) == 3 for s in all_scenes])
    first = np.arange(len(images)) < len(latents["cleaned"])
    rows_of = {
        kind: [np.flatnonzero(has & where) for has in (three, ~three)]
        for kind, where in (("mean", np.ones_like(first)), ("cleaned", first))
    }
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    vae = vae.to(args.device)
    trainer = Trainer(vae, args.out / "decoder.safetensors", args, args.lr, ema=0.999)

    def loss_at(step: int, progress: float) -> Tensor:
        rng = np.random.default_rng((args.seed, 6, step))
        z, x = [], []
        for _ in range(args.batch):
            kind = "cleaned" if rng.random() < DENOISED else "mean"
            r = rng.choice(rows_of[kind][0 if rng.random() < TRIOS else 1])
            z_r = latents[kind][r]
            if kind == "mean":
                noise = rng.standard_normal(z_r.shape, dtype=np.float32)
                z_r = z_r + latents["std"][r] * torch.from_numpy(noise)
            z.append(z_r)
            x.append(images[r])
        z = torch.stack(z).to(args.device)
        x = pixels(np.stack(x), args.device).contiguous()
        kind = "cuda" if args.device.startswith("cuda") else "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=not args.float32):
            y = vae.decode(z).float()
        edges = sum((torch.diff(y, dim=d) - torch.diff(x, dim=d)).abs().mean() for d in (2, 3))
        return (y - x).abs().mean() + 2 * F.mse_loss(y, x) + edges

    trainer.run(loss_at, args.out / "decoder.jsonl")
    tensors = {k: v.half().contiguous() for k, v in trainer.ema.items()}
    write(args.out / "decoder-weights.safetensors", tensors)

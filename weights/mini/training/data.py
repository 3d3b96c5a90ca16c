"""Scenes for training: rendered once and kept on disk, with their labels and their latents."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

import world
from common import load_ema, write
from dnp.sd.config import MINI_VAE
from dnp.sd.vae import VAE

GRID = 8  # cells along each side of a picture, for labels of what is where
NOTHING, UNSURE = len(world.THINGS), -100  # a cell's label: background; not to be judged


def scenes(
    out: Path, n: int, seed: int, split: str = "train"
) -> tuple[np.ndarray, list[world.Scene]]:
    """n scenes and their pixels (n, 64, 64, 3), rendered once and kept in `out`."""
    path = out / f"scenes-{n}-{seed}{'' if split == 'train' else '-' + split}.npy"
    if not path.exists():
        images, _, all_scenes = world.dataset(n, seed, split=split)
        out.mkdir(parents=True, exist_ok=True)
        np.save(path.with_suffix(".partial.npy"), images, allow_pickle=False)
        os.replace(path.with_suffix(".partial.npy"), path)
        return images, all_scenes
    all_scenes = [world.scene_at(seed, i, split)[0] for i in range(n)]
    return np.load(path, mmap_mode="r", allow_pickle=False), all_scenes


def pixels(images: np.ndarray, device: str) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def cells(all_scenes: list[world.Scene]) -> tuple[Tensor, Tensor]:
    """What each cell of the grid shows: things and colours, int64 (B, GRID, GRID).

    A cell is a thing's if its centre lies in the inner 70 % of the thing's box, NOTHING outside
    every box, UNSURE between; a colour is UNSURE where the thing keeps its own.
    """
    centre = (np.arange(GRID) + 0.5) / GRID
    things = np.full((len(all_scenes), GRID, GRID), NOTHING)
    colours = np.full_like(things, UNSURE)
    for i, scene in enumerate(all_scenes):
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            away = [np.abs(centre - (a + b) / 2) / (b - a) for a, b in ((y0, y1), (x0, x1))]
            far = np.maximum(away[0][:, None], away[1])  # 0.5 on the edge of the box
            things[i][far < 0.5] = UNSURE
            things[i][far < 0.35] = world.THINGS.index(thing.word)
            colour = world.COLOUR_NAMES.index(thing.colour) if thing.colour else UNSURE
            colours[i][far < 0.5] = UNSURE
            colours[i][far < 0.35] = colour
    return torch.from_numpy(things), torch.from_numpy(colours)


def cell_loss(said_things: Tensor, said_colours: Tensor, things: Tensor, colours: Tensor) -> Tensor:
    """Cross-entropy of the cells' labels; logits (B, labels, cells)."""
    loss = F.cross_entropy(said_things, things.flatten(1))
    return loss + F.cross_entropy(said_colours, colours.flatten(1))


def degrade(x: Tensor, rng: np.random.Generator) -> Tensor:
    """What sampling may do to a picture: for each one, by chance, other brightness and contrast,
    blur, and noise. (B, 3, H, W) in [-1, 1]."""
    b = len(x)

    def chance(p: float, low: float, high: float) -> Tensor:
        value = np.where(rng.random(b) < p, rng.uniform(low, high, b), 0)
        return torch.from_numpy(value.astype(np.float32)).to(x.device)[:, None, None, None]

    x = x * (1 + chance(0.5, -0.3, 0.3)) + chance(0.5, -0.2, 0.2)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = x + chance(0.4, 0.2, 1.0) * (soft - x)
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)).to(x.device)
    return (x + chance(0.5, 0.02, 0.2) * noise).clamp(-1, 1)


@torch.inference_mode()
def latents(args: argparse.Namespace, images: np.ndarray) -> tuple[Tensor, Tensor, float]:
    """Posterior mean and std of every scene, both scaled to unit standard deviation, and 1/std."""
    path = args.out / "latents.safetensors"
    if not path.exists():
        vae = load_ema(VAE(MINI_VAE), args.out / "vae.safetensors").to(args.device)
        vae = vae.to(memory_format=torch.channels_last)
        batches = [
            [h.cpu() for h in vae.encode(pixels(images[i : i + 200], args.device))]
            for i in tqdm(range(0, len(images), 200), desc="encoding", unit="batch")
        ]
        mean, logvar = (torch.cat(parts) for parts in zip(*batches))
        write(path, {"mean": mean.contiguous(), "std": (0.5 * logvar).exp().contiguous()})
    cached = load_file(path)
    scale = 1 / cached["mean"].std().item()
    return cached["mean"] * scale, cached["std"] * scale, scale

"""Trains the judges: the recogniser of one and two things, and the judge of one to three.

The recogniser stays as it was, so that editions can be compared; the judge goes on from it.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import world
from common import Trainer, write
from data import NOTHING, cell_loss, cells, degrade, pixels, scenes
from dnp.sd.recogniser import Recogniser, load_recogniser

TRIOS, EMPTY = 24, 6  # scenes of three things, and of none, in the judge's batches of 64


def blobs(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures of empty scenes with one to three flat shapes: things that are none."""
    y, z = np.mgrid[0:64, 0:64] / 64
    for i in range(len(x)):
        for _ in range(rng.integers(1, 4)):
            cx, cy, angle = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), rng.uniform(0, np.pi)
            a, b = rng.uniform(0.08, 0.35, 2)
            u = (z - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
            v = (y - cy) * np.cos(angle) - (z - cx) * np.sin(angle)
            power = rng.choice([1.0, 2.0, 4.0])  # a diamond, an ellipse, a rounded rectangle
            far = np.abs(u / a) ** power + np.abs(v / b) ** power
            m = torch.from_numpy(np.clip(6 * (1 - far), 0, 1).astype(np.float32))
            paint = np.array(list(world.COLOURS.values()))[rng.integers(11)] / 127.5 - 1
            shade = 1 + rng.uniform(-0.5, 0.5) * torch.from_numpy((v / b).astype(np.float32))
            colour = torch.from_numpy(paint.astype(np.float32))[:, None, None] * shade
            x[i] = x[i] + m.to(x.device) * (colour.to(x.device) - x[i])
    return x.clamp(-1, 1)


def mush(n: int, rng: np.random.Generator) -> Tensor:
    """Pictures of nothing: random colours on a coarse or fine grid, smoothly enlarged."""
    fields = []
    for _ in range(n):
        side = int(rng.choice([1, 2, 4, 8, 16, 64]))
        grid = rng.normal(0, rng.uniform(0.2, 1.0), (1, 3, side, side)) + rng.normal(
            0, 0.4, (3, 1, 1)
        )
        fields.append(F.interpolate(torch.from_numpy(grid.astype(np.float32)), 64, mode="bicubic"))
    return torch.cat(fields).clamp(-1, 1)


def train_recogniser(args: argparse.Namespace) -> None:
    """The recogniser of scenes that nothing else is trained on."""
    images, all_scenes = scenes(args.out, args.scenes // 2, args.seed + 1000)
    torch.manual_seed(args.seed)
    model = Recogniser(world.THINGS, world.COLOUR_NAMES)
    _train(args, "recogniser", model, images, all_scenes, args.seed + 1000, 2e-3, 0)


def train_judge(args: argparse.Namespace) -> None:
    """The judge of one to three things, from the recogniser's weights. It sees every combination:
    what the U-Net never saw is as easy for it as the rest."""
    images, all_scenes = scenes(args.out, args.scenes // 2, args.seed + 2000, "every")
    model = load_recogniser(args.recogniser)
    _train(args, "judge", model, images, all_scenes, args.seed + 2000, 1e-3, TRIOS)


def _train(
    args: argparse.Namespace, name: str, model: Recogniser, images: np.ndarray,
    all_scenes: list[world.Scene], seed: int, lr: float, n_trios: int,
) -> None:  # fmt: skip
    """What each cell shows and what is there at all; writes NAME-weights.safetensors."""
    empty = np.array([i for i, s in enumerate(all_scenes) if not s.things])
    trios = np.array([i for i, s in enumerate(all_scenes) if len(s.things) == 3])
    model = model.train().to(args.device, memory_format=torch.channels_last)
    trainer = Trainer(model, args.out / f"{name}.safetensors", args, lr, ema=0.998)

    def loss_at(step: int, progress: float) -> Tensor:
        rng = np.random.default_rng((seed, 4, step))
        some = rng.choice(len(images), 64 - EMPTY - n_trios)
        extra = [rng.choice(empty, EMPTY)] + ([rng.choice(trios, n_trios)] if n_trios else [])
        rows = np.sort(np.concatenate([some, *extra]))
        batch = [all_scenes[r] for r in rows]
        x = pixels(images[rows], args.device)
        without = torch.tensor([not s.things for s in batch])
        x[without] = blobs(x[without], rng)
        x[torch.where(without)[0][:3]] = mush(3, rng).to(args.device)
        things, colours = (c.to(args.device) for c in cells(batch))
        there = torch.zeros(len(batch), NOTHING)
        for i, scene in enumerate(batch):
            there[i, [world.THINGS.index(t.word) for t in scene.things]] = 1
        kind = "cuda" if args.device.startswith("cuda") else "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=not args.float32):
            x = degrade(x, rng).contiguous(memory_format=torch.channels_last)
            said_things, said_colours = model(x)
        presence = F.binary_cross_entropy_with_logits(
            model.presence(said_things), there.to(args.device)
        )
        return cell_loss(said_things.flatten(2), said_colours.flatten(2), things, colours) + (
            10 * presence
        )

    trainer.run(loss_at, args.out / f"{name}.jsonl")
    tensors = {k: v.half().contiguous() for k, v in trainer.ema.items()}
    labels = {"things": json.dumps(world.THINGS), "colours": json.dumps(world.COLOUR_NAMES)}
    write(args.out / f"{name}-weights.safetensors", tensors, labels)

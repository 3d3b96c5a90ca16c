"""The settings of a call beside those of its method: how the chain runs, and which pictures."""

from __future__ import annotations

from dataclasses import dataclass

from dnp.methods.fields import Sides, setting
from dnp.methods.words import SEEDS


@dataclass(kw_only=True)
class Chain:
    sampler: str = setting("ddim", "how a step is made", choices=("ddim", "dpmpp2m"))
    steps: int = setting(50, "sampling steps", low=1)
    eta: float = setting(0.0, "0 (DDIM) to 1 (DDPM)", low=0, high=1)
    particles: int | None = setting(
        None, "K particles of the law of cfg, np, np2 or dns for each picture, with eta 1", low=2,
        high=1024, metavar="K",
    )  # fmt: skip
    corrector: int | None = setting(
        None, "K Langevin steps of that law at each level", low=1, high=100, metavar="K"
    )
    seed: int = setting(0, "seed of the first picture", low=0, high=SEEDS - 1)
    images: int = setting(
        1, "how many pictures, with seeds SEED, SEED + 1, ...", low=1, high=10_000
    )
    batch: int | None = setting(
        None, "N pictures in each forward, fewer are filled up; default: 1 on a CPU, else up to 16",
        low=1, high=1024,
    )  # fmt: skip
    size: Sides | None = setting(None, "height and width in pixels; default: as trained")
    phi: str | None = setting(
        None, "SDXL: phi is zeros, or the encoding of no text; default: as PATH says",
        choices=("zeros", "text"),
    )  # fmt: skip
    original_size: Sides | None = setting(
        None, "SDXL: original size; default: SIZE", low=0, high=100_000
    )
    crop: Sides | None = setting(
        None, "SDXL: crop; default 0 0", low=0, high=100_000, metavar="TOP LEFT"
    )
    target_size: Sides | None = setting(
        None, "SDXL: target size; default: SIZE", low=0, high=100_000
    )

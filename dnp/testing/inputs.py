"""What a rule is given: noises, levels, scales, shapes and toys, drawn from a seed.

Every number that an author could have looked at is drawn, and spread over its whole range: levels
over equal parts of the schedule, scales, sizes and radii over equal parts of their logarithm. So a
rule that is wrong in a tenth of a range is met several times, whatever the seed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dnp.toy import Gaussian, Mixture, PointMass

F64 = torch.float64
RANKS = (1, 2, 3, 4)  # axes of one sample: (D,), (H, W), (C, H, W), (C, F, H, W)


def noises(
    shape: Sequence[int] = (3, 2, 5, 7), seed: int = 0, norm: float = 1.0,
    dtype: torch.dtype = F64,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Three random noises (phi, p, n) of one shape (B, *S); `norm` is the size of an element."""
    g = generator(seed)
    return tuple((norm * torch.randn(*shape, generator=g, dtype=F64)).to(dtype) for _ in range(3))


def levels(count: int = 12, seed: int = 0, T: int = 1000) -> list[int]:
    """`count` levels t that fall, one from each equal part of 0 ... T - 1, and both ends."""
    inner = spread(max(count - 2, 0), generator(seed), 0, T - 1e-9)
    return sorted({0, T - 1, *(int(t) for t in inner)}, reverse=True)


def scales(count: int = 12, seed: int = 0) -> list[float]:
    """`count` scales: 0, 1, and of the others two thirds from 0.05 to 40, a third from -10 on."""
    g, inner = generator(seed), max(count - 2, 0)
    low = inner // 3
    up = spread(inner - low, g, 0.05, 40, log=True)
    down = spread(low, g, 0.05, 10, log=True)
    return [0.0, 1.0, *up, *(-s for s in down)]


def toys() -> dict[str, Mixture]:
    """Exact models by name: points and Gaussians, on which linear rules have closed forms, and
    mixtures, on which p(n | z_t) is known too. Prompts 0 and 1 are p and n."""
    eye, root = torch.eye(2, dtype=F64), torch.tensor([[1.0, 0.0], [0.7, 1.0]], dtype=F64)
    corners = torch.tensor([[2.0, 2], [2, -2], [-2, -2], [-2, 2]], dtype=F64)
    places = [torch.tensor(x, dtype=F64) for x in ([0.0, 0], [1, 0.5], [-0.3, 1.2])]
    wide = [(places[1], 0.8 * eye), (places[2], 0.5 * root @ root.T)]
    return {
        "points": PointMass(places[0], places[1:]),
        "gaussians": Gaussian((places[0], 2 * eye), wide),
        "square": Mixture([0.25] * 4, corners, 0.35**2 * eye.expand(4, 2, 2), [[0, 1], [3]]),
        "oblique": oblique(),
    }


def oblique() -> Mixture:
    """Four Gaussians in eight dimensions with unlike covariances; prompts {0, 1} and {1, 2}."""
    turns = torch.randn(4, 8, 8, generator=generator(2), dtype=F64)
    means = torch.randn(4, 8, generator=generator(3), dtype=F64)
    roots = torch.eye(8, dtype=F64) + 0.4 * turns
    return Mixture([0.4, 0.3, 0.2, 0.1], means, 0.3 * roots @ roots.mT, [[0, 1], [1, 2]])


@functools.lru_cache(2048)
def kept(shape: tuple[int, ...], seed: int, norm: float) -> tuple[Tensor, Tensor, Tensor]:
    """The noises of a draw, which every identity of every rule asks for again."""
    return noises(shape, seed, norm)


@dataclass(frozen=True)
class Draw:
    """One call of a rule: where it stands, how large its noises are, and how far out z_t is."""

    shape: tuple[int, ...]
    norm: float
    radius: float
    t: int
    s: float
    h: float
    seed: int

    @property
    def t_next(self) -> int:
        return max(self.t - 20, -1)

    def noises(self) -> tuple[Tensor, Tensor, Tensor]:
        """(phi, p, n), p and n a tenth to ten times as far from phi as phi is large."""
        phi, dp, dn = kept(self.shape, self.seed, self.norm)
        a, b = (10 ** (2 * torch.rand(2, generator=generator(self.seed), dtype=F64) - 1)).tolist()
        return phi.clone(), phi + a * dp, phi + b * dn

    def z_t(self) -> Tensor:
        return kept(self.shape, self.seed + 1, self.radius)[0].clone()

    def __str__(self) -> str:
        return (
            f"t = {self.t}, s = {self.s:.4g}, h = {self.h:.4g}, norm {self.norm:.3g}, shape "
            f"{self.shape} (seed {self.seed // 1000})"
        )


def draws(
    count: int, seed: int = 0, ranks: Sequence[int] = RANKS,
    ts: Sequence[int] | None = None, ss: Sequence[float] | None = None, T: int = 1000,
) -> list[Draw]:  # fmt: skip
    """`count` draws; levels `ts` and scales `ss` are those given, else spread; h apart from s."""
    g = generator(seed)
    ts = mixed(ts or levels(count, seed, T), count, g)
    ss = mixed(ss or scales(count, seed), count, g)
    hs = mixed(scales(count, seed + 1), count, g)
    norms = mixed(spread(count, g, 1e-2, 1e3, log=True), count, g)
    radii = mixed(spread(count, g, 0.1, 300, log=True), count, g)
    shapes = [(1 + i % 9, *sides(ranks[i % len(ranks)], g)) for i in range(count)]
    seeds = range(1000 * seed, 1000 * seed + count)
    return [Draw(*x) for x in zip(shapes, norms, radii, ts, ss, hs, seeds)]


def sides(rank: int, g: torch.Generator) -> tuple[int, ...]:
    """Unlike sides of one sample, at least five elements in all, so that a form can be fitted."""
    some = [2, 3, 4, 5, 6, 7]
    order = torch.randperm(len(some), generator=g).tolist()
    return (5 + order[0],) if rank == 1 else tuple(some[i] for i in order[:rank])


def spread(count: int, g: torch.Generator, low: float, high: float, log: bool = False) -> list:
    """One draw from each of `count` equal parts of [low, high], or of its logarithm."""
    u = (torch.arange(count, dtype=F64) + torch.rand(count, generator=g, dtype=F64)) / max(count, 1)
    if log:
        return (math.log(low) + u * math.log(high / low)).exp().tolist()
    return (low + u * (high - low)).tolist()


def mixed(values: Sequence, count: int, g: torch.Generator) -> list:
    """`count` of the values in random order, each about equally often."""
    order = torch.randperm(count, generator=g).tolist()
    return [values[i % len(values)] for i in order]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

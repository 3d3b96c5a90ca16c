"""What `checks.check` knows about an exercise, and the inputs and words that exercises share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import figures  # noqa: F401 - it lets a clone be imported without being installed
import torch
from torch import Tensor

g = torch.Generator().manual_seed(7)
PHI, P, N = (torch.randn(4, 2, 3, 3, generator=g, dtype=torch.float64) for _ in range(3))
S, SIGMA = 2.5, torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=torch.float64)
SCALES = (-7.5, -0.5, 0.3, 1.0, 7.5, 30.0)


@dataclass(frozen=True)
class Exercise:
    """`right` on `inputs` is the answer; `limits` are (sentence, whether it holds for f);
    `mistakes` are (sentence, what a usual wrong version returns on `inputs`). `more` are further
    inputs: other scales, of either sign, on which abs(s) or min(s, 5) is wrong. With `points`, an
    answer must also hold for points (B, D), not only for pictures (B, C, H, W)."""

    right: Callable
    inputs: tuple
    limits: list[tuple[str, Callable]] = field(default_factory=list)
    mistakes: list[tuple[str, Callable]] = field(default_factory=list)
    more: list[tuple] = field(default_factory=list)
    points: bool = True


def same(a: object, b: object) -> bool:
    """Whether two values, tensors or not, are equal up to rounding."""
    a, b = (torch.as_tensor(x).double() for x in (a, b))
    return a.shape == b.shape and torch.allclose(a, b, 1e-6, 1e-8)


def batch_dot(a: Tensor, b: Tensor) -> Tensor:
    """A usual mistake: the inner product over the whole batch, ()."""
    return (a * b).sum()


def sample_mean(x: Tensor) -> Tensor:
    """(B, 1, 1, 1)"""
    return x.flatten(1).mean(1)[:, None, None, None]


def sample_std(x: Tensor) -> Tensor:
    """(B, 1, 1, 1), divided by the count."""
    return x.flatten(1).std(1, correction=0)[:, None, None, None]


SIGN = "the sign of the push is wrong. At s > 0 the arrow must go the other way."
MORE = "it is the equation at s + 1. Where does the arrow start: at phi, or already at p?"
SWAPPED = "two predictions are swapped (phi for p). Which one should s = 1 return?"
NO_START = "this is only the push. The start of the arrow is missing: eps_phi + ..."
BRACKETS = "parentheses are missing: s multiplies the whole difference, s * (... - ...)."

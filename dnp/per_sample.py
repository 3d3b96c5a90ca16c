"""Scales of a batch: a number for all samples, or a (B,) tensor with one for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from dnp.schedule import column

Scale = float | Tensor  # a number, or (B,)
SCALES = ("s", "h", "w", "g", "eta")  # what a rule's scales are called


def per_sample(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A rule each of whose scales may be a (B,) tensor, one for each sample and not for a column.

    ValueError if there is not one for each.
    """
    names = rule.__code__.co_varnames[: rule.__code__.co_argcount]

    @wraps(rule)
    def each(*args: Tensor, **kw: object) -> Tensor:
        given = {**dict(zip(names, args)), **kw}
        z = next(x for name, x in given.items() if name.startswith("eps"))
        given = {k: of_samples(x, z) if k in SCALES else x for k, x in given.items()}
        return rule(*args[len(names) :], **given)

    return each


def of_samples(s: Scale, z: Tensor) -> Scale:
    """A scale as it multiplies z: a (B,) tensor as a column, a number as it is."""
    if not isinstance(s, Tensor) or s.ndim != 1:
        return s
    if len(s) not in (1, len(z)):
        raise ValueError(f"{len(s)} scales for {len(z)} samples; give a number, or one for each.")
    return column(s, z)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each sample, (B,), summed in at least float32: half precision ends at 65504."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) * b.to(wide)).flatten(1).sum(1)

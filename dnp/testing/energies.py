"""Whether a rule's noise is a gradient: central differences near and far, sums along closed loops.

Neither uses automatic differentiation, so that `no_grad`, `detach` and numpy hide nothing. A smooth
field is a gradient only if its Jacobian is symmetric at every point; a jump is seen by loops, whose
sums are 0 for a gradient. Both are refined until two refinements agree, and what does not settle,
such as a difference across a jump, is not held against the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dnp.testing.identities import find
from dnp.testing.inputs import F64, generator, levels, mixed, scales, spread
from dnp.testing.subject import Subject

Field = Callable[[Tensor], Tensor]  # (M, D) -> (M, D)
STEPS = (1e-2, 1e-3, 1e-4, 1e-5)  # of a central difference
POINT, LOOP = 1e-5, 1e-5  # what is told from rounding, relative
NODES, ROUNDS, SETTLED, MOST = 64, 28, 3e-8, 4000  # of a loop; parts, if it never settles


@dataclass(frozen=True)
class Sign:
    """The worst sign against an energy: its size, whether it is one, and where it was seen."""

    number: float
    found: bool
    where: str = ""
    sentence: str = ""


def curl(field: Field, z: Tensor) -> tuple[Tensor, Tensor]:
    """max |J - J^T| / max |J| at each point of z (P, D), and its uncertainty, both (P,).

    J by central differences at four steps; the two neighbours that agree best are taken, and half
    of what they differ by is the uncertainty.
    """
    D = z.shape[-1]
    h = torch.tensor(STEPS, dtype=F64)[:, None, None, None]
    moves = h * torch.eye(D, dtype=F64)  #                                (4, 1, D, D)
    ends = torch.stack([z[:, None] + moves, z[:, None] - moves])  #       (2, 4, P, D, D)
    values = field(ends.reshape(-1, D)).reshape(ends.shape)
    J = ((values[0] - values[1]) / (2 * h)).mT  #                         (4, P, D, D)
    size = J.abs().amax((2, 3)).clamp(min=1e-300)
    skew = (J - J.mT).abs().amax((2, 3)) / size
    gap = (J[1:] - J[:-1]).abs().amax((2, 3)) / size[1:]  #               (3, P)
    gap = gap.nan_to_num(nan=math.inf)
    best, k = gap.min(0)
    return skew[1:].gather(0, k[None])[0].nan_to_num(nan=0.0), best


def loop_sums(
    field: Field, centre: Tensor, a: Tensor, b: Tensor, nodes: int = NODES
) -> tuple[Tensor, Tensor]:
    """|sum| / sum of absolute values of field . dz along centre + a cos + b sin, all (L, D), and
    the uncertainty, both (L,).

    Simpson's rule; a part whose halves disagree is halved again, until all agree, or 28 times. So a
    jump costs a few evaluations a round, and a steep wall is walked in small steps.
    """
    L = len(centre)

    def along(i: Tensor, x: Tensor) -> Tensor:
        cos, sin = x.cos()[:, None], x.sin()[:, None]
        return (field(centre[i] + a[i] * cos + b[i] * sin) * (b[i] * cos - a[i] * sin)).sum(1)

    i = torch.arange(L).repeat_interleave(nodes)
    x = (torch.arange(nodes, dtype=F64) * 2 * math.pi / nodes + 0.1).repeat(L)
    width = torch.full_like(x, 2 * math.pi / nodes)
    left, middle = along(torch.cat([i, i]), torch.cat([x, x + width / 2])).chunk(2)
    right = left.reshape(L, -1).roll(-1, 1).flatten()
    zero = torch.zeros(L, dtype=F64)
    size = zero.index_add(0, i, (left.abs() + 4 * middle.abs() + right.abs()) * width / 6)
    total, doubt = zero.clone(), zero.clone()
    for k in range(ROUNDS):
        quarters = along(torch.cat([i, i]), torch.cat([x + width / 4, x + 3 * width / 4]))
        q1, q3 = quarters.chunk(2)
        whole = (left + 4 * middle + right) * width / 6
        halves = (left + 4 * q1 + 2 * middle + 4 * q3 + right) * width / 12
        e = (halves - whole).abs()
        last = k == ROUNDS - 1 or len(x) > MOST
        done = (e <= SETTLED * size[i]) | torch.tensor(last)
        total = total.index_add(0, i[done], (halves + (halves - whole) / 15)[done])
        doubt = doubt.index_add(0, i[done], e[done])
        if done.all():
            break
        parts = [  # (first halves, second halves) of what is not done
            (i, i), (x, x + width / 2), (width / 2, width / 2), (left, middle), (q1, q3),
            (middle, right),
        ]  # fmt: skip
        i, x, width, left, middle, right = (torch.cat([u[~done], v[~done]]) for u, v in parts)
    size = size.clamp(min=1e-300)
    return (total.abs() / size).nan_to_num(), (doubt / size).nan_to_num(nan=math.inf)


def energy(
    f: Subject, ts: Sequence[int] | None = None, ss: Sequence[float] | None = None, seed: int = 0,
    count: int = 24, axes: tuple[int, ...] = (),
) -> Sign:  # fmt: skip
    """The worst sign against an energy over levels, scales, points and loops, or the first found.

    At each of `count` levels: eight points, from samples of the toy to 300 away, and four loops in
    random planes, one through three samples. A rule that depends on batch mates is not a field.
    """
    if not (mates := find("batch mates", f, seed)).ok:
        sentence = f"{f.name} is not a gradient, since it is not a field. {mates.sentence}"
        return Sign(mates.number, True, "any point, since it depends on batch mates", sentence)
    g, D = generator(seed), f.toy.means.shape[-1]
    ts = list(ts or levels(count, seed))
    ts = mixed(ts, max(len(ts), 4), g)
    ss = mixed(ss or [s for s in scales(3 * len(ts) // 2, seed) if s not in (0, 1)], len(ts), g)
    hs = mixed(scales(len(ts), seed + 1), len(ts), g)
    worst = Sign(0.0, False)
    for t, s, h in zip(ts, ss, hs):
        field = f.field(t, s, h, axes)
        near = f.toy.sample(9, t, generator=g)
        out = torch.tensor(spread(6, g, 0.5, 300, log=True), dtype=F64)[:, None]
        away = torch.randn(6, D, generator=g, dtype=F64)
        far = near[:6] + out * away / away.norm(dim=1, keepdim=True)
        z = torch.cat([near[6:], far])
        place = f"t = {t}, s = {s:.4g}, h = {h:.4g} (seed {seed})"
        skew, doubt = curl(field, z)
        known = torch.where(doubt < 1e-2, skew, 0.0)
        k = int((known - 10 * doubt).argmax())
        limit, point = max(POINT, 10 * doubt[k].item()), z[k : k + 1]
        again = partial(beside, field, point)
        number = confirmed(known[k].item(), limit, again, g, D)
        worst = worse(
            worst,
            f,
            number,
            doubt[k].item(),
            POINT,
            place,
            f"the point at |z| = {z[k].norm():.3g}",
            "the Jacobian's asymmetry is",
        )
        if worst.found:
            return worst
        plane = torch.linalg.qr(torch.randn(3, D, 2, generator=g, dtype=F64)).Q  # (3, D, 2)
        radii = torch.tensor(spread(3, g, 0.3, 100, log=True), dtype=F64)[:, None]
        first = (near[0], near[1] - near[0], near[2] - near[0])
        rest = (near[3:6], radii * plane[..., 0], radii * plane[..., 1])
        loops = [torch.cat([x[None], y]) for x, y in zip(first, rest)]
        sums, doubt = loop_sums(field, *loops)
        k = int((sums - 10 * doubt).argmax())
        limit, (centre, *turn) = max(LOOP, 10 * doubt[k].item()), [x[k : k + 1] for x in loops]
        again = partial(finer, field, centre, *turn)
        number = confirmed(sums[k].item(), limit, again, g, D)
        size = 1.2 if k == 0 else radii[k - 1].item()
        worst = worse(
            worst,
            f,
            number,
            doubt[k].item(),
            LOOP,
            place,
            f"the loop of radius {size:.3g}",
            "the sum along it is",
        )
        if worst.found:
            return worst
    return worst


def beside(field: Field, point: Tensor, move: Tensor) -> float:
    """The asymmetry at a point (1, D) that is moved."""
    return curl(field, point + move)[0].item()


def finer(field: Field, centre: Tensor, a: Tensor, b: Tensor, move: Tensor) -> float:
    """The sum along a loop that is moved, from more nodes."""
    return loop_sums(field, centre + move, a, b, nodes=2001)[0].item()


def confirmed(
    number: float, limit: float, again: Callable[[Tensor], float], g: torch.Generator, D: int
) -> float:
    """A number over its limit, if moves by 1e-7 and finer loops keep it; else 0. It was rounding
    that a rule makes large, as a weight of 1e9 does, or a band that the first nodes stepped over.
    """
    if number <= limit:
        return number
    moved = [again(1e-7 * torch.randn(D, generator=g, dtype=F64)) for _ in range(3)]
    return number if all(abs(x - number) < 0.2 * number for x in moved) else 0.0


def worse(
    worst: Sign, f: Subject, number: float, doubt: float, limit: float, place: str, where: str,
    what: str,
) -> Sign:  # fmt: skip
    """The larger of two signs; one that its uncertainty explains is none."""
    found = number > max(limit, 10 * doubt)
    if not found and doubt > limit:  # not settled
        return worst
    if not found and number <= worst.number:
        return worst
    text = f"{f.name} is not a gradient at {place}: at {where} {what} {number:.1e} of its size, "
    return Sign(number, found, f"{where}, {place}", f"{text}where an energy has 0.")

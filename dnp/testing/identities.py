"""What no rule may do, each measured over draws: one function per identity, and `IDENTITIES`.

An identity takes a `Subject` and a seed and returns a `Finding`. The numbers are relative errors;
`sentence` names the identity, the worst case and both numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dnp.testing.inputs import RANKS, Draw, draws
from dnp.testing.subject import LEVEL, Fault, Subject, error, same

LIMIT = 1e-9  # of a relative error, in float64
COUNT = 48  # draws of an identity
MIDDLE = (300, 500, 700)  # levels, where not the level but the shape is looked at


@dataclass(frozen=True)
class Finding:
    """What was found: `words` for a table, a number, and the sentence of a failure."""

    ok: bool
    words: str
    number: float = 0.0
    sentence: str = ""


def shape(f: Subject, seed: int = 0) -> Finding:
    """One noise shaped like z_t for samples of one to four axes with unlike sides."""
    failed: dict[int, tuple[Draw, Fault]] = {}
    for draw in draws(8, seed, ts=MIDDLE):
        try:
            f.at(draw)
        except Fault as e:
            failed.setdefault(len(draw.shape) - 1, (draw, e))
    if not failed:
        return Finding(True, "kept")
    draw, e = next(iter(failed.values()))
    axes = " or ".join(map(str, sorted(failed)))
    return Finding(
        False, f"fails for samples of {axes} axes: {e}", len(failed), f"{f.name} {e}: {draw}."
    )


def dtype(f: Subject, seed: int = 0) -> Finding:
    """float64, float32, bfloat16 and float16 are kept, near the value in float64."""
    draw, worst = replace(draws(1, seed, f.ranks[-1:])[0], norm=1.0, s=3.0, h=1.2), 0.0
    one = f.at(draw)
    for name, limit in (("float32", 1e-4), ("bfloat16", 0.3), ("float16", 0.05)):
        kind = getattr(torch, name)
        three = tuple(x.to(kind) for x in draw.noises())
        try:
            got = f(three, draw.z_t().to(kind), 3.0, 1.2, draw.t, draw.t_next)
        except Fault as e:
            return Finding(False, str(e), sentence=f"{f.name} {e}: {draw}.")
        worst = max(worst, e := error(got.double(), one))
        if not e < limit:
            return Finding(
                False, f"{name} is off by {e:.1e}", e,
                f"{f.name} in {name} differs from float64 by {e:.1e} where {limit:g} is rounding: "
                f"{draw}.",
            )  # fmt: skip
    return Finding(True, "kept", worst)


def finite(f: Subject, seed: int = 0) -> Finding:
    """Finite where two noises coincide or vanish, and in float16 at 4 x 128 x 128."""
    for draw in draws(8, seed, f.ranks):
        phi, p, n = draw.noises()
        o = torch.zeros_like(p)
        for name, three in {
            "p = phi": (phi, phi, n), "n = phi": (phi, p, phi), "n = p": (phi, p, p),
            "p = n = phi": (p, p, p), "phi = 0": (o, p, n), "p = 0": (phi, o, n),
            "n = 0": (phi, p, o), "phi = p = n = 0": (o, o, o),
        }.items():  # fmt: skip
            bad = (~f.at(draw, three).isfinite()).sum().item()
            if bad:
                return Finding(
                    False, f"NaN or infinite at {name}", bad,
                    f"{f.name} is not finite at {name}: {bad} of {p.numel()} elements at {draw}.",
                )  # fmt: skip
    if 3 in f.ranks:
        large = Draw((1, 4, 128, 128), 1.0, 1.0, 400, 3.0, 1.2, seed)
        half = f(tuple(x.half() for x in large.noises()), large.z_t().half(), 3.0, 1.2, 400, 380)
        bad = (~half.isfinite()).sum().item()
        if bad:
            return Finding(
                False, "NaN or infinite in float16 at 4 x 128 x 128", bad,
                f"{f.name} is not finite in float16: {bad} of 65536 elements at {large}.",
            )  # fmt: skip
    return Finding(True, "finite")


def deterministic(f: Subject, seed: int = 0) -> Finding:
    """Two calls, or two chains after `reset`, give the same bits."""
    for draw in draws(8, seed, f.ranks):
        once, again = f.chain(draw), f.chain(draw)
        worst = max(error(a, b) for a, b in zip(once, again))
        if not all(same(a, b) for a, b in zip(once, again)):
            return Finding(
                False, f"no, two calls differ by {worst:.1e}", worst,
                f"{f.name} is not deterministic: two calls with one input differ by {worst:.1e}, "
                f"which should be 0: {draw}.",
            )  # fmt: skip
    return Finding(True, "yes")


def batch_mates(f: Subject, seed: int = 0) -> Finding:
    """Each sample alone has the value that it has in a batch of 2 to 12, at every step."""
    worst, where = 0.0, None
    for i, draw in enumerate(draws(22, seed, f.ranks)):
        draw = replace(draw, shape=(2 + i % 11, *draw.shape[1:]))
        whole = f.chain(draw)
        for k in range(draw.shape[0]) if i < 11 else (i % draw.shape[0],):
            alone = f.chain(draw, slice(k, k + 1))
            e = max(error(a[k : k + 1], b) for a, b in zip(whole, alone))
            if e > worst:
                worst, where = e, draw
    if worst < LIMIT:
        return Finding(True, "independent", worst)
    return Finding(
        False, f"it depends on them ({worst:.1e} at {where.shape[0]})", worst,
        f"{f.name} depends on batch mates: a sample alone differs from itself in its batch by "
        f"{worst:.1e}, which should be under {LIMIT:g}: {where}.",
    )  # fmt: skip


def arguments(f: Subject, seed: int = 0) -> Finding:
    """No argument is changed in place."""
    f.changed = False
    for draw in draws(8, seed, f.ranks):
        f.chain(draw)
        if f.changed:
            sentence = f"{f.name} changes an argument in place, which should be kept: {draw}."
            return Finding(False, "changed in place", 1.0, sentence)
    return Finding(True, "kept")


def same_level(f: Subject, seed: int = 0) -> Finding:
    """A rule that reads neither a level nor z_t has one value at every level."""
    if f.remembers or set(LEVEL) & set(f.needs):
        return Finding(True, "reads it")
    worst, where, some = 0.0, None, draws(COUNT // 2, seed, f.ranks)
    for draw in some:
        moved = replace(draw, t=some[0].t)
        if (e := error(f.at(draw), f.at(moved))) > worst:
            worst, where = e, draw
    if worst < LIMIT:
        return Finding(True, "the same", worst)
    sentence = f"{f.name} differs by {worst:.1e} between levels that it does not read: {where}."
    return Finding(False, f"differs by {worst:.1e}", worst, sentence)


IDENTITIES: dict[str, Callable[..., Finding]] = {
    "shape": shape,
    "deterministic": deterministic,
    "dtype": dtype,
    "p = phi, n = phi": finite,
    "batch mates": batch_mates,
    "arguments": arguments,
    "at every level": same_level,
}


def find(name: str, f: Subject, seed: int = 0) -> Finding:
    """An identity's finding, looked for once; a rule that fails is a finding, too."""
    asked = name, seed, f.ranks
    if asked not in f.found:
        try:
            f.found[asked] = IDENTITIES[name](f, seed)
        except Fault as e:
            sentence = f"{f.name} {e} while {name!r} was looked at."
            f.found[asked] = Finding(False, str(e), sentence=sentence)
    return f.found[asked]


def working_ranks(f: Subject, seed: int = 0) -> tuple[int, ...]:
    """The numbers of axes of a sample at which the rule returns a noise."""

    def works(rank: int) -> bool:
        try:
            return bool([f.at(d) for d in draws(2, seed, (rank,), MIDDLE)])
        except Fault:
            return False

    return tuple(rank for rank in RANKS if works(rank))


# ------------------------------------------------------------------------ what a rule becomes


def changed(
    f: Subject, draw: Draw, when: str | dict | None
) -> tuple[tuple[Tensor, Tensor, Tensor], float, float]:
    """(noises, s, h) of a draw under a condition: "n = phi", "n = p", "s = 0" or dict(s=, h=)."""
    phi, p, n = draw.noises()
    kept = {} if not isinstance(when, dict) else when
    s, h = kept.get("s", draw.s), kept.get("h", draw.h)
    if when == "n = phi":
        n = phi
    elif when == "n = p":
        n = p
    elif isinstance(when, str):
        s = float(when.removeprefix("s = "))
    return (phi, p, n), s, h


def reduces(
    f: Subject, to: Callable[[Draw, tuple, float, float], Tensor], when: str | dict | None,
    some: Iterable[Draw],
) -> tuple[float, Draw | None, tuple[float, float]]:  # fmt: skip
    """The largest relative difference from `to`, where, and the two values at its worst element."""
    worst, where, both = 0.0, None, (0.0, 0.0)
    for draw in some:
        three, s, h = changed(f, draw, when)
        got, want = f.at(draw, three, s=s, h=h), to(draw, three, s, h)
        if (e := error(got, want)) > worst:
            i = (got - want).abs().nan_to_num(nan=torch.inf).argmax()
            both, worst, where = (got.flatten()[i].item(), want.flatten()[i].item()), e, draw
    return worst, where, both


def seen(some: Sequence[Draw]) -> str:
    """What was looked at, for a table."""
    t, s = sorted({d.t for d in some}), sorted({d.s for d in some})
    batches = sorted({d.shape[0] for d in some})
    norms = [d.norm for d in some]
    return (
        f"{len(t)} levels t = {t[0]} to {t[-1]}, {len(s)} scales {s[0]:.3g} to {s[-1]:.3g}, "
        f"batches of {batches[0]} to {max(batches[-1], 12)}, noises of {min(norms):.2g} to "
        f"{max(norms):.2g}; the energy at 24 levels or those given, |z| up to 300"
    )

"""The asserts: each takes a rule by name, FILE.py:NAME, function, object or class.

A failure is one sentence with the identity, the worst case and both numbers, and the seed that
draws the case again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dnp.testing.energies import energy
from dnp.testing.identities import COUNT, IDENTITIES, LIMIT, find, reduces, working_ranks
from dnp.testing.inputs import draws
from dnp.testing.laws import chain_law
from dnp.testing.subject import Fault, Subject
from dnp.toy import Mixture


def assert_identities(rule: str | Callable, *, seed: int = 0, **options: object) -> None:
    """What no rule may do: another shape or dtype, NaN where noises coincide or vanish, chance,
    batch mates (also after steps of a memory), changed arguments, a level that it does not read."""
    f = Subject(rule, options)
    for name in IDENTITIES:
        finding = find(name, f, seed)
        assert finding.ok, finding.sentence


@dataclass(frozen=True)
class Case:
    """One identity of one rule, for `pytest.mark.parametrize`; calling it asserts it."""

    rule: str | Callable
    identity: str
    seed: int
    options: tuple[tuple[str, object], ...]

    def __call__(self) -> None:
        finding = find(self.identity, Subject(self.rule, dict(self.options)), self.seed)
        assert finding.ok, finding.sentence

    def __str__(self) -> str:
        return self.identity


def cases(rule: str | Callable, *, seed: int = 0, **options: object) -> list[Case]:
    """`assert_identities` in parts: `@pytest.mark.parametrize("case", cases(mine), ids=str)`."""
    return [Case(rule, name, seed, tuple(options.items())) for name in IDENTITIES]


def assert_reduces(
    rule: str | Callable, to: str | Callable, when: str | Mapping | None = None, *, seed: int = 0,
    toy: Mixture | None = None, within: float = LIMIT, **options: object,
) -> None:  # fmt: skip
    """That a rule becomes another one: `to` is a rule, or phi, p or n.

    `when` is "n = phi", "n = p", "s = 0", "s = 1", or options and scales such as dict(w=0) or
    dict(h=0). Over levels, norms, scales with h apart from s, and shapes of unlike sides.
    """
    if isinstance(when, str) and when not in ("n = phi", "n = p", "s = 0", "s = 1"):
        raise ValueError(f'when = {when!r} is unknown; give "n = phi", "s = 0" or dict(w=0).')
    own = dict(when) if isinstance(when, Mapping) else {}
    held = {k: own.pop(k) for k in ("s", "h") if k in own}
    f = Subject(rule, {**options, **own}, toy)
    f.ranks = working_ranks(f, seed) or f.ranks
    what = ("phi", "p", "n")
    if isinstance(to, str) and to in what:
        other, name = (lambda draw, three, s, h: three[what.index(to)]), to
    else:
        g = Subject(to, {}, toy)
        other, name = (lambda draw, three, s, h: g.at(draw, three, s=s, h=h)), g.name
    some = draws(COUNT, seed, f.ranks)
    try:
        e, where, (got, want) = reduces(
            f, other, held or (when if isinstance(when, str) else None), some
        )
    except Fault as fault:
        raise AssertionError(f"{f.name} or {name} {fault} (seed {seed}).") from fault
    at = f" at {when}" if isinstance(when, str) else f" at {dict(when)}" if when else ""
    assert e <= within, (
        f"{f.name} is not {name}{at}: it returns {got:.9g} where {name} returns {want:.9g}, off by "
        f"{e:.1e} of the whole: {where}."
    )


def assert_energy(
    rule: str | Callable, toy: Mixture | None = None, levels: Sequence[int] | None = None,
    scales: Sequence[float] | None = None, *, seed: int = 0, options: Mapping | None = None,
    **more: object,
) -> None:  # fmt: skip
    """That nothing says that the rule's noise is not a gradient: differences and closed loops.

    On the toy (default: four Gaussians in eight dimensions), at levels and scales that are drawn.
    """
    f = Subject(rule, {**(options or {}), **more}, toy)
    f.ranks = working_ranks(f, seed) or f.ranks
    axes = (1, 2, 4) if 3 in f.ranks and f.toy.means.shape[-1] == 8 else ()
    try:
        sign = energy(f, levels, scales, seed, axes=axes)
    except Fault as e:
        raise AssertionError(f"{f.name} {e} on the toy (seed {seed}).") from e
    assert not sign.found, sign.sentence


def assert_law(
    rule: str | Callable, toy: Mixture, s: float, eta: float = 0.0, *,
    mean: Sequence[float] | Tensor | float | None = None,
    covariance: Tensor | float | None = None, h: float | None = None, steps: int | None = None,
    within: float = 0.01, **options: object,
) -> None:  # fmt: skip
    """That a rule's chain on Gaussians has this law, exactly and without samples.

    DDIM at eta = 0, DDPM at eta = 1, from phi's law at the first level, over all levels of the
    toy's schedule or `steps` of them. A number is a multiple of ones, or of the unit matrix.
    """
    f = Subject(rule, options, toy)
    found = chain_law(f, s, s if h is None else h, eta, steps)
    D = len(found[0])
    for name, got, want, unit in zip(
        ("mean", "covariance"), found, (mean, covariance), (torch.ones(D), torch.eye(D))
    ):
        if want is None:
            continue
        want = torch.as_tensor(want, dtype=got.dtype)
        want = want * unit if want.ndim == 0 else want
        i = (got - want).abs().argmax()
        a, b = got.flatten()[i].item(), want.flatten()[i].item()
        place = f"element {int(i)} of " if got.numel() > 1 else ""
        assert abs(a - b) <= within, (
            f"the law of {f.name} at s = {s:g}, eta = {eta:g}, in {steps or 'all'} steps is not "
            f"that one: {place}its {name} is {a:.6g} where {b:.6g} was expected, within {within:g}."
        )

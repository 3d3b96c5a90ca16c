"""What a rule is as a formula: coefficients in s and h, other spaces, growth, effective scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dnp import guidance
from dnp.energy import u_from_eps, v_from_eps, z0_from_eps
from dnp.testing.identities import LIMIT, changed
from dnp.testing.inputs import F64, Draw, draws, noises
from dnp.testing.subject import Subject, error

MONOMIALS = {"": (0, 0), "s": (1, 0), "h": (0, 1), "s^2": (2, 0), "s h": (1, 1), "h^2": (0, 2)}
SPACES: dict[str, Callable] = {"x0": z0_from_eps, "v": v_from_eps, "u": u_from_eps}


@dataclass(frozen=True)
class Form:
    """A rule as noises times polynomials in s and h: `terms[noise][monomial]`. None if it is not;
    `residual` is what is left of the noises, `off` what is left of the polynomials."""

    terms: dict[str, dict[str, float]] | None
    residual: float
    off: float = 0.0

    def __str__(self) -> str:
        if self.terms:
            return ", ".join(f"{k}: {polynomial(x)}" for k, x in self.terms.items())
        if self.residual > LIMIT:
            return f"no (residual {self.residual:.1e})"
        return f"at each call, not as one formula (off by {self.off:.1e})"

    def words(self, s: float | None = None) -> str:
        """As `phi`, `CFG`, `CFG at 0.75 s` or a sum; `s` is the scale, if it was held."""
        if not self.terms:
            if self.residual == math.inf:
                return "not finite"
            return "not linear" if self.residual > LIMIT else "not one formula"
        left = {k: x for k, x in self.terms.items() if any(x.values())}
        if len(left) == 1 and (only := next(iter(left.items())))[1] == {"": 1.0}:
            return only[0]
        if set(left) == {"phi", "p"} and polynomial(less(left["p"])) == polynomial(left["phi"]):
            pull = left["p"]
            if s is not None and set(pull) == {""} and s:
                return "CFG" if pull[""] == s else f"CFG at {pull['']:.9g}"
            if set(pull) == {"s"}:
                return "CFG" if pull["s"] == 1 else f"CFG at {pull['s']:.9g} s"
        return signed([factor(polynomial(x), k) for k, x in left.items()])


def less(p: dict[str, float]) -> dict[str, float]:
    """1 - p."""
    rest = {k: -v for k, v in p.items()} | {"": 1 - p.get("", 0.0)}
    return {k: v for k, v in rest.items() if v}


def polynomial(terms: dict[str, float]) -> str:
    order = [(k, terms[k]) for k in MONOMIALS if terms.get(k)]
    return signed([factor(f"{v:.9g}", k) if k else f"{v:.9g}" for k, v in order]) or "0"


def factor(number: str, name: str) -> str:
    """`2 s`, but `s` for 1 and `-s` for -1; brackets around a sum."""
    if number in ("1", "-1"):
        return name if number == "1" else f"-{name}"
    return f"({number}) {name}" if " + " in number or " - " in number else f"{number} {name}"


def signed(parts: Sequence[str]) -> str:
    return " + ".join(parts).replace("+ -", "- ")


def form(f: Subject, some: Sequence[Draw], when: str | None = None) -> Form:
    """The coefficients on (phi, p, n), the same for all samples, and then as functions of s, h."""
    names = ["phi", "p"]
    if "eps_n" in f.needs and when not in ("n = phi", "n = p"):
        names.append("n")
    held = when in ("s = 0", "s = 1")
    found, places, residual = [], [], 0.0
    for draw in some:
        three, s, h = changed(f, draw, when)
        eps = f.at(draw, three, s=s, h=h).flatten()
        if not eps.isfinite().all():
            return Form(None, math.inf)
        A = torch.stack([x.flatten() for x in three[: len(names)]], 1)
        c = torch.linalg.lstsq(A, eps[:, None]).solution[:, 0]
        size = max(eps.norm().item(), 1e-6 * A.norm().item())
        residual = max(residual, (A @ c - eps).norm().item() / size)
        found.append(c)
        places.append((s, h))
    if residual > LIMIT:
        return Form(None, residual)
    free = {"s": "s" in f.needs and not held, "h": "h" in f.needs}
    free["h"] &= any(s != h for s, h in places)  # else h is tied to s
    values = {k: {place[i] for place in places} for i, k in enumerate("sh")}
    powers = [
        k for k, (i, j) in MONOMIALS.items()
        if all(n == 0 or (free[x] and len(values[x]) > n) for x, n in (("s", i), ("h", j)))
    ]  # fmt: skip
    Y = torch.stack(found)
    for few in ([k for k in powers if sum(MONOMIALS[k]) < 2], powers):
        rows = [[s**i * h**j for i, j in map(MONOMIALS.get, few)] for s, h in places]
        X = torch.tensor(rows, dtype=F64)
        B = torch.linalg.lstsq(X, Y).solution
        off = ((X @ B - Y).abs() / (1 + Y.abs())).max().item()
        if off < LIMIT:
            rounded = [{k: round(x, 9) for k, x in zip(few, column)} for column in B.T.tolist()]
            terms = [{k: v for k, v in x.items() if v} for x in rounded]
            empty = {} if when else {"phi": {}, "p": {}, "n": {}}
            return Form({**empty, **dict(zip(names, terms))}, residual, off)
    return Form(None, residual, off)


def commutes(f: Subject, to: Callable, some: Sequence[Draw]) -> float:
    """The largest difference of the rule of `to`'s predictions from `to` of the rule's noise."""
    worst = 0.0
    for draw in some:
        z_t, three, abar_t = draw.z_t(), draw.noises(), f.toy.schedule.level(draw.t)
        moved = tuple(to(z_t, x, abar_t) for x in three)
        worst = max(worst, error(f.at(draw, moved), to(z_t, f.at(draw, three), abar_t)))
    return worst


def growth(f: Subject, seed: int = 0) -> float:
    """The exponent of the push of n, |eps(n) - eps(phi)| ~ |dn|^e, from 1e8 to 1e12 times |dp|.

    The largest of three directions at four levels; -inf where the push vanishes.
    """
    found = []
    for draw in draws(4, seed, f.ranks[-1:]):
        draw = replace(draw, s=3.0, h=1.2, norm=1.0)
        phi, p, n = noises(draw.shape, draw.seed)
        base = f.at(draw, (phi, p, phi))
        for d in (n - phi, p - phi, phi - p):
            push = [(f.at(draw, (phi, p, phi + k * d)) - base).norm().item() for k in (1e8, 1e12)]
            seen = push[1] > 1e-2 * d.norm()  # more than rounding
            found.append(math.log(push[1] / push[0], 1e4) if seen else -math.inf)
    return max(found)


def effective_scale(f: Subject, draw: Draw) -> tuple[Tensor, Tensor]:
    """`guidance.effective_scale` of a rule: two tensors (B,)."""
    phi, p, _ = draw.noises()
    return guidance.effective_scale(f.at(draw), phi, p)


def jump(f: Subject, some: Sequence[Draw]) -> tuple[float, float | None]:
    """The largest relative jump of the value at s = 0 and s = 1, and at which of them."""
    worst, at = 0.0, None
    for draw in some:
        for s in (0.0, 1.0):
            here, below, above = (f.at(draw, s=s + x) for x in (0.0, -1e-6, 1e-6))
            size = min(error(below, here), error(above, here))
            worst, at = max((worst, at), (size, s), key=lambda x: x[0])
    return worst, at if worst > 1e-3 else None

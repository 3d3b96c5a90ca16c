"""The general identities of any guidance rule, as a table: `check_rule(rule)` prints them.

    evaluations    the predictions that the rule asks for, a step
    s = 0, s = 1, n = phi, n = p    what the rule becomes: phi, p, Eq. 3 (CFG), a linear form
    linear         coefficients on (phi, p, n) that hold for every sample
    same in x0, v  whether it commutes with the change of eps to z0_hat and to velocity
    bounded in n   whether the push of n stays finite as n moves away from phi
    energy         whether eps is a gradient: a Jacobian in z_t that is symmetric, on `oblique()`
    the rest       what no rule may do: read batch mates, give NaN at p = phi, change an argument

`python -m dnp.checks` prints the Markdown table of all `dnp.rules.RULES`. Everything in float64.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dnp.app.terminal import Parser, run
from dnp.energy import v_from_eps, z0_from_eps
from dnp.methods.rule import read
from dnp.rules import RULES
from dnp.toy import Mixture

T, T_NEXT, SHAPE = 400, 380, (5, 2, 2, 2)


@dataclass(frozen=True)
class Row:
    identity: str
    found: str
    ok: bool | None = None  # None: a property, neither right nor wrong


@dataclass(frozen=True)
class Check:
    """The rows of one rule; `check["energy"]` is what was found, `ok` that nothing is a fault."""

    name: str
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        return all(row.ok is not False for row in self.rows)

    def __getitem__(self, identity: str) -> str:
        return next(row.found for row in self.rows if row.identity == identity)

    def __str__(self) -> str:
        marks = {None: "", True: "ok", False: "FAULT"}
        lines = [f"{r.identity:18}{r.found:40}{marks[r.ok]}".rstrip() for r in self.rows]
        return "\n".join([self.name, *lines])


def check_rule(rule: Callable, show: bool = True, **options: object) -> Check:
    """Runs the identities on any rule and prints them.

    A rule as `dnp/methods/rule.py` describes it: a name, a function, a module, an object, a class.
    `options` are the rule's own. A class that takes a `posterior` gets the toy's exact one.
    SettingsError for what is no rule.
    """
    f = Rule(rule, options)
    phi, p, n = f.noises = randn(3, *SHAPE, seed=1)
    has_s, has_n = "s" in f.wants, "eps_n" in f.wants
    uses = [name[4:] for name in ("eps_phi", "eps_p", "eps_n") if name in f.wants]
    rows = [Row("evaluations", f"{len(uses)}: {', '.join(uses)}")]
    rows += [Row(f"s = {s}", f.form(phi, p, n, s) if has_s else "has no s") for s in (0, 1)]
    for name, m in (("n = phi", phi), ("n = p", p)):
        rows.append(Row(name, f.form(phi, p, m, 3) if has_n else "has no n"))
    rows.append(Row("linear", f.form(phi, p, n, 3, words=False)))
    rows += [Row(f"same in {x}", yes(f.commutes(to))) for x, to in SPACES.items()]
    rows.append(Row("bounded in n", yes(f.bounded()) if has_n else "has no n"))
    skew = f.asymmetry()
    rows.append(Row("energy", f"{yes(skew < 1e-9)}, asymmetry {skew:.1e}"))
    return show_check(Check(f.name, (*rows, *f.faults())), show)


class Rule:
    """A rule with its options filled in, called by the names of its parameters."""

    def __init__(self, rule: Callable, options: dict) -> None:
        self.toy, self.z_t = oblique(), randn(*SHAPE)
        if isinstance(rule, type) and "posterior" in inspect.signature(rule).parameters:
            options = {"posterior": lambda z, t: self.toy.posterior(z, t, 1), **options}
        self.rule = read(rule, options)
        self.name, self.wants = self.rule.name, self.rule.needs

    def __call__(
        self, phi: Tensor, p: Tensor, n: Tensor, s: float = 3.0, z_t: Tensor | None = None
    ) -> Tensor:
        """The rule's value before its first step, at the level T."""
        z_t = self.z_t if z_t is None else z_t
        return self.rule.begin(z_t)(self.available(phi, p, n, s, z_t))

    def available(self, phi: Tensor, p: Tensor, n: Tensor, s: float, z_t: Tensor) -> dict:
        """What the sampler offers to a rule at the level T."""
        sigma_t, sigma_next = ((1 - self.toy.schedule.level(t)).sqrt() for t in (T, T_NEXT))
        return {
            "eps_phi": phi, "eps_p": p, "eps_n": n, "s": s, "h": s, "z_t": z_t,
            "t": torch.tensor(T), "t_next": torch.tensor(T_NEXT), "sigma_t": sigma_t,
            "sigma_next": sigma_next,
        }  # fmt: skip

    def form(self, phi: Tensor, p: Tensor, n: Tensor, s: float, words: bool = True) -> str:
        """The value as a combination of phi, p, n with the same coefficients for all samples."""
        eps = self(phi, p, n, s)
        if not eps.isfinite().all():
            return "not finite"
        basis = {"phi": phi, "p": p}
        if "eps_n" in self.wants and not (torch.equal(n, phi) or torch.equal(n, p)):
            basis["n"] = n
        A = torch.stack([x.flatten() for x in basis.values()], 1)
        c = torch.linalg.lstsq(A, eps.flatten()[:, None]).solution[:, 0]
        if not torch.allclose(A @ c, eps.flatten(), 1e-9, 1e-9):
            return "not linear"
        values = [round(x, 6) + 0.0 for x in c.tolist()]
        if not words:
            return f"{', '.join(f'{x:g}' for x in values)}; sum {sum(values):g}"
        single = [name for name, x in zip(basis, values) if x == 1]
        if single and sum(map(abs, values)) == 1:
            return single[0]
        if values[2:] in ([], [0.0]) and abs(sum(values) - 1) < 1e-6:
            return "CFG" if values[1] == s else f"CFG at {values[1] / s if s else values[1]:g} s"
        return " + ".join(f"{x:g} {name}" for name, x in zip(basis, values))

    def commutes(self, to: Callable) -> bool:
        """Whether the rule of `to`'s predictions is `to` of the rule's noise."""
        abar_t = self.toy.schedule.level(T)
        moved = [to(self.z_t, e, abar_t) for e in self.noises]
        return torch.allclose(self(*moved), to(self.z_t, self(*self.noises), abar_t), 1e-9, 1e-9)

    def bounded(self) -> bool:
        phi, p, n = self.noises
        base = self(phi, p, phi)
        push = [(self(phi, p, phi + k * (n - phi)) - base).norm() for k in (0.01, 1, 100, 1e4, 1e8)]
        return bool(push[-1] <= 10 * max(push[:-1]))

    def asymmetry(self) -> float:
        """max |J - J^T| of J = d eps / d z_t, over four samples of the oblique toy at level T."""
        z = self.toy.sample(4, T, generator=torch.Generator().manual_seed(0))

        def eps(x: Tensor) -> Tensor:
            x = x.reshape(1, *SHAPE[1:])
            return self(*(self.toy.eps(x, T, c) for c in (None, 0, 1)), z_t=x).flatten()

        J = torch.stack([torch.autograd.functional.jacobian(eps, x) for x in z])
        return (J - J.mT).abs().max().item()

    def faults(self) -> list[Row]:
        phi, p, n = before = [x.clone() for x in self.noises]
        whole = self(*self.noises)
        alone = torch.cat(
            [self(*(x[i : i + 1] for x in before), z_t=self.z_t[i : i + 1]) for i in range(len(p))]
        )
        finite = all(self(*x).isfinite().all() for x in ((phi, phi, n), (phi, p, phi), (p, p, p)))
        rule, given = self.rule.begin(self.z_t), self.available(*self.noises, 3.0, self.z_t)
        rule.function(**{k: given[k] for k in rule.needs}, **rule.passed)  # not on copies
        kept = all(torch.equal(x, y) for x, y in zip(before, self.noises))
        same = torch.allclose(whole, alone, 1e-9, 1e-9)
        return [
            Row("batch mates", "independent" if same else "it depends on them", same),
            Row("p = phi, n = phi", "finite" if finite else "NaN or infinite", finite),
            Row("arguments", "kept" if kept else "changed in place", kept),
        ]


SPACES = {"x0": z0_from_eps, "v": v_from_eps}


def oblique() -> Mixture:
    """Four Gaussians in eight dimensions with unlike covariances; prompts {0, 1} and {1, 2}."""
    roots = torch.eye(8) + 0.4 * randn(4, 8, 8, seed=2)
    return Mixture(
        [0.4, 0.3, 0.2, 0.1], randn(4, 8, seed=3), 0.3 * roots @ roots.mT, [[0, 1], [1, 2]]
    )


def rules_table() -> str:
    """The Markdown table of `RULES`: the formula of each docstring and what `check_rule` found."""
    heads = "rule|formula|evaluations|s = 0|s = 1|n = phi|n = p|same in x0, v|bounded in n|energy"
    lines = [f"| {heads.replace('|', ' | ')} |", "|---" * 10 + "|"]
    for name, rule in RULES.items():
        check = check_rule(rule, show=False)
        formula = re.search(r"^ *eps = (.*?)$", inspect.getdoc(rule), re.M)[1].split(",  ")[0]
        space = " / ".join(check[f"same in {x}"] for x in SPACES)
        found = [check[x] for x in ("s = 0", "s = 1", "n = phi", "n = p")]
        rest = [space, check["bounded in n"], check["energy"].split(",")[0]]
        cells = [f"`{name}`", f"`{formula}`".replace("|", "\\|"), check["evaluations"][0]]
        lines.append("| " + " | ".join(cells + found + rest) + " |")
    return "\n".join(lines)


def randn(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def yes(value: bool) -> str:
    return "yes" if value else "no"


def show_check(check: Check, show: bool) -> Check:
    if show:
        print(check)
    return check


def main(argv: list[str] | None = None) -> None:
    style = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="python -m dnp.checks", description=__doc__, formatter_class=style)
    p.parse_args(argv)
    print(rules_table())


if __name__ == "__main__":
    run(main, "interrupted.")

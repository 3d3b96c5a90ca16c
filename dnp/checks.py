"""The general identities of any guidance rule, as a table: `check_rule(rule)` prints them.

    evaluations      the predictions that the rule asks for, a step
    s = 0, s = 1, n = phi, n = p    what the rule becomes: phi, p, Eq. 3 (CFG), a linear form
    linear           coefficients on (phi, p, n) as functions of s and h
    jump in s        whether the value jumps at s = 0 or s = 1
    same in x0, v, u whether it commutes with the change of eps to z0_hat and to both velocities
    bounded in n, growth in n       the push of n as n moves away from phi, |dn|^exponent
    effective scale  <eps - phi, dp> / |dp|^2, and what is left, in units of |dp|
    energy           whether anything says that eps is not a gradient
    harmless if unrelated           with an n that has nothing to do with p, is it as good as CFG?
    memory           what three steps change
    the rest         what no rule may do, and what was looked at

`python -m dnp.checks` prints the Markdown table of all `dnp.rules.RULES`, `--rule FILE.py:NAME` the
rows of one rule, `--field` the table of rules that others publish. Everything in float64; levels,
scales, sizes and batches are drawn (`dnp.testing` holds the same identities as asserts).
"""

from __future__ import annotations

import argparse
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from dnp.app.terminal import Parser, run
from dnp.errors import meant
from dnp.rules import RULES
from dnp.testing import energies, forms, identities
from dnp.testing.harmless import shares
from dnp.testing.inputs import Draw, draws
from dnp.testing.inputs import oblique as oblique
from dnp.testing.subject import Fault, Subject, error
from dnp.toy import Mixture

NOISES = {"eps_phi": "phi", "eps_p": "p", "eps_n": "n"}
CALM = ("energy", "dtype", "batch mates", "at every level")  # say nothing about chance
NOT = "not deterministic"
SQUARE = 0.05  # of the shares on the data, what is told from chance


@dataclass(frozen=True)
class Row:
    identity: str
    found: str
    ok: bool | None = None  # None: a property, neither right nor wrong
    number: float | None = None


@dataclass(frozen=True)
class Check:
    """The rows of one rule; `check["energy"]` is what was found, `numbers` the numbers beside the
    words, `ok` that nothing is a fault."""

    name: str
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        return all(row.ok is not False for row in self.rows)

    @property
    def numbers(self) -> dict[str, float]:
        return {row.identity: row.number for row in self.rows if row.number is not None}

    def __getitem__(self, identity: str) -> str:
        found = {row.identity: row.found for row in self.rows}
        if identity not in found:
            raise KeyError(f"{identity!r} is not a row; {meant(identity, found)}")
        return found[identity]

    def __str__(self) -> str:
        marks = {None: "", True: "ok", False: "FAULT"}
        lines = [f"{r.identity:22} {r.found:40} {marks[r.ok]}".rstrip() for r in self.rows]
        return "\n".join([self.name, *lines])


def check_rule(
    rule: str | Callable, toy: Mixture | None = None, levels: Sequence[int] | None = None,
    scales: Sequence[float] | None = None, *, seed: int = 0, show: bool = True,
    options: Mapping | None = None, **more: object,
) -> Check:  # fmt: skip
    """Runs the identities on any rule and prints them.

    A rule is a name, FILE.py:NAME, a function, a module, an object or a class. `more` are the
    rule's own options; one that has the name of a parameter here goes into `options`. A class that
    takes a `posterior` gets the toy's exact one. `levels` and `scales` take the place of those
    that are drawn. SettingsError for what is not a rule; what a rule does wrong is a row.
    """
    f = Subject(rule, {**(options or {}), **more}, toy)
    works = identities.working_ranks(f, seed)
    f.ranks = works or f.ranks
    uses = [word for name, word in NOISES.items() if name in f.needs]
    rows = [Row("evaluations", f"{len(uses)}: {', '.join(uses)}", None, len(uses))]
    some = draws(36, seed, f.ranks, levels, scales)
    names = identities.IDENTITIES if works else ("shape", "dtype")  # nothing else can be said
    found = {name: identities.find(name, f, seed) for name in names}
    what = properties(f, some, levels, scales, seed) if works else {}
    chance = works and found["deterministic"].number > 0
    for name, row in what.items():
        try:
            rows.append(Row(name, NOT) if chance and name in CALM else Row(name, *row()))
        except Fault as e:
            rows.append(Row(name, str(e), False))
    for name, x in found.items():
        words = Row(name, x.words, x.ok, x.number)
        rows.append(Row(name, NOT) if chance and name in CALM else words)
    rows.append(Row("looked at", identities.seen(some)))
    return shown(Check(f.name, tuple(rows)), show)


def properties(
    f: Subject, some: list[Draw], levels: Sequence | None, scales: Sequence | None, seed: int
) -> dict[str, Callable[[], tuple]]:
    """The rows that describe a rule, each a call that gives (words, ok, number)."""

    def form(when: str) -> tuple:
        if when[0] not in f.needs and f"eps_{when[0]}" not in f.needs:
            return (f"has no {when[0]}",)
        only = some[0].s if scales and len(set(scales)) == 1 else None
        held = float(when[4:]) if when in ("s = 0", "s = 1") else only
        words = forms.form(f, some[:16], when).words(held)
        if words.startswith("not ") and "h" in f.needs:
            tied = forms.form(f, [replace(d, h=d.s) for d in some[:16]], when).words(held)
            words = f"{tied} for h = s" if tied != words else words
        return (words,)

    def linear() -> tuple:
        found = forms.form(f, some)
        return str(found), None, max(found.residual, found.off)

    def jump() -> tuple:
        if "s" not in f.needs:
            return ("has no s",)
        size, at = forms.jump(f, some[:4])
        return ("no" if at is None else f"at s = {at:g} ({size:.1e})"), None, size

    def space(name: str) -> tuple:
        off = forms.commutes(f, forms.SPACES[name], some[:8])
        return ("yes" if off < 1e-7 else "no"), None, off

    def bounded() -> tuple:
        return ("yes" if forms.growth(f, seed) < 0.02 else "no",) if n else ("has no n",)

    def growth() -> tuple:
        if not n:
            return ("has no n",)
        e = forms.growth(f, seed)
        return ("vanishes" if e == -math.inf else f"|dn|^{round(e, 2) + 0:g}"), None, e

    def energy() -> tuple:
        axes = (1, 2, 4) if 3 in f.ranks and f.toy.means.shape[-1] == 8 else ()
        sign = energies.energy(f, levels, scales, seed, axes=axes)
        words = f"no: {sign.number:.1e} at {sign.where}" if sign.found else ""
        return words or f"no sign against it ({sign.number:.1e})", None, sign.number

    def harmless() -> tuple:
        if not n:
            return ("has no n",)
        own, cfg = shares(f)
        return (
            f"{'yes' if own > cfg - SQUARE else 'no'}, {own:.2f} on the data, CFG {cfg:.2f}",
            None,
            own,
        )

    n = "eps_n" in f.needs
    wants = {name: lambda name=name: form(name) for name in ("s = 0", "s = 1", "n = phi", "n = p")}
    spaces = {f"same in {name}": lambda name=name: space(name) for name in forms.SPACES}
    return {
        **wants, "linear": linear, "jump in s": jump, **spaces,
        "bounded in n": bounded, "growth in n": growth,
        "effective scale": lambda: effective(f, some), "energy": energy,
        "harmless if unrelated": harmless, "memory": lambda: memory(f, some[0]),
    }  # fmt: skip


def effective(f: Subject, some: list[Draw]) -> tuple:
    """The effective scale in words: s, -s, or numbers at s = h = 3 on wide noises."""
    found = [(d, *forms.effective_scale(f, d)) for d in some[:8]]
    rest = max(r.max().item() for *_, r in found)
    tail = "" if rest < 1e-9 else ", and a part at right angles to dp"
    for word, sign in (("s", 1), ("-s", -1)):
        if "s" in f.needs and all(
            (e - sign * d.s).abs().max() < 1e-9 * (1 + abs(d.s)) for d, e, _ in found
        ):
            return word + tail, None, sign * 3.0
    sides = {1: (997,), 2: (31, 33), 3: (4, 15, 17), 4: (4, 3, 9, 10)}[f.ranks[-1]]
    wide = Draw((8, *sides), 0.05, 1.0, 400, 3.0, 3.0, 7)
    s_eff, rest = (x.mean().item() for x in forms.effective_scale(f, wide))
    return f"{s_eff:.2f} at s = h = 3, {rest:.2f} |dp| at right angles", None, s_eff


def memory(f: Subject, draw: Draw) -> tuple:
    """Whether the value after three steps differs from that of a rule that has seen none."""
    if not f.remembers:
        return ("no",)
    wide = Draw((3, *draw.shape[1:]), 1.0, 1.0, 400, 3.0, 1.2, draw.seed)
    off = error(f.chain(wide)[-1], f.chain(wide, forget=True)[-1])
    if off < 1e-9 and f.of_method:
        return "none seen in 3 steps", None, off
    if off < 1e-9:
        return "yes; after 3 steps its value is what it was", None, off
    return f"yes; after 3 steps its value differs by {off:.2g}", None, off


def rules_table(found: Mapping[str, Check] | None = None) -> str:
    """The Markdown table of `RULES`: the formula of each docstring and what `check_rule` finds, or
    `found`, by names, of its defaults."""
    heads = "rule|formula|evaluations|s = 0|s = 1|n = phi|n = p|same in x0, v|bounded in n"
    heads += "|curl"  # of an energy there is none
    lines = [f"| {heads.replace('|', ' | ')} |", "|---" * 10 + "|"]
    for name, rule in RULES.items():
        check = found[name] if found else check_rule(rule, show=False)
        formula = re.search(r"^ *eps = (.*?)$", inspect.getdoc(rule), re.M)[1].split(",  ")[0]
        space = " / ".join(dict.fromkeys(check[f"same in {x}"] for x in ("x0", "v")))
        curl = "yes" if check["energy"].startswith("no:") else "no"
        cells = [f"`{name}`", f"`{formula}`".replace("|", "\\|"), check["evaluations"][:1]]
        cells += [check[k] for k in ("s = 0", "s = 1", "n = phi", "n = p")]
        cells += [space, check["bounded in n"], curl]
        lines.append("| " + " | ".join("-" if x.startswith("has no ") else x for x in cells) + " |")
    return "\n".join(lines)


def shown(check: Check, show: bool) -> Check:
    if show:
        print(check)
    return check


def main(argv: list[str] | None = None) -> None:
    style = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="python -m dnp.checks", description=__doc__, formatter_class=style)
    p.add_argument("--rule", metavar="RULE", help="a name, or FILE.py:NAME: its rows alone")
    p.add_argument("--field", action="store_true", help="the rules that others publish")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn; default 0")
    args = p.parse_args(argv)
    if args.rule:
        check_rule(args.rule, seed=args.seed)
    elif args.field:
        from dnp.testing.field import field_table

        print(field_table(check_rule, args.seed))
    else:
        print(rules_table())


if __name__ == "__main__":
    run(main, "interrupted.")

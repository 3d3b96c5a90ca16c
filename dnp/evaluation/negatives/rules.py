"""What `--benchmark not` compares: its families of pairs (p, n), and six settings of every rule.

    settings   n is a kind of p: "a car", not "a car on a plain background"
    colours    n is a kind of p: "a car", not "a red car"; the car's own drawings are red or blue
    outside    n has nothing to do with p: "a car", not "a bird". Is the rule harmless?
    empty      p is the empty prompt: no prompt, not "a bird"

Both of the first two are the family *inside*. The families are never pooled. The pairs are in
`prompts/not.json`, some for choosing a rule's setting and others for reporting it, with seeds from
100,000 and from 0. They, the settings, and the outcome were committed before anything but CFG was
run.

The primary outcome is *done* (p is seen and n is not, in a picture) on the pairs of `settings`,
minus CFG's, paired over seeds, at *kept* (p is seen) not more than 5 points under CFG's. The hope
is +25 points; the other outcome is the sentence that no rule does it.

The setting that is chosen for a rule has the greatest done of those whose kept is at most 5 points
under that of CFG at s = 3, and the greatest kept where none is. `outside` chooses nothing: a rule
is as strong there as was chosen on `settings`, and as was chosen on `colours`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import product

from dnp.evaluation.benchmarks import PROMPTS
from dnp.sd.world import SETTINGS

PAIRS: dict[str, dict[str, list[list[str]]]] = json.loads((PROMPTS / "not.json").read_text("utf-8"))
INSIDE = ("settings", "colours")
SEED_FROM = {"choosing": 100_000, "reporting": 0}
MARGIN = 0.05  # of kept under CFG's
HOPE = 0.25  # of done over CFG's, on the pairs of `settings`
PRIMARY = "settings"
HIGH = 100.0  # above every sigma of a schedule


@dataclass(frozen=True)
class Setting:
    """A rule as it is run: the method, its settings, and in a few words which one it is."""

    said: str
    method: str
    settings: dict = field(default_factory=dict, hash=False)


def _plain(method: str, *scales: float, **other: object) -> list[Setting]:
    return [Setting(f"s = {s:g}", method, {"s": s, **other}) for s in scales]


def _of_rule(name: str, scales: tuple, key: str, values: tuple) -> list[Setting]:
    """A rule at each scale with each value of one of its options."""
    return [
        Setting(f"s = {s:g}, {key} = {v:g}", "np", {"s": s, "rule": name, "rule_options": {key: v}})
        for s, v in product(scales, values)
    ]


def _two_scale(pairs: tuple, span: tuple | None = None) -> list[Setting]:
    when = {} if span is None else {"negative_interval": span}
    where = (
        ""
        if span is None
        else f", {span[0]:g} < sigma" + ("" if span[1] == HIGH else f" <= {span[1]:g}")
    )
    return [
        Setting(f"s = {s:g}, h = {h:g}{where}", "np", {"s": s, "negative_scale": h, **when})
        for s, h in pairs
    ]


def _dng(options: product) -> list[Setting]:
    return [
        Setting(
            f"s = 3, g = {g:g}, prior = {prior:g}", "np",
            {"s": 3.0, "rule": "dng", "rule_options": {"g": g, "prior": prior}, "eta": 1.0},
        )
        for g, prior in options
    ]  # fmt: skip


def _answer(rule: str | None) -> list[Setting]:
    own = {} if rule is None else {"rule": rule}
    return [
        Setting(f"s = {s:g}, K = {K}", "answer", {"s": s, "K": K, **own})
        for s, K in product((1.0, 2.0, 3.0), (1, 2))
    ]


def _ends(ends: tuple, early: bool) -> list[Setting]:
    """The negative in early or in late steps alone, at s = 3 and three scales of the negative."""
    spans = [(end, HIGH) if early else (0.0, end) for end in ends]
    return [x for span in spans for x in _two_scale(((3.0, 1.0), (3.0, 2.0), (3.0, 4.0)), span)]


CFG_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
RULES: dict[str, list[Setting]] = {
    "CFG": _plain("cfg", *CFG_SCALES),
    "two-term": _plain("np2", 1.5, 2.0, 3.0, 4.0, 6.0, 8.0),
    "two-scale": _two_scale(
        ((2.0, 0.3), (2.0, 0.6), (2.0, 1.5), (4.0, 0.5), (4.0, 1.0), (4.0, 2.0))
    ),
    "Eq. 4": _plain("np", 0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    "early": _ends((5.0, 2.5), True),
    "late": _ends((5.0, 2.5), False),
    "Perp-Neg": _of_rule("perp_neg", (2.0, 4.0), "w", (0.25, 0.5, 1.0)),
    "CCFG": _of_rule("ccfg", (2.0, 4.0), "tau", (0.05, 0.2, 0.8)),
    "DNG, eta = 1": _dng(product((1.0, 5.0), (0.01, 0.1, 0.5))),
    "CFG, eta = 1": _plain("cfg", *CFG_SCALES, eta=1.0),
    "bounded": _of_rule("bounded", (2.0, 4.0), "r", (0.25, 0.5, 1.0)),
    "half-space": _of_rule("half_space", (2.0, 4.0, 8.0), "tau", (0.5, 1.0)),
    "dual of Perp-Neg": _of_rule("perp_neg_dual", (2.0, 4.0), "tau", (0.1, 0.3, 1.0)),
    "ANSWER": _answer(None),
    "ANSWER, two-term": _answer("negative_prompt_two_term"),
}  # fmt: skip
CONTROLS = ("two-term, n*", "two-term, random n")  # of another n, at the scale chosen for two-term
ALONE = Setting("s = 1", "cfg", {"s": 1.0})  # the prompt by itself
REFERENCE = Setting("s = 3", "cfg", {"s": 3.0})  # CFG as the weights recommend it
RECOMMENDED = {  # what dnp/NEGATIVES.md recommends for n a kind of p: two evaluations, and the best
    "settings": Setting("s = 8", "np2", {"s": 8.0}),
    "colours": Setting("s = 3", "np2", {"s": 3.0}),
}
BASELINES = {"DNG, eta = 1": "CFG, eta = 1"}  # CFG where it is not "CFG"

# Where p = phi, dp = 0: Eq. 4, two-scale and Perp-Neg are the two-term form at another scale,
# bounded and CFG are phi, and ANSWER, whose negative is away from p, is not defined.
EMPTY_RULES: dict[str, list[Setting]] = {
    "phi": [ALONE],
    "two-term": _plain("np2", 1.25, 1.5, 2.0, 2.5, 3.0, 4.0),
    "early": _ends((5.0, 2.5), True),
    "late": _ends((5.0, 2.5), False),
    "CCFG": _of_rule("ccfg", (1.0, 2.0), "tau", (0.05, 0.2, 0.8)),
    "DNG, eta = 1": _dng(product((1.0, 5.0), (0.01, 0.1, 0.5))),
    "phi, eta = 1": _plain("cfg", 1.0, eta=1.0),
    "half-space": _of_rule("half_space", (1.0,), "tau", (-0.1, -0.25, -0.5, -1.0, -2.0, -3.0)),
    "dual of Perp-Neg": _of_rule("perp_neg_dual", (1.0, 2.0), "tau", (0.1, 0.3, 1.0)),
}  # fmt: skip


def rules_of(family: str) -> dict[str, list[Setting]]:
    return EMPTY_RULES if family == "empty" else RULES


def scale_against(label: str) -> float:
    """The recommended scale against a setting, a colour or a thing of a miniature's world."""
    return RECOMMENDED["settings" if label in SETTINGS else "colours"].settings["s"]

"""The exercises of notebook 9: right answers, limits and usual mistakes by name."""

from __future__ import annotations

from itertools import count
from math import comb

from exercise import Exercise, same

from dnp.evaluation.mcnemar import LEVEL, mcnemar


def _least(tests: int) -> int:
    """The fewest pairs, all of one way, whose p is at most LEVEL among so many tests."""
    return next(n for n in count(1) if tests * mcnemar(n, 0) <= LEVEL)


def _tail(more: int, fewer: int, k: int) -> float:
    """P(X <= k), X ~ Binomial(more + fewer, 1/2)"""
    n = more + fewer
    return sum(comb(n, i) for i in range(k + 1)) / 2**n


EXERCISES = {
    "my_p": Exercise(
        mcnemar, (9, 2),
        [
            ("no pair differs: p = 1", lambda f: same(f(0, 0), 1.0)),
            ("as many one way as the other: p = 1", lambda f: same(f(4, 4), 1.0)),
            ("both ways count: f(9, 2) = f(2, 9)", lambda f: same(f(9, 2), f(2, 9))),
            ("15 against 1: p = 34 / 2^16", lambda f: same(f(15, 1), 34 / 2**16)),
        ],
        [
            ("only one side is counted: a difference the other way would surprise as much.",
             lambda a, b: _tail(a, b, min(a, b))),
            ("the smaller count is the surprising one: sum up to min(more, fewer).",
             lambda a, b: _tail(a, b, max(a, b))),
            ("the sum ends one too early: X = min(more, fewer) belongs to it.",
             lambda a, b: 2 * _tail(a, b, min(a, b) - 1)),
            ("this is the probability of exactly this count; p adds the more extreme ones.",
             lambda a, b: 2 * comb(a + b, b) / 2 ** (a + b)),
        ],
        more=[(1, 0), (0, 7), (3, 3), (2, 9), (15, 1), (30, 18)],
    ),
    "my_least": Exercise(
        _least, (41,),
        [
            ("one label: 6 pairs, as 2 / 2^6 is .031", lambda f: same(f(1), 6)),
            ("more labels never need fewer pictures", lambda f: f(1) <= f(11) <= f(41) <= f(400)),
        ],
        [
            ("Holm is missing: the smallest p of so many labels is multiplied by their number.",
             lambda tests: _least(1)),
            ("one too few: p is above .05 there. Are both sides counted, 2 / 2^n?",
             lambda tests: _least(tests) - 1),
            ("one too many: a picture fewer is enough.", lambda tests: _least(tests) + 1),
        ],
        more=[(tests,) for tests in (1, 2, 11, 24, 100)],
    ),
    "my_red": Exercise(
        lambda red, s: red, (0.6, 3.0),
        [
            ("s = 1 is the prompt's own law", lambda f: same(f(0.6, 1.0), 0.6)),
            ("without a habit there is none at any s", lambda f: same(f(0.2, 5.0), 0.2)),
        ],
        [
            ("this takes the cars' colours to the power s. But phi has the same cars, to the power "
             "1 - s: what is left of the two?",
             lambda red, s: red**s / (red**s + 4 * ((1 - red) / 4) ** s)),
            ("this is what the chain does, about. The question is the tilted law.",
             lambda red, s: 0.85),
            ("phi's red is that of all things; the law asks for phi at the red car alone.",
             lambda red, s: red**s * (red / 6 + 1 / 6) ** (1 - s)),
        ],
        more=[(red, s) for red in (0.2, 0.4, 0.9) for s in (0.0, 0.5, 1.0, 7.5)],
    ),
}  # fmt: skip

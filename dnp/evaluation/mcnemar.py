"""Which labels are seen more often in one set of pictures than in another of the same noises."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb

from dnp.evaluation.differences import holm

LEVEL = 0.05  # of a comparison: in one of 20 without any difference some label is named


def mcnemar(more: int, fewer: int) -> float:
    """The exact two-sided p of pairs that differ, `more` one way and `fewer` the other.

    p = min(1, 2 P(X <= min(more, fewer))),  X ~ Binomial(more + fewer, 1/2)
    McNemar 1947, the exact form. Pairs that agree say nothing.
    """
    n = more + fewer
    return min(1.0, 2 * sum(comb(n, i) for i in range(min(more, fewer) + 1)) / 2**n)


@cache
def power(pairs: int, low: float, high: float, tests: int) -> float:
    """The probability that a label of share `low` in one set and `high` in the other is found, as
    more often in the latter, at Holm's first and hardest step among `tests` labels.

    The two pictures of a pair are taken as independent; pairs that are alike are found sooner.
    """
    up, down = high * (1 - low), low * (1 - high)
    found = 0.0
    for n in range(pairs + 1):
        of_n = comb(pairs, n) * (up + down) ** n * (1 - up - down) ** (pairs - n)
        share = up / (up + down) if up + down else 0.0
        found += of_n * sum(
            comb(n, more) * share**more * (1 - share) ** (n - more)
            for more in range(n // 2 + 1, n + 1)
            if mcnemar(more, n - more) * tests <= LEVEL
        )
    return found


@dataclass(frozen=True)
class Line:
    """A label in two sets: in how many pictures of each, in how many pairs of one alone, its p, and
    the p after Holm's correction for the whole family."""

    label: str
    first: int
    second: int
    only_first: int
    only_second: int
    p: float
    corrected: float

    @property
    def found(self) -> bool:
        return self.corrected <= LEVEL


@dataclass(frozen=True)
class Comparison:
    """Every label of a family in two sets of pictures, which were made from shared noises."""

    question: str  # "what the prompt brings"
    first: str  # the set that is asked about, and the one that it is compared with
    second: str
    pictures: int
    lines: tuple[Line, ...]

    @property
    def more(self) -> list[Line]:
        """The labels that the first set shows more often, the greatest difference first."""
        lines = [x for x in self.lines if x.found and x.first > x.second]
        return sorted(lines, key=lambda x: x.second - x.first)

    @property
    def fewer(self) -> list[Line]:
        """The labels that the first set shows more rarely, the greatest difference first."""
        lines = [x for x in self.lines if x.found and x.first < x.second]
        return sorted(lines, key=lambda x: x.first - x.second)


def compare(
    question: str, sets: dict[str, Sequence[Collection[str]]], first: str, second: str,
    family: Sequence[str],
) -> Comparison:  # fmt: skip
    """The labels of `family` in two of the `sets`, which hold the labels of each picture; picture i
    of one and picture i of the other are a pair."""
    a, b = sets[first], sets[second]
    counts = []
    for label in family:
        pairs = [(label in x, label in y) for x, y in zip(a, b, strict=True)]
        only = pairs.count((True, False)), pairs.count((False, True))
        counts.append((label, *map(sum, zip(*pairs)), *only, mcnemar(*only)))
    corrected = holm([row[-1] for row in counts])
    lines = tuple(Line(*row, p) for row, p in zip(counts, corrected))
    return Comparison(question, first, second, len(a), lines)

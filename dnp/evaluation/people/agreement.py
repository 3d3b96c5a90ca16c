"""The arithmetic of votes: shares with intervals, a sign test, agreement, and careless raters.

A vote is one rater's answer on one pair: win (A), tie or loss (B). Votes are not independent. A
rater answers many pairs, and a prompt is seen by many raters. An interval that forgets it is too
narrow (Owen 2007, arXiv:0712.1111). So both are resampled here, raters and prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lgamma, log

import numpy as np

Interval = tuple[float, float, float]  # value, low, high
Z95 = 1.959964  # the normal law's 97.5 % point


def cells(values: Sequence[float], raters: Sequence, prompts: Sequence) -> np.ndarray:
    """Sums of `values` for each rater and prompt: (R, P), rows and columns in sorted order."""
    if not len(values) == len(raters) == len(prompts):
        raise ValueError("values, raters and prompts must be of one length")
    who, r = np.unique(np.asarray(raters), return_inverse=True)
    what, p = np.unique(np.asarray(prompts), return_inverse=True)
    sums = np.zeros((len(who), len(what)))
    np.add.at(sums, (r, p), np.asarray(values, float))
    return sums


def two_way(
    above: np.ndarray, below: np.ndarray, draws: int = 2000, seed: int = 0
) -> Interval | None:
    """sum(above) / sum(below) with a 95 % interval clustered over raters and over prompts.

    Each draw takes R raters and P prompts with replacement; the interval is from the 2.5 % to the
    97.5 % point of the ratios. `above` and `below` are (R, P): sums of each cell, such as the wins
    and the votes. None if `below` is zero. Pigeonhole bootstrap, Owen 2007, arXiv:0712.1111.
    """
    if not below.sum():
        return None
    rng, (n_raters, n_prompts) = np.random.default_rng(seed), above.shape
    of_raters = rng.multinomial(n_raters, np.full(n_raters, 1 / n_raters), draws)  # (draws, R)
    of_prompts = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), draws)
    tops, bottoms = (((of_raters @ x) * of_prompts).sum(1) for x in (above, below))
    ratios = tops[bottoms > 0] / bottoms[bottoms > 0]  # a draw may hold no vote at all
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(above.sum() / below.sum()), float(low), float(high)


def over_votes(values: Sequence[float]) -> Interval:
    """The mean of the votes with the usual 95 % interval, mean +- 1.96 sd / sqrt(n).

    It takes votes as independent, so it is too narrow. It is here for comparison only.
    """
    x = np.asarray(values, float)
    mean, half = x.mean(), Z95 * x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else 0.0
    return float(mean), float(mean - half), float(mean + half)


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p-value of `wins` and `losses` where both are equally likely.

    p = min(1, 2 sum_{k <= min(wins, losses)} C(n, k) / 2^n), n = wins + losses; ties are left out.
    """
    n = wins + losses
    k = np.arange(min(wins, losses) + 1)
    logs = [lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) - n * log(2) for i in k]
    return min(1.0, 2 * float(np.exp(logs).sum()))


def counts(answers: Sequence, units: Sequence) -> np.ndarray:
    """How often each unit got each answer: (U, C), rows and columns in sorted order."""
    what, column = np.unique(np.asarray(answers), return_inverse=True)
    table = cells(np.ones(len(column)), units, column)
    return table[:, : len(what)]


def krippendorff_alpha(table: np.ndarray) -> float | None:
    """Krippendorff's alpha for nominal answers: 1 - observed / expected disagreement.

    alpha = 1 - (n - 1) sum_u sum_c n_uc (m_u - n_uc) / (m_u - 1) / sum_c n_c (n - n_c)
    Krippendorff, Content Analysis (2018), chapter 12. `table` is (U, C): how often unit u got the
    answer c. Units with fewer than two answers say nothing and are left out. None where there is
    no such unit, or all answers are one and the same, so that nothing could disagree.
    """
    return _alpha(table, np.ones((1, len(table))))[0]


def alpha_interval(table: np.ndarray, draws: int = 2000, seed: int = 0) -> Interval | None:
    """Krippendorff's alpha with a 95 % bootstrap interval over units.

    Raters are not resampled: raters who are drawn twice would agree with themselves.
    """
    value, n = krippendorff_alpha(table), len(table)
    if value is None:
        return None
    rng = np.random.default_rng(seed)
    drawn = _alpha(table, rng.multinomial(n, np.full(n, 1 / n), draws).astype(float))
    low, high = np.percentile([a for a in drawn if a is not None], [2.5, 97.5])
    return value, float(low), float(high)


def _alpha(table: np.ndarray, weights: np.ndarray) -> list[float | None]:
    """Alpha for each row of `weights` (draws, U), which says how often a unit is taken."""
    table = np.asarray(table, float)
    m = table.sum(1, keepdims=True)
    paired = np.where(m > 1, table, 0.0)
    observed = (paired * (m - paired) / np.maximum(m - 1, 1)).sum(1)  # (U,)
    n_c = weights @ paired  # (draws, C)
    n = n_c.sum(1)
    expected = (n_c * (n[:, None] - n_c)).sum(1)
    alphas = 1 - (n - 1) * (weights @ observed) / np.where(expected > 0, expected, 1)
    return [float(a) if e > 0 else None for a, e in zip(alphas, expected)]


def majorities(values: Sequence[int], prompts: Sequence) -> tuple[int, int]:
    """(prompts whose votes sum to more than zero, to less); a vote is +1, 0 or -1."""
    sums = cells(values, np.zeros(len(values)), prompts)
    return int((sums > 0).sum()), int((sums < 0).sum())


def one_sided(left: int, right: int, p: float) -> bool:
    """Whether a rater chose one side too often: the sign test of their sides is below `p`.

    Sides are balanced for each rater, so whoever looks at the pictures chooses both alike.
    """
    return sign_test(left, right) < p


def inattentive(wrong: int, known: int, share: float) -> bool:
    """Whether at least `share` of a rater's `known` answers of attention checks are wrong."""
    return known > 0 and wrong >= share * known

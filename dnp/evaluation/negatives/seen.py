"""What a picture of "p and not n" shows of p and of n, as numbers: done, kept, leak."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dnp.sd.world import SETTINGS, subjects


def kept(row: dict, p: str) -> bool:
    """Whether p is seen: its thing, and of the empty prompt anything at all."""
    named = subjects(p)
    return named[0][1] in row["things"] if named else bool(row["things"])


def shows(row: dict, n: str) -> bool:
    """Whether n is seen: its setting, else its thing in its colour, else its thing."""
    setting = next((k for k, (after, _) in SETTINGS.items() if n.endswith(after)), None)
    if setting is not None:
        return row["setting"] == setting
    ((colour, word),) = subjects(n)
    return word in row["things"] and colour in (None, row["things"][word])


def scores(units: Sequence[Sequence[dict | None]], pairs: Sequence) -> dict[str, np.ndarray]:
    """{"done", "kept", "leak"}, each (pairs, units) of 0 and 1; leak is NaN where p is not kept. A
    picture that overflowed shows neither p nor n."""
    found = {name: np.zeros((len(pairs), len(units))) for name in ("done", "kept", "leak")}
    for k, rows in enumerate(units):
        for i, (row, (p, n)) in enumerate(zip(rows, pairs, strict=True)):
            has_p = row is not None and kept(row, p)
            has_n = row is not None and shows(row, n)
            found["kept"][i, k], found["done"][i, k] = has_p, has_p and not has_n
            found["leak"][i, k] = has_n if has_p else np.nan
    return found


def mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """The mean of (pairs, units) and its 95 % interval: percentile bootstrap over the seeds of each
    pair by itself, since the pairs are fixed and their noises are drawn. NaN are left out."""
    rng, (n, k) = np.random.default_rng(seed), values.shape
    picks = rng.integers(0, k, (draws, n, k))
    drawn = np.take_along_axis(np.broadcast_to(values, (draws, n, k)), picks, 2).reshape(draws, -1)
    there = np.isfinite(drawn)
    means = np.where(there, drawn, 0).sum(1) / np.maximum(there.sum(1), 1)
    low, high = np.percentile(means, [2.5, 97.5])
    return mean(values), float(low), float(high)

"""How far what is left of a picture's world is from the law of "p and not n": total variations.

    TV(a, b) = 1/2 sum |a - b|

Of the pictures that show p and not n, the settings, and the colours of p's thing, each alone. The
law is that of the world's generator (`weights/mini/training/negatives.py`), of each pair as often
as the pair is among these pictures. Its floor is the mean distance of as many draws from the law
itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dnp.evaluation.labels import tabulated
from dnp.evaluation.negatives.seen import kept, shows
from dnp.sd.world import subjects

KINDS = ("settings", "colours")
Histograms = list[Counter]  # of each pair


def read(path: Path) -> dict:
    """The tabulated law; SettingsError if it cannot be read."""
    return tabulated(
        path, "negatives.py", lambda truth: (truth["prompts"], truth["empty"], truth["eyes"]["of"])
    )


def law(truth: dict, kind: str, pair: Sequence[str]) -> Counter:
    """The counts of "p and not n" for a pair; empty where the law has none of that kind."""
    p, n = pair
    found: Counter = Counter()
    if not subjects(p):
        word = subjects(n)[0][1]
        for setting, here in truth["empty"].items() if kind == "settings" else ():
            found[setting] += here["scenes"] - here["with"][word]
        return found
    word = subjects(p)[0][1]
    for setting, colours in truth["prompts"][p].items():
        for colour, count in colours.items():
            row = {"things": {word: colour} if colour else {}, "setting": setting}
            if kept(row, p) and not shows(row, n):
                found[setting if kind == "settings" else f"{colour} {word}"] += count
    return found


def share_of_n(truth: dict, pair: Sequence[str]) -> float:
    """P(n | p) by the world's generator: the leak of a perfect model without a negative."""
    p, n = pair
    if not subjects(p):
        word = subjects(n)[0][1]
        every = truth["empty"].values()
        return sum(x["with"][word] for x in every) / sum(x["scenes"] for x in every)
    total = sum(sum(colours.values()) for colours in truth["prompts"][p].values())
    return 1 - sum(law(truth, "settings", pair).values()) / total


def seen(units: Sequence[Sequence[dict | None]], kind: str, pairs: Sequence) -> Histograms:
    """The counts of the pictures that show p and not n, of each pair."""
    found = [Counter() for _ in pairs]
    for rows in units:
        for of, row, (p, n) in zip(found, rows, pairs, strict=True):
            if row is None or not kept(row, p) or shows(row, n):
                continue
            if kind == "settings":
                of[row["setting"]] += 1
            elif subjects(p):
                word = subjects(p)[0][1]
                of[f"{row['things'][word]} {word}"] += 1
    return found


def distance(own: Histograms, other: Histograms) -> float:
    """TV of what was seen to another law, of each pair as often as it is in the former; NaN where
    they have no pair in common."""
    left, right, total = Counter(), Counter(), 0
    for a, b in zip(own, other, strict=True):
        n, m = sum(a.values()), sum(b.values())
        if n and m:
            total += n
            left.update(a)
            for k, count in b.items():
                right[k] += n * count / m
    if not total:
        return float("nan")
    return sum(abs(left[k] - right[k]) for k in {*left, *right}) / (2 * total)


def floor(own: Histograms, laws: Histograms, other: Histograms | None = None, draws: int = 200):
    """The mean distance of as many draws from the laws: to the laws, or to as many draws as `other`
    has."""
    rng = np.random.default_rng(0)

    def drawn(like: Histograms) -> Histograms:
        out = []
        for of, of_law in zip(like, laws, strict=True):
            n, total = sum(of.values()), sum(of_law.values())
            p = np.array([*of_law.values()], np.float64) / (total or 1)
            counts = rng.multinomial(n, p).tolist() if n and total else []
            out.append(Counter(dict(zip(of_law, counts))))
        return out

    found = [distance(drawn(own), laws if other is None else drawn(other)) for _ in range(draws)]
    return float(np.mean(found))

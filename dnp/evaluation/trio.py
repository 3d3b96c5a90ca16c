"""Three things: the benchmark `trio`, and every combination that the miniature never sees.

"a cat, a red car and a blue chair": animals first, and every object has a colour. The lists follow
from one fixed order of all combinations (by SHA-256), so they are the same everywhere. The world
of the miniature (`weights/mini/training/world.py`) leaves out the same combinations.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations

from dnp.sd.world import ANIMALS, COLOURS, OBJECTS


@dataclass(frozen=True)
class Prompt:
    """A prompt and the category whose mean it belongs to."""

    text: str
    category: str


HELD_OUT_PAIRS = {
    frozenset(pair.split())
    for pair in (
        "cat bird, dog turtle, bear rabbit, lion elephant, horse frog, monkey mouse, dog bear, "
        "cat glasses, cat bench, dog crown, bird suitcase, bear balloon, lion car, horse clock, "
        "elephant backpack, elephant bow, monkey apple, frog chair, turtle bowl, rabbit crown, "
        "mouse bow, mouse car, backpack clock, glasses bench, crown apple, suitcase bowl, "
        "chair balloon, car bench"
    ).split(", ")
}
HELD_OUT_COLOURS = {
    ("purple", "apple"), ("white", "backpack"), ("brown", "balloon"), ("blue", "bench"),
    ("gray", "bow"), ("orange", "bowl"), ("pink", "car"), ("green", "chair"), ("black", "clock"),
    ("red", "crown"), ("yellow", "glasses"), ("brown", "suitcase"), ("green", "bowl"),
}  # fmt: skip
CATEGORIES = {"animals": 3, "two_animals": 2, "one_animal": 1, "objects": 0}  # name: animals in it
HELD_OUT = "held_out"  # the category of the combinations that training never shows
SEEN_EACH, HELD_OUT_EACH = {"reporting": 24, "choosing": 12}, {"reporting": 6, "choosing": 3}


def _ordered(animals: int) -> list[tuple[str, ...]]:
    """Every three things with that many animals and no held-out pair, in the fixed order."""
    three = [
        (*a, *o) for a in combinations(ANIMALS, animals) for o in combinations(OBJECTS, 3 - animals)
    ]
    free = [t for t in three if not any(frozenset(p) in HELD_OUT_PAIRS for p in combinations(t, 2))]
    return sorted(free, key=lambda t: sha256(" ".join(t).encode()).digest())


_BY_CATEGORY = {name: _ordered(animals) for name, animals in CATEGORIES.items()}
_N_HELD_OUT = sum(HELD_OUT_EACH.values())
HELD_OUT_TRIOS = {frozenset(t) for ts in _BY_CATEGORY.values() for t in ts[:_N_HELD_OUT]}


def held_out(words: frozenset[str] | set[str]) -> bool:
    """Whether two or three of these things are a combination that training never shows."""
    pairs = any(frozenset(p) in HELD_OUT_PAIRS for p in combinations(sorted(words), 2))
    return pairs or any(frozenset(t) in HELD_OUT_TRIOS for t in combinations(sorted(words), 3))


def trio(use: str = "reporting") -> list[Prompt]:
    """120 prompts for "reporting", or 60 others for "choosing": a fifth is held out.

    Four categories by the number of animals, and `held_out`: three things whose pairs and colours
    training shows, but never the three together. No combination is in both lists.
    """
    prompts, held, turn = [], [], 0
    for trios in _BY_CATEGORY.values():  # both lists are made, so that colours go round over both
        for wanted, each in ((held, HELD_OUT_EACH), (prompts, SEEN_EACH)):
            for part, n in each.items():
                for _ in range(n):
                    wanted.append((part, trios[0], turn))
                    trios, turn = trios[1:], turn + 1
    out = []
    names = [c for c in CATEGORIES for _ in range(sum(SEEN_EACH.values()))]
    rows = [(c, *row) for c, row in zip(names, prompts)] + [(HELD_OUT, *row) for row in held]
    for category, part, things, k in rows:
        if part == use:
            out.append(Prompt(_sentence(things, k), category))
    return out


def _sentence(things: tuple[str, ...], k: int) -> str:
    """The prompt number k: its objects take the next colours in turn that they may have."""
    names, used = [], set()
    for i, thing in enumerate(things):
        if thing in ANIMALS:
            names.append(f"a {thing}")
            continue
        hue = (3 * k + 4 * i) % 11
        while COLOURS[hue % 11] in used or (COLOURS[hue % 11], thing) in HELD_OUT_COLOURS:
            hue += 1
        used.add(COLOURS[hue % 11])
        names.append(f"a {COLOURS[hue % 11]} {thing}")
    return f"{names[0]}, {names[1]} and {names[2]}"

"""What a rater of a study sees, in order: the page's `sequence` (study/page.js), line by line.

The order and the sides follow from the study's name and the rater's random one, so a file of
answers in another order, or with another name put in, is not one that the page wrote.
"""

from __future__ import annotations

from collections.abc import Callable

MASK = 2**32 - 1
Trial = tuple[str, int, str, str]  # pair, showing, left, right


def random_of(text: str) -> Callable[[int], int]:
    """Whole numbers below n that follow from a text: FNV-1a, then Marsaglia's xorshift (2003)."""
    x = 2166136261
    for letter in text:
        x = (x ^ ord(letter)) * 16777619 & MASK
    x = x or 1

    def below(n: int) -> int:
        nonlocal x
        x ^= x << 13 & MASK
        x ^= x >> 17
        x ^= x << 5 & MASK
        return x * n >> 32

    for _ in range(20):  # texts that differ little start alike
        below(1)
    return below


def shuffled(things: list, below: Callable[[int], int]) -> list:
    out = list(things)
    for i in range(len(out) - 1, 0, -1):
        j = below(i + 1)
        out[i], out[j] = out[j], out[i]
    return out


def sequence(key: dict, rater: str) -> list[Trial]:
    """One pair of each block is swapped, so that sides are balanced. The repeated pairs come first
    in the first half, and with their sides swapped in the last third."""
    below, plan, every = random_of(f"{key['study']} {rater}"), key["plan"], []
    for block in plan["blocks"]:
        swapped = below(len(block))
        for i, p in enumerate(block):
            every.append((p["pair"], 1, *p["pictures"][:: -1 if i == swapped else 1]))
    again = [t for t in every if t[0] in plan["repeats"]]
    order, half = shuffled(every, below), len(every) // 2
    free = shuffled([t for t in order[:half] if t not in again], below)
    for late, early in zip([t for t in order[half:] if t in again], free):
        a, b = order.index(late), order.index(early)
        order[a], order[b] = order[b], order[a]
    start = -(-2 * len(order) // 3)
    for pair, _, left, right in [t for t in order if t in again]:
        order.insert(start + below(len(order) - start + 1), (pair, 2, right, left))
    return order

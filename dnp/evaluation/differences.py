"""Differences of methods, paired over prompts, with p-values and Holm's correction.

A prompt's difference is the mean over its seeds: prompts are independent of each other, and the
pictures of one prompt are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from dnp.evaluation.controls import target
from dnp.evaluation.tables import (
    COLUMNS,
    Cells,
    Row,
    baseline_of,
    by_picture,
    interval,
    markdown,
    shown,
)

EXACT = 14  # prompts, with 2^14 signs; with more, as many signs are drawn
DRAWS = 20_000


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """The two-sided p of paired differences under "their signs are by chance".

    p = share of the signs e with |mean(e d)| >= |mean(d)|
    All 2^n signs up to n = 14; then 20,000 drawn ones, and the one that is there counted too.
    """
    d = np.asarray(differences, np.float64)
    if len(d) <= EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=len(d))))
    else:
        drawn = np.random.default_rng(seed).integers(0, 2, (DRAWS, len(d)))
        signs = np.concatenate([np.ones((1, len(d))), 2.0 * drawn - 1])
    sums = np.abs(signs @ d)
    return float((sums >= abs(d.sum()) - 1e-9 * np.abs(d).sum()).mean())


def holm(p: Sequence[float]) -> list[float]:
    """Holm's corrected p-values (1979), which hold for all of them together.

    p_(i) -> max over j <= i of min(1, (m - j + 1) p_(j)),  p_(1) <= ... <= p_(m)
    """
    order, corrected, greatest = np.argsort(p, kind="stable"), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        greatest = max(greatest, min(1.0, (len(p) - rank) * float(p[i])))
        corrected[i] = greatest
    return corrected


def per_prompt(a: Sequence[dict], b: Sequence[dict], column: str) -> list[float]:
    """The mean of a - b over the seeds that both have, for each prompt that both have."""
    x, y = by_picture(a, column), by_picture(b, column)
    prompts: dict[str, list[float]] = {}
    for key in sorted(x.keys() & y.keys()):
        prompts.setdefault(key[0], []).append(x[key] - y[key])
    return [float(np.mean(d)) for d in prompts.values()]


def at_scale(curve: Sequence[tuple[float, np.ndarray]], s: float) -> tuple[np.ndarray, float]:
    """The values of CFG at the scale s, linear between those at the two scales of `curve` (in
    ascending order) about it; and s, or the end of the curve where s lies beyond it."""
    scales = [x for x, _ in curve]
    at = float(np.clip(s, scales[0], scales[-1]))
    i = min(max(int(np.searchsorted(scales, at)), 1), len(scales) - 1)
    w = (at - scales[i - 1]) / (scales[i] - scales[i - 1])
    return (1 - w) * curve[i - 1][1] + w * curve[i][1], at


def differences(
    rows: Sequence[Row], baseline: str, out: Cells, at: str, primary: str | None = None
) -> list[str]:
    """The table of every method but the baseline, minus the baseline. Holm's correction is over
    all of it, or over the column `primary` alone."""
    pairs = [(row, baseline_of(row, rows, baseline)) for row in rows if row.method != baseline]
    title = f"Differences to {pairs[0][1].called} {at}" if pairs else ""
    return _table(rows, pairs, title, out, lambda row, _: row.name, primary)


def of_controls(rows: Sequence[Row], out: Cells, primary: str | None = None) -> list[str]:
    """The table of methods minus those of their controls that are there."""
    pairs = []
    for row in rows:
        labels = dict.fromkeys(r.method for r in rows if r is not row and is_control(r, row))
        pairs += [(row, baseline_of(row, rows, label)) for label in labels]
    both = lambda row, base: f"{row.name} minus {base.name}"  # noqa: E731
    lines = _table(rows, pairs, "Differences of methods to their controls", out, both, primary)
    lines += [_same_words(*pair) for pair in pairs if pair[1].method.startswith("shuffled")]
    return lines + [""] * bool(pairs)


def _same_words(row: Row, control: Row) -> str:
    """How often another prompt's n* is the prompt's own: those pictures are not a control."""
    own, other = (by_picture(x.records, "negatives") for x in (row, control))
    same = sum(own[k] == other[k] for k in own.keys() & other.keys())
    return f"{control.name}: in {same} of {len(other)} pictures n* is the prompt's own."


def is_control(control: Row, row: Row) -> bool:
    """Whether a row isolates a cause of another: CFG of equal strength, CFG of equal cost (of
    ae+auto-dnp also ae), or the same method with another prompt's n* or with a random negative."""
    a, b = control.method, row.method
    if target(a) is not None:
        return target(a) == b
    kind, of = a.partition(":")[0], b.partition(":")[0]
    of_cost = not b.startswith("cfg") if kind == "cfg" else (kind, of) == ("ae", "ae+auto-dnp")
    if of_cost and "steps=" in a:
        return abs(control.cost / row.cost - 1) < 0.05
    if kind not in ("shuffled", "random"):
        return False
    return _without_scale(a.replace(kind, "auto-dnp", 1)) == _without_scale(b)


def _without_scale(label: str) -> str:
    name, _, options = label.partition(":")
    kept = [x for x in options.split(",") if x and not x.startswith("s=")]
    return f"{name}:{','.join(kept)}" if kept else name


def _table(
    rows: Sequence[Row], pairs: Sequence[tuple[Row, Row]], title: str, out: Cells,
    called: Callable[[Row, Row], str], primary: str | None,
) -> list[str]:  # fmt: skip
    columns = shown(rows)
    if not pairs or not columns:
        return []
    cells = product(range(len(pairs)), columns)
    found = {(i, c): per_prompt(*(x.records for x in pairs[i]), c) for i, c in cells}
    found = {cell: d for cell, d in found.items() if d}
    p = {cell: sign_flip(d) for cell, d in found.items()}
    family = [cell for cell in found if primary in (None, cell[1])]
    corrected = dict(zip(family, holm([p[cell] for cell in family])))
    body = []
    for i, (row, base) in enumerate(pairs):
        texts = [called(row, base)]
        for c in columns:
            if not (d := found.get((i, c))):
                texts.append("-")
                continue
            both = (p[i, c], corrected[i, c]) if (i, c) in corrected else (p[i, c],)
            text = out.add(f"minus {base.called}", row, c, interval([[x] for x in d]), "+", both)
            texts.append(f"{text}, p {says(both[1])}" if both[1:] else text)
        body.append(texts)
    marked = [f"{COLUMNS[c][0]}{'' if primary in (None, c) else ' (exploratory)'}" for c in columns]
    prompts = max(map(len, found.values()), default=0)
    of = "" if primary is None else f"{COLUMNS[primary][0]}, the primary column, "
    over = f"the {len(family)} differences of {of or 'this table'}".removesuffix(", ")
    caption = (
        f"{title}, paired over {prompts} prompts (of each, the mean of its seeds). p is of sign "
        f"flips of the prompts, two-sided, with Holm's correction for {over}. A bracket is the "
        "95 % interval of one difference alone, not corrected, so it may leave out 0 where p is "
        "large:"
    )
    return [caption, "", *markdown(["method", *marked], body)]


def says(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"

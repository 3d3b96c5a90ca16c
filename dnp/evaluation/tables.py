"""The tables of a run's records: means and categories, and the cells of every table for the CSV.

`differences.py` has the differences.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from dnp.evaluation.benchmarks import subjects
from dnp.evaluation.metrics import bootstrap

COLUMNS = {  # column: (heading, factor, digits)
    "minimum": ("min. object", 1, 3),
    "full": ("full prompt", 1, 3),
    "clipscore": ("CLIPScore", 1, 3),
    "colours": ("things and colours, %", 100, 1),
    "things": ("things, %", 100, 1),
    "asked": ("asked things per picture", 1, 2),
    "right": ("right things per picture", 1, 2),
}
BY_CATEGORY = ("minimum", "full", "colours")
PER_PICTURE = (*COLUMNS, "shown")  # in pictures.csv
Rows = dict[tuple[str, float | None], list[dict]]  # (method, scale) -> the records of its prompts


def name(key: tuple[str, float | None], rows: Rows) -> str:
    """The method and the scale that it ran at, if it has one."""
    s = scale(rows[key][0])
    return f"{key[0]}, s = {s}" if s else key[0]


def scale(record: dict) -> str:
    return "" if record["s"] is None else f"{record['s']:g}"


def baseline_of(key: tuple, rows: Rows, baseline: str) -> tuple:
    """The row of the baseline at the same scale, or its first one."""
    of_baseline = [k for k in rows if k[0] == baseline]
    return next((k for k in of_baseline if k[1] == key[1]), of_baseline[0])


def grouped(records: Sequence[dict]) -> Rows:
    rows: Rows = {}
    for record in records:
        rows.setdefault((record["method"], record["scale"]), []).append(record)
    return rows


class Cells:
    """Collects what stands in the tables, for the CSV."""

    def __init__(self):
        self.rows: list[list] = []

    def add(
        self, table: str, key: tuple, rows: Rows, heading: str, interval: Sequence[float],
        factor: float = 1, digits: int = 3, sign: str = "", p: Sequence[float] = (),
    ) -> str:  # fmt: skip
        """The text of a cell: a mean and its interval. `p` is (p, p corrected) of a difference."""
        values = [factor * v for v in interval]
        numbers = [f"{v:.6g}" for v in (*values, *p)] + ([] if p else ["", ""])
        self.rows.append([table, key[0], scale(rows[key][0]), heading, *numbers])
        mean, low, high = (f"{v:{sign}.{digits}f}" for v in values)
        return f"{mean} [{low}, {high}]"

    def csv(self) -> str:
        heads = ["table", "method", "s", "column", "mean", "low", "high", "p", "p_holm"]
        return _csv(heads, self.rows)


def _csv(heads: Sequence[str], body: Sequence[Sequence]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([heads, *body])
    return file.getvalue()


def pictures(records: Sequence[dict]) -> str:
    """A line for each picture: how it was made, and its numbers."""
    columns = [c for c in PER_PICTURE if any(c in r for r in records)]
    body = []
    for r in records:
        for i, seed in enumerate(r["seeds"]):
            numbers = [r[c][i] if r.get(c) is not None else "" for c in columns]
            numbers = [int(v) if isinstance(v, bool) else v for v in numbers]
            line = [r["method"], scale(r), r["prompt"], r["category"], seed]
            line += [r["negatives"][i], f"{r['nfe'][i]:g}", r["failed"][i], *numbers]
            body.append([*line, r["images"][i]])
    heads = ["method", "s", "prompt", "category", "seed", "negative", "evaluations", "failed"]
    return _csv([*heads, *columns, "image"], body)


def markdown(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
        *("| " + " | ".join(cells) + " |" for cells in body),
        "",
    ]


def has(rows: Rows, column: str) -> bool:
    return any(r.get(column) is not None for records in rows.values() for r in records)


def shown(rows: Rows) -> list[str]:
    """Those that the records have; `right` only where a prompt asks for more than two things."""
    many = any(len(subjects(r["prompt"])) > 2 for records in rows.values() for r in records)
    return [c for c in COLUMNS if has(rows, c) and (many or c != "right")]


def by_prompt(records: Sequence[dict], column: str) -> list[Sequence[float]]:
    """The values of each prompt that has them."""
    return [np.atleast_1d(r[column]) for r in records if r.get(column) is not None]


def means(rows: Rows, out: Cells) -> list[str]:
    columns = shown(rows)
    heads = ["method", *(COLUMNS[c][0] for c in columns)]
    heads += ["IS"] * has(rows, "classes") + ["diversity"] * has(rows, "diversity")
    body = []
    for key, records in rows.items():
        cells = [name(key, rows)]
        for c in [*columns, *["diversity"] * has(rows, "diversity")]:
            heading, factor, digits = COLUMNS.get(c, (c, 1, 3))
            values = by_prompt(records, c)
            cell = (
                out.add("all", key, rows, heading, bootstrap(values), factor, digits)
                if values
                else "-"
            )
            cells.append(cell)
        if has(rows, "classes"):
            place = 1 + len(columns)
            cell = out.add("all", key, rows, "IS", inception_interval(records), 1, 2)
            cells.insert(place, cell)
        n = cost(records)
        out.rows.append(["all", key[0], scale(rows[key][0]), "evaluations", f"{n:g}", *[""] * 4])
        body.append([*cells, f"{n:g}"])
    first = next(iter(rows.values()))
    seeds = first[0]["seeds"]
    notes = [
        f"{len(first)} prompts x {len(seeds)} seeds, from {seeds[0]}; 95 % intervals over prompts."
    ]
    halves = len(by_prompt(first, "minimum"))
    if 0 < halves < len(first):
        notes.append(f'min. object: the {halves} prompts with " and " or " with ".')
    for key, records in rows.items():
        cut = sum("cut off" in note for r in records for note in r["notes"])
        failed = sum(f is not None for r in records for f in r["failed"])
        for count, what in (
            (sum(r["empty"] for r in records), "empty captions (phi)"), (cut, "captions cut"),
            (failed, "pictures overflowed"),
        ):  # fmt: skip
            if count:
                notes.append(f"{name(key, rows)}: {count} {what}.")
    return [*markdown([*heads, "evaluations"], body), *notes, ""]


def categories(rows: Rows, column: str, out: Cells) -> list[str]:
    kinds = list(dict.fromkeys(r["category"] for records in rows.values() for r in records))
    if len(kinds) < 2 or not has(rows, column):
        return []
    heading, factor, digits = COLUMNS[column]
    body = []
    for key, records in rows.items():
        cells = [name(key, rows)]
        for kind in kinds:
            values = by_prompt([r for r in records if r["category"] == kind], column)
            put = values and out.add(kind, key, rows, heading, bootstrap(values), factor, digits)
            cells.append(put or "-")
        body.append(cells)
    return [f"{heading}, by category:", "", *markdown(["method", *kinds], body)]


def inception_interval(records: Sequence[dict], draws: int = 1000) -> tuple[float, float, float]:
    """The inception score of all pictures, and its 95 % interval by bootstrap over prompts.

    exp(mean over pictures of KL(p(y | x) || p(y))), over one split (Salimans et al. 2016,
    arXiv:1606.03498): 1 is the least (all pictures alike or unsure), the number of classes the
    most. It is exp(mean of sum p log p - sum of mean p log mean p), so the sums of each prompt are
    enough. The interval is 1.96 standard deviations of the draws each way: a draw repeats prompts
    and so has fewer classes, and its percentiles may miss the score itself.
    """
    p = [np.asarray(r["classes"], np.float64) for r in records if "classes" in r]
    p = [x / x.sum(1, keepdims=True) for x in p]
    counts = np.array([len(x) for x in p], np.float64)
    minus_h = np.array([(x * np.log(np.maximum(x, 1e-300))).sum() for x in p])
    sums = np.stack([x.sum(0) for x in p])

    def score(rows: np.ndarray) -> np.ndarray:
        n = counts[rows].sum(-1)
        mean = sums[rows].sum(-2) / n[..., None]
        return np.exp(minus_h[rows].sum(-1) / n - (mean * np.log(np.maximum(mean, 1e-300))).sum(-1))

    drawn = score(np.random.default_rng(0).integers(0, len(p), (draws, len(p))))
    value, half = float(score(np.arange(len(p)))), 1.96 * float(drawn.std())
    return value, value - half, value + half


def cost(records: Sequence[dict]) -> float:
    """Mean network evaluations for a picture that was made."""
    made = [n for r in records for n, failed in zip(r["nfe"], r["failed"]) if failed is None]
    return sum(made) / len(made) if made else float("nan")


def by_picture(records: Sequence[dict], column: str) -> dict[tuple, float]:
    return {(r["prompt"], i): v for r in records for i, v in zip(r["seeds"], r.get(column) or [])}

"""Tables, plots and contact sheets of a finished run. They depend on its records alone.

`tables.md` is for readers; `tables.csv` holds the same cells, one on each line, and `pictures.csv`
a line for each picture.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dnp.evaluation.benchmarks import subjects
from dnp.evaluation.metrics import bootstrap, paired
from dnp.evaluation.plots import plot
from dnp.evaluation.sheets import sheets
from dnp.pictures import png, write

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
PUBLISHED = {  # arXiv:2411.05473, Table 2, Stable Diffusion
    "ae": ("min. object / full prompt / IS", {
        "CFG": "0.242 / 0.335 / 13.17", "auto-DNP": "0.258 / 0.346 / 13.35",
    }),
    "hh": ("full prompt / IS", {
        "CFG": "people 0.322 / 9.95, hands 0.309 / 12.04",
        "auto-DNP": "people 0.331 / 10.13, hands 0.321 / 12.39",
    }),
}  # fmt: skip
PICTURES = ("wins-*.png", "losses-*.png", "scales.png", "evaluations.png")
PER_PICTURE = ("full", "clipscore", "minimum", "things", "colours", "asked", "right", "shown")
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


def make(records: Sequence[dict], folder: Path, benchmark: str, baseline: str) -> str:
    """Writes tables, plots and sheets into `folder`; returns the text of `tables.md`."""
    rows, cells = grouped(records), Cells()
    text = [*_table(rows, cells), *_differences(rows, baseline, cells)]
    for column in BY_CATEGORY:
        text += _categories(rows, column, cells)
    text += _plots(rows, folder)
    by = "full" if _have(rows, "full") else "colours"
    for key in rows:
        base = baseline_of(key, rows, baseline)
        if key[0] != baseline and _have(rows, by):
            names = name(base, rows), name(key, rows)
            text += sheets(rows[base], rows[key], names, by, COLUMNS[by][0], folder)
    text += _published(benchmark)
    tables = "\n".join(text) + "\n"
    for pattern in PICTURES:  # of a grid that was reported here before
        for path in folder.glob(pattern):
            if f"`{path.name}`" not in tables:
                path.unlink(missing_ok=True)
    for file, data in (
        ("tables.md", tables), ("tables.csv", cells.csv()), ("pictures.csv", _pictures(records)),
    ):  # fmt: skip
        write(folder / file, data.encode())
    return tables


# ----------------------------------------------------------------------------------------- tables


class Cells:
    """Collects what stands in the tables, for the CSV."""

    def __init__(self):
        self.rows: list[list] = []

    def add(
        self, table: str, key: tuple, rows: Rows, heading: str, interval: Sequence[float],
        factor: float = 1, digits: int = 3, sign: str = "",
    ) -> str:  # fmt: skip
        """The text of a cell: a mean and its interval."""
        values = [factor * v for v in interval]
        numbers = [f"{v:.6g}" for v in values]
        self.rows.append([table, key[0], scale(rows[key][0]), heading, *numbers])
        mean, low, high = (f"{v:{sign}.{digits}f}" for v in values)
        return f"{mean} [{low}, {high}]"

    def csv(self) -> str:
        return _csv(["table", "method", "s", "column", "mean", "low", "high"], self.rows)


def _csv(heads: Sequence[str], body: Sequence[Sequence]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([heads, *body])
    return file.getvalue()


def _pictures(records: Sequence[dict]) -> str:
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


def _lines(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
        *("| " + " | ".join(cells) + " |" for cells in body),
        "",
    ]


def _have(rows: Rows, column: str) -> bool:
    return any(r.get(column) is not None for records in rows.values() for r in records)


def _columns(rows: Rows) -> list[str]:
    """Those that the records have; `right` only where a prompt asks for more than two things."""
    many = any(len(subjects(r["prompt"])) > 2 for records in rows.values() for r in records)
    return [c for c in COLUMNS if _have(rows, c) and (many or c != "right")]


def _groups(records: Sequence[dict], column: str) -> list[Sequence[float]]:
    """The values of each prompt that has them."""
    return [np.atleast_1d(r[column]) for r in records if r.get(column) is not None]


def _table(rows: Rows, out: Cells) -> list[str]:
    columns = _columns(rows)
    heads = ["method", *(COLUMNS[c][0] for c in columns)]
    heads += ["IS"] * _have(rows, "classes") + ["diversity"] * _have(rows, "diversity")
    body = []
    for key, records in rows.items():
        cells = [name(key, rows)]
        for c in [*columns, *["diversity"] * _have(rows, "diversity")]:
            heading, factor, digits = COLUMNS.get(c, (c, 1, 3))
            groups = _groups(records, c)
            cell = (
                out.add("all", key, rows, heading, bootstrap(groups), factor, digits)
                if groups
                else "-"
            )
            cells.append(cell)
        if _have(rows, "classes"):
            place = 1 + len(columns)
            cell = out.add("all", key, rows, "IS", inception_interval(records), 1, 2)
            cells.insert(place, cell)
        n = cost(records)
        out.rows.append(["all", key[0], scale(rows[key][0]), "evaluations", f"{n:g}", "", ""])
        body.append([*cells, f"{n:g}"])
    first = next(iter(rows.values()))
    seeds = first[0]["seeds"]
    notes = [
        f"{len(first)} prompts x {len(seeds)} seeds, from {seeds[0]}; 95 % intervals over prompts."
    ]
    halves = len(_groups(first, "minimum"))
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
    return [*_lines([*heads, "evaluations"], body), *notes, ""]


def _differences(rows: Rows, baseline: str, out: Cells) -> list[str]:
    columns = _columns(rows)
    body = []
    for key, records in rows.items():
        if key[0] == baseline:
            continue
        base = rows[baseline_of(key, rows, baseline)]
        cells = [name(key, rows)]
        for c in columns:
            a, b = _values(records, c), _values(base, c)
            both = bool(a.keys() & b.keys())
            difference = paired(a, b, group=lambda k: k[0]) if both else None
            table, (heading, factor, digits) = f"minus {baseline}", COLUMNS[c]
            put = difference and out.add(table, key, rows, heading, difference, factor, digits, "+")
            cells.append(put or "-")
        body.append(cells)
    if not body:
        return []
    caption = f"Differences to {baseline} at the same scale option, paired by prompt and seed:"
    return [caption, "", *_lines(["method", *(COLUMNS[c][0] for c in columns)], body)]


def _categories(rows: Rows, column: str, out: Cells) -> list[str]:
    kinds = list(dict.fromkeys(r["category"] for records in rows.values() for r in records))
    if len(kinds) < 2 or not _have(rows, column):
        return []
    heading, factor, digits = COLUMNS[column]
    body = []
    for key, records in rows.items():
        cells = [name(key, rows)]
        for kind in kinds:
            groups = _groups([r for r in records if r["category"] == kind], column)
            put = groups and out.add(kind, key, rows, heading, bootstrap(groups), factor, digits)
            cells.append(put or "-")
        body.append(cells)
    return [f"{heading}, by category:", "", *_lines(["method", *kinds], body)]


def _published(benchmark: str) -> list[str]:
    """A table of its own: other weights, other prompts of that form, and another CLIP."""
    if benchmark not in PUBLISHED:
        return []
    heading, numbers = PUBLISHED[benchmark]
    return [
        "What arXiv:2411.05473 prints for Stable Diffusion (Table 2). Its weights, prompts and "
        "CLIP are others, so it is no row of the tables above:",
        "",
        *_lines(["method", heading], list(numbers.items())),
    ]


def inception_interval(records: Sequence[dict], draws: int = 1000) -> tuple[float, float, float]:
    """The inception score of all pictures, and its 95 % interval by bootstrap over prompts.

    exp(mean of sum p log p - sum of mean p log mean p), which is `metrics.inception_score`: so the
    sums of each prompt are enough. The interval is 1.96 standard deviations of the draws each way:
    a draw repeats prompts and so has fewer classes, and its percentiles may miss the score itself.
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


def _values(records: Sequence[dict], column: str) -> dict[tuple, float]:
    return {(r["prompt"], i): v for r in records for i, v in zip(r["seeds"], r.get(column) or [])}


def times(records: Sequence[dict]) -> str:
    """Seconds for a picture of each method, which no other table depends on."""
    rows = grouped(records)
    body = [
        [name(key, rows), f"{np.median([t for r in records for t in r['seconds']]):.2f}"]
        for key, records in rows.items()
    ]
    return "\n".join(_lines(["method", "seconds for a picture, median"], body))


# ------------------------------------------------------------------------------------------ plots


def _plots(rows: Rows, folder: Path) -> list[str]:
    """Adherence against the scale, and at each method's best scale against evaluations."""
    column = "colours" if _have(rows, "colours") else "full"
    if not _have(rows, column):
        return []
    heading, factor, _ = COLUMNS[column]
    scales: dict[str, list[tuple]] = {}
    best: dict[str, tuple] = {}
    for key, records in rows.items():
        method, s = key
        interval = [factor * v for v in bootstrap(_groups(records, column))]
        if s is not None:
            scales.setdefault(method, []).append((s, *interval))
        if method not in best or interval[0] > best[method][1][1]:
            best[method] = name(key, rows), (cost(records), *interval)
    captions = []
    curves = {k: sorted(v) for k, v in scales.items() if len(v) > 1}
    if curves:
        write(folder / "scales.png", png(plot(curves, "guidance scale s", heading)))
        captions += ["`scales.png`: " + heading + " by scale."]
    if len(best) > 1:
        points = {label: [point] for label, point in best.values()}
        write(folder / "evaluations.png", png(plot(points, "evaluations per picture", heading)))
        captions += ["`evaluations.png`: each method at its best scale on these pictures."]
    return [*captions, ""] if captions else []

"""The tables of a run's records: means and categories, and the cells of every table for the CSV.

`differences.py` has the differences.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
OF_A_ROW = {"IS": ("IS", 1, 2), "diversity": ("diversity", 1, 3)}  # no picture has one
BY_CATEGORY = ("minimum", "full", "colours")
FEWEST = 10  # prompts that an interval over prompts is taken of
TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row of the tables: a method at a scale, with the records of its prompts."""

    method: str
    scale: float | None  # that was asked for
    records: list[dict]
    label: str = ""  # that a person gave it, for what is read by others

    @property
    def s(self) -> str:
        """The scale that it ran at; empty if it has none."""
        return scale(self.records[0])

    @property
    def name(self) -> str:
        return f"{self.called}, s = {self.s}" if self.s else self.called

    @property
    def called(self) -> str:
        return self.label or self.method

    @property
    def cost(self) -> float:
        """Mean network evaluations for a picture that was made."""
        made = [
            n for r in self.records for n, failed in zip(r["nfe"], r["failed"]) if failed is None
        ]
        return sum(made) / len(made) if made else float("nan")

    def has(self, column: str) -> bool:
        return any(r.get(column) is not None for r in self.records)


def scale(record: dict) -> str:
    return "" if record["s"] is None else f"{record['s']:g}"


def grouped(records: Sequence[dict], labels: Mapping[str, str] | None = None) -> list[Row]:
    """The rows of records, in their order; `labels` are names that methods are given."""
    rows: dict[tuple, list[dict]] = {}
    for record in records:
        rows.setdefault((record["method"], record["scale"]), []).append(record)
    return [Row(*key, own, (labels or {}).get(key[0], "")) for key, own in rows.items()]


def baseline_of(row: Row, rows: Sequence[Row], baseline: str) -> Row:
    """The row of the baseline at the same scale, or its first one."""
    of_baseline = [r for r in rows if r.method == baseline]
    return next((r for r in of_baseline if r.scale == row.scale), of_baseline[0])


def by_prompt(records: Sequence[dict], column: str) -> list[Sequence[float]]:
    """The values of each prompt that has them."""
    return [np.atleast_1d(r[column]) for r in records if r.get(column) is not None]


def by_picture(records: Sequence[dict], column: str) -> dict[tuple, object]:
    """The values by (prompt, seed)."""
    return {(r["prompt"], i): v for r in records for i, v in zip(r["seeds"], r.get(column) or [])}


def interval(groups: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """`bootstrap` over prompts; its ends are not a number where there are fewer than 10 prompts, or
    nothing varies, since neither says how sure the mean is."""
    mean, low, high = bootstrap(groups)
    values = [v for group in groups for v in group]
    if len(groups) < FEWEST or min(values) == max(values):
        return mean, math.nan, math.nan
    return mean, low, high


class Cells:
    """Collects what stands in the tables, for the CSV."""

    def __init__(self):
        self.rows: list[list] = []

    def mean(self, table: str, row: Row, column: str, category: str | None = None) -> str:
        """A mean over a row, or a category of it, as a cell."""
        if column == "IS":
            return self.add(table, row, column, inception_interval(row.records))
        records = [r for r in row.records if category in (None, r["category"])]
        values = by_prompt(records, column)
        return self.add(table, row, column, interval(values)) if values else "-"

    def add(
        self, table: str, row: Row, column: str, interval: Sequence[float], sign: str = "",
        p: Sequence[float] = (),
    ) -> str:  # fmt: skip
        """The text of a cell: a mean and its interval, if it has one. `p` is (p, p corrected) of a
        difference, or p alone."""
        heading, factor, digits = (COLUMNS | OF_A_ROW)[column]
        values = [factor * v for v in interval]
        numbers = ["" if math.isnan(v) else f"{v:.6g}" for v in (*values, *p)]
        self.rows.append([table, row.called, row.s, heading, *numbers, *[""] * (2 - len(p))])
        mean, low, high = (f"{v:{sign}z.{digits}f}" for v in values)
        return mean if math.isnan(values[1]) else f"{mean} [{low}, {high}]"

    def csv(self) -> str:
        heads = ["table", "method", "s", "column", "mean", "low", "high", "p", "p_holm"]
        return csv_text(heads, self.rows)


def csv_text(heads: Sequence[str], body: Sequence[Sequence]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([heads, *body])
    return file.getvalue()


def markdown(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
        *("| " + " | ".join(cells) + " |" for cells in body),
        "",
    ]


def latex(text: str) -> str:
    """The tables of a Markdown text in LaTeX, for `booktabs`: the line above a table that ends with
    a colon is its caption, and every other line a comment."""
    lines, caption = [], ""
    for block in text.strip().split("\n\n"):
        body = [line.strip("|").split(" | ") for line in block.split("\n") if line[:1] == "|"]
        if not body:
            caption = block if block.endswith(":") else ""
            lines += [] if caption else [f"% {line}" for line in block.split("\n")]
            continue
        heads, *rows = (
            [_tex(cell.strip()) for cell in line] for line in body if line[0][:3] != "---"
        )
        titled = [rf"\caption{{{_tex(caption[:-1])}.}}"] if caption else []
        lines += [
            r"\begin{table}",
            r"\centering",
            *titled,
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        ]
        lines += [r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
        lines += [" & ".join(row) + r" \\" for row in rows]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
        caption = ""
    return "% \\usepackage{booktabs}\n\n" + "\n".join(lines)


def _tex(text: str) -> str:
    text = "".join(TEX.get(c, c) for c in text)
    text = re.sub(r"(?<![\w$])-(?=\d)", "$-$", text)  # a minus and not a hyphen
    return "{}" + text if text[:1] in "[*" else text  # after \\ these would be an option of it


def pictures(records: Sequence[dict]) -> str:
    """A line for each picture: how it was made, and its numbers."""
    columns = [c for c in (*COLUMNS, "shown") if any(c in r for r in records)]
    body = []
    for r in records:
        for i, seed in enumerate(r["seeds"]):
            numbers = [r[c][i] if r.get(c) is not None else "" for c in columns]
            numbers = [int(v) if isinstance(v, bool) else v for v in numbers]
            line = [r["method"], scale(r), r["prompt"], r["category"], seed]
            line += [r["negatives"][i], f"{r['nfe'][i]:g}", r["failed"][i], *numbers]
            body.append([*line, r["images"][i]])
    heads = ["method", "s", "prompt", "category", "seed", "negative", "evaluations", "failed"]
    return csv_text([*heads, *columns, "image"], body)


def has(rows: Sequence[Row], column: str) -> bool:
    return any(row.has(column) for row in rows)


def shown(rows: Sequence[Row]) -> list[str]:
    """Those that the records have; `right` only where a prompt asks for more than two things."""
    many = any(len(subjects(r["prompt"])) > 2 for row in rows for r in row.records)
    return [c for c in COLUMNS if has(rows, c) and (many or c != "right")]


def means(rows: Sequence[Row], out: Cells) -> list[str]:
    columns = shown(rows)
    last = ["IS"] * has(rows, "classes") + ["diversity"] * has(rows, "diversity")
    body = []
    for row in rows:
        cells = {c: out.mean("all", row, c) for c in [*columns, *last[::-1]]}
        n = f"{row.cost:g}"
        out.rows.append(["all", row.called, row.s, "evaluations", n, *[""] * 4])
        body.append([row.name, *(cells[c] for c in [*columns, *last]), n])
    heads = ["method", *(COLUMNS[c][0] for c in columns), *last, "evaluations"]
    return [*markdown(heads, body), *_notes(rows), ""]


def _notes(rows: Sequence[Row]) -> list[str]:
    """How much was made, and what failed of it."""
    first = rows[0].records
    seeds, halves = first[0]["seeds"], len(by_prompt(first, "minimum"))
    notes = [
        f"{len(first)} prompts x {len(seeds)} seeds, from {seeds[0]}; 95 % intervals over prompts, "
        f"none of fewer than {FEWEST} prompts or where nothing varies."
    ]
    if 0 < halves < len(first):
        notes.append(f'min. object: the {halves} prompts with " and " or " with ".')
    for row in rows:
        counts = {
            "empty captions (phi)": sum(r["empty"] for r in row.records),
            "captions cut": sum("cut off" in note for r in row.records for note in r["notes"]),
            "pictures overflowed": sum(f is not None for r in row.records for f in r["failed"]),
        }
        notes += [f"{row.name}: {count} {what}." for what, count in counts.items() if count]
    return notes


def categories(rows: Sequence[Row], column: str, out: Cells) -> list[str]:
    kinds = list(dict.fromkeys(r["category"] for row in rows for r in row.records))
    if len(kinds) < 2 or not has(rows, column):
        return []
    body = [[row.name, *(out.mean(kind, row, column, kind) for kind in kinds)] for row in rows]
    return [f"{COLUMNS[column][0]}, by category:", "", *markdown(["method", *kinds], body)]


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
    if len(p) < FEWEST or half < 1e-9:
        half = math.nan
    return value, value - half, value + half

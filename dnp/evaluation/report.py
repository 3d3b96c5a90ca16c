"""Tables, plots and contact sheets of a finished run. They depend on its records alone.

`tables.md` is for readers; `tables.csv` holds the same cells, one on each line, and `pictures.csv`
a line for each picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dnp.app.png import png, write
from dnp.evaluation.differences import differences, of_controls
from dnp.evaluation.metrics import bootstrap
from dnp.evaluation.plots import plot
from dnp.evaluation.sheets import sheets
from dnp.evaluation.tables import (
    BY_CATEGORY,
    COLUMNS,
    Cells,
    Row,
    baseline_of,
    by_prompt,
    categories,
    grouped,
    has,
    markdown,
    means,
    pictures,
)

PICTURES = ("wins-*.png", "losses-*.png", "scales.png", "evaluations.png")


def make(
    records: Sequence[dict], folder: Path, baseline: str, published: Sequence[str] = (),
    said: str = "",
) -> str:  # fmt: skip
    """Writes tables, plots and sheets into `folder`; returns the text of `tables.md`.

    `said` is a sentence on where the scales are from; `published` lines of a table of their own.
    """
    rows, cells = grouped(records), Cells()
    text = [*means(rows, cells), *([said, ""] if said else [])]
    at = "at the scales of the table" if said else "at the same scale option"
    text += differences(rows, baseline, cells, at) + of_controls(rows, cells)
    for column in BY_CATEGORY:
        text += categories(rows, column, cells)
    text += _plots(rows, folder)
    by = "full" if has(rows, "full") else "colours"
    for row in rows:
        if row.method != baseline and has(rows, by):
            text += sheets(baseline_of(row, rows, baseline), row, by, folder)
    tables = "\n".join([*text, *published]) + "\n"
    for pattern in PICTURES:  # of a grid that was reported here before
        for path in folder.glob(pattern):
            if f"`{path.name}`" not in tables:
                path.unlink(missing_ok=True)
    for file, data in (
        ("tables.md", tables), ("tables.csv", cells.csv()), ("pictures.csv", pictures(records)),
    ):  # fmt: skip
        write(folder / file, data.encode())
    return tables


def times(records: Sequence[dict]) -> str:
    """Seconds for a picture of each method, which no other table depends on."""
    body = [
        [row.name, f"{np.median([t for r in row.records for t in r['seconds']]):.2f}"]
        for row in grouped(records)
    ]
    return "\n".join(markdown(["method", "seconds for a picture, median"], body))


def _plots(rows: Sequence[Row], folder: Path) -> list[str]:
    """Adherence against the scale, and at each method's best scale against evaluations."""
    column = "colours" if has(rows, "colours") else "full"
    if not has(rows, column):
        return []
    heading, factor, _ = COLUMNS[column]
    scales: dict[str, list[tuple]] = {}
    best: dict[str, tuple] = {}
    for row in rows:
        interval = [factor * v for v in bootstrap(by_prompt(row.records, column))]
        if row.scale is not None:
            scales.setdefault(row.method, []).append((row.scale, *interval))
        if row.method not in best or interval[0] > best[row.method][1][1]:
            best[row.method] = row.name, (row.cost, *interval)
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

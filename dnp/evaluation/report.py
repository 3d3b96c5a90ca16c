"""Tables, plots and contact sheets of a finished run. They depend on its records alone.

`tables.md` is for readers and `tables.tex` the same for a paper; `tables.csv` holds their cells,
one on each line, and `pictures.csv` a line for each picture, with its method as it was typed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dnp.app.png import png, write
from dnp.errors import SettingsError
from dnp.evaluation.differences import differences, of_controls
from dnp.evaluation.plots import Drawing, plot
from dnp.evaluation.sheets import file_name, sheets
from dnp.evaluation.tables import (
    BY_CATEGORY,
    COLUMNS,
    Cells,
    Row,
    baseline_of,
    by_prompt,
    categories,
    grouped,
    interval,
    latex,
    markdown,
    means,
    pictures,
    shown,
)

DRAWN = ("wins-*.png", "losses-*.png", "scales.*", "evaluations.*")


def labels(typed: Sequence[str], methods: Sequence[str]) -> dict[str, str]:
    """The texts of METHOD=TEXT by their methods. SettingsError for what cannot name a row."""
    found: dict[str, str] = {}
    for one in typed:
        of = max((m for m in methods if one.startswith(f"{m}=")), key=len, default=None)
        text = one[len(of) + 1 :].strip() if of is not None else ""
        if of is None or of in found:
            why = "names a method twice" if of else "is not METHOD=TEXT with a METHOD of --method"
            raise SettingsError(f"--label {one} {why}; choose of {', '.join(methods)}.")
        if not (0 < len(text) <= 60 and text.isascii() and text.isprintable() and "|" not in text):
            raise SettingsError(
                f"the label {text!r} is not possible; give 1 to 60 characters of ASCII, which the "
                "font of the figures has, and no |."
            )
        found[of] = text
    names = [file_name("", found.get(m, m)).lower() for m in methods]
    if twice := [m for m, name in zip(methods, names) if m in found and names.count(name) > 1]:
        raise SettingsError(f"--label gives {twice[0]} the name of another method; choose another.")
    return found


def require_primary(column: str | None, known: Sequence[str]) -> None:
    """SettingsError for a column that the tables do not have; `known` are theirs."""
    if column is not None and column not in known:
        raise SettingsError(
            f"--primary {column} is not a column of this run; choose of {', '.join(known)}."
        )


def make(
    records: Sequence[dict], folder: Path, baseline: str, published: Sequence[str] = (),
    said: str = "", names: Mapping[str, str] | None = None, primary: str | None = None,
) -> str:  # fmt: skip
    """Writes tables, plots and sheets into `folder`; returns the text of `tables.md`.

    `said` is a sentence on where the scales are from; `published` lines of a table of their own;
    `names` the labels of methods; `primary` the column that Holm's correction is over.
    """
    rows, cells = grouped(records, names), Cells()
    require_primary(primary, shown(rows))
    text = [*means(rows, cells), *([said, ""] if said else [])]
    at = "at the scales of the table" if said else "at the same scale option"
    text += differences(rows, baseline, cells, at, primary) + of_controls(rows, cells, primary)
    for column in BY_CATEGORY:
        text += categories(rows, column, cells)
    text += _plots(rows, folder, primary)
    by = next((c for c in (primary, "full", "colours", *shown(rows)) if c in shown(rows)), None)
    for row in rows:
        if row.method != baseline and by is not None:
            text += sheets(baseline_of(row, rows, baseline), row, by, folder)
    tables = "\n".join([*text, *published]) + "\n"
    for pattern in DRAWN:  # of a grid that was reported here before
        for path in folder.glob(pattern):
            if f"`{path.name}`" not in tables:
                path.unlink(missing_ok=True)
    for file, data in (
        ("tables.md", tables), ("tables.tex", latex(tables)), ("tables.csv", cells.csv()),
        ("pictures.csv", pictures(records)),
    ):  # fmt: skip
        write(folder / file, data.encode())
    return tables


def times(records: Sequence[dict], names: Mapping[str, str] | None = None) -> str:
    """Seconds for a picture of each method, which no other table depends on."""
    body = [
        [row.name, f"{np.median([t for r in row.records for t in r['seconds']]):.2f}"]
        for row in grouped(records, names)
    ]
    return "\n".join(markdown(["method", "seconds for a picture, median"], body))


def drawn(rows: Sequence[Row], primary: str | None) -> str | None:
    """The column of the figures: the primary one, else adherence, else the first there is."""
    known = shown(rows)
    return next((c for c in (primary, "colours", "full", *known) if c in known), None)


def _plots(rows: Sequence[Row], folder: Path, primary: str | None) -> list[str]:
    """The column of the figures against the scale, and at each method's best scale against
    evaluations."""
    if (column := drawn(rows, primary)) is None:
        return []
    heading, factor, _ = COLUMNS[column]
    scales: dict[str, list[tuple]] = {}
    best: dict[str, tuple] = {}
    for row in rows:
        values = [factor * v for v in interval(by_prompt(row.records, column))]
        if row.scale is not None:
            scales.setdefault(row.called, []).append((row.scale, *values))
        if row.method not in best or values[0] > best[row.method][1][1]:
            best[row.method] = row.name, (row.cost, *values)
    captions = []
    curves = {k: sorted(v) for k, v in scales.items() if len(v) > 1}
    if curves:
        write_drawing(folder / "scales", plot(curves, "guidance scale s", heading))
        captions += ["`scales.png`, `scales.pdf`: " + heading + " by scale."]
    if len(best) > 1:
        points = {label: [point] for label, point in best.values()}
        write_drawing(folder / "evaluations", plot(points, "evaluations per picture", heading))
        said = "each method at its best scale on these pictures."
        captions += ["`evaluations.png`, `evaluations.pdf`: " + said]
    if captions:
        captions += ["Points that would hide one another stand beside each other in the figures."]
    return [*captions, ""] if captions else []


def write_drawing(path: Path, drawing: Drawing) -> None:
    """As a PNG and as a PDF."""
    write(path.with_suffix(".png"), png(drawing.image()))
    write(path.with_suffix(".pdf"), drawing.pdf())

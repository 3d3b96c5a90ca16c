"""Sheets of wins and losses: the baseline's picture above the method's, under their prompt."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from dnp.app.png import png, write
from dnp.app.sheet import contact_sheet
from dnp.evaluation.records import RunError, picture
from dnp.evaluation.tables import COLUMNS, Row, by_picture


def sheets(before: Row, after: Row, column: str, folder: Path) -> list[str]:
    """Writes the eight greatest gains and losses of a column, prompt by prompt and seed by seed:
    the rule chooses, nobody else. Returns the lines that name them."""
    was, now = (by_picture(row.records, column) for row in (before, after))
    change = {k: now[k] - was[k] for k in was.keys() & now.keys()}
    order = sorted(change, key=lambda k: (change[k], k))
    captions = []
    for title, keys in (
        ("wins", [k for k in order[::-1] if change[k] > 0][:8]),
        ("losses", [k for k in order if change[k] < 0][:8]),
    ):
        if not keys:
            continue
        of = [{r["prompt"]: r for r in row.records} for row in (before, after)]
        pictures = [[_picture(folder, records[p], seed) for p, seed in keys] for records in of]
        columns = [f"{p}\nseed {seed}: {change[p, seed]:+.3f}" for p, seed in keys]
        what = f"{title} of {after.name} over {before.name} by {COLUMNS[column][0]}"
        labels = [f"before\n{before.name}", f"after\n{after.name}"]
        image = contact_sheet(list(zip(labels, pictures)), columns, what)
        file = file_name(title, after.name)
        write(folder / file, png(image))
        captions.append(f"`{file}`: " + "; ".join(f"{p} (seed {i})" for p, i in keys) + ".")
    return [*captions, ""] if captions else []


def file_name(title: str, method: str) -> str:
    """Of the sheet with the "wins" or "losses" of a method, as a table calls it."""
    of = re.sub(r"(?:[^\w.-]|_)+", "_", method)
    return f"{title}-{of}.png"


def _picture(folder: Path, row: dict, seed: int) -> Image.Image:
    i = row["seeds"].index(seed)
    image = picture(folder, {"image": row["images"][i], "sha256": row["sha256"][i]})
    if image is None:
        raise RunError(
            f"{folder / 'images' / row['images'][i]}: missing or damaged; type the same command to "
            "make it again."
        )
    return image

"""Sheets of wins and losses: the baseline's picture above the method's, under their prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dnp.app.png import png, write
from dnp.app.sheet import contact_sheet
from dnp.evaluation.records import RunError, picture


def sheets(
    before: Sequence[dict], after: Sequence[dict], names: tuple[str, str], column: str,
    heading: str, folder: Path,
) -> list[str]:  # fmt: skip
    """Writes the eight greatest gains and losses of a column, prompt by prompt and seed by seed:
    the rule chooses, nobody else. Returns the lines that name them."""
    values = [
        {(r["prompt"], k): v for r in rows for k, v in zip(r["seeds"], r.get(column) or [])}
        for rows in (before, after)
    ]
    change = {k: values[1][k] - values[0][k] for k in values[0].keys() & values[1].keys()}
    order = sorted(change, key=lambda k: (change[k], k))
    captions = []
    for title, keys in (
        ("wins", [k for k in order[::-1] if change[k] > 0][:8]),
        ("losses", [k for k in order if change[k] < 0][:8]),
    ):
        if not keys:
            continue
        of = [{r["prompt"]: r for r in rows} for rows in (before, after)]
        pictures = [[_picture(folder, row[p], seed) for p, seed in keys] for row in of]
        columns = [f"{p}\nseed {seed}: {change[p, seed]:+.3f}" for p, seed in keys]
        what = f"{title} of {names[1]} over {names[0]} by {heading}"
        labels = [f"before\n{names[0]}", f"after\n{names[1]}"]
        image = contact_sheet(list(zip(labels, pictures)), columns, what)
        file = file_name(title, names[1])
        write(folder / file, png(image))
        captions.append(f"`{file}`: " + "; ".join(f"{p} (seed {i})" for p, i in keys) + ".")
    return [*captions, ""] if captions else []


def file_name(title: str, method: str) -> str:
    """Of the sheet with a method's "wins" or "losses"."""
    return f"{title}-{''.join(c if c.isalnum() or c in '-.' else '_' for c in method)}.png"


def _picture(folder: Path, row: dict, seed: int) -> Image.Image:
    i = row["seeds"].index(seed)
    image = picture(folder, {"image": row["images"][i], "sha256": row["sha256"][i]})
    if image is None:
        raise RunError(
            f"{folder / 'images' / row['images'][i]}: missing or damaged; type the same command to "
            "make it again."
        )
    return image

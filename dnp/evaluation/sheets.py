"""Sheets of wins and losses: the baseline's picture above the method's, under their prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dnp.evaluation.store import RunError, picture
from dnp.pictures import png, write

LEAST = 160  # pixels of a picture's shorter side; smaller ones are enlarged by a whole factor
GAP = 8
GREY = (90, 90, 90)


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
        image = sheet([f"before\n{names[0]}", f"after\n{names[1]}"], pictures, columns, what)
        plain = "".join(c if c.isalnum() or c in "-." else "_" for c in names[1])
        write(folder / f"{title}-{plain}.png", png(image))
        captions.append(
            f"`{title}-{plain}.png`: " + "; ".join(f"{p} (seed {i})" for p, i in keys) + "."
        )
    return [*captions, ""] if captions else []


def _picture(folder: Path, row: dict, seed: int) -> Image.Image:
    i = row["seeds"].index(seed)
    image = picture(folder, {"image": row["images"][i], "sha256": row["sha256"][i]})
    if image is None:
        raise RunError(
            f"{folder / 'images' / row['images'][i]}: missing or damaged; type the same command to "
            "make it again."
        )
    return image


def sheet(
    rows: Sequence[str], pictures: Sequence[Sequence[Image.Image]], columns: Sequence[str],
    title: str,
) -> Image.Image:  # fmt: skip
    """A grid of pictures; the labels of its columns and rows are broken where they are wide."""
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=14)
    factor = max(1, -(-LEAST // min(pictures[0][0].size)))
    w, h = (factor * side for side in pictures[0][0].size)
    heads = [wrap(label, small, w) for label in columns]
    sides = [wrap(label, small, LEAST) for label in rows]
    top = 48 + 18 * max(map(len, heads))
    left = LEAST + 2 * GAP
    wide = max(left + len(columns) * (w + GAP), int(font.getlength(title)) + 2 * GAP)
    image = Image.new("RGB", (wide, top + len(rows) * (h + GAP)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((GAP, GAP), title, "black", font)
    for j, lines in enumerate(heads):
        for k, line in enumerate(lines):
            y = top - 6 - 18 * (len(lines) - k)
            draw.text((left + j * (w + GAP) + w / 2, y), line, GREY, small, anchor="ma")
    for i, (lines, row) in enumerate(zip(sides, pictures)):
        for k, line in enumerate(lines):
            y = top + i * (h + GAP) + h / 2 + 20 * (k - len(lines) / 2)
            draw.text((GAP, y), line, GREY if k else "black", small)
        for j, one in enumerate(row):
            place = left + j * (w + GAP), top + i * (h + GAP)
            image.paste(one.resize((w, h), Image.Resampling.BICUBIC), place)
    return image


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines that are no wider than `width` pixels, broken between words, a long word within."""
    lines = []
    for part in text.split("\n"):
        line = ""
        for word in part.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            while font.getlength(longer) > width and len(longer) > 1:
                n = next(
                    n
                    for n in range(len(longer), 0, -1)
                    if n == 1 or font.getlength(longer[:n]) <= width
                )
                lines.append(longer[:n])
                longer = longer[n:]
            line = longer
        lines.append(line)
    return lines

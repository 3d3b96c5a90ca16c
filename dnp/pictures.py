"""PNG files that can be made again, and contact sheets."""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from dnp.errors import PictureError

CHUNK = "dnp"  # the PNG text chunk that holds the settings as JSON


def check_folder(folder: Path) -> None:
    """Proves that files can be written in `folder`, or it be made; leaves nothing behind.

    PictureError if not, so that nobody waits for a picture that cannot be kept.
    """
    try:
        nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as e:
        raise PictureError(
            f"{folder}: no picture can be written there ({e.strerror}); give --out another folder."
        ) from None


def save(picture: Image.Image, folder: Path, name: str, settings: dict) -> Path:
    """Writes folder/name.png with its settings in a text chunk, whole or not at all.

    A picture of other settings under that name is kept: the new one is name-2.png, and so on.
    """
    path, n = folder / f"{name}.png", 1
    while path.exists() and _settings_or_none(path) != settings:
        n += 1
        path = folder / f"{name}-{n}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(path, png(picture, settings))
    except OSError as e:
        raise PictureError(f"{path}: cannot be written ({e}); give --out another folder.") from None
    return path


def png(picture: Image.Image, settings: dict | None = None) -> bytes:
    """A PNG file, with `settings` in its text chunk if there are any."""
    chunk, file = PngImagePlugin.PngInfo(), io.BytesIO()
    if settings is not None:
        chunk.add_text(CHUNK, json.dumps(settings))
    picture.save(file, format="PNG", pnginfo=chunk)
    return file.getvalue()


def write(path: Path, data: bytes) -> None:
    """A file whole or not at all; the temporary name is unique, also in a shared folder."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_settings(path: Path) -> dict:
    """The settings in a PNG that `save` wrote; PictureError if it has none."""
    try:
        with Image.open(path) as picture:
            text = getattr(picture, "text", {}).get(CHUNK)
        settings = json.loads(text) if text is not None else None
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file; give --from a PNG made here.") from None
    except (OSError, ValueError, SyntaxError, RecursionError, Image.DecompressionBombError) as e:
        raise PictureError(
            f"{path}: not a readable PNG ({e}); give --from a PNG made here."
        ) from None
    if not isinstance(settings, dict):
        raise PictureError(
            f"{path} holds no settings of dnp (an edited or converted picture loses "
            "them); give --from the PNG as it was written here."
        )
    return settings


def _settings_or_none(path: Path) -> dict | None:
    try:
        return read_settings(path)
    except PictureError:
        return None


def slug(text: str, length: int = 40) -> str:
    """A file name's worth of a prompt: lower case, words joined by hyphens."""
    return re.sub(r"[\W_]+", "-", text.lower())[:length].strip("-") or "empty"


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str], title: str
) -> Image.Image:
    """A labelled grid: one row per (label, pictures), one label per column.

    Pictures smaller than 160 pixels are enlarged by a whole factor, so that they can be judged.
    """
    width, height = rows[0][1][0].size
    factor = max(1, -(-160 // max(width, height)))
    cell_w, cell_h, gap = width * factor, height * factor, 8
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=14)
    labels = [label.split("\n") for label, _ in rows]
    widths = [max([font.getlength(name), *map(small.getlength, rest)]) for name, *rest in labels]
    left = 3 * gap + int(max(widths))
    top = 64
    title = title if len(title) <= 120 else title[:119] + "…"
    wide = max(left + len(columns) * (cell_w + gap), int(font.getlength(title)) + 2 * gap)
    sheet = Image.new("RGB", (wide, top + len(rows) * (cell_h + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, fill="black", font=font)
    for j, label in enumerate(columns):
        x = left + j * (cell_w + gap) + cell_w / 2
        draw.text((x, top - 20), label, fill=(90, 90, 90), font=small, anchor="ma")
    for i, (_, pictures) in enumerate(rows):
        y = top + i * (cell_h + gap)
        for k, line in enumerate(labels[i]):
            place = (gap, y + cell_h / 2 + 22 * (k - len(labels[i]) / 2))
            draw.text(
                place, line, fill="black" if k == 0 else (90, 90, 90), font=small if k else font
            )
        for j, picture in enumerate(pictures):
            enlarged = picture.resize((cell_w, cell_h), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (left + j * (cell_w + gap), y))
    return sheet

"""PNG files that can be made again from their settings."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import struct
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from PIL import Image, PngImagePlugin

from dnp.errors import PictureError, is_finite
from dnp.methods import METHODS
from dnp.methods.method import formula
from dnp.sd.files.data_only import open_regular

CHUNK = "dnp"  # the PNG text chunk that holds the settings as JSON
PARAMETERS = "parameters"  # the one that other interfaces write and read
MOST_CHUNKS = 10**5  # 13,000 x 13,700 pixels that cannot be compressed take 70,000 of libpng's


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

    Anything else under that name is kept, also what another process puts there at the same moment:
    the new picture is name-2.png, and so on. One of the same settings is replaced.
    """
    data, recorded = png(picture, settings), json.loads(json.dumps(settings))
    for n in itertools.count(1):
        path = folder / (f"{name}.png" if n == 1 else f"{name}-{n}.png")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if write_new(path, data):
                return path
            if _settings_or_none(path) == recorded:
                write(path, data)
                return path
        except OSError as e:
            message = f"{path}: cannot be written ({e}); give --out another folder."
            raise PictureError(message) from None


def is_there(folder: Path, name: str, settings: dict) -> bool:
    """Whether `save` wrote a picture with these settings there; a negative None is any words."""
    settings = json.loads(json.dumps(settings))
    for n in itertools.count(1):
        path = folder / (f"{name}.png" if n == 1 else f"{name}-{n}.png")
        if not path.exists():
            return False
        held = _settings_or_none(path)
        if held and settings["negative"] is None:
            held["negative"] = None
        if held == settings:
            return True


def png(picture: Image.Image, settings: dict | None = None) -> bytes:
    """A PNG file, with `settings` in its text chunk if there are any."""
    chunk, file = PngImagePlugin.PngInfo(), io.BytesIO()
    if settings is not None:
        chunk.add_text(CHUNK, json.dumps(settings))
        if text := parameters(settings, picture.size):
            chunk.add_text(PARAMETERS, text)
    picture.save(file, format="PNG", pnginfo=chunk)
    return file.getvalue()


def parameters(settings: dict, size: tuple[int, int]) -> str | None:
    """What other interfaces read in a PNG: a prompt, its negative, and a line of settings.

    They compute n + w (p - n), w their CFG scale, so DNS is there an empty prompt with negative p
    and w = s + 1 (Eq. 19); what has no such form gets a `Rule` of its own behind. None for a sheet
    of several methods, or without the settings of a picture.
    """
    row = METHODS.get(settings.get("method"))
    if row is None or settings.get("compare") or not isinstance(settings.get("prompt"), str):
        return None
    p, n, w = settings["prompt"], settings.get("negative"), settings.get("s")
    if not (w is None or is_finite(w)):
        return None
    if row.name == "dns":
        p, n, w = "", p, None if w is None else w + 1
    sampler = {"ddim": "DDIM", "dpmpp2m": "DPM++ 2M"}.get(settings.get("sampler", "ddim"))
    entries = {
        "Steps": settings.get("steps"), "Sampler": sampler,
        "CFG scale": None if w is None else f"{w:g}", "Seed": settings.get("seed"),
        "Size": "{}x{}".format(*size), "Rule": settings.get("rule"),
    }  # fmt: skip
    if row.name not in ("cfg", "np2", "dns"):
        two = row.h_of_s == 1 and settings.get("negative_scale") is not None  # else it has its h
        own = "phi + s (p - phi) - h (n - phi)" if two else formula(row)[0]
        entries["Rule"] = entries["Rule"] or own
    line = ", ".join(f"{k}: {_quoted(v)}" for k, v in entries.items() if v is not None)
    text = "\n".join([p, *([f"Negative prompt: {n}"] if n else []), line])
    return text.encode("utf-8", "replace").decode("utf-8")


def _quoted(value: object) -> str:
    """A value of that line; one with a comma, a colon or a quote stands in quotes, as JSON."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:"\n') else text


def write(path: Path, data: bytes) -> None:
    """A file whole or not at all, in place of what stands under its name."""
    with _whole(path, data) as temporary:
        os.replace(temporary, path)


def write_new(path: Path, data: bytes) -> bool:
    """A file whole or not at all; False, and nothing is changed, if the name is taken.

    An empty file takes the name first, and then the whole one its place; only a process that is
    killed in between leaves the empty one.
    """
    with _whole(path, data) as temporary:
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink()
            raise
    return True


@contextmanager
def _whole(path: Path, data: bytes) -> Iterator[Path]:
    """`data` on the disk under a name of its own beside `path`, unique also in a shared folder."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_settings(path: Path, of_others: Callable[[str], dict | None] | None = None) -> dict:
    """The settings in a PNG that `save` wrote; PictureError if it has none. No pixel is decoded.

    `of_others` reads the `parameters` text of a picture that another interface wrote.
    """
    try:
        with open_regular(path) as file:
            texts = _texts(file)
        settings = json.loads(texts[CHUNK]) if CHUNK in texts else None
        if of_others and CHUNK not in texts and PARAMETERS in texts:
            settings = of_others(texts[PARAMETERS])
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file; give --from a PNG made here.") from None
    except (OSError, SyntaxError, ValueError, RecursionError) as e:
        raise PictureError(
            f"{path}: not a readable PNG ({str(e)[:200]}); give --from a PNG made here."
        ) from None
    if not isinstance(settings, dict):
        raise PictureError(
            f"{path} holds no settings of dnp (an edited or converted picture loses "
            "them); give --from the PNG as it was written here."
        )
    return settings


def _texts(file: BinaryIO) -> dict[str, str]:
    """A PNG's last text chunks of dnp and `parameters`, as Pillow reads them, without the others.

    Programs that pass a picture on may pack the text, and put it behind the pixels. What is wrong
    with a PNG is a SyntaxError in Pillow.
    """
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        raise ValueError("its first bytes are another format's")
    png, keys = PngImagePlugin.PngStream(file), [f"{k}\0".encode() for k in (CHUNK, PARAMETERS)]
    for _ in range(MOST_CHUNKS):
        try:
            kind, start, length = png.read()
        except struct.error:
            raise ValueError("it is cut off") from None
        if kind == b"IEND":
            return {k: str(v) for k, v in png.im_text.items()}
        is_text = kind in (b"tEXt", b"zTXt", b"iTXt") and length <= PngImagePlugin.MAX_TEXT_CHUNK
        if is_text and file.read(max(map(len, keys))).startswith(tuple(keys)):
            file.seek(start)
            png.crc(kind, png.call(kind, start, length))
        else:
            file.seek(start + length + 4)
    raise ValueError(f"it has more than {MOST_CHUNKS} chunks")


def _settings_or_none(path: Path) -> dict | None:
    try:
        return read_settings(path)
    except PictureError:
        return None


def slug(text: str, length: int = 40) -> str:
    """A file name's worth of a prompt: lower case, words joined by hyphens."""
    return re.sub(r"[\W_]+", "-", text.lower())[:length].strip("-") or "empty"

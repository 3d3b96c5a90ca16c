"""Records on a disk: a file each, named by its key, whole or not at all, with its own digest.

A run may be killed at any moment: what stands under a name is whole. What was changed, cut, or
replaced by something else is not there, and is made again.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

from dnp.app.png import write
from dnp.errors import DnpError, is_finite, reason
from dnp.evaluation import record_keys

IMAGE = re.compile(r"[0-9a-f]{32}\.png")  # the name of a picture: its record's key
CIRCUMSTANCES = ("code", "weights", "device", "dtype")  # of run.json and of every record


class RunError(DnpError):
    """An evaluation folder cannot be used, or cannot be written any more."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what a disk says, full or read-only, into a RunError."""
    try:
        yield
    except OSError as e:
        raise RunError(
            f"{folder}: cannot be read or written ({e.strerror or e}); make room or give --out "
            "another folder, and type the same command to go on."
        ) from None


def sweep(folder: Path) -> None:
    """Removes what killed processes left: temporary files that nobody wrote to for an hour, since
    another process may be at work in the same folder."""
    for path in folder.glob("*/.*.partial"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()


class Store:
    """A folder of records: dicts by key."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, key: str) -> bool:
        """Whether something stands there, be it whole or not."""
        return self._path(key).exists()

    def get(self, key: str) -> dict | None:
        """The record as it was put there; None if it is not, or not as it was."""
        path = self._path(key)
        if not path.is_file():  # nothing, or a pipe, which would keep us waiting for ever
            return None
        try:
            record = json.loads(path.read_bytes())
            whole = record.pop("digest") == record_keys.key({"key": key, **record})
        except (ValueError, RecursionError, OverflowError, AttributeError, TypeError, KeyError):
            return None
        return record if whole else None

    def put(self, key: str, record: dict) -> None:
        sealed = {**record, "digest": record_keys.key({"key": key, **record})}
        write(self._path(key), (json.dumps(sealed, indent=1) + "\n").encode())

    def all(self) -> Iterator[dict]:
        """Every whole record, in the order of the keys."""
        for path in sorted(self.folder.glob("*.json")):
            record = self.get(path.stem)
            if record is not None:
                yield record

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def is_picture(record: dict) -> bool:
    """Whether a record is one of a picture, with all that its readers ask for."""
    content = record.get("content")
    return (
        isinstance(content, dict)
        and {"method", "settings", "prompt", "seed"} <= content.keys()
        and isinstance(content["prompt"], str)
        and type(content["seed"]) is int
        and {"failed", "negative", "nfe", "notes", "seconds", "words_nfe"} <= record.keys()
        and IMAGE.fullmatch(str(record.get("image"))) is not None
        and isinstance(record.get("sha256"), str)
    )


def picture(folder: Path, record: dict) -> Image.Image | None:
    """The picture of a record; None if it is not there as it was made."""
    path = folder / "images" / record["image"]
    data = path.read_bytes() if path.is_file() else b""
    if record_keys.digest(data) != record["sha256"]:
        return None
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError):  # it was never one
        return None


def read_run(run: Path) -> dict:
    """run.json of a folder of experiments; RunError if it is none, or one that is not finished."""
    path = run / "run.json"
    try:
        manifest = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError) as e:
        raise RunError(
            f"{path}: cannot be read ({reason(e)}); type its run's command again."
        ) from None
    wanted = ("prompts", "methods", "seeds", *CIRCUMSTANCES)
    if not isinstance(manifest, dict) or not all(k in manifest for k in wanted):
        raise RunError(
            f"{run} holds no finished experiment; make one with python -m dnp.evaluation "
            f"--out {run}."
        )
    if not _is_whole(manifest):
        raise RunError(f"{path} is damaged; type its run's command again to write a new one.")
    if not (run / "records").is_dir():
        raise RunError(
            f"{run} has no records; make them with python -m dnp.evaluation --out {run}."
        )
    return manifest


def _is_whole(manifest: dict) -> bool:
    """Whether prompts, seeds and methods are as a run writes them."""
    try:
        texts = [text for text, _ in manifest["prompts"]]
        methods = manifest["methods"].values()
        scales = [s["s"] for made in methods for s in made]
        record_keys.key([manifest["methods"], manifest.get("captioner")])  # JSON's own
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return False
    seeds = manifest["seeds"]
    return (
        all(isinstance(text, str) for text in texts)
        and all(methods)
        and all(s is None or is_finite(s) for s in scales)
        and isinstance(seeds, list)
        and all(type(seed) is int for seed in seeds)
    )

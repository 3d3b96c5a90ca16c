"""A name for weights that depends on every byte of their files and on what is read beside them.

A file is hashed by all cores when its name is first asked for, 0.6 s of one core's time for a GB.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from dnp.errors import WeightsError
from dnp.sd.files.data_only import open_regular

PIECE = 16 << 20  # bytes that one thread hashes at a time
READ_BESIDE = (".json", ".txt", ".model", ".jinja")  # what transformers reads beside tensors


class Fingerprint:
    """The name of the weights in `paths`, opened now, with `settings`, anything that JSON can hold.

    The files are those that were opened here, even if others lie there under their names when they
    are hashed. WeightsError if one cannot be opened, or was written to since.
    """

    def __init__(self, paths: Sequence[Path], settings: object = None):
        self.files, self.settings = [_Opened(path) for path in paths], settings

    @cached_property
    def whole(self) -> str:
        """ "all-" and 32 hexadecimal digits: 128 bits of a sha256 of all bytes and settings."""
        text = json.dumps([[f.digest() for f in self.files], self.settings], sort_keys=True)
        return "all-" + hashlib.sha256(text.encode()).hexdigest()[:32]

    def __reduce__(self):  # a copy, in another process too, is named and has no files open
        return _named, (self.whole,)


def _named(whole: str) -> Fingerprint:
    copy = Fingerprint([])
    copy.whole = whole
    return copy


def of_folder(folder: Path) -> Fingerprint:
    """Of a folder as transformers saves it: its tensors, configs and tokenizer."""
    return Fingerprint(sorted(folder.glob("*.safetensors")), small_files(folder))


def small_files(folder: Path) -> dict[str, str]:
    """sha256 of each file of configs and tokenizers in a folder, by its name."""
    files = (p for p in sorted(folder.glob("*")) if p.suffix in READ_BESIDE and p.is_file())
    try:
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    except OSError as e:
        raise WeightsError(f"{folder}: cannot be read ({e}); fix that.") from None


class _Opened:
    """A file, mapped into memory and so kept, with what identified it when it was opened."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with open_regular(path) as f:
                self.state = file_state(f.fileno())
                self.data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:  # ValueError: it is empty
            raise WeightsError(f"{path}: cannot be read ({e}); fix that.") from None

    def digest(self) -> str:
        """Of all bytes."""
        self._require_unchanged()
        with memoryview(self.data) as view, ThreadPoolExecutor(os.cpu_count() or 1) as pool:

            def piece(start: int) -> bytes:
                digest = hashlib.sha256(view[start : start + PIECE]).digest()
                if hasattr(mmap, "MADV_DONTNEED"):  # else the weights are resident twice
                    self.data.madvise(mmap.MADV_DONTNEED, start, PIECE)
                return digest

            pieces = b"".join(pool.map(piece, range(0, len(view), PIECE)))
        self._require_unchanged()
        return hashlib.sha256(str(len(self.data)).encode() + pieces).hexdigest()

    def _require_unchanged(self) -> None:
        """WeightsError if the path leads to this file with another content; one that was deleted
        is kept by the mapping."""
        with suppress(OSError):
            now = file_state(self.path)
            if now[:2] == self.state[:2] and now[2:4] != self.state[2:4]:
                raise WeightsError(
                    f"{self.path} was written to after it was opened, so that it is not known "
                    "which weights are used; load them again."
                )


def file_state(file: Path | int) -> tuple[int, ...]:
    """What identifies a file, by its path or its descriptor, and is other once it is changed."""
    stat = os.stat(file)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

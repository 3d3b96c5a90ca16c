"""A name for weights that depends on every byte of their files and on what is read beside them.

A file is hashed when its name is first asked for, by all cores, and its digest is kept in
$XDG_CACHE_HOME/dnp/digests (~/.cache/dnp/digests), one small file each, under what identifies the
file: device, inode, size, time of its last change and of its inode's. A file of which any of these
is other is hashed anew. (A program that keeps a file mapped and writes to it again in the same
moment changes none of them: the file's times do not tell.) Where the folder cannot be written,
every process hashes for itself.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from dnp.errors import WeightsError
from dnp.sd.files.data_only import open_regular

PIECE = 16 << 20  # bytes that one thread hashes at a time
# A file changed this short before it was hashed may change again with the same time: FAT counts in
# 2 s, and nothing in use is coarser.
RACY = 2_000_000_000  # ns
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
        raise WeightsError(f"{folder}: cannot be read ({e}); mend that.") from None


class _Opened:
    """A file, mapped into memory and so kept, with what identified it when it was opened."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with open_regular(path) as f:
                self.state = file_state(f.fileno())
                self.data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:  # ValueError: it is empty
            raise WeightsError(f"{path}: cannot be read ({e}); mend that.") from None

    def digest(self) -> str:
        """Of all bytes, from the cache if it has them."""
        began = time.time_ns()
        self._require_unchanged()
        if (digest := _cached(self.state)) is not None:
            return digest
        with memoryview(self.data) as view, ThreadPoolExecutor(os.cpu_count() or 1) as pool:

            def piece(start: int) -> bytes:
                return hashlib.sha256(view[start : start + PIECE]).digest()

            pieces = b"".join(pool.map(piece, range(0, len(view), PIECE)))
        digest = hashlib.sha256(str(len(self.data)).encode() + pieces).hexdigest()
        still = self._require_unchanged()
        if still and max(self.state[3:]) < began - RACY:
            _keep(self.state, digest)
        return digest

    def _require_unchanged(self) -> bool:
        """Whether the path still leads to the file; WeightsError if it does to another content."""
        try:
            now = file_state(self.path)
        except OSError:
            return False  # deleted: the mapping keeps it
        if now[:2] == self.state[:2] and now[2:4] != self.state[2:4]:
            raise WeightsError(
                f"{self.path} was written to after it was opened, so that it is not known which "
                "weights are used; load them again."
            )
        return now == self.state


def file_state(file: Path | int) -> tuple[int, ...]:
    """What identifies a file, by its path or its descriptor, and is other once it is changed."""
    stat = os.stat(file)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


# --------------------------------------------------------------------------------------- the cache


def _entry(state: tuple[int, ...]) -> Path | None:
    """Where the digest of a file is kept; None where there is no folder for it."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one counts for nothing
    try:
        folder = named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder / "dnp" / "digests" / hashlib.sha256(repr(state).encode()).hexdigest()


def _line(state: tuple[int, ...], digest: str) -> bytes:
    """A digest with a check of its own, so that a damaged one is not taken for another file's."""
    return f"{digest} {hashlib.sha256(f'{state} {digest}'.encode()).hexdigest()}\n".encode()


def _cached(state: tuple[int, ...]) -> str | None:
    path = _entry(state)
    try:
        if path is None or not path.is_file():  # a pipe may never end
            return None
        with path.open("rb") as f:
            line = f.read(200)
        digest = line[:64].decode("ascii")
    except (OSError, ValueError):
        return None
    return digest if line == _line(state, digest) else None


def _keep(state: tuple[int, ...], digest: str) -> None:
    """Writes whole or not at all; where it cannot, the file is hashed again next time."""
    path, temporary = _entry(state), None
    if path is None:
        return
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            number, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
            with os.fdopen(number, "wb") as f:
                f.write(_line(state, digest))
            os.replace(temporary, path)
        except OSError:
            if temporary:
                os.unlink(temporary)

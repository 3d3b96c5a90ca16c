"""The package's own errors: one sentence each, with the cause and the fix.

A sentence names a setting as Python does, marked `name=VALUE`; on the command line it is --name
VALUE. The command line prints the sentence without a traceback and exits with code 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

SETTING = re.compile(r"`(\w+)=([^`]*)`")


class DnpError(Exception):
    """Something the user gave cannot be used; the message says what and how to fix it."""

    def __str__(self) -> str:
        return SETTING.sub(r"\1=\2", super().__str__())

    @property
    def typed(self) -> str:
        """The sentence for the command line: `negative=TEXT` as --negative TEXT."""
        flag = lambda m: f"--{m[1].replace('_', '-')} {m[2]}".rstrip()  # noqa: E731
        return SETTING.sub(flag, super().__str__())


class WeightsError(DnpError):
    """A weights folder or one of its files is missing, damaged, or of an unsupported kind."""


class SettingsError(DnpError):
    """A setting (method, scale, steps, device, ...) is outside what is possible."""


class PictureError(DnpError):
    """A picture or an output folder cannot be read or written."""


class NonFiniteError(DnpError):
    """A network returned NaN or infinity; the message names the step."""


def reason(e: BaseException) -> str:
    """What an error of other code says: its kind, and the start of its first line."""
    try:
        text = str(e).strip().split("\n")[0][:200]
    except Exception:  # its own __str__ is wrong
        text = ""
    return f"{type(e).__name__}: {text}" if text else type(e).__name__


def memory_is_full(e: BaseException) -> bool:
    """Whether an error says so; a CPU and MPS have none of their own for it."""
    full = "out of memory", "allocate memory", "not enough memory"
    said = isinstance(e, RuntimeError) and any(words in str(e) for words in full)
    return said or isinstance(e, MemoryError)


def meant(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a sentence about a misspelt name: the nearest known one, or all of them, or what
    is said `otherwise`."""
    known = list(known)
    near = get_close_matches(word, known, n=1, cutoff=0.65)
    return f"did you mean {near[0]}?" if near else otherwise or f"choose {', '.join(known)}."


def is_finite(x: object) -> bool:
    """Whether something is a number that can be computed with: no text, no bool, not infinite."""
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e30

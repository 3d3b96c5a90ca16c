"""What the commands share: one sentence and exit code 2 for bad input, streams that never end one.

`python -m dnp.<name>` and the script beside the package call `run`, or `streams` and `ask`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TextIO

from dnp.errors import DnpError, SettingsError, meant
from dnp.methods.other_names import said_of


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are SettingsErrors; `prog` is the command as it is typed.

    Options are written in full: half of one is a mistake, and a command may run for hours.
    """

    def __init__(self, **options: object):
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"allow_abbrev": False, "formatter_class": style} | options)

    def error(self, message: str) -> None:
        _, unknown, words = message.partition("unrecognized arguments: ")
        if unknown and not words.startswith("-"):
            raise SettingsError(
                f'more than one prompt ({words}); put the prompt in quotes, such as "a red car".'
            )
        if unknown:
            word = words.split()[0].split("=")[0].lstrip("-")
            options = [name.lstrip("-") for name in self._option_string_actions]
            near = said_of(word) or meant(word, options, "-").replace("mean ", "mean --")
            if near != "-":
                raise SettingsError(f"{message}; {near}")
        raise SettingsError(f"{message}; {self.prog} --help lists what is possible.")


def fail(sentence: str) -> None:
    """One sentence on standard error, and exit code 2."""
    print(f"error: {printable(sentence)}", file=sys.stderr)
    sys.exit(2)


def run(main: Callable[[], None], interrupted: str) -> None:
    """Calls `main`; a DnpError is printed, exit code 2, and Ctrl-C prints `interrupted`, 130."""
    streams()
    try:
        main()
    except DnpError as e:
        fail(e.typed)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)


def printable(text: object) -> str:
    """One line of a text that may hold what a stranger's file says: control characters, which a
    terminal obeys, are written as escapes (\\x1b)."""
    marks = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return "".join(marks)


def streams() -> None:
    """Makes this process's standard streams such that no line that is printed ends a command.

    What a command prints tells of its work and is not the work, so pictures go on being saved.
    Characters that the encoding lacks are written as escapes (\\xe9). A closed stream takes
    everything and shows nothing. If the reader of a pipe goes, as `head -1` does, the rest is not
    shown; if lines are lost for another reason, such as a full disk, standard error says so once.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before Python started: its number would be reused
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, _Lines):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
        setattr(sys, name, _Lines(stream))


class _Lines:
    """A text stream that goes on after an OSError, showing nothing; the rest is the stream's."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as e:
            self._end(e)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as e:
            self._end(e)

    def _end(self, e: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # what is still in its buffer goes there at the end
        os.close(nowhere)
        if not isinstance(e, BrokenPipeError):
            note = f"note: lines are lost ({e.strerror}); the work itself goes on."
            print(note, file=sys.stderr)


def ask(question: str, fix: str) -> str:
    """A line from standard input, stripped; SettingsError with the fix if it cannot come.

    EOFError at its end; RuntimeError and ValueError are Python's for a closed one, OSError the
    system's, and bytes of another encoding are a ValueError too.
    """
    try:
        return input(question).strip()
    except (EOFError, OSError, RuntimeError, ValueError) as e:
        reason = "standard input ended" if isinstance(e, EOFError) else str(e)
        raise SettingsError(f"no words came ({reason}); {fix}.") from None

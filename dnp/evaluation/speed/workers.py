"""Processes that answer questions: settings of one, and what it runs out of, are not another's."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable
from multiprocessing import get_context

from dnp.errors import DnpError, SettingsError, memory_is_full


def answer(name: str, build: Callable, given: tuple, line) -> None:
    """A worker's process: to each question on the line, the answer of `build(*given)` or the error
    that it met, as a sentence."""
    warnings.simplefilter("ignore")  # few steps start low; diffusers renames torch_dtype
    ask: Callable | None = None
    while True:
        try:
            what, *details = line.recv()
        except EOFError:  # no more questions
            return
        try:
            ask = ask or build(*given)
            line.send(ask(what, *details))
        except DnpError as e:
            line.send(e)
        except Exception as e:  # another library's, or no memory
            if memory_is_full(e):
                line.send(Full(f"the memory is full in {name}'s {what}; choose a smaller --batch."))
                continue
            reason = str(e).strip().split("\n")[0][:300] or type(e).__name__
            line.send(
                SettingsError(
                    f"{name} cannot do {what} with these settings ({reason}); change them."
                )
            )


class Full(SettingsError):
    """There was not enough memory for what was asked."""


class Worker:
    """One of them; `build(*given)`, called in the process, is what answers there."""

    def __init__(self, name: str, build: Callable, *given: object):
        context = get_context("spawn")
        self.name, (self.line, other) = name, context.Pipe()
        self.process = context.Process(target=answer, args=(name, build, given, other))
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks: inherited
        self.process.start()
        signal.signal(signal.SIGINT, before)
        other.close()

    def send(self, what: str, *details: object) -> None:
        """Asks and does not wait: `hear` does."""
        self.what = what
        try:
            self.line.send((what, *details))
        except OSError:
            self._ended()

    def hear(self, seconds: float | None = None) -> object:
        """The answer. SettingsError if it does not come within `seconds`; the process is ended."""
        try:
            if not self.line.poll(seconds):
                self.process.kill()
                raise SettingsError(
                    f"{self.name}'s {self.what} was stopped after {seconds:.0f} s, at the end of "
                    "the budget; give a greater --budget."
                )
            answer = self.line.recv()
        except (EOFError, OSError):
            self._ended()
        if isinstance(answer, DnpError):
            raise answer
        return answer

    def __call__(self, what: str, *details: object) -> object:
        self.send(what, *details)
        return self.hear()

    def _ended(self) -> None:
        self.process.join()
        raise SettingsError(
            f"{self.name} ended with {self.process.exitcode} while its {self.what} was measured; "
            "what it printed above says why."
        ) from None

    def __enter__(self):
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.line.close()
        if error:
            self.process.terminate()
        self.process.join()

"""What the commands `python -m dnp.<name>` share: one sentence and exit code 2 for bad input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from dnp.errors import DnpError, SettingsError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are SettingsErrors; `prog` is the command as it is typed."""

    def error(self, message: str) -> None:
        raise SettingsError(f"{message}; {self.prog} --help lists what is possible.")


def run(main: Callable[[], None], interrupted: str) -> None:
    """Calls `main`; a DnpError is printed, exit code 2, and Ctrl-C prints `interrupted`, 130."""
    try:
        main()
    except DnpError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)

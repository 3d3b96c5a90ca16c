"""The harness of every mutant: a public function is replaced, and an identity must fail.

A mutant is an easy wrong version of an equation. If no identity test notices it, the tests would
not notice that mistake in the code either. The tables stand in `test_mutants.py` (the equations)
and `test_answer.py` (ANSWER).
"""

from collections.abc import Callable, Iterable

import pytest


def passes(identity: Callable[[], None]) -> bool:
    """Whether an identity test passes; an error other than a failed assertion notices nothing."""
    try:
        identity()
    except (AssertionError, pytest.fail.Exception):
        return False
    except Exception:
        return True
    return True


def assert_noticed(
    owners: Iterable[object], attribute: str, mutant: object, identities: Iterable[Callable],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Puts a mutant under the name `attribute` of each owner that has it; an identity must fail."""
    owners = [owner for owner in owners if hasattr(owner, attribute)]
    assert owners, f"nothing is called {attribute}"
    for owner in owners:
        monkeypatch.setattr(owner, attribute, mutant)
    assert not all(passes(f) for f in identities), f"no identity noticed this {attribute}"


def assert_all_pass(identities: Iterable[Callable]) -> None:
    """Without a mutant every identity holds, errors of any kind included."""
    for identity in identities:
        identity()

"""What makes a picture: one class for each method, from which command line, records, sheets and the
README's table are made. Listing them does not import torch, so that `--help` is instant."""

from __future__ import annotations

import dataclasses

from dnp.errors import SettingsError, meant
from dnp.methods import own
from dnp.methods.answer import Answer
from dnp.methods.attend_excite import AttendExcite, ExcitedAutoDNP
from dnp.methods.chain import Chain
from dnp.methods.cnp import CNP
from dnp.methods.fields import check, table
from dnp.methods.method import Method, require_own
from dnp.methods.neglect import Neglect
from dnp.methods.rule import read
from dnp.methods.words import CFG, DNP, DNS, AutoDNP, NegativePrompt, TwoTerm

METHODS: dict[str, type[Method]] = {
    m.name: m
    for m in (CFG, NegativePrompt, TwoTerm, DNS, DNP, AutoDNP, Answer, AttendExcite,
              ExcitedAutoDNP, Neglect, CNP)
}  # fmt: skip


def sorted_out(method, negative, given: dict) -> tuple[type[Method], dict, dict]:
    """The class of a method, the settings of the chain, and its own; None is as if not given."""
    given, of_chain = {k: v for k, v in given.items() if v is not None}, table(Chain)
    kind = chosen(method, given, negative)
    of_call = {k: v for k, v in given.items() if k in of_chain}
    of_method = {k: v for k, v in given.items() if k not in of_call}
    check(Chain, of_call)
    check(kind, of_method, owners, Chain)
    return kind, of_call, of_method


def chosen(method: str | type | None, given: dict, negative: object) -> type[Method]:
    """The method that is meant; where none is named cfg, np2 with a negative, or the rule's."""
    if method is None and given.get("rule") is not None:
        needs = read(given["rule"], given.get("rule_options")).needs
        return NegativePrompt if "eps_n" in needs else CFG
    if method is None:
        return CFG if negative is None else TwoTerm
    if own.is_file(method):
        method = own.find(method, "method")
    if isinstance(method, str):
        if method not in METHODS:
            raise SettingsError(
                f"method {method!r} is unknown; {meant(method, METHODS)} Your own is FILE.py:NAME."
            )
        return METHODS[method]
    require_own(method, METHODS, [*table(Chain), "negative"])
    return method


def owners() -> dict[str, str]:
    """Every setting of a method, and the methods that have it."""
    every: dict[str, list] = {}
    for name, kind in METHODS.items():
        for f in dataclasses.fields(kind):
            every.setdefault(f.name, []).append(name)
    return {k: " or ".join(names) for k, names in every.items()}

"""What makes a picture: one class for each method, from which command line, records, sheets and the
README's table are made. Listing them does not import torch, so that `--help` is instant."""

from __future__ import annotations

from dnp.methods.answer import Answer
from dnp.methods.attend_excite import AttendExcite, ExcitedAutoDNP
from dnp.methods.cnp import CNP
from dnp.methods.method import Method
from dnp.methods.neglect import Neglect
from dnp.methods.words import CFG, DNP, DNS, AutoDNP, NegativePrompt, TwoTerm

METHODS: dict[str, type[Method]] = {
    m.name: m
    for m in (CFG, NegativePrompt, TwoTerm, DNS, DNP, AutoDNP, Answer, AttendExcite,
              ExcitedAutoDNP, Neglect, CNP)
}  # fmt: skip

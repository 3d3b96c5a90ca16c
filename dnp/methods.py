"""The methods: one table, from which command line, sheets, experiments and the README are made.

A method is a guidance rule, and where its two prompts come from:

    positive    the prompt that a picture follows: p; for DNS the empty one, phi
    negative    where the negative comes from:
                none       the rule has no eps_n
                given      words that the user gives
                asked      words of a person for a DNS image (DNP)
                captioned  words of a captioner for a DNS image (auto-DNP)
                chain      noise of a chain of DNS steps in latent space (ANSWER)
                neglected  at each step the prompt without the subject that its attention neglects
    excites     whether z_t moves before each step, so that every subject of the prompt has a place
                in the attention to it (Attend-and-Excite)

Rules stand here by name: `dnp.rules.RULES` holds the functions. This file imports no torch, so that
`--help` is instant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One row. `formula` and `source` are what sheets, help and README call it."""

    name: str
    rule: str
    positive: str
    negative: str
    formula: str
    source: str
    excites: bool = False
    h_of_s: float = 1.0  # the scale h of n unless one is given, as a share of s
    negative_interval: tuple[float, float] | None = None  # where n acts unless it is given

    @property
    def takes_words(self) -> bool:
        """Whether a negative prompt can be given; only np and np2 cannot do without one."""
        return self.negative in ("given", "asked", "captioned")

    @property
    def makes_dns_image(self) -> bool:
        return self.negative in ("asked", "captioned")

    @property
    def has_subjects(self) -> bool:
        """Whether it reads the attention to the subjects of the prompt."""
        return self.excites or self.negative == "neglected"


METHODS = {
    m.name: m
    for m in (
        Method("cfg", "cfg", "p", "none", "phi + s (p - phi)", "Eq. 3"),
        Method("np", "negative_prompt", "p", "given", "phi + s (p - n)", "Eq. 4"),
        Method("np2", "negative_prompt_two_term", "p", "given", "n + s (p - n)", "two-term"),
        Method("dns", "dns", "phi", "none", "phi + s (phi - p)", "Eq. 19"),
        Method("dnp", "negative_prompt", "p", "asked", "phi + s (p - n*)", "your words for n*"),
        Method(
            "auto-dnp", "negative_prompt", "p", "captioned", "phi + s (p - n*)", "a captioner's n*"
        ),
        Method("answer", "negative_prompt", "p", "chain", "phi + s (p - eps_neg)", "K DNS steps"),
        Method("ae", "cfg", "p", "none", "phi + s (p - phi)", "z_t moved: arXiv:2301.13826", True),
        Method(
            "ae+auto-dnp", "negative_prompt", "p", "captioned", "phi + s (p - n*)", "ae, n*", True
        ),
        Method(
            "neglect",
            "negative_prompt",
            "p",
            "neglected",
            "phi + s (p - phi) - h (n_t - phi)",
            "n_t: p less one subject",
            h_of_s=0.5,
            negative_interval=(1.6, math.inf),
        ),
    )
}


def names(**wanted: object) -> list[str]:
    """The methods whose fields or properties are as given: `names(negative="given")`."""
    return [
        m.name
        for m in METHODS.values()
        if all(getattr(m, field) == value for field, value in wanted.items())
    ]

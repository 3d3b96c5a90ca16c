"""The neglected subject: a negative that says, at each step, what the picture still lacks.

A prompt of several things is often drawn with one of them left out ("catastrophic neglect",
Chefer et al., arXiv:2301.13826). The nearest wrong prompt is then p without that thing:

    i_t = the subject of p whose map of cross-attention has the lowest peak at z_t
    n_t = p without i_t
    eps = eps_phi + s (eps_p - eps_phi) - h (eps_n - eps_phi),   h = s / 2 unless it is given

Ours: Eq. (4) of arXiv:2411.05473 with two scales, and a negative that changes with the state. CDG
(arXiv:2603.10780) is the nearest relative: its negative is p without all of its content words. The
peak is Attend-and-Excite's, from the evaluation of eps_p that the step makes anyway: no gradient,
no captioner and no other network. Three evaluations where the negative acts, in the noisy half of
the chain, and two below, where eps_n is eps_phi and the step is CFG.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from dnp.errors import SettingsError
from dnp.methods.attend_excite import OfSubjects, peaks_of_rows, words
from dnp.methods.fields import Span, setting

if TYPE_CHECKING:
    from torch import Tensor

JOINTS = re.compile(r"(,? and |,\s*| with )", re.IGNORECASE)


class Neglect(OfSubjects):
    """phi + s (p - phi) - h (n_t - phi), n_t: p without one subject"""

    negative_interval: Span | None = setting(
        (1.6, math.inf),
        "the same for the negative; elsewhere eps_n is eps_phi; neglect: default 1.6 inf",
    )
    name, own_rule = "neglect", "negative_prompt"
    has_negative = two_scale = True
    h_of_s, cost = 0.5, "2T, and 1 a step with sigma > 1.6"

    def complete(self, call) -> None:
        super().complete(call)
        if not any(without(call.prompt, words(self.subjects))):
            warnings.warn(
                "removing the subject leaves an empty prompt, so method neglect equals CFG here",
                stacklevel=5,
            )

    def start(self) -> None:
        super().start()
        each = {(p, s): [self.encode([x]) for x in without(p, words(s))] for p, s in self.asked}
        self.lacking = [each[of] for of in self.asked]

    def evaluate(self, z_t: Tensor, t: Tensor, conditions: Sequence[object]) -> Sequence[Tensor]:
        """Where the negative acts, the maps of p's forward are read too."""
        acts = self.inside(self.interval, t) and self.inside(self.negative_interval, t)
        if not acts or all(c is not self.conditions["p"] for c in conditions):
            return super().evaluate(z_t, t, conditions)
        with self.model.attention(self.ae_level) as maps:
            noises = super().evaluate(z_t, t, conditions)
        of_each = maps.mean().chunk(len(conditions))
        (of_p,) = (m for m, c in zip(of_each, conditions) if c is self.conditions["p"])
        self.peaks = peaks_of_rows(self.peaks_of, of_p, z_t)
        return noises

    def negative(self, z_t: Tensor, t: Tensor, eps_phi: Tensor, eps_p: Tensor) -> Tensor:
        """The noise of each sample's own n_t, by one counted evaluation."""
        from dnp.methods.conditions import join

        n_t = join([own[i] for own, i in zip(self.lacking, neglected(self.peaks).tolist())])
        return self.noises(z_t, t, [n_t])[0]


def neglected(peaks: Tensor) -> Tensor:
    """The subject with the lowest peak: (B, subjects) -> (B,)."""
    return peaks.argmin(1)


def without(prompt: str, subjects: Sequence[str]) -> list[str]:
    """The prompt without the part that holds each subject; "" where it is the only part.

    Parts end at commas, "and" and "with": "a cat, a red car and a blue chair" without its car is
    "a cat and a blue chair". What a later subject is drawn with goes with it: "a cat with a bow and
    a dog with a crown" without its dog is "a cat with a bow". A subject that is named twice is left
    out where it stands next, as `places` of a model finds it. SettingsError if a subject is in no
    part, or goes over a joint.
    """
    pieces = JOINTS.split(prompt)
    parts = list(zip(["", *pieces[1::2]], pieces[::2]))  # each with the joint before it
    ends = list(accumulate(len(joint + part) for joint, part in parts))
    texts, found = [], []
    for subject in subjects:
        words = r"\s+".join(map(re.escape, subject.split()))
        named = re.finditer(rf"(?<!\w){words}(?!\w)", prompt, re.IGNORECASE)
        place = next((m for m in named if m.end() not in found), None)
        i = None if place is None else next(i for i, end in enumerate(ends) if place.end() <= end)
        if i is None or place.start() < ends[i] - len(parts[i][1]):
            raise SettingsError(
                f'the subject "{subject}" is not a part of the prompt between commas, "and" and '
                '"with"; name words of one part, as in `subjects="cat, dog"`.'
            )
        found.append(place.end())
        end = i + 1
        while i and end < len(parts) and parts[end][0].strip().lower() == "with":
            end += 1  # what it is drawn with is not given to the thing before it
        texts.append(_joined(parts[:i] + parts[end:]))
    return texts


def _joined(parts: list[tuple[str, str]]) -> str:
    """(joint, part) pairs as a text: no joint before the first, and no comma before the last."""
    joints = ["", *(joint for joint, _ in parts[1:])][: len(parts)]
    if joints and joints[-1] == ", ":
        joints[-1] = " and "
    return "".join(joint + part for joint, (_, part) in zip(joints, parts))

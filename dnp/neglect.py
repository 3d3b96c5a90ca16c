"""The neglected subject: a negative that says, at each step, what the picture still lacks.

A prompt of several things is often drawn with one of them left out ("catastrophic neglect",
Chefer et al., arXiv:2301.13826). The nearest wrong prompt is then p without that thing:

    i_t = the subject of p whose map of cross-attention has the lowest peak at z_t
    n_t = p without i_t
    eps = eps_phi + s (eps_p - eps_phi) - h (eps_n - eps_phi),   h = s / 2 unless it is given

Ours: Eq. (4) of arXiv:2411.05473 with two scales, and a negative that changes with the state. The
peak is Attend-and-Excite's, from the evaluation of eps_p that the step makes anyway: no gradient,
no captioner and no other network. Three evaluations where the negative acts, in the noisy half of
the chain, and two below, where eps_n is eps_phi and the step is CFG.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate

from torch import Tensor

from dnp.errors import SettingsError
from dnp.guided import join, together
from dnp.schedule import EpsFn

JOINTS = re.compile(r"(,? and |,\s*| with )", re.IGNORECASE)


class Neglect:
    """The negative of one batch of the prompt: every sample has its own n_t.

    `c_p` is p's condition for the batch, `lacking` that of p without each subject (of one sample),
    `peaks_of(maps, z_t)` the peak of each subject, (B, subjects), `recorder()` a recorder of the
    maps, such as `dnp.sd.attention.AttentionMaps`, and `acts(t)` whether the negative acts there.
    """

    def __init__(
        self, eps_fn: EpsFn, c_p: object, lacking: Sequence[object],
        peaks_of: Callable[[Tensor, Tensor], Tensor], recorder: Callable,
        acts: Callable[[int], bool],
    ):  # fmt: skip
        self.eps_fn, self.c_p, self.lacking = eps_fn, c_p, lacking
        self.peaks_of, self.recorder, self.acts = peaks_of, recorder, acts
        self.peaks: Tensor | None = None  # at the last evaluation of eps_p

    def evaluate(self, z_t: Tensor, t: Tensor, conditions: Sequence[object]) -> Sequence[Tensor]:
        """The noise of each condition; where the negative acts, the maps of p's are read too."""
        if not self.acts(int(t)) or not any(c is self.c_p for c in conditions):
            return together(self.eps_fn, z_t, t, conditions)
        with self.recorder() as maps:
            noises = together(self.eps_fn, z_t, t, conditions)
        of_each = maps.mean().chunk(len(conditions))
        (of_p,) = (m for m, c in zip(of_each, conditions) if c is self.c_p)
        self.peaks = self.peaks_of(of_p, z_t)
        return noises

    def negative(self, noises: Callable) -> Callable[..., Tensor]:
        """(z_t, t, eps_phi, eps_p) -> eps_n, shaped like `z_t`, by one counted evaluation."""

        def eps_n(z_t: Tensor, t: Tensor, eps_phi: Tensor, eps_p: Tensor) -> Tensor:
            i_t = neglected(self.peaks)
            n_t = join([self.lacking[i] for i in i_t.tolist()])
            return noises(z_t, t, [n_t])[0]

        return eps_n


def neglected(peaks: Tensor) -> Tensor:
    """The subject with the lowest peak: (B, subjects) -> (B,)."""
    return peaks.argmin(1)


def without(prompt: str, subjects: Sequence[str]) -> list[str]:
    """The prompt without the part that holds each subject; "" where there is no other part.

    Parts end at commas, "and" and "with": "a cat, a red car and a blue chair" without its car is
    "a cat and a blue chair". A subject that is named twice is left out where it stands next, as
    `places` of a model finds it. SettingsError if a subject is in no part, or goes over a joint.
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
                f'the subject "{subject}" is no part of the prompt between commas, "and" and '
                '"with"; name words of one part, as in --subjects "cat, dog".'
            )
        found.append(place.end())
        texts.append(_joined(parts[:i] + parts[i + 1 :]))
    return texts


def _joined(parts: list[tuple[str, str]]) -> str:
    """(joint, part) pairs as a text: no joint before the first, and no comma before the last."""
    joints = ["", *(joint for joint, _ in parts[1:])][: len(parts)]
    if joints and joints[-1] == ", ":
        joints[-1] = " and "
    return "".join(joint + part for joint, (_, part) in zip(joints, parts))

"""A method as the identities see it: a rule of the noises that its model predicts.

A method of one's own (`dnp/methods/method.py`) is a guided model, (z_t, t) -> eps. Here its model
predicts the noises that are drawn, or is a toy. The words for n that it would make, and its
`move(z_t, t)`, are not looked at: n is drawn, or the toy's prompt 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from dnp.errors import SettingsError
from dnp.methods import sorted_out
from dnp.methods.method import Method
from dnp.schedule import Schedule

PROMPTS = (None, 0, 1)  # phi, p and n of a toy
TURN = 0.5  # how much of another latent's difference is in the noise that is predicted there


class Drawn:
    """A model that predicts these noises of phi, p and n at z_t, and others at other latents."""

    def __init__(self, noises: Sequence[Tensor], z_t: Tensor, schedule: Schedule) -> None:
        self.noises, self.z_t, self.schedule = noises, z_t, schedule

    def eps(self, z: Tensor, t: Tensor, c: object = None) -> Tensor:
        if c not in PROMPTS:
            raise SettingsError(f"it asks for the noise of {c!r}, and there are phi, p and n only.")
        return self.noises[PROMPTS.index(c)] + TURN * (z - self.z_t)


class OfMethod:
    """A method with its settings filled in. SettingsError for what is not one of them."""

    remembers = True  # what it keeps between steps is its own business: three are run

    def __init__(self, kind: type[Method], settings: Mapping[str, object]) -> None:
        self.kind, of_call, self.given = sorted_out(kind, None, dict(settings))
        if of_call or {"s", "negative_scale"} & set(self.given):
            raise SettingsError("a scale and the chain are drawn; give the method's own settings.")
        self.name, self.guided = kind.name, None
        try:
            needs = self.made(1.0, 1.0).rule.needs
        except AttributeError as e:  # attention, a captioner, ...
            raise SettingsError(
                f"method {kind.name} asks a model for more than noises ({e}); an exact model has "
                "no more, so it cannot be looked at here."
            ) from e
        kept = [x for x in needs if x != "eps_n" or kind.takes_words]
        self.needs = tuple(dict.fromkeys((*kept, "z_t", "t")))

    def made(self, s: float, h: float) -> Method:
        """The method at these scales, before a chain."""
        two = {"negative_scale": h} if self.kind.two_scale else {}
        made = self.kind(**self.given, **two)
        with warnings.catch_warnings():  # about scales, which are drawn here
            warnings.simplefilter("ignore")
            made.complete(self.call())
        made.s = s
        return made

    def call(self, **of_chain: object) -> SimpleNamespace:
        """What a method reads of a call."""
        return SimpleNamespace(
            prompt=0, negative=1 if self.kind.takes_words else None, empty=None, images=1,
            eta=0.0, sampler="ddim", captioner=None, encode=lambda prompts: prompts[0],
            recommended=lambda method, fallback: fallback, **of_chain,
        )  # fmt: skip

    def begin(self, z_T: Tensor) -> OfMethod:
        self.guided = None
        return self

    def value(self, model: object, z_t: Tensor, s: float, h: float, t: int, t_next: int) -> Tensor:
        """The guided noise of the model at a level, with which a chain begins or goes on."""
        pairs = through(model.schedule, t, t_next)
        if self.guided is None:
            self.guided = self.made(s, h)
            call = self.call(model=model, pairs=pairs)
            self.guided.begin(call, [call.negative] * len(z_t), z_t)
        self.guided.model, self.guided.pairs, self.guided.t_next = model, pairs, dict(pairs)
        return self.guided(z_t, torch.tensor(t))

    def observe(self, z_t: Tensor, z_next: Tensor, t: int, t_next: int, **eps: Tensor) -> None:
        self.guided.observe(z_next, t, t_next)


def through(schedule: Schedule, t: int, t_next: int) -> list[tuple[int, int]]:
    """The pairs of a chain of 50 steps that makes the step from t to t_next."""
    steps = min(50, len(schedule.abar))
    whole = {x for pair in schedule.pairs(steps, "leading") for x in pair}
    levels = sorted({x for x in whole if not t_next < x < t} | {t, t_next}, reverse=True)
    return list(zip(levels, levels[1:]))

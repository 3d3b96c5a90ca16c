"""A guided model (z_t, t) -> eps: the conditions that a rule needs, evaluated and counted.

A sampler calls it and never sees a prompt or a rule. At each evaluation:

    outside `interval`            eps is the positive branch alone (p; for DNS phi): one evaluation
    outside `negative_interval`   eps_n is eps_phi, and costs nothing
    else                          eps = rule(the noises that its parameters name)

Intervals are (lo, hi] in the variance-exploding sigma, sqrt((1 - abar) / abar), as the literature
has them (Kynkaanniemi et al., arXiv:2404.07724); the rule's `sigma_t` is sqrt(1 - abar).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dnp.attend_excite import Excitation
from dnp.contract import NOISES, Rule
from dnp.errors import SettingsError
from dnp.schedule import EpsFn, Schedule

Span = tuple[float, float]


class Guided:
    """The guided model of one batch.

    `evaluate(z_t, t, conditions)` gives the noise of each condition; `conditions` holds those of
    phi and p, and of n where it is words. `made_negative` makes a negative of their noises:
    ANSWER's, or the one of a neglected subject (`dnp/neglect.py`).
    `excite` moves the latents of each step first (`dnp/attend_excite.py`).
    `evaluations` counts the network evaluations per sample since `reset`, and `gradients` the
    passes of each sample that `excite` made, each of which is one more evaluation and a gradient.
    """

    def __init__(
        self, evaluate: Callable, conditions: Mapping[str, object], rule: Rule, schedule: Schedule,
        pairs: Sequence[tuple[int, int]], positive: str = "p", *, s: float | None = None,
        h: float | None = None, interval: Span | None = None,
        negative_interval: Span | None = None, made_negative: Callable | None = None,
        excite: Excitation | None = None,
    ):  # fmt: skip
        self.evaluate, self.conditions, self.rule = evaluate, dict(conditions), rule
        self.schedule, self.positive = schedule, positive
        self.s, self.h, self.evaluations = s, s if h is None else h, 0
        self.interval, self.negative_interval = interval, negative_interval
        self.t_next = dict(pairs)  # of a level twice there, the last
        self.made_negative = made_negative and made_negative(noises=self.noises)
        self.excite, self.gradients = excite, []
        self.first: tuple[int, Tensor, Tensor, dict] | None = None  # a step's first evaluation

    def __call__(self, z_t: Tensor, t: Tensor) -> Tensor:
        level = int(t)
        if not self._inside(self.interval, level):
            (eps,) = self.noises(z_t, t, [self.conditions[self.positive]])
            seen = {f"eps_{self.positive}": eps}
        else:
            seen = self._seen(z_t, t, level)
            eps = self.rule(self._available(z_t, t, level) | seen)
            self._check(eps, z_t)
        if self.first is None:
            self.first = level, z_t, eps, seen
        return eps

    def _seen(self, z_t: Tensor, t: Tensor, level: int) -> dict[str, Tensor]:
        """The noises that the rule needs, by name, in one evaluation of the network."""
        needs = {name for name in NOISES if name in self.rule.needs}
        made = self.made_negative is not None and "eps_n" in needs
        silent = "eps_n" in needs and not self._inside(self.negative_interval, level)
        if made or silent:
            needs = needs - {"eps_n"} | (
                {"eps_phi", "eps_p"} if made and not silent else {"eps_phi"}
            )
        order = [name for name in NOISES if name in needs]
        conditions = [self.conditions[name.removeprefix("eps_")] for name in order]
        seen = dict(zip(order, self.noises(z_t, t, conditions)))
        if silent:
            seen["eps_n"] = seen["eps_phi"]
        elif made:
            seen["eps_n"] = self.made_negative(z_t, t, seen["eps_phi"], seen["eps_p"])
        return seen

    def _available(self, z_t: Tensor, t: Tensor, level: int) -> dict[str, object]:
        """What a rule may ask for beside noises."""
        t_next = self.t_next.get(level)
        sigma_next = None if t_next is None else (1 - self.schedule.level(t_next)).sqrt()
        return {
            "s": self.s, "h": self.h, "z_t": z_t, "t": t,
            "t_next": None if t_next is None else torch.tensor(t_next, device=z_t.device),
            "sigma_t": (1 - self.schedule.level(level)).sqrt(), "sigma_next": sigma_next,
        }  # fmt: skip

    def _check(self, eps: object, z_t: Tensor) -> None:
        shape = tuple(eps.shape) if isinstance(eps, Tensor) else type(eps).__name__
        if shape != tuple(z_t.shape):
            raise SettingsError(
                f"rule {self.rule.name} returned {shape} for latents {tuple(z_t.shape)}; return "
                "one noise of their shape."
            )

    def _inside(self, span: Span | None, level: int) -> bool:
        return inside(span, self.schedule.sigma_ve(level))

    def noises(self, z_t: Tensor, t: Tensor, conditions: Sequence[object]) -> Sequence[Tensor]:
        """The noise of each condition, counted."""
        self.evaluations += len(conditions)
        return self.evaluate(z_t, t, conditions)

    def reset(self, z_T: Tensor) -> None:
        """Before the chain of a batch."""
        self.first, self.evaluations = None, 0
        self.gradients = [0] * len(z_T)
        if self.excite is not None:
            self.excite.reset(z_T)
            self.gradients = self.excite.passes
        self.rule.reset(z_T)

    def observe(self, z_next: Tensor, t: int, t_next: int) -> tuple[Tensor, Tensor]:
        """After an outer step: a rule with a memory sees it, unless it had no part in it (outside
        `interval`). Returns the z_t that the step started from, and the guided noise there."""
        _, z_t, eps, seen = self.first
        self.first = None
        if self.rule.remembers and set(self.rule.needs) & set(NOISES) <= seen.keys():
            self.rule.observe(z_t, z_next, t, t_next, **seen)
        return z_t, eps


def inside(span: Span | None, sigma_ve: float | Tensor) -> bool:
    """Whether a noise level is in (lo, hi]; None is everywhere."""
    return span is None or bool(span[0] < sigma_ve <= span[1])


def together(
    eps_fn: EpsFn, z_t: Tensor, t: Tensor, conditions: Sequence[object]
) -> Sequence[Tensor]:
    """The noises of k conditions: in one batched forward where they are tensors (B, L, D), or
    tuples of tensors, and one after another where they are not (the integers of toys)."""
    k = len(conditions)
    if k == 1:
        return [eps_fn(z_t, t, conditions[0])]
    joined = join(conditions)
    if joined is None:
        return [eps_fn(z_t, t, c) for c in conditions]
    return eps_fn(z_t.repeat(k, *[1] * (z_t.ndim - 1)), t, joined).chunk(k)


def join(conditions: Sequence[object]) -> object:
    """Conditions one below the other, (k B, L, D) or a tuple of such; None for a toy's."""
    first = conditions[0]
    if isinstance(first, Tensor):
        return torch.cat(list(conditions))
    if isinstance(first, tuple) and all(isinstance(x, Tensor) for x in first):
        parts = [torch.cat(list(part)) for part in zip(*conditions)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return None


def guided_model(
    eps_fn: EpsFn, conditions: Sequence[Tensor], rule: Callable[..., Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """eps_fn and a rule of k noises -> a guided model (z_t, t) -> eps, in one batched forward.

    `conditions` holds one (B, L, D) for each argument of `rule`.
    """
    return lambda z_t, t: rule(*together(eps_fn, z_t, t, conditions))

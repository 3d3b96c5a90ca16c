"""ANSWER (Desai and Vasconcelos, arXiv:2508.02973) as a guided model, in our reading.

The paper's body was not at hand. Certain from its abstract and project page: ANSWER needs one
prompt and no captioner; it makes the negative with a chain of at most K DNS steps, Eq. (19) of
arXiv:2411.05473, at the iteration t, and conditions on it in latent space. Everything else is a
choice, and an argument; `python -m dnp.evaluation` compares them. Here is the default reading:

    eps_neg = the DNS noise of the last of K_t inner steps, with eps_phi's mean and deviation
    eps     = eps_phi + s * (eps_p - eps_neg)

`dnp/readings.py` has the others, and `K_t = 0` is CFG, Eq. (3), bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dnp.guidance import dns
from dnp.readings import FORMS, NORMALIZE, READINGS, check, match, needs_a_level
from dnp.sampling import ddim_step
from dnp.schedule import EpsFn, Schedule, step_at

TENSORS = tuple(READINGS)
__all__ = ["FORMS", "NORMALIZE", "TENSORS", "LatentNegative", "answer", "dns_chain"]


def answer(
    eps_fn: EpsFn, c_phi: object, c_p: object, s: float, schedule: Schedule,
    pairs: Sequence[tuple[int, int]], *, K: int = 2, K_until: float = 0.5,
    s_dns: float | None = None, tensor: str = "last", form: str = "three-term",
    normalize: str = "sample", evaluate: Callable | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:  # fmt: skip
    """ANSWER as a guided model (z_t, t) -> eps over the steps `pairs`, for any sampler.

    eps = eps_phi + s * (eps_p - eps_neg),  eps_neg from K_t DNS steps that start at z_t
    arXiv:2508.02973, our reading. The outer chain's state is not touched. `s_dns` None is s;
    `evaluate(eps_fn, z, t, conditions)` may put conditions into one forward.
    """
    check(K, K_until, tensor, form, normalize)
    noises = partial(evaluate or each, eps_fn)  # (z, t, conditions) -> their noises
    s_dns = s if s_dns is None else s_dns
    negative = LatentNegative(
        noises, c_phi, c_p, schedule, pairs, s_dns, K, K_until, tensor, normalize
    )

    def guided(z_t: Tensor, t: Tensor) -> Tensor:
        eps_phi, eps_p = noises(z_t, t, (c_phi, c_p))
        eps_neg = negative(z_t, t, eps_phi, eps_p)
        return FORMS[form](eps_phi, eps_p, eps_neg, s)

    return guided


@dataclass(frozen=True)
class LatentNegative:
    """ANSWER's negative noise for any rule: called with (z_t, t, eps_phi, eps_p), it is eps_neg.

    `noises(z, t, conditions)` evaluates the network; `dnp/readings.py` explains the options.
    """

    noises: Callable
    c_phi: object
    c_p: object
    schedule: Schedule
    pairs: Sequence[tuple[int, int]]
    s_dns: float
    K: int = 2
    K_until: float = 0.5
    tensor: str = "last"
    normalize: str = "sample"

    def __call__(self, z_t: Tensor, t: int | Tensor, eps_phi: Tensor, eps_p: Tensor) -> Tensor:
        """The noise of the last of K_t DNS steps from z_t, matched to eps_phi; shaped like `z_t`.

        eps_neg = (eps - mean(eps)) / std(eps) * std(eps_phi) + mean(eps_phi)
        arXiv:2508.02973, our reading. Where K_t = 0 it is eps_phi, and costs nothing.
        """
        inner = inner_pairs(int(t), self.pairs, self.K, self.K_until, self.tensor)
        if not inner:
            return eps_phi
        *_, (t_n, z_n, eps) = dns_chain(
            self.both, z_t, inner, self.schedule, self.s_dns, (eps_phi, eps_p)
        )
        eps = READINGS[self.tensor](self, eps, z_t, int(t), z_n, t_n)
        return match(eps, eps_phi, self.normalize)

    def both(self, z: Tensor, t: int) -> Sequence[Tensor]:
        return self.noises(z, torch.tensor(t, device=z.device), (self.c_phi, self.c_p))


def dns_chain(
    noises: Callable[[Tensor, int], Sequence[Tensor]], z_t: Tensor,
    pairs: Sequence[tuple[int, int]], schedule: Schedule, s: float,
    first: Sequence[Tensor] | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:  # fmt: skip
    """DDIM steps away from p: yields (t_next, z_next, eps), eps being the DNS noise of the step.

    z_next = sample(z_t, eps_phi + s * (eps_phi - eps_p), t)
    Eqs. (2) and (19), arXiv:2411.05473. `noises(z, t)` gives (eps_phi, eps_p); `first` holds them
    at z_t where they are known.
    """
    for t, t_next in pairs:
        eps = dns(*(first or noises(z_t, t)), s)
        z_t, _ = ddim_step(z_t, eps, schedule.level(t), schedule.level(t_next))
        first = None
        yield t_next, z_t, eps


def inner_pairs(
    t: int, pairs: Sequence[tuple[int, int]], K: int, K_until: float, tensor: str
) -> list[tuple[int, int]]:
    """The K_t steps of the inner chain from level t; none from the share K_until of the steps on.

    The chain starts at t itself, also where a solver evaluates between two levels. A reading that
    evaluates where the chain ends cannot use the last step, to the clean end.
    """
    i = step_at(pairs, t)
    if i >= K_until * len(pairs):
        return []
    end = len(pairs) - needs_a_level(tensor)
    inner = list(pairs[i : min(i + K, end)])
    return [(t, inner[0][1]), *inner[1:]] if inner else []


def evaluations(pairs: Sequence[tuple[int, int]], K: int, K_until: float, tensor: str) -> int:
    """Network evaluations per sample: two for a step, and what its inner chain costs.

    The first inner step uses the two of the outer one; every further step costs two, and the
    evaluation where the chain ends two (next), one (unconditional) or none (last, jump).
    """
    ends = {"last": 0, "jump": 0, "unconditional": 1, "next": 2}[tensor]
    moves = [len(inner_pairs(t, pairs, K, K_until, tensor)) for t, _ in pairs]
    return 2 * len(pairs) + sum(2 * (m - 1) + ends for m in moves if m)


def each(eps_fn: EpsFn, z_t: Tensor, t: Tensor, conditions: Sequence[object]) -> list[Tensor]:
    """The noises of several conditions, one evaluation after another."""
    return [eps_fn(z_t, t, c) for c in conditions]

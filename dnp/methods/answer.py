"""ANSWER (Desai and Vasconcelos, arXiv:2508.02973), in our reading.

We could not read the paper's body. Its abstract and project page say that ANSWER needs one prompt
and no captioner, makes the negative with a chain of at most K DNS steps, Eq. (19) of
arXiv:2411.05473, at the iteration t, and conditions on it in latent space. The rest is our choice:

    eps_neg = the DNS noise of the last of K_t inner steps, with eps_phi's mean and deviation
    eps     = eps_phi + s * (eps_p - eps_neg)

Where K_t = 0 it is CFG, Eq. (3), bit for bit. A third-party note and the project page slightly
favour the two-term form, `rule=negative_prompt_two_term`. `dnp/evaluation` compares more readings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from dnp.methods.fields import setting
from dnp.methods.lazy_torch import torch
from dnp.methods.method import SCALE, Method

if TYPE_CHECKING:
    from torch import Tensor

    from dnp.schedule import Schedule

Pairs = Sequence[tuple[int, int]]


class Answer(Method):
    """phi + s (p - eps_neg), K DNS steps"""

    K: int = setting(2, "inner DNS steps", low=0, high=1000)
    K_until: float = setting(0.5, "the share of the steps that have them", low=0, high=1)
    s_dns: float | None = setting(None, "scale of the inner chain; default s")
    normalize: bool = setting(
        True, "whether the negative gets eps_phi's mean and standard deviation"
    )
    name, own_rule, has_negative, cost = "answer", "negative_prompt", True, "3T by default"

    def negative(self, z_t: Tensor, t: Tensor, eps_phi: Tensor, eps_p: Tensor) -> Tensor:
        """The noise of the last of K_t DNS steps from z_t; where K_t = 0 it is eps_phi."""
        inner = self.inner(int(t))
        if not inner:
            return eps_phi
        scale = next(x for x in (self.s_dns, self.s, SCALE) if x is not None)
        *_, (t_n, z_n, eps) = dns_chain(
            self.both, z_t, inner, self.schedule, scale, (eps_phi, eps_p)
        )
        eps = self.reading(eps, z_t, int(t), z_n, t_n)
        return match(eps, eps_phi) if self.normalize else eps

    def inner(self, t: int) -> Pairs:
        """The K_t steps of the inner chain."""
        return inner_pairs(t, self.pairs, self.K, self.K_until)

    def reading(self, eps: Tensor, z_t: Tensor, t: int, z_n: Tensor, t_n: int) -> Tensor:
        """Which noise is the negative, where the inner chain went from z_t to z_n."""
        return eps


def dns_chain(
    noises: Callable[[Tensor, int], Sequence[Tensor]], z_t: Tensor, pairs: Pairs,
    schedule: Schedule, s: float, first: Sequence[Tensor] | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:  # fmt: skip
    """DDIM steps away from p: yields (t_next, z_next, eps), eps being the DNS noise of the step.

    z_next = sample(z_t, eps_phi + s * (eps_phi - eps_p), t)
    Eqs. (2) and (19), arXiv:2411.05473. `noises(z, t)` gives (eps_phi, eps_p); `first` holds them
    at z_t where they are known.
    """
    from dnp.guidance import dns
    from dnp.sampling import ddim_step

    for t, t_next in pairs:
        eps = dns(*(first or noises(z_t, t)), s)
        z_t, _ = ddim_step(z_t, eps, schedule.level(t), schedule.level(t_next))
        first = None
        yield t_next, z_t, eps


def inner_pairs(t: int, pairs: Pairs, K: int, K_until: float) -> list[tuple[int, int]]:
    """The K_t steps of the inner chain from level t; none from the share K_until of the steps on.

    The chain starts at t itself, also where a solver evaluates between two levels.
    """
    from dnp.schedule import step_at

    i = step_at(pairs, t)
    inner = list(pairs[i : i + K]) if i < K_until * len(pairs) else []
    return [(t, inner[0][1]), *inner[1:]] if inner else []


def evaluations(pairs: Pairs, K: int, K_until: float) -> int:
    """Network evaluations per sample: two for a step, and two for each inner step but the first,
    which shares those of the outer one."""
    moves = [len(inner_pairs(t, pairs, K, K_until)) for t, _ in pairs]
    return 2 * len(pairs) + sum(2 * (m - 1) for m in moves if m)


def match(eps: Tensor, reference: Tensor, first: int = 1) -> Tensor:
    """`eps` with the mean and standard deviation of `reference`, of each sample.

    eps = (eps - mean(eps)) / std(eps) * std(reference) + mean(reference)
    Over the dimensions from `first` on. A constant eps has no deviation: it becomes the mean.
    """
    dims = tuple(range(first, eps.ndim))
    (std, mean), (std_r, mean_r) = (
        torch.std_mean(x, dims, correction=0, keepdim=True) for x in (eps, reference)
    )
    std = torch.where(std > 0, std, 1)
    eps = (eps - mean) / std * std_r + mean_r
    return eps

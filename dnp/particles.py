"""The law that a guidance rule names, sampled: particles with weights, and a Langevin corrector.

Guidance at each level is not the noising of any law, so no chain of it, however fine, samples
Eq. (8), (10) or (18). For a linear rule, eps = sum_i w_i eps_i, the noises themselves say by how
much the ancestral chain is wrong (T6; Skreta et al., arXiv:2503.02819, for CFG and products):

    d log weight = 1/2 (|S|^2 - sum_i w_i |S_i|^2) d(-sigma^2),   S_i = -eps_i / sigma

with the variance-exploding sigma; for CFG half of s (s - 1) |S_p - S_phi|^2, for DNS of s (s + 1)
times that square. No further evaluation is needed. Particles whose weights have become unlike are
drawn again from one another. Where the law is improper no particles can stand for it: their
`effective_size` falls. On pictures: `particles=K` and `corrector=K` of `dnp.generate`
(`dnp/methods/weighted.py`), and `python -m dnp.evaluation.heaviest`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dnp.sampling import ddim_step
from dnp.schedule import Schedule

Noises = Callable[[Tensor, Tensor], Sequence[Tensor]]  # (z_t, t) -> eps_i, each shaped like z_t


def log_weight_step(
    eps: Sequence[Tensor], weights: Sequence[float], abar_t: Tensor, abar_next: Tensor
) -> Tensor:
    """How much the log weight of each particle grows in a step of DDPM, (K,).

    (|sum_i w_i eps_i|^2 - sum_i w_i |eps_i|^2) / 2 * log(u / u_next),  u = (1 - abar) / abar
    The increment above with |S|^2 = |eps|^2 / u. Where u_next = 0 its first order stands, 1.
    """
    u, u_next = ((1 - a) / a for a in (abar_t, abar_next))
    guided = sum(w * e for w, e in zip(weights, eps))
    excess = _square(guided) - sum(w * _square(e) for w, e in zip(weights, eps))
    return 0.5 * excess * ((u / u_next).log() if u_next > 0 else 1.0)


def effective_size(log_w: Tensor) -> float:
    """How many equal particles the weighted ones are worth: (sum w)^2 / sum w^2, 1 to K."""
    return (1 / (torch.softmax(log_w, 0) ** 2).sum()).item()


def resample(log_w: Tensor, generator: torch.Generator) -> Tensor:
    """Indices (K,) drawn in proportion to the weights, by one uniform number (systematic)."""
    K = len(log_w)
    u = (torch.arange(K, dtype=torch.float64) + torch.rand((), generator=generator).double()) / K
    return torch.searchsorted(torch.softmax(log_w, 0).cumsum(0), u).clamp(max=K - 1)


def langevin(
    eps_fn: Callable[[Tensor], Tensor], z_t: Tensor, abar_t: Tensor, generator: torch.Generator,
    r: float = 0.2,
) -> Tensor:  # fmt: skip
    """One step of Langevin dynamics at a level, for the law whose noise `eps_fn` is.

    z = z + delta S + sqrt(2 delta) noise,  S = -eps / sigma_t,  delta = r^2 D / mean |S|^2
    The step of Song et al., arXiv:2011.13456, Algorithm 4, with the mean over all particles, so
    that it does not depend on where one of them stands. A Gaussian keeps 1 - r^2 of itself in a
    step, and its variance is right to r^2 / 2.
    """
    score = -eps_fn(z_t) / (1 - abar_t).sqrt()
    delta = r**2 * z_t[0].numel() / _square(score).mean()
    noise = torch.randn(z_t.shape, generator=generator, dtype=torch.float64).to(z_t)
    return z_t + delta.to(z_t) * score + (2 * delta).sqrt().to(z_t) * noise


def sample(
    noises: Noises, weights: Sequence[float], z_T: Tensor, schedule: Schedule, steps: int,
    generator: torch.Generator, spacing: str = "leading", eta: float = 1.0, reweight: bool = True,
    corrector: int = 0, r: float = 0.2,
) -> Iterator[tuple[int, Tensor, Tensor]]:  # fmt: skip
    """Yields (t_next, z_next, log_w) of K particles, log_w (K,) their weights; the last is z_0.

    `noises(z_t, t)` are the predictions that `weights` combine (`guidance.coefficients`), of a toy
    or of any model; z_T (K, *S). At eta = 1 they are reweighted. Before a step, those whose
    `effective_size` is under half are drawn again; `z_0[resample(log_w, generator)]` draws the last
    ones. `reweight=False` is the plain chain. `corrector` Langevin steps follow at each new level
    but the clean one. One generator: the particles are one sample of a law.
    ValueError for weights that do not sum to 1, and to reweight without the noise of eta = 1.
    """
    if abs(sum(weights) - 1) > 1e-9:
        raise ValueError(f"the weights sum to {sum(weights):g}; a rule's coefficients sum to 1.")
    if reweight and eta != 1:
        raise ValueError("the weights belong to DDPM; choose eta = 1, or reweight=False.")
    z_t, log_w = z_T, torch.zeros(len(z_T), dtype=torch.float64)
    for t, t_next in schedule.pairs(steps, spacing):
        if effective_size(log_w) < len(z_t) / 2:
            z_t, log_w = z_t[resample(log_w, generator).to(z_t.device)], torch.zeros_like(log_w)
        level, abar_t, abar_next = torch.tensor(t), schedule.level(t), schedule.level(t_next)
        eps = noises(z_t, level)
        if reweight:
            log_w = log_w + log_weight_step(eps, weights, abar_t, abar_next)
        guided = sum(w * e for w, e in zip(weights, eps))
        noise = torch.randn(z_t.shape, generator=generator, dtype=torch.float64).to(z_t)
        z_t, _ = ddim_step(z_t, guided, abar_t, abar_next, eta, noise)
        for _ in range(corrector if t_next >= 0 else 0):
            at = torch.tensor(t_next)
            z_t = langevin(
                lambda z: sum(w * e for w, e in zip(weights, noises(z, at))),  # noqa: B023
                z_t, abar_next, generator, r,
            )  # fmt: skip
        yield t_next, z_t, log_w


def _square(x: Tensor) -> Tensor:
    """|x|^2 of each particle in float64, (K,)."""
    return (x.flatten(1).double() ** 2).sum(1).cpu()

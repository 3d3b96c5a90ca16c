"""DPM-Solver++(2M) (Lu et al., arXiv:2211.01095): a sampler that keeps the z0_hat of the last step.

On levels that are even in log-SNR it is of second order where DDIM is of first. On Stable
Diffusion's levels down to a clean end it is not: the last step, of first order, dominates, so that
twice the steps divide its error by 2 to 3 and not by 4. Like DDIM it evaluates the guided model
once for each pair, at its t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from dnp.sampling import evaluated, sqrt
from dnp.schedule import Schedule, column


def dpmpp2m_step(
    z_t: Tensor,
    eps: Tensor,
    abar_t: float | Tensor,
    abar_next: float | Tensor,
    last: tuple[Tensor, float | Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of DPM-Solver++(2M): (z_next, z0_hat), shaped like `z_t`.

    z0_hat = (z_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)
    lambda = log(sqrt(abar) / sqrt(1 - abar)),  h = lambda_next - lambda_t
    r      = (lambda_t - lambda_last) / h
    D      = (1 + 1 / (2 r)) z0_hat - 1 / (2 r) z0_last
    z_next = sqrt((1 - abar_next) / (1 - abar_t)) z_t - sqrt(abar_next) (exp(-h) - 1) D
    Algorithm 2, arXiv:2211.01095. `last` is (z0_last, abar_last) of the step before; without it
    D = z0_hat, which is DDIM. Levels as for `ddim_step`, the noisier ones not clean.
    """
    abar_t, abar_next, abar_last = (
        torch.as_tensor(a, dtype=torch.float64, device="cpu")
        for a in (abar_t, abar_next, last[1] if last else abar_t)
    )
    c = partial(column, z=z_t)
    half_log_snr = (torch.logit(a) / 2 for a in (abar_t, abar_next, abar_last))
    lambda_t, lambda_next, lambda_last = half_log_snr
    h = lambda_next - lambda_t
    z0_hat = (z_t - c(sqrt(1 - abar_t)) * eps) / c(sqrt(abar_t))
    D = z0_hat
    if last:
        r = (lambda_t - lambda_last) / h
        D = c(1 + 1 / (2 * r)) * z0_hat - c(1 / (2 * r)) * last[0]
    shrink, pull = sqrt((1 - abar_next) / (1 - abar_t)), sqrt(abar_next) * torch.expm1(-h)
    z_next = c(shrink) * z_t - c(pull) * D
    return z_next, z0_hat


def dpmpp2m_sample(
    guided: Callable[[Tensor, Tensor], Tensor],
    z_T: Tensor,
    schedule: Schedule,
    steps: int,
    eta: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
    spacing: str = "leading",
    move: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """As `ddim_sample`, by `dpmpp2m_step`; the first and the last step are of first order.

    The last, because its h can be infinite. Where two levels are one (t = 999 of 1000 steps in
    leading spacing) their difference teaches nothing, and the next step is of first order.
    ValueError if eta > 0: it has no noise.
    """
    if eta > 0:
        raise ValueError("DPM-Solver++(2M) adds no noise: leave eta at 0, or take ddim")
    z_t, last = z_T, None
    for t, t_next in schedule.pairs(steps, spacing):
        z_t, eps = evaluated(guided, z_t, t, move)
        abar_t, abar_next = schedule.level(t), schedule.level(t_next)
        second_order = last is not None and t_next >= 0 and last[1] < abar_t
        z_t, z0_hat = dpmpp2m_step(z_t, eps, abar_t, abar_next, last if second_order else None)
        last = z0_hat, abar_t
        yield t_next, z_t, z0_hat

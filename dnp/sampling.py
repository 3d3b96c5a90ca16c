"""The sampler, Eq. (2), arXiv:2411.05473: DDIM over explicit pairs (t, t_next).

DDIM (Song et al., arXiv:2010.02502) is one loop, and two numbers give the published samplers:

    eta = 0, any steps      DDIM, deterministic: a picture is a function of z_T
    eta = 1, all 1000       DDPM (Ho et al., arXiv:2006.11239) with the posterior variance, in
                            trailing spacing (leading has t = 999 twice and t = 0 never)
    eta between             the family between the two

A guided model is a callable (z_t, t) -> eps: a sampler never sees a prompt or a guidance rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from dnp.schedule import Schedule, column


def ddim_step(
    z_t: Tensor,
    eps: Tensor,
    abar_t: float | Tensor,
    abar_next: float | Tensor,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step from level abar_t to the cleaner abar_next: (z_next, z0_hat), shaped like `z_t`.

    z0_hat = (z_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)
    tau    = eta sqrt((1 - abar_next) / (1 - abar_t)) sqrt(1 - abar_t / abar_next)
    z_next = sqrt(abar_next) z0_hat + sqrt(1 - abar_next - tau^2) eps + tau noise
    Eqs. (12) and (16), arXiv:2010.02502, the sample() of Eq. (2), arXiv:2411.05473. Levels are
    numbers, () or (B,) tensors; coefficients are computed in float64. ValueError if eta
    is not from 0 to 1, or is above 0 without `noise` (standard normal).
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta} is not possible; give 0 (DDIM) to 1 (DDPM).")
    if eta > 0 and noise is None:
        raise ValueError("eta > 0 adds noise at every step: pass `noise`, shaped like z_t")
    abar_t, abar_next = (
        torch.as_tensor(a, dtype=torch.float64, device="cpu") for a in (abar_t, abar_next)
    )
    c = partial(column, z=z_t)  # coefficients are rooted in float64, then cast
    z0_hat = (z_t - c(sqrt(1 - abar_t)) * eps) / c(sqrt(abar_t))
    if eta == 0:  # also from a clean level, where the ratio below is not a number
        tau, noise = 0.0 * abar_t, 0.0
    else:
        tau = eta * sqrt((1 - abar_next) / (1 - abar_t)) * sqrt(1 - abar_t / abar_next)
    z_next = c(sqrt(abar_next)) * z0_hat + c(sqrt(1 - abar_next - tau**2)) * eps + c(tau) * noise
    return z_next, z0_hat


def sqrt(x: Tensor) -> Tensor:
    """The root; of a negative number, which for eta from 0 to 1 only rounding can make, zero."""
    return x.clamp(min=0).sqrt()


def ddim_sample(
    guided: Callable[[Tensor, Tensor], Tensor],
    z_T: Tensor,
    schedule: Schedule,
    steps: int,
    eta: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
    spacing: str = "leading",
    move: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields (t_next, z_next, z0_hat) after each of `steps` steps; the last z_next is z_0.

    z_next = sample(z_t, guided(z_t, t), t)
    Eq. (2), arXiv:2411.05473. `guided` gets `t` as a 0-d integer tensor; `z_T` (B, *S) is not
    changed. With eta > 0 each sample draws from its own CPU generator, so that it never depends on
    its batch mates; ValueError if there is not one for each. `move` (z_t, t) -> z_t, if given, is
    where each step starts from.
    """
    if eta > 0 and (generators is None or len(generators) != len(z_T)):
        raise ValueError(f"eta > 0 needs one generator per sample: {len(z_T)} of them")
    z_t = z_T
    for t, t_next in schedule.pairs(steps, spacing):
        z_t, eps = evaluated(guided, z_t, t, move)
        noise = noise_like(z_t, generators) if eta > 0 else None
        z_t, z0_hat = ddim_step(z_t, eps, schedule.level(t), schedule.level(t_next), eta, noise)
        yield t_next, z_t, z0_hat


def evaluated(
    guided: Callable, z_t: Tensor, t: int, move: Callable | None
) -> tuple[Tensor, Tensor]:
    """The latent of a step, moved if it is to be, and its guided noise."""
    level = torch.tensor(t, device=z_t.device)
    z_t = z_t if move is None else move(z_t, level)
    return z_t, guided(z_t, level)


def noise_like(z: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise shaped like `z`, sample i from generators[i].

    Drawn on the CPU in at least float32, then moved: the same on every device, dtype and batch.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    draws = [torch.randn(z.shape[1:], generator=g, dtype=dtype) for g in generators]
    return torch.stack(draws).to(z.dtype).to(z.device)

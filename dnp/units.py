"""Variance-preserving, variance-exploding and flow matching: one process in three units.

    z = alpha_t z_0 + sigma_t eps,    abar_t = alpha_t^2 / (alpha_t^2 + sigma_t^2)

Divided by its root mean square, sqrt(alpha_t^2 + sigma_t^2), a latent of any of them is one of the
variance-preserving process at abar_t, with the same z0_hat and the same eps. A step of DDIM, of
DDPM and of DPM-Solver++ commutes with that, and the Euler step of a flow is DDIM. So rules,
samplers and energies have one form, and a model changes units at its own door, here.

    unit    alpha_t      sigma_t          the network predicts
    vp      sqrt(abar)   sqrt(1 - abar)   eps, or v = alpha_t eps - sigma_t z_0
    ve      1            sigma            eps or z_0 (EDM's preconditioning apart)
    flow    1 - tau      tau              u = eps - z_0, as in Stable Diffusion 3 and Flux

`t` is always the index of a level in `schedule.abar`, the cleanest first; what time the network
itself takes is its door's affair: `units.ve(abar_t)[1]` is sigma, `units.flow(abar_t)[1]` is tau.
Where the levels depend on the number of steps (the shift of Stable Diffusion 3 and Flux), a model
has `at_steps(steps, size)`, which returns the model on those levels: its schedule has `steps` of
them, its spacing is trailing, and t runs over every one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dnp.schedule import EpsFn, Schedule, column

Unit = Callable[[Tensor], tuple[Tensor, Tensor]]  # abar_t -> (alpha_t, sigma_t), float64


def vp(abar_t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t): arXiv:2006.11239."""
    return abar_t.sqrt(), (1 - abar_t).sqrt()


def ve(abar_t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t = 1, sigma_t = sqrt((1 - abar_t) / abar_t): arXiv:2011.13456."""
    return torch.ones_like(abar_t), ((1 - abar_t) / abar_t).sqrt()


def flow(abar_t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t = 1 - tau, sigma_t = tau: those of `vp` over their sum, arXiv:2209.03003."""
    alpha_t, sigma_t = vp(abar_t)
    return alpha_t / (alpha_t + sigma_t), sigma_t / (alpha_t + sigma_t)


def in_vp(
    predict: Callable, schedule: Schedule, unit: Unit, to_eps: Callable,
    dtype: torch.dtype | None = None,
) -> EpsFn:  # fmt: skip
    """A network in a unit of its own as `eps(z_t, t, c)`, the contract of every rule and sampler.

    eps = to_eps(z, predict(z, t, c), alpha_t, sigma_t),    z = sqrt(alpha_t^2 + sigma_t^2) z_t
    `predict` gets z (B, *S) in its unit and the index t, () or (B,), and returns what it predicts,
    shaped like z; `to_eps` is `eps_from_flow`, `eps_from_z0` or `eps_from_v`. The network gets z in
    `dtype`, its own, None being z_t's; what is around it is computed in z_t's.
    """

    def eps(z_t: Tensor, t: Tensor, c: object) -> Tensor:
        alpha_t, sigma_t = unit(schedule.level(t))
        rms = (alpha_t**2 + sigma_t**2).sqrt()
        rms, alpha_t, sigma_t = (column(x, z_t) for x in (rms, alpha_t, sigma_t))
        z = rms * z_t
        predicted = predict(z.to(dtype or z.dtype), t, c).to(z.dtype)
        return to_eps(z, predicted, alpha_t, sigma_t)

    return eps


def eps_from_flow(z: Tensor, u: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """eps = (z + alpha_t u) / (alpha_t + sigma_t), from u = eps - z_0. Of a flow the sum is 1."""
    return (z + alpha_t * u) / (alpha_t + sigma_t)


def eps_from_z0(z: Tensor, z0_hat: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """eps = (z - alpha_t z0_hat) / sigma_t, where sigma_t > 0."""
    return (z - alpha_t * z0_hat) / sigma_t


def eps_from_v(z: Tensor, v: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """eps = (sigma_t z + alpha_t v) / (alpha_t^2 + sigma_t^2), v = alpha_t eps - sigma_t z_0.

    Section 4 and Appendix D, arXiv:2202.00512; of `vp` the sum of squares is 1.
    """
    return (sigma_t * z + alpha_t * v) / (alpha_t**2 + sigma_t**2)

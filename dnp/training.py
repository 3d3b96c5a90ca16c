"""What a network is trained for, Eq. (1), arXiv:2411.05473: to predict the noise of a latent."""

from __future__ import annotations

import torch
from torch import Tensor

from dnp.schedule import EpsFn, Schedule


def noise_error(
    eps_fn: EpsFn, schedule: Schedule, z_0: Tensor, eps: Tensor, t: Tensor, c: object
) -> Tensor:
    """The error of a noise prediction for each sample, (B,).

    || eps - eps_theta(z_t; t, tau(p)) ||^2,  z_t = sqrt(abar_t) z_0 + sigma_t eps
    Inside the expectation of Eq. (1), arXiv:2411.05473; the mean over elements stands for the
    squared norm. `z_0` and `eps` (B, *S), `t` (B,).
    """
    error = eps - eps_fn(schedule.add_noise(z_0, eps, t), t.to(z_0.device), c)
    return (error**2).flatten(1).mean(1)


def training_loss(
    eps_fn: EpsFn, schedule: Schedule, z_0: Tensor, c: object, generator: torch.Generator
) -> Tensor:
    """The noise-prediction loss of a batch, a scalar.

    E over t, eps of || eps - eps_theta(z_t; t, tau(p)) ||^2
    Eq. (1), arXiv:2411.05473, one draw of t and eps for each sample. Whether a prompt is dropped
    (with probability 0.1, c = phi) is the caller's part, since only it knows phi.
    """
    t = torch.randint(len(schedule.abar), (len(z_0),), generator=generator)
    eps = torch.randn(z_0.shape, generator=generator, dtype=z_0.dtype).to(z_0.device)
    return noise_error(eps_fn, schedule, z_0, eps, t, c).mean()

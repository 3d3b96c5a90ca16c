"""The law that a guided chain returns where every step is affine: exact, without samples."""

from __future__ import annotations

import torch
from torch import Tensor

from dnp.sampling import ddim_step
from dnp.testing.inputs import F64, generator
from dnp.testing.subject import Subject
from dnp.toy import Gaussian


def chain_law(
    f: Subject, s: float, h: float, eta: float, steps: int | None = None, spacing: str = "linspace"
) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of z_0 on Gaussians, from phi's law at the first level.

    z_next = A z + b + tau noise: b is the step from 0, A from the unit vectors; a fourth point
    tells whether the rule is affine at all. ValueError if it is not, or the toy is a mixture.
    """
    toy, schedule = f.toy, f.toy.schedule
    remembers = f.remembers and not f.of_method  # which is made anew at each level
    if not isinstance(toy, Gaussian) or remembers:
        what = "rule without a memory" if remembers else "Gaussian or PointMass toy"
        raise ValueError(f"an exact law needs a {what}; choose one.")
    D, keep = toy.means.shape[-1], toy.prompts[None][0]
    pairs = schedule.pairs(steps or len(schedule.abar), spacing)
    top, eye = schedule.level(pairs[0][0]), torch.eye(D, dtype=F64)
    mean = top.sqrt() * toy.means[keep]
    V = top * toy.covariances[keep] + (1 - top) * eye
    apart = torch.randn(1, D, generator=generator(0), dtype=F64)
    z = torch.cat([torch.zeros(1, D, dtype=F64), eye, apart])
    for t, t_next in pairs:
        eps = f.field(t, s, h, t_next=t_next)(z)
        levels = schedule.level(t), schedule.level(t_next)
        moved = ddim_step(z, eps, *levels, eta, torch.zeros_like(z))[0]
        b, A = moved[0], (moved[1:-1] - moved[0]).T
        off = (A @ apart[0] + b - moved[-1]).norm() / moved[-1].norm().clamp(min=1e-300)
        if not off < 1e-8:
            raise ValueError(f"{f.name} is not affine in z_t at t = {t}: off by {off:.1e}.")
        tau = ddim_step(z[:1], z[:1], *levels, eta, torch.ones(1, D, dtype=F64))[0][0, 0]
        mean, V = A @ mean + b, A @ V @ A.T + tau**2 * eye
    return mean, V

"""The forward process: how much signal and noise a latent holds at each level t.

    z_t = sqrt(abar_t) z_0 + sigma_t eps,    sigma_t = sqrt(1 - abar_t)

`abar_t` is the product of 1 - beta_0 ... 1 - beta_t (DDIM's paper writes alpha_t for it).
This is the variance-preserving sigma; code in the variance-exploding form uses another one,
sqrt((1 - abar_t) / abar_t).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EpsFn = Callable[[Tensor, Tensor, object], Tensor]  # the contract: (z_t, t, c) -> eps


@dataclass(frozen=True, eq=False)
class Schedule:
    """`abar`: (T,) float64 on the CPU, falling, `abar[t]` for t = 0 ... T-1.

    `abar_final` is the level after the last step, where no table entry is left: abar_0 in Stable
    Diffusion (`set_alpha_to_one: false`), 1 in the textbook. `steps_offset` shifts leading spacing.
    """

    abar: Tensor
    abar_final: float
    steps_offset: int = 0

    @classmethod
    def stable_diffusion(cls, set_alpha_to_one: bool = False) -> Schedule:
        """beta from 0.00085 to 0.012, linear in its root, 1000 levels (CompVis' v1 config)."""
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        return cls.from_betas(betas, set_alpha_to_one)

    @classmethod
    def from_betas(
        cls, betas: Tensor, set_alpha_to_one: bool = False, steps_offset: int = 1
    ) -> Schedule:
        abar = torch.cumprod(1 - betas.double(), dim=0)
        return cls(abar, 1.0 if set_alpha_to_one else abar[0].item(), steps_offset)

    @classmethod
    def from_levels(cls, alpha: Tensor, sigma: Tensor) -> Schedule:
        """The levels (alpha, sigma), (T,) each, from the cleanest on: z = alpha z_0 + sigma eps.

        abar = alpha^2 / (alpha^2 + sigma^2)
        The clean end has no noise. ValueError unless alpha > 0, since at 0 eps says nothing about
        z_0, and sigma / alpha rises.
        """
        alpha, sigma = (torch.as_tensor(x).double().cpu() for x in (alpha, sigma))
        abar = alpha**2 / (alpha**2 + sigma**2)
        if abar.ndim != 1 or not ((alpha > 0) & (sigma >= 0)).all() or not (abar.diff() < 0).all():
            raise ValueError(
                "levels must be alpha (T,) above 0 and sigma (T,), with sigma / alpha rising."
            )
        return cls(abar, abar_final=1.0)

    @classmethod
    def cosine(cls, T: int = 1000, offset: float = 0.008) -> Schedule:
        """abar_t = f(t + 1) / f(0), f(t) = cos^2((t / T + offset) / (1 + offset) pi / 2), with no
        beta above 0.999: Eq. (17), arXiv:2102.09672."""
        x = (torch.arange(T + 1, dtype=torch.float64) / T + offset) / (1 + offset)
        f = (x * torch.pi / 2).cos() ** 2
        betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
        return cls.from_betas(betas, set_alpha_to_one=True, steps_offset=0)

    @classmethod
    def flow(cls, T: int = 1000, shift: float = 1.0, cut: float = 1e-4) -> Schedule:
        """The levels of a flow, z = (1 - tau) z_0 + tau eps, from tau near 0 to 1 - cut.

        tau = shift u / (1 + (shift - 1) u),  u = (t + 1) / T
        The shift is Stable Diffusion 3's, Eq. (23), arXiv:2403.03206. At tau = 1 eps says nothing
        about z_0, so the last tau is at most 1 - cut. A smaller cut is nearer to the flow's own
        chain and divides rounding by it: 1e-4 suits float32, 1e-6 float64.
        """
        u = torch.arange(1, T + 1, dtype=torch.float64) / T
        tau = shift * u / (1 + (shift - 1) * u)
        tau[-1] -= min(cut, (1 - tau[-2:-1].sum().item()) / 2)
        return cls.from_levels(1 - tau, tau)

    def level(self, t: int | Tensor) -> Tensor:
        """abar_t as float64 on the CPU, shaped like `t`; t = -1 is the clean end, `abar_final`."""
        if isinstance(t, Tensor):
            t = t.cpu() if t.ndim else t.item()
        first, last = t.aminmax() if isinstance(t, Tensor) else (t, t)
        if first < -1 or last >= len(self.abar):
            given = t.tolist() if isinstance(t, Tensor) else t
            raise ValueError(f"t must be in -1 ... {len(self.abar) - 1}, not {given}")
        if isinstance(t, Tensor):
            return torch.where(t >= 0, self.abar[t.clamp(min=0)], self.abar_final)
        return self.abar[t].clone() if t >= 0 else self.abar.new_tensor(self.abar_final)

    def add_noise(self, z_0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps, for t of shape () or (B,)."""
        abar_t = column(self.level(t), z_0)
        return abar_t.sqrt() * z_0 + (1 - abar_t).sqrt() * eps

    def sigma_ve(self, t: int | Tensor) -> Tensor:
        """sqrt((1 - abar_t) / abar_t), the variance-exploding sigma; float64, shaped like `t`."""
        abar_t = self.level(t)
        return ((1 - abar_t) / abar_t).sqrt()

    def pairs(self, steps: int, spacing: str = "leading") -> list[tuple[int, int]]:
        """The walk from noise to data as explicit (t, t_next) pairs; the last t_next is -1, clean.

        spacing   t for T = 1000, steps = 4   source
        leading   751 501 251 1               DDIM, Stable Diffusion (offset 1)
        trailing  999 749 499 249             Lin et al., arXiv:2305.08891
        linspace  999 666 333 0               Nichol and Dhariwal, arXiv:2102.09672

        Leading spacing floors the stride, so for some counts it starts low (600 steps: t = 600).
        Its t = 1000 of 1000 steps is outside the table and clamped, so that 999 occurs twice.
        """
        T = len(self.abar)
        if not 1 <= steps <= T:
            raise ValueError(f"steps must be in 1 ... {T}, not {steps}")
        i = torch.arange(steps, dtype=torch.float64)
        if spacing == "leading":
            t = (i * (T // steps) + self.steps_offset).clamp(max=T - 1).flip(0)
        elif spacing == "trailing":
            t = (T - i * (T / steps)).round() - 1
        elif spacing == "linspace":
            t = torch.linspace(0, T - 1, steps, dtype=torch.float64).round().flip(0)
        else:
            raise ValueError(f"spacing must be leading, trailing or linspace, not {spacing!r}")
        ts = [int(x) for x in t.tolist()]
        return list(zip(ts, [*ts[1:], -1]))


def step_at(pairs: Sequence[tuple[int, int]], t: int) -> int:
    """The index of the step of `pairs` that a level t belongs to: the last with t_i >= t > t_next.

    A solver may evaluate between the two levels of a step. ValueError above the first level.
    """
    found = [i for i, (t_i, t_next) in enumerate(pairs) if t_i >= t > t_next]
    if not found:
        raise ValueError(f"t = {t} is not in any step, from {pairs[0][0]} to {pairs[-1][1]}")
    return found[-1]


def column(x: float | Tensor, z: Tensor) -> Tensor:
    """A number or tensor in z's dtype and on its device; (B,) becomes (B, 1, ...) to multiply z.
    (Beside whole numbers it is in torch's default dtype, since no level is whole.)"""
    x = x if isinstance(x, Tensor) else torch.as_tensor(x, dtype=torch.float64)
    x = x.to(torch.result_type(z, 1.0)).to(z.device)  # first the dtype: MPS has no float64
    return x.reshape(x.shape + (1,) * (z.ndim - 1)) if x.ndim == 1 else x

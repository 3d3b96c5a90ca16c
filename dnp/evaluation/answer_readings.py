"""Other readings of ANSWER (`dnp/methods/answer.py`): what its paper leaves open, one class each.

`dnp.generate(model, prompt, Unconditional)`, or `--method dnp/evaluation/answer_readings.py:Jump`.
The DNS noise where the inner chain ends, a reading too, is `Answer` with K + 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dnp.errors import SettingsError
from dnp.methods.answer import Answer, Pairs, match
from dnp.schedule import column


class Unconditional(Answer):
    """phi + s (p - eps_neg), eps_phi where K DNS steps end"""

    name = "answer-unconditional"

    def inner(self, t: int) -> Pairs:  # no network is defined at the clean end
        return [(t, t_next) for t, t_next in super().inner(t) if t_next >= 0]

    def reading(self, eps: Tensor, z_t: Tensor, t: int, z_n: Tensor, t_n: int) -> Tensor:
        level = torch.tensor(t_n, device=z_n.device)
        return self.noises(z_n, level, [self.conditions["phi"]])[0]


class Jump(Answer):
    """phi + s (p - eps_neg), one DDIM step as far as K DNS steps"""

    name = "answer-jump"

    def reading(self, eps: Tensor, z_t: Tensor, t: int, z_n: Tensor, t_n: int) -> Tensor:
        """Between equal levels no noise moves anything: eps."""
        abar_t, abar_n = self.schedule.level(t), self.schedule.level(t_n)
        return eps if abar_n == abar_t else jump(z_t, z_n, abar_t, abar_n)


class PerChannel(Answer):
    """phi + s (p - eps_neg), each channel with eps_phi's statistics"""

    name = "answer-per-channel"

    def negative(self, z_t: Tensor, t: Tensor, eps_phi: Tensor, eps_p: Tensor) -> Tensor:
        if z_t.ndim < 3:
            raise SettingsError(f"latents of shape {tuple(z_t.shape)} have no channels to match.")
        eps = super().negative(z_t, t, eps_phi, eps_p)  # matched as a whole, which is undone
        return match(eps, eps_phi, 2) if self.normalize and eps is not eps_phi else eps


def jump(z_t: Tensor, z_n: Tensor, abar_t: Tensor, abar_n: Tensor) -> Tensor:
    """The noise for which one DDIM step from level abar_t to abar_n leads to z_n.

    eps = (z_n - r z_t) / (sigma_n - r sigma_t),  r = sqrt(abar_n / abar_t)
    """
    r = (abar_n / abar_t).sqrt()
    below = (1 - abar_n).sqrt() - r * (1 - abar_t).sqrt()
    return (z_n - column(r, z_t) * z_t) / column(below, z_t)

"""The arrangements of four modes that `dnp.evaluation.exact` samples, and where a sample is.

Four equal modes A (2, 2), B (2, -2), C (-2, -2), D (-2, 2), sd 0.35, or the same slanted, with
unlike covariances; prompts are sets of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dnp.toy import Mixture

MODES = "ABCD"
PROMPTS = {"right": [0, 1], "up": [0, 3], "A": [0], "D": [3]}


def toy(arrangement: str) -> Mixture:
    """The four modes, square or slanted; conditions are indices into PROMPTS, None is phi."""
    means = torch.tensor([[2.0, 2], [2, -2], [-2, -2], [-2, 2]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    covariances = 0.35**2 * eye.expand(4, 2, 2)
    if arrangement == "oblique":
        means = means @ torch.tensor([[1.0, 0.0], [0.7, 1.0]], dtype=torch.float64)
        turns = torch.tensor([0.3, 1.1, 2.0, 2.7], dtype=torch.float64)
        axes = torch.stack([turns.cos(), turns.sin()], 1)
        covariances = 0.25**2 * eye + 0.2 * axes[:, :, None] * axes[:, None]
    return Mixture([0.25] * 4, means, covariances, list(PROMPTS.values()))


def index(name: str) -> int:
    return list(PROMPTS).index(name)


def where(model: Mixture, z_0: Tensor, wanted: Sequence[int]) -> Tensor:
    """0 right, 1 wrong, 2 off, for each sample (B,); 4 sd is by each mode's own covariance."""
    d = z_0[:, None] - model.means
    far = torch.einsum("bki,kij,bkj->bk", d, torch.linalg.inv(model.covariances), d).sqrt()
    nearest, mode = far.min(1)
    right = torch.isin(mode, torch.tensor(wanted))
    return torch.where(nearest > 4, 2, torch.where(right, 0, 1))


@dataclass(frozen=True)
class Result:
    want: tuple[str, str, float]  # arrangement, negative, scale
    label: str
    right: tuple[float, float, float]
    wrong: tuple[float, float, float]
    off: tuple[float, float, float]
    distance: tuple[float, float, float]
    z_0: Tensor

    @property
    def numbers(self) -> list[tuple[float, float, float]]:
        return [self.right, self.wrong, self.off, self.distance]

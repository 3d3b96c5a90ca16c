"""Attend-and-Excite (Chefer et al. 2023, arXiv:2301.13826): the equations, one function each.

The latent moves down the gradient of a loss that is low where each subject of the prompt has one
place in the maps of cross-attention: z <- z - step grad.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def kernel(dtype: torch.dtype = torch.float32) -> Tensor:
    """The published 3 x 3 Gaussian, exp(-((x - m) / (2 * 0.5))^2) in each axis, of sum 1.

    Its sigma is 0.707, since that exponent is -(x - m)^2 / (2 * 0.5).
    """
    axis = torch.exp(-(torch.arange(-1, 2, dtype=dtype) ** 2))
    both = torch.outer(axis, axis)
    return both / both.sum()


def over_words(maps: Tensor, words: int) -> Tensor:
    """softmax(100 A) over the prompt's own tokens: (B, N, L) -> (B, N, words).

    The start token, the end token and the padding are left out.
    """
    return (100 * maps[..., 1 : words + 1]).softmax(-1)


def peaks(maps: Tensor, tokens: Sequence[int], size: tuple[int, int]) -> Tensor:
    """The spatial maximum of each token's smoothed map: (B, N, words) -> (B, tokens)."""
    chosen = maps[..., list(tokens)].transpose(1, 2).unflatten(2, size)
    planes = F.pad(chosen, (1, 1, 1, 1), mode="reflect").flatten(0, 1)[:, None]
    smooth = F.conv2d(planes, kernel(maps.dtype).to(maps.device)[None, None])
    return smooth.amax((1, 2, 3)).unflatten(0, chosen.shape[:2])


def loss(peak: Tensor) -> Tensor:
    """max over the tokens of max(0, 1 - peak): (B, tokens) -> (B,)."""
    return (1 - peak).clamp(min=0).amax(-1)


def step_size(i: int, steps: int, first: float = 20.0) -> float:
    """first sqrt(linspace(1, 0.5, steps)[i])."""
    share = i / (steps - 1) if steps > 1 else 0.0
    return first * (1 - 0.5 * share) ** 0.5


def gradient(value: Callable[[Tensor], Tensor], z_t: Tensor) -> tuple[Tensor, Tensor]:
    """The loss (B,) of a latent and its gradient, shaped like `z_t`; also under no_grad."""
    with torch.enable_grad():
        z_t = z_t.detach().requires_grad_()
        losses = value(z_t)
        (grad,) = torch.autograd.grad(losses.sum(), z_t)
    return losses.detach(), grad


def excite(z_t: Tensor, grad: Tensor, step: float) -> Tensor:
    """z <- z - step grad."""
    return z_t - step * grad

"""Attend-and-Excite (Chefer et al. 2023, arXiv:2301.13826): its equations and a chain's moves.

The latent moves down the gradient of a loss that is low where each subject of the prompt has one
place in the maps of cross-attention: z <- z - step grad. Before the guided step i of N:

    i < until N           one move
    i = 0, N/5, 2N/5, ..  before it, moves until the loss is at most 1 - threshold: at most `most`

The loss sees the positive branch alone, so any rule and any negative go with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dnp.errors import SettingsError
from dnp.methods import METHODS


def kernel(dtype: torch.dtype = torch.float32) -> Tensor:
    """The published 3 x 3 Gaussian, exp(-((x - m) / (2 * 0.5))^2) in each axis, of sum 1.

    Its sigma is 0.707, since that exponent is -(x - m)^2 / (2 * 0.5).
    """
    axis = torch.exp(-(torch.arange(-1, 2, dtype=dtype) ** 2))
    both = torch.outer(axis, axis)
    return both / both.sum()


def over_words(maps: Tensor, words: int) -> Tensor:
    """softmax(100 A) over the prompt's own tokens: (B, N, L) -> (B, N, words).

    The start token, the end token and the padding are left out. In at least float32.
    """
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return (100 * wide[..., 1 : words + 1]).softmax(-1)


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


def wanted_losses(steps: int, thresholds: Sequence[float]) -> dict[int, float]:
    """The steps that refine, at 0, 1/5, 2/5, ... of them, and the loss that each wants at most."""
    return {k * steps // 5: 1 - x for k, x in enumerate(thresholds)}


def most_passes(
    steps: int, ae_until: float, ae_thresholds: Sequence[float], ae_refinements: int, **_: object
) -> int:
    """The gradients of a sample whose loss never is as low as wanted."""
    moving = [i for i in range(steps) if i < ae_until * steps]
    refined = [i for i in moving if i in wanted_losses(steps, ae_thresholds)]
    return len(moving) + ae_refinements * len(refined)


class Excitation:
    """The moves of one chain: (z_t, t) -> z_t, before each guided step.

    `value(z_t, t)` gives the loss (B,). `passes` counts the gradients of each sample since `reset`,
    each of them one forward and one backward; no sample depends on its batch mates.
    """

    def __init__(
        self, value: Callable[[Tensor, Tensor], Tensor], steps: int, ae_step: float,
        ae_until: float, ae_thresholds: Sequence[float], ae_refinements: int,
    ):  # fmt: skip
        self.value, self.steps, self.first, self.until = value, steps, ae_step, ae_until
        self.most, self.wanted = ae_refinements, wanted_losses(steps, ae_thresholds)
        self.i, self.passes = 0, []

    def reset(self, z_T: Tensor) -> None:
        """Before the chain of a batch."""
        self.i, self.passes = 0, [0] * len(z_T)

    def __call__(self, z_t: Tensor, t: Tensor) -> Tensor:
        """The latent (B, *S) that the next step starts from."""
        i, self.i = self.i, self.i + 1
        if i >= self.until * self.steps:
            return z_t
        step = step_size(i, self.steps, self.first)
        every = torch.arange(len(z_t), device=z_t.device)
        losses, grad = self._gradient(z_t, t, every)
        for _ in range(self.most if i in self.wanted else 0):
            rows = every[losses > self.wanted[i]]
            if len(rows) == 0:
                break
            z_t = z_t.index_copy(0, rows, excite(z_t[rows], grad[rows], step))
            of_rows = self._gradient(z_t, t, rows)
            losses, grad = (x.index_copy(0, rows, y) for x, y in zip((losses, grad), of_rows))
        return excite(z_t, grad, step)

    def _gradient(self, z_t: Tensor, t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        for row in rows.tolist():
            self.passes[row] += 1
        return gradient(lambda z: self.value(z, t), z_t[rows])


def require_subjects(model, prompt: str, method: str, given: str | None) -> str:
    """The subjects of a prompt, as in "cat, dog": those given, or of a closed world its own.

    SettingsError if there are none, one is not in the prompt, or the model has no attention.
    """
    if getattr(model, "attention", None) is None:
        raise SettingsError(
            f"method {method} reads a network's attention, and this model has none; choose another."
        )
    if METHODS[method].excites and torch.is_inference_mode_enabled():
        raise SettingsError(
            f"method {method} takes gradients, and torch.inference_mode forbids them; take "
            "torch.no_grad."
        )
    if not isinstance(given, str | None):
        raise SettingsError('subjects are one text; write them as in "cat, dog".')
    subjects = words(given or "") or things(model, prompt)
    if not subjects:
        raise SettingsError(
            f"method {method} needs the subjects of the prompt; add them, as in "
            '--subjects "cat, dog".'
        )
    model.places(prompt, subjects)
    return ", ".join(subjects)


def words(subjects: str) -> list[str]:
    """The words of a text such as "cat, dog"."""
    return [word.strip() for word in subjects.split(",") if word.strip()]


def things(model, prompt: str) -> list[str]:
    """The things of a closed world that a prompt names, in order."""
    return [w for w in re.findall(r"[^\W\d_]+", prompt.lower()) if w in model.config.things]


def loss_of_prompt(
    model, prompt: str, c: object, subjects: str, level: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """(z_t, t) -> the loss (B,) of the maps that a forward under the prompt's condition `c` has."""
    peaks_of = peaks_of_prompt(model, prompt, subjects, level)

    def value(z_t: Tensor, t: Tensor) -> Tensor:
        with model.attention(level) as maps:
            model.eps(z_t, t, c)
        return loss(peaks_of(maps.mean(), z_t))

    return value


def peaks_of_prompt(
    model, prompt: str, subjects: str, level: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """(maps (B, N, L) of a forward under the prompt, its z_t) -> the peak of each subject.

    A map of level l is the latent's size, halved l times and rounded up. SettingsError if it is one
    pixel wide: the kernel has no neighbours there.
    """
    tokens, count = model.places(prompt, words(subjects))

    def peaks_of(maps: Tensor, z_t: Tensor) -> Tensor:
        size = tuple(-(-side // 2**level) for side in z_t.shape[-2:])
        if min(size) < 2:
            raise SettingsError(
                f"ae_level = {level} has maps of {size[0]} x {size[1]} here; choose a lower one."
            )
        return peaks(over_words(maps, count), tokens, size)

    return peaks_of

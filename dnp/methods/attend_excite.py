"""Attend-and-Excite (Chefer et al. 2023, arXiv:2301.13826): its equations and a chain's moves.

The latent moves down the gradient of a loss that is low where each subject of the prompt has one
place in the maps of cross-attention: z <- z - step grad. Before the guided step i of N:

    i < until N           one move
    i = 0, N/5, 2N/5, ..  before it, moves until the loss is at most 1 - threshold: at most `most`

The loss sees the positive branch alone, so any rule and any negative go with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dnp.errors import SettingsError, WeightsError
from dnp.methods.fields import Numbers, check, setting
from dnp.methods.lazy_torch import F, torch
from dnp.methods.method import Method
from dnp.methods.words import AutoDNP

if TYPE_CHECKING:
    from torch import Tensor

# As published for Stable Diffusion 1.4, where the weights recommend nothing.
PUBLISHED = {
    "ae_step": 20.0, "ae_until": 0.5, "ae_thresholds": (0.05, 0.5, 0.8), "ae_refinements": 20,
    "ae_level": 2,
}  # fmt: skip
GROUP = 4  # rows of a gradient in a batch: 1.3 times the time of 16, and fewer are filled up


class OfSubjects(Method):
    """What methods share that read the attention to the subjects of the prompt."""

    subjects: str | None = setting(
        None, 'the things of the prompt, as in "cat, dog"; default: those of a closed world'
    )
    ae_level: int | None = setting(
        None, "which maps: 0 has z_t's size, each next half; default: the weights' own, else 2",
        low=0, high=10,
    )  # fmt: skip
    excites = False  # whether it takes gradients

    def complete(self, call) -> None:
        super().complete(call)
        recommended = dict(getattr(call.config, "attend_excite", {}))
        try:
            check(AttendExcite, recommended)
        except SettingsError as e:
            raise WeightsError(f"attend_excite in dnp.json of these weights: {e}") from None
        for name, value in (PUBLISHED | recommended).items():
            if getattr(self, name, 0) is None:
                setattr(self, name, value)
        self.subjects = require_subjects(call.model, call.prompt, self, self.subjects)
        call.model.attention(self.ae_level)  # SettingsError for a level that has none

    def start(self) -> None:
        self.asked = [(row.prompt, row.subjects or self.subjects) for row in self.rows]
        each = {of: peaks_of_prompt(self.model, *of, self.ae_level) for of in set(self.asked)}
        self.peaks_of = [each[of] for of in self.asked]


class AttendExcite(OfSubjects):
    """phi + s (p - phi), z_t moved: arXiv:2301.13826"""

    ae_step: float | None = setting(
        None, "size of the first move; default: the weights' own, else 20", low=0
    )
    ae_until: float | None = setting(
        None, "the share of the steps that move; default: the weights' own, else 0.5", low=0, high=1
    )
    ae_thresholds: Numbers | None = setting(
        None, "wanted peaks at 0, 1/5, 2/5, ... of the steps; default 0.05:0.5:0.8", low=0, high=1
    )
    ae_refinements: int | None = setting(
        None, "most moves towards a threshold; default: the weights' own, else 20", low=0, high=1000
    )
    name, excites, cost = "ae", True, "2T, and 3 a move"

    def complete(self, call) -> None:
        super().complete(call)
        self.group = call.batch and min(GROUP, call.batch)

    def start(self) -> None:
        super().start()
        value = loss_of_rows(self.model, self.conditions["p"], self.peaks_of, self.ae_level)
        moves = (self.ae_step, self.ae_until, self.ae_thresholds, self.ae_refinements)
        self.excitation = Excitation(value, len(self.pairs), *moves, self.gradients, self.group)

    def move(self, z_t: Tensor, t: Tensor) -> Tensor:
        return self.excitation(z_t, t)


class ExcitedAutoDNP(AttendExcite, AutoDNP):
    """phi + s (p - n*), ae with auto-dnp's n*"""

    name, own_rule, cost = "ae+auto-dnp", "negative_prompt", "2T + 3T, and 3 a move"


# -------------------------------------------------------------------------------- the equations


def kernel(dtype: torch.dtype) -> Tensor:
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

    `value(z_t, t, rows)` gives the loss (B,) of these rows of the batch. `passes`, a list of B
    numbers, counts the gradients of each sample, each of them one forward and one backward; no
    sample depends on its batch mates. With `group` each gradient is of so many rows, and fewer are
    filled up with the last one.
    """

    def __init__(
        self, value: Callable[[Tensor, Tensor, Tensor], Tensor], steps: int, ae_step: float,
        ae_until: float, ae_thresholds: Sequence[float], ae_refinements: int, passes: list[int],
        group: int | None = None,
    ):  # fmt: skip
        self.group = group
        self.value, self.steps, self.first, self.until = value, steps, ae_step, ae_until
        self.most, self.wanted = ae_refinements, wanted_losses(steps, ae_thresholds)
        self.i, self.passes = 0, passes

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
        size, parts = self.group or len(rows), []
        for some in rows.split(size):
            filled = torch.cat([some, some[-1:].expand(size - len(some))])
            both = gradient(lambda z, rows=filled: self.value(z, t, rows), z_t[filled])
            parts.append([x[: len(some)] for x in both])
        return tuple(map(torch.cat, zip(*parts)))


def require_subjects(model, prompt: str, method: OfSubjects, given: str | None) -> str:
    """The subjects of a prompt, as in "cat, dog": those given, or of a closed world its own.

    SettingsError if there are none, one is not in the prompt, or the model has no attention.
    """
    if getattr(model, "attention", None) is None:
        raise SettingsError(
            f"method {method.name} reads a network's attention, and this model has none; choose "
            "another."
        )
    if method.excites and torch.is_inference_mode_enabled():
        raise SettingsError(
            f"method {method.name} takes gradients, and torch.inference_mode forbids them; take "
            "torch.no_grad."
        )
    world = getattr(getattr(model, "config", None), "things", ())
    subjects = subjects_of(prompt, given, world, method)
    model.places(prompt, subjects)
    return ", ".join(subjects)


def subjects_of(
    prompt: str, given: str | None, world: Sequence[str], method: OfSubjects | type[OfSubjects]
) -> list[str]:
    """The subjects that are given, or those of a closed world's things that the prompt names."""
    subjects = words(given or "") or things(world, prompt)
    if not subjects:
        raise SettingsError(
            f"method {method.name} needs the subjects of the prompt; add them, as in "
            '`subjects="cat, dog"`.'
        )
    return subjects


def words(subjects: str) -> list[str]:
    """The words of a text such as "cat, dog"."""
    return [word.strip() for word in subjects.split(",") if word.strip()]


def things(world: Sequence[str], prompt: str) -> list[str]:
    """The things of a closed world that a prompt names, in order."""
    return [w for w in re.findall(r"[^\W\d_]+", prompt.lower()) if w in world]


def loss_of_rows(
    model, c: object, peaks_of: Sequence[Callable[[Tensor, Tensor], Tensor]], level: int
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(z_t, t, rows) -> the loss (B,) of the maps that a forward under the conditions `c` of these
    rows has; `c` and `peaks_of` are those of all rows."""

    from dnp.methods.conditions import take

    def value(z_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        with model.attention(level) as maps:
            model.eps(z_t, t, take(c, rows))
        return loss(peaks_of_rows([peaks_of[i] for i in rows.tolist()], maps.mean(), z_t))

    return value


def peaks_of_rows(
    peaks_of: Sequence[Callable[[Tensor, Tensor], Tensor]], maps: Tensor, z_t: Tensor
) -> Tensor:
    """The peaks of each row's own subjects, (B, most); those that a row does not have are inf."""
    each = [of(m, z)[0] for of, m, z in zip(peaks_of, maps.split(1), z_t.split(1))]
    return torch.nn.utils.rnn.pad_sequence(each, batch_first=True, padding_value=math.inf)


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

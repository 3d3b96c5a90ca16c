"""The readings of ANSWER (`dnp/answer.py`): what its paper leaves open, each choice by name.

    tensor      which noise is the negative one, after K_t DNS steps from z_t to z_n at level t_n:
                last           the DNS noise of the last inner step
                next           the DNS noise at z_n: last, with K + 1
                unconditional  eps_phi at z_n
                jump           the noise that takes one DDIM step from z_t to z_n
    form        three-term, phi + s (p - eps_neg), or two-term, eps_neg + s (p - eps_neg)
    normalize   eps_neg gets eps_phi's mean and standard deviation: per sample, channel, or none

A reading is a function of (chain, eps, z_t, t, z_n, t_n), where eps is the last inner step's noise
and `chain` a `dnp.answer.LatentNegative`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dnp.guidance import dns, negative_prompt, negative_prompt_two_term
from dnp.schedule import column


def last(chain, eps: Tensor, z_t: Tensor, t: int, z_n: Tensor, t_n: int) -> Tensor:
    return eps


def following(chain, eps: Tensor, z_t: Tensor, t: int, z_n: Tensor, t_n: int) -> Tensor:
    return dns(*chain.both(z_n, t_n), chain.s_dns)


def unconditional(chain, eps: Tensor, z_t: Tensor, t: int, z_n: Tensor, t_n: int) -> Tensor:
    (eps_phi,) = chain.noises(z_n, torch.tensor(t_n, device=z_n.device), (chain.c_phi,))
    return eps_phi


def jumped(chain, eps: Tensor, z_t: Tensor, t: int, z_n: Tensor, t_n: int) -> Tensor:
    return jump(z_t, z_n, chain.schedule.level(t), chain.schedule.level(t_n), eps)


READINGS = {"last": last, "next": following, "unconditional": unconditional, "jump": jumped}
FORMS = {
    "three-term": negative_prompt,
    "two-term": lambda _, p, n, s: negative_prompt_two_term(p, n, s),
}
RULES = {"three-term": "negative_prompt", "two-term": "negative_prompt_two_term"}
NORMALIZE = ("sample", "channel", "none")


def needs_a_level(tensor: str) -> bool:
    """Whether the reading evaluates where the chain ends."""
    return tensor in ("next", "unconditional")


def jump(z_t: Tensor, z_n: Tensor, abar_t: Tensor, abar_n: Tensor, last: Tensor) -> Tensor:
    """The noise for which one DDIM step (eta = 0) from level abar_t to abar_n leads to z_n.

    eps = (z_n - r z_t) / (sigma_n - r sigma_t),  r = sqrt(abar_n / abar_t)
    Solved from Eq. (12), arXiv:2010.02502. Between equal levels no noise moves anything: `last`.
    """
    if abar_n == abar_t:
        return last
    r = (abar_n / abar_t).sqrt()
    below = (1 - abar_n).sqrt() - r * (1 - abar_t).sqrt()
    eps = (z_n - column(r, z_t) * z_t) / column(below, z_t)
    return eps


def match(eps: Tensor, reference: Tensor, normalize: str) -> Tensor:
    """`eps` with the mean and standard deviation of `reference`, of each sample or channel.

    eps = (eps - mean(eps)) / std(eps) * std(reference) + mean(reference)
    A constant eps has no standard deviation: it becomes the mean. ValueError for "channel" if
    there is nothing but channels.
    """
    if normalize == "none":
        return eps
    if normalize == "channel" and eps.ndim < 3:
        raise ValueError(f'{tuple(eps.shape)} has no channels of several numbers; use "sample".')
    dims = tuple(range(1 if normalize == "sample" else 2, eps.ndim))
    (std, mean), (std_r, mean_r) = (
        torch.std_mean(x, dims, correction=0, keepdim=True) for x in (eps, reference)
    )
    std = torch.where(std > 0, std, 1)
    eps = (eps - mean) / std * std_r + mean_r
    return eps


def check(K: int, K_until: float, tensor: str, form: str, normalize: str) -> None:
    """ValueError, one sentence with the mend, for options that are not possible."""
    for name, value, known in (
        ("tensor", tensor, READINGS),
        ("form", form, FORMS),
        ("normalize", normalize, NORMALIZE),
    ):
        if value not in known:
            raise ValueError(f"{name} = {value!r} is unknown; choose {', '.join(known)}.")
    if type(K) is not int or not 0 <= K <= 1000:
        raise ValueError(f"K = {K} inner steps are not possible; choose 0 to 1000.")
    if not isinstance(K_until, int | float) or not 0 <= K_until <= 1:
        raise ValueError(f"K_until = {K_until} is not possible; choose a fraction from 0 to 1.")

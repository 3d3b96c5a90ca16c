"""The guidance rules of arXiv:2411.05473, one pure function per equation.

    symbol     identifier   meaning
    phi        eps_phi      noise predicted for the empty prompt, eps_theta(z_t; t, tau(""))
    p          eps_p        noise predicted for the prompt p
    n          eps_n        noise predicted for a negative prompt n
    n*         n_star       the diffusion-negative prompt: words for the image that DNS makes
    s          s            guidance scale of Eq. (3): s = 0 unconditional, s = 1 conditional
    z_t        z_t          latent at level t; z_next at the next cleaner level t_next
    z_0 hat    z0_hat       predicted clean latent
    abar_t     abar_t       cumulative alpha; sigma_t = sqrt(1 - abar_t)
    E_c        E_c          energy, -log p_t(z_t | c) up to a constant; eps_c = sigma_t grad E_c
    K_t        K_t          inner DNS steps of ANSWER at t; the K of Eq. (15) is `norm_sq`

Every rule takes noise predictions of one shape (B, *S) and returns that shape. A scale is a
number, or a (B,) tensor with one for each sample. Every linear rule is a row of coefficients on
(phi, p, n) that sum to 1 (`coefficients`), so it means the same for noise, z0_hat, velocity and
score.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dnp.per_sample import Scale, dot, of_samples, per_sample
from dnp.schedule import column


@per_sample
def cfg(eps_phi: Tensor, eps_p: Tensor, s: Scale) -> Tensor:
    """Classifier-free guidance towards p.

    eps = eps_phi + s * (eps_p - eps_phi)
    Eq. (3), arXiv:2411.05473; Ho and Salimans, arXiv:2207.12598, whose w is s - 1.
    """
    eps = eps_phi + s * (eps_p - eps_phi)
    return eps


@per_sample
def negative_prompt(eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: Scale) -> Tensor:
    """Negative prompting with three evaluations: towards p, away from n.

    eps = eps_phi + s * (eps_p - eps_n)
    Eqs. (4) and (5), arXiv:2411.05473. With n = phi it is Eq. (3).
    """
    eps = eps_phi + s * (eps_p - eps_n)
    return eps


@per_sample
def negative_prompt_two_term(eps_p: Tensor, eps_n: Tensor, s: Scale) -> Tensor:
    """Negative prompting with two evaluations, as pipelines do it: n takes the place of phi.

    eps = eps_n + s * (eps_p - eps_n)
    The form after Eq. (5), arXiv:2411.05473. It is Eq. (4) less eps_phi - eps_n, at every s.
    """
    eps = eps_n + s * (eps_p - eps_n)
    return eps


@per_sample
def negative_prompt_two_scale(
    eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: Scale, h: Scale
) -> Tensor:
    """Negative prompting with a scale s for p and a scale h for n.

    eps = eps_phi + s * (eps_p - eps_phi) - h * (eps_n - eps_phi)
    Contains Eq. (4), arXiv:2411.05473, at h = s, the two-term form at h = s - 1, Eq. (3) at h = 0.
    """
    eps = eps_phi + s * (eps_p - eps_phi) - h * (eps_n - eps_phi)
    return eps


@per_sample
def dns(eps_phi: Tensor, eps_p: Tensor, s: Scale) -> Tensor:
    """Diffusion-negative sampling: away from p.

    eps = eps_phi + s * (eps_phi - eps_p)
    Eq. (19), arXiv:2411.05473. Eq. (20): it is negative prompting, Eq. (4), with positive prompt
    phi and negative prompt p. It is also Eq. (3) at -s, and the two-term form with positive phi
    and negative p at s + 1: a pipeline's `guidance_scale` for DNS is s + 1.
    """
    eps = eps_phi + s * (eps_phi - eps_p)
    return eps


def optimal_negative(eps_p: Tensor, norm_sq: float | Tensor | None = None) -> Tensor:
    """Of all noises with squared norm `norm_sq` per sample, the farthest from eps_p.

    eps_n = -sqrt(norm_sq) * eps_p / ||eps_p||
    Eq. (15), arXiv:2411.05473: the maximum of Eq. (14), || eps_p - eps_n ||^2, by Cauchy-Schwarz.
    None means ||eps_p||^2, which gives -eps_p; as a density this would be Eq. (16),
    p(z_t | n*) ~ 1 / p(z_t | p), which is improper. `norm_sq` is a number or (B,), not negative.
    """
    if norm_sq is None:
        return -eps_p
    norm_sq = torch.as_tensor(norm_sq, dtype=torch.float64).to(eps_p.device)
    if (norm_sq < 0).any():
        raise ValueError(f"norm_sq is a squared norm and cannot be negative: {norm_sq.tolist()}")
    eps_n = -column((norm_sq / dot(eps_p, eps_p)).sqrt(), eps_p) * eps_p
    return eps_n


def compose(eps_phi: Tensor, terms: Sequence[tuple[Scale, Tensor]]) -> Tensor:
    """Composition of several prompts with signed weights: AND for w > 0, NOT for w < 0.

    eps = eps_phi + sum_i w_i * (eps_i - eps_phi)
    Liu et al., arXiv:2206.01714. One term is Eq. (3), the terms (s, p), (-s, n) are Eq. (4).
    """
    terms = [(of_samples(w, eps_phi), eps_i) for w, eps_i in terms]
    eps = eps_phi + sum(w * (eps_i - eps_phi) for w, eps_i in terms)
    return eps


# ------------------------------------------------------------------------- the rules as numbers


def coefficients(method: str, s: float, h: float | None = None) -> tuple[float, float, float]:
    """The coefficients of a rule on (eps_phi, eps_p, eps_n); they sum to 1.

    cfg (1-s, s, 0)   np (1, s, -s)   np2 (0, s, 1-s)   dns (1+s, -s, 0)
    With `h`, np is the two-scale form (1-s+h, s, -h). ValueError for another method.
    """
    table = {
        "cfg": (1 - s, s, 0.0),
        "np": (1.0, s, -s) if h is None else (1 - s + h, s, -h),
        "np2": (0.0, s, 1 - s),
        "dns": (1 + s, -s, 0.0),
    }
    if method not in table:
        raise ValueError(f"no coefficients for {method!r}; the linear rules are {', '.join(table)}")
    return table[method]


def two_term_scale(eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: Scale) -> Tensor:
    """The scale (B,) at which the two-term form comes nearest to Eq. (4) at s.

    s' = s + <phi - n, p - n> / || p - n ||^2
    The least-squares solution of "similar results for a slightly different s" (arXiv:2411.05473,
    after Eq. 5). What is left is the part of phi - n orthogonal to p - n: none iff the three
    predictions lie on one line. NaN for a sample whose p and n coincide.
    """
    d = eps_p - eps_n
    return s + dot(eps_phi - eps_n, d) / dot(d, d)


def effective_scale(eps: Tensor, eps_phi: Tensor, eps_p: Tensor) -> tuple[Tensor, Tensor]:
    """How much of CFG there is in any rule's eps, and how long the rest is: two tensors (B,).

    s_eff = <eps - eps_phi, dp> / |dp|^2,  rest = |eps - eps_phi - s_eff * dp| / |dp|
    Our reading of the abstract of arXiv:2602.22570; dp is eps_p - eps_phi. Neither has a unit: the
    rest, which is at right angles to dp, is in lengths of dp. CFG at s: s and 0. Perp-Neg: s,
    whatever n is. Both are NaN for a sample whose p is phi.
    """
    push, dp = eps - eps_phi, eps_p - eps_phi
    s_eff = dot(push, dp) / dot(dp, dp)
    rest = push - column(s_eff, dp) * dp
    return s_eff, (dot(rest, rest) / dot(dp, dp)).sqrt()

"""Other papers' rules for a negative, one pure function each, and `RULES`, the names of them all.

A rule is any callable whose parameter names say what it needs: `eps_phi`, `eps_p`, `eps_n`, `s`,
`h` (None: s), `z_t`, `t`, `t_next`, `sigma_t`, `sigma_next`; every other parameter is an option
with a default. A rule with a memory is a class whose options are its constructor's; its objects
have `reset(z_T)` before a chain and `observe(z_t, z_next, t, t_next, **eps)` after each step.

    dp, dn      eps_p - eps_phi and eps_n - eps_phi
    <a, b>, |a| of each sample, over all of its elements, never over the batch
    sigma       the variance-exploding sigma_t / sqrt(1 - sigma_t^2) where a source has that one

Autoguidance (Karras et al., arXiv:2406.02507), bad + s (good - bad) with a worse network and the
same prompt, needs no function: it is `negative_prompt_two_term` with eps_n from that network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dnp import guidance
from dnp.energy import eps_from_z0, z0_from_eps
from dnp.per_sample import Scale, dot, per_sample
from dnp.sampling import ddim_step
from dnp.schedule import column


@per_sample
def perp_neg(eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: Scale, w: Scale = 1.0) -> Tensor:
    """Negative prompting with the part of n that is at right angles to p, so that p keeps its pull.

    eps = eps_phi + s * (dp - w * (dn - <dn, dp> / |dp|^2 * dp))
    Perp-Neg, arXiv:2304.04968. Where p = phi nothing is along dp. The same for eps, z0_hat and v.
    """
    dp, dn = eps_p - eps_phi, eps_n - eps_phi
    eps = eps_phi + s * (dp - w * (dn - along(dn, dp)))
    return eps


@per_sample
def ccfg(
    eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: Scale, tau: float = 0.2, plain: bool = False
) -> Tensor:
    """Contrastive guidance: the farther n is from phi, the less it pushes.

    eps = eps_phi + s * (a * dp - b * dn),  a = 2 sigmoid(tau |dp|^2),  b = 2 sigmoid(-tau |dn|^2)
    ContrastiveCFG (CCFG), arXiv:2411.17077, ICML 2026; `plain` is a = 1. The push of n is at most
    s 0.5557 / sqrt(tau). Means the same for z0_hat with tau / sigma^2 and for v with tau abar_t.
    """
    dp, dn = eps_p - eps_phi, eps_n - eps_phi
    a = 1.0 if plain else column(2 * torch.sigmoid(tau * dot(dp, dp)), dp)
    b = column(2 * torch.sigmoid(-tau * dot(dn, dn)), dn)
    eps = eps_phi + s * (a * dp - b * dn)
    return eps


@per_sample
def dng(
    eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: Scale, P: float | Tensor, g: Scale = 1.0
) -> Tensor:
    """Dynamic negative guidance: n pushes by the odds that the sample shows it.

    eps = eps_phi + s * dp - g * P / (1 - P) * dn,  P = p(n | z_t)
    DNG, arXiv:2410.14398; `P` is a number or (B,), below 1; `DNG` finds it. With the exact P and
    g = 1, and p = phi, it is the noise of "not n". The same for eps, z0_hat and v.
    """
    dp, dn = eps_p - eps_phi, eps_n - eps_phi
    odds = column(P / (1 - P), dn) if isinstance(P, Tensor) else P / (1 - P)
    eps = eps_phi + s * dp - g * odds * dn
    return eps


@per_sample
def bounded(
    eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: Scale, h: Scale | None = None, r: float = 0.25
) -> Tensor:
    """Two scales, the push of n cut to the fraction r of the prompt's.

    eps = eps_phi + s * dp - min(1, r |s dp| / |h dn|) * h * dn
    Ours; r = inf is `negative_prompt_two_scale`. The same for eps, z0_hat and v.
    """
    dp, dn = s * (eps_p - eps_phi), (s if h is None else h) * (eps_n - eps_phi)
    eps = eps_phi + dp - clip(dn, r * dot(dp, dp).sqrt() if r < math.inf else r)
    return eps


@per_sample
def half_space(eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: Scale, tau: float = 0.0) -> Tensor:
    """The push of CFG, moved to the nearest one with at most tau of dn along dn.

    eps = eps_phi + s * dp - max(0, <s dp, dn> / |dn|^2 - tau) * dn
    Our reading of the abstracts of arXiv:2606.29801 (CRG) and arXiv:2603.06533 (NEGATE). Where
    n = phi it is CFG, but it has no limit as n nears phi. At tau < 0 the push of n grows with dn.
    The same for eps, z0_hat and v.
    """
    u, dn = s * (eps_p - eps_phi), eps_n - eps_phi
    k = (over(dot(u, dn), dot(dn, dn)) - tau).clamp(min=0)
    eps = eps_phi + u - column(k, dn) * dn
    return eps


@per_sample
def perp_neg_dual(
    eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: Scale, tau: float = 0.2, floor: float = 0.1
) -> Tensor:
    """The dual of Perp-Neg: n pushes only as far as p does not lead away from it already.

    eps = eps_phi + s * (dp - g * b * dn),  b = 2 sigmoid(-tau |dn|^2)
    g = max(0, 1 + <dp, dn> / (|dn|^2 + floor |dp|^2))
    Ours. At tau = floor = 0 it is `half_space` at tau = -s. A floor above 0 (0.1 is a choice) makes
    it CFG as n nears phi, and tau > 0 bounds the push of n. Means the same for z0_hat with
    tau / sigma^2 and for v with tau abar_t.
    """
    dp, dn = eps_p - eps_phi, eps_n - eps_phi
    dn_sq = dot(dn, dn)
    g = (1 + over(dot(dp, dn), dn_sq + floor * dot(dp, dp))).clamp(min=0)
    b = 2 * torch.sigmoid(-tau * dn_sq)
    eps = eps_phi + s * (dp - column(g * b, dn) * dn)
    return eps


@per_sample
def apg(
    eps_phi: Tensor, eps_p: Tensor, s: Scale, eta: Scale = 0.0, r: float = 2.5,
    d: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Adaptive projected guidance: the part of dp along p, which saturates, is scaled by eta.

    eps = eps_p + (s - 1) * (d - d_par + eta * d_par),  d = min(1, r / |d|) * d,  d_par along eps_p
    APG, arXiv:2410.02416. `d` is dp unless given: `APG` gives it a momentum. Not the same for
    eps, z0_hat and v, because it splits along p itself.
    """
    d = clip(eps_p - eps_phi if d is None else d, r)
    d_par = along(d, eps_p)
    eps = eps_p + (s - 1) * (d - d_par + eta * d_par)
    return eps


@per_sample
def cfg_zero_star(eps_phi: Tensor, eps_p: Tensor, s: Scale) -> Tensor:
    """Guidance from the best multiple of phi instead of phi.

    eps = a * eps_phi + s * (eps_p - a * eps_phi),  a = <p, phi> / |phi|^2
    CFG-Zero*, arXiv:2503.18886, made for the velocity of a flow; its zeroed first step is left
    out. Not the same for eps, z0_hat and v.
    """
    a_phi = along(eps_p, eps_phi)
    eps = a_phi + s * (eps_p - a_phi)
    return eps


def cfg_plus_plus(
    eps_phi: Tensor, eps_p: Tensor, sigma_t: Tensor, sigma_next: Tensor | None, lam: float = 0.6
) -> Tensor:
    """CFG++ (z0_hat guided by lam, noise put back with phi) as a schedule of the scale along DDIM.

    eps = eps_phi + s_t * dp,  s_t = lam sigma / (sigma - sigma_next)
    CFG++, arXiv:2406.08070; `sigma_t` and `sigma_next` are sqrt(1 - abar), the equation's sigma is
    VE. ValueError where the next level is missing or is the same one: no scale does it.
    The same for eps, z0_hat and v.
    """
    if sigma_next is None or sigma_next >= sigma_t:
        raise ValueError("CFG++ steps to a cleaner level; choose ddim and fewer than 1000 steps.")
    sigma, sigma_n = (x / (1 - x**2) ** 0.5 for x in (sigma_t, sigma_next))
    s_t = lam * sigma / (sigma - sigma_n)
    s_t = column(s_t, eps_p) if isinstance(s_t, Tensor) else s_t
    eps = eps_phi + s_t * (eps_p - eps_phi)
    return eps


def cfg_schedule(
    eps_phi: Tensor, eps_p: Tensor, t: Tensor, levels: Sequence[int] = (999,),
    scales: Sequence[float] = (3.0,),
) -> Tensor:  # fmt: skip
    """CFG with a scale for each step.

    eps = eps_phi + s_t * dp,  s_t the scale of the lowest of `levels` at or above t, else the first
    Ours, as a control: a schedule that has the strength of another rule. `levels` fall, and
    `scales` has one for each; ValueError if not. The same for eps, z0_hat and v.
    """
    if not 0 < len(levels) == len(scales) or list(levels) != sorted(levels, reverse=True):
        raise ValueError("cfg_schedule needs falling levels and a scale for each; fix them.")
    s_t = scales[max(sum(level >= int(t) for level in levels) - 1, 0)]
    eps = eps_phi + s_t * (eps_p - eps_phi)
    return eps


# ------------------------------------------------------------------- rules with a memory


class APG:
    """APG as its paper runs it: on z0_hat, with a momentum that undoes what repeats.

    eps = eps_p + (s - 1) * (d - d_par + eta * d_par),  d = dp + beta * (last d)
    arXiv:2410.02416. `space` is x0 or eps, where dp, p and r are taken; the z0_hat that results is
    given back as a noise. See `apg`.
    """

    def __init__(
        self, eta: float = 0.0, beta: float = -0.75, r: float = 2.5, space: str = "x0"
    ) -> None:
        if space not in ("x0", "eps"):
            raise ValueError(f"space = {space!r} is unknown; choose x0 or eps.")
        self.eta, self.beta, self.r, self.space = eta, beta, r, space
        self.reset()

    def reset(self, z_T: Tensor | None = None) -> None:
        self.last, self.d = 0.0, 0.0

    def __call__(
        self, eps_phi: Tensor, eps_p: Tensor, s: Scale, z_t: Tensor, sigma_t: Tensor
    ) -> Tensor:
        abar_t = 1 - torch.as_tensor(sigma_t) ** 2
        if self.space == "x0":
            eps_phi, eps_p = (z0_from_eps(z_t, e, abar_t) for e in (eps_phi, eps_p))
        self.d = eps_p - eps_phi + self.beta * self.last
        eps = apg(eps_phi, eps_p, s, self.eta, self.r, self.d)
        return eps_from_z0(z_t, eps, abar_t) if self.space == "x0" else eps

    def observe(self, z_t: Tensor, z_next: Tensor, t: int, t_next: int, **eps: Tensor) -> None:
        self.last = self.d


class DNG:
    """DNG with its posterior: exact where one is given, else tracked along the ancestral chain.

    eps = eps_phi + s * dp - g * P / (1 - P) * dn,  P = p(n | z_t) clamped to [p_min, p_max]
    log P += (offset - temperature (|z_next - mu_n|^2 - |z_next - mu_phi|^2)) / (2 var)
    arXiv:2410.14398; mu_c and var are DDPM's posterior mean from eps_c and variance, `prior` is the
    first P. `posterior(z_t, t) -> (B,)` is the exact one of a toy. The tracked one reads the noise
    of eta = 1 (`chain_eta`): ValueError where a step had none.
    """

    chain_eta = 1.0

    def __init__(
        self, g: float = 5.0, prior: float = 0.01, temperature: float = 0.2, offset: float = 2e-4,
        p_min: float = 1e-6, p_max: float = 0.8, posterior: Callable | None = None,
    ) -> None:  # fmt: skip
        if not 0 < p_min <= prior <= p_max < 1:
            raise ValueError("DNG needs 0 < p_min <= prior <= p_max < 1; change its options.")
        self.g, self.prior, self.temperature, self.offset = g, prior, temperature, offset
        self.clamp, self.posterior = (p_min, p_max), posterior
        if posterior is not None:
            self.chain_eta = None
        self.P: Tensor = torch.tensor(prior, dtype=torch.float64)

    def reset(self, z_T: Tensor) -> None:
        self.P = torch.full((len(z_T),), self.prior, dtype=torch.float64)

    def __call__(
        self, eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: Scale,
        z_t: Tensor, t: Tensor, sigma_t: Tensor, sigma_next: Tensor | None,
    ) -> Tensor:  # fmt: skip
        if self.posterior is not None:
            self.P = self.posterior(z_t, t).clamp(*self.clamp)
        self.sigmas, self.eps = (sigma_t, sigma_next), dng(eps_phi, eps_p, eps_n, s, self.P, self.g)
        return self.eps

    def observe(
        self, z_t: Tensor, z_next: Tensor, t: int, t_next: int,
        eps_phi: Tensor, eps_n: Tensor, **eps: Tensor,
    ) -> None:  # fmt: skip
        if self.posterior is not None or self.sigmas[1] is None:
            return
        abar_t, abar_next = (1 - torch.as_tensor(x) ** 2 for x in self.sigmas)
        var = (1 - abar_next) / (1 - abar_t) * (1 - abar_t / abar_next)
        if var <= 0:  # the clean end: no step is left to weigh
            return
        if torch.allclose(z_next, ddim_step(z_t, self.eps, abar_t, abar_next)[0], 1e-3, 1e-4):
            raise ValueError("DNG reads its posterior from the chain's noise; choose eta = 1.")
        none = torch.zeros_like(z_t)
        d_n, d_phi = (
            z_next - ddim_step(z_t, e, abar_t, abar_next, 1.0, none)[0] for e in (eps_n, eps_phi)
        )
        farther = (dot(d_n, d_n) - dot(d_phi, d_phi)).cpu().double()
        log_P = self.P.log() + (self.offset - self.temperature * farther) / (2 * var)
        self.P = log_P.exp().clamp(*self.clamp)


# --------------------------------------------------------------------------- of each sample


def along(a: Tensor, b: Tensor) -> Tensor:
    """The part of a along b, <a, b> / |b|^2 * b; zero where b is."""
    return column(over(dot(a, b), dot(b, b)), b) * b


def clip(d: Tensor, r: float | Tensor) -> Tensor:
    """min(1, r / |d|) * d, which has a norm of at most r, a number or (B,)."""
    return column(over(r, dot(d, d).sqrt()).clamp(max=1), d) * d


def over(a: float | Tensor, b: Tensor) -> Tensor:
    """a / b, and a where b is 0."""
    return a / torch.where(b > 0, b, 1)


RULES: dict[str, Callable] = {
    "cfg": guidance.cfg,
    "negative_prompt": guidance.negative_prompt,
    "negative_prompt_two_term": guidance.negative_prompt_two_term,
    "negative_prompt_two_scale": guidance.negative_prompt_two_scale,
    "dns": guidance.dns,
    "perp_neg": perp_neg,
    "ccfg": ccfg,
    "dng": DNG,
    "bounded": bounded,
    "half_space": half_space,
    "perp_neg_dual": perp_neg_dual,
    "apg": APG,
    "cfg_zero_star": cfg_zero_star,
    "cfg_plus_plus": cfg_plus_plus,
    "cfg_schedule": cfg_schedule,
}

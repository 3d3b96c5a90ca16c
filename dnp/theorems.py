"""Theorems of guidance as functions, in float64; `tests/test_theorems.py` states and proves each.

    T1  ddim_log_det                     the entropies average
    T2  ddim_mean, ddpm_mean             how far a chain moves the mean
    T3  energy.mixture_is_proper         properness is a Renyi divergence
    T4  posterior_scale, complement      DNS at the odds is "not p"
    T6  particles.sample                 the law itself, from the noises alone
    T7  kl_of_arrow                      the information of a prompt
    T8  error_gain                       what a learned error becomes
    T9  energy.u_from_eps                linear rules mean the same for a flow

T5 (which weights are energies) is `testing.assert_energy`; T10 is tested only. `gaussian_chain` of
`dnp.energy` is the recursion whose limits T1 and T2 are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dnp.schedule import column


def ddim_log_det(weights: Sequence[float], covariances: Tensor) -> Tensor:
    """log det of the covariance that DDIM returns in many steps: the entropies average (T1).

    log det V = sum_i w_i log det C_i,  any dimension, any covariances (n, D, D)
    """
    return torch.as_tensor(weights, dtype=covariances.dtype) @ torch.logdet(covariances)


def ddim_mean(v_phi: float, v_p: float, s: float, points: int = 20_000) -> float:
    """The share of mu_p - mu_phi that DDIM's mean has moved under Eq. (3), in many steps (T2).

    share = s 2F1(1, (1-s)/2; 3/2; 1 - v_p / v_phi)
          = s int_0^1 (v_p / v_phi + (1 - v_p / v_phi) y^2)^((s-1)/2) dy
    """
    y = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return s * ((v_p + (v_phi - v_p) * y**2) / v_phi).pow((s - 1) / 2).mean().item()


def ddpm_mean(v_phi: float, v_p: float, s: float) -> float:
    """The same share for DDPM (T2); v_phi and v_p differ.

    share = (r - r^(1-s)) / (r - 1),  r = v_phi / v_p
    """
    r = v_phi / v_p
    return (r - r ** (1 - s)) / (r - 1)


def posterior_scale(P: float | Tensor) -> float | Tensor:
    """The scale at which DNS, Eq. (19), is exactly "not p", P = P(p | z_t): the odds of p (T4).

    s_t = P / (1 - P)
    """
    return P / (1 - P)


def complement(eps_phi: Tensor, eps_p: Tensor, P: float | Tensor) -> Tensor:
    """The noise of "everything but p", from those of everything and of p (T4).

    eps = eps_phi + P / (1 - P) * (eps_phi - eps_p),  since eps_phi = P eps_p + (1 - P) eps
    P is P(p | z_t), a number or (B,), below 1.
    """
    return eps_phi + column(posterior_scale(P), eps_phi) * (eps_phi - eps_p)


def kl_of_arrow(squares: Tensor, sigma_ve: Tensor) -> float:
    """KL(p(. | p) || p), the information of a prompt, as the length of its arrow (T7).

    KL = 1/2 int E |eps_p - eps_phi|^2 d log sigma^2,  over noised samples of p
    `squares` (n,) are the expectations at the variance-exploding `sigma_ve` (n,), both in order.
    """
    return 0.5 * torch.trapezoid(squares, 2 * sigma_ve.log()).abs().item()


def error_gain(weights: Sequence[float]) -> float:
    """The factor by which independent errors of the noises grow in a linear rule (T8).

    gain = sqrt(sum_i w_i^2);  an error that all share passes once, because the weights sum to 1
    """
    return math.hypot(*weights)

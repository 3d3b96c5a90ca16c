"""Energies: what each guidance rule does to the density, and when that is a density at all.

An energy is a callable E_c: (B, *S) -> (B,), equal to -log p_t(z_t | c) up to a constant in z_t.
Noise, score and energy are three names of one thing,

    eps_c = -sigma_t * score_c = sigma_t * grad E_c,

so a sum of energies with weights is a sum of noise predictions with the same weights. Eq. (6) of
arXiv:2411.05473 leaves sigma_t out: harmless in linear rules, wrong in energies and gradients.
Levels (`sigma_t`, `abar_t`) are numbers, () or (B,) tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dnp.sampling import ddim_step
from dnp.schedule import column

Energy = Callable[[Tensor], Tensor]  # (B, *S) -> (B,)


def score_from_eps(eps: Tensor, sigma_t: float | Tensor) -> Tensor:
    """The score grad log p_t(z_t | c).

    score = -eps / sigma_t
    Eq. (6), arXiv:2411.05473, with the sigma_t that it drops. Shapes as `eps`.
    """
    return -eps / column(sigma_t, eps)


def eps_from_score(score: Tensor, sigma_t: float | Tensor) -> Tensor:
    """The noise prediction that belongs to a score.

    eps = -sigma_t * score
    Inverse of Eq. (6), arXiv:2411.05473. Shapes as `score`.
    """
    return -column(sigma_t, score) * score


def eps_from_energy(E: Energy, z_t: Tensor, sigma_t: float | Tensor) -> Tensor:
    """The noise prediction that belongs to an energy, by automatic differentiation.

    eps = sigma_t * grad E(z_t)
    Eq. (6), arXiv:2411.05473. `z_t` (B, *S) -> (B, *S); `E` must treat samples separately.
    """
    with torch.enable_grad():
        z = z_t.detach().requires_grad_()
        (grad,) = torch.autograd.grad(E(z).sum(), z)
    return column(sigma_t, z_t) * grad


def compose_energies(weights: Sequence[float], energies: Sequence[Energy]) -> Energy:
    """The energy of a product of densities raised to powers, up to a constant.

    E(z) = sum_i w_i E_i(z),  so that  p(z) ~ prod_i p_i(z)^w_i
    Liu et al., arXiv:2206.01714. A negative weight divides. ValueError if the lengths differ.
    """
    terms = list(zip(weights, energies, strict=True))
    return lambda z: sum(w * E(z) for w, E in terms)


def cfg_energy(E_phi: Energy, E_p: Energy, s: float) -> Energy:
    """The energy that classifier-free guidance follows at one level.

    E = E_phi + s * (E_p - E_phi),  the law p(z_t) gamma^s with gamma = p(z_t | p) / p(z_t)
    Eqs. (7) and (8), arXiv:2411.05473. By Bayes' rule gamma is p(p | z_t) up to a constant where p
    is a part of phi, so that gamma is at most 1 / p(p). In a `Gaussian` toy it need not be one.
    """
    return compose_energies((1 - s, s), (E_phi, E_p))


def negative_prompt_energy(E_phi: Energy, E_p: Energy, E_n: Energy, s: float) -> Energy:
    """The energy that negative prompting follows at one level.

    E = E_phi + s * (E_p - E_n),  the law p(z_t) gamma^s with gamma = p(z_t | p) / p(z_t | n)
    Eqs. (9) and (10), arXiv:2411.05473.
    """
    return compose_energies((1, s, -s), (E_phi, E_p, E_n))


def dns_energy(E_phi: Energy, E_p: Energy, s: float) -> Energy:
    """The energy that diffusion-negative sampling follows at one level.

    E = E_phi + s * (E_phi - E_p),  the law p(z_t) gamma^s with gamma = p(z_t) / p(z_t | p)
    Eqs. (17) and (18), arXiv:2411.05473. p(z_t) does not always make it proper: `is_proper`.
    """
    return compose_energies((1 + s, -s), (E_phi, E_p))


def log_odds(E_p: Energy, E_n: Energy) -> Energy:
    """log of the odds of p against n, up to a constant.

    log o(z) = E_n(z) - E_p(z),  o = p(p | z_t) / p(n | z_t)
    Eq. (11), arXiv:2411.05473, which calls them the odds that z_t belongs to p and not to n. They
    are that only where p and n exclude each other: a point that is both has o = 1. This is why
    Eq. (4) does not sample "p and not n".
    """
    return lambda z: E_n(z) - E_p(z)


def log_odds_gradient(eps_p: Tensor, eps_n: Tensor, sigma_t: float | Tensor) -> Tensor:
    """grad log o, what negative prompting adds s times to the score.

    grad log o = (eps_n - eps_p) / sigma_t
    Eqs. (12) and (13), arXiv:2411.05473; the paper's (13) has the other sign, which its (14)
    squares away: see `dnp.guidance.optimal_negative`. Shapes as `eps_p`.
    """
    return (eps_n - eps_p) / column(sigma_t, eps_p)


# ----------------------------------------------------------- z_0 and v, the other two languages


def z0_from_eps(z_t: Tensor, eps: Tensor, abar_t: float | Tensor) -> Tensor:
    """The predicted clean latent, shaped like `z_t`.

    z0_hat = (z_t - sqrt(1 - abar_t) * eps) / sqrt(abar_t)
    Eq. (9), arXiv:2010.02502 (DDIM).
    """
    sqrt_abar, sigma_t = _roots(abar_t, z_t)
    return (z_t - sigma_t * eps) / sqrt_abar


def eps_from_z0(z_t: Tensor, z0_hat: Tensor, abar_t: float | Tensor) -> Tensor:
    """The noise prediction that belongs to a predicted clean latent, shaped like `z_t`.

    eps = (z_t - sqrt(abar_t) * z0_hat) / sqrt(1 - abar_t)
    The inverse of `z0_from_eps`.
    """
    sqrt_abar, sigma_t = _roots(abar_t, z_t)
    return (z_t - sqrt_abar * z0_hat) / sigma_t


def v_from_eps(z_t: Tensor, eps: Tensor, abar_t: float | Tensor) -> Tensor:
    """The velocity of Salimans and Ho, shaped like `z_t`.

    v = sqrt(abar_t) * eps - sqrt(1 - abar_t) * z0_hat
    Section 4, arXiv:2202.00512.
    """
    sqrt_abar, sigma_t = _roots(abar_t, z_t)
    return sqrt_abar * eps - sigma_t * z0_from_eps(z_t, eps, abar_t)


def eps_from_v(z_t: Tensor, v: Tensor, abar_t: float | Tensor) -> Tensor:
    """The noise prediction that belongs to a velocity, shaped like `z_t`.

    eps = sqrt(abar_t) * v + sqrt(1 - abar_t) * z_t
    Section 4, arXiv:2202.00512.
    """
    sqrt_abar, sigma_t = _roots(abar_t, z_t)
    return sqrt_abar * v + sigma_t * z_t


def u_from_eps(z_t: Tensor, eps: Tensor, abar_t: float | Tensor) -> Tensor:
    """The velocity of flow matching, shaped like `z_t`.

    u = eps - z0_hat
    arXiv:2210.02747, where z = (1 - a) z_0 + a eps. Affine in eps, so linear rules commute (T9).
    """
    return eps - z0_from_eps(z_t, eps, abar_t)


def _roots(abar_t: float | Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(abar_t) and sigma_t, rooted in float64 and then ready to multiply z."""
    abar_t = torch.as_tensor(abar_t, dtype=torch.float64, device="cpu")
    return column(abar_t.sqrt(), z), column((1 - abar_t).sqrt(), z)


# --------------------------------------------------------- products of Gaussians in closed form


def product_of_gaussians(
    weights: Sequence[float], means: Tensor, covariances: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (D,) and precision (D, D) of prod_i N(mean_i, covariance_i)^w_i.

    L = sum_i w_i C_i^-1,   mean = L^-1 sum_i w_i C_i^-1 mean_i
    `means` (n, D), `covariances` (n, D, D). At level t pass sqrt(abar) mean and
    abar C + (1 - abar) I. The result is a density only if L is positive definite (`is_proper`).
    ValueError where L has no inverse: the product is flat along a line, so it has no mean.
    """
    w = torch.as_tensor(weights, dtype=means.dtype)[:, None, None]
    precisions = w * torch.linalg.inv(covariances)  #                (n, D, D)
    L = precisions.sum(0)
    if torch.linalg.matrix_rank(L, hermitian=True) < len(L):
        raise ValueError("the precisions cancel, so the product has no mean; choose another scale.")
    return torch.linalg.solve(L, (precisions @ means[..., None]).sum(0))[:, 0], L


def is_proper(weights: Sequence[float], covariances: Tensor) -> bool:
    """Whether prod_i N(., covariances[i])^w_i can be normalised.

    L = sum_i w_i C_i^-1 is positive definite
    The case of Eq. (16), arXiv:2411.05473: 1 / p(z_t | p) alone, w = (-1,), never is, nor for any
    other density. In one dimension, for s > 0, DNS, w = (1 + s, -s) on (phi, p), is improper iff
    var_p < var_phi and s >= var_p / (var_phi - var_p); CFG, w = (1 - s, s), is improper iff
    var_p > var_phi and s >= var_p / (var_p - var_phi). `covariances` (n, D, D).
    """
    w = torch.as_tensor(weights, dtype=covariances.dtype)[:, None, None]
    if not w.any():
        return False
    L, whole = ((x * torch.linalg.inv(covariances)).sum(0) for x in (w, w.abs()))
    half = torch.linalg.cholesky(whole)  # in its units a flat direction is 0, however wide it is
    L = torch.linalg.solve_triangular(half, L, upper=False)
    L = torch.linalg.solve_triangular(half, L.mT, upper=False)
    return bool(torch.linalg.eigvalsh(L).min() > 1e-12)  # 0 is flat, so improper


# -------------------- one line, N(0, v_phi) and N(0, v_p): what is wanted, and what chains sample


def tilted_variance(v_phi: float | Tensor, v_p: float | Tensor, s: float | Tensor):
    """The variance of Eq. (8)'s law, p(z)^(1-s) p(z | p)^s: a harmonic mean
    with weights, extrapolated for s outside 0 to 1.

    variance = 1 / ((1 - s) / v_phi + s / v_p)
    `product_of_gaussians` in one dimension. Not positive: the law is not a density.
    """
    return 1 / ((1 - s) / v_phi + s / v_p)


def ddim_variance(v_phi: float | Tensor, v_p: float | Tensor, s: float | Tensor):
    """The variance that DDIM (eta = 0, many steps) returns under Eq. (3): a geometric mean,
    extrapolated for s outside 0 to 1.

    variance = v_phi^(1-s) * v_p^s
    The probability-flow ODE, dz / d(sigma^2) = z ((1-s) / (v_phi + sigma^2) + s / (v_p + sigma^2))
    / 2, from the limit of pure noise; sigma is the variance-exploding one. DNS is -s.
    """
    return v_phi ** (1 - s) * v_p**s


def ddpm_variance(v_phi: float | Tensor, v_p: float | Tensor, s: float | Tensor):
    """The variance that DDPM (eta = 1, many steps) returns under Eq. (3).

    variance = v_phi f((1 - 2s) x) / f(x),  x = log(v_phi / v_p),  f(y) = (e^y - 1) / y
    The reverse SDE, as `ddim_variance`:
    v_phi^(2-2s) v_p^(2s) ((v_phi / v_p)^(2s-1) - 1) / ((v_phi - v_p) (2s-1)) without its 0 / 0 at
    s = 1/2 and at v_phi = v_p, where f is 1. Numbers give a number, tensors a tensor.
    """
    given = (v_phi, v_p, s)
    v_phi, v_p, s = (torch.as_tensor(x, dtype=torch.float64) for x in given)
    x = (v_phi / v_p).log()
    variance = v_phi * _growth((1 - 2 * s) * x) / _growth(x)
    return variance if any(isinstance(x, Tensor) for x in given) else variance.item()


def _growth(y: Tensor) -> Tensor:
    """(e^y - 1) / y, which is 1 at 0."""
    return torch.where(y == 0, 1.0, torch.expm1(y) / torch.where(y == 0, 1.0, y))


# ----------------------- chains and mixtures, exactly; more theorems stand in theorems.py


def gaussian_chain(
    weights: Sequence[float], means: Tensor, covariances: Tensor, levels: Sequence[float],
    eta: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The mean (D,) and covariance (D, D) that a guided chain returns on Gaussians, exactly.

    eps(z) = sigma_t sum_i w_i (abar_t C_i + sigma_t^2)^-1 (z - sqrt(abar_t) mean_i)
    z_next = A z + b + tau noise,  so that  mean -> A mean + b,  V -> A V A^T + tau^2
    DDIM (eta = 0) and DDPM (eta = 1) over the falling `levels` abar of a walk, from the first
    Gaussian's law at the first of them. `means` (n, D), `covariances` (n, D, D). `ddim_variance`
    and `ddpm_variance` are its limits for many steps.
    """
    w, abar = (torch.as_tensor(x, dtype=means.dtype) for x in (weights, levels))
    w, eye = w[:, None, None], torch.eye(len(means[0]), dtype=means.dtype)
    a, b = abar[:-1], abar[1:]  #        (L,)
    c = a[:, None, None, None]
    P = (1 - c).sqrt() * w * torch.linalg.inv(c * covariances + (1 - c) * eye)  #      (L, n, D, D)
    pulls, pushes = P.sum(1), (P @ means[..., None]).sum(1)[..., 0] * a.sqrt()[:, None]
    none = torch.zeros_like(pulls)
    A = ddim_step(eye + none, pulls, a, b, eta, none)[0]  # of the unit vectors, so A^T
    moved = ddim_step(0 * pushes, -pushes, a, b, eta, 0 * pushes)[0]
    tau = ddim_step(0 * a, 0 * a, a, b, eta, 1 + 0 * a)[0]
    mean, V = abar[0].sqrt() * means[0], abar[0] * covariances[0] + (1 - abar[0]) * eye
    for A_t, moved_t, tau_t in zip(A, moved, tau):
        mean, V = mean @ A_t + moved_t, A_t.mT @ V @ A_t + tau_t**2 * eye
    return mean, V


def mixture_is_proper(
    weights: Sequence[float], covariances: Sequence[Tensor], directions: int = 4096
) -> bool:
    """Whether prod_i p_i^w_i can be normalised, p_i a mixture with `covariances[i]` (K_i, D, D).

    sum_i w_i min_k u^T C_ik^-1 u > 0 in every direction u, since far out the widest component rules
    T3; `is_proper` is the case of one component each. Looked for in random directions and downhill
    from the worst of them: False is certain.
    """
    g = torch.Generator().manual_seed(0)
    u = torch.randn(directions, covariances[0].shape[-1], generator=g, dtype=torch.float64)
    precisions, least = [torch.linalg.inv(C.double()) for C in covariances], math.inf
    size = sum(abs(w) * P.abs().sum((1, 2)).max() for w, P in zip(weights, precisions))
    for k in range(100):
        u = u / u.norm(dim=1, keepdim=True)
        pulls = [torch.einsum("kij,bj->bki", P, u) for P in precisions]  #   (B, K, D)
        bends = [torch.einsum("bki,bi->bk", x, u).min(1) for x in pulls]
        total = sum(w * x.values for w, x in zip(weights, bends))  #         (B,)
        least = min(least, total.min().item())
        down = sum(w * x[torch.arange(len(u)), b.indices] for w, x, b in zip(weights, pulls, bends))
        u = u - down / size
        u = u[total.argsort()[:64]] if k == 0 else u
    return least > 1e-12 * float(size)

"""Toy models with exact density, score and noise prediction at every level, in float64.

They satisfy the contract of a denoiser, `eps(z_t, t, c)`, with an integer for a prompt and None
for phi, so every rule and sampler runs on them unchanged and can be checked against formulas. A
pair (p, n) is the law of "p and not n", exact because what is left of a mixture is a mixture.
If z_0 has components N(m_k, C_k), then z_t has components N(sqrt(abar) m_k, abar C_k + sigma^2 I).
The default schedule is Stable Diffusion's, but its clean end has no noise at all: abar = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dnp.energy import Energy, eps_from_score, is_proper
from dnp.schedule import Schedule


class Mixture:
    """A Gaussian mixture; prompt c keeps the components `prompts[c]`, phi keeps all.

    `weights` (K,), `means` (K, D), `covariances` (K, D, D); ValueError if they are not a mixture. A
    conditional is a sub-mixture, with its weights renormalised, so p(c | z_t) is exact too. The
    condition (p, n) keeps p's components that are not n's: "p and not n".
    """

    def __init__(
        self,
        weights: Sequence[float],
        means: Tensor,
        covariances: Tensor,
        prompts: Sequence[Sequence[int]],
        schedule: Schedule | None = None,
    ):
        self.means, self.covariances = (torch.as_tensor(x).double() for x in (means, covariances))
        self.log_w = torch.as_tensor(weights, dtype=torch.float64).log()
        self.prompts = {c: list(components) for c, components in enumerate(prompts)}
        self._require_law()
        self.variances, self.axes = torch.linalg.eigh(self.covariances)  # (K, D) and (K, D, D)
        self.prompts[None] = list(range(len(self.means)))
        self.parts: dict[int | tuple | None, tuple[Tensor, ...]] = {}  # of a prompt, once asked for
        self.schedule = schedule or Schedule.stable_diffusion(set_alpha_to_one=True)

    def log_p(self, z_t: Tensor, t: int | Tensor, c: int | None = None) -> Tensor:
        """log p_t(z_t | c) with its normaliser: (B, D), () or (B,) -> (B,)."""
        return torch.logsumexp(self._components(z_t, t, c)[0], dim=-1)

    def energy(self, t: int | Tensor, c: int | tuple | None = None) -> Energy:
        """E_c = -log p_t(. | c) with its normaliser, a callable (B, D) -> (B,)."""
        return lambda z_t: -self.log_p(z_t, t, c)

    def score(self, z_t: Tensor, t: int | Tensor, c: int | None = None) -> Tensor:
        """grad log p_t(z_t | c) = -sum_k r_k C_k^-1 (z_t - m_k), r_k = p(k | z_t): (B, D)."""
        log_parts, pulls = self._components(z_t, t, c)
        r = torch.softmax(log_parts, dim=-1)
        return -torch.einsum("bk,bki->bi", r, pulls).reshape(z_t.shape)

    def eps(self, z_t: Tensor, t: int | Tensor, c: int | None = None) -> Tensor:
        """The ideal noise prediction, -sigma_t score: (B, D)."""
        sigma_t = (1 - self.schedule.level(t)).sqrt()
        return eps_from_score(self.score(z_t, t, c), sigma_t)

    def posterior(self, z_t: Tensor, t: int | Tensor, c: int | tuple | None) -> Tensor:
        """P(c | z_t) = w_c p_t(z_t | c) / p_t(z_t), the share of c's components in z_t: (B,).

        ValueError for a toy whose phi does not contain its prompts: they have no share in it.
        """
        self._require_share(c)
        r = torch.softmax(self._components(z_t, t, None)[0], dim=-1)  # (B, K)
        return r[:, self._keep(c)].sum(-1)

    def sample(self, n: int, t: int = -1, c: int | None = None, *, generator: torch.Generator):
        """n draws from p_t(. | c), (n, D); t = -1 is the clean end of the schedule."""
        log_w, means, variances, axes = self._at(t, c)
        k = torch.multinomial(log_w.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, means.shape[-1], generator=generator, dtype=torch.float64)
        root = axes * variances.clamp(min=0).sqrt()[:, None]  # allows zero variance
        return means[k] + (root[k] @ noise[..., None])[..., 0]

    def _at(self, t: int | Tensor, c: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of p_t(. | c): log weights (K,), means and variances (..., K, D), and axes (K, D, D).

        Noise is alike in all directions, so the axes of a component are those of its clean one.
        """
        if c not in self.parts:
            keep = self._keep(c)
            log_w = self.log_w[keep] - torch.logsumexp(self.log_w[keep], 0)
            self.parts[c] = log_w, self.means[keep], self.variances[keep], self.axes[keep]
        log_w, means, variances, axes = self.parts[c]
        abar = self.schedule.level(t)[..., None, None]  #            (..., 1, 1)
        return log_w, abar.sqrt() * means, abar * variances + 1 - abar, axes

    def _keep(self, c: int | tuple | None) -> list[int]:
        """The components of a prompt, of phi, or of "p and not n"."""
        if isinstance(c, tuple):
            p, n = c
            self._require_share(p, n)
            keep = [k for k in self._keep(p) if k not in self._keep(n)]
            if not keep:
                raise ValueError(f"nothing is {p} and not {n}; choose another negative.")
            return keep
        if c not in self.prompts:
            raise ValueError(f"the toy has prompts 0 ... {len(self.prompts) - 2} and None, not {c}")
        return self.prompts[c]

    def _require_law(self) -> None:
        """ValueError for what is not a mixture: counts, weights, covariances, prompts."""
        (K, D), shape = (*self.means.shape, 0, 0)[:2], tuple(self.covariances.shape)
        if self.means.ndim != 2 or len(self.log_w) != K or shape != (K, D, D):
            raise ValueError(
                f"{len(self.log_w)} weights, means {tuple(self.means.shape)} and covariances "
                f"{shape} are not of one mixture; give (K,), (K, D) and (K, D, D)."
            )
        if not (self.means.isfinite().all() and self.covariances.isfinite().all()):
            raise ValueError("a mean or a covariance is not finite; give numbers.")
        if not (self.log_w < math.inf).all() or (self.log_w == -math.inf).any():
            raise ValueError("a weight is not above 0; leave that component out.")
        small = 1e-9 * self.covariances.abs().amax((1, 2))
        symmetric = (self.covariances - self.covariances.mT).abs().amax((1, 2)) <= small
        if not (symmetric & (torch.linalg.eigvalsh(self.covariances)[:, 0] >= -small)).all():
            raise ValueError("a covariance is not symmetric with variances of 0 or more; fix it.")
        for c, keep in self.prompts.items():
            if not keep or len(set(keep)) < len(keep) or not set(keep) <= set(range(K)):
                raise ValueError(
                    f"prompt {c} keeps {keep}; give it one or more of the components 0 ... "
                    f"{K - 1}, each once."
                )

    def _require_share(self, *conditions: int | tuple | None) -> None:
        if any(not set(self._keep(c)) <= set(self.prompts[None]) for c in conditions):
            raise ValueError("this toy's phi does not contain its prompts; use a Mixture.")

    def _components(self, z_t: Tensor, t: int | Tensor, c: int | None) -> tuple[Tensor, Tensor]:
        """log w_k N(z_t; m_k, C_k), (B, K), and C_k^-1 (z_t - m_k), (B, K, D)."""
        log_w, means, variances, axes = self._at(t, c)
        if (variances <= 0).any():
            raise ValueError("points have no density at the clean end; choose a level t >= 0.")
        d = torch.einsum("kij,bki->bkj", axes, z_t.flatten(1)[:, None] - means)  # along the axes
        log_norm = -0.5 * (2 * math.pi * variances).log().sum(-1)
        pulls = torch.einsum("kij,bkj->bki", axes, d / variances)  #    (B, K, D)
        return log_w + log_norm - 0.5 * (d**2 / variances).sum(-1), pulls


class Gaussian(Mixture):
    """One Gaussian per prompt and one for phi: `phi` and each of `prompts` is (mean, covariance).

    Mean (D,), covariance (D, D). Unlike in `Mixture`, phi need not contain the prompts.
    """

    def __init__(
        self,
        phi: tuple[Tensor, Tensor],
        prompts: Sequence[tuple[Tensor, Tensor]],
        schedule: Schedule | None = None,
    ):
        means, covariances = (
            torch.stack([torch.as_tensor(x).double() for x in parts])
            for parts in zip(*prompts, phi)
        )
        n = len(prompts)
        super().__init__([1.0] * (n + 1), means, covariances, [[c] for c in range(n)], schedule)
        self.prompts[None] = [n]

    def is_proper(self, weights: dict[int | None, float], t: int = -1) -> bool:
        """Whether prod_c p_t(z_t | c)^weights[c] is a density; DNS is {None: 1 + s, c: -s}."""
        parts = (self._at(t, c)[2:] for c in weights)
        covariances = torch.cat([axes * variances[:, None] @ axes.mT for variances, axes in parts])
        return is_proper(list(weights.values()), covariances)


class PointMass(Gaussian):
    """One point per prompt and one for phi: eps = (z_t - sqrt(abar) mu) / sigma_t, linear in mu.

    `phi` and each of `prompts` is a point (D,). There is not a density at a level with abar = 1.
    """

    def __init__(self, phi: Tensor, prompts: Sequence[Tensor], schedule: Schedule | None = None):
        zero = torch.zeros(len(phi), len(phi), dtype=torch.float64)
        super().__init__((phi, zero), [(p, zero) for p in prompts], schedule)

"""T1 to T10, theorems of guidance on exact models: each with its statement and a short proof.

Notation: u = sigma^2 of the variance-exploding process, w_i the weights of a linear rule (their sum
is 1), S_i scores, S = sum w_i S_i, dp = eps_p - eps_phi, P = P(p | z_t).
"""

import math

import pytest
import torch
from torch.testing import assert_close

from conftest import slow_but
from dnp import energy, guidance, rules, theorems, toy
from dnp.evaluation.four_modes import toy as modes
from dnp.rules import dot
from dnp.schedule import Schedule
from dnp.testing import assert_energy

F64 = torch.float64
LINE = torch.tensor([[2.0]], dtype=F64), torch.tensor([[0.8]], dtype=F64)  # v_phi, v_p


def ve(n, top=300.0, bottom=1e-3):
    sigma = torch.logspace(math.log10(bottom), math.log10(top), n, dtype=F64)
    return Schedule(1 / (1 + sigma**2), 1.0)


def walk(n):
    return [*ve(n).abar.flip(0).tolist(), 1.0]


def halves(model):
    return toy.Mixture([0.25] * 4, model.means, model.covariances, [[0, 1], [2, 3]])


def chain(weights, means, covariances, eta, n=1500):
    return energy.gaussian_chain(weights, means, covariances, walk(n), eta)


@pytest.mark.parametrize("w", [(-1.0, 2.0, 0.0), (2.5, -1.5, 0.0), (1.0, 2.0, -2.0)])
def test_T1_the_entropies_average_along_guided_ddim(w):
    """log det V = sum_i w_i log det C_i, in any dimension, for any covariances.

    The probability flow is dz = M z du with M = sum w_i (C_i + u)^-1 / 2, so d log det A / du is
    tr M = d/du sum w_i log det(C_i + u) / 2. From u = infinity, where the terms are equal, to u = 0
    the two sides of V = A A^T collect the same. (V itself is exp(sum w_i log C_i) if they commute.)
    """
    g = torch.Generator().manual_seed(5)
    a = torch.randn(3, 3, 3, generator=g, dtype=F64)
    C = a @ a.mT + 0.4 * torch.eye(3, dtype=F64)
    want = theorems.ddim_log_det(w, C)
    error = [
        abs(torch.logdet(chain(w, torch.zeros(3, 3, dtype=F64), C, 0.0, n)[1]) - want).item()
        for n in (400, 800)
    ]
    assert error[1] < 0.1 and error[0] / error[1] == pytest.approx(2, abs=0.3)  # first order


@pytest.mark.parametrize("s", slow_but([2.5], [2.5, -0.3, 4.0]))
def test_T2_the_mean_of_ddim_is_a_hypergeometric_function_and_of_ddpm_a_power(s):
    """DDIM: s 2F1(1, (1-s)/2; 3/2; 1 - 1/r); DDPM: (r - r^(1-s)) / (r - 1); r = v_phi / v_p.

    The mean obeys m' = k [(1-s) m / (v_phi+u) + s (m - 1) / (v_p+u)], k = 1/2 or 1: linear, with
    the integrating factor ((v_phi+u)^(1-s) (v_p+u)^s)^-k. What is left to integrate is Euler's
    integral of 2F1, with y^2 = v_p / (v_p+u), and for DDPM the derivative of a power.
    """
    C = torch.stack(LINE)
    means = torch.tensor([[0.0], [1.0]], dtype=F64)
    for eta, share in ((0.0, theorems.ddim_mean), (1.0, theorems.ddpm_mean)):
        want = share(2.0, 0.8, s)
        one, two = (chain((1 - s, s), means, C, eta, n)[0].item() for n in (300, 600))
        assert 2 * two - one == pytest.approx(want, abs=0.01 * max(1, abs(want)))


def test_T2_at_the_ends():
    for share in (theorems.ddim_mean, theorems.ddpm_mean):
        assert share(2.0, 0.8, 0.0) == pytest.approx(0) and share(2.0, 0.8, 1.0) == pytest.approx(1)
    assert theorems.ddim_mean(2.0, 2.0, 3.0) == pytest.approx(3.0)  # one covariance: s


def test_the_chain_of_gaussians_has_the_known_variances_as_limits():
    C, zero = torch.tensor([[[2.0]], [[1.0]]], dtype=F64), torch.zeros(2, 1, dtype=F64)
    for s in (2.0, 3.0):
        for eta, limit in ((0.0, energy.ddim_variance), (1.0, energy.ddpm_variance)):
            one, two = (chain((1 - s, s), zero, C, eta, n)[1].item() for n in (250, 500))
            assert 2 * two - one == pytest.approx(limit(2.0, 1.0, s), abs=3e-3)


def test_T3_properness_is_a_renyi_divergence():
    """The normaliser of CFG is exp((s-1) D_s(p || phi)): at most log(1 / P(p)) if p is in phi.

    int p_phi^(1-s) p_p^s is Renyi's definition. If p is a part of phi, p_p <= p_phi / P(p), so
    D_s <= log 1 / P(p): CFG is proper at every s. Noising is a channel, so by data processing the
    divergence of DNS, D_(1+s)(phi || p), falls with t: proper at one level is proper above it.
    """
    m = modes("oblique")
    g = torch.linspace(-14, 14, 401, dtype=F64)
    z = torch.stack(torch.meshgrid(g, g, indexing="ij"), -1).reshape(-1, 2)
    cell = 2 * math.log(g[1] - g[0])
    log_Z = lambda a, t: torch.logsumexp((1 - a) * m.log_p(z, t) + a * m.log_p(z, t, 0), 0) + cell
    for s in (2.0, 10.0, 40.0):
        assert 0 <= log_Z(s, -1).item() / (s - 1) <= math.log(2) + 1e-6
    D = [log_Z(-0.2, t).item() for t in (100, 300, 500, 900)]
    assert all(a >= b for a, b in zip(D, D[1:]))


def test_T3_a_mixture_is_proper_by_its_widest_components():
    """p_i^w_i is integrable iff sum_i w_i min_k u' C_ik^-1 u > 0 in every direction u.

    log p_i(r u) / r^2 goes to -min_k u' C_ik^-1 u / 2, because the widest component rules far out.
    """
    one = lambda *v: torch.tensor(v, dtype=F64)[:, None, None]
    proper = energy.mixture_is_proper
    for s in (0.5, 0.9, 1.1, 2.0):  # one component each: the known line, improper from s = 1 on
        assert proper((1 + s, -s), [one(2.0), one(1.0)]) == (s < 1)
    assert proper((3.0, -2.0), [one(1.0, 2.0), one(2.0, 0.5)])  # p's widest is as wide as phi's
    assert proper((3.0, -2.0), [one(1.0, 2.0), one(1.9, 0.1)])  # its mean component is narrow
    assert not proper((3.0, -2.0), [one(1.0, 2.0), one(1.0, 0.5)])
    eye = torch.eye(2, dtype=F64)
    slanted = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=F64)
    assert not proper((2.0, -1.0), [eye[None], slanted[None]])  # narrow along (1, -1) only
    assert energy.is_proper((2.0, -1.0), torch.stack([eye, slanted])) is False
    square = modes("square").covariances  # DNS on the square is a density at every s
    assert proper((11.0, -10.0), [square, square[:2]])


@pytest.mark.parametrize("t", [200, 500, 900])
def test_T4_dns_at_the_odds_is_exactly_not_p(t):
    """If n is everything but p: n = phi + P / (1 - P) (phi - p), the two-term scale is s + P, and
    Eq. 4 at s is CFG at s / (1 - P).

    eps_phi = P eps_p + (1 - P) eps_n, since p_t(z) = P(p) p_t(z | p) + P(n) p_t(z | n). Solve for
    eps_n; then phi - n = P (p - n), and p - n = (p - phi) / (1 - P).
    """
    m = halves(modes("oblique"))
    z = m.sample(200, t, generator=torch.Generator().manual_seed(1))
    phi, p, n = (m.eps(z, t, c) for c in (None, 0, 1))
    P = m.posterior(z, t, 0)
    phi, p, n, P = (x[(P > 1e-4) & (P < 1 - 1e-4)] for x in (phi, p, n, P))
    assert len(P) > 3
    assert_close(theorems.complement(phi, p, P), n, rtol=1e-6, atol=1e-7)
    s_t = theorems.posterior_scale(P)[:, None]
    assert_close(phi + s_t * (phi - p), n, rtol=1e-6, atol=1e-7)
    assert_close(guidance.two_term_scale(phi, p, n, 3.0), 3.0 + P, rtol=1e-6, atol=1e-8)
    two = guidance.negative_prompt(phi, p, n, 3.0)
    assert_close(two, phi + 3 / (1 - P[:, None]) * (p - phi), rtol=1e-6, atol=1e-7)


class Weighed:
    """eps = phi + s dp - f(p(n | z_t)) dn."""

    def __init__(self, posterior, f="square"):
        self.posterior, self.f = posterior, getattr(self, f)

    square = staticmethod(lambda P: P**2)
    wave = staticmethod(lambda P: (5 * P).sin())
    jump = staticmethod(lambda P: (P > 0.3).double())

    def __call__(self, eps_phi, eps_p, eps_n, s, z_t, t):
        weight = self.f(self.posterior(z_t, t)).reshape(-1, *(1,) * (z_t.ndim - 1))
        return eps_phi + s * (eps_p - eps_phi) - weight * (eps_n - eps_phi)


@pytest.mark.parametrize("f", slow_but(["jump"], ["square", "wave", "jump"]))
def test_T5_any_weight_of_the_posterior_alone_is_an_energy(f):
    """phi + s dp - f(P(n | z_t)) dn is a gradient for every f, jumps too; of another weight none.

    grad P = -P dn / sigma_t, so dn = -sigma_t grad log P and f(P) dn is the gradient of a function
    of P. In general d(f dn) = df ^ dn is 0 only if grad f is parallel to dn.
    """
    assert_energy(Weighed, f=f)
    other = lambda eps_phi, eps_p, eps_n, s: rules.ccfg(eps_phi, eps_p, eps_n, s, tau=0.5)
    with pytest.raises(AssertionError, match="is not a gradient"):
        assert_energy(other)


def test_T6_the_weights_are_exact_on_gaussians():
    """d log w = (|S|^2 - sum w_i |S_i|^2) / 2 d(-u) along DDPM gives prod_i p_i^w_i.

    The law q = prod p_i^w_i has score S. Each p_i obeys the heat equation; log q then obeys it up
    to (sum w_i |S_i|^2 - |S|^2) / 2, which is the weight's growth (Feynman-Kac). On a line weights
    are exp(g z^2 / 2), so the weighted law stays Gaussian: V -> 1 / (1/V - g), then A V A + tau^2.
    """
    found = {}
    for n in (1000, 2000):
        for s in (2.0, 3.0):
            found[n, s] = weighted_variance(s, ve(n, top=30.0, bottom=0.01))
    for s, want in ((2.0, 2 / 3), (3.0, 0.5)):
        assert found[2000, s] == pytest.approx(want, abs=0.01)
        assert 2 * found[2000, s] - found[1000, s] == pytest.approx(want, abs=2e-3)
        assert want - energy.ddpm_variance(2.0, 1.0, s) > 0.08  # without them


def weighted_variance(s, schedule):
    """The variance of the weighted particles of DDPM on N(0, 2) and N(0, 1), without particles."""
    levels = [*schedule.abar.flip(0).tolist(), 1.0]
    V = 2 * levels[0] + 1 - levels[0]
    for a, b in zip(levels, levels[1:]):
        u, v = (1 - a) / a, (1 - b) / b
        slopes = [(1 - a) ** 0.5 / (a * C + 1 - a) for C in (2.0, 1.0)]  # eps_i = slope z
        G = (1 - s) * slopes[0] + s * slopes[1]
        g = G**2 - (1 - s) * slopes[0] ** 2 - s * slopes[1] ** 2
        V = 1 / (1 / V - g * (math.log(u / v) if v else 1.0))
        tau = ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5
        A = (b / a) ** 0.5 * (1 - (1 - a) ** 0.5 * G) + (1 - b - tau**2) ** 0.5 * G
        V = A**2 * V + tau**2
    return V


def test_T7_the_information_of_a_prompt_is_the_length_of_its_arrow():
    """KL(p(. | p) || p) = 1/2 int E |dp|^2 d log u, over noised samples of p.

    By de Bruijn's identity for two densities, d KL / du = -E |S_p - S_phi|^2 / 2 along the heat
    equation, and KL is 0 at u = infinity; |S|^2 du is |eps|^2 d log u.
    """
    m = toy.Mixture(
        [0.3, 0.3, 0.4], torch.tensor([[-1.5], [0.2], [2.0]]),
        torch.tensor([[[0.2]], [[0.5]], [[0.3]]]), [[0, 1]], ve(300, 60.0, 2e-3),
    )  # fmt: skip
    x = torch.linspace(-12, 12, 2001, dtype=F64)[:, None]
    p = m.log_p(x, -1, 0)
    kl = torch.trapezoid(p.exp() * (p - m.log_p(x, -1)), x[:, 0]).item()
    sigma, squares = m.schedule.sigma_ve(torch.arange(300)), []
    for t in range(300):
        z = x * (1 + 1.5 * sigma[t]) / (1 + sigma[t] ** 2).sqrt()
        dp = m.eps(z, t, 0) - m.eps(z, t)
        squares.append(torch.trapezoid(m.log_p(z, t, 0).exp() * dot(dp, dp), z[:, 0]))
    found = theorems.kl_of_arrow(torch.stack(squares), sigma)
    assert found == pytest.approx(kl, rel=5e-3) and kl == pytest.approx(0.3927, abs=1e-3)


def test_T8_independent_errors_grow_by_the_norm_of_the_coefficients():
    """CFG hypot(1 - s, s), Eq. 4 sqrt(1 + 2 s^2), DNS and the two-term form at s + 1 hypot(s, s+1).

    A linear rule maps errors e_i to sum w_i e_i: a common e to e, because sum w_i = 1, and
    independent ones of unit size to a sum whose variance is sum w_i^2.
    """
    gain = lambda *given: theorems.error_gain(guidance.coefficients(*given))
    for s in (0.5, 3.0, 7.5):
        assert gain("cfg", s) == pytest.approx(math.hypot(1 - s, s))
        assert gain("np", s) == pytest.approx(math.sqrt(1 + 2 * s**2))
        assert gain("dns", s) == pytest.approx(math.hypot(s, s + 1)) == gain("np2", s + 1)
    e = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert guidance.cfg(e[0], e[1], 3.0).std().item() == pytest.approx(gain("cfg", 3.0), rel=0.02)
    assert_close(guidance.cfg(e[0], e[0], 3.0), e[0])


def test_T9_linear_rules_commute_with_the_velocity_of_a_flow_and_cfg_zero_star_does_not():
    """u = eps - z0_hat is affine in eps for one z_t; weights that sum to 1 commute with that."""
    g = torch.Generator().manual_seed(3)
    z, *eps = torch.randn(4, 5, 3, generator=g, dtype=F64)
    u = [energy.u_from_eps(z, e, 0.3) for e in eps]
    linear, star = guidance.negative_prompt, rules.cfg_zero_star
    assert_close(linear(*u, 3.0), energy.u_from_eps(z, linear(*eps, 3.0), 0.3))
    off = star(*u[:2], 3.0) - energy.u_from_eps(z, star(*eps[:2], 3.0), 0.3)
    assert off.abs().max() > 0.1


def test_T10_when_two_terms_do_what_three_do_along_the_whole_chain():
    """With one covariance, Eq. 4 at s is the two-term form at s + lambda, at every z_t and t, iff
    mu_phi = mu_n + lambda (mu_p - mu_n).

    eps_i - eps_j is then a constant times mu_i - mu_j, so phi - n = lambda (p - n) at one point is
    the same at all, and three-term less two-term at equal s is phi - n.
    """
    eye = torch.eye(2, dtype=F64)
    p, n = torch.tensor([[1.0, 0.4], [-0.5, 1.0]], dtype=F64)
    lam = 0.3
    for phi, same in ((n + lam * (p - n), True), (n + torch.tensor([0.2, 0.2]), False)):
        m = toy.Gaussian((phi, eye), [(p, eye), (n, eye)])
        off = 0.0
        for t in (50, 500, 950):
            z = m.sample(5, t, generator=torch.Generator().manual_seed(0))
            three = [m.eps(z, t, c) for c in (None, 0, 1)]
            two = guidance.negative_prompt_two_term(*three[1:], 2.0 + lam)
            off = max(off, (guidance.negative_prompt(*three, 2.0) - two).abs().max().item())
        assert (off < 1e-12) == same


def test_eq4_is_p_and_not_n_where_they_are_independent_and_dng_says_so():
    """DNG at s = 1 is the noise of "p and not n" iff p and n are independent given z_t."""
    for name, exact in (("square", True), ("oblique", False)):
        m, t = modes(name), 500
        z = m.sample(100, t, generator=torch.Generator().manual_seed(2))
        three = [m.eps(z, t, c) for c in (None, 0, 1)]
        off = rules.dng(*three, 1.0, m.posterior(z, t, 1)) - m.eps(z, t, (0, 1))
        assert (off.abs().max() < 1e-6) == exact


@pytest.mark.parametrize("d", [0.5, 2.0])
def test_what_n_star_can_do_at_best_is_cfg_at_another_scale(d):
    """If eps_n is DNS's own noise at d, Eq. 4 at s is CFG at s (1 + d), the two-term form CFG at
    s (1 + d) - d: one line of algebra."""
    phi, p = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    n, s = guidance.dns(phi, p, d), 3.0
    assert_close(guidance.negative_prompt(phi, p, n, s), guidance.cfg(phi, p, s * (1 + d)))
    two = guidance.negative_prompt_two_term(p, n, s)
    assert_close(two, guidance.cfg(phi, p, s * (1 + d) - d))

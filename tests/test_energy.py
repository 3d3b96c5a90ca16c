"""Energies, scores and noise: signs, sigmas, and when a composition is a density."""

import pytest
import torch
from torch.testing import assert_close

from dnp import energy, guidance, toy
from dnp.sampling import ddim_step
from dnp.schedule import Schedule

F64 = torch.float64
SCHEDULE = Schedule.stable_diffusion()
LEVELS = (0, 250, 700, 999)


def mixture():
    means = torch.tensor([[-2.0, 0.0], [1.0, 1.0], [2.0, -1.0]])
    cov = torch.tensor(
        [[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0.0], [0.0, 1.0]], [[1.0, -0.3], [-0.3, 0.6]]]
    )
    return toy.Mixture([0.2, 0.5, 0.3], means, cov, [[0, 1], [2]])


def points(n=6, d=2):
    return 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(3), dtype=F64)


def E(model, t, c):
    return lambda z: -model.log_p(z, t, c)


def test_eq6_eps_is_minus_sigma_times_score():
    model, z = mixture(), points()
    for t in LEVELS:
        sigma = (1 - SCHEDULE.level(t)).sqrt()
        by_energy = energy.eps_from_energy(E(model, t, 0), z, sigma)
        assert_close(by_energy, model.eps(z, t, 0))
        assert_close(energy.eps_from_score(model.score(z, t, 0), sigma), by_energy)
        assert_close(energy.score_from_eps(by_energy, sigma), model.score(z, t, 0))


def test_eq7_eq8_cfg_follows_its_energy():
    model, z, t, s = mixture(), points(), 400, 3.0
    sigma = (1 - SCHEDULE.level(t)).sqrt()
    tilted = energy.cfg_energy(E(model, t, None), E(model, t, 0), s)
    rule = guidance.cfg(model.eps(z, t, None), model.eps(z, t, 0), s)
    assert_close(energy.eps_from_energy(tilted, z, sigma), rule)
    log_gamma = model.log_p(z, t, 0) - model.log_p(z, t, None)
    assert_close(-tilted(z), model.log_p(z, t, None) + s * log_gamma)


def test_eq8_gamma_is_the_posterior_of_the_prompt():
    """log p(z | p) - log p(z) = log p(p | z) - log p(p), exactly, on a mixture."""
    model, z, t = mixture(), points(), 400
    log_gamma = model.log_p(z, t, 0) - model.log_p(z, t, None)
    prior = torch.tensor([0.7, 0.3], dtype=F64).log()
    joint = torch.stack([model.log_p(z, t, c) + prior[c] for c in (0, 1)])
    assert_close(log_gamma, joint.log_softmax(0)[0] - prior[0])


def test_eq9_eq10_negative_prompting_follows_its_energy():
    model, z, t, s = mixture(), points(), 400, 3.0
    sigma = (1 - SCHEDULE.level(t)).sqrt()
    parts = [E(model, t, c) for c in (None, 0, 1)]
    tilted = energy.negative_prompt_energy(*parts, s)
    rule = guidance.negative_prompt(*(model.eps(z, t, c) for c in (None, 0, 1)), s)
    assert_close(energy.eps_from_energy(tilted, z, sigma), rule)


def test_eq11_eq12_eq13_gradient_of_the_log_odds_has_its_sign():
    model, z, t = mixture(), points(), 400
    sigma = (1 - SCHEDULE.level(t)).sqrt()
    odds = energy.log_odds(E(model, t, 0), E(model, t, 1))
    assert_close(odds(z), model.log_p(z, t, 0) - model.log_p(z, t, 1))
    grad = energy.log_odds_gradient(model.eps(z, t, 0), model.eps(z, t, 1), sigma)
    assert_close(energy.eps_from_energy(odds, z, 1.0), grad)  # plain gradient: sigma = 1
    assert_close(grad, model.score(z, t, 0) - model.score(z, t, 1))


def test_eq17_eq18_dns_follows_its_energy():
    model, z, t, s = mixture(), points(), 400, 1.5
    sigma = (1 - SCHEDULE.level(t)).sqrt()
    tilted = energy.dns_energy(E(model, t, None), E(model, t, 0), s)
    rule = guidance.dns(model.eps(z, t, None), model.eps(z, t, 0), s)
    assert_close(energy.eps_from_energy(tilted, z, sigma), rule)
    log_gamma = model.log_p(z, t, None) - model.log_p(z, t, 0)
    assert_close(-tilted(z), model.log_p(z, t, None) + s * log_gamma)


def test_composition_of_energies_is_composition_of_noises():
    model, z, t = mixture(), points(), 600
    sigma = (1 - SCHEDULE.level(t)).sqrt()
    weights = (-0.5, 2.0, -0.5)
    total = energy.compose_energies(weights, [E(model, t, c) for c in (None, 0, 1)])
    terms = [(2.0, model.eps(z, t, 0)), (-0.5, model.eps(z, t, 1))]
    rule = guidance.compose(model.eps(z, t, None), terms)
    assert_close(energy.eps_from_energy(total, z, sigma), rule)
    with pytest.raises(ValueError):
        energy.compose_energies((1.0,), [])


def test_eq6_takes_a_level_for_each_sample():
    g = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(3, 4, 3, 3, generator=g, dtype=F64) for _ in "ze")
    abar = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    for f in (energy.z0_from_eps, energy.v_from_eps, energy.eps_from_v):
        alone = torch.cat([f(z[i : i + 1], eps[i : i + 1], abar[i].item()) for i in range(3)])
        assert_close(f(z, eps, abar), alone)
    for f in (energy.score_from_eps, energy.eps_from_score):
        assert_close(f(eps, abar), torch.stack([f(eps[i], abar[i].item()) for i in range(3)]))


def test_eq6_z0_v_and_eps_are_one_affine_map():
    z_0, eps = points(), points().flip(0)
    for t in LEVELS:
        abar = SCHEDULE.level(t)
        z_t = SCHEDULE.add_noise(z_0, eps, t)
        v = abar.sqrt() * eps - (1 - abar).sqrt() * z_0
        assert_close(energy.z0_from_eps(z_t, eps, abar), z_0)
        assert_close(energy.v_from_eps(z_t, eps, abar), v)
        assert_close(energy.eps_from_v(z_t, v, abar), eps)


# ------------------------------------------------------------------------------- Gaussians


def random_covariances(n, d=3, seed=5):
    a = torch.randn(n, d, d, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return a @ a.mT + 0.3 * torch.eye(d, dtype=F64)


def test_product_of_gaussians_has_the_closed_form_score():
    """sum w_i score_i is the score of N(mean, L^-1), at a noise level too."""
    cov, means = random_covariances(3), points(3, 3)
    weights, abar = (1.6, -0.4, -0.2), SCHEDULE.level(500)
    cov_t = abar * cov + (1 - abar) * torch.eye(3, dtype=F64)
    mean, L = energy.product_of_gaussians(weights, abar.sqrt() * means, cov_t)
    model = toy.Gaussian((means[0], cov[0]), list(zip(means[1:], cov[1:])))
    z = points(5, 3)
    score = sum(w * model.score(z, 500, c) for w, c in zip(weights, (None, 0, 1)))
    assert_close(score, -(z - mean) @ L)


def test_eq16_one_over_a_density_is_improper():
    assert not energy.is_proper((-1.0,), random_covariances(1))
    assert energy.is_proper((1.0,), random_covariances(1))


@pytest.mark.parametrize(("var_phi", "var_p"), [(2.0, 1.0), (3.0, 0.5), (1.0, 2.0)])
def test_dns_is_improper_exactly_where_the_closed_form_says(var_phi, var_p):
    cov = torch.tensor([var_phi, var_p], dtype=F64).reshape(2, 1, 1)
    limit = var_p / (var_phi - var_p) if var_p < var_phi else float("inf")
    for s in (0.1, 0.99 * limit, 1.01 * limit, 20.0):
        if s < float("inf"):
            assert energy.is_proper((1 + s, -s), cov) == (s < limit)


def test_dns_is_improper_up_to_the_level_that_the_closed_form_says():
    """In VE terms exactly while sigma_t^2 <= s var_phi - (1 + s) var_p = 1, here at every level."""
    zero, one, s = torch.zeros(1), torch.eye(1), 2.0
    model = toy.Gaussian((zero, 2 * one), [(zero, one)])
    proper = [model.is_proper({None: 1 + s, 0: -s}, t) for t in range(0, 1000, 25)]
    sigma_sq = (1 - SCHEDULE.abar) / SCHEDULE.abar
    assert proper == [bool(sigma_sq[t] > 1) for t in range(0, 1000, 25)]
    assert True in proper and False in proper


def test_dns_is_improper_at_low_noise_only():
    """With s = 2, variances 2 and 1 (VE): improper exactly while sigma^2 <= 2 s - (1 + s) = 1."""
    for sigma_sq in (0.01, 0.99, 1.01, 4.0):
        cov = torch.tensor([2.0, 1.0], dtype=F64).reshape(2, 1, 1) + sigma_sq
        assert energy.is_proper((3.0, -2.0), cov) == (sigma_sq > 1)


def test_at_the_exact_boundary_of_a_density_there_is_a_sentence_and_no_crash():
    """v_phi = 2, v_p = 1: DNS has no density from s = v_p / (v_phi - v_p) = 1 on, 1 included."""
    for angle in (0.0, 0.3):  # turned, the precision cancels up to rounding alone
        a = torch.tensor(angle, dtype=torch.float64)
        turn = torch.stack([torch.stack([a.cos(), -a.sin()]), torch.stack([a.sin(), a.cos()])])
        wide, narrow = (
            turn @ torch.diag(v) @ turn.T
            for v in (torch.tensor([2.0, 1]).double(), torch.tensor([1.0, 1]).double())
        )
        gaussian = toy.Gaussian(
            (torch.tensor([0.0, 0]).double(), wide), [(torch.tensor([0.0, 0]).double(), narrow)]
        )
        assert [gaussian.is_proper({None: 1 + s, 0: -s}) for s in (0.999, 1.0)] == [True, False]
        with pytest.raises(ValueError, match="cancel"):
            covariances = torch.stack([wide, narrow])
            energy.product_of_gaussians((2, -1), torch.zeros(2, 2).double(), covariances)


def test_equal_covariances_guided_score_is_the_score_of_the_noised_target():
    cov, mu = random_covariances(1)[0], points(3, 3)
    model = toy.Gaussian((mu[0], cov), [(mu[1], cov), (mu[2], cov)])
    z = points(5, 3)
    for s in (0.5, 3.0):
        for method, rule in (
            ("np", lambda e, s: guidance.negative_prompt(*e, s)),
            ("dns", lambda e, s: guidance.dns(e[0], e[1], s)),
        ):
            w = torch.tensor(guidance.coefficients(method, s), dtype=F64)
            target = toy.Gaussian((w @ mu, cov), [])
            for t in LEVELS:
                eps = rule([model.eps(z, t, c) for c in (None, 0, 1)], s)
                assert_close(eps, target.eps(z, t))


@pytest.mark.parametrize(
    "s", [pytest.param(s, marks=pytest.mark.slow) for s in (0.0, 0.5, 1.0, 3.0)] + [2.0]
)
def test_variances_on_a_line_are_what_the_chains_return(s):
    """p(z) = N(0, 2), p(z | c) = N(0, 1), with a recursion of variances instead of samples."""
    schedule = Schedule(1 / (1 + torch.logspace(-4, 3, 4000, dtype=torch.float64) ** 2), 1.0)
    law = toy.Gaussian(
        (torch.zeros(1), 2 * torch.eye(1)), [(torch.zeros(1), torch.eye(1))], schedule
    )
    t, t_next = map(torch.tensor, zip(*schedule.pairs(4000, "trailing")))
    levels, one = (schedule.level(t), schedule.level(t_next)), torch.ones(4000, 1).double()
    eps, V = guidance.cfg(law.eps(one, t), law.eps(one, t, 0), s), {0.0: 1.0, 1.0: 1.0}
    for eta in V:  # eps is linear in z: a latent without noise, and noise without a latent
        moved, _ = ddim_step(one, eps, *levels, eta, 0 * one)
        drawn, _ = ddim_step(0 * one, 0 * eps, *levels, eta, one)
        for m, d in zip(moved[:, 0].tolist(), drawn[:, 0].tolist()):
            V[eta] = m**2 * V[eta] + d**2
    assert V[0.0] == pytest.approx(energy.ddim_variance(2.0, 1.0, s), rel=0.01)
    assert V[1.0] == pytest.approx(energy.ddpm_variance(2.0, 1.0, s), rel=0.01)
    _, L = energy.product_of_gaussians(
        (1 - s, s), torch.zeros(2, 1).double(), torch.tensor([[[2.0]], [[1.0]]]).double()
    )
    assert energy.tilted_variance(2.0, 1.0, s) == pytest.approx(1 / L.item())

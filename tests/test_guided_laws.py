"""What guided chains sample, and what they do not: Gaussians and mixtures with known answers."""

import functools
import math

import pytest
import torch
from torch.testing import assert_close

from dnp import energy, guidance, sampling, toy
from dnp.schedule import Schedule
from test_sampling import CLEAN, F64, randn, run

# ------------------------------------------------------------------- Gaussians through the chain


def test_equal_covariances_guided_chain_is_the_chain_of_the_target():
    cov = torch.tensor([[1.0, 0.4], [0.4, 0.7]], dtype=F64)
    mu = randn(2, 2)
    model = toy.Gaussian((mu[0], cov), [(mu[1], cov)], CLEAN)
    s = 2.0
    target = toy.Gaussian((mu[0] + s * (mu[0] - mu[1]), cov), [], CLEAN)
    z_T = randn(4, 2, seed=7)
    got = run(lambda z, t: guidance.dns(model.eps(z, t), model.eps(z, t, 0), s), z_T, CLEAN, 20)
    assert_close(got, run(lambda z, t: target.eps(z, t), z_T, CLEAN, 20))


def test_a_start_from_pure_noise_leaves_a_bias_that_more_steps_do_not_cure():
    """sqrt(abar_999) = 0.068 is not 0: start Gaussian toys from the true marginal at T."""
    model = toy.Gaussian(
        (torch.zeros(1), torch.eye(1)), [(torch.full((1,), 4.0), torch.eye(1))], CLEAN
    )
    s, goal = 3.0, 12.0

    def guided(z, t):
        return guidance.cfg(model.eps(z, t), model.eps(z, t, 0), s)

    starts = torch.stack([torch.zeros((), dtype=F64), CLEAN.level(999).sqrt() * goal])[:, None]
    bias = {}
    for steps in (100, 500):
        from_noise, from_law = run(guided, starts, CLEAN, steps, spacing="trailing")[:, 0].tolist()
        bias[steps] = goal - from_noise
        assert from_law == pytest.approx(goal, abs=1e-9)
    assert bias[100] > 0.5 and bias[500] == pytest.approx(bias[100], rel=0.05)


# -------------------------------------------------------------------- what guidance does not do


def ve_schedule(n=1000, top=50.0, bottom=1e-3):
    """Levels at sigma (VE) geometric from `bottom` to `top`: abar = 1 / (1 + sigma^2)."""
    sigma = torch.logspace(math.log10(bottom), math.log10(top), n, dtype=F64)
    abar = 1 / (1 + sigma**2)
    return Schedule(abar, abar_final=abar[0].item())


def linear_chain_variances(rule, sched, etas):
    """Exact variances after chains on zero-mean Gaussians: z_next = a z + tau noise."""
    steps = len(sched.abar)
    top = sched.level(steps - 1)
    variances = [(top * 2 + 1 - top).item()] * len(etas)
    t, t_next = map(torch.tensor, zip(*sched.pairs(steps, "linspace")))
    levels, one = (sched.level(t), sched.level(t_next)), torch.ones(steps, 1, dtype=F64)
    eps, nothing = rule(one, t), rule(0 * one, t)
    for i, eta in enumerate(etas):
        a, _ = sampling.ddim_step(one, eps, *levels, eta, 0 * one)
        tau, _ = sampling.ddim_step(0 * one, nothing, *levels, eta, one)
        for x, y in zip(a[:, 0].tolist(), tau[:, 0].tolist()):
            variances[i] = x**2 * variances[i] + y**2
    return [var / sched.abar_final for var in variances]  # back to VE, where z_0 is not rescaled


@pytest.mark.parametrize("s", [2.0, 3.0])
def test_cfg_does_not_sample_the_tilted_law(s):
    """p = N(0, 2), p(. | c) = N(0, 1): tilted 2/(s+1), DDIM 2^(1-s), DDPM (2 - 2^(2-2s))/(2s-1)."""
    sched = ve_schedule()
    zero, one = torch.zeros(1), torch.eye(1)
    model = toy.Gaussian((zero, 2 * one), [(zero, one)], sched)

    def rule(z, t):
        return guidance.cfg(model.eps(z, t), model.eps(z, t, 0), s)

    ode, sde = linear_chain_variances(rule, sched, (0.0, 1.0))
    _, L = energy.product_of_gaussians((1 - s, s), torch.zeros(2, 1, dtype=F64), model_covs(model))
    assert 1 / L.item() == pytest.approx(2 / (s + 1))
    assert ode == pytest.approx(2 ** (1 - s), abs=0.03)
    assert sde == pytest.approx((2 - 2 ** (2 - 2 * s)) / (2 * s - 1), abs=0.03)
    assert min(abs(ode - 2 / (s + 1)), abs(sde - 2 / (s + 1))) > 0.05


def model_covs(model):
    return model.covariances[[1, 0]]  # phi, c


def test_dns_returns_finite_numbers_where_its_target_is_improper():
    """The same with s -> -s: at s = 2 the ODE ends at variance 2^(1+s) = 8."""
    sched, s = ve_schedule(), 2.0
    zero, one = torch.zeros(1), torch.eye(1)
    model = toy.Gaussian((zero, 2 * one), [(zero, one)], sched)
    assert not energy.is_proper((1 + s, -s), model_covs(model))
    (ode,) = linear_chain_variances(
        lambda z, t: guidance.dns(model.eps(z, t), model.eps(z, t, 0), s), sched, (0.0,)
    )
    assert ode == pytest.approx(8.0, rel=0.02)


def test_cfg_score_is_the_mean_of_the_conditional_and_of_cfg_at_2s_minus_1():
    """Bradley and Nakkiran, arXiv:2408.09000: why CFG with DDPM is DDIM for p plus Langevin."""
    phi, p = randn(4, 3), randn(4, 3, seed=1)
    for s in (0.5, 2.0, 7.5):
        assert_close((p + guidance.cfg(phi, p, 2 * s - 1)) / 2, guidance.cfg(phi, p, s))


OVERSHOT = {2: (1.31, 0.126), 4: (1.66, 0.081), 8: (2.09, 0.058)}  # s: mean and variance
LEFT = {0.5: (-0.86, 0.31), 1: (-1.83, 0.19), 2: (-3.87, 0.07)}  # s: mean and the share right of 0


@pytest.mark.parametrize("s", OVERSHOT)
def test_cfg_overshoots_on_a_mixture(s):
    """phi = half N(-1, 1/4) + half N(1, 1/4), c the right one; reference values of the ODE."""
    z_0, (mean, var) = mixture_samples(guidance.cfg, tuple(OVERSHOT))[s], OVERSHOT[s]
    assert z_0.mean().item() == pytest.approx(mean, abs=0.02)
    assert z_0.var().item() == pytest.approx(var, abs=0.005)


@pytest.mark.parametrize("s", LEFT)
def test_dns_leaves_its_own_density_on_a_mixture(s):
    z_0, (mean, right) = mixture_samples(guidance.dns, tuple(LEFT))[s], LEFT[s]
    assert z_0.mean().item() == pytest.approx(mean, abs=0.03)
    assert (z_0 > 0).double().mean().item() == pytest.approx(right, abs=0.01)


@functools.cache
def mixture_samples(rule, scales, n=250):
    """z_0 (VE scale) of n quantiles of the start through the deterministic chain, by scale.

    The chains of all scales run in one batch.
    """
    sched = ve_schedule()
    model = toy.Mixture(
        [0.5, 0.5], torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.25), [[0], [1]], sched
    )
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    top = sched.level(999)
    z_T = (1 - top + top * 1.25).sqrt() * math.sqrt(2) * torch.erfinv(2 * u - 1)[:, None]
    s = torch.tensor(scales, dtype=F64).repeat_interleave(n)[:, None]
    z_0 = run(
        lambda z, t: rule(model.eps(z, t), model.eps(z, t, 1), s),
        z_T.repeat(len(scales), 1), sched, 1000, spacing="linspace",
    )  # fmt: skip
    return dict(zip(scales, (z_0 / math.sqrt(sched.abar_final)).chunk(len(scales))))

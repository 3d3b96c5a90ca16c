"""The toys are exact: normalised densities, scores that are their gradients, samples that match."""

import math

import pytest
import torch
from torch.testing import assert_close

from dnp import toy
from dnp.schedule import Schedule
from dnp.testing.inputs import oblique

F64 = torch.float64
SD = Schedule.stable_diffusion()


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def toys():
    cov = torch.tensor([[1.0, 0.6], [0.6, 0.5]])
    far = torch.tensor([4.0, -3.0])
    mixture = toy.Mixture(
        [0.2, 0.5, 0.3], torch.stack([far, -far, torch.zeros(2)]),
        torch.stack([cov, 0.1 * torch.eye(2), torch.eye(2)]), [[0, 2], [1]],
    )  # fmt: skip
    gaussian = toy.Gaussian((far, cov), [(-far, cov), (torch.zeros(2), torch.eye(2))])
    points = toy.PointMass(far, [-far, torch.zeros(2)])
    every = {"mixture": mixture, "gaussian": gaussian, "points": points}
    return every | {"eight dimensions": oblique()}  # axes of two are their own transpose


@pytest.mark.parametrize("name", ["mixture", "gaussian", "points", "eight dimensions"])
@pytest.mark.parametrize("c", [None, 0, 1])
def test_score_is_the_gradient_of_log_p_at_every_level(name, c):
    model = toys()[name]
    z = 3 * randn(7, model.means.shape[1])
    for t in (0, 10, 500, 999):
        x = z.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model.log_p(x, t, c).sum(), x)
        assert_close(model.score(z, t, c), grad)
        assert_close(model.eps(z, t, c), -(1 - SD.abar[t]).sqrt() * grad)


@pytest.mark.parametrize("c", [None, 0, 1])
def test_log_p_is_normalised(c):
    """The density of a one-dimensional mixture integrates to 1 at every level."""
    model = toy.Mixture(
        [0.3, 0.7], torch.tensor([[-2.0], [1.5]]), torch.tensor([[[0.5]], [[0.2]]]), [[0], [1]]
    )
    z = torch.linspace(-12, 12, 20001, dtype=F64)[:, None]
    for t in (0, 400, 999):
        total = torch.trapezoid(model.log_p(z, t, c).exp(), z[:, 0])
        assert total.item() == pytest.approx(1, abs=1e-8)


def test_gaussian_log_p_is_torchs():
    mean, cov = (
        torch.tensor([1.0, -2.0], dtype=F64),
        torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64),
    )
    model, z, a = toy.Gaussian((mean, cov), []), randn(5, 2), SD.abar[300]
    ref = torch.distributions.MultivariateNormal(
        a.sqrt() * mean, a * cov + (1 - a) * torch.eye(2, dtype=F64)
    )
    assert_close(model.log_p(z, 300), ref.log_prob(z))


def test_point_mass_eps_is_linear_in_the_point():
    mu, z, a = randn(3, 4), randn(6, 4, seed=1), SD.abar[250]
    model = toy.PointMass(mu[0], list(mu[1:]))
    for c, point in ((None, mu[0]), (0, mu[1]), (1, mu[2])):
        assert_close(model.eps(z, 250, c), (z - a.sqrt() * point) / (1 - a).sqrt())


def test_far_from_every_mode_nothing_underflows():
    model = toys()["mixture"]
    z = torch.tensor([[1e4, -1e4]], dtype=F64)
    assert model.log_p(z, 0).item() < -1e6
    assert torch.isfinite(model.score(z, 0)).all()


def test_a_conditional_is_a_renormalised_sub_mixture():
    """p(z) = sum over disjoint prompts of P(c) p(z | c), at every level."""
    model, z = toys()["mixture"], randn(5, 2)
    for t in (0, 300, 999):
        parts = torch.stack(
            [model.log_p(z, t, 0) + math.log(0.5), model.log_p(z, t, 1) + math.log(0.5)]
        )
        assert_close(torch.logsumexp(parts, 0), model.log_p(z, t))


def test_a_level_for_each_sample():
    model, z = toys()["mixture"], randn(3, 2)
    t = torch.tensor([0, 500, 999])
    for f in (model.log_p, model.score, model.eps):
        want = torch.cat([f(z[i : i + 1], int(t[i]), 0) for i in range(3)])
        assert_close(f(z, t, 0), want)


@pytest.mark.parametrize("t", [-1, 600])
def test_samples_have_the_mean_and_covariance_of_their_level(t):
    model = toys()["gaussian"]
    x = model.sample(200_000, t, 0, generator=torch.Generator().manual_seed(0))
    a = SD.level(t)
    want = a * model.covariances[0] + (1 - a) * torch.eye(2, dtype=F64)
    assert_close(x.mean(0), a.sqrt() * model.means[0], atol=0.01, rtol=0)
    assert_close(x.T.cov(), want, atol=0.02, rtol=0)


def test_samples_of_a_mixture_and_of_a_point():
    models, g = toys(), torch.Generator().manual_seed(0)
    clean = Schedule(SD.abar, 1.0)
    point = toy.PointMass(torch.ones(2), [torch.zeros(2)], clean)
    assert_close(point.sample(3, generator=g), torch.ones(3, 2, dtype=F64))
    x = models["mixture"].sample(20_000, c=0, generator=g)
    far = (x[:, 0] > 2).double().mean().item()
    assert far == pytest.approx(0.4 * 0.977 + 0.6 * 0.023, abs=0.02)


def test_an_unknown_prompt_is_named():
    with pytest.raises(ValueError, match=r"prompts 0 \.\.\. 1 and None, not 2"):
        toys()["mixture"].log_p(randn(1, 2), 5, 2)


def test_posterior_is_bayes_rule():
    model, z = toys()["mixture"], 2 * randn(50, 2)
    for t in (0, 300, 999):
        for c, share in ((None, 1.0), (0, 0.5), (1, 0.5)):
            want = (math.log(share) + model.log_p(z, t, c) - model.log_p(z, t)).exp()
            assert_close(model.posterior(z, t, c), want)


@pytest.mark.parametrize("name", ["gaussian", "points"])
def test_a_toy_whose_phi_does_not_contain_its_prompts_has_no_posterior(name):
    model = toys()[name]
    for ask in (
        lambda: model.posterior(randn(2, 2), 5, 0),
        lambda: model.eps(randn(2, 2), 5, (0, 1)),
    ):
        with pytest.raises(ValueError, match="does not contain its prompts"):
            ask()


def overlapping():
    """Four components; prompts {0, 1} and {0, 3}."""
    cov = torch.tensor([[1.0, 0.3], [0.3, 0.4]])
    covs = torch.stack([cov, 0.2 * cov, torch.eye(2), 2 * cov])
    return toy.Mixture([0.1, 0.2, 0.3, 0.4], 3 * randn(4, 2, seed=5), covs, [[0, 1], [0, 3]])


def test_p_and_not_n_is_what_is_left_of_p():
    """p(z | p) = P(n | p) p(z | p and n) + P(not n | p) p(z | p, not n), at every level."""
    model, z = overlapping(), randn(30, 2)
    only_1 = toy.Mixture([1.0], model.means[[1]], model.covariances[[1]], [[0]])
    for t in (0, 500, 999):
        assert_close(model.log_p(z, t, (0, 1)), only_1.log_p(z, t))
        assert_close(model.eps(z, t, (0, 1)), only_1.eps(z, t))
        not_n = (model.log_p(z, t).exp() - 0.5 * model.log_p(z, t, 1).exp()) / 0.5
        assert_close(model.log_p(z, t, (None, 1)).exp(), not_n)
        x = z.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model.log_p(x, t, (None, 1)).sum(), x)
        assert_close(model.score(z, t, (None, 1)), grad)
        assert_close(model.posterior(z, t, (None, 1)), 1 - model.posterior(z, t, 1))


def test_samples_of_p_and_not_n_are_of_what_is_left():
    model, g = overlapping(), torch.Generator().manual_seed(0)
    x = model.sample(50_000, c=(0, 1), generator=g)
    assert_close(x.mean(0), model.means[1], atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="nothing is 0 and not None"):
        model.sample(3, c=(0, None), generator=g)
    with pytest.raises(ValueError, match="None, not 7"):
        model.sample(3, c=(0, 7), generator=g)


def test_the_clean_level_of_a_toy_is_its_data():
    phi, prompt = (torch.zeros(1), 2 * torch.eye(1)), (torch.ones(1), torch.eye(1))
    clean, z_0 = toy.Gaussian(phi, [prompt]), torch.zeros(1, 1).double()
    assert_close(clean.log_p(z_0, -1, 0).exp().item(), math.exp(-0.5) / math.sqrt(2 * math.pi))
    points = toy.PointMass(torch.zeros(1), [torch.ones(1)])
    with pytest.raises(ValueError, match="no density at the clean end"):
        points.log_p(z_0, -1)

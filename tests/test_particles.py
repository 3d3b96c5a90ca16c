"""The law itself, sampled: particles with the weights of T6, and the Langevin corrector."""

import math

import pytest
import torch

from dnp import particles, toy
from dnp.evaluation.four_modes import toy as modes
from dnp.guidance import coefficients
from dnp.schedule import Schedule

F64 = torch.float64


def ve(n, top=30.0, bottom=0.02):
    sigma = torch.logspace(math.log10(bottom), math.log10(top), n, dtype=F64)
    return Schedule(1 / (1 + sigma**2), 1.0)


class Line:
    """N(0, 2) and N(0, 1) with noises in closed form, fast for many particles."""

    def __init__(self, schedule):
        self.schedule = schedule

    def noises(self, z, t):
        a = self.schedule.level(t)
        return [(1 - a).sqrt() * z / (a * v + 1 - a) for v in (2.0, 1.0)]

    def sample(self, K, t, generator):
        a = self.schedule.level(t)
        return (2 * a + 1 - a).sqrt() * torch.randn(K, 1, generator=generator, dtype=F64)


def run(model, weights, K, seed=0, conditions=(None, 0), **given):
    """z_0 (K, D) and the effective size at each step, as a share of K."""
    g, n = torch.Generator().manual_seed(seed), len(model.schedule.abar)
    z = model.sample(K, n - 1, generator=g)
    noises = getattr(model, "noises", None)
    noises = noises or (lambda z, t: [model.eps(z, t, c) for c in conditions])
    rows = particles.sample(noises, weights, z, model.schedule, n, g, "linspace", **given)
    _, chain, log_w = zip(*rows)
    sizes = [particles.effective_size(w) / K for w in log_w]
    return chain[-1][particles.resample(log_w[-1], g)], sizes


@pytest.mark.slow
@pytest.mark.parametrize(("s", "tilted", "ddpm"), [(2.0, 2 / 3, 0.583), (3.0, 0.5, 0.388)])
def test_T6_particles_have_the_tilted_variance_where_ddpm_has_another(s, tilted, ddpm):
    model = Line(ve(2500))
    z, _ = run(model, coefficients("cfg", s)[:2], 60_000)
    assert z.var().item() == pytest.approx(tilted, abs=0.01)
    plain, _ = run(model, coefficients("cfg", s)[:2], 60_000, reweight=False)
    assert plain.var().item() == pytest.approx(ddpm, abs=0.01)


def two_modes(n):
    means = torch.tensor([[-1.0], [1.0]])
    return toy.Mixture([0.5, 0.5], means, torch.full((2, 1, 1), 0.25), [[1]], ve(n, 50.0))


def test_T6_particles_sample_the_law_of_dns():
    """phi = half N(-1, 1/4), half N(1, 1/4), p the right one: Eq. 18 at s = 1 is N(-3, 1/4)."""
    weights = coefficients("dns", 1.0)[:2]
    z, shares = run(two_modes(300), weights, 4000)
    assert z.mean().item() == pytest.approx(-3, abs=0.1)
    assert z.var().item() == pytest.approx(0.25, abs=0.06)
    assert min(shares) > 0.4
    plain, _ = run(two_modes(300), weights, 2000, reweight=False)
    assert plain.mean().item() > -2.5 and plain.var().item() > 1.5


def test_T6_the_square_the_law_itself_is_off_the_data():
    """Eq. 4 at s = 1/4, right and not up: the law has its mean at (2, -3), one below mode B."""
    four = modes("square")
    model = toy.Mixture([0.25] * 4, four.means, four.covariances, [[0, 1], [0, 3]], ve(150, 40.0))
    weights = coefficients("np", 0.25)
    z, _ = run(model, weights, 2500, conditions=(None, 0, 1))
    assert z.mean(0).tolist() == pytest.approx([2.0, -3.0], abs=0.12)
    plain, _ = run(model, weights, 500, conditions=(None, 0, 1), reweight=False)
    assert plain[:, 1].mean() > -2


def test_an_improper_law_is_told_by_the_effective_size():
    """DNS on the line is improper from s = 1 on: particles are drawn again and again, and all end
    on one side, far out. At s = 0.3 they are never drawn again, and are symmetric as the law is."""
    for s, proper in ((0.3, True), (3.0, False)):
        z, shares = run(Line(ve(200)), (1 + s, -s), 4000)
        under_half, apart = sum(x < 0.5 for x in shares), z.mean().abs() / z.std()
        assert (under_half == 0 and apart < 0.1) if proper else (under_half > 5 and apart > 5)


def test_at_s_0_and_1_the_weights_stay_equal():
    for s in (0.0, 1.0):
        assert min(run(Line(ve(50)), (1 - s, s), 500)[1]) == pytest.approx(1)


def test_the_weights_are_those_of_cfg_and_dns():
    """(|S|^2 - sum w_i |S_i|^2) / 2 is s (s-1) / 2 |dp|^2 for CFG, s (s+1) / 2 |dp|^2 for DNS."""
    eps = torch.randn(2, 7, 3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    a, b = torch.tensor([0.3, 0.5], dtype=F64)
    du = torch.log((1 - a) / a * b / (1 - b))
    square = (eps[1] - eps[0]).flatten(1).square().sum(1)
    for s in (0.4, 3.0):
        cfg = particles.log_weight_step(list(eps), (1 - s, s), a, b)
        torch.testing.assert_close(cfg, s * (s - 1) / 2 * square * du)
        dns = particles.log_weight_step(list(eps), (1 + s, -s), a, b)
        torch.testing.assert_close(dns, s * (s + 1) / 2 * square * du)


def test_resampling_is_systematic_and_the_size_counts_particles():
    log_w = torch.log(torch.tensor([0.5, 0.25, 0.25, 1e-300], dtype=F64))
    counts = torch.bincount(
        particles.resample(log_w, torch.Generator().manual_seed(0)), minlength=4
    )
    assert counts.tolist() == [2, 1, 1, 0]
    assert particles.effective_size(torch.zeros(9, dtype=F64)) == pytest.approx(9)
    assert particles.effective_size(log_w) == pytest.approx(1 / 0.375)


def test_the_corrector_brings_ddim_to_the_law_it_names():
    """s = 3 on the line: DDIM alone .25, wanted .5; a Langevin step is off by r^2 / 2."""
    model, weights = Line(ve(100)), (-2.0, 3.0)
    found = [
        run(model, weights, 10_000, reweight=False, eta=0.0, corrector=k)[0].var().item()
        for k in (0, 1, 8)
    ]
    assert found[0] == pytest.approx(0.25, abs=0.04)
    assert found[0] < found[1] and found[2] == pytest.approx(0.5, abs=0.03)


def test_langevin_alone_settles_on_a_gaussian():
    g, r = torch.Generator().manual_seed(0), 0.3
    z = torch.randn(20_000, 1, generator=g, dtype=F64)
    abar = torch.tensor(0.5, dtype=F64)
    eps = lambda z: (1 - abar).sqrt() * z / 0.7  # the noise of N(0, 0.7)
    for _ in range(80):
        z = particles.langevin(eps, z, abar, g, r)
    assert z.var().item() == pytest.approx(0.7 / (1 - r**2 / 2), rel=0.05)


def test_any_model_can_be_sampled_in_its_own_shape_and_dtype():
    schedule = Schedule.stable_diffusion()
    noises = lambda z, t: [0.9 * z, 0.8 * z]
    z_T = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = list(
        particles.sample(noises, (-1.0, 2.0), z_T, schedule, 5, torch.Generator(), corrector=1)
    )
    assert [t for t, *_ in rows] == [601, 401, 201, 1, -1]
    assert all(z.shape == z_T.shape and z.dtype == torch.float32 for _, z, _ in rows)
    assert all(1 <= particles.effective_size(w) <= 6 + 1e-9 for *_, w in rows)


def test_what_cannot_be_reweighted_is_refused():
    z, schedule = torch.zeros(2, 1), ve(10)
    g = torch.Generator()
    with pytest.raises(ValueError, match="choose eta = 1"):
        next(particles.sample(None, (0.0, 1.0), z, schedule, 5, g, eta=0.0))
    with pytest.raises(ValueError, match="sum to 2"):
        next(particles.sample(None, (1.0, 1.0), z, schedule, 5, g))

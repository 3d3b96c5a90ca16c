"""Schedule and DDIM: explicit pairs, exact landings, the family in eta.

Tests whose name begins with `test_eq` or `test_ddim` run against the mutants too.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dnp import guidance, sampling, toy, training
from dnp.schedule import Schedule

F64 = torch.float64
SD = Schedule.stable_diffusion()
CLEAN = Schedule(SD.abar, abar_final=1.0, steps_offset=1)  # ends at no noise at all


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def run(guided, z_T, sched, steps, **kw):
    """z_0 of a whole chain."""
    return [z for _, z, _ in sampling.ddim_sample(guided, z_T, sched, steps, **kw)][-1]


# ---------------------------------------------------------------------------------- schedule


def test_schedule_is_stable_diffusions_own():
    assert SD.abar.dtype == F64 and SD.abar.shape == (1000,)
    assert SD.abar[0].item() == pytest.approx(1 - 0.00085)
    beta_last = 1 - SD.abar[-1] / SD.abar[-2]
    assert beta_last.item() == pytest.approx(0.012)
    beta_mid = 1 - SD.abar[500] / SD.abar[499]
    root = 0.00085**0.5 + 500 / 999 * (0.012**0.5 - 0.00085**0.5)
    assert beta_mid.item() == pytest.approx(root**2)
    assert SD.abar[-1].sqrt().item() == pytest.approx(0.068, abs=5e-4)
    assert SD.abar_final == SD.abar[0].item()


@pytest.mark.parametrize(
    ("steps", "first", "last"),
    [(1, 1, 1), (60, 945, 1), (600, 600, 1), (1000, 999, 1), (50, 981, 1)],
)
def test_leading_pairs_at_the_awkward_counts(steps, first, last):
    pairs = SD.pairs(steps)
    assert (len(pairs), pairs[0][0], pairs[-1]) == (steps, first, (last, -1))


def test_pairs_of_the_three_spacings():
    assert [t for t, _ in SD.pairs(4)] == [751, 501, 251, 1]
    assert [t for t, _ in SD.pairs(4, "trailing")] == [999, 749, 499, 249]
    assert [t for t, _ in SD.pairs(4, "linspace")] == [999, 666, 333, 0]
    with pytest.raises(ValueError, match="spacing"):
        SD.pairs(4, "karras")
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="steps"):
            SD.pairs(steps)


@given(steps=st.integers(1, 1000), spacing=st.sampled_from(["leading", "trailing", "linspace"]))
def test_ddim_pairs_are_one_connected_walk_to_the_clean_end(steps, spacing):
    pairs = SD.pairs(steps, spacing)
    assert len(pairs) == steps and pairs[-1][1] == -1
    assert all(a[1] == b[0] for a, b in zip(pairs, pairs[1:]))
    assert all(t_next <= t <= 999 for t, t_next in pairs)


def test_level_knows_the_clean_end_and_refuses_what_is_outside():
    assert SD.level(-1).item() == SD.abar_final and CLEAN.level(-1).item() == 1.0
    assert_close(SD.level(torch.tensor([0, 999])), SD.abar[[0, 999]])
    ends = torch.tensor([-1, 7])
    assert_close(CLEAN.level(ends), torch.stack([CLEAN.level(t) for t in (-1, 7)]))
    assert_close(CLEAN.level(ends), torch.stack([CLEAN.level(t) for t in ends]))
    CLEAN.level(7).zero_()  # what is given out is not the table's own
    assert CLEAN.level(7) > 0
    for t in (-2, 1000, torch.tensor(1000), torch.tensor([3, 1000]), torch.tensor([-2, 3])):
        with pytest.raises(ValueError, match=r"t must be in -1 \.\.\. 999, not (-2|1000|\[)"):
            SD.level(t)


def test_eq1_add_noise_keeps_unit_variance_and_is_the_formula():
    z_0, eps = randn(3, 2), randn(3, 2, seed=1)
    t = torch.tensor([0, 500, 999])
    for i in range(3):
        a = SD.abar[t[i]]
        want = math.sqrt(a) * z_0[i] + math.sqrt(1 - a) * eps[i]
        assert_close(SD.add_noise(z_0, eps, t)[i], want)
        assert_close(SD.add_noise(z_0[i], eps[i], int(t[i])), want)


def test_eq1_training_loss_is_zero_for_the_noise_and_minimal_at_the_ideal_eps():
    """A point mass at 0 makes eps = z_t / sigma_t exactly; any other prediction costs."""
    z_0 = torch.zeros(64, 3, dtype=F64)
    exact = toy.PointMass(torch.zeros(3), [torch.ones(3)], SD)
    loss = training.training_loss(exact.eps, SD, z_0, None, torch.Generator().manual_seed(0))
    assert loss.item() < 1e-20
    other = training.training_loss(exact.eps, SD, z_0, 0, torch.Generator().manual_seed(0))
    assert other.item() > 0.01
    none = training.training_loss(
        lambda z, t, c: torch.zeros_like(z), SD, z_0, None, torch.Generator().manual_seed(0)
    )
    assert 0.7 < none.item() < 1.3  # E eps^2


# -------------------------------------------------------------------------------------- DDIM


def test_ddim_step_is_the_formula():
    z_t, eps, noise = randn(2, 3), randn(2, 3, seed=1), randn(2, 3, seed=2)
    a_t, a_next = 0.3, 0.6
    for eta in (0.0, 0.4, 1.0):
        tau = eta * math.sqrt((1 - a_next) / (1 - a_t)) * math.sqrt(1 - a_t / a_next)
        z0 = (z_t - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
        want = math.sqrt(a_next) * z0 + math.sqrt(1 - a_next - tau**2) * eps + tau * noise
        z_next, z0_hat = sampling.ddim_step(z_t, eps, a_t, a_next, eta, noise)
        assert_close(z0_hat, z0)
        assert_close(z_next, want)


def test_ddim_step_at_eta_1_is_the_ddpm_posterior():
    """Ho et al., arXiv:2006.11239, Eqs. (6) and (7), for neighbouring levels."""
    z_t, eps = randn(4, 3), randn(4, 3, seed=1)
    for t in (1, 300, 999):
        a_t, a_next = SD.level(t), SD.level(t - 1)
        alpha = a_t / a_next
        z0 = (z_t - (1 - a_t).sqrt() * eps) / a_t.sqrt()
        mean = a_next.sqrt() * (1 - alpha) / (1 - a_t) * z0
        mean = mean + alpha.sqrt() * (1 - a_next) / (1 - a_t) * z_t
        std = ((1 - a_next) / (1 - a_t) * (1 - alpha)).sqrt()
        for noise in (torch.zeros_like(z_t), randn(4, 3, seed=2)):
            got = sampling.ddim_step(z_t, eps, a_t, a_next, 1.0, noise)[0]
            assert_close(got, mean + std * noise)


def test_ddim_step_takes_a_level_for_each_sample_and_keeps_the_dtype():
    z_t, eps = randn(3, 2, 4), randn(3, 2, 4, seed=1)
    a_t, a_next = torch.tensor([0.1, 0.3, 0.5]), torch.tensor([0.2, 0.9, 1.0])
    got = sampling.ddim_step(z_t, eps, a_t, a_next)
    for i in range(3):
        alone = sampling.ddim_step(z_t[i : i + 1], eps[i : i + 1], a_t[i], a_next[i])
        for x, y in zip(got, alone):
            assert_close(x[i : i + 1], y)
    half = sampling.ddim_step(z_t.bfloat16(), eps.bfloat16(), SD.level(500), SD.level(480))
    assert half[0].dtype == half[1].dtype == torch.bfloat16


def test_ddim_step_changes_no_argument():
    z_t, eps = randn(2, 3), randn(2, 3, seed=1)
    copies = z_t.clone(), eps.clone()
    sampling.ddim_step(z_t, eps, 0.3, 0.6)
    assert_close(z_t, copies[0], rtol=0, atol=0)
    assert_close(eps, copies[1], rtol=0, atol=0)


def test_ddim_with_noise_needs_the_noise_and_the_generators():
    z = randn(2, 3)
    with pytest.raises(ValueError, match="noise"):
        sampling.ddim_step(z, z, 0.3, 0.6, eta=1.0)
    with pytest.raises(ValueError, match="one generator per sample"):
        run(lambda z, t: z, z, SD, 2, eta=0.5, generators=[torch.Generator()])


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddim_lands_on_the_affine_combination_of_points(spacing):
    """Point masses: guided DDIM ends on sum c_i mu_i for any number of steps (final abar = 1)."""
    mu = randn(3, 4)
    model = toy.PointMass(mu[0], list(mu[1:]), CLEAN)
    rules = {
        "cfg": lambda e: guidance.cfg(e[0], e[1], 2.0),
        "np": lambda e: guidance.negative_prompt(*e, 2.0),
        "np2": lambda e: guidance.negative_prompt_two_term(e[1], e[2], 2.0),
        "dns": lambda e: guidance.dns(e[0], e[1], 2.0),
    }
    for method, rule in rules.items():
        target = torch.tensor(guidance.coefficients(method, 2.0), dtype=F64) @ mu
        for steps in (1, 7, 13, 50):
            z_0 = run(
                lambda z, t, rule=rule: rule([model.eps(z, t, c) for c in (None, 0, 1)]),
                randn(5, 4, seed=steps), CLEAN, steps, spacing=spacing,
            )  # fmt: skip
            assert_close(z_0, target.expand(5, 4), atol=3e-12, rtol=0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddim_yields_every_level_of_its_own_list(spacing):
    z_T, seen = randn(2, 3), []

    def guided(z, t):
        seen.append(int(t))
        return torch.zeros_like(z)

    steps = [(t, z) for t, z, _ in sampling.ddim_sample(guided, z_T, CLEAN, 13, spacing=spacing)]
    pairs = Schedule(SD.abar, 1.0, 1).pairs(13, spacing)
    assert seen == [t for t, _ in pairs] and [t for t, _ in steps] == [t for _, t in pairs]
    for t_next, z in steps:  # eps = 0: z_t is only rescaled
        assert_close(z, z_T * (CLEAN.level(t_next) / CLEAN.level(seen[0])).sqrt())
    assert steps[-1][0] == -1


def test_ddim_ends_at_the_last_level_and_not_one_step_early():
    """The exact eps of a Gaussian, 1000 steps: the sample has the variance of the data."""
    data = toy.Gaussian((torch.zeros(1), 0.25 * torch.eye(1)), [], CLEAN)
    z_T = torch.ones(1, 1, dtype=F64)
    for steps, tolerance in ((250, 0.04), (1000, 0.01)):
        z_0 = run(lambda z, t: data.eps(z, t), z_T, CLEAN, steps, spacing="trailing")
        at_T = CLEAN.level(999) * 0.25 + 1 - CLEAN.level(999)
        assert z_0.item() ** 2 / at_T.item() == pytest.approx(0.25, rel=tolerance)


def test_a_sample_never_depends_on_its_batch_mates():
    model = toy.Gaussian((torch.zeros(2), torch.eye(2)), [(torch.ones(2), 0.5 * torch.eye(2))], SD)

    def chain(seeds):
        gens = [torch.Generator().manual_seed(s) for s in seeds]
        z_T = sampling.noise_like(torch.empty(len(seeds), 2, dtype=F64), gens)
        return run(lambda z, t: model.eps(z, t, 0), z_T, SD, 10, eta=1.0, generators=gens)

    together, backwards = chain([3, 4, 5]), chain([5, 4, 3])
    assert_close(together, backwards.flip(0), rtol=0, atol=1e-14)
    assert_close(together[1:2], chain([4]), rtol=0, atol=1e-14)


def test_noise_is_the_same_numbers_in_every_dtype():
    draw = [
        sampling.noise_like(torch.empty(1, 8, dtype=d), [torch.Generator().manual_seed(1)])
        for d in (torch.float32, torch.float16)
    ]
    assert_close(draw[0].half(), draw[1], rtol=0, atol=0)

"""VP, VE and flow matching are one process: each sampler in its own unit against ours."""

import pytest
import torch
from torch.testing import assert_close

from dnp import guidance, sampling, toy, units
from dnp.energy import eps_from_v
from dnp.schedule import Schedule
from dnp.training import training_loss

F64 = torch.float64
MEANS = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, -2.0]], dtype=F64)
EXACT = {"atol": 1e-12, "rtol": 1e-12}
SCHEDULES = {
    "SD": Schedule.stable_diffusion(set_alpha_to_one=True),
    "cosine": Schedule.cosine(),
    "flow": Schedule.flow(),
    "flow, shift 3": Schedule.flow(shift=3.0, cut=1e-6),
}
UNITS = {"vp": units.vp, "ve": units.ve, "flow": units.flow}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mixture(schedule):
    """Three modes of sd 0.45; prompt 0 has two of them, prompt 1 one."""
    covariances = 0.2 * torch.eye(2, dtype=F64).expand(3, 2, 2)
    return toy.Mixture([1.0] * 3, MEANS, covariances, [[0, 1], [1]], schedule)


def law(z, alpha, sigma, c):
    """(z0_hat, eps) of the mixture at z = alpha z_0 + sigma eps, by its own formula."""
    means = MEANS[{None: [0, 1, 2], 0: [0, 1], 1: [1]}[c]]
    v = alpha**2 * 0.2 + sigma**2
    d = z[:, None] - alpha * means
    r = torch.softmax(-(d**2).sum(-1) / (2 * v), 1)[..., None]
    return (r * (means + alpha * 0.2 / v * d)).sum(1), sigma * (r * d).sum(1) / v


def guided(z, alpha, sigma, s=2.0):
    """(z0_hat, eps) under CFG, which is linear, so both are guided by one rule."""
    return (
        guidance.cfg(phi, p, s) for phi, p in zip(*(law(z, alpha, sigma, c) for c in (None, 0)))
    )


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_has_the_level_of_its_schedule(name, unit):
    abar = SCHEDULES[name].abar
    alpha, sigma = UNITS[unit](abar)
    assert_close(alpha**2 / (alpha**2 + sigma**2), abar, atol=0, rtol=1e-9)
    assert_close(Schedule.from_levels(alpha, sigma).abar, abar, atol=0, rtol=1e-9)
    whole = {"vp": alpha**2 + sigma**2, "ve": alpha, "flow": alpha + sigma}[unit]
    assert_close(whole, torch.ones(1000, dtype=F64), **EXACT)


@pytest.mark.parametrize("steps", [1, 28, 250])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_euler_step_of_a_flow_is_ddim(shift, steps):
    schedule = Schedule.flow(shift=shift)
    tau = units.flow(schedule.abar)[1]

    def velocity(z, t, c):
        z0_hat, eps = law(z, 1 - tau[int(t)], tau[int(t)], c)
        return eps - z0_hat

    eps = units.in_vp(velocity, schedule, units.flow, units.eps_from_flow)
    model = lambda z, t: guidance.cfg(eps(z, t, None), eps(z, t, 0), 2.0)
    z_T = randn(256, 2)
    *_, (_, z_0, _) = sampling.ddim_sample(model, z_T, schedule, steps, spacing="trailing")
    levels = [tau[t].item() for t, _ in schedule.pairs(steps, "trailing")] + [0.0]
    z = z_T * (levels[0] ** 2 + (1 - levels[0]) ** 2) ** 0.5
    for now, then in zip(levels, levels[1:]):
        z0_hat, noise = guided(z, 1 - now, now)
        z = z + (then - now) * (noise - z0_hat)
    assert_close(z_0, z, atol=1e-10, rtol=1e-10)


def test_the_euler_step_of_a_variance_exploding_process_is_ddim():
    schedule = SCHEDULES["cosine"]
    sigma = units.ve(schedule.abar)[1]
    denoise = lambda z, t, c: law(z, 1.0, sigma[int(t)], c)[0]
    eps = units.in_vp(denoise, schedule, units.ve, units.eps_from_z0)
    model = lambda z, t: guidance.cfg(eps(z, t, None), eps(z, t, 0), 2.0)
    z_T = randn(64, 2)
    *_, (_, z_0, _) = sampling.ddim_sample(model, z_T, schedule, 50, spacing="linspace")
    levels = [sigma[t].item() for t, _ in schedule.pairs(50, "linspace")] + [0.0]
    z = z_T * (1 + levels[0] ** 2) ** 0.5
    for now, then in zip(levels, levels[1:]):
        z0_hat, _ = guided(z, 1.0, now)
        z = z + (then - now) * (z - z0_hat) / now
    assert_close(z_0, z, atol=1e-9, rtol=1e-9)


def test_the_ddpm_step_is_the_posterior_of_alpha_and_sigma_in_every_unit():
    """q(z_s | z_t, z_0) of any (alpha, sigma): Kingma et al., arXiv:2107.00630, Appendix A."""
    schedule, t, t_next = SCHEDULES["flow, shift 3"], 700, 650
    z, z_0, noise = randn(3, 4, 2)
    for unit in UNITS.values():
        (a_t, s_t), (a_s, s_s) = (unit(schedule.level(x)) for x in (t, t_next))
        a_ts = a_t / a_s
        var_ts = s_t**2 - a_ts**2 * s_s**2
        mean = (a_ts * s_s**2 * z + a_s * var_ts * z_0) / s_t**2
        want = mean + (var_ts.sqrt() * s_s / s_t) * noise
        rms_t, rms_s = (a_t**2 + s_t**2).sqrt(), (a_s**2 + s_s**2).sqrt()
        eps = (z - a_t * z_0) / s_t
        got, z0_hat = sampling.ddim_step(
            z / rms_t, eps, schedule.level(t), schedule.level(t_next), 1.0, noise
        )
        assert_close(got * rms_s, want, **EXACT)
        assert_close(z0_hat, z_0, **EXACT)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("predicts", ["u", "z_0", "v"])
def test_eps_of_what_a_network_predicts(unit, predicts):
    """From z_0 and eps, for a t of each sample, in each unit."""
    schedule = SCHEDULES["flow"]
    z_0, eps = randn(2, 5, 3, 2)
    t = torch.tensor([0, 10, 400, 800, 998])
    alpha, sigma = (x[:, None, None] for x in UNITS[unit](schedule.level(t)))
    z_t = schedule.add_noise(z_0, eps, t)
    says = {"u": eps - z_0, "z_0": z_0, "v": alpha * eps - sigma * z_0}[predicts]
    to_eps = {"u": units.eps_from_flow, "z_0": units.eps_from_z0, "v": units.eps_from_v}[predicts]

    def predict(z, at, c):
        assert c == "c" and at is t
        assert_close(z, alpha * z_0 + sigma * eps, **EXACT)
        return says

    made = units.in_vp(predict, schedule, UNITS[unit], to_eps)(z_t, t, "c")
    assert_close(made, eps, atol=1e-9, rtol=1e-9)
    if (unit, predicts) == ("vp", "v"):
        assert_close(made, eps_from_v(z_t, says, schedule.level(t)), **EXACT)


def test_the_network_is_called_in_its_own_dtype():
    seen = []
    predict = lambda z, t, c: seen.append(z.dtype) or z
    for dtype in (None, torch.float32):
        eps = units.in_vp(predict, SCHEDULES["flow"], units.flow, units.eps_from_flow, dtype)
        assert eps(randn(2, 3), torch.tensor(500), None).dtype == F64
    assert seen == [F64, torch.float32]


@pytest.mark.parametrize("name", SCHEDULES)
def test_exact_toys_under_any_levels(name):
    """The same law whatever the levels: eps by another formula, and chains that end in the data."""
    schedule = SCHEDULES[name]
    model, z = mixture(schedule), randn(32, 2)
    for t in (3, 500, 999):
        alpha, sigma = units.vp(schedule.level(t))
        for c in (None, 0, 1):
            _, eps = law(z, alpha, sigma, c)
            assert_close(model.eps(z, t, c), eps, atol=1e-11, rtol=1e-11)
    walk = sampling.ddim_sample(
        lambda z, t: model.eps(z, t, 1), randn(2000, 2), schedule, 400, spacing="trailing"
    )
    *_, (_, z_0, _) = walk
    assert (z_0.mean(0) - MEANS[1]).abs().max() < 0.05
    assert (z_0.var(0) - 0.2).abs().max() < 0.03


def test_the_cosine_schedule_is_nichol_and_dhariwals():
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    ours = Schedule.cosine()
    assert_close(ours.abar[:-1], theirs[:-1], atol=1e-6, rtol=1e-4)
    assert ours.abar_final == 1.0 and ours.abar.dtype == F64
    assert 0 < ours.abar[-1] < 1e-6 and (ours.abar.diff() < 0).all()


def test_flow_levels_are_those_of_stable_diffusion_3():
    from diffusers import FlowMatchEulerDiscreteScheduler

    for shift in (1.0, 3.0):
        theirs = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas.double().flip(0)
        tau = units.flow(Schedule.flow(shift=shift).abar)[1]
        assert_close(tau[:-1], theirs[:-1], atol=1e-6, rtol=1e-5)
        assert tau[-1].item() == pytest.approx(1 - 1e-4, abs=1e-12)
    assert len(Schedule.flow(T=1).abar) == 1
    steep = units.flow(Schedule.flow(shift=40.0).abar)[1]  # nearer to 1 than the cut
    assert (steep.diff() > 0).all() and steep[-1] < 1


@pytest.mark.parametrize(
    ("alpha", "sigma"),
    [([1.0, 0.0], [0.1, 1.0]), ([1.0, 0.5], [0.5, 0.25]), ([[1.0]], [[0.1]]), ([1.0], [-0.1])],
)
def test_levels_that_are_none_are_refused(alpha, sigma):
    with pytest.raises(ValueError, match="sigma / alpha rising"):
        Schedule.from_levels(torch.tensor(alpha), torch.tensor(sigma))


def test_a_training_loss_under_flow_levels():
    """Eq. (1) at the exact noise is its least value; at zero it is the mean of eps squared."""
    model = mixture(SCHEDULES["flow"])
    z_0 = model.sample(4000, generator=torch.Generator().manual_seed(0))
    loss = lambda f: training_loss(f, model.schedule, z_0, None, torch.Generator().manual_seed(1))
    exact = loss(model.eps)
    assert exact < loss(lambda z, t, c: 0.9 * model.eps(z, t, c)) < loss(lambda z, t, c: 0 * z)

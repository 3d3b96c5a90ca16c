"""DPM-Solver++(2M): its order on a Gaussian in closed form, parity with diffusers, every rule."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import dnp
from conftest import MINI, slow_but
from dnp.dpmpp import dpmpp2m_sample, dpmpp2m_step
from dnp.errors import SettingsError
from dnp.generation import SAMPLERS
from dnp.methods import METHODS
from dnp.methods import rule as contract
from dnp.methods.chain import Chain
from dnp.methods.fields import table
from dnp.methods.words import NegativePrompt
from dnp.rules import RULES
from dnp.sampling import ddim_sample, ddim_step
from dnp.schedule import Schedule
from dnp.toy import Gaussian, Mixture, PointMass

F64 = torch.float64
SD = Schedule.stable_diffusion()
SOUND = {"steps": 10, "sampler": "dpmpp2m", "seed": 3}


def even_in_log_snr(steps, first=-3.0, last=3.0):
    """A schedule of `steps` + 1 levels, uniform in lambda = log(sqrt(abar) / sigma)."""
    abar = torch.sigmoid(2 * torch.linspace(last, first, steps + 1, dtype=F64))
    return Schedule(abar[1:], abar_final=abar[0].item())


def error(sample, steps, mean=0.7, variance=0.3):
    """How far a chain ends from the flow of N(mean, variance), z = sqrt(abar) m + deviation x."""
    schedule = even_in_log_snr(steps)
    law = (torch.tensor([mean], dtype=F64), torch.tensor([[variance]], dtype=F64))
    toy = Gaussian(law, [law], schedule)

    def at(abar, x):
        return math.sqrt(abar) * mean + math.sqrt(abar * variance + 1 - abar) * x

    x = torch.tensor([[-1.3], [0.4], [2.1]], dtype=F64)
    z_T = at(schedule.abar[-1].item(), x)
    *_, (_, z_0, _) = sample(toy.eps, z_T, schedule, steps, spacing="linspace")
    return (z_0 - at(schedule.abar_final, x)).abs().max().item()


def test_the_order_is_two_on_levels_even_in_log_snr():
    errors = [error(dpmpp2m_sample, steps) for steps in (80, 160, 320)]
    ratios = [a / b for a, b in zip(errors, errors[1:])]
    assert all(3.7 < r < 4.3 for r in ratios), (errors, ratios)
    assert errors[0] < error(ddim_sample, 80) / 5


def test_ddim_and_a_step_that_forgets_the_last_one_are_of_order_one():
    def forgets(guided, z, schedule, steps, spacing):
        for t, t_next in schedule.pairs(steps, spacing):
            abar = schedule.level(t), schedule.level(t_next)
            z, z0_hat = dpmpp2m_step(z, guided(z, torch.tensor(t)), *abar)
            yield t_next, z, z0_hat

    for sample in (ddim_sample, forgets):
        assert 1.8 < error(sample, 80) / error(sample, 160) < 2.2


def test_without_a_last_step_it_is_ddim_also_to_the_clean_end():
    z, eps = torch.randn(2, 3, 4, 4, dtype=F64).unbind()
    for abar_t, abar_next in ((0.1, 0.4), (0.5, 0.5), (0.7, 1.0)):
        ours, theirs = dpmpp2m_step(z, eps, abar_t, abar_next), ddim_step(z, eps, abar_t, abar_next)
        for a, b in zip(ours, theirs):
            assert_close(a, b)


@pytest.mark.parametrize("steps", [1, 2, 5, 50])
@pytest.mark.parametrize("abar_final", [SD.abar_final, 1.0])
def test_guided_points_are_landed_on_exactly(steps, abar_final):
    """z0_hat never changes there, so its difference adds nothing."""
    toy = PointMass(torch.zeros(2), [torch.ones(2)], Schedule(SD.abar, 1.0, 1))
    toy.schedule = Schedule(SD.abar, abar_final, 1)
    z_T = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    *_, (_, z_0, z0_hat) = dpmpp2m_sample(
        lambda z, t: toy.eps(z, t, 0), z_T, toy.schedule, steps
    )  # fmt: skip
    assert_close(z0_hat, torch.ones(4, 2, dtype=F64))
    if abar_final == 1:
        assert_close(z_0, torch.ones(4, 2, dtype=F64))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", slow_but((1, 7, 1000), [1, 7, 600, 1000]))
def test_awkward_counts_stay_finite_and_end_near_ddim(spacing, steps):
    law = (torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    toy = Gaussian(law, [law], SD)
    z_T = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    start = z_T.clone()
    rows = list(dpmpp2m_sample(toy.eps, z_T, SD, steps, spacing=spacing))
    assert len(rows) == steps and rows[-1][0] == -1
    assert_close(z_T, start, rtol=0, atol=0)
    *_, (_, z_0, _) = ddim_sample(toy.eps, z_T, SD, steps, spacing=spacing)
    assert torch.isfinite(rows[-1][1]).all()
    if steps >= 600:
        assert_close(rows[-1][1], z_0, rtol=0, atol=5e-3)


class Pairs(Schedule):
    """A schedule that is walked along given levels."""

    def pairs(self, steps, spacing="leading"):
        ts = [int(t) for t in spacing]
        return list(zip(ts, [*ts[1:], -1]))


@pytest.mark.parametrize("end", ["sigma_min", "zero"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [8, 25])
def test_parity_with_diffusers_in_the_same_spacing(spacing, steps, end):
    from diffusers import DPMSolverMultistepScheduler

    oracle = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
        timestep_spacing=spacing, final_sigmas_type=end, algorithm_type="dpmsolver++",
        solver_order=2, solver_type="midpoint", euler_at_final=True,
    )  # fmt: skip
    oracle.set_timesteps(steps)
    ts = oracle.timesteps.tolist()
    if spacing == "trailing":  # its leading spacing has another stride than DDIM's
        assert ts == [t for t, _ in SD.pairs(steps, "trailing")]
    schedule = Pairs(SD.abar, SD.abar_final if end == "sigma_min" else 1.0, 1)
    weights = torch.randn(8, 8, dtype=F64, generator=torch.Generator().manual_seed(2)) / 3

    def guided(z, t):
        return torch.tanh(z @ weights) + z * (1 - SD.level(t)).sqrt() + 0.1 * torch.cos(t / 90)

    z_T = torch.randn(4, 8, dtype=F64, generator=torch.Generator().manual_seed(1))
    theirs = z_T
    for t in oracle.timesteps:
        theirs = oracle.step(guided(theirs, t), t, theirs).prev_sample
    *_, (_, ours, _) = dpmpp2m_sample(guided, z_T, schedule, steps, spacing=ts)
    assert_close(ours, theirs.to(F64), rtol=0, atol=2e-5)  # its tables are float32


def test_a_sampler_is_a_function_of_its_name():
    for name, file in SAMPLERS.items():
        assert callable(getattr(file, f"{name}_sample"))
    assert set(SAMPLERS) == set(table(Chain)["sampler"].metadata["choices"])


def test_noise_is_refused(small_model):
    with pytest.raises(ValueError, match="eta"):
        list(dpmpp2m_sample(lambda z, t: z, torch.ones(1, 2), SD, 2, eta=0.5))
    with pytest.raises(SettingsError, match="no eta"):
        dnp.generate(small_model, "a red car", eta=0.5, sampler="dpmpp2m")


# ------------------------------------------------------------------------- rules and methods


def toy(schedule=SD):
    means = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]], dtype=F64)
    covariances = 0.2 * torch.eye(2, dtype=F64).expand(3, 2, 2)
    return Mixture([0.3, 0.4, 0.3], means, covariances, [[0, 1], [1], [2]], schedule)


@pytest.mark.parametrize("rule", slow_but(("cfg", "bounded", "dng"), RULES))
def test_every_rule_runs_under_it_and_nears_its_own_limit(rule):
    """On levels even in log-SNR, 80 of its steps go where 640 of DDIM's go, nearer than 80 do."""
    if rule == "dng":
        with pytest.raises(SettingsError, match="choose eta=1 and sampler=ddim"):
            dnp.generate(toy(), 0, method="np", rule=rule, negative=1, sampler="dpmpp2m")
        return
    needs = contract.read(rule).needs
    given = {"negative": 2} if "eps_n" in needs else {}
    given |= {"s": 2.0} if "s" in needs else {}
    z_T = toy(even_in_log_snr(80)).sample(16, 79, 0, generator=torch.Generator().manual_seed(5))

    def end(steps, sampler):
        model = toy(even_in_log_snr(steps))
        *_, (_, z_0, _, _) = dnp.trajectory(
            model, 0, rule=rule, z_T=z_T, steps=steps, sampler=sampler, **given
        )
        return z_0

    ours, limit = end(80, "dpmpp2m"), end(640, "ddim")
    assert torch.isfinite(ours).all() and not torch.equal(ours, end(80, "ddim"))
    if rule not in ("apg", "cfg_plus_plus"):  # whose momentum or scale depends on the stride
        assert (ours - limit).abs().mean() < (end(80, "ddim") - limit).abs().mean() / 2


def test_dng_with_an_exact_posterior_runs_under_it():
    from dnp.rules import DNG

    model = toy()
    rule = DNG(g=1.0, posterior=lambda z, t: model.posterior(z, t, 2))
    made = dnp.generate(model, 0, method="np", rule=rule, negative=2, s=1.0, images=8, **SOUND)
    assert torch.isfinite(made.latents[1]).all()


@pytest.mark.parametrize("method", slow_but(("cfg", "answer"), METHODS))
def test_every_method_runs_under_it_at_its_usual_cost(small_model, method):
    given = {"negative": "a dog"} if issubclass(METHODS[method], NegativePrompt) else {}
    given["size"] = (32, 32)
    ours = dnp.generate(small_model, "a red car", method, **given, **SOUND)
    ddim = dnp.generate(small_model, "a red car", method, **given, **{**SOUND, "sampler": "ddim"})
    assert ours.nfe == ddim.nfe and ours.settings["sampler"] == "dpmpp2m"
    assert not torch.equal(ours.latents[1], ddim.latents[1])


@pytest.mark.slow
def test_on_the_miniature_20_of_its_steps_are_nearer_to_ddims_200_than_20_of_ddims():
    """In trailing spacing, where all counts start at t = 999: 0.04 of 0.11 when it was written."""
    model = dnp.load(MINI)
    model.config = replace(model.config, spacing="trailing")

    def z_0(sampler, steps):
        made = dnp.generate(model, "a red car", "cfg", steps=steps, sampler=sampler, images=2)
        return made.latents[1]

    limit = z_0("ddim", 200)
    ours, ddim = ((z_0(name, 20) - limit).square().mean().sqrt() for name in ("dpmpp2m", "ddim"))
    assert ours < ddim / 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_dns_image_is_made_by_the_sampler_of_its_picture(small_model, sampler):
    given = {"steps": 10, "sampler": sampler, "size": (32, 32)}
    made = dnp.generate(small_model, "a cat", "dnp", captioner=lambda _: "a dog", **given)
    alone = dnp.generate(small_model, "a cat", "dns", s=made.settings["s_dns"], **given)
    assert made.dns_images[0].tobytes() == alone.images[0].tobytes()

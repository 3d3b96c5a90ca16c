"""Inputs at the edge of the mathematics: a scale for each sample, half precision, whole numbers,
limits of closed forms, and toys that are no law. And what sentences of the docstrings say."""

import math

import pytest
import torch
from torch.testing import assert_close

from dnp import dpmpp, energy, guidance, rules, sampling, schedule, toy
from dnp.schedule import Schedule

F64 = torch.float64
SHAPES = [(4, 3, 4, 4), (4, 4), (2, 2), (3, 4, 3), (4, 4, 4, 4)]


def noises(shape, dtype=F64):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g, dtype=F64).to(dtype) for _ in range(3)]


SCALED = {
    "cfg": lambda a, b, c, s: guidance.cfg(a, b, s),
    "cfg, by name": lambda a, b, c, s: guidance.cfg(eps_phi=a, eps_p=b, s=s),
    "np": guidance.negative_prompt,
    "np2": lambda a, b, c, s: guidance.negative_prompt_two_term(b, c, s),
    "two scales": lambda a, b, c, s: guidance.negative_prompt_two_scale(a, b, c, s, s + 1),
    "h": lambda a, b, c, s: guidance.negative_prompt_two_scale(a, b, c, 2.0, h=s),
    "dns": lambda a, b, c, s: guidance.dns(a, b, s),
    "compose": lambda a, b, c, s: guidance.compose(a, [(s, b), (-s, c)]),
    "perp_neg": lambda a, b, c, s: rules.perp_neg(a, b, c, 2.0, w=s),
    "perp_neg, s": lambda a, b, c, s: rules.perp_neg(a, b, c, s),
    "ccfg": rules.ccfg,
    "ccfg, tau": lambda a, b, c, s: rules.ccfg(a, b, c, 2.0, tau=s.abs()),
    "dng": lambda a, b, c, s: rules.dng(a, b, c, s, torch.full((len(a),), 0.3), g=s),
    "bounded": lambda a, b, c, s: rules.bounded(a, b, c, s, h=s + 1),
    "half_space": rules.half_space,
    "half_space, tau": lambda a, b, c, s: rules.half_space(a, b, c, 2.0, tau=s - 2),
    "perp_neg_dual": rules.perp_neg_dual,
    "perp_neg_dual, tau": lambda a, b, c, s: rules.perp_neg_dual(a, b, c, 2.0, tau=s),
    "apg": lambda a, b, c, s: rules.apg(a, b, s, eta=s),
    "APG": lambda a, b, c, s: rules.APG()(a, b, s, c, torch.tensor(0.5, dtype=F64)),
    "cfg_zero_star": lambda a, b, c, s: rules.cfg_zero_star(a, b, s),
    "cfg++": lambda a, b, c, s: rules.cfg_plus_plus(a, b, *torch.tensor([0.9, 0.8]), lam=s),
    "two_term_scale": lambda a, b, c, s: guidance.two_term_scale(a, b, c, s)[:, None],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SCALED)
def test_a_scale_for_each_sample_is_each_samples_scale(name, shape):
    rule, eps = SCALED[name], noises(shape)
    s = torch.linspace(0.5, 4, shape[0], dtype=F64)
    whole = rule(*eps, s)
    for i in range(shape[0]):
        assert_close(whole[i : i + 1], rule(*(e[i : i + 1] for e in eps), s[i : i + 1]))


def test_two_term_takes_the_scale_that_two_term_scale_gives():
    phi, p, n = noises((2, 2))
    phi = n + torch.tensor([[0.3], [1.5]], dtype=F64) * (p - n)  # on the line: none is left
    s = guidance.two_term_scale(phi, p, n, 3.0)
    want = guidance.negative_prompt(phi, p, n, 3.0)
    assert_close(guidance.negative_prompt_two_term(p, n, s), want)


def test_scales_of_another_count_are_told():
    phi, p, n = noises((4, 3, 2, 2))
    for ask in (
        lambda s: guidance.cfg(phi, p, s),
        lambda s: guidance.compose(phi, [(s, p)]),
        lambda s: rules.perp_neg(phi, p, n, 2.0, w=s),
    ):
        with pytest.raises(ValueError, match="3 scales for 4 samples; give a number, or one"):
            ask(torch.ones(3))
        assert ask(torch.ones(1)).shape == phi.shape == ask(torch.tensor(1.0)).shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_a_large_latent_of_half_precision_are_finite(dtype):
    wide = noises((2, 4, 128, 128))
    half = [x.to(dtype) for x in wide]
    near = {"rtol": 0.02, "atol": 0.02, "check_dtype": False}
    for norm_sq in (3.0, 1e5, torch.tensor([1.0, 9e5])):
        got = guidance.optimal_negative(half[1], norm_sq)
        assert got.dtype == dtype
        assert_close(got, guidance.optimal_negative(wide[1], norm_sq), **near)
    got = guidance.two_term_scale(*half, 3.0)
    assert_close(got, guidance.two_term_scale(*wide, 3.0), **near)
    for got, want in zip(guidance.effective_scale(*half), guidance.effective_scale(*wide)):
        assert_close(got, want, **near)
    assert rules.dot is guidance.dot


def test_whole_numbers_mean_what_the_same_floats_mean():
    whole = list(torch.tensor([[[1, -2], [3, 4]], [[2, 5], [-1, 3]], [[1, 1], [0, 7]]]))
    same = [x.float() for x in whole]
    s = torch.tensor([0.5, 2.5])
    for name, rule in SCALED.items():
        assert_close(rule(*whole, s), rule(*same, s), check_dtype=False, msg=name)
    for f in (
        lambda z, e, _: guidance.optimal_negative(e, 2.5),
        lambda z, e, _: sampling.ddim_step(z, e, 0.3, 0.6)[0],
        lambda z, e, _: dpmpp.dpmpp2m_step(z, e, 0.3, 0.6)[0],
        lambda z, e, _: energy.v_from_eps(z, e, 0.3),
        lambda z, e, _: energy.score_from_eps(e, 0.4),
        lambda z, e, _: Schedule.stable_diffusion().add_noise(z, e, 500),
    ):
        assert_close(f(*whole), f(*same))
    assert schedule.column(0.5, whole[0]).dtype == torch.float32


# ------------------------------------------------------------------------------ closed forms


def plain_ddpm_variance(v_phi, v_p, s):
    """The formula as the docstring derives it, with its 0 / 0."""
    k = 2 * s - 1
    grown = ((v_phi / v_p) ** k - 1) / k
    return v_phi ** (2 - 2 * s) * v_p ** (2 * s) * grown / (v_phi - v_p)


def test_ddpm_variance_is_the_formula_and_has_its_limits():
    for v_phi, v_p, s in ((2.0, 1.0, 3.0), (1.0, 2.0, -0.7), (0.5, 3.0, 0.2), (2.0, 1.0, 0.0)):
        want = plain_ddpm_variance(v_phi, v_p, s)
        assert energy.ddpm_variance(v_phi, v_p, s) == pytest.approx(want, rel=1e-12)
    for s in (-2.0, 0.0, 0.5, 1.0, 7.5):  # every prompt is phi
        assert energy.ddpm_variance(3.0, 3.0, s) == pytest.approx(3.0, rel=1e-14)
        assert energy.ddpm_variance(3.0, 3.0 * (1 + 1e-13), s) == pytest.approx(3.0, rel=1e-11)
    half = 2 * 1 * math.log(2) / (2 - 1)
    assert energy.ddpm_variance(2.0, 1.0, 0.5) == pytest.approx(half, rel=1e-14)
    for d in (1e-15, 1e-9, -1e-12):
        assert energy.ddpm_variance(2.0, 1.0, 0.5 + d) == pytest.approx(half, rel=1e-8)
    assert energy.ddpm_variance(1.0, 4.0, 2000.0) == math.inf  # beyond what a float holds
    assert energy.ddpm_variance(4.0, 1.0, 2000.0) == pytest.approx(4 / 3 / 3999, rel=1e-12)
    s = torch.tensor([0.0, 0.5, 3.0], dtype=F64)
    rows = [energy.ddpm_variance(2.0, 1.0, x) for x in s.tolist()]
    assert_close(energy.ddpm_variance(2.0, 1.0, s), torch.tensor(rows, dtype=F64))
    assert isinstance(rows[0], float)


def test_a_density_is_proper_however_unequal_its_widths_are():
    for wide in (1e13, 1e18, 1e-13):
        cov = torch.diag(torch.tensor([1.0, wide], dtype=F64))
        assert energy.is_proper((1,), cov[None])
        assert not energy.is_proper((-1,), cov[None])
        assert energy.is_proper((2.0, -1.0), torch.stack([cov, 3 * cov]))
        assert not energy.is_proper((1.0, -1.0), torch.stack([cov, cov]))
    assert not energy.is_proper((0.0,), torch.eye(2, dtype=F64)[None])


def test_cfg_is_improper_exactly_where_the_closed_form_says():
    for v_phi, v_p in ((1.0, 2.0), (2.0, 3.0), (2.0, 1.0)):
        cov = torch.tensor([v_phi, v_p], dtype=F64).reshape(2, 1, 1)
        limit = v_p / (v_p - v_phi) if v_p > v_phi else math.inf
        for s in (0.5, 1.0, 0.99 * limit, 1.01 * limit, 50.0):
            if s < math.inf:
                assert energy.is_proper((1 - s, s), cov) == (s < limit)


def square():
    """Four modes; p is the right two, n the upper two: A, the upper right one, is both."""
    means = torch.tensor([[3.0, 3], [3, -3], [-3, 3], [-3, -3]], dtype=F64)
    cov = 0.25 * torch.eye(2, dtype=F64).expand(4, 2, 2)
    return toy.Mixture([0.25] * 4, means, cov, [[0, 1], [0, 2], [2, 3]])


def test_eq11_is_the_odds_of_p_against_n_and_of_p_and_not_n_only_where_they_exclude_each_other():
    model, t = square(), 100
    at_A = model.schedule.level(t).sqrt() * model.means[:1]
    o = energy.log_odds(model.energy(t, 0), model.energy(t, 1))(at_A).exp()
    p, n = model.posterior(at_A, t, 0), model.posterior(at_A, t, 1)
    assert_close(o, p / n)
    not_n = model.posterior(at_A, t, (0, 1))
    assert o.item() == pytest.approx(1) and (not_n / n).item() < 1e-10
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    o = energy.log_odds(model.energy(t, 0), model.energy(t, 2))(z).exp()  # left excludes right
    assert_close(o, model.posterior(z, t, (0, 2)) / model.posterior(z, t, 2))


def test_gamma_is_a_posterior_only_of_a_prompt_that_is_a_part_of_phi():
    z, t = torch.linspace(-60, 60, 25, dtype=F64)[:, None], 100
    model = toy.Mixture(
        [0.3, 0.7], torch.tensor([[-1.0], [1.0]]), torch.tensor([[[3.0]], [[2.0]]]), [[0], [1]]
    )
    gamma = (model.log_p(z, t, 0) - model.log_p(z, t)).exp()
    assert gamma.max() <= 1 / 0.3 + 1e-9
    wide = toy.Gaussian((torch.zeros(1), 2 * torch.eye(1)), [(torch.zeros(1), 3 * torch.eye(1))])
    assert (wide.log_p(z, t, 0) - wide.log_p(z, t)).exp().max() > 1e6


# ------------------------------------------------------------------------------ samplers


def test_ddim_step_refuses_an_eta_that_is_not_from_0_to_1():
    z = torch.zeros(2, 3)
    for eta in (1.001, 2.0, -0.5, math.nan):
        with pytest.raises(ValueError, match=r"eta = .* is not possible; give 0 \(DDIM\) to 1"):
            sampling.ddim_step(z, z, 0.3, 0.6, eta, z)


def test_dpmpp2m_is_of_second_order_on_even_log_snr_and_not_on_stable_diffusions_levels():
    """Ratios of the errors of N and 2 N steps, on a Gaussian whose probability flow is known."""
    SD = Schedule.stable_diffusion(set_alpha_to_one=True)
    lam = torch.linspace(4.0, -3.5, 1281, dtype=F64)  # half log-SNR, cleanest first
    even = Schedule(torch.sigmoid(2 * lam)[1:], torch.sigmoid(2 * lam[0]).item())

    def error(sched, steps, sample, v=0.25):
        model = toy.Gaussian((torch.ones(1), v * torch.eye(1)), [], sched)
        z_T = torch.tensor([[1.3]], dtype=F64)
        *_, (_, z_0, _) = sample(
            lambda z, t: model.eps(z, t), z_T, sched, steps, spacing="trailing"
        )
        a, b = sched.abar[-1], sched.level(-1)
        std = lambda x: (x * v + 1 - x).sqrt()
        want = b.sqrt() + std(b) / std(a) * (z_T - a.sqrt())
        return (z_0 - want).abs().item()

    ddim, two = sampling.ddim_sample, dpmpp.dpmpp2m_sample

    def ratios(sched, sample):
        errors = [error(sched, n, sample) for n in (40, 80, 160)]
        return [a / b for a, b in zip(errors, errors[1:])]

    assert min(ratios(even, two)) > 3.5 and max(ratios(even, ddim)) < 2.3
    assert all(1.9 < ratio < 2.9 for ratio in ratios(SD, two))


def test_ddpm_needs_all_levels_which_trailing_spacing_has_and_leading_has_not():
    pairs = Schedule.stable_diffusion().pairs
    assert [t for t, _ in pairs(1000, "trailing")] == list(range(999, -1, -1))
    leading = [t for t, _ in pairs(1000, "leading")]
    assert leading.count(999) == 2 and 0 not in leading


# ---------------------------------------------------------------------------------- toys


def mixture(weights=(0.5, 0.5), means=((0.0, 1), (2, 3)), cov=None, prompts=((0,), (1,))):
    cov = torch.eye(2).expand(2, 2, 2) if cov is None else cov
    return toy.Mixture(weights, torch.tensor(means), cov, prompts)


BAD = {
    "a component twice": (dict(prompts=[[0, 0]]), "prompt 0 keeps \\[0, 0\\]; .* each once"),
    "a missing component": (dict(prompts=[[0], [2]]), "prompt 1 keeps \\[2\\]; .* 0 \\.\\.\\. 1"),
    "a negative component": (dict(prompts=[[-1]]), "prompt 0 keeps"),
    "no component": (dict(prompts=[[]]), "prompt 0 keeps \\[\\]; give it one or more"),
    "a fraction": (dict(prompts=[[0.5]]), "prompt 0 keeps"),
    "three weights": (dict(weights=[1, 1, 1]), "3 weights, means \\(2, 2\\)"),
    "a weight of 0": (dict(weights=[1, 0]), "a weight is not above 0"),
    "a negative weight": (dict(weights=[1, -1]), "a weight is not above 0"),
    "a weight that is no number": (dict(weights=[1, math.nan]), "a weight is not above 0"),
    "one covariance": (dict(cov=torch.eye(2)), "are not of one mixture"),
    "variances": (dict(cov=torch.ones(2, 2)), "are not of one mixture"),
    "flat means": (dict(means=[0.0, 1.0]), "are not of one mixture"),
    "not symmetric": (dict(cov=torch.tensor([[[1.0, 0.5], [0, 1]]] * 2)), "is not symmetric"),
    "not positive": (dict(cov=torch.tensor([[[1.0, 2], [2, 1]]] * 2)), "is not symmetric"),
    "a negative variance": (dict(cov=-torch.eye(2).expand(2, 2, 2)), "variances of 0 or more"),
    "not finite": (dict(means=[[0.0, math.inf], [0, 0]]), "is not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_toy_that_is_no_law_is_told(name):
    given, sentence = BAD[name]
    with pytest.raises(ValueError, match=sentence):
        mixture(**given)


def test_gaussians_that_are_no_law_are_told():
    one, bad = (torch.zeros(2), torch.eye(2)), (torch.zeros(2), -torch.eye(2))
    with pytest.raises(ValueError, match="variances of 0 or more"):
        toy.Gaussian(one, [bad])
    with pytest.raises(ValueError, match="variances of 0 or more"):
        toy.Gaussian(bad, [one])
    toy.PointMass(torch.zeros(2), [torch.ones(2)])  # variances of 0 are a point


# ------------------------------------------------------------------------ the README's table


def test_two_scales_at_n_equal_p_are_phi_for_h_equal_s_only():
    phi, p, _ = noises((2, 3))
    assert_close(guidance.negative_prompt_two_scale(phi, p, p, 3.0, 3.0), phi)
    rest = guidance.negative_prompt_two_scale(phi, p, p, 3.0, 1.0) - phi
    assert_close(rest, 2.0 * (p - phi))


def test_dng_is_a_function_of_z_t_with_the_exact_posterior_and_not_when_it_is_tracked():
    model, t, s = square(), torch.tensor(300), 2.0
    z, sigmas = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=F64), []
    for t_i in (300, 280):
        sigmas.append((1 - model.schedule.level(t_i)).sqrt())
    eps = [model.eps(z, t, c) for c in (None, 0, 1)]

    def after(rule, past):
        """The noise at z, after a step to `past` or none."""
        rule.reset(z)
        if past is not None:
            rule(*eps, s, z, t, *sigmas)
            rule.observe(z, past, 300, 280, eps_phi=eps[0], eps_n=eps[2])
        return rule(*eps, s, z, t, *sigmas)

    exact = rules.DNG(g=1.0, posterior=lambda z, t: model.posterior(z, t, 1))
    tracked = rules.DNG()
    assert_close(after(exact, None), after(exact, z + 0.5))
    assert (after(tracked, None) - after(tracked, z + 0.5)).abs().max() > 1e-3

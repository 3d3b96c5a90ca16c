"""Every rule's limits, in float64. They call the rules through their module: `test_mutants.py`
runs them against the easy wrong versions too."""

import math

import pytest
import torch
from torch.testing import assert_close

import dnp
from conftest import ROOT
from dnp import guidance, rules
from dnp.checks import check_rule, rules_table
from dnp.energy import v_from_eps, z0_from_eps
from dnp.errors import SettingsError
from dnp.evaluation import exact
from dnp.generation import begun, prepared
from dnp.sampling import ddim_step
from dnp.schedule import Schedule
from test_guidance import noises

F64 = torch.float64
SCALES = (0.0, 0.3, 1.0, 3.0, 7.5)


def row(*values):
    return torch.tensor([values], dtype=F64)


def inner(a, b):
    return (a * b).flatten(1).sum(1)


def test_rules_perp_neg_is_cfg_where_the_negative_says_nothing():
    phi, p, n = noises()
    for s in SCALES:
        cfg = guidance.cfg(phi, p, s)
        assert_close(rules.perp_neg(phi, p, p, s), cfg)
        assert_close(rules.perp_neg(phi, p, phi, s), cfg)
        assert_close(rules.perp_neg(phi, p, n, s, w=0.0), cfg)


def test_rules_perp_neg_is_eq4_where_the_negative_is_at_right_angles():
    phi, dp, dn = row(1, 2, 3), row(1, -1, 0), row(2, 2, 5)
    for s in SCALES:
        eq4 = guidance.negative_prompt(phi, phi + dp, phi + dn, s)
        assert_close(rules.perp_neg(phi, phi + dp, phi + dn, s), eq4)


def test_rules_perp_neg_leaves_the_push_along_p_whatever_n_is():
    phi, p, n = noises()
    for s in SCALES:
        dp = p - phi
        assert_close(inner(rules.perp_neg(phi, p, n, s) - phi, dp), s * inner(dp, dp))


def test_rules_perp_neg_has_the_effective_scale_s_at_every_step_of_a_chain():
    toy = exact.toy("oblique")  # dn is not at right angles to dp
    z_T = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    given = dict(negative=1, z_T=z_T, steps=8, s=3.0)
    found = {"perp_neg": [], "negative_prompt": []}
    for rule, scales in found.items():
        for t, z_t, _, eps in list(dnp.trajectory(toy, 0, rule=rule, **given))[:-1]:
            phi, p, n = (toy.eps(z_t, t, c) for c in (None, 0, 1))
            clear = (p - phi).norm(dim=1) > 1e-6  # elsewhere p is phi: NaN, or rounding
            s_eff, rest = guidance.effective_scale(eps, phi, p)
            scales.append(s_eff[clear])
            if rule == "perp_neg":
                across = (n - phi - rules.along(n - phi, p - phi))[clear]
                want = 3 * across.norm(dim=1) / (p - phi)[clear].norm(dim=1)
                assert_close(rest[clear], want, atol=1e-8, rtol=1e-6)
    perp, eq4 = (torch.cat(scales) for scales in found.values())
    assert len(perp) > 20
    assert_close(perp, torch.full_like(perp, 3.0), atol=1e-6, rtol=0)
    assert (eq4 - 3).abs().max() > 0.1


def test_rules_perp_neg_is_finite_where_p_is_phi():
    phi, _, n = noises()
    assert_close(rules.perp_neg(phi, phi, n, 2.0), phi - 2 * (n - phi))


def test_rules_ccfg_is_eq4_at_tau_0_and_cfg_at_infinity():
    phi, p, n = noises()
    for s in SCALES:
        assert_close(rules.ccfg(phi, p, n, s, tau=0.0), guidance.negative_prompt(phi, p, n, s))
        cfg = guidance.cfg(phi, p, s)
        assert_close(rules.ccfg(phi, p, n, s, tau=1e9, plain=True), cfg)
        assert_close(rules.ccfg(phi, p, phi, s, plain=True), cfg)


def test_rules_ccfg_push_of_n_is_greatest_where_the_sheet_says():
    """0.5557 / sqrt(tau) at |dn| = 0.8596 / sqrt(tau)."""
    unit, zero = row(0.6, 0.8), row(0.0, 0.0)
    for tau in (0.2, 2.0):
        k = torch.linspace(0, 5, 50001, dtype=F64)[:, None] / math.sqrt(tau)
        push = rules.ccfg(zero, zero, k * unit, 1.0, tau=tau).norm(dim=1)
        best = int(push.argmax())
        assert push[best].item() * math.sqrt(tau) == pytest.approx(0.5557, abs=1e-4)
        assert k[best].item() * math.sqrt(tau) == pytest.approx(0.8596, abs=2e-4)


def test_rules_ccfg_pulls_to_p_by_2_sigmoid_of_tau_dp_squared():
    phi, p = row(0.0, 0.0), row(3.0, 4.0)
    want = 2 / (1 + math.exp(-0.02 * 25))
    assert_close(rules.ccfg(phi, p, phi, 2.0, tau=0.02), 2 * want * p)


def test_rules_ccfg_means_the_same_for_z0_and_v_with_tau_rescaled():
    (z, *_), (phi, p, n), abar = noises(seed=4), noises(), 0.3
    phi, p, n = 0.1 * phi, 0.1 * p, 0.1 * n
    eps = rules.ccfg(phi, p, n, 3.0, tau=0.7)
    for to, tau in ((z0_from_eps, 0.7 / ((1 - abar) / abar)), (v_from_eps, 0.7 * abar)):
        moved = [to(z, e, abar) for e in (phi, p, n)]
        assert_close(rules.ccfg(*moved, 3.0, tau=tau), to(z, eps, abar))
        assert (rules.ccfg(*moved, 3.0, tau=0.7) - to(z, eps, abar)).abs().max() > 1e-3


def test_rules_dng_is_two_scales_with_the_odds():
    phi, p, n = noises()
    for s in SCALES:
        two = guidance.negative_prompt
        assert_close(rules.dng(phi, p, n, s, P=0.0), guidance.cfg(phi, p, s))
        assert_close(rules.dng(phi, p, n, s, P=s / (1 + s)), two(phi, p, n, s))
        half = guidance.cfg(phi, p, s) - 1.5 * (n - phi)
        assert_close(rules.dng(phi, p, n, s, P=0.5, g=1.5), half)
    P = torch.tensor([0.0, 0.5, 0.9], dtype=F64)
    each = torch.cat([rules.dng(*(x[i : i + 1] for x in (phi, p, n)), 2.0, P[i]) for i in range(3)])
    assert_close(rules.dng(phi, p, n, 2.0, P), each)


def test_rules_dng_with_the_exact_posterior_is_the_noise_of_not_n():
    model = exact.toy("oblique")
    z = 3 * torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for t in (100, 400, 800):
        for n in range(4):
            P = model.posterior(z, t, n)
            eps = rules.dng(*(model.eps(z, t, c) for c in (None, None, n)), 0.0, P)
            below = P < 0.999
            assert below.sum() > 50
            want = model.eps(z, t, (None, n))
            assert_close(eps[below], want[below], atol=1e-10, rtol=1e-10)


def test_rules_bounded_is_cfg_at_0_two_scales_at_infinity_and_within_between():
    phi, p, n = noises()
    for s in SCALES:
        cfg = guidance.cfg(phi, p, s)
        assert_close(rules.bounded(phi, p, n, s, r=0.0), cfg)
        assert_close(rules.bounded(phi, p, phi, s), cfg)
        two = cfg - 1.5 * (n - phi)
        assert_close(rules.bounded(phi, p, n, s, h=1.5, r=math.inf), two)
        push = rules.bounded(phi, p, 50 * n, s, r=0.25) - cfg
        assert_close(inner(push, push).sqrt(), 0.25 * s * inner(p - phi, p - phi).sqrt())
    weak = phi + 1e-3 * (n - phi)
    assert_close(rules.bounded(phi, p, weak, 3.0), guidance.negative_prompt(phi, p, weak, 3.0))


def test_rules_half_space_is_cfg_where_the_push_is_inside_it():
    phi, p, n = noises()
    leads_away = phi - torch.where(inner(p - phi, n - phi) > 0, 1, -1)[:, None, None, None] * (
        n - phi
    )
    for s in SCALES:
        cfg = guidance.cfg(phi, p, s)
        assert_close(rules.half_space(phi, p, n, s, tau=1e9), cfg)
        assert_close(rules.half_space(phi, p, n, s, tau=math.inf), cfg)
        assert_close(rules.half_space(phi, p, leads_away, s), cfg)
        for tau in (-2.0, 0.0, 0.7):
            assert_close(rules.half_space(phi, p, phi, s, tau), cfg)
        across = phi + rules.perp_neg(0 * phi, p - phi, n - phi, 1.0) - (p - phi)
        assert_close(rules.half_space(phi, p, across, s), cfg)
        assert_close(rules.half_space(phi, p, across, s, tau=0.7), cfg)


def test_rules_half_space_ends_at_tau_along_dn_and_at_the_nearest_such_point():
    """<eps - eps_phi, dn> = min(<s dp, dn>, tau |dn|^2), and the correction is parallel to dn."""
    phi, p, n = noises()
    dp, dn = p - phi, n - phi
    for s in SCALES:
        for tau in (-2.0, -0.4, 0.0, 0.3):
            push = rules.half_space(phi, p, n, s, tau) - phi
            least = torch.minimum(s * inner(dp, dn), tau * inner(dn, dn))
            assert_close(inner(push, dn), least)
            moved = push - s * dp
            assert_close(moved, rules.along(moved, dn))
            again = rules.half_space(phi, phi + push, n, 1.0, tau)
            assert_close(again, phi + push)


def test_rules_half_space_of_one_prompt():
    """n = p: CFG at min(s, tau). p = phi: DNS from n at -tau."""
    phi, p, n = noises()
    for s in SCALES:
        for tau in (-1.5, 0.0, 0.7):
            want = guidance.cfg(phi, p, min(s, tau))
            assert_close(rules.half_space(phi, p, p, s, tau), want)
            assert_close(rules.half_space(phi, phi, n, s, tau), guidance.dns(phi, n, max(-tau, 0)))


def test_rules_half_space_has_no_limit_where_n_nears_phi():
    """However short dn is, nothing of dp is left along it; so it is not CFG next to n = phi."""
    phi, dp = row(1, 2), row(3, 4)
    for short in (1e-2, 1e-9):
        got = rules.half_space(phi, phi + dp, phi + row(short, 0), 2.0)
        assert_close(got, phi + row(0, 8), rtol=1e-6, atol=1e-6)


def test_rules_perp_neg_dual_is_cfg_where_the_negative_says_nothing():
    phi, p, n = noises()
    dp = p - phi
    for s in SCALES:
        cfg = guidance.cfg(phi, p, s)
        assert_close(rules.perp_neg_dual(phi, p, n, s, tau=1e9), cfg)
        for away in (1.0, 0.5):  # dn = -away dp
            n_away = phi - away * dp
            assert_close(rules.perp_neg_dual(phi, p, n_away, s, floor=0.0), cfg)
            assert_close(rules.perp_neg_dual(phi, p, n_away, s, floor=away - away**2), cfg)
        for tau in (0.0, 0.2):
            assert_close(rules.perp_neg_dual(phi, p, phi, s, tau), cfg)
            assert_close(rules.perp_neg_dual(phi, p, phi, s, tau, floor=0.0), cfg)
            near = phi + 1e-7 * (n - phi)  # the floor's purpose
            assert_close(rules.perp_neg_dual(phi, p, near, s, tau), cfg, rtol=1e-5, atol=1e-5)


def test_rules_perp_neg_dual_is_eq4_where_the_negative_is_at_right_angles():
    phi, dp, dn = row(1, 2, 3), row(1, -1, 0), row(2, 2, 5)
    for s in SCALES:
        eq4 = guidance.negative_prompt(phi, phi + dp, phi + dn, s)
        assert_close(rules.perp_neg_dual(phi, phi + dp, phi + dn, s, tau=0.0), eq4)
        plain = rules.ccfg(phi, phi + dp, phi + dn, s, tau=0.2, plain=True)
        assert_close(rules.perp_neg_dual(phi, phi + dp, phi + dn, s), plain)


def test_rules_perp_neg_dual_leaves_the_push_along_n_whatever_p_is():
    """Perp-Neg keeps the pull along dp whatever n is. Here, without a floor and at tau = 0, it is
    -s |dn|^2 along dn, or as far as p leads by itself: the half-space at tau = -s."""
    phi, p, n = noises()
    dp, dn = p - phi, n - phi
    for s in SCALES:
        for p_c in (p, phi - dp, phi - 2 * dn, phi + 3 * dn, n):
            got = rules.perp_neg_dual(phi, p_c, n, s, tau=0.0, floor=0.0)
            least = torch.minimum(inner(p_c - phi, dn), -inner(dn, dn))
            assert_close(inner(got - phi, dn), s * least)
            assert_close(got, rules.half_space(phi, p_c, n, s, tau=-s))
        assert_close(rules.perp_neg_dual(phi, p, p, s, tau=0.0, floor=0.0), guidance.dns(phi, p, s))


def test_rules_perp_neg_dual_by_hand():
    """dp = (2, 0), dn = (1, 1): <dp, dn> = 2, |dn|^2 = 2, |dp|^2 = 4."""
    phi, p, n = row(0, 0), row(2, 0), row(1, 1)
    for tau, floor in ((0.0, 0.0), (0.2, 0.1), (1.5, 0.5)):
        push = (1 + 2 / (2 + floor * 4)) * 2 / (1 + math.exp(2 * tau))
        got = rules.perp_neg_dual(phi, p, n, 3.0, tau=tau, floor=floor)
        assert_close(got, 3 * (p - push * n))
    default = rules.perp_neg_dual(phi, p, n, 3.0)
    assert_close(default, rules.perp_neg_dual(phi, p, n, 3.0, tau=0.2, floor=0.1))


def test_rules_perp_neg_dual_means_the_same_for_z0_and_v_with_tau_rescaled():
    (z, *_), (phi, p, n), abar = noises(seed=4), noises(), 0.3
    phi, p, n = 0.1 * phi, 0.1 * p, 0.1 * n
    eps = rules.perp_neg_dual(phi, p, n, 3.0, tau=0.7)
    for to, tau in ((z0_from_eps, 0.7 / ((1 - abar) / abar)), (v_from_eps, 0.7 * abar)):
        moved = [to(z, e, abar) for e in (phi, p, n)]
        assert_close(rules.perp_neg_dual(*moved, 3.0, tau=tau), to(z, eps, abar))


def test_rules_half_space_and_the_dual_are_finite_where_a_difference_is_zero():
    phi, p, n = noises()
    for rule in (rules.half_space, rules.perp_neg_dual):
        for tau in (-1.0, 0.0, 0.5):
            for p_c, n_c in ((phi, phi), (phi, n), (p, phi)):
                assert rule(phi, p_c, n_c, 2.0, tau=tau).isfinite().all()
    assert rules.perp_neg_dual(phi, phi, phi, 2.0, floor=0.0).isfinite().all()
    for s in SCALES:
        assert_close(
            rules.perp_neg_dual(phi, phi, n, s, tau=0.0), guidance.negative_prompt(phi, phi, n, s)
        )


def test_rules_apg_without_its_parts_is_cfg_and_at_s_1_p():
    phi, p, _ = noises()
    for s in SCALES:
        assert_close(rules.apg(phi, p, s, eta=1.0, r=math.inf), guidance.cfg(phi, p, s))
    assert_close(rules.apg(phi, p, 1.0), p)


def test_rules_apg_pushes_at_right_angles_to_p_and_at_most_r():
    phi, p, _ = noises()
    for s in (1.5, 3.0, 7.5):
        push = rules.apg(phi, p, s, r=2.5) - p
        assert inner(push, p).abs().max() < 1e-9
        assert (inner(push, push).sqrt() <= (s - 1) * 2.5 + 1e-9).all()


def test_rules_apg_cuts_before_it_splits():
    """d = (3, 4) has norm 5, cut to 2.5 it is (1.5, 2); (0, 2) of it is at right angles to p."""
    assert_close(rules.apg(row(-2, -4), row(1, 0), 3.0, r=2.5), row(1.0, 4.0))
    assert_close(rules.apg(row(-2, -4), row(1, 0), 3.0, eta=0.5, r=2.5), row(2.5, 4.0))


def test_rules_apg_momentum_of_a_constant_sums_geometrically():
    phi, p, z = noises()
    f = rules.APG(eta=1.0, beta=-0.75, r=math.inf, space="eps")
    f.reset(z)
    for k in range(6):
        sum_k = sum((-0.75) ** j for j in range(k + 1))
        got = f(phi, p, 3.0, z, torch.tensor(0.8, dtype=F64))
        assert_close(got, p + 2 * sum_k * (p - phi))
        assert_close(f(phi, p, 3.0, z, torch.tensor(0.8, dtype=F64)), got)  # a look is no step
        f.observe(z, z, 5, 4, eps_phi=phi, eps_p=p)
    f.reset(z)
    assert_close(f(phi, p, 3.0, z, torch.tensor(0.8)), guidance.cfg(phi, p, 3.0))


def test_rules_apg_on_z0_is_apg_of_the_predicted_latents():
    phi, p, z = noises()
    sigma_t = torch.tensor(0.8, dtype=F64)
    got = rules.APG()(phi, p, 3.0, z, sigma_t)
    want = rules.apg(*(z0_from_eps(z, e, 0.36) for e in (phi, p)), 3.0)
    assert_close(z0_from_eps(z, got, 0.36), want)
    with pytest.raises(ValueError, match="choose x0 or eps"):
        rules.APG(space="v")


def test_rules_cfg_zero_star_limits():
    phi, p, _ = noises()
    assert_close(rules.cfg_zero_star(phi, p, 1.0), p)
    phi_1, across = row(3.0, 0.0), row(0.0, 2.0)
    for s in SCALES:
        assert_close(rules.cfg_zero_star(phi, -1.7 * phi, s), -1.7 * phi)
        assert_close(rules.cfg_zero_star(0.2 * phi, p, s), rules.cfg_zero_star(phi, p, s))
        cfg = guidance.cfg(phi_1, phi_1 + across, s)
        assert_close(rules.cfg_zero_star(phi_1, phi_1 + across, s), cfg)
    assert_close(rules.cfg_zero_star(0 * phi, p, 2.0), 2 * p)


def test_rules_cfg_plus_plus_guides_z0_and_puts_phis_noise_back():
    phi, p, z = noises()
    schedule = Schedule.stable_diffusion()
    for t, t_next in schedule.pairs(20):
        a, b = schedule.level(t), schedule.level(t_next)
        got = rules.cfg_plus_plus(phi, p, (1 - a).sqrt(), (1 - b).sqrt(), lam=0.6)
        z_next, _ = ddim_step(z, got, a, b)
        z0_hat = z0_from_eps(z, guidance.cfg(phi, p, 0.6), a)
        assert_close(z_next, b.sqrt() * z0_hat + (1 - b).sqrt() * phi, rtol=1e-11, atol=1e-12)
    for sigma_next in (None, torch.tensor(0.5)):
        with pytest.raises(ValueError, match="cleaner level"):
            rules.cfg_plus_plus(phi, p, torch.tensor(0.5), sigma_next)


def along_a_chain(seed=0, eta=1.0, steps=200, n=100, **options):
    """The tracked posteriors at the start and after every step, and the exact ones."""
    model = exact.toy("square")
    first = model.schedule.pairs(steps, "trailing")[0][0]
    z_T = model.sample(n, first, generator=torch.Generator().manual_seed(seed))
    given = dict(rule=rules.DNG, rule_options=options, eta=eta, steps=steps, s=1.0, seed=seed)
    call, guided = prepared(exact.Trailing(model), 0, "np", 1, None, None, given)
    _, chain = begun(call, guided, range(n), [1] * n, z_T)
    next(chain)  # its row comes before the step that follows it
    for t, z_t, _, _ in chain:
        if t >= 0:
            yield guided.rule.function.P, model.posterior(z_t, t, 1)


def test_rules_dng_tracks_the_posterior_along_the_ancestral_chain():
    told = dict(g=1.0, prior=0.5, temperature=1.0, offset=0.0)
    errors = torch.stack([(P - exact_P).abs() for P, exact_P in along_a_chain(**told)])
    assert errors.median() < 0.06
    assert errors.mean() < 0.15


def test_rules_dng_clamps_what_it_tracks():
    P = torch.stack([P for P, _ in along_a_chain(prior=0.5, temperature=1.0, p_min=0.01, steps=50)])
    assert P.min() == pytest.approx(0.01) and P.max() == pytest.approx(0.8)


def test_rules_dng_with_no_temperature_is_two_scales():
    for P, _ in along_a_chain(prior=0.3, temperature=0.0, offset=0.0, steps=20):
        assert_close(P, torch.full_like(P, 0.3))


def test_rules_dng_offset_by_hand():
    """temperature 0: one step adds offset / (2 var) to log P."""
    f, z = rules.DNG(prior=0.1, temperature=0.0, offset=0.01), torch.ones(2, 3, dtype=F64)
    f.reset(z)
    f(z, z, z, 1.0, z, 5, torch.tensor(0.8, dtype=F64), torch.tensor(0.6, dtype=F64))
    f.observe(z, 2 * z, 5, 4, eps_phi=z, eps_p=z, eps_n=z)
    var = 0.36 / 0.64 * (1 - 0.36 / 0.64)
    assert_close(f.P, torch.full((2,), 0.1 * math.exp(0.01 / (2 * var)), dtype=F64))


def test_rules_dng_refuses_a_chain_without_noise():
    with pytest.raises(SettingsError, match="choose eta=1 and sampler=ddim"):
        list(along_a_chain(eta=0.0, steps=10))
    assert rules.DNG.chain_eta == 1.0
    assert rules.DNG(posterior=lambda z, t: 0.5).chain_eta is None
    with pytest.raises(ValueError, match="p_max < 1"):
        rules.DNG(p_max=1.0)


def look(levels=None):
    """What `check_rule` finds for every rule."""
    return {name: check_rule(f, levels=levels, show=False) for name, f in rules.RULES.items()}


@pytest.fixture(scope="module")
def found():
    return look()


def none_is_a_fault(found):
    for name, check in found.items():
        assert check.ok and check["batch mates"] == "independent", name


def test_rules_of_others_are_independent_of_batch_mates(found):
    none_is_a_fault(found)


def test_rules_table_is_what_check_rule_finds(found):
    assert rules_table(found).strip() in (ROOT / "dnp" / "RULES.md").read_text(encoding="utf-8")


def test_rules_of_autoguidance_is_the_two_term_form():
    bad, good, _ = noises()
    assert_close(guidance.negative_prompt_two_term(good, good, 3.0), good)
    assert_close(guidance.negative_prompt_two_term(good, bad, 3.0), bad + 3 * (good - bad))


def test_norms_of_large_half_precision_latents_are_finite():
    phi, p, n = (x.half() for x in noises(shape=(1, 4, 160, 160)))
    for f in (
        rules.perp_neg, rules.bounded, rules.ccfg, rules.half_space, rules.perp_neg_dual,
    ):  # fmt: skip
        assert f(phi, p, n, 3.0).isfinite().all()
    assert rules.apg(phi, p, 3.0).isfinite().all()
    assert rules.cfg_zero_star(phi, p, 3.0).isfinite().all()


def test_rules_cfg_schedule_is_cfg_at_the_scale_of_its_step():
    phi, p, _ = noises()
    levels, scales = [900, 500, 100], [4.0, 2.0, 0.5]
    for t, s in ((900, 4.0), (500, 2.0), (100, 0.5), (700, 4.0), (101, 2.0), (3, 0.5), (950, 4.0)):
        eps = rules.cfg_schedule(phi, p, torch.tensor(t), levels, scales)
        assert_close(eps, guidance.cfg(phi, p, s))
    one = rules.cfg_schedule(phi, p, torch.tensor(37), [999], [3.0])
    assert_close(one, guidance.cfg(phi, p, 3.0))
    for levels, scales in (([1, 2], [1.0, 1.0]), ([2, 1], [1.0]), ([], [])):
        with pytest.raises(ValueError, match="falling levels and a scale for each"):
            rules.cfg_schedule(phi, p, torch.tensor(1), levels, scales)


def test_rules_cfg_plus_plus_is_a_schedule_of_cfg():
    """Along DDIM's levels: the same chain from the same start, by the scales of its formula."""
    from dnp.toy import Mixture

    one = 0.2 * torch.ones(2, 1, 1).double()
    toy = Mixture([0.5, 0.5], torch.tensor([[-2.0], [2.0]]).double(), one, [[0], [1]])
    steps, lam = 12, 0.6
    pairs = toy.schedule.pairs(steps, "leading")
    ve = toy.schedule.sigma_ve
    scales = [float(lam * ve(t) / (ve(t) - (ve(n) if n >= 0 else ve(-1)))) for t, n in pairs]
    z_T = torch.tensor([[0.3], [-0.8]]).double()
    run = lambda **k: list(dnp.trajectory(toy, 1, "cfg", z_T=z_T, steps=steps, **k))[-1][1]
    options = {"levels": [t for t, _ in pairs], "scales": scales}
    assert_close(
        run(rule="cfg_schedule", rule_options=options),
        run(rule="cfg_plus_plus", rule_options={"lam": lam}),
    )

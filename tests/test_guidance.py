"""The equations of arXiv:2411.05473 as identities, in float64. Each runs against the mutants of
`test_mutants.py` too, so they call the rules through their modules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dnp import guidance
from dnp.energy import z0_from_eps

SCALES = (-2.0, 0.0, 0.3, 1.0, 2.0, 7.5)


def noises(seed=0, shape=(3, 4, 5, 6)):
    """Random eps_phi, eps_p, eps_n."""
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))


def test_eq3_cfg_is_the_formula():
    phi, p, _ = noises()
    for s in SCALES:
        assert_close(guidance.cfg(phi, p, s), (1 - s) * phi + s * p)


def test_eq3_cfg_is_unconditional_at_0_and_conditional_at_1():
    phi, p, _ = noises()
    assert_close(guidance.cfg(phi, p, 0.0), phi)
    assert_close(guidance.cfg(phi, p, 1.0), p)


def test_eq3_cfg_has_no_threshold_between_0_and_1():
    phi, p, _ = noises()
    assert_close(guidance.cfg(phi, p, 0.5), (phi + p) / 2)


def test_eq4_negative_prompt_is_the_formula():
    phi, p, n = noises()
    for s in SCALES:
        assert_close(guidance.negative_prompt(phi, p, n, s), phi + s * p - s * n)


def test_eq4_negative_prompt_with_phi_is_eq3():
    phi, p, _ = noises()
    for s in SCALES:
        cfg = guidance.cfg(phi, p, s)
        assert_close(guidance.negative_prompt(phi, p, phi, s), cfg)
        assert_close(guidance.negative_prompt_two_term(p, phi, s), cfg)


def test_eq4_minus_two_term_is_phi_minus_n_at_every_scale():
    phi, p, n = noises()
    for s in SCALES:
        three = guidance.negative_prompt(phi, p, n, s)
        assert_close(three - guidance.negative_prompt_two_term(p, n, s), phi - n)


def test_two_term_is_the_formula():
    _, p, n = noises()
    for s in SCALES:
        assert_close(guidance.negative_prompt_two_term(p, n, s), s * p + (1 - s) * n)


def test_two_term_with_n_equal_p_is_conditional():
    _, p, _ = noises()
    for s in SCALES:
        assert_close(guidance.negative_prompt_two_term(p, p, s), p)


def test_two_term_reproduces_eq4_iff_collinear():
    _, p, n = noises()
    for lam in (-0.5, 0.2, 1.5):
        on_line = n + lam * (p - n)
        s_two = guidance.two_term_scale(on_line, p, n, 3.0)
        assert_close(s_two, torch.full((3,), 3.0 + lam, dtype=torch.float64))
        three = guidance.negative_prompt(on_line, p, n, 3.0)
        assert_close(guidance.negative_prompt_two_term(p, n, 3.0 + lam), three)


def test_two_term_best_scale_leaves_the_orthogonal_part():
    phi, p, n = noises()
    s_two = guidance.two_term_scale(phi, p, n, 3.0)[:, None, None, None]
    left = guidance.negative_prompt(phi, p, n, 3.0)
    left = left - guidance.negative_prompt_two_term(p, n, s_two)
    d = p - n
    lam = ((phi - n) * d).flatten(1).sum(1) / (d * d).flatten(1).sum(1)
    assert_close(left, phi - n - lam[:, None, None, None] * d)
    assert_close(
        (left * d).flatten(1).sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-10, rtol=0
    )


def test_effective_scale_of_a_multiple_of_dp_is_the_multiple_and_no_rest():
    phi, p, _ = noises()
    for s in SCALES:
        s_eff, rest = guidance.effective_scale(guidance.cfg(phi, p, s), phi, p)
        assert_close(s_eff, torch.full((3,), s, dtype=torch.float64))
        assert rest.max() < 1e-12
        assert_close(guidance.effective_scale(guidance.dns(phi, p, s), phi, p)[0], -s_eff)
    each = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
    assert_close(guidance.effective_scale(guidance.cfg(phi, p, each), phi, p)[0], each)


def test_effective_scale_of_eq4_is_s_times_one_less_the_part_of_dn_along_dp():
    phi = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    dp, dn = torch.tensor([[[2.0, 0.0, 0.0]], [[0.5, 3.0, -4.0]]], dtype=torch.float64)
    for s in SCALES:
        eps = guidance.negative_prompt(phi, phi + dp, phi + dn, s)
        s_eff, rest = guidance.effective_scale(eps, phi, phi + dp)
        assert_close(s_eff, torch.tensor([s * (1 - 0.25)], dtype=torch.float64))
        assert_close(rest, torch.tensor([abs(s) * 5.0 / 2.0], dtype=torch.float64))


def test_effective_scale_is_not_a_number_where_p_is_phi():
    phi, p, n = noises()
    p[1] = phi[1]
    s_eff, rest = guidance.effective_scale(guidance.negative_prompt(phi, p, n, 2.0), phi, p)
    assert s_eff.isnan().tolist() == rest.isnan().tolist() == [False, True, False]


def test_two_scales_contain_eq3_eq4_and_the_two_term_form():
    phi, p, n = noises()
    for s in SCALES:
        two = guidance.negative_prompt_two_scale
        assert_close(two(phi, p, n, s, s), guidance.negative_prompt(phi, p, n, s))
        assert_close(two(phi, p, n, s, s - 1), guidance.negative_prompt_two_term(p, n, s))
        assert_close(two(phi, p, n, s, 0.0), guidance.cfg(phi, p, s))


@given(
    v=st.lists(st.floats(-5, 5), min_size=4, max_size=4).filter(lambda v: max(map(abs, v)) > 0.1),
    u=st.lists(st.floats(-5, 5), min_size=4, max_size=4).filter(lambda v: max(map(abs, v)) > 0.1),
    K=st.floats(0.01, 100),
)
def test_eq14_no_vector_of_that_norm_is_farther_than_eq15(v, u, K):
    eps_p = torch.tensor([v], dtype=torch.float64)
    other = torch.tensor([u], dtype=torch.float64)
    other = other / other.norm() * K**0.5
    best = guidance.optimal_negative(eps_p, K)
    assert (eps_p - other).norm() <= (eps_p - best).norm() + 1e-9
    assert_close((eps_p - best).norm(), eps_p.norm() + K**0.5)


def test_a_number_is_as_exact_as_the_tensor_that_it_multiplies():
    eps_p, K = torch.tensor([[0.0, 3.0]], dtype=torch.float64), 1.444313789538711  # no float32
    assert guidance.optimal_negative(eps_p, K)[0, 1].item() == -(K**0.5)


def test_eq15_optimal_negative_is_the_formula_for_each_sample():
    _, p, _ = noises()
    K = torch.tensor([0.5, 2.0, 9.0], dtype=torch.float64)
    got = guidance.optimal_negative(p, K)
    for i in range(3):
        assert_close(got[i], -K[i].sqrt() * p[i] / p[i].norm())
    assert_close((got**2).flatten(1).sum(1), K)


def test_eq15_optimal_negative_of_the_same_norm_is_minus_eps_p():
    _, p, _ = noises()
    assert_close(guidance.optimal_negative(p), -p)
    assert_close(guidance.optimal_negative(p, (p**2).flatten(1).sum(1)), -p)


def test_eq15_refuses_a_negative_squared_norm():
    with pytest.raises(ValueError, match="negative"):
        guidance.optimal_negative(torch.ones(1, 2), -1.0)


def test_eq19_dns_is_the_formula():
    phi, p, _ = noises()
    for s in SCALES:
        assert_close(guidance.dns(phi, p, s), (1 + s) * phi - s * p)


def test_eq19_dns_is_cfg_at_minus_s():
    phi, p, _ = noises()
    for s in SCALES:
        assert_close(guidance.dns(phi, p, s), guidance.cfg(phi, p, -s))


def test_eq20_dns_is_negative_prompting_with_phi_and_p():
    phi, p, _ = noises()
    for s in SCALES:
        assert_close(guidance.dns(phi, p, s), guidance.negative_prompt(phi, phi, p, s))


def test_eq20_dns_is_the_two_term_form_at_s_plus_1():
    phi, p, _ = noises()
    for s in SCALES:
        assert_close(guidance.dns(phi, p, s), guidance.negative_prompt_two_term(phi, p, s + 1))


def test_composition_contains_the_rules():
    phi, p, n = noises()
    for s in SCALES:
        assert_close(guidance.compose(phi, [(s, p)]), guidance.cfg(phi, p, s))
        assert_close(guidance.compose(phi, [(-s, p)]), guidance.dns(phi, p, s))
        np = guidance.negative_prompt(phi, p, n, s)
        assert_close(guidance.compose(phi, [(s, p), (-s, n)]), np)
    assert_close(guidance.compose(phi, []), phi)


def rules(phi, p, n, s):
    return {
        "cfg": guidance.cfg(phi, p, s),
        "np": guidance.negative_prompt(phi, p, n, s),
        "np2": guidance.negative_prompt_two_term(p, n, s),
        "dns": guidance.dns(phi, p, s),
    }


def test_coefficients_reproduce_every_rule_and_sum_to_one():
    phi, p, n = noises()
    for s in SCALES:
        for method, eps in rules(phi, p, n, s).items():
            a, b, c = guidance.coefficients(method, s)
            assert a + b + c == pytest.approx(1)
            assert_close(eps, a * phi + b * p + c * n)
        a, b, c = guidance.coefficients("np", s, h=1.5)
        assert a + b + c == pytest.approx(1)
        two = guidance.negative_prompt_two_scale(phi, p, n, s, 1.5)
        assert_close(two, a * phi + b * p + c * n)
    with pytest.raises(ValueError, match="linear rules"):
        guidance.coefficients("perp-neg", 1.0)


def test_rules_mean_the_same_for_z0_hat():
    """Coefficients that sum to 1 commute with the affine map eps -> z0_hat."""
    z_t = noises(seed=9)[0]
    eps = noises()
    z0 = [z0_from_eps(z_t, e, 0.3) for e in eps]
    of_eps, of_z0 = rules(*eps, 2.5), rules(*z0, 2.5)
    for method in of_eps:
        assert_close(z0_from_eps(z_t, of_eps[method], 0.3), of_z0[method])


def test_rules_treat_samples_and_channels_alike_and_change_no_argument():
    phi, p, n = noises()
    before = [x.clone() for x in (phi, p, n)]
    whole = rules(phi, p, n, 2.0) | {"opt": guidance.optimal_negative(p, 3.0)}
    for i in range(3):
        alone = rules(phi[i : i + 1], p[i : i + 1], n[i : i + 1], 2.0)
        alone["opt"] = guidance.optimal_negative(p[i : i + 1], 3.0)
        for method in whole:
            assert_close(whole[method][i : i + 1], alone[method])
    order = [2, 0, 3, 1]
    permuted = rules(phi[:, order], p[:, order], n[:, order], 2.0)
    for method, eps in permuted.items():
        assert_close(eps, whole[method][:, order])
    for x, y in zip((phi, p, n), before):
        assert_close(x, y, rtol=0, atol=0)

"""The easy wrong versions of the theorems, each of which must fail the theorem's own test."""

import math

import pytest
import torch

import mutants
import test_particles
import test_theorems as tests
from dnp import energy, particles, theorems

chain, step, langevin = energy.gaussian_chain, particles.log_weight_step, particles.langevin


def widest(weights, covariances, directions=4096):
    """Properness by every component's mean, not by the widest one."""
    return energy.is_proper(weights, torch.stack([C.mean(0) for C in covariances]))


def no_root_2(eps_fn, z_t, abar_t, generator, r=0.2):
    """Langevin with noise sqrt(delta)."""
    mean = z_t - eps_fn(z_t) / (1 - abar_t).sqrt() * 0
    return mean + (langevin(eps_fn, z_t, abar_t, generator, r) - mean) / math.sqrt(2)


T4 = lambda: tests.test_T4_dns_at_the_odds_is_exactly_not_p(500)
T2 = tests.test_T2_the_mean_of_ddim_is_a_hypergeometric_function_and_of_ddpm_a_power
T3 = tests.test_T3_a_mixture_is_proper_by_its_widest_components
T7 = tests.test_T7_the_information_of_a_prompt_is_the_length_of_its_arrow
T8 = tests.test_T8_independent_errors_grow_by_the_norm_of_the_coefficients
WEIGHTS = test_particles.test_the_weights_are_those_of_cfg_and_dns
MUTANTS = {
    "T1: the determinants average": (
        theorems, "ddim_log_det", lambda w, C: (torch.tensor(w).double() @ C.det()).log(),
        lambda: tests.test_T1_the_entropies_average_along_guided_ddim((2.5, -1.5, 0.0)),
    ),
    "T2: the mean moves by s": (
        theorems, "ddim_mean", lambda v_phi, v_p, s: s,
        lambda: T2(2.5),
    ),
    "T2: the variances swapped": (
        theorems, "ddpm_mean", lambda v_phi, v_p, s: (v_p / v_phi) ** s - 1,
        tests.test_T2_at_the_ends,
    ),
    "chain: no noise of DDPM": (
        energy, "gaussian_chain", lambda w, m, C, levels, eta=0.0: chain(w, m, C, levels, 0.0),
        tests.test_the_chain_of_gaussians_has_the_known_variances_as_limits,
    ),
    "T3: the mean component rules": (energy, "mixture_is_proper", widest, T3),
    "T4: P for the odds": (theorems, "posterior_scale", lambda P: P, T4),
    "T4: towards p": (
        theorems, "complement", lambda phi, p, P: phi + (P / (1 - P))[:, None] * (p - phi), T4
    ),
    "T6: sign": (particles, "log_weight_step", lambda *given: -step(*given), WEIGHTS),
    "T6: no half": (particles, "log_weight_step", lambda *given: 2 * step(*given), WEIGHTS),
    "T6: weights of all particles": (
        particles, "log_weight_step", lambda *given: step(*given).mean().expand(7), WEIGHTS
    ),
    "T7: d log sigma": (
        theorems, "kl_of_arrow",
        lambda squares, sigma: 0.5 * torch.trapezoid(squares, sigma.log()).item(), T7,
    ),
    "T7: no half": (
        theorems, "kl_of_arrow",
        lambda squares, sigma: torch.trapezoid(squares, 2 * sigma.log()).item(), T7,
    ),
    "T8: the sum of sizes": (theorems, "error_gain", lambda w: sum(map(abs, w)), T8),
    "Langevin: noise without its 2": (
        particles, "langevin", no_root_2, test_particles.test_langevin_alone_settles_on_a_gaussian
    ),
    "resampling: the best alone": (
        particles, "resample", lambda log_w, generator: log_w.argmax().expand(len(log_w)),
        test_particles.test_resampling_is_systematic_and_the_size_counts_particles,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_fails_its_theorem(name, monkeypatch):
    owner, attribute, mutant, identity = MUTANTS[name]
    mutants.assert_noticed([owner], attribute, mutant, [identity], monkeypatch)

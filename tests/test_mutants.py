"""The easy wrong versions of the equations, each of which must fail an identity test.

A mutant replaces one public function; then the identity tests run against it. If none fails, the
tests would not notice that mistake in the code.
"""

import inspect

import pytest
import torch

import test_energy
import test_guidance
import test_sampling
from dnp import energy, guidance, sampling
from dnp.schedule import Schedule, column

# The fast identity tests: everything named after an equation, without arguments.
IDENTITIES = [
    f
    for module in (test_guidance, test_energy, test_sampling)
    for name, f in vars(module).items()
    if name.startswith(
        ("test_eq", "test_two", "test_ddim", "test_compo", "test_coeff", "test_rules")
    )
    and not inspect.signature(f).parameters
    and not hasattr(f, "hypothesis")
] + [
    lambda: test_sampling.test_ddim_lands_on_the_affine_combination_of_points("trailing"),
    lambda: test_sampling.test_ddim_yields_every_level_of_its_own_list("trailing"),
    lambda: test_sampling.test_ddim_yields_every_level_of_its_own_list("linspace"),
]
cfg, dns, np3, np2 = (
    guidance.cfg,
    guidance.dns,
    guidance.negative_prompt,
    guidance.negative_prompt_two_term,
)
eps_from_energy, compose_energies = energy.eps_from_energy, energy.compose_energies
optimal_negative = guidance.optimal_negative
eps_from_v, z0_from_eps = energy.eps_from_v, energy.z0_from_eps
step, sample, pairs, level = (
    sampling.ddim_step,
    sampling.ddim_sample,
    Schedule.pairs,
    Schedule.level,
)


def first_channel_only(phi, p, s):
    eps = phi.clone()
    eps[:, 0] = cfg(phi, p, s)[:, 0]
    return eps


def three_channels_only(phi, p, s):
    """The slice [:, :3] of the early DALL-E-style ports."""
    return torch.cat([cfg(phi, p, s)[:, :3], phi[:, 3:]], 1)


def constant_stride(self, steps, spacing="leading"):
    stride = len(self.abar) // steps
    return [(t, max(t - stride, -1)) for t, _ in pairs(self, steps, spacing)]


def in_place(z_t, eps, *args, **kw):
    z_next, z0_hat = step(z_t, eps, *args, **kw)
    z_t.copy_(z_next)
    return z_t, z0_hat


def with_sqrt_abar(z_t, eps, abar_t, abar_next, *args, **kw):
    return step(z_t, eps, abar_t**0.5, abar_next**0.5, *args, **kw)


def one_t_early(guided, *args, **kw):
    return sample(lambda z, t: guided(z, (t - 1).clamp(min=0)), *args, **kw)


MUTANTS = {
    "cfg: flipped sign": (guidance, "cfg", lambda phi, p, s: phi - s * (p - phi)),
    "cfg: 1 + s": (guidance, "cfg", lambda phi, p, s: phi + (1 + s) * (p - phi)),
    "cfg: 1 + s on p": (guidance, "cfg", lambda phi, p, s: p + s * (p - phi)),
    "cfg: swapped branches": (guidance, "cfg", lambda phi, p, s: cfg(p, phi, s)),
    "cfg: s p + (s - 1) phi": (guidance, "cfg", lambda phi, p, s: s * p + (s - 1) * phi),
    "cfg: one channel only": (guidance, "cfg", first_channel_only),
    "cfg: three channels only": (guidance, "cfg", three_channels_only),
    "cfg: off up to s = 1": (guidance, "cfg", lambda phi, p, s: cfg(phi, p, s) if s > 1 else p),
    "cfg: changes phi": (guidance, "cfg", lambda phi, p, s: phi.add_(s * (p - phi))),
    "np: flipped sign": (guidance, "negative_prompt", lambda phi, p, n, s: phi - s * (p - n)),
    "np: is two-term": (guidance, "negative_prompt", lambda phi, p, n, s: np2(p, n, s)),
    "np: 1 + s": (guidance, "negative_prompt", lambda phi, p, n, s: np3(phi, p, n, 1 + s)),
    "np: swapped p and n": (guidance, "negative_prompt", lambda phi, p, n, s: np3(phi, n, p, s)),
    "np2: swapped": (guidance, "negative_prompt_two_term", lambda p, n, s: np2(n, p, s)),
    "np2: starts at p": (guidance, "negative_prompt_two_term", lambda p, n, s: p + s * (p - n)),
    "np2: s p + (s - 1) n": (
        guidance,
        "negative_prompt_two_term",
        lambda p, n, s: s * p + (s - 1) * n,
    ),
    "dns: flipped sign": (guidance, "dns", lambda phi, p, s: phi - s * (phi - p)),
    "dns: starts at p": (guidance, "dns", lambda phi, p, s: p + s * (phi - p)),
    "dns: s of a pipeline": (guidance, "dns", lambda phi, p, s: dns(phi, p, s - 1)),
    "dns: is -eps_p": (guidance, "dns", lambda phi, p, s: -p),
    "compose: no base": (guidance, "compose", lambda phi, ts: sum((w * e for w, e in ts), 0 * phi)),
    "compose: absolute weights": (
        guidance,
        "compose",
        lambda phi, ts: phi + sum(abs(w) * (e - phi) for w, e in ts),
    ),
    "(15): wrong side": (guidance, "optimal_negative", lambda p, k=None: p if k is None else p * k),
    "(15): norm over the batch": (
        guidance,
        "optimal_negative",
        lambda p, k=None: -p if k is None else -column(k, p).sqrt() * p / p.norm(),
    ),
    "(15): norm_sq not rooted": (
        guidance,
        "optimal_negative",
        lambda p, k=None: -p if k is None else optimal_negative(p, column(k, p).flatten() ** 2),
    ),
    "(6): no sigma": (energy, "eps_from_energy", lambda E, z, s: eps_from_energy(E, z, 1.0)),
    "(6): score without sigma": (energy, "score_from_eps", lambda eps, s: -eps),
    "(6): score with its sign": (energy, "eps_from_score", lambda x, s: column(s, x) * x),
    "(8): 1 + s": (energy, "cfg_energy", lambda a, b, s: compose_energies((-s, 1 + s), (a, b))),
    "(13): the paper's sign": (energy, "log_odds_gradient", lambda p, n, s: (p - n) / s),
    "(18): flipped": (energy, "dns_energy", lambda a, b, s: compose_energies((1 - s, s), (a, b))),
    "v: flipped sign": (energy, "eps_from_v", lambda z, v, a: eps_from_v(z, -v, a)),
    "z0: flipped sign": (energy, "z0_from_eps", lambda z, e, a: z0_from_eps(z, -e, a)),
    "ddim: in-place latents": (sampling, "ddim_step", in_place),
    "ddim: sqrt(abar) for abar": (sampling, "ddim_step", with_sqrt_abar),
    "ddim: levels swapped": (
        sampling,
        "ddim_step",
        lambda z, e, a, b, *rest: step(z, e, b, a, *rest),
    ),
    "ddim: eta ignored": (sampling, "ddim_step", lambda z, e, a, b, *rest: step(z, e, a, b)),
    "ddim: t - 1": (sampling, "ddim_sample", one_t_early),
    "ddim: one step short": (Schedule, "pairs", lambda self, *a, **k: pairs(self, *a, **k)[:-1]),
    "ddim: constant stride": (Schedule, "pairs", constant_stride),
    "schedule: sqrt(abar) for abar": (Schedule, "level", lambda self, t: level(self, t).sqrt()),
    "schedule: add_noise without the root": (
        Schedule,
        "add_noise",
        lambda self, z, e, t: column(self.level(t), z) * z + column(1 - self.level(t), z) * e,
    ),
}  # fmt: skip


def survives(identity) -> bool:
    """Whether an identity test passes; an error other than a failed assertion does not count."""
    try:
        identity()
    except (AssertionError, pytest.fail.Exception):
        return False
    except Exception:
        return True
    return True


def test_the_identities_hold_without_a_mutant():
    assert len(IDENTITIES) > 25
    assert all(survives(f) for f in IDENTITIES)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_fails_an_identity(name, monkeypatch):
    owner, attribute, mutant = MUTANTS[name]
    monkeypatch.setattr(owner, attribute, mutant)
    assert not all(survives(f) for f in IDENTITIES), f"no identity test noticed {name!r}"

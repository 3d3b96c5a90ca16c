"""The easy wrong versions of the equations, each of which must fail an identity test.

The harness is `mutants.py`; ANSWER's mutants stand beside its identities, in `test_answer.py`.
"""

import inspect

import pytest
import torch

import mutants
import test_energy
import test_guidance
import test_guided_laws
import test_rules
import test_sampling
import test_toy
from dnp import energy, guidance, rules, sampling, toy
from dnp.schedule import Schedule, column

# The fast identity tests: everything named after an equation, without arguments.
IDENTITIES = [
    f
    for module in (
        test_guidance,
        test_energy,
        test_sampling,
        test_guided_laws,
        test_rules,
        test_toy,
    )
    for name, f in vars(module).items()
    if name.startswith(
        (
            "test_eq",
            "test_effective",
            "test_two",
            "test_ddim",
            "test_compo",
            "test_coeff",
            "test_rules",
            "test_p",
        )
    )
    and not inspect.signature(f).parameters
    and not hasattr(f, "hypothesis")
] + [
    lambda: test_sampling.test_ddim_lands_on_the_affine_combination_of_points("trailing"),
    lambda: test_sampling.test_ddim_yields_every_level_of_its_own_list("trailing"),
    lambda: test_sampling.test_ddim_yields_every_level_of_its_own_list("linspace"),
]
DEAR = lambda: test_rules.none_is_a_fault(test_rules.look(levels=[400]))
IDENTITIES.append(DEAR)
cfg, dns, np3, np2 = (
    guidance.cfg,
    guidance.dns,
    guidance.negative_prompt,
    guidance.negative_prompt_two_term,
)
eps_from_energy, compose_energies = energy.eps_from_energy, energy.compose_energies
optimal_negative, effective_scale = guidance.optimal_negative, guidance.effective_scale
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


along, clip, dot = rules.along, rules.clip, rules.dot
log_p_of = toy.Mixture.log_p


def perp_on(a, b):
    """Perp-Neg whose dn loses another part than the one along dp."""

    def mutant(phi, p, n, s, w=1.0):
        parts = {"dp": p - phi, "dn": n - phi, "p": p}
        return phi + s * (p - phi - w * (n - phi - along(parts[a], parts[b])))

    return mutant


def along_unsquared(a, b):
    return column(dot(a, b) / dot(b, b).sqrt(), b) * b


def ccfg(near=1, far=-1, power=1.0):
    """CCFG with another sign in a sigmoid, or the norm without its square."""

    def mutant(phi, p, n, s, tau=0.2, plain=False):
        dp, dn = p - phi, n - phi
        a = 1 if plain else column(2 * torch.sigmoid(near * tau * dot(dp, dp) ** power), dp)
        return phi + s * (
            a * dp - column(2 * torch.sigmoid(far * tau * dot(dn, dn) ** power), dn) * dn
        )

    return mutant


def effective(power=1.0, over="dp", base=True, whole=False, unit="dp"):
    def mutant(eps, phi, p):
        push, dp = eps - phi if base else eps, p - phi
        size = {"dp": dot(dp, dp), "push": dot(push, push), "eps": 1}
        s_eff = dot(push, dp) / size[over] ** power
        rest = push if whole else push - column(s_eff, dp) * dp
        return s_eff, (dot(rest, rest) / size[unit]).sqrt()

    return mutant


def half_space(power=1.0, plane=False, s_in=True, sign=1, tau_power=1.0, on="dn"):
    """The projection with a step of it wrong."""

    def mutant(phi, p, n, s, tau=0.0):
        dp, dn = p - phi, n - phi
        size = dot(dn, dn)
        along = dot(s * dp if s_in else dp, {"dn": dn, "n": n}[on])
        k = rules.over(along - sign * tau * size**tau_power, size**power)
        return phi + s * dp - column(k if plane else k.clamp(min=0), dn) * dn

    return mutant


def dual(power=1.0, far=-1, cut=True, sign=1, over="dn", soft=1, twice=2, s_on="all"):
    """The dual of Perp-Neg with a part of its weight wrong."""

    def mutant(phi, p, n, s, tau=0.2, floor=0.1):
        dp, dn = p - phi, n - phi
        pp, nn = dot(dp, dp), dot(dn, dn)
        below = {"dn": nn + soft * floor * pp, "dp": pp + soft * floor * nn}[over]
        g = 1 + sign * rules.over(dot(dp, dn), below)
        b = twice * torch.sigmoid(far * tau * nn**power)
        push = column((g.clamp(min=0) if cut else g) * b, dn) * dn
        return phi + s * (dp - push) if s_on == "all" else phi + s * dp - push

    return mutant


def apg(base="p", on="p", cut="before"):
    def mutant(phi, p, s, eta=0.0, r=2.5, d=None):
        d = p - phi if d is None else d
        d = clip(d, r) if cut == "before" else d
        par = along(d, {"p": p, "phi": phi}[on])
        push = d - par + eta * par
        return {"p": p, "phi": phi}[base] + (s - 1) * (clip(push, r) if cut == "after" else push)

    return mutant


class Backwards(rules.DNG):
    """Tracking with the sign swapped."""

    def observe(self, *args, eps_phi, eps_n, **eps):
        super().observe(*args, eps_phi=eps_n, eps_n=eps_phi, **eps)


class Unclamped(rules.DNG):
    __signature__ = inspect.signature(rules.DNG)

    def __init__(self, **options):
        super().__init__(**options)
        self.clamp = (1e-300, None)


class Forgetful(rules.APG):
    def observe(self, *args, **eps):
        self.last = 0.0


class Eager(rules.APG):
    """A momentum that counts a look as a step."""

    def __call__(self, *args, **kw):
        eps = super().__call__(*args, **kw)
        self.last = self.d
        return eps


def plus_plus_vp(phi, p, sigma_t, sigma_next, lam=0.6):
    if sigma_next is None or sigma_next >= sigma_t:
        raise ValueError("cleaner level")
    return cfg(phi, p, lam * sigma_t / (sigma_t - sigma_next))


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
    "s_eff: over |dp|": (guidance, "effective_scale", effective(power=0.5)),
    "s_eff: over |push|^2": (guidance, "effective_scale", effective(over="push")),
    "s_eff: of eps, not of the push": (guidance, "effective_scale", effective(base=False)),
    "s_eff: from p": (
        guidance, "effective_scale", lambda e, phi, p: effective_scale(e, p, 2 * p - phi)
    ),
    "s_eff: the rest is the whole push": (guidance, "effective_scale", effective(whole=True)),
    "s_eff: the rest in units of eps": (guidance, "effective_scale", effective(unit="eps")),
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
    "perp: flipped sign": (rules, "perp_neg", lambda a, b, c, s, w=1: np3(a, c, b, s)),
    "perp: is Eq. 4": (rules, "perp_neg", lambda a, b, c, s, w=1.0: np3(a, b, c, s)),
    "perp: dp along dn": (rules, "perp_neg", perp_on("dp", "dn")),
    "perp: along p, not dp": (rules, "perp_neg", perp_on("dn", "p")),
    "perp: missing square": (rules, "along", along_unsquared),
    "dot: over the batch": (rules, "dot", lambda a, b: (a * b).sum().expand(len(a))),
    "dot: mean over the batch": (rules, "dot", lambda a, b: dot(a, b).mean().expand(len(a))),
    "along: NaN at zero": (rules, "along", lambda a, b: column(dot(a, b) / dot(b, b), b) * b),
    "ccfg: missing square": (rules, "ccfg", ccfg(power=0.5)),
    "ccfg: sign of the negative's sigmoid": (rules, "ccfg", ccfg(far=1)),
    "ccfg: sign of the positive's sigmoid": (rules, "ccfg", ccfg(near=-1)),
    "dng: P for the odds": (
        rules, "dng", lambda a, b, c, s, P, g=1: cfg(a, b, s) - column(g * P, c) * (c - a)
    ),
    "dng: flipped sign": (
        rules, "dng",
        lambda a, b, c, s, P, g=1: cfg(a, b, s) + column(g * P / (1 - P), c) * (c - a),
    ),
    "dng: tracked with the sign swapped": (rules, "DNG", Backwards),
    "dng: clamp forgotten": (rules, "DNG", Unclamped),
    "bounded: no bound": (
        rules, "bounded", lambda a, b, c, s, h=None, r=1: cfg(a, b, s) - (h or s) * (c - a)
    ),
    "bounded: by |dp|, not |s dp|": (
        rules, "bounded",
        lambda a, b, c, s, h=None, r=0.25: cfg(a, b, s)
        - clip((s if h is None else h) * (c - a), r * dot(b - a, b - a).sqrt()),
    ),
    "half-space: missing square": (rules, "half_space", half_space(power=0.5)),
    "half-space: a plane": (rules, "half_space", half_space(plane=True)),
    "half-space: s forgotten": (rules, "half_space", half_space(s_in=False)),
    "half-space: sign of tau": (rules, "half_space", half_space(sign=-1)),
    "half-space: tau |dn|": (rules, "half_space", half_space(tau_power=0.5)),
    "half-space: along n, not dn": (rules, "half_space", half_space(on="n")),
    "half-space: the dual": (
        rules, "half_space",
        lambda a, b, c, s, tau=0.0: rules.perp_neg_dual(a, b, c, s, tau=0.0, floor=0.0),
    ),
    "dual: missing square": (rules, "perp_neg_dual", dual(power=0.5)),
    "dual: sign of the sigmoid": (rules, "perp_neg_dual", dual(far=1)),
    "dual: not cut at 0": (rules, "perp_neg_dual", dual(cut=False)),
    "dual: sign of the part along n": (rules, "perp_neg_dual", dual(sign=-1)),
    "dual: over |dp|^2": (rules, "perp_neg_dual", dual(over="dp")),
    "dual: no floor": (rules, "perp_neg_dual", dual(soft=0)),
    "dual: no 2": (rules, "perp_neg_dual", dual(twice=1)),
    "dual: s on dp only": (rules, "perp_neg_dual", dual(s_on="dp")),
    "dual: is Perp-Neg": (
        rules, "perp_neg_dual", lambda a, b, c, s, tau=0, floor=0: rules.perp_neg(a, b, c, s)
    ),
    "over: NaN at zero": (rules, "over", lambda a, b: a / b),
    "apg: base phi": (rules, "apg", apg(base="phi")),
    "apg: projection on phi": (rules, "apg", apg(on="phi")),
    "apg: cut after the projection": (rules, "apg", apg(cut="after")),
    "apg: never cut": (rules, "apg", apg(cut="never")),
    "apg: no momentum": (rules, "APG", Forgetful),
    "apg: a look is a step": (rules, "APG", Eager),
    "zero*: a over |p|^2": (
        rules, "cfg_zero_star",
        lambda a, b, s: cfg(column(dot(a, b) / dot(b, b), a) * a, b, s),
    ),
    "zero*: a = 1": (rules, "cfg_zero_star", cfg),
    "++: the other sigma": (rules, "cfg_plus_plus", plus_plus_vp),
    "toy: not n keeps n": (
        toy.Mixture, "log_p",
        lambda self, z, t, c=None: log_p_of(self, z, t, c[0] if isinstance(c, tuple) else c),
    ),
    "toy: posterior without the weights": (
        toy.Mixture, "posterior",
        lambda self, z, t, c: (self.log_p(z, t, c) - self.log_p(z, t)).exp(),
    ),
    "schedule: add_noise without the root": (
        Schedule,
        "add_noise",
        lambda self, z, e, t: column(self.level(t), z) * z + column(1 - self.level(t), z) * e,
    ),
}  # fmt: skip


def test_the_identities_hold_without_a_mutant():
    assert len(IDENTITIES) > 25
    mutants.assert_all_pass(f for f in IDENTITIES if f is not DEAR)  # in `test_rules.py` it is run


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_fails_an_identity(name, monkeypatch):
    owner, attribute, mutant = MUTANTS[name]
    own = "test_" + getattr(owner, "__module__", owner.__name__).split(".")[-1]

    def place(f):
        """Likely to notice: first. The one that takes half of the time of all: last."""
        named = attribute.lower() in f.__name__
        return f is DEAR, not named, f.__module__ not in (own, __name__)

    ordered = sorted(IDENTITIES, key=place)
    mutants.assert_noticed([owner], attribute, mutant, ordered, monkeypatch)

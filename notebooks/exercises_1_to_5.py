"""The exercises of notebooks 1 to 5: right answers, limits and usual mistakes by name."""

import math

import torch
from exercise import (
    BRACKETS,
    MORE,
    NO_START,
    PHI,
    SCALES,
    SIGMA,
    SIGN,
    SWAPPED,
    Exercise,
    N,
    P,
    S,
    batch_dot,
    same,
)  # fmt: skip

from dnp import energy, guidance, rules
from dnp.guidance import cfg, dns
from dnp.guidance import negative_prompt as np3
from dnp.guidance import negative_prompt_two_term as np2
from dnp.schedule import column

VARIANCES = [(v_phi, v_p, s) for v_phi, v_p in ((2.0, 0.7), (0.5, 3.0)) for s in SCALES]
# Where each arrow of exercise 4.3 ends, in the order of its numbers; another order at each scale.
ARROWS = {
    "Eq. 4": np3,
    "the two-term form": lambda a, b, c, s: np2(b, c, s),
    "CFG": lambda a, b, c, s: cfg(a, b, s),
    "Eq. 4 with the wrong sign": lambda a, b, c, s: np3(a, b, c, -s),
    "Eq. 4 from p": lambda a, b, c, s: b + s * (b - c),
    "Eq. 4 at s + 1": lambda a, b, c, s: np3(a, b, c, s + 1),
}
ORDER = {0.5: (3, 5, 0, 2, 4, 1), 1.5: (0, 4, 2, 5, 1, 3), 2.0: (1, 3, 5, 2, 0, 4)}


def six_arrows(eps_phi, eps_p, eps_n, s):
    """The noises at the tips of the arrows 1 to 6."""
    rules = list(ARROWS.values())
    return [rules[i](eps_phi, eps_p, eps_n, s) for i in ORDER[s]]


EXERCISES = {
    # ------------------------------------------------------------------------- notebook 1
    "my_last_peak": Exercise(
        lambda m, v: max(m * m - v, 0.0), (2.0, 0.25),
        [
            ("points, v = 0, are one peak from m squared on", lambda f: same(f(1.5, 0.0), 2.25)),
            ("modes that are wider than apart are one peak without noise",
             lambda f: same(f(1.0, 2.0), 0.0)),
        ],
        [
            ("this is sigma. Return its square: u is a variance.",
             lambda m, v: math.sqrt(max(m * m - v, 0.0))),
            ("the modes are 2 m apart, and each is m from the middle: where is the second "
             "derivative of the density 0 at the middle?", lambda m, v: (2 * m) ** 2 - v),
            ("the modes have a width of their own already: v + u is their variance at u.",
             lambda m, v: m * m),
            ("v is a variance already: do not square it.", lambda m, v: m * m - v * v),
            ("the noise makes the modes wider: v + u must reach m squared.",
             lambda m, v: m * m + v),
        ],
        more=[(m, v) for m in (0.5, 1.0, 3.0) for v in (0.0, 0.2, 1.0, 4.0)],
    ),
    # ------------------------------------------------------------------------- notebook 2
    "my_score": Exercise(
        energy.score_from_eps, (P, SIGMA),
        [("where the noise is zero, the score is zero", lambda f: same(f(0 * P, SIGMA), 0 * P))],
        [
            ("sigma_t is missing. The score is minus the noise, divided by sigma_t.", lambda e, x: -e),
            ("sigma_t is missing and the sign is wrong.", lambda e, x: e),
            ("the sign is wrong: the score points towards the data, the noise away from it.",
             lambda e, x: e / column(x, e)),
            ("it multiplies by sigma_t where it must divide.", lambda e, x: -e * column(x, e)),
            ("it divides by sigma_t squared.", lambda e, x: -e / column(x, e) ** 2),
            ("it divides by sqrt(abar_t); sigma_t itself belongs there.",
             lambda e, x: -e / column((1 - x**2).sqrt(), e)),
        ],
        more=[(P, x * SIGMA) for x in (0.01, 1.1)],
    ),
    "my_cfg": Exercise(
        cfg, (PHI, P, S),
        [
            ("s = 0 returns eps_phi", lambda f: same(f(PHI, P, 0.0), PHI)),
            ("s = 1 returns eps_p", lambda f: same(f(PHI, P, 1.0), P)),
            ("p = phi changes nothing", lambda f: same(f(P, P, S), P)),
        ],
        [
            (SIGN, lambda a, b, s: a - s * (b - a)),
            (MORE, lambda a, b, s: cfg(a, b, s + 1)),
            (SWAPPED, lambda a, b, s: cfg(b, a, s)),
            (NO_START, lambda a, b, s: s * (b - a)),
            (BRACKETS, lambda a, b, s: a + s * b - a),
            ("phi is not taken away from p: the arrow is p - phi.", lambda a, b, s: a + s * b),
            ("s is squared: the arrow is s times p - phi.", lambda a, b, s: cfg(a, b, s**2)),
        ],
        more=[(PHI, P, s) for s in SCALES],
    ),
    "my_end": Exercise(
        lambda phi, p, s, steps: phi + s * (p - phi), (-1.0, 2.0, 3.0, 10),
        [
            ("s = 0 ends at phi", lambda f: same(f(-1.0, 2.0, 0.0, 10), -1.0)),
            ("s = 1 ends at p", lambda f: same(f(-1.0, 2.0, 1.0, 10), 2.0)),
            ("the number of steps changes nothing",
             lambda f: same(f(-1.0, 2.0, 3.0, 1), f(-1.0, 2.0, 3.0, 500))),
        ],
        [
            ("a chain does not stop at p: it goes s times the arrow from phi to p.",
             lambda a, b, s, T: b),
            ("each step predicts the whole way: do not multiply by the number of steps.",
             lambda a, b, s, T: a + s * T * (b - a)),
            (MORE, lambda a, b, s, T: b + s * (b - a)),
            (NO_START, lambda a, b, s, T: s * (b - a)),
        ],
        more=[(0.5, -2.0, s, T) for s in SCALES for T in (1, 50)],
    ),
    # ------------------------------------------------------------------------- notebook 3
    "my_tilted_variance": Exercise(
        energy.tilted_variance, (2.0, 0.7, 0.8),
        [
            ("s = 0 returns v_phi", lambda f: same(f(2.0, 0.7, 0.0), 2.0)),
            ("s = 1 returns v_p", lambda f: same(f(2.0, 0.7, 1.0), 0.7)),
        ],
        [
            ("it averages variances. In a product of Gaussians the precisions 1 / v add.",
             lambda a, b, s: (1 - s) * a + s * b),
            ("this is what DDIM returns, not the tilted law. The precisions 1 / v add.",
             energy.ddim_variance),
            ("this is the precision. The variance is one over it.",
             lambda a, b, s: 1 / energy.tilted_variance(a, b, s)),
            (SWAPPED, lambda a, b, s: energy.tilted_variance(b, a, s)),
            ("it is the law at s + 1.", lambda a, b, s: energy.tilted_variance(a, b, s + 1)),
            ("v is a variance already: do not square it.",
             lambda a, b, s: 1 / ((1 - s) / a**2 + s / b**2)),
            ("the weights must add up to 1: v_phi has the weight 1 - s.",
             lambda a, b, s: 1 / (1 / a + s / b)),
        ],
        more=VARIANCES,
    ),
    "my_ddim_variance": Exercise(
        energy.ddim_variance, (2.0, 0.7, 0.8),
        [
            ("s = 0 returns v_phi", lambda f: same(f(2.0, 0.7, 0.0), 2.0)),
            ("s = 1 returns v_p", lambda f: same(f(2.0, 0.7, 1.0), 0.7)),
            ("no s makes it negative", lambda f: f(2.0, 0.7, 9.0) > 0),
        ],
        [
            ("this is the tilted law, which DDIM does not sample.", energy.tilted_variance),
            ("it averages variances; the logarithms of the variances are averaged.",
             lambda a, b, s: (1 - s) * a + s * b),
            (SWAPPED, lambda a, b, s: energy.ddim_variance(b, a, s)),
            ("it is the variance at s + 1.", lambda a, b, s: energy.ddim_variance(a, b, s + 1)),
            ("this is a sum; it is a product of powers.", lambda a, b, s: a ** (1 - s) + b**s),
            ("this is the standard deviation, not the variance.",
             lambda a, b, s: energy.ddim_variance(a, b, s) ** 0.5),
        ],
        more=VARIANCES,
    ),
    "my_same_width": Exercise(
        lambda v_phi, v_p, s: math.log(energy.tilted_variance(v_phi, v_p, s) / v_phi)
        / math.log(v_p / v_phi), (2.0, 0.7, 2.5),
        [
            ("s = 0 needs 0", lambda f: same(f(2.0, 0.7, 0.0), 0.0)),
            ("s = 1 needs 1", lambda f: same(f(2.0, 0.7, 1.0), 1.0)),
            ("at s = 2 DDIM is too narrow, so a smaller scale does it",
             lambda f: f(2.0, 1.0, 2.0) < 2),
        ],
        [
            ("DDIM at s is narrower than the tilted law at s. Which scale makes it wider?",
             lambda a, b, s: s),
            ("the two are swapped: this is the s whose tilted law is as wide as DDIM at s.",
             lambda a, b, s: (1 / energy.ddim_variance(a, b, s) - 1 / a) / (1 / b - 1 / a)),
            ("the quotient is upside down.",
             lambda a, b, s: math.log(b / a) / math.log(energy.tilted_variance(a, b, s) / a)),
            ("divide by v_phi before you take the logarithm: s = 0 returns v_phi.",
             lambda a, b, s: math.log(energy.tilted_variance(a, b, s)) / math.log(b / a)),
        ],
        more=[(2.0, 0.7, s) for s in (0.3, 1.5, 4.0, 12.0)] + [(0.5, 3.0, -s) for s in (0.1, 5.0)],
    ),
    # ------------------------------------------------------------------------- notebook 4
    "my_negative_prompt": Exercise(
        np3, (PHI, P, N, S),
        [
            ("s = 0 returns eps_phi", lambda f: same(f(PHI, P, N, 0.0), PHI)),
            ("n = phi gives CFG, Eq. 3", lambda f: same(f(PHI, P, PHI, S), cfg(PHI, P, S))),
            ("n = p returns eps_phi", lambda f: same(f(PHI, P, P, S), PHI)),
        ],
        [
            (SIGN, lambda a, b, c, s: a - s * (b - c)),
            ("this is the two-term form: it starts at n, and Eq. 4 starts at phi.",
             lambda a, b, c, s: np2(b, c, s)),
            (MORE, lambda a, b, c, s: b + s * (b - c)),
            ("it is the equation at s + 1.", lambda a, b, c, s: np3(a, b, c, s + 1)),
            ("this is CFG: n is missing (phi stands for n).", lambda a, b, c, s: cfg(a, b, s)),
            (NO_START, lambda a, b, c, s: s * (b - c)),
            (BRACKETS, lambda a, b, c, s: a + s * b - c),
            ("phi and p are swapped: it starts at phi.", lambda a, b, c, s: b + s * (a - c)),
        ],
        more=[(PHI, P, N, s) for s in SCALES],
    ),
    "my_two_term_scale": Exercise(
        guidance.two_term_scale, (PHI, P, N, S),
        [
            ("n = phi leaves s as it is",
             lambda f: same(f(PHI, P, PHI, S), torch.full((4,), S).double())),
            ("phi - n = 0.4 (p - n) gives s + 0.4",
             lambda f: same(f(N + 0.4 * (P - N), P, N, S), torch.full((4,), S + 0.4).double())),
        ],
        [
            ("a mean or a sum goes over the batch. Each sample has a scale of its own.",
             lambda a, b, c, s: (s + batch_dot(a - c, b - c) / batch_dot(b - c, b - c)).expand(4)),
            ("the scale s itself is missing; this is only what is added to it.",
             lambda a, b, c, s: guidance.two_term_scale(a, b, c, 0.0)),
            ("the square of the norm is missing below.",
             lambda a, b, c, s: s + rules.dot(a - c, b - c) / rules.dot(b - c, b - c).sqrt()),
            ("the sign of phi - n is wrong.",
             lambda a, b, c, s: 2 * s - guidance.two_term_scale(a, b, c, s)),
            ("the quotient is added to s, not multiplied by it.",
             lambda a, b, c, s: s * guidance.two_term_scale(a, b, c, 0.0)),
            ("below stands |p - n|^2, not |phi - n|^2.",
             lambda a, b, c, s: s + rules.dot(a - c, b - c) / rules.dot(a - c, a - c)),
            ("above stands <phi - n, p - n>; here it is <p - phi, p - n>.",
             lambda a, b, c, s: s + rules.dot(b - a, b - c) / rules.dot(b - c, b - c)),
        ],
        more=[(PHI, P, N, s) for s in SCALES],
    ),
    "my_arrow": Exercise(
        lambda s: ORDER[s].index(0) + 1, (1.5,),
        [],
        [(f"this arrow is {name}, at s = 1.5.", lambda s, i=i: ORDER[s].index(i) + 1)
         for i, name in enumerate(ARROWS) if i],
        more=[(0.5,), (2.0,)],
    ),
    # ------------------------------------------------------------------------- notebook 5
    "my_dns": Exercise(
        dns, (PHI, P, S),
        [
            ("s = 0 returns eps_phi", lambda f: same(f(PHI, P, 0.0), PHI)),
            ("it is CFG at -s", lambda f: same(f(PHI, P, S), cfg(PHI, P, -S))),
            ("it is Eq. 4 with positive phi and negative p",
             lambda f: same(f(PHI, P, S), np3(PHI, PHI, P, S))),
        ],
        [
            ("the sign is wrong: this is CFG, which goes towards p.", cfg),
            ("it starts at p, and DNS starts at phi: this is the equation at s - 1. A pipeline's "
             "guidance_scale for DNS is s + 1.", lambda a, b, s: dns(a, b, s - 1)),
            ("it is the equation at s + 1.", lambda a, b, s: dns(a, b, s + 1)),
            ("this is -eps_p, Eq. 16: one over a density, which is improper. Where is phi?",
             lambda a, b, s: -b),
            (NO_START, lambda a, b, s: s * (a - b)),
            (BRACKETS, lambda a, b, s: a + s * a - b),
            ("the sign of p is wrong: DNS goes away from it.", lambda a, b, s: (1 + s) * a + s * b),
            ("phi stands 1 + s times in Eq. 19, so that the weights add up to 1.",
             lambda a, b, s: a - s * b),
        ],
        more=[(PHI, P, s) for s in SCALES],
    ),
    "my_last_scale": Exercise(
        lambda v_phi, v_p: v_p / (v_phi - v_p) if v_p < v_phi else math.inf, (2.0, 0.7),
        [
            ("a wide prompt has no last scale: math.inf", lambda f: f(2.0, 3.0) == math.inf),
            ("where p is phi, DNS is phi at every scale: math.inf",
             lambda f: f(2.0, 2.0) == math.inf),
            ("a prompt of half the variance of phi ends at 1", lambda f: same(f(3.0, 1.5), 1.0)),
        ],
        [
            ("this is where CFG at -s is looked at; DNS takes s > 0.",
             lambda a, b: b / (b - a)),
            ("the precision (1 + s) / v_phi - s / v_p must be 0: solve it for s.",
             lambda a, b: a / (a - b)),
            ("this is s / (1 + s), not s.", lambda a, b: b / a),
            ("this is one over it.", lambda a, b: (a - b) / b),
        ],
        more=[(v_phi, v_p) for v_phi in (0.5, 1.0, 4.0) for v_p in (0.1, 0.9, 3.0, 9.0)],
    ),
    "my_farthest": Exercise(
        guidance.optimal_negative, (P, torch.tensor([1.0, 2.0, 3.0, 4.0]).double()),
        [
            ("its squared norm is norm_sq",
             lambda f: same(rules.dot(*[f(P, SIGMA)] * 2), SIGMA)),
            ("with norm_sq = |eps_p|^2 it is -eps_p", lambda f: same(f(P, rules.dot(P, P)), -P)),
        ],
        [
            ("the sign is wrong: this is the nearest noise, not the farthest.",
             lambda e, k: -guidance.optimal_negative(e, k)),
            ("the root of norm_sq is missing.", lambda e, k: guidance.optimal_negative(e, k**2)),
            ("the norm goes over the batch. Each sample has a norm of its own.",
             lambda e, k: -column(k.sqrt(), e) * e / e.norm()),
            ("the norm of eps_p is missing: divide by it, then the direction has length 1.",
             lambda e, k: -column(k.sqrt(), e) * e),
            ("it ignores norm_sq: this has the norm of eps_p.", lambda e, k: -e),
            ("a root is missing below: it divides by |eps_p|^2.",
             lambda e, k: -column(k.sqrt() / rules.dot(e, e), e) * e),
        ],
        more=[(P, x * SIGMA) for x in (0.0, 0.01, 100.0)],
    ),
}  # fmt: skip

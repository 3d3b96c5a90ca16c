"""The exercises of notebooks 6 to 8: right answers, limits and usual mistakes by name."""

import torch
from exercise import (
    NO_START,
    PHI,
    SCALES,
    Exercise,
    N,
    P,
    S,
    batch_dot,
    same,
    sample_mean,
    sample_std,
)  # fmt: skip
from torch import Tensor

from dnp import rules
from dnp.guidance import cfg
from dnp.guidance import negative_prompt as np3
from dnp.methods import answer
from dnp.methods.answer import match
from dnp.schedule import Schedule, column

SHARE = torch.tensor([0.1, 0.3, 0.5, 0.8], dtype=torch.float64)  # P(n | z_t) of each sample
NEAR = PHI + column(torch.tensor([0.05, 1, 1, 1]), N) * (N - PHI)  # n of one sample hardly pushes
LOG_N, LOG_ALL = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -2.5, -2.9])


def _row(a: Tensor, b: Tensor) -> Tensor:
    """A usual mistake: the inner product of the last dimension alone, (..., 1)."""
    return (a * b).sum(-1, keepdim=True)


def _norm(x: Tensor) -> Tensor:
    """|x| of each sample, (B, 1, 1, 1)"""
    return column(rules.dot(x, x).sqrt(), x)


def _equal_push(eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: float) -> Tensor:
    """phi + s (dp - |dp| / |dn| dn), and CFG where dn = 0"""
    dp, dn = eps_p - eps_phi, eps_n - eps_phi
    return eps_phi + s * (dp - _norm(dp) / _norm(dn).clamp(min=1e-30) * dn)


EXERCISES = {
    # ------------------------------------------------------------------------- notebook 6
    "my_posterior": Exercise(
        lambda log_n, log_all, w: w * (log_n - log_all).exp(), (LOG_N, LOG_ALL, 0.25),
        [("n = everything, with weight 1, has the share 1",
          lambda f: same(f(LOG_ALL, LOG_ALL, 1.0), torch.ones(3)))],
        [
            ("the weight w of n is missing: Bayes' rule has the prior.",
             lambda a, b, w: (a - b).exp()),
            ("the sign is wrong: n stands above, everything below.",
             lambda a, b, w: w * (b - a).exp()),
            ("these are logarithms; a share needs exp.", lambda a, b, w: w * (a - b)),
            ("everything is missing: divide by p(z_t).", lambda a, b, w: w * a.exp()),
            ("n is in log_all already: do not add it below once more.",
             lambda a, b, w: w * a.exp() / (w * a.exp() + b.exp())),
            ("a quotient of logarithms is not a share: take exp of their difference.",
             lambda a, b, w: w * a / b),
        ],
        more=[(LOG_N, LOG_ALL, w) for w in (0.01, 0.5, 1.0)],
    ),
    "my_not_n": Exercise(
        lambda phi, n, share: rules.dng(phi, phi, n, 0.0, share), (PHI, N, SHARE),
        [
            ("P = 0 returns eps_phi", lambda f: same(f(PHI, N, 0 * SHARE), PHI)),
            ("P = 1/2 returns 2 phi - n",
             lambda f: same(f(PHI, N, 0 * SHARE + 0.5), 2 * PHI - N)),
        ],
        [
            ("the sign is wrong: this goes towards n.",
             lambda a, c, x: a + column(x / (1 - x), a) * (c - a)),
            ("P stands for the odds P / (1 - P).", lambda a, c, x: a - column(x, a) * (c - a)),
            ("a mean goes over the batch. Each sample has a posterior of its own.",
             lambda a, c, x: a - (x / (1 - x)).mean() * (c - a)),
            ("a mean goes over the batch. Each sample has a posterior of its own.",
             lambda a, c, x: a - x.mean() / (1 - x.mean()) * (c - a)),
            ("the odds are upside down: P stands above, 1 - P below.",
             lambda a, c, x: a - column((1 - x) / x, a) * (c - a)),
            ("the push is d_n = n - phi, not n itself.",
             lambda a, c, x: a - column(x / (1 - x), a) * c),
            ("1 - P stands for the odds P / (1 - P).",
             lambda a, c, x: a - column(1 - x, a) * (c - a)),
            ("P (n - phi) / (1 - P) must be taken from phi: the start is missing.",
             lambda a, c, x: -column(x / (1 - x), a) * (c - a)),
        ],
        more=[(PHI, N, x * SHARE) for x in (0.1, 1.24)],
    ),
    "my_cfg_scale": Exercise(
        lambda s, P: s / (1 - P), (2.0, 0.3),
        [
            ("s = 0 is phi, CFG at 0", lambda f: same(f(0.0, 0.3), 0.0)),
            ("P = 0: n is everything, so Eq. 4 is CFG at s", lambda f: same(f(2.0, 0.0), 2.0)),
        ],
        [
            ("not p pushes too: it is more than s.", lambda s, P: s),
            ("this is s times the odds. Write n by phi and p, and put it into Eq. 4.",
             lambda s, P: s * P / (1 - P)),
            ("divide by the share of n, which is 1 - P.", lambda s, P: s / P),
            ("this is the two-term form's own scale, s + P.", lambda s, P: s + P),
            ("1 - P stands below, not above.", lambda s, P: s * (1 - P)),
        ],
        more=[(s, P) for s in SCALES for P in (0.01, 0.5, 0.99)],
    ),
    # ------------------------------------------------------------------------- notebook 7
    "my_match": Exercise(
        lambda e, ref: match(e, ref), (3 * N + 1, PHI),
        [
            ("a noise matched to itself is itself", lambda f: same(f(PHI, PHI), PHI)),
            ("the result has the reference's mean",
             lambda f: same(f(3 * N + 1, PHI).flatten(1).mean(1), PHI.flatten(1).mean(1))),
        ],
        [
            ("a mean goes over the batch. Each sample has its own mean and deviation.",
             lambda e, r: (e - e.mean()) / e.std(correction=0) * r.std(correction=0) + r.mean()),
            ("a mean goes over the batch. Each sample has its own mean and deviation.",
             lambda e, r: (e - e.mean()) / e.std() * r.std() + r.mean()),
            ("the deviation of the reference is missing: multiply by it.",
             lambda e, r: match(e, (r - sample_mean(r)) / sample_std(r) + sample_mean(r))),
            ("the mean of the reference is missing: add it.",
             lambda e, r: match(e, r - sample_mean(r))),
            ("both deviations are missing: divide by that of eps, multiply by the reference's.",
             lambda e, r: e - sample_mean(e) + sample_mean(r)),
            ("it does not divide by the deviation of eps.",
             lambda e, r: (e - sample_mean(e)) * sample_std(r) + sample_mean(r)),
            ("this matches each channel; the exercise matches each sample as a whole.",
             lambda e, r: match(e, r, 2)),
            ("the two are swapped: eps gets the mean and deviation of the reference.",
             lambda e, r: match(r, e)),
            ("the mean of eps is not taken away first.",
             lambda e, r: e / sample_std(e) * sample_std(r) + sample_mean(r)),
        ],
        points=False,
        more=[(x * N - 3, 0.1 * PHI + 2) for x in (0.01, 1.0, 50.0)],
    ),
    "my_strength": Exercise(
        lambda s, s_dns: s + s * s_dns - s_dns, (3.0, 2.0),
        [
            ("s_dns = 0: n is phi, so it is CFG at s", lambda f: same(f(3.0, 0.0), 3.0)),
            ("s = 1 returns eps_p, whatever n is", lambda f: same(f(1.0, 5.0), 1.0)),
        ],
        [
            ("this is Eq. 4's. The two-term form starts at n, not at phi.",
             lambda s, x: s * (1 + x)),
            ("the start is farther away from p by s_dns: take it off.", lambda s, x: s * x),
            ("the sign of what the start takes off is wrong.", lambda s, x: s + s * x + x),
            ("this is the scale of n alone.", lambda s, x: -x),
        ],
        more=[(s, x) for s in SCALES for x in (0.0, 0.7, 6.0)],
    ),
    "my_evaluations": Exercise(
        lambda T, K, until: answer.evaluations(Schedule.stable_diffusion().pairs(T), K, until),
        (20, 4, 0.25),
        [("K_until = 0 is CFG, 2 T evaluations", lambda f: f(20, 3, 0.0) == 40),
         ("K = 1 costs nothing more: its two noises are known", lambda f: f(20, 1, 0.5) == 40),
         ("K = 0 is CFG too, 2 T evaluations", lambda f: f(20, 0, 0.5) == 40)],
        [
            ("the first inner step is counted twice: its noises at z_t are known already.",
             lambda T, K, u: 2 * T + 2 * K * u * T),
            ("the inner chain runs only in the first part of the steps.",
             lambda T, K, u: 2 * T + 2 * (K - 1) * T),
            ("an inner step needs two evaluations, of phi and of p.",
             lambda T, K, u: 2 * T + (K - 1) * u * T),
            ("the two evaluations of the outer step are missing.",
             lambda T, K, u: 2 * (K - 1) * u * T),
            ("an outer step needs two evaluations, of phi and of p.",
             lambda T, K, u: T + 2 * (K - 1) * u * T),
        ],
        more=[(50, 1, 0.5), (10, 2, 0.5), (40, 3, 0.25), (20, 0, 0.5), (30, 6, 0.2)],
    ),
    # ------------------------------------------------------------------------- notebook 8
    "my_perp_neg": Exercise(
        rules.perp_neg, (PHI, P, N, S),
        [
            ("n = p gives CFG", lambda f: same(f(PHI, P, P, S), cfg(PHI, P, S))),
            ("p = phi gives finite numbers", lambda f: f(PHI, PHI, N, S).isfinite().all()),
            ("n does not move along p: <eps - phi, dp> = s |dp|^2",
             lambda f: same(rules.dot(f(PHI, P, N, S) - PHI, P - PHI),
                            S * rules.dot(P - PHI, P - PHI))),
        ],
        [
            ("this is Eq. 4: the part of n along p is still in it.",
             lambda a, b, c, s: np3(a, b, a + c - a, s)),
            ("this keeps the part along p and takes the other away.",
             lambda a, b, c, s: a + s * (b - a - rules.along(c - a, b - a))),
            ("the sign is wrong: it goes towards n.",
             lambda a, b, c, s: a + s * (b - a + c - a - rules.along(c - a, b - a))),
            ("the square of |dp| is missing in the projection.",
             lambda a, b, c, s: a + s * (b - a - (c - a) + rules.along(c - a, b - a)
                                         * column(rules.dot(b - a, b - a).sqrt(), a))),
            ("it projects on p itself, not on dp = p - phi.",
             lambda a, b, c, s: a + s * (b - a - (c - a) + rules.along(c - a, b))),
            ("a sum goes over the batch. Each sample has a projection of its own.",
             lambda a, b, c, s: a + s * (b - a - (c - a) + batch_dot(c - a, b - a)
                                         / batch_dot(b - a, b - a) * (b - a))),
            ("s multiplies both parts: s * (dp - ...).",
             lambda a, b, c, s: cfg(a, b, s) - (c - a - rules.along(c - a, b - a))),
            (NO_START, lambda a, b, c, s: rules.perp_neg(a, b, c, s) - a),
            ("it is the other way round: take from dn its part along dp.",
             lambda a, b, c, s: a + s * (b - a - rules.along(b - a, c - a))),
            ("the sums go over one row only. A sample is all dimensions but the first.",
             lambda a, b, c, s: a + s * (b - a - (c - a) + _row(c - a, b - a)
                                         / _row(b - a, b - a) * (b - a))),
        ],
        more=[(PHI, P, N, s) for s in SCALES],
    ),
    "my_bounded": Exercise(
        lambda a, b, c, s: rules.bounded(a, b, c, s, r=0.25), (PHI, P, NEAR, S),
        [
            ("n = phi gives CFG", lambda f: same(f(PHI, P, PHI, S), cfg(PHI, P, S))),
            ("a small push of n is not changed",
             lambda f: same(f(PHI, P, PHI + 0.01 * N, S), np3(PHI, P, PHI + 0.01 * N, S))),
        ],
        [
            ("nothing is bounded: this is Eq. 4.", np3),
            ("the sign is wrong: it goes towards n.",
             lambda a, b, c, s: 2 * cfg(a, b, s) - rules.bounded(a, b, c, s, r=0.25)),
            ("the norms go over the batch. Each sample has a bound of its own.",
             lambda a, b, c, s: cfg(a, b, s) - min(1, 0.25 * (b - a).norm() / (c - a).norm())
             * s * (c - a)),
            ("the bound forgets s: it is r |s dp|, not r |dp|.",
             lambda a, b, c, s: cfg(a, b, s)
             - rules.clip(s * (c - a), 0.25 * rules.dot(b - a, b - a).sqrt())),
            ("min(1, ...) is missing: a small push must not grow.",
             lambda a, b, c, s: cfg(a, b, s) - 0.25 * _norm(b - a) / _norm(c - a) * s * (c - a)),
            ("r = 0.25 is missing.", lambda a, b, c, s: rules.bounded(a, b, c, s, r=1.0)),
            ("the lengths are those of d_p and d_n, not of p and n.",
             lambda a, b, c, s: cfg(a, b, s)
             - (0.25 * _norm(b) / _norm(c)).clamp(max=1) * s * (c - a)),
            ("a quarter of n's own push is not a quarter of the prompt's.",
             lambda a, b, c, s: cfg(a, b, s) - 0.25 * s * (c - a)),
            (NO_START, lambda a, b, c, s: rules.bounded(a, b, c, s, r=0.25) - a),
        ],
        more=[(PHI, P, n, s) for n in (NEAR, PHI + 5 * N) for s in SCALES],
    ),
    "my_repaired": Exercise(
        lambda a, b, c, s: _equal_push(a, b, c, s), (PHI, P, NEAR, S),
        [
            ("n = phi gives CFG", lambda f: same(f(PHI, P, PHI, S), cfg(PHI, P, S))),
            ("p = phi returns phi", lambda f: same(f(PHI, PHI, N, S), PHI)),
            ("a sample alone is what it is in its batch",
             lambda f: same(f(PHI[:1], P[:1], N[:1], S), f(PHI, P, N, S)[:1])),
        ],
        [
            ("a norm still goes over the batch.",
             lambda a, b, c, s: a + s * (b - a - (b - a).norm() / (c - a).norm() * (c - a))),
            ("this is Eq. 4: the push must be as long as the pull.", np3),
            ("the two lengths are swapped.",
             lambda a, b, c, s: a + s * (b - a - _norm(c - a) / _norm(b - a) * (c - a))),
        ],
        more=[(PHI, P, n, s) for n in (PHI, P, PHI + 1e-3 * N) for s in SCALES],
    ),
}  # fmt: skip

"""Rules that follow no energy and hide it: the eight kinds that one level and autograd called one,
and rules that are Perp-Neg in a part of their range and CFG elsewhere."""

import torch

from dnp import guidance, rules
from dnp.rules import dot
from dnp.schedule import column


def detached(eps_phi, eps_p, eps_n, s):
    dp, dn = eps_p - eps_phi, eps_n - eps_phi
    weight = column(2 * torch.sigmoid(-0.2 * dot(dn, dn)), dn).detach()
    return eps_phi + s * (dp - weight * dn)


def no_grad(eps_phi, eps_p, eps_n, s):
    with torch.no_grad():
        return rules.perp_neg(eps_phi, eps_p, eps_n, s)


def by_numpy(eps_phi, eps_p, eps_n, s):
    dp, dn = ((x - eps_phi).detach().numpy() for x in (eps_p, eps_n))
    axes = tuple(range(1, dp.ndim))
    share = (dn * dp).sum(axes, keepdims=True) / (dp * dp).sum(axes, keepdims=True).clip(1e-300)
    return eps_phi.detach() + s * torch.from_numpy(dp - (dn - share * dp))


def wide_bound(eps_phi, eps_p, eps_n, s):
    return rules.bounded(eps_phi, eps_p, eps_n, s, r=5.0)


def switch_by_norms(eps_phi, eps_p, eps_n, s):
    dp, dn = eps_p - eps_phi, eps_n - eps_phi
    near = column((dot(dn, dn) < 4 * dot(dp, dp)).to(dn.dtype), dn)
    return eps_phi + s * (dp - near * dn)


def switch_by_place(eps_phi, eps_p, eps_n, s, z_t):
    right = column((z_t.flatten(1)[:, 0] > 0).to(eps_p.dtype), eps_p)
    return eps_phi + s * (eps_p - eps_phi - right * (eps_n - eps_phi))


def signs(eps_phi, eps_p, s):
    return eps_phi + s * (eps_p - eps_phi).sign()


def one_level(eps_phi, eps_p, eps_n, s, t):
    if int(t) == 400:
        return guidance.cfg(eps_phi, eps_p, s)
    return rules.perp_neg(eps_phi, eps_p, eps_n, s)


EIGHT = (
    detached, no_grad, by_numpy, wide_bound, switch_by_norms, switch_by_place, signs, one_level,
)  # fmt: skip


def perp_neg_where(name, inside):
    """Perp-Neg where `inside(s, z_t, t)` says so, for all samples or each, else CFG."""

    def rule(eps_phi, eps_p, eps_n, s, z_t, t):
        here = torch.as_tensor(inside(s, z_t, int(t))).to(eps_p.dtype)
        cfg = guidance.cfg(eps_phi, eps_p, s)
        return cfg + column(here, cfg) * (rules.perp_neg(eps_phi, eps_p, eps_n, s) - cfg)

    rule.__name__ = name
    return rule


NARROW = (
    perp_neg_where("t in 480 to 600", lambda s, z_t, t: 480 <= t < 600),
    perp_neg_where("t under 50", lambda s, z_t, t: t < 50),
    perp_neg_where("s of 8 and more", lambda s, z_t, t: s >= 8),
    perp_neg_where("|z| over 40", lambda s, z_t, t: z_t.flatten(1).norm(dim=1) > 40),
)
SEVEN = perp_neg_where("batch size 7", lambda s, z_t, t: len(z_t) == 7)


class Memory:
    """CFG towards a mean of what it has seen; `over` is whose mean."""

    def __init__(self, over="own"):
        self.over = over

    def reset(self, z_T):
        self.seen = torch.zeros_like(z_T)

    def __call__(self, eps_phi, eps_p, s):
        return eps_phi + s * (eps_p - eps_phi) + 0.1 * self.seen

    def observe(self, z_t, z_next, t, t_next, **eps):
        mean = eps["eps_p"].mean(0, keepdim=True).expand_as(z_t)
        self.seen = mean if self.over == "the batch" else 0.5 * self.seen + eps["eps_p"]

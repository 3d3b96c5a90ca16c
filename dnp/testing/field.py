"""Rules that others publish, by one table: `python -m dnp.checks --field`.

Ours, the guiders of diffusers (imported only here, through an adapter), and formulas of papers. In
all of them dp = p - phi and dn = n - phi. What the installed diffusers lacks is skipped, and the
end of the table says so.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from dnp import guidance, rules
from dnp.schedule import column

STEP, STEPS = 7, 50  # inside the range in which every guider acts


class Guider:
    """A guider of diffusers as a rule of two predictions; a third one, a weak branch, is n."""

    def __init__(self, name: str, *options: tuple[str, object]) -> None:
        guiders = importlib.import_module("diffusers.guiders")
        self.guider = getattr(guiders, name)(**dict(options))
        self.guider.set_state(STEP, STEPS, torch.tensor(400))

    def __call__(self, eps_phi: Tensor, eps_p: Tensor, s: float) -> Tensor:
        self.guider.guidance_scale = s
        if hasattr(self.guider, "guidance_scales"):
            self.guider.guidance_scales = [s] * len(self.guider.guidance_scales)
        return self.guider.forward(eps_p, eps_phi).pred


class Branch(Guider):
    def __call__(self, eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: float) -> Tensor:
        self.guider.guidance_scale = s
        return self.guider.forward(eps_p, eps_phi, eps_n).pred


# ---------------------------------------------------------------------- formulas of papers


def interval(
    eps_phi: Tensor, eps_p: Tensor, s: float, sigma_t: Tensor, lo: float = 0.28, hi: float = 5.42
) -> Tensor:
    """CFG while lo < sigma <= hi, variance-exploding, else p. arXiv:2404.07724."""
    inside = lo < sigma_t / (1 - sigma_t**2).sqrt() <= hi
    return guidance.cfg(eps_phi, eps_p, s if inside else 1.0)


def late_negative(
    eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: float, sigma_t: Tensor, hi: float = 5.0
) -> Tensor:
    """Eq. 4 once sigma <= hi, else CFG. arXiv:2406.02965 delays the negative."""
    late = sigma_t / (1 - sigma_t**2).sqrt() <= hi
    return guidance.negative_prompt_two_scale(eps_phi, eps_p, eps_n, s, s if late else 0.0)


def autoguidance(eps_p: Tensor, eps_n: Tensor, s: float) -> Tensor:
    """n + s (p - n), n the same prompt by a worse network. arXiv:2406.02507; also arXiv:2603.10780,
    where n is p without its content."""
    return guidance.negative_prompt_two_term(eps_p, eps_n, s)


def weak_branch(eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: float, k: float = 2.8) -> Tensor:
    """p + (s - 1) dp + k (p - n), n the same network made worse: PAG, SEG, SLG, TPG."""
    return eps_p + (s - 1) * (eps_p - eps_phi) + k * (eps_p - eps_n)


def perp_neg_of_nodes(eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: float) -> Tensor:
    """Perp-Neg as nodes have it: one reduction over the whole batch, and 0 / 0 at p = phi."""
    dp, dn = eps_p - eps_phi, eps_n - eps_phi
    return eps_phi + s * (dp - (dn - (dn * dp).sum() / dp.norm() ** 2 * dp))


def apg_of_nodes(eps_phi: Tensor, eps_p: Tensor, s: float, eta: float = 1.0) -> Tensor:
    """An APG node, whose s is counted from p: at eta = 1 it is CFG at s + 1."""
    dp = eps_p - eps_phi
    d_par = rules.along(dp, eps_p)
    return eps_p + s * (dp - d_par + eta * d_par)


def rescale(eps_phi: Tensor, eps_p: Tensor, s: float, share: float = 0.7) -> Tensor:
    """CFG whose standard deviation is brought `share` of the way to p's. arXiv:2305.08891."""
    eps = guidance.cfg(eps_phi, eps_p, s)
    wide = eps.flatten(1).std(1).clamp(min=1e-12)
    factor = share * eps_p.flatten(1).std(1) / wide + 1 - share
    return column(factor, eps) * eps


def sld(
    eps_phi: Tensor, eps_p: Tensor, eps_n: Tensor, s: float, grow: float = 10.0, edge: float = 0.01
) -> Tensor:
    """Safe latent diffusion: n pushes where p is not well away from it. arXiv:2211.05105."""
    near = (eps_p - eps_n) < edge
    weight = torch.where(near, (grow * (eps_p - eps_n)).abs().clamp(max=1), 0.0)
    return eps_phi + s * (eps_p - eps_phi - weight * (eps_n - eps_phi))


# ------------------------------------------------------------------------------- the table

GUIDERS: dict[str, tuple[type, dict]] = {
    "ClassifierFreeGuidance": (Guider, {}),
    "AdaptiveProjectedGuidance": (Guider, {}),
    "AdaptiveProjectedMixGuidance": (Guider, {}),
    "ClassifierFreeZeroStarGuidance": (Guider, {}),
    "TangentialClassifierFreeGuidance": (Guider, {}),
    "MagnitudeAwareGuidance": (Guider, {}),
    "FrequencyDecoupledGuidance": (Guider, {}),
    "AutoGuidance": (Guider, {"auto_guidance_layers": [1], "dropout": 0.1}),
    "SkipLayerGuidance": (Branch, {"skip_layer_guidance_layers": [1]}),
    "PerturbedAttentionGuidance": (Branch, {"perturbed_guidance_layers": [1]}),
    "SmoothedEnergyGuidance": (Branch, {"seg_guidance_layers": [1]}),
}
FORMULAS: dict[str, Callable] = {
    "interval of s": interval,
    "late negative": late_negative,
    "autoguidance": autoguidance,
    "weak branch": weak_branch,
    "Perp-Neg, w = 1.5": partial(rules.perp_neg, w=1.5),
    "CCFG, plain": partial(rules.ccfg, plain=True),
    "rescale": rescale,
    "SLD": sld,
    "Perp-Neg of nodes": perp_neg_of_nodes,
    "APG of nodes": apg_of_nodes,
}


def field() -> Iterator[tuple[str, str, Callable | None, str]]:
    """(source, name, rule, why not): the rule is None for what is skipped."""
    for name, rule in rules.RULES.items():
        yield "ours", name, rule, ""
    for name, rule in FORMULAS.items():
        doc = getattr(rule, "func", rule).__doc__
        source = re.search(r"arXiv:[\d.]+\d|$", doc)[0]
        yield source or "others' code", name, rule, ""
    for name, (adapter, options) in GUIDERS.items():
        short = name.removesuffix("Guidance")
        try:
            yield "diffusers", short, adapter(name, *options.items()), ""
        except (ImportError, AttributeError) as e:
            why = "needs kornia" if "kornia" in str(e) else f"is not there ({type(e).__name__})"
            yield "diffusers", short, None, why


def field_table(check_rule: Callable, seed: int = 0) -> str:
    """The Markdown table, and what was skipped. In words, so that it is the same anywhere."""
    heads = "source|rule|noises|s = 1|n = phi|linear|jump in s|same in x0|growth in n|energy|"
    heads += "harmless if unrelated|faults"
    lines = [f"| {heads.replace('|', ' | ')} |", "|---" * 12 + "|"]
    skipped = []
    for source, name, rule, why in field():
        if rule is None:
            skipped.append(f"{name} {why}")
            continue
        check = check_rule(rule, seed=seed, show=False)
        bad = [row for row in check.rows if row.ok is False]
        faults = (
            "; ".join(f"{row.identity}: {brief(row.identity, row.found)}" for row in bad) or "none"
        )
        found = {row.identity: brief(row.identity, row.found) for row in check.rows}
        names = ("s = 1", "n = phi", "linear", "jump in s", "same in x0", "growth in n", "energy")
        cells = [found.get(x, "not looked at") for x in (*names, "harmless if unrelated")]
        lines.append(f"| {source} | {name} | {check['evaluations'][3:]} | {' | '.join(cells)} | "
                     f"{faults} |")  # fmt: skip
    tail = f"\n\nSkipped: {', '.join(skipped)}." if skipped else ""
    return "\n".join(lines) + tail


def brief(identity: str, found: str) -> str:
    """A cell: without numbers that another processor rounds another way."""
    if found.startswith("|dn|^"):
        found = f"|dn|^{float(found[5:]):.1g}"
    elif identity in ("linear", "s = 1", "n = phi"):
        found = re.sub(r" \((residual|off by) .*", "", found)
    else:
        found = re.split(r" \(|: |, ", found)[0]
    return found.replace("|", "\\|")

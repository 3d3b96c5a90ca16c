"""How strong a method is at each step, and the CFG that is as strong.

    strength at a step = |eps - eps_phi|, the norm over all elements of a sample, its mean over the
                         pictures of a grid; strength = the sum over the steps

    cfg-equal:of=M       CFG with the one s whose strength is M's
    cfg-scheduled:of=M   CFG with the scale for each step that makes it as strong as M there

A gain over CFG that is gone at equal strength was only stronger guidance (so also arXiv:2602.22570,
of which we read the abstract; `dnp.guidance.effective_scale` is our reading of its scale).

`python -m dnp.evaluation --strength` measures the methods of a grid, fits both, and writes
`strength.json`, which another run takes with --strengths.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dnp import generation
from dnp.errors import NonFiniteError, SettingsError, is_finite
from dnp.evaluation import contestants
from dnp.evaluation.grid import Run
from dnp.evaluation.tables import markdown
from dnp.guidance import cfg
from dnp.per_sample import dot
from dnp.sampling import ddim_step
from dnp.sd.files.data_only import read_regular

CFG = contestants.Contestant("cfg", "cfg")
WITHIN = 0.02  # how near two strengths are said to be equal
# They do not guide towards p by a rule, or move z_t beside it.
APART = ("cnp", "negative-alone", "unconditional", "dns", "ae", "ae+auto-dnp")


def by_step(work: Run, method: contestants.Contestant, s: float | None = None) -> list[float]:
    """The strength of a method at each step, over the prompts and seeds of a grid.

    mean |eps - eps_phi|, both at the z_t of the method's own chain
    One evaluation more for each step than sampling. SettingsError for a method of `APART`.
    """
    every, prompts = [], [p.text for p in work.grid.prompts]
    for prompt in tqdm(prompts, desc=method.label, unit="prompt"):
        for seed in work.grid.seeds:
            chain = along(work, method, s, prompt, seed, ("phi",))
            every.append([norm(eps - eps_phi) for _, eps, eps_phi in chain])
    return np.mean(every, 0).tolist()


@torch.no_grad()
def along(
    work: Run, method: contestants.Contestant, s: float | None, prompt: str, seed: int,
    conditions: Sequence[str],
) -> list[tuple]:  # fmt: skip
    """(t, eps, the noise of each of `conditions`) at each step of the method's chain of a picture.

    SettingsError for a method of `APART`, NonFiniteError where the chain overflows.
    """
    if method.name in APART:
        raise SettingsError(f"{method.name} has no strength towards a prompt; leave it out.")
    settings = work.settings(method, s)
    (words,) = work.negatives(method, settings, [(prompt, seed)])
    given = contestants.given(settings) | {"seed": seed}
    given["subjects"] = contestants.subjects_of(method, prompt)
    call, guided = generation.prepared(
        work.model, prompt, method.method, words.text, None, None, given
    )
    steps = []
    _, chain = generation.begun(call, guided, [0], [words.text])
    for t, z_t, _, eps in chain:
        if eps is not None:
            level = torch.tensor(t, device=z_t.device)
            wanted = [guided.conditions[c] for c in conditions]
            steps.append((t, eps, *guided.noises(z_t, level, wanted)))
    return steps


def fit_schedule(work: Run, target: Sequence[float]) -> dict:
    """CFG whose scale at each step gives it the strength `target` there, step by step.

    s_t = target_t / mean |eps_p - eps_phi|
    All chains go on together, so that the mean at a step is that of this very CFG.
    """
    levels, scales, found = cfg_together(work, lambda i, mean: target[i] / mean)
    of_rule = {"levels": levels, "scales": scales}
    return {"options": {"rule": "cfg_schedule", "rule_options": of_rule}, "by_step": found}


def fit_constant(work: Run, target: Sequence[float], s: float = 3.0, tries: int = 8) -> dict:
    """CFG with the one s that has the sum of `target` as its strength, to less than 1 %.

    s = s * (sum of target / its strength), again and again, since a stronger chain goes elsewhere.
    SettingsError if no s is found; `s` is the first guess.
    """
    power, wanted, last = 1.0, sum(target), None
    for _ in range(tries):
        s = float(f"{s:.4g}")
        _, _, found = cfg_together(work, lambda i, mean, s=s: s)
        total = sum(found)
        if abs(total / wanted - 1) < WITHIN / 2:
            return {"options": {"s": s}, "by_step": found}
        if last is not None and last[0] != s:  # how the strength grows with s, by the last two
            power = math.log(total / last[1]) / math.log(s / last[0])
            power = min(max(power, 0.5), 8.0)
        last = s, total
        s *= (wanted / total) ** (1 / power)
    raise SettingsError(
        f"no constant scale of CFG was found with the strength {wanted:.4g}; the last was s = "
        f"{last[0]:g} with {last[1]:.4g}."
    )


@torch.no_grad()
def cfg_together(
    work: Run, choose: Callable[[int, float], float]
) -> tuple[list[int], list[float], list[float]]:
    """CFG over all prompts and seeds of a grid, step by step, by DDIM: the levels t, the scale of
    each step, choose(step, mean |eps_p - eps_phi|), and the strength of each step."""
    model, chains = work.model, []
    given = contestants.given(work.settings(CFG, 1.0))
    for prompt in work.grid.prompts:
        for seed in work.grid.seeds:
            settings = {**given, "seed": seed}
            call, guided = generation.prepared(
                model, prompt.text, "cfg", None, None, None, settings
            )
            z_T, _ = generation.begun(call, guided, [0], [None])
            chains.append((guided, z_T))
    scales, found = [], []
    for i, (t, t_next) in enumerate(tqdm(call.pairs, desc="CFG, all prompts", unit="step")):
        level, noises = torch.tensor(t, device=model.device), []
        for guided, z_t in chains:
            conditions = [guided.conditions["phi"], guided.conditions["p"]]
            noises.append(guided.noises(z_t, level, conditions))
        mean = float(np.mean([norm(eps_p - eps_phi) for eps_phi, eps_p in noises]))
        scales.append(float(f"{choose(i, mean):.6g}"))
        found.append(scales[-1] * mean)
        abar = [call.model.schedule.level(x) for x in (t, t_next)]  # of this number of steps
        chains = [
            (guided, ddim_step(z_t, cfg(*eps, scales[-1]), *abar)[0])
            for (guided, z_t), eps in zip(chains, noises)
        ]
    if not np.isfinite(found).all():
        raise NonFiniteError("a CFG of that strength overflows; leave the method out.")
    return [t for t, _ in call.pairs], scales, found


def norm(x: torch.Tensor) -> float:
    """|x| of the one sample of a batch."""
    return float(dot(x, x).sqrt())


# -------------------------------------------------------------------------------------- the command


def measure(work: Run) -> dict:
    """What `strength.json` holds: each method's strength, and the CFG of equal strength."""
    strengths: dict = {
        "weights": work.model.config.fingerprint,
        "steps": work.grid.steps,
        "size": work.grid.size,
        "prompts": [p.text for p in work.grid.prompts],
        "seeds": list(work.grid.seeds),
        "methods": {},
    }
    for method in work.grid.methods:
        settings = work.settings(method, work.grid.scales[0])
        own = (settings["steps"], settings.get("sampler", "ddim"), settings.get("eta", 0))
        if own != (work.grid.steps, "ddim", 0) or "corrector" in settings:
            raise SettingsError(
                f"{method.label} has a chain of its own (steps, sampler, eta or corrector), which "
                "CFG of equal strength cannot follow; leave it out."
            )
        target = by_step(work, method, work.grid.scales[0])
        scheduled = fit_schedule(work, target)
        guess = sum(target) / sum(x / s for x, s in zip(scheduled["by_step"], _scales(scheduled)))
        strengths["methods"][method.label] = {
            "s": settings["s"],
            "by_step": target,
            "cfg-equal": fit_constant(work, target, guess),
            "cfg-scheduled": scheduled,
        }
    return strengths


def table(strengths: dict) -> str:
    """The strengths as Markdown."""
    heads = ["method", "strength", "CFG of that strength: s", "its strength"]
    body = []
    for label, row in strengths["methods"].items():
        kinds = row, row["cfg-equal"], row["cfg-scheduled"]
        total, equal, scheduled = (sum(x["by_step"]) for x in kinds)
        name = label if row["s"] is None else f"{label}, s = {row['s']:g}"
        scales = " ".join(f"{x:.3g}" for x in _scales(row["cfg-scheduled"]))
        cells = [name, f"{total:.4g}", f"{row['cfg-equal']['options']['s']:g}"]
        cells += [f"{equal:.4g} ({equal / total - 1:+.1%})", scales]
        body.append([*cells, f"{scheduled:.4g} ({scheduled / total - 1:+.1%})"])
    lines = markdown([*heads, "scheduled: s by step", "its strength"], body)
    prompts, seeds, steps = (strengths[k] for k in ("prompts", "seeds", "steps"))
    count = f"{len(prompts)} prompts x {len(seeds)} seeds, from {seeds[0]}"
    lines += [f"Strength: sum over {steps} steps of |eps - eps_phi|, mean of {count}."]
    return "\n".join(lines) + "\n"


def _scales(fitted: dict) -> list[float]:
    return fitted["options"]["rule_options"]["scales"]


def read(path: Path) -> dict:
    """A `strength.json`; SettingsError if it is none."""
    try:
        strengths = json.loads(read_regular(path))
        whole = all(map(_is_whole, strengths["methods"].values()))
        whole = whole and {"weights", "steps", "size", "prompts", "seeds"} <= strengths.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise SettingsError(f"{path}: no strengths; --strength writes strength.json.")
    return strengths


def _is_whole(row: dict) -> bool:
    """Whether these are options that `measure` writes, and no others: a rule's file, which would
    run, is none of them."""
    equal, scheduled = (row[kind]["options"] for kind in ("cfg-equal", "cfg-scheduled"))
    of_rule = scheduled["rule_options"]
    numbers = [equal["s"], *of_rule["levels"], *of_rule["scales"]]
    return (
        equal.keys() == {"s"}
        and scheduled.keys() == {"rule", "rule_options"}
        and scheduled["rule"] == "cfg_schedule"
        and of_rule.keys() == {"levels", "scales"}
        and all(map(is_finite, numbers))
        and (row["s"] is None or is_finite(row["s"]))
    )

"""Pictures of the law that a linear rule names (`dnp/particles.py`): K particles, or a corrector.

    particles K    K particles for each picture, reweighted at each step; one is drawn by its weight
    corrector k    k Langevin steps at each new level, for each picture with a step size of its own

The step size is delta = r^2 D / mean |S|^2 with r = 0.2 (`particles.langevin`). All that a picture
draws comes from its own generator, so it does not depend on others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dnp.errors import SettingsError
from dnp.methods.lazy_torch import torch
from dnp.methods.method import Method

LINEAR = {  # rules, as `guidance.coefficients` knows them
    "cfg": "cfg", "dns": "dns", "negative_prompt": "np", "negative_prompt_two_scale": "np",
    "negative_prompt_two_term": "np2",
}  # fmt: skip
NOISES = ("eps_phi", "eps_p", "eps_n")


def asked(call) -> bool:
    return bool(call.particles or call.corrector)


def require(call, guided: Method) -> None:
    """SettingsError, one sentence with the fix, where a call for particles or a corrector names no
    law that they sample."""
    from dnp.rules import RULES

    if not asked(call):
        return
    what = "particles" if call.particles else "corrector steps"
    own_chain = type(guided).move is not Method.move or guided.negative is not None
    linear = guided.rule.name in LINEAR and guided.rule.function is RULES[guided.rule.name]
    if own_chain or not linear:
        why = f"method {guided.name}" if own_chain else f"rule {guided.rule.name}"
        raise SettingsError(
            f"{what} need a rule that is a fixed sum of the noises of prompts, and {why} is not "
            "one; choose cfg, dns, np, np2, dnp or auto-dnp."
        )
    if guided.interval is not None or guided.negative_interval is not None:
        raise SettingsError(f"{what} need one law at all levels; leave the interval out.")
    if call.sampler != "ddim" or (call.particles and call.eta != 1):
        raise SettingsError(f"{what} need the noise of the chain; choose sampler ddim and `eta=1`.")
    if call.batch is not None:
        raise SettingsError(f"{what} run picture by picture; leave batch out.")


def begun(call, guided: Method, row: int, word: object) -> tuple[torch.Tensor, Iterator[tuple]]:
    """z_T of the first particle of a picture, and rows of one sample each as `generation.walk` has
    them: (t, z_next, None, None), at the end (-1, z_0, z_0, None), which is drawn by the weights.
    `guided.sizes` are the effective sizes."""
    K = call.particles or 1
    (generator,) = call.generators([row])
    with torch.no_grad():
        z_T = call.noise([generator] * K, guided.positive)
        guided.begin(call, [word] * K, z_T, [call.row(row)] * K)
    return z_T[:1], _walk(call, guided, z_T, generator)


def _walk(call, guided: Method, z_T: torch.Tensor, generator) -> Iterator[tuple]:
    from dnp import particles
    from dnp.errors import NonFiniteError
    from dnp.guidance import coefficients

    kind, two = LINEAR[guided.rule.name], guided.rule.name == "negative_prompt_two_scale"
    h = guided.s if guided.negative_scale is None else guided.negative_scale
    weights = dict(zip(NOISES, coefficients(kind, guided.s, h if two else None)))
    weights = {name: w for name, w in weights.items() if name in guided.rule.needs}

    def noises(z_t: torch.Tensor, t: torch.Tensor) -> Sequence[torch.Tensor]:
        return list(guided.noises_of(z_t, t.to(z_t.device), list(weights)).values())

    guided.sizes = []
    with torch.no_grad():
        chain = particles.sample(
            noises, list(weights.values()), z_T, call.model.schedule, call.steps, generator,
            call.spacing, call.eta, bool(call.particles), call.corrector or 0,
        )  # fmt: skip
        for (t, _), (_, z_t, log_w) in zip(call.pairs, chain):
            if not (torch.isfinite(z_t).all() and torch.isfinite(log_w).all()):
                raise NonFiniteError(
                    f"a particle is not finite at t = {t}: the law may be improper at this scale; "
                    "try a smaller `s=S`."
                )
            guided.sizes.append(particles.effective_size(log_w))
            yield t, z_t[:1], None, None
    drawn = torch.multinomial(torch.softmax(log_w, 0), 1, generator=generator).to(z_t.device)
    guided.evaluations *= len(z_T)
    yield -1, z_t[drawn], z_t[drawn], None

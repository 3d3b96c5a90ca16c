"""Whether a rule is harmless if its negative has nothing to do with the prompt, on an exact model.

Four modes at the corners of a square: the prompt is the two on the right, the negative the one at
the top left, so that "p and not n" is p. CFG at s = 3 ends on the data.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dnp import guidance
from dnp.sampling import ddim_step
from dnp.testing.inputs import F64, generator, toys
from dnp.testing.subject import Subject
from dnp.toy import Mixture

SAMPLES, STEPS, SCALE = 200, 40, 3.0


def shares(f: Subject) -> tuple[float, float]:
    """The shares of a rule's samples, and of CFG's, that end within 4 sd of a mode of the prompt.

    200 samples, 40 steps, s = h = 3; noise is added at each step if the rule needs it.
    """
    square = toys()["square"]
    own = f.on(square)
    own.ranks = f.ranks
    eta = getattr(getattr(own.rule, "function", None), "chain_eta", None) or 0.0
    return on_data(square, walk(own, eta)), cfg_share()


@functools.cache
def cfg_share() -> float:
    square = toys()["square"]
    return on_data(square, walk(Subject(guidance.cfg, {}, square), 0.0))


def walk(f: Subject, eta: float) -> Tensor:
    """z_0 (B, 2) of a chain on the toy from the law of its first level."""
    model, schedule, g = f.toy, f.toy.schedule, generator(0)
    pairs = schedule.pairs(STEPS, "trailing")
    z_t = model.sample(SAMPLES, pairs[0][0], generator=g)
    axes = (1,) * (f.ranks[0] - 1)
    for i, (t, t_next) in enumerate(pairs):
        z, *three = (x.reshape(-1, *axes, 2) for x in (z_t, *f.predictions(z_t, t)))
        guided = f(tuple(three), z, SCALE, SCALE, t, t_next, fresh=i == 0, model=model)
        noise = torch.randn(z_t.shape, generator=g, dtype=F64)
        levels = schedule.level(t), schedule.level(t_next)
        z_next, _ = ddim_step(z_t, guided.reshape(z_t.shape), *levels, eta, noise)
        f.observe(z, z_next.reshape(z.shape), t, t_next, three)
        z_t = z_next
    return z_t


def on_data(model: Mixture, z_0: Tensor) -> float:
    keep = model.prompts[0]
    d = z_0[:, None] - model.means[keep]
    far = torch.einsum("bki,kij,bkj->bk", d, torch.linalg.inv(model.covariances[keep]), d).sqrt()
    return (far.min(1).values < 4).double().mean().item()

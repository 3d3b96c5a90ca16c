"""The information of a prompt, in nats, by the length of its arrow.

    KL(p(z | p) || p(z)) = 1/2 int E |eps_p - eps_phi|^2 d log sigma^2     over noised samples of p

sigma is the variance-exploding one. It is theorem T7 (`dnp/theorems.py`) of exact noises; a network
says what it has learnt. A prompt that one picture in a hundred fits tells log 100 = 4.6 nats. The
samples of p are the model's own: s = 1, the noise of DDPM. The error is that of the mean over them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import dnp
from dnp.app.terminal import Parser, run
from dnp.errors import SettingsError
from dnp.evaluation.__main__ import ROOT
from dnp.methods.conditions import together
from dnp.rules import dot
from dnp.theorems import kl_of_arrow

PROMPTS = ("a cat", "a car", "a red car", "a cat and a dog", "a cat and a red car",
           "a cat, a red car and a blue chair")  # fmt: skip


def information(model, prompt: str, samples: Tensor, levels: int, seed: int = 0) -> list[float]:
    """The nats by each of the `samples` z_0 (N, C, H, W) of a prompt; their mean is the KL.

    Levels are spread evenly over the schedule; the noise of a sample is the same at each of them.
    """
    conditions = [model.encode([text] * len(samples)) for text in ("", prompt)]
    top, g = len(model.schedule.abar) - 1, torch.Generator().manual_seed(seed)
    ts = torch.linspace(0, top, levels).round().long().tolist()
    noise = torch.randn(samples.shape, generator=g)
    squares = []
    for t in ts:
        z_t = model.schedule.add_noise(samples, noise, t)
        with torch.inference_mode():
            eps_phi, eps_p = together(model.eps, z_t, torch.tensor(t), conditions)
        arrow = eps_p - eps_phi
        squares.append(dot(arrow, arrow).double().cpu())  # (N,)
    sigma = torch.tensor([model.schedule.sigma_ve(t) for t in ts], dtype=torch.float64)
    return [kl_of_arrow(of_one, sigma) for of_one in torch.stack(squares, 1)]


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(
        prog="python -m dnp.evaluation.information",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("prompts", nargs="*", default=PROMPTS, metavar="PROMPT")
    p.add_argument("--samples", type=int, default=16, metavar="N", help="of a prompt; default 16")
    p.add_argument("--steps", type=int, default=50, metavar="N", help="of a sample; default 50")
    p.add_argument("--levels", type=int, default=40, metavar="N", help="default 40")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    mini = ROOT / "weights" / "mini"
    p.add_argument("--weights", type=Path, default=mini, metavar="PATH", help="default: miniature")
    args = p.parse_args(argv)
    for name, low, high in (("samples", 2, 10_000), ("steps", 2, 1000), ("levels", 2, 1000)):
        if not low <= getattr(args, name) <= high:
            raise SettingsError(f"{name} = {getattr(args, name)}: choose {low} to {high}.")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    model = dnp.load(args.weights, "cpu")
    chain = dict(method="cfg", s=1.0, eta=1.0, steps=args.steps, seed=args.seed)
    print(f"{args.samples} samples a prompt, seeds from {args.seed}, {args.steps} steps of DDPM; "
          f"{args.levels} levels\n\n| prompt | nats | error |\n|---|---|---|")  # fmt: skip
    for prompt in args.prompts:
        made = dnp.generate(model, prompt, images=args.samples, **chain)
        print(line(prompt, information(model, prompt, made.latents[1], args.levels)), flush=True)


def line(prompt: str, nats: Sequence[float]) -> str:
    """A row of the table: the mean, and its standard error."""
    error = statistics.stdev(nats) / len(nats) ** 0.5
    return f"| {prompt} | {statistics.mean(nats):.2f} | {error:.2f} |"


if __name__ == "__main__":
    run(main, "interrupted.")

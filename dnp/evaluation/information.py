"""The information of a prompt, in nats, by the length of its arrow.

    KL(p(z | p) || p(z)) = 1/2 int E |eps_p - eps_phi|^2 d log sigma^2     over noised samples of p

sigma is the variance-exploding one. It is theorem T7 (`dnp/theorems.py`) of exact noises, by which
a prompt that one picture in a hundred fits tells log 100 = 4.6 nats. A network's two noises differ
by their errors too, so its number is too high, most at low noise: the part at sigma > 1 stands
beside it. The samples of p are the model's own (s = 1, DDPM). Errors are those of the means over
them.
"""

from __future__ import annotations

import argparse
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


def information(model, prompt: str, samples: Tensor, levels: int, seed: int = 0) -> Tensor:
    """The nats by each of the `samples` z_0 (N, C, H, W) of a prompt: (2, N), all of them, whose
    mean is the KL, and those at sigma > 1.

    Levels are spread evenly over log sigma; the noise of a sample is the same at each of them.
    """
    conditions = [model.encode([text] * len(samples)) for text in ("", prompt)]
    every = model.schedule.sigma_ve(torch.arange(len(model.schedule.abar))).log()
    even = torch.linspace(every[0], every[-1], levels, dtype=every.dtype)
    ts = sorted({(every - x).abs().argmin().item() for x in even})
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed))
    squares = []
    for t in ts:
        z_t = model.schedule.add_noise(samples, noise, t)
        with torch.inference_mode():
            eps_phi, eps_p = together(model.eps, z_t, torch.tensor(t), conditions)
        arrow = eps_p - eps_phi
        squares.append(dot(arrow, arrow).double().cpu())  # (N,)
    sigma, of_each = every[ts].exp().cpu(), torch.stack(squares, 1)  # (L,), (N, L)
    high = sigma > 1
    parts = ((sigma, of_each), (sigma[high], of_each[:, high]))
    return torch.tensor([[kl_of_arrow(one, x) for one in y] for x, y in parts])


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
          f"{args.levels} levels\n\n| prompt | nats | at sigma > 1 |\n|---|---|---|")  # fmt: skip
    for prompt in args.prompts:
        made = dnp.generate(model, prompt, images=args.samples, **chain)
        print(line(prompt, information(model, prompt, made.latents[1], args.levels)), flush=True)


def line(prompt: str, nats: Tensor) -> str:
    """A row of the table: the means of nats (2, N), and their standard errors."""
    cells = [f"{x.mean():.1f} +- {x.std() / len(x) ** 0.5:.1f}" for x in nats]
    return f"| {prompt} | {' | '.join(cells)} |"


if __name__ == "__main__":
    run(main, "interrupted.")

"""The law of CFG on pictures: the heaviest of K particles, against other ways to spend as much.

    at random    one of K independent pictures with the noise of DDPM: the mean over them
    CLIP's       the one of the K that CLIP likes best, by the prompt
    heaviest     of K particles of Eq. (8) (`dnp/particles.py`), from the same noise z_T
    longer       one picture in K times the steps

Each costs 2 K evaluations a step. *Right* is the share in which the judge finds each thing in the
colour of the prompt; *full prompt* is CLIP's cosine, which favours what CLIP itself has chosen.
Intervals are of 95 %, bootstrap over prompts; the last two columns are less "at random", paired.
The effective size is (sum w)^2 / sum w^2 of the K weights; 1 says that one particle has it all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import dnp
from dnp import particles
from dnp.app.terminal import Parser, run
from dnp.errors import SettingsError
from dnp.evaluation import benchmarks, metrics
from dnp.evaluation.__main__ import ROOT
from dnp.guidance import coefficients
from dnp.methods.conditions import together
from dnp.sampling import noise_like
from dnp.sd.recogniser import load_recogniser, of_weights

WAYS = ("at random", "CLIP's", "heaviest", "longer")


def weighted(
    model, prompt: str, s: float, steps: int, z_T: Tensor, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(z_t, log_w) of the particles of CFG's law at s along a chain from z_T (K, C, H, W)."""
    phi, p = (model.encode([text]).expand(len(z_T), -1, -1) for text in ("", prompt))

    def noises(z: Tensor, t: Tensor) -> Sequence[Tensor]:
        return together(model.eps, z, t, (phi, p))

    generator = torch.Generator().manual_seed(seed)
    weights, spacing = coefficients("cfg", s)[:2], model.config.spacing
    with torch.inference_mode():
        chain = particles.sample(noises, weights, z_T, model.schedule, steps, generator, spacing)
        for _, z_t, log_w in chain:
            yield z_t, log_w


def first_noise(model, seeds: Sequence[int]) -> Tensor:
    """z_T of each seed, as `dnp.generate` draws it."""
    empty = torch.empty(len(seeds), *model.latent_shape(None))
    return noise_like(empty, [torch.Generator().manual_seed(seed) for seed in seeds])


def pictures(
    model, clip: metrics.CLIPScorer, prompt: str, K: int, s: float, steps: int, seed: int
) -> tuple[dict[str, list[Image.Image]], list[float]]:
    """The pictures of each way, and the effective size of the particles at each step."""
    chain = dict(method="cfg", s=s, eta=1.0, seed=seed)
    many = dnp.generate(model, prompt, steps=steps, images=K, **chain).images
    liked = (clip.images(many) @ clip.texts([prompt]).T)[:, 0].argmax()
    rows = list(weighted(model, prompt, s, steps, first_noise(model, range(seed, seed + K)), seed))
    z_0, log_w = rows[-1]
    best = log_w.argmax()
    made = {
        "at random": many,
        "CLIP's": [many[liked]],
        "heaviest": model.decode(z_0[best : best + 1]),
        "longer": dnp.generate(model, prompt, steps=K * steps, **chain).images,
    }
    return made, [particles.effective_size(w) for _, w in rows]


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(
        prog="python -m dnp.evaluation.heaviest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--particles", type=int, default=4, metavar="K", help="default 4")
    p.add_argument("--benchmark", default="trio", metavar="NAME", help="or a file; default trio")
    p.add_argument("--per-category", type=int, default=12, metavar="N", help="default 12 prompts")
    p.add_argument("--s", type=float, default=3.0, metavar="X", help="guidance scale; default 3")
    p.add_argument("--steps", type=int, default=20, metavar="N", help="default 20")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="the first of K; default 0")
    weights_help = "a folder with its own clip/ and judge; default: the miniature"
    mini = ROOT / "weights" / "mini"
    p.add_argument("--weights", type=Path, default=mini, metavar="FOLDER", help=weights_help)
    args = p.parse_args(argv)
    for name, low, high in (("particles", 2, 64), ("per_category", 1, 1000), ("steps", 2, 250)):
        if not low <= getattr(args, name) <= high:
            raise SettingsError(f"{name} = {getattr(args, name)}: choose {low} to {high}.")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    prompts = benchmarks.choose(benchmarks.load(args.benchmark), args.per_category)
    prompts = [p.text for p in prompts]
    model = dnp.load(args.weights, "cpu")
    three = any(len(benchmarks.subjects(p)) > 2 for p in prompts)
    clip = metrics.CLIPScorer(args.weights / "clip", metrics.ONE_TEMPLATE)
    judge = of_weights(args.weights, 3 if three else 2)
    if judge is None:
        raise SettingsError(f"{args.weights}: no judge; choose the miniature's folder.")
    judge = load_recogniser(judge)
    right = {way: [] for way in WAYS}
    full = {way: [] for way in WAYS}
    sizes = []
    for prompt in tqdm(prompts, unit="prompt", disable=None):
        made, size = pictures(model, clip, prompt, args.particles, args.s, args.steps, args.seed)
        sizes.append(size)
        for way, images in made.items():
            seen = metrics.presence(judge.find(images), prompt)
            right[way].append([100.0 * x["colours"] for x in seen])
            full[way].append((clip.images(images) @ clip.texts([prompt]).T)[:, 0].tolist())
    evaluations = 2 * args.particles * args.steps
    print(f"{len(prompts)} prompts of {args.benchmark}, seed {args.seed}, K = {args.particles}, "
          f"CFG at s = {args.s:g}, eta = 1, {args.steps} steps, {evaluations} evaluations each\n"
    )  # fmt: skip
    print("\n".join(table(right, full)))
    every = torch.tensor(sizes)
    drawn = (every < args.particles / 2).double().mean()
    print(f"\neffective size of {args.particles}: {every.mean():.2f} over all steps, "
          f"{every[:, -1].mean():.2f} at the last; under half, so drawn again, in {drawn:.0%} of "
          "the steps")  # fmt: skip


def table(right: dict[str, list], full: dict[str, list]) -> list[str]:
    """Markdown lines: the means of each way, and the differences from the first, by prompt."""
    lines = ["| one of K | right, % | full prompt | right, minus random | full, minus random |",
             "|---" * 5 + "|"]  # fmt: skip
    for way in right:
        cells = [way]
        for values, form in ((right, "{:.1f} [{:.1f}, {:.1f}]"), (full, "{:.3f} [{:.3f}, {:.3f}]")):
            cells.append(form.format(*metrics.bootstrap(values[way])))
        for values, form in ((right, "{:+.1f} [{:+.1f}, {:+.1f}]"),
                             (full, "{:+.3f} [{:+.3f}, {:+.3f}]")):  # fmt: skip
            pairs = zip(values[way], values[WAYS[0]])
            less = [[sum(a) / len(a) - sum(b) / len(b)] for a, b in pairs]
            cells.append("" if way == WAYS[0] else form.format(*metrics.bootstrap(less)))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    run(main, "interrupted; nothing was printed.")

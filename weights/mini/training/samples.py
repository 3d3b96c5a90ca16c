"""What `evaluate.py` asks for: prompts to choose by and to report, and their pictures."""

from __future__ import annotations

from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import world
from dnp.evaluation import benchmarks


@cache
def _loaded(weights: Path):
    """The model, once in each process, with the speed measures of the commands."""
    import dnp
    from dnp.sd import speed

    model = dnp.load(weights)
    speed.apply(model)
    return model


def _work(job: tuple, weights: Path) -> list[Image.Image]:
    import dnp

    torch.set_num_threads(1)
    prompt, method, s, seed, images, steps = job
    model = _loaded(weights)
    made = dnp.generate(model, prompt, method, s=s, seed=seed, images=images, steps=steps)
    return made.images


class Draw:
    """Pictures of prompts at consecutive seeds from `first` on, made by several processes."""

    def __init__(self, weights: Path, first: int, processes: int):
        self.weights, self.first, self.processes = weights, first, processes

    def __call__(self, prompts: list[str], what: str, s: float, n: int, steps: int,
                 method: str = "cfg") -> list[list[Image.Image]]:  # fmt: skip
        jobs = [(p, method, s, self.first, n, steps) for p in prompts]
        return self.each(jobs, what)

    def each(self, jobs: list[tuple], what: str) -> list[list[Image.Image]]:
        """The pictures of each (prompt, method, scale, first seed, count, steps)."""
        with get_context("spawn").Pool(self.processes) as pool:
            done = pool.imap(partial(_work, weights=self.weights), jobs, chunksize=1)
            return list(tqdm(done, total=len(jobs), desc=what, unit="prompt"))


def singles(share: float = 1.0) -> tuple[list[str], int]:
    """The prompts of single things, and pictures of each: 24 things x 32 seeds in all. An object
    goes round the colours, four seeds to each of eight."""
    prompts, n = [], max(1, round(4 * share))
    for i, thing in enumerate(world.THINGS):
        for k in range(8):
            colour = world.COLOUR_NAMES[(5 * i + k) % 11]
            prompts.append(f"a {thing}" if thing in world.ANIMALS else f"a {colour} {thing}")
    return prompts, n


def held_out_prompt(prompt: str) -> bool:
    """Whether it asks for things together, or a colour of a thing, never seen in training."""
    asked = benchmarks.subjects(prompt)
    colours = any(a in world.HELD_OUT_COLOURS for a in asked)
    return colours or world.held_out({word for _, word in asked})


def ae_prompts(choosing: bool) -> list[benchmarks.Prompt]:
    """Every fifth A&E prompt to choose by (56); to report, all (276)."""
    return benchmarks.attend_excite()[:: 5 if choosing else 1]


def some(prompts: list, share: float) -> list:
    """An even share of a list, one at least."""
    n = max(1, round(share * len(prompts)))
    return [prompts[i * len(prompts) // n] for i in range(n)]


def held_out_prompts(n: int = 48) -> list[str]:
    """Prompts of two things, each with a held-out pair or colour: those of A&E first, then pairs of
    objects and a held-out colour that A&E does not ask for."""
    found = [p.text for p in benchmarks.attend_excite() if held_out_prompt(p.text)]
    for i in range(13 * len(found)):
        colour, thing = sorted(world.HELD_OUT_COLOURS)[i % 13]
        text = f"a {world.ANIMALS[i % 12]} and a {colour} {thing}"
        pair = {world.ANIMALS[i % 12], thing}
        if text not in found and not world.held_out(pair):
            found.append(text)
        if len(found) >= n:
            break
    return found[:n]

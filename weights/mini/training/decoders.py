"""Two decoders of the same latents: the card's numbers of the decoder, with 95 % intervals.

    git worktree add runs/before fc4aa3d
    python weights/mini/training/decoders.py runs/before/weights/mini weights/mini

Both folders must have one encoder and one U-Net. `--share 0.1` is a quick look at a tenth. Scenes
are held out from training; prompts and seeds are those that report, so that nothing was chosen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import world
from common import HERE
from data import pixels
from dnp.evaluation import benchmarks
from dnp.evaluation.metrics import bootstrap, presence
from dnp.generation import generate
from dnp.sd.captioner import load_captioner
from dnp.sd.load import load
from dnp.sd.recogniser import load_recogniser
from evaluate import all_right, held_out, pairs_of
from samples import some


def paired(a: list[list[bool]], b: list[list[bool]]) -> dict:
    """The shares of both in per cent, and b - a with its interval, bootstrap over the groups."""
    rows = [[100.0 * (y - x) for x, y in zip(*group)] for group in zip(a, b)]
    first, second = (100 * np.mean([v for group in groups for v in group]) for groups in (a, b))
    difference = [round(float(v), 2) for v in bootstrap(rows)]
    return {"first": round(first, 2), "second": round(second, 2), "difference": difference}


def plain(n: int) -> dict[int, np.ndarray]:
    """n scenes on a plain background of each of one, two and three things."""
    found, i = {1: [], 2: [], 3: []}, 0
    while min(map(len, found.values())) < n:
        scene, _ = world.scene_at(991, i, "held-out")
        i, some_more = i + 1, found.get(len(scene.things))
        if scene.setting == "plain" and some_more is not None and len(some_more) < n:
            some_more.append(world.render(scene))
    return {k: np.stack(images) for k, images in found.items()}


@torch.inference_mode()
def sharpness(models: list, images: np.ndarray) -> list[dict]:
    """Of each decoder: decibels, and the L1 of the gradients against the true scene."""
    x = pixels(images, "cpu")
    z, out = models[0].vae.encode(x)[0], []
    for model in models:
        y = torch.cat([model.vae.decode(part).clamp(-1, 1) for part in z.split(20)])
        dB = (10 * torch.log10(4 / ((y - x) ** 2).mean((1, 2, 3)))).mean().item()
        edges = sum((torch.diff(y, dim=d) - torch.diff(x, dim=d)).abs().mean() for d in (2, 3))
        out.append({"dB": round(dB, 2), "edge error": round(edges.item(), 4)})
    return out


def true_scenes(models: list, judges: dict, captioner, n: int) -> dict:
    """Verdicts and exact captions of true scenes after each autoencoder."""
    images, scenes = held_out(n)
    z = torch.cat([models[0].encode_images(images[i : i + 100]) for i in range(0, n, 100)])
    shown, report = [m.decode(z) for m in models], {}
    for count in (1, 2, 3):
        which = [i for i, scene in enumerate(scenes) if len(scene.things) == count]
        theirs = [scenes[i] for i in which]
        sides = [[made[i] for i in which] for made in shown]
        for name, judge in judges.items():
            report[f"{name}, {count} things"] = paired(
                *(all_right(judge, s, theirs) for s in sides)
            )
        if count < 3:  # of three things the captioner saw no scene
            said = [[set(benchmarks.subjects(text)) for text in captioner(s)] for s in sides]
            right = [[[a == pairs_of(b)] for a, b in zip(one, theirs)] for one in said]
            report[f"captioner, {count} things"] = paired(*right)
    return report


def latents(model, prompts: list[str], **settings) -> Tensor:
    bar = tqdm(prompts, unit="prompt")
    return torch.cat([generate(model, p, **settings).latents[1] for p in bar])


def verdicts(models: list, judge, prompts: list[str], seeds: int, s: float) -> dict:
    """How often one chain's pictures are all right after each decoder: CFG, 20 steps."""
    z = latents(models[0], prompts, method="cfg", s=s, images=seeds, steps=20)
    sides = []
    for model in models:
        made: list[Image.Image] = model.decode(z)
        groups = [made[i : i + seeds] for i in range(0, len(made), seeds)]
        rows = [presence(judge.find(group), p) for group, p in zip(groups, prompts)]
        sides.append([[row["colours"] for row in group] for group in rows])
    return paired(*sides)


def n_star(models: list, captioner, prompts: list[str]) -> dict:
    """How many captions of DNS images change: s = 1, 50 steps, seed i for prompt i."""
    z = [latents(models[0], [p], method="dns", s=1.0, seed=i) for i, p in enumerate(prompts)]
    first, second = (captioner(m.decode(torch.cat(z))) for m in models)
    return {"prompts": len(prompts), "change": sum(a != b for a, b in zip(first, second))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs=2, type=Path, help="the first decoder's, the second's")
    parser.add_argument("--share", type=float, default=1.0, help="share of scenes and prompts")
    args = parser.parse_args()
    if not 0 < args.share <= 1:
        parser.error(f"--share {args.share:g} is not possible; choose a share up to 1.")
    models = [load(folder) for folder in args.folders]
    names = ("recogniser", "judge")
    judges = {name: load_recogniser(HERE / f"{name}.safetensors") for name in names}
    captioner = load_captioner(HERE.parent / "captioner")
    ae, trio = ([p.text for p in benchmarks.load(name)] for name in ("ae-reporting", "trio"))
    ae_part, trio_part = some(ae, args.share), some(trio, args.share)
    dns_part = some(ae[::2] + trio[::6], args.share)
    scenes = plain(max(1, round(300 * args.share)))
    report = {f"plain, {k} things": sharpness(models, images) for k, images in scenes.items()}
    report |= true_scenes(models, judges, captioner, max(100, round(4000 * args.share)))
    report["A&E, s = 3"] = verdicts(models, judges["recogniser"], ae_part, 2, 3.0)
    report["trio, s = 8"] = verdicts(models, judges["judge"], trio_part, 3, 8.0)
    report["n*"] = n_star(models, captioner, dns_part)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

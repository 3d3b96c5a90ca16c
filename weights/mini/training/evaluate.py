"""The numbers of the miniature's card, on held-out scenes and on prompts.

    python weights/mini/training/evaluate.py --weights weights/mini

prints them and writes `evaluation.json`; the recogniser judges every sampled picture.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import world
from common import HERE
from data import pixels
from dnp.evaluation import benchmarks
from dnp.evaluation.metrics import ONE_TEMPLATE, CLIPScorer, presence
from dnp.evaluation.recogniser import load_recogniser
from perception import changed

SCALES, DNS_SCALES = (1.0, 2.0, 3.0, 5.0, 7.5), (0.5, 1.0, 2.0, 3.0)
SEED = 5000  # of scenes that no part was trained on


def held_out(n: int) -> tuple[list[Image.Image], list[world.Scene]]:
    images, _, scenes = world.dataset(n, SEED, split="held-out")
    return [Image.fromarray(i) for i in images], scenes


# ---------------------------------------------------------------------------- what looks at scenes


@torch.inference_mode()
def psnr(vae, images: list[Image.Image]) -> float:
    """Decibels of the reconstruction of whole scenes, the mean over scenes."""
    x = pixels(np.stack([np.asarray(i) for i in images]), "cpu")
    y = torch.cat([vae.decode(vae.encode(part)[0]).clamp(-1, 1) for part in x.split(100)])
    return (10 * torch.log10(4 / ((y - x) ** 2).mean((1, 2, 3)))).mean().item()


def two_way_choice(clip: CLIPScorer, images: list, scenes: list) -> dict[str, float]:
    """How often the right caption beats one with a wrong word, or with the colours swapped."""
    right, of = defaultdict(int), defaultdict(int)
    for i, (image, scene) in enumerate(zip(images, scenes)):
        rng = np.random.default_rng([SEED, i])
        state = rng.bit_generator.state
        caption = world.caption(scene, rng)
        for kind in ("thing", "colour", "swap", "setting"):
            other = changed(scene, kind, np.random.default_rng([SEED, i, 1]), "held-out")
            if other is None:
                continue
            words = np.random.default_rng()
            words.bit_generator.state = state
            wrong = world.caption(other, words)
            if wrong == caption:
                continue
            a, b = (clip.images([image]) @ clip.texts([caption, wrong]).T)[0].tolist()
            right[kind] += a > b
            of[kind] += 1
    return {kind: right[kind] / of[kind] for kind in of}


def captions(captioner, images: list, scenes: list) -> float:
    """How often the captioner names exactly the (colour, thing) pairs of a scene of two things."""
    said = [set(benchmarks.subjects(text)) for text in captioner(images)]
    two = [i for i, scene in enumerate(scenes) if len(scene.things) == 2]
    return float(np.mean([said[i] == _pairs(scenes[i]) for i in two]))


def new_captions(captioner, n: int) -> float:
    """How often it names a colour-thing pair that it never saw, over n scenes that hold one."""
    scenes, i = [], 0
    while len(scenes) < n:
        scene, _ = world.scene_at(SEED + 1, i, "held-out")
        i += 1
        if _pairs(scene) & world.HELD_OUT_COLOURS:
            scenes.append(scene)
    said = captioner([Image.fromarray(world.render(scene)) for scene in scenes])
    named = [
        pair in benchmarks.subjects(text)
        for text, scene in zip(said, scenes)
        for pair in _pairs(scene) & world.HELD_OUT_COLOURS
    ]
    return float(np.mean(named))


def _pairs(scene: world.Scene) -> set[tuple[str | None, str]]:
    return {(t.colour, t.word) for t in scene.things}


# -------------------------------------------------------------------------------- what is sampled


@cache
def _loaded(weights: Path):
    """The model, once in each process."""
    import dnp

    return dnp.load(weights)


def _work(job: tuple, weights: Path) -> Image.Image:
    import dnp

    torch.set_num_threads(1)
    prompt, method, s, seed, steps = job
    return dnp.generate(_loaded(weights), prompt, method, s=s, seed=seed, steps=steps).images[0]


def sample(jobs: list[tuple], weights: Path, what: str, processes: int) -> list[Image.Image]:
    """A picture for each (prompt, method, scale, seed, steps)."""
    with get_context("spawn").Pool(processes) as pool:
        done = pool.imap(partial(_work, weights=weights), jobs, chunksize=4)
        return list(tqdm(done, total=len(jobs), desc=what, unit="picture"))


def singles() -> list[str]:
    """One prompt for each thing and seed; objects go round the colours."""
    prompts = []
    for i, thing in enumerate(world.THINGS):
        for seed in range(8):
            colour = world.COLOUR_NAMES[(5 * i + seed) % 11]
            prompts.append(f"a {thing}" if thing in world.ANIMALS else f"a {colour} {thing}")
    return prompts


def held_out_prompt(prompt: str) -> bool:
    """Whether it asks for a pair of things, or a colour of a thing, never seen in training."""
    asked = benchmarks.subjects(prompt)
    colours = any(a in world.HELD_OUT_COLOURS for a in asked)
    return colours or world.held_out({word for _, word in asked})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, default=HERE.parent)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="for evaluation.json")
    parser.add_argument(
        "--only", choices=["scenes", "single", "pairs", "dns", "time"], action="append"
    )
    parser.add_argument("--per-category", type=int, help="A&E prompts of each category; all")
    parser.add_argument("--scenes", type=int, default=1000, help="held-out scenes to look at")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    parts = args.only or ["scenes", "single", "pairs", "dns", "time"]
    import dnp
    from dnp.prompting import load_captioner

    model = dnp.load(args.weights)
    judge = load_recogniser(args.weights / "training" / "recogniser.safetensors")
    captioner = load_captioner(args.weights / "captioner")
    draw = partial(sample, weights=args.weights, processes=args.processes)
    report: dict = {}
    if "scenes" in parts:
        images, scenes = held_out(args.scenes)
        report["VAE, dB"] = psnr(model.vae, images[:500])
        clip = CLIPScorer(args.weights / "clip", ONE_TEMPLATE)
        report["CLIP, two-way choice"] = two_way_choice(clip, images, scenes)
        report["captioner"] = {
            "two things": captions(captioner, images, scenes),
            "held-out colours": new_captions(captioner, args.scenes // 3),
        }
        sets = [
            {t.word for t in s.things} == {f.word for f in found}
            for s, found in zip(scenes, judge.find(images))
        ]
        report["recogniser, set of things"] = float(np.mean(sets))
    if "single" in parts:
        prompts = singles()
        pictures = draw([(p, "cfg", 2.0, i % 8, 50) for i, p in enumerate(prompts)], what="single")
        rows = [presence(judge, [im], p)[0] for p, im in zip(prompts, pictures)]
        by_thing = {
            t: np.mean([r["colours"] for r in rows[8 * i : 8 * i + 8]])
            for i, t in enumerate(world.THINGS)
        }
        report["single things"] = {
            "thing": float(np.mean([r["things"] for r in rows])),
            "thing and colour": float(np.mean([r["colours"] for r in rows])),
            "weakest": dict(sorted(by_thing.items(), key=lambda kv: kv[1])[:5]),
        }
    if "pairs" in parts:
        prompts = benchmarks.choose(benchmarks.attend_excite(), args.per_category)
        jobs = [(p.text, "cfg", s, 0, 20) for s in SCALES for p in prompts]
        pictures = iter(draw(jobs, what="A&E"))
        report["A&E, both things and colours"] = {}
        for s in SCALES:
            rows = defaultdict(list)
            for p in prompts:
                ok = presence(judge, [next(pictures)], p.text)[0]["colours"]
                rows[p.category].append(ok)
                rows["all"].append(ok)
                rows["held out" if held_out_prompt(p.text) else "seen"].append(ok)
            report["A&E, both things and colours"][f"s = {s:g}"] = {
                k: round(float(np.mean(v)), 3) for k, v in rows.items()
            }
    if "dns" in parts:
        prompts = [p.text for p in benchmarks.choose(benchmarks.attend_excite(), 22)[:64]]
        report["DNS images"] = {}
        for s in DNS_SCALES:
            pictures = draw(
                [(p, "dns", s, i, 50) for i, p in enumerate(prompts)], what=f"DNS {s:g}"
            )
            report["DNS images"][f"s = {s:g}"] = dns_numbers(judge, captioner, pictures, prompts)
    if "time" in parts:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            dnp.generate(model, "a red car")
            times.append(time.perf_counter() - start)
        report["seconds for 50 steps of CFG, warm"] = float(np.median(times[1:]))
    text = json.dumps(report, indent=2)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "evaluation.json").write_text(text + "\n")


def dns_numbers(judge, captioner, pictures: list, prompts: list[str]) -> dict[str, float]:
    """Of DNS images: the recogniser finds a thing; one of them is asked for by p; the first thing
    that the captioner names is the surest (or any) of the recogniser's."""
    found, said = judge.find(pictures), captioner(pictures)
    first = [benchmarks.subjects(text)[:1] for text in said]
    both = [(f, s[0][1]) for f, s in zip(found, first) if f and s]
    named = [
        {w for _, w in benchmarks.subjects(p)} & {f.word for f in fs}
        for p, fs in zip(prompts, found)
    ]
    return {
        "a thing": float(np.mean([bool(f) for f in found])),
        "one that p names": float(np.mean([bool(n) for n in named])),
        "captioner's first is the surest": float(np.mean([f[0].word == w for f, w in both])),
        "captioner's first is there": float(np.mean([w in {x.word for x in f} for f, w in both])),
    }


if __name__ == "__main__":
    main()

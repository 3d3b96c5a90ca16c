"""The numbers of the miniature's card, on held-out scenes and on prompts, with 95 % intervals.

    python weights/mini/training/evaluate.py --weights weights/mini             # to report
    python weights/mini/training/evaluate.py --weights weights/mini --choosing  # to choose

prints them and writes `evaluation.json`. `--choosing` takes every fifth A&E prompt, the choosing
prompts of `trio`, and seeds from 100 on; without it seeds from 0 on, other prompts of `trio`, and
all of A&E (those that chose nothing also by themselves). `--share 0.1` is a quick look at a tenth.
The recogniser judges one and two things, the judge (`judge.safetensors`) three.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import world
from common import HERE
from data import pixels
from dnp.evaluation import benchmarks
from dnp.evaluation.metrics import ONE_TEMPLATE, CLIPScorer, bootstrap, presence
from dnp.sd.recogniser import load_recogniser
from perception import changed
from samples import Draw, ae_prompts, held_out_prompt, held_out_prompts, singles, some

PARTS = ("scenes", "empty", "single", "pairs", "held-out", "trio", "dns", "time")
CHOOSING = 100  # the first seed of pictures that choose
SEED = 5000  # of scenes that no part was trained on


def with_interval(groups: list[list[float]]) -> list[float]:
    """[mean, low, high]: 95 %, bootstrap over groups, the pictures of one prompt or scene. Where
    every value is the same the bootstrap has no width, and Wilson's interval stands there."""
    mean, low, high = bootstrap([[float(v) for v in g] for g in groups])
    if low == high and mean in (0.0, 1.0):
        n = len(groups)
        edge = 1.96**2 / (n + 1.96**2)
        low, high = (0.0, edge) if mean == 0 else (1 - edge, 1.0)
    return [round(float(v), 4) for v in (mean, low, high)]


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


def two_way_choice(clip: CLIPScorer, images: list, scenes: list) -> dict[str, list[float]]:
    """How often the right caption beats one with a wrong word, or with the colours swapped."""
    right = defaultdict(list)
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
            right[kind].append([a > b])
    return {kind: with_interval(rows) for kind, rows in right.items()}


def captions(captioner, images: list, scenes: list, n: int) -> list[float]:
    """How often the captioner names exactly the (colour, thing) pairs of a scene of n things."""
    said = [set(benchmarks.subjects(text)) for text in captioner(images)]
    which = [i for i, scene in enumerate(scenes) if len(scene.things) == n]
    return with_interval([[said[i] == pairs_of(scenes[i])] for i in which])


def new_captions(captioner, n: int) -> list[float]:
    """How often it names a colour-thing pair that it never saw, over n scenes that hold one. Of
    three things it saw no scene, so these have one or two."""
    scenes, i = [], 0
    while len(scenes) < n:
        scene, _ = world.scene_at(SEED + 1, i, "held-out")
        i += 1
        if len(scene.things) < 3 and pairs_of(scene) & world.HELD_OUT_COLOURS:
            scenes.append(scene)
    said = captioner([Image.fromarray(world.render(scene)) for scene in scenes])
    return with_interval(
        [
            [pair in benchmarks.subjects(text) for pair in pairs_of(scene) & world.HELD_OUT_COLOURS]
            for text, scene in zip(said, scenes)
        ]
    )


def judged(judge, images: list, scenes: list, n: int) -> list[float]:
    """How often a judge calls a true scene of n things all right: the ceiling of its numbers."""
    which = [i for i, scene in enumerate(scenes) if len(scene.things) == n]
    return with_interval(all_right(judge, [images[i] for i in which], [scenes[i] for i in which]))


def all_right(judge, images: list, scenes: list) -> list[list[bool]]:
    """Whether a judge finds every thing of each scene in its colour, one row for each."""
    rows = []
    for scene, found in zip(scenes, judge.find(images)):
        hue = {f.word: f.colour for f in found}
        rows.append([all(w in hue and c in (None, hue[w]) for c, w in pairs_of(scene))])
    return rows


def pairs_of(scene: world.Scene) -> set[tuple[str | None, str]]:
    return {(t.colour, t.word) for t in scene.things}


# -------------------------------------------------------------------------- numbers of pictures


def rows_of(judge, prompts: list[str], pictures: list[list[Image.Image]]) -> list[list[dict]]:
    """`presence` of each prompt's pictures."""
    return [presence(judge.find(made), p) for p, made in zip(prompts, pictures)]


def column(rows: list[list[dict]], name: str, keep=None) -> list[float]:
    """`with_interval` of one number; of the prompts where `keep` is true, if given."""
    keep = keep or [True] * len(rows)
    return with_interval([[r[name] for r in row] for row, k in zip(rows, keep) if k])


def adherence(prompts: list[benchmarks.Prompt], rows: list[list[dict]]) -> dict:
    """All right in each category, held out, seen and overall."""
    held = [held_out_prompt(p.text) for p in prompts]
    names = dict.fromkeys(p.category for p in prompts)
    kinds = {name: [p.category == name for p in prompts] for name in names}
    kinds |= {"held out": held, "seen": [not h for h in held], "all": [True] * len(prompts)}
    chose = {p.text for p in ae_prompts(choosing=True)}
    rest = [p.text not in chose for p in prompts]
    kinds |= {"prompts that chose nothing": rest} if any(rest) and not all(rest) else {}
    return {k: column(rows, "colours", keep) for k, keep in kinds.items() if any(keep)}


def empty_numbers(judge, pictures: list[Image.Image]) -> dict:
    """The share of empty-prompt pictures whose surest thing is over 0.9, and over 0.5."""
    surest = judge.probabilities(pictures)[0].max(1).values.tolist()
    return {f"surest over {v:g}": with_interval([[p > v] for p in surest]) for v in (0.9, 0.5)}


def dns_numbers(judge, captioner, pictures: list, prompts: list[str]) -> dict:
    """Of DNS images: the recogniser finds a thing; one of them is asked for by p; the first thing
    that the captioner names is the surest (or any) of the recogniser's."""
    found, said = judge.find(pictures), captioner(pictures)
    first = [benchmarks.subjects(text)[:1] for text in said]
    both = [(f, s[0][1]) for f, s in zip(found, first) if f and s]
    named = [
        {w for _, w in benchmarks.subjects(p)} & {f.word for f in fs}
        for p, fs in zip(prompts, found)
    ]
    out = {
        "a thing": with_interval([[bool(f)] for f in found]),
        "one that p names": with_interval([[bool(n)] for n in named]),
    }
    if both:
        out["captioner's first is the surest"] = with_interval([[f[0].word == w] for f, w in both])
        any_of = [[w in {x.word for x in f}] for f, w in both]
        out["captioner's first is there"] = with_interval(any_of)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--weights", type=Path, default=HERE.parent)
    add("--out", type=Path, default=Path("outputs"), help="for evaluation.json")
    add("--only", choices=PARTS, action="append", help="one part; may be given again")
    add("--choosing", action="store_true", help="choosing prompts, and seeds from 100 on")
    add("--share", type=float, default=1.0, help="share of the prompts or pictures, for a look")
    add("--scales", type=float, nargs="+", default=[3.0], help="CFG scales of A&E and trio")
    add("--scenes", type=int, default=1000, help="held-out scenes to look at")
    add("--judge", type=Path, default=HERE / "judge.safetensors", help="for three things")
    add("--processes", type=int, default=2)
    args = parser.parse_args()
    if not 0 < args.share <= 1:
        parser.error(f"--share {args.share:g} is not possible; choose a share up to 1.")
    report = measure(args)
    text = json.dumps(report, indent=2)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "evaluation.json").write_text(text + "\n")


def measure(args: argparse.Namespace) -> dict:
    """Every number that was asked for; pairs and trios by scale."""
    import dnp
    from dnp.sd.captioner import load_captioner

    parts, choosing = args.only or PARTS, args.choosing
    model = dnp.load(args.weights)
    recogniser = load_recogniser(args.weights / "training" / "recogniser.safetensors")
    judge = load_recogniser(args.judge)
    draw = Draw(args.weights, CHOOSING if choosing else 0, args.processes)
    report: dict = {"choosing": choosing, "share": args.share}
    if "scenes" in parts:
        images, scenes = held_out(args.scenes)
        report["VAE, dB"] = psnr(model.vae, images[:500])
        clip = CLIPScorer(args.weights / "clip", ONE_TEMPLATE)
        report["CLIP, two-way choice"] = two_way_choice(clip, images, scenes)
        captioner = load_captioner(args.weights / "captioner")
        report["captioner"] = {
            "two things": captions(captioner, images, scenes, 2),
            "held-out colours": new_captions(captioner, args.scenes // 3),
        }
        report["true scenes called all right"] = {
            f"{name}, {n} things": judged(j, images, scenes, n)
            for name, j in (("recogniser", recogniser), ("judge", judge))
            for n in (1, 2, 3)
        }
    if "empty" in parts:
        n = max(1, round(20 * args.share))
        jobs = [("", "cfg", 1.0, draw.first + 10 * i, 10, 20) for i in range(n)]
        pictures = [im for made in draw.each(jobs, "empty") for im in made]
        report["empty prompt"] = empty_numbers(recogniser, pictures)
    if "single" in parts:
        prompts, n = singles(args.share)
        jobs = [(p, "cfg", 2.0, draw.first + n * (i % 8), n, 50) for i, p in enumerate(prompts)]
        rows = rows_of(recogniser, prompts, draw.each(jobs, "single"))
        by_thing = {
            t: float(np.mean([r["colours"] for row in rows[8 * i : 8 * i + 8] for r in row]))
            for i, t in enumerate(world.THINGS)
        }
        report["single things"] = {
            "thing": column(rows, "things"),
            "thing and colour": column(rows, "colours"),
            "weakest": dict(sorted(by_thing.items(), key=lambda kv: kv[1])[:5]),
        }
    if "pairs" in parts:
        prompts = some(ae_prompts(choosing), args.share)
        texts, report["A&E, both things and colours"] = [p.text for p in prompts], {}
        for s in args.scales:
            rows = rows_of(recogniser, texts, draw(texts, f"A&E {s:g}", s, 2, 20))
            report["A&E, both things and colours"][f"s = {s:g}"] = adherence(prompts, rows)
    if "held-out" in parts:
        texts = some(held_out_prompts(), args.share)
        rows = rows_of(recogniser, texts, draw(texts, "held out", 3.0, 8, 20))
        report["held-out prompts x 8 seeds"] = column(rows, "colours")
    if "trio" in parts:
        name = "trio-choosing" if choosing else "trio"
        prompts = some(benchmarks.load(name), args.share)
        texts, report["trio, all right"] = [p.text for p in prompts], {}
        for s in args.scales:
            rows = rows_of(judge, texts, draw(texts, f"trio {s:g}", s, 2, 20))
            numbers = adherence(prompts, rows) | {"right of three": column(rows, "right")}
            report["trio, all right"][f"s = {s:g}"] = numbers
    if "dns" in parts:
        texts = some([p.text for p in ae_prompts(choosing)], min(1, 64 / 56) * args.share)
        texts = texts[:64] if choosing else some(texts, 64 / 276)
        jobs = [(p, "dns", 1.0, draw.first + i, 1, 50) for i, p in enumerate(texts)]
        pictures = [made[0] for made in draw.each(jobs, "DNS")]
        captioner = load_captioner(args.weights / "captioner")
        report["DNS images, s = 1"] = dns_numbers(recogniser, captioner, pictures, texts)
    if "time" in parts:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            dnp.generate(model, "a red car")
            times.append(time.perf_counter() - start)
        report["seconds for 50 steps of CFG, warm"] = float(np.median(times[1:]))
    return report


if __name__ == "__main__":
    main()

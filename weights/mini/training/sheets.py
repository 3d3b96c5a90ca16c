"""Draws the pictures of the model card from the exported folder and the training log.

    python weights/mini/training/sheets.py --out runs/mini

`things.png`: the 24 things, 2 seeds each. `prompts.png`: 64 random captions of held-out scenes.
`empty.png`: 64 pictures of the empty prompt. `scales.png`: the methods by scale. `dns.png`: DNS
images by scale. `curves.png`: the losses. `front.png`: the README's row, `compare.png`: its sheet.
The last two have a chosen prompt and seed (`--search` prints candidates); the others show what
came.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from common import HERE
from dnp.cli import main as command
from dnp.evaluation import benchmarks
from dnp.evaluation.metrics import lacking
from dnp.evaluation.plots import plot
from dnp.evaluation.recogniser import load_recogniser, of_weights
from dnp.generation import generate
from dnp.methods import METHODS
from dnp.pictures import contact_sheet
from dnp.sd import speed
from dnp.sd.opening import load
from world import ANIMALS, OBJECTS, caption, scene_at

MINI = HERE.parent
DNS_SCALES = (0, 0.5, 1, 2, 3)
SCALES = {"cfg": (1, 1.5, 2, 3, 5), "np": (1.5, 3), "np2": (2,), "dns": (0.5, 1)}


def grid(pictures: list[Image.Image], captions: list[str], columns: int) -> Image.Image:
    """Pictures at twice their size, each over its caption."""
    cell, text = 2 * pictures[0].width, 34
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (cell + 6), rows * (cell + text)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, (picture, words) in enumerate(zip(pictures, captions)):
        x, y = i % columns * (cell + 6), i // columns * (cell + text)
        sheet.paste(picture.resize((cell, cell), Image.Resampling.BICUBIC), (x, y))
        lines = textwrap.shorten(words, 44, placeholder="...")
        draw.text((x, y + cell), textwrap.fill(lines, 22), fill="black", font=font)
    return sheet


def things(model) -> Image.Image:
    """Animals as they are, objects each in one colour that training had, 2 seeds."""
    coloured = [f"{colour} {thing}" for thing, colour in zip(OBJECTS, COLOURS_SEEN)]
    prompts = [f"a {name}" for name in ANIMALS + coloured]
    bar = tqdm(prompts, desc="things")
    pictures = [p for text in bar for p in generate(model, text, s=2.0, images=2).images]
    return grid(pictures, [text for text in prompts for _ in range(2)], 12)


# The README's first command.
COMPARE = [
    "a lion, a frog and a rabbit", "--compare", "--steps", "20", "--seed", "100", "--images", "2",
]  # fmt: skip
# What the README's row shows: one of the choosing prompts, at a choosing seed.
FRONT = ("a lion, a frog and a rabbit", 100)
FRONT_OPTIONS = {"auto-dnp": {"negative_scale": 1.0}}
SHOWN = {
    "cfg": "CFG, Eq. 3", "dns": "DNS, Eq. 19: the opposite", "auto-dnp": "auto-DNP, h = 1",
    "answer": "ANSWER",
}  # fmt: skip


# One colour for each object, in the order of OBJECTS, none held out.
COLOURS_SEEN = "blue red yellow purple brown red pink green blue brown red green".split()


def random_prompts(model, n: int = 64) -> Image.Image:
    captions = [caption(*scene_at(2026, i, "held-out")) for i in range(n)]
    bar = tqdm(captions, desc="prompts")
    pictures = [generate(model, text, s=2.0, seed=i).images[0] for i, text in enumerate(bar)]
    return grid(pictures, captions, 8)


def empty(model, n: int = 64) -> Image.Image:
    pictures = generate(model, "", s=1.0, images=n, steps=20).images
    return grid(pictures, [f"seed {i}" for i in range(n)], 8)


def front(model) -> Image.Image:
    """One prompt in four pictures, from one initial noise: what it is that DNS adds."""
    prompt, seed = FRONT
    options = {m: {"seed": seed, "steps": 20, **FRONT_OPTIONS.get(m, {})} for m in SHOWN}
    by = {m: generate(model, prompt, m, **options[m]) for m in SHOWN}
    judge = load_recogniser(of_weights(MINI, len(benchmarks.subjects(prompt))))
    cells = []
    for method, title in SHOWN.items():
        picture, words = by[method].images[0], ""
        if METHODS[method].positive == "p":
            missing = lacking(judge, [picture], prompt)[0]
            words = f"lacks {', '.join(missing)}" if missing else "lacks nothing"
        if METHODS[method].makes_dns_image:
            words = f"n* = {by[method].negatives[0]}\n{words}"
        cells.append((title, picture, words))
    return strip(cells, f'"{prompt}", seed {seed}')


def strip(cells: list[tuple[str, Image.Image, str]], title: str) -> Image.Image:
    """Pictures side by side, a title over each and words under it: wide and low."""
    side, gap = 3 * cells[0][1].width, 12
    sheet = Image.new("RGB", (len(cells) * (side + gap) - gap, side + 108), "white")
    draw = ImageDraw.Draw(sheet)
    big, small = (ImageFont.load_default(size=size) for size in (18, 15))
    draw.text((0, 0), title, fill="black", font=big)
    for i, (name, picture, words) in enumerate(cells):
        x = i * (side + gap)
        draw.text((x, 34), name, fill="black", font=small)
        sheet.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (x, 56))
        draw.text((x, side + 62), words, fill=(90, 90, 90), font=small)
    return sheet


def search(model, seeds: int = 4) -> None:
    """Prints choosing prompts and seeds whose CFG picture lacks a thing, and which of the others
    lack none: candidates for FRONT, of which a person takes one and says so."""
    judge = load_recogniser(of_weights(MINI, 3))
    for prompt in (p.text for p in benchmarks.load("trio-choosing")):
        for seed in range(100, 100 + seeds):
            missing = lacking(judge, generate(model, prompt, seed=seed, steps=20).images, prompt)[0]
            if len(missing) != 1:
                continue
            others = {}
            for m in ("auto-dnp", "answer"):
                options = FRONT_OPTIONS.get(m, {})
                made = generate(model, prompt, m, seed=seed, steps=20, **options).images
                others[m] = lacking(judge, made, prompt)[0]
            if not all(others.values()):
                print(f"{prompt!r}, {seed}: cfg lacks {missing}, others {others}", flush=True)


def compare() -> Image.Image:
    """The sheet of the README's first command."""
    with tempfile.TemporaryDirectory() as folder:
        command([*COMPARE, "--out", folder])
        return Image.open(next(Path(folder).glob("*.png"))).copy()


def scales(model, prompt: str = "a cat and a red car", n: str = "a dog") -> Image.Image:
    rows, seeds = [], 4
    for method, s in tqdm([(m, s) for m in SCALES for s in SCALES[m]], desc="scales"):
        negative = n if method in ("np", "np2") else None
        result = generate(model, prompt, method, negative, s, images=seeds)
        rows.append((f"{method}, s = {s:g}", result.images))
    columns = [f"seed {i}" for i in range(seeds)]
    return contact_sheet(rows, columns, f'p = "{prompt}"    n = "{n}"')


def dns(model, columns: int = 8) -> Image.Image:
    """DNS images by scale: four prompts of animals, four of an animal and an object."""
    prompts = [p.text for p in benchmarks.choose(benchmarks.attend_excite(), 4)][:columns]
    rows = []
    for s in tqdm(DNS_SCALES, desc="dns"):
        pictures = [generate(model, p, "dns", s=s, seed=i).images[0] for i, p in enumerate(prompts)]
        rows.append((f"s = {s:g}", pictures))
    return contact_sheet(rows, prompts, "DNS images of the prompts above them, by scale")


def curves(out: Path) -> Image.Image:
    """The running mean of each part's loss against the minutes."""
    plots = []
    for log in sorted(out.glob("*.jsonl")):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        rows = rows[:: max(1, len(rows) // 150)]
        line = [(r["minutes"], math.log10(r["loss"]), *2 * [math.log10(r["loss"])]) for r in rows]
        plots.append(plot({log.stem: line}, "minutes", "log10 of the loss"))
    sheet = Image.new("RGB", (2 * plots[0].width, -(-len(plots) // 2) * plots[0].height), "white")
    for i, image in enumerate(plots):
        sheet.paste(image, (i % 2 * image.width, i // 2 * image.height))
    return sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/mini"), help="where the logs are")
    add("--only", nargs="+", choices=list(SHEETS), default=list(SHEETS), help="some of them")
    add("--search", action="store_true", help="print candidates for front.png, and stop")
    args = parser.parse_args()
    model, folder = load(MINI), MINI / "pictures"
    speed.apply(model)
    if args.search:
        search(model)
        return
    folder.mkdir(exist_ok=True)
    for name in args.only:
        SHEETS[name](model, args).save(folder / f"{name}.png", optimize=True)
    print(f"wrote {', '.join(args.only)} in {folder}")


SHEETS = {
    "things": lambda model, args: things(model),
    "prompts": lambda model, args: random_prompts(model),
    "empty": lambda model, args: empty(model),
    "scales": lambda model, args: scales(model),
    "dns": lambda model, args: dns(model),
    "front": lambda model, args: front(model),
    "compare": lambda model, args: compare(),
    "curves": lambda model, args: curves(args.out),
}


if __name__ == "__main__":
    main()

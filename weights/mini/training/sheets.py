"""Draws the pictures of the model card from the exported folder and the training log.

    python weights/mini/training/sheets.py --out runs/mini

`things.png`: the 24 things, 2 seeds each. `prompts.png`: 64 random captions of held-out scenes.
`scales.png`: the methods by scale. `dns.png`: DNS images by scale. `curves.png`: the losses.
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from common import HERE
from dnp.evaluation import benchmarks
from dnp.evaluation.report import plot
from dnp.generation import generate
from dnp.pictures import contact_sheet
from dnp.sd.model import load
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


# One colour for each object, in the order of OBJECTS, none held out.
COLOURS_SEEN = "blue red yellow purple brown red pink green blue brown red green".split()


def random_prompts(model, n: int = 64) -> Image.Image:
    captions = [caption(*scene_at(2026, i, "held-out")) for i in range(n)]
    bar = tqdm(captions, desc="prompts")
    pictures = [generate(model, text, s=2.0, seed=i).images[0] for i, text in enumerate(bar)]
    return grid(pictures, captions, 8)


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
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="where the logs are")
    args = parser.parse_args()
    model, folder = load(MINI), MINI / "pictures"
    folder.mkdir(exist_ok=True)
    curves(args.out).save(folder / "curves.png")
    for draw in (things, random_prompts, scales, dns):
        draw(model).save(folder / f"{draw.__name__.replace('random_', '')}.png")
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()

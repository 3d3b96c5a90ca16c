"""Draws the pictures of the model card from the exported folder and the training log.

    python weights/mini/training/sheets.py --out runs/mini

`things.png`: the 24 things, 4 seeds each. `prompts.png`: 64 random captions of held-out scenes.
`scales.png`: the methods by scale. `curve.png`: the loss of the U-Net.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from common import HERE
from dnp.generation import generate
from dnp.pictures import contact_sheet
from dnp.sd.model import load
from world import ANIMALS, OBJECTS, caption, scene_at

MINI = HERE.parent
SCALES = {"cfg": (1, 2, 3, 5, 7.5), "np": (1, 2, 3), "np2": (2, 3), "dns": (0.5, 1, 2, 3)}


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
    """Animals as they are, objects each in one colour that training had, 4 seeds."""
    coloured = [f"{colour} {thing}" for thing, colour in zip(OBJECTS, COLOURS_SEEN)]
    prompts = [f"a {name}" for name in ANIMALS + coloured]
    bar = tqdm(prompts, desc="things")
    pictures = [p for text in bar for p in generate(model, text, images=4).images]
    return grid(pictures, [text for text in prompts for _ in range(4)], 12)


# One colour for each object, in the order of OBJECTS, none of them held out.
COLOURS_SEEN = "blue red yellow purple brown red pink green blue brown red green".split()


def random_prompts(model, n: int = 64) -> Image.Image:
    captions = [caption(*scene_at(2026, i, "held-out")) for i in range(n)]
    bar = tqdm(captions, desc="prompts")
    pictures = [generate(model, text, seed=i).images[0] for i, text in enumerate(bar)]
    return grid(pictures, captions, 8)


def scales(model, prompt: str = "a cat and a red car", n: str = "a dog") -> Image.Image:
    rows, seeds = [], 6
    for method, s in tqdm([(m, s) for m in SCALES for s in SCALES[m]], desc="scales"):
        negative = n if method in ("np", "np2") else None
        result = generate(model, prompt, method, negative, s, images=seeds)
        rows.append((f"{method}, s = {s:g}", result.images))
    columns = [f"seed {i}" for i in range(seeds)]
    return contact_sheet(rows, columns, f'p = "{prompt}"    n = "{n}"')


def curve(log: Path) -> Image.Image:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    width, height, pad = 720, 300, 44
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    top, steps = 0.2, rows[-1]["step"]

    def place(step: float, loss: float) -> tuple[float, float]:
        x = pad + step / steps * (width - 2 * pad)
        return x, height - pad - min(loss, top) / top * (height - 2 * pad)

    for loss in (0, 0.05, 0.1, 0.15, 0.2):
        draw.line([place(0, loss), place(steps, loss)], fill=(220, 220, 220))
        draw.text((6, place(0, loss)[1] - 7), f"{loss:.2f}", fill="black", font=font)
    for step in range(0, steps + 1, 1000):
        draw.text((place(step, 0)[0] - 12, height - pad + 8), str(step), fill="black", font=font)
    draw.line([place(r["step"], r["loss"]) for r in rows], fill=(37, 99, 235), width=2)
    title = "weighted loss of Eq. 1 (running mean) by step of 32 scenes"
    draw.text((pad, 12), title, fill="black", font=font)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="where the log is")
    args = parser.parse_args()
    model, folder = load(MINI), MINI / "pictures"
    folder.mkdir(exist_ok=True)
    curve(args.out / "unet.jsonl").save(folder / "curve.png")
    things(model).save(folder / "things.png")
    random_prompts(model).save(folder / "prompts.png")
    scales(model).save(folder / "scales.png")
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()

"""Draws all pictures of `weights/mini/pictures`: the README's, the card's and the study's.

    python weights/mini/training/sheets.py --logs runs/mini --run runs/sweep --wins "answer, s = 2"

Of the weights: `things.webp`, 2 pictures of each of the 24 things; `prompts.webp`, 64 captions of
held-out scenes; `scales.webp`, methods by scale; `dns.webp`, DNS images by scale; `front.webp`,
the README's first figure, with the counts of an audit (3 minutes); `compare.webp`, the sheet of
its first command, whose prompt and seed are chosen; `rule.webp`, the rule of its first door.
Of the logs of training: `curves.webp`. Of a run of the experiments that has several scales:
`adherence.webp` and `wins.webp`. Without `--logs` or `--run` those stay as they are.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import shlex
import tempfile
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from common import HERE
from dnp import guidance
from dnp.app.command_line import main as command
from dnp.app.sheet import contact_sheet
from dnp.evaluation import audit, benchmarks, exact, panels
from dnp.evaluation.labels import labels_for
from dnp.evaluation.plots import plot
from dnp.evaluation.sheets import file_name
from dnp.generation import generate
from dnp.sd import speed
from dnp.sd.load import load
from dnp.sd.recogniser import lacking, load_recogniser, of_weights
from world import ANIMALS, OBJECTS, caption, scene_at

MINI = HERE.parent
README = MINI.parents[1] / "README.md"
NAMES = {
    "cfg": "CFG", "np": "np, Eq. 4", "np2": "np2, two-term", "dns": "DNS", "auto-dnp": "auto-DNP",
    "answer": "ANSWER",
}  # fmt: skip
# One of the choosing prompts, at a choosing seed: the README's first command.
COMPARE = shlex.split('"a bear, a horse and a turtle" --compare --steps 20 --seed 103 --images 2')
FRONT, COUNTED, SEEDS = "a crown", ("orange", "blue"), 5  # the README's first figure
SHOWN = {audit.GUIDED: "CFG, Eq. 3", audit.EMPTY: "empty prompt", audit.DNS: "DNS, Eq. 19"}
LAW = {"Eq. 4": "constant weight, Eq. 4", "DNG, exact P": "weight by state, DNG"}
DNS_SCALES = (0, 0.5, 1, 2, 3)
SCALES = {"cfg": (1, 1.5, 2, 3, 5), "np": (1.5, 3), "np2": (2,), "dns": (0.5, 1)}
# One colour for each object, in the order of OBJECTS, none held out.
COLOURS_SEEN = "blue red yellow purple brown red pink green blue brown red green".split()


# ------------------------------------------------------------------------------ one next to another


def grid(pictures: list[Image.Image], captions: list[str], columns: int) -> Image.Image:
    """Pictures at twice their size, each over its caption."""
    starts = range(0, len(pictures), columns)
    rows = [("", pictures[i : i + columns], captions[i : i + columns]) for i in starts]
    return contact_sheet(rows, least=2 * pictures[0].width)


def beside(sheets: list[Image.Image], apart: int = 16) -> Image.Image:
    """Sheets side by side."""
    width = sum(sheet.width + apart for sheet in sheets) - apart
    image = Image.new("RGB", (width, max(sheet.height for sheet in sheets)), "white")
    x = 0
    for sheet in sheets:
        image.paste(sheet, (x, 0))
        x += sheet.width + apart
    return image


# ----------------------------------------------------------------------------------- of the weights


def things(model) -> Image.Image:
    """Animals as they are, objects each in one colour that training had, 2 seeds."""
    coloured = [f"{colour} {thing}" for thing, colour in zip(OBJECTS, COLOURS_SEEN)]
    prompts = [f"a {name}" for name in ANIMALS + coloured]
    bar = tqdm(prompts, desc="things")
    pictures = [p for text in bar for p in generate(model, text, s=2.0, images=2).images]
    return grid(pictures, [text for text in prompts for _ in range(2)], 12)


def random_prompts(model, n: int = 64) -> Image.Image:
    captions = [caption(*scene_at(2026, i, "held-out")) for i in range(n)]
    bar = tqdm(captions, desc="prompts")
    pictures = [generate(model, text, s=2.0, seed=i).images[0] for i, text in enumerate(bar)]
    return grid(pictures, captions, 8)


def scales(model, prompt: str = "a cat and a red car", n: str = "a dog") -> Image.Image:
    rows, seeds = {}, 4
    for method, s in tqdm([(m, s) for m in SCALES for s in SCALES[m]], desc="scales"):
        negative = n if method in ("np", "np2") else None
        made = generate(model, prompt, method, negative, s, images=seeds)
        rows[f"{NAMES[method]}, s = {s:g}"] = made.images
    columns = [f"seed {i}" for i in range(seeds)]
    return contact_sheet(list(rows.items()), columns, f'p = "{prompt}"    n = "{n}"')


def dns(model, columns: int = 8) -> Image.Image:
    """DNS images by scale: four prompts of animals, four of an animal and an object."""
    prompts = [p.text for p in benchmarks.choose(benchmarks.attend_excite(), 4)][:columns]
    rows = [
        (
            f"s = {s:g}",
            [generate(model, p, "dns", s=s, seed=i).images[0] for i, p in enumerate(prompts)],
        )
        for s in tqdm(DNS_SCALES, desc="dns")
    ]
    heads = [f"{p}\nseed {i}" for i, p in enumerate(prompts)]
    title = "DNS images of the prompts above the columns, by scale"
    return contact_sheet(rows, heads, title)


def front(model) -> Image.Image:
    """A prompt by CFG, DNS and the empty prompt, seeds 0, 1, ..., with the counts of its audit;
    and two rules over the exact law."""
    found = audit.audit(model, FRONT, labels=labels_for(model, FRONT, MINI))
    rows, n = [], len(found.sets[audit.DNS])
    for name, title in SHOWN.items():
        counts = {label: sum(label in seen for seen in found.seen[name]) for label in COUNTED}
        print(f"front.webp, {title}: {counts} of {n}")
        scale = "phi" if name == audit.EMPTY else f"s = {found.scales[name]:g}"
        words = "\n".join(f"{label} in {k} of {n}" for label, k in counts.items())
        rows.append((f"{title}\n{scale}\n{words}", found.sets[name][:SEEDS]))
    seeds = [f"seed {i}" for i in range(SEEDS)]
    title = f'p = "{FRONT}"; each column starts from the same noise'
    drawn = contact_sheet(rows, seeds, title, 128)
    exactly = [("", [picture], [words]) for picture, words in law()]
    return beside([drawn, contact_sheet(exactly, title='"right", not "up"')])


def law(samples: int = 2000, side: int = 190) -> list[tuple]:
    """Two rules over four modes with exact noise: "right (A, B), not up (A, D)", s = 3."""
    cells, entries = [], [e for e in exact.ENTRIES if e.label in LAW]
    for result in exact.experiment("square", "up", 3.0, entries, samples):
        if result.label in LAW:
            picture = panels.panel(result, 500, letters=30)
            picture = picture.crop((0, panels.HEAD, *picture.size))
            picture = picture.resize((side, side), Image.Resampling.LANCZOS)
            share = f"{100 * result.right[0]:.0f} % of samples in B"
            cells.append((picture, f"{LAW[result.label]}\n{share}"))
    return cells


def rule(model, prompt: str = "a cat and a red car", n: str = "a dog") -> Image.Image:
    """The rule of the README's first door, read off its page, beside CFG and Eq. 4."""
    source = re.search(r"^def .*?(?=^\S)", README.read_text(encoding="utf-8"), re.M | re.S)[0]
    space: dict = {}
    exec(source, space)
    own, judge = space["gentle"], load_recogniser(of_weights(MINI, 2))
    cells = []
    for title, f in (
        ("CFG, Eq. 3", None), ("np, Eq. 4", guidance.negative_prompt), ("gentle, r = 0.25", own),
    ):  # fmt: skip
        options = dict(rule=f, negative=n) if f else {}
        result = generate(model, prompt, s=3.0, steps=20, seed=2, **options)
        missing = lacking(judge, result.images, prompt)[0]
        words = f"{result.nfe:g} network evaluations\nlacks {', '.join(missing) or 'nothing'}"
        cells.append((title, result.images[0], words))
    names, pictures, words = zip(*cells)
    title = f'"{prompt}", not "{n}", seed 2, s = 3'
    return contact_sheet([("", pictures, words)], names, title, 192)


def compare() -> Image.Image:
    """The sheet of the README's first command."""
    with tempfile.TemporaryDirectory() as folder:
        command([*COMPARE, "--out", folder])
        return Image.open(next(Path(folder).glob("*.png"))).copy()


# ----------------------------------------------------------------------------- of logs and of a run


def curves(logs: Path) -> Image.Image:
    """The running mean of each part's loss against the minutes."""
    plots = []
    for log in sorted(logs.glob("*.jsonl")):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        rows = rows[:: max(1, len(rows) // 150)]
        line = [(r["minutes"], math.log10(r["loss"]), *2 * [math.log10(r["loss"])]) for r in rows]
        plots.append(plot({log.stem: line}, "minutes", "log10 of the loss").image())
    image = Image.new("RGB", (2 * plots[0].width, -(-len(plots) // 2) * plots[0].height), "white")
    for i, one in enumerate(plots):
        image.paste(one, (i % 2 * one.width, i // 2 * one.height))
    return image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.LANCZOS)


def adherence(run: Path) -> Image.Image:
    """The share of right pictures by scale, of the methods that have several."""
    with (run / "tables.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["table"] == "all" and r["s"]]
    lines: dict[str, list[tuple]] = {}
    for r in (r for r in rows if r["column"] == "things and colours, %"):
        numbers = tuple(float(r[c] or "nan") for c in ("s", "mean", "low", "high"))
        lines.setdefault(NAMES.get(r["method"], r["method"]), []).append(numbers)
    several = {name: sorted(line) for name, line in lines.items() if len(line) > 1}
    return plot(several, "guidance scale s", "right, %").image()


def wins(run: Path, name: str) -> Image.Image:
    path = run / file_name("wins", name)
    if not path.is_file():
        raise SystemExit(f"{path}: no such sheet; --wins is a name of the run's table with wins.")
    return Image.open(path).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--logs", type=Path, help="the folder with the logs of training, for curves.webp")
    add("--run", type=Path, help="a run of the experiments, for adherence.webp and wins.webp")
    add("--wins", default="answer, s = 2", help="whose wins, as the run's table calls it")
    add("--only", nargs="+", choices=list(SHEETS), help="some of them; default all")
    args = parser.parse_args()
    needs = {"curves": args.logs, "adherence": args.run, "wins": args.run}
    names = args.only or [name for name in SHEETS if needs.get(name, True)]
    if lost := [name for name in names if not needs.get(name, True)]:
        parser.error(f"{', '.join(lost)}: give --logs or --run FOLDER")
    model, folder = load(MINI), MINI / "pictures"
    speed.apply(model)
    for name in names:
        SHEETS[name](model, args).save(folder / f"{name}.webp", quality=92, method=6)
    left = ", ".join(name for name in SHEETS if name not in names) or "none"
    print(f"drawn in {folder}: {', '.join(names)}; left as they are: {left}")


SHEETS = {
    "front": lambda model, args: front(model),
    "compare": lambda model, args: compare(),
    "rule": lambda model, args: rule(model),
    "scales": lambda model, args: scales(model),
    "dns": lambda model, args: dns(model),
    "things": lambda model, args: things(model),
    "prompts": lambda model, args: random_prompts(model),
    "curves": lambda model, args: curves(args.logs),
    "adherence": lambda model, args: adherence(args.run),
    "wins": lambda model, args: wins(args.run, args.wins),
}


if __name__ == "__main__":
    main()

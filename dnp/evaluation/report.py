"""Tables, plots and contact sheets of a finished run. They depend on its records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dnp.evaluation.metrics import bootstrap, paired
from dnp.evaluation.runner import picture
from dnp.pictures import contact_sheet, png, write

COLUMNS = {  # column: (heading, factor, digits)
    "minimum": ("min. object", 1, 3),
    "full": ("full prompt", 1, 3),
    "clipscore": ("CLIPScore", 1, 3),
    "colours": ("things and colours, %", 100, 1),
    "things": ("things, %", 100, 1),
    "asked": ("asked things per picture", 1, 2),
}
BY_CATEGORY = ("minimum", "full", "colours")
PAPER = {  # arXiv:2411.05473, Table 2, Stable Diffusion: (min. object /) full prompt / IS
    ("ae", "cfg"): "0.242 / 0.335 / 13.17",
    ("ae", "auto-dnp"): "0.258 / 0.346 / 13.35",
    ("hh", "cfg"): "people 0.322 / 9.95, hands 0.309 / 12.04",
    ("hh", "auto-dnp"): "people 0.331 / 10.13, hands 0.321 / 12.39",
}
Rows = dict[tuple[str, float | None], list[dict]]  # (method, scale) -> the records of its prompts


def name(key: tuple[str, float | None], rows: Rows) -> str:
    """The method and the scale that it ran at."""
    return f"{key[0]}, s = {rows[key][0]['s']:g}"


def baseline_of(key: tuple, rows: Rows, baseline: str) -> tuple:
    """The row of the baseline at the same scale, or its first one."""
    own = [k for k in rows if k[0] == baseline]
    return next((k for k in own if k[1] == key[1]), own[0])


def make(records: Sequence[dict], folder: Path, benchmark: str, baseline: str) -> str:
    """Writes `tables.md`, plots and sheets into `folder`; returns the text of the tables."""
    rows: Rows = {}
    for record in records:
        rows.setdefault((record["method"], record["scale"]), []).append(record)
    text = [*_table(rows, benchmark), *_differences(rows, baseline)]
    for column in BY_CATEGORY:
        text += _categories(rows, column)
    text += _plots(rows, folder)
    for key in rows:
        if key[0] != baseline:
            text += _sheets(rows, baseline_of(key, rows, baseline), key, folder)
    whole = "\n".join(text) + "\n"
    write(folder / "tables.md", whole.encode())
    return whole


# ----------------------------------------------------------------------------------------- tables


def _lines(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
        *("| " + " | ".join(cells) + " |" for cells in body),
        "",
    ]


def _cell(interval: Sequence[float], factor: float, digits: int, sign: str = "") -> str:
    mean, low, high = (f"{factor * v:{sign}.{digits}f}" for v in interval)
    return f"{mean} [{low}, {high}]"


def _have(rows: Rows, column: str) -> bool:
    return any(r.get(column) is not None for records in rows.values() for r in records)


def _groups(records: Sequence[dict], column: str) -> list[Sequence[float]]:
    """The values of each prompt that has them."""
    return [np.atleast_1d(r[column]) for r in records if r.get(column) is not None]


def _table(rows: Rows, benchmark: str) -> list[str]:
    columns = [c for c in COLUMNS if _have(rows, c)]
    heads = ["method", *(COLUMNS[c][0] for c in columns)]
    heads += ["IS"] * _have(rows, "classes") + ["diversity"] * _have(rows, "diversity")
    paper = any((benchmark, key[0]) in PAPER for key in rows)
    heads += ["evaluations", *["paper: min. object / full prompt / IS"] * paper]
    body = []
    for key, records in rows.items():
        cells = [name(key, rows)]
        for c in columns:
            groups = _groups(records, c)
            cells.append(_cell(bootstrap(groups), *COLUMNS[c][1:]) if groups else "-")
        if _have(rows, "classes"):
            cells.append(_cell(inception_interval(records), 1, 2))
        if _have(rows, "diversity"):
            groups = _groups(records, "diversity")
            cells.append(_cell(bootstrap(groups), 1, 3) if groups else "-")
        cells.append(f"{cost(records):g}")
        body.append(cells + [PAPER.get((benchmark, key[0]), "-")] * paper)
    first = next(iter(rows.values()))
    notes = [f"{len(first)} prompts x {len(first[0]['nfe'])} seeds; 95 % intervals over prompts."]
    halves = len(_groups(first, "minimum"))
    if 0 < halves < len(first):
        notes.append(f'min. object: the {halves} prompts with " and " or " with ".')
    for key, records in rows.items():
        told = [note for r in records for note in r["notes"]]
        empty, cut = (sum(w in note for note in told) for w in ("no words", "cut off"))
        failed = sum(r["failed"] is not None for r in records)
        for count, what in (
            (empty, "empty captions (phi)"), (cut, "captions cut"), (failed, "prompts overflowed"),
        ):  # fmt: skip
            if count:
                notes.append(f"{name(key, rows)}: {count} {what}.")
    return [*_lines(heads, body), *notes, ""]


def _differences(rows: Rows, baseline: str) -> list[str]:
    columns = [c for c in COLUMNS if _have(rows, c)]
    body = []
    for key, records in rows.items():
        if key[0] == baseline:
            continue
        base = rows[baseline_of(key, rows, baseline)]
        cells = [name(key, rows)]
        for c in columns:
            a, b = _values(records, c), _values(base, c)
            both = bool(a.keys() & b.keys())
            told = paired(a, b, group=lambda k: k[0]) if both else None
            cells.append(_cell(told, *COLUMNS[c][1:], "+") if told else "-")
        body.append(cells)
    if not body:
        return []
    told = f"Differences to {baseline} at the same scale option, paired by prompt and seed:"
    return [told, "", *_lines(["method", *(COLUMNS[c][0] for c in columns)], body)]


def _categories(rows: Rows, column: str) -> list[str]:
    kinds = list(dict.fromkeys(r["category"] for records in rows.values() for r in records))
    if len(kinds) < 2 or not _have(rows, column):
        return []
    heading, factor, digits = COLUMNS[column]
    body = []
    for key, records in rows.items():
        cells = [name(key, rows)]
        for kind in kinds:
            groups = _groups([r for r in records if r["category"] == kind], column)
            cells.append(_cell(bootstrap(groups), factor, digits) if groups else "-")
        body.append(cells)
    return [f"{heading}, by category:", "", *_lines(["method", *kinds], body)]


def inception_interval(records: Sequence[dict], draws: int = 1000) -> tuple[float, float, float]:
    """The inception score of all pictures, and its 95 % interval by bootstrap over prompts.

    exp(mean of sum p log p - sum of mean p log mean p), which is `metrics.inception_score`: so the
    sums of each prompt are enough. The interval is 1.96 standard deviations of the draws each way:
    a draw repeats prompts and so has fewer classes, and its percentiles may miss the score itself.
    """
    p = [np.asarray(r["classes"], np.float64) for r in records if "classes" in r]
    p = [x / x.sum(1, keepdims=True) for x in p]
    counts = np.array([len(x) for x in p], np.float64)
    own = np.array([(x * np.log(np.maximum(x, 1e-300))).sum() for x in p])
    sums = np.stack([x.sum(0) for x in p])

    def score(rows: np.ndarray) -> np.ndarray:
        n = counts[rows].sum(-1)
        mean = sums[rows].sum(-2) / n[..., None]
        return np.exp(own[rows].sum(-1) / n - (mean * np.log(np.maximum(mean, 1e-300))).sum(-1))

    drawn = score(np.random.default_rng(0).integers(0, len(p), (draws, len(p))))
    value, half = float(score(np.arange(len(p)))), 1.96 * float(drawn.std())
    return value, value - half, value + half


def cost(records: Sequence[dict]) -> float:
    """Mean network evaluations for a picture that was made."""
    made = [n for r in records if r["failed"] is None for n in r["nfe"]]
    return sum(made) / len(made) if made else float("nan")


def _values(records: Sequence[dict], column: str) -> dict[tuple, float]:
    return {(r["prompt"], i): v for r in records for i, v in enumerate(r.get(column) or [])}


def times(seconds: Sequence[dict], records: Sequence[dict]) -> str:
    """Seconds for a picture of each method, which no other table depends on."""
    of = {t["unit"]: t["seconds"] for t in seconds}
    rows: Rows = {}
    for r in records:
        rows.setdefault((r["method"], r["scale"]), []).append(r)
    body = []
    for key, own in rows.items():
        known = [of[r["unit"]] for r in own if r["unit"] in of]
        body.append([name(key, rows), f"{np.median(known):.2f}" if known else "-"])
    return "\n".join(_lines(["method", "seconds for a picture, median over prompts"], body))


# ------------------------------------------------------------------------------------------ plots


def _plots(rows: Rows, folder: Path) -> list[str]:
    """Adherence against the scale, and at each method's best scale against evaluations."""
    column = "colours" if _have(rows, "colours") else "full"
    if not _have(rows, column):
        return []
    heading, factor, _ = COLUMNS[column]
    scales: dict[str, list[tuple]] = {}
    costs: dict[str, list[tuple]] = {}
    for (method, scale), records in rows.items():
        interval = [factor * v for v in bootstrap(_groups(records, column))]
        costs.setdefault(method, []).append((cost(records), *interval))
        if scale is not None:
            scales.setdefault(method, []).append((scale, *interval))
    told = []
    curves = {k: sorted(v) for k, v in scales.items() if len(v) > 1}
    if curves:
        write(folder / "scales.png", png(plot(curves, "guidance scale s", heading)))
        told += ["`scales.png`: " + heading + " by scale."]
    if len(costs) > 1:
        best = {k: [max(v, key=lambda point: point[1])] for k, v in costs.items()}
        write(folder / "evaluations.png", png(plot(best, "evaluations per picture", heading)))
        told += ["`evaluations.png`: each method at the scale where it is best on these pictures."]
    return [*told, ""] if told else []


PALETTE = ["#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#e08e0b", "#444444", "#00a6a6", "#a0522d"]


def ticks(low: float, high: float) -> np.ndarray:
    """Round numbers (1, 2 or 5 times a power of ten) from below `low` to above `high`, 4 to 10."""
    rough = ((high - low) or 1) / 6
    power = 10 ** np.floor(np.log10(rough))
    step = power * next(n for n in (1, 2, 5, 10) if n * power >= rough)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return step * np.arange(first, max(last, first + 1) + 1)


def plot(curves: dict[str, list[tuple]], x_label: str, y_label: str) -> Image.Image:
    """Lines of (x, y, low, high) points with their intervals, and a legend."""
    k = 2  # drawn larger and made smaller, so that lines are smooth
    w, h, left, right, top, bottom = (k * n for n in (760, 460, 60, 200, 26, 60))
    image = Image.new("RGB", (w, h), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14 * k)
    points = [p for curve in curves.values() for p in curve]
    xs = ticks(min(p[0] for p in points), max(p[0] for p in points))
    ys = ticks(min(p[2] for p in points), max(p[3] for p in points))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - xs[0]) / (xs[-1] - xs[0]) * (w - left - right),
            h - bottom - (y - ys[0]) / (ys[-1] - ys[0]) * (h - top - bottom),
        )

    for x in xs:
        draw.text((place(x, 0)[0], h - bottom + 6 * k), f"{x:.4g}", "black", font, anchor="ma")
    for y in ys:
        draw.text((left - 6 * k, place(0, y)[1]), f"{y:.4g}", "black", font, anchor="rm")
        draw.line([place(xs[0], y), place(xs[-1], y)], fill="#dddddd", width=k)
    draw.text(((left + w - right) / 2, h - 26 * k), x_label, "black", font, anchor="ma")
    draw.text((left, 2 * k), y_label, "black", font)
    for i, (label, curve) in enumerate(curves.items()):
        colour = PALETTE[i % len(PALETTE)]
        places = [place(x, y) for x, y, _, _ in curve]
        draw.line(places, fill=colour, width=3 * k)
        for (px, py), (x, _, low, high) in zip(places, curve):
            draw.line([(px, place(x, low)[1]), (px, place(x, high)[1])], fill=colour, width=k)
            draw.ellipse([px - 4 * k, py - 4 * k, px + 4 * k, py + 4 * k], fill=colour)
        y = top + 22 * k * i
        draw.rectangle([w - right + 12 * k, y + 3 * k, w - right + 26 * k, y + 13 * k], fill=colour)
        draw.text((w - right + 32 * k, y), label[:26], "black", font)
    return image.resize((w // k, h // k), Image.Resampling.LANCZOS)


# ----------------------------------------------------------------------------------------- sheets


def _sheets(rows: Rows, base: tuple, key: tuple, folder: Path) -> list[str]:
    """The eight greatest gains and losses, prompt by prompt and seed by seed: the rule chooses,
    nobody else. The baseline's picture stands above the method's."""
    column = "full" if _have(rows, "full") else "colours"
    if not _have(rows, column):
        return []
    before, after = _values(rows[base], column), _values(rows[key], column)
    made = [{r["prompt"]: r for r in rows[k]} for k in (base, key)]
    change = {k: after[k] - before[k] for k in before.keys() & after.keys()}
    order = sorted(change, key=lambda k: (change[k], k))
    told = []
    for title, keys in (
        ("wins", [k for k in order[::-1] if change[k] > 0][:8]),
        ("losses", [k for k in order if change[k] < 0][:8]),
    ):
        if not keys:
            continue
        pictures = [[picture(folder, of[p], i) for p, i in keys] for of in made]
        heads = [f"before\n{name(base, rows)[:30]}", f"after\n{name(key, rows)[:30]}"]
        columns = [f"{change[k]:+.3f}, seed {k[1]}" for k in keys]
        what = f"{title} of {name(key, rows)} over {name(base, rows)} by {COLUMNS[column][0]}"
        plain = "".join(c if c.isalnum() or c in "-." else "_" for c in name(key, rows))
        sheet = contact_sheet(list(zip(heads, pictures)), columns, what)
        write(folder / f"{title}-{plain}.png", png(sheet))
        told.append(
            f"`{title}-{plain}.png`: " + "; ".join(f"{p} (seed {i})" for p, i in keys) + "."
        )
    return [*told, ""] if told else []

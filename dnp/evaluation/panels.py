"""The picture of `dnp.evaluation.exact`: modes and samples, one panel a rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from dnp.evaluation import four_modes

K = 3  # drawn larger and made smaller, so that lines are smooth
SIDE, HEAD, GAP, COLUMNS = 300 * K, 48 * K, 16 * K, 3
LOW, HIGH = (-9.0, -14.0), (9.0, 4.0)  # the corners of a panel's window
EDGE = 0.15  # of its units: a dot nearer to the frame would touch it
COLOURS = {0: "#2e8b57", 1: "#e08e0b", 2: "#d1495b"}  # right, wrong, off
SHOWN = {
    ("square", "up", 3.0): (
        "the exact law", "CFG, ignores n", "Eq. 4", "two-term", "two-scale, h = 1",
        "Eq. 4, n early (sigma > 3)", "bounded, r = 0.25", "CCFG, tau = 2", "DNG, exact P",
    ),
    ("oblique", "up", 3.0): ("Eq. 4", "Perp-Neg, w = 1", "DNG, exact P"),
}  # fmt: skip


def panels(results: Sequence[four_modes.Result], dots: int = 500) -> Image.Image:
    """Each rule's samples for "right, not up" at s = 3: the square modes, then the slanted ones."""
    found = {(r.want, r.label): r for r in results}
    blocks = [(want, [found[want, label] for label in labels]) for want, labels in SHOWN.items()]
    rows = [-(-len(block) // COLUMNS) for _, block in blocks]
    band, foot = 40 * K, 40 * K
    wide = COLUMNS * (SIDE + GAP) + GAP
    tall = sum(rows) * (SIDE + HEAD + GAP) + len(blocks) * band + foot
    image = Image.new("RGB", (wide, tall), "white")
    draw, y = ImageDraw.Draw(image), 0
    for (arrangement, _, s), block in blocks:
        title = f'{arrangement.capitalize()} modes: "right" (A, B), not "up" (A, D), s = {s:g}'
        draw.text((GAP, y + 10 * K), title, "black", font(19))
        y += band
        for i, result in enumerate(block):
            x = GAP + i % COLUMNS * (SIDE + GAP)
            image.paste(panel(result, dots), (x, y + i // COLUMNS * (SIDE + HEAD + GAP)))
        y += -(-len(block) // COLUMNS) * (SIDE + HEAD + GAP)
    x = GAP
    for k, text in enumerate(("right: B", "wrong: another mode", "off the data (> 4 sd)")):
        draw.ellipse([x, y + 10 * K, x + 14 * K, y + 24 * K], fill=COLOURS[k])
        draw.text((x + 20 * K, y + 6 * K), text, "black", font(16))
        x += 60 * K + int(font(16).getlength(text))
    draw.text((x, y + 6 * K), "ellipses: the modes, 2 sd", "black", font(16))
    return image.resize((wide // K, tall // K), Image.Resampling.LANCZOS)


def panel(result: four_modes.Result, dots: int, letters: int = 16) -> Image.Image:
    """A panel under its heading: rule, shares, distance; `letters` is the size of its names."""
    image = Image.new("RGB", (SIDE, SIDE + HEAD), "white")
    draw = ImageDraw.Draw(image)
    draw.text((0, 0), result.label, "black", font(16))
    shares = (
        f"right {result.right[0]:.2f}   off {result.off[0]:.2f}   distance {result.distance[0]:.2f}"
    )
    draw.text((0, 22 * K), shares, "#555555", font(14))
    draw.rectangle([0, HEAD, SIDE - 1, HEAD + SIDE - 1], fill="#fafafa", outline="#bbbbbb", width=K)
    model = four_modes.toy(result.want[0])
    kind = four_modes.where(model, result.z_0, [1])
    low, high = torch.tensor(LOW) + EDGE, torch.tensor(HIGH) - EDGE
    seen = ((result.z_0 > low) & (result.z_0 < high)).all(1)
    for (px, py), k, inside in zip(*(x[:dots].tolist() for x in (result.z_0, kind, seen))):
        if inside:
            x, y = place(px, py)
            draw.ellipse([x - 1.6 * K, y - 1.6 * K, x + 1.6 * K, y + 1.6 * K], fill=COLOURS[k])
    outside = 1 - seen.double().mean().item()
    if outside >= 0.005:
        text = f"{100 * outside:.0f} % outside"
        draw.text((8 * K, HEAD + SIDE - 8 * K), text, COLOURS[2], font(letters - 1), anchor="ls")
    for name, mean, cov in zip(four_modes.MODES, model.means, model.covariances):
        values, vectors = torch.linalg.eigh(cov)
        turn = torch.linspace(0, 2 * torch.pi, 61, dtype=torch.float64)
        ring = mean + 2 * (torch.stack([turn.cos(), turn.sin()], 1) * values.sqrt()) @ vectors.mT
        draw.line([place(*p) for p in ring.tolist()], fill="#333333", width=2 * K)
        px, py = mean.tolist()
        aside = (1.7 if name in "AB" else -1.7) * (0.7 + 0.3 * letters / 16)
        draw.text(place(px + aside, py), name, "#333333", font(letters), anchor="mm")
    return image


def place(x: float, y: float) -> tuple[float, float]:
    span = HIGH[0] - LOW[0]
    return (x - LOW[0]) / span * SIDE, HEAD + (HIGH[1] - y) / span * SIDE


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size * K)

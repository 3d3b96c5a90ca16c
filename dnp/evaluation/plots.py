"""Plots drawn with pillow alone: lines with intervals, round ticks, and a legend."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN = 14  # pixels between the frame and the outermost ticks; a point has a radius of 4
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
    font = ImageFont.load_default(size=14 * k)
    right = max(200 * k, 44 * k + int(max(map(font.getlength, curves))))  # the legend
    h, left, top, bottom = (n * k for n in (max(460, 40 + 22 * len(curves)), 60, 26, 60))
    w = 560 * k + right
    image = Image.new("RGB", (w, h), "white")
    draw = ImageDraw.Draw(image)
    points = [p for curve in curves.values() for p in curve]
    xs = ticks(min(p[0] for p in points), max(p[0] for p in points))
    ys = ticks(min(p[2] for p in points), max(p[3] for p in points))
    frame = left, top, w - right, h - bottom

    def place(x: float, y: float) -> tuple[float, float]:
        """Where a point is: ticks stand a margin within the frame, so that no point touches it."""
        inside = [a + m for a, m in zip(frame, (MARGIN * k, MARGIN * k, -MARGIN * k, -MARGIN * k))]
        return (
            inside[0] + (x - xs[0]) / (xs[-1] - xs[0]) * (inside[2] - inside[0]),
            inside[3] - (y - ys[0]) / (ys[-1] - ys[0]) * (inside[3] - inside[1]),
        )

    draw.rectangle(frame, outline="#999999", width=k)

    for x in xs:
        draw.text((place(x, 0)[0], h - bottom + 6 * k), f"{x:.4g}", "black", font, anchor="ma")
    for y in ys:
        draw.text((left - 6 * k, place(0, y)[1]), f"{y:.4g}", "black", font, anchor="rm")
        height = place(0, y)[1]
        draw.line([(left + k, height), (w - right - k, height)], fill="#dddddd", width=k)
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
        draw.text((w - right + 32 * k, y), label, "black", font)
    return image.resize((w // k, h // k), Image.Resampling.LANCZOS)

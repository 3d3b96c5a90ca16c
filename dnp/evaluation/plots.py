"""Plots: lines with intervals, round ticks, and a legend, as a picture or as a PDF of lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN = 14  # pixels between the frame and the outermost ticks
RADIUS = 4  # of a point
PALETTE = [
    "#1b6ca8",
    "#d1495b",
    "#2e8b57",
    "#8e5ea2",
    "#e08e0b",
    "#444444",
    "#00a6a6",
    "#a0522d",
    "#b5b500",
    "#d678b3",
    "#3a2a8c",
    "#8fb8de",
    "#7a0019",
    "#66cc66",
    "#ff6f61",
    "#004d40",
    "#c9a0dc",
    "#9e9e9e",
]
FONT = ImageFont.load_default(size=14)


class Drawing:
    """What was drawn, in pixels from the upper left corner, kept so that it can be told twice."""

    def __init__(self, width: int, height: int):
        self.size, self.said = (width, height), []

    def line(self, points: Sequence[tuple], colour: str, width: float = 1) -> None:
        self.said.append(("line", points, colour, width))

    def box(self, corners: Sequence[float], colour: str) -> None:
        self.said.append(("box", corners, colour))

    def dot(self, x: float, y: float, colour: str) -> None:
        self.said.append(("dot", (x, y), colour))

    def text(self, x: float, y: float, text: str, across: float = 0.0) -> None:
        """`y` is its base line; `across` is the share of its width that stands left of `x`."""
        self.said.append(("text", (x - across * FONT.getlength(text), y), text))

    def image(self) -> Image.Image:
        k = 2  # drawn larger and made smaller, so that lines are smooth
        image = Image.new("RGB", [k * n for n in self.size], "white")
        draw, font = ImageDraw.Draw(image), FONT.font_variant(size=14 * k)
        for what, where, *how in self.said:
            at = (k * np.asarray(where)).ravel().tolist()
            if what == "line":
                draw.line(at, how[0], round(k * how[1]))
            elif what == "box":
                draw.rectangle(at, how[0])
            elif what == "dot":
                (x, y), r = at, k * RADIUS
                draw.ellipse([x - r, y - r, x + r, y + r], how[0])
            else:
                draw.text(at, how[0], "black", font, anchor="ls")
        return image.resize(self.size, Image.Resampling.LANCZOS)

    def pdf(self) -> bytes:
        """A page of the same size in points, with lines and letters (Helvetica) and no pixels."""
        height, body = self.size[1], ["1 j 1 J"]
        for what, where, *how in self.said:
            at = [f"{x:.2f} {height - y:.2f}" for x, y in np.reshape(where, (-1, 2))]
            ink = "" if what == "text" else " ".join(f"{c / 255:.3f}" for c in _rgb(how[0]))
            if what == "line":
                path = " l ".join([f"{at[0]} m {at[1]}", *at[2:]])
                body.append(f"{ink} RG {how[1]} w {path} l S")
            elif what == "box":
                (x, y), (right, low) = np.reshape(where, (-1, 2))
                body.append(
                    f"{ink} rg {x:.2f} {height - low:.2f} {right - x:.2f} {low - y:.2f} re f"
                )
            elif what == "dot":  # a line without a length, with round ends
                body.append(f"{ink} RG {2 * RADIUS} w {at[0]} m {at[0]} l S")
            else:
                text = how[0].replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
                body.append(f"0 g BT /F 14 Tf {at[0]} Td ({text}) Tj ET")
        stream = "\n".join(body).encode("ascii", "replace")
        font = "/Type /Font /Subtype /Type1 /BaseFont /Helvetica"
        box, fonts = " ".join(map(str, (0, 0, *self.size))), "<< /Font << /F 4 0 R >> >>"
        page = f"/Type /Page /Parent 2 0 R /MediaBox [{box}] /Resources {fonts} /Contents 5 0 R"
        objects = [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        ]
        objects += [f"<< {x} >>".encode() for x in (page, font)]
        objects += [b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream)]
        file, starts = b"%PDF-1.4\n", []
        for i, content in enumerate(objects, 1):
            starts.append(len(file))
            file += b"%d 0 obj\n%s\nendobj\n" % (i, content)
        table = b"".join(b"%010d 00000 n \n" % start for start in starts)
        head = b"xref\n0 6\n0000000000 65535 f \n"
        last = b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(file)
        return file + head + table + last


def ticks(low: float, high: float) -> np.ndarray:
    """Round numbers (1, 2 or 5 times a power of ten) from below `low` to above `high`, 4 to 10."""
    rough = ((high - low) or 1) / 6
    power = 10 ** np.floor(np.log10(rough))
    step = power * next(n for n in (1, 2, 5, 10) if n * power >= rough)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return step * np.arange(first, max(last, first + 1) + 1)


def plot(curves: dict[str, list[tuple]], x_label: str, y_label: str) -> Drawing:
    """Lines of (x, y, low, high) points with their intervals, and a legend.

    Points of several curves that would hide one another stand beside each other. A `low` that is
    not a number is an interval that is not there.
    """
    right = max(200, 44 + int(max(map(FONT.getlength, curves))))  # the legend
    h, left, top, bottom = max(460, 40 + 22 * len(curves)), 60, 26, 60
    w = 560 + right
    drawing = Drawing(w, h)
    points = np.array([p for curve in curves.values() for p in curve], np.float64)
    xs = ticks(points[:, 0].min(), points[:, 0].max())
    ys = ticks(np.nanmin(points[:, 1:]), np.nanmax(points[:, 1:]))
    frame = [
        (left, top),
        (w - right, top),
        (w - right, h - bottom),
        (left, h - bottom),
        (left, top),
    ]

    def place(x: float, y: float) -> tuple[float, float]:
        """Where a point is: ticks stand a margin within the frame, so that no point touches it."""
        wide, tall = (b - a - 2 * MARGIN for a, b in ((left, w - right), (top, h - bottom)))
        return (
            left + MARGIN + (x - xs[0]) / (xs[-1] - xs[0]) * wide,
            h - bottom - MARGIN - (y - ys[0]) / (ys[-1] - ys[0]) * tall,
        )

    for x in xs:
        drawing.text(place(x, 0)[0], h - bottom + 20, f"{x:.4g}", across=0.5)
    for y in ys:
        height = place(0, y)[1]
        drawing.text(left - 6, height + 5, f"{y:.4g}", across=1)
        drawing.line([(left, height), (w - right, height)], "#dddddd")
    drawing.line(frame, "#999999")
    drawing.text((left + w - right) / 2, h - 12, x_label, across=0.5)
    drawing.text(left, 16, y_label)
    ends = [[place(x, v) for v in (y, *(y if np.isnan(n) else n for n in (low, high)))]
            for x, y, low, high in points.tolist()]  # fmt: skip
    of = [i for i, curve in enumerate(curves.values()) for _ in curve]
    spans = [(i, mean[0], high[1], low[1]) for i, (mean, low, high) in zip(of, ends)]
    moved = iter(apart(spans, left + RADIUS + 2, w - right - RADIUS - 2))
    ends = iter(ends)
    for i, (label, curve) in enumerate(curves.items()):
        colour = PALETTE[i % len(PALETTE)]
        here = [[(x, y) for _, y in next(ends)] for _, x in zip(curve, moved)]
        if len(here) > 1:
            drawing.line([mean for mean, _, _ in here], colour, 3)
        for mean, low, high in here:
            drawing.line([low, high], colour)
            drawing.dot(*mean, colour)
        y = top + 22 * i
        drawing.box([w - right + 12, y + 3, w - right + 26, y + 13], colour)
        drawing.text(w - right + 32, y + 13, label)
    return drawing


def apart(
    spans: Sequence[tuple[int, float, float, float]], least: float, most: float
) -> list[float]:
    """The x of points (curve, x, upper end, lower end), in pixels, after those of several curves
    that would hide one another have been moved beside each other, evenly about where they were,
    from `least` to `most`."""
    gap = 2 * RADIUS + 2

    def hide(a: int, b: int) -> bool:
        (one, x, top, low), (other, x_b, top_b, low_b) = spans[a], spans[b]
        return one != other and abs(x - x_b) < gap and top - gap < low_b and top_b - gap < low

    groups: list[list[int]] = []
    for i in sorted(range(len(spans)), key=lambda i: spans[i][1]):
        fits = (g for g in groups if any(hide(i, j) for j in g))
        fits = (g for g in fits if spans[i][0] not in [spans[j][0] for j in g])
        if (group := next(fits, None)) is None:
            groups.append(group := [])
        group.append(i)
    out = [x for _, x, _, _ in spans]
    for group in groups:
        half = (len(group) - 1) / 2 * gap
        middle = sum(out[i] for i in group) / len(group)
        middle = max(least + half, min(middle, most - half))
        for k, i in enumerate(sorted(group)):
            out[i] = middle - half + k * gap
    return out


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))

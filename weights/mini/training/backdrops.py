"""The settings of the miniature: backgrounds drawn from simple shapes, to be reduced by two."""

import math

import numpy as np
from PIL import Image, ImageDraw

from artwork import to_rgb

# The OKLab distance of a thing to what is behind it, at least.
PLAIN_CONTRAST, SETTING_CONTRAST = 0.25, 0.12
# The colours above and below the horizon, which a thing has to differ from.
GROUNDS = {
    "grass": ((165, 212, 245), (112, 184, 78)),
    "beach": ((165, 216, 245), (238, 212, 152)),
    "snow": ((186, 208, 232), (240, 246, 252)),
    "night": ((28, 32, 76), (30, 48, 56)),
    "room": ((226, 208, 190), (176, 128, 86)),
    "road": ((176, 214, 242), (112, 114, 122)),
}
FIR = ((0, -1), (0.4, 0.25), (-0.4, 0.25))
WALLS = ((226, 208, 190), (196, 216, 208), (204, 210, 230), (236, 218, 176), (228, 200, 208))


def _gradient(top: np.ndarray, bottom: np.ndarray, n: int) -> Image.Image:
    t = np.linspace(0, 1, n)[:, None]
    column = np.clip(np.add((1 - t) * top, t * bottom), 0, 255)
    return Image.fromarray(column[:, None].astype(np.uint8)).resize((n, n))


def _plain(taken: list[np.ndarray], rng: np.random.Generator, n: int) -> Image.Image:
    light, hue = rng.uniform(0.50, 0.97, 40), rng.uniform(0, 2 * math.pi, 40)
    chroma = rng.uniform(0.01, 0.12, 40)
    tries = np.stack([light, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    away = np.linalg.norm(tries[:, None] - np.reshape(taken, (-1, 3)), axis=-1).min(1, initial=1.0)
    good = np.flatnonzero(away > PLAIN_CONTRAST)
    lab = tries[good[0] if len(good) else away.argmax()]
    step = np.array([rng.uniform(-0.04, 0.04), 0, 0])
    return _gradient(to_rgb(lab - step), to_rgb(lab + step), n)


def backdrop(
    place: str, look: int, boxes: list[tuple], taken: list[np.ndarray], n: int
) -> Image.Image:
    """The setting, n x n pixels, with the shadows of things at `boxes`; `look` seeds its variation.

    A plain one keeps PLAIN_CONTRAST from the colours `taken` (OKLab).
    """
    rng = np.random.default_rng(look)
    u = rng.uniform
    if place == "plain":
        return _plain(taken, rng, n)
    sky, ground = (np.add(c, u(-10, 10, 3)) for c in GROUNDS[place])
    if place == "room":
        sky = np.add(WALLS[rng.integers(len(WALLS))], u(-6, 6, 3))
    image = _gradient(sky - 14, sky + 14, n)
    draw = ImageDraw.Draw(image, "RGBA")
    h = u(0.42, 0.56)

    def disc(x: float, y: float, r: float, fill: tuple, flat: float = 1.0) -> None:
        draw.ellipse([n * (x - r), n * (y - r * flat), n * (x + r), n * (y + r * flat)], fill=fill)

    def land(y: float, fill: np.ndarray, wave: float) -> None:
        x, phase = np.linspace(0, 1, 25), u(0, 6)
        top = y + wave * np.sin(phase + u(4, 7) * x)
        edge = [(n * a, n * b) for a, b in zip(x, top)]
        draw.polygon([*edge, (n, n), (0, n)], fill=tuple(int(v) for v in np.clip(fill, 0, 255)))

    if place == "night":
        for x, y, r in zip(u(0, 1, 16), u(0, h, 16), u(0.006, 0.013, 16)):
            disc(x, y, r, (255, 250, 220))
        x, y, r = u(0.1, 0.9), u(0.1, 0.2), u(0.06, 0.09)
        disc(x, y, r, (250, 240, 190))
        if u() < 0.5:  # a crescent
            disc(x + 0.6 * r, y - 0.3 * r, 0.9 * r, tuple(int(v) for v in sky - 8))
    elif place != "room":
        if place != "snow" and u() < 0.4:
            disc(rng.choice([0.12, 0.88]), u(0.1, 0.16), u(0.06, 0.09), (255, 226, 110))
        if u() < 0.6:
            x, y, r = u(0.15, 0.85), u(0.1, 0.22), u(0.05, 0.08)
            for dx, k in ((-1.2, 0.7), (0, 1), (1.2, 0.7)):
                disc(x + dx * r, y, k * r, (255, 255, 255, 225), 0.8)
    if place == "beach":
        land(h - 0.02, np.add((52, 146, 206), u(-14, 14, 3)), 0)
        land(h + 0.1, np.array((240, 250, 252)), 0.012)
        land(h + 0.125, ground, 0.012)
    elif place == "room":
        land(h + 0.1, np.full(3, 246), 0)
        land(h + 0.135, ground, 0)
        if u() < 0.6:  # a window
            x, w = n * rng.choice([0.08, 0.62]), 0.3 * n
            draw.rectangle([x, 0.08 * n, x + w, 0.38 * n], (250, 250, 250))
            for dx in (0.06, 0.53):
                box = [x + dx * w, 0.1 * n, x + (dx + 0.41) * w, 0.36 * n]
                draw.rectangle(box, (150, 206, 240))
    elif place == "road":
        land(h, np.array((118, 178, 92)), 0.01)
        land(h + 0.1, np.full(3, 200), 0)
        land(h + 0.125, ground, 0)
        for x in np.arange(u(-0.3, 0), 1, 0.34):
            draw.rectangle([n * x, 0.9 * n, n * (x + 0.18), 0.93 * n], (245, 240, 225))
    else:
        land(h - 0.02, ground * 0.9, 0.03)
        if place == "snow":
            for x in u(0, 1, rng.integers(0, 4)):  # firs
                s = u(0.1, 0.16)
                draw.polygon([(n * (x + s * a), n * (h + s * b)) for a, b in FIR], (58, 118, 98))
        land(h + 0.06, ground, 0.02)
        if place == "grass":
            for x, y in zip(u(0, 1, 12), u(h + 0.12, 1, 12)):
                blade = [(n * (x - 0.015), n * (y - 0.04)), (n * x, n * y)]
                draw.line([*blade, (n * (x + 0.015), n * (y - 0.04))], (70, 140, 52), n // 64)
        if place == "snow":
            for x, y in zip(u(0, 1, 14), u(0, h, 14)):
                disc(x, y, 0.011, (255, 255, 255))
    for x0, _, x1, y1 in boxes:
        if y1 > h + 0.05:
            disc((x0 + x1) / 2, y1 - 0.01, 0.46 * (x1 - x0), (0, 0, 0, 46), 0.14)
    return image

"""The artwork of the miniature: sprites of things, each in any of eleven colours.

The pictures under sprites/ are Fluent Emoji (MIT) and Noto Emoji (Apache-2.0), see sprites.json;
benches are drawn here, because neither set has one. Changed here: objects recoloured, cut to their
outline, and later mirrored, turned and reduced.
"""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SPRITES = Path(__file__).parent / "sprites"
COLOURS = {
    "red": (220, 38, 38), "orange": (245, 130, 32), "yellow": (250, 210, 40),
    "green": (46, 160, 67), "blue": (37, 99, 235), "purple": (130, 60, 200),
    "pink": (245, 130, 180), "brown": (125, 75, 40), "gray": (140, 140, 145),
    "black": (38, 38, 42), "white": (245, 245, 245),
}  # fmt: skip


# ---- colour: Ottosson's OKLab (https://bottosson.github.io/posts/oklab/) -------------------------

M1 = np.array([[0.4122214708, 0.5363325363, 0.0514459929],
               [0.2119034982, 0.6806995451, 0.1073969566],
               [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
M2 = np.array([[0.2104542553, 0.7936177850, -0.0040720468],
               [1.9779984951, -2.4285922050, 0.4505937099],
               [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip
M1_INV, M2_INV = np.linalg.inv(M1), np.linalg.inv(M2)


def to_oklab(rgb: np.ndarray) -> np.ndarray:
    """OKLab of sRGB values in 0..255, colours on the last axis."""
    v = np.asarray(rgb, np.float64) / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ M1.T) @ M2.T


def to_rgb(lab: np.ndarray) -> np.ndarray:
    """sRGB in 0..255 (float, clipped to the gamut) of OKLab values."""
    v = np.clip((lab @ M2_INV.T) ** 3 @ M1_INV.T, 0, 1)
    return 255 * np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)


# Where the rule "50 degrees around the dominant hue" names the wrong part: extra hues to include
# (clock bells), a narrower width (a window is not the car), a floor of chroma or lightness (white
# faces, wheels, hands), or the dark frame in place of the lenses.
RULES: dict[str, dict] = {
    "fluent-3d/glasses__glasses": {"frame": True},
    "fluent-flat/glasses__glasses": {"frame": True},
    "noto/glasses__glasses": {"frame": True},
    "fluent-3d/clock__alarm-clock": {"extra": (85,), "chroma": 0.09, "light": 0.45},
    "fluent-flat/clock__alarm-clock": {"extra": (85,)},
    "noto/clock__alarm-clock": {"light": 0.40},
    "fluent-3d/bowl__bowl-with-spoon": {"chroma": 0.07},
    "fluent-3d/car__sport-utility-vehicle": {"width": 22, "chroma": 0.07, "light": 0.40},
    "fluent-flat/car__sport-utility-vehicle": {"width": 22, "chroma": 0.07, "light": 0.35},
    "noto/car__sport-utility-vehicle": {"chroma": 0.09, "light": 0.35},
}
# Green apples are the red drawings again, and their leaves cannot be told from the fruit by hue.
OWN_COLOURS_ONLY = {"green-apple"}


def _mask(lab: np.ndarray, alpha: np.ndarray, rule: dict) -> np.ndarray:
    chroma, hue = np.hypot(lab[..., 1], lab[..., 2]), np.arctan2(lab[..., 2], lab[..., 1])
    hue = np.degrees(hue) % 360
    counts, _ = np.histogram(hue, 72, (0, 360), weights=chroma * alpha)
    smooth = sum(np.roll(counts, k) for k in (-2, -1, 0, 1, 2))
    centres = (rule.get("hue", 5 * int(smooth.argmax()) + 2.5), *rule.get("extra", ()))
    away = np.min([np.abs((hue - c + 180) % 360 - 180) for c in centres], axis=0)
    soft = np.clip((rule.get("width", 50) + 10 - away) / 10, 0, 1)
    soft = soft * np.clip((lab[..., 0] - rule.get("light", 0)) / 0.05, 0, 1)
    return soft * np.clip((chroma - rule.get("chroma", 0.02)) / 0.03, 0, 1)


def recolour(rgba: np.ndarray, colour: str, rule: dict) -> np.ndarray:
    """The drawing with its main part in `colour`, shading kept."""
    lab, alpha = to_oklab(rgba[..., :3]), rgba[..., 3] / 255.0
    target = to_oklab(np.array(COLOURS[colour]))
    m = _mask(lab, alpha, rule)
    if rule.get("frame"):  # and made thicker: at 64 pixels the drawn one is a hair
        m = np.where(alpha > 0.3, np.clip((0.62 - lab[..., 0]) / 0.06, 0, 1), 0)
        thick = Image.fromarray((255 * m).astype(np.uint8)).filter(ImageFilter.MaxFilter(5))
        lab[(np.asarray(thick) > 127) & (m < 0.9)] = np.median(lab[m > 0.9], axis=0)
        m = np.asarray(thick) / 255.0
    inside, chroma = (m > 0.5) & (alpha > 0.5), np.hypot(lab[..., 1], lab[..., 2])
    # White shades only downwards and black only upwards, so they start from the drawing's ends.
    keep = 0.45 if colour in ("black", "white") else 0.70
    start = np.percentile(lab[inside, 0], {"white": 85, "black": 20}.get(colour, 50))
    relative = np.clip(chroma / np.median(chroma[inside]), 0.7, 1.15)
    new = np.empty_like(lab)
    new[..., 0] = np.clip(target[0] + keep * (lab[..., 0] - start), 0, 1)
    new[..., 1:] = target[1:] * relative[..., None]
    mixed = lab + (new - lab) * m[..., None]
    return np.dstack([to_rgb(mixed).round(), rgba[..., 3]]).astype(np.uint8)


# ---- drawings ------------------------------------------------------------------------------------


def _bench(style: str) -> np.ndarray:
    """A park bench: no emoji set draws one. Drawn 8 times too large and reduced."""
    wood, dark, light = (178, 110, 60), (128, 76, 40), (206, 142, 88)
    iron = (84, 86, 92) if style == "noto" else dark
    image = Image.new("RGBA", (1024, 1024))
    draw = ImageDraw.Draw(image)

    def bar(x0: int, y0: int, x1: int, y1: int, fill: tuple = wood, edge: int = 22) -> None:
        draw.rounded_rectangle((x0, y0, x1, y1), radius=26, fill=dark if fill == wood else fill)
        if fill == wood:
            draw.rounded_rectangle((x0, y0, x1, y1 - edge), radius=26, fill=wood)
            if style != "fluent-flat":
                draw.rounded_rectangle((x0 + 24, y0 + 12, x1 - 24, y0 + 30), radius=9, fill=light)

    for x in (170, 790):  # posts of the back and hind legs
        bar(x, 210, x + 64, 790, fill=iron)
    for y in (240, 365):
        bar(70, y, 954, y + 96)
    draw.polygon([(90, 560), (934, 560), (1010, 690), (14, 690)], fill=dark)
    draw.polygon([(100, 545), (924, 545), (962, 598), (62, 598)], fill=wood)
    draw.polygon([(54, 614), (970, 614), (1010, 680), (14, 680)], fill=wood)
    bar(10, 660, 1014, 730)
    for x in (60, 890):  # front legs and armrests
        bar(x, 720, x + 74, 880, fill=iron)
        bar(x, 470, x + 74, 660, fill=iron)
        bar(x - 34, 440, x + 108, 505)
    pixels = np.asarray(image.resize((128, 128), Image.Resampling.LANCZOS)).copy()
    if style == "fluent-3d":  # light falls from the upper left, as in that set
        y, x = np.mgrid[0:128, 0:128] / 127
        pixels[..., :3] = np.clip(pixels[..., :3] * (1.18 - 0.2 * x - 0.15 * y)[..., None], 0, 255)
    return pixels


@cache
def drawings(style: str) -> dict[str, tuple[str, ...]]:
    """The drawings of each word in a style."""
    table: dict[str, tuple[str, ...]] = {"bench": ("bench",)}
    for path in sorted((SPRITES / style).glob("*.png")):
        word, drawing = path.stem.split("__")
        table[word] = (*table.get(word, ()), drawing)
    return table


@cache
def sprite(style: str, word: str, drawing: str, colour: str | None) -> Image.Image:
    """The drawing as an RGBA picture, recoloured and cut to its own outline."""
    name = f"{style}/{word}__{drawing}"
    rgba = _bench(style) if word == "bench" else np.asarray(Image.open(SPRITES / f"{name}.png"))
    if colour is not None:
        rgba = recolour(rgba, colour, RULES.get(name, {}))
    image = Image.fromarray(rgba)
    return image.crop(image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())


@cache
def main_colour(style: str, word: str, drawing: str, colour: str | None) -> np.ndarray:
    """The OKLab colour that a background has to differ from."""
    if colour is not None:
        return to_oklab(np.array(COLOURS[colour]))
    pixels = np.asarray(sprite(style, word, drawing, None)).reshape(-1, 4)
    return np.median(to_oklab(pixels[pixels[:, 3] > 128, :3]), axis=0)

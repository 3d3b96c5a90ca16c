"""The world of the miniature: scenes of the 24 Attend-and-Excite things, drawn with exact labels.

One scene is a frozen value; `render` draws it and `caption` names it, so every picture has a true
sentence and every adherence question a true answer. Only the caption's words can be prompted.

    rng = np.random.default_rng(0)
    scene = sample_scene(rng)
    picture, sentence = render(scene), caption(scene, rng)
"""

import sys
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from artwork import COLOURS, OWN_COLOURS_ONLY, drawings, main_colour, sprite, to_oklab
from backdrops import GROUNDS, SETTING_CONTRAST, backdrop

# Never in the training split, so that composition can be measured and not only recall.
from dnp.evaluation.trio import HELD_OUT_COLOURS, held_out
from dnp.sd.world import ANIMALS, OBJECTS, SETTINGS

THINGS = ANIMALS + OBJECTS
COLOUR_NAMES = list(COLOURS)
STYLES = {"fluent-3d": "shaded", "fluent-flat": "flat", "noto": "classic"}

# The mix.
P_SINGLE, P_PAIR, P_TRIO = 0.34, 0.48, 0.16  # the rest has no thing at all
P_OBJECT = 0.60  # of single things: objects have eleven colours to learn, animals none
P_COLOURED = 0.75  # of objects; the others keep their own colours and get no colour word
P_PLAIN, P_PLAIN_EMPTY = 0.55, 0.15
SIZES = {0: (0.0, 0.0), 1: (0.55, 0.85), 2: (0.38, 0.55), 3: (0.32, 0.44)}
# of so many things: the longer side over the frame's side
P_ROW = 0.4  # of three things: side by side; the others stand behind and in front
P_COMMA = 0.85  # of three things: "a, b and c"; the others "a and b and c"
P_SUFFIX, P_SUFFIX_PLAIN, P_FIRST = 0.60, 0.06, 0.20
P_STYLE, P_PICTURE, P_AN, P_BARE = 0.10, 0.10, 0.15, 0.05


@dataclass(frozen=True)
class Thing:
    """One thing: `box` is (left, top, right, bottom) in fractions of the frame."""

    word: str
    colour: str | None  # None: the drawing's own colours
    drawing: str
    box: tuple[float, float, float, float]
    mirror: bool = False
    turn: float = 0.0  # degrees


@dataclass(frozen=True)
class Scene:
    """Things from back to front, in one style; `look` seeds the variation of the setting."""

    things: tuple[Thing, ...]
    setting: str
    style: str
    look: int = 0


# ---- pictures ------------------------------------------------------------------------------------


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """The picture of a scene, uint8 (size, size, 3)."""
    taken = [main_colour(scene.style, t.word, t.drawing, t.colour) for t in scene.things]
    boxes = [t.box for t in scene.things if t.word != "balloon"]  # a balloon throws no shadow
    image = backdrop(scene.setting, scene.look, boxes, taken, 2 * size)
    image = image.resize((size, size), Image.Resampling.BOX)
    for thing in scene.things:
        drawn = sprite(scene.style, thing.word, thing.drawing, thing.colour)
        x0, y0, x1, y1 = (size * v for v in thing.box)
        scale = (x1 - x0) / drawn.width
        if thing.mirror:
            drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if thing.turn:
            drawn = drawn.rotate(thing.turn, Image.Resampling.BICUBIC, expand=True)
        w, h = max(1, round(scale * drawn.width)), max(1, round(scale * drawn.height))
        drawn = drawn.resize((w, h), Image.Resampling.LANCZOS)  # Pillow premultiplies RGBA itself
        image.paste(drawn, (round((x0 + x1 - w) / 2), round((y0 + y1 - h) / 2)), drawn)
    return np.asarray(image)


# ---- sampling ------------------------------------------------------------------------------------


def _dress(word: str, style: str, rng: np.random.Generator, split: str) -> tuple[str, str | None]:
    """A drawing and a colour for a word."""
    colour = None
    if word in OBJECTS and rng.random() < P_COLOURED:
        allowed = [c for c in COLOURS if split != "train" or (c, word) not in HELD_OUT_COLOURS]
        colour = str(rng.choice(allowed))
    choice = [d for d in drawings(style)[word] if colour is None or d not in OWN_COLOURS_ONLY]
    return str(rng.choice(choice)), colour


def _words(rng: np.random.Generator, split: str) -> list[str]:
    kind = rng.random()
    if kind < P_SINGLE:
        return [str(rng.choice(OBJECTS if rng.random() < P_OBJECT else ANIMALS))]
    if kind >= P_SINGLE + P_PAIR + P_TRIO:
        return []
    n = 2 if kind < P_SINGLE + P_PAIR else 3
    while True:
        some = [str(w) for w in rng.choice(THINGS, n, replace=False)]
        if split != "train" or not held_out(set(some)):
            return some


def _boxes(shapes: list[tuple[int, int]], grounded: bool, rng: np.random.Generator) -> list[tuple]:
    """Boxes for one thing near the centre, for two side by side, or for three."""
    if len(shapes) == 3:
        return _three_boxes(shapes, grounded, rng)
    u, boxes = rng.uniform, []
    lift = rng.choice([0.0, 0.0, 0.0, 0.16]) * rng.permutation([1.0, -1.0])
    base = u(0.76, 0.86)
    low, high = SIZES[len(shapes)]
    sizes = np.array([np.divide(s, max(s)) * u(low, high) for s in shapes]).reshape(-1, 2)
    sizes *= min(1.0, 1.01 / max(sizes[:, 0].sum(), 0.01))  # two overlap by a hair at most
    for i, (w, h) in enumerate(sizes):
        if len(shapes) == 1:
            x, y = 0.5 + u(-0.07, 0.07), 0.5 + u(-0.06, 0.06) + 0.04 * grounded
        else:
            x = 0.26 + u(-0.03, 0.05) if i == 0 else 0.74 + u(-0.05, 0.03)
            x = max(x, boxes[0][2] + w / 2 - 0.03) if i == 1 else x
            y = (base - h / 2 if grounded else 0.5 + u(-0.05, 0.05)) + 0.6 * lift[i]
        x, y = (min(max(v, s / 2 + 0.01), 0.99 - s / 2) for v, s in ((x, w), (y, h)))
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        boxes.append(tuple(round(float(v), 4) for v in box))
    return boxes


def _three_boxes(
    shapes: list[tuple[int, int]], grounded: bool, rng: np.random.Generator
) -> list[tuple]:
    """Three side by side, or two in one row and one above or below them; back to front."""
    u = rng.uniform
    sizes = np.array([np.divide(s, max(s)) * u(*SIZES[3]) for s in shapes])
    centres = np.zeros((3, 2))
    if rng.random() < P_ROW:
        sizes *= min(1.0, 1.02 / sizes[:, 0].sum())
        gap = (1.02 - sizes[:, 0].sum()) / 3
        ends = np.cumsum(sizes[:, 0] + gap) - 0.01
        centres[:, 0] = ends - gap / 2 - sizes[:, 0] / 2
        base = u(0.70, 0.86) if grounded else None
        for i, (_, h) in enumerate(sizes):
            centres[i, 1] = base - h / 2 + u(-0.06, 0.06) if grounded else 0.5 + u(-0.18, 0.18)
    else:
        rows = [[0], [1, 2]] if rng.random() < 0.5 else [[0, 1], [2]]  # the back row first
        heights = [max(sizes[i][1] for i in row) for row in rows]
        sizes *= min(1.0, 0.98 / sum(heights))
        tops = 0.01, 0.99 - max(sizes[i][1] for i in rows[1])
        spare = tops[1] - tops[0] - max(sizes[i][1] for i in rows[0])
        for row, top, slide in zip(rows, tops, (1, -1)):
            tall = max(sizes[i][1] for i in row)
            shift = slide * u(0.0, 0.45) * spare
            for i, x in zip(row, [0.5 + u(-0.2, 0.2)] if len(row) == 1 else [0.26, 0.74]):
                centres[i] = x + u(-0.03, 0.03), top + tall - sizes[i][1] / 2 + shift
    boxes = []
    for (x, y), (w, h) in zip(centres, sizes):
        x, y = (min(max(v, s / 2 + 0.01), 0.99 - s / 2) for v, s in ((x, w), (y, h)))
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        boxes.append(tuple(round(float(v), 4) for v in box))
    return boxes


def _contrast(place: str, taken: list[np.ndarray]) -> float:
    ground = to_oklab(np.array(GROUNDS[place]))
    return min((np.linalg.norm(ground - t, axis=-1).min() for t in taken), default=1.0)


def sample_scene(rng: np.random.Generator, split: str = "train") -> Scene:
    """A random scene; the training split never holds a held-out pair or colour."""
    style, look = str(rng.choice(list(STYLES))), int(rng.integers(2**31))
    dressed = [(w, *_dress(w, style, rng, split)) for w in _words(rng, split)]
    taken = [main_colour(style, w, d, c) for w, d, c in dressed]
    setting = "plain"
    if rng.random() > (P_PLAIN if dressed else P_PLAIN_EMPTY):
        fit = [p for p in GROUNDS if _contrast(p, taken) > SETTING_CONTRAST]
        fit += [p for p in fit if p != "night"]  # the dark suits most things and would win
        setting = str(rng.choice(fit)) if fit else "plain"
    shapes = [sprite(style, w, d, None).size for w, d, _ in dressed]  # a colour keeps the outline
    boxes = _boxes(shapes, setting != "plain", rng)
    turns = [round(float(rng.uniform(-8, 8)), 1) if rng.random() < 0.4 else 0.0 for _ in dressed]
    things = tuple(
        Thing(w, c, d, box, bool(rng.random() < 0.5), turn)
        for (w, d, c), box, turn in zip(dressed, boxes, turns)
    )
    return Scene(things, setting, style, look)


# ---- captions ------------------------------------------------------------------------------------


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true sentence; half of them are the bare benchmark form, "a cat and a red car"."""
    after, alone = SETTINGS[scene.setting]
    u = rng.random(6)
    lead = ""
    if u[0] < P_STYLE:
        lead = f"a {STYLES[scene.style]} picture of "
    elif u[0] < P_STYLE + P_PICTURE:
        lead = "a picture of " if u[1] < 0.5 else "a photo of "
    if not scene.things:
        return lead + alone
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    join = " and "
    if [t.word in OBJECTS for t in things] == [False, True]:
        worn = things[1].word in ("glasses", "crown", "bow")
        join = " with " if u[2] < (0.8 if worn else 0.15) else " and "
    comma = len(things) == 3 and u[2] < P_COMMA
    names = [f"{t.colour} {t.word}" if t.colour else t.word for t in things]
    if u[3] >= P_BARE:
        names = [("an " if n[0] in "aeiou" and rng.random() < P_AN else "a ") + n for n in names]
    said = f"{names[0]}, {names[1]} and {names[2]}" if comma else join.join(names)
    p_suffix = P_SUFFIX_PLAIN if scene.setting == "plain" else P_SUFFIX
    if u[4] >= p_suffix:
        return lead + said
    if u[5] < P_FIRST:
        return lead + f"{alone} with {said}"
    return lead + f"{said} {after}"


def words() -> list[str]:
    """Every word that a caption can contain, sorted."""
    said = [w for phrases in SETTINGS.values() for p in phrases for w in p.split()]
    said += "a an and with picture photo of".split()
    return sorted({*THINGS, *COLOURS, *STYLES.values(), *said})


# ---- data sets -----------------------------------------------------------------------------------


def scene_at(seed: int, i: int, split: str = "train") -> tuple[Scene, np.random.Generator]:
    """Scene i of a data set, and its generator in the state that the caption continues from."""
    rng = np.random.default_rng([seed, i])
    return sample_scene(rng, split), rng


def _chunk(span: tuple[int, int], seed: int, size: int, split: str) -> list[tuple]:
    out = []
    for i in range(*span):
        scene, rng = scene_at(seed, i, split)
        out.append((render(scene, size), caption(scene, rng), scene))
    return out


def dataset(
    n: int, seed: int, size: int = 64, split: str = "train", processes: int = 2
) -> tuple[np.ndarray, list[str], list[Scene]]:
    """n scenes: pictures uint8 (n, size, size, 3), captions, scenes.

    Scene i depends on (seed, i) only. With more than one process the caller needs the usual
    `if __name__ == "__main__"`, because the workers are spawned.
    """
    spans = [(i, min(i + 500, n)) for i in range(0, n, 500)]
    work = partial(_chunk, seed=seed, size=size, split=split)
    if processes == 1:
        parts = [work(span) for span in spans]
    else:
        with get_context("spawn").Pool(processes) as pool:
            parts = pool.map(work, spans, chunksize=1)
    pictures, captions, scenes = zip(*(row for part in parts for row in part))
    return np.stack(pictures), list(captions), list(scenes)

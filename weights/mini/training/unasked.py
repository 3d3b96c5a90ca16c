"""What the world's own scenes show beside what their caption says: the truth of the audits.

    python weights/mini/training/unasked.py     # minutes; writes unasked.json beside it

For each prompt the scenes of the generator whose caption is that prompt, and for the empty prompt
all scenes, are rendered and seen by the eyes of `dnp.evaluation.audit`: {prompt: {label: [share in
the prompt's scenes, share in all scenes]}}. The 12 objects without a colour leave their colours,
and the setting, open; a prompt that names both leaves nothing open.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

import world
from dnp.evaluation.labels import labels_for
from dnp.sd.load import load
from dnp.sd.world import subjects

OPEN = [f"a {word}" for word in world.OBJECTS]
CLOSED = [
    "a red car on the road", "a blue suitcase at night", "a yellow crown in the grass",
    "a green clock in the snow", "a red backpack on the beach", "a purple balloon in a room",
    "a purple chair in the grass", "a pink bow at night", "a black glasses on the road",
    "a gray bench in the snow", "a blue bowl on the beach", "a yellow apple in a room",
]  # fmt: skip
N = 200  # scenes of each prompt
FOLDER = Path(__file__).resolve().parent


def scenes_of(prompt: str, rng: np.random.Generator, n: int = N) -> list[world.Scene]:
    """n scenes whose caption is the prompt, by rejection from the scenes of its thing, in its
    colour if it names one."""
    ((colour, word),) = subjects(prompt)
    words, dress, found = world._words, world._dress, []
    world._words = lambda *_: [word]
    if colour:
        world._dress = lambda *of: _in_colour(dress, colour, *of)
    try:
        while len(found) < n:
            scene = world.sample_scene(rng)
            if world.caption(scene, rng) == prompt:
                found.append(scene)
    finally:
        world._words, world._dress = words, dress
    return found


def _in_colour(dress, colour: str, *of) -> tuple[str, str]:
    while True:
        drawing, drawn = dress(*of)
        if drawn is not None:
            return drawing, colour


def main() -> None:
    weights, rng = FOLDER.parent, np.random.default_rng(0)
    labels = labels_for(load(weights), "", weights)

    def shares(scenes: list[world.Scene]) -> dict[str, float]:
        seen = labels.see([Image.fromarray(world.render(s)) for s in scenes])
        return {x: float(np.mean([x in s for s in seen])) for x in labels.family([], "")}

    every = shares([world.sample_scene(rng) for _ in range(4 * N)])
    table = {}
    for prompt in OPEN + CLOSED:
        own = shares(scenes_of(prompt, rng))
        table[prompt] = {x: [round(own[x], 4), round(every[x], 4)] for x in every}
    (FOLDER / "unasked.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()

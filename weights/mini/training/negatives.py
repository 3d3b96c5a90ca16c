"""The law of "p and not n" in the miniature's world, tabulated from its own generator.

    python weights/mini/training/negatives.py     # minutes; writes negatives.json beside it

Of every prompt "a THING": its scenes by setting and by the thing's colour, {setting: {colour:
scenes}}. The setting is the scene's own. The colour is what the recogniser sees, since a drawing's
own colours have no name; "" is a thing that it does not see. Of the empty prompt: all scenes by
setting, and how many of them show each thing. What is left when n is taken away is the law.

Beside it: how often the eyes of `--benchmark not` name the setting of a true scene, and how often
CLIP names its drawing style.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

import world
from dnp.evaluation.negatives.making import Eyes
from dnp.sd.load import load
from unasked import scenes_of

N, EVERY, TRUE = 300, 4000, 1000  # scenes of a prompt, of the empty one, and for the eyes
FOLDER = Path(__file__).resolve().parent


def styles(eyes: Eyes) -> int:
    """In how many of as many other true scenes CLIP finds the words of their style nearest."""
    rng, right, clip = np.random.default_rng(2), 0, eyes.labels.clip
    for _ in range(TRUE):
        scene = world.sample_scene(rng)
        things = (
            " and ".join(f"a {t.word}" for t in scene.things) or world.SETTINGS[scene.setting][1]
        )
        texts = clip.texts([f"a {style} picture of {things}" for style in world.STYLES.values()])
        (picture,) = clip.images([Image.fromarray(world.render(scene))])
        right += [*world.STYLES][int((texts @ picture).argmax())] == scene.style
    return right


def main() -> None:
    eyes, rng = Eyes(load(FOLDER.parent), FOLDER.parent), np.random.default_rng(1)

    def seen(scenes: list[world.Scene]) -> list[dict]:
        pictures = [Image.fromarray(world.render(s)) for s in scenes]
        parts = [pictures[i : i + 100] for i in range(0, len(pictures), 100)]
        return [row for part in parts for row in eyes.see(part)]

    prompts = {}
    for word in world.THINGS:
        scenes = scenes_of(f"a {word}", rng, N)
        law: dict[str, Counter] = {setting: Counter() for setting in world.SETTINGS}
        for scene, row in zip(scenes, seen(scenes)):
            law[scene.setting][row["things"].get(word, "")] += 1
        prompts[f"a {word}"] = law
    every = [world.sample_scene(rng) for _ in range(EVERY)]
    empty = {}
    for setting in world.SETTINGS:
        here = [scene for scene in every if scene.setting == setting]
        things = Counter(t.word for scene in here for t in scene.things)
        empty[setting] = {"scenes": len(here), "with": {w: things[w] for w in world.THINGS}}
    true = every[:TRUE]
    right = [row["setting"] == scene.setting for scene, row in zip(true, seen(true))]
    one = [ok for ok, scene in zip(right, true) if len(scene.things) == 1]
    table = {
        "eyes": {"settings right": sum(right), "of": len(right),
                 "of one thing": [sum(one), len(one)], "styles right": styles(eyes)},
        "empty": empty, "prompts": prompts,
    }  # fmt: skip
    (FOLDER / "negatives.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Benchmarks: lists of prompts, each with a category.

A&E  Attend-and-Excite (Chefer et al. 2023, arXiv:2301.13826): two of 24 things, most with a colour
     (`ae-choosing` is every fifth of its prompts, to choose scales and options by, and
     `ae-reporting` the rest)
trio three of the 24 things, objects with colours; `trio-choosing` has others (`trio.py`)
H&H  people and hands, in the form of arXiv:2411.05473; its lists are not public, these are ours
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from itertools import combinations, product
from pathlib import Path

from dnp.errors import SettingsError
from dnp.evaluation.trio import Prompt, trio
from dnp.sd.world import ANIMALS, COLOURS, OBJECTS, WORN, subjects


def attend_excite() -> list[Prompt]:
    """276 prompts in the published form: 66 animals, 144 animals_objects, 66 objects.

    The article is always "a". The published list fixes one colour for each prompt at random; here
    it goes round the colours, so that each is asked for equally often.
    """
    prompts = [Prompt(f"a {a} and a {b}", "animals") for a, b in combinations(ANIMALS, 2)]
    for i, (animal, thing) in enumerate(product(ANIMALS, OBJECTS)):
        colour = COLOURS[i % 11]
        text = f"with a {thing}" if thing in WORN else f"and a {colour} {thing}"
        prompts.append(Prompt(f"a {animal} {text}", "animals_objects"))
    for i, (a, b) in enumerate(combinations(OBJECTS, 2)):
        first, second = COLOURS[i % 11], COLOURS[(i + 1 + i // 11) % 11]
        prompts.append(Prompt(f"a {first} {a} and a {second} {b}", "objects"))
    return prompts


def attend_excite_part(choosing: bool) -> list[Prompt]:
    """Every fifth prompt, 56 of them, to choose by; or the 220 others, to report."""
    return [p for i, p in enumerate(attend_excite()) if (i % 5 == 0) == choosing]


# Ours, but for the first three of people and the first of hands, which arXiv:2411.05473 shows.
PEOPLE = """
a man wearing a sombrero
boy in the moonlight
woman in black dress on the red carpet wearing a ring on the finger
an old man with a white beard reading a newspaper
a girl blowing out candles on a cake
a woman doing yoga on a beach at sunrise
two men shaking hands in an office
a baby crawling on a wooden floor
a chef tossing a pizza in a kitchen
a boy riding a bicycle down a hill
a ballerina on her toes on a stage
a woman playing the violin in the street
a fisherman pulling a net into a boat
a group of friends laughing around a table
a girl with braids holding a sunflower
a man in a suit running for a train
a grandmother knitting in an armchair
a swimmer diving into a pool
a doctor listening to a child's heart
a woman with curly red hair drinking coffee
a man climbing a steep rock
a bride throwing her bouquet
a boy building a castle of sand
a football player kicking a ball
a woman painting a portrait at an easel
a farmer carrying a basket of apples
two children playing chess in a park
a man asleep on a park bench
a teacher writing on a blackboard
a girl jumping over a puddle in the rain
a firefighter holding a hose
a couple dancing in a ballroom
a woman taking a photograph of a mountain
a man in glasses repairing a watch
a surfer riding a wave
a boy hugging a large dog
a runner crossing the finish line with arms raised
a woman in a red coat feeding pigeons
a carpenter sawing a plank
an astronaut waving at the camera
a girl brushing her teeth in front of a mirror
a man playing the piano in a dark room
a family having a picnic on the grass
a woman on a horse jumping a fence
a street musician with an accordion
""".strip().split("\n")
HANDS = """
hand with a ring on it
a hand holding a pencil
two hands tying a shoelace
an open palm with a ladybird on it
a hand giving a thumbs up
hands kneading dough on a table
a hand pouring tea from a pot
fingers on the strings of a guitar
a baby's hand holding an adult's finger
a hand in a leather glove
hands typing on a keyboard
a hand throwing dice
two hands forming a heart
a hand turning a key in a lock
fingers with red nail polish
a hand feeling the bark of a tree
hands holding a warm cup
a hand pointing at a map
a raised fist
hands shuffling a deck of cards
a hand catching a ball
a hand peeling an orange
hands playing a piano
a hand with a wristwatch
a hand signing a letter with a fountain pen
""".strip().split("\n")


SEMANTIC = {  # what a person might write against the usual failure of each prompt
    "a cat and a dog": "a cat and a cat",
    "a cat and a bird": "a bird and a bird",
    "a bear and a turtle": "a frog",
    "a lion and a horse": "a lion and a lion",
    "a horse and a frog": "a turtle",
    "a rabbit and a mouse": "a rabbit and a rabbit",
    "a cat with a crown": "a cat on a plain background",
    "a dog with a glasses": "a glasses on a plain background",
    "a monkey with a bow": "a red apple",
    "a bird and a brown balloon": "a brown bird",
    "a red backpack and a orange glasses": "a orange backpack and a red glasses",
    "a black backpack and a white clock": "a white backpack and a black clock",
}


def people_and_hands() -> list[Prompt]:
    """H&H: 45 prompts of people and 25 of hands."""
    return [Prompt(t, "people") for t in PEOPLE] + [Prompt(t, "hands") for t in HANDS]


def hand_made() -> list[Prompt]:
    """The prompts for which somebody has written a semantic negative."""
    return [Prompt(text, "semantic") for text in SEMANTIC]


def read(path: str | Path) -> list[Prompt]:
    """Prompts of a file: one on each line, or a JSON object {category: [prompts]}, as A&E's own.

    SettingsError if there are none, or the file is of another kind.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("no regular file")  # a pipe could keep us waiting for ever
        text = Path(path).read_text(encoding="utf-8-sig")
        if str(path).endswith(".json"):
            lists = json.loads(text)
            if not all(isinstance(texts, list) for texts in lists.values()):
                raise ValueError("a category is not a list")
            prompts = [Prompt(t.strip(), c) for c, texts in lists.items() for t in texts]
        else:
            prompts = [Prompt(t.strip(), "prompts") for t in text.splitlines() if t.strip()]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as e:
        raise SettingsError(
            f"{path}: no list of prompts ({e}); give a text file with one prompt on each line, or "
            "a JSON object of lists."
        ) from None
    prompts = list(dict.fromkeys(p for p in prompts if p.text))  # each once
    if not prompts:
        raise SettingsError(f"{path}: no prompt is in it; write one on each line.")
    return prompts


def load(name: str) -> list[Prompt]:
    """The benchmark "ae", "ae-choosing", "ae-reporting", "trio", "trio-choosing", "hh",
    "dnp-paper" (A&E and H&H) or "semantic", or that of a file."""
    known = {"ae": attend_excite, "hh": people_and_hands, "semantic": hand_made, "trio": trio}
    known["trio-choosing"] = partial(trio, "choosing")
    known["dnp-paper"] = lambda: attend_excite() + people_and_hands()
    known["ae-choosing"] = partial(attend_excite_part, True)
    known["ae-reporting"] = partial(attend_excite_part, False)
    return known[name]() if name in known else read(name)


def choose(prompts: Sequence[Prompt], per_category: int | None) -> list[Prompt]:
    """At most `per_category` prompts of each category, evenly spread over its list."""
    chosen = []
    for category in dict.fromkeys(p.category for p in prompts):
        some = [p for p in prompts if p.category == category]
        n = min(per_category or len(some), len(some))
        chosen += [some[i * len(some) // n] for i in range(n)]
    return chosen


def require_drawable(prompts: Sequence[Prompt], words: Sequence[str]) -> None:
    """SettingsError if the weights know only `words`, and a prompt asks for something else."""
    if not words:
        return
    for prompt in prompts:
        unknown = [w for w in re.findall(r"[^\W_]+", prompt.text.lower()) if w not in words]
        if unknown:
            raise SettingsError(
                f'these weights cannot draw "{prompt.text}": {unknown[0]!r} is no word of their '
                "world; choose benchmark ae, or weights that know more."
            )


def parts(text: str) -> list[str]:
    """The parts of a prompt for the minimum-object score: split at " and ", else " with "; and at
    commas too where that leaves one thing of the world in each, as in "a cat, a car and a bow".

    SettingsError if there is neither (A&E's recipe knows no other prompts).
    """
    listed = re.split(", | and ", text)
    if len(listed) > 2 and all(len(subjects(part)) == 1 for part in listed):
        return listed
    for join in (" and ", " with "):
        if join in text:
            return text.split(join)
    raise SettingsError(
        f'"{text}" has no " and " and no " with ", so it has no minimum-object score; leave that '
        "metric out for these prompts."
    )

"""The closed world of a miniature: the 24 things and 11 colours of Attend-and-Excite's prompts."""

from __future__ import annotations

import re

ANIMALS = "cat dog bird bear lion horse elephant monkey frog turtle rabbit mouse".split()
OBJECTS = "backpack glasses crown suitcase chair balloon bow car bowl bench clock apple".split()
COLOURS = "red orange yellow green blue purple pink brown gray black white".split()
WORN = ("glasses", "crown", "bow")  # an animal is "with" them, and they have no colour then
SETTINGS = {  # setting: (words after a thing, words on their own)
    "plain": ("on a plain background", "a plain background"),
    "grass": ("in the grass", "grass"),
    "beach": ("on the beach", "a beach"),
    "snow": ("in the snow", "snow"),
    "night": ("at night", "a night sky"),
    "room": ("in a room", "a room"),
    "road": ("on the road", "a road"),
}


def subjects(text: str) -> list[tuple[str | None, str]]:
    """The (colour, thing) of each of the 24 things in a text of the miniature's world, in order;
    the colour is None where none is named."""
    words = re.findall(r"[a-z]+", text.lower())
    return [
        (before if before in COLOURS else None, word)
        for before, word in zip(["", *words], words)
        if word in ANIMALS or word in OBJECTS
    ]

"""The 24 things and 11 colours of the Attend-and-Excite benchmark, and what a prompt is."""

from __future__ import annotations

from dataclasses import dataclass

ANIMALS = "cat dog bird bear lion horse elephant monkey frog turtle rabbit mouse".split()
OBJECTS = "backpack glasses crown suitcase chair balloon bow car bowl bench clock apple".split()
COLOURS = "red orange yellow green blue purple pink brown gray black white".split()
WORN = ("glasses", "crown", "bow")  # an animal is "with" them, and they have no colour then


@dataclass(frozen=True)
class Prompt:
    """A prompt and the category whose mean it belongs to."""

    text: str
    category: str

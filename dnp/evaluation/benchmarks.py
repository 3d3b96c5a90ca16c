"""Benchmarks: lists of prompts, each with a category.

A&E  Attend-and-Excite (Chefer et al. 2023, arXiv:2301.13826): two of 24 things, most with a colour
     (`ae-choosing` is every fifth of its prompts, to choose scales and options by, and
     `ae-reporting` the rest)
trio three of the 24 things, objects with colours; `trio-choosing` has others (`trio.py`)
H&H  people and hands, in the form of arXiv:2411.05473; its lists are not public, these are ours,
     but for the first three of people and the first of hands, which the paper shows

`prompts/semantic.json` holds what a person might write against the usual failure of a prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, product
from pathlib import Path

from dnp.errors import SettingsError, meant
from dnp.evaluation.trio import Prompt, trio
from dnp.sd.files.data_only import read_regular
from dnp.sd.world import ANIMALS, COLOURS, OBJECTS, WORN, subjects

PROMPTS = Path(__file__).parent / "prompts"


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


SEMANTIC: dict[str, str] = json.loads((PROMPTS / "semantic.json").read_text("utf-8"))


def people_and_hands() -> list[Prompt]:
    """H&H: 45 prompts of people and 25 of hands."""
    return read(PROMPTS / "hh.json")


def read(path: str | Path) -> list[Prompt]:
    """Prompts of a file: one on each line, or a JSON object {category: [prompts]}, as A&E's own.

    SettingsError if there are none, or the file is of another kind.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
        if str(path).endswith(".json"):
            lists = json.loads(text)
            if not all(isinstance(texts, list) for texts in lists.values()):
                raise ValueError("a category is not a list")
            prompts = [Prompt(t.strip(), c) for c, texts in lists.items() for t in texts]
        else:
            prompts = [Prompt(t.strip(), "prompts") for t in text.splitlines() if t.strip()]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as e:
        raise SettingsError(
            f"{path}: not a list of prompts ({e}); give a text file with one prompt on each line, "
            "or a JSON object of lists."
        ) from None
    prompts = list(dict.fromkeys(p for p in prompts if p.text))  # each once
    if not prompts:
        raise SettingsError(f"{path}: no prompt is in it; write one on each line.")
    return prompts


def read_negatives(path: str | Path) -> dict[str, str]:
    """A JSON object {prompt: negative}, as `prompts/semantic.json`; SettingsError for another."""
    try:
        found = json.loads(read_regular(path).decode("utf-8-sig"))
        if not all(isinstance(n, str) for n in found.values()):
            raise ValueError("a negative is not a text")
    except (OSError, ValueError, AttributeError, RecursionError) as e:
        raise SettingsError(
            f'{path}: no negatives ({e}); give a JSON object such as {{"a cat": "a dog"}}.'
        ) from None
    return {prompt.strip(): n for prompt, n in found.items()}


BENCHMARKS: dict[str, Callable[[], list[Prompt]]] = {
    "ae": attend_excite,
    "ae-choosing": partial(attend_excite_part, True),
    "ae-reporting": partial(attend_excite_part, False),
    "trio": trio,
    "trio-choosing": partial(trio, "choosing"),
    "hh": people_and_hands,
    "dnp-paper": lambda: attend_excite() + people_and_hands(),
    "semantic": lambda: [Prompt(text, "semantic") for text in SEMANTIC],
}


def load(name: str) -> list[Prompt]:
    """The prompts of one of `BENCHMARKS`, or of a file; SettingsError if it is neither."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]()
    if not Path(name).exists():
        told = meant(name, [*BENCHMARKS, "not"])
        raise SettingsError(f"{name}: neither a benchmark nor a file of prompts; {told}")
    return read(name)


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
                f'these weights cannot draw "{prompt.text}": {unknown[0]!r} is not a word of their '
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

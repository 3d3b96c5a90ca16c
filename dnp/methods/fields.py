"""Settings are fields of dataclasses: a default, a help, a range. One table and one check for all.

    radius: int = setting(1, "pixels of the blur", low=1, high=8)

A field is a keyword of `dnp.generate`, an option of the command line (`--radius`) and of the
experiments (`radius=2`), and an entry of the record in a PNG. This file imports no torch, so that
`--help` is instant.

    annotation      in Python            on the command line    in the experiments
    int, float      2, 0.5               --radius 2             radius=2
    bool            True                 --normalize no         normalize=no
    str             "seed"               --caption-per seed     caption_per=seed
    Span            (0.3, 5.0)           --interval 0.3 5       interval=0.3:5
    Sides           (64, 96)             --size 64 96           size=64:96
    Numbers         (0.05, 0.5)          --ae-thresholds X:X    ae_thresholds=0.05:0.5
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping

from dnp.errors import SettingsError, is_finite, meant
from dnp.methods.other_names import said_of

Span = tuple[float, float]  # (lo, hi] in the variance-exploding sigma
Sides = tuple[int, int]  # height and width in pixels
Numbers = tuple[float, ...]
WIDTH_X_HEIGHT = re.compile(r"(\d+)[xX](\d+)")  # as other tools write a size
METAVARS = {"int": "N", "float": "X", "bool": "yes|no", "Span": "LO HI", "Sides": "H W",
            "Numbers": "X:X:X"}  # fmt: skip


def setting(
    default: object, help: str, low: float = -math.inf, high: float = math.inf,
    choices: Iterable[str] = (), metavar: str = "", recorded: bool = True,
):  # fmt: skip
    """A field of a dataclass. `recorded` says whether a PNG holds it."""
    choices = tuple(choices)
    about = dict(help=help, low=low, high=high, choices=choices, metavar=metavar, recorded=recorded)
    return dataclasses.field(default=default, metadata=about)


def kind(field: dataclasses.Field) -> str:
    """What a field holds, by the name of its annotation: int, float, str, Span, ..."""
    annotation = field.type
    if isinstance(annotation, type) and not hasattr(annotation, "__origin__"):
        annotation = annotation.__name__
    return str(annotation).split(" | ")[0].split(".")[-1]


def table(*owners: type) -> dict[str, dataclasses.Field]:
    """The fields of several classes by their names, the first class's first."""
    fields: dict[str, dataclasses.Field] = {}
    for owner in owners:
        for f in dataclasses.fields(owner):
            fields.setdefault(f.name, f)
    return fields


def metavar(field: dataclasses.Field) -> str:
    about = field.metadata
    if about.get("choices") and not about["metavar"]:
        return "|".join(about["choices"])
    return about.get("metavar") or METAVARS.get(kind(field), "TEXT")


def from_text(field: dataclasses.Field, text: str) -> object:
    """The value that a text means; ValueError if it does not mean one."""
    what = kind(field)
    if what in ("Span", "Sides", "Numbers"):
        if what == "Sides" and (usual := WIDTH_X_HEIGHT.fullmatch(text)):
            return int(usual[2]), int(usual[1])
        values = [(int if what == "Sides" else float)(x) for x in re.split("[: ]", text)]
        if what != "Numbers" and len(values) != 2:
            raise ValueError(f"{text!r} is not two numbers")
        return tuple(values)
    if what == "bool":
        return {"yes": True, "no": False}[text] if text in ("yes", "no") else _no_bool(text)
    return {"int": int, "float": float}.get(what, str)(text)


def option(text: str) -> tuple[str, object]:
    """KEY=VALUE of a rule: a number, true, false, null or text.

    SettingsError without a KEY, and for a number that is not finite.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise SettingsError(f"{text!r} is not an option of a rule; write KEY=VALUE.")
    try:
        known = json.loads(value)
    except ValueError:
        return key, value
    except RecursionError:
        raise SettingsError(f"{key} is nested too deep; give a number or a word.") from None
    try:
        json.dumps(known, allow_nan=False)
    except ValueError:
        raise SettingsError(f"{key} {value:.40} is not finite; give a number such as 1.") from None
    return key, known


def _no_bool(text: str) -> bool:
    raise ValueError(f"{text!r} is not yes or no")


def check(
    owner: type, given: Mapping[str, object], owners: Callable[[], Mapping[str, str]] = dict,
    *more: type,
) -> None:  # fmt: skip
    """SettingsError, one sentence with the fix, for a name or a value that is not possible.

    `given` are settings of `owner`, None being as if not given. `owners` says of every setting of
    any method which methods have it; `more` are classes whose settings `owner` shares.
    """
    known = table(owner)
    for name, value in given.items():
        if name not in known:
            others = owners()
            if name in others:
                raise SettingsError(
                    f"{name} belongs to method {others[name]}, not {owner.name}; leave it out."
                )
            every = dict.fromkeys([*known, *(x for x in table(*more)), *others])
            fix = said_of(name) or meant(name, every, "python -m dnp --help lists them all.")
            raise SettingsError(f"{name} is not a setting; {fix}")
        if value is not None:
            check_value(known[name], value)


def check_value(field: dataclasses.Field, value: object) -> None:
    """SettingsError for a value that is not of the field's kind, or out of its range."""
    if fix := _wrong(field, value):
        raise SettingsError(f"{field.name} = {value!r} is not possible; {fix}.")


def _wrong(field: dataclasses.Field, value: object) -> str:
    """The fix for a value; empty if there is nothing to fix."""
    what, about = kind(field), field.metadata
    low, high = about.get("low", -math.inf), about.get("high", math.inf)
    many = isinstance(value, tuple | list)
    if about.get("choices"):
        good, fix = value in about["choices"], f"choose {' or '.join(about['choices'])}"
    elif what == "int":
        good = type(value) is int and low <= value <= high
        fix = f"choose a whole number {_range(low, high)}"
    elif what == "float":
        good = is_finite(value) and low <= value <= high
        bounded = (low, high) != (-math.inf, math.inf)
        fix = f"choose a number {_range(low, high)}" if bounded else "give a number such as 1"
    elif what == "bool":
        good, fix = type(value) is bool, "choose yes or no (in Python True or False)"
    elif what == "Span":
        good = (
            many and len(value) == 2 and all(map(_is_number, value)) and 0 <= value[0] <= value[1]
        )
        fix = "give two numbers 0 <= LO <= HI of sqrt((1 - abar)/abar), such as 0.3 5"
    elif what == "Sides":
        good = many and len(value) == 2 and all(type(v) is int and low <= v <= high for v in value)
        bounds = f" {_range(low, high)}" if high < math.inf else ""
        fix = f"give two whole numbers of pixels{bounds}, height and width"
    elif what == "Numbers":
        good = (
            many and 1 <= len(value) <= 5 and all(is_finite(v) and low <= v <= high for v in value)
        )
        fix = f"give 1 to 5 numbers {_range(low, high)}, such as 0.05:0.5:0.8"
    elif what == "dict":
        good, fix = isinstance(value, dict), "give a dict such as {'w': 1.0}"
    elif what == "str":
        good, fix = isinstance(value, str), "give a text"
    else:
        good, fix = True, ""
    return "" if good else fix


def _range(low: float, high: float) -> str:
    """from 1 to 8; of at least 1."""
    if high == math.inf:
        return f"of at least {low:g}" if low > -math.inf else "such as 1"
    return f"from {low:.10g} to {high:.10g}"


def _is_number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and x == x  # infinity too


def plain(value: object) -> object:
    """A setting as a record holds it: tuples are lists, as JSON has them."""
    return list(value) if isinstance(value, tuple) else value

"""What the live page's fields mean: the settings of the commands that draw it.

    look      the CFG picture and the DNS image of a prompt
    picture   the picture of a look, from the same noise, away from a person's words
    sheet     the methods side by side
    audit     what the prompt brings along

Fields are texts, read by the options of the command line; an empty one is as if not typed. Another
kind is an entry of `FIELDS` and of `KINDS`, and a form and a tab in page.html.
"""

from __future__ import annotations

import inspect
import re
import unicodedata
from collections.abc import Callable, Mapping

from dnp.errors import SettingsError, meant
from dnp.generation import prepared
from dnp.methods.fields import option
from dnp.methods.rule import read
from dnp.rules import RULES

MOST_TEXT = 2000  # characters of a field
MOST_TOGETHER = 16  # pictures of a sheet in a forward: more gain little (dnp/sd/SPEED.md)
# The fields of each kind; the last one has the sentences that name none.
FIELDS = {
    "look": ("seed", "steps", "eta", "s", "s_dns", "prompt"),
    "picture": ("negative_scale", "rule_options", "last", "first", "s", "rule", "of", "negative"),
    "sheet": ("seed", "steps", "images", "negative", "prompt"),
    "audit": ("pictures", "seed", "steps", "prompt"),
}
NAMED = {
    "of": r"(?!)",
    "s": r"--scale|--s\b|\bs =|\(no s\)",
    "rule_options": r"--option|\boptions?\b",
}
Form = Mapping[str, str]


def look(form: Form, model, seen: object) -> list[dict]:
    same = of_prompt(form, "seed", "steps", "eta")
    s_dns = given({"s": form.get("s_dns", "")}, "s")
    return [same | given(form, "s"), same | {"method": "dns"} | s_dns]


def picture(form: Form, model, seen) -> list[dict]:
    """`seen` is the look that it belongs to, a finished draw."""
    if seen is None:
        raise SettingsError("the DNS image of this prompt is gone; draw it again.")
    settings = {k: v for k, v in seen.typed[0].items() if k != "s"} | {"method": "dnp"}
    settings |= given(form, "negative", "s", "negative_scale", "rule")
    if "negative" not in settings:
        raise SettingsError("no negative; write what the DNS image shows.")
    if (rule := settings.get("rule", "cfg")) not in RULES:  # no page makes a file run
        raise SettingsError(f"rule {rule!r} is unknown; {meant(rule, RULES)}")
    if options := form.get("rule_options", "").split():
        settings["rule_options"] = dict(map(option, options))
    args = seen.runs[0]
    call, _ = prepared(model, args.prompt, args.method, None, None, None, args.settings)
    ends = ("first", 1), ("last", call.steps)
    first, last = (whole(form, name, end) for name, end in ends)
    if (first, last) != (1, call.steps):
        settings["negative_interval"] = interval(call, first, last)
    return [settings]


def sheet(form: Form, model, seen: object) -> list[dict]:
    """The pictures of a row share their forwards, unless --batch was typed beside --page."""
    settings = of_prompt(form, "negative", "seed", "steps", "images") | {"compare": True}
    columns = min(whole(form, "images", 1), MOST_TOGETHER)
    return [settings | ({"batch": str(columns)} if columns > 1 else {})]


def audit(form: Form, model, seen: object) -> list[dict]:
    for name in ("pictures", "seed", "steps"):
        whole(form, name, 0)
    return [of_prompt(form, "pictures", "seed", "steps")]


KINDS: dict[str, Callable[[Form, object, object], list[dict]]] = {
    "look": look, "picture": picture, "sheet": sheet, "audit": audit,
}  # fmt: skip


def given(form: Form, *names: str) -> dict[str, str]:
    """The fields that are not empty, each in one line."""
    texts = {name: " ".join(form.get(name, "").split()) for name in names}
    return {name: text for name, text in texts.items() if text}


def of_prompt(form: Form, *names: str) -> dict[str, str]:
    settings = given(form, "prompt", *names)
    if "prompt" not in settings:
        raise SettingsError("no prompt; write what the picture is to show.")
    return settings


def checked(kind: object, form: object) -> Form:
    """What a page sent, as a form of its kind. SettingsError for anything else."""
    if not isinstance(kind, str) or kind not in KINDS or not isinstance(form, dict):
        raise SettingsError("this is not a draw of this page; reload it.")
    for name, text in form.items():
        if name not in FIELDS[kind] or not isinstance(text, str):
            raise SettingsError(f"{name!r:.40} is not a text field of this page; reload it.")
        if len(text) > MOST_TEXT:
            raise SettingsError(f"{name}: {len(text)} characters; shorten it to {MOST_TEXT}.")
        if any(unicodedata.category(c) in ("Cc", "Cs") and not c.isspace() for c in text):
            raise SettingsError(f"{name}: a character in it cannot be typed; write it again.")
    return form


def field_of(sentence: str, kind: object) -> str:
    """The field that a sentence is about: the first of its kind that it names, else the last."""
    fields = FIELDS[kind] if isinstance(kind, str) and kind in FIELDS else ("",)
    for name in filter(None, fields):
        pattern = NAMED.get(name, rf"(?<![\w-])(--)?{name.replace('_', '[_-]')}(?![\w-])")
        if re.search(pattern, sentence):
            return name
    return fields[-1]


def whole(form: Form, name: str, default: int) -> int:
    text = form.get(name, "").strip()
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise SettingsError(f"{name} = {text!r} is not possible; choose a whole number.")
    return int(text) if text else default


def interval(call, first: int, last: int) -> tuple[float, float]:
    """The span (lo, hi] of sigma in which the steps first to last of a chain lie, in few digits."""
    if not 1 <= first <= last <= call.steps:
        raise SettingsError(
            f"the negative cannot act from step {first} to last = {last}; choose 1 to {call.steps}."
        )
    sigma = [float(call.model.schedule.sigma_ve(t)) for t, _ in call.pairs]
    hi = float("inf") if first == 1 else between(sigma[first - 1], sigma[first - 2])
    return 0.0 if last == call.steps else between(sigma[last], sigma[last - 1]), hi


def between(low: float, high: float) -> float:
    """The number of fewest digits with low < x < high, near their geometric mean."""
    rounded = (float(f"{(low * high) ** 0.5:.{digits}g}") for digits in range(1, 17))
    return next((x for x in rounded if low < x < high), low)


def rules() -> list[dict]:
    """The rules with a negative, for a menu; Eq. (4) and its two scales are what none chosen is."""
    found = []
    for name, source in RULES.items():
        rule = read(name)
        if "eps_n" in rule.needs and name not in ("negative_prompt", "negative_prompt_two_scale"):
            says = inspect.getdoc(source).split("\n")[0]
            options = " ".join(f"{k}={v}" for k, v in rule.options.items() if v is not None)
            takes = {"s": "s" in rule.needs, "h": "h" in rule.needs}
            found.append({"name": name, "says": says, "options": options, **takes})
    return found

"""Which settings are possible together: one sentence with the mend for each that is not.

It imports no torch. Kinds and ranges stand in `dnp/settings.py`, methods in `dnp/methods.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnp.errors import SettingsError, meant
from dnp.methods import METHODS, Method, names
from dnp.settings import BY_ARGUMENT, Setting, of_chain


def choose_method(method: str | None, rule_needs: tuple[str, ...] | None, negative: object) -> str:
    """The method that is meant where none is named.

    cfg, or np2 where a negative is given; with a rule, one whose negative is given if the rule has
    an eps_n.
    """
    if method is not None:
        if method not in METHODS:
            raise SettingsError(f"method {method!r} is unknown; {meant(str(method), METHODS)}")
        return method
    if rule_needs is not None:
        return "np" if "eps_n" in rule_needs else "cfg"
    return "cfg" if negative is None else "np2"


def check(given: Mapping[str, object], method: str, T: int = 1000, rule=None) -> None:
    """SettingsError, one sentence with the mend, for settings that are not possible.

    `given` holds settings by their names in `dnp.generate`; None and defaults are as if not given.
    `rule` is a `dnp.contract.Rule` that replaces the method's own, T the levels of the schedule.
    """
    row = METHODS[method]
    for name in given:
        if name not in BY_ARGUMENT:
            raise SettingsError(f"{name} is no setting; {meant(name, BY_ARGUMENT)}")
    _check_negative(given, row, rule)
    for name, value in given.items():
        setting = BY_ARGUMENT[name]
        if value is None or setting.kind == "options":
            continue
        _check_owner(setting, value, row, rule)
        _check_value(setting, value, T)


def _check_negative(given: Mapping[str, object], row: Method, rule) -> None:
    negative = given.get("negative")
    if rule is not None and "eps_n" not in rule.needs and row.negative != "none":
        raise SettingsError(
            f"rule {rule.name} has no eps_n, and method {row.name} makes a negative; choose method "
            "cfg, or a rule with eps_n."
        )
    if rule is not None and "eps_n" not in rule.needs and negative is not None:
        raise SettingsError(f"rule {rule.name} takes no negative prompt (no eps_n); leave it out.")
    if row.negative == "given" and negative is None:
        who = f"method {row.name}" if rule is None else f"rule {rule.name}"
        raise SettingsError(f"{who} needs a negative prompt; add --negative TEXT.")
    if rule is not None and "eps_n" in rule.needs and row.negative == "none":
        raise SettingsError(
            f"rule {rule.name} needs a negative (eps_n), and method {row.name} has none; choose "
            f"{' or '.join(m.name for m in METHODS.values() if m.negative != 'none')}."
        )
    if not row.takes_words and negative is not None:
        raise SettingsError(
            f"method {row.name} takes no negative prompt; leave it out or choose "
            f"{' or '.join(names(negative='given'))}."
        )


def _check_owner(setting: Setting, value: object, row: Method, rule) -> None:
    called = setting.called or setting.name
    if setting.name == "negative_scale" and rule is not None:
        if "h" not in rule.needs:
            raise SettingsError(
                f"rule {rule.name} has no scale of the negative (no h); leave it out."
            )
        return
    if setting.name == "scale" and rule is not None and "s" not in rule.needs:
        raise SettingsError(f"rule {rule.name} has no guidance scale (no s); leave it out.")
    if setting.name == "negative_interval" and rule is not None and "eps_n" not in rule.needs:
        raise SettingsError(f"rule {rule.name} has no eps_n for a negative interval; leave it out.")
    if setting.name == "form" and rule is not None:
        raise SettingsError("form is a name for a rule; leave form or rule out.")
    typed = value != setting.default or of_chain is setting.of
    if typed and not setting.of(row):
        raise SettingsError(
            f"{called} belongs to method {setting.owners}, not {row.name}; leave it out."
        )


def _check_value(setting: Setting, value: object, T: int = 1000) -> None:
    """SettingsError if a value is not of its kind, or out of range."""
    name, low, high = setting.name.replace("_", " "), setting.low, setting.high
    if setting.name == "steps":
        high = T
    if setting.kind == "whole":
        if type(value) is not int or not low <= value <= high:
            raise SettingsError(_SENTENCES[setting.name].format(value=value, low=low, high=high))
    elif setting.kind == "number":
        if not is_finite(value):
            called = name if setting.name not in ("s_dns", "K_until") else setting.name
            if setting.name not in _SENTENCES:
                what = "no number" if isinstance(value, str) else "not finite"
                raise SettingsError(f"{called} {value!r} is {what}; give a number such as 1.")
        if setting.name in _SENTENCES and not (is_finite(value) and low <= value <= high):
            raise SettingsError(_SENTENCES[setting.name].format(value=value))
    elif setting.kind == "choice":
        if value not in setting.choices:
            raise SettingsError(
                f"{setting.name} = {value!r} is unknown; choose {_or(setting.choices)}."
            )
    elif name in ("original size", "target size", "crop"):
        sides = isinstance(value, tuple | list) and len(value) == 2
        if not sides or not all(type(v) is int and 0 <= v <= 100_000 for v in value):
            raise SettingsError(
                f"{name} {value!r} is not possible; give two whole numbers of pixels."
            )
    elif setting.kind == "numbers":
        many = isinstance(value, tuple | list) and 1 <= len(value) <= 5
        if not many or not all(is_finite(v) and low <= v <= high for v in value):
            raise SettingsError(_SENTENCES[setting.name].format(value=value))
    elif setting.kind == "span":
        two = isinstance(value, tuple | list) and len(value) == 2 and all(map(_number, value))
        if not two or not 0 <= value[0] <= value[1]:
            raise SettingsError(
                f"{name} {value!r} is not possible; give two numbers 0 <= LO <= HI of "
                "sqrt((1 - abar)/abar), such as 0.3 5."
            )


def _or(choices: tuple[str, ...]) -> str:
    return ", ".join(choices) if len(choices) > 2 else " or ".join(choices)


_SENTENCES = {
    "steps": "{value} steps are not possible; choose 1 to {high}.",
    "images": "{value} images are not possible; choose 1 to 10000.",
    "dns_images": "{value} DNS images for a caption are not possible; choose 1 to 100.",
    "seed": "seed {value} is not possible; choose a whole number from 0 to 2^32 - 1.",
    "eta": "eta {value} is not possible; choose 0 to 1.",
    "K": "K = {value} inner steps are not possible; choose 0 to 1000.",
    "K_until": "K_until = {value} is not possible; choose a fraction from 0 to 1.",
    "ae_step": "ae_step = {value} is not possible; choose 0 or more, such as 20.",
    "ae_until": "ae_until = {value} is not possible; choose a fraction from 0 to 1.",
    "ae_thresholds": (
        "ae_thresholds {value!r} are not possible; give 1 to 5 numbers from 0 to 1, such as "
        "0.05:0.5:0.8."
    ),
    "ae_refinements": "{value} ae_refinements are not possible; choose 0 to 1000.",
    "ae_level": "ae_level = {value} is not possible; choose 0, 1, 2 or the like.",
}


def is_finite(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e30


def _number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and x == x  # inf is allowed

"""The settings: kind, range, default, help and owner of every one, in one table.

The command line, the record in a PNG, the checks of `dnp.generate` and the options of a method in
the experiments are all made from SETTINGS. This file imports no torch, so that `--help` is instant.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dnp.errors import SettingsError, meant
from dnp.methods import METHODS, Method, names

SEEDS = 2**32  # torch seeds its CPU generator with 32 bits, so more would repeat
DEFAULT_SCALE = 7.5  # where the weights recommend none; Stable Diffusion's own
SAMPLERS = ("ddim", "dpmpp2m")


def every(method: Method) -> bool:
    return True


def of_chain(method: Method) -> bool:
    return method.negative == "chain"


def of_dns_image(method: Method) -> bool:
    return method.makes_dns_image


def of_dns(method: Method) -> bool:
    return method.makes_dns_image or of_chain(method)


def of_words(method: Method) -> bool:
    return method.takes_words


def of_negative(method: Method) -> bool:
    return method.negative != "none"


def of_two_scale(method: Method) -> bool:
    """Where a second scale makes Eq. (4) the two-scale form; another rule asks for h itself."""
    return method.takes_words and method.rule == "negative_prompt"


@dataclass(frozen=True)
class Setting:
    """One row.

    kind      text, whole, number, choice, flag, sides (two whole numbers), span (two numbers) or
              options (a dict)
    group     what   what is drawn: prompt, method, negative
              how    how it is sampled: also an option of a method in the experiments
              which  which pictures: seeds, sizes
              where  weights and precision
              run    this run alone: not recorded in a PNG
    of        whether a method has it
    """

    name: str
    kind: str
    default: object
    group: str
    help: str
    metavar: str = "X"
    of: Callable[[Method], bool] = every
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    called: str = ""  # in sentences, where its name is no phrase
    python: str = ""  # in dnp.generate and the experiments, where it is another

    @property
    def argument(self) -> str:
        return self.python or self.name

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def owners(self) -> str:
        return " or ".join(m.name for m in METHODS.values() if self.of(m))


S = Setting
_ROWS = (
    S("prompt", "text", None, "what", 'the prompt; "" is the empty prompt phi', "PROMPT"),
    S("method", "text", None, "what", "cfg, or np2 where a negative is given", "METHOD"),
    S("negative", "text", None, "what",
      "negative prompt n, or n* for dnp and auto-dnp", "TEXT", of_words),
    S("rule", "text", None, "how", "another guidance rule: its name, or FILE.py:NAME", "RULE"),
    S("rule_options", "options", None, "how",
      "an option of the rule", "KEY=VALUE", called="rule_options"),
    S("scale", "number", None, "how",
      "guidance scale s; default: the weights' own", "S", python="s"),
    S("negative_scale", "number", None, "how",
      "another scale h for n; default S", "H", of_two_scale,
      called="a negative scale"),
    S("interval", "span", None, "how",
      "guide where LO < sqrt((1 - abar)/abar) <= HI, else p alone", "LO HI"),
    S("negative_interval", "span", None, "how",
      "the same for the negative, else phi", "LO HI", of_negative),
    S("sampler", "choice", "ddim", "how", "ddim (default) or dpmpp2m", "NAME", choices=SAMPLERS),
    S("steps", "whole", 50, "how", "sampling steps, 1 to 1000; default 50", "N", low=1),
    S("eta", "number", 0.0, "how", "0 (DDIM) to 1 (DDPM); default 0", "E", low=0, high=1),
    S("s_dns", "number", None, "how",
      "scale of the DNS image, or of answer's inner chain", "S", of_dns),
    S("dns_images", "whole", 1, "how",
      "N DNS images for each n*; default 1", "N", of_dns_image, 1, 100),
    S("caption_per", "choice", "seed", "how", "one n* for each seed (default) or prompt", "WHAT",
      of_dns_image, choices=("seed", "prompt")),
    S("K", "whole", 2, "how", "answer: inner DNS steps; default 2", "K", of_chain, 0, 1000),
    S("K_until", "number", 0.5, "how",
      "answer: the share of the steps that have them; default 0.5", "F",
      of_chain, 0, 1),
    S("tensor", "choice", "last", "how",
      "answer: which noise is the negative; default last", "NAME",
      of_chain, choices=("last", "next", "unconditional", "jump")),
    S("form", "choice", "three-term", "how",
      "answer: three-term (default) or two-term", "NAME", of_chain,
      choices=("three-term", "two-term")),
    S("normalize", "choice", "sample", "how",
      "answer: statistics of the negative; default sample", "NAME",
      of_chain, choices=("sample", "channel", "none")),
    S("phi", "choice", None, "how",
      "SDXL: the empty prompt is zeros, or its text; default: as PATH says", "WHAT",
      choices=("zeros", "text")),
    S("seed", "whole", 0, "which",
      "seed of the first picture; default 0", "N", low=0, high=SEEDS - 1),
    S("images", "whole", 1, "which",
      "K pictures, seeds N, N+1, ...; default 1", "K", low=1, high=10_000),
    S("size", "sides", None, "which", "height and width in pixels; default: as trained", "H W"),
    S("original_size", "sides", None, "which", "SDXL: original size told; default: SIZE", "H W"),
    S("crop", "sides", None, "which", "SDXL: crop told; default 0 0", "TOP LEFT"),
    S("target_size", "sides", None, "which", "SDXL: target size told; default: SIZE", "H W"),
    S("compare", "flag", False, "which", "one sheet: methods in rows, seeds in columns"),
    S("weights", "text", "weights/mini", "where",
      "a diffusers folder or a .safetensors file", "PATH"),
    S("prediction", "text", None, "where",
      "epsilon or v_prediction; default: what PATH says", "KIND"),
    S("captioner", "text", None, "where",
      "for auto-dnp: BLIP or its like; default: the weights' own", "FOLDER"),
    S("dtype", "text", "auto", "where",
      "auto, float32, float64, on a GPU float16, bfloat16", "NAME"),
    S("device", "text", "auto", "run", "auto, cpu, cuda, cuda:1, mps", "NAME"),
    S("allow_download", "flag", False, "run", "--captioner may be a name to download"),
    S("show", "flag", False, "run", "open the DNS image of dnp in a viewer"),
    S("info", "flag", False, "run", "tell what --weights holds, and stop"),
    S("out", "text", "outputs", "run", "default outputs", "FOLDER"),
    S("prompts", "text", None, "run",
      "prompts of a text file, one a line; TAB and a negative may follow", "FILE"),
    S("from", "text", None, "run",
      "take every setting from a PNG made here; other options override them", "FILE.png"),
)  # fmt: skip
SETTINGS = {s.name: s for s in _ROWS}
# What a PNG holds beside its settings: which weights and which rule made it.
RECORDED = ("fingerprint", "rule_sha256", "rule_file")
OF_PIPELINE = "pipeline-"  # how the fingerprint of weights begins that a diffusers pipeline held
_BY_ARGUMENT = {s.argument: s for s in _ROWS if s.group in ("how", "what", "which")}


def arguments() -> dict[str, object]:
    """Every setting of `dnp.generate` by its name there, with its default."""
    return {x.argument: x.default for x in of_group("how", "which").values()} | {"negative": None}


def of_group(*groups: str) -> dict[str, Setting]:
    """The settings of some groups, by their names."""
    return {s.name: s for s in _ROWS if s.group in groups}


# --------------------------------------------------------------------------------------- choosing


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
        if name not in _BY_ARGUMENT:
            raise SettingsError(f"{name} is no setting; {meant(name, _BY_ARGUMENT)}")
    _check_negative(given, row, rule)
    for name, value in given.items():
        setting = _BY_ARGUMENT[name]
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
        raise SettingsError(f"method {row.name} needs a negative prompt; add --negative TEXT.")
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
                raise SettingsError(f"{called} {value} is not finite; give a number such as 1.")
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
}


def is_finite(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e30


def _number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and x == x  # inf is allowed


# ------------------------------------------------------------------------------- text and records


def from_text(setting: Setting, text: str) -> object:
    """The value that a text means; ValueError if it means none."""
    if setting.kind == "whole":
        return int(text)
    if setting.kind == "number":
        return float(text)
    if setting.kind == "span":
        low, high = text.split(":")
        return float(low), float(high)
    return text


def option(text: str) -> tuple[str, object]:
    """KEY=VALUE of a rule: a number, true, false, null or text. SettingsError without a KEY."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise SettingsError(f"{text!r} is no option of a rule; write KEY=VALUE.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


_RECORD_KINDS = {
    "text": (str,), "choice": (str,), "whole": (int,), "number": (int, float), "flag": (bool,),
    "sides": (list,), "span": (list,), "options": (dict,),
}  # fmt: skip


def is_recordable(name: str, value: object) -> bool:
    """Whether a PNG made here can hold this value under this name."""
    if name in RECORDED:
        return value is None or type(value) is str
    setting = SETTINGS[name]
    return value == setting.default or type(value) in _RECORD_KINDS[setting.kind]


def defaults(*groups: str) -> dict[str, object]:
    return {name: s.default for name, s in of_group(*groups).items()}

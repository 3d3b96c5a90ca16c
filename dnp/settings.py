"""The settings: kind, range, default, help and owner of every one, in one table.

The command line, the record in a PNG, the checks of `dnp.generate` (`dnp/validation.py`) and the
options of a method in the experiments are all made from SETTINGS. This file imports no torch, so
that `--help` is instant.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dnp.errors import SettingsError
from dnp.methods import METHODS, Method

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


def of_ae(method: Method) -> bool:
    return method.excites


def of_subjects(method: Method) -> bool:
    return method.has_subjects


def of_two_scale(method: Method) -> bool:
    """Where a second scale makes Eq. (4) the two-scale form; another rule asks for h itself."""
    words = method.takes_words or method.negative == "neglected"
    return words and method.rule == "negative_prompt"


@dataclass(frozen=True)
class Setting:
    """One row.

    kind      text, whole, number, choice, flag, sides (two whole numbers), span (two numbers),
              numbers (a list of them) or options (a dict)
    group     what   what is drawn: prompt, method, negative, subjects
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
    S("subjects", "text", None, "what",
      'ae, neglect: the things of the prompt, as in "cat, dog"; default: those of a closed world',
      "WORDS", of_subjects),
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
    S("sampler", "choice", SAMPLERS[0], "how",
      " or ".join(SAMPLERS) + f"; default {SAMPLERS[0]}", "NAME", choices=SAMPLERS),
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
    S("ae_step", "number", None, "how",
      "ae: size of the first move; default: the weights' own, else 20", "X", of_ae, 0),
    S("ae_until", "number", None, "how",
      "ae: the share of the steps that move; the weights' own, else 0.5", "F", of_ae, 0, 1),
    S("ae_thresholds", "numbers", None, "how",
      "ae: wanted peaks at 0, 1/5, 2/5, ... of the steps; else 0.05:0.5:0.8", "X:X:X", of_ae, 0, 1),
    S("ae_refinements", "whole", None, "how",
      "ae: most moves towards a threshold; the weights' own, else 20", "N", of_ae, 0, 1000),
    S("ae_level", "whole", None, "how",
      "ae, neglect: whose maps; 0 is as large as z_t, each next half; else 2", "L", of_subjects,
      0, 10),
    S("phi", "choice", None, "how",
      "SDXL: the empty prompt is zeros, or its text; default: as PATH says", "WHAT",
      choices=("zeros", "text")),
    S("seed", "whole", 0, "which",
      "seed of the first picture; default 0", "N", low=0, high=SEEDS - 1),
    S("images", "whole", 1, "which",
      "K pictures, seeds N, N+1, ...; default 1", "K", low=1, high=10_000),
    S("size", "sides", None, "which", "height and width in pixels; default: as trained", "H W"),
    S("original_size", "sides", None, "which", "SDXL: original size; default: SIZE", "H W"),
    S("crop", "sides", None, "which", "SDXL: crop; default 0 0", "TOP LEFT"),
    S("target_size", "sides", None, "which", "SDXL: target size; default: SIZE", "H W"),
    S("compare", "flag", False, "which", "one sheet: methods in rows, seeds in columns"),
    S("weights", "text", "weights/mini", "where",
      "a diffusers folder or a .safetensors file", "PATH"),
    S("prediction", "text", None, "where",
      "epsilon or v_prediction; default: what PATH says", "KIND"),
    S("captioner", "text", None, "where",
      "for auto-dnp: BLIP or its like; default: the weights' own", "FOLDER"),
    S("dtype", "text", "auto", "where",
      "auto, float32, float64, bfloat16, on a GPU float16", "NAME"),
    S("device", "text", "auto", "run", "auto, cpu, cuda, cuda:1, mps", "NAME"),
    S("allow_download", "flag", False, "run", "--captioner may be a name to download"),
    S("show", "flag", False, "run", "open the DNS image of dnp in a viewer"),
    S("info", "flag", False, "run", "print what --weights holds, and stop"),
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
# Attend-and-Excite as published for Stable Diffusion 1.4, where the weights recommend nothing.
EXCITATION = {
    "ae_step": 20.0, "ae_until": 0.5, "ae_thresholds": (0.05, 0.5, 0.8), "ae_refinements": 20,
    "ae_level": 2,
}  # fmt: skip
BY_ARGUMENT = {s.argument: s for s in _ROWS if s.group in ("how", "what", "which")}


def arguments() -> dict[str, object]:
    """Every setting of `dnp.generate` by its name there, with its default."""
    every = {x.argument: x.default for x in of_group("how", "which").values()}
    return every | {"negative": None, "subjects": None}


def excitation(chosen: Mapping[str, object], recommended: Mapping[str, object]) -> dict:
    """The settings of Attend-and-Excite: as chosen, else as the weights recommend or published."""
    recommended = EXCITATION | dict(recommended)
    return {k: chosen[k] if chosen.get(k) is not None else recommended[k] for k in EXCITATION}


def of_group(*groups: str) -> dict[str, Setting]:
    """The settings of some groups, by their names."""
    return {s.name: s for s in _ROWS if s.group in groups}


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
    if setting.kind == "numbers":
        return numbers(text)
    return text


def numbers(text: str) -> tuple[float, ...]:
    """0.05:0.5:0.8 as three numbers; ValueError if it is none."""
    return tuple(float(x) for x in text.split(":"))


def option(text: str) -> tuple[str, object]:
    """KEY=VALUE of a rule: a number, true, false, null or text.

    SettingsError without a KEY, and for a number that is not finite.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise SettingsError(f"{text!r} is no option of a rule; write KEY=VALUE.")
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


_RECORD_KINDS = {
    "text": (str,), "choice": (str,), "whole": (int,), "number": (int, float), "flag": (bool,),
    "sides": (list,), "span": (list,), "numbers": (list,), "options": (dict,),
}  # fmt: skip


def is_recordable(name: str, value: object) -> bool:
    """Whether a PNG made here can hold this value under this name."""
    if name in RECORDED:
        return value is None or type(value) is str
    setting = SETTINGS[name]
    return value == setting.default or type(value) in _RECORD_KINDS[setting.kind]


def defaults(*groups: str) -> dict[str, object]:
    return {name: s.default for name, s in of_group(*groups).items()}

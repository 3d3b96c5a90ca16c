"""What was typed, as settings: the parser, the defaults, and lists of prompts.

The options of methods and of the chain are their fields (`dnp/methods/fields.py`); here stand those
of the application itself.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import Field, fields
from types import SimpleNamespace

from dnp.app.from_png import RECORDED, from_png
from dnp.app.settings import Once, Picture, Weights, method_of
from dnp.app.terminal import Parser
from dnp.errors import SettingsError, meant
from dnp.methods import METHODS, own
from dnp.methods.chain import Chain
from dnp.methods.fields import (
    WIDTH_X_HEIGHT,
    check_value,
    from_text,
    kind,
    metavar,
    option,
    table,
)
from dnp.methods.method import Method, formula
from dnp.sd.files.data_only import read_regular

ABOUT = """Pictures from a prompt by diffusion-negative sampling and its neighbours.

    python -m dnp "a red car"
    python -m dnp "a red car" --method dns
    python -m dnp "a cat and a dog" --method auto-dnp
    python -m dnp "a cat and a dog" --negative "a bear" --compare --images 4
    python -m dnp --from outputs/a-red-car-cfg-0.png
    python -m dnp --page

The equations are those of arXiv:2411.05473; ANSWER is arXiv:2508.02973."""
FLAGS = ("compare", "allow_download", "show", "info", "page")
GROUPS = {"the picture": (Picture,), "the method": tuple(METHODS.values()), "the chain": (Chain,),
          "the weights": (Weights,), "this run": (Once,)}  # fmt: skip


def flags(name: str) -> list[str]:
    """--negative-scale of negative_scale; the guidance scale has two."""
    own_names = {"s": ["--s", "--scale"], "rule_options": ["--option"]}
    return own_names.get(name, ["--" + name.rstrip("_").replace("_", "-")])


def owners_of(name: str) -> str:
    """ae, neglect: of a setting that not every method has."""
    have = [m.name for m in METHODS.values() if name in table(m)]
    return f"{', '.join(have)}: " if 0 < len(have) < len(METHODS) else ""


# -------------------------------------------------------------------------------- what was typed


def parse(argv: list[str], prog: str = "python -m dnp") -> dict:
    """The options that were typed, by their names; `resolve` fills in --from and the defaults."""
    p = Parser(
        prog=prog, add_help=False, argument_default=argparse.SUPPRESS,
        usage=f"{prog} PROMPT [options]", description=ABOUT, epilog=methods_table(),
    )  # fmt: skip
    kind_of = method_typed(argv)
    about = "this, or the options of one method: --help ae"
    p.add_argument("--help", nargs="?", const="", metavar="METHOD", help=about)
    p.add_argument("prompt", nargs="?", metavar="PROMPT", help='"" is the empty prompt phi')
    done: set[str] = set()
    for title, classes in {**GROUPS, "the method": (*GROUPS["the method"], *kind_of)}.items():
        group = p.add_argument_group(title)
        for f in table(*classes).values():
            if f.name not in done:
                done.add(f.name)
                add(group, f, owners_of(f.name) if f.name not in table(*kind_of) else "")
    typed = vars(p.parse_args(written_out(argv, p._option_string_actions)))
    if "help" in typed:
        print(help_of(typed["help"], p))
        raise SystemExit(0)
    if "rule_options" in typed:
        typed["rule_options"] = dict(option(text) for text in typed["rule_options"])
    return typed


def written_out(argv: list[str], known: Collection[str]) -> list[str]:
    """Two habits in the parser's own way: --size 512x768 (width x height) is --size 768 512, and
    the text after --negative may begin with a dash, unless it is an option."""
    words: list[str] = []
    for word in argv:
        before = words[-1] if words else ""
        if before == "--size" and (usual := WIDTH_X_HEIGHT.fullmatch(word)):
            words += [usual[2], usual[1]]
        elif word.startswith("--size=") and (usual := WIDTH_X_HEIGHT.fullmatch(word[7:])):
            words += ["--size", usual[2], usual[1]]
        elif before == "--negative" and word[:1] == "-" and word.split("=")[0] not in known:
            words[-1] = f"--negative={word}"
        else:
            words.append(word)
    return words


def words_of(typed: Mapping[str, object]) -> list[str]:
    """The words that `parse` reads as these settings: `parse(words_of(typed)) == typed`.

    A value may be a text too, as a field of the page holds it.
    """
    words, prompt = [], typed.get("prompt")
    for name, value in typed.items():
        flag = flags(name)[-1]
        if name == "rule_options":
            for k, v in value.items():
                plain = isinstance(v, str) and option(f"{k}={v}")[1] == v
                words += [flag, f"{k}={v if plain else json.dumps(v)}"]
        elif name in FLAGS:
            words += [flag] if value else []
        elif isinstance(value, tuple | list):
            two = kind(table(*METHODS.values(), Chain)[name]) != "Numbers"
            words += [flag, *map(str, value)] if two else [flag, ":".join(map(str, value))]
        elif name != "prompt":
            text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
            words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    if prompt is None:
        return words
    return [*words, "--", prompt] if prompt.startswith("-") else [prompt, *words]


def line(typed: Mapping[str, object], prog: str = "python -m dnp") -> str:
    """The line to type for these settings; in double quotes where those mean the same anywhere."""
    return " ".join([prog, *map(_quoted, words_of(typed))])


def _quoted(word: str) -> str:
    if re.fullmatch(r"[\w@%+=:,./-]+", word):
        return word
    return shlex.quote(word) if re.search(r'["$`\\!%\x00-\x1f]', word) else f'"{word}"'


def add(group, f: Field, who: str) -> None:
    """A field as an option of a parser."""
    names, said = flags(f.name), who + help_text(f)
    if f.name in FLAGS:
        group.add_argument(*names, dest=f.name, action="store_true", help=said)
    elif f.name == "rule_options":
        group.add_argument(*names, dest=f.name, action="append", metavar=metavar(f), help=said)
    elif kind(f) in ("Span", "Sides"):
        number = float if kind(f) == "Span" else int
        two = tuple(metavar(f).split())
        group.add_argument(*names, dest=f.name, nargs=2, type=number, metavar=two, help=said)
    else:

        def value(text: str) -> object:
            try:
                return from_text(f, text)
            except ValueError:
                check_value(f, text)  # SettingsError: a text is not what it should be
                raise

        group.add_argument(*names, dest=f.name, type=value, metavar=metavar(f), help=said)


def help_text(f: Field) -> str:
    """What a field is, and its default unless the words say it."""
    said = f.metadata["help"]
    told = f.default is None or f.name in FLAGS or "default" in said
    default = f.default if kind(f) != "bool" else "yes" if f.default else "no"
    return said if told else f"{said}; default {default}"


def method_typed(argv: list[str]) -> list[type[Method]]:
    """The class of --method FILE.py:NAME, whose settings are options too."""
    for word, following in zip(argv, [*argv[1:], ""]):
        name = following if word == "--method" else word.removeprefix("--method=")
        if own.is_file(name) and word.startswith("--method"):
            return method_of(name)
    return []


def help_of(method: str, p: argparse.ArgumentParser) -> str:
    """All help, or the options of one method."""
    if not method:
        return p.format_help().rstrip()
    found = own.find(method, "method") if own.is_file(method) else METHODS.get(method)
    if found is None:
        raise SettingsError(f"method {method!r} is unknown; {meant(method, METHODS)}")
    lines = [f"{found.name}: {', '.join(filter(None, formula(found)))}"]
    for f in fields(found):
        lines.append(f"  {' '.join([flags(f.name)[0], metavar(f)]):<28} {help_text(f)}")
    return "\n".join(lines)


def methods_table() -> str:
    rows = [(name, *formula(m)) for name, m in METHODS.items()]
    table = "\n".join(f"  {a:<11} {b:<34} {c}" for a, b, c in rows)
    return f"methods:\n{table}\n\nwhich rule and scale for a negative: dnp/NEGATIVES.md"


# --------------------------------------------------------------------------- what a PNG adds


def resolve(typed: dict) -> SimpleNamespace:
    """The typed options over those of --from over the defaults; SettingsError if they cannot be.

    `settings` holds those of the method and the chain that are given, `typed` what was typed.
    """
    if "compare" in typed:
        for name in ("method", "rule"):
            if name in typed:
                raise SettingsError(
                    f"--compare shows every method in one sheet; leave --{name} out, or --compare."
                )
    for name in ("host", "port"):
        if name in typed:
            raise SettingsError(f"--{name} belongs to --page; add --page, or leave --{name} out.")
    recorded = from_png(typed) if "from_" in typed else {}
    if "rule_options" in typed:  # over the recorded ones of the same rule
        options = (recorded.get("rule_options") or {}) | typed["rule_options"]
        typed = {**typed, "rule_options": options}
    given = {**recorded, **typed}
    of_app = {f.name: f.default for f in table(Picture, Weights, Once).values()}
    own_fields = table(*METHODS.values(), *method_of(given.get("method")), Chain)
    args = SimpleNamespace(
        **{**of_app, "prompt": None, **dict.fromkeys(set(RECORDED) - {"device"})}
        | {k: v for k, v in given.items() if k not in own_fields},
        settings={k: v for k, v in given.items() if k in own_fields and v is not None},
        typed=list(typed),
    )
    if args.model is not None:
        for name in ("weights", "prediction", "device", "dtype", "vae_dtype"):
            if name in typed:
                raise SettingsError(
                    f"--{name} and --model are both given, and a model of your own has its own; "
                    "leave one out."
                )
    if args.prompt is None:
        raise SettingsError(
            'no prompt; give one in quotes, such as "a red car", or --from FILE.png.'
        )
    if args.compare and args.negative is None and "negative_scale" in args.settings:
        raise SettingsError(
            "--negative-scale with --compare needs a negative prompt; add --negative TEXT."
        )
    return args


def jobs(typed: dict) -> list[SimpleNamespace]:
    """What is to be drawn: one prompt, or those of --prompts FILE, all checked before the first."""
    if "prompts" not in typed:
        return [resolve(typed)]
    if typed.get("prompt") is not None:
        raise SettingsError("a prompt and --prompts FILE are both given; leave one out.")
    return [resolve({**typed, **of_line}) for of_line in read_prompts(typed["prompts"])]


def read_prompts(file: str) -> list[dict[str, str]]:
    """The lines of a file: a prompt, or a prompt, TAB and a negative.

    Empty lines, and those that begin with #, are passed over. SettingsError, one sentence with the
    fix, for a file without prompts, for JSON, and for options inside a line.
    """
    try:
        lines = read_regular(file).decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except (OSError, ValueError) as e:
        raise SettingsError(
            f"{file}: cannot be read ({str(e)[:200]}); give --prompts a text file in UTF-8."
        ) from None
    if "".join(lines).lstrip()[:1] in ("[", "{") and '"' in "".join(lines):
        raise SettingsError(f"{file} looks like JSON; write one prompt on each line.")
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("#"):
            continue
        if option := re.search(r"(?<!\S)--[a-z][\w-]*", line):
            raise SettingsError(
                f"{file}, line {number}: {option[0]} is an option, and a line is a prompt; give "
                "options on the command line."
            )
        words = [part.strip() for part in line.split("\t")]
        if len(words) > 2:
            raise SettingsError(f"{file}, line {number}: more than one TAB; give one negative.")
        if any(words):
            prompts.append(dict(zip(("prompt", "negative"), words)))
    if not prompts:
        raise SettingsError(f"{file} does not hold a prompt; write one on each line.")
    return prompts

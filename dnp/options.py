"""What was typed, as settings: the parser, what a PNG adds with --from, the settings per method.

Options, defaults and help come from `dnp/settings.py`, methods from `dnp/methods.py`.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from dnp import settings as table
from dnp.command import printable
from dnp.errors import SettingsError, meant
from dnp.methods import METHODS
from dnp.settings import SETTINGS
from dnp.validation import choose_method

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"whole": int, "number": float, "numbers": table.numbers}
# Settings that another method or rule does not take over from a PNG.
OF_A_METHOD = {
    "compare", "scale", "negative_scale", "rule", "rule_options", "rule_sha256",
    "negative_interval",
    *(s.name for s in SETTINGS.values() if s.of in (table.of_dns, table.of_dns_image)),
    *(s.name for s in SETTINGS.values() if s.of in (table.of_chain, table.of_ae)),
    *(s.name for s in SETTINGS.values() if s.of is table.of_subjects),
}  # fmt: skip
# What leaves the words n* of a PNG true: they belong to its prompt, seed and DNS image.
KEEPS_WORDS = {
    *table.of_group("run"), "scale", "negative_scale", "rule", "rule_options", "interval",
    "negative_interval", *table.EXCITATION,
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        _, unknown, words = message.partition("unrecognized arguments: ")
        if unknown and not words.startswith("-"):
            fail(f'more than one prompt ({words}); put the prompt in quotes, such as "a red car".')
        if unknown:
            word = words.split()[0].split("=")[0]
            near = meant(word, [s.flag for s in SETTINGS.values()])
            if near.startswith("did you mean"):
                fail(f"{message}; {near}")
        fail(f"{message}; python train_free_sample.py --help lists what is possible.")


def fail(sentence: str) -> None:
    print(f"error: {printable(sentence)}", file=sys.stderr)
    sys.exit(2)


def parse(argv: list[str] | None, description: str | None = None) -> dict:
    """The options that were typed, by their names; `resolve` fills in --from and the defaults."""
    p = Parser(
        description=description or __doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        epilog="methods:\n"
        + "\n".join(f"  {m.name:<11} {m.formula:<21} {m.source}" for m in METHODS.values()),
    )
    for s in SETTINGS.values():
        if s.name == "prompt":
            p.add_argument("prompt", nargs="?", metavar=s.metavar, help=s.help)
        elif s.kind == "flag":
            p.add_argument(s.flag, dest=s.name, action="store_true", help=s.help)
        elif s.kind == "options":
            p.add_argument("--option", dest=s.name, action="append", metavar=s.metavar, help=s.help)
        elif s.kind in ("sides", "span"):
            kind = int if s.kind == "sides" else float
            names = tuple(s.metavar.split())
            p.add_argument(s.flag, dest=s.name, nargs=2, type=kind, metavar=names, help=s.help)
        else:
            kind = KINDS.get(s.kind, str)
            p.add_argument(s.flag, dest=s.name, type=kind, metavar=s.metavar, help=s.help)
    typed = vars(p.parse_args(argv))
    if "rule_options" in typed:
        typed["rule_options"] = dict(table.option(text) for text in typed["rule_options"])
    return typed


def resolve(typed: dict) -> argparse.Namespace:
    """The typed options over those of --from over the defaults; SettingsError if they cannot be."""
    from dnp import contract, pictures

    if "compare" in typed:
        for name in ("method", "rule"):
            if name in typed:
                raise SettingsError(
                    f"--compare shows every method in one sheet; leave --{name} out, or --compare."
                )
    every = {
        **table.defaults("what", "how", "which", "where", "run"),
        **dict.fromkeys(table.RECORDED),
    }
    recorded = pictures.read_settings(Path(typed["from"])) if "from" in typed else {}
    recorded = {k: v for k, v in recorded.items() if k in every and k not in table.of_group("run")}
    for key, value in recorded.items():
        if not table.is_recordable(key, value):
            raise SettingsError(
                f"{typed['from']}: {key} = {value!r} was never written here; take another PNG."
            )
    if str(recorded.get("fingerprint")).startswith(table.OF_PIPELINE) and "weights" not in typed:
        raise SettingsError(
            f"{typed['from']}: its weights came from a diffusers pipeline that was open in Python "
            "(dnp.from_diffusers), and no file is named; save it with pipe.save_pretrained(FOLDER) "
            "and add --weights FOLDER."
        )
    if "method" in typed or "compare" in typed:  # the recorded ones belong to another method
        for key in OF_A_METHOD:
            recorded.pop(key, None)
        if (
            "method" in typed
            and not METHODS[choose_method(typed["method"], None, None)].takes_words
        ):
            recorded.pop("negative", None)
    if "prompt" in typed:
        recorded.pop("subjects", None)
    before = METHODS.get(recorded.get("method"))
    of_s = before is not None and before.h_of_s != 1 and typed.keys() & {"scale", "rule"}
    if of_s and recorded.get("negative_scale") == before.h_of_s * (recorded.get("scale") or 0):
        recorded["negative_scale"] = None  # it followed from s, as it is to again
    if "rule" in typed:
        now, file = typed["rule"], recorded.get("rule_file")
        if recorded.pop("rule", None) != now:
            recorded.pop("rule_options", None)
        if contract.is_file(now) and file not in (None, contract.file_sha256(now)):
            warnings.warn(
                "this rule's file is not the one that the PNG was made with", stacklevel=1
            )
        recorded.pop("rule_sha256", None)
    elif contract.is_file(recorded.get("rule")):
        raise SettingsError(
            f"{typed['from']} was made with the rule {recorded['rule']}, and no picture makes "
            f"a file run; add --rule {recorded['rule']} if you trust it."
        )
    if "rule_options" in typed:  # over the recorded ones of the same rule
        options = (recorded.get("rule_options") or {}) | typed["rule_options"]
        typed = {**typed, "rule_options": options}
    if typed.get("method", recorded.get("method")) in METHODS:
        row = METHODS[typed.get("method", recorded.get("method"))]
        stale = before is None or not before.makes_dns_image or typed.keys() - KEEPS_WORDS
        if row.makes_dns_image and stale:  # any other n is no n*
            recorded.pop("negative", None)
    args = argparse.Namespace(**{**every, **recorded, **typed}, typed=list(typed))
    if args.prompt is None:
        raise SettingsError(
            'no prompt; give one in quotes, such as "a red car", or --from FILE.png.'
        )
    if args.compare and args.negative is None and args.negative_scale is not None:
        raise SettingsError(
            "--negative-scale with --compare needs a negative prompt; add --negative TEXT."
        )
    return args


def jobs(typed: dict) -> list[argparse.Namespace]:
    """What is to be drawn: one prompt, or those of --prompts FILE, all checked before the first."""
    if "prompts" not in typed:
        return [resolve(typed)]
    if "prompt" in typed and typed["prompt"] is not None:
        raise SettingsError("a prompt and --prompts FILE are both given; leave one out.")
    return [resolve({**typed, **of_line}) for of_line in read_prompts(typed["prompts"])]


def read_prompts(file: str) -> list[dict[str, str]]:
    """The lines of a file: a prompt, or a prompt, TAB and a negative; empty lines are passed over.

    SettingsError, one sentence with the mend, for a file without prompts.
    """
    from dnp.folders import open_regular

    try:
        with open_regular(file) as f:
            lines = f.read().decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as e:
        raise SettingsError(
            f"{file}: cannot be read ({str(e)[:200]}); give --prompts a text file in UTF-8."
        ) from None
    prompts = []
    for number, line in enumerate(lines, 1):
        words = [part.strip() for part in line.split("\t")]
        if len(words) > 2:
            raise SettingsError(f"{file}, line {number}: more than one TAB; give one negative.")
        if any(words):
            prompts.append(dict(zip(("prompt", "negative"), words)))
    if not prompts:
        raise SettingsError(f"{file} holds no prompt; write one on each line.")
    return prompts


def find_weights(name: str) -> Path:
    """A relative path is looked for here and then beside the package."""
    here, beside = Path(name), ROOT / name
    with suppress(OSError):  # a name too long for a path: `dnp.load` says so
        return beside if not here.exists() and beside.exists() else here
    return here


def chosen_methods(args: argparse.Namespace) -> dict[str, dict]:
    """The settings of `dnp.generate` of each method, as typed.

    --compare takes all methods that need only what was given, and gives each what belongs to it;
    dnp with given words is np, so it has no row of its own, and ae has one row, without n*.
    """
    from dnp import contract

    how = {s.argument: getattr(args, s.name) for s in table.of_group("how").values()}
    typed = {SETTINGS[name].argument for name in args.typed}
    how = {k: v for k, v in how.items() if v != table.arguments()[k] or k in typed}
    how["steps"] = args.steps
    how |= {k: getattr(args, k) for k in ("negative", "subjects") if getattr(args, k) is not None}
    if not args.compare:
        rule = contract.read(args.rule, args.rule_options) if args.rule else None
        method = choose_method(args.method, rule and rule.needs, args.negative)
        if args.method is None and method == "np2":
            warnings.warn(
                "a negative prompt without --method is used as elsewhere, n + s (p - n): np2; "
                "--method np is Eq. 4",
                stacklevel=1,
            )
        return {method: how}
    rows = [m for m in METHODS.values() if m.negative != "asked" and m.name != "ae+auto-dnp"]
    if args.negative is None:
        rows = [m for m in rows if m.negative != "given"]
    if args.captioner is None and not (find_weights(args.weights) / "captioner").is_dir():
        rows = [m for m in rows if m.negative != "captioned"]
    belongs = {s.argument: s.of for s in table.of_group("how", "what").values()}
    of = {m.name: {k: v for k, v in how.items() if belongs[k](m)} for m in rows}
    of.get("auto-dnp", {}).pop("negative", None)  # its own words
    return of

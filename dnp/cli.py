"""The command line, `python train_free_sample.py PROMPT`: settings in, pictures out.

Options, defaults and help come from `dnp/settings.py`, methods from `dnp/methods.py`.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

from dnp import settings as table
from dnp.command import streams
from dnp.errors import DnpError, SettingsError, meant
from dnp.methods import METHODS
from dnp.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"whole": int, "number": float}
# Settings that another method or rule does not take over from a PNG.
OF_A_METHOD = {
    "compare", "scale", "negative_scale", "rule", "rule_options", "rule_sha256",
    "negative_interval",
    *(s.name for s in SETTINGS.values() if s.of in (table.of_dns, table.of_dns_image)),
    *(s.name for s in SETTINGS.values() if s.of is table.of_chain),
}  # fmt: skip
# What leaves the words n* of a PNG true: they belong to its prompt, seed and DNS image.
KEEPS_WORDS = {
    *table.of_group("run"), "scale", "negative_scale", "rule", "rule_options", "interval",
    "negative_interval",
}  # fmt: skip
# What other interfaces read in a prompt, and nobody reads here.
FOREIGN = {
    r"\([^()]*:\s*[\d.]+\)": "weights such as (cat:1.3)",
    r"<(lora|lyco|hypernet):[^>]*>": "<lora:...>",
    r"\bBREAK\b": "BREAK",
}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        _, unknown, words = message.partition("unrecognized arguments: ")
        if unknown and not words.startswith("-"):
            fail(f'more than one prompt ({words}); put the prompt in quotes, such as "a red car".')
        if unknown:
            word = words.split()[0].split("=")[0]
            near = meant(word, [s.flag for s in SETTINGS.values()])
            message += f": {near.rstrip('.')}" if near.startswith("did you mean") else ""
        fail(f"{message}; python train_free_sample.py --help lists what is possible.")


def fail(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def parse(argv: list[str] | None, description: str | None = None) -> dict:
    """The options that were typed, by their names; `resolve` fills in --from and the defaults."""
    p = Parser(
        description=description or __doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        epilog="methods:\n"
        + "\n".join(f"  {m.name:<9} {m.formula:<21} {m.source}" for m in METHODS.values()),
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
            and not METHODS[table.choose_method(typed["method"], None, None)].takes_words
        ):
            recorded.pop("negative", None)
    if "rule" in typed:
        before, now = recorded.pop("rule", None), typed["rule"]
        recorded.pop("rule_options", None)
        if before is not None and recorded.get("rule_file") not in (
            None,
            contract.file_sha256(now),
        ):
            warnings.warn(
                "this rule's file is not the one that the PNG was made with", stacklevel=1
            )
        recorded.pop("rule_sha256", None)
    elif contract.is_file(recorded.get("rule")):
        raise SettingsError(
            f"{typed['from']} was made with the rule {recorded['rule']}, and no picture makes "
            f"a file run; add --rule {recorded['rule']} if you trust it."
        )
    words = METHODS.get(recorded.get("method"))
    if typed.get("method", recorded.get("method")) in METHODS:
        row = METHODS[typed.get("method", recorded.get("method"))]
        stale = words is None or not words.makes_dns_image or typed.keys() - KEEPS_WORDS
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
    dnp with given words is np, so it has no row of its own.
    """
    from dnp import contract

    how = {s.argument: getattr(args, s.name) for s in table.of_group("how").values()}
    typed = {SETTINGS[name].argument for name in args.typed}
    how = {k: v for k, v in how.items() if v != table.arguments()[k] or k in typed}
    how["steps"] = args.steps
    if args.negative is not None:
        how["negative"] = args.negative
    if not args.compare:
        rule = contract.read(args.rule, args.rule_options) if args.rule else None
        method = table.choose_method(args.method, rule and rule.needs, args.negative)
        if args.method is None and method == "np2":
            warnings.warn(
                "a negative prompt without --method is used as elsewhere, n + s (p - n): np2; "
                "--method np is Eq. 4",
                stacklevel=1,
            )
        return {method: how}
    rows = [m for m in METHODS.values() if m.negative != "asked"]
    if args.negative is None:
        rows = [m for m in rows if m.negative != "given"]
    if args.captioner is None and not (find_weights(args.weights) / "captioner").is_dir():
        rows = [m for m in rows if m.negative != "captioned"]
    belongs = {s.argument: s.of for s in table.of_group("how", "what").values()}
    of = {m.name: {k: v for k, v in how.items() if belongs[k](m)} for m in rows}
    of.get("auto-dnp", {}).pop("negative", None)  # its own words
    return of


def run(asked: list[argparse.Namespace]) -> None:
    """Draws all that `jobs` gave; only prompt and negative differ."""
    args, chosen = asked[0], [chosen_methods(a) for a in asked]

    import dnp
    from dnp import contract, pictures
    from dnp.prompting import load_captioner
    from dnp.sd import speed
    from dnp.sd.device import choose_device, choose_dtype

    for method, own in (pair for methods in chosen for pair in methods.items()):  # before loading
        options = own.get("rule_options")
        rule = contract.read(own["rule"], options) if "rule" in own else None
        if options and rule is None:
            raise SettingsError("an --option belongs to a rule; give one with --rule.")
        which = {"seed": args.seed, "images": args.images}
        table.check({**own, **which, "rule_options": None}, method, 1000, rule)
    pictures.check_folder(Path(args.out))
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    model = dnp.load(find_weights(args.weights), device, dtype, args.prediction)
    model.check_finite()
    speed.apply(model)
    print(f"device: {device}, {str(model.dtype).removeprefix('torch.')}; weights: {args.weights}")
    if str(args.fingerprint).startswith(table.OF_PIPELINE):
        warnings.warn(
            "the PNG's weights came from a diffusers pipeline, so it is not known whether these "
            "are the same",
            stacklevel=1,
        )
    elif args.fingerprint not in (None, model.config.files.like(args.fingerprint)):
        warnings.warn("these are other weights than the PNG was made with", stacklevel=1)
    for text in (text for a in asked for text in (a.prompt, a.negative or "")):
        tell_what_is_not_read(text, model.config.words)
    captioned = any(METHODS[m].negative == "captioned" for methods in chosen for m in methods)
    if args.captioner is not None and captioned:
        folder = args.captioner if args.allow_download else find_weights(args.captioner)
        model.captioner = load_captioner(folder, device, args.allow_download)
    for args, methods in zip(asked, chosen):
        draw(model, args, methods)


def draw(model, args: argparse.Namespace, methods: dict[str, dict]) -> None:
    """Draws and saves the pictures of one prompt."""
    from tqdm import tqdm

    import dnp
    from dnp import pictures

    device = model.device
    batch = args.images if args.caption_per == "prompt" else dnp.batch_size(device)
    results: dict[str, list] = {}
    with tqdm(total=steps_of_all(args, methods), unit="step", leave=False) as bar:
        for method, own in methods.items():
            for first in range(0, args.images, batch):  # every picture is saved once it is made
                count = min(batch, args.images - first)
                asks = METHODS[method].negative == "asked"
                shown = dns_seeds(args, first, count)
                result = dnp.generate(
                    model, args.prompt, method, seed=args.seed + first, images=count,
                    captioner=partial(ask, args=args, shown=shown, bar=bar) if asks else None,
                    size=args.size, original_size=args.original_size, crop=args.crop,
                    target_size=args.target_size, progress=bar.update, **own,
                )  # fmt: skip
                results.setdefault(method, []).append(result)
                if not args.compare:
                    save(result, args, method, first, bar)
    if args.compare:
        names = [*table.of_group("what", "how", "which", "where")]
        made = results["cfg"][0].settings
        used = {**made, **{k: getattr(args, k) for k in names}, "phi": made.get("phi")}
        used |= {"method": "cfg", "dtype": str(model.dtype).removeprefix("torch.")}
        sheet = compare_sheet(args, results)
        stem = pictures.slug(args.prompt)
        print(pictures.save(sheet, Path(args.out), f"{stem}-compare-{args.seed}", used))


def save(result, args: argparse.Namespace, method: str, first: int, bar) -> None:
    """Writes the pictures of a batch, and the DNS images that auto-DNP captioned beside them."""
    from dnp import pictures

    stem, row = pictures.slug(args.prompt), METHODS[method]
    if first == 0:
        told = f"{method}: {round(result.nfe, 1)} network evaluations per picture"
        bar.write(told, file=sys.stdout)
    captioned = result.dns_images if row.negative == "captioned" else []
    for image, seed in zip(captioned, dns_seeds(args, first, len(result.images))):
        path = save_dns(image, args, f"{stem}-{method}-dns-{seed}", result.settings["s_dns"], seed)
        bar.write(f"{path}: the DNS image", file=sys.stdout)
    for i, picture in enumerate(result.images):
        n, seed = result.negatives[i], args.seed + first + i
        used = {**result.settings, "seed": seed, "images": 1, "negative": n}
        used |= {k: getattr(args, k) for k in ("weights", "captioner", "prediction")}
        path = pictures.save(picture, Path(args.out), f"{stem}-{method}-{seed}", used)
        star = f'  n* = "{n}"' if row.makes_dns_image and args.negative is None else ""
        bar.write(f"{path}{star}", file=sys.stdout)


def save_dns(image, args: argparse.Namespace, name: str, s: float | None, seed: int) -> Path:
    from dnp import pictures

    kept = ("prompt", "steps", "eta", "size", "weights", "dtype", "sampler", "phi",
            "original_size", "crop", "target_size")  # fmt: skip
    used = {k: getattr(args, k) for k in kept} | {"method": "dns", "scale": s, "seed": seed}
    return pictures.save(image, Path(args.out), name, used)


def steps_of_all(args: argparse.Namespace, methods: dict[str, dict]) -> int:
    """Sampling steps of all pictures and DNS images, for the progress bar."""
    total = 0
    for method, own in methods.items():
        total += args.steps * args.images
        if METHODS[method].makes_dns_image and own.get("negative") is None:
            described = args.images if args.caption_per == "seed" else 1
            total += args.steps * described * own.get("dns_images", 1)
    return total


def dns_seeds(args: argparse.Namespace, first: int, count: int):
    """The seeds of the DNS images of `count` pictures from `first` on, in the order of asking."""
    from dnp.generation import FAR

    for i in range(count if args.caption_per == "seed" else 1):
        yield from ((args.seed + first + i + FAR * j) % table.SEEDS for j in range(args.dns_images))


def ask(image, args: argparse.Namespace, shown, bar) -> str:
    """A person's words for a DNS image, under 60 (arXiv:2411.05473)."""
    from dnp import command, pictures
    from dnp.prompting import MOST_WORDS

    seed = next(shown)
    bar.clear()  # what is asked and answered stands on lines of its own
    path = save_dns(image, args, f"{pictures.slug(args.prompt)}-dnp-dns-{seed}", args.s_dns, seed)
    if args.show:
        image.resize([4 * side for side in image.size]).show()
    while True:
        print(f"{path}: the DNS image. What does it show, in fewer than {MOST_WORDS} words?")
        words = command.ask("n* = ", "give them with --negative TEXT")
        if 0 < len(words.split()) < MOST_WORDS:
            return words
        print(f"{len(words.split())} words; give 1 to {MOST_WORDS - 1}.")


def compare_sheet(args: argparse.Namespace, results: dict):
    """Methods in rows, seeds in columns; one column has one initial noise. n* under its cells."""
    from dnp import pictures

    rows = []
    for method, parts in results.items():
        row, s, nfe = METHODS[method], parts[0].settings["scale"], round(parts[0].nfe, 1)
        label = f"{method}\n{row.formula}\n{row.source}, s = {s:g}\nnetwork evaluations: {nfe}"
        made = [picture for part in parts for picture in part.images]
        words = [f"n* = {n}" for part in parts for n in part.negatives]
        rows.append((label, made, words if row.makes_dns_image else None))
    columns = [f"seed {args.seed + i}" for i in range(args.images)]
    title = f'p = "{args.prompt}"'
    title += f'    n = "{args.negative}"' if args.negative is not None else ""
    return pictures.contact_sheet(rows, columns, title)


def tell_what_is_not_read(text: str, words: tuple[str, ...]) -> None:
    """Notes on what is read as plain text: other interfaces' syntax, words of no closed world."""
    for pattern, what in FOREIGN.items():
        if re.search(pattern, text):
            warnings.warn(f"{what} is read as plain text here", stacklevel=1)
    unknown = [w for w in re.findall(r"[^\W\d_]+", text.lower()) if words and w not in words]
    if unknown:
        warnings.warn(
            f"these weights have never read {', '.join(dict.fromkeys(unknown))}; the picture "
            "follows the other words",
            stacklevel=1,
        )


def main(argv: list[str] | None = None, description: str | None = None) -> None:
    streams()
    warnings.showwarning = lambda message, *_: print(f"note: {message}.", file=sys.stderr)
    try:
        typed = parse(argv, description)
        try:
            if typed.get("info"):
                from dnp.sd.model import describe

                print(describe(find_weights(typed.get("weights", SETTINGS["weights"].default))))
                return
            run(jobs(typed))
        except DnpError:
            raise
        except (RuntimeError, MemoryError) as e:  # a CPU and MPS have no error of their own for it
            full = "out of memory", "allocate memory", "not enough memory"
            if not isinstance(e, MemoryError) and not any(words in str(e) for words in full):
                raise
            fail("the device's memory is full; choose a smaller --size, or float16 on a GPU.")
    except DnpError as e:
        fail(str(e))
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left.", file=sys.stderr)
        sys.exit(130)

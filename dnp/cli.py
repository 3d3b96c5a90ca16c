"""The command line, `python train_free_sample.py PROMPT`: settings in, pictures out.

`dnp/options.py` reads what was typed; here it is run, saved and shown.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from functools import partial
from pathlib import Path

from dnp import settings as table
from dnp.command import printable, streams
from dnp.errors import DnpError, SettingsError, memory_is_full
from dnp.methods import METHODS
from dnp.options import chosen_methods, fail, find_weights, jobs, parse
from dnp.settings import SETTINGS
from dnp.validation import check

# What other interfaces read in a prompt, and nobody reads here.
FOREIGN = {
    r"\([^()]*:\s*[\d.]+\)": "weights such as (cat:1.3)",
    r"<(lora|lyco|hypernet):[^>]*>": "<lora:...>",
    r"\bBREAK\b": "BREAK",
}


def run(asked: list[argparse.Namespace]) -> None:
    """Draws all that `jobs` gave; only prompt and negative differ."""
    args, chosen = asked[0], [chosen_methods(a) for a in asked]

    import dnp
    from dnp import contract, pictures
    from dnp.attend_excite import require_subjects
    from dnp.prompting import load_captioner
    from dnp.sd import speed
    from dnp.sd.device import choose_device, choose_dtype

    for method, options in (pair for methods in chosen for pair in methods.items()):
        of_rule = options.get("rule_options")
        rule = contract.read(options["rule"], of_rule) if "rule" in options else None
        if of_rule and rule is None:
            raise SettingsError("an --option belongs to a rule; give one with --rule.")
        which = {"seed": args.seed, "images": args.images}
        check({**options, **which, "rule_options": None}, method, 1000, rule)
    pictures.check_folder(Path(args.out))
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    model = dnp.load(find_weights(args.weights), device, dtype, args.prediction)
    model.check_finite()
    measures = speed.apply(model)
    print(f"device: {device}, {str(model.dtype).removeprefix('torch.')}; weights: {args.weights}")
    print(speed.line(measures, model))
    if str(args.fingerprint).startswith(table.OF_PIPELINE):
        warnings.warn(
            "the PNG's weights came from a diffusers pipeline, so it is not known whether these "
            "are the same",
            stacklevel=1,
        )
    elif args.fingerprint not in (None, model.config.fingerprint):
        warnings.warn("these are other weights than the PNG was made with", stacklevel=1)
    for text in (text for a in asked for text in (a.prompt, a.negative or "")):
        tell_what_is_not_read(text, model.config.words)
    captioned = any(METHODS[m].negative == "captioned" for methods in chosen for m in methods)
    if args.captioner is not None and captioned:
        folder = args.captioner if args.allow_download else find_weights(args.captioner)
        model.captioner = load_captioner(folder, device, args.allow_download)
    for args, methods in zip(asked, chosen):
        if not args.compare and METHODS[next(iter(methods))].has_subjects:
            require_subjects(model, args.prompt, next(iter(methods)), args.subjects)
    for args, methods in zip(asked, chosen):
        draw(model, args, methods)


def draw(model, args: argparse.Namespace, methods: dict[str, dict]) -> None:
    """Draws and saves the pictures of one prompt."""
    from tqdm import tqdm

    import dnp
    from dnp import pictures
    from dnp.attend_excite import things

    if args.compare and args.subjects is None and not things(model, args.prompt):
        methods = {k: v for k, v in methods.items() if not METHODS[k].has_subjects}
    batch = args.images if args.caption_per == "prompt" else dnp.batch_size(model.device)
    results: dict[str, list] = {}
    with tqdm(total=steps_of_all(args, methods), unit="step", leave=False) as bar:
        for method, options in methods.items():
            for first in range(0, args.images, batch):  # every picture is saved once it is made
                count = min(batch, args.images - first)
                asks = METHODS[method].negative == "asked"
                shown = dns_seeds(args, first, count)
                result = dnp.generate(
                    model, args.prompt, method, seed=args.seed + first, images=count,
                    captioner=partial(ask, model, args, shown, bar) if asks else None,
                    size=args.size, original_size=args.original_size, crop=args.crop,
                    target_size=args.target_size, progress=bar.update, **options,
                )  # fmt: skip
                results.setdefault(method, []).append(result)
                if not args.compare:
                    save(result, model, args, method, first, bar)
    if args.compare:
        names = [*table.of_group("what", "how", "which", "where")]
        made = results["cfg"][0].settings
        used = {**made, **{k: getattr(args, k) for k in names}, "phi": made.get("phi")}
        used |= {"method": "cfg", "dtype": str(model.dtype).removeprefix("torch.")}
        sheet = compare_sheet(args, results)
        stem = pictures.slug(args.prompt)
        print(pictures.save(sheet, Path(args.out), f"{stem}-compare-{args.seed}", used))


def save(result, model, args: argparse.Namespace, method: str, first: int, bar) -> None:
    """Writes the pictures of a batch, and the DNS images that auto-DNP captioned beside them."""
    from dnp import pictures

    stem, row = pictures.slug(args.prompt), METHODS[method]
    if first == 0:
        bar.write(f"{method}: {cost([result])} per picture", file=sys.stdout)
    captioned = result.dns_images if row.negative == "captioned" else []
    for image, seed in zip(captioned, dns_seeds(args, first, len(result.images))):
        name, s = f"{stem}-{method}-dns-{seed}", result.settings["s_dns"]
        path = save_dns(image, model, args, name, s, seed)
        bar.write(f"{path}: the DNS image", file=sys.stdout)
    for i, picture in enumerate(result.images):
        n, seed = result.negatives[i], args.seed + first + i
        used = {**result.settings, "seed": seed, "images": 1, "negative": n}
        used |= {k: getattr(args, k) for k in ("weights", "captioner", "prediction")}
        path = pictures.save(picture, Path(args.out), f"{stem}-{method}-{seed}", used)
        star = f'  n* = "{n}"' if row.makes_dns_image and args.negative is None else ""
        bar.write(f"{path}{printable(star)}", file=sys.stdout)


def save_dns(image, model, args: argparse.Namespace, name: str, s: float | None, seed: int) -> Path:
    from dnp import pictures

    kept = ("prompt", "steps", "eta", "size", "weights", "prediction", "sampler", "phi",
            "original_size", "crop", "target_size")  # fmt: skip
    used = {k: getattr(args, k) for k in kept} | {"method": "dns", "scale": s, "seed": seed}
    used |= {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type}
    used["fingerprint"] = model.config.fingerprint
    return pictures.save(image, Path(args.out), name, used)


def steps_of_all(args: argparse.Namespace, methods: dict[str, dict]) -> int:
    """Sampling steps of all pictures and DNS images, for the progress bar."""
    total = 0
    for method, options in methods.items():
        total += args.steps * args.images
        if METHODS[method].makes_dns_image and options.get("negative") is None:
            described = args.images if args.caption_per == "seed" else 1
            total += args.steps * described * options.get("dns_images", 1)
    return total


def dns_seeds(args: argparse.Namespace, first: int, count: int):
    """The seeds of the DNS images of `count` pictures from `first` on, in the order of asking."""
    from dnp.generation import FAR

    for i in range(count if args.caption_per == "seed" else 1):
        yield from ((args.seed + first + i + FAR * j) % table.SEEDS for j in range(args.dns_images))


def ask(model, args: argparse.Namespace, shown, bar, image) -> str:
    """A person's words for a DNS image, under 60 (arXiv:2411.05473)."""
    from dnp import command, pictures
    from dnp.prompting import MOST_WORDS

    seed = next(shown)
    bar.clear()  # what is asked and answered stands on lines of its own
    name = f"{pictures.slug(args.prompt)}-dnp-dns-{seed}"
    path = save_dns(image, model, args, name, args.s_dns, seed)
    if args.show:
        image.resize([4 * side for side in image.size]).show()
    while True:
        print(f"{path}: the DNS image. What does it show, in fewer than {MOST_WORDS} words?")
        words = command.ask("n* = ", "give them with --negative TEXT")
        if 0 < len(words.split()) < MOST_WORDS:
            return words
        print(f"{len(words.split())} words; give 1 to {MOST_WORDS - 1}.")


def compare_sheet(args: argparse.Namespace, results: dict):
    """Methods in rows, seeds in columns; one column has one initial noise. Under the cells n*, and
    what a picture lacks, where the weights have a recogniser of their world."""
    from dnp import pictures
    from dnp.evaluation import metrics, recogniser
    from dnp.evaluation.benchmarks import subjects

    asked = subjects(args.prompt)
    judge = recogniser.of_weights(find_weights(args.weights), len(asked)) if asked else None
    judge = judge and recogniser.load_recogniser(judge)
    rows = []
    for method, parts in results.items():
        row, s = METHODS[method], parts[0].settings["scale"]
        label = f"{method}\n{row.formula}\n{row.source}, s = {s:g}\n{cost(parts)}"
        made = [picture for part in parts for picture in part.images]
        stars = [f"n* = {n}" for part in parts for n in part.negatives]
        words = stars if row.makes_dns_image else [""] * len(made)
        if judge and row.positive == "p":
            missing = metrics.lacking(judge, made, args.prompt)
            lacks = [f"lacks {', '.join(m)}" if m else "lacks nothing" for m in missing]
            words = [f"{n}\n{text}".lstrip() for n, text in zip(words, lacks)]
        rows.append((label, made, words))
    columns = [f"seed {args.seed + i}" for i in range(args.images)]
    title = f'p = "{args.prompt}"'
    title += f'    n = "{args.negative}"' if args.negative is not None else ""
    return pictures.contact_sheet(rows, columns, title)


def cost(parts: list) -> str:
    """The network evaluations of a picture, and its gradient passes if it has any: their means."""
    gradients = [g for part in parts for g in part.gradients]
    nfe = round(sum(p.nfe * len(p.gradients) for p in parts) / len(gradients), 1)
    passes = f", {sum(gradients) / len(gradients):g} gradients" if any(gradients) else ""
    return f"{nfe:g} network evaluations{passes}"


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
    warnings.showwarning = lambda note, *_: print(f"note: {printable(note)}.", file=sys.stderr)
    try:
        typed = parse(argv, description)
        try:
            if typed.get("info"):
                from dnp.sd.opening import describe

                print(describe(find_weights(typed.get("weights", SETTINGS["weights"].default))))
                return
            run(jobs(typed))
        except DnpError:
            raise
        except (RuntimeError, MemoryError) as e:  # a CPU and MPS have no error of their own for it
            if not memory_is_full(e):
                raise
            fail("the device's memory is full; choose a smaller --size, or float16 on a GPU.")
    except DnpError as e:
        fail(str(e))
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

"""The command line, `python -m dnp PROMPT`: settings in, pictures out.

`dnp/app/options.py` reads what was typed; here it is run, saved and shown.
"""

from __future__ import annotations

import re
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from dnp.app.from_png import warn_of_other_code
from dnp.app.options import jobs, parse
from dnp.app.settings import find_weights
from dnp.app.terminal import ask, fail, printable, streams
from dnp.errors import DnpError, SettingsError, memory_is_full
from dnp.methods import METHODS
from dnp.methods.chain import Chain
from dnp.methods.cnp import CNP
from dnp.methods.fields import table
from dnp.methods.method import Method
from dnp.methods.words import DNP, AutoDNP, dns_seeds
from dnp.sd import OF_PIPELINE

MOST_WORDS = 60  # of a person's caption (arXiv:2411.05473)
# What other interfaces read in a prompt, and nobody reads here.
FOREIGN = {
    r"\([^()]*:\s*[\d.]+\)": "weights such as (cat:1.3)",
    r"<(lora|lyco|hypernet):[^>]*>": "<lora:...>",
    r"\bBREAK\b": "BREAK",
}


def run(asked: list[SimpleNamespace]) -> None:
    """Draws all that `jobs` gave; only prompt and negative differ."""
    args = asked[0]

    import dnp
    from dnp.app import png
    from dnp.generation import prepared
    from dnp.methods import sorted_out
    from dnp.sd import speed
    from dnp.sd.captioner import load_captioner
    from dnp.sd.device import choose_device, choose_dtype

    chosen, kinds = [methods_of(a) for a in asked], set()
    for a, methods in zip(asked, chosen):  # before the weights are loaded
        for method, settings in methods.items():
            kind, _, _ = sorted_out(method, negative_for(a, method), settings)
            kinds.add(kind)
            if a.negative is None and kind.takes_words and not issubclass(kind, AutoDNP):
                who = f"rule {settings['rule']}" if "rule" in settings else f"method {kind.name}"
                raise SettingsError(f"{who} needs a negative prompt; add `negative=TEXT`.")
    png.check_folder(Path(args.out))
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    model = dnp.load(find_weights(args.weights), device, dtype, args.prediction)
    model.check_finite()
    measures = speed.apply(model)
    print(f"device: {device}, {str(model.dtype).removeprefix('torch.')}; weights: {args.weights}")
    print(speed.line(measures, model))
    if str(args.fingerprint).startswith(OF_PIPELINE):
        warnings.warn(
            "the PNG's weights came from a diffusers pipeline, so it is not known whether these "
            "are the same",
            stacklevel=1,
        )
    elif args.fingerprint not in (None, model.config.fingerprint):
        warnings.warn("these are other weights than the PNG was made with", stacklevel=1)
    for text in (text for a in asked for text in (a.prompt, a.negative or "")):
        tell_what_is_not_read(text, model.config.words)
    if args.captioner is not None and any(map(asks_captioner, kinds)):
        folder = args.captioner if args.allow_download else find_weights(args.captioner)
        model.captioner = load_captioner(folder, device, args.allow_download)
    for a, methods in zip(asked, chosen):
        for method, settings in methods.items() if not a.compare else ():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `draw` warns
                _, guided = prepared(model, a.prompt, method, a.negative, None, None, settings)
            if a is args and method is None and guided.name == "np2":
                warnings.warn(
                    "a negative prompt without --method is used as elsewhere, n + s (p - n): np2; "
                    "--method np is Eq. 4",
                    stacklevel=1,
                )
    for a, methods in zip(asked, chosen):
        draw(model, a, methods)


def asks_captioner(kind: type[Method]) -> bool:
    """Whether a method may ask a captioner; one of your own may."""
    captions = issubclass(kind, AutoDNP | CNP) and not issubclass(kind, DNP)
    return captions or kind not in METHODS.values()


def methods_of(args: SimpleNamespace) -> dict[str | None, dict]:
    """The settings of each method that is to be drawn.

    --compare takes all methods that need only what was given, and gives each what belongs to it;
    dnp with given words is np, so it has no row of its own, ae has one row, without n*, and cnp,
    whose cost grows with the square of the steps, has none.
    """
    if not args.compare:
        return {args.method: args.settings}
    left_out = {"dnp", "ae+auto-dnp", "cnp"}
    if args.negative is None:
        left_out |= {"np", "np2"}
    if args.captioner is None and not (find_weights(args.weights) / "captioner").is_dir():
        left_out.add("auto-dnp")
    chain = {k: v for k, v in args.settings.items() if k not in table(*METHODS.values())}
    out = {}
    for name, kind in METHODS.items():
        if name not in left_out:
            belong = set(table(kind)) - ({"negative_interval"} if not kind.has_negative else set())
            belong -= set() if kind.two_scale else {"negative_scale"}
            out[name] = chain | {k: v for k, v in args.settings.items() if k in belong}
    return out


def negative_for(args: SimpleNamespace, method: str | None) -> str | None:
    """The negative prompt of a method: in a sheet auto-DNP has its own words."""
    if args.compare and (method == "auto-dnp" or not METHODS[method].takes_words):
        return None
    return args.negative


def draw(model, args: SimpleNamespace, methods: dict[str | None, dict]) -> None:
    """Draws and saves the pictures of one prompt."""
    from tqdm import tqdm

    import dnp
    from dnp.app import png
    from dnp.app.sheet import compare_sheet
    from dnp.methods import chosen
    from dnp.methods.attend_excite import OfSubjects, things

    kinds = {m: chosen(m, settings, args.negative) for m, settings in methods.items()}
    if args.compare and "subjects" not in args.settings and not things(model, args.prompt):
        kinds = {m: kind for m, kind in kinds.items() if not issubclass(kind, OfSubjects)}
    results: dict[str | None, list] = {}
    with tqdm(total=steps_of_all(args, methods, kinds), unit="step", leave=False) as bar:
        for method, kind in kinds.items():
            settings = dict(methods[method])
            seed, images = settings.pop("seed", 0), settings.pop("images", 1)
            shared = settings.get("caption_per") == "prompt"
            batch = images if shared else dnp.batch_size(model.device)
            for first in range(0, images, batch):  # every picture is saved once it is made
                count = min(batch, images - first)
                asks = partial(ask_person, model, args, settings, seed + first, count, bar)
                result = dnp.generate(
                    model, args.prompt, method, negative_for(args, method), seed=seed + first,
                    images=count, captioner=asks() if issubclass(kind, DNP) else None,
                    progress=bar.update, **settings,
                )  # fmt: skip
                results.setdefault(method, []).append(result)
                if first == 0 and not args.compare:
                    warn_of_other_code(args, result.settings)
                if not args.compare:
                    save(result, model, args, kind, first == 0, bar)
    if args.compare:
        of_cfg = table(METHODS["cfg"])  # each row has its own: a sheet holds those that are given
        made = results["cfg"][0].settings
        used = {k: None if k in of_cfg else v for k, v in made.items()}
        used |= {**args.settings, "negative": args.negative, "compare": True}
        used |= {k: getattr(args, k) for k in ("weights", "captioner", "prediction")}
        sheet = compare_sheet(args, results)
        stem, seed = png.slug(args.prompt), args.settings.get("seed", 0)
        print(png.save(sheet, Path(args.out), f"{stem}-compare-{seed}", used))


def save(result, model, args: SimpleNamespace, kind: type[Method], first: bool, bar) -> None:
    """Writes the pictures of a batch, and the DNS images that auto-DNP captioned beside them."""
    from dnp.app import png
    from dnp.app.sheet import cost

    made, stem, name = result.settings, png.slug(args.prompt), kind.name
    if first:
        bar.write(f"{kind.name}: {cost([result])} per picture", file=sys.stdout)
    captioned = [] if issubclass(kind, DNP) else result.dns_images
    for image, seed in zip(captioned, seeds_of_dns(made, len(result.images))):
        path = save_dns(image, model, args, made, f"{stem}-{name}-dns-{seed}", seed)
        bar.write(f"{path}: the DNS image", file=sys.stdout)
    for i, picture in enumerate(result.images):
        n, seed = result.negatives[i], made["seed"] + i
        used = {**made, "seed": seed, "images": 1, "negative": n}
        used |= {k: getattr(args, k) for k in ("weights", "captioner", "prediction")}
        path = png.save(picture, Path(args.out), f"{stem}-{name}-{seed}", used)
        star = f'  n* = "{n}"' if issubclass(kind, AutoDNP) and args.negative is None else ""
        bar.write(f"{path}{printable(star)}", file=sys.stdout)


def save_dns(image, model, args: SimpleNamespace, made: dict, name: str, seed: int) -> Path:
    """Writes a DNS image, so that `--from` makes it again; `made` are its method's settings."""
    from dnp.app import png
    from dnp.generation import prepared, record

    settings = {k: made.get(k) for k in table(Chain)} | {
        "s": made.get("s_dns"),
        "seed": seed,
        "images": 1,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        used = record(*prepared(model, args.prompt, "dns", None, None, None, settings))
    used |= {"negative": None} | {k: getattr(args, k) for k in ("weights", "prediction")}
    return png.save(image, Path(args.out), name, used)


def steps_of_all(args: SimpleNamespace, methods: dict, kinds: dict[str | None, type]) -> int:
    """Sampling steps of all pictures and DNS images, for the progress bar."""
    total = 0
    for method, kind in kinds.items():
        settings = methods[method]
        steps, images = settings.get("steps", 50), settings.get("images", 1)
        total += steps * images
        if issubclass(kind, AutoDNP) and negative_for(args, method) is None:
            described = 1 if settings.get("caption_per") == "prompt" else images
            total += steps * described * settings.get("dns_images", 1)
    return total


def seeds_of_dns(made: dict, count: int):
    """The seeds of the DNS images of `count` pictures, in the order of asking."""
    for i in range(1 if made.get("caption_per") == "prompt" else count):
        yield from dns_seeds(made["seed"] + i, made.get("dns_images", 1))


def ask_person(model, args, settings: dict, seed: int, count: int, bar):
    """Picture -> a person's words for a DNS image, under 60 (arXiv:2411.05473)."""
    from dnp.app import png
    from dnp.generation import prepared, record

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = record(
            *prepared(model, args.prompt, args.method, args.negative, None, None, settings)
        )
    made |= {"seed": seed}
    shown = seeds_of_dns(made, count)

    def asked(image) -> str:
        dns_seed = next(shown)
        bar.clear()  # what is asked and answered stands on lines of its own
        name = f"{png.slug(args.prompt)}-dnp-dns-{dns_seed}"
        path = save_dns(image, model, args, made, name, dns_seed)
        if args.show:
            image.resize([4 * side for side in image.size]).show()
        while True:
            print(f"{path}: the DNS image. What does it show, in fewer than {MOST_WORDS} words?")
            words = ask("n* = ", "give them with --negative TEXT")
            if 0 < len(words.split()) < MOST_WORDS:
                return words
            print(f"{len(words.split())} words; give 1 to {MOST_WORDS - 1}.")

    return asked


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


def main(argv: list[str] | None = None) -> None:
    streams()
    warnings.showwarning = lambda note, *_: print(f"note: {printable(note)}.", file=sys.stderr)
    try:
        typed = parse(sys.argv[1:] if argv is None else argv)
        try:
            if typed.get("info"):
                from dnp.sd.load import describe

                print(describe(find_weights(typed.get("weights", "weights/mini"))))
                return
            run(jobs(typed))
        except DnpError:
            raise
        except (RuntimeError, MemoryError) as e:  # a CPU and MPS have no error of their own for it
            if not memory_is_full(e):
                raise
            fail("the device's memory is full; choose a smaller --size, or float16 on a GPU.")
    except DnpError as e:
        fail(e.typed)
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left.", file=sys.stderr)
        sys.exit(130)

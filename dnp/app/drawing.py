"""Settings in, pictures out: what the command line and the live page draw, and what they keep.

`keep(picture, name, settings)` takes a finished picture, and returns what is printed of it: the
command line writes a file, and the page holds the same bytes for a download.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

from dnp.app.from_png import warn_of_other_code
from dnp.app.terminal import ask, printable
from dnp.methods import METHODS
from dnp.methods.chain import Chain
from dnp.methods.cnp import CNP
from dnp.methods.fields import table
from dnp.methods.method import Asked, Method
from dnp.methods.words import DNP, AutoDNP, described, dns_seeds
from dnp.sd import find_weights

if TYPE_CHECKING:
    from PIL.Image import Image

Keep = Callable[["Image", str, dict], object]
MOST_WORDS = 60  # of a person's caption (arXiv:2411.05473)


def opened(args: SimpleNamespace):
    """The model of these settings on its device, every number of it read, or that of --model;
    prints what it is."""
    import dnp
    from dnp.methods.models import load_own
    from dnp.sd import speed
    from dnp.sd.device import choose_device, choose_dtype, choose_vae_dtype

    if args.model is not None:
        model = load_own(args.model)
        print(f"device: {model.device}; model: {printable(args.model)}")
        return model
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    of_vae = choose_vae_dtype(args.vae_dtype)
    model = dnp.load(find_weights(args.weights), device, dtype, args.prediction, of_vae)
    model.check_finite()
    measures = speed.apply(model)
    print(f"device: {device}, {str(model.dtype).removeprefix('torch.')}; weights: {args.weights}")
    print(speed.line(measures, model))
    return model


def give_captioner(model, args: SimpleNamespace) -> None:
    """Opens the captioner of --captioner, if there is one, in place of the weights' own."""
    from dnp.sd.captioner import load_captioner

    if args.captioner is not None:
        folder = args.captioner if args.allow_download else find_weights(args.captioner)
        model.captioner = load_captioner(folder, model.device, args.allow_download)


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
    folder = find_weights(args.weights) / "captioner"
    if args.captioner is None and (args.model is not None or not folder.is_dir()):
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


def kinds_of(model, args: SimpleNamespace, methods: dict) -> dict[str | None, type[Method]]:
    """The class of each method that is drawn; a sheet has those that find things in the prompt only
    where it has some."""
    from dnp.methods import chosen
    from dnp.methods.attend_excite import OfSubjects, things

    kinds = {m: chosen(m, settings, args.negative) for m, settings in methods.items()}
    if (
        args.compare
        and "subjects" not in args.settings
        and not things(model.config.things, args.prompt)
    ):
        kinds = {m: kind for m, kind in kinds.items() if not issubclass(kind, OfSubjects)}
    return kinds


def together(model, asked: Sequence[SimpleNamespace]) -> list[list[SimpleNamespace]]:
    """The prompts of a list in groups that differ in their words alone, so that a batch may hold
    them. A sheet stands alone, and so does a prompt of a model without `encode`."""
    groups: list[tuple[object, list]] = []
    for args in asked:
        same = methods_of(args), args.negative is None
        alone = args.compare or not hasattr(model, "encode")
        group = None if alone else next((some for key, some in groups if key == same), None)
        if group is None:
            groups.append((same, group := []))
        group.append(args)
    return [group for _, group in groups]


def draw(
    model, asked: Sequence[SimpleNamespace], methods: dict, kinds: dict[str | None, type[Method]],
    bar, keep: Keep,
) -> None:  # fmt: skip
    """Draws the pictures of a group of prompts. `bar` is told of every step, as tqdm's are."""
    import dnp
    from dnp.app import png
    from dnp.app.sheet import compare_sheet
    from dnp.generation import generate_rows

    args, results = asked[0], {}
    for method, kind in kinds.items():
        settings = methods[method]
        calls = [recorded(model, a, method, settings) for a in asked]
        rows = [row for call in calls for row in rows_of(call)]
        batch = settings.get("batch") or dnp.batch_size(model.device)
        if settings.get("caption_per") == "prompt":  # the pictures of a prompt share their n*
            images = settings.get("images", 1)
            batch = images * max(1, batch // images)
        for first in range(0, len(rows), batch):  # every picture is saved once it is made
            some, describes = rows[first : first + batch], None
            if issubclass(kind, AutoDNP) and args.negative is None and not args.compare:
                who = ask_person if issubclass(kind, DNP) else keep_and_caption
                describes = who(model, args, calls[0], some, bar, keep)
            result = generate_rows(model, some, method, describes, progress=bar.update, **settings)
            results.setdefault(method, []).append(result)
            if first == 0 and not args.compare:
                warn_of_other_code(args, result.settings)
            if not args.compare:
                save(result, some, args, kind, first == 0, bar, keep)
    if args.compare:
        of_cfg = table(METHODS["cfg"])  # each row has its own: a sheet holds those that are given
        made = results["cfg"][0].settings
        used = {k: None if k in of_cfg else v for k, v in made.items()}
        used |= {**args.settings, "negative": args.negative, "compare": True}
        used |= of_weights(args)
        sheet = compare_sheet(args, results)
        stem, seed = png.slug(args.prompt), args.settings.get("seed", 0)
        bar.write(str(keep(sheet, f"{stem}-compare-{seed}", used)), file=sys.stdout)


def recorded(model, args: SimpleNamespace, method: str | None, settings: dict) -> dict:
    """The settings of a prompt's call as a PNG holds them, and the negative that is given to it.
    It passes on none of the call's warnings."""
    from dnp.generation import prepared
    from dnp.methods.result import record

    negative = negative_for(args, method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = record(*prepared(model, args.prompt, method, negative, None, None, settings))
    return made | {"negative": negative}


def rows_of(call: dict) -> list[Asked]:
    """The pictures of a call with these settings."""
    seeds = range(call["seed"], call["seed"] + call["images"])
    return [Asked(call["prompt"], k, call["negative"], call.get("subjects")) for k in seeds]


def to_keep(args: SimpleNamespace, kind: type[Method], call: dict, row: Asked) -> tuple[str, dict]:
    """The name of a picture, and the settings that make it again; `call` are those of its call."""
    from dnp.app import png

    used = {**call, "prompt": row.prompt, "seed": row.seed, "images": 1, "negative": row.negative}
    if "subjects" in call:
        used["subjects"] = row.subjects
    return f"{png.slug(row.prompt)}-{kind.name}-{row.seed}", used | of_weights(args)


def save(
    result, rows: Sequence[Asked], args: SimpleNamespace, kind: type[Method], first: bool, bar,
    keep: Keep,
) -> None:  # fmt: skip
    """Keeps the pictures of a batch."""
    from dnp.app.sheet import cost

    if first:
        bar.write(f"{kind.name}: {cost([result])} per picture", file=sys.stdout)
    for i, (row, picture, n) in enumerate(zip(rows, result.images, result.negatives)):
        path = keep(picture, *to_keep(args, kind, result.settings, row._replace(negative=n)))
        sized = effective(result.sizes[i]) if result.sizes else ""
        star = f'  n* = "{n}"' if issubclass(kind, AutoDNP) and args.negative is None else ""
        bar.write(f"{path}{printable(star)}{sized}", file=sys.stdout)


def effective(sizes: list[float]) -> str:
    """How far the particles of a picture stand for the law."""
    said = f"  effective size {sizes[-1]:.2f} at the end, {min(sizes):.2f} at the least"
    if sum(sizes) / len(sizes) < 1.5:
        said += ": about one particle, so K is too small or the law is improper"
    return said


def of_dns(model, args: SimpleNamespace, call: dict, prompt: str, seed: int) -> dict:
    """The settings of a DNS image, by which `--from` makes it again; `call` are its method's."""
    settings = {k: call.get(k) for k in table(Chain) if k not in ("particles", "corrector")}
    settings |= {"s": call.get("s_dns"), "seed": seed, "images": 1}
    alone = SimpleNamespace(prompt=prompt, negative=None, compare=False)
    return recorded(model, alone, "dns", settings) | of_weights(args) | {"captioner": None}


def of_weights(args: SimpleNamespace) -> dict[str, str | None]:
    """Whose weights, as a PNG holds it; a model of one's own stands in the place of weights."""
    names = ("weights", "model", "captioner", "prediction")
    return {k: getattr(args, k) for k in names if k != "weights" or args.model is None}


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


def dns_pictures(
    model, args: SimpleNamespace, call: dict, rows: Sequence[Asked]
) -> Iterator[tuple[str, dict]]:
    """The names and the settings of the DNS images of these pictures, in their order."""
    from dnp.app import png

    name, count = call["method"].rpartition(":")[2], call.get("dns_images", 1)
    for i in sorted(set(described(rows, call.get("caption_per")))):
        for seed in dns_seeds(rows[i].seed, count):
            used = of_dns(model, args, call, rows[i].prompt, seed)
            yield f"{png.slug(rows[i].prompt)}-{name}-dns-{seed}", used


def keeper(model, args, call: dict, rows: Sequence[Asked], keep: Keep):
    """Picture -> what `keep` returns of it: the DNS images of these pictures, in their order."""
    names = dns_pictures(model, args, call, rows)
    return lambda image: keep(image, *next(names))


def keep_and_caption(model, args, call: dict, rows: Sequence[Asked], bar, keep: Keep):
    """The weights' own captioner, for DNS images that are kept first: a caption may fail."""
    kept = keeper(model, args, call, rows, keep)

    def described(images) -> list[str]:
        for image in images:
            bar.write(f"{kept(image)}: the DNS image", file=sys.stdout)
        return model.captioner(images)

    return described if getattr(model, "captioner", None) else None


def ask_person(model, args, call: dict, rows: Sequence[Asked], bar, keep: Keep):
    """Picture -> a person's words for a DNS image, under 60 (arXiv:2411.05473)."""
    kept = keeper(model, args, call, rows, keep)

    def asked(image) -> str:
        bar.clear()  # what is asked and answered stands on lines of its own
        path = kept(image)
        if args.show:
            image.resize([4 * side for side in image.size]).show()
        while True:
            print(f"{path}: the DNS image. What does it show, in fewer than {MOST_WORDS} words?")
            words = ask("n* = ", "give them with --negative TEXT")
            if 0 < len(words.split()) < MOST_WORDS:
                return words
            print(f"{len(words.split())} words; give 1 to {MOST_WORDS - 1}.")

    return asked

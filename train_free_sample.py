#!/usr/bin/env python3
"""Pictures from a prompt by diffusion-negative sampling and its neighbours, without training.

    python train_free_sample.py "a red car"
    python train_free_sample.py "a red car" --method dns
    python train_free_sample.py "a cat and a dog" --method auto-dnp
    python train_free_sample.py "a cat and a dog" --negative "a bear" --compare --images 4
    python train_free_sample.py --from outputs/a-red-car-cfg-0.png

The equations are those of arXiv:2411.05473; ANSWER is arXiv:2508.02973.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

METHODS = {  # method: (its rule, where it stands)
    "cfg": ("phi + s (p - phi)", "Eq. 3"),
    "np": ("phi + s (p - n)", "Eq. 4"),
    "np2": ("n + s (p - n)", "two-term"),
    "dns": ("phi + s (phi - p)", "Eq. 19"),
    "dnp": ("phi + s (p - n*)", "your words n* for the DNS image"),
    "auto-dnp": ("phi + s (p - n*)", "a captioner's words n*"),
    "answer": ("phi + s (p - eps_neg)", "eps_neg from K DNS steps"),
}
DEFAULTS = {  # what a PNG records and --from brings back
    "prompt": None, "method": "cfg", "negative": None, "negative_scale": None, "scale": None,
    "steps": 50, "eta": 0.0, "seed": 0, "images": 1, "compare": False, "dtype": "auto",
    "weights": "weights/mini", "size": None, "fingerprint": None, "captioner": None,
    "prediction": None,
    "s_dns": None, "dns_images": 1, "caption_per": "seed",
    "K": None, "K_until": None, "tensor": None, "form": None, "normalize": None,
}  # fmt: skip
NUMBER = (int, float)
KEEP_WORDS = {
    "source",
    "out",
    "device",
    "scale",
    "negative_scale",
    "show",
    "info",
    "allow_download",
}
OF_DNS = ("s_dns", "dns_images", "caption_per")
ANSWER = ("K", "K_until", "tensor", "form", "normalize")
KINDS = {
    "prompt": (str,), "method": (str,), "negative": (str,), "negative_scale": NUMBER,
    "scale": NUMBER, "steps": (int,), "eta": NUMBER, "seed": (int,), "images": (int,),
    "compare": (bool,), "dtype": (str,), "weights": (str,), "size": (list,), "fingerprint": (str,),
    "prediction": (str,), "captioner": (str,), "s_dns": NUMBER, "dns_images": (int,),
    "caption_per": (str,),
    "K": (int,), "K_until": NUMBER, "tensor": (str,), "form": (str,), "normalize": (str,),
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        _, unknown, words = message.partition("unrecognized arguments: ")
        if unknown and not words.startswith("-"):
            fail(f'more than one prompt ({words}); put the prompt in quotes, such as "a red car".')
        fail(f"{message}; python train_free_sample.py --help lists what is possible.")


def fail(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def parse(argv: list[str] | None) -> dict:
    """The options that were typed; `settings` fills in --from and then DEFAULTS."""
    p = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    rules = ", ".join(f"{m}: {rule} ({where})" for m, (rule, where) in METHODS.items())

    add = p.add_argument
    add("prompt", nargs="?", metavar="PROMPT", help='the prompt; "" is the empty prompt phi')
    add("--method", choices=METHODS, metavar="METHOD", help=f"default cfg. {rules}")
    add("--negative", metavar="TEXT", help="negative prompt n, for np and np2; or n*, for dnp")
    add("--scale", type=float, metavar="S", help="guidance scale s; default: the weights' own")
    add("--negative-scale", type=float, metavar="H", help="another scale for n; default S")
    add(
        "--s-dns",
        type=float,
        metavar="S",
        help="scale of the DNS image, or of answer's inner chain",
    )
    add(
        "--captioner", metavar="FOLDER", help="for auto-dnp: BLIP or its like; default the weights'"
    )
    add(
        "--allow-download",
        action="store_true",
        default=False,
        help="--captioner may be a name to download",
    )
    add("--dns-images", type=int, metavar="N", help="N DNS images for each n*; default 1")
    add("--caption-per", metavar="WHAT", help="one n* for each seed (default) or prompt")
    add("--show", action="store_true", default=False, help="open the DNS image of dnp in a viewer")
    for name in ANSWER:
        kind = {"K": int, "K_until": float}.get(name, str)
        dashed = "--" + name.replace("_", "-")
        add(dashed, dest=name, type=kind, metavar="X", help="answer: see dnp/answer.py")
    size_help = "height and width in pixels; default: as the weights were trained"
    add("--size", nargs=2, type=int, metavar=("H", "W"), help=size_help)
    add("--steps", type=int, metavar="N", help="DDIM steps, 1 to 1000; default 50")
    add("--eta", type=float, metavar="E", help="0 (DDIM) to 1 (DDPM); default 0")
    add("--seed", type=int, metavar="N", help="seed of the first picture; default 0")
    add("--images", type=int, metavar="K", help="K pictures, seeds N, N+1, ...; default 1")
    add("--compare", action="store_true", help="one sheet: methods in rows, seeds in columns")
    add("--weights", metavar="PATH", help="a diffusers folder or a .safetensors file")
    add("--prediction", metavar="KIND", help="epsilon or v_prediction; default: what PATH says")
    add("--info", action="store_true", default=False, help="tell what --weights holds, and stop")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", metavar="NAME", help="auto, float32, float64, on a GPU float16, bfloat16")
    add("--out", type=Path, default=Path("outputs"), metavar="FOLDER", help="default outputs")
    from_help = "take every setting from a PNG made here; other options override them"
    add("--from", dest="source", type=Path, metavar="FILE.png", help=from_help)
    return vars(p.parse_args(argv))


def settings(given: dict) -> argparse.Namespace:
    """The typed options over those of --from over DEFAULTS; SystemExit 2 for what cannot be."""
    from dnp import pictures

    if "compare" in given and "method" in given:
        fail("--compare shows every method in one sheet; leave --method out, or --compare.")
    recorded = pictures.read_settings(given["source"]) if "source" in given else {}
    recorded = {k: v for k, v in recorded.items() if k in DEFAULTS}
    for key, value in recorded.items():
        if type(value) not in KINDS[key] and value != DEFAULTS[key]:
            fail(f"{given['source']}: {key} = {value!r} was never written here; take another PNG.")
    if "method" in given or "compare" in given:  # the recorded ones belong to another method
        for key in ("compare", "scale", "negative_scale", *OF_DNS, *ANSWER):
            recorded.pop(key, None)
        if given.get("method") in ("cfg", "dns", "answer"):
            recorded.pop("negative", None)
    if given.get("method", recorded.get("method")) in ("dnp", "auto-dnp"):
        # n* belongs to one prompt, seed and DNS image; any other n is none.
        words = recorded.get("method") in ("dnp", "auto-dnp")
        if not words or given.keys() - KEEP_WORDS:
            recorded.pop("negative", None)
    args = argparse.Namespace(**{**DEFAULTS, **recorded, **given})
    if args.prompt is None:
        fail('no prompt; give one in quotes, such as "a red car", or --from FILE.png.')
    if args.compare and args.negative is None and args.negative_scale is not None:
        fail("--negative-scale with --compare needs a negative prompt; add --negative TEXT.")
    return args


def choose_dtype(name: str, device):
    """The torch dtype of a name; auto is float16 on CUDA and float32 elsewhere."""
    import torch

    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    dtype = {n: getattr(torch, n) for n in ("float64", "float32", "float16", "bfloat16")}.get(name)
    if dtype is None:
        fail(f"dtype {name!r} is unknown; choose auto, float32, float64, float16 or bfloat16.")
    if device.type == "cpu" and dtype.itemsize == 2:
        fail(f"{name} is slow and inexact on a CPU; choose --dtype float32.")
    if device.type == "mps" and name == "float64":
        fail("MPS has no float64; choose --dtype float32.")
    return dtype


def find_weights(name: str) -> Path:
    """A relative path is looked for here and then beside this script."""
    here, beside = Path(name), Path(__file__).resolve().parent / name
    with suppress(OSError):  # a name too long for a path: `dnp.load` says so
        return beside if not here.exists() and beside.exists() else here
    return here


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    import dnp
    from dnp import pictures
    from dnp.generation import check_settings, choose_device
    from dnp.prompting import load_captioner

    methods = chosen_methods(args)
    for method, own in methods.items():  # before anything is loaded
        check_settings(
            1000, method, own.get("negative"), args.scale or 0.0, args.steps, args.seed,
            args.images, args.eta, own.get("negative_scale"), own.get("s_dns"),
            own.get("dns_images", 1), own.get("caption_per", "seed"),
            {k: own[k] for k in ANSWER if k in own},
        )  # fmt: skip
    pictures.check_folder(args.out)
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    model = dnp.load(find_weights(args.weights), device, dtype, args.prediction)
    print(f"device: {device}, {str(model.dtype).removeprefix('torch.')}; weights: {args.weights}")
    if args.fingerprint not in (None, model.config.files.like(args.fingerprint)):
        warnings.warn("these are other weights than the PNG was made with", stacklevel=1)

    stem, results, words = pictures.slug(args.prompt), {}, {}
    if args.captioner is not None and "auto-dnp" in methods:
        folder = args.captioner if args.allow_download else find_weights(args.captioner)
        words["auto-dnp"] = load_captioner(folder, device, args.allow_download)
    batch = args.images if args.caption_per == "prompt" else dnp.batch_size(device)
    steps = {m: args.steps * (1 + makes_dns(m, own)) for m, own in methods.items()}
    with tqdm(total=sum(steps.values()) * args.images, unit="step", leave=False) as bar:
        for method, own in methods.items():
            for first in range(0, args.images, batch):  # every picture is saved once it is made
                count = min(batch, args.images - first)
                words["dnp"] = partial(ask, args=args, shown=dns_seeds(args, first, count), bar=bar)
                result = dnp.generate(
                    model, args.prompt, method, s=args.scale, steps=args.steps,
                    seed=args.seed + first, images=count,
                    captioner=words.get(method), eta=args.eta, size=args.size,
                    progress=bar.update, **own,
                )  # fmt: skip
                results.setdefault(method, []).append(result)
                if args.compare:
                    continue
                if first == 0:
                    told = f"{method}: {round(result.nfe, 1)} network evaluations per picture"
                    bar.write(told, file=sys.stdout)
                for i, picture in enumerate(result.images):
                    n, seed = result.negatives[i], args.seed + first + i
                    used = {**result.settings, "seed": seed, "images": 1, "negative": n}
                    used |= {k: getattr(args, k) for k in ("weights", "captioner", "prediction")}
                    path = pictures.save(picture, args.out, f"{stem}-{method}-{seed}", used)
                    star = f'  n* = "{n}"' if makes_dns(method, own) else ""
                    bar.write(f"{path}{star}", file=sys.stdout)
    if args.compare:
        typed = {k: getattr(args, k) for k in DEFAULTS if k != "fingerprint"}
        used = {**results["cfg"][0].settings, **typed, "dtype": str(model.dtype)[6:]}
        sheet = compare_sheet(args, results)
        print(pictures.save(sheet, args.out, f"{stem}-compare-{args.seed}", used))


def chosen_methods(args: argparse.Namespace) -> dict[str, dict]:
    """The settings of its own of each method, as typed.

    --compare takes all methods that need only what was given, and gives each what belongs to it;
    dnp with given words is np, so it has no row of its own.
    """
    from dnp import generation

    own = ("negative", "negative_scale", "s_dns", "dns_images", "caption_per", *ANSWER)
    typed = {k: getattr(args, k) for k in own if getattr(args, k) != DEFAULTS[k]}
    if not args.compare:
        return {args.method: typed}
    belongs = {
        "negative": generation.NEEDS_NEGATIVE,
        "negative_scale": generation.TWO_SCALE,
        "s_dns": (*generation.CAPTIONED, "answer"),
        "dns_images": generation.CAPTIONED,
        "caption_per": generation.CAPTIONED,
    }
    usable = [m for m in METHODS if m != "dnp"]
    if args.negative is None:
        usable = [m for m in usable if m not in generation.NEEDS_NEGATIVE]
    if args.captioner is None and not (find_weights(args.weights) / "captioner").is_dir():
        usable.remove("auto-dnp")
    return {m: {k: v for k, v in typed.items() if m in belongs.get(k, ("answer",))} for m in usable}


def makes_dns(method: str, own: dict) -> int:
    """How many DNS images the method makes for a picture."""
    from dnp import generation

    captions = method in generation.CAPTIONED and own.get("negative") is None
    return own.get("dns_images", 1) if captions else 0


def dns_seeds(args: argparse.Namespace, first: int, count: int):
    """The seeds of the DNS images of `count` pictures from `first` on, in the order of asking."""
    from dnp.generation import FAR, SEEDS

    for i in range(count if args.caption_per == "seed" else 1):
        yield from ((args.seed + first + i + FAR * j) % SEEDS for j in range(args.dns_images))


def ask(image, args: argparse.Namespace, shown, bar) -> str:
    """A person's words for a DNS image, under 60 (arXiv:2411.05473)."""
    from dnp import command, pictures
    from dnp.prompting import MOST_WORDS

    seed = next(shown)
    bar.clear()  # what is asked and answered stands on lines of its own
    used = {k: getattr(args, k) for k in ("prompt", "steps", "eta", "size", "weights", "dtype")}
    used |= {"method": "dns", "scale": args.s_dns, "seed": seed}
    path = pictures.save(image, args.out, f"{pictures.slug(args.prompt)}-dnp-dns-{seed}", used)
    if args.show:
        image.resize([4 * side for side in image.size]).show()
    while True:
        print(f"{path}: the DNS image. What does it show, in fewer than {MOST_WORDS} words?")
        words = command.ask("n* = ", "give them with --negative TEXT")
        if 0 < len(words.split()) < MOST_WORDS:
            return words
        print(f"{len(words.split())} words; give 1 to {MOST_WORDS - 1}.")


def compare_sheet(args: argparse.Namespace, results: dict):
    """Methods in rows, seeds in columns; one column has one initial noise."""
    from dnp import pictures

    rows = []
    for method, parts in results.items():
        rule, where = METHODS[method]
        s, nfe = parts[0].settings["scale"], round(parts[0].nfe, 1)
        label = f"{method}\n{rule}\n{where}, s = {s:g}\nnfe {nfe}"
        rows.append((label, [picture for part in parts for picture in part.images]))
    columns = [f"seed {args.seed + i}" for i in range(args.images)]
    title = f'p = "{args.prompt}"'
    title += f'    n = "{args.negative}"' if args.negative is not None else ""
    return pictures.contact_sheet(rows, columns, title)


def main(argv: list[str] | None = None) -> None:
    given = parse(argv)
    warnings.showwarning = lambda message, *_: print(f"note: {message}.", file=sys.stderr)
    try:
        from dnp.command import streams
        from dnp.errors import DnpError

        streams()
        try:
            if given.get("info"):
                from dnp.sd.model import describe

                print(describe(find_weights(given.get("weights", DEFAULTS["weights"]))))
                return
            run(settings(given))
        except DnpError as e:
            fail(str(e))
        except (RuntimeError, MemoryError) as e:  # a CPU and MPS have no error of their own for it
            full = "out of memory", "allocate memory", "not enough memory"
            if not isinstance(e, MemoryError) and not any(words in str(e) for words in full):
                raise
            fail("the device's memory is full; choose a smaller --size, or float16 on a GPU.")
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

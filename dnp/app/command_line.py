"""The command line, `python -m dnp PROMPT`: settings in, pictures out.

`dnp/app/options.py` reads what was typed; here it is run, saved and shown.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from dnp.app.drawing import (
    asks_captioner,
    dns_pictures,
    draw,
    give_captioner,
    kinds_of,
    methods_of,
    negative_for,
    opened,
    recorded,
    rows_of,
    steps_of_all,
    to_keep,
    together,
)
from dnp.app.options import jobs, parse
from dnp.app.other_interfaces import tell_what_is_not_read
from dnp.app.terminal import fail, printable, streams
from dnp.errors import DnpError, SettingsError, memory_is_full
from dnp.methods import METHODS, chosen, sorted_out
from dnp.methods.attend_excite import OfSubjects, subjects_of
from dnp.methods.method import Method
from dnp.methods.own import UNKNOWN
from dnp.methods.words import AutoDNP, NegativePrompt
from dnp.sd import OF_PIPELINE, find_weights


def run(asked: list[SimpleNamespace]) -> None:
    """Draws all that `jobs` gave; only prompt and negative differ. Of a list, the prompts whose
    pictures are all there already are passed over, so that an interrupted one goes on."""
    args, out = asked[0], Path(asked[0].out)

    from tqdm import tqdm

    from dnp.app import png
    from dnp.generation import prepared

    kinds = set()
    for a in asked:  # before the weights are loaded
        for method, settings in methods_of(a).items():
            kind, _, _ = sorted_out(method, negative_for(a, method), settings)
            kinds.add(kind)
            if a.negative is None and kind.takes_words and not issubclass(kind, AutoDNP):
                who = f"rule {settings['rule']}" if "rule" in settings else f"method {kind.name}"
                raise SettingsError(f"{who} needs a negative prompt; add `negative=TEXT`.")
            for_weights(a, kind, settings)
    png.check_folder(out)
    model = opened(args)
    if str(args.fingerprint).startswith((OF_PIPELINE, UNKNOWN)):
        what = "could not be named" if args.fingerprint == UNKNOWN else "are a diffusers pipeline's"
        warnings.warn(
            f"the PNG's weights {what}, so it is not known whether these are the same", stacklevel=1
        )
    elif args.fingerprint not in (None, model.config.fingerprint):
        warnings.warn("these are other weights than the PNG was made with", stacklevel=1)
    if args.model is None:
        size = model.latent_shape(args.settings.get("size"))[-2:]
        height, width = (n * model.config.vae.factor for n in size)
        if height != width:
            print(f"size: width {width}, height {height}")
    for text in (text for a in asked for text in (a.prompt, a.negative or "")):
        tell_what_is_not_read(text, model.config.words)
    if any(map(asks_captioner, kinds)):
        give_captioner(model, args)
    for a in asked:
        for method, settings in methods_of(a).items() if not a.compare else ():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `draw` warns
                _, guided = prepared(model, a.prompt, method, a.negative, None, None, settings)
            tell_of_a_negative_without_effect(a, guided)
            if a is args and method is None and guided.name == "np2":
                warnings.warn(
                    "a negative prompt without --method is used as elsewhere, n + s (p - n): np2; "
                    "--method np is Eq. 4",
                    stacklevel=1,
                )

    def keep(picture, name: str, settings: dict) -> Path:
        return png.save(picture, out, name, settings)

    left = [a for a in asked if args.prompts is None or not is_there(model, a, out)]
    if len(left) < len(asked):
        warnings.warn(
            f"the pictures of {len(asked) - len(left)} of {len(asked)} prompts are in {out} "
            "already, with the same settings; give --out another folder to draw them again",
            stacklevel=1,
        )
    for some in together(model, left):
        methods = methods_of(some[0])
        kinds = kinds_of(model, some[0], methods)
        total = len(some) * steps_of_all(some[0], methods, kinds)
        with tqdm(total=total, unit="step", leave=False) as bar:
            draw(model, some, methods, kinds, bar, keep)


def is_there(model, args: SimpleNamespace, folder: Path) -> bool:
    """Whether all pictures of a prompt are in a folder; a sheet is always drawn again."""
    from dnp.app import png

    if args.compare:
        return False
    for method, settings in methods_of(args).items():
        kind = chosen(method, settings, args.negative)
        call = recorded(model, args, method, settings)
        rows = rows_of(call)
        wanted = [to_keep(args, kind, call, row) for row in rows]
        if issubclass(kind, AutoDNP) and args.negative is None:  # else n may have been given
            wanted += dns_pictures(model, args, call, rows)
        for name, used in wanted:
            if UNKNOWN in used.values() or not png.is_there(folder, name, used):
                return False
    return True


def tell_of_a_negative_without_effect(args: SimpleNamespace, guided: Method) -> None:
    """A note where a negative prompt changes nothing at its scale, or is drawn and not avoided."""
    weight = guided.weight_of_n() if args.negative and isinstance(guided, NegativePrompt) else None
    if weight is not None and weight >= 0:
        effect = "has no effect" if weight == 0 else "is drawn and not avoided"
        scale = "scale (s" if guided.negative_scale is None else "negative scale (h"
        value = guided.s if guided.negative_scale is None else guided.negative_scale
        warnings.warn(
            f"at this {scale} = {value:g}) the negative prompt {effect}; choose a larger one",
            stacklevel=2,
        )


def for_weights(args: SimpleNamespace, kind: type[Method], settings: dict) -> None:
    """SettingsError for a captioner or subjects that these weights do not have; before they are
    loaded, which takes a while for large ones."""
    from dnp.sd.files import folder

    if kind not in METHODS.values() or args.compare or args.model is not None:
        return
    captions = asks_captioner(kind) and args.negative is None and args.captioner is None
    reads = issubclass(kind, OfSubjects) and settings.get("subjects") is None
    if not (captions or reads):
        return
    contents = folder.read(find_weights(args.weights), args.prediction)
    if captions and contents.captioner is None:
        raise SettingsError(
            f"these weights have no captioner; give {kind.name} one with `captioner=FOLDER`."
        )
    if reads:
        subjects_of(args.prompt, None, contents.recommended[2], kind)


def main(argv: list[str] | None = None, audits: Callable | None = None) -> None:
    """`audits` makes the audits of the page's model (`dnp/__main__.py`); without it there are
    none."""
    streams()
    warnings.showwarning = lambda note, *_: print(f"note: {printable(note)}.", file=sys.stderr)
    try:
        typed = parse(sys.argv[1:] if argv is None else argv)
        try:
            if typed.get("page"):
                from dnp.app.page import serve

                serve(typed, audits)
                return
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

"""What --from adds: the settings of a PNG that was made here, as far as they are still true."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import Field
from pathlib import Path
from types import SimpleNamespace

from dnp.app.other_interfaces import read_parameters
from dnp.app.png import read_settings
from dnp.app.settings import Once, Picture, Weights, method_of
from dnp.errors import SettingsError
from dnp.methods import METHODS, own
from dnp.methods.chain import Chain
from dnp.methods.fields import check_value, table
from dnp.methods.method import Method
from dnp.methods.words import AutoDNP
from dnp.sd import OF_PIPELINE

RECORDED = ("fingerprint", "rule_sha256", "method_sha256", "device")  # in a PNG, not settings
# What leaves the words n* of a PNG true: they belong to its prompt, seed and DNS image.
KEEPS_WORDS = {"s", "negative_scale", "rule", "rule_options", "interval", "negative_interval",
               "ae_step", "ae_until", "ae_thresholds", "ae_refinements", "ae_level"}  # fmt: skip


def from_png(typed: dict) -> dict:
    """What --from adds: the settings of a PNG that what was typed leaves true."""
    file = typed["from_"]
    recorded = read_settings(Path(file), read_parameters)
    other = typed.keys() & {"method", "compare"}  # another method drops the recorded one's
    files = {"method": other, "rule": other | typed.keys() & {"rule"},
             "model": typed.keys() & {"model", "weights"}}  # fmt: skip
    for what, anew in files.items():
        name = recorded.get(what)
        if own.is_file(name) and not anew:
            raise SettingsError(
                f"{file} was made with the {what} {name}, and no picture makes a file run; add "
                f"--{what} {name} if you trust it."
            )
    before = method_of(recorded.get("method") if typed.get("method") is None else typed["method"])
    known = table(*METHODS.values(), *before, Chain, Picture, Weights)
    for key, value in recorded.items():
        told = key in ("prompt", *RECORDED)
        if not told and key not in known and other and own.is_file(recorded.get("method")):
            continue  # a setting of that method, which goes with it
        if not told and key not in known:
            raise SettingsError(
                f"{file} holds {key} = {value!r:.40}, which this version does not know, so its "
                "picture cannot be made again; take another PNG."
            )
        if not (isinstance(value, str | None) if told else could_be(known[key], value)):
            raise SettingsError(
                f"{file}: {key} = {value!r:.60} was never written here; take another PNG."
            )
    recorded.pop("device", None)
    if "dtype" in typed or str(recorded.get("fingerprint")).startswith(OF_PIPELINE):
        recorded.pop("vae_dtype", None)
    elif recorded.get("dtype") in ("bfloat16", "float16"):
        recorded.setdefault("vae_dtype", "float32")  # as it was before PNGs told it
    if "weights" in typed:
        recorded.pop("model", None)
    if "model" in typed:
        recorded.pop("weights", None)
        recorded.pop("prediction", None)
    if str(recorded.get("fingerprint")).startswith(OF_PIPELINE) and not typed.keys() & {
        "weights",
        "model",
    }:
        raise SettingsError(
            f"{file}: its weights came from a diffusers pipeline that was open in Python "
            "(dnp.from_diffusers), and no file is named; save it with pipe.save_pretrained(FOLDER) "
            "and add --weights FOLDER. If it has a LoRA, call pipe.fuse_lora() and "
            "pipe.unload_lora_weights() first."
        )
    return still_true(recorded, typed)


def could_be(field: Field, value: object) -> bool:
    """Whether a record can hold a value; None is as if not given, where that has a meaning."""
    if value is None:
        return field.default is None
    with suppress(SettingsError):
        check_value(field, value)
        return True
    return False


def still_true(recorded: dict, typed: dict) -> dict:
    """The recorded settings without those that belong to something that was typed anew."""
    was = METHODS.get(recorded.get("method"), Method)
    trusted = own.is_file(typed.get("method")) and typed["method"] == recorded.get("method")
    if ("method" in typed and not trusted) or "compare" in typed:  # these belong to another method
        of_methods = set(table(*METHODS.values())) - {"interval"}
        of_methods |= recorded.keys() - table(*METHODS.values(), Chain, Picture, Weights).keys()
        for key in (of_methods | {"compare"}) - {"prompt", "fingerprint"}:
            recorded.pop(key, None)
    now = next(iter(method_of(typed.get("method", recorded.get("method")))), None)
    if now and not now.takes_words and ("method" in typed or now.has_negative):
        recorded.pop("negative", None)  # it makes its own again
    if "prompt" in typed:
        recorded.pop("subjects", None)
    followed = was.h_of_s != 1 and bool(typed.keys() & {"s", "rule"})
    if followed and recorded.get("negative_scale") == was.h_of_s * (recorded.get("s") or 0):
        recorded["negative_scale"] = None  # it followed from s, as it is to again
    if "rule" in typed and recorded.pop("rule", None) != typed["rule"]:
        recorded.pop("rule_options", None)
        recorded.pop("rule_sha256", None)
    dns = now is not None and issubclass(now, AutoDNP)
    changed = {k for k, v in typed.items() if k not in recorded or v != recorded[k]}
    changed -= KEEPS_WORDS | table(Once).keys()
    if dns and (changed or not issubclass(was, AutoDNP)):  # any other n is not n*
        recorded.pop("negative", None)
    return recorded


def warn_of_other_code(args: SimpleNamespace, made: dict) -> None:
    """A note where the PNG's rule or method was other code than what draws now."""
    for what in ("rule", "method"):
        was, now = getattr(args, f"{what}_sha256"), made.get(f"{what}_sha256")
        if "from_" in args.typed and was is not None and now is not None and was != now:
            warnings.warn(
                f"this {what}'s code is not that which the PNG was made with", stacklevel=1
            )

"""The application's own settings: what is drawn, with whose weights, and of one run alone."""

from __future__ import annotations

from dataclasses import dataclass

from dnp.methods import METHODS, own
from dnp.methods.fields import setting
from dnp.methods.method import Method


@dataclass(kw_only=True)
class Picture:
    """What is drawn."""

    method: str | None = setting(
        None, "default: cfg, or np2 if there is a negative; your own is FILE.py:NAME",
        metavar="METHOD",
    )  # fmt: skip
    negative: str | None = setting(None, "negative prompt n, or n* for dnp and auto-dnp")
    compare: bool = setting(False, "one sheet: methods in rows, seeds in columns")


@dataclass(kw_only=True)
class Weights:
    """Whose weights."""

    weights: str = setting(
        "weights/mini", "a diffusers folder or a .safetensors file", metavar="PATH"
    )
    model: str | None = setting(
        None, "a model of your own instead (dnp/methods/models.py)", metavar="FILE.py:NAME"
    )
    prediction: str | None = setting(
        None, "epsilon or v_prediction; default: what PATH says", metavar="KIND"
    )
    captioner: str | None = setting(
        None,
        "what captions for auto-dnp, such as BLIP; default: the weights' own",
        metavar="FOLDER",
    )
    dtype: str = setting(
        "auto", "auto, float32, float64, bfloat16, on a GPU float16", metavar="NAME"
    )
    vae_dtype: str = setting(
        "auto", "of the VAE's decoder; auto: float32, of a CPU's bfloat16 the same", metavar="NAME"
    )


@dataclass(kw_only=True)
class Once:
    """This run alone."""

    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps", metavar="NAME")
    allow_download: bool = setting(False, "--captioner may be a name to download")
    show: bool = setting(False, "open the DNS image of dnp in a viewer")
    info: bool = setting(False, "print what --weights holds, and stop")
    out: str = setting("outputs", "where pictures are written; default outputs", metavar="FOLDER")
    prompts: str | None = setting(
        None,
        "a text file with a prompt on each line; a TAB and a negative may follow; prompts whose "
        "pictures are there already are passed over",
        metavar="FILE",
    )
    page: bool = setting(False, "open a live page in the browser: DNP by hand")
    host: str = setting(
        "127.0.0.1", "where --page is served; another address asks for the token of its link; "
        "default 127.0.0.1", metavar="ADDRESS",
    )  # fmt: skip
    port: int = setting(8765, "the port of --page; 0 takes any free one", low=0, high=65535)
    from_: str | None = setting(
        None, "take every setting from a PNG made here; other options override them",
        metavar="FILE.png",
    )  # fmt: skip


def method_of(name: str | None) -> list[type[Method]]:
    """The class of a method by its name or FILE.py:NAME, in a list; else an empty list."""
    if own.is_file(name):
        found = own.find(name, "method")
        return [found] if isinstance(found, type) and issubclass(found, Method) else []
    return [METHODS[name]] if name in METHODS else []

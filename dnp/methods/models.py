"""A model of your own: what it must have, what it may have, and one made of a function.

    eps(z_t, t, c) -> eps      z_t (B, *S), t () or (B,) whole numbers, c your condition; like z_t
    schedule                   a `dnp.schedule.Schedule`; t is the index of a level in it
    latent_shape(size) -> S    or sample(n, t, c, generator=) -> z_t (n, *S), where the law is known

It may have, too:

    encode(prompts) -> c       texts -> (B, ...), a tensor or a tuple; without it c is the prompt
                               itself, whatever it is, and None is phi
    decode(z_0) -> pictures    latents (B, *S) -> one PIL picture each
    spacing                    leading (where none is said), trailing or linspace
    device, dtype              of the network; else the CPU and float32
    latent_dtype               of the chain, where it is to be wider than the network's
    at_steps(steps, size)      the model on the levels of this many steps (`dnp/units.py`)
    attention(level), places   maps of cross-attention, for ae and neglect (`dnp/sd/attention.py`)
    captioner                  pictures -> one text each, for auto-dnp and cnp

Units are the variance-preserving ones; `dnp/units.py` takes a network of others there. On the
command line and in the experiments it is `--model FILE.py:NAME`: NAME is a model, or a class or
function that gives one when it is called without arguments.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from dnp.errors import SettingsError, meant, reason
from dnp.methods import own
from dnp.schedule import EpsFn, Schedule

NEEDED = "eps(z_t, t, c), a schedule, and latent_shape(size) or sample(n, t, c, generator=)"
OPTIONAL = ("encode", "decode", "spacing", "device", "dtype", "latent_dtype", "at_steps",
            "attention", "places", "captioner", "sample")  # fmt: skip


class Model:
    """Made by `model`: what it was given, and one shape of latents."""

    def __init__(self, eps: EpsFn, schedule: Schedule, shape: tuple[int, ...], more: Mapping):
        self.eps, self.schedule, self.shape = eps, schedule, tuple(shape)
        self.spacing = "trailing"
        vars(self).update(more)

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """S of its latents (B, *S)."""
        if size is not None:
            raise SettingsError(f"this model has latents of {self.shape} only; leave size out.")
        return self.shape


def model(eps: EpsFn, schedule: Schedule, shape: tuple[int, ...], **more: object) -> Model:
    """A model of a function `eps(z_t, t, c)`, for latents (B, *shape).

    `more` is what else it may have, as above. Chains start at the noisiest level, `spacing`
    trailing, unless you say otherwise. SettingsError for a name that a model does not have.
    """
    for name in more:
        if name not in OPTIONAL:
            raise SettingsError(f"{name} is not a part of a model; {meant(name, OPTIONAL)}")
    made = Model(eps, schedule, shape, more)
    require(made)
    return made


def require(x: object) -> None:
    """SettingsError, one sentence with all that is missing, unless x is a model."""
    name = type(x).__name__
    missing = [k for k in ("eps", "schedule") if not hasattr(x, k)]
    if missing:
        raise SettingsError(
            f"{name} is not a model (it has no {' and no '.join(missing)}); a model has {NEEDED}. "
            "Open weights with dnp.load(PATH) or dnp.from_diffusers(pipe), or make one of a "
            "function with dnp.model(eps, schedule, shape)."
        )
    if not callable(x.eps):
        raise SettingsError(f"eps of {name} is a {type(x.eps).__name__}; make it eps(z_t, t, c).")
    lacks = [k for k in ("abar", "pairs", "level", "sigma_ve") if not hasattr(x.schedule, k)]
    if lacks:
        raise SettingsError(
            f"the schedule of {name} is a {type(x.schedule).__name__}, without {', '.join(lacks)}; "
            "give a dnp.schedule.Schedule, such as Schedule.from_betas(betas), .cosine() or "
            ".flow()."
        )


def require_latents(x: object) -> None:
    """SettingsError unless z_T can be drawn."""
    if not hasattr(x, "latent_shape") and not hasattr(x, "sample"):
        raise SettingsError(
            f"{type(x).__name__} has neither latent_shape(size) nor sample(n, t, c, generator=), "
            "so z_T cannot be drawn; add one, or give trajectory a z_T."
        )


# ------------------------------------------------------------------------------- FILE.py:NAME


@dataclass(frozen=True)
class OwnConfig:
    """What a model of FILE.py:NAME says about itself; `fingerprint` is "unknown" where something
    in it cannot be seen."""

    fingerprint: str
    scales: dict[str, float] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    things: tuple[str, ...] = ()
    captioner: None = None


class Own:
    """A model of FILE.py:NAME: all that it has, and what the commands ask of a model beside."""

    def __init__(self, inner: object, fingerprint: str):
        self.inner, self.config = inner, OwnConfig(fingerprint)
        self.device = torch.device(getattr(inner, "device", "cpu"))
        self.dtype = getattr(inner, "dtype", torch.float32)

    def __getattr__(self, name: str):
        if name == "inner":  # asked before it is there, as by copy
            raise AttributeError(name)
        found = getattr(self.inner, name)
        if name != "at_steps":
            return found
        return lambda *of: Own(found(*of), self.config.fingerprint)


def find(name: str, what: str = "model") -> object:
    """The object of FILE.py:NAME, whose file is run; a class or a function is called."""
    if not own.is_file(name):
        raise SettingsError(f"{what} {name!r} is not possible; give FILE.py:NAME.")
    found = own.find(name, what)
    if isinstance(found, type) or (callable(found) and not hasattr(found, "eps")):
        try:
            return found()
        except KeyboardInterrupt:
            raise
        except BaseException as e:
            raise SettingsError(
                f"{name} was called without arguments and failed ({reason(e)}); fix it, or name a "
                "model that is made."
            ) from e
    return found


def load_own(name: str, named: bool = False) -> Own:
    """A model for the commands, of FILE.py:NAME.

    SettingsError, one sentence, for what it lacks: there a prompt is words and the result pictures;
    and, where it must be `named`, if its fingerprint is unknown.
    """
    inner = find(name)
    require(inner)
    missing = [x for x in ("latent_shape", "encode", "decode") if not hasattr(inner, x)]
    if missing:
        raise SettingsError(
            f"{name} has no {' and no '.join(missing)}; a prompt in words needs encode(prompts), a "
            "picture decode(z_0), and z_T latent_shape(size) (dnp/methods/models.py)."
        )
    known_as = fingerprint(inner, name)
    if named and known_as == own.UNKNOWN:
        raise SettingsError(
            f"{name} holds something whose content cannot be seen, such as a generator, so its "
            "records could not be told apart from another model's; keep tensors, numbers and texts."
        )
    return Own(inner, known_as)


# ----------------------------------------------------------------------------------- identity


def fingerprint(x: object, name: str) -> str:
    """own- and 32 hexadecimal digits, of all that can be seen of a model of FILE.py:NAME; or
    UNKNOWN.

    The bytes of its file and of those that it imports from beside it; the tensors, numbers and
    texts that the model, its functions and its file's globals hold. A file that it reads later, and
    code of other packages, are not seen. Where it holds something that says nothing of itself
    (a generator, a session of another runtime) it is UNKNOWN, and the experiments refuse it.
    """
    path = Path(name.rpartition(":")[0]).resolve()
    sources = {path, *own.imported_beside(path).values()}
    digest = hashlib.sha256(name.rpartition(":")[2].encode())
    for source in sorted(sources):
        digest.update(f"{source.name};".encode() + source.read_bytes())
    try:
        for part in _content(x, {str(s) for s in sources}, {}):
            digest.update(part)
    except _Unseen:
        return own.UNKNOWN
    return "own-" + digest.hexdigest()[:32]


class _Unseen(Exception):
    """Something whose content cannot be seen."""


def _content(x: object, files: set[str], seen: dict[int, object]) -> Iterator[bytes]:
    """All that an object holds, as bytes, in one order. Code is its file's, or a name."""
    kind = f"{type(x).__module__}.{type(x).__qualname__};"
    if x is None or isinstance(x, bool | int | float | complex | str | bytes | Path | Enum):
        yield f"{kind}{x!r};".encode()
        return
    if isinstance(x, torch.dtype | torch.device | torch.Size | range | slice):
        yield f"{kind}{x!r};".encode()
        return
    if id(x) in seen:  # again, or in a circle
        yield f"{list(seen).index(id(x))};".encode()
        return
    seen[id(x)] = x
    yield kind.encode()
    if isinstance(x, Tensor):
        data = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield f"{x.dtype} {tuple(x.shape)};".encode() + data
    elif hasattr(x, "tobytes") and hasattr(x, "dtype"):  # an array of numpy's
        if x.dtype.hasobject:
            raise _Unseen
        yield f"{x.dtype} {x.shape};".encode() + x.tobytes()
    elif isinstance(x, Mapping):
        for k in x:
            yield from _content(k, files, seen)
            yield from _content(x[k], files, seen)
    elif isinstance(x, set | frozenset):
        yield from _content(sorted(map(repr, x)), files, seen)
    elif isinstance(x, list | tuple):
        yield f"{len(x)};".encode()
        for y in x:
            yield from _content(y, files, seen)
    elif isinstance(x, ModuleType):
        yield x.__name__.encode()
        if _lies_in(getattr(x, "__file__", None), files):
            yield from _content({k: v for k, v in vars(x).items() if k[:2] != "__"}, files, seen)
    elif isinstance(x, functools.partial):
        yield from _content((x.func, x.args, x.keywords), files, seen)
    elif inspect.ismethod(x):
        yield from _content((x.__func__, x.__self__), files, seen)
    elif inspect.isfunction(x):
        yield f"{x.__module__}.{x.__qualname__};".encode()
        cells = [c.cell_contents for c in x.__closure__ or () if c != type(c)()]
        yield from _content((x.__defaults__, x.__kwdefaults__, cells), files, seen)
        if _lies_in(x.__code__.co_filename, files):
            used = {k: x.__globals__[k] for k in _names(x.__code__) if k in x.__globals__}
            yield from _content(used, files, seen)
    elif isinstance(x, type) or inspect.isbuiltin(x):
        yield f"{x.__module__}.{x.__qualname__};".encode()
        file = getattr(inspect.getmodule(x), "__file__", None)
        if isinstance(x, type) and _lies_in(file, files):
            yield from _content(_of_class(x), files, seen)
    elif hasattr(x, "__dict__") and not isinstance(x, Iterator):
        yield from _content(type(x), files, seen)
        yield from _content(vars(x), files, seen)
    else:
        raise _Unseen


def _lies_in(file: str | None, files: set[str]) -> bool:
    return file is not None and str(Path(file).resolve()) in files


def _of_class(kind: type) -> dict[str, object]:
    """The methods, properties and values of a class of one's own, without Python's."""
    kept = ("__init__", "__call__")
    values = {k: v for k, v in vars(kind).items() if k[:2] != "__" or k in kept}
    values.pop("_abc_impl", None)
    inner = {property: "fget", staticmethod: "__func__", classmethod: "__func__",
             functools.cached_property: "func"}  # fmt: skip
    return {k: getattr(v, inner[type(v)]) if type(v) in inner else v for k, v in values.items()}


def _names(code) -> list[str]:
    """The global names that a function reads, also in the functions inside it."""
    names = list(code.co_names)
    for const in code.co_consts:
        names += _names(const) if hasattr(const, "co_names") else []
    return sorted(set(names))

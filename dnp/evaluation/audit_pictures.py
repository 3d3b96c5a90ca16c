"""The pictures of an audit: sampled in batches from shared noises, kept by their settings, seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from dnp import process
from dnp.app import png
from dnp.errors import PictureError
from dnp.evaluation.labels import Labels, Seen
from dnp.evaluation.record_keys import code_hash, key
from dnp.generation import begun, prepared
from dnp.methods.method import SCALE
from dnp.methods.result import record

EMPTY, PROMPT, GUIDED, DNS, NEGATED = "empty", "prompt", "cfg", "dns", "negative"  # the sets
BATCH, OF_TOY = 16, 512  # pictures in one forward; a toy's are a few numbers each


def empty_alone(eps_phi):
    """The empty prompt's own noise, by one evaluation."""
    return eps_phi


def prompt_alone(eps_p):
    """The prompt's own noise, which is CFG at s = 1, by one evaluation."""
    return eps_p


class Kept:
    """A folder of pictures by their settings, weights and code: what is there is not made again."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, settings: dict) -> Image.Image | None:
        path = self._path(settings)
        try:
            if not path.is_file() or png.read_settings(path)["seed"] != settings["seed"]:
                return None
            with Image.open(path) as picture:
                return picture.convert("RGB")
        except (PictureError, OSError, SyntaxError, ValueError, KeyError):  # damaged
            return None

    def put(self, settings: dict, picture: Image.Image) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            png.write(self._path(settings), png.png(picture, settings))
        except OSError as e:
            raise PictureError(
                f"{self.folder}: cannot be written ({e.strerror}); make room or give --out another "
                "folder, and type the same command to go on."
            ) from None

    def _path(self, settings: dict) -> Path:
        return self.folder / f"{key([settings, code_hash()])}.png"


def sampled(
    model, prompt, method: str, negative, given: dict,
    progress: Callable[[int], None] | None = None, kept: Kept | None = None,
) -> Iterator[list]:  # fmt: skip
    """The pictures of a method in batches; of a toy its z_0.

    z_T depends on the seed alone, not on the method or the prompt; a toy's is of phi's own law.
    `progress` is called with the number of pictures that made a step.
    """
    call, guided = prepared(model, prompt, method, negative, None, None, given)
    made = record(call, guided) | {"images": 1, "negative": negative}
    batch = BATCH if hasattr(model, "decode") else OF_TOY
    for first in range(0, call.images, batch):
        rows = range(first, min(first + batch, call.images))
        settings = [made | {"seed": call.seed + i} for i in rows]
        pictures = [kept.get(one) for one in settings] if kept else [None]
        if None not in pictures:
            if progress:
                progress(len(rows) * call.steps)
            yield pictures
            continue
        with process.apart():
            z_T = call.noise(call.generators(rows), "phi")
            _, chain = begun(call, guided, rows, [negative] * len(rows), z_T)
            for t, z_0, _, _ in chain:  # noqa: B007
                if t >= 0 and progress:
                    progress(len(rows))
            pictures = call.model.decode(z_0) if hasattr(model, "decode") else list(z_0)
        if kept:
            for one, picture in zip(settings, pictures):
                kept.put(one, picture)
        yield pictures


def scales_of(model, s: float | None) -> dict[str, float]:
    """CFG's scale, or the weights' own, else 7.5; DNS and the negative have the weights' own too,
    else CFG's."""
    recommended = getattr(getattr(model, "config", None), "scales", {})
    s = recommended.get("cfg", SCALE) if s is None else s
    return {GUIDED: s, DNS: recommended.get("dns", s), NEGATED: recommended.get("np2", s)}


def looked_at(
    model, prompt, name: str, count: int, scales: dict[str, float], negative=None,
    progress: Callable[[int], None] | None = None, *, labels: Labels, steps: int, seed: int,
    kept: Kept | None,
) -> tuple[list, Seen]:  # fmt: skip
    """`count` pictures of a set, and what is seen in each."""
    method, own, cost = {
        EMPTY: ("cfg", {"rule": empty_alone}, 1),
        PROMPT: ("cfg", {"rule": prompt_alone}, 1),
        GUIDED: ("cfg", {"s": scales[GUIDED]}, 2),
        DNS: ("dns", {"s": scales[DNS]}, 2),
        NEGATED: ("np2", {"s": scales[NEGATED]}, 2),
    }[name]
    given = {**own, "steps": steps, "seed": seed, "images": count}
    of = ("" if hasattr(model, "encode") else None) if name == EMPTY else prompt
    tell = (lambda n: progress(n * cost)) if progress else None
    pictures, seen = [], []
    for batch in sampled(model, of, method, negative, given, tell, kept):
        pictures += batch
        seen += labels.see(batch)
    return pictures, seen

"""A unit of `--benchmark not`: a setting of a rule on all pairs (p, n) of a list, in one batch.

Every picture of a unit has a seed of its own, and no PNG is kept: its record holds what the
miniature's own eyes see in it. The things and their colours are the recogniser's at .5, the setting
is CLIP's.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from dnp import process
from dnp.errors import NonFiniteError, SettingsError
from dnp.evaluation import record_keys
from dnp.evaluation.labels import OfWorld, labels_for
from dnp.evaluation.negatives.rules import Setting
from dnp.generation import begun, prepared
from dnp.guidance import effective_scale
from dnp.methods.conditions import together
from dnp.methods.method import Asked
from dnp.methods.words import describe
from dnp.sd.world import ANIMALS, OBJECTS, subjects

Pairs = Sequence[Sequence[str]]  # of (p, n)
DNS = Setting("the weights' scale", "dns")
N_STAR, RANDOM = "n*", "random n"  # in place of a pair's own n


@dataclass
class Sampled:
    """The pictures of a batch, None where the latents overflowed; `strength` is a row for each
    step: t, the effective scale of each picture, and the rest in lengths of dp."""

    pictures: list[Image.Image | None]
    evaluations: int
    strength: list[list]


def sampled(
    model, setting: Setting, pairs: Pairs, negatives: Sequence[str], seeds: Sequence[int],
    steps: int, strength: bool = False,
) -> Sampled:  # fmt: skip
    """Pictures of the prompts p of the pairs with these negatives, one of each, in one batch."""
    try:
        return _batch(model, setting, pairs, negatives, seeds, steps, strength)
    except NonFiniteError:
        if len(pairs) == 1:
            return Sampled([None], 0, [])
        parts = [_batch_of_one(model, setting, *one, steps) for one in zip(pairs, negatives, seeds)]
        return Sampled([x.pictures[0] for x in parts], max(x.evaluations for x in parts), [])


def _batch_of_one(model, setting, pair, negative, seed, steps) -> Sampled:
    return sampled(model, setting, [pair], [negative], [seed], steps)


@process.apart()
@torch.no_grad()
def _batch(model, setting, pairs, negatives, seeds, steps, strength) -> Sampled:
    takes = setting.method in ("np", "np2")
    given = {"s": None, **setting.settings, "steps": steps, "images": len(pairs)}
    asked = zip(pairs, seeds, negatives)
    rows = [Asked(p, seed, n if takes else None) for (p, _), seed, n in asked]
    first = rows[0].prompt, setting.method, rows[0].negative
    call, guided = prepared(model, *first, None, None, given)
    call.rows = rows
    found = []
    for t, z_t, _, eps in begun(call, guided, range(len(rows)), guided.words(call)[0])[1]:
        if t >= 0 and strength:
            both = [guided.conditions[c] for c in ("phi", "p")]
            eps_phi, eps_p = together(model.eps, z_t, torch.tensor(t, device=z_t.device), both)
            strengths = effective_scale(eps, eps_phi, eps_p)
            found.append([t, *([round(float(x), 4) for x in of] for of in strengths)])
    return Sampled(model.decode(z_t), guided.evaluations, found)


def random_negative(pair: Sequence[str], seed: int) -> str:
    """One of the things that neither p nor n names, by the seed."""
    named = {word for text in pair for _, word in subjects(text)}
    return f"a {random.Random(seed).choice([t for t in ANIMALS + OBJECTS if t not in named])}"


class Eyes:
    """What looks at the pictures. SettingsError for weights that have nothing that does."""

    def __init__(self, model, weights: Path):
        self.labels = labels_for(model, "", weights)
        if not isinstance(self.labels, OfWorld) or self.labels.clip is None:
            raise SettingsError(
                f"{weights} has no recogniser and CLIP of a miniature's world, which see what its "
                "pictures show; give --weights the folder of a miniature."
            )

    def see(self, pictures: Sequence[Image.Image | None]) -> list[dict | None]:
        """The things with their colours and the setting of each picture; None where it has none."""
        there = [x for x in pictures if x is not None]
        if not there:
            return [None] * len(pictures)
        found = self.labels.recogniser.find(there)
        settings = self.labels.settings(there, found)
        rows = iter(
            {"things": {f.word: f.colour for f in fs}, "setting": setting}
            for fs, setting in zip(found, settings)
        )
        return [None if x is None else next(rows) for x in pictures]


def unit(
    model, eyes: Eyes, setting: Setting, of: str | None, pairs: Pairs, seeds: Sequence[int],
    steps: int, strength: bool,
) -> dict:  # fmt: skip
    """The record of a unit, without its content. `of` is N_STAR, RANDOM, or None for the pairs'
    own n."""
    start, words_cost, negatives = time.perf_counter(), 0, [n for _, n in pairs]
    if of == RANDOM:
        negatives = [random_negative(pair, seed) for pair, seed in zip(pairs, seeds)]
    elif of == N_STAR:
        dns = sampled(model, DNS, pairs, negatives, seeds, steps)
        words_cost = dns.evaluations
        negatives = words(model, dns.pictures)
    made = sampled(model, setting, pairs, [n or "" for n in negatives], seeds, steps, strength)
    there = [i for i, n in enumerate(negatives) if n is not None]
    return {
        "rows": eyes.see([made.pictures[i] if i in there else None for i in range(len(pairs))]),
        "evaluations": made.evaluations,
        "words_evaluations": words_cost,
        "negatives": negatives,
        "strength": [[t, *([of[i] for i in there] for of in both)] for t, *both in made.strength],
        "seconds": round(time.perf_counter() - start, 3),
    }


def words(model, pictures: Sequence[Image.Image | None]) -> list[str | None]:
    """The n* of each DNS image; None of one that overflowed, and a warning says so."""
    there = [x for x in pictures if x is not None]
    texts = iter(describe(captioner(model), there) if there else ())
    if missing := len(pictures) - len(there):
        warnings.warn(
            f"{missing} of {len(pictures)} DNS images overflowed, so there is no n* for them; they "
            "count as rows without a picture",
            stacklevel=2,
        )
    return [None if x is None else next(texts) for x in pictures]


def captioner(model):
    """The weights' own. SettingsError where there is none."""
    own = getattr(model, "captioner", None)
    if own is None:
        raise SettingsError("these weights have no captioner, which n* needs; give others.")
    return own


def content(
    setting: Setting, of: str | None, pairs: Pairs, seeds: Sequence[int], steps: int,
    circumstances: dict,
) -> dict:  # fmt: skip
    """All that a unit's record depends on; its key is the record's name."""
    return {
        "method": setting.method,
        "settings": setting.settings,
        "of": of,
        "pairs": [list(pair) for pair in pairs],
        "seeds": list(seeds),
        "steps": steps,
        **circumstances,
    }


def circumstances(model) -> dict:
    """What a unit depends on beside what was asked for: the code that samples and sees, not that
    of the tables."""
    here = Path(__file__).resolve().parent
    eyes = record_keys.source_hash([here / "making.py", here.parent / "labels.py"])
    return {
        "code": record_keys.code_hash(),
        "eyes": record_keys.key([eyes, record_keys.metrics_code()]),
        "weights": model.config.fingerprint,
        "device": model.device.type,
        "dtype": record_keys.dtypes(model),
    }

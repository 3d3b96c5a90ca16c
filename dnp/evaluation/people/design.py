"""A pairwise study as data: which pictures of a run are shown together, and what is known of them.

The plan is what the page may know: pairs under opaque names, in an order that says nothing. The key
is what unblinds it. The study's name is a hash of both, so a changed rule is another study.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dnp.app.png import png
from dnp.errors import SettingsError, meant
from dnp.evaluation import record_keys
from dnp.evaluation.records import CIRCUMSTANCES, RunError, Store, is_picture, picture, read_run

QUESTIONS = {  # asked apart, in this order: the text is not shown with the first
    "better": "Which is the better picture?",
    "follows": "Which picture follows the text better?",
}
ANSWERS = ("left", "equal", "right", "unclear")
# Fixed before anybody answers; `PLAN.md` says them in words.
EXCLUSIONS = {"one_sided_p": 0.001, "wrong_checks": 0.3}
MOST_PAIRS = 1000


@dataclass(frozen=True)
class Pair:
    """Two records of one prompt and seed."""

    prompt: str
    seed: int
    a: dict
    b: dict


@dataclass(frozen=True)
class Study:
    """What is written: `key` (with the plan in it) and the pictures by their opaque names."""

    key: dict
    pictures: dict[str, Image.Image]


def condition(manifest: dict, text: str) -> dict:
    """One side of the comparison: the method of a run by its label, or LABEL@S where it was made at
    several scales, as label, method and settings."""
    methods = manifest["methods"]
    label, _, scale = text.rpartition("@") if text not in methods else (text, "", "")
    if label not in methods:
        raise SettingsError(f"method {text!r} is not in this run; {meant(text, methods)}")
    known = {_scale(s["s"]): s for s in methods[label]}
    try:
        scale = _scale(float(scale)) if scale else next(iter(known)) if len(known) == 1 else ""
    except ValueError:
        scale = "?"
    if scale not in known:
        names = " or ".join(f"{label}@{s}" for s in known)
        raise SettingsError(f"{text!r} does not name one scale of this run; write {names}.")
    settings = known[scale]
    name = label if settings["s"] is None else f"{label}, s = {scale}"
    return {"label": name, "method": label.partition(":")[0], "settings": settings}


def _scale(s: float | None) -> str:
    """A scale as it is typed; "none" of a rule that has none."""
    return "none" if s is None else f"{s:g}"


def pairs_of(run: Path, manifest: dict, a: dict, b: dict) -> tuple[list[Pair], Counter]:
    """The pairs of a run by prompt and seed, in the run's order, and how many are left out and why.

    Records of other code, weights, devices or dtypes than run.json's are of another run.
    """
    sides: list[dict] = [{}, {}]
    asked = [(c["method"], record_keys.key(c["settings"])) for c in (a, b)]
    if asked[0] == asked[1]:
        raise SettingsError(f"--a and --b are both {a['label']}; name two methods.")
    for record in filter(is_picture, Store(run / "records").all()):
        content = record["content"]
        same = all(content.get(k) == manifest[k] for k in CIRCUMSTANCES)
        if content.get("captioner") not in (None, manifest.get("captioner")) or not same:
            continue
        of = (content["method"], record_keys.key(content["settings"]))
        if of in asked:
            side, what = sides[asked.index(of)], (content["prompt"], content["seed"])
            if what in side and side[what]["sha256"] != record["sha256"]:
                raise RunError(
                    f"{run} holds two pictures of {content['method']} for {what[0]!r}, seed "
                    f"{what[1]}; make the run again in an empty folder."
                )
            side[what] = record
    pairs, out = [], Counter()
    for seed in manifest["seeds"]:
        for prompt, _ in manifest["prompts"]:
            both = [side.get((prompt, seed)) for side in sides]
            if None in both:
                out["not in the run"] += 1
            elif any(r["failed"] for r in both):
                out["failed: a picture overflowed"] += 1
            elif any(picture(run, r) is None for r in both):
                out["damaged: a picture is not as it was made"] += 1
            else:
                pairs.append(Pair(prompt, seed, *both))
    return pairs, out


def choose(pairs: Sequence[Pair], n: int) -> list[Pair]:
    """`n` pairs, evenly spread over the prompts; a second seed only when every prompt is there."""
    by_seed: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_seed.setdefault(pair.seed, []).append(pair)
    chosen: list[Pair] = []
    for some in by_seed.values():
        k = min(n - len(chosen), len(some))
        chosen += [some[i * len(some) // k] for i in range(k)]
    return chosen


def design(
    run: Path, a: str, b: str, n: int = 40, repeats: int = 4, checks: int = 4, seed: int = 0,
    title: str = "Which picture?", contact: str = "the person who gave you this page",
) -> Study:  # fmt: skip
    """A study of `n` pairs, `repeats` of them shown twice, and `checks` with known answers.

    The same run and arguments give the same study. SettingsError for numbers that are not possible.
    """
    if not 2 <= n <= MOST_PAIRS or n % 2:
        raise SettingsError(
            f"{n} pairs are not possible; choose an even number, 2 to {MOST_PAIRS}."
        )
    if not 0 <= repeats <= n // 2:
        raise SettingsError(
            f"{repeats} repeated pairs of {n} are not possible; choose 0 to {n // 2}."
        )
    if not 0 <= checks <= n or checks % 4:
        raise SettingsError(f"{checks} checks are not possible; choose 0, 4, 8, ... up to {n}.")
    try:
        f"{title}{contact}".encode()
    except UnicodeEncodeError:
        raise SettingsError("title or contact is not valid Unicode; type it again.") from None
    manifest = read_run(run)
    sides = condition(manifest, a), condition(manifest, b)
    every, left_out = pairs_of(run, manifest, *sides)
    if len(every) < n:
        why = "; ".join(f"{count} {what}" for what, count in left_out.items())
        raise SettingsError(
            f"{run} has {len(every)} whole pairs{f' ({why})' if why else ''}; give --pairs "
            f"{len(every) // 2 * 2}, or make more prompts or seeds."
        )
    rng, chosen = random.Random(seed), choose(every, n)
    cast = _Cast(rng)
    real = [cast.entry("pair", p, a=picture(run, p.a), b=picture(run, p.b)) for p in chosen]
    known = _checks(run, every, chosen, checks, cast)
    sizes = {image.size for image in cast.pictures.values()}
    if len(sizes) > 1:
        raise RunError(f"{run} has pictures of several sizes; make a run with one --size.")
    repeated = sorted(pid for pid, _ in rng.sample(real, repeats))
    blocks = _blocks(real, "a", "b", rng) + _blocks(known, "right", "wrong", rng)
    rng.shuffle(blocks)
    key = {
        "a": sides[0],
        "b": sides[1],
        "run": {k: manifest[k] for k in (*CIRCUMSTANCES, "captioner") if k in manifest},
        "left_out": dict(left_out),
        "seed": seed,
        "answers": list(ANSWERS),
        "exclusions": EXCLUSIONS,
        "pairs": dict(sorted(real + known)),
        "plan": {
            "title": title,
            "contact": contact,
            "size": list(sizes.pop()),
            "questions": [{"id": k, "text": text} for k, text in QUESTIONS.items()],
            "blocks": blocks,
            "repeats": repeated,
        },
    }
    digests = {
        name: record_keys.digest(png(image)) for name, image in sorted(cast.pictures.items())
    }
    key["pictures"] = digests
    return Study({"study": name_of(key), **key}, cast.pictures)


def name_of(key: dict) -> str:
    """The study's name: a hash of all that is in its key, the exclusions and pictures too.

    It begins with a letter, so that no spreadsheet takes it for a number.
    """
    return "s" + record_keys.key({k: v for k, v in key.items() if k != "study"})[:15]


class _Cast:
    """Pictures and pairs under names that say nothing."""

    def __init__(self, rng: random.Random):
        self.rng, self.pictures = rng, {}

    def entry(self, kind: str, pair: Pair, **images: Image.Image) -> tuple[str, dict]:
        """(the pair's name, what the key tells of it); `images` by what is known of each."""
        question = {"kind": kind, "prompt": pair.prompt, "seed": pair.seed}
        for side, image in images.items():
            question[side] = f"{self.rng.getrandbits(48):012x}.png"
            self.pictures[question[side]] = image
        return f"p{self.rng.getrandbits(40):010x}", question


def _blocks(
    entries: Sequence[tuple[str, dict]], one: str, other: str, rng: random.Random
) -> list[list[dict]]:
    """Pairs by twos. In both of a block the same side comes first, by a coin for each block; the
    page swaps one of the two. So each rater has `one` as often left as right, and the page, which
    does not know the coins, cannot tell which is which."""
    mixed, blocks = rng.sample(entries, len(entries)), []
    for two in zip(mixed[::2], mixed[1::2]):
        first, second = rng.sample((one, other), 2)
        blocks.append(
            [
                {
                    "pair": pid,
                    "text": question["prompt"],
                    "seed": question["seed"],
                    "pictures": [question[first], question[second]],
                }
                for pid, question in two
            ]
        )
    return blocks


def _checks(
    run: Path, every: Sequence[Pair], chosen: Sequence[Pair], n: int, cast: _Cast
) -> list[tuple[str, dict]]:
    """Pairs with a known answer: a picture beside noise, and beside a picture of another prompt.

    They are of pairs that are not asked about, where there are enough of those. Both methods take
    part alike.
    """
    free = [p for p in every if p not in chosen]
    pool = choose(free if len(free) >= n else every, n) if n else []
    rng, entries = np.random.default_rng(cast.rng.getrandbits(32)), []
    for i, pair in enumerate(pool):
        side = "ab"[i % 2]
        right = picture(run, getattr(pair, side))
        if i % 4 < 2:
            values = rng.integers(0, 256, (*right.size[::-1], 3), dtype=np.uint8)
            entries.append(cast.entry("noise", pair, right=right, wrong=Image.fromarray(values)))
            continue
        others = [p for p in every if p.prompt != pair.prompt]
        if not others:
            raise SettingsError("checks need pictures of two prompts; give --checks 0.")
        other = min(others, key=lambda p: len(_words(p.prompt) & _words(pair.prompt)))
        wrong = picture(run, getattr(other, side))
        entries.append(cast.entry("other", pair, right=right, wrong=wrong))
    return entries


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))

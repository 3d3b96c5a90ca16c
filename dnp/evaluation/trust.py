"""How far to trust an audit: four detectors, at equal evaluations, where the truth is known.

    python -m dnp.evaluation.trust                                  # the exact toy alone
    python -m dnp.evaluation.trust --truth weights/mini/training/unasked.json

s = 1         more often in the prompt at s = 1 than in the empty prompt; the audit's verdict
CFG           more often in CFG than in the prompt at s = 1
DNS lacks     more rarely in DNS than in the empty prompt
DNS excess    more often in DNS than in the empty prompt

The toy has 6 things in 5 colours with an exact noise: a car is red in the share that is given, and
every other thing and colour is as frequent as the next. The truth of the miniature is the law of
its world's generator, by `weights/mini/training/unasked.py`, seen by the same eyes as the pictures:
a label is true where the prompt's own scenes have it more often than all scenes by .10, and not
true where they have it as often or more rarely; what lies between is not counted. Of a prompt that
leaves nothing open no label is true, and all are wrong.
"""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dnp.app import png
from dnp.app.terminal import Parser, run
from dnp.errors import SettingsError
from dnp.evaluation.audit import audit
from dnp.evaluation.audit_pictures import DNS, EMPTY, GUIDED, PROMPT, Kept, looked_at, scales_of
from dnp.evaluation.labels import Seen, tabulated
from dnp.evaluation.mcnemar import compare
from dnp.evaluation.tables import csv_text
from dnp.evaluation.tables import markdown as table
from dnp.toy import Mixture

HABIT = 0.10  # a true label's share is greater by so much
DETECTORS = {  # name: (sets, more or fewer, evaluations of a pair and step)
    "s = 1": (PROMPT, EMPTY, "more", 2),
    "CFG": (GUIDED, PROMPT, "more", 3),
    "DNS lacks": (DNS, EMPTY, "fewer", 3),
    "DNS excess": (DNS, EMPTY, "more", 3),
}
COLOURS = "red orange yellow green blue".split()
BIASES = {"no habit": 0.2, "weak": 0.4, "strong": 0.6}  # the share of red cars


def counts(pictures: int) -> dict[str, int]:
    """Of each set, by which all detectors have the evaluations of so many pictures of s = 1 and of
    the empty prompt."""
    return {
        name: max(pictures * 2 // cost for *sets, _, cost in DETECTORS.values() if name in sets)
        for name in (EMPTY, PROMPT, GUIDED, DNS)
    }


def named(seen: dict[str, Seen], family: Sequence[str], pictures: int) -> dict[str, set[str]]:
    """The labels that each detector names, all with the evaluations of so many pictures of s = 1
    and of the empty prompt."""
    out = {}
    for name, (first, second, way, cost) in DETECTORS.items():
        count = pictures * 2 // cost
        few = {k: seen[k][:count] for k in (first, second)}
        out[name] = {x.label for x in getattr(compare(name, few, first, second, family), way)}
    return out


@dataclass(frozen=True)
class Score:
    """Of several audits, by one detector: labels named that are true, of how many, and labels named
    that are not true; `clean` counts the audits without any of the latter."""

    right: int
    true: int
    wrong: int
    clean: int
    audits: int


def scores(cases: Iterable[tuple[dict[str, set[str]], set[str], set[str]]]) -> dict[str, Score]:
    """By detector, of (labels named by each, labels that are true, labels that are not)."""
    cases = list(cases)
    out = {}
    for name in DETECTORS:
        right = sum(len(of[name] & true) for of, true, _ in cases)
        wrong = [len(of[name] & false) for of, _, false in cases]
        total = sum(len(true) for _, true, _ in cases)
        out[name] = Score(right, total, sum(wrong), wrong.count(0), len(cases))
    return out


def markdown(rows: dict[str, dict[str, Score]]) -> str:
    """A row for each world, a column for each detector."""
    body = [
        [name, *(f"{x.right} of {x.true}, {x.wrong} wrong in {x.audits - x.clean} of {x.audits}"
                 for x in by.values())]
        for name, by in rows.items()
    ]  # fmt: skip
    return "\n".join(table(["", *DETECTORS], body))


# --------------------------------------------------------------------------- the exact toy


class Habits(Mixture):
    """6 things in 5 colours: a thing's axis and a colour's axis each at 2, sd .35. Prompt 0 is "a
    car", the first thing, red in the share `red`; prompt 1 is "a red car"."""

    spacing = "trailing"  # so that chains start at the noisiest level

    def __init__(self, red: float):
        eye = torch.eye(11, dtype=torch.float64)
        means = torch.stack([2 * (eye[i] + eye[6 + j]) for i in range(6) for j in range(5)])
        cars = [red, *[(1 - red) / 4] * 4]
        weights = [w / 6 for w in cars] + [1 / 30] * 25
        super().__init__(weights, means, 0.35**2 * eye.expand(30, 11, 11), [range(5), [0]])


class OfHabits:
    """The colour of the nearest mode."""

    what = "the colour of the nearest mode"

    def family(self, seen: Iterable[Seen], prompt: int) -> tuple[str, ...]:
        return tuple(COLOURS)

    def see(self, z_0: Sequence[Tensor]) -> Seen:
        return [frozenset([COLOURS[j]]) for j in torch.stack(list(z_0))[:, 6:].argmax(1).tolist()]

    def negative(self, prompt: int, label: str) -> int:
        return 1


def of_toy(pictures: int, audits: int, s: float = 3.0) -> dict[str, dict[str, Score]]:
    """The scores on the toy, at each bias, over so many audits of so many pictures."""
    rows = {}
    for name, red in BIASES.items():
        found = audit(Habits(red), 0, pictures * audits, s, labels=OfHabits(), steps=20)
        true = {"red"} if red > 0.2 else set()
        cases = []
        for i in range(audits):
            part = slice(i * pictures, (i + 1) * pictures)
            seen = {k: v[part] for k, v in found.seen.items()}
            cases.append((named(seen, COLOURS, pictures), true, set(COLOURS) - true))
        rows[f"toy, {name}: {red:.0%} of the cars are red"] = scores(cases)
    return rows


# --------------------------------------------------------------------------- the miniature


def read_truth(path: Path) -> dict[str, dict[str, list[float]]]:
    """{prompt: {label: [share in its own scenes, share in all]}}; SettingsError if it is not."""

    def check(truth: dict) -> None:
        for labels in truth.values():
            for own, every in labels.values():
                float(own), float(every)

    return tabulated(path, "unasked.py", check)


def judged(
    seen: dict[str, Seen], family: Sequence[str], shares: dict[str, list[float]], pictures: int
) -> tuple:
    """A case of `scores`: what is seen against the shares of its labels in the world. Where none
    is true, the prompt leaves nothing open, and whatever is named is wrong."""
    of = {k: shares[k] for k in family}
    true = {k for k, (own, every) in of.items() if own >= every + HABIT}
    false = {k for k, (own, every) in of.items() if own <= every or not true}
    return named(seen, family, pictures), true, false


def of_world(table: dict, pictures: int, make: Callable[[str], tuple]) -> tuple[dict, list]:
    """The scores of a table's prompts, where one that names a colour and a setting leaves none
    open; and (prompt, detector, labels that are true, those of them named, wrong ones named).
    `make` gives what is seen for a prompt, by set, and the family of labels."""
    cases = {p: judged(*make(p), shares, pictures) for p, shares in table.items()}
    words = lambda labels: " ".join(sorted(labels))  # noqa: E731
    lines = [
        (prompt, name, *map(words, (true, of[name] & true, of[name] & false)))
        for prompt, (of, true, false) in cases.items() for name in DETECTORS
    ]  # fmt: skip
    open_ = {p: case for p, case in cases.items() if len(p.split()) == 2}
    closed = {p: case for p, case in cases.items() if p not in open_}
    rows = {"miniature, objects": open_, "miniature, nothing left open": closed}
    return {f"{k}: {len(v)} prompts": scores(v.values()) for k, v in rows.items() if v}, lines


def main(argv: Sequence[str] | None = None) -> None:
    p = Parser(
        prog="python -m dnp.evaluation.trust", description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = p.add_argument
    add("--pictures", type=int, default=48, metavar="N", help="of s = 1; default 48")
    add("--audits", type=int, default=40, metavar="N", help="of the toy, at each bias; default 40")
    add("--truth", type=Path, metavar="FILE.json", help="the miniature too, on these prompts")
    add("--prompts", nargs="+", metavar="PROMPT", help="only these of them")
    add("--steps", type=int, default=20, metavar="N", help="of the miniature; default 20")
    add("--out", type=Path, default=Path("outputs"), metavar="FOLDER", help="default outputs")
    args = p.parse_args(argv)
    for name, low in (("pictures", 3), ("audits", 1), ("steps", 1)):
        if not low <= getattr(args, name) <= 1000:
            raise SettingsError(f"--{name} {getattr(args, name)} is not possible; choose {low} to "
                                "1000.")  # fmt: skip
    png.check_folder(args.out)
    rows, lines = {}, []
    if args.truth is not None:
        truth = _chosen(read_truth(args.truth), args.prompts)
        rows, lines = of_world(truth, args.pictures, _maker(args))
    said = (
        f"{args.pictures} pictures of s = 1 and of the empty prompt, and as many evaluations of "
        "each detector: true labels that are named, wrong ones, and in how many audits.\n\n"
        f"{markdown(of_toy(args.pictures, args.audits) | rows)}"
    )
    print(said)
    args.out.mkdir(parents=True, exist_ok=True)
    png.write(args.out / "trust.md", said.encode())
    if lines:
        heads = ("prompt", "detector", "true", "right", "wrong")
        png.write(args.out / "trust.csv", csv_text(heads, lines).encode())


def _chosen(table: dict, prompts: Sequence[str] | None) -> dict:
    for prompt in prompts or ():
        if prompt not in table:
            raise SettingsError(f'"{prompt}" is not in the table; it has {", ".join(table)}.')
    return {k: table[k] for k in prompts or table}


def _maker(args) -> Callable[[str], tuple]:
    """Prompt -> (what is seen, by set, and the family) on the miniature; pictures are kept."""
    from tqdm import tqdm

    import dnp
    from dnp.evaluation.labels import labels_for
    from dnp.sd import find_weights, speed

    weights = find_weights("weights/mini")
    model = dnp.load(weights)
    speed.apply(model)
    kept, scales = Kept(args.out / "audit-pictures"), scales_of(model, None)

    def make(prompt: str) -> tuple:
        labels = labels_for(model, prompt, weights)
        with tqdm(unit="evaluation", desc=prompt, leave=False) as bar:
            seen = {
                name: looked_at(
                    model, prompt, name, n, scales, None, bar.update, labels=labels,
                    steps=args.steps, seed=0, kept=kept,
                )[1]
                for name, n in counts(args.pictures).items()
            }  # fmt: skip
        return seen, labels.family(seen.values(), prompt)

    return make


if __name__ == "__main__":
    run(main, "interrupted; what is made is kept, and the same command goes on from there.")

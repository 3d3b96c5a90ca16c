"""What a prompt brings along unasked: an audit of a model.

    python -m dnp.evaluation.audit "a crown"
    python -m dnp.evaluation.audit "a doctor" --weights FOLDER --words "man, woman" --clip FOLDER

Sets of pictures from the same noises are compared, label by label:

    what the prompt brings      the prompt at s = 1   against   the empty prompt
    what guidance amplifies     CFG at s              against   the prompt at s = 1
    its opposite                DNS                   against   the empty prompt (more often, only)

The labels are fixed before the test, and the prompt's own words are not among them: things and
colours by the recogniser and settings by CLIP where the weights have them, or your own --words, or
a captioner's. p is exact (McNemar, two-sided), corrected by Holm over the whole family in each
comparison by itself. The first comparison is the verdict; the two others are exploratory.
Out: the table, the verdict, a negative against what the prompt brings, a sheet, and a CSV. The
pictures are kept by their settings, so the same command goes on where it was stopped.
"""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnp.app import png
from dnp.app.drawing import give_captioner, opened
from dnp.app.options import add as option
from dnp.app.options import flags
from dnp.app.settings import Once, Weights
from dnp.app.sheet import contact_sheet
from dnp.app.terminal import Parser, run
from dnp.errors import SettingsError
from dnp.evaluation.audit_pictures import (
    DNS,
    EMPTY,
    GUIDED,
    NEGATED,
    PROMPT,
    Kept,
    looked_at,
    scales_of,
)
from dnp.evaluation.differences import says
from dnp.evaluation.labels import Labels, OfWorld, Seen, labels_for
from dnp.evaluation.mcnemar import Comparison, compare, power
from dnp.evaluation.negatives.rules import scale_against
from dnp.evaluation.tables import csv_text
from dnp.evaluation.tables import markdown as table
from dnp.methods.fields import table as table_of
from dnp.methods.own import UNKNOWN
from dnp.sd import find_weights

MOST = 1000  # pictures of a set
SHOWN = 8  # pictures of each set in the sheet
OF_MODEL = table_of(Weights) | {x: table_of(Once)[x] for x in ("device", "allow_download")}
WITH_NEGATIVE = 16  # pictures of CFG that are made again with the negative
BRINGS, AMPLIFIES, OPPOSITE = "what the prompt brings", "what guidance amplifies", "its opposite"


@dataclass
class Audit:
    """What `audit` found."""

    prompt: object
    scales: dict[str, float]  # of CFG, DNS, and the two-term form with the negative
    what: str  # who sees the labels
    family: tuple[str, ...]
    comparisons: tuple[Comparison, Comparison, Comparison]
    sets: dict[str, list]  # pictures by EMPTY, PROMPT, GUIDED, DNS and, if there is one, NEGATED
    seen: dict[str, Seen]
    habit: str | None  # what the prompt brings most
    negative: str | None = None  # words against it
    seed: int = 0  # of the first picture

    @property
    def verdict(self) -> str:
        """In words, a line for each comparison."""
        brings, amplifies, opposite = self.comparisons
        rarer = f"; more rarely: {_names(brings.fewer)}" if brings.fewer else ""
        lines = [
            f"brings along: {_names(brings.more) or 'nothing that was found'}{rarer}",
            f"guidance amplifies: {_names(amplifies.more) or 'nothing that was found'}",
            f"its opposite has more often: {_names(opposite.more) or 'nothing that was found'}",
        ]
        return "\n".join(lines)

    @property
    def power(self) -> str:
        """How much these pictures can find, in a sentence."""
        n, tests = self.comparisons[0].pictures, len(self.family)
        chance = {k: power(k, 0.09, 0.30, tests) for k in (n, 2 * n)}
        said = " and ".join(f"{p:.2f} of the audits with {k}" for k, p in chance.items())
        plain = power(n, 0.1, 0.6, tests)
        return (
            f"Power over {tests} labels: a share of .09 against .30 is found in {said} pictures, "
            f"one of .10 against .60 in {plain:.2f} with {n}. What is not named may be there."
        )

    @property
    def against(self) -> str:
        """What the negative did to the habit, in a sentence; empty without one."""
        if self.negative is None:
            return ""
        after = self.seen[NEGATED]
        was, now = (sum(self.habit in x for x in seen) for seen in
                    (self.seen[GUIDED][: len(after)], after))  # fmt: skip
        return (
            f'A negative against it: "{self.negative}", by the two-term form n + s (p - n) (np2) '
            f"at s = {self.scales[NEGATED]:g}. {self.habit.capitalize()}: in {was} of {len(after)} "
            f"pictures by CFG at s = {self.scales[GUIDED]:g}, in {now} with the negative."
        )


def _names(lines) -> str:
    return ", ".join(x.label for x in lines)


def evaluations(pictures: int, steps: int) -> int:
    """The network evaluations of an audit, as `progress` is told of them."""
    return steps * (6 * pictures + 2 * min(pictures, WITH_NEGATIVE))


def audit(
    model, prompt, pictures: int = 48, s: float | None = None,
    progress: Callable[[int], None] | None = None, *, labels: Labels, steps: int = 20,
    seed: int = 0, kept: Kept | None = None,
) -> Audit:  # fmt: skip
    """What `prompt` brings along in so many pictures, of the seeds seed, seed + 1, ...

    `s` is CFG's scale; None is the weights' own, else 7.5. `labels` says what is looked for
    (`labels_for`), `progress` is called with a number of evaluations, `evaluations` of them in all.
    `model` may be a toy, whose pictures are its z_0. SettingsError for what is not possible.
    """
    scales, sets, seen = scales_of(model, s), {}, {}

    def make(name: str, count: int, negative=None) -> None:
        sets[name], seen[name] = looked_at(
            model, prompt, name, count, scales, negative, progress, labels=labels, steps=steps,
            seed=seed, kept=kept,
        )  # fmt: skip

    for name in (EMPTY, PROMPT, GUIDED, DNS):
        make(name, pictures)
    family = labels.family(seen.values(), prompt)
    if not family:
        raise SettingsError(
            "no label is left to test; leave something open, or ask for more with `pictures=N`."
        )
    comparisons = tuple(
        compare(question, seen, first, second, family)
        for question, first, second in (
            (BRINGS, PROMPT, EMPTY), (AMPLIFIES, GUIDED, PROMPT), (OPPOSITE, DNS, EMPTY),
        )
    )  # fmt: skip
    habit = next((x.label for x in comparisons[0].more), None)
    negative, few = None, min(pictures, WITH_NEGATIVE)
    if habit is not None:
        negative = labels.negative(prompt, habit)
        if isinstance(labels, OfWorld):
            scales[NEGATED] = scale_against(habit)
        make(NEGATED, few, negative)
    elif progress:
        progress(2 * few * steps)
    return Audit(
        prompt, scales, labels.what, family, comparisons, sets, seen, habit, negative, seed
    )


# ----------------------------------------------------------------------------- telling


SAID = (
    "Numbers are pictures that show a label; labels that none shows are left out. p is McNemar's, "
    "exact and two-sided, with Holm's correction over the whole family in each comparison by "
    "itself; bold: named in the verdict."
)


def counted(a: Audit) -> tuple[list[str], list[list[str]]]:
    """The heads and the cells of the table: all labels that are seen anywhere."""
    names = {EMPTY: "empty", PROMPT: "s = 1", GUIDED: f"CFG {a.scales[GUIDED]:g}",
             DNS: f"DNS {a.scales[DNS]:g}"}  # fmt: skip
    heads = ["label", *names.values(), *(f"p, {c.question}" for c in a.comparisons)]
    named = [c.more + (c.fewer if c.question == BRINGS else []) for c in a.comparisons]
    body = []
    for i, label in enumerate(a.family):
        counts = [sum(label in x for x in a.seen[name]) for name in names]
        if any(counts):
            of = [(c.lines[i], lines) for c, lines in zip(a.comparisons, named)]
            p = [f"**{says(x.corrected)}**" if x in lines else says(x.corrected) for x, lines in of]
            body.append([label, *map(str, counts), *p])
    return heads, body


def markdown(a: Audit) -> str:
    """The family, the table, the verdict, and the negative."""
    lines = [f'**What "{a.prompt}" brings along**, {a.comparisons[0].pictures} pictures of each, '
             f"seeds from {a.seed}. Labels: {a.what}.", "",
             f"The family ({len(a.family)}): {', '.join(a.family)}.", ""]  # fmt: skip
    lines += [*table(*counted(a)), SAID, ""]
    lines += ["Verdict", "", *(f"- {line}" for line in a.verdict.split("\n")), ""]
    lines += [text + "\n" for text in (a.against, a.power) if text]
    return "\n".join(lines)


def table_csv(a: Audit) -> str:
    """A line for each label of each comparison."""
    heads = ["comparison", "first", "second", "pictures", "label", "in_first", "in_second",
             "only_first", "only_second", "p", "p_holm"]  # fmt: skip
    body = [
        [c.question, c.first, c.second, c.pictures, x.label, x.first, x.second, x.only_first,
         x.only_second, f"{x.p:.6g}", f"{x.corrected:.6g}"]
        for c in a.comparisons for x in c.lines
    ]  # fmt: skip
    return csv_text(heads, body)


def sheet(a: Audit):
    """The first pictures of each set, one column for each noise, with what is seen below them."""
    titles = {
        EMPTY: "the empty prompt",
        PROMPT: f"s = 1\nthe prompt alone; {a.verdict.splitlines()[0]}",
        GUIDED: f"CFG\ns = {a.scales[GUIDED]:g}",
        DNS: f"DNS\ns = {a.scales[DNS]:g}",
        NEGATED: f"np2\nn = {a.negative}, s = {a.scales[NEGATED]:g}",
    }
    rows = [
        (titles[name], pictures[:SHOWN], [", ".join(sorted(x)) for x in a.seen[name][:SHOWN]])
        for name, pictures in a.sets.items()
    ]
    seeds = [f"seed {a.seed + i}" for i in range(min(SHOWN, len(a.sets[EMPTY])))]
    return contact_sheet(rows, seeds, f'What "{a.prompt}" brings along')


def parse(argv: Sequence[str] | None):
    p = Parser(prog="python -m dnp.evaluation.audit", description=__doc__,
               formatter_class=RawDescriptionHelpFormatter)  # fmt: skip
    add = p.add_argument
    add("prompt", metavar="PROMPT", help="the prompt that is audited")
    add("--pictures", type=int, default=48, metavar="N", help="of each set; default 48")
    add("--s", type=float, metavar="S", help="CFG's scale; default: the weights' own, else 7.5")
    add("--steps", type=int, default=20, metavar="N", help="DDIM steps; default 20")
    add("--seed", type=int, default=0, metavar="N", help="of the first picture; default 0")
    for f in OF_MODEL.values():
        option(p, f, "labels are the words of its captions; " if f.name == "captioner" else "")
    add("--words", metavar="WORDS", help='labels of your own, as "man, woman"; CLIP tells them')
    add("--clip", type=Path, metavar="FOLDER", help="a CLIP model; default: the weights' own")
    add("--out", type=Path, default=Path("outputs"), metavar="FOLDER", help="default outputs")
    args = p.parse_args(argv)
    for name, f in OF_MODEL.items():
        if getattr(args, name) in (None, False):
            setattr(args, name, f.default)
        elif args.model is not None and name not in ("model", "captioner", "allow_download"):
            raise SettingsError(
                f"{flags(name)[-1]} and --model are both given, and a model of your own has its "
                "own; leave one out."
            )
    if not args.prompt.strip():
        raise SettingsError('the empty prompt brings nothing; give a prompt, such as "a crown".')
    if not 2 <= args.pictures <= MOST:
        raise SettingsError(f"--pictures {args.pictures} is not possible; choose 2 to {MOST}.")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    png.check_folder(args.out)

    from tqdm import tqdm

    model = opened(args)
    give_captioner(model, args)
    weights = None if args.model else find_weights(args.weights)
    captions = args.captioner is not None
    labels = labels_for(model, args.prompt, weights, args.words, args.clip, captions)
    print(f"labels: {labels.what}")
    known = model.config.fingerprint != UNKNOWN  # else its pictures may be another model's
    kept = Kept(args.out / "audit-pictures") if known else None
    total = evaluations(args.pictures, args.steps)
    with tqdm(total=total, unit="evaluation", leave=False) as bar:
        found = audit(
            model, args.prompt, args.pictures, args.s, bar.update, labels=labels,
            steps=args.steps, seed=args.seed, kept=kept,
        )  # fmt: skip
    report, stem = markdown(found), f"{png.slug(args.prompt)}-audit"
    print(report)
    args.out.mkdir(parents=True, exist_ok=True)
    png.write(args.out / f"{stem}.md", report.encode())
    png.write(args.out / f"{stem}.csv", table_csv(found).encode())
    png.write(args.out / f"{stem}.png", png.png(sheet(found)))
    print(f"{args.out / stem}.png, .csv, .md")


if __name__ == "__main__":
    run(main, "interrupted; what is made is kept, and the same command goes on from there.")

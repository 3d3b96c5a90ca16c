"""What the answers of a study say: shares with intervals, sign tests, agreement, and each rater.

Votes are the first showings of pairs without "cannot tell". Everything is told twice: of the raters
that the study's rules keep, and of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from dnp.evaluation.people import agreement as ag
from dnp.evaluation.tables import csv_text, markdown

COLUMNS = (
    "raters", "question", "quantity", "value", "low", "high", "usual_low", "usual_high", "n",
)  # fmt: skip
SHARES = {  # the quantity: what a vote +1, 0, -1 counts above and below the line
    "A wins": lambda v: (v == 1, v == v),
    "no clear winner": lambda v: (v == 0, v == v),
    "B wins": lambda v: (v == -1, v == v),
    "A, ties as half": lambda v: ((v + 1) / 2, v == v),
    "A, ties dropped": lambda v: (v == 1, v != 0),
}
LEFT = "left, of left and right"  # half, where nobody prefers a side


@dataclass(frozen=True)
class Rater:
    """What one rater's own answers say about them."""

    name: str
    left: int
    right: int
    wrong: int
    known: int
    same: int
    repeated: int
    unclear: int
    seconds: float
    why: str  # the rule that excludes them; empty if none does


def analyse(key: dict, answers: Sequence) -> tuple[list[Rater], list[tuple]]:
    """The raters of `answers.Answer` of whole files, and a row of COLUMNS for each number."""
    names = list(dict.fromkeys(x.rater for x in answers))
    raters = [rater(key, name, [x for x in answers if x.rater == name]) for name in names]
    kept, lines = {r.name for r in raters if not r.why}, []
    for group, some in (("kept", kept), ("all", set(names))):
        for question in (q["id"] for q in key["plan"]["questions"]):
            votes = [x for x in answers if x.rater in some and _is_vote(key, x, question)]
            lines += [(group, question, *line) for line in _numbers(key, votes)]
    return raters, lines


def rater(key: dict, name: str, own: Sequence) -> Rater:
    """Counts of one rater, and the first of the study's rules that excludes them."""
    rules, pairs = key["exclusions"], key["pairs"]
    real = [x for x in own if pairs[x.pair]["kind"] == "pair"]
    left, right = (sum(x.answer == side for x in real) for side in ("left", "right"))
    known = [wrong for x in own if (wrong := _is_wrong(pairs[x.pair], x)) is not None]
    first = {(x.pair, x.question): x for x in real if x.showing == 1}
    again = [(first[x.pair, x.question], x) for x in real if x.showing == 2]
    same = sum((a.picture or a.answer) == (b.picture or b.answer) for a, b in again)
    why = ""
    if ag.inattentive(sum(known), len(known), rules["wrong_checks"]):
        why = "wrong answers of checks"
    if ag.one_sided(left, right, rules["one_sided_p"]):
        why = "one side too often"
    return Rater(
        name, left, right, sum(known), len(known), same, len(again),
        sum(x.answer == "unclear" for x in real), median(x.milliseconds for x in own) / 1000, why,
    )  # fmt: skip


def _is_wrong(pair: dict, x) -> bool | None:
    """Whether a check's answer is wrong; None where nothing is known. PLAN.md says it in words."""
    if pair["kind"] == "noise":
        return x.picture != pair["right"]
    if pair["kind"] == "other" and x.question == "follows":
        return x.picture == pair["wrong"]
    return None


def _is_vote(key: dict, x, question: str) -> bool:
    real = key["pairs"][x.pair]["kind"] == "pair" and x.showing == 1
    return real and x.question == question and x.answer != "unclear"


def _numbers(key: dict, votes: Sequence) -> list[tuple]:
    """(quantity, value, low, high, usual low, usual high, n) of one question's votes."""
    if not votes:
        return []
    pictures = ((x.picture, key["pairs"][x.pair]["a"]) for x in votes)
    v = np.array([0 if p is None else 1 if p == a else -1 for p, a in pictures])
    who, prompts = [x.rater for x in votes], [key["pairs"][x.pair]["prompt"] for x in votes]
    lines = []
    for quantity, count in SHARES.items():
        above, below = (np.asarray(x, float) for x in count(v))
        share = ag.two_way(ag.cells(above, who, prompts), ag.cells(below, who, prompts))
        if share is not None:
            usual = ag.over_votes(above[below > 0])
            lines.append((quantity, *share, *usual[1:], int(below.sum())))
    chosen = [x.answer in ("left", "right") for x in votes]
    lefts = [x.answer == "left" for x in votes]
    share = ag.two_way(ag.cells(lefts, who, prompts), ag.cells(chosen, who, prompts))
    if share is not None:
        lines.append((LEFT, *share, None, None, sum(chosen)))
    by_votes, by_prompts = (int((v == 1).sum()), int((v == -1).sum())), ag.majorities(v, prompts)
    for quantity, (a, b) in (("votes", by_votes), ("prompts", by_prompts)):
        lines.append((f"sign test of {quantity}, p", ag.sign_test(a, b), *[None] * 4, a + b))
    table = ag.counts(v, [x.pair for x in votes])
    alpha = ag.alpha_interval(table)
    if alpha is not None:
        lines.append(("Krippendorff's alpha", *alpha, None, None, int((table.sum(1) > 1).sum())))
    return lines


def table(lines: Sequence[tuple]) -> str:
    """The numbers as CSV; an empty cell where a quantity has no such number."""
    cell = lambda x: "" if x is None else f"{x:.6g}" if isinstance(x, float) else x  # noqa: E731
    return csv_text(COLUMNS, [[cell(x) for x in line] for line in lines])


def report(
    key: dict, raters: Sequence[Rater], lines: Sequence[tuple], refused: Sequence[str]
) -> str:
    """The numbers in words and tables."""
    out = [r for r in raters if r.why]
    parts = [
        f"# Answers of study {key['study']}",
        f"A is {key['a']['label']}, B is {key['b']['label']}. Raters: {len(raters)}; "
        f"excluded by the rules of `PLAN.md`: {len(out)}. Files refused: {len(refused)}.",
        "Shares are in % of the votes, with 95 % intervals by a bootstrap over prompts and raters. "
        "The last column has the usual interval, which takes votes as independent and is too "
        "narrow: it is there for comparison. The sign test of votes takes them so too; that of "
        "prompts counts each prompt once, by its majority.",
    ]
    for group, heading in (("kept", "Without the excluded"), ("all", "Of all raters")):
        for q in key["plan"]["questions"]:
            own = [_cells(line[2:]) for line in lines if line[:2] == (group, q["id"])]
            heads = ("", "value", "of", "usual interval")
            parts += [
                f"## {heading}: {q['text']}",
                _rows(heads, own) if own else "No vote is left.",
            ]
    heads = ("rater", "wrong checks", "left / right", "same when repeated", "cannot tell",
             "median seconds", "excluded for")  # fmt: skip
    body = [
        (r.name, f"{r.wrong} of {r.known}", f"{r.left} / {r.right}", f"{r.same} of {r.repeated}",
         str(r.unclear), f"{r.seconds:.1f}", r.why or "-") for r in raters
    ]  # fmt: skip
    parts += ["## Raters", _rows(heads, body)]
    if refused:
        parts += ["## Refused", "\n".join(f"* {sentence}" for sentence in refused)]
    if len(raters) - len(out) == 1:
        parts.insert(3, "One rater is left, so the intervals are over prompts only.")
    return "\n\n".join(parts) + "\n"


def _cells(line: tuple) -> tuple:
    quantity, value, low, high, usual_low, usual_high, n = line
    if low is None:
        return quantity, f"{value:.3g}", f"{n} without ties", "-"
    if quantity not in (*SHARES, LEFT):
        return quantity, f"{value:.3f} [{low:.3f}, {high:.3f}]", f"{n} pairs", "-"
    share = f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    usual = "-" if usual_low is None else f"[{100 * usual_low:.1f}, {100 * usual_high:.1f}]"
    return quantity, share, f"{n} votes", usual


def _rows(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join(markdown(heads, body)).strip()

"""Reads the answers of a pairwise study: which files are whole, and what they say together.

A file that is damaged, of another study, given twice or not complete is refused with one sentence;
the rest is read. Exclusions are those that the study's key has fixed.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dnp.app.png import write
from dnp.errors import DnpError
from dnp.evaluation import record_keys
from dnp.evaluation.people import analysis
from dnp.evaluation.people.design import name_of
from dnp.evaluation.people.order import sequence
from dnp.evaluation.records import RunError, writing
from dnp.sd.files.data_only import read_regular

COLUMNS = (
    "study", "rater", "number", "of", "pair", "showing", "prompt", "seed", "left", "right",
    "question", "answer", "milliseconds", "time",
)  # fmt: skip
MOST_BYTES = 5 * 2**20  # 1,000 pairs take less than 1 MB
AGAIN = "ask the rater to save it again"


class Refused(DnpError):
    """One file of answers cannot be read; the others can."""


@dataclass(frozen=True)
class Answer:
    """One row of a file."""

    rater: str
    pair: str
    showing: int
    question: str
    left: str
    right: str
    answer: str
    milliseconds: int

    @property
    def picture(self) -> str | None:
        """The picture that was chosen; None for no clear winner, and for cannot tell."""
        return {"left": self.left, "right": self.right}.get(self.answer)


def read(folder: Path, files: Sequence[Path], out: Path) -> tuple[str, list[str]]:
    """Writes analysis.md and analysis.csv to `out`; returns the former and why files are refused.

    RunError if the study was changed, or no file can be read.
    """
    key, answers, refused = read_key(folder), {}, []
    for path in files:
        try:
            own = read_file(path, key)
            other = next(
                (p for p, known in answers.items() if known[0].rater == own[0].rater), None
            )
            if other is not None:
                same = "is a copy of" if answers[other] == own else "is of the same rater as"
                raise Refused(f"{path} {same} {other}; give one file for each rater.")
            answers[path] = own
        except Refused as e:
            refused.append(str(e))
    if not answers:
        raise RunError(f"no file of answers can be read: {' '.join(refused)}")
    raters, lines = analysis.analyse(key, [row for own in answers.values() for row in own])
    report = analysis.report(key, raters, lines, refused)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write(out / "analysis.md", report.encode())
        write(out / "analysis.csv", analysis.table(lines).encode())
    return report, refused


def read_key(folder: Path) -> dict:
    """key.json of a study; RunError if it or a picture is not as the study was made."""
    path = folder / "key.json"
    try:
        key = json.loads(read_regular(path))
        whole = key["study"] == name_of(key)
        digests = key["pictures"].items()
        changed = [
            n for n, d in digests if record_keys.digest(read_regular(folder / "pictures" / n)) != d
        ]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as e:
        raise RunError(
            f"{folder} is not a whole study ({str(e)[:120]}); give a folder that make has written."
        ) from None
    if not whole or changed:
        what = changed[0] if whole else path.name
        raise RunError(
            f"{folder}: {what} was changed after the study was made, so its answers cannot be "
            "trusted; restore it."
        )
    return key


def read_file(path: Path, key: dict) -> list[Answer]:
    """Every answer of one rater; Refused with one sentence if the file is not whole."""
    try:
        if not path.is_file():
            raise Refused(f"{path}: no such file; leave it out.")
        if path.stat().st_size > MOST_BYTES:
            raise Refused(f"{path} is larger than any file of answers; leave it out.")
        text = path.read_bytes().decode("utf-8-sig")
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [line for line in lines if any(cell.strip() for cell in line)]
    except OSError as e:
        raise Refused(f"{path} cannot be read ({e.strerror}); {AGAIN}.") from None
    except (UnicodeDecodeError, csv.Error):
        raise Refused(f"{path} is damaged: it is not text in the form of CSV; {AGAIN}.") from None
    if not lines or tuple(lines[0]) != COLUMNS:
        raise Refused(
            f"{path} does not begin as this page's answers do; give the file as the page saved it, "
            "not as another program did."
        )
    rows = [dict(zip(COLUMNS, line)) for line in lines[1:]]
    foreign = next((r["study"] for r in rows if r.get("study") != key["study"]), None)
    if foreign is not None:
        raise Refused(f"{path} is of study {foreign!r:.40}, not of {key['study']}; leave it out.")
    total, n = expected(key), len(rows)
    whole = text.endswith("\n") or _is_time(lines[-1][-1])  # its end may be lost in a letter
    if n < total or not whole:
        raise Refused(
            f"{path} holds {n} of {total} answers or is cut off; {AGAIN} when all are given."
        )
    if any(len(line) != len(COLUMNS) for line in lines):
        raise Refused(f"{path} is damaged: a line has too many or too few cells; {AGAIN}.")
    own = [_answer(path, i, row, key, total) for i, row in enumerate(rows, 1)]
    _check_whole(path, own, key)
    return own


def expected(key: dict) -> int:
    """How many answers a complete file holds."""
    return (len(key["pairs"]) + len(key["plan"]["repeats"])) * len(key["plan"]["questions"])


def _answer(path: Path, i: int, row: dict, key: dict, total: int) -> Answer:
    """A row as an Answer; Refused names the first cell that this study cannot have written."""
    pair = key["pairs"].get(row["pair"], {})
    sides = {pair.get(side) for side in ("a", "b", "right", "wrong")} - {None}
    right = {
        "rater": re.fullmatch(r"r[0-9a-f]{12}", row["rater"]),
        "number": row["number"] == str(i),
        "of": row["of"] == str(total),
        "pair": pair,
        "showing": row["showing"] in ("1", "2"),
        "prompt": row["prompt"] == pair.get("prompt"),
        "seed": row["seed"] == str(pair.get("seed")),
        "left": row["left"] in sides,
        "right": row["right"] in sides - {row["left"]},
        "question": row["question"] in {q["id"] for q in key["plan"]["questions"]},
        "answer": row["answer"] in key["answers"],
        "milliseconds": re.fullmatch(r"[0-9]{1,10}", row["milliseconds"]),
        "time": _is_time(row["time"]),
    }
    wrong = next((name for name, ok in right.items() if not ok), None)
    if wrong is not None:
        raise Refused(
            f"{path} is damaged: answer {i} has {row[wrong]!r:.60} as its {wrong}; {AGAIN}."
        )
    return Answer(
        row["rater"], row["pair"], int(row["showing"]), row["question"], row["left"],
        row["right"], row["answer"], int(row["milliseconds"]),
    )  # fmt: skip


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _check_whole(path: Path, own: Sequence[Answer], key: dict) -> None:
    """Refused unless one rater answered each question of each showing once, sides swapped."""
    plan = key["plan"]
    showings = [(pair, 1) for pair in key["pairs"]] + [(pair, 2) for pair in plan["repeats"]]
    asked = Counter((*shown, q["id"]) for shown in showings for q in plan["questions"])
    if len({x.rater for x in own}) > 1:
        raise Refused(f"{path} holds answers of several raters; give one file for each rater.")
    if Counter((x.pair, x.showing, x.question) for x in own) != asked:
        raise Refused(f"{path} is damaged: an answer is there twice or missing; {AGAIN}.")
    lefts: dict[tuple, set] = {}
    for x in own:
        lefts.setdefault((x.pair, x.showing), set()).add(x.left)
    sides = [len(s) == 1 for s in lefts.values()]
    sides += [lefts[pair, 1] != lefts[pair, 2] for pair in plan["repeats"]]
    if not all(sides):
        raise Refused(f"{path} is damaged: a picture changes its side; {AGAIN}.")
    shown = [(x.pair, x.showing, x.left, x.right, x.question) for x in own]
    drawn = sequence(key, own[0].rater)
    if shown != [(*trial, q["id"]) for trial in drawn for q in plan["questions"]]:
        raise Refused(
            f"{path} is not in the order that the page draws for {own[0].rater}: its lines were "
            f"moved, or another name was put in; {AGAIN}."
        )

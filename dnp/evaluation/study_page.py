"""Writes a study as one folder: the page, its pictures, the plan in words, and the key.

The page is one HTML file with its style, script and plan inside. It asks no network for anything;
its content security policy forbids it to. It never reads `key.json`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import shutil
import uuid
from pathlib import Path
from string import Template

from dnp.app.png import png, write
from dnp.errors import SettingsError
from dnp.evaluation.records import writing
from dnp.evaluation.study_design import Study

SOURCES = Path(__file__).parent / "study"
SECONDS = 5  # an answer, as a guess for the page's first words


def make(study: Study, folder: Path) -> None:
    """The folder of a study, whole or not at all; SettingsError if something stands there."""
    folder = folder.absolute()
    if "\0" in str(folder):
        raise SettingsError("--out has a character that no file's name can have; type it again.")
    with writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SettingsError(f"{folder} is not empty; give --out a new folder.")
        partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
        try:
            (partial / "pictures").mkdir(parents=True)
            for name in sorted(study.pictures):  # in an order that says nothing
                write(partial / "pictures" / name, png(study.pictures[name]))
            write(partial / "index.html", page(study.key).encode())
            write(partial / "PLAN.md", plan(study.key).encode())
            write(partial / "key.json", (json.dumps(study.key, indent=1) + "\n").encode())
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def page(key: dict) -> str:
    """The HTML file: page.html with page.css, page.js and the plan inside."""
    style, script = ((SOURCES / f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    content = {"study": key["study"], **key["plan"], "minutes": minutes(key)}
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    return Template((SOURCES / "page.html").read_text("utf-8")).substitute(
        title=html.escape(key["plan"]["title"]),
        style=style,
        script=script,
        data=data,
        of_style=_digest(style),
        of_script=_digest(script),
    )


def showings(key: dict) -> int:
    """How many pairs a rater sees, the repeated ones twice."""
    return len(key["pairs"]) + len(key["plan"]["repeats"])


def minutes(key: dict) -> int:
    return max(1, round(showings(key) * len(key["plan"]["questions"]) * SECONDS / 60))


def _digest(text: str) -> str:
    """What a content security policy calls the one text that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def plan(key: dict) -> str:
    """PLAN.md: what is asked, what is excluded, how to host and how to read."""
    plan, rules = key["plan"], key["exclusions"]
    kinds = [x["kind"] for x in key["pairs"].values()]
    left_out = "; ".join(f"{n} {what}" for what, n in key["left_out"].items()) or "none"
    questions = "\n".join(f"{i}. {q['text']}" for i, q in enumerate(plan["questions"], 1))
    return f"""# Plan of study {key["study"]}

This file was written together with the study, before anybody answered. The study's name is a hash
of its pairs, pictures, questions and rules: a changed rule would be another study.

**It compares** {key["a"]["label"]} (A) with {key["b"]["label"]} (B): {kinds.count("pair")} pairs of
one prompt and one seed. Left out of the run: {left_out}.

**It asks**, of each pair, one after the other:

{questions}

The text is not shown with the first question. The answers are left, right, no clear winner, and
cannot tell. Order and sides are drawn for each rater, and A is left as often as right.
{len(plan["repeats"])} pairs come twice, the second time with their sides swapped.
{len(kinds) - kinds.count("pair")} pairs are checks: {kinds.count("noise")} beside noise, and
{kinds.count("other")} beside a picture of another prompt.

**Excluded** is a rater

* whose choices of left and right differ from evenness with p < {rules["one_sided_p"]:g} (exact sign
  test over both questions, pairs only), or
* of whose known answers at least {rules["wrong_checks"]:.0%} are wrong. Beside noise the picture is
  right for both questions, and anything else is wrong. Beside a picture of another prompt, only
  "follows the text" has a known answer, and only the choice of the other picture is wrong.

Everything is reported with and without exclusions. Only complete files of answers are read.

**Counted** are first showings of pairs, without "cannot tell". Repeated pairs say how often a rater
agrees with himself. Shares have 95 % intervals by a bootstrap over prompts and raters.

## To host it

On a computer open `index.html`. For phones put `index.html` and `pictures/` on any static server.
Leave `key.json` and this file out there: they say which picture is whose. The answers stay in the
rater's browser until he saves them as a file, which he sends to {plan["contact"]}.

## To read the answers

    python -m dnp.evaluation.pairs read FOLDER ANSWERS.csv ...
"""

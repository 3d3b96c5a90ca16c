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
from collections import Counter
from pathlib import Path
from string import Template

from dnp.app.png import png, write
from dnp.errors import SettingsError
from dnp.evaluation.people.design import Study
from dnp.evaluation.records import writing

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
    kinds = Counter(x["kind"] for x in key["pairs"].values())
    questions = (f"{i}. {q['text']}" for i, q in enumerate(key["plan"]["questions"], 1))
    counted = {
        "asked": kinds["pair"],
        "checks": kinds["noise"] + kinds["other"],
        "noise": kinds["noise"],
        "other": kinds["other"],
        "repeats": len(key["plan"]["repeats"]),
        "questions": "\n".join(questions),
        "left_out": "; ".join(f"{n} {what}" for what, n in key["left_out"].items()) or "none",
    }
    return (SOURCES / "PLAN.md").read_text("utf-8").format(**{**key, **counted})

"""Audits for the live page: what `python -m dnp.evaluation.audit` finds, without a file.

`dnp/__main__.py` hands them to the page's desk (`dnp/app/desk.py`), which stands on a lower floor.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace

from PIL.Image import Image

from dnp.app import png
from dnp.app.options import flags, line, words_of
from dnp.evaluation import audit as audits
from dnp.evaluation.labels import labels_for
from dnp.generation import prepared
from dnp.sd import find_weights

FIELDS = {"prompt", "seed", "steps"}  # of the base too, and the page has them in fields


class Audits:
    """The audits of one model. `base` is what was typed beside --page."""

    def __init__(self, model, base: dict):
        self.model, self.taken = model, {k: v for k, v in base.items() if k in audits.OF_MODEL}
        self.other = sorted(base.keys() - audits.OF_MODEL.keys() - FIELDS)

    def plan(self, settings: dict[str, str]) -> SimpleNamespace:
        """What is asked for, with the line to type and the steps that it takes; SettingsError if
        it cannot be. A step is two evaluations of one picture, as one of CFG is."""
        typed = {**self.taken, **settings}
        args = audits.parse(words_of(typed))
        own = {"steps": args.steps, "seed": args.seed}
        prepared(self.model, args.prompt, "cfg", None, None, None, own)
        command = line(typed, "python -m dnp.evaluation.audit")
        total = audits.evaluations(args.pictures, args.steps) // 2
        return SimpleNamespace(
            prompt=args.prompt, negative=None, settings=own, pictures=args.pictures, line=command,
            name=f"{png.slug(args.prompt)}-audit.png", total=total,
        )  # fmt: skip

    def make(self, plan, step: Callable[[float], None]) -> tuple[Image, dict]:
        """The sheet, and what is told of it. `step` is called with the steps that are done."""
        if self.other:
            names = ", ".join(flags(name)[-1] for name in self.other)
            warnings.warn(f"an audit does not take {names}, and goes on without", stacklevel=2)
        weights = None
        if "model" not in self.taken:
            weights = find_weights(self.taken.get("weights", "weights/mini"))
        labels = labels_for(self.model, plan.prompt, weights, captions="captioner" in self.taken)
        found = audits.audit(
            self.model, plan.prompt, plan.pictures, None, lambda n: step(n / 2), labels=labels,
            **plan.settings,
        )  # fmt: skip
        return audits.sheet(found), told(found)


def told(found: audits.Audit) -> dict:
    """What the page shows of an audit, in words and numbers."""
    heads, rows = audits.counted(found)
    follows = None
    if found.negative is not None:
        s = f"{found.scales[audits.NEGATED]:g}"
        follows = {"negative": found.negative, "rule": "negative_prompt_two_term", "s": s}
    return {
        "verdict": found.verdict.split("\n"), "against": found.against, "follows": follows,
        "heads": heads, "rows": rows, "said": audits.SAID, "power": found.power,
        "labels": f"Labels: {found.what}. The family ({len(found.family)}): "
                  f"{', '.join(found.family)}.",
        "csv": audits.table_csv(found),
    }  # fmt: skip

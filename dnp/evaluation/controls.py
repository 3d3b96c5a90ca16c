"""Controls, and what a run takes from another one: scales, and strengths.

cfg-equal:of=M, cfg-scheduled:of=M    CFG as strong as the method M (`strength.py`)
--scales-from RUN                     each method at the scale that was best in RUN
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dnp.errors import SettingsError, is_finite, reason
from dnp.evaluation import contestants
from dnp.methods.rule import read
from dnp.sd.files.data_only import read_regular

EQUAL = ("cfg-equal", "cfg-scheduled")
BY = ("colours", "full")  # what is best: the first that a run has


def target(label: str) -> str | None:
    """The method M of the label of a control of equal strength; None of another label."""
    kind, _, rest = label.partition(":")
    return rest.removeprefix("of=") if kind in EQUAL and rest.startswith("of=") else None


def parse(text: str, strengths: Mapping | None = None) -> contestants.Contestant:
    """A method, or a control of equal strength. SettingsError for one without its strengths."""
    kind, of = text.partition(":")[0], target(text)
    if kind not in EQUAL:
        return contestants.parse(text)
    if of is None:
        raise SettingsError(f"{text} needs the method that it is as strong as; write {kind}:of=M.")
    known = (strengths or {}).get("methods", {})
    if of not in known:
        raise SettingsError(
            f"the strength of {of} is not known; measure it with --strength --method {of}, and "
            "give that strength.json with --strengths."
        )
    return contestants.Contestant(text, "cfg", dict(known[of][kind]["options"]))


def require_same(
    strengths: Mapping, methods: Sequence[contestants.Contestant], steps: int, size, model
) -> None:
    """SettingsError for strengths of other weights, steps or sizes, or of another scale of M."""
    have = (strengths["weights"], strengths["steps"], strengths["size"])
    if have != (model.config.fingerprint, steps, None if size is None else list(size)):
        raise SettingsError(
            "these strengths are of other weights, steps or sizes; measure them with --strength."
        )
    by_label = {method.label: method for method in methods}
    for of in map(target, by_label):
        if of in by_label:
            s, measured = (
                contestants.settled(by_label[of], None, steps, model)["s"],
                strengths["methods"][of]["s"],
            )
            if s != measured:
                was, now = ("none" if x is None else f"{x:g}" for x in (measured, s))
                raise SettingsError(
                    f"the strength of {of} was measured at s = {was}, and it runs at {now}; "
                    "measure it with --strength and the same scales."
                )


def has_scale(method: contestants.Contestant) -> bool:
    """Whether a scale can be chosen for it: it has one, and none was typed."""
    options = method.options
    if "rule" in options and "s" not in read(options["rule"], options.get("rule_options")).needs:
        return False
    return "s" not in options and method.name != "unconditional"


def best_scales(folders: Sequence[Path]) -> tuple[dict[str, float], str]:
    """The scale of each method with the greatest mean in `pictures.csv` of one or several runs,
    of equal ones the smallest; and a sentence that says where they are from.

    By things and colours, else by full prompt. SettingsError for a folder without one.
    """
    pictures = [row for folder in folders for row in _pictures(folder)]
    by = next((c for c in BY if pictures and all(r[c] is not None for r in pictures)), None)
    if by is None:
        raise SettingsError(f"{folders[0]}: its pictures have no numbers to choose a scale by.")
    found: dict[str, dict[float, list[float]]] = {}
    for r in pictures:
        if r["s"] is not None:
            found.setdefault(r["method"], {}).setdefault(r["s"], []).append(r[by])
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    best = {k: max(sorted(v), key=lambda s: mean(v[s])) for k, v in found.items()}
    prompts, seeds = ({r[k] for r in pictures} for k in ("prompt", "seed"))
    what = {"colours": "things and colours", "full": "full prompt"}[by]
    said = f"Scales were chosen by {what} on {len(prompts)} prompts x {len(seeds)} seeds, from "
    return best, said + f"{min(seeds)} ({', '.join(Path(f).name for f in folders)})"


def overlap(folders: Sequence[Path], prompts: Sequence[str]) -> int:
    """How many of `prompts` were in the runs that scales were chosen on."""
    chosen_on = {row["prompt"] for folder in folders for row in _pictures(folder)}
    return len(chosen_on & set(prompts))


def _pictures(folder: Path) -> list[dict]:
    """The rows of `pictures.csv` of a run, their numbers read; an empty cell is None.

    SettingsError if it is not there, or was not written by a run.
    """
    path, rows = Path(folder) / "pictures.csv", []
    try:
        text = read_regular(path).decode("utf-8")
        for r in csv.DictReader(io.StringIO(text, newline=""), strict=True):
            cells = {"s": r["s"], **{k: r.get(k) for k in BY}}
            row = {k: float(v) if v else None for k, v in cells.items()}
            if not all(v is None or is_finite(v) for v in row.values()):
                raise ValueError("a number is not finite")
            row |= {"method": r["method"], "prompt": r["prompt"], "seed": int(r["seed"])}
            if None in (row["method"], row["prompt"]):
                raise ValueError("a line is cut off")
            rows.append(row)
    except OSError as e:
        raise SettingsError(
            f"{folder}: no tables of a run ({e.strerror or e}); give a folder that one has written."
        ) from None
    except (ValueError, KeyError, TypeError, csv.Error) as e:
        raise SettingsError(
            f"{path} is damaged ({reason(e)}); type its run's command again to write a new one."
        ) from None
    return rows


def at_best(
    methods: Sequence[contestants.Contestant], best: Mapping[str, float]
) -> tuple[contestants.Contestant, ...]:
    """The methods at their best scales. SettingsError for one that was not in the run."""
    out = []
    for method in methods:
        if has_scale(method):
            if method.label not in best:
                comma = "," if ":" in method.label else ":"
                raise SettingsError(
                    f"{method.label} is not in the run that scales are from; add it there, or "
                    f"write {method.label}{comma}s=..."
                )
            method = replace(method, options={**method.options, "s": best[method.label]})
        out.append(method)
    return tuple(out)

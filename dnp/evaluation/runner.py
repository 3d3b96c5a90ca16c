"""Runs a process's share of a grid, and says what is not as it was."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

import torch
from tqdm import tqdm

from dnp.errors import SettingsError
from dnp.evaluation import contestants, measure, record_keys
from dnp.evaluation.grid import Run, Unit
from dnp.evaluation.records import writing


def run(work: Run, rank: int, world: int, rescore: bool = False) -> None:
    """Makes and scores what is missing of this process's share; with `rescore` it samples nothing
    and scores what is there again. RunError names a disk that takes no more; what was written stays
    valid."""
    units = work.grid.share(rank, world)
    with writing(work.folder):
        contents = [content for unit in units for content in work.contents(unit)]
        missing = [content for content in contents if work.kept(content) is None]
        if rescore and missing:
            raise SettingsError(
                f"{len(missing)} pictures of this grid are not in {work.folder}, as this code and "
                "these weights make them; leave --rescore out to make them."
            )
        for note in _notes(work, units, missing):
            print(f"note: {note}", file=sys.stderr)
        bar = tqdm(units, desc=f"process {rank + 1} of {world}", unit="unit", disable=not units)
        for i, unit in enumerate(bar):
            work.ahead(units[i:])
            work.unit(unit, rescore)


def _notes(work: Run, units: Sequence[Unit], missing: Sequence[dict]) -> list[str]:
    """What a reader must know before it is made: one line for each kind of change."""
    notes = []
    if work.lost:
        notes.append(
            f"{work.lost} pictures or records are missing or damaged; they are made again."
        )
    changed: Counter = Counter()
    if missing:
        before = {record_keys.asked(r["content"]): r["content"] for r in work.records.all()}
        for now in missing:
            other = record_keys.other(before.get(record_keys.asked(now), now), now)
            changed[" and ".join(other)] += bool(other)
    notes += [
        f"{count} pictures were made with other {what}; those are kept, and new ones are made."
        for what, count in changed.items()
        if count
    ]
    known = [work.scores.get(of) for of in map(work.of, units) if of is not None]
    old = sum(numbers is not None and numbers["metrics"] != work.metrics for numbers in known)
    if old:
        notes.append(f"{old} units were scored by other metrics; they are scored again.")
    return notes


def manifest(work: Run) -> dict:
    """What the tables are of, and the protocol of their numbers."""
    grid = work.grid
    return {
        "prompts": [[p.text, p.category] for p in grid.prompts],
        "methods": {a.label: [work.settings(a, s) for s in grid.scales] for a in grid.methods},
        "universal": contestants.UNIVERSAL,
        "semantic": dict(grid.by_hand),
        "scales": list(grid.scales),
        "seeds": list(grid.seeds),
        "steps": grid.steps,
        "size": grid.size,
        "batch": grid.batch,
        **work.circumstances(captioned=True),
        "metrics": work.instruments.identity(),
        "protocol": measure.PROTOCOL,
    }


def share(environment: dict[str, str]) -> tuple[int, int]:
    """(rank, world size) from RANK and WORLD_SIZE, as torchrun sets them; (0, 1) without."""
    try:
        rank, world = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise SettingsError(
            f"RANK = {environment.get('RANK')} of WORLD_SIZE = {environment.get('WORLD_SIZE')} is "
            "not possible; set both, RANK from 0 to WORLD_SIZE - 1."
        )
    return rank, world


def threads(device: torch.device) -> None:
    """One CPU thread for each process: sums in another order have other last bits, and a table
    must not depend on how many cores or processes made it."""
    if device.type == "cpu":
        torch.set_num_threads(1)

"""Sides measured in turns, within a budget of time; what fails or does not fit is said in words."""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field

from dnp.errors import DnpError
from dnp.evaluation.speed.rivals import Cell, Rival
from dnp.evaluation.speed.workers import Full, Worker

FRESH = "load", "memory"  # each turn in a new process; one process answers both
WARM_STEPS = 2
Words = dict[str, str]


class Budget:
    """Minutes for a number of cells; None is as long as it takes."""

    def __init__(self, minutes: float | None, cells: int):
        self.minutes, self.start = minutes, time.monotonic()
        self.share = None if minutes is None else 60 * minutes / cells

    @property
    def left(self) -> float | None:
        """Seconds."""
        if self.minutes is None:
            return None
        return max(0.0, 60 * self.minutes - (time.monotonic() - self.start))

    def refusal(self, needs: float = 0.0) -> str | None:
        """Why something that takes `needs` seconds is not begun; None if it fits."""
        left = self.left
        if left is None or left > needs:
            return None
        spent = f"the budget of {self.minutes:g} minutes is spent"
        return f"not measured: {spent}" if left < 1 else (
            f"not measured: it takes {needs:.0f} s, and {left:.0f} s are left of {self.minutes:g} "
            "minutes"
        )  # fmt: skip


class Pool:
    """The sides' processes, started when they are first asked."""

    def __init__(self, args: argparse.Namespace, names: list[str]):
        self.args, self.names = args, names
        self.workers: dict[str, Worker] = {}

    def __getitem__(self, name: str) -> Worker:
        if name not in self.workers or not self.workers[name].process.is_alive():
            self.drop(name)
            self.workers[name] = Worker(name, Rival, name, self.args)
        return self.workers[name]

    def drop(self, *names: str) -> None:
        for name in names:
            if name in self.workers:
                self.workers.pop(name).__exit__(None)

    def start(self) -> None:
        """Starts them all, so that they import at the same time."""
        for name in self.names:
            self[name].send("rest", None)
        for name in self.names:
            self[name].hear()

    def rest(self) -> None:
        """Has those that live give back the memory that they do not need."""
        for worker in self.workers.values():
            with suppress(DnpError):  # one that ended has given back all
                worker("rest", None)

    def __enter__(self):
        return self

    def __exit__(self, error: object, *_: object) -> None:
        for worker in self.workers.values():
            worker.__exit__(error)


@dataclass
class Row:
    """What a cell came to: the answers of each side, and in words why there are none."""

    cell: Cell
    values: dict[str, list[float]] = field(default_factory=dict)
    said: Words = field(default_factory=dict)

    def shown(self, name: str) -> str:
        if name in self.said:
            return self.said[name]
        least, middle = min(self.values[name]), statistics.median(self.values[name])
        if self.cell.part == "memory":
            return f"{least:,.0f} / {middle:,.0f} MB"
        times, unit = (1, "s") if least >= 1 else (1000, "ms")
        return f"{times * least:.2f} / {times * middle:.2f} {unit}"

    def ratio(self, name: str) -> str:
        """Ours over theirs, of the least of each."""
        if {"dnp", name} & self.said.keys():
            return ""
        return f"{min(self.values['dnp']) / min(self.values[name]):.2f}"


def in_turn(
    cells: list[Cell], pool: Pool, args: argparse.Namespace, budget: Budget,
    least: dict[tuple[str, Cell], float],
) -> list[Row]:  # fmt: skip
    """Measures cells that share their processes: one turn for warmth, then `args.rounds`, every
    other one backwards; fewer once the cells have had their share of the budget.

    `least` holds what was measured so far: a U-Net's time says how long its run will take.
    """
    rows = [Row(cell, {name: [] for name in pool.names}) for cell in cells]
    fresh, start = cells[0].part in FRESH, time.monotonic()
    if cells[0].part == "run":
        unet = cells[0]._replace(part="unet")
        one = sum(least.get((name, unet), 0) for name in pool.names)
        if words := budget.refusal((WARM_STEPS + args.steps) * one):
            rows[0].said = dict.fromkeys(pool.names, words)
            return rows
    for turn in range(args.rounds + 1):
        late = budget.share is not None and time.monotonic() - start > budget.share * len(cells)
        if late and turn > 1:
            break
        if turn == 0 and cells[0].compiled:  # compiling takes most of it: all sides at once
            ahead(rows[0], pool, budget)
        for name in pool.names[:: -1 if turn % 2 else 1]:
            if fresh:
                pool.drop(name)
            for row in rows:
                steps = args.steps if turn else WARM_STEPS
                value = None if name in row.said else asked(row, name, pool, steps, budget)
                if turn and value is not None:
                    row.values[name].append(value)
    if fresh:
        pool.drop(*pool.names)
    elif not args.device.startswith("cpu"):
        pool.rest()
    for row in rows:
        least |= {(name, row.cell): min(x) for name, x in row.values.items() if x}
    return rows


def asked(row: Row, name: str, pool: Pool, steps: int, budget: Budget) -> float | None:
    """The answer of one side; None and words in the row if there is none."""
    words = budget.refusal()
    if words is None:
        try:
            worker = pool[name]
            worker.send(row.cell.part, row.cell, steps)
            return worker.hear(budget.left)
        except Full:
            words = "the memory is full"
        except DnpError as e:
            words = str(e).replace("|", "/")
    if not row.values[name]:  # else one turn fewer
        row.said[name] = words
    return None


def ahead(row: Row, pool: Pool, budget: Budget) -> None:
    """Has all sides do a cell at the same time, whatever comes of it: each is asked alone later."""
    if budget.refusal():
        return
    asked = {name: pool[name] for name in pool.names}
    for worker in asked.values():
        with suppress(DnpError):  # one that ended says so when it is heard
            worker.send(row.cell.part, row.cell, WARM_STEPS)
    for name, worker in asked.items():
        try:
            worker.hear(budget.left)
        except DnpError as e:
            if not isinstance(e, Full):  # alone there is more memory
                row.said[name] = str(e).replace("|", "/")

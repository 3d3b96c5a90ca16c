"""Pictures an hour of the experiments: one process and two, a picture at a time and in batches.

The experiment is the miniature's: prompts of benchmark ae, one seed, CFG and Auto-DNP, 20 steps,
with records and scores as `python -m dnp.evaluation` makes them. A process has one thread. What it
imports and opens is not counted.
"""

from __future__ import annotations

import io
import tempfile
import time
from contextlib import ExitStack, redirect_stderr
from pathlib import Path

from dnp.evaluation.speed.workers import Worker

METHODS, STEPS = ("cfg", "auto-dnp"), 20


class Laboratory:
    """One process of an experiment."""

    def __init__(self, device: str, clock: str):
        import torch

        torch.set_num_threads(1)
        self.device, self.models = device, {}
        self.clock = time.process_time if clock == "cpu" else time.perf_counter

    def __call__(self, what: str, dtype: str, batch: int, count: int, rank: int, world: int):
        """Makes a process's share of the pictures of `count` prompts; their number and seconds."""
        from dnp.evaluation import benchmarks, contestants, runner
        from dnp.evaluation.grid import Grid, Run

        model, instruments = self.opened(dtype)
        chosen = tuple(contestants.parse(name) for name in METHODS)
        every = benchmarks.load("ae")
        prompts = tuple(every[:: len(every) // count][:count])
        grid = Grid(prompts, chosen, (None,), (0,), STEPS, batch=batch if batch > 1 else None)
        with tempfile.TemporaryDirectory() as folder:
            work = Run(grid, model, instruments, Path(folder))
            start = self.clock()
            with redirect_stderr(io.StringIO()):  # its bar of progress
                runner.run(work, rank, world)
            return len(grid.share(rank, world)), self.clock() - start

    def opened(self, dtype: str) -> tuple:
        """The miniature in a dtype, and what looks at its pictures."""
        import torch

        import dnp
        from dnp.evaluation import metrics
        from dnp.evaluation.measure import Instruments
        from dnp.sd import find_weights, recogniser, speed
        from dnp.sd.captioner import load_captioner

        if dtype not in self.models:
            mini = find_weights("weights/mini")
            model = dnp.load(mini, self.device, getattr(torch, dtype))
            speed.apply(model)
            seen = Instruments(
                load_captioner(model.config.captioner, self.device),
                metrics.CLIPScorer(mini / "clip", metrics.ONE_TEMPLATE, self.device),
                recogniser.load_recogniser(recogniser.of_weights(mini, 2)),
                captioner_file="the miniature's",
            )
            self.models[dtype] = model, seen
        return self.models[dtype]


def pictures_an_hour(
    kinds: list[tuple[str, int]], device: str, clock: str, rounds: int, count: int
) -> dict[tuple[str, int, int], list[float]]:
    """(dtype, batch, processes) -> pictures an hour of each round; they take turns in a round,
    every other one backwards. `kinds` are dtypes and batches, `count` the prompts; of two processes
    the slower one counts."""
    kinds = [(*kind, processes) for kind in kinds for processes in (1, 2)]
    found: dict[tuple, list[float]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(f"process {i + 1}", Laboratory, device, clock))
            for i in range(2)
        ]
        for turn in range(rounds + 1):
            for dtype, batch, processes in kinds[:: -1 if turn % 2 else 1]:
                some = count if turn else processes  # one for warmth
                for rank, worker in enumerate(workers[:processes]):
                    worker.send("experiment", dtype, batch, some, rank, processes)
                told = [worker.hear() for worker in workers[:processes]]
                if turn:
                    made, seconds = sum(n for n, _ in told), max(s for _, s in told)
                    found[dtype, batch, processes].append(3600 * made / seconds)
    return found


def table(found: dict[tuple[str, int, int], list[float]], clock: str, count: int) -> list[str]:
    """The greatest of the rounds, and their ratios to two processes of the first row."""
    best = {kind: max(values) for kind, values in found.items()}
    before = best[next(kind for kind in best if kind[2] == 2)]
    lines = [
        f"Pictures an hour of an experiment ({count} prompts, {' and '.join(METHODS)}, {STEPS} "
        f"steps, the miniature, one thread for each process, {clock} time):",
        "",
        "| dtype, pictures in a forward | one process | two processes | one / first row's two | "
        "two / first row's two |",
        "|---|---|---|---|---|",
    ]
    for dtype, batch in dict.fromkeys(kind[:2] for kind in best):
        one, two = best[dtype, batch, 1], best[dtype, batch, 2]
        shown = f"{one:,.0f} | {two:,.0f} | {one / before:.2f} | {two / before:.2f}"
        lines.append(f"| {dtype}, {batch} | {shown} |")
    return lines

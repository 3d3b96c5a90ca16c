"""The table of the benchmark of speed: printed line by line, and kept as files."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

from dnp.app.png import write
from dnp.evaluation.records import writing
from dnp.evaluation.speed.random_weights import SIZES
from dnp.evaluation.speed.rivals import Cell, seconds, side_of
from dnp.evaluation.speed.turns import Pool, Row
from dnp.sd.config import UNetConfig
from dnp.sd.files import folder


class Report:
    """The tables so far: printed line by line, and written to the folder as they stand."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.lines, self.rows, self.experiments = args, [], [], []

    def say(self, *lines: str) -> None:
        for line in lines:
            print(line, flush=True)
        self.lines += lines
        self.write()

    def row(self, row: Row) -> None:
        self.rows.append(row)
        self.say(line(row, self.args))

    def write(self) -> None:
        if self.args.out is None:
            return
        told = {k: v for k, v in vars(self.args).items() if k not in ("folders", "out", "weights")}
        rows = [row.cell._asdict() | {"values": row.values, "said": row.said} for row in self.rows]
        data = {"machine": self.lines[:3], "settings": told, "rows": rows}
        data |= {"experiments": self.experiments}
        with writing(self.args.out):
            self.args.out.mkdir(parents=True, exist_ok=True)
            write(self.args.out / "speed.json", (json.dumps(data, indent=1) + "\n").encode())
            write(self.args.out / "speed.md", ("\n".join(self.lines) + "\n").encode())


def machine(args: argparse.Namespace) -> list[str]:
    """The machine and the settings, two lines."""
    import torch

    name, also = processor(), f", {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    versions = f"torch {torch.__version__}"
    if args.device.startswith("cuda"):
        of = torch.cuda.get_device_properties(args.device)
        name, also = of.name, f", {of.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    if args.against:
        import diffusers

        versions += f", diffusers {diffusers.__version__}"
    clock = f"{args.clock} time, least / median of at most {args.rounds} turns"
    rates = [f"{dtype} {rate(args, dtype)}" for dtype in dict.fromkeys(("float32", *args.dtype))]
    return [
        f"{name}{also}{load()}; {versions}; {clock}.",
        f"A matrix product of 2048 x 2048: {', '.join(rates)}.",
    ]


def load() -> str:
    """How busy the machine was in the last minute."""
    return f", a load of {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""


def header(args: argparse.Namespace, pool: Pool, first: Cell) -> list[str]:
    """The machine, the settings, what `speed.apply` does, and the head of the table."""
    pool.start()
    measures = pool["dnp"]("measures", first)
    ratios = [f"dnp / {name}" for name in args.contestants if name != "dnp"]
    return [
        *machine(args),
        f"speed.apply: {'; '.join(measures) or 'nothing on this device'}.",
        "",
        f"| part | {' | '.join(args.contestants + ratios)} |",
        f"|{'---|' * (1 + len(args.contestants + ratios))}",
    ]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def rate(args: argparse.Namespace, dtype: str) -> str:
    """The best of 9 matrix products, in words."""
    import torch

    n = 2048
    a = torch.randn(n, n, device=args.device).to(getattr(torch, dtype))
    best = min(seconds(lambda: a @ a, args) for _ in range(9))
    return f"{2 * n**3 / best / 1e9:,.0f} GFLOP/s"


def line(row: Row, args: argparse.Namespace) -> str:
    """A row of the table: each one's least and median, and the ratios of the least."""
    part, size, dtype, compiled, batch = row.cell
    known = None if args.weights else UNetConfig.from_dict(SIZES[size]["unet"])
    side = side_of(known or folder.read(args.folders[size]).unet, args)
    steps = {"run": f", CFG, {args.steps} steps", "memory": ", 2 steps"}.get(part, "")
    count = 2 * batch if part == "unet" else batch
    shape = "" if part == "load" else f", batch {count}, latents {side} x {side}"
    label = f"{size}, {dtype}, {part}{steps}{shape}{', compiled' * compiled}"
    ratios = [row.ratio(name) for name in args.contestants if name != "dnp"]
    return f"| {' | '.join([label, *map(row.shown, args.contestants), *ratios])} |"

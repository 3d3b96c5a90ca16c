"""Times and memory of this package and of diffusers, on the same weights and in the same setting.

    python -m dnp.evaluation.benchmark                           # Stable Diffusion 1.5's size
    python -m dnp.evaluation.benchmark --against diffusers       # ... and ratios
    python -m dnp.evaluation.benchmark --against diffusers --device cuda --compile   # 8 minutes
    python -m dnp.evaluation.benchmark --parts experiments       # pictures an hour

Each contestant has a process of its own, and they take turns, every other round backwards:

    bare           this package as `dnp.load` opens the weights
    dnp            with the measures of `dnp/sd/speed.py`, as the commands have it
    diffusers      diffusers as it comes
    kept           diffusers in a process that keeps its freed memory, as ours does on Linux
    channels_last  the same with its networks in channels_last

A cell is the least of the turns and their median; a ratio is dnp's least over theirs, so below 1 is
in our favour. It holds for the processor that is named above the table. Without --weights, random
weights of the full size are written to a temporary folder: 4.3 GB, elsewhere than on a CPU 2, and 7
of SDXL. In half precision each side keeps in float32 what it does as it comes (`dnp.load`).
The tables are written to --out after every row: what fails, or does not fit into --budget, is said
in its cell, and the rest is kept.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import warnings
from pathlib import Path

from dnp.app.terminal import Parser, run
from dnp.errors import DnpError, SettingsError, reason
from dnp.evaluation import benchmarks
from dnp.evaluation.speed.rivals import Cell, require_diffusers
from dnp.evaluation.speed.table import Report, header, load, machine
from dnp.evaluation.speed.turns import FRESH, Budget, Pool, Row, in_turn
from dnp.evaluation.speed.workers import Worker

PARTS = {
    "unet": "one forward of the U-Net, two conditions for each picture",
    "run": "prompt to pictures with CFG",
    "decode": "the VAE's decoder",
    "load": "opening the weights from a warm disk",
    "memory": "greatest memory of loading and a run of 2 steps",
    "agree": "greatest differences to diffusers' numbers; in half precision to float32's too",
    "experiments": "pictures an hour of an experiment of the miniature",
}
CONTESTANTS = "bare", "dnp", "diffusers", "kept", "channels_last"
DTYPES, SIZES = ("float32", "float16", "bfloat16"), ("sd1", "sdxl", "tiny", "tiny-xl")
GPU_MINUTES = 7.5


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(prog="python -m dnp.evaluation.benchmark", description=__doc__)
    add = p.add_argument
    add("--against", choices=("diffusers",), help="measure it too, and print the ratios")
    parts = "; ".join(f"{part}: {what}" for part, what in PARTS.items())
    add("--beside", nargs="+", choices=[n for n in CONTESTANTS if n != "dnp"], metavar="NAME",
        help="measured beside dnp; default: bare, or with --against diffusers those of it that "
        "matter on the device. Fewer need less memory")  # fmt: skip
    add("--parts", nargs="+", choices=PARTS, metavar="P",
        help=f"default: all on a CPU, unet and run elsewhere. {parts}")  # fmt: skip
    add("--sizes", nargs="+", choices=SIZES, metavar="S",
        help=f"of random weights, of {', '.join(SIZES)}; default sd1, elsewhere than on a CPU sdxl "
        "too")  # fmt: skip
    add("--weights", type=Path, metavar="FOLDER", help="a diffusers folder in place of random ones")
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda or mps; default cpu")
    add("--dtype", nargs="+", choices=DTYPES, metavar="T",
        help="default: float32 on a CPU, and bfloat16 where it has the units; elsewhere float16 "
        "and bfloat16")  # fmt: skip
    add("--side", type=int, metavar="N", help="latents of N x N; default as trained, on a CPU 32")
    add("--batch", nargs="+", type=int, metavar="N",
        help="pictures at a time; default 1, elsewhere than on a CPU 1 and 16")  # fmt: skip
    compile_help = "also with the U-Nets compiled by torch.compile; BACKEND's default: inductor"
    add("--compile", nargs="?", const="inductor", metavar="BACKEND", help=compile_help)
    add("--steps", type=int, default=10, metavar="N", help="DDIM steps of a run; default 10")
    add("--rounds", type=int, default=3, metavar="N", help="turns of each; default 3")
    add("--threads", type=int, metavar="N", help="CPU threads of each; default torch's own")
    add("--prompts", type=int, default=32, metavar="N", help="prompts of an experiment; default 32")
    clocks = "wall, or cpu: the processor's time, for a busy machine and --threads 1; default wall"
    add("--clock", choices=("wall", "cpu"), default="wall", help=clocks)
    budget_help = f"leave out what does not fit; default {GPU_MINUTES:g}, on a CPU none"
    add("--budget", type=float, metavar="MINUTES", help=budget_help)
    add("--out", type=Path, metavar="FOLDER", help="write speed.md and speed.json there")
    args = p.parse_args(argv)
    numbers = {n: getattr(args, n) for n in ("side", "steps", "rounds", "threads", "prompts")}
    numbers |= {"batch": min(args.batch or [1]), "budget": args.budget and 1000 * args.budget}
    for name, value in numbers.items():
        if value is not None and not 1 <= value < 1e9:
            raise SettingsError(f"--{name} {getattr(args, name)} is not possible; give 1 or more.")
    if args.prompts > (most := len(benchmarks.load("ae"))):
        raise SettingsError(f"--prompts {args.prompts} is not possible; give 1 to {most}.")
    on_cpu = args.device.startswith("cpu")
    offered = [x for x in PARTS if args.against or x != "agree"] if on_cpu else ["unet", "run"]
    args.parts = args.parts or offered
    args.batch = args.batch or ([1] if on_cpu else [1, 16])
    args.budget = args.budget or (None if on_cpu else GPU_MINUTES)
    if args.weights and args.sizes:
        raise SettingsError("--weights and --sizes are both given; leave one out.")
    args.sizes = args.sizes or (["sd1"] if on_cpu else ["sd1", "sdxl"])
    theirs = ["diffusers", "kept", "channels_last"] if on_cpu else ["diffusers"]
    beside = args.beside or (theirs if args.against else ["bare"] if on_cpu else [])
    if not (args.against or set(beside) <= {"bare"}):
        raise SettingsError(
            "diffusers, kept and channels_last are measured with --against diffusers; add it."
        )
    if "agree" in args.parts and not args.against:
        raise SettingsError("the part agree compares with diffusers; add --against diffusers.")
    args.contestants = [name for name in CONTESTANTS if name in ("dnp", *beside)]
    return args


def cells(args: argparse.Namespace) -> list[list[Cell]]:
    """What is measured, in this order: those of a list share their processes."""
    kinds = list(itertools.product(args.dtype, args.sizes))
    chosen = [part for part in ("unet", "run", "decode") if part in args.parts]
    made = [
        [Cell(part, size, dtype, compiled, batch)]
        for compiled in ([False, True] if args.compile else [False])
        for dtype, size in kinds
        for batch in args.batch
        for part in chosen
        if part != "decode" or not compiled  # the decoder is not
    ]
    fresh = [part for part in FRESH if part in args.parts]
    return made + [[Cell(part, size, dtype) for part in fresh] for dtype, size in kinds if fresh]


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)
    import torch

    from dnp.sd.device import choose_device, choose_dtype, has_bf16_units

    args.device = str(choose_device(args.device))
    on_cpu = args.device.startswith("cpu")
    half = ["bfloat16"] if has_bf16_units() else []
    args.dtype = args.dtype or (["float32", *half] if on_cpu else ["float16", "bfloat16"])
    for dtype in args.dtype:
        choose_dtype(dtype, torch.device(args.device))  # refused here, not by a contestant
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.against:
        require_diffusers()
    if args.weights:
        args.sizes = [args.weights.resolve().name]
    planned = cells(args)
    budget = Budget(args.budget, max(1, sum(map(len, planned))))
    report = Report(args)
    with tempfile.TemporaryDirectory() as made:
        args.folders = {size: args.weights or Path(made) / size for size in args.sizes}
        measure(planned, args, budget, report)
        if "agree" in args.parts:
            agree(args, report)
    if "experiments" in args.parts:
        experiments(args, report)
    report.say("", f"At the end{load()}.")


def measure(planned, args: argparse.Namespace, budget: Budget, report: Report) -> None:
    """The table of times."""
    least: dict[tuple[str, Cell], float] = {}
    not_there: dict[str, str] = {}  # why the weights of a size could not be written
    with Pool(args, args.contestants) as pool:
        for n, some in enumerate(planned):
            size = some[0].size
            try:
                if not args.weights and not args.folders[size].exists():
                    write_weights(args.folders[size], size, args)
            except (DnpError, OSError, RuntimeError) as e:  # the disk or the device is full
                if n == 0:
                    raise
                words = str(e) if isinstance(e, DnpError) else reason(e)
                not_there[size] = words.replace("|", "/")
            if size in not_there:
                for cell in some:
                    report.row(Row(cell, said=dict.fromkeys(pool.names, not_there[size])))
                continue
            if n == 0:
                report.say(*header(args, pool, some[0]))
            if some[0].part in FRESH:
                pool.drop(*pool.names)  # their memory is needed
            for row in in_turn(some, pool, args, budget, least):
                report.row(row)
    if not planned:
        report.say(*machine(args))


def write_weights(folder: Path, size: str, args: argparse.Namespace) -> None:
    import torch

    from dnp.evaluation.speed.random_weights import write_random_weights

    folder.mkdir()
    kind = torch.float32 if args.device.startswith("cpu") else torch.float16
    write_random_weights(folder, size, args.device, kind)
    if args.device.startswith("cuda"):
        torch.cuda.empty_cache()


def agree(args: argparse.Namespace, report: Report) -> None:
    from dnp.evaluation.speed.parity import HEAD, Parity

    report.say("", *HEAD)
    for dtype, size in itertools.product(args.dtype, args.sizes):
        folder = args.folders[size]
        if not args.weights and not folder.exists():
            write_weights(folder, size, args)
        with Worker("the comparison", Parity, args) as worker:
            try:
                report.say(*worker("agreement", Cell("agree", size, dtype)))
            except DnpError as e:
                report.say(f"| {size}, {dtype} | {e} | | |")


def experiments(args: argparse.Namespace, report: Report) -> None:
    from dnp.evaluation.speed.throughput import pictures_an_hour, table

    kinds = [(args.dtype[0], 1), *((dtype, 16) for dtype in args.dtype)]
    try:
        found = pictures_an_hour(kinds, args.device, args.clock, args.rounds, args.prompts)
    except DnpError as e:
        return report.say("", f"Pictures an hour were not measured: {e}")
    report.experiments = [[*kind, values] for kind, values in found.items()]
    report.say("", *table(found, args.clock, args.prompts))


if __name__ == "__main__":
    run(main, "interrupted; nothing is left behind but the tables in --out.")

"""Times and memory of this package and of diffusers, on the same weights and in the same setting.

    python -m dnp.evaluation.benchmark                           # Stable Diffusion 1.5's size
    python -m dnp.evaluation.benchmark --against diffusers       # ... and ratios
    python -m dnp.evaluation.benchmark --against diffusers --weights weights/mini --side 16
    python -m dnp.evaluation.benchmark --against diffusers --dtype bfloat16 --parts agree unet

Each contestant has a process of its own, and they take turns, every other round backwards:

    bare       this package as `dnp.load` opens the weights
    dnp        with the measures of `dnp/sd/speed.py`, as the commands have it
    diffusers  diffusers as it comes
    kept       diffusers in a process that keeps its freed memory, as ours does on Linux

A cell is the least of the turns and their median; a ratio is dnp's least over theirs, so below 1 is
in our favour. It holds for the processor that is named above the table. Without --weights, random
weights of the full size are written to a temporary folder (4.3 GB). In half precision our VAE, and
on a CPU our text encoder, stay in float32; theirs do not.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from dnp.app.terminal import Parser, run
from dnp.errors import SettingsError
from dnp.evaluation.rivals import (
    PROMPT,
    Contestant,
    in_turn,
    noise,
    open_diffusers,
    open_dnp,
    picture,
    require_diffusers,
    seconds,
)  # fmt: skip

PARTS = {
    "agree": "greatest differences to diffusers' numbers; in half precision to float32's too",
    "unet": "one forward of the U-Net, two conditions for each picture",
    "run": "prompt to pictures with CFG",
    "decode": "the VAE's decoder",
    "load": "opening the weights from a warm disk",
    "memory": "peak resident memory of loading and a run of 2 steps",
}
CONTESTANTS = "bare", "dnp", "diffusers", "kept"


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(prog="python -m dnp.evaluation.benchmark", description=__doc__)
    add = p.add_argument
    add("--against", choices=("diffusers",), help="measure it too, and print the ratios")
    parts = "; ".join(f"{part}: {what}" for part, what in PARTS.items())
    add("--beside", nargs="+", choices=("bare", "diffusers", "kept"), metavar="NAME",
        help="measured beside dnp; default: all. Fewer need less memory")  # fmt: skip
    add("--parts", nargs="+", choices=PARTS, metavar="P", help=f"default: all. {parts}")
    add("--weights", type=Path, metavar="FOLDER", help="a diffusers folder; default: random ones")
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda or mps; default cpu")
    add("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    add("--side", type=int, metavar="N", help="latents of N x N; default 64, run on a CPU 32")
    add("--batch", type=int, default=1, metavar="N", help="pictures at a time; default 1")
    add("--steps", type=int, default=20, metavar="N", help="DDIM steps of a run; default 20")
    add("--rounds", type=int, default=3, metavar="N", help="turns of each; default 3")
    add("--threads", type=int, metavar="N", help="CPU threads of each; default torch's own")
    clocks = "wall, or cpu: the processor's time, for a busy machine and --threads 1; default wall"
    add("--clock", choices=("wall", "cpu"), default="wall", help=clocks)
    args = p.parse_args(argv)
    for name in ("side", "batch", "steps", "rounds", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise SettingsError(f"--{name} {value} is not possible; give 1 or more.")
    args.parts = args.parts or [part for part in PARTS if args.against or part != "agree"]
    args.run_side = args.side or (32 if args.device.startswith("cpu") else 64)
    args.side = args.side or 64
    beside = args.beside or ["bare", *(("diffusers", "kept") if args.against else ())]
    if not (args.against or set(beside) == {"bare"}):
        raise SettingsError("diffusers and kept are measured with --against diffusers; add it.")
    args.contestants = [name for name in CONTESTANTS if name in ("dnp", *beside)]
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)
    import torch

    from dnp.evaluation.random_weights import write_random_weights
    from dnp.sd.device import choose_device, choose_dtype

    args.device = str(choose_device(args.device))
    choose_dtype(args.dtype, torch.device(args.device))  # refused here, not by a contestant
    if "agree" in args.parts and not args.against:
        raise SettingsError("the part agree compares with diffusers; add --against diffusers.")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.against:
        require_diffusers()
    with tempfile.TemporaryDirectory() if args.weights is None else nullcontext() as made:
        if args.weights is None:
            args.weights = Path(made)
            write_random_weights(args.weights)
        print("\n".join(header(args)), flush=True)
        for part in args.parts:
            for line in agree(args) if part == "agree" else [row(part, in_turn(part, args), args)]:
                print(line, flush=True)


def header(args: argparse.Namespace) -> list[str]:
    """The machine, the settings, what `speed.apply` does, and the head of the table."""
    import torch

    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else processor()
    versions = f"torch {torch.__version__}"
    if args.against:
        versions += f", diffusers {sys.modules['diffusers'].__version__}"
    with Contestant("dnp", args) as contestant:
        measures = contestant("measures")
    ratios = [f"dnp / {name}" for name in args.contestants if name != "dnp"]
    return [
        f"{name}, {torch.get_num_threads()} threads, {versions}, {args.dtype}, {args.clock} time, "
        f"least / median of {args.rounds}",
        *(f"matrix product {rate(args, d)}" for d in dict.fromkeys(("float32", args.dtype))),
        f"speed.apply: {'; '.join(measures) or 'nothing on this device'}",
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
    return f"{n} x {n}, {dtype}: {2 * n**3 / best / 1e9:,.0f} GFLOP/s"


def row(part: str, turns: dict[str, list[float]], args: argparse.Namespace) -> str:
    """A row of the table: each one's least and median, and the ratios of the least."""
    side = args.run_side if part in ("run", "memory") else args.side
    steps = {"run": f", CFG, {args.steps} steps", "memory": ", 2 steps"}.get(part, "")
    count = 2 * args.batch if part == "unet" else args.batch
    size = "" if part == "load" else f", batch {count}, latents {side} x {side}"

    def shown(values: list[float]) -> str:
        least, middle = min(values), statistics.median(values)
        if part == "memory":
            return f"{least:,.0f} / {middle:,.0f} MB"
        times, unit = (1, "s") if least >= 1 else (1000, "ms")
        return f"{times * least:.2f} / {times * middle:.2f} {unit}"

    ours, others = min(turns["dnp"]), [values for name, values in turns.items() if name != "dnp"]
    ratios = [f"{ours / min(values):.2f}" for values in others]
    cells = [f"{part}{steps}{size}", *map(shown, turns.values()), *ratios]
    return f"| {' | '.join(cells)} |"


def agree(args: argparse.Namespace) -> Iterator[str]:
    """Rows of differences: to diffusers', and in half precision of both to our float32."""
    import torch

    from dnp.sd import speed

    ours, pipe = open_dnp(args, args.dtype), open_diffusers(args)
    speed.apply(ours)
    z = noise(args, ours.unet.conv_in.in_channels, 1, args.run_side)
    t = torch.tensor(500, device=z.device)
    context = ours.encode([PROMPT])
    length, dtype = context.shape[1], getattr(torch, args.dtype)
    ids = pipe.tokenizer(PROMPT, padding="max_length", max_length=length, truncation=True).input_ids
    with torch.no_grad():
        by_dnp = context, ours.eps(z, t, context), ours.vae.decode(z)
        z_there, context_there = z.to(dtype), context.to(dtype)
        by_diffusers = (
            pipe.text_encoder(torch.tensor([ids], device=z.device))[0],
            pipe.unet(z_there, t, context_there).sample,
            pipe.vae.decode(z_there).sample,
        )
    parts, count = ("text encoder", "U-Net", "VAE decode"), len(args.contestants) * 2 - 2
    for part, x, y in zip(parts, by_dnp, by_diffusers):
        error = (x.float() - y.float()).abs().max() / y.float().abs().max()
        what = f"{part}: greatest difference / greatest value"
        yield f"| {what} | | {error:.1e} |{' |' * (count - 1)}"
    if args.dtype == "float32":
        return
    del pipe
    wide = open_dnp(args, "float32")
    with torch.no_grad():
        exact = wide.encode([PROMPT]), wide.eps(z, t, wide.encode([PROMPT])), wide.vae.decode(z)
    for part, want, *both in zip(parts, exact, by_dnp, by_diffusers):
        errors = [f"{((x.float() - want).norm() / want.norm()):.1e}" for x in both]
        what = f"{part}: difference to float32 / its norm"
        yield f"| {what} | | {' | '.join(errors)} |{' |' * (count - 2)}"
    one, two = (picture(model, args, args.steps)[0] for model in (ours, wide))
    off = [abs(a - b) for a, b in zip(one.tobytes(), two.tobytes())]
    difference = f"{statistics.mean(off):.2f} mean, {max(off)} greatest"
    yield f"| picture: difference to float32's, of 255 | | {difference} |{' |' * (count - 1)}"


if __name__ == "__main__":
    run(main, "interrupted; nothing is left behind.")

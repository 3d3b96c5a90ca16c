"""Times and memory of this package and of diffusers, on the same weights and in the same setting.

    python -m dnp.benchmark                                    # Stable Diffusion 1.5's size
    python -m dnp.benchmark --against diffusers                # ... and ratios
    python -m dnp.benchmark --against diffusers --weights weights/mini --side 16
    python -m dnp.benchmark --against diffusers --dtype bfloat16 --side 32 --parts agree unet

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
import math
import platform
import re
import resource
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from multiprocessing import get_context
from pathlib import Path

from dnp.command import Parser, run
from dnp.errors import DnpError, SettingsError

PROMPT = "a photo of a cat and a dog"
PARTS = {
    "agree": "greatest differences to diffusers' numbers; in half precision to float32's too",
    "unet": "one forward of the U-Net, two conditions for each picture",
    "run": "prompt to pictures with CFG",
    "decode": "the VAE's decoder",
    "load": "opening the weights from a warm disk",
    "memory": "peak resident memory of loading and a run of 2 steps",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(
        prog="python -m dnp.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = p.add_argument
    add("--against", choices=("diffusers",), help="measure it too, and print the ratios")
    told = "; ".join(f"{part}: {what}" for part, what in PARTS.items())
    add("--parts", nargs="+", choices=PARTS, metavar="P", help=f"default: all. {told}")
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
    args.contestants = ["bare", "dnp", *(("diffusers", "kept") if args.against else ())]
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)
    import torch

    from dnp.sd.device import choose_device, choose_dtype
    from dnp.sd.random_weights import write_random_weights

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


def require_diffusers() -> None:
    try:
        import diffusers
    except ImportError:
        raise SettingsError(
            "diffusers is not installed; pip install -r requirements-test.txt, or leave --against "
            "out."
        ) from None
    import transformers

    for library in (diffusers, transformers):  # what they tell is no part of the table
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


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


def seconds(make: Callable[[], object], args: argparse.Namespace) -> float:
    """The time of one call, finished on its device; the mean of many if it is short."""
    import torch

    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    wait = wait.get(args.device.split(":")[0], lambda: None)

    def measure(times: int) -> float:
        wait()
        start = clock()
        for _ in range(times):
            make()
        wait()
        return (clock() - start) / times

    took = measure(1)
    return took if took > 0.1 else measure(math.ceil(0.1 / max(took, 1e-6)))


def row(part: str, turns: dict[str, list[float]], args: argparse.Namespace) -> str:
    """A row of the table: each one's least and median, and the ratios of the least."""
    side = args.run_side if part in ("run", "memory") else args.side
    steps = {"run": f", CFG, {args.steps} steps", "memory": ", 2 steps"}.get(part, "")
    count = 2 * args.batch if part == "unet" else args.batch
    size = "" if part == "load" else f", batch {count}, latents {side} x {side}"

    def told(values: list[float]) -> str:
        least, middle = min(values), statistics.median(values)
        if part == "memory":
            return f"{least:,.0f} / {middle:,.0f} MB"
        times, unit = (1, "s") if least >= 1 else (1000, "ms")
        return f"{times * least:.2f} / {times * middle:.2f} {unit}"

    ours, others = min(turns["dnp"]), [values for name, values in turns.items() if name != "dnp"]
    ratios = [f"{ours / min(values):.2f}" for values in others]
    cells = [f"{part}{steps}{size}", *map(told, turns.values()), *ratios]
    return f"| {' | '.join(cells)} |"


def open_dnp(args: argparse.Namespace, dtype: str):
    import torch

    import dnp

    return dnp.load(args.weights, args.device, getattr(torch, dtype))


def open_diffusers(args: argparse.Namespace):
    """diffusers' pipeline with DDIM, as it comes."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    fp16 = (args.weights / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    whole = (args.weights / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            args.weights, torch_dtype=getattr(torch, args.dtype), local_files_only=True,
            use_safetensors=True, variant="fp16" if fp16 and not whole else None,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    except Exception as e:  # diffusers and transformers raise whatever comes
        reason = str(e).split("\n")[0][:300] or type(e).__name__
        raise SettingsError(
            f"diffusers cannot open {args.weights} ({reason}); give a folder in its layout, with "
            "model_index.json, or leave --against out."
        ) from None
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(args.device)


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
        yield f"| {part}: greatest difference / greatest value | {error:.1e} |{' |' * count}"
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
    told = f"{statistics.mean(off):.2f} mean, {max(off)} greatest"
    yield f"| picture: difference to float32's, of 255 | | {told} |{' |' * (count - 1)}"


def noise(args: argparse.Namespace, channels: int, count: int, side: int):
    import torch

    z = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))
    return z.to(args.device)


def picture(model, args: argparse.Namespace, steps: int):
    """`args.batch` pictures of the prompt, by one of our models or one of diffusers' pipelines."""
    import dnp

    if hasattr(model, "vae_scale_factor"):
        side = args.run_side * model.vae_scale_factor
        return model(
            PROMPT, guidance_scale=7.5, num_inference_steps=steps, height=side, width=side,
            num_images_per_prompt=args.batch,
        ).images  # fmt: skip
    side = args.run_side * model.config.vae.factor
    size = (side, side)
    return dnp.generate(model, PROMPT, s=7.5, steps=steps, images=args.batch, size=size).images


# ------------------------------------------------------------------------------------ contestants


def calls(name: str, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Opens the weights; what a contestant can be asked for: seconds, megabytes, measures."""
    import torch

    from dnp.sd import speed

    start = time.perf_counter()
    opened = open_dnp(args, args.dtype) if name in ("bare", "dnp") else open_diffusers(args)
    took = time.perf_counter() - start
    measures = speed.apply(opened) if name == "dnp" else []
    if name == "kept":
        speed.keep_freed_memory()
    unet, vae, dtype = opened.unet, opened.vae, getattr(torch, args.dtype)
    z = noise(args, unet.conv_in.in_channels, 2 * args.batch, args.side).to(dtype)
    latent = z[: args.batch].to(vae.post_quant_conv.weight.dtype)
    width = next(p.shape[1] for n, p in unet.named_parameters() if n.endswith("attn2.to_k.weight"))
    context, t = torch.randn(len(z), 77, width).to(z), torch.tensor(500, device=z.device)
    timed = torch.no_grad()(lambda make: seconds(make, args))
    return {
        "load": lambda: took,
        "measures": lambda: measures,
        "unet": lambda: timed(lambda: unet(z, t, context)),
        "decode": lambda: timed(lambda: vae.decode(latent)),
        "run": lambda: timed(lambda: picture(opened, args, args.steps)),
        "memory": lambda: picture(opened, args, 2) and peak_megabytes(),
    }


def peak_megabytes() -> float:
    """The most resident memory that this process had."""
    try:  # on Linux ru_maxrss may be a parent's
        told = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", told)[1]) * 1024 / 1e6
    except (OSError, TypeError):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, else KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def answer(name: str, args: argparse.Namespace, line) -> None:
    """A contestant's process: to each question on the line, its answer or the error."""
    import torch

    import dnp.sd.model  # noqa: F401  (imports are not loading)

    if args.threads:
        torch.set_num_threads(args.threads)
    if name in ("diffusers", "kept"):
        require_diffusers()
        from diffusers import DDIMScheduler, StableDiffusionPipeline  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    warnings.simplefilter("ignore")  # few steps start low; diffusers renames torch_dtype
    can: dict[str, Callable[[], object]] = {}
    while True:
        try:
            question = line.recv()
        except EOFError:  # no more questions
            return
        try:
            can = can or calls(name, args)
            line.send(can[question]())
        except DnpError as e:
            line.send(e)
        except Exception as e:  # another library's, or no memory
            reason = str(e).strip().split("\n")[0][:300] or type(e).__name__
            told = f"{name} cannot do {question} with these settings ({reason}); change them."
            line.send(SettingsError(told))


class Contestant:
    """One of them in a process of its own, where settings of one are not another's."""

    def __init__(self, name: str, args: argparse.Namespace):
        context = get_context("spawn")
        self.name, (self.line, other) = name, context.Pipe()
        self.process = context.Process(target=answer, args=(name, args, other), daemon=True)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks: inherited
        self.process.start()
        signal.signal(signal.SIGINT, before)
        other.close()

    def __call__(self, question: str):
        try:
            self.line.send(question)
            told = self.line.recv()
        except (EOFError, OSError):
            self.process.join()
            raise SettingsError(
                f"{self.name} ended with {self.process.exitcode} while its {question} was "
                "measured; what it printed above says why."
            ) from None
        if isinstance(told, DnpError):
            raise told
        return told

    def __enter__(self):
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.line.close()
        if error:
            self.process.terminate()
        self.process.join()


def in_turn(part: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """The answers of each, after one for warmth; for load and memory each of a new process."""
    got: dict[str, list[float]] = {name: [] for name in args.contestants}
    with ExitStack() as stack:
        fresh = part in ("load", "memory")
        kept = {} if fresh else {n: stack.enter_context(Contestant(n, args)) for n in got}
        for turn in range(args.rounds + 1):
            for name in args.contestants[:: -1 if turn % 2 else 1]:
                with nullcontext(kept.get(name)) if kept else Contestant(name, args) as contestant:
                    got[name].append(contestant(part))
    return {name: values[1:] for name, values in got.items()}


if __name__ == "__main__":
    run(main, "interrupted; nothing is left behind.")

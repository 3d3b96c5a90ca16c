"""Times and memory beside the machine's own matrix product; with diffusers, the ratios to it.

    python -m dnp.benchmark                                    # Stable Diffusion 1.5's size
    python -m dnp.benchmark --against diffusers                # ... and ratios
    python -m dnp.benchmark --against diffusers --weights weights/mini --side 16
    python -m dnp.benchmark --against diffusers --device cuda --dtype bfloat16 \\
        --parts unet run decode --batch 16 --steps 50

Without --weights, random weights of the full size are written to a temporary folder (4.3 GB) and
read from there. Each has a process of its own, they take turns on the same weights, and the table
has the medians of the turns; a ratio below 1 is in our favour. "diffusers" is diffusers as it
comes; "tuned" is it in channels_last under inference mode. In half precision our VAE stays in
float32, theirs does not. On Linux a part of the difference is how memory is kept
(`dnp/sd/speed.py`);

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 python -m dnp.benchmark --against diffusers

keeps it for both, and what is left is the networks.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from dnp.command import Parser, run
from dnp.errors import DnpError, SettingsError

PROMPT = "a photo of a cat and a dog"
# Stable Diffusion 1.5's configs, where they differ from what diffusers and transformers assume.
SD1 = {
    "text_encoder": {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 768,
        "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
        "max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu",
    },
    "unet": {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "sample_size": 64},
    "vae": {
        "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2, "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "scheduler": {
        "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False,
        "steps_offset": 1, "num_train_timesteps": 1000,
    },
    "tokenizer": {},
}  # fmt: skip
CLASSES = {
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(
        prog="python -m dnp.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = p.add_argument
    add("--against", choices=("diffusers",), help="measure it too, and print the ratios")
    told = "; ".join(f"{part}: {measure.__doc__}" for part, measure in PARTS.items())
    add("--parts", nargs="+", choices=PARTS, metavar="P", help=f"default: all. {told}")
    add("--weights", type=Path, metavar="FOLDER", help="a diffusers folder; default: random ones")
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda or mps; default cpu")
    add("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    add("--side", type=int, metavar="N", help="latents of N x N; default 64, run on a CPU 32")
    add("--batch", type=int, default=1, metavar="N", help="pictures at a time; default 1")
    add("--steps", type=int, default=20, metavar="N", help="DDIM steps of a run; default 20")
    add("--rounds", type=int, default=3, metavar="N", help="turns of each; default 3")
    add("--threads", type=int, metavar="N", help="CPU threads; default torch's own")
    args = p.parse_args(argv)
    args.parts = args.parts or [part for part in PARTS if args.against or part != "agree"]
    for name in ("side", "batch", "steps", "rounds", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise SettingsError(f"--{name} {value} is not possible; give 1 or more.")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)
    import torch

    from dnp.sd.device import choose_device

    args.device = str(choose_device(args.device))
    if args.dtype != "float32" and args.device.startswith("cpu"):
        raise SettingsError(f"{args.dtype} on a CPU is slow and coarse; leave --dtype out.")
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
            for cells in PARTS[part](args):
                print(f"| {' | '.join(cells)} |", flush=True)
        print(f"\nmatrix product again: {matrix_rate(args.device):,.0f} GFLOP/s")


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
    """The machine, the settings, and the head of the table."""
    import torch

    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else processor()
    versions = [f"torch {torch.__version__}"]
    if args.against:
        import diffusers

        versions += [f"diffusers {diffusers.__version__}"]
    return [
        f"{name}, {torch.get_num_threads()} threads, {', '.join(versions)}, {args.dtype}, medians "
        f"of {args.rounds}",
        f"matrix product 2048 x 2048, float32: {matrix_rate(args.device):,.0f} GFLOP/s",
        "",
        "| part | dnp | diffusers | ratio | diffusers tuned | ratio |",
        "|---|---|---|---|---|---|",
    ]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def matrix_rate(device: str) -> float:
    """GFLOP/s of a float32 matrix product, median of 9."""
    import torch

    n = 2048
    a = torch.randn(n, n, device=device)
    times = [seconds(lambda: a @ a, device) for _ in range(10)][1:]
    return 2 * n**3 / statistics.median(times) / 1e9


def seconds(make: Callable[[], object], device: str) -> float:
    """Wall time of one call, finished on its device; the mean of many if it is short."""
    import torch

    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(
        device.split(":")[0], lambda: None
    )

    def measure(times: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(times):
            make()
        wait()
        return (time.perf_counter() - start) / times

    took = measure(1)
    return took if took > 0.1 else measure(math.ceil(0.1 / took))


def medians(measures: dict[str, Callable[[], float]], args: argparse.Namespace) -> dict[str, float]:
    """The median of what each measures, after one turn for warmth; they take turns."""
    got = [{name: measure() for name, measure in measures.items()} for _ in range(args.rounds + 1)]
    return {name: statistics.median(turn[name] for turn in got[1:]) for name in measures}


def row(what: str, values: dict[str, float], unit: str = "s") -> list[str]:
    """A row of the table: ours, theirs and the ratios, where theirs were measured."""

    def told(value: float) -> str:
        if unit == "MB":
            return f"{value:,.0f} MB"
        return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.{2 if value < 0.01 else 0}f} ms"

    cells = [what, told(values["dnp"])]
    for name in ("diffusers", "tuned"):
        there = name in values
        cells += [told(values[name]), f"{values['dnp'] / values[name]:.2f}"] if there else ["", ""]
    return cells


# ---------------------------------------------------------------------------------------- weights


def write_random_weights(folder: Path) -> None:
    """A folder of Stable Diffusion 1.5's size with torch's own random initial weights."""
    import torch
    from safetensors.torch import save_file

    from dnp.sd import single_file
    from dnp.sd.clip import CLIPTextModel
    from dnp.sd.config import TextConfig, UNetConfig, VAEConfig
    from dnp.sd.unet import UNet
    from dnp.sd.vae import VAE

    free = shutil.disk_usage(folder).free
    if free < 5e9:
        raise SettingsError(
            f"{folder} has {free / 1e9:.1f} GB free and the random weights take 4.3; set TMPDIR to "
            "a larger disk, or give --weights FOLDER."
        )
    torch.manual_seed(0)
    for part, config in SD1.items():
        (folder / part).mkdir()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps(config))
    for part, build, kind in (
        ("text_encoder", CLIPTextModel, TextConfig),
        ("unet", UNet, UNetConfig),
        ("vae", VAE, VAEConfig),
    ):
        network = build(kind.from_dict(SD1[part])).requires_grad_(False)
        for name, p in network.named_parameters():
            if "embedding.weight" in name:
                p.normal_(std=0.02)
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        path = folder / part / f"{stem}.safetensors"
        save_file(network.state_dict(), path, metadata={"format": "pt"})
    single_file.clip_tokenizer(TextConfig()).save_pretrained(folder / "tokenizer")
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.35.0", **CLASSES}
    (folder / "model_index.json").write_text(json.dumps(index))


def open_dnp(args: argparse.Namespace):
    import torch

    import dnp
    from dnp.sd import speed

    model = dnp.load(args.weights, args.device, getattr(torch, args.dtype))
    speed.apply(model)
    return model


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


# ------------------------------------------------------------------------- what each is asked to do


def noise(args: argparse.Namespace, channels: int, count: int, side: int):
    import torch

    z = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))
    return z.to(args.device, getattr(torch, args.dtype))


def calls(name: str, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Opens the weights; what dnp, diffusers or tuned can be asked to do with them."""
    import torch

    opened = open_dnp(args) if name == "dnp" else open_diffusers(args)
    unet, vae = opened.unet, opened.vae
    config = opened.config.unet if name == "dnp" else unet.config
    if name == "tuned":
        unet.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
    z = noise(args, config.in_channels, 2 * args.batch, args.side or 64)
    width = config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    context = torch.randn(len(z), 77, width).to(z)
    t = torch.tensor(500, device=z.device)
    latent = z[:1].to(vae.post_quant_conv.weight.dtype)
    run = run_dnp if name == "dnp" else run_diffusers
    guard = torch.inference_mode if name == "tuned" else torch.no_grad
    return {
        "unet": guard()(lambda: unet(z, t, context)),
        "decode": guard()(lambda: vae.decode(latent)),
        "run": lambda: run(opened, args, _run_side(args), args.steps),
    }


def run_dnp(model, args: argparse.Namespace, side: int, steps: int) -> None:
    import dnp

    pixels = side * model.config.vae.factor
    dnp.generate(model, PROMPT, s=7.5, steps=steps, images=args.batch, size=(pixels, pixels))


def run_diffusers(pipe, args: argparse.Namespace, side: int, steps: int) -> None:
    pixels = side * pipe.vae_scale_factor
    pipe(
        PROMPT, guidance_scale=7.5, num_inference_steps=steps, height=pixels, width=pixels,
        num_images_per_prompt=args.batch,
    )  # fmt: skip


def _run_side(args: argparse.Namespace) -> int:
    return args.side or (32 if args.device.startswith("cpu") else 64)


def peak_megabytes() -> float:
    """The most resident memory that this process had."""
    try:  # on Linux ru_maxrss may be a parent's
        told = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", told)[1]) * 1024 / 1e6
    except (OSError, TypeError):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, else KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _answer(name: str, args: argparse.Namespace, line) -> None:
    """A contestant's process: to each question on the line, seconds, megabytes or what is wrong."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    if name == "dnp":  # imports are not loading
        from transformers import CLIPTokenizer  # noqa: F401

        import dnp.sd.model  # noqa: F401
    else:
        require_diffusers()
        from diffusers import DDIMScheduler, StableDiffusionPipeline  # noqa: F401
        from transformers import CLIPTextModel  # noqa: F401

    warnings.simplefilter("ignore")  # few steps start low; diffusers renames torch_dtype
    can: dict[str, Callable[[], object]] = {}
    while True:
        try:
            question = line.recv()
        except EOFError:  # no more questions
            return
        try:
            if question in ("load", "first", "memory"):
                line.send(_open(name, args, question))
            else:
                can = can or calls(name, args)
                line.send(seconds(can[question], args.device))
        except DnpError as e:
            line.send(str(e))
        except Exception as e:  # another library's, or no memory
            reason = str(e).strip().split("\n")[0][:300] or type(e).__name__
            line.send(f"{name} cannot do {question} with these settings ({reason}); change them.")


def _open(name: str, args: argparse.Namespace, question: str) -> float:
    """Seconds to load the weights, or to load and run 1 step; or the peak with 2 steps."""
    start = time.perf_counter()
    opened = open_dnp(args) if name == "dnp" else open_diffusers(args)
    if question != "load":
        run = run_dnp if name == "dnp" else run_diffusers
        run(opened, args, args.side or 32, 1 if question == "first" else 2)
    return peak_megabytes() if question == "memory" else time.perf_counter() - start


class Contestant:
    """dnp, diffusers or tuned in a process of its own, where settings of one are not another's."""

    def __init__(self, name: str, args: argparse.Namespace):
        context = get_context("spawn")
        self.name, (self.line, other) = name, context.Pipe()
        self.process = context.Process(target=_answer, args=(name, args, other), daemon=True)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks: inherited
        self.process.start()
        signal.signal(signal.SIGINT, before)
        other.close()

    def __call__(self, question: str) -> float:
        try:
            self.line.send(question)
            told = self.line.recv()
        except (EOFError, OSError):
            self.process.join()
            raise SettingsError(
                f"{self.name} ended with {self.process.exitcode} while its {question} was "
                "measured; what it printed above says why."
            ) from None
        if isinstance(told, str):
            raise SettingsError(told)
        return told

    def __enter__(self):
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.line.close()
        if error:
            self.process.terminate()
        self.process.join()


def in_turn(question: str, args: argparse.Namespace, *names: str) -> dict[str, float]:
    """The median of each one's answers, after one for warmth; they take turns."""
    with ExitStack() as stack:
        asked = {n: stack.enter_context(Contestant(n, args)) for n in _present(args, names)}
        return medians({n: partial(ask, question) for n, ask in asked.items()}, args)


def in_new_processes(question: str, args: argparse.Namespace) -> dict[str, float]:
    """The same, with a new process for each answer; the first turn warms the disk."""

    def ask(name: str) -> float:
        with Contestant(name, args) as contestant:
            return contestant(question)

    names = _present(args, ("dnp", "diffusers"))
    return medians({n: partial(ask, n) for n in names}, args)


def _present(args: argparse.Namespace, names: Sequence[str]) -> list[str]:
    return [n for n in names if n == "dnp" or args.against]


# ------------------------------------------------------------------------------------------- parts


def _agree(args: argparse.Namespace) -> Iterator[list[str]]:
    """the greatest differences between our numbers and diffusers'"""
    import torch

    if not args.against:
        raise SettingsError("the part agree compares with diffusers; add --against diffusers.")
    model, pipe = open_dnp(args), open_diffusers(args)
    z = noise(args, model.config.unet.in_channels, 1, args.side or 32)
    t = torch.tensor(500, device=model.device)
    with torch.no_grad():
        context = model.encode([PROMPT])
        length = context.shape[1]
        ids = pipe.tokenizer(PROMPT, padding="max_length", max_length=length, truncation=True)
        theirs = pipe.text_encoder(torch.tensor([ids.input_ids], device=model.device))[0]
        pixels = model.vae.decode(z.to(model.vae.post_quant_conv.weight.dtype))
        for what, ours, other in (
            ("text encoder", context, theirs),
            ("U-Net", model.unet(z, t, context), pipe.unet(z, t, context).sample),
            ("VAE decode", pixels, pipe.vae.decode(z).sample),
        ):
            error = (ours.float() - other.float()).abs().max() / other.float().abs().max()
            yield [f"{what}: greatest difference / greatest value", f"{error:.1e}", "", "", "", ""]


def _unet(args: argparse.Namespace) -> Iterator[list[str]]:
    """one forward of the U-Net, two conditions for each picture"""
    side, n = args.side or 64, 2 * args.batch
    values = in_turn("unet", args, "dnp", "diffusers", "tuned")
    yield row(f"U-Net forward, batch {n}, latents {side} x {side}", values)


def _decode(args: argparse.Namespace) -> Iterator[list[str]]:
    """the VAE's decoder"""
    side = args.side or 64
    values = in_turn("decode", args, "dnp", "diffusers", "tuned")
    yield row(f"VAE decode, latents {side} x {side}", values)


def _run(args: argparse.Namespace) -> Iterator[list[str]]:
    """prompt to pictures with CFG"""
    side = _run_side(args)
    values = in_turn("run", args, "dnp", "diffusers")
    told = f"a picture, CFG, {args.steps} steps, latents {side} x {side}, batch {args.batch}"
    yield row(told, {name: t / args.batch for name, t in values.items()})


def _rule(args: argparse.Namespace) -> Iterator[list[str]]:
    """the guidance rule alone, as a share of one step"""
    import torch

    from dnp import guidance

    model = open_dnp(args)
    side, channels = args.side or 64, model.config.unet.in_channels
    t = torch.tensor(500, device=model.device)
    for name, rule, k in (
        ("CFG", guidance.cfg, 2),
        ("negative prompt", guidance.negative_prompt, 3),
        ("DNS", guidance.dns, 2),
    ):
        z = noise(args, channels, k * args.batch, side)
        eps, context = z.chunk(k), model.encode([PROMPT] * k * args.batch)
        with torch.no_grad():
            both = {"rule": partial(rule, *eps, 7.5), "step": partial(model.unet, z, t, context)}
            took = medians({n: partial(seconds, c, args.device) for n, c in both.items()}, args)
        share = took["rule"] / (took["rule"] + took["step"])
        told = f"{1e6 * took['rule']:.0f} us, {share:.3%} of a step"
        yield [f"the rule alone, {name}", told, "", "", "", ""]


def _load(args: argparse.Namespace) -> Iterator[list[str]]:
    """opening the weights from a warm disk, without and with the first step of a run"""
    yield row("load", in_new_processes("load", args))
    side = args.side or 32
    told = f"load and a run of 1 step, latents {side} x {side}"
    yield row(told, in_new_processes("first", args))


def _memory(args: argparse.Namespace) -> Iterator[list[str]]:
    """peak resident memory of loading and a run of 2 steps"""
    side = args.side or 32
    told = f"peak memory, load and 2 steps, latents {side} x {side}"
    yield row(told, in_new_processes("memory", args), "MB")


def _import(args: argparse.Namespace) -> Iterator[list[str]]:
    """import dnp against import diffusers"""

    def start(module: str) -> None:
        command = [sys.executable, "-c", f"import {module}"]
        subprocess.run(command, check=True, start_new_session=True)  # Ctrl-C is for who asks

    names = _present(args, ("dnp", "diffusers"))
    yield row(
        "import", medians({n: partial(seconds, partial(start, n), "cpu") for n in names}, args)
    )


PARTS = {
    "agree": _agree, "unet": _unet, "run": _run, "decode": _decode, "rule": _rule, "load": _load,
    "memory": _memory, "import": _import,
}  # fmt: skip


if __name__ == "__main__":
    run(main, "interrupted; nothing is left behind.")

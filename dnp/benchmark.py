"""Times and memory of this package and of diffusers, on the same weights and in the same setting.

    python -m dnp.benchmark                                    # Stable Diffusion 1.5's size
    python -m dnp.benchmark --against diffusers                # ... and ratios
    python -m dnp.benchmark --against diffusers --weights weights/mini --side 16
    python -m dnp.benchmark --against diffusers --dtype bfloat16 --side 32 --parts agree unet

Each contestant has a process of its own, and they take turns, in both directions:

    bare       this package as `dnp.load` opens the weights
    dnp        with the measures of `dnp/sd/speed.py`, as the commands have it
    diffusers  diffusers as it comes
    kept       diffusers in a process that keeps its freed memory, as ours does on Linux

A cell is the least of the turns and their median; a ratio is dnp's least over theirs, so below 1 is
in our favour. Ratios hold for the processor that is named above the table. Without --weights,
random weights of the full size are written to a temporary folder (4.3 GB). In half precision our
VAE, and on a CPU our text encoder, stay in float32; theirs do not.
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
CONTESTANTS = ("bare", "dnp", "diffusers", "kept")
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
    add("--threads", type=int, metavar="N", help="CPU threads of each; default torch's own")
    args = p.parse_args(argv)
    args.parts = args.parts or [part for part in PARTS if args.against or part != "agree"]
    for name in ("side", "batch", "steps", "rounds", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise SettingsError(f"--{name} {value} is not possible; give 1 or more.")
    args.contestants = CONTESTANTS if args.against else ("bare", "dnp")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    import torch

    from dnp.sd.device import choose_device, choose_dtype

    device = choose_device(args.device)
    choose_dtype(args.dtype, device)  # refused before anything is measured
    args.device = str(device)
    args.run_side = args.side or (32 if device.type == "cpu" else 64)
    args.side = args.side or 64
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
        import diffusers

        versions += f", diffusers {diffusers.__version__}"
    with Contestant("dnp", args) as contestant:
        measures = contestant("measures")
    with_units = {d: f"{matrix_rate(args.device, d):,.0f}" for d in {"float32", args.dtype}}
    rates = ", ".join(f"{d} {rate} GFLOP/s" for d, rate in sorted(with_units.items()))
    return [
        f"{name}, {torch.get_num_threads()} threads, {versions}, {args.dtype}; least / median of "
        f"{args.rounds}",
        f"matrix product 2048 x 2048: {rates}",
        f"speed.apply: {'; '.join(measures) or 'nothing on this device'}",
        "",
        f"| part | {' | '.join(args.contestants)} | dnp / bare | dnp / diffusers | dnp / kept |",
        f"|{'---|' * (len(args.contestants) + 4)}",
    ]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def matrix_rate(device: str, dtype: str) -> float:
    """GFLOP/s of a matrix product, the best of 9."""
    import torch

    n = 2048
    a = torch.randn(n, n, device=device).to(getattr(torch, dtype))
    return 2 * n**3 / min(seconds(lambda: a @ a, device) for _ in range(9)) / 1e9


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


def row(what: str, turns: dict[str, list[float]], unit: str = "s") -> list[str]:
    """A row of the table: each one's least and median, and the ratios of the least."""

    def told(values: list[float]) -> str:
        least, middle = min(values), statistics.median(values)
        if unit == "MB":
            return f"{least:,.0f} MB"
        scale, unit_of = (1, "s") if least >= 1 else (1000, "ms")
        return f"{scale * least:.2f} / {scale * middle:.2f} {unit_of}"

    others = [name for name in ("bare", "diffusers", "kept") if name in turns]
    ratios = [f"{min(turns['dnp']) / min(turns[name]):.2f}" for name in others]
    return [what, *(told(values) for values in turns.values()), *ratios]


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

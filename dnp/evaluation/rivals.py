"""What the benchmark of speed compares: what each side opens and does, in its own process."""

from __future__ import annotations

import argparse
import math
import re
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from multiprocessing import get_context
from pathlib import Path

from dnp.errors import DnpError, SettingsError

PROMPT = "a photo of a cat and a dog"


def require_diffusers() -> None:
    try:
        import diffusers
    except ImportError:
        raise SettingsError(
            "diffusers is not installed; pip install -r requirements-test.txt, or leave --against "
            "out."
        ) from None
    import transformers

    for library in (diffusers, transformers):  # what they tell is not part of the table
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


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
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6
    except (OSError, TypeError):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, else KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def answer(name: str, args: argparse.Namespace, line) -> None:
    """A contestant's process: to each question on the line, its answer or the error."""
    import torch

    import dnp.sd.load  # noqa: F401  (imports are not loading)

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
            sentence = f"{name} cannot do {question} with these settings ({reason}); change them."
            line.send(SettingsError(sentence))


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
            answer = self.line.recv()
        except (EOFError, OSError):
            self.process.join()
            raise SettingsError(
                f"{self.name} ended with {self.process.exitcode} while its {question} was "
                "measured; what it printed above says why."
            ) from None
        if isinstance(answer, DnpError):
            raise answer
        return answer

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

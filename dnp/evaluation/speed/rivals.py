"""What the benchmark of speed compares: what each side opens and does, in its own process."""

from __future__ import annotations

import argparse
import gc
import json
import math
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dnp.errors import SettingsError

PROMPT = "a photo of a cat and a dog"
OURS = "bare", "dnp"
ENOUGH = 0.1  # seconds; what is shorter is measured many times


class Cell(NamedTuple):
    """What is measured of each side in one row of the table."""

    part: str
    size: str  # the name of a folder of weights
    dtype: str
    compiled: bool = False  # the U-Net by torch.compile
    batch: int = 1


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


def open_dnp(folder: Path, device: str, dtype: str):
    import torch

    import dnp

    return dnp.load(folder, device, getattr(torch, dtype))


def open_diffusers(folder: Path, device: str, dtype: str):
    """diffusers' pipeline with DDIM, as it comes."""
    import diffusers
    import torch

    try:
        xl = "XL" in json.loads((folder / "model_index.json").read_text())["_class_name"]
        kind = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
        few = {"safety_checker": None, "requires_safety_checker": False}
        fp16 = (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
        whole = (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()
        pipe = kind.from_pretrained(
            folder, torch_dtype=getattr(torch, dtype), local_files_only=True,
            use_safetensors=True, variant="fp16" if fp16 and not whole else None,
            feature_extractor=None, **({"add_watermarker": False} if xl else few),
        )  # fmt: skip
    except Exception as e:  # diffusers and transformers raise whatever comes
        reason = str(e).split("\n")[0][:300] or type(e).__name__
        raise SettingsError(
            f"diffusers cannot open {folder} ({reason}); give a folder in its layout, with "
            "model_index.json, or leave --against out."
        ) from None
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def seconds(make: Callable[[], object], args: argparse.Namespace) -> float:
    """The time of one call, finished on its device; the mean of many within `ENOUGH` seconds."""
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
    return took if took > ENOUGH else measure(math.ceil(ENOUGH / max(took, 1e-6)))


def side_of(unet, args: argparse.Namespace) -> int:
    """The latents' height and width: as trained, on a CPU at most 32."""
    trained = max(unet.sample_size)
    return args.side or (min(trained, 32) if args.device.startswith("cpu") else trained)


def noise(device: str, *shape: int):
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)


def picture(model, batch: int, side: int, steps: int):
    """`batch` pictures of the prompt, by one of our models or one of diffusers' pipelines."""
    import dnp

    if hasattr(model, "vae_scale_factor"):
        pixels = side * model.vae_scale_factor
        return model(
            PROMPT, guidance_scale=7.5, num_inference_steps=steps, height=pixels, width=pixels,
            num_images_per_prompt=batch,
        ).images  # fmt: skip
    kw = {"size": (side * model.config.vae.factor,) * 2, "batch": batch if batch > 1 else None}
    return dnp.generate(model, PROMPT, s=7.5, steps=steps, images=batch, **kw).images


class Rival:
    """A side in its process: `rival(what, cell, steps)` does a part, and says seconds or MB."""

    def __init__(self, name: str, args: argparse.Namespace):
        import torch

        import dnp.sd.load  # noqa: F401  (imports are not loading)

        if args.threads:
            torch.set_num_threads(args.threads)
        if name not in OURS:
            require_diffusers()
            from diffusers import (  # noqa: F401
                DDIMScheduler,
                StableDiffusionPipeline,
                StableDiffusionXLPipeline,
            )
        from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

        self.name, self.args, self.model, self.opened = name, args, None, None

    def __call__(self, what: str, cell: Cell, steps: int = 0) -> object:
        import torch

        if what == "rest":  # the others need the memory
            gc.collect()
            return torch.cuda.empty_cache() if torch.cuda.is_available() else None
        if self.opened != cell[1:4]:
            self.opened = None
            self.open(cell)
            self.opened = cell[1:4]
        with torch.no_grad():
            return getattr(self, what)(cell, steps)

    def open(self, cell: Cell) -> None:
        import torch

        from dnp.sd import speed
        from dnp.sd.files import folder

        path, self.model, ours = self.args.folders[cell.size], None, self.name in OURS
        self("rest", cell)
        self.of = folder.read(path)
        self.side = side_of(self.of.unet, self.args)
        start = time.perf_counter()
        self.model = (open_dnp if ours else open_diffusers)(path, self.args.device, cell.dtype)
        self.took = time.perf_counter() - start
        self.measures_taken = speed.apply(self.model) if self.name == "dnp" else []
        if self.name in ("kept", "channels_last"):
            speed.keep_freed_memory()
        if self.name == "channels_last":
            for network in (self.model.unet, self.model.vae):
                network.to(memory_format=torch.channels_last)
        if cell.compiled:
            torch._dynamo.reset()
            # a program of its own for each batch
            self.model.unet.compile(dynamic=False, backend=self.args.compile)

    def measures(self, *_: object) -> list[str]:
        return self.measures_taken

    def load(self, *_: object) -> float:
        return self.took

    def unet(self, cell: Cell, _: int) -> float:
        """One forward with two conditions for each picture, called as a run calls it."""
        import torch

        of, unet, k, device = self.of.unet, self.model.unet, 2 * cell.batch, self.args.device
        kind = getattr(torch, cell.dtype)
        z = noise(device, k, of.in_channels, self.side, self.side).to(kind)
        t = torch.tensor(500, device=device)
        context = noise(device, k, self.of.text.max_position_embeddings, of.cross_attention_dim)
        context, added = context.to(kind), ()
        if of.added_dim:
            pooled = noise(device, k, of.added_dim - 6 * of.added_freq_dim).to(kind)
            added = pooled, torch.full((k, 6), 8.0 * self.side, device=device)
        if self.name in OURS:
            return seconds(lambda: unet(z, t, context, *added), self.args)
        also = {"text_embeds": added[0], "time_ids": added[1].to(kind)} if added else None
        return seconds(
            lambda: unet(
                z, t, encoder_hidden_states=context, timestep_cond=None,
                cross_attention_kwargs=None, added_cond_kwargs=also, return_dict=False,
            ),
            self.args,
        )  # fmt: skip

    def decode(self, cell: Cell, _: int) -> float:
        vae = self.model.vae
        z = noise(self.args.device, cell.batch, self.of.unet.in_channels, self.side, self.side)
        z = z.to(vae.post_quant_conv.weight.dtype)
        return seconds(lambda: vae.decode(z), self.args)

    def run(self, cell: Cell, steps: int) -> float:
        make = lambda: picture(self.model, cell.batch, self.side, steps)  # noqa: E731
        return seconds(make, self.args)

    def memory(self, cell: Cell, _: int) -> float:
        picture(self.model, cell.batch, self.side, 2)
        return peak_megabytes(self.args.device)


def peak_megabytes(device: str) -> float:
    """The most memory that this process had: the GPU's where it computes, else resident."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    try:  # on Linux ru_maxrss may be a parent's
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6
    except (OSError, TypeError):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, else KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6

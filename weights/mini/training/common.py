"""What training and export share: the clock and its checkpoints, files, and the networks."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from dnp.sd.clip import CLIPTextModel  # noqa: E402
from dnp.sd.config import MINI_TEXT, MINI_UNET  # noqa: E402
from dnp.sd.unet import UNet  # noqa: E402

CHECKPOINT_EVERY = 120.0  # seconds


class Trainer:
    """Model, its exponential moving average, AdamW, the clock, and their checkpoint."""

    def __init__(self, model: nn.Module, path: Path, args: Namespace, lr: float, ema: float):
        """`args` holds --minutes, the budget of the whole run, and --resume."""
        self.model, self.path, self.lr, self.decay = model, path, lr, ema
        self.budget = args.minutes * 60
        self.trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=lr, betas=(0.9, 0.99))
        self.ema = {
            k: v.detach().clone() for k, v in model.state_dict().items() if v.is_floating_point()
        }
        self.step, self.seconds = 0, 0.0
        if path.exists() and not args.resume:
            told = f"error: {path} is there already; add --resume to go on, or another --out."
            print(told, file=sys.stderr)
            sys.exit(2)
        if path.exists():
            self.load()

    def load(self) -> None:
        with safe_open(self.path, "pt") as f:
            meta = f.metadata()
        tensors = load_file(self.path)
        part = {
            p: {k[len(p) + 1 :]: v for k, v in tensors.items() if k.startswith(p + ".")}
            for p in ("model", "ema", "m", "v")
        }
        self.model.load_state_dict(part["model"])
        device = next(self.model.parameters()).device
        self.ema = {k: v.to(device) for k, v in part["ema"].items()}
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        for name, p in self.trained.items():
            moments = {
                "exp_avg": part["m"][name].to(device),
                "exp_avg_sq": part["v"][name].to(device),
            }
            self.optimizer.state[p] = {"step": torch.tensor(float(self.step)), **moments}
        print(f"resumed {self.path} at step {self.step}, {self.seconds / 60:.1f} minutes")

    def save(self) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.items()}
        for name, p in self.trained.items():
            state = self.optimizer.state[p]
            tensors |= {f"m.{name}": state["exp_avg"], f"v.{name}": state["exp_avg_sq"]}
        meta = {"step": str(self.step), "seconds": str(self.seconds)}
        copies = {
            k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()
        }  # none shared
        write(self.path, copies, meta)

    def run(self, loss_at: Callable[[int, float], Tensor], log: Path) -> None:
        """Steps until the budget is spent. `loss_at(step, progress)` gives the loss of a step."""
        bar = tqdm(total=round(self.budget), initial=round(self.seconds), unit="s")
        last_save, mean = time.monotonic(), None
        while self.seconds < self.budget:
            start, progress = time.monotonic(), self.seconds / self.budget
            warm = min(1.0, (self.step + 1) / 200)
            for group in self.optimizer.param_groups:
                group["lr"] = warm * self.lr * (0.5 + 0.5 * math.cos(math.pi * progress))
            self.optimizer.zero_grad(set_to_none=True)
            loss = loss_at(self.step, progress)
            loss.backward()
            nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
            self.optimizer.step()
            decay = min(self.decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                state = self.model.state_dict()
                torch._foreach_lerp_(
                    list(self.ema.values()), [state[k] for k in self.ema], 1 - decay
                )
            self.step += 1
            mean = loss.item() if mean is None else 0.99 * mean + 0.01 * loss.item()
            self.seconds += time.monotonic() - start
            bar.update(round(self.seconds) - bar.n)
            if self.step % 50 == 0 or self.seconds >= self.budget:
                bar.set_postfix_str(f"step {self.step} loss {mean:.4f}")
                row = {"step": self.step, "minutes": round(self.seconds / 60, 2), "loss": mean}
                with log.open("a") as f:
                    f.write(json.dumps(row) + "\n")
            if time.monotonic() - last_save > CHECKPOINT_EVERY or self.seconds >= self.budget:
                self.save()
                last_save = time.monotonic()


def write(path: Path, tensors: dict[str, Tensor], meta: dict[str, str] | None = None) -> None:
    """safetensors under a temporary name, then renamed: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    save_file(tensors, temporary, metadata={"format": "pt", **(meta or {})})
    os.replace(temporary, path)


def load_ema(model: nn.Module, path: Path) -> nn.Module:
    tensors = load_file(path)
    model.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    return model


def take(warm: Path, out: Path) -> None:
    """Checkpoints of the parts that a U-Net needs and that stay as a folder has them."""
    parts = {"vae": ("vae/diffusion_pytorch_model", "ema."), "clip": ("clip/model", "ema.model.")}
    for part, (file, prefix) in parts.items():
        if not (out / f"{part}.safetensors").exists():
            tensors = load_file(warm / f"{file}.safetensors")
            tensors = {prefix + k: v.float() for k, v in tensors.items()}
            write(out / f"{part}.safetensors", tensors)


def tokenizer():
    from transformers import CLIPTokenizer

    length = MINI_TEXT.max_position_embeddings
    return CLIPTokenizer.from_pretrained(HERE.parent / "tokenizer", model_max_length=length)


def text_tower(path: Path, vocab_size: int) -> CLIPTextModel:
    """The text tower of a checkpoint of `train.py clip`: the U-Net's text encoder."""
    text = CLIPTextModel(replace(MINI_TEXT, vocab_size=vocab_size))
    start = "ema.model.text_model."
    tensors = load_file(path)
    text.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if start in k})
    return text.requires_grad_(False)


def new_unet() -> UNet:
    """Every residual branch starts as the identity (Dhariwal and Nichol, arXiv:2105.05233)."""
    unet = UNet(MINI_UNET)
    for name, p in unet.named_parameters():
        if name.endswith(("conv2.weight", "proj_out.weight", "conv_out.weight")):
            nn.init.zeros_(p)
    return unet

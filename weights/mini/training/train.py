"""Trains the miniature with this project's own networks: the VAE, then text encoder and U-Net.

    python weights/mini/training/train.py vae  --minutes 25 --out runs/mini
    python weights/mini/training/train.py unet --minutes 90 --out runs/mini
    python weights/mini/training/train.py export --out runs/mini --to weights/mini

Interrupt at any time and type the same command to go on: `--minutes` is the budget of the whole
run, the learning rate follows a cosine over it, and a checkpoint is written every two minutes.
Batches depend on the seed and the step alone. Checkpoints are safetensors; no network is used.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2])]

import world  # noqa: E402
from dnp.schedule import Schedule  # noqa: E402
from dnp.sd.clip import CLIPTextModel  # noqa: E402
from dnp.sd.config import MINI_TEXT, MINI_UNET, MINI_VAE  # noqa: E402
from dnp.sd.unet import UNet  # noqa: E402
from dnp.sd.vae import VAE  # noqa: E402

SCENES = 60_000
CHECKPOINT_EVERY = 120.0  # seconds
ATTENTION = F.scaled_dot_product_attention


class Trainer:
    """Model, its exponential moving average, AdamW, the clock, and their checkpoint."""

    def __init__(self, model: nn.Module, path: Path, minutes: float, lr: float, ema: float):
        self.model, self.path, self.budget, self.lr, self.decay = model, path, minutes * 60, lr, ema
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99))
        self.ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.step, self.seconds = 0, 0.0
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
        for name, p in self.model.named_parameters():
            moments = {
                "exp_avg": part["m"][name].to(device),
                "exp_avg_sq": part["v"][name].to(device),
            }
            self.optimizer.state[p] = {"step": torch.tensor(float(self.step)), **moments}
        print(f"resumed {self.path} at step {self.step}, {self.seconds / 60:.1f} minutes")

    def save(self) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.items()}
        for name, p in self.model.named_parameters():
            state = self.optimizer.state[p]
            tensors |= {f"m.{name}": state["exp_avg"], f"v.{name}": state["exp_avg_sq"]}
        meta = {"step": str(self.step), "seconds": str(self.seconds)}
        write(self.path, {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, meta)

    def run(self, loss_at: callable, log: Path) -> None:
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
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
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
            if self.step % 50 == 0:
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


def scenes(out: Path, seed: int) -> tuple[np.ndarray, list]:
    """The training scenes and their pixels (N, 64, 64, 3), rendered once and kept in `out`."""
    path = out / f"scenes-{SCENES}-{seed}.npy"
    if not path.exists():
        images, _, all_scenes = world.dataset(SCENES, seed)
        out.mkdir(parents=True, exist_ok=True)
        np.save(path.with_suffix(".partial.npy"), images, allow_pickle=False)
        os.replace(path.with_suffix(".partial.npy"), path)
        return images, all_scenes
    all_scenes = [world.scene_at(seed, i)[0] for i in range(SCENES)]
    return np.load(path, allow_pickle=False), all_scenes


def pixels(images: np.ndarray, device: str) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------------ VAE


def train_vae(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    vae = VAE(MINI_VAE).to(args.device, memory_format=torch.channels_last)
    images, _ = scenes(args.out, args.seed)
    trainer = Trainer(vae, args.out / "vae.safetensors", args.minutes, lr=3e-3, ema=0.999)

    def loss_at(step: int, progress: float) -> Tensor:
        rng = np.random.default_rng((args.seed, 1, step))
        whole = progress > 0.9  # crops first: four times as many different edges for the same time
        size, count = (64, 12) if whole else (32, 48)
        rows = rng.integers(0, len(images), count)
        corners = rng.integers(0, 64 - size + 1, (count, 2))
        crops = np.stack(
            [images[r, y : y + size, x : x + size] for r, (y, x) in zip(rows, corners)]
        )
        x = pixels(crops, args.device)
        mean, logvar = vae.encode(x)
        noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32)).to(args.device)
        y = vae.decode(mean + (0.5 * logvar).exp() * noise)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1).mean()
        edges = sum((torch.diff(y, dim=d) - torch.diff(x, dim=d)).abs().mean() for d in (2, 3))
        return (y - x).abs().mean() + 2 * F.mse_loss(y, x) + edges + 1e-4 * kl

    trainer.run(loss_at, args.out / "vae.jsonl")
    vae.load_state_dict(trainer.ema)
    images = world.dataset(500, args.seed + 1, split="held-out")[0]
    with torch.inference_mode():
        x = pixels(images, args.device)
        mse = ((vae.decode(vae.encode(x)[0]).clamp(-1, 1) - x) ** 2).mean((1, 2, 3))
    print(f"held-out scenes: {(10 * torch.log10(4 / mse)).mean():.2f} dB PSNR")


# ------------------------------------------------------------------------- text encoder and U-Net


@torch.inference_mode()
def latents(args: argparse.Namespace, images: np.ndarray) -> tuple[Tensor, Tensor, float]:
    """Posterior mean and std of every scene, both scaled to unit standard deviation, and 1/std."""
    path = args.out / "latents.safetensors"
    if not path.exists():
        vae = load_ema(VAE(MINI_VAE), args.out / "vae.safetensors").to(args.device)
        vae = vae.to(memory_format=torch.channels_last)
        batches = [
            [h.cpu() for h in vae.encode(pixels(images[i : i + 200], args.device))]
            for i in tqdm(range(0, len(images), 200), desc="encoding", unit="batch")
        ]
        mean, logvar = (torch.cat(parts) for parts in zip(*batches))
        write(path, {"mean": mean.contiguous(), "std": (0.5 * logvar).exp().contiguous()})
    cached = load_file(path)
    scale = 1 / cached["mean"].std().item()
    return cached["mean"] * scale, cached["std"] * scale, scale


def load_ema(model: nn.Module, path: Path) -> nn.Module:
    tensors = load_file(path)
    model.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    return model


def tokenizer():
    from transformers import CLIPTokenizer

    length = MINI_TEXT.max_position_embeddings
    return CLIPTokenizer.from_pretrained(HERE.parent / "tokenizer", model_max_length=length)


def networks(vocab_size: int) -> nn.ModuleDict:
    """Text encoder and U-Net with CLIP's and diffusion's usual initialisation."""
    text = CLIPTextModel(MINI_TEXT.__class__(**{**MINI_TEXT.__dict__, "vocab_size": vocab_size}))
    nn.init.normal_(text.embeddings["token_embedding"].weight, std=0.02)
    nn.init.normal_(text.embeddings["position_embedding"].weight, std=0.01)
    unet = UNet(MINI_UNET)
    for name, p in unet.named_parameters():  # every residual branch starts as the identity
        if name.endswith(("conv2.weight", "proj_out.weight", "conv_out.weight")):
            nn.init.zeros_(p)
    return nn.ModuleDict({"text": text, "unet": unet})


def attention_in_float32(q: Tensor, k: Tensor, v: Tensor, **kw) -> Tensor:
    """On a CPU the bfloat16 backward pass of attention is slow: a step takes 1.4 times as long."""
    with torch.autocast("cpu", enabled=False):
        return ATTENTION(q.float(), k.float(), v.float(), **kw).to(q.dtype)


def train_unet(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    images, all_scenes = scenes(args.out, args.seed)
    mean, std, scale = latents(args, images)
    del images
    tok = tokenizer()
    model = networks(len(tok)).to(args.device, memory_format=torch.channels_last)
    trainer = Trainer(model, args.out / "unet.safetensors", args.minutes, lr=args.lr, ema=0.999)
    schedule = Schedule.stable_diffusion()
    abar = schedule.abar.float()
    snr_weight = (abar / (1 - abar)).clamp(max=5) * (1 - abar) / abar  # min-SNR, gamma = 5
    if args.device == "cpu":
        F.scaled_dot_product_attention = attention_in_float32

    def loss_at(step: int, progress: float) -> Tensor:
        """Eq. 1 of the paper, min-SNR weighted, with stratified t."""
        rng = np.random.default_rng((args.seed, 2, step))
        rows = rng.integers(0, len(mean), args.batch)
        captions = [world.caption(all_scenes[r], rng) for r in rows]
        captions = ["" if rng.random() < 0.1 else text for text in captions]
        ids = tok(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        strata = (np.arange(args.batch) + rng.random(args.batch)) / args.batch
        t = torch.from_numpy((strata * 1000).astype(np.int64))
        noise = torch.from_numpy(rng.standard_normal((2, *mean[rows].shape), dtype=np.float32))
        z_0 = mean[rows] + std[rows] * noise[0]
        a = abar[t][:, None, None, None]
        z_t = a.sqrt() * z_0 + (1 - a).sqrt() * noise[1]
        z_t = z_t.to(args.device).contiguous(memory_format=torch.channels_last)
        kind = "cuda" if args.device.startswith("cuda") else "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=not args.float32):
            context = model["text"](ids.to(args.device))
            eps = model["unet"](z_t, t.to(args.device), context)
        error = (eps.float().cpu() - noise[1]) ** 2
        return (snr_weight[t] * error.mean((1, 2, 3))).mean()

    (args.out / "scaling_factor.json").write_text(json.dumps(scale))
    trainer.run(loss_at, args.out / "unet.jsonl")


# ----------------------------------------------------------------------------------------- export


def export(args: argparse.Namespace) -> None:
    """The EMA weights as a diffusers folder. U-Net and VAE in float16, the text encoder in float32:
    transformers loads a half-precision text encoder as half, which diffusers' pipeline then mixes
    with a float32 U-Net."""
    tok = tokenizer()
    model = load_ema(networks(len(tok)), args.out / "unet.safetensors")
    vae = load_ema(VAE(MINI_VAE), args.out / "vae.safetensors")
    scale = json.loads((args.out / "scaling_factor.json").read_text())
    save = {
        "unet/diffusion_pytorch_model": (model["unet"], torch.float16, ""),
        "vae/diffusion_pytorch_model": (vae, torch.float16, ""),
        "text_encoder/model": (model["text"], torch.float32, "text_model."),
    }
    for name, (module, dtype, prefix) in save.items():
        tensors = {prefix + k: v.to(dtype).contiguous() for k, v in module.state_dict().items()}
        write(args.to / f"{name}.safetensors", tensors)
    for name, config in configs(tok, scale).items():
        path = args.to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=2) + "\n")
    print(f"wrote {args.to}")


def configs(tok, scale: float) -> dict[str, dict]:
    """Every JSON file of the folder, as diffusers and transformers write them."""
    ends = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id}
    kinds = {True: "CrossAttn{}Block2D", False: "{}Block2D"}
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "DDIMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": False,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "timestep_spacing": "leading",
        },
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            **MINI_TEXT.__dict__,
            "vocab_size": len(tok),
            **ends,
            "pad_token_id": tok.pad_token_id,
            "layer_norm_eps": 1e-5,
            "projection_dim": MINI_TEXT.hidden_size,
        },
        "tokenizer/tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "model_max_length": MINI_TEXT.max_position_embeddings,
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "attention_head_dim": list(MINI_UNET.heads),  # diffusers' name for the number of heads
            "block_out_channels": MINI_UNET.block_out_channels,
            "cross_attention_dim": MINI_UNET.cross_attention_dim,
            "down_block_types": [kinds[a].format("Down") for a in MINI_UNET.down_attention],
            "up_block_types": [kinds[a].format("Up") for a in MINI_UNET.up_attention],
            "in_channels": MINI_UNET.in_channels,
            "out_channels": MINI_UNET.out_channels,
            "layers_per_block": MINI_UNET.layers_per_block,
            "norm_num_groups": MINI_UNET.norm_num_groups,
            "sample_size": MINI_UNET.sample_size,
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL",
            **MINI_VAE.__dict__,
            "down_block_types": ["DownEncoderBlock2D"] * len(MINI_VAE.block_out_channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(MINI_VAE.block_out_channels),
            "sample_size": MINI_UNET.sample_size * MINI_VAE.factor,
            "scaling_factor": scale,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=["vae", "unet", "export"])
    parser.add_argument("--minutes", type=float, default=60, help="wall-clock budget of the part")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="checkpoints and data")
    parser.add_argument("--to", type=Path, default=HERE.parent, help="where export writes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32, help="scenes per step of the U-Net")
    parser.add_argument("--lr", type=float, default=5e-4, help="peak learning rate of the U-Net")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in the U-Net")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    {"vae": train_vae, "unet": train_unet, "export": export}[args.part](args)


if __name__ == "__main__":
    main()

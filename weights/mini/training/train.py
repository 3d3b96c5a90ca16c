"""Trains the miniature with this project's own networks, one part or all.

    python weights/mini/training/train.py all --minutes 240 --out runs/mini   # and exports

    python weights/mini/training/train.py vae --minutes 30 --out runs/mini
    python weights/mini/training/train.py clip --minutes 40 --out runs/mini         # needs nothing
    python weights/mini/training/train.py recogniser --minutes 15 --out runs/mini   # needs nothing
    python weights/mini/training/train.py judge --minutes 8 --out runs/mini         # recogniser
    python weights/mini/training/train.py captioner --minutes 20 --out runs/mini    # vae, clip
    python weights/mini/training/train.py decoder --warm weights/mini --out runs/decoder \\
        --minutes 95 --scenes 40000 --seed 77 --batch 16 --lr 1.5e-3  # the decoder alone
    python weights/mini/training/train.py unet --minutes 120 --out runs/mini        # vae, clip
    python weights/mini/training/train.py export --out runs/mini --to weights/mini  # all

Interrupt at any time and add `--resume` to go on: `--minutes` is the budget of the whole run, the
learning rate follows a cosine over it, and a checkpoint is written every two minutes. Scenes and
batches depend on the seed and the step alone. Checkpoints are safetensors; no network is used.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import world
from common import Trainer, new_unet, take, text_tower, tokenizer
from data import latents, pixels, scenes
from decoder import train_decoder
from dnp.schedule import Schedule
from dnp.sd.config import MINI_VAE
from dnp.sd.vae import VAE
from dnp.training import noise_error
from export import export
from judges import train_judge, train_recogniser
from perception import train_captioner, train_clip

HERE = Path(__file__).resolve().parent
ATTENTION = F.scaled_dot_product_attention


# ------------------------------------------------------------------------------------------ VAE


def train_vae(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    vae = VAE(MINI_VAE)
    if args.warm:
        vae.load_state_dict(load_file(args.warm / "vae" / "diffusion_pytorch_model.safetensors"))
        vae.encoder.requires_grad_(False)  # so that latents and U-Nets made with it stay valid
        vae.quant_conv.requires_grad_(False)
    vae = vae.to(args.device, memory_format=torch.channels_last)
    images, _ = scenes(args.out, args.scenes, args.seed)
    lr = 1e-3 if args.warm else 3e-3
    trainer = Trainer(vae, args.out / "vae.safetensors", args, lr, ema=0.999)

    def loss_at(step: int, progress: float) -> Tensor:
        rng = np.random.default_rng((args.seed, 1, step))
        whole = progress > (
            0.3 if args.warm else 0.9
        )  # crops first: four times as many different edges for the same time
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

    if not args.warm:
        (args.out / "latents.safetensors").unlink(missing_ok=True)  # another VAE's from now on
    trainer.run(loss_at, args.out / "vae.jsonl")
    vae.load_state_dict(trainer.ema)
    images = world.dataset(500, args.seed + 1, split="held-out")[0]
    with torch.inference_mode():
        x = pixels(images, args.device)
        mse = ((vae.decode(vae.encode(x)[0]).clamp(-1, 1) - x) ** 2).mean((1, 2, 3))
    print(f"held-out scenes: {(10 * torch.log10(4 / mse)).mean():.2f} dB PSNR")


# -------------------------------------------------------------------------------------- U-Net


def attention_in_float32(q: Tensor, k: Tensor, v: Tensor, **kw) -> Tensor:
    """On a CPU the bfloat16 backward pass of attention is slow: a step takes 1.4 times as long."""
    with torch.autocast("cpu", enabled=False):
        return ATTENTION(q.float(), k.float(), v.float(), **kw).to(q.dtype)


def train_unet(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    images, all_scenes = scenes(args.out, args.scenes, args.seed)
    if args.warm:
        take(args.warm, args.out)
    mean, std, scale = latents(args, images)
    del images
    tok = tokenizer()
    text = text_tower(args.out / "clip.safetensors", len(tok)).to(args.device)
    unet = new_unet()
    if args.warm:
        unet.load_state_dict(load_file(args.warm / "unet" / "diffusion_pytorch_model.safetensors"))
        known = json.loads((args.warm / "vae" / "config.json").read_text())["scaling_factor"]
        mean, std, scale = mean * known / scale, std * known / scale, known  # as it is used to
    unet = unet.to(args.device, memory_format=torch.channels_last)
    trainer = Trainer(unet, args.out / "unet.safetensors", args, args.lr, ema=args.ema)
    schedule = Schedule.stable_diffusion()
    abar = schedule.abar.float()
    snr_weight = (abar / (1 - abar)).clamp(max=5) * (1 - abar) / abar  # min-SNR, gamma = 5
    if args.device == "cpu":
        F.scaled_dot_product_attention = attention_in_float32

    def eps_fn(z_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        kind = "cuda" if args.device.startswith("cuda") else "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=not args.float32):
            return unet(z_t.contiguous(memory_format=torch.channels_last), t, c).float()

    def loss_at(step: int, progress: float) -> Tensor:
        """Eq. 1 of the paper, min-SNR weighted, with stratified t."""
        rng = np.random.default_rng((args.seed, 2, step))
        rows = rng.integers(0, len(mean), args.batch)
        captions = [world.caption(all_scenes[r], rng) for r in rows]
        told = [rng.random() >= args.drop or not all_scenes[r].things for r in rows]
        captions = [c if keep else "" for c, keep in zip(captions, told)]  # phi: scenes of things
        ids = tok(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        strata = (np.arange(args.batch) + rng.random(args.batch)) / args.batch
        t = torch.from_numpy((strata * 1000).astype(np.int64))
        noise = torch.from_numpy(rng.standard_normal((2, *mean[rows].shape), dtype=np.float32))
        z_0 = mean[rows] + std[rows] * noise[0]
        z_0, eps = (x.to(args.device) for x in (z_0, noise[1]))
        error = noise_error(eps_fn, schedule, z_0, eps, t, text(ids.to(args.device)))
        return (snr_weight[t].to(args.device) * error).mean()

    (args.out / "scaling_factor.json").write_text(json.dumps(scale))
    trainer.run(loss_at, args.out / "unet.jsonl")


def train_all(args: argparse.Namespace) -> None:
    """Every part for its share of the minutes, then the folder."""
    for part, share in SHARES.items():
        print(f"{part}: {share * args.minutes:.0f} minutes")
        PARTS[part](argparse.Namespace(**{**vars(args), "minutes": share * args.minutes}))
    export(args)


SHARES = {"vae": 0.12, "clip": 0.16, "recogniser": 0.06, "captioner": 0.08, "unet": 0.58}
PARTS = {
    "all": train_all,
    "vae": train_vae,
    "clip": train_clip,
    "captioner": train_captioner,
    "recogniser": train_recogniser,
    "judge": train_judge,
    "decoder": train_decoder,
    "unet": train_unet,
    "export": export,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--minutes", type=float, default=60, help="wall-clock budget")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="checkpoints and data")
    parser.add_argument("--to", type=Path, default=HERE.parent, help="where export writes")
    parser.add_argument("--scenes", type=int, default=60_000, help="scenes to render and train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32, help="scenes per step of the U-Net")
    parser.add_argument("--lr", type=float, default=5e-4, help="peak learning rate of the U-Net")
    parser.add_argument("--ema", type=float, default=0.9995, help="decay of the U-Net's average")
    parser.add_argument("--warm", type=Path, help="a folder to start from instead of noise")
    told = "judge: the recogniser that it starts from"
    parser.add_argument(
        "--recogniser", type=Path, default=HERE / "recogniser.safetensors", help=told
    )
    parser.add_argument(
        "--lock-text", action="store_true", help="clip: go on without the text tower"
    )
    parser.add_argument("--drop", type=float, default=0.1, help="share of prompts dropped, Eq. 1")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in the U-Net")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    PARTS[args.part](args)


if __name__ == "__main__":
    main()

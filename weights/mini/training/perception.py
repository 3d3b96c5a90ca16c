"""Trains what looks at pictures: CLIP and the captioner."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
)

import world
from common import Trainer, load_ema, tokenizer
from data import NOTHING, cell_loss, cells, degrade, latents, pixels, scenes
from dnp.sd.config import MINI_TEXT, MINI_VAE
from dnp.sd.vae import VAE

VISION = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 6}
VISION |= {"num_hidden_layers": 5, "image_size": 64, "patch_size": 8}


class WithCells(nn.Module):
    """A vision transformer and a head, thrown away afterwards, that names what each patch shows."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.cells = nn.Linear(VISION["hidden_size"], NOTHING + 1 + len(world.COLOURS))

    def cell_loss(self, hidden: Tensor, things: Tensor, colours: Tensor) -> Tensor:
        said = self.cells(hidden[:, 1:]).float()  # the class token comes first
        said_things, said_colours = said.split([NOTHING + 1, len(world.COLOURS)], dim=2)
        return cell_loss(said_things.transpose(1, 2), said_colours.transpose(1, 2), things, colours)


# ------------------------------------------------------------------------------------------- CLIP


def clip_config(vocab_size: int, eos: int) -> CLIPConfig:
    text = {**MINI_TEXT.__dict__, "vocab_size": vocab_size, "eos_token_id": eos}
    text |= {"bos_token_id": eos - 1, "pad_token_id": eos, "projection_dim": 128}
    vision = {**VISION, "hidden_act": "quick_gelu", "projection_dim": 128}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)


def changed(
    scene: world.Scene, kind: str, rng: np.random.Generator, split: str = "train"
) -> world.Scene | None:
    """The same scene with one thing or one colour changed, or the two colours swapped, or another
    setting; None where that cannot be, or would say a held-out pair or colour: it would then be
    known from wrong captions alone."""
    things = list(scene.things)
    if kind == "setting":
        others = [s for s in world.SETTINGS if s != scene.setting]
        return replace(scene, setting=str(rng.choice(others)))
    coloured = [i for i, t in enumerate(things) if t.colour]
    if kind == "swap":
        if len({t.colour for t in things} - {None}) < 2:
            return None
        i, j = next(
            (i, j) for i in coloured for j in coloured if things[i].colour != things[j].colour
        )
        hues = things[i].colour, things[j].colour
        things[i], things[j] = (replace(things[k], colour=h) for k, h in zip((i, j), hues[::-1]))
    elif kind == "thing":
        if not things:
            return None
        i = int(rng.integers(len(things)))
        pool = world.OBJECTS if things[i].colour else world.THINGS
        pool = [w for w in pool if w not in {t.word for t in things}]
        things[i] = replace(things[i], word=str(rng.choice(pool)))
    else:
        if not coloured:
            return None
        i = int(rng.choice(coloured))
        others = [c for c in world.COLOURS if c != things[i].colour]
        things[i] = replace(things[i], colour=str(rng.choice(others)))
    said = {(t.colour, t.word) for t in things}
    held_out = world.held_out({t.word for t in things})
    if split == "train" and (held_out or said & world.HELD_OUT_COLOURS):
        return None
    return replace(scene, things=tuple(things))


def near_misses(
    scene: world.Scene, state: dict, kinds: tuple[str, ...], rng: np.random.Generator
) -> list[str]:
    """Untrue captions in the wording that the generator's `state` gives; "" where there is none."""
    out = []
    for kind in kinds:
        other = changed(scene, kind, rng)
        words = np.random.default_rng()
        words.bit_generator.state = state
        out.append(world.caption(other, words) if other else "")
    return out


KINDS = ("thing", "thing", "colour", "colour", "swap", "setting")


def train_clip(args: argparse.Namespace) -> None:
    """Radford et al. 2021: pictures and captions of a batch against each other, and every picture
    against captions that are wrong in one word (Yuksekgonul et al. 2023, arXiv:2210.01936)."""
    torch.manual_seed(args.seed)
    images, all_scenes = scenes(args.out, args.scenes, args.seed)
    tok = tokenizer()
    clip = CLIPModel._from_config(
        clip_config(len(tok), tok.eos_token_id), attn_implementation="eager"
    )
    model = WithCells(clip).to(args.device)
    if args.warm:
        text = load_file(args.warm / "text_encoder" / "model.safetensors")
        clip.text_model.load_state_dict({k.removeprefix("text_model."): v for k, v in text.items()})
    clip.text_model.requires_grad_(not args.lock_text)
    trainer = Trainer(model, args.out / "clip.safetensors", args, lr=1e-3, ema=0.998)
    if args.lock_text:  # as the U-Net knows it: the averaged weights
        start = "model.text_model."
        averaged = {k: v for k, v in trainer.ema.items() if k.startswith(start)}
        clip.text_model.load_state_dict({k.removeprefix(start): v for k, v in averaged.items()})
    two = [i for i, s in enumerate(all_scenes) if len({t.colour for t in s.things} - {None}) > 1]

    def loss_at(step: int, progress: float) -> Tensor:
        rng = np.random.default_rng((args.seed, 3, step))
        rows = np.sort(np.append(rng.choice(len(images), 64, replace=False), rng.choice(two, 32)))
        batch = [all_scenes[r] for r in rows]
        captions, wrong = [], []
        for scene in batch:
            state = rng.bit_generator.state
            captions.append(world.caption(scene, rng))
            wrong += near_misses(scene, state, KINDS, rng)
        ids = tok(captions + wrong, padding="longest", truncation=True, return_tensors="pt")
        x = degrade(pixels(images[rows], args.device), rng)
        things, colours = cells(batch)
        kind = "cuda" if args.device.startswith("cuda") else "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=not args.float32):
            vision = clip.vision_model(x)
            text = clip.text_model(ids.input_ids.to(args.device)).pooler_output
            u = F.normalize(clip.visual_projection(vision.pooler_output).float(), dim=1)
            v = F.normalize(clip.text_projection(text).float(), dim=1)
            cell = model.cell_loss(
                vision.last_hidden_state, things.to(args.device), colours.to(args.device)
            )
        n, scale = len(batch), clip.logit_scale.exp().clamp(max=100)
        logits = scale * u @ v[:n].T
        same = torch.tensor([[a == b for b in captions] for a in captions]) & ~torch.eye(n).bool()
        logits = logits.masked_fill(same.to(args.device), -1e4)  # not a wrong caption
        near = scale * (u[:, None] * v[n:].unflatten(0, (n, -1))).sum(-1)
        k = len(KINDS)
        absent = [w in ("", captions[i // k]) for i, w in enumerate(wrong)]
        near = near.masked_fill(torch.tensor(absent).view(n, k).to(args.device), -1e4)
        target = torch.arange(n, device=args.device)
        images_to_text = F.cross_entropy(torch.cat([logits, near], 1), target)
        return images_to_text + F.cross_entropy(logits.T, target) + (1 - progress) * cell

    trainer.run(loss_at, args.out / "clip.jsonl")


# -------------------------------------------------------------------------------------- captioner


def captioner_tokenizer():
    """BLIP's BertTokenizer with one token for each word of the world."""
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    vocab = {word: i for i, word in enumerate(special + world.words())}
    return BertTokenizer(vocab=vocab, bos_token="[DEC]", model_max_length=24)


def captioner_config() -> BlipConfig:
    tok = captioner_tokenizer()
    text = {"vocab_size": len(tok), "hidden_size": 128, "intermediate_size": 512}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32}
    text |= {"bos_token_id": tok.bos_token_id, "sep_token_id": tok.sep_token_id}
    text |= {"eos_token_id": tok.sep_token_id, "pad_token_id": tok.pad_token_id}
    vision = {**VISION, "hidden_act": "quick_gelu", "initializer_range": 0.02}
    return BlipConfig(text_config=text, vision_config=vision)


def description(scene: world.Scene) -> str:
    """What the captioner says: the things from left to right, and the setting if not plain."""
    after, alone = world.SETTINGS[scene.setting]
    things = sorted(scene.things, key=lambda t: t.box[0] + t.box[2])
    names = [f"a {t.colour} {t.word}" if t.colour else f"a {t.word}" for t in things]
    if not names:
        return alone
    return " and ".join(names) + ("" if scene.setting == "plain" else f" {after}")


def vision_from_clip(clip: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's vision tower under BLIP's names: the three projections of attention become one."""
    out, same = {}, ("embeddings.patch_embedding.weight", "post_layernorm.")
    for name, value in clip.items():
        name = name.removeprefix("model.vision_model.")
        if name.startswith("encoder.") and "self_attn" not in name:
            out[name] = value
        elif "self_attn.out_proj" in name:
            out[name.replace("out_proj", "projection")] = value
        elif "self_attn.q_proj" in name:
            parts = [
                clip["model.vision_model." + name.replace("q_proj", f"{p}_proj")] for p in "qkv"
            ]
            out[name.replace("q_proj", "qkv")] = torch.cat(parts)
        elif name.startswith(same):
            out[name] = value
        elif name == "embeddings.class_embedding":
            out[name] = value.view(1, 1, -1)
        elif name == "embeddings.position_embedding.weight":
            out["embeddings.position_embedding"] = value[None]
    return out


def train_captioner(args: argparse.Namespace) -> None:
    """BLIP (Li et al. 2022, arXiv:2201.12086) on scenes, degraded ones, and ones decoded from
    noised latents; its vision tower starts as CLIP's."""
    torch.manual_seed(args.seed)
    images, all_scenes = scenes(args.out, args.scenes, args.seed)
    mean, _, scale = latents(args, images)
    vae = load_ema(VAE(MINI_VAE), args.out / "vae.safetensors").to(args.device).eval()
    tok = captioner_tokenizer()
    hues = torch.tensor(tok.convert_tokens_to_ids(world.COLOUR_NAMES))
    blip = BlipForConditionalGeneration._from_config(
        captioner_config(), attn_implementation="eager"
    )
    clip = load_file(args.out / "clip.safetensors")
    clip = {k[4:]: v for k, v in clip.items() if k.startswith("ema.model.vision_model.")}
    missing, unexpected = blip.vision_model.load_state_dict(vision_from_clip(clip), strict=False)
    assert set(missing) <= {"embeddings.patch_embedding.bias"} and not unexpected
    model = WithCells(blip).to(args.device)
    trainer = Trainer(model, args.out / "captioner.safetensors", args, lr=1e-3, ema=0.998)

    def loss_at(step: int, progress: float) -> Tensor:
        rng = np.random.default_rng((args.seed, 5, step))
        rows = np.sort(rng.choice(len(images), 64, replace=False))
        batch = [all_scenes[r] for r in rows]
        x = pixels(images[rows], args.device)
        again = rng.choice(len(rows), 16, replace=False)
        noise = torch.from_numpy(rng.standard_normal((16, *mean.shape[1:]), dtype=np.float32))
        amount = torch.from_numpy(rng.uniform(0, 0.6, 16).astype(np.float32))[:, None, None, None]
        z = (mean[rows[again]] + amount * noise) / scale
        with torch.no_grad():
            x[again] = vae.decode(z.to(args.device)).clamp(-1, 1)
        x = degrade(x, rng)
        ids = tok(
            ["[DEC] " + description(s) + " [SEP]" for s in batch],
            add_special_tokens=False, padding="longest", return_tensors="pt",
        )  # fmt: skip
        labels = ids.input_ids.masked_fill(ids.attention_mask == 0, -100).to(args.device)
        # Most colours are wrong in what the decoder reads, though not in what it is to say: so it
        # looks for the thing in the picture, not in its memory of which colours things have.
        wrong = torch.isin(ids.input_ids, hues) & torch.from_numpy(rng.random(labels.shape) < 0.9)
        other = hues[torch.from_numpy(rng.integers(0, len(hues), labels.shape))]
        said = torch.where(wrong, other, ids.input_ids).to(args.device)
        things, colours = (c.to(args.device) for c in cells(batch))
        kind = "cuda" if args.device.startswith("cuda") else "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=not args.float32):
            out = blip(x, said, ids.attention_mask.to(args.device), labels)
            cell = model.cell_loss(out.last_hidden_state, things, colours)
        return out.loss.float() + cell

    trainer.run(loss_at, args.out / "captioner.jsonl")

"""Weights from a folder in the diffusers layout: strict, safetensors only, never a pickle.

    folder/unet/config.json + diffusion_pytorch_model.safetensors
    folder/vae/config.json + diffusion_pytorch_model.safetensors
    folder/text_encoder/config.json + model.safetensors
    folder/tokenizer/ and folder/scheduler/scheduler_config.json
    folder/dnp.json                     optional: {"scale": {method: recommended scale}}

A network is built on the meta device, where it has shapes and no numbers, and every tensor of it
must come from the file: nothing random survives, and nothing in the file is passed over in silence.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dnp.errors import WeightsError

# Old and new spellings of the same tensors.
_RENAMES = (
    (re.compile(r"^text_model\."), ""),  # transformers before 5 writes the prefix
    (re.compile(r"(mid_block\.attentions\.0\.)query\."), r"\1to_q."),  # VAE of SD 1.4 and 1.5
    (re.compile(r"(mid_block\.attentions\.0\.)key\."), r"\1to_k."),
    (re.compile(r"(mid_block\.attentions\.0\.)value\."), r"\1to_v."),
    (re.compile(r"(mid_block\.attentions\.0\.)proj_attn\."), r"\1to_out.0."),
)
_HARMLESS = re.compile(r"(^|\.)position_ids$")  # a buffer of older transformers: 0, 1, 2, ...


def read_json(path: Path) -> dict:
    """The object in a JSON file; WeightsError if it is missing or not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"{path}: no such file; a weights folder in the diffusers layout has it, so give "
            "--weights such a folder."
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise WeightsError(f"{path}: cannot be read as JSON ({e}); restore the file.") from None
    if not isinstance(data, dict):
        raise WeightsError(f"{path}: holds no JSON object; restore the file.")
    return data


def find(folder: Path, stem: str) -> Path:
    """The safetensors file of one part of the model."""
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return folder / name
    pickles = [p for kind in ("*.bin", "*.ckpt", "*.pt", "*.pth") for p in folder.glob(kind)]
    if pickles:
        raise WeightsError(
            f"{pickles[0]} is a pickle, which can run any code and is never opened; convert it to "
            f"{stem}.safetensors with safetensors.torch.save_file on a machine you trust it on."
        )
    if (folder / f"{stem}.safetensors.index.json").exists():
        raise WeightsError(
            f"{folder / stem}.safetensors is split into shards, which are not read yet; join them, "
            "or fetch the variant in one file."
        )
    raise WeightsError(
        f"{folder / stem}.safetensors: no such file; fetch the safetensors variant of the weights."
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, with old names renamed and harmless extras dropped."""
    try:
        with safe_open(path, "pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as e:
        with path.open("rb") as f:
            start = f.read(2)
        if start[:1] == b"\x80" or start == b"PK":
            raise WeightsError(
                f"{path} is a pickle under a safetensors name and is never opened; convert it "
                "with safetensors.torch.save_file on a machine you trust it on."
            ) from None
        raise WeightsError(
            f"{path} is truncated or damaged ({e}); compare its size with the source and fetch it "
            "again."
        ) from None
    renamed = {rename(key): x for key, x in tensors.items() if not _HARMLESS.search(key)}
    if len(renamed) < sum(not _HARMLESS.search(key) for key in tensors):
        raise WeightsError(
            f"{path} holds some tensors twice, under an old and a new name; fetch it again."
        )
    return renamed


def rename(key: str) -> str:
    """A tensor's name as the networks here have it."""
    for old, new in _RENAMES:
        key = old.sub(new, key)
    return key


def fill(network: nn.Module, path: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Gives a network on the meta device the file's tensors, all of them and nothing else."""
    want, have = network.state_dict(), read_tensors(path)
    problems = {
        "missing": [k for k in want if k not in have],
        "unexpected": [k for k in have if k not in want],
        "mis-shaped": [
            f"{k} {tuple(have[k].shape)} for {tuple(want[k].shape)}"
            for k in want
            if k in have and have[k].shape != want[k].shape
        ],
        "not floating point": [k for k in want if k in have and not have[k].is_floating_point()],
    }
    if any(problems.values()):
        told = "; ".join(
            f"{len(keys)} {kind} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
            for kind, keys in problems.items()
            if keys
        )
        raise WeightsError(
            f"{path} does not belong to the network that {path.parent / 'config.json'} describes: "
            f"{told}; take both files from the same source."
        )
    state = {k: have[k].to(device=device, dtype=dtype) for k in want}
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False).eval()


def fingerprint(paths: list[Path]) -> str:
    """A short name for a set of weight files: their sizes, first and last MiB, hashed."""
    digest = hashlib.sha256()
    for path in paths:
        size, mib = path.stat().st_size, 1 << 20
        with path.open("rb") as f:
            digest.update(str(size).encode() + f.read(mib))
            f.seek(max(size - mib, 0))
            digest.update(f.read(mib))
    return digest.hexdigest()[:16]

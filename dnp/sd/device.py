"""Which device and which dtype a name means."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from dnp.errors import SettingsError


def choose_device(name: str = "auto", rank: int = 0) -> torch.device:
    """The device of a name; auto is the CUDA device of this process, else MPS, else the CPU.

    SettingsError if it cannot be used.
    """
    if name == "auto" and torch.cuda.is_available():
        name = f"cuda:{rank % torch.cuda.device_count()}"
    elif name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise SettingsError(
            f"device {name!r} cannot be used here; choose cpu, or leave --device out."
        ) from None
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; auto is float16 on CUDA and float32 elsewhere.

    SettingsError if the device cannot use it.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    dtype = {n: getattr(torch, n) for n in ("float64", "float32", "float16", "bfloat16")}.get(name)
    if dtype is None:
        raise SettingsError(
            f"dtype {name!r} is unknown; choose auto, float32, float64, float16 or bfloat16."
        )
    if device.type == "cpu" and dtype == torch.bfloat16 and not has_bf16_units():
        raise SettingsError(
            "this processor has no bf16 units (avx512_bf16, amx_bf16), and without them bfloat16 "
            "takes 2 to 3 times as long as float32; choose --dtype float32."
        )
    if device.type == "cpu" and dtype == torch.float16:
        raise SettingsError(f"{name} is slow and inexact on a CPU; choose --dtype float32.")
    if device.type == "mps" and name == "float64":
        raise SettingsError("MPS has no float64; choose --dtype float32.")
    return dtype


def halves_vae(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the VAE's decoder is in bfloat16 too: with a bfloat16 U-Net on a CPU with the units
    for it. Elsewhere it is in float32."""
    return device.type == "cpu" and dtype == torch.bfloat16 and has_bf16_units()


def choose_vae_dtype(name: str) -> torch.dtype | None:
    """The dtype of a VAE's decoder by its name; None is as `halves_vae` says."""
    if name not in ("auto", "float32", "float64", "bfloat16"):
        raise SettingsError(
            f"vae_dtype {name!r} is not possible; choose auto, float32, float64 or bfloat16."
        )
    return None if name == "auto" else getattr(torch, name)


def has_bf16_units() -> bool:
    """Whether this processor multiplies bfloat16 itself; where its flags are not told, no."""
    return not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


@cache
def cpu_flags() -> frozenset[str]:
    """The instruction sets of this processor, by Linux's names; elsewhere none."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    return frozenset()

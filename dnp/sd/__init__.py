"""The model: Stable Diffusion's networks, and reading their weights."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

OF_PIPELINE = "pipeline-"  # how the fingerprint of weights begins that a diffusers pipeline held
ROOT = Path(__file__).resolve().parents[2]  # the clone, where the package lies in one


def find_weights(name: str | Path) -> Path:
    """A relative path is looked for here, and then beside the package, in the clone."""
    here, beside = Path(name), ROOT / name
    with suppress(OSError):  # a name too long for a path: reading it says so
        return beside if not here.exists() and beside.exists() else here
    return here

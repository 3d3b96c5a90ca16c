"""Whether the numbers of a network are finite, told by the names that they have in their file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dnp.errors import WeightsError
from dnp.sd.files.tensors import Stored


def require_finite(network: nn.Module, entries: Mapping[str, Stored]) -> None:
    """WeightsError names a tensor that holds NaN or infinity; reads all that is mapped."""
    for key, p in network.named_parameters():
        if not (p.sum(dtype=torch.float32).isfinite() or p.isfinite().all()):
            _refuse(key, p, entries.get(key))


def _refuse(key: str, p: Tensor, entry: Stored | None) -> None:
    if entry is None:
        raise WeightsError(f"{key} was given NaN or infinity; load the weights again.")
    if entry.dtype != p.dtype and entry.read({}).isfinite().all():
        wider = "float32" if p.dtype.itemsize == 2 else "float64"
        raise WeightsError(
            f"{entry.key} in {entry.path} is too large for "
            f"{str(p.dtype).removeprefix('torch.')}; choose --dtype {wider}."
        )
    raise WeightsError(
        f"{entry.key} in {entry.path} holds NaN or infinity; the file is damaged, so fetch it "
        "again."
    )

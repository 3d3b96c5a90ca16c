"""The name of what a pipeline holds, by which records tell pictures apart."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from dnp.errors import WeightsError
from dnp.sd import OF_PIPELINE, probe


class Identity:
    """The name of what a pipeline holds: every tensor with its LoRAs, their scales, the tokenizers,
    how the modules are wired, and what a small forward returns (`dnp/sd/probe.py`).

    Tensors are hashed when the name is asked for, by all cores (0.6 s of one core for a GB), and
    again when one was replaced or written to, or a LoRA was loaded, scaled, fused or put off. The
    forward is run at every call, so at the start of every run, and a change through `.data`, by a
    hook or by a patched method is seen where it changes its numbers by 1e-6 of their size.
    WeightsError where they are not the same twice.
    """

    def __init__(self, model):
        self.model, self.fingerprint = model, ""
        self.seen: tuple[str, dict] = "", {}

    def name(self) -> str:
        """OF_PIPELINE and 32 hexadecimal digits."""
        pipe = self.model.pipe
        settings = self.model.settings()
        numbers = probe.numbers(self.model)
        tensors = dict(_tensors(pipe))
        beside = json.dumps([settings, probe.beside(pipe), numbers], sort_keys=True, default=str)
        if not self._same(beside, tensors):
            if numbers != probe.numbers(self.model, seed=1):
                raise WeightsError(
                    "this pipeline gives two results for one input, so its pictures have no name; "
                    f"remove what draws or remembers: dropout (pipe.{self.model.denoiser}.eval()), "
                    "a hook, a cache."
                )
            fingerprint = json.dumps([beside, _digests(tensors)], sort_keys=True)
            self.fingerprint = OF_PIPELINE + hashlib.sha256(fingerprint.encode()).hexdigest()[:32]
            self.seen = beside, {k: (weakref.ref(x), _written(x)) for k, x in tensors.items()}
        return self.fingerprint

    def _same(self, beside: str, tensors: dict[str, Tensor]) -> bool:
        before = self.seen[1]
        return (beside, tensors.keys()) == (self.seen[0], before.keys()) and all(
            before[k][0]() is x and before[k][1] == _written(x) for k, x in tensors.items()
        )


def _tensors(pipe) -> Iterator[tuple[str, Tensor]]:
    for part, network in probe.networks(pipe).items():
        for kind in (network.named_parameters(), network.named_buffers()):
            yield from ((f"{part}.{name}", x) for name, x in kind)


def _written(x: Tensor) -> tuple:
    return x.data_ptr(), 0 if x.is_inference() else x._version


def _digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    """By all cores; a small one is hashed sooner than it is given to a thread."""
    large = {k: x for k, x in tensors.items() if x.numel() > 2**16}
    with ThreadPoolExecutor() as pool:
        made = dict(zip(large, pool.map(_digest, large.values())))
    return {k: made.get(k) or _digest(x) for k, x in tensors.items()}


def _digest(x: Tensor) -> str:
    data = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    made = hashlib.sha256(f"{x.dtype} {tuple(x.shape)};".encode())
    made.update(data)
    return made.hexdigest()

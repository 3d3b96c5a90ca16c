"""torch, imported when it is first used: a method can be listed, and `--help` shown, without it.

from dnp.methods.lazy_torch import F, torch
"""

from __future__ import annotations

from importlib import import_module


class _Lazy:
    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str):
        return getattr(import_module(self._module), name)


torch, F = _Lazy("torch"), _Lazy("torch.nn.functional")

"""What the process around a call has set and no record holds: it has no say in a picture.

torch's default dtype, an autocast, a default device and the precision of float32 products are the
caller's, for the caller's own code. Within `apart` they are torch's own, and afterwards they are
what they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
KINDS = ("cpu", "cuda", "mps")


@contextmanager
def apart() -> Iterator[None]:
    """Torch as it starts: float32, no autocast, tensors on the CPU unless they say otherwise."""
    dtype, products = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    try:
        torch.set_default_dtype(torch.float32)
        if products != "highest":
            torch.set_float32_matmul_precision("highest")
        with ExitStack() as own:
            if torch.get_default_device().type != "cpu":  # a mode: a sixth of a small forward
                own.enter_context(torch.device("cpu"))
            for kind in KINDS:
                if torch.is_autocast_enabled(kind):
                    own.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        torch.set_default_dtype(dtype)
        if products != "highest":
            torch.set_float32_matmul_precision(products)


def each_apart(values: Iterator[T]) -> Iterator[T]:
    """The values of an iterator, each made `apart`; between them the caller's settings hold."""
    while True:
        with apart():
            try:
                value = next(values)
            except StopIteration:
                return
        yield value

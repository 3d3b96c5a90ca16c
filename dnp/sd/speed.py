"""What makes a CPU faster, and changes no more than the last digits: `apply(model)`.

`dnp.load` does none of it; the commands call `apply`. Where a derivative can be asked for, backward
or forward, or under torch.func, the linear layers are torch's own again.
"""

from __future__ import annotations

import ctypes
import os
import sys

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h


def apply(model) -> list[str]:
    """Makes a StableDiffusion on a CPU faster; returns one line for each measure in force.

    The U-Net's and the VAE's linear layers become `Linear`, the VAE decoder's convolutions
    channels_last, and the process keeps freed memory. A second call changes nothing. Elsewhere
    than on a CPU, and to the networks of a pipeline (`dnp.from_diffusers`), nothing is done, and
    the list is empty.
    """
    if model.device.type != "cpu" or not isinstance(model.unet, nn.Module):
        return []
    measures = []
    if ONEDNN and (count := _fast_linear(model.unet) + _fast_linear(model.vae)):
        measures.append(f"{count} linear layers by oneDNN, where no derivative is asked for")
    if count := _channels_last(model.vae.post_quant_conv) + _channels_last(model.vae.decoder):
        measures.append(f"{count} convolutions of the VAE's decoder in channels_last")
    if keep_freed_memory():
        measures.append("freed memory is kept by the process (glibc's malloc)")
    return measures


class Linear(nn.Linear):
    """nn.Linear; on a CPU under no_grad or inference_mode by oneDNN, as convolutions are.

    torch's own float32 product is MKL's, which is half as fast on AMD's processors (170 against
    380 GFLOP/s on 2 cores). The op is the one that torch.compile chooses. It has no derivative, so
    where one may be taken, forward or backward, torch's own is used.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not _onednn_can(x, self.weight, self.bias):
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def _onednn_can(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if not ONEDNN or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    derives = torch.is_grad_enabled() or getattr(forward_ad, "_current_level", 0) >= 0
    transformed = torch._C._functorch.maybe_current_level() is not None  # vmap, jvp, grad, ...
    return (
        not (derives or transformed or torch.is_autocast_enabled("cpu"))
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.shape[-1] == weight.shape[1]  # else torch's own says what is wrong
        and (bias is None or bias.is_contiguous())
        and torch.backends.mkldnn.enabled
    )


def _fast_linear(network: nn.Module) -> int:
    """The linear layers that are `Linear` now; the parameters stay the same objects."""
    for layer in network.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
    return sum(isinstance(layer, Linear) for layer in network.modules())


@torch.inference_mode(False)
def _channels_last(network: nn.Module) -> int:
    """The convolutions whose weights are in channels_last now, with the same numbers.

    A VAE is a fifth faster so. A U-Net of Stable Diffusion is 6 % faster at 64 x 64 latents and not
    at 32 x 32, for a copy of 2.2 GB, so it stays as it is. In that layout oneDNN has another
    float32 kernel (brgemm), which rounds more: a 3x3 convolution of 512 channels is off by 5.8e-7
    and not 1.3e-7 (rms), the whole VAE of Stable Diffusion by 1.3e-5 and not 3.3e-6 (of values up
    to 2.3; diffusers 3.7e-6): a 600th of a pixel's step.
    """
    count = 0
    for p in network.parameters():
        if p.ndim == 4 and not p.is_inference():  # one that was loaded so cannot be changed
            p.data = p.data.contiguous(memory_format=torch.channels_last)
            count += 1
    return count


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to reuse freed memory, in the whole process; whether it does.

    A convolution of Stable Diffusion's size takes and frees buffers of 60 MB. By default malloc
    maps each of them anew, and the system clears it page by page: 1.8 GB in one U-Net forward at
    32 x 32 latents, a third of a large step. Kept, the process stays as large as it was at its
    peak. That holds for the main thread and for threads that are started later; an earlier one
    keeps an arena of its own, whose large blocks are mapped anew. Nothing is done on another C
    library, or where MALLOC_... or GLIBC_TUNABLES in the environment says what the user wants.
    """
    users = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if sys.platform != "linux" or users:
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # one arena for all threads, none of its blocks a mapping of its own, and never trimmed
    kept = (M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)
    return all(libc.mallopt(ctypes.c_int(what), ctypes.c_int(value)) for what, value in kept)

"""What makes a CPU faster, and changes no more than the last digits: `apply(model)`.

`dnp.load` does none of it; the commands call `apply`. Where a derivative can be asked for, backward
or forward, or under torch.func, the linear layers are torch's own again.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from dnp.sd.device import has_bf16_units

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
PRODUCT = torch.ops.mkldnn._linear_pointwise if ONEDNN else None
MANY = 2**20  # weights of a convolution; the miniature's have fewer
FEW = 2**22  # multiplications of a linear layer; a picture of the miniature has layers with fewer
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h


def apply(model) -> list[str]:
    """Makes a StableDiffusion on a CPU faster; returns one line for each measure in force.

    The U-Net's and the VAE's linear layers become `Linear`, the U-Net's large convolutions
    `Conv2d`, the VAE decoder's convolutions channels_last, and the process keeps freed memory. A
    second call changes nothing. Elsewhere than on a CPU, and to the networks of a pipeline
    (`dnp.from_diffusers`), nothing is done, and the list is empty.
    """
    if model.device.type != "cpu" or not isinstance(model.unet, nn.Module):
        return []
    measures = []
    if ONEDNN:
        layers = [x for n in (model.unet, model.vae) for x in _become(n, nn.Linear, Linear)]
        measures.append(f"{len(layers)} linear layers by oneDNN where that is faster")
        if layers := _become(model.unet, nn.Conv2d, Conv2d, MANY):
            measures.append(f"{len(layers)} convolutions as products where the picture is small")
    if count := _channels_last(model.vae.post_quant_conv) + _channels_last(model.vae.decoder):
        measures.append(f"{count} convolutions of the VAE in channels_last")
    if keep_freed_memory():
        measures.append("freed memory is kept")
    return measures


def line(measures: list[str], model) -> str:
    """What `apply` did, in the line that the commands print; and how bfloat16 is to be had."""
    text = "speed: " + ("; ".join(measures) or "nothing to do on this device")
    if model.device.type == "cpu" and model.dtype == torch.float32 and has_bf16_units():
        text += f". With --dtype bfloat16 a matrix product is {bfloat16_gain():.1f} times as fast"
    return text


@functools.cache
def bfloat16_gain(n: int = 1024) -> float:
    """How many times a matrix product takes in float32, measured when a process first asks: 0.05 s
    of one core."""
    best = []
    for kind in (torch.float32, torch.bfloat16):
        a, times = torch.ones(n, n, dtype=kind), []
        for _ in range(4):
            start = time.process_time()  # what other processes do counts less in it
            a @ a
            times.append(time.process_time() - start)
        best.append(min(times))
    return best[0] / best[1]


class Linear(nn.Linear):
    """nn.Linear; on a CPU under no_grad or inference_mode by oneDNN, as convolutions are.

    torch's own float32 product is MKL's, which on one AMD processor was half as fast (170 against
    380 GFLOP/s on 2 cores) and on a Zen 4 a seventh slower (189 against 220); in bfloat16 both are
    oneDNN's, and this way up to 15 % faster. The op is the one that torch.compile chooses. It has
    no derivative, so where one may be taken, forward or backward, torch's own is used; and for few
    products, since calling the op takes 10 us more.
    """

    def forward(self, x: Tensor) -> Tensor:
        if (
            not _onednn_can(x, self.weight, self.bias)
            or x.shape[-1] != self.in_features  # torch's own says what is wrong
            or x.numel() * self.out_features < FEW
        ):
            return super().forward(x)
        return PRODUCT(x, self.weight, self.bias, "none", [], "")


class Conv2d(nn.Conv2d):
    """nn.Conv2d; where `Linear` is oneDNN's and the picture small, one product W X + b of it.

    A convolution copies its weights into oneDNN's layout at every call. For a picture of 4 x 4
    and 1280 channels that is more work than the convolution: as a product of the weights as they
    lie, (O, 9 I), and the unfolded picture, (9 I, B H W), it takes a quarter of the time in
    float32 and a quarter to two thirds in bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (_onednn_can(x, self.weight, self.bias) and self._small(x)):
            return super().forward(x)
        (b, _, h, w), (down, across) = x.shape, self.stride
        h, w = (h - 1) // down + 1, (w - 1) // across + 1
        columns = F.unfold(x, 3, padding=1, stride=self.stride)  #     (B, 9 I, H W)
        columns = columns.transpose(1, 2).flatten(0, 1)  #             (B H W, 9 I)
        bias = self.bias[:, None].expand(-1, len(columns)).contiguous()
        y = PRODUCT.binary(self.weight.flatten(1), bias, columns, None, "add")  # (O, B H W)
        return y.unflatten(1, (b, h, w)).transpose(0, 1)  #            (B, O, H, W)

    def _small(self, x: Tensor) -> bool:
        """Whether the pixels of the result are few enough for a product.

        The bounds are where it was faster on an AMD EPYC with 32 MB of cache, in both dtypes.
        """
        pixels = len(x) * x.shape[-1] * x.shape[-2] // (self.stride[0] * self.stride[1])
        large = self.weight.nbytes >= 2**25
        plain = (self.kernel_size, self.padding, self.dilation) == ((3, 3), (1, 1), (1, 1))
        return (
            plain and self.groups == 1 and self.padding_mode == "zeros" and self.bias is not None
            and x.ndim == 4 and x.shape[1] == self.in_channels
            and pixels <= (128 if large else 32)
        )  # fmt: skip


def _onednn_can(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if not ONEDNN or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    derives = torch.is_grad_enabled() or getattr(forward_ad, "_current_level", 0) >= 0
    transformed = torch._C._functorch.maybe_current_level() is not None  # vmap, jvp, grad, ...
    halves = x.dtype == torch.bfloat16 and has_bf16_units()
    return (
        not (derives or transformed or torch.is_autocast_enabled("cpu"))
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and (x.dtype == torch.float32 or halves)
        and (bias is None or (bias.is_contiguous() and bias.dtype == x.dtype))
        and torch.backends.mkldnn.enabled
    )


def _become(network: nn.Module, plain: type, fast: type, least: int = 0) -> list[nn.Module]:
    """The layers of a kind, with so many weights at least, that are the fast one now; the
    parameters stay the same objects."""
    layers = (layer for layer in network.modules() if isinstance(layer, plain))
    found = [layer for layer in layers if layer.weight.numel() >= least]
    for layer in found:
        if type(layer) is plain:
            layer.__class__ = fast
    return [layer for layer in found if isinstance(layer, fast)]


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

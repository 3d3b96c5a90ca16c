"""What the U-Net and the VAE share: convolution, residual block, attention, resampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """nn.Conv2d; in float32 on a CPU without gradients the same, sooner, once `pack` was called.

    torch puts a convolution's weights in oneDNN's order at every call, a fourth of the U-Net's time
    at 32 x 32 latents. Packed, they are kept in that order too (torch.compile's own operator), and
    put in order again when `weight` was changed: replaced, changed in place, or, through `.data`,
    in one of 16 places that are looked at.
    """

    packed = None  # the weights in oneDNN's order, and the stamp of those that they were made from

    def pack(self, w: Tensor | None = None) -> None:
        """Keeps the weights in oneDNN's order; `w` are the same numbers as `weight`, if at hand."""
        if torch.backends.mkldnn.is_available() and not self.weight.is_inference():
            w = self.weight if w is None else w
            geometry = self.padding, self.stride, self.dilation, self.groups
            ordered = torch.ops.mkldnn._reorder_convolution_weight(w.detach(), *geometry)
            place, version, values = stamp(self.weight)
            self.packed = ordered, (place, version, values.clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None or torch.is_grad_enabled() or not self._fits(x):
            return super().forward(x)
        place, version, values = stamp(self.weight)
        was = self.packed[1]
        if (place, version) != was[:2] or not values.equal(was[2]):
            self.pack()
        geometry = self.padding, self.stride, self.dilation, self.groups
        x = x.contiguous(memory_format=torch.channels_last)
        convolve = torch.ops.mkldnn._convolution_pointwise
        return convolve(x, self.packed[0], self.bias, *geometry, "none", [], "")

    def _fits(self, x: Tensor) -> bool:
        kind = x.device.type, x.ndim, x.dtype, self.weight.dtype, self.weight.is_contiguous()
        plain = kind == ("cpu", 4, torch.float32, torch.float32, True)
        return plain and torch.backends.mkldnn.enabled and not torch.is_autocast_enabled("cpu")

    def __getstate__(self) -> dict:  # what is packed cannot be copied
        return {**super().__getstate__(), "packed": None}


def stamp(w: Tensor) -> tuple[int, int, Tensor]:
    """Where a contiguous tensor lies, how often it was changed, and 16 of its numbers."""
    version = -1 if w.is_inference() else w._version
    return w.data_ptr(), version, w.detach().view(-1)[:: max(1, w.numel() // 16)][:16]


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))), with a 1x1 shortcut if widths differ.

    `eps` is 1e-5 in the U-Net and 1e-6 in the VAE; `time_dim` is None in the VAE.
    """

    def __init__(self, c_in: int, c_out: int, groups: int, eps: float, time_dim: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=eps)
        self.conv1 = Conv2d(c_in, c_out, 3, padding=1)
        if time_dim is not None:
            self.time_emb_proj = nn.Linear(time_dim, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=eps)
        self.conv2 = Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.conv_shortcut = Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  #                     (B, c_out, H, W)
        if time is not None:
            h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x) + h


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over `heads`; queries from x, keys and values from `context`.

    Self-attention when `context` is None. Only the VAE has biases on Q, K and V.
    """

    def __init__(self, dim: int, context_dim: int, heads: int, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(context_dim, dim, bias=bias)
        self.to_v = nn.Linear(context_dim, dim, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (  #                                               (B, heads, N or L, d)
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](y.transpose(1, 2).flatten(2))  #       (B, N, dim)


class Downsample(nn.Module):
    """Halves the resolution. The U-Net pads all round, the VAE (0) right and below only."""

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour to `size` (default: twice as large), then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        size = size or (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))

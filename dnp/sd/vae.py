"""The autoencoder between pixels in [-1, 1] and latents (Kingma and Welling; Rombach et al.).

Convolutions and residual blocks at each level, one attention block in the middle, and every
norm with eps = 1e-6. Attribute names are those of diffusers' AutoencoderKL.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnp.sd.config import VAEConfig
from dnp.sd.layers import Attention, Downsample, ResnetBlock, Upsample


class AttentionBlock(Attention):
    """Single-head self-attention over pixels, with its own norm and a residual."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, channels, heads=1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  #    (B, H*W, C)
        return x + super().forward(tokens).transpose(1, 2).unflatten(2, x.shape[-2:])


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, groups, eps=1e-6) for _ in range(2)
        )
        self.attentions = nn.ModuleList([AttentionBlock(channels, groups)])

    def forward(self, h: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](h)))


class Block(nn.Module):
    """Residual blocks of one level, then `resample` under the name that diffusers gives it."""

    def __init__(self, c_in: int, c_out: int, layers: int, groups: int, **resample: nn.Module):
        super().__init__()
        widths = [c_in] + [c_out] * (layers - 1)
        self.resnets = nn.ModuleList(ResnetBlock(w, c_out, groups, eps=1e-6) for w in widths)
        for name, module in resample.items():
            self.add_module(name, nn.ModuleList([module]))
        self.resample = list(resample)

    def forward(self, h: Tensor) -> Tensor:
        for resnet in self.resnets:
            h = resnet(h)
        for name in self.resample:
            h = getattr(self, name)[0](h)
        return h


class Encoder(nn.Module):
    """Pixels (B, 3, fH, fW) -> mean and log-variance (B, 2C, H, W); C is 4."""

    def __init__(self, cfg: VAEConfig):
        super().__init__()
        channels, groups = cfg.block_out_channels, cfg.norm_num_groups
        self.conv_in = nn.Conv2d(cfg.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, (c_in, c_out) in enumerate(zip((channels[0], *channels), channels)):
            down = {"downsamplers": Downsample(c_out, padding=0)} if _resamples(i, cfg) else {}
            self.down_blocks.append(Block(c_in, c_out, cfg.layers_per_block, groups, **down))
        self.mid_block = MidBlock(channels[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 2 * cfg.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = block(h)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    """Latents (B, C, H, W) -> pixels (B, 3, fH, fW)."""

    def __init__(self, cfg: VAEConfig):
        super().__init__()
        channels, groups = cfg.block_out_channels[::-1], cfg.norm_num_groups
        self.conv_in = nn.Conv2d(cfg.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], groups)
        self.up_blocks = nn.ModuleList()
        for i, (c_in, c_out) in enumerate(zip((channels[0], *channels), channels)):
            up = {"upsamplers": Upsample(c_out)} if _resamples(i, cfg) else {}
            self.up_blocks.append(Block(c_in, c_out, cfg.layers_per_block + 1, groups, **up))
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], cfg.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)).to(self.conv_out.weight.dtype))


def _resamples(i: int, cfg: VAEConfig) -> bool:
    """Every level resamples but the last: f = 2^(levels - 1)."""
    return i < len(cfg.block_out_channels) - 1


class VAE(nn.Module):
    """`encode` gives the posterior's mean and log-variance; `decode` maps latents to pixels.

    Both work on the encoder's own scale; `scaling_factor` is applied in `dnp/sd/model.py`.
    """

    def __init__(self, cfg: VAEConfig):
        super().__init__()
        self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
        self.quant_conv = nn.Conv2d(2 * cfg.latent_channels, 2 * cfg.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(cfg.latent_channels, cfg.latent_channels, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, fH, fW) in [-1, 1] -> mean, log-variance, each (B, C, H, W)."""
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, fH, fW), about [-1, 1]; not clipped."""
        return self.decoder(self.post_quant_conv(z.to(self.post_quant_conv.weight.dtype)))

    def decoder_to(self, dtype: torch.dtype) -> None:
        """The decoder in half precision, norms too; its last convolution, which makes the pixels,
        stays as it is."""
        last = self.decoder.conv_out
        for part in (self.post_quant_conv, *self.decoder.children()):
            if part is not last:
                part.to(dtype)

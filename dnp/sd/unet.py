"""The noise predictor eps_theta(z_t, t, c): a U-Net with cross-attention to the prompt.

Stable Diffusion 1.x as a table (R residual block, A attention to itself and to the prompt):

    level   channels  resolution   down          up (twice the input: skips)
    0         320       64 x 64    RA RA  down   RA RA RA
    1         640       32 x 32    RA RA  down   RA RA RA  up
    2        1280       16 x 16    RA RA  down   RA RA RA  up
    3        1280        8 x 8     R  R          R  R  R   up
    mid      1280        8 x 8     R A R

Every tensor that the way down produces is pushed on a stack; every residual block on the way up
pops one and concatenates it. Guidance is nowhere in here: it is in `dnp/guidance.py`.
Attribute names are those of diffusers' UNet2DConditionModel.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnp.sd.config import UNetConfig
from dnp.sd.layers import Attention, Downsample, ResnetBlock, Upsample


class FeedForward(nn.Module):
    """GEGLU: half of the projection gates the other half; inner width 4 dim."""

    def __init__(self, dim: int):
        super().__init__()
        gate = nn.ModuleDict({"proj": nn.Linear(dim, 8 * dim)})
        self.net = nn.ModuleList([gate, nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.net[0]["proj"](x).chunk(2, dim=-1)  #     (B, N, 4 dim) each
        return self.net[2](value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt, feed-forward; each with a residual."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn1 = Attention(dim, dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.attn2 = Attention(dim, context_dim, heads)
        self.norm3 = nn.LayerNorm(dim, eps=1e-5)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Pixels as tokens: norm, project, transformer blocks, project back, residual."""

    def __init__(self, channels: int, cfg: UNetConfig, heads: int, depth: int):
        super().__init__()
        self.linear = cfg.use_linear_projection
        project = nn.Linear if self.linear else lambda i, o: nn.Conv2d(i, o, 1)
        self.norm = nn.GroupNorm(cfg.norm_num_groups, channels, eps=1e-6)  # not the U-Net's 1e-5
        self.proj_in = project(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, cfg.cross_attention_dim, heads) for _ in range(depth)
        )
        self.proj_out = project(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        def tokens(h: Tensor) -> Tensor:
            return h.flatten(2).transpose(1, 2)  #                   (B, H*W, C)

        def image(h: Tensor) -> Tensor:
            return h.transpose(1, 2).unflatten(2, x.shape[-2:])  #   (B, C, H, W)

        h = self.norm(x)
        h = self.proj_in(tokens(h)) if self.linear else tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, context)
        h = image(self.proj_out(h)) if self.linear else self.proj_out(image(h))
        return x + h


class Block(nn.Module):
    """One level: residual blocks, each followed by a transformer if the level has attention.

    `widths` are the residual blocks' input widths, `attentions` counts the transformers, and
    `resample` is Downsample, Upsample or None.
    """

    def __init__(
        self,
        cfg: UNetConfig,
        level: int,
        widths: list[int],
        attentions: int,
        resample: nn.Module | None = None,
    ):
        super().__init__()
        channels, groups = cfg.block_out_channels[level], cfg.norm_num_groups
        time_dim, heads = 4 * cfg.block_out_channels[0], cfg.heads[level]
        depth = cfg.depth[level if len(cfg.depth) > 1 else 0]
        self.resnets = nn.ModuleList(
            ResnetBlock(width, channels, groups, eps=1e-5, time_dim=time_dim) for width in widths
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(channels, cfg, heads, depth) for _ in range(attentions)
        )
        if isinstance(resample, Downsample):
            self.downsamplers = nn.ModuleList([resample])
        elif isinstance(resample, Upsample):
            self.upsamplers = nn.ModuleList([resample])

    def layer(self, j: int, h: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Residual block j and, where the level has attention, transformer j."""
        h = self.resnets[j](h, time)
        return self.attentions[j](h, context) if len(self.attentions) else h


class MidBlock(Block):
    """R A R at the coarsest level."""

    def __init__(self, cfg: UNetConfig):
        width, last = cfg.block_out_channels[-1], len(cfg.block_out_channels) - 1
        super().__init__(cfg, last, [width, width], attentions=1)

    def forward(self, h: Tensor, time: Tensor, context: Tensor) -> Tensor:
        h = self.attentions[0](self.resnets[0](h, time), context)
        return self.resnets[1](h, time)


class UNet(nn.Module):
    """`forward(z_t, t, context)`: (B, 4, H, W), () or (B,), (B, L, D) -> (B, 4, H, W).

    SDXL's also takes the pooled text (B, P) and six numbers (B, 6): see `dnp/sd/sdxl.py`.
    """

    def __init__(self, cfg: UNetConfig):
        super().__init__()
        channels, layers = cfg.block_out_channels, cfg.layers_per_block
        last, time_dim = len(channels) - 1, 4 * channels[0]
        self.freq_dim = channels[0]
        linear_1, linear_2 = nn.Linear(channels[0], time_dim), nn.Linear(time_dim, time_dim)
        self.time_embedding = nn.ModuleDict({"linear_1": linear_1, "linear_2": linear_2})
        if cfg.added_dim:
            self.added_freq_dim = cfg.added_freq_dim
            linear_1 = nn.Linear(cfg.added_dim, time_dim)
            linear_2 = nn.Linear(time_dim, time_dim)
            self.add_embedding = nn.ModuleDict({"linear_1": linear_1, "linear_2": linear_2})
        self.conv_in = nn.Conv2d(cfg.in_channels, channels[0], 3, padding=1)

        self.down_blocks, skips = nn.ModuleList(), [channels[0]]
        for i, width in enumerate(channels):
            widths = [skips[-1]] + [width] * (layers - 1)
            down = Downsample(width, padding=1) if i < last else None
            self.down_blocks.append(Block(cfg, i, widths, layers * cfg.down_attention[i], down))
            skips += [width] * (layers + (down is not None))

        self.mid_block = MidBlock(cfg)

        self.up_blocks, h_width = nn.ModuleList(), channels[-1]
        for i, width in enumerate(reversed(channels)):
            widths = [w + skips.pop() for w in [h_width] + [width] * layers]
            up = Upsample(width) if i < last else None
            count = (layers + 1) * cfg.up_attention[i]
            self.up_blocks.append(Block(cfg, last - i, widths, count, up))
            h_width = width

        self.conv_norm_out = nn.GroupNorm(cfg.norm_num_groups, channels[0], eps=1e-5)
        self.conv_out = nn.Conv2d(channels[0], cfg.out_channels, 3, padding=1)

    def forward(
        self, z_t: Tensor, t: Tensor, context: Tensor,
        pooled: Tensor | None = None, numbers: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        time = timestep_embedding(t.expand(z_t.shape[0]), self.freq_dim, z_t.dtype)
        time = self.time_embedding["linear_2"](F.silu(self.time_embedding["linear_1"](time)))
        if hasattr(self, "add_embedding"):
            waves = timestep_embedding(numbers.flatten(), self.added_freq_dim, z_t.dtype)
            added = torch.cat([pooled, waves.view(len(numbers), -1)], 1)  # (B, P + 6 W)
            added = F.silu(self.add_embedding["linear_1"](added))
            time = time + self.add_embedding["linear_2"](added)

        h = self.conv_in(z_t)  #                                     (B, C0, H, W)
        skips = [h]
        for block in self.down_blocks:
            for j in range(len(block.resnets)):
                skips.append(h := block.layer(j, h, time, context))
            if hasattr(block, "downsamplers"):
                skips.append(h := block.downsamplers[0](h))  #       (B, Ci, H/2, W/2)

        h = self.mid_block(h, time, context)

        for block in self.up_blocks:
            for j in range(len(block.resnets)):
                h = block.layer(j, torch.cat([h, skips.pop()], 1), time, context)
            if hasattr(block, "upsamplers"):  #   to the next skip's size, which may be odd
                h = block.upsamplers[0](h, skips[-1].shape[-2:])  #  (B, Ci, 2H, 2W)

        return self.conv_out(F.silu(self.conv_norm_out(h)))


def timestep_embedding(t: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """[cos(t w_i), sin(t w_i)] with w_i = 10000^(-i / (dim/2)): (B,) -> (B, dim).

    Computed in at least float32: t = 999 is not a number of bfloat16.
    """
    wide = torch.promote_types(dtype, torch.float32)
    i = torch.arange(dim // 2, dtype=wide, device=t.device)
    angles = t[:, None].to(wide) * torch.exp(-math.log(10000) * i / (dim // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)

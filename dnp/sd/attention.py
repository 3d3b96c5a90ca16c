"""The maps of cross-attention of one level of a U-Net, ours or diffusers', read by hooks.

Without a recorder no hook is there, so a forward costs nothing more. With one the network's own
numbers stay bit-equal: a map is computed beside them, from the same input and the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dnp.errors import SettingsError


class AttentionMaps:
    """`with AttentionMaps(unet, level) as maps`: `maps.mean()` is (B, N, L) after a forward.

    Level 0 is as large as the latent, and each next one half as large. SettingsError for a level
    without attention to the prompt.
    """

    def __init__(self, unet: nn.Module, level: int):
        last = len(unet.down_blocks) - 1
        if not 0 <= level <= last:
            raise SettingsError(f"ae_level = {level} is not in this U-Net; choose 0 to {last}.")
        blocks = [unet.down_blocks[level], unet.up_blocks[last - level]]
        blocks += [unet.mid_block] if level == last else []
        attentions = [a for block in blocks for a in getattr(block, "attentions", ())]
        transformers = [a for a in attentions if hasattr(a, "transformer_blocks")]
        if not transformers:
            raise SettingsError(f"ae_level = {level} has no attention; choose another.")
        self.layers = [b.attn2 for t in transformers for b in t.transformer_blocks]
        self.maps: list[Tensor] = []

    def __enter__(self) -> AttentionMaps:
        self.handles = [
            layer.register_forward_hook(self._record, with_kwargs=True) for layer in self.layers
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _record(self, layer, inputs: tuple, named: dict, output: Tensor) -> None:
        """Ours gets (x, context), diffusers' the context by its name."""
        x, context = (*inputs, named.get("encoder_hidden_states"))[:2]
        self.maps.append(cross_attention(layer, x, context))

    def mean(self) -> Tensor:
        """The mean over layers and heads of the forward since the last call: (B, N, L)."""
        heads, self.maps = torch.cat(self.maps, 1), []
        return heads.mean(1)


def cross_attention(layer, x: Tensor, context: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)): (B, N, D), (B, L, D') -> (B, heads, N, L)."""
    q, k = (
        y.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for y in (layer.to_q(x), layer.to_k(context))
    )
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)

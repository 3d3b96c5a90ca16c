"""CLIP's text encoder (Radford et al. 2021): the prompt's token ids -> the U-Net's context.

A causal transformer. Stable Diffusion reads every token's last hidden state, not the pooled one.
Attribute names are those of transformers' CLIPTextModel without its `text_model.` prefix.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnp.sd.config import TextConfig


class SelfAttention(nn.Module):
    """Causal: a token sees itself and the tokens before it."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (  #                                               (B, heads, L, d)
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).flatten(2))  #        (B, L, D)


class Layer(nn.Module):
    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.self_attn = SelfAttention(cfg.hidden_size, cfg.num_attention_heads)
        self.layer_norm1 = nn.LayerNorm(cfg.hidden_size, eps=1e-5)
        fc1 = nn.Linear(cfg.hidden_size, cfg.intermediate_size)
        fc2 = nn.Linear(cfg.intermediate_size, cfg.hidden_size)
        self.mlp = nn.ModuleDict({"fc1": fc1, "fc2": fc2})
        self.layer_norm2 = nn.LayerNorm(cfg.hidden_size, eps=1e-5)
        self.activation = quick_gelu if cfg.hidden_act == "quick_gelu" else F.gelu

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        h = self.activation(self.mlp["fc1"](self.layer_norm2(x)))  # (B, L, intermediate)
        return x + self.mlp["fc2"](h)


class CLIPTextModel(nn.Module):
    """tau(c) of the paper: `forward(ids)` maps (B, L) token ids to the context (B, L, D)."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        tokens = embedding(cfg.vocab_size, cfg.hidden_size)
        positions = embedding(cfg.max_position_embeddings, cfg.hidden_size)
        self.embeddings = nn.ModuleDict(
            {"token_embedding": tokens, "position_embedding": positions}
        )
        layers = nn.ModuleList([Layer(cfg) for _ in range(cfg.num_hidden_layers)])
        self.encoder = nn.ModuleDict({"layers": layers})
        self.final_layer_norm = nn.LayerNorm(cfg.hidden_size, eps=1e-5)
        self.penultimate = cfg.penultimate
        if cfg.pooled_dim:
            self.text_projection = nn.Linear(cfg.hidden_size, cfg.pooled_dim, bias=False)

    def forward(self, ids: Tensor, ends: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The context; with `ends` (B,), each row's first end token, the pooled text too (SDXL's
        second encoder): the projection of the final-normed last layer there."""
        positions = self.embeddings["position_embedding"].weight[: ids.shape[1]]
        x = self.embeddings["token_embedding"](ids) + positions  #   (B, L, D)
        *before, last = self.encoder["layers"]
        for layer in before:
            x = layer(x)
        if self.penultimate and ends is None:
            return x  #                                              without the final norm
        context, x = x, self.final_layer_norm(last(x))
        if ends is None:
            return x
        rows = torch.arange(len(x), device=x.device)
        return context, self.text_projection(x[rows, ends])  #      (B, L, D), (B, P)


def embedding(rows: int, width: int) -> nn.Embedding:
    """Zeros, to be filled or trained: nn.Embedding's own random start costs a second of imports
    on the meta device."""
    return nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU: x * sigmoid(1.702 x). Stable Diffusion 1.x uses it."""
    return x * torch.sigmoid(1.702 * x)

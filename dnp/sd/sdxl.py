"""Stable Diffusion XL (Podell et al., arXiv:2307.01952): what its condition is.

    context   penultimate layers of both text encoders, joined on the width (B, L, 768 + 1280)
    pooled    the second encoder's pooled text                               (B, 1280)
    numbers   original height and width, crop top and left, target height and width  (B, 6)

phi is not one thing: `phi = "zeros"` is zeros for context and pooled, as the base model was
published, `phi = "text"` the encoding of "". DNS and energies depend on it, so it is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dnp.energy import eps_from_v
from dnp.errors import SettingsError, WeightsError
from dnp.sd.model import StableDiffusion

Sides = tuple[int, int]


class Condition(NamedTuple):
    context: Tensor  # (B, L, D)
    pooled: Tensor  # (B, P)
    numbers: Tensor  # (B, 6), whole numbers in float32


class StableDiffusionXL(StableDiffusion):
    """Made by `dnp.load`. `eps` satisfies the same contract; its condition is a `Condition`."""

    takes = ("size", "phi", "original_size", "crop", "target_size")  # settings of `encode`

    def __init__(self, *parts, text_encoder_2, open_tokenizer_2: Callable):
        super().__init__(*parts)
        self.text_encoder_2, self.open_tokenizer_2 = text_encoder_2, open_tokenizer_2

    @cached_property
    def tokenizer_2(self):
        """The second encoder's tokenizer, which pads with token 0 ("!")."""
        return self.open_tokenizer_2()

    def encode(
        self, prompts: str | Sequence[str], size: Sides | None = None, phi: str | None = None,
        original_size: Sides | None = None, crop: Sides | None = None,
        target_size: Sides | None = None,
    ) -> Condition:  # fmt: skip
        """Prompts -> Condition. Sizes are (height, width) in pixels; the original and the target
        are `size`, which None is as trained, and the crop is (0, 0). `phi` (zeros or text; None:
        as the weights say) is what an empty prompt is."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        context, pooled = self.text(prompts)
        if (phi or self.config.phi) == "zeros":
            said = torch.tensor([p != "" for p in prompts], device=context.device)
            context = context.where(said[:, None, None], 0)
            pooled = pooled.where(said[:, None], 0)
        given = {"original_size": original_size, "crop": crop, "target_size": target_size}
        for name, pair in given.items():
            if pair is not None and not (isinstance(pair, tuple | list) and len(pair) == 2):
                raise SettingsError(f"{name} {pair!r} is not possible; give two numbers of pixels.")
        f, (_, h, w) = self.config.vae.factor, self.latent_shape(size)
        size = h * f, w * f
        six = [*(original_size or size), *(crop or (0, 0)), *(target_size or size)]
        numbers = torch.tensor([six] * len(prompts), dtype=torch.float32, device=context.device)
        return Condition(context, pooled, numbers)

    def text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> context (B, L, D) of both encoders, and pooled (B, P)."""
        ids, _ = self.token_ids(prompts, self.tokenizer, self.config.text)
        ids_2, ends = self.token_ids(prompts, self.tokenizer_2, self.config.text_2, warn=False)
        if ids.shape != ids_2.shape:
            raise WeightsError(
                f"the two tokenizers give {ids.shape[1]} and {ids_2.shape[1]} tokens; take all "
                "parts from one model."
            )
        context_2, pooled = self.text_encoder_2(ids_2, ends)
        return torch.cat([self.text_encoder(ids), context_2], -1), pooled

    def eps(self, z_t: Tensor, t: int | Tensor, c: Condition) -> Tensor:
        """eps_theta(z_t; t, c): (B, C, H, W), () or (B,), Condition of B or 1 -> (B, C, H, W)."""
        t, kind = torch.as_tensor(t, device=z_t.device), self.dtype
        c = Condition(c.context.to(kind), c.pooled.to(kind), c.numbers)  # 1023 is not in bfloat16
        c = (x.expand(len(z_t), *x.shape[1:]) for x in c)
        out = self.unet(z_t.to(kind), t, *c).to(z_t.dtype)
        if self.config.prediction_type == "epsilon":
            return out
        return eps_from_v(z_t, out, self.schedule.level(t))

"""A Stable Diffusion in four parts: prompts -> context, eps_fn, latents <-> pictures, schedule."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, takewhile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dnp.energy import eps_from_v
from dnp.errors import NonFiniteError, SettingsError
from dnp.schedule import Schedule
from dnp.sd import captioner
from dnp.sd.attention import AttentionMaps
from dnp.sd.config import TextConfig, UNetConfig, VAEConfig
from dnp.sd.files import tensors
from dnp.sd.files.fingerprint import Fingerprint
from dnp.sd.finite import require_finite

MOST_PIXELS = 4096  # on a side, where one tensor of the VAE takes 8.6 GB


@dataclass(frozen=True)
class ModelConfig:
    """What a weights folder says about itself."""

    text: TextConfig
    unet: UNetConfig
    vae: VAEConfig
    prediction_type: str = "epsilon"  # or "v_prediction", which `eps` converts
    spacing: str = "leading"
    scales: dict[str, float] = field(default_factory=dict)  # recommended scale of each method
    words: tuple[str, ...] = ()  # of its whole world, if that is closed
    things: tuple[str, ...] = ()  # those words that a picture can be of
    attend_excite: dict[str, object] = field(default_factory=dict)  # recommended settings of ae
    captioner: Path | None = None  # its own captioner's folder
    files: Fingerprint = field(default_factory=lambda: Fingerprint([]))
    text_2: TextConfig | None = None  # SDXL's second text encoder
    phi: str = "text"  # what the empty prompt is: its encoding, or (SDXL) zeros

    @property
    def fingerprint(self) -> str:
        """Names the weights by every byte of their files and by all they say of how to sample.

        It is the files': what is changed in a loaded network (`model.unet.mid_block...`) is not in
        it, so whoever does that must save the network and load it again, or tell the pictures
        apart themselves. Hashed at the first call, a third of a second for a GB on two cores
        (`dnp/sd/files/fingerprint.py`). WeightsError if a file was changed.
        """
        return self.files.whole


class StableDiffusion:
    """Made by `dnp.load`. `eps` satisfies the contract of every rule and sampler here."""

    def __init__(
        self, text_encoder, unet, vae, open_tokenizer: Callable, schedule: Schedule,
        config: ModelConfig, entries: Mapping[str, Mapping[str, tensors.Stored]] | None = None,
    ):  # fmt: skip
        self.entries = entries or {}  # each part's tensors, as they lie in its files
        self.text_encoder, self.unet, self.vae = text_encoder, unet, vae
        self.open_tokenizer, self.schedule, self.config = open_tokenizer, schedule, config

    def check_finite(self) -> None:
        """Reads every number of the networks; WeightsError names a tensor with NaN or infinity."""
        for part, entries in self.entries.items():
            require_finite(getattr(self, part), entries)

    @cached_property
    def captioner(self) -> Callable | None:
        """The weights' own captioner, opened at its first use; or what was set here."""
        folder = self.config.captioner
        return None if folder is None else captioner.load_captioner(folder, self.device)

    @cached_property
    def tokenizer(self):
        """transformers' CLIP tokenizer, opened at its first use; WeightsError if it is none."""
        return self.open_tokenizer()

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    @property
    def vae_dtype(self) -> torch.dtype:
        """Of the decoder."""
        return self.vae.post_quant_conv.weight.dtype

    def encode(self, prompts: str | Sequence[str]) -> Tensor:
        """tau(c): prompts -> context (B, L, D), L tokens each, padded with the end token.

        A prompt over the limit keeps its first L - 2 tokens and the end token; a warning says
        which words were cut. SettingsError if a prompt is not text.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        return self.text_encoder(self.token_ids(prompts, self.tokenizer, self.config.text)[0])

    def token_ids(
        self, prompts: Sequence[str], tokenizer, config: TextConfig, warn: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The padded tokens (B, L) of prompts, and the place (B,) of each one's first end token."""
        limit = min(tokenizer.model_max_length, config.max_position_embeddings)
        rows, ends = [], []
        for prompt in prompts:
            ids = tokens_of(prompt, tokenizer)
            if len(ids) > limit:
                cut = tokenizer.decode(ids[limit - 1 : -1])
                if warn:
                    warnings.warn(
                        f"the prompt has {len(ids) - 2} tokens and the limit is {limit - 2}; "
                        f'cut off: "{cut}"',
                        stacklevel=3,
                    )
                ids = [*ids[: limit - 1], ids[-1]]
            rows.append(ids + [tokenizer.pad_token_id] * (limit - len(ids)))
            ends.append(ids.index(ids[-1]))
        return tuple(torch.tensor(x, device=self.device) for x in (rows, ends))

    def eps(self, z_t: Tensor, t: int | Tensor, c: Tensor) -> Tensor:
        """eps_theta(z_t; t, c): (B, C, H, W), () or (B,), (B or 1, L, D) -> (B, C, H, W).

        The network computes in its own dtype; eps comes in that of `z_t`.
        """
        t, kind = torch.as_tensor(t, device=z_t.device), self.dtype
        c = c.to(kind).expand(len(z_t), -1, -1)
        out = self.unet(z_t.to(kind), t, c).to(z_t.dtype)
        if self.config.prediction_type == "epsilon":
            return out
        return eps_from_v(z_t, out, self.schedule.level(t))

    def attention(self, level: int) -> AttentionMaps:
        """A recorder of the maps of cross-attention of one level of the U-Net."""
        return AttentionMaps(self.unet, level)

    def places(self, prompt: str, subjects: Sequence[str]) -> tuple[list[int], int]:
        """Where each subject ends among the prompt's own tokens, and how many these are.

        Of a subject of several tokens the last counts: the text encoder is causal, so only that one
        has read all of it. One that is named twice is looked for twice. SettingsError if a subject
        is not in the prompt, as whole words, not so often, or not before the tokens that are cut.
        """
        tokenizer = self.tokenizer
        room = min(tokenizer.model_max_length, self.config.text.max_position_embeddings) - 2
        own, *wanted = (tokens_of(text, tokenizer)[1:-1] for text in (prompt, *subjects))
        added = set(tokenizer.added_tokens_decoder)  # a word that was learnt is a token of its own
        text = tokenizer.convert_ids_to_tokens(own)
        ends = [token.endswith("</w>") or i in added for token, i in zip(text, own)]
        starts = [i for i in range(len(own)) if i == 0 or ends[i - 1]]
        found: list[int] = []
        for subject, ids in zip(subjects, wanted):
            places = [i + len(ids) - 1 for i in starts if ids and own[i : i + len(ids)] == ids]
            free = [i for i in places if i not in found]
            if not places:
                raise SettingsError(
                    f'the subject "{subject}" is not in the prompt "{prompt}"; name words of it, '
                    'as in --subjects "cat, dog".'
                )
            if not free:
                raise SettingsError(
                    f'the subject "{subject}" is named {list(subjects).count(subject)} times and '
                    f'stands in the prompt "{prompt}" {len(places)} times; name it once for each.'
                )
            if free[0] >= room:
                raise SettingsError(
                    f'the subject "{subject}" is cut off: the prompt has {len(own)} tokens and the '
                    f"limit is {room}; shorten the prompt, or name the subject earlier."
                )
            found.append(free[0])
        return found, min(len(own), room)

    @torch.no_grad()
    def decode(self, z_0: Tensor) -> list[Image.Image]:
        """Latents (B, C, H, W) -> RGB pictures. One at a time: no picture depends on another."""
        z = z_0.to(self.device, self.vae_dtype)
        pictures = []
        for row in z.split(1):
            x = self.vae.decode(row / self.config.vae.scaling_factor)[0]  # (3, fH, fW)
            if not torch.isfinite(x).all():
                raise NonFiniteError(
                    "the VAE's picture is not finite: the scale is too large, or its weights are "
                    "damaged; try a smaller --scale."
                )
            x = (x / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
            pictures.append(Image.fromarray((x * 255).round().astype(np.uint8)))
        return pictures

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of one size -> latents (B, C, H, W), the mean of the VAE's posterior."""
        x = torch.stack([torch.from_numpy(np.array(i.convert("RGB"))) for i in images])
        x = x.permute(0, 3, 1, 2).to(
            self.device, torch.promote_types(self.vae_dtype, torch.float32)
        )
        return self.vae.encode(x / 127.5 - 1)[0] * self.config.vae.scaling_factor

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latent of a picture of `size` (height, width); None: as trained."""
        f = self.config.vae.factor
        size = size or [n * f for n in self.config.unet.sample_size]
        if (
            not isinstance(size, tuple | list)
            or len(size) != 2
            or not all(type(n) is int for n in size)
        ):
            raise SettingsError(f"size {size!r} is not possible; give (height, width) in pixels.")
        height, width = size
        if not f <= min(size) <= max(size) <= MOST_PIXELS or height % f or width % f:
            raise SettingsError(
                f"a picture of {height} x {width} pixels is not possible; both sides must be "
                f"multiples of {f}, at most {MOST_PIXELS}."
            )
        return self.config.unet.in_channels, height // f, width // f


def tokens_of(prompt: str, tokenizer) -> list[int]:
    """A prompt's tokens with start and end, of any length; SettingsError if it is not text.

    A word that was learnt as several vectors (textual inversion) is all of them: <word> <word>_1
    <word>_2 ..., as diffusers reads it.
    """
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise SettingsError(f"the prompt {prompt!r} is not valid Unicode; type it again.") from None
    ids, added = tokenizer(prompt, verbose=False).input_ids, tokenizer.added_tokens_encoder
    out: list[int] = []
    for j, i in enumerate(ids):
        word = next((word for word, n in added.items() if n == i), None)
        numbers = (added.get(f"{word}_{k}") for k in count(1))
        rest = list(takewhile(lambda n: n is not None, numbers))
        whole = ids[j + 1 : j + 1 + len(rest)] == rest  # the prompt names them itself
        out += [i] if whole else [i, *rest]
    return out

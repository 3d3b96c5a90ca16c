"""A Stable Diffusion in four parts: prompts -> context, eps_fn, latents <-> pictures, schedule."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dnp import prompting
from dnp.energy import eps_from_v
from dnp.errors import NonFiniteError, SettingsError, WeightsError
from dnp.schedule import Schedule
from dnp.sd import families, layouts, weights
from dnp.sd.attention import AttentionMaps
from dnp.sd.clip import CLIPTextModel
from dnp.sd.config import TextConfig, UNetConfig, VAEConfig
from dnp.sd.device import choose_device
from dnp.sd.fingerprint import Fingerprint
from dnp.sd.finite import require_finite
from dnp.sd.unet import UNet
from dnp.sd.vae import VAE

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
        apart himself. Hashed at the first call, a third of a second for a GB on two cores, and then
        remembered on disk (`dnp/sd/fingerprint.py`). WeightsError if a file was written to since.
        """
        return self.files.whole


class StableDiffusion:
    """Made by `dnp.load`. `eps` satisfies the contract of every rule and sampler here."""

    def __init__(
        self, text_encoder, unet, vae, open_tokenizer: Callable, schedule: Schedule,
        config: ModelConfig, entries: Mapping[str, Mapping[str, weights.Entry]] | None = None,
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
        return None if folder is None else prompting.load_captioner(folder, self.device)

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
            try:
                prompt.encode("utf-8")
            except UnicodeEncodeError:
                raise SettingsError(
                    f"the prompt {prompt!r} is not valid Unicode; type it again."
                ) from None
            ids = tokenizer(prompt, verbose=False).input_ids
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
        """eps_theta(z_t; t, c): (B, C, H, W), () or (B,), (B or 1, L, D) -> (B, C, H, W)."""
        t = torch.as_tensor(t, device=z_t.device)
        out = self.unet(z_t, t, c.expand(len(z_t), -1, -1))
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
        is not in the prompt, as whole words.
        """
        tokenizer, config = self.tokenizer, self.config.text
        prompts, ends = self.token_ids([prompt, *subjects], tokenizer, config, warn=False)
        own, *wanted = (row[1:end].tolist() for row, end in zip(prompts, ends))
        text = tokenizer.convert_ids_to_tokens(own)
        starts = [i for i in range(len(own)) if i == 0 or text[i - 1].endswith("</w>")]
        found: list[int] = []
        for subject, ids in zip(subjects, wanted):
            places = (i + len(ids) - 1 for i in starts if ids and own[i : i + len(ids)] == ids)
            place = next((i for i in places if i not in found), None)
            if place is None:
                raise SettingsError(
                    f'the subject "{subject}" is not in the prompt "{prompt}"; name words of it, '
                    'as in --subjects "cat, dog".'
                )
            found.append(place)
        return found, len(own)

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
        x = x.permute(0, 3, 1, 2).to(self.device, self.vae_dtype)
        return self.vae.encode(x / 127.5 - 1)[0] * self.config.vae.scaling_factor

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latent of a picture of `size` (height, width); None: as trained."""
        f = self.config.vae.factor
        size = size or [n * f for n in self.config.unet.sample_size]
        if len(size) != 2 or not all(type(n) is int for n in size):
            raise SettingsError(f"size {size} is not possible; give (height, width) in pixels.")
        height, width = size
        if not f <= min(size) <= max(size) <= MOST_PIXELS or height % f or width % f:
            raise SettingsError(
                f"a picture of {height} x {width} pixels is not possible; both sides must be "
                f"multiples of {f}, at most {MOST_PIXELS}."
            )
        return self.config.unet.in_channels, height // f, width // f


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    prediction_type: str | None = None,
) -> StableDiffusion:
    """Opens weights as a StableDiffusion: a folder in the diffusers layout (`dnp/sd/weights.py`)
    or one file in the original layout (`dnp/sd/single_file.py`).

    `device` None is the CPU, `dtype` None is float32. The VAE stays in float32 when the rest is
    half precision, since float16 overflows in it. `prediction_type` (epsilon or v_prediction)
    overrides what the weights say. WeightsError says what is wrong with them: names and shapes now,
    the tokenizer when it is first used, numbers by `check_finite()`. Do not write to the files
    while a model lives. The process and torch's switches stay as they were; what makes a CPU faster
    is `dnp.sd.speed.apply(model)`.
    """
    path, device = Path(path), choose_device(str(device or "cpu"))
    dtype = dtype or torch.float32
    if dtype not in weights.DTYPES.values() or (device.type, dtype) == ("mps", torch.float64):
        raise SettingsError(f"{dtype} cannot be used on {device.type}; give torch.float32.")
    if prediction_type not in (None, "epsilon", "v_prediction"):
        raise SettingsError(
            f"prediction {prediction_type!r} is unknown; choose epsilon or v_prediction."
        )
    parts = layouts.read(path, prediction_type)
    files = Fingerprint(parts.files, parts.settings())
    text, unet, vae = parts.text, parts.unet, parts.vae
    text_width = text.hidden_size + (parts.text_2.hidden_size if parts.text_2 else 0)
    if text_width != unet.cross_attention_dim:
        raise WeightsError(
            f"{path}: the text encoder is {text_width} wide and the U-Net's cross-attention "
            f"{unet.cross_attention_dim}; take all parts from one model."
        )
    added = parts.text_2.pooled_dim + 6 * unet.added_freq_dim if parts.text_2 else 0
    if added != unet.added_dim:
        raise WeightsError(
            f"{path}: the pooled text and six numbers are {added} wide and the U-Net reads "
            f"{unet.added_dim}; take all parts from one model."
        )
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise WeightsError(
            f"{path}: the U-Net maps {unet.in_channels} to {unet.out_channels} channels and the "
            f"VAE has {vae.latent_channels}; models that upscale or edit are not supported."
        )
    wide = torch.promote_types(dtype, torch.float32)
    networks = []
    second = [(CLIPTextModel, parts.text_2, parts.tensors.get("text_encoder_2"), dtype)]
    for build, config, (entries, what), kind in (
        (CLIPTextModel, text, parts.tensors["text_encoder"], dtype),
        (UNet, unet, parts.tensors["unet"], dtype),
        (VAE, vae, parts.tensors["vae"], wide),
        *(second if parts.text_2 else []),
    ):
        with torch.device("meta"):
            network = build(config)
        networks.append(weights.fill(network, entries, device, kind, what))
    config = ModelConfig(
        text, unet, vae, parts.prediction_type, parts.spacing,
        *parts.recommended, parts.captioner, files, parts.text_2, parts.phi,
    )  # fmt: skip
    entries = {part: of_part for part, (of_part, _) in parts.tensors.items()}
    if parts.text_2:
        from dnp.sd.sdxl import StableDiffusionXL  # which builds on this file

        *networks, text_encoder_2 = networks
        return StableDiffusionXL(
            *networks, parts.tokenizer, parts.schedule, config, entries,
            text_encoder_2=text_encoder_2, open_tokenizer_2=parts.tokenizer_2,
        )  # fmt: skip
    return StableDiffusion(*networks, parts.tokenizer, parts.schedule, config, entries)


def describe(path: str | Path) -> str:
    """What weights hold, without reading a tensor's numbers: layout, parts, parameters, sha256."""
    path = Path(path)
    parts = layouts.read(path)
    rows = [f"layout      {'diffusers folder' if path.is_dir() else 'original single file'}"]
    if family := families.of(parts.unet):
        rows.append(f"family      {family.called}")
    networks = (
        ("text", CLIPTextModel, parts.text),
        ("unet", UNet, parts.unet),
        ("vae", VAE, parts.vae),
        *([("text_2", CLIPTextModel, parts.text_2)] if parts.text_2 else []),
    )
    for name, build, config in networks:
        with torch.device("meta"):
            count = sum(p.numel() for p in build(config).parameters())
        said = ", ".join(f"{k} {v}" for k, v in vars(config).items())
        rows.append(f"{name:<11} {count:,} parameters: {said}")
    rows.append(f"predicts    {parts.prediction_type}, {parts.spacing} spacing")
    if parts.text_2:
        rows.append(f"phi         {parts.phi}")
    for file in parts.files:
        with file.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        rows.append(f"sha256      {digest}  {file}  {file.stat().st_size:,} bytes")
    return "\n".join(rows)

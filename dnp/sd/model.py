"""A Stable Diffusion in four parts: prompts -> context, eps_fn, latents <-> pictures, schedule."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dnp.energy import eps_from_v
from dnp.errors import NonFiniteError, SettingsError, WeightsError
from dnp.schedule import Schedule
from dnp.sd import weights
from dnp.sd.clip import CLIPTextModel
from dnp.sd.config import TextConfig, UNetConfig, VAEConfig
from dnp.sd.unet import UNet
from dnp.sd.vae import VAE


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
    captioner: Path | None = None  # its own captioner's folder
    fingerprint: str = ""


class StableDiffusion:
    """Made by `dnp.load`. `eps` satisfies the contract of every rule and sampler here."""

    def __init__(self, text_encoder, unet, vae, tokenizer, schedule: Schedule, config: ModelConfig):
        self.text_encoder, self.unet, self.vae = text_encoder, unet, vae
        self.tokenizer, self.schedule, self.config = tokenizer, schedule, config
        self.own_captioner = None  # loaded by `dnp.generate` when it is first needed

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    def encode(self, prompts: str | Sequence[str]) -> Tensor:
        """tau(c): prompts -> context (B, L, D), L tokens each, padded with the end token.

        A prompt over the limit keeps its first L - 2 tokens and the end token; a warning says
        which words were cut. SettingsError if a prompt is not text.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        limit = min(self.tokenizer.model_max_length, self.config.text.max_position_embeddings)
        rows = []
        for prompt in prompts:
            try:
                prompt.encode("utf-8")
            except UnicodeEncodeError:
                raise SettingsError(
                    f"the prompt {prompt!r} is not valid Unicode; type it again."
                ) from None
            ids = self.tokenizer(prompt, verbose=False).input_ids
            if len(ids) > limit:
                cut = self.tokenizer.decode(ids[limit - 1 : -1])
                warnings.warn(
                    f"the prompt has {len(ids) - 2} tokens and the limit is {limit - 2}; "
                    f'cut off: "{cut}"',
                    stacklevel=2,
                )
                ids = [*ids[: limit - 1], ids[-1]]
            rows.append(ids + [self.tokenizer.pad_token_id] * (limit - len(ids)))
        return self.text_encoder(torch.tensor(rows, device=self.device))

    def eps(self, z_t: Tensor, t: int | Tensor, c: Tensor) -> Tensor:
        """eps_theta(z_t; t, c): (B, C, H, W), () or (B,), (B or 1, L, D) -> (B, C, H, W)."""
        t = torch.as_tensor(t, device=z_t.device)
        out = self.unet(z_t, t, c.expand(len(z_t), -1, -1))
        if self.config.prediction_type == "epsilon":
            return out
        return eps_from_v(z_t, out, self.schedule.level(t))

    @torch.no_grad()
    def decode(self, z_0: Tensor) -> list[Image.Image]:
        """Latents (B, C, H, W) -> RGB pictures. One at a time: no picture depends on another."""
        z = z_0.to(self.device, self.vae.post_quant_conv.weight.dtype)
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
        x = x.permute(0, 3, 1, 2).to(self.device, self.vae.post_quant_conv.weight.dtype)
        return self.vae.encode(x / 127.5 - 1)[0] * self.config.vae.scaling_factor

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latent of a picture of `size` (height, width); None: as trained."""
        f = self.config.vae.factor
        size = size or [n * f for n in self.config.unet.sample_size]
        if len(size) != 2 or not all(type(n) is int for n in size):
            raise SettingsError(f"size {size} is not possible; give (height, width) in pixels.")
        height, width = size
        if height < f or width < f or height % f or width % f:
            raise SettingsError(
                f"a picture of {height} x {width} pixels is not possible; both sides must be "
                f"multiples of {f}."
            )
        return self.config.unet.in_channels, height // f, width // f


def load(
    path: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> StableDiffusion:
    """Opens a weights folder in the diffusers layout (`dnp/sd/weights.py`) as a StableDiffusion.

    `device` None is the CPU, `dtype` None is float32. The VAE stays in float32 when the rest is
    half precision, since float16 overflows in it. WeightsError says what is wrong with a folder.
    """
    path, device = Path(path), torch.device(device or "cpu")
    dtype = dtype or torch.float32
    try:
        path.stat()
    except OSError as e:
        raise WeightsError(
            f"{path}: no such folder ({e.strerror}); give --weights a folder that holds unet/."
        ) from None
    if not path.is_dir():
        raise WeightsError(
            f"{path} is not a folder; give --weights a folder in the diffusers layout, with unet/, "
            "vae/, text_encoder/, tokenizer/ and scheduler/."
        )
    parts = {
        "text_encoder": (TextConfig, CLIPTextModel, "model", dtype),
        "unet": (UNetConfig, UNet, "diffusion_pytorch_model", dtype),
        "vae": (
            VAEConfig,
            VAE,
            "diffusion_pytorch_model",
            torch.promote_types(dtype, torch.float32),
        ),
    }
    configs = {
        p: c.from_dict(weights.read_json(path / p / "config.json")) for p, (c, *_) in parts.items()
    }
    text, unet, vae = (configs[p] for p in parts)
    if text.hidden_size != unet.cross_attention_dim:
        raise WeightsError(
            f"{path}: the text encoder is {text.hidden_size} wide and the U-Net's cross-attention "
            f"{unet.cross_attention_dim}; take all parts from one model."
        )
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise WeightsError(
            f"{path}: the U-Net maps {unet.in_channels} to {unet.out_channels} channels and the "
            f"VAE has {vae.latent_channels}; inpainting and upscaling models are not supported."
        )
    files, networks = [], []
    for part, (_, build, stem, part_dtype) in parts.items():
        files.append(weights.find(path / part, stem))
        with torch.device("meta"):
            network = build(configs[part])
        networks.append(weights.fill(network, files[-1], device, part_dtype))
    if device.type == "cpu":
        networks[1:] = [n.to(memory_format=torch.channels_last) for n in networks[1:]]
    schedule, prediction_type, spacing = _schedule(path / "scheduler" / "scheduler_config.json")
    captioner = path / "captioner" if (path / "captioner" / "config.json").is_file() else None
    config = ModelConfig(
        text, unet, vae, prediction_type, spacing, *_recommended(path), captioner,
        weights.fingerprint(files),
    )  # fmt: skip
    return StableDiffusion(*networks, _tokenizer(path / "tokenizer", text), schedule, config)


def _schedule(path: Path) -> tuple[Schedule, str, str]:
    """Schedule, prediction type and spacing that a scheduler config describes.

    Any epsilon or v scheduler of diffusers is read, since all share these keys; sampling is DDIM
    over explicit pairs. (diffusers' own DDIM steps by a constant stride, which is another walk for
    trailing and linspace spacing.) Keys that only some schedulers write have Stable Diffusion's
    values: steps_offset 1, set_alpha_to_one false.
    """
    d = weights.read_json(path)
    kinds = {
        "beta_schedule": ("scaled_linear", "linear"),  # the first is the default
        "prediction_type": ("epsilon", "v_prediction"),
        "timestep_spacing": ("leading", "trailing", "linspace"),
        "trained_betas": (None,),
        "thresholding": (False,),
        "rescale_betas_zero_snr": (False,),
    }
    chosen = {key: d.get(key, allowed[0]) for key, allowed in kinds.items()}
    for key, allowed in kinds.items():
        if chosen[key] not in allowed:
            raise WeightsError(
                f"{path}: {key} = {chosen[key]!r} is not supported; it must be "
                f"{' or '.join(map(repr, allowed))}."
            )
    if d.get("clip_sample"):
        warnings.warn(f"{path}: clip_sample is true, but latents are never clipped", stacklevel=3)
    start, end, T = (d.get(k) for k in ("beta_start", "beta_end", "num_train_timesteps"))
    if not (
        _number(start)
        and _number(end)
        and 0 < start <= end < 1
        and type(T) is int
        and 0 < T < 10**6
    ):
        raise WeightsError(
            f"{path}: beta from {start!r} to {end!r} in {T!r} steps is not possible; restore the "
            "file."
        )
    power = 2 if chosen["beta_schedule"] == "scaled_linear" else 1
    betas = (
        torch.linspace(start ** (1 / power), end ** (1 / power), T, dtype=torch.float64) ** power
    )
    offset, to_one = d.get("steps_offset", 1), d.get("set_alpha_to_one", False)
    if type(offset) is not int or not 0 <= offset < T:
        raise WeightsError(f"{path}: steps_offset = {offset!r} is not possible; restore the file.")
    schedule = Schedule.from_betas(betas, set_alpha_to_one=bool(to_one), steps_offset=offset)
    return schedule, chosen["prediction_type"], chosen["timestep_spacing"]


def _recommended(path: Path) -> tuple[dict[str, float], tuple[str, ...]]:
    """From `dnp.json`, if the folder has one: scale of each method, and all words of its world."""
    file = path / "dnp.json"
    if not file.exists():
        return {}, ()
    d = weights.read_json(file)
    scales, words = d.get("scale", {}), d.get("words", [])
    if not isinstance(scales, dict) or not all(_number(s) for s in scales.values()):
        raise WeightsError(f"{file}: scale must map methods to finite numbers; restore the file.")
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise WeightsError(f"{file}: words must be a list of words; restore the file.")
    return {method: float(s) for method, s in scales.items()}, tuple(words)


def _number(x: object) -> bool:
    return type(x) in (int, float) and abs(x) < 1e30  # also false for NaN


def _tokenizer(path: Path, config: TextConfig):
    """transformers' CLIP tokenizer from its files; WeightsError if they cannot serve."""
    files = {p.name for p in path.glob("*")} if path.is_dir() else set()
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        raise WeightsError(
            f"{path}: neither tokenizer.json nor vocab.json and merges.txt are there; take them "
            "from the source of the weights."
        )
    from transformers import CLIPTokenizer  # slow to import, so not before it is needed

    try:
        tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        most = max(tokenizer.get_vocab().values())
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    except Exception as e:  # transformers raises whatever its parsers raise
        reason = str(e).strip().split("\n")[0]
        raise WeightsError(f"{path}: no CLIP tokenizer ({reason}); restore the folder.") from None
    if most >= config.vocab_size or None in ends:
        raise WeightsError(
            f"{path}: its tokens go up to {most} and its start, end and padding are {ends}, but "
            f"the text encoder knows 0 to {config.vocab_size - 1}; take both from one model."
        )
    return tokenizer

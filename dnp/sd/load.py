"""Opens weights: `load` makes a model of them, `describe` says what they hold."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from dnp import process
from dnp.errors import SettingsError, WeightsError
from dnp.sd import families, find_weights
from dnp.sd.clip import CLIPTextModel
from dnp.sd.device import choose_device, halves_vae
from dnp.sd.files import folder, tensors
from dnp.sd.files.fingerprint import Fingerprint
from dnp.sd.model import ModelConfig, StableDiffusion
from dnp.sd.sdxl import StableDiffusionXL
from dnp.sd.unet import UNet
from dnp.sd.vae import VAE


@process.apart()
def load(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    prediction_type: str | None = None,
    vae_dtype: torch.dtype | None = None,
) -> StableDiffusion:
    """Opens weights as a StableDiffusion: a folder in the diffusers layout
    (`dnp/sd/files/tensors.py`) or one file in the original layout (`dnp/sd/files/names.py`). A
    relative path is looked for here, and then in the clone that the package lies in.

    `device` None is the CPU, `dtype` None is float32. Where it is half precision, the VAE stays in
    float32, since float16 overflows in it, and so does the text encoder on a CPU: it runs once. On
    a CPU with bf16 units bfloat16 is the VAE decoder's too, unless `vae_dtype` is float32.
    `prediction_type` (epsilon or v_prediction) overrides what the weights say. WeightsError says
    what is wrong with them: names and shapes now, the tokenizer when it is first used, numbers by
    `check_finite()`. Do not write to the files while a model lives. The process and torch's
    switches stay as they were; what makes a CPU faster is `dnp.sd.speed.apply(model)`.
    """
    path, device = find_weights(path), choose_device(str(device or "cpu"))
    dtype = dtype or torch.float32
    if dtype not in tensors.DTYPES.values() or (device.type, dtype) == ("mps", torch.float64):
        raise SettingsError(f"{dtype} cannot be used on {device.type}; give torch.float32.")
    if prediction_type not in (None, "epsilon", "v_prediction"):
        raise SettingsError(
            f"prediction {prediction_type!r} is unknown; choose epsilon or v_prediction."
        )
    wide = torch.promote_types(dtype, torch.float32)
    if vae_dtype is None:
        vae_dtype = torch.bfloat16 if halves_vae(device, dtype) else wide
    if vae_dtype not in (wide, torch.bfloat16):
        raise SettingsError(f"the VAE cannot be {vae_dtype} here; give {wide} or torch.bfloat16.")
    require_weights(path)
    path = path.absolute()  # its tokenizer, captioner and digests are read later, wherever that is
    parts = folder.read(path, prediction_type)
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
    of_text = wide if device.type == "cpu" else dtype
    networks = []
    second = [(CLIPTextModel, parts.text_2, parts.tensors.get("text_encoder_2"), of_text)]
    for build, config, (entries, what), kind in (
        (CLIPTextModel, text, parts.tensors["text_encoder"], of_text),
        (UNet, unet, parts.tensors["unet"], dtype),
        (VAE, vae, parts.tensors["vae"], wide),
        *(second if parts.text_2 else []),
    ):
        with tensors.unfilled():
            network = build(config)
        networks.append(tensors.fill(network, entries, device, kind, what))
    if vae_dtype != wide:
        networks[2].decoder_to(vae_dtype)
    config = ModelConfig(
        text, unet, vae, parts.prediction_type, parts.spacing,
        *parts.recommended, parts.captioner, files, parts.text_2, parts.phi,
    )  # fmt: skip
    entries = {part: of_part for part, (of_part, _) in parts.tensors.items()}
    if parts.text_2:
        *networks, text_encoder_2 = networks
        # In some files transposed, in others at an odd byte: both change a product's last bits.
        projection = text_encoder_2.text_projection.weight
        projection.data = projection.data.clone(memory_format=torch.contiguous_format)
        return StableDiffusionXL(
            *networks, parts.tokenizer, parts.schedule, config, entries,
            text_encoder_2=text_encoder_2, open_tokenizer_2=parts.tokenizer_2,
        )  # fmt: skip
    return StableDiffusion(*networks, parts.tokenizer, parts.schedule, config, entries)


def require_weights(path: Path) -> None:
    """WeightsError for the miniature where only the package is installed, and for Python code."""
    if path.parts[-2:] == ("weights", "mini") and not path.exists():
        raise WeightsError(
            f"{path}: no such folder; the miniature comes with the repository and not with the "
            "package, so clone the repository and give the path of its weights/mini."
        )
    if path.suffix == ".py":
        raise WeightsError(
            f"{path} is Python code and not weights; a model of your own is `model=FILE.py:NAME` "
            "for the commands, and itself in Python (dnp/methods/models.py)."
        )


def describe(path: str | Path) -> str:
    """What weights hold, without reading a tensor's numbers: layout, parts, parameters, sha256."""
    path = find_weights(path)
    require_weights(path)
    parts = folder.read(path)
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
        with tensors.unfilled():
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

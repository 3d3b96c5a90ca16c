"""What weights may be that are no Stable Diffusion 1.x or 2.x, and what to do with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_LAYER = "which changes a model and is none: merge it into its model, and give the merged file"
_STEERS = "which steers a model and draws nothing alone: give the model that it was made for"
_WORD = "which teaches a model a word and is none: it cannot be used here, so give the model itself"
_ALONE = "give the whole model, in one file or as a folder in the diffusers layout"
_OTHER = "which is not supported: give weights of Stable Diffusion 1.x, 2.x or XL"
_PLAIN = "which are not read: fetch the variant in float16 or float32"
_REFINER = f"the refiner of SDXL, {_OTHER}"
_SDXL = "SDXL, which is not supported in one file: give its folder in the diffusers layout"
_UNET = "the U-Net of a diffusers folder: give the folder above it"
# By a name in a file; the first that fits.
_FILES = {
    r"\.quant_state\.|\.absmax$|\.qweight$|(^|\.)scaled_fp8$": f"quantised weights, {_PLAIN}",
    r"^(ip_adapter|image_proj)\.": f"an IP-Adapter, {_STEERS}",
    r"(^|[._])lokr_": f"a LoKr (LyCORIS), {_LAYER}",
    r"(^|[._])hada_": f"a LoHa (LyCORIS), {_LAYER}",
    r"(^|[._])oft_(blocks|diag)|^lycoris_": f"a LyCORIS network, {_LAYER}",
    r"lora_|[._]lora[._]|\.processor\.": f"a LoRA, {_LAYER}",
    r"^(control_model|controlnet_\w+|input_hint_block)\.": f"a ControlNet, {_STEERS}",
    r"motion_modules\.": f"an AnimateDiff motion module, {_STEERS}",
    r"time_stack|time_mixer|temporal_(res|transformer)|\.open_clip\.":
        f"Stable Video Diffusion, {_OTHER}",
    r"^conditioner\.embedders\.0\.model\.": _REFINER,
    r"^conditioner\.embedders\.|^(model\.diffusion_model\.)?label_emb\.|^add_embedding\.": _SDXL,
    r"joint_blocks\.": f"Stable Diffusion 3, {_OTHER}",
    r"double_blocks\.|^single_transformer_blocks\.": f"Flux, {_OTHER}",
    r"^down_blocks\.": _UNET,
    r"^(encoder|decoder)\.(conv_|mid|up|down)": f"a VAE alone: {_ALONE}",
    r"^encoder\.block\.|^shared\.weight$": f"a T5 text encoder alone, {_OTHER}",
    r"^vision_model\.|^visual\.": f"a CLIP model of pictures and texts: {_ALONE}",
    r"^text_model\.|^(encoder\.layers|embeddings|transformer\.resblocks|token_embedding)\.":
        f"a text encoder alone: {_ALONE}",
    r"^(emb_params|string_to_param.*|clip_[gl])$": f"a textual inversion, {_WORD}",
}  # fmt: skip
# By the start of the class that a folder's model_index.json or config.json names.
_FOLDERS = {
    "StableDiffusionXLImg2Img": _REFINER,
    "StableDiffusionXLInpaint": f"the inpainting model of SDXL, {_OTHER}",
    "StableVideoDiffusion": f"Stable Video Diffusion, {_OTHER}",
    "StableDiffusion3": f"Stable Diffusion 3, {_OTHER}",
    "Flux": f"Flux, {_OTHER}",
    "ControlNet": f"a ControlNet, {_STEERS}",
    "UNet2DCondition": _UNET,
    "AutoencoderKL": f"a VAE alone: {_ALONE}",
}


def of_file(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """ "this looks like" a kind and what to do, by names and shapes; "" for no idea."""
    told = next(
        (told for names, told in _FILES.items() if any(map(re.compile(names).search, shapes))), ""
    )
    cross = {v[1] for k, v in shapes.items() if k.endswith("attn2.to_k.weight") and len(v) == 2}
    if told in ("", _UNET, _SDXL):  # the width of the texts that it reads says more
        told = _REFINER if 1280 in cross else _SDXL if 2048 in cross else told
    words = [v for v in shapes.values() if len(v) in (1, 2) and v[-1] in (768, 1024, 1280)]
    if not told and len(words) == len(shapes) <= 2:  # its name is the word that it teaches
        told = f"a textual inversion, {_WORD}"
    return told and f"this looks like {told}"


def of_folder(path: Path, name: object) -> str:
    """The same of a folder whose configs name the class `name`, or that holds a LoRA alone."""
    if (path / "pytorch_lora_weights.safetensors").is_file() and not (path / "unet").is_dir():
        return f"this looks like a LoRA, {_LAYER}"
    told = (told for kind, told in _FOLDERS.items() if str(name).startswith(kind))
    return next((f"this looks like {t}" for t in told), "")

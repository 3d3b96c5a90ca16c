"""What weights may be that are not Stable Diffusion 1.x, 2.x or XL, and what to do with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dnp.sd.config import UNetConfig

_PIPE = "a diffusers pipeline and pass that to dnp.from_diffusers"
_LAYER = (
    "which is not a full model: merge it into its model and give the merged file, or load "
    f"both in {_PIPE}"
)
_STEERS = "which steers a model and cannot draw alone: give the model that it was made for"
_WORD = f"which teaches a model a word: give the model itself, or load both in {_PIPE}"
_ALONE = "give the whole model, in one file or as a folder in the diffusers layout"
_OTHER = "which is not supported: give weights of Stable Diffusion 1.x, 2.x or XL"
_ELSEWHERE = "which is not read here: load it in a diffusers pipeline, for dnp.pipelines"
_PLAIN = "which are not read: fetch the variant in float16 or float32"
_REFINER = f"the refiner of SDXL, {_OTHER}"
_INPAINT_XL = f"the inpainting model of SDXL, {_OTHER}"
_SD3, _FLUX = f"Stable Diffusion 3, {_ELSEWHERE}", f"Flux, {_ELSEWHERE}"
_UNET = "the U-Net of a diffusers folder: give the folder above it"
GGUF = f"this is GGUF, quantised weights, {_PLAIN}, as .safetensors"
# By a name in a file; the first that fits.
_FILES = {
    r"^edm_vpred\.": f"CosXL, which has EDM's noise levels, {_OTHER}",
    r"^edm_(mean|std)$": f"Playground v2.5, which has EDM's noise levels, {_OTHER}",
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
    r"joint_blocks\.": _SD3,
    r"double_blocks\.|^single_transformer_blocks\.": _FLUX,
    r"^context_embedder\.": _SD3,
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
    "StableDiffusionXLInpaint": _INPAINT_XL,
    "StableVideoDiffusion": f"Stable Video Diffusion, {_OTHER}",
    "StableDiffusion3": _SD3,
    "SD3": _SD3,
    "Flux": _FLUX,
    "ControlNet": f"a ControlNet, {_STEERS}",
    "UNet2DCondition": _UNET,
    "AutoencoderKL": f"a VAE alone: {_ALONE}",
}
# By a file in a folder that holds no U-Net.
_HOLDS = {
    "pytorch_lora_weights.safetensors": f"a LoRA, {_LAYER}",
    "learned_embeds.safetensors": f"a textual inversion, {_WORD}",
}


def of_file(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """ "this looks like" a kind and what to do, by names and shapes; "" for no idea."""
    looks = next(
        (kind for names, kind in _FILES.items() if any(map(re.compile(names).search, shapes))), ""
    )
    cross = {v[1] for k, v in shapes.items() if k.endswith("attn2.to_k.weight") and len(v) == 2}
    if looks in ("", _UNET) and 1280 in cross:  # the width of the texts that it reads says more
        looks = _REFINER
    words = [v for v in shapes.values() if len(v) in (1, 2) and v[-1] in (768, 1024, 1280)]
    if not looks and len(words) == len(shapes) <= 2:  # its name is the word that it teaches
        looks = f"a textual inversion, {_WORD}"
    return looks and f"this looks like {looks}"


def of_folder(path: Path, says: Mapping[str, object]) -> str:
    """The same of a folder, by what its model_index.json or config.json says and what it holds."""
    looks, name = "", str(says.get("_class_name"))
    whole = (path / "unet").is_dir()
    for file, kind in _HOLDS.items():
        if (path / file).is_file() and not whole:
            looks = kind
    for start, kind in _FOLDERS.items():
        if name.startswith(start):
            looks = looks or kind
    second_alone = not (path / "text_encoder").is_dir() and (
        (path / "text_encoder_2").is_dir() or name.startswith("StableDiffusionXLImg2Img")
    )  # the refiner has only SDXL's second text encoder
    if second_alone or says.get("requires_aesthetics_score"):
        looks = looks or _REFINER
    return looks and f"this looks like {looks}"


_ADAPTED = (
    "a LoRA lies in it beside the network: in the open pipeline call pipe.fuse_lora() and then "
    "pipe.unload_lora_weights(), and save it again with pipe.save_pretrained(FOLDER)"
)


def of_names(names: Iterable[str]) -> str:
    """What a network of a folder holds beside its own tensors: a LoRA as peft names it."""
    return _ADAPTED if any(re.search(r"\.(base_layer|lora_\w+)\.", k) for k in names) else ""


def of_part(path: Path) -> str:
    """The same of a part of which transformers saved the LoRA alone."""
    return _ADAPTED if (path / "adapter_config.json").is_file() else ""


def of_unet(unet: UNetConfig) -> str:
    """The same of a U-Net that reads another picture beside the latent."""
    if unet.in_channels != 9:  # latent, masked latent, mask
        return ""
    looks = _INPAINT_XL if unet.added_dim else f"an inpainting model, {_OTHER}"
    return f"this looks like {looks}"

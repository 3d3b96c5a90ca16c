"""The two layouts of a Stable Diffusion on disk, each read as the same `Contents`.

A diffusers folder says everything in its configs; a single file says it by names and shapes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from reprlib import repr as brief  # a value may be any length

import torch

from dnp.errors import WeightsError, is_finite
from dnp.schedule import Schedule
from dnp.sd.config import TextConfig, UNetConfig, VAEConfig
from dnp.sd.files import (
    data_only,
    names,
    not_ours,
    recommendations,
    schedulers,
    single_file,
    tensors,
)
from dnp.sd.files.contents import Contents
from dnp.sd.files.fingerprint import small_files


def read(path: Path, predicts: str | None = None) -> Contents:
    """What a folder or a file holds; WeightsError if it is neither. `predicts`, epsilon or
    v_prediction, is the user's word for it, which goes before the weights'."""
    try:
        path.stat()
    except (OSError, ValueError) as e:
        shown = str(path) if str(path).isprintable() else ascii(str(path))
        reason = f" ({getattr(e, 'strerror', 'no possible name')})"
        reason = "" if isinstance(e, FileNotFoundError) else reason
        raise WeightsError(
            f"{shown}: no such file or folder{reason}; nothing is downloaded, so give --weights a "
            "folder that holds unet/, or a .safetensors file."
        ) from None
    if path.is_dir():
        if inside := data_only.lies_in(path, "unet"):
            raise WeightsError(f"{path} is a folder of the hub's cache; give {inside}.")
        parts = folder(path)
        return replace(parts, prediction_type=predicts or parts.prediction_type)
    if not path.is_file():
        raise WeightsError(f"{path} is not a regular file; give --weights a file or a folder.")
    return single_file.read(path, predicts)


def folder(path: Path) -> Contents:
    """A folder in the diffusers layout."""
    index = _index(path)
    if foreign_kind := not_ours.of_folder(path, index):
        raise WeightsError(f"{path}: {foreign_kind}.")
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if foreign_kind := not_ours.of_part(path / part):
            raise WeightsError(f"{path / part}: {foreign_kind}.")
    stem = "diffusion_pytorch_model"
    kinds = {"text_encoder": TextConfig, "unet": UNetConfig, "vae": VAEConfig}
    configs = {
        p: c.from_dict(tensors.read_json(path / p / "config.json")) for p, c in kinds.items()
    }
    if foreign_kind := not_ours.of_unet(configs["unet"]):
        raise WeightsError(f"{path}: {foreign_kind}.")
    second = {}
    if configs["unet"].added_dim:
        d = tensors.read_json(path / "text_encoder_2" / "config.json")
        dim = d.get("projection_dim", 512)  # transformers' default
        configs["text_encoder"] = replace(configs["text_encoder"], penultimate=True)
        text_2 = replace(TextConfig.from_dict(d), penultimate=True, pooled_dim=dim)
        zeros = index.get("force_zeros_for_empty_prompt", True)
        second = {
            "text_2": text_2, "tokenizer_2": _tokenizer(path / "tokenizer_2", text_2),
            "tokenizer_2_files": small_files(path / "tokenizer_2"),
            "phi": "zeros" if zeros else "text",
        }  # fmt: skip
    found_tensors, files = {}, []
    for part in [*kinds, *(["text_encoder_2"] if second else [])]:
        found = tensors.find(path / part, "model" if part.startswith("text") else stem)
        config = path / part / "config.json"
        what = f"{found[0]} does not belong to the network that {config} describes"
        entries = tensors.without_harmless(tensors.open_files(found))
        if foreign_kind := not_ours.of_names(entries):
            raise WeightsError(f"{found[0]}: {foreign_kind}.")
        found_tensors[part] = (tensors.renamed(entries, tensors.rename, path / part), what)
        files += found
    levels = _schedule(path / "scheduler" / "scheduler_config.json", not second)
    captioner = path / "captioner" if (path / "captioner" / "config.json").is_file() else None
    return Contents(
        *configs.values(), found_tensors, files, *levels,
        _tokenizer(path / "tokenizer", configs["text_encoder"]), small_files(path / "tokenizer"),
        recommendations.read(path), captioner, **second,
    )  # fmt: skip


def _index(path: Path) -> dict:
    """What a folder says about itself: of a whole pipeline, or of one part alone."""
    indices = [path / n for n in ("model_index.json", "config.json") if (path / n).is_file()]
    return tensors.read_json(indices[0]) if indices else {}


def _schedule(path: Path, one_later: bool) -> tuple[Schedule, str, str, dict[str, object]]:
    """`one_later`: StableDiffusionPipeline, unlike SDXL's, makes a missing steps_offset 1."""
    offset = {"steps_offset": 1} if one_later else {}
    return read_schedule({**offset, **tensors.read_json(path)}, path)


def read_schedule(d: dict, path: Path | str) -> tuple[Schedule, str, str, dict[str, object]]:
    """Schedule, prediction type, spacing and the numbers of it that a scheduler config describes.

    Any epsilon or v scheduler of diffusers is read, since all share these keys; sampling is DDIM
    over explicit pairs. (diffusers' own DDIM steps by a constant stride, which is another walk for
    trailing and linspace spacing.) A key that is missing has the default of the scheduler's class
    (`dnp/sd/files/schedulers.py`); what no class says has Stable Diffusion's value.
    """
    d = schedulers.filled(d, path)
    kinds = {
        "beta_schedule": ("linear", "scaled_linear"),  # the first is diffusers' default
        "prediction_type": ("epsilon", "v_prediction"),
        "timestep_spacing": ("leading", "trailing", "linspace"),
        "trained_betas": (None,),
        "thresholding": (False, None),
        "rescale_betas_zero_snr": (False, None),
    }
    chosen = {key: d.get(key, allowed[0]) for key, allowed in kinds.items()}
    for key, allowed in kinds.items():
        if chosen[key] not in allowed:
            raise WeightsError(
                f"{path}: {key} = {brief(chosen[key])} is not supported; it must be "
                f"{' or '.join(map(repr, allowed))}."
            )
    if d.get("clip_sample"):
        warnings.warn(f"{path}: clip_sample is true, but latents are never clipped", stacklevel=3)
    start, end, T = (d.get(k) for k in ("beta_start", "beta_end", "num_train_timesteps"))
    if not (
        is_finite(start)
        and is_finite(end)
        and 0 < start <= end < 1
        and type(T) is int
        and 0 < T < 10**6
    ):
        raise WeightsError(
            f"{path}: beta from {brief(start)} to {brief(end)} in {brief(T)} steps is not "
            "possible; restore the file."
        )
    power = 2 if chosen["beta_schedule"] == "scaled_linear" else 1
    betas = (
        torch.linspace(start ** (1 / power), end ** (1 / power), T, dtype=torch.float64) ** power
    )
    offset, to_one = d.get("steps_offset", 1), d.get("set_alpha_to_one", False)
    if type(offset) is not int or not 0 <= offset < T:
        raise WeightsError(
            f"{path}: steps_offset = {brief(offset)} is not possible; restore the file."
        )
    schedule = Schedule.from_betas(betas, set_alpha_to_one=bool(to_one), steps_offset=offset)
    levels = {"betas": (chosen["beta_schedule"], float(start), float(end), T)}
    levels |= {"steps_offset": offset, "set_alpha_to_one": bool(to_one)}
    return schedule, chosen["prediction_type"], chosen["timestep_spacing"], levels


def _tokenizer(path: Path, config: TextConfig) -> Callable:
    """What opens the tokenizer in a folder; WeightsError, now, if its files are not there."""
    files = {p.name for p in path.glob("*") if p.is_file()} if path.is_dir() else set()
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        raise WeightsError(
            f"{path}: neither tokenizer.json nor vocab.json and merges.txt are there; take them "
            "from the source of the weights."
        )
    return partial(_open_tokenizer, path, config)


def _open_tokenizer(path: Path, config: TextConfig):
    """transformers' CLIP tokenizer from its files; WeightsError if they cannot serve."""
    from transformers import CLIPTokenizer  # slow to import, so not before it is needed

    data_only.check_folder(path)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(path, **data_only.DATA_ONLY)
        most = max(tokenizer.get_vocab().values())
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        length = tokenizer.model_max_length
        if type(length) is not int or length < 2 or len(tokenizer("a").input_ids) < 2:
            raise ValueError("it has no start and end token, or no room for them")
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            raise ValueError("it knows no words")
        if not (path / "tokenizer.json").is_file():
            with (path / "merges.txt").open(encoding="utf-8") as f:
                merges = sum(len(line.split()) == 2 and line[:8] != "#version" for line in f)
            # a token is one of 512 bytes, a merge, the start or the end
            if merges < len(tensors.read_json(path / "vocab.json")) - 514:
                raise ValueError("merges.txt is cut off")
    except Exception as e:  # transformers raises whatever its parsers raise
        reason = str(e).strip().split("\n")[0][:200]
        raise WeightsError(f"{path}: no CLIP tokenizer ({reason}); restore the folder.") from None
    if most >= config.vocab_size or None in ends:
        raise WeightsError(
            f"{path}: its tokens go up to {most} and its start, end and padding are {ends}, but "
            f"the text encoder knows 0 to {config.vocab_size - 1}; take both from one model."
        )
    return names.with_padding_apart(tokenizer)

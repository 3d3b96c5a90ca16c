"""The two layouts of a Stable Diffusion on disk, each read as the same `Parts`.

A diffusers folder says everything in its configs; a single file says it by names and shapes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from reprlib import repr as brief  # a value may be any length

import torch

from dnp import folders
from dnp.errors import WeightsError
from dnp.schedule import Schedule
from dnp.sd import foreign, recommendations, single_file, weights
from dnp.sd.config import TextConfig, UNetConfig, VAEConfig
from dnp.sd.fingerprint import small_files
from dnp.validation import is_finite

_NEW_TEXT = {"penultimate": False, "pooled_dim": 0}
_NEW_UNET = {"depth": (1,), "added_dim": 0, "added_freq_dim": 256}


@dataclass(frozen=True)
class Parts:
    """What either layout holds: configs, tensors not yet read, schedule and tokenizer."""

    text: TextConfig
    unet: UNetConfig
    vae: VAEConfig
    tensors: dict[str, tuple[dict[str, weights.Entry], str]]  # part: (its tensors, whose they are)
    files: list[Path]
    schedule: Schedule
    prediction_type: str
    spacing: str
    levels: dict[str, object]  # what the schedule was computed from
    tokenizer: Callable
    tokenizer_files: dict[str, str] = field(default_factory=dict)  # their sha256
    recommended: recommendations.Recommended = recommendations.NONE
    captioner: Path | None = None
    text_2: TextConfig | None = None  # SDXL's second text encoder, and its tokenizer
    tokenizer_2: Callable | None = None
    tokenizer_2_files: dict[str, str] = field(default_factory=dict)
    phi: str = "text"

    def settings(self) -> dict[str, object]:
        """All that is read beside the tensors and changes a picture made with the same arguments;
        no recommendation, since what was taken of them is an argument."""
        told = {p: asdict(getattr(self, p)) for p in ("text", "unet", "vae")}
        if self.text_2 is None:  # what SDXL added is not in the fingerprints of the others
            for part, new in (("text", _NEW_TEXT), ("unet", _NEW_UNET)):
                told[part] = {k: v for k, v in told[part].items() if k not in new or v != new[k]}
        else:
            told |= {"text_2": asdict(self.text_2), "tokenizer_2": self.tokenizer_2_files}
        told |= {p: getattr(self, p) for p in ("prediction_type", "spacing", "levels")}
        return told | {"tokenizer": self.tokenizer_files}


def read(path: Path, predicts: str | None = None) -> Parts:
    """What a folder or a file holds; WeightsError if it is neither. `predicts`, epsilon or
    v_prediction, is the user's word for it, which goes before the weights'."""
    try:
        path.stat()
    except (OSError, ValueError) as e:
        told = str(path) if str(path).isprintable() else ascii(str(path))
        reason = getattr(e, "strerror", "no possible name")
        raise WeightsError(
            f"{told}: no such file or folder ({reason}); give --weights a folder that holds "
            "unet/, or a .safetensors file."
        ) from None
    if path.is_dir():
        parts = folder(path)
        return replace(parts, prediction_type=predicts or parts.prediction_type)
    if not path.is_file():
        raise WeightsError(f"{path} is no regular file; give --weights a file or a folder.")
    return single(path, predicts)


def folder(path: Path) -> Parts:
    """A folder in the diffusers layout."""
    _refuse_other_kinds(path)
    stem = "diffusion_pytorch_model"
    kinds = {"text_encoder": TextConfig, "unet": UNetConfig, "vae": VAEConfig}
    configs = {
        p: c.from_dict(weights.read_json(path / p / "config.json")) for p, c in kinds.items()
    }
    second = {}
    if configs["unet"].added_dim:
        d = weights.read_json(path / "text_encoder_2" / "config.json")
        dim = d.get("projection_dim", 512)  # transformers' default
        configs["text_encoder"] = replace(configs["text_encoder"], penultimate=True)
        text_2 = replace(TextConfig.from_dict(d), penultimate=True, pooled_dim=dim)
        zeros = _index(path).get("force_zeros_for_empty_prompt", True)
        second = {
            "text_2": text_2, "tokenizer_2": _tokenizer(path / "tokenizer_2", text_2),
            "tokenizer_2_files": small_files(path / "tokenizer_2"),
            "phi": "zeros" if zeros else "text",
        }  # fmt: skip
    tensors, files = {}, []
    for part in [*kinds, *(["text_encoder_2"] if second else [])]:
        found = weights.find(path / part, "model" if part.startswith("text") else stem)
        config = path / part / "config.json"
        what = f"{found[0]} does not belong to the network that {config} describes"
        entries = weights.without_harmless(weights.open_files(found))
        tensors[part] = (weights.renamed(entries, weights.rename, path / part), what)
        files += found
    captioner = path / "captioner" if (path / "captioner" / "config.json").is_file() else None
    return Parts(
        *configs.values(), tensors, files, *_schedule(path / "scheduler" / "scheduler_config.json"),
        _tokenizer(path / "tokenizer", configs["text_encoder"]), small_files(path / "tokenizer"),
        recommendations.read(path), captioner, **second,
    )  # fmt: skip


def _index(path: Path) -> dict:
    file = path / "model_index.json"
    return weights.read_json(file) if file.is_file() else {}


def _refuse_other_kinds(path: Path) -> None:
    told = [path / n for n in ("model_index.json", "config.json") if (path / n).is_file()]
    if kind := foreign.of_folder(
        path, weights.read_json(told[0]).get("_class_name") if told else None
    ):
        raise WeightsError(f"{path}: {kind}.")


def single(path: Path, predicts: str | None = None) -> Parts:
    """One file in the original layout: the architecture is read off the shapes.

    Whether a 2.x U-Net predicts eps or v is in no shape: v if the bias of its last self-attention's
    norm spreads more than 0.09 (a heuristic in wide use); a warning says what was chosen, unless
    `predicts` said it. A 2.x that predicts v is taken for one of 768 x 768 pixels.
    """
    entries = weights.open_files([path])
    shapes = {k: e.shape for k, e in entries.items()}
    hint = foreign.of_file(shapes)
    openclip = any(
        k.startswith(single_file.TEXT_2) and not single_file.HARMLESS.search(k) for k in shapes
    )
    own = _parted(path, entries, openclip, hint)
    s = {part: {k: e.shape for k, e in own[part].items()} for part in own}
    try:
        whole = single_file.TEXT_2 + "text_projection" in entries
        second = single_file.is_second(s["text_encoder"], s["unet"], openclip)
        text = single_file.text_config(s["text_encoder"], second, whole, openclip)
        unet, vae = single_file.unet_config(s["unet"]), single_file.vae_config(s["vae"])
    except (KeyError, IndexError, ValueError, StopIteration, WeightsError) as e:
        missing = f" ({e} is missing)" if isinstance(e, KeyError) else ""
        missing = f" ({e})" if isinstance(e, WeightsError) else missing
        raise WeightsError(
            f"{path}: its tensors are not those of Stable Diffusion 1.x or 2.x{missing}; "
            f"{hint or 'fetch the file again'}."
        ) from None
    if text.vocab_size != single_file.VOCABULARY:
        raise WeightsError(
            f"{path}: its text encoder knows {text.vocab_size} tokens and CLIP's vocabulary has "
            f"{single_file.VOCABULARY}; give a folder in the diffusers layout, with its tokenizer."
        )
    chosen = predicts or ("v_prediction" if second and _predicts_v(own["unet"]) else "epsilon")
    if second and not predicts:
        warnings.warn(
            f"{path.name} is a Stable Diffusion 2.x, taken for one that predicts {chosen} and uses "
            f"{text.num_hidden_layers} layers of its text encoder; if its pictures are noise, give "
            "the other with --prediction",
            stacklevel=3,
        )
    names = {
        "unet": single_file.unet_name(unet.layers_per_block),
        "vae": single_file.vae_name(len(vae.block_out_channels)),
        "text_encoder": str,
    }
    if second:
        own["text_encoder"] = _text_2(own["text_encoder"], text.num_hidden_layers, openclip)
    tensors = {part: weights.renamed(own[part], names[part], path) for part in own}
    side = 96 if second and chosen == "v_prediction" else 64
    if (factor := entries.get("scale_factor")) and factor.dtype and factor.shape in ((), (1,)):
        vae = replace(vae, scaling_factor=round(_read(factor).item(), 6))
    return Parts(
        text, replace(unet, sample_size=(side, side)), vae,
        {part: (new, f"{path}, {part}") for part, new in tensors.items()}, [path],
        Schedule.stable_diffusion(), chosen, "leading", {},
        partial(single_file.clip_tokenizer, text),
    )  # fmt: skip


def _parted(
    path: Path, entries: dict[str, weights.Entry], openclip: bool, hint: str
) -> dict[str, dict[str, weights.Entry]]:
    """The tensors of each part under their names within it; WeightsError if others are there."""
    starts = {
        "text_encoder": single_file.TEXT_2 if openclip else single_file.TEXT_1,
        "unet": single_file.UNET,
        "vae": single_file.VAE,
    }
    entries = {k: e for k, e in entries.items() if not single_file.HARMLESS.search(k)}
    own = {
        part: {k.removeprefix(start): e for k, e in entries.items() if k.startswith(start)}
        for part, start in starts.items()
    }
    if not openclip:
        own["text_encoder"] = weights.renamed(own["text_encoder"], weights.rename, path)
    rest = sorted(k for k in entries if not k.startswith(tuple(starts.values())))
    if rest or not all(own.values()):
        gone = [part for part in own if not own[part]]
        told = f"no tensors of {', '.join(gone)}" if gone else f"{len(rest)} unexpected tensors"
        some = f" ({weights.examples(rest)})" if rest else ""
        mend = "give --weights one, or a folder in the diffusers layout"
        hint = hint or (
            f"this is no Stable Diffusion 1.x or 2.x in one file; {mend}" if gone
            else f"they belong to no part of Stable Diffusion 1.x or 2.x; {mend}"
        )  # fmt: skip
        raise WeightsError(f"{path}: {told}{some}; {hint}.")
    return own


def _text_2(
    entries: dict[str, weights.Entry], layers: int, openclip: bool
) -> dict[str, weights.Entry]:
    """OpenCLIP's tensors under CLIP's names, without its last layer, which 2.x does not use."""
    last = f"transformer.resblocks.{layers}." if openclip else f"encoder.layers.{layers}."
    kept = {key: entry for key, entry in entries.items() if not key.startswith(last)}
    if not openclip:
        return kept
    return {
        name: replace(entry, third=third)
        for key, entry in kept.items()
        for name, third in single_file.text_2_names(key)
    }


def _predicts_v(unet: dict[str, weights.Entry]) -> bool:
    bias = unet.get("output_blocks.11.1.transformer_blocks.0.norm1.bias")
    if bias is None or bias.dtype is None or len(bias.shape) != 1 or bias.shape[0] < 2:
        return False  # no such network: the names and shapes will tell
    return _read(bias).float().std().item() > 0.09


def _read(entry: weights.Entry) -> torch.Tensor:
    try:
        return entry.copy()
    except OSError as e:
        raise WeightsError(f"{entry.path}: cannot be read ({e}); try again.") from None


def _schedule(path: Path) -> tuple[Schedule, str, str, dict[str, object]]:
    """Schedule, prediction type, spacing and the numbers of it that a scheduler config describes.

    Any epsilon or v scheduler of diffusers is read, since all share these keys; sampling is DDIM
    over explicit pairs. (diffusers' own DDIM steps by a constant stride, which is another walk for
    trailing and linspace spacing.) Keys that only some schedulers write have Stable Diffusion's
    values: steps_offset 1, set_alpha_to_one false.
    """
    d = weights.read_json(path)
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

    folders.check_folder(path)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(path, **folders.DATA_ONLY)
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
            if merges < len(weights.read_json(path / "vocab.json")) - 514:
                raise ValueError("merges.txt is cut off")
    except Exception as e:  # transformers raises whatever its parsers raise
        reason = str(e).strip().split("\n")[0][:200]
        raise WeightsError(f"{path}: no CLIP tokenizer ({reason}); restore the folder.") from None
    if most >= config.vocab_size or None in ends:
        raise WeightsError(
            f"{path}: its tokens go up to {most} and its start, end and padding are {ends}, but "
            f"the text encoder knows 0 to {config.vocab_size - 1}; take both from one model."
        )
    return tokenizer

"""One file in the original layout, read as `Contents`: the architecture is read off the shapes.

What the names and shapes mean stands in `dnp/sd/files/names.py`.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

from dnp.errors import WeightsError
from dnp.schedule import Schedule
from dnp.sd.config import TextConfig, UNetConfig, VAEConfig
from dnp.sd.files import names, not_ours, tensors
from dnp.sd.files.contents import Contents

Entries = dict[str, tensors.Stored]


def read(path: Path, predicts: str | None = None) -> Contents:
    """Of Stable Diffusion 1.x, 2.x or XL; WeightsError if it is none.

    Whether a 2.x U-Net predicts eps or v is in no shape: v if the bias of its last self-attention's
    norm spreads more than 0.09 (a heuristic in wide use); a warning says what was chosen, unless
    `predicts` or a tensor `v_pred` said it. A 2.x that predicts v is taken for one of 768 x 768
    pixels. SDXL is taken for one of 1024 x 1024, with zeros for phi, as it was published.
    """
    entries = tensors.open_files([path])
    hint = not_ours.of_file({k: e.shape for k, e in entries.items()})
    entries = tensors.renamed(entries, names.as_in_1x, path)
    xl = names.is_xl(entries)
    openclip = not xl and any(
        k.startswith(names.TEXT_2) and not names.HARMLESS.search(k) for k in entries
    )
    own = _parted(path, entries, xl, openclip, hint)
    whole = any(k.startswith(names.TEXT_2 + "text_projection") for k in entries)
    text, text_2, unet, vae, second = _configs(path, own, xl, openclip, whole, hint)
    if kind := not_ours.of_unet(unet):
        raise WeightsError(f"{path}: {kind}.")
    for config in (text, text_2):
        if config and config.vocab_size != names.VOCABULARY:
            raise WeightsError(
                f"{path}: its text encoder knows {config.vocab_size} tokens and CLIP's vocabulary "
                f"has {names.VOCABULARY}; give a folder in the diffusers layout, with its "
                "tokenizer."
            )
    marked = names.PREDICTS_V in entries
    v = marked or (second and _predicts_v(own["unet"]))
    chosen = predicts or ("v_prediction" if v else "epsilon")
    if second and not (predicts or marked):
        warnings.warn(
            f"{path.name} is a Stable Diffusion 2.x, taken for one that predicts {chosen} and uses "
            f"{text.num_hidden_layers} layers of its text encoder; if its pictures are noise, give "
            "the other with --prediction",
            stacklevel=3,
        )
    if second:
        own["text_encoder"] = _text_2(own["text_encoder"], text.num_hidden_layers, openclip)
    if xl:
        own["text_encoder_2"] = _text_2(own["text_encoder_2"], text_2.num_hidden_layers, True)
    renames = {
        "unet": names.unet_name(unet.layers_per_block),
        "vae": names.vae_name(len(vae.block_out_channels)),
    }
    found = {part: tensors.renamed(own[part], renames.get(part, str), path) for part in own}
    side = 128 if xl else 96 if second and chosen == "v_prediction" else 64
    if (factor := entries.get("scale_factor")) and factor.dtype and factor.shape in ((), (1,)):
        vae = replace(vae, scaling_factor=round(factor.read({}).item(), 6))
    tokenizer = {"tokenizer_2": partial(names.clip_tokenizer, text_2)} if xl else {}
    return Contents(
        text, replace(unet, sample_size=(side, side)), vae,
        {part: (new, f"{path}, {part}") for part, new in found.items()}, [path],
        Schedule.stable_diffusion(), chosen, "leading", {},
        partial(names.clip_tokenizer, text),
        text_2=text_2, phi="zeros" if xl else "text", **tokenizer,
    )  # fmt: skip


def _parted(
    path: Path, entries: Entries, xl: bool, openclip: bool, hint: str
) -> dict[str, Entries]:
    """The tensors of each part under their names within it; WeightsError if others are there."""
    starts = {
        "text_encoder": names.TEXT_2 if openclip else names.TEXT_1,
        "unet": names.UNET,
        "vae": names.VAE,
        **({"text_encoder_2": names.TEXT_XL} if xl else {}),
    }
    entries = {k: e for k, e in entries.items() if not names.HARMLESS.search(k)}
    own = {
        part: {k.removeprefix(start): e for k, e in entries.items() if k.startswith(start)}
        for part, start in starts.items()
    }
    if not openclip:
        own["text_encoder"] = tensors.renamed(own["text_encoder"], tensors.rename, path)
    rest = sorted(e.key for k, e in entries.items() if not k.startswith(tuple(starts.values())))
    if rest or not all(own.values()):
        gone = [part for part in own if not own[part]]
        fault = f"no tensors of {', '.join(gone)}" if gone else f"{len(rest)} unexpected tensors"
        some = f" ({tensors.examples(rest)})" if rest else ""
        mend = "give --weights one, or a folder in the diffusers layout"
        family = "SDXL" if xl else "Stable Diffusion 1.x, 2.x or XL"
        hint = hint or (
            f"this is not a whole {family} in one file; {mend}" if gone
            else f"they do not belong to any part of {family}; {mend}"
        )  # fmt: skip
        raise WeightsError(f"{path}: {fault}{some}; {hint}.")
    return own


def _configs(
    path: Path, own: dict[str, Entries], xl: bool, openclip: bool, whole: bool, hint: str
) -> tuple[TextConfig, TextConfig | None, UNetConfig, VAEConfig, bool]:
    """Text encoder, SDXL's second one or None, U-Net, VAE; and whether it is a 2.x."""
    s = {part: {k: e.shape for k, e in own[part].items()} for part in own}
    try:
        text_2 = names.text_xl_config(s["text_encoder_2"]) if xl else None
        second = not xl and names.is_second(s["text_encoder"], s["unet"], openclip)
        text = names.text_config(s["text_encoder"], second, whole, openclip)
        unet = names.unet_config(s["unet"], text_2.pooled_dim if xl else 0)
        vae = names.vae_config(s["vae"])
    except (KeyError, IndexError, ValueError, StopIteration, WeightsError) as e:
        missing = f" ({e} is missing)" if isinstance(e, KeyError) else ""
        missing = f" ({e})" if isinstance(e, WeightsError) else missing
        raise WeightsError(
            f"{path}: its tensors are not those of Stable Diffusion 1.x, 2.x or XL{missing}; "
            f"{hint or 'fetch the file again'}."
        ) from None
    if xl:
        text = replace(text, penultimate=True)
        vae = replace(vae, scaling_factor=0.13025)  # as published; in no shape
    return text, text_2, unet, vae, second


def _text_2(entries: Entries, layers: int, openclip: bool) -> Entries:
    """OpenCLIP's tensors under CLIP's names, without a layer after `layers`, which is not used."""
    last = f"transformer.resblocks.{layers}." if openclip else f"encoder.layers.{layers}."
    kept = {key: entry for key, entry in entries.items() if not key.startswith(last)}
    if not openclip:
        return kept
    return {
        name: replace(entry, third=third, transposed=key == "text_projection")
        for key, entry in kept.items()
        for name, third in names.text_2_names(key)
    }


def _predicts_v(unet: Entries) -> bool:
    bias = unet.get("output_blocks.11.1.transformer_blocks.0.norm1.bias")
    if bias is None or bias.dtype is None or len(bias.shape) != 1 or bias.shape[0] < 2:
        return False  # no such network: the names and shapes will tell
    return bias.read({}).float().std().item() > 0.09

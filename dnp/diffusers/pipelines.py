"""DNS and auto-DNP on a pipeline of diffusers, through its own call: no network of ours.

A pipeline that takes a negative prompt computes the two-term form, n + w (p - n), where w is its
scale; it evaluates no negative at w <= 1. So

    DNS at s     p is empty, n is the prompt, w = s + 1:    phi + s (phi - p)    Eq. 19
    DNP at s     n is n*, w = s:                            n* + s (p - n*)      two-term

of whatever its networks predict: noise, or the velocity of SD3 and Flux, which is linear in it
(`dnp/guidance.py`). diffusers is not imported here; whoever has a pipeline has it already.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from dnp.errors import SettingsError, is_finite
from dnp.methods.method import SCALE
from dnp.methods.words import SEEDS, Captioner, describe


@dataclass(frozen=True)
class Family:
    """One row: what it is called, the argument that is w, where its denoiser is, its output."""

    called: str
    scale: str
    denoiser: str
    predicts: str


FAMILIES = {
    "StableDiffusionPipeline": Family(
        "Stable Diffusion 1.x and 2.x", "guidance_scale", "unet", "noise or v"
    ),
    "StableDiffusionXLPipeline": Family("SDXL", "guidance_scale", "unet", "noise"),
    "StableDiffusion3Pipeline": Family(
        "Stable Diffusion 3", "guidance_scale", "transformer", "velocity"
    ),
    "FluxPipeline": Family("Flux", "true_cfg_scale", "transformer", "velocity"),
    "PixArtAlphaPipeline": Family("PixArt-alpha", "guidance_scale", "transformer", "noise"),
    "PixArtSigmaPipeline": Family("PixArt-sigma", "guidance_scale", "transformer", "noise"),
}
REFUSED = {  # pipelines, and why they cannot do it
    "QwenImagePipeline": "scales what it guided to the norm of the prompt's part, so "
    "that it is not phi + s (phi - p)",
    "SanaPipeline": "writes an instruction before the prompt and not before the negative, so "
    "that its empty prompt is not empty",
    "LatentConsistencyModelPipeline": "has the guidance inside its distilled U-Net and takes "
    "no negative",
}
# Arguments that change the guided noise, or treat prompt and negative differently.
UNEQUAL = {
    "guidance_rescale": "rescales the guided noise",
    "skip_guidance_layers": "adds a third term to the guided velocity",
    "clip_skip": "applies to the prompt and not to the negative",
    "ip_adapter_image": "is a picture for the prompt and not for the negative",
    "ip_adapter_image_embeds": "is a picture for the prompt and not for the negative",
    "pag_scale": "adds a third term to the guided noise",
}
OURS = ("prompt", "pooled_prompt", "negative_")  # how arguments begin that are given here
DISTILLED = ("turbo", "lightning", "schnell", "lcm", "hyper", "distill")  # in names


@dataclass
class AutoDNP:
    """What `auto_dnp` returns, one entry for each picture."""

    images: list
    negatives: list[str]  # n*
    dns_images: list[Image.Image]


def dns(pipe, prompt: str | Sequence[str], s: float = SCALE, **call):
    """Diffusion-negative sampling of `prompt`: what `pipe` returns for phi + s (phi - p).

    Eq. (19), arXiv:2411.05473. `call` goes to the pipeline: steps, generator, height, width, ...
    SettingsError, one sentence with the fix, for a pipeline or an argument with which the
    scheduler would get anything else. A note says where a distilled model may ignore it.
    """
    family = _family(pipe, call)
    if not is_finite(s) or s < 0:
        raise SettingsError(f"s = {s} is not possible; give a number of 0 or more, such as 2.")
    n = prompt if isinstance(prompt, str) else list(prompt)
    p = "" if isinstance(prompt, str) else [""] * len(n)
    return pipe(prompt=p, negative_prompt=n, **{family.scale: s + 1.0}, **call)


def auto_dnp(
    pipe, prompt: str, captioner: Captioner, s: float = SCALE,
    s_dns: float | None = None, seed: int = 0, **call,
) -> AutoDNP:  # fmt: skip
    """Auto-DNP, arXiv:2411.05473: a DNS image, a captioner's words n* for it, and the prompt
    against n* from the same noise.

    captioner  pictures -> one text for each, such as `dnp.sd.captioner.load_captioner(FOLDER)`
    s, s_dns   scales of the picture (two-term) and of the DNS image; None: the same
    seed       of the first picture; `num_images_per_prompt` further ones have the next. A
               `generator` or `latents` given goes before it, and is used for both

    `call` goes to the pipeline, twice. SettingsError as for `dns`, and where a safety checker took
    a DNS image away or a VAE overflowed, so that it is black; a note where that is so of a picture.
    """
    family = _family(pipe, call)
    if not isinstance(prompt, str):
        raise SettingsError("auto_dnp takes one prompt; call it once for each.")
    if not is_finite(s) or s < 1:
        raise SettingsError(
            f"s = {s} is not possible: a pipeline reads no negative at 1 or below; give more than "
            "1, such as 7.5."
        )
    k = call.pop("num_images_per_prompt", None) or 1
    if call.get("generator") is None and call.get("latents") is None:
        call["generator"] = [torch.Generator().manual_seed((seed + i) % SEEDS) for i in range(k)]
    same = _again(call)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DistilledNote)  # it was told
        first = {**same(), "output_type": "pil", "return_dict": True, "num_images_per_prompt": k}
        seen = dns(pipe, prompt, s if s_dns is None else s_dns, **first)
    if gone := _taken_away(seen):
        raise SettingsError(
            f"DNS image {gone[0]} of {k} shows nothing: a safety checker took it away, or the VAE "
            "overflowed and it is black; set pipe.safety_checker = None, load the VAE in "
            "float32, or give another seed."
        )
    dns_images = seen.images
    words = describe(captioner, dns_images)
    made = pipe(
        prompt=[prompt] * k, negative_prompt=words, **{family.scale: float(s)},
        **{**same(), "return_dict": True},
    )  # fmt: skip
    if gone := _taken_away(made):
        warnings.warn(
            f"picture {gone[0]} of {k} shows nothing: a safety checker took it away, or the VAE "
            "overflowed",
            stacklevel=2,
        )
    return AutoDNP(made.images, words, dns_images)


def _taken_away(made) -> list[int]:
    """Which pictures a pipeline flagged, or which are black all over; counted from 1."""
    flags = getattr(made, "nsfw_content_detected", None) or [False] * len(made.images)
    black = [isinstance(x, Image.Image) and x.getbbox() is None for x in made.images]
    return [i + 1 for i, both in enumerate(zip(flags, black)) if any(both)]


def _again(call: dict):
    """A function that gives the arguments of a call, each time with the same noise."""
    given = call.get("generator")
    generators = given if isinstance(given, list | tuple) else [given] if given is not None else []
    states = [g.get_state() for g in generators]

    def arguments() -> dict:
        for g, state in zip(generators, states):
            g.set_state(state)
        z_T = call.get("latents")
        return call if z_T is None else {**call, "latents": z_T.clone()}

    return arguments


class DistilledNote(UserWarning):
    """A pipeline takes a negative, and its model may not follow it."""


def _family(pipe, call: dict) -> Family:
    """The row of a pipeline. SettingsError if it, or an argument, cannot be used."""
    name = next((c.__name__ for c in type(pipe).__mro__ if _is_known(pipe, c)), None)
    if name is None:
        name = type(pipe).__name__
        if name in REFUSED:
            raise SettingsError(f"{name} {REFUSED[name]}; use one of {', '.join(FAMILIES)}.")
        raise SettingsError(
            f"how {name} guides is not known here; the known pipelines are {', '.join(FAMILIES)}."
        )
    family = FAMILIES[name]
    for k, value in call.items():
        if k == family.scale or k.startswith(OURS):
            raise SettingsError(f"{k} is given by dnp.pipelines; leave it out.")
        off = value is None or (isinstance(value, int | float) and value == 0)
        if k in UNEQUAL and not off:
            raise SettingsError(f"{k} {UNEQUAL[k]}; leave it out.")
    config = getattr(pipe, family.denoiser).config
    if config.get("time_cond_proj_dim") is not None:
        raise SettingsError(
            f"this {family.denoiser} was distilled with the guidance scale inside (LCM), and its "
            "pipeline evaluates no negative; take the model that it was distilled from."
        )
    if why := distilled(pipe, config):
        warnings.warn(f"{why}: it may ignore negatives", DistilledNote, stacklevel=3)
    return family


def _is_known(pipe, kind: type) -> bool:
    """Whether a class is a row and its call was not replaced by a class below it."""
    return kind.__name__ in FAMILIES and type(pipe).__call__ is kind.__call__


def distilled(pipe, config) -> str | None:
    """Why a model seems to be distilled; None if nothing says so."""
    if config.get("guidance_embeds"):
        return "this transformer was distilled with the guidance inside (guidance_embeds)"
    names = [str(c.get("_name_or_path")).lower() for c in (pipe.config, config)]
    for word in DISTILLED:
        if any(word in name.rsplit("/", 1)[-1] for name in names):
            return f'"{word}" in its name says that it was distilled to few steps'
    scheduler = type(pipe.scheduler).__name__
    if scheduler.startswith(("LCM", "TCD")):
        return f"{scheduler} belongs to models that were distilled to few steps"
    return None

"""A prompt, a method and a seed -> pictures: `dnp.generate`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from dnp import guidance
from dnp.errors import NonFiniteError, SettingsError
from dnp.sampling import ddim_sample, noise_like

# Each linear method: the conditions that the network is asked for, and the rule on their noises.
METHODS: dict[str, tuple[tuple[str, ...], Callable[..., Tensor]]] = {
    "cfg": (("phi", "p"), guidance.cfg),
    "np": (("phi", "p", "n"), guidance.negative_prompt),
    "np2": (("p", "n"), guidance.negative_prompt_two_term),
    "dns": (("phi", "p"), guidance.dns),
}
DEFAULT_SCALE = 7.5  # where the weights recommend none; Stable Diffusion's own


@dataclass
class Result:
    """What `generate` returns: k pictures and all that is needed to make them again."""

    images: list[Image.Image]
    latents: tuple[Tensor, Tensor]  # z_T and z_0, float32 on the CPU, each (k, C, H, W)
    negative: str | None
    nfe: int  # network evaluations per picture, one for each condition and step
    settings: dict = field(default_factory=dict)
    dns_images: list[Image.Image] = field(default_factory=list)


def generate(
    model,
    prompt: str,
    method: str = "cfg",
    negative: str | None = None,
    s: float | None = None,
    steps: int = 50,
    seed: int = 0,
    images: int = 1,
    *,
    eta: float = 0.0,
    negative_scale: float | None = None,
    size: tuple[int, int] | None = None,
    progress: Callable[[], None] | None = None,
) -> Result:
    """Samples `images` pictures of `prompt`, with the seeds seed, seed + 1, ...

    method    cfg Eq. (3), np Eq. (4), np2 the two-term form, dns Eq. (19) of arXiv:2411.05473
    negative  the negative prompt n of np and np2; "" is phi
    s         guidance scale; None is the weights' recommendation for the method, else 7.5
    eta       0 is DDIM, 1 is DDPM
    negative_scale  np only: the scale h of n in the two-scale form; None is Eq. (4)
    size      (height, width) in pixels; None is the size that the U-Net was trained on
    progress  called after every step of every batch of pictures

    The initial noise of a picture comes from its own CPU generator, so a seed means one picture,
    whatever its batch. SettingsError for what is not possible; NonFiniteError names the step.
    """
    s = model.config.scales.get(method, DEFAULT_SCALE) if s is None else s
    check_settings(model, method, negative, s, steps, seed, images, eta, negative_scale)
    shape = model.latent_shape(size)
    texts = {"phi": "", "p": prompt, "n": negative}
    conditions, rule = METHODS[method]
    if negative_scale is not None:
        rule, scales = guidance.negative_prompt_two_scale, (s, negative_scale)
    else:
        scales = (s,)

    latents_T, latents_0 = [], []
    with torch.inference_mode():
        context = model.encode([texts[c] for c in conditions])  #    (conditions, L, D)
        # On a CPU a bigger batch gains little and changes the last bits; on a GPU it gains much.
        batch = 1 if model.device.type == "cpu" else images
        for first in range(0, images, batch):
            seeds = range(seed + first, seed + min(first + batch, images))
            generators = [torch.Generator().manual_seed(i) for i in seeds]
            z_T = noise_like(torch.empty(len(seeds), *shape), generators)
            z_0 = z_T.to(model.device, model.dtype)
            guided = guided_model(model.eps, context, lambda *eps: rule(*eps, *scales))
            spacing = model.config.spacing
            chain = ddim_sample(guided, z_0, model.schedule, steps, eta, generators, spacing)
            for step, (_, z_0, _) in enumerate(chain, start=1):
                if not torch.isfinite(z_0).all():
                    raise NonFiniteError(
                        f"eps is not finite at step {step} of {steps}: the weights are damaged, or "
                        "the scale or the half precision overflows; try a smaller --scale or "
                        "--dtype float32."
                    )
                if progress:
                    progress()
            latents_T.append(z_T)
            latents_0.append(z_0.float().cpu())
        z_T, z_0 = torch.cat(latents_T), torch.cat(latents_0)
        pictures = model.decode(z_0)
    settings = {
        "prompt": prompt, "method": method, "negative": negative, "scale": s, "steps": steps,
        "eta": eta, "seed": seed, "images": images, "negative_scale": negative_scale, "size": size,
        "dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type,
        "fingerprint": model.config.fingerprint,
    }  # fmt: skip
    return Result(pictures, (z_T, z_0), negative, len(conditions) * steps, settings)


def guided_model(
    eps_fn: Callable[[Tensor, Tensor, Tensor], Tensor],
    context: Tensor,
    rule: Callable[..., Tensor],
) -> Callable[[Tensor, Tensor], Tensor]:
    """eps_fn and a rule of k noises -> a guided model (z_t, t) -> eps, in one batched forward.

    `context` (k, L, D) holds one condition for each argument of `rule`.
    """
    k = len(context)

    def guided(z_t: Tensor, t: Tensor) -> Tensor:
        c = context.repeat_interleave(len(z_t), dim=0)  #            (k B, L, D)
        return rule(*eps_fn(z_t.repeat(k, 1, 1, 1), t, c).chunk(k))

    return guided


def check_settings(model, method, negative, s, steps, seed, images, eta, negative_scale) -> None:
    """SettingsError, one sentence with the mend, for settings that are not possible."""
    T = len(model.schedule.abar)
    n_methods = [m for m, (conditions, _) in METHODS.items() if "n" in conditions]
    complaints: Sequence[tuple[bool, str]] = (
        (method not in METHODS, f"method {method!r} is unknown; choose {', '.join(METHODS)}."),
        (
            method in n_methods and negative is None,
            f"method {method} needs a negative prompt; add --negative TEXT.",
        ),
        (
            method not in n_methods and negative is not None,
            f"method {method} takes no negative prompt; leave it out or choose "
            f"{' or '.join(n_methods)}.",
        ),
        (
            negative_scale is not None and method != "np",
            f"a negative scale belongs to method np, not {method}; leave it out.",
        ),
        (not math.isfinite(s), f"scale {s} is not finite; give a number such as 7.5."),
        (
            negative_scale is not None and not math.isfinite(negative_scale),
            f"negative scale {negative_scale} is not finite; give a number such as 1.",
        ),
        (not 1 <= steps <= T, f"{steps} steps are not possible; choose 1 to {T}."),
        (images < 1, f"{images} images are not possible; choose 1 or more."),
        (not 0 <= eta <= 1, f"eta {eta} is not possible; choose 0 (DDIM) to 1 (DDPM)."),
        (
            not 0 <= seed < 2**63 - images,
            f"seed {seed} is not possible; choose a whole number from 0 to 2^63 - 1.",
        ),
    )
    for wrong, sentence in complaints:
        if wrong:
            raise SettingsError(sentence)

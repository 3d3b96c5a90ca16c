"""A prompt, a method and a seed -> pictures: `dnp.generate`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
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
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Samples `images` pictures of `prompt`, with the seeds seed, seed + 1, ...

    method    cfg Eq. (3), np Eq. (4), np2 the two-term form, dns Eq. (19) of arXiv:2411.05473
    negative  the negative prompt n of np and np2; "" is phi
    s         guidance scale; None is the weights' recommendation for the method, else 7.5
    eta       0 is DDIM, 1 is DDPM
    negative_scale  np only: the scale h of n in the two-scale form; None is Eq. (4)
    size      (height, width) in pixels; None is the size that the U-Net was trained on
    progress  called after every step with the number of pictures that made it

    The initial noise of a picture comes from its own CPU generator, so a seed means one picture,
    whatever its batch. SettingsError for what is not possible; NonFiniteError names the step.
    """
    s = model.config.scales.get(method, DEFAULT_SCALE) if s is None else s
    T = len(model.schedule.abar)
    check_settings(T, method, negative, s, steps, seed, images, eta, negative_scale)
    shape, spacing = model.latent_shape(size), model.config.spacing
    if (first_t := model.schedule.pairs(steps, spacing)[0][0]) < 0.9 * T:
        warnings.warn(
            f"with steps = {steps}, {spacing} spacing starts at t = {first_t} of {T}, where a "
            "picture should be half made; choose 10 or more steps, best a divisor of the levels",
            stacklevel=2,
        )
    conditions, rule = METHODS[method]
    scales = (s,)
    if negative_scale is not None:
        rule, scales = guidance.negative_prompt_two_scale, (s, negative_scale)
    texts = {"phi": "", "p": prompt, "n": negative}

    latents, pictures = [], []
    with torch.no_grad():
        context = model.encode([texts[c] for c in conditions])  #    (conditions, L, D)
        guided = guided_model(model.eps, context, lambda *eps: rule(*eps, *scales))
        batch = batch_size(model.device)
        for first in range(seed, seed + images, batch):
            seeds = range(first, min(first + batch, seed + images))
            generators = [torch.Generator().manual_seed(i) for i in seeds]
            z_T = noise_like(torch.empty(len(seeds), *shape), generators)
            z_0 = z_T.to(model.device, model.dtype)
            chain = ddim_sample(guided, z_0, model.schedule, steps, eta, generators, spacing)
            for step, (_, z_0, _) in enumerate(chain, start=1):
                if not torch.isfinite(z_0).all():
                    raise NonFiniteError(
                        f"eps is not finite at step {step} of {steps}: the weights are damaged, or "
                        "the scale or the half precision overflows; try a smaller --scale or "
                        "--dtype float32."
                    )
                if progress:
                    progress(len(seeds))
            latents.append((z_T, z_0.float().cpu()))
            pictures += model.decode(z_0)
    z_T, z_0 = (torch.cat(parts) for parts in zip(*latents))
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


def batch_size(device: torch.device) -> int:
    """How many pictures are sampled together.

    On a CPU more gain little, and one at a time its last bits are the same in any batch; a GPU
    gains much.
    """
    return 1 if device.type == "cpu" else 16


def check_settings(T, method, negative, s, steps, seed, images, eta, negative_scale) -> None:
    """SettingsError, one sentence with the mend, for settings that are not possible."""

    def require(possible: bool, sentence: str) -> None:
        if not possible:
            raise SettingsError(sentence)

    require(method in METHODS, f"method {method!r} is unknown; choose {', '.join(METHODS)}.")
    with_n = [m for m, (conditions, _) in METHODS.items() if "n" in conditions]
    if method in with_n:
        told = f"method {method} needs a negative prompt; add --negative TEXT."
        require(negative is not None, told)
    else:
        told = f"method {method} takes no negative prompt; leave it out or choose "
        require(negative is None, told + " or ".join(with_n) + ".")
    if negative_scale is not None:
        told = f"a negative scale belongs to method np, not {method}; leave it out."
        require(method == "np", told)
        told = f"negative scale {negative_scale} is not finite; give a number such as 1."
        require(_finite(negative_scale), told)
    require(_finite(s), f"scale {s} is not finite; give a number such as 7.5.")
    require(_whole(steps, 1, T), f"{steps} steps are not possible; choose 1 to {T}.")
    require(_whole(images, 1, 10_000), f"{images} images are not possible; choose 1 to 10000.")
    told = f"seed {seed} is not possible; choose a whole number from 0 to 2^62."
    require(_whole(seed, 0, 2**62), told)
    require(_finite(eta) and 0 <= eta <= 1, f"eta {eta} is not possible; choose 0 to 1.")


def _finite(x: object) -> bool:
    return isinstance(x, int | float) and abs(x) < 1e30  # also false for NaN


def _whole(x: object, least: int, most: int) -> bool:
    return type(x) is int and least <= x <= most

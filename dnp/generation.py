"""A prompt, a method and a seed -> pictures: `dnp.generate`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from dnp import answer, guidance, prompting
from dnp.errors import NonFiniteError, SettingsError
from dnp.sampling import ddim_sample, noise_like

# Each method: the conditions that the network is asked for, and the rule on their noises. ANSWER
# asks for more as it goes, in dnp/answer.py.
METHODS: dict[str, tuple[tuple[str, ...], Callable[..., Tensor]]] = {
    "cfg": (("phi", "p"), guidance.cfg),
    "np": (("phi", "p", "n"), guidance.negative_prompt),
    "np2": (("p", "n"), guidance.negative_prompt_two_term),
    "dns": (("phi", "p"), guidance.dns),
    "dnp": (("phi", "p", "n"), guidance.negative_prompt),
    "auto-dnp": (("phi", "p", "n"), guidance.negative_prompt),
    "answer": (("phi", "p"), answer.answer),
}
DEFAULT_SCALE = 7.5  # where the weights recommend none; Stable Diffusion's own
NEEDS_NEGATIVE, TAKES_NEGATIVE = ("np", "np2"), ("np", "np2", "dnp", "auto-dnp")
CAPTIONED, TWO_SCALE = ("dnp", "auto-dnp"), ("np", "dnp", "auto-dnp")
FAR = 1_000_003  # between the seeds of a picture's first, second, ... DNS image
SEEDS = 2**32  # torch seeds its CPU generator with 32 bits, so more would repeat


@dataclass
class Result:
    """What `generate` returns: k pictures and all that is needed to make them again."""

    images: list[Image.Image]
    latents: tuple[Tensor, Tensor]  # z_T and z_0, float32 on the CPU, each (k, C, H, W)
    negatives: list[str | None]  # of each picture
    nfe: float  # network evaluations per picture, one for each condition and step: their mean
    settings: dict = field(default_factory=dict)
    dns_images: list[Image.Image] = field(default_factory=list)  # those of the first picture first

    @property
    def negative(self) -> str | None:
        """The negative prompt, where it is the same for every picture; else that of the first."""
        return self.negatives[0]


def generate(
    model,
    prompt: str,
    method: str = "cfg",
    negative: str | None = None,
    s: float | None = None,
    steps: int = 50,
    seed: int = 0,
    images: int = 1,
    captioner: Callable | None = None,
    *,
    eta: float = 0.0,
    negative_scale: float | None = None,
    size: tuple[int, int] | None = None,
    s_dns: float | None = None,
    dns_images: int = 1,
    caption_per: str = "seed",
    progress: Callable[[int], None] | None = None,
    **options,
) -> Result:
    """Samples `images` pictures of `prompt`, with the seeds seed, seed + 1, ...

    method    cfg Eq. (3), np Eq. (4), np2 the two-term form, dns Eq. (19), dnp and auto-dnp Eq. (4)
              with the words for a DNS image, of arXiv:2411.05473; answer, arXiv:2508.02973
    negative  the negative prompt n; "" is phi. np and np2 need one; dnp and auto-dnp take it as n*
              and then make no DNS image
    s         guidance scale; None is the weights' recommendation for the method, else 7.5
    captioner dnp: a callable picture -> text. auto-dnp: pictures -> texts; None is the weights' own
    eta       0 is DDIM, 1 is DDPM
    negative_scale  np, dnp, auto-dnp: the scale h of n in the two-scale form; None is Eq. (4)
    size      (height, width) in pixels; None is the size that the U-Net was trained on
    s_dns     dnp, auto-dnp: scale of the DNS image; None is the recommendation for dns, else s.
              answer: scale of the inner chain; None is s
    dns_images  dnp, auto-dnp: DNS images for each n*, which is their captions joined by commas; the
              first starts at the picture's own z_T
    caption_per  "seed": every picture has its own n*; "prompt": all have that of the first, and
              share what its DNS images cost
    progress  called after every step with the number of pictures that made it
    options   answer: K, K_until, tensor, form, normalize (dnp/answer.py)

    The initial noise of a picture comes from its own CPU generator, so a seed means one picture,
    whatever its batch. SettingsError for what is not possible; NonFiniteError names the step.
    """
    s = model.config.scales.get(method, DEFAULT_SCALE) if s is None else s
    T = len(model.schedule.abar)
    check_settings(
        T, method, negative, s, steps, seed, images, eta, negative_scale,
        s_dns, dns_images, caption_per, options,
    )  # fmt: skip
    shape, spacing = model.latent_shape(size), model.config.spacing
    pairs = model.schedule.pairs(steps, spacing)
    if pairs[0][0] < 0.9 * T:
        warnings.warn(
            f"with steps = {steps}, {spacing} spacing starts at t = {pairs[0][0]} of {T}, where a "
            "picture should be half made; choose 10 or more steps, best a divisor of the levels",
            stacklevel=2,
        )
    fingerprint = model.config.fingerprint  # now: a file that was changed is told before the work
    negatives, dns, nfe = [negative] * images, [], 0
    if method in CAPTIONED and negative is None:
        captioner = _captioner(model, method, captioner)
        s_dns = model.config.scales.get("dns", s) if s_dns is None else s_dns
        same = {"s": s_dns, "steps": steps, "eta": eta, "size": size, "progress": progress}
        same["images"] = images if caption_per == "seed" else 1
        rounds = [
            generate(model, prompt, "dns", seed=(seed + FAR * j) % SEEDS, **same).images
            for j in range(dns_images)
        ]
        dns = [image for of_one_picture in zip(*rounds) for image in of_one_picture]
        texts = prompting.describe(captioner, dns)
        groups = [texts[i : i + dns_images] for i in range(0, len(texts), dns_images)]
        joined = [", ".join(filter(None, group)) for group in groups]
        negatives = joined if caption_per == "seed" else joined * images
        made = 2 * steps * len(dns)  # for all pictures together, which may share an n*
        nfe = made / images if made % images else made // images

    chosen = {**answer.DEFAULTS, **options}
    conditions, rule = METHODS[method]
    scales = (s,)
    if negative_scale is not None:
        rule, scales = guidance.negative_prompt_two_scale, (s, negative_scale)
    latents, pictures = [], []
    with torch.no_grad():
        batch = batch_size(model.device)
        for first in range(0, images, batch):
            rows = range(first, min(first + batch, images))
            texts = {"phi": [""] * len(rows), "p": [prompt] * len(rows)}
            texts["n"] = [negatives[i] for i in rows]
            context = [model.encode(texts[c]) for c in conditions]  # (B, L, D) each
            if method == "answer":
                guided = answer.answer(
                    model.eps, *context, s, model.schedule, pairs,
                    s_dns=s_dns, **chosen, evaluate=together,
                )  # fmt: skip
                counted = answer.evaluations(
                    steps, *(chosen[k] for k in ("K", "K_until", "tensor"))
                )
            else:
                guided = guided_model(model.eps, context, lambda *eps: rule(*eps, *scales))
                counted = len(conditions) * steps
            generators = [torch.Generator().manual_seed(seed + i) for i in rows]
            z_T = noise_like(torch.empty(len(rows), *shape), generators)
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
                    progress(len(rows))
            latents.append((z_T, z_0.float().cpu()))
            pictures += model.decode(z_0)
    z_T, z_0 = (torch.cat(parts) for parts in zip(*latents))
    settings = {
        "prompt": prompt, "method": method, "negative": negatives[0], "scale": s, "steps": steps,
        "eta": eta, "seed": seed, "images": images, "negative_scale": negative_scale, "size": size,
        "dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type,
        "fingerprint": fingerprint,
    }  # fmt: skip
    if method in CAPTIONED:
        settings |= {"s_dns": s_dns, "dns_images": dns_images, "caption_per": caption_per}
    if method == "answer":
        settings |= {"s_dns": s_dns, **chosen}
    return Result(pictures, (z_T, z_0), negatives, nfe + counted, settings, dns)


def _captioner(model, method: str, captioner: Callable | None) -> prompting.Captioner:
    """A captioner of batches: the given one, or with auto-dnp the weights' own."""
    if captioner is None and method == "auto-dnp":
        if model.config.captioner is None:
            raise SettingsError(
                "these weights have no captioner; give auto-dnp one with --captioner FOLDER."
            )
        if model.own_captioner is None:
            model.own_captioner = prompting.load_captioner(model.config.captioner, model.device)
        return model.own_captioner
    if captioner is None:
        raise SettingsError(
            "method dnp needs words for its DNS image: give a captioner (picture -> text), or the "
            "words as the negative prompt."
        )
    return prompting.one_by_one(captioner) if method == "dnp" else captioner


def together(
    eps_fn: Callable[[Tensor, Tensor, Tensor], Tensor],
    z_t: Tensor,
    t: Tensor,
    conditions: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """The noises of k conditions, each (B, L, D), in one batched forward."""
    k = len(conditions)
    return eps_fn(z_t.repeat(k, 1, 1, 1), t, torch.cat(list(conditions))).chunk(k)


def guided_model(
    eps_fn: Callable[[Tensor, Tensor, Tensor], Tensor],
    conditions: Sequence[Tensor],
    rule: Callable[..., Tensor],
) -> Callable[[Tensor, Tensor], Tensor]:
    """eps_fn and a rule of k noises -> a guided model (z_t, t) -> eps, in one batched forward.

    `conditions` holds one (B, L, D) for each argument of `rule`.
    """
    return lambda z_t, t: rule(*together(eps_fn, z_t, t, conditions))


def choose_device(name: str = "auto", rank: int = 0) -> torch.device:
    """The device of a name; auto is the CUDA device of this process, else MPS, else the CPU.

    SettingsError if it cannot be used.
    """
    if name == "auto" and torch.cuda.is_available():
        name = f"cuda:{rank % torch.cuda.device_count()}"
    elif name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise SettingsError(
            f"device {name!r} cannot be used here; choose cpu, or leave --device out."
        ) from None
    return device


def batch_size(device: torch.device) -> int:
    """How many pictures are sampled together.

    On a CPU more gain little, and one at a time its last bits are the same in any batch; a GPU
    gains much.
    """
    return 1 if device.type == "cpu" else 16


def check_settings(
    T, method, negative, s, steps, seed, images, eta, negative_scale,
    s_dns=None, dns_images=1, caption_per="seed", options=None,
) -> None:  # fmt: skip
    """SettingsError, one sentence with the mend, for settings that are not possible."""

    def require(possible: bool, sentence: str) -> None:
        if not possible:
            raise SettingsError(sentence)

    def belongs(name: str, given: bool, methods: Sequence[str]) -> None:
        told = f"{name} belongs to method {' or '.join(methods)}, not {method}; leave it out."
        require(not given or method in methods, told)

    require(method in METHODS, f"method {method!r} is unknown; choose {', '.join(METHODS)}.")
    if method in NEEDS_NEGATIVE:
        told = f"method {method} needs a negative prompt; add --negative TEXT."
        require(negative is not None, told)
    elif method not in TAKES_NEGATIVE:
        told = f"method {method} takes no negative prompt; leave it out or choose "
        require(negative is None, told + " or ".join(NEEDS_NEGATIVE) + ".")
    belongs("a negative scale", negative_scale is not None, TWO_SCALE)
    belongs("s_dns", s_dns is not None, (*CAPTIONED, "answer"))
    belongs("dns_images", dns_images != 1, CAPTIONED)
    belongs("caption_per", caption_per != "seed", CAPTIONED)
    for name in options or {}:
        known = ", ".join(answer.DEFAULTS)
        require(
            name in answer.DEFAULTS, f"{name} is no setting; the options of answer are {known}."
        )
        belongs(name, True, ("answer",))
    if method == "answer":
        try:
            answer.check(**{**answer.DEFAULTS, **(options or {})})
        except ValueError as e:
            raise SettingsError(str(e)) from None
    for name, value in (("negative scale", negative_scale), ("s_dns", s_dns), ("scale", s)):
        told = f"{name} {value} is not finite; give a number such as 1."
        require(value is None or _finite(value), told)
    require(_whole(steps, 1, T), f"{steps} steps are not possible; choose 1 to {T}.")
    require(_whole(images, 1, 10_000), f"{images} images are not possible; choose 1 to 10000.")
    told = f"{dns_images} DNS images for a caption are not possible; choose 1 to 100."
    require(_whole(dns_images, 1, 100), told)
    told = f"caption_per = {caption_per!r} is unknown; choose seed or prompt."
    require(caption_per in ("seed", "prompt"), told)
    told = f"seed {seed} is not possible; choose a whole number from 0 to 2^32 - 1."
    require(_whole(seed, 0, SEEDS - 1), told)
    require(_finite(eta) and 0 <= eta <= 1, f"eta {eta} is not possible; choose 0 to 1.")


def _finite(x: object) -> bool:
    return isinstance(x, int | float) and abs(x) < 1e30  # also false for NaN


def _whole(x: object, least: int, most: int) -> bool:
    return type(x) is int and least <= x <= most

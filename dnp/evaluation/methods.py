"""What the experiments compare: the methods of `dnp.generate`, and the baselines of the papers.

A method is written `name` or `name:option=value,option=value`, such as `cfg:steps=30` or
`auto-dnp:negative_scale=1`. Options are those of `dnp.generate`.

    unconditional   no prompt at all (phi, evaluated twice a step)
    universal       Eq. (4) with a fixed negative prompt; universal2 is the two-term form
    random          Eq. (4) with another prompt of the benchmark as negative; random2 two-term
    semantic        Eq. (4) with a negative made by hand, for a short list of prompts
    negative-alone  the positive prompt empty and n* negative (the paper's semantic gap)
    cnp             Eq. (4) with a complete DNS chain and a caption at every step (complete
                    negative prompting, arXiv:2508.02973)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from dnp import answer, generation, guidance, prompting
from dnp.answer import dns_chain
from dnp.errors import SettingsError
from dnp.evaluation.benchmarks import subjects
from dnp.sampling import ddim_sample, noise_like

# Words that people put against any picture. A miniature that never read them sees untrained tokens.
UNIVERSAL = "ugly, deformed, disfigured, blurry, bad anatomy, low quality"
SEMANTIC = {  # what a person might write against the usual failure of each prompt
    "a cat and a dog": "a cat and a cat",
    "a cat and a bird": "a bird and a bird",
    "a bear and a turtle": "a frog",
    "a lion and a horse": "a lion and a lion",
    "a horse and a frog": "a turtle",
    "a rabbit and a mouse": "a rabbit and a rabbit",
    "a cat with a crown": "a cat on a plain background",
    "a dog with a glasses": "a glasses on a plain background",
    "a monkey with a bow": "a red apple",
    "a bird and a brown balloon": "a brown bird",
    "a red backpack and a orange glasses": "a orange backpack and a red glasses",
    "a black backpack and a white clock": "a white backpack and a black clock",
}
BASELINES = {  # the method of `dnp.generate` that each is made with
    "unconditional": "cfg", "universal": "np", "universal2": "np2", "random": "np",
    "random2": "np2", "semantic": "np", "negative-alone": "dns", "cnp": "np",
}  # fmt: skip
METHODS = ("cfg", "dns", "auto-dnp", "answer", *BASELINES)
CAPTIONED = ("auto-dnp", "negative-alone", "cnp")
KINDS = {
    "steps": int, "K": int, "dns_images": int, "K_until": float, "s": float, "s_dns": float,
    "negative_scale": float, "eta": float, "tensor": str, "form": str, "normalize": str,
    "caption_per": str,
}  # fmt: skip
OF_CNP, OF_ALONE = ("steps", "s", "s_dns", "negative_scale"), ("steps", "s", "s_dns", "eta")


@dataclass(frozen=True)
class Method:
    """A method with its options; `label` is what was typed."""

    label: str
    name: str
    options: tuple[tuple[str, object], ...] = ()

    @property
    def rule(self) -> str:
        """The method of `dnp.generate` that it is made with."""
        return BASELINES.get(self.name, self.name)


@dataclass
class Sample:
    """One picture, the words it was kept away from, and the evaluations that it cost."""

    image: Image.Image
    negative: str | None
    nfe: int


def parse(text: str) -> Method:
    """`name:option=value,...` as a Method; SettingsError for a name or option that is unknown."""
    name, _, rest = text.partition(":")
    if name not in METHODS:
        raise SettingsError(f"method {name!r} is unknown; choose {', '.join(METHODS)}.")
    options = []
    for item in filter(None, rest.split(",")):
        key, _, value = item.partition("=")
        try:
            options.append((key, KINDS[key](value)))
        except (KeyError, ValueError):
            raise SettingsError(
                f"{item!r} in {text!r} is no option; write option=value with one of "
                f"{', '.join(KINDS)}."
            ) from None
    return Method(text, name, tuple(options))


def settled(method: Method, s: float | None, steps: int, model) -> dict:
    """Every setting that a method's pictures depend on, defaults and recommendations filled in."""
    scales, options = model.config.scales, dict(method.options)
    s = options.pop("s", scales.get(method.name, scales.get(method.rule)) if s is None else s)
    s = generation.DEFAULT_SCALE if s is None else s
    s = 1.0 if method.name == "unconditional" else s
    out = {"s": s, "steps": steps, **options}
    if method.name in CAPTIONED:
        out.setdefault("s_dns", scales.get("dns", s))
    if method.name == "answer":
        out = {**answer.DEFAULTS, **out}
    if method.name == "negative-alone":
        out["s"] = out["s_dns"]
    return out


def check(method: Method, s: float | None, steps: int, model, prompts: Sequence[str]) -> None:
    """SettingsError, before anything is sampled, for a method that cannot run on these prompts."""
    settings = settled(method, s, steps, model)
    allowed = {"cnp": OF_CNP, "negative-alone": OF_ALONE, "unconditional": ("steps", "eta")}
    wrong = [k for k, _ in method.options if k not in allowed.get(method.name, KINDS)]
    if wrong:
        raise SettingsError(f"{wrong[0]} is no option of {method.name}; leave it out.")
    rule, given, T = method.rule, dict(settings), len(model.schedule.abar)
    if method.name in ("negative-alone", "cnp"):
        generation.check_settings(T, "dns", None, given.pop("s_dns"), steps, 0, 1, 0.0, None)
    generation.check_settings(
        T, rule, "" if rule in generation.NEEDS_NEGATIVE else None,
        given.pop("s"), given.pop("steps"), 0, 1, given.pop("eta", 0.0),
        given.pop("negative_scale", None), given.pop("s_dns", None), given.pop("dns_images", 1),
        given.pop("caption_per", "seed"), given,
    )  # fmt: skip
    for prompt in prompts:
        if method.name == "semantic":
            semantic_negative(prompt)
        if method.name.startswith("random"):
            random_negative(prompt, 0, prompts)


def sample(
    model, method: Method, prompt: str, seeds: int, s: float | None, steps: int,
    captioner: prompting.Captioner | None, others: Sequence[str],
) -> list[Sample]:  # fmt: skip
    """Pictures of `prompt` for the seeds 0 to `seeds` - 1; random negatives come from `others`."""
    name, settings = method.name, settled(method, s, steps, model)
    if name == "cnp":
        return [Sample(*cnp(model, prompt, k, captioner, **settings)) for k in range(seeds)]
    if name.startswith("random"):
        return [
            _generate(
                model, prompt, method.rule, 1, random_negative(prompt, k, others), k, settings
            )[0]
            for k in range(seeds)
        ]
    if name == "negative-alone":
        s_dns = settings.pop("s_dns")
        dns = _generate(model, prompt, "dns", seeds, None, 0, {**settings, "s": s_dns})
        words = prompting.describe(captioner, [made.image for made in dns])
        alone = [_generate(model, w, "dns", 1, None, k, settings)[0] for k, w in enumerate(words)]
        return [Sample(a.image, w, a.nfe + d.nfe) for a, w, d in zip(alone, words, dns)]
    negative = UNIVERSAL if name.startswith("universal") else None
    if name == "semantic":
        negative = semantic_negative(prompt)
    if name == "auto-dnp":
        settings["captioner"] = captioner
    prompt = "" if name == "unconditional" else prompt
    return _generate(model, prompt, method.rule, seeds, negative, 0, settings)


def _generate(model, prompt, rule, images, negative, seed, settings) -> list[Sample]:
    r = generation.generate(model, prompt, rule, negative, seed=seed, images=images, **settings)
    return [Sample(image, n, r.nfe) for image, n in zip(r.images, r.negatives)]


def random_negative(prompt: str, seed: int, others: Sequence[str]) -> str:
    """One of `others` that asks for none of the things of `prompt`, drawn by prompt and seed."""
    mine = {word for _, word in subjects(prompt)}
    free = [o for o in others if o != prompt and not mine & {w for _, w in subjects(o)}]
    if not free:
        raise SettingsError(
            f'no other prompt is unlike "{prompt}", so none can be its random negative; give more '
            "prompts."
        )
    generator = torch.Generator().manual_seed(sum(map(ord, prompt)) + 1000 * seed)
    return free[int(torch.randint(len(free), (), generator=generator))]


def semantic_negative(prompt: str) -> str:
    if prompt not in SEMANTIC:
        raise SettingsError(
            f'nobody has written a semantic negative for "{prompt}"; they exist for benchmark '
            "semantic."
        )
    return SEMANTIC[prompt]


@torch.no_grad()
def cnp(
    model, prompt: str, seed: int, captioner: prompting.Captioner, s: float, steps: int,
    s_dns: float, negative_scale: float | None = None,
) -> tuple[Image.Image, str, int]:  # fmt: skip
    """Complete negative prompting: at every step t a complete DNS chain from z_t, a caption of its
    picture, and Eq. (4) with it. Returns the picture, the last caption, and the evaluations.

    steps^2 + 2 steps evaluations: at step i two and one for the negative, and 2 (steps - i - 1) for
    the chain, whose first step shares its two with the outer one.
    """
    c_phi, c_p = model.encode([""]), model.encode([prompt])
    h, spacing = s if negative_scale is None else negative_scale, model.config.spacing
    pairs = model.schedule.pairs(steps, spacing)
    step_of, captions, nfe = {t: i for i, (t, _) in enumerate(pairs)}, [], 0

    def noises(z, t, *conditions):
        nonlocal nfe
        nfe += len(conditions)
        return generation.together(model.eps, z, torch.as_tensor(t), conditions)

    def both(z, t):
        return noises(z, t, c_phi, c_p)

    def guided(z_t, t):
        eps_phi, eps_p = both(z_t, t)
        rest = pairs[step_of[int(t)] :]
        *_, (_, z_0, _) = dns_chain(both, z_t, rest, model.schedule, s_dns, (eps_phi, eps_p))
        captions.append(prompting.describe(captioner, model.decode(z_0))[0])
        (eps_n,) = noises(z_t, t, model.encode([captions[-1]]))
        return guidance.negative_prompt_two_scale(eps_phi, eps_p, eps_n, s, h)

    generator = torch.Generator().manual_seed(seed)
    z_T = noise_like(torch.empty(1, *model.latent_shape()), [generator])
    z_T = z_T.to(model.device, model.dtype)
    *_, (_, z_0, _) = ddim_sample(guided, z_T, model.schedule, steps, spacing=spacing)
    return model.decode(z_0)[0], captions[-1], nfe

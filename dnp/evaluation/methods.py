"""What the experiments compare: the methods of `dnp.generate`, and the baselines of the papers.

A method is written `name` or `name:option=value,option=value`, such as `cfg:steps=30`,
`auto-dnp:negative_scale=1`, `cfg:interval=0.3:5` or `auto-dnp:rule=mine.py:bounded,o.tau=0.3`.
Options are those of `dnp.generate` (`dnp/settings.py`, group how); `o.KEY` is one of the rule's.

    unconditional   no prompt at all (phi, evaluated twice a step)
    universal       Eq. (4) with a fixed negative prompt; universal2 is the two-term form
    random          Eq. (4) with another prompt of the benchmark as negative; random2 two-term
    semantic        Eq. (4) with a negative made by hand, for a short list of prompts
    negative-alone  the positive prompt empty and n* negative (the paper's semantic gap)
    cnp             Eq. (4) with a complete DNS chain and a caption at every step (complete
                    negative prompting, arXiv:2508.02973)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from dnp import contract, generation, guidance, prompting
from dnp import settings as table
from dnp.answer import dns_chain
from dnp.errors import SettingsError, meant
from dnp.evaluation.benchmarks import SEMANTIC, subjects
from dnp.guided import together
from dnp.methods import METHODS as ROWS
from dnp.sampling import ddim_sample, noise_like

# Words that people put against any picture. A miniature that never read them sees untrained tokens.
UNIVERSAL = "ugly, deformed, disfigured, blurry, bad anatomy, low quality"
BASELINES = {  # the method of `dnp.generate` that each is made with
    "unconditional": "cfg", "universal": "np", "universal2": "np2", "random": "np",
    "random2": "np2", "semantic": "np", "negative-alone": "dns", "cnp": "np",
}  # fmt: skip
# The methods that ask nobody and are given no words, and the baselines.
METHODS = (*(m.name for m in ROWS.values() if m.negative not in ("given", "asked")), *BASELINES)
CAPTIONED = (
    *(m.name for m in ROWS.values() if m.negative == "captioned"), "negative-alone", "cnp",
)  # fmt: skip
OPTIONS = {x.argument: x for x in table.of_group("how").values() if x.kind != "options"}
FROM_DNS = ("auto-dnp", "negative-alone")  # n* are words for DNS images, which variants share
OF_WORDS = ("s_dns", "dns_images", "caption_per")  # options that only n* depends on
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
class Words:
    """The n* of a picture, the evaluations of its DNS images, and the seconds that it took."""

    text: str
    nfe: int
    seconds: float


@dataclass
class Sample:
    """One picture, the words it was kept away from, and the evaluations of it alone."""

    image: Image.Image
    negative: str | None
    nfe: float


def parse(text: str) -> Method:
    """`name:option=value,...` as a Method; SettingsError for a name or option that is unknown."""
    name, _, rest = text.partition(":")
    if name not in METHODS:
        raise SettingsError(f"method {name!r} is unknown; {meant(name, METHODS)}")
    options, of_rule = [], {}
    for item in filter(None, rest.split(",")):
        key, _, value = item.partition("=")
        if key.startswith("o."):
            of_rule.update([table.option(item.removeprefix("o."))])
            continue
        try:
            options.append((key, table.from_text(OPTIONS[key], value)))
        except (KeyError, ValueError):
            raise SettingsError(
                f"{item!r} in {text!r} is no option; write option=value with one of "
                f"{', '.join(OPTIONS)}, or o.KEY=value for a rule's."
            ) from None
    if of_rule:
        options.append(("rule_options", tuple(of_rule.items())))
    rule = dict(options).get("rule")
    if rule is not None and contract.read(rule, of_rule).sha256 == contract.UNKNOWN:
        raise SettingsError(
            f"the source of rule {rule} cannot be read, so its records could not be told apart; "
            "put it into a file."
        )
    return Method(text, name, tuple(options))


def settled(method: Method, s: float | None, steps: int, model, size=None) -> dict:
    """Every setting that a method's pictures depend on, defaults and recommendations filled in.

    `size` is (height, width) in pixels; None, as the weights were trained, is left out.
    """
    scales, options = model.config.scales, dict(method.options)
    s = options.pop("s", scales.get(method.name, scales.get(method.rule)) if s is None else s)
    s = table.DEFAULT_SCALE if s is None else s
    s = 1.0 if method.name == "unconditional" else s
    out = {"s": s, "steps": steps, **options}
    if method.name in CAPTIONED:
        out.setdefault("s_dns", scales.get("dns", s))
    if method.name in ROWS and ROWS[method.name].negative == "chain":
        chain = {x.argument: x.default for x in OPTIONS.values() if x.of is table.of_chain}
        out = {**chain, **out}
        if "rule" in out:
            out.pop("form")
    if "rule" in out:
        rule = contract.read(out["rule"], dict(out.get("rule_options", ())))
        out["rule_options"], out["rule_sha256"] = rule.options, rule.sha256
    if method.name == "negative-alone":
        out["s"] = out["s_dns"]
    return out | ({} if size is None else {"size": tuple(size)})


def check(
    method: Method, s: float | None, steps: int, model, prompts: Sequence[str],
    others: Sequence[str], size: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """SettingsError, before anything is sampled, for a method that cannot run on these prompts."""
    settings = settled(method, s, steps, model)
    model.latent_shape(size)
    allowed = {"cnp": OF_CNP, "negative-alone": OF_ALONE, "unconditional": ("steps", "eta")}
    wrong = [
        k
        for k, _ in method.options
        if k not in allowed.get(method.name, (*OPTIONS, "rule_options"))
    ]
    if wrong:
        raise SettingsError(f"{wrong[0]} is no option of {method.name}; leave it out.")
    row, given = ROWS[method.rule], dict(settings)
    given.pop("rule_sha256", None)
    if method.name in ("negative-alone", "cnp"):
        generation.Plan.of(model, "", "dns", {"s": given.pop("s_dns"), "steps": steps})
    words = "" if row.negative == "given" else None
    generation.Plan.of(model, "", method.rule, {**given, "negative": words})
    for prompt in prompts:
        negative(method, prompt, 0, others)


def negative(method: Method, prompt: str, seed: int, others: Sequence[str]) -> str | None:
    """The negative prompt of a picture, where it is known before anything is sampled."""
    if method.name.startswith("universal"):
        return UNIVERSAL
    if method.name == "semantic":
        return semantic_negative(prompt)
    if method.name.startswith("random"):
        return random_negative(prompt, seed, others)
    return None


def sample(
    model, method: Method, prompt: str, seeds: Sequence[int], settings: dict,
    negatives: Sequence[str | None], captioner: prompting.Captioner | None = None,
) -> list[Sample]:  # fmt: skip
    """Pictures of `prompt`, one for each of `seeds`, by `settled` settings.

    `negatives` holds the negative prompt of each: `negative`'s, n* with auto-dnp and
    negative-alone, else None. cnp asks the captioner as it goes.
    """
    name = method.name
    settings = {k: v for k, v in settings.items() if name == "cnp" or not _of_words(method, k)}
    settings.pop("rule_sha256", None)  # what the record is told by, and no setting
    if name == "cnp":
        return [Sample(*cnp(model, prompt, seed, captioner, **settings)) for seed in seeds]
    made, pairs = [], list(zip(seeds, negatives, strict=True))
    while pairs:  # neighbours with the same negative are sampled together
        (seed, n), k = pairs[0], 1
        while k < len(pairs) and pairs[k] == (seed + k, n):
            k += 1
        positive = {"unconditional": "", "negative-alone": n}.get(name, prompt)
        given = None if name == "negative-alone" else n
        r = generation.generate(
            model, positive, method.rule, given, seed=seed, images=k, **settings
        )
        made += [Sample(image, n, r.nfe) for image in r.images]
        pairs = pairs[k:]
    return made


def _of_words(method: Method, option: str) -> bool:
    return method.name in FROM_DNS and option in OF_WORDS


def dns_settings(settings: dict) -> dict:
    """The settings of the DNS images that the words of a method's settings are for."""
    same = {k: settings[k] for k in ("steps", "eta", "size", "sampler") if k in settings}
    return {"s": settings["s_dns"], **same}


def n_stars(
    prompt: str, seeds: Sequence[int], settings: dict,
    describe: Callable[[str, Sequence[int], dict], Sequence[Words]],
) -> list[Words]:  # fmt: skip
    """The n* of each picture: the words for its DNS images, joined by commas.

    `describe` gives those for the DNS images of (prompt, seeds, settings); the first one of a
    picture has its seed, so that it starts at its z_T.
    """
    own, count = dns_settings(settings), settings.get("dns_images", 1)
    of = lambda j: [(seed + generation.FAR * j) % table.SEEDS for seed in seeds]  # noqa: E731
    return [
        Words(
            ", ".join(part.text for part in parts if part.text),
            sum(part.nfe for part in parts),
            sum(part.seconds for part in parts),
        )
        for parts in zip(*(describe(prompt, of(j), own) for j in range(count)))
    ]


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
    s_dns: float, negative_scale: float | None = None, size: tuple[int, int] | None = None,
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
        return together(model.eps, z, torch.as_tensor(t), conditions)

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
    z_T = noise_like(torch.empty(1, *model.latent_shape(size)), [generator])
    z_T = z_T.to(model.device, torch.promote_types(model.dtype, torch.float32))
    *_, (_, z_0, _) = ddim_sample(guided, z_T, model.schedule, steps, spacing=spacing)
    return model.decode(z_0)[0], captions[-1], nfe

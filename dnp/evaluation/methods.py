"""What the experiments compare: the methods of `dnp.generate`, and the baselines of the papers.

A method is written `name` or `name:option=value,option=value`, such as `cfg:steps=30`,
`auto-dnp:negative_scale=1`, `cfg:interval=0.3:5` or `auto-dnp:rule=mine.py:bounded,o.tau=0.3`.
Options are those of `dnp.generate` (`dnp/settings.py`, group how); `o.KEY` is one of the rule's.

    unconditional   no prompt at all (phi, evaluated twice a step)
    universal       Eq. (4) with a fixed negative prompt; universal2 is the two-term form
    random          Eq. (4) with another prompt of the benchmark as negative; random2 two-term
    shuffled        auto-dnp with the n* of another prompt of the grid: the same captions, permuted
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

from dnp import contract, generation, prompting
from dnp import settings as table
from dnp.errors import SettingsError, meant
from dnp.evaluation.benchmarks import SEMANTIC, subjects
from dnp.evaluation.cnp import cnp
from dnp.methods import METHODS as ROWS
from dnp.plan import Plan

# Words that people put against any picture. A miniature that never read them sees untrained tokens.
UNIVERSAL = "ugly, deformed, disfigured, blurry, bad anatomy, low quality"
BASELINES = {  # the method of `dnp.generate` that each is made with
    "unconditional": "cfg", "universal": "np", "universal2": "np2", "random": "np",
    "random2": "np2", "semantic": "np", "negative-alone": "dns", "cnp": "np",
    "shuffled": "auto-dnp",
}  # fmt: skip
GIVEN_HERE = ("universal", "random", "semantic")  # as `np` is, with words of their own
# The methods that ask nobody and are given no words, and the baselines.
METHODS = (*(m.name for m in ROWS.values() if m.negative not in ("given", "asked")), *BASELINES)
CAPTIONED = (
    *(m.name for m in ROWS.values() if m.negative == "captioned"), "negative-alone",
    "shuffled", "cnp",
)  # fmt: skip
OPTIONS = {x.argument: x for x in table.of_group("how").values() if x.kind != "options"}
# Their n* are words for DNS images, which all variants share.
FROM_DNS = ("auto-dnp", "ae+auto-dnp", "negative-alone", "shuffled")
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
    """One picture, the words it was kept away from, and the evaluations of it alone, a gradient
    pass counted as two."""

    image: Image.Image
    negative: str | None
    nfe: float


def parse(text: str) -> Method:
    """`name:option=value,...` as a Method; SettingsError for a name or option that is unknown."""
    name, _, rest = text.partition(":")
    if name in ROWS and name not in METHODS:
        raise SettingsError(
            f"method {name!r} needs words for each prompt, and nobody gives them here; choose "
            f"auto-dnp, whose words a captioner gives, or {', '.join(GIVEN_HERE)}."
        )
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
    if method.name in ROWS and ROWS[method.name].has_subjects:
        excitation = table.excitation(out, model.config.attend_excite)
        of_maps = {"ae_level": excitation["ae_level"]}
        out |= excitation if ROWS[method.name].excites else of_maps
    row = ROWS.get(method.name)
    if row and row.negative_interval:
        out.setdefault("negative_interval", row.negative_interval)
    if row and row.h_of_s != 1 and "rule" not in out:
        out.setdefault("negative_scale", row.h_of_s * s)
    if "rule" in out:
        rule = contract.read(out["rule"], dict(out.get("rule_options", ())))
        out["rule_options"], out["rule_sha256"] = rule.options, rule.sha256
        if "s" not in rule.needs and "s" not in dict(method.options):
            out["s"] = None  # the rule has none; one that was typed is refused by `check`
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
        Plan.of(model, "", "dns", {"s": given.pop("s_dns"), "steps": steps})
    words = "" if row.negative == "given" else None
    for prompt in prompts if row.has_subjects else [""]:
        asked = subjects_of(method, prompt)
        if row.has_subjects and asked is None:
            raise SettingsError(
                f'"{prompt}" names no thing of benchmark ae, so {method.name} has no subjects; '
                "leave the method or the prompt out."
            )
        Plan.of(model, prompt, method.rule, {**given, "negative": words, "subjects": asked})
    if method.name == "shuffled":
        partners(prompts)
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


def subjects_of(method: Method, prompt: str) -> str | None:
    """The subjects whose attention is read; None for another method, and where there are none."""
    asked = subjects(prompt) if ROWS[method.rule].has_subjects else []
    return ", ".join(thing for _, thing in asked) or None


def sample(
    model, method: Method, prompt: str, seeds: Sequence[int], settings: dict,
    negatives: Sequence[str | None], captioner: prompting.Captioner | None = None,
) -> list[Sample]:  # fmt: skip
    """Pictures of `prompt`, one for each of `seeds`, by `settled` settings.

    `negatives` holds the negative prompt of each: `negative`'s, n* with auto-dnp and
    negative-alone, else None. cnp asks the captioner as it goes.
    """
    name, settings = method.name, given(method, settings)
    if name == "cnp":
        return [Sample(*cnp(model, prompt, seed, captioner, **settings)) for seed in seeds]
    made, pairs = [], list(zip(seeds, negatives, strict=True))
    while pairs:  # neighbours with the same negative are sampled together
        (seed, n), k = pairs[0], 1
        while k < len(pairs) and pairs[k] == (seed + k, n):
            k += 1
        positive = {"unconditional": "", "negative-alone": n}.get(name, prompt)
        words = None if name == "negative-alone" else n
        r = generation.generate(
            model, positive, method.rule, words, seed=seed, images=k,
            subjects=subjects_of(method, prompt), **settings,
        )  # fmt: skip
        made += [Sample(image, n, cost) for image, cost in zip(r.images, r.evaluations)]
        pairs = pairs[k:]
    return made


def given(method: Method, settings: dict) -> dict:
    """The `settled` settings that a picture is sampled with, once its negative is known."""
    words = OF_WORDS if method.name in FROM_DNS else ()
    apart = (*words, "rule_sha256")  # the hash is what a record is told by, and no setting
    return {k: v for k, v in settings.items() if k not in apart}


def dns_settings(settings: dict) -> dict:
    """The settings of the DNS images that the words of a method's settings are for."""
    shared = {k: settings[k] for k in ("steps", "eta", "size", "sampler") if k in settings}
    return {"s": settings["s_dns"], **shared}


def n_stars(
    prompt: str, seeds: Sequence[int], settings: dict,
    describe: Callable[[str, Sequence[int], dict], Sequence[Words]],
) -> list[Words]:  # fmt: skip
    """The n* of each picture: the words for its DNS images, joined by commas.

    `describe` gives those for the DNS images of (prompt, seeds, settings); the first one of a
    picture has its seed, so that it starts at its z_T.
    """
    of_dns, count = dns_settings(settings), settings.get("dns_images", 1)
    of = lambda j: [(seed + generation.FAR * j) % table.SEEDS for seed in seeds]  # noqa: E731
    return [
        Words(
            ", ".join(part.text for part in parts if part.text),
            sum(part.nfe for part in parts),
            sum(part.seconds for part in parts),
        )
        for parts in zip(*(describe(prompt, of(j), of_dns) for j in range(count)))
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


def partners(prompts: Sequence[str]) -> dict[str, str]:
    """Another prompt for each, every one once: the next in a circle in an order drawn once."""
    every = list(dict.fromkeys(prompts))
    if len(every) < 2:
        raise SettingsError("shuffled needs two prompts or more; give more prompts.")
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    return {every[i]: every[j] for i, j in zip(order, [*order[1:], order[0]])}


def semantic_negative(prompt: str) -> str:
    if prompt not in SEMANTIC:
        raise SettingsError(
            f'nobody has written a semantic negative for "{prompt}"; they exist for benchmark '
            "semantic."
        )
    return SEMANTIC[prompt]

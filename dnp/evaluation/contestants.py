"""What the experiments compare: the methods of `dnp.generate`, and the baselines of the papers.

A contestant is written `name` or `name:option=value,option=value`, such as `cfg:steps=30`,
`auto-dnp:negative_scale=1`, `cfg:interval=0.3:5` or `auto-dnp:rule=mine.py:bounded,o.tau=0.3`, and
a method of your own `FILE.py:NAME,option=value`. Options are the fields of the method and of the
chain; `o.KEY` is an option of the rule.

    unconditional   no prompt at all (phi, evaluated twice a step)
    universal       Eq. (4) with a fixed negative prompt; universal2 is the two-term form
    random          Eq. (4) with another prompt of the benchmark as negative; random2 two-term
    shuffled        auto-dnp with the n* of another prompt of the grid: the same captions, permuted
    semantic        Eq. (4) with a negative made by hand, ours for a short list of prompts or yours
    negative-alone  the positive prompt empty and n* negative (the paper's semantic gap)
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from PIL import Image

from dnp import generation
from dnp.errors import SettingsError, meant
from dnp.evaluation.benchmarks import SEMANTIC, subjects
from dnp.methods import METHODS, chosen, own, rule
from dnp.methods.attend_excite import OfSubjects
from dnp.methods.chain import Chain
from dnp.methods.cnp import CNP
from dnp.methods.fields import from_text, option, table
from dnp.methods.method import Asked, Method
from dnp.methods.result import settings_of
from dnp.methods.words import AutoDNP, Captioner, dns_seeds

# Words that people put against any picture. A miniature that never read them sees untrained tokens.
UNIVERSAL = "ugly, deformed, disfigured, blurry, bad anatomy, low quality"
BASELINES = {  # the method that each is made with
    "unconditional": "cfg", "universal": "np", "universal2": "np2", "random": "np",
    "random2": "np2", "semantic": "np", "negative-alone": "auto-dnp", "shuffled": "auto-dnp",
}  # fmt: skip
ASKED = ("np", "np2", "dnp")  # these need words of a person
NAMES = (*(m for m in METHODS if m not in ASKED), *BASELINES)
OF_CHAIN = (
    "sampler",
    "steps",
    "eta",
    "particles",
    "corrector",
    "batch",
)  # fields of the chain that a contestant may have of its own
FEW = {"unconditional": ("steps", "eta", "batch"),
       "negative-alone": ("steps", "s", "s_dns", "eta", "batch")}  # fmt: skip
# Their n* are words for DNS images, which all variants share.
FROM_DNS = ("auto-dnp", "ae+auto-dnp", "negative-alone", "shuffled")


@dataclass(frozen=True)
class Contestant:
    """A method or baseline with its options; `label` is what was typed."""

    label: str
    name: str
    options: dict[str, object] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The method of `dnp.generate` that it is made with."""
        return BASELINES.get(self.name, self.name)

    @cached_property
    def kind(self) -> type[Method]:
        return chosen(self.method, {}, None)

    @property
    def captioned(self) -> bool:
        """Whether a captioner has a part in its pictures; also in those of a method of your own."""
        return issubclass(self.kind, AutoDNP | CNP)


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


def parse(text: str) -> Contestant:
    """`name:option=value,...` as a contestant; SettingsError for an unknown name or option."""
    file = re.match(r"(.*?\.py:\w+)(?:,(.*))?$", text) if "=" not in text.split(".py:")[0] else None
    name, _, rest = text.partition(":")
    if file:
        name, rest = file[1], file[2] or ""
    elif name in ASKED:
        raise SettingsError(
            f"method {name!r} needs words for each prompt: write them in a file for --negatives "
            "and choose semantic; or choose auto-dnp, whose words a captioner gives, universal or "
            "random."
        )
    elif name not in NAMES:
        raise SettingsError(f"method {name!r} is unknown; {meant(name, NAMES)}")
    contestant = Contestant(text, name)
    kind = contestant.kind
    if file and own.identity(kind) == own.UNKNOWN:
        raise SettingsError(unreadable("method", name))
    known = table(kind) | {k: f for k, f in table(Chain).items() if k in OF_CHAIN}
    known = {k: f for k, f in known.items() if k in FEW.get(name, known)}
    options, of_rule = {}, {}
    for item in filter(None, rest.split(",")):
        key, _, value = item.partition("=")
        if key.startswith("o."):
            of_rule.update([option(item.removeprefix("o."))])
            continue
        try:
            options[key] = from_text(known[key], value)
        except (KeyError, ValueError):
            raise SettingsError(
                f"{item!r} in {text!r} is not an option; write option=value with one of "
                f"{', '.join(k for k in known if k != 'rule_options')}, or o.KEY=value for one of "
                "the rule."
            ) from None
    if of_rule:
        options["rule_options"] = of_rule
    if options.get("rule"):
        found = rule.read(options["rule"], of_rule)
        if found.sha256 == own.UNKNOWN:
            raise SettingsError(unreadable("rule", options["rule"]))
        if "eps_n" in found.needs and not kind.has_negative:
            raise SettingsError(
                f"rule {found.name} needs a negative (eps_n), and method {name} has none; write "
                f"semantic:rule={options['rule']} (with --negatives FILE for your own prompts), or "
                "universal, random, answer or auto-dnp in place of semantic."
            )
    return Contestant(text, name, options)


def unreadable(what: str, name: str) -> str:
    return (
        f"the code of {what} {name} cannot be told from another's, since it is a lambda, is made "
        "inside a function, or has no file; define it at the top of a file."
    )


def settled(
    c: Contestant, s: float | None, steps: int, model, size=None, prompt: str = "",
    subjects: str | None = None, batch: int | None = None,
) -> dict:  # fmt: skip
    """Every setting that a contestant's pictures depend on, defaults and recommendations filled in.

    `size` is (height, width) in pixels. SettingsError for what is not possible with this prompt.
    """
    if c.name == "unconditional":
        s, prompt = 1.0, ""
    if issubclass(c.kind, OfSubjects) and subjects is None:  # no other setting depends on them
        prompt, subjects = (prompt, subjects_of(c, prompt)) if prompt else ("a cat", "cat")
    if "s" not in c.options and s is None and c.name in BASELINES:
        recommended = getattr(model.config, "scales", {})
        s = recommended.get(c.name, recommended.get(c.method))
    given = {"s": s, "steps": steps, "size": size, "subjects": subjects, "batch": batch}
    given |= c.options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sampling warns
        call, guided = generation.prepared(model, prompt, c.method, None, None, None, given)
    made = settings_of(call, guided)
    belong = {*table(type(guided)), *table(Chain), "rule_options", "rule_sha256", "method_sha256"}
    made = {k: v for k, v in made.items() if k in belong - {"seed", "images", "subjects"}}
    if c.name == "negative-alone":
        made = {k: made[k] for k in ("s_dns", *table(Chain)) if k in made} | {"s": made["s_dns"]}
    return {k: v for k, v in made.items() if v is not None or k == "s"}


def check(
    c: Contestant, s: float | None, steps: int, model, prompts: Sequence[str],
    others: Sequence[str], size: tuple[int, int] | None = None, batch: int | None = None,
    by_hand: Mapping[str, str] = SEMANTIC,
) -> None:  # fmt: skip
    """SettingsError, before anything is sampled, for a contestant that cannot run on these."""
    model.latent_shape(size)
    of_subjects = issubclass(c.kind, OfSubjects)
    for prompt in prompts if of_subjects else prompts[:1]:
        if of_subjects and subjects_of(c, prompt) is None:
            raise SettingsError(
                f'"{prompt}" names no thing of benchmark ae, so {c.name} has no subjects; '
                "leave the method or the prompt out."
            )
        settled(c, s, steps, model, size, prompt, subjects_of(c, prompt), batch)
    if c.name == "shuffled":
        partners(prompts)
    for prompt in prompts:
        negative(c, prompt, 0, others, by_hand)


def negative(
    c: Contestant, prompt: str, seed: int, others: Sequence[str],
    by_hand: Mapping[str, str] = SEMANTIC,
) -> str | None:  # fmt: skip
    """The negative prompt of a picture, where it is known before anything is sampled."""
    if c.name.startswith("universal"):
        return UNIVERSAL
    if c.name.startswith("random"):
        return random_negative(prompt, seed, others)
    if c.name == "semantic" and prompt not in by_hand:
        raise SettingsError(
            f'nobody has written a semantic negative for "{prompt}"; write it in a file for '
            "--negatives, or choose benchmark semantic, which has them."
        )
    return by_hand[prompt] if c.name == "semantic" else None


def subjects_of(c: Contestant, prompt: str) -> str | None:
    """The subjects whose attention is read; None for another method, and where there are none."""
    asked = subjects(prompt) if issubclass(c.kind, OfSubjects) else []
    return ", ".join(thing for _, thing in asked) or None


def sample(
    model, c: Contestant, prompts: Sequence[str], seeds: Sequence[int], settings: dict,
    negatives: Sequence[str | None], captioner: Captioner | None = None,
) -> list[Sample]:  # fmt: skip
    """A picture of each of `prompts` and `seeds`, by `settled` settings.

    `negatives` holds the negative prompt of each: `negative`'s, n* with auto-dnp and
    negative-alone, else None. cnp asks the captioner as it goes.
    """
    method, settings, rows = c.method, given(settings), []
    for prompt, seed, n in zip(prompts, seeds, negatives, strict=True):
        rows.append(Asked(prompt, seed, n, subjects_of(c, prompt)))
        if c.name == "unconditional":
            rows[-1] = Asked("", seed)
        elif c.name == "negative-alone":
            rows[-1] = Asked(n, seed)
    if c.name == "negative-alone":
        method = "dns"
        settings.pop("s_dns", None)
    r = generation.generate_rows(model, rows, method, captioner, **settings)
    said = negatives if c.name in BASELINES else r.negatives
    return [Sample(*row) for row in zip(r.images, said, r.evaluations)]


def given(settings: dict) -> dict:
    """`settled` settings as `dnp.generate` takes them: without the identity of the code."""
    return {k: v for k, v in settings.items() if k not in ("rule_sha256", "method_sha256")}


def dns_settings(settings: dict) -> dict:
    """The settings of the DNS images that the words of a contestant's settings are for: plain
    chains, as those of `dnp.generate` are."""
    own = ("particles", "corrector")
    shared = {k: v for k, v in settings.items() if k in table(Chain) and k not in own}
    return {"s": settings["s_dns"], **shared}


def n_stars(
    asked: Sequence[tuple[str, int]], settings: dict,
    describe: Callable[[Sequence[tuple[str, int]], dict], Sequence[Words]],
) -> list[Words]:  # fmt: skip
    """The n* of each picture (prompt, seed): the words for its DNS images, joined by commas.

    `describe` gives those for DNS images (prompt, seed) of these settings.
    """
    of_dns, count = dns_settings(settings), settings.get("dns_images", 1)
    rounds = zip(*([(prompt, k) for k in dns_seeds(seed, count)] for prompt, seed in asked))
    return [
        Words(
            ", ".join(part.text for part in parts if part.text),
            sum(part.nfe for part in parts),
            sum(part.seconds for part in parts),
        )
        for parts in zip(*(describe(some, of_dns) for some in rounds))
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

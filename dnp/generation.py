"""A prompt, a method and a seed -> pictures: `dnp.generate`, and its steps: `dnp.trajectory`.

    generate = negatives (words for n, if the method makes them) + trajectory (one chain for each
               batch) + the decoder
    trajectory = a guided model (`Guided`: conditions, rule, intervals) under a sampler

A model is whatever has `eps(z_t, t, c)` and `schedule`: a Stable Diffusion, a toy, one's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from dnp import contract, prompting
from dnp import settings as table
from dnp.answer import LatentNegative
from dnp.errors import NonFiniteError, SettingsError
from dnp.guided import Guided, together
from dnp.methods import METHODS, Method
from dnp.readings import RULES as FORMS
from dnp.sampling import SAMPLERS, noise_like
from dnp.settings import DEFAULT_SCALE, SEEDS

FAR = 1_000_003  # between the seeds of a picture's first, second, ... DNS image
Row = tuple[int, Tensor, Tensor, Tensor | None]  # (t, z_t, z0_hat, eps)


@dataclass
class Result:
    """What `generate` returns: k pictures and all that is needed to make them again."""

    images: list[Image.Image]  # none of a toy
    latents: tuple[Tensor, Tensor]  # z_T and z_0, float32 on the CPU, each (k, C, H, W)
    negatives: list[str | None]  # of each picture
    nfe: float  # network evaluations per picture, one for each condition and step: their mean
    settings: dict = field(default_factory=dict)
    dns_images: list[Image.Image] = field(default_factory=list)  # those of the first picture first

    @property
    def negative(self) -> str | None:
        """The negative prompt, where it is the same for every picture; else that of the first."""
        return self.negatives[0]

    def sheet(self) -> Image.Image:
        """The pictures side by side, with the DNS images above them where there are any."""
        from dnp.pictures import contact_sheet  # what it draws is no part of a picture's key

        s, k = self.settings, len(self.images)
        heads = [f"seed {s['seed'] + i}" for i in range(k)]
        label = f"{s['method']}\ns = {s['scale']:g}" if s["scale"] is not None else s["method"]
        rows = [(f"{label}\n{self.nfe:g} evaluations", self.images)]
        if len(self.dns_images) == k:
            rows.insert(0, ("DNS image", self.dns_images))
        n = f'    n = "{self.negative}"' if self.negative is not None else ""
        return contact_sheet(rows, heads, f'p = "{s["prompt"]}"{n}')

    def _repr_png_(self) -> bytes | None:
        """How a notebook shows it."""
        from dnp.pictures import png

        return png(self.sheet()) if self.images else None


def generate(
    model, prompt, method: str | None = None, negative=None, s: float | None = None,
    steps: int = 50, seed: int = 0, images: int = 1, captioner: Callable | None = None, *,
    progress: Callable[[int], None] | None = None, **settings,
) -> Result:  # fmt: skip
    """Samples `images` pictures of `prompt`, with the seeds seed, seed + 1, ...

    method    a row of `dnp.methods.METHODS`; None is cfg, np2 where a negative is given, or what
              the signature of `rule` asks for
    negative  the negative prompt n; "" is phi. np and np2 need one; dnp and auto-dnp take it as n*
              and then make no DNS image
    s         guidance scale; None is the weights' recommendation for the method, else 7.5
    captioner dnp: a callable picture -> text. auto-dnp: pictures -> texts; None is the weights' own
    progress  called after every step with the number of pictures that made it
    settings  rule, rule_options, negative_scale, interval, negative_interval, sampler, eta, size,
              s_dns, dns_images, caption_per, K, K_until, tensor, form, normalize: see
              `dnp/settings.py`. A rule is a name of `dnp.rules.RULES`, FILE.py:NAME, or a function
              by the contract of `dnp/contract.py`

    The initial noise of a picture comes from its own CPU generator, so a seed means one picture,
    whatever its batch. SettingsError for what is not possible; NonFiniteError names the step.
    """
    given = {**settings, "negative": negative, "s": s, "steps": steps, "seed": seed}
    plan = Plan.of(model, prompt, method, {**given, "images": images})
    record = plan.record()  # now: a weight file that was changed is told before the work
    words, dns, evaluated = negatives(plan, captioner, progress)
    latents, pictures, decode = [], [], getattr(model, "decode", lambda z_0: [])
    batch = batch_size(plan.device)
    for first in range(0, images, batch):
        rows = range(first, min(first + batch, images))
        with torch.no_grad():
            guided, generators, z_T = plan.chain([seed + i for i in rows], [words[i] for i in rows])
            for t, z_0, _, _ in plan.walk(guided, z_T, generators):  # noqa: B007
                if t >= 0 and progress:
                    progress(len(rows))
            latents.append((z_T.float().cpu(), z_0.float().cpu()))
            pictures += decode(z_0)
            evaluated += guided.evaluations * len(rows)
    z_T, z_0 = (torch.cat(parts) for parts in zip(*latents))
    record["negative"] = words[0]
    return Result(pictures, (z_T, z_0), words, _whole(evaluated / images), record, dns)


def trajectory(
    model, prompt, method: str | None = None, negative=None, s: float | None = None,
    steps: int = 50, seed: int = 0, images: int = 1, captioner: Callable | None = None, *,
    z_T: Tensor | None = None, **settings,
) -> Iterator[Row]:  # fmt: skip
    """The chain of `generate` as rows (t, z_t, z0_hat, eps), of all pictures in one batch.

    steps + 1 rows; the last is (-1, z_0, z_0, None). `model` may be a toy: its prompts are integers
    and phi is None. `z_T` (B, *S) is where the chain starts; None draws it from the seeds, for a
    toy from its own law at the first level, since its noisiest level is not quite N(0, I).
    """
    given = {**settings, "negative": negative, "s": s, "steps": steps, "seed": seed}
    plan = Plan.of(
        model, prompt, method, {**given, "images": len(z_T) if z_T is not None else images}
    )
    words, _, _ = negatives(plan, captioner)
    seeds = [seed + i for i in range(plan.chosen["images"])]
    with torch.no_grad():
        guided, generators, drawn = plan.chain(seeds, words, draw=z_T is None)
        start = drawn if z_T is None else z_T
    return plan.walk(guided, start, generators)


def negatives(
    plan: Plan, captioner: Callable | None = None, progress: Callable[[int], None] | None = None
) -> tuple[list, list[Image.Image], int]:
    """The words n of each picture; the DNS images that they describe; the evaluations of all.

    DNP and auto-DNP, arXiv:2411.05473: DNS from the picture's own z_T, then words for it.
    """
    chosen, images = plan.chosen, plan.chosen["images"]
    if not plan.row.makes_dns_image or chosen["negative"] is not None:
        return [chosen["negative"]] * images, [], 0
    captioner = _captioner(plan.model, plan.row, captioner)
    count = images if chosen["caption_per"] == "seed" else 1
    same = {k: chosen[k] for k in ("steps", "eta", "size", "sampler")}
    same |= {k: chosen[k] for k in ("phi", "original_size", "crop", "target_size")}
    rounds = [
        generate(
            plan.model, plan.prompt, "dns", s=plan.s_dns, seed=(chosen["seed"] + FAR * j) % SEEDS,
            images=count, progress=progress, **same,
        )
        for j in range(chosen["dns_images"])
    ]  # fmt: skip
    dns = [image for of_one_picture in zip(*(r.images for r in rounds)) for image in of_one_picture]
    texts = prompting.describe(captioner, dns)
    groups = [texts[i : i + len(rounds)] for i in range(0, len(texts), len(rounds))]
    words = [", ".join(filter(None, group)) for group in groups]
    words = words if chosen["caption_per"] == "seed" else words * images
    return words, dns, sum(r.nfe * count for r in rounds)


@dataclass
class Plan:
    """Checked settings of one call: all that a chain needs but its seeds and its negatives."""

    model: object
    prompt: object
    row: Method
    rule: contract.Rule
    chosen: dict  # every setting by its name in `generate`, defaults filled in
    named: bool  # whether the rule was given, not the method's own

    @classmethod
    def of(cls, model, prompt, method: str | None, given: dict) -> Plan:
        """SettingsError, one sentence with the mend, for settings that are not possible."""
        options = given.get("rule_options")
        rule = given.get("rule")
        rule = None if rule is None else contract.read(rule, options)
        if rule is None and options:
            raise SettingsError("rule_options belong to a rule; give one with --rule.")
        negative = given.get("negative")
        method = table.choose_method(method, rule and rule.needs, negative)
        row = METHODS[method]
        table.check({**given, "rule_options": None}, method, len(model.schedule.abar), rule)
        chosen = {**table.arguments(), **{k: v for k, v in given.items() if v is not None}}
        config = getattr(model, "config", None)
        if chosen["s"] is None and (rule is None or "s" in rule.needs):
            chosen["s"] = getattr(config, "scales", {}).get(method, DEFAULT_SCALE)
        if chosen["sampler"] != "ddim" and chosen["eta"]:
            raise SettingsError(f"sampler {chosen['sampler']} has no eta; leave it out.")
        needed = getattr(rule and rule.function, "chain_eta", None)
        if needed is not None and (chosen["eta"], chosen["sampler"]) != (needed, "ddim"):
            raise SettingsError(
                f"rule {rule.name} follows the noise of the chain, so it needs --eta {needed:g} "
                "with sampler ddim."
            )
        for name in ("phi", "original_size", "crop", "target_size"):
            if chosen[name] is not None and name not in getattr(model, "takes", ()):
                raise SettingsError(f"{name} belongs to SDXL weights; leave it out.")
        if "phi" in getattr(model, "takes", ()) and chosen["phi"] is None:
            chosen["phi"] = config.phi
        own = rule or contract.read(_own_rule(row, chosen))
        plan = cls(model, prompt, row, own, chosen, rule is not None)
        if chosen["negative_interval"] is not None and "eps_n" not in own.needs:
            raise SettingsError(
                f"rule {own.name} has no eps_n for a negative interval; leave it out."
            )
        plan.warn_of_a_low_start()
        return plan

    @property
    def s_dns(self) -> float | None:
        """The scale of the DNS image, or of ANSWER's inner chain."""
        if self.chosen["s_dns"] is not None or not self.row.makes_dns_image:
            return self.chosen["s_dns"]
        scales = getattr(getattr(self.model, "config", None), "scales", {})
        fallback = DEFAULT_SCALE if self.chosen["s"] is None else self.chosen["s"]
        return scales.get("dns", fallback)

    @property
    def device(self) -> torch.device:
        return getattr(self.model, "device", torch.device("cpu"))

    @property
    def spacing(self) -> str:
        return getattr(getattr(self.model, "config", None), "spacing", "leading")

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return self.model.schedule.pairs(self.chosen["steps"], self.spacing)

    def warn_of_a_low_start(self) -> None:
        start, T = self.pairs[0][0], len(self.model.schedule.abar)
        if start < 0.9 * T:
            warnings.warn(
                f"with steps = {self.chosen['steps']}, {self.spacing} spacing starts at t = "
                f"{start} of {T}, where a picture should be half made; choose 10 or more steps, "
                "best a divisor of the levels",
                stacklevel=4,
            )

    def chain(
        self, seeds: Sequence[int], words: Sequence, draw: bool = True
    ) -> tuple[Guided, list[torch.Generator], Tensor | None]:
        """The guided model of a batch, the generator of each sample, and its z_T if `draw`."""
        model, chosen = self.model, self.chosen
        encode = partial(
            getattr(model, "encode", lambda prompts: prompts[0]),
            **{k: chosen[k] for k in getattr(model, "takes", ())},
        )
        empty = "" if hasattr(model, "encode") else None
        conditions = {"phi": encode([empty] * len(seeds)), "p": encode([self.prompt] * len(seeds))}
        if self.row.takes_words:
            conditions["n"] = encode(list(words))
        evaluate, chain_of = partial(together, model.eps), None
        if self.row.negative == "chain":
            inner = {k: chosen[k] for k in ("K", "K_until", "tensor", "normalize")}
            scale = chosen["s"] if chosen["s"] is not None else DEFAULT_SCALE
            scale = scale if chosen["s_dns"] is None else chosen["s_dns"]
            chain_of = partial(
                LatentNegative, c_phi=conditions["phi"], c_p=conditions["p"],
                schedule=model.schedule, pairs=self.pairs, s_dns=scale, **inner,
            )  # fmt: skip
        guided = Guided(
            evaluate, conditions, self.rule, model.schedule, self.pairs, self.row.positive,
            s=chosen["s"], h=chosen["negative_scale"], interval=chosen["interval"],
            negative_interval=chosen["negative_interval"], latent_negative=chain_of,
        )  # fmt: skip
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return guided, generators, self._draw(generators) if draw else None

    def _draw(self, generators: list[torch.Generator]) -> Tensor:
        model = self.model
        if hasattr(model, "latent_shape"):
            shape = model.latent_shape(self.chosen["size"])
            z_T = noise_like(torch.empty(len(generators), *shape), generators)
            return z_T.to(model.device, torch.promote_types(model.dtype, torch.float32))
        t, c = self.pairs[0][0], self.prompt if self.row.positive == "p" else None
        return torch.cat([model.sample(1, t, c, generator=g) for g in generators])

    def walk(self, guided: Guided, z_T: Tensor, generators) -> Iterator[Row]:
        """The rows of `trajectory` from z_T on. NonFiniteError names a step that overflows."""
        steps, z_t = self.chosen["steps"], z_T
        sample = SAMPLERS[self.chosen["sampler"]]
        at_fault = f", rule {self.rule.name}" if self.named else ""
        guided.reset(z_T)
        with torch.no_grad():
            chain = sample(
                guided,
                z_T,
                self.model.schedule,
                steps,
                self.chosen["eta"],
                generators,
                self.spacing,
            )
            for step, ((t, t_next), (_, z_next, z0_hat)) in enumerate(zip(self.pairs, chain), 1):
                if not torch.isfinite(z_next).all():
                    raise NonFiniteError(
                        f"eps is not finite at step {step} of {steps}: the weights are damaged, or "
                        f"the scale{at_fault} or the half precision overflows; try a smaller "
                        "--scale or --dtype float32."
                    )
                eps = guided.observe(z_t, z_next, t, t_next)
                yield t, z_t, z0_hat, eps
                z_t = z_next
        yield -1, z_t, z_t, None

    def record(self) -> dict:
        """The settings as a PNG holds them, by their names there."""
        chosen, model, row = self.chosen, self.model, self.row
        belong = [
            x for x in table.of_group("how", "which").values() if x.of(row) or x.of is table.every
        ]
        record = {"prompt": self.prompt, "method": row.name}
        record |= {
            x.name: chosen[x.argument] for x in belong if x.name not in ("compare", "rule_options")
        }
        record["negative_scale"] = chosen["negative_scale"]
        if row.makes_dns_image and chosen["negative"] is None:
            record["s_dns"] = self.s_dns
        record["rule"] = self.rule.name if self.named else None
        if self.named:
            record |= {"rule_options": self.rule.options, "rule_sha256": self.rule.sha256}
            record["rule_file"] = contract.file_sha256(self.rule.name)
        if hasattr(model, "config"):
            record["dtype"] = str(model.dtype).removeprefix("torch.")
            record["device"] = model.device.type
            record["fingerprint"] = model.config.fingerprint
        return record


def _own_rule(row: Method, chosen: dict) -> str:
    """The rule of a method, by name; its aliases are the two-scale form and ANSWER's form."""
    if chosen["negative_scale"] is not None:
        return "negative_prompt_two_scale"
    return FORMS[chosen["form"]] if row.negative == "chain" else row.rule


def _captioner(model, row: Method, captioner: Callable | None) -> prompting.Captioner:
    """A captioner of batches: the given one, or with auto-dnp the model's own."""
    if captioner is None and row.negative == "captioned":
        captioner = getattr(model, "captioner", None)
        if captioner is None:
            raise SettingsError(
                "these weights have no captioner; give auto-dnp one with --captioner FOLDER."
            )
        return captioner
    if captioner is None:
        raise SettingsError(
            "method dnp needs words for its DNS image: give a captioner (picture -> text), or the "
            "words as the negative prompt."
        )
    return prompting.one_by_one(captioner) if row.negative == "asked" else captioner


def batch_size(device: torch.device) -> int:
    """How many pictures are sampled together.

    On a CPU more gain little, and one at a time its last bits are the same in any batch; a GPU
    gains much.
    """
    return 1 if device.type == "cpu" else 16


def _whole(x: float) -> float:
    """7.0 as 7."""
    return int(x) if x == int(x) else x

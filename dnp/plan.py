"""The plan of one call: its settings checked and filled in, and the chain that they mean.

`dnp/generation.py` adds the words of the negatives, the batches and the decoder.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dnp import contract
from dnp import settings as table
from dnp.answer import LatentNegative
from dnp.attend_excite import Excitation, loss_of_prompt, peaks_of_prompt, require_subjects
from dnp.attend_excite import words as words_of
from dnp.errors import NonFiniteError, SettingsError
from dnp.guided import Guided, inside, together
from dnp.methods import METHODS, Method
from dnp.neglect import Neglect, without
from dnp.readings import RULES as FORMS
from dnp.sampling import SAMPLERS, noise_like
from dnp.settings import DEFAULT_SCALE
from dnp.validation import check, choose_method

Row = tuple[int, Tensor, Tensor, Tensor | None]  # (t, z_t, z0_hat, eps)


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
        if not hasattr(model, "schedule"):
            raise SettingsError(
                f"{type(model).__name__} is no model; open one with dnp.load(PATH) or "
                "dnp.from_diffusers(pipe)."
            )
        if isinstance(prompt, list | tuple):
            raise SettingsError("a list is no prompt; give one, and call again for the next.")
        if hasattr(model, "encode") and not isinstance(prompt, str):
            raise SettingsError(f"a prompt is a text, not {type(prompt).__name__}; give one.")
        options = given.get("rule_options")
        rule = given.get("rule")
        rule = None if rule is None else contract.read(rule, options)
        if rule is None and options:
            raise SettingsError("rule_options belong to a rule; give one with --rule.")
        negative = given.get("negative")
        method = choose_method(method, rule and rule.needs, negative)
        row = METHODS[method]
        check({**given, "rule_options": None}, method, len(model.schedule.abar), rule)
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
        if row.has_subjects:
            excitation = table.excitation(chosen, getattr(config, "attend_excite", {}))
            chosen |= excitation if row.excites else {"ae_level": excitation["ae_level"]}
            chosen["subjects"] = require_subjects(model, prompt, row.name, chosen["subjects"])
            model.attention(chosen["ae_level"])  # SettingsError for a level that has none
        if row.negative == "neglected" and not any(without(prompt, words_of(chosen["subjects"]))):
            warnings.warn(
                "the prompt is nothing without its subject, so method neglect is CFG here",
                stacklevel=3,
            )
        if chosen["negative_interval"] is None:
            chosen["negative_interval"] = row.negative_interval
        if rule is None and chosen["negative_scale"] is None and row.h_of_s != 1:
            chosen["negative_scale"] = row.h_of_s * chosen["s"]
        used = rule or contract.read(_rule_of_method(row, chosen))
        plan = cls(model, prompt, row, used, chosen, rule is not None)
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
        evaluate, negative_of = partial(together, model.eps), None
        if self.row.negative == "chain":
            inner = {k: chosen[k] for k in ("K", "K_until", "tensor", "normalize")}
            scale = chosen["s"] if chosen["s"] is not None else DEFAULT_SCALE
            scale = scale if chosen["s_dns"] is None else chosen["s_dns"]
            negative_of = partial(
                LatentNegative, c_phi=conditions["phi"], c_p=conditions["p"],
                schedule=model.schedule, pairs=self.pairs, s_dns=scale, **inner,
            )  # fmt: skip
        if self.row.negative == "neglected":
            of_subjects = peaks_of_prompt(
                model, self.prompt, chosen["subjects"], chosen["ae_level"]
            )
            texts = without(self.prompt, words_of(chosen["subjects"]))
            lacking = [encode([text]) for text in texts]
            recorder = partial(model.attention, chosen["ae_level"])
            spans = [chosen[k] for k in ("interval", "negative_interval")]

            def acts(t: int) -> bool:
                return all(inside(span, model.schedule.sigma_ve(t)) for span in spans)

            neglect = Neglect(model.eps, conditions["p"], lacking, of_subjects, recorder, acts)
            evaluate, negative_of = neglect.evaluate, neglect.negative
        excite = None
        if self.row.excites:
            loss = loss_of_prompt(
                model, self.prompt, encode([self.prompt]), chosen["subjects"], chosen["ae_level"]
            )
            moves = {k: chosen[k] for k in table.EXCITATION if k != "ae_level"}
            excite = Excitation(loss, chosen["steps"], **moves)
        guided = Guided(
            evaluate, conditions, self.rule, model.schedule, self.pairs, self.row.positive,
            s=chosen["s"], h=chosen["negative_scale"], interval=chosen["interval"],
            negative_interval=chosen["negative_interval"], made_negative=negative_of,
            excite=excite,
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
        steps = self.chosen["steps"]
        sample = SAMPLERS[self.chosen["sampler"]]
        at_fault = f", rule {self.rule.name}" if self.named else ""
        guided.reset(z_T)
        with torch.no_grad():
            eta, schedule = self.chosen["eta"], self.model.schedule
            chain = sample(
                guided, z_T, schedule, steps, eta, generators, self.spacing, guided.excite
            )
            for step, ((t, t_next), (_, z_next, z0_hat)) in enumerate(zip(self.pairs, chain), 1):
                if not torch.isfinite(z_next).all():
                    raise NonFiniteError(
                        f"eps is not finite at step {step} of {steps}: the weights are damaged, or "
                        f"the scale{at_fault} or the half precision overflows; try a smaller "
                        "--scale or --dtype float32."
                    )
                z_t, eps = guided.observe(z_next, t, t_next)
                yield t, z_t, z0_hat, eps
        yield -1, z_next, z_next, None

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
        if row.has_subjects:
            record["subjects"] = chosen["subjects"]
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


def _rule_of_method(row: Method, chosen: dict) -> str:
    """The rule of a method, by name; its aliases are the two-scale form and ANSWER's form."""
    if chosen["negative_scale"] is not None:
        return "negative_prompt_two_scale"
    if row.negative == "chain" and row.rule in FORMS.values():
        return FORMS[chosen["form"]]
    if chosen["form"] != table.SETTINGS["form"].default:
        raise SettingsError(f"method {row.name} has a rule of its own; leave form out.")
    return row.rule

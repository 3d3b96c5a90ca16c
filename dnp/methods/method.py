"""A method is a guided model, (z_t, t) -> eps: where the noises of a guidance rule come from.

    eps = rule(eps_phi, eps_p, eps_n, s, ...)     of these, what the rule's parameters name

Every method is a subclass of `Method` in a file of this folder, or of your own. Its fields are its
settings, on the command line and in a PNG too (`dnp/methods/fields.py`); its docstring begins with
its formula, a comma, and where n or the formula is from. It overrides what differs from CFG:

    words(call)                         once: the words n of each picture, and what they cost
    start()                             before the chain of a batch: encode what is needed
    move(z_t, t)                        before each step: the latent that it starts from
    evaluate(z_t, t, conditions)        at each evaluation: the network's noises, in one forward
    negative(z_t, t, eps_phi, eps_p)    at each evaluation: eps_n, where it is not of words

Outside `interval` eps is the positive branch alone (p; for DNS phi): one evaluation. Outside
`negative_interval` eps_n is eps_phi, and costs nothing. Both are (lo, hi] in the variance-exploding
sigma, sqrt((1 - abar) / abar), as the literature has them (Kynkaanniemi et al., arXiv:2404.07724).
An object holds the state of one batch: each call makes its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from dnp.errors import SettingsError
from dnp.methods import rule as rules
from dnp.methods.fields import Span, setting
from dnp.methods.lazy_torch import torch
from dnp.methods.rule import NOISES, require_noise

if TYPE_CHECKING:
    from torch import Tensor

OCCUPIED = (  # names that a method cannot give to a setting, beside those of a call and of Method
    "model", "prompt", "captioner", "progress", "schedule", "pairs", "encode", "t_next",
    "conditions", "evaluations", "gradients", "first", "named", "method", "seeds", "z_T", "rows",
)  # fmt: skip
SCALE = 7.5  # where the weights recommend none; Stable Diffusion's own
SCALES = (  # a setting, the parameter of a rule that it needs, and what a rule without one lacks
    ("s", "s", "guidance scale (no s)"),
    ("negative_scale", "h", "scale of the negative (no h)"),
    ("negative_interval", "eps_n", "negative (no eps_n)"),
)


class Asked(NamedTuple):
    """One picture of a batch."""

    prompt: object
    seed: int
    negative: object = None
    subjects: str | None = None  # of the prompt, for methods that read its attention


@dataclass(kw_only=True)
class Method:
    """CFG, and what all methods share. `evaluations` counts network evaluations per sample,
    `gradients` the gradient passes of each sample."""

    s: float | None = setting(None, "guidance scale s; default: the weights' own, else 7.5")
    negative_scale: float | None = setting(None, "another scale h for n; default s")
    rule: object = setting(None, "another guidance rule: its name, or FILE.py:NAME", metavar="RULE")
    rule_options: dict | None = setting(None, "an option of the rule", metavar="KEY=VALUE")
    interval: Span | None = setting(
        None, "guide only where LO < sqrt((1 - abar)/abar) <= HI; elsewhere eps_p"
    )
    negative_interval: Span | None = setting(
        None, "the same for the negative; elsewhere eps_n is eps_phi"
    )

    name: ClassVar[str] = "cfg"
    own_rule: ClassVar[str] = "cfg"
    positive: ClassVar[str] = "p"
    cost: ClassVar[str] = "2T"  # network evaluations in T steps, for people
    takes_words = has_negative = False  # whether n can be given as words; whether there is one
    two_scale: ClassVar[bool] = False  # whether a second scale makes its rule the two-scale form
    h_of_s: ClassVar[float] = 1.0  # the scale h of n where none is given, as a share of s

    def __init_subclass__(cls) -> None:
        dataclass(kw_only=True)(cls)  # a subclass needs no decorator, and loses no field

    # ------------------------------------------------------------------------------------ hooks

    def words(self, call) -> tuple[list, list, int]:
        """The words n of each picture, the DNS images that they describe, and the evaluations.

        `call.row(i)` has the prompt and the seed of picture i of `call.images`."""
        return [call.row(i).negative for i in range(call.images)], [], 0

    def start(self) -> None:
        """Before the chain of a batch."""

    def move(self, z_t: Tensor, t: Tensor) -> Tensor:
        """Where a step starts from."""
        return z_t

    def evaluate(self, z_t: Tensor, t: Tensor, conditions: Sequence[object]) -> Sequence[Tensor]:
        """The noise of each condition."""
        from dnp.methods.conditions import together

        return together(self.model.eps, z_t, t, conditions)

    negative: ClassVar[Callable | None] = None  # (z_t, t, eps_phi, eps_p) -> eps_n

    # ------------------------------------------------------------------------------- the settings

    def complete(self, call) -> None:
        """Fills in what the weights recommend. SettingsError for what is not possible together."""
        self.named = self.rule is not None
        if self.rule_options and not self.named:
            raise SettingsError("rule_options belong to a rule; give one with `rule=NAME`.")
        if self.named:
            self.rule = rules.read(self.rule, self.rule_options)
        self.refuse(call)
        if self.s is None and (not self.named or "s" in self.rule.needs):
            self.s = call.recommended(self.name, SCALE)
        if not self.named and self.negative_scale is None and self.h_of_s != 1:
            self.negative_scale = self.h_of_s * self.s
        if not self.named:
            two = self.two_scale and self.negative_scale is not None
            self.rule = rules.read("negative_prompt_two_scale" if two else self.own_rule)
        if "eps_n" in self.rule.needs and not (self.takes_words or self.negative):
            raise SettingsError(
                f"method {self.name} uses rule {self.rule.name}, which needs eps_n, and does not "
                "make one; write its negative(self, z_t, t, eps_phi, eps_p)."
            )

    def refuse(self, call) -> None:
        """SettingsError for settings that do not go together."""
        who, rule = f"method {self.name}", self.rule if self.named else None
        if rule:
            who = f"rule {rule.name}"
            if "eps_n" not in rule.needs and self.has_negative:
                raise SettingsError(
                    f"{who} has no eps_n, and method {self.name} makes a negative; choose method "
                    "cfg, or a rule with eps_n."
                )
            if "eps_n" in rule.needs and not self.has_negative:
                raise SettingsError(
                    f"{who} needs a negative (eps_n), and method {self.name} has none; choose np."
                )
            for field, parameter, what in SCALES:
                if getattr(self, field) is not None and parameter not in rule.needs:
                    raise SettingsError(f"{who} has no {what}; leave {field} out.")
            eta = getattr(rule.function, "chain_eta", None)
            if eta is not None and (call.eta, call.sampler) != (eta, "ddim"):
                raise SettingsError(
                    f"{who} follows the noise of the chain; choose `eta={eta:g}` and "
                    "`sampler=ddim`."
                )
        elif self.negative_scale is not None and not self.two_scale:
            raise SettingsError(f"negative_scale does not belong to {who}; leave it out.")
        if self.negative_interval is not None and not self.has_negative:
            raise SettingsError(f"negative_interval does not belong to {who}; leave it out.")
        if call.negative is not None and not self.takes_words:
            raise SettingsError(
                f"{who} takes no negative prompt; leave it out or choose np or np2."
            )

    # -------------------------------------------------------------------------- the guided model

    def begin(
        self, call, negatives: Sequence[object], z_T: Tensor, rows: Sequence[Asked] | None = None
    ) -> None:
        """Before the chain of a batch of pictures with these negatives: of the call's prompt, or of
        those of `rows`."""
        self.model, self.schedule, self.pairs = call.model, call.model.schedule, call.pairs
        self.prompt, self.encode, k = call.prompt, call.encode, len(negatives)
        self.negatives, self.rows = list(negatives), rows or [Asked(call.prompt, 0)] * k
        self.t_next = dict(call.pairs)  # of a level twice there, the last
        phi, p = [call.empty] * k, [row.prompt for row in self.rows]
        self.conditions = {"phi": self.encode(phi), "p": self.encode(p)}
        if self.takes_words:
            self.conditions["n"] = self.encode(list(negatives))
        self.evaluations, self.gradients, self.first = 0, [0] * k, None
        self.rule = self.rule.begin(z_T)
        self.start()

    def __call__(self, z_t: Tensor, t: Tensor) -> Tensor:
        if self.inside(self.interval, t):
            seen = self.noises_of(z_t, t, [x for x in NOISES if x in self.rule.needs])
            eps = self.rule(self.available(z_t, t) | seen)
        else:
            seen = self.noises_of(z_t, t, [f"eps_{self.positive}"])
            (eps,) = seen.values()
        if self.first is None:
            self.first = z_t, eps, seen
        return eps

    def noises_of(self, z_t: Tensor, t: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The noises of these names, by one forward of the network for those of words."""
        silent = "eps_n" in names and not self.inside(self.negative_interval, t)
        made = "eps_n" in names and not silent and self.negative is not None
        if silent or made:
            needed = {*names, "eps_phi", *(["eps_p"] if made else [])} - {"eps_n"}
            names = [x for x in NOISES if x in needed]
        conditions = [self.conditions[x.removeprefix("eps_")] for x in names]
        seen = dict(zip(names, self.noises(z_t, t, conditions)))
        if silent:
            seen["eps_n"] = seen["eps_phi"]
        elif made:
            seen["eps_n"] = self.negative(z_t, t, seen["eps_phi"], seen["eps_p"])
            require_noise(seen["eps_n"], seen["eps_phi"], f"the negative of method {self.name}")
        return seen

    def noises(self, z_t: Tensor, t: Tensor, conditions: Sequence[object]) -> Sequence[Tensor]:
        """The noise of each condition, counted."""
        self.evaluations += len(conditions)
        noises = self.evaluate(z_t, t, conditions)
        for eps in noises:
            require_noise(eps, z_t, f"eps of {type(self.model).__name__}")
        return noises

    def both(self, z: Tensor, t: int) -> Sequence[Tensor]:
        """eps_phi and eps_p at another latent or level, as inner chains need them."""
        level = torch.tensor(t, device=z.device)
        return self.noises(z, level, (self.conditions["phi"], self.conditions["p"]))

    def available(self, z_t: Tensor, t: Tensor) -> dict[str, object]:
        """What a rule may ask for beside noises."""
        t_next, level = self.t_next.get(int(t)), self.schedule.level
        return {
            "s": self.s, "h": self.s if self.negative_scale is None else self.negative_scale,
            "z_t": z_t, "t": t, "sigma_t": (1 - level(int(t))).sqrt(),
            "t_next": None if t_next is None else t.new_tensor(t_next),
            "sigma_next": None if t_next is None else (1 - level(t_next)).sqrt(),
        }  # fmt: skip

    def inside(self, span: Span | None, t: Tensor) -> bool:
        """Whether a level is in (lo, hi]; None is everywhere."""
        return span is None or bool(span[0] < self.schedule.sigma_ve(int(t)) <= span[1])

    def observe(self, z_next: Tensor, t: int, t_next: int) -> tuple[Tensor, Tensor]:
        """After a step: a rule with a memory sees it, if it had a part in it. Returns where the
        step started, and the guided noise there."""
        (z_t, eps, seen), self.first = self.first, None
        if self.rule.remembers and set(self.rule.needs) & set(NOISES) <= seen.keys():
            self.rule.observe(z_t, z_next, t, t_next, **seen)
        return z_t, eps


def formula(kind: type[Method]) -> tuple[str, str]:
    """A method's formula and its source: the first line of its docstring, parted at the comma."""
    doc = (vars(kind).get("__doc__") or "").strip().split("\n")[0]
    if doc.startswith(f"{kind.__name__}("):  # what dataclass writes where there is none
        doc = kind.own_rule
    first, _, rest = doc.partition(",")
    return first.strip(), rest.strip()


def require_own(kind: object, builtin: dict[str, type[Method]], taken: Sequence[str]) -> None:
    """SettingsError, one sentence with the fix, unless `kind` is a method that can be told from
    those of this package. `taken` are names that mean something to every call already."""
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise SettingsError(
            f"{kind!r:.60} is not a method; give a name, or a subclass of "
            "dnp.methods.method.Method (the class itself)."
        )
    if kind in builtin.values():
        return
    if not isinstance(kind.name, str) or kind.name in builtin:
        raise SettingsError(
            f"the method {kind.__name__} is called {kind.name!r}, which is a method of dnp; give "
            'the class a name of its own, such as name = "mine".'
        )
    shared = {f.name for b in builtin.values() for f in dataclasses.fields(b)}
    for f in dataclasses.fields(kind):
        if f.name in (*taken, *OCCUPIED) or (f.name not in shared and hasattr(Method, f.name)):
            raise SettingsError(
                f"the setting {f.name} of method {kind.name} means something already; give it "
                "another name."
            )

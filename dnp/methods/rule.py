"""What a guidance rule is: any function whose parameter names say what it needs.

    eps_phi, eps_p, eps_n    noises (B, *S); those that are named are evaluated, and counted
    s, h                     scales of the prompt and of the negative; h is s where none is given
    z_t, t, t_next           the latent and the integer levels of the step
    sigma_t, sigma_next      sqrt(1 - abar), 0-d float64 tensors on the CPU

`t_next` and `sigma_next` are None where a sampler evaluates between two levels. All arguments are
passed by keyword. Every other parameter is an option of the rule and has a default. A rule returns
one noise, shaped like z_t and of its dtype. A class is called again, with its options, for each
chain. A rule with a memory is an object or a class with `reset(z_T)`, which is called before a
chain, and, if it has one, `observe(z_t, z_next, t, t_next, **eps)`, called after each step.
"""

from __future__ import annotations

import functools
import inspect
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dnp.errors import DnpError, SettingsError, meant, memory_is_full, reason
from dnp.methods import own
from dnp.methods.lazy_torch import torch

NOISES = ("eps_phi", "eps_p", "eps_n")
RESERVED = (*NOISES, "s", "h", "z_t", "t", "t_next", "sigma_t", "sigma_next")
MEMORY = ("reset", "observe")


@dataclass(frozen=True)
class Rule:
    """A rule as it is called. `sha256` is the identity of its code (`dnp/methods/own.py`)."""

    name: str
    function: Callable
    needs: tuple[str, ...]  # of RESERVED
    options: dict[str, object]  # all of them, defaults too
    passed: dict[str, object]  # those that each call gets; a class got them when it was made
    sha256: str
    make: Callable | None = None  # of a class: another object, with a memory of its own

    def __call__(self, available: Mapping[str, object]) -> torch.Tensor:
        """The rule's noise from what it needs of `available`; it works on copies, so that it cannot
        change the chain's own tensors.

        SettingsError, with the level, if it fails or does not return one noise like z_t.
        """
        t, z_t = available["t"], available["z_t"]
        needed = _copies({k: available[k] for k in self.needs})
        eps = _guarded(self.name, t, self.function, **needed, **self.passed)
        require_noise(eps, z_t, f"rule {self.name}")
        return eps

    @property
    def remembers(self) -> bool:
        return hasattr(self.function, "observe")

    def begin(self, z_T: torch.Tensor) -> Rule:
        """The rule for one chain, without a memory of another."""
        function = self.make() if self.make else self.function
        if hasattr(function, "reset"):
            _guarded(self.name, None, function.reset, z_T.clone())
        return replace(self, function=function)

    def observe(self, z_t: object, z_next: object, t: int, t_next: int, **seen: object) -> None:
        """After a step, for a rule that remembers."""
        seen = _copies({"z_t": z_t, "z_next": z_next, **seen})
        z_t, z_next = seen.pop("z_t"), seen.pop("z_next")
        _guarded(self.name, t, self.function.observe, z_t, z_next, t, t_next, **seen)


def _copies(values: Mapping[str, object]) -> dict[str, object]:
    return {k: v.clone() if hasattr(v, "clone") else v for k, v in values.items()}


def require_noise(eps: object, z_t: torch.Tensor, who: str) -> None:
    """SettingsError unless `eps` is a plain tensor of z_t's shape and dtype."""
    if type(eps) is not torch.Tensor:
        found = type(eps).__name__
    elif eps.shape != z_t.shape:
        found = f"shape {tuple(eps.shape)}"
    elif eps.dtype != z_t.dtype:
        found = str(eps.dtype).removeprefix("torch.")
    else:
        return
    wanted = f"{str(z_t.dtype).removeprefix('torch.')} latents of shape {tuple(z_t.shape)}"
    raise SettingsError(f"{who} returned {found} for {wanted}; return one noise like them.")


def _guarded(name: str, t: object, function: Callable, /, *args: object, **kw: object) -> object:
    """Calls what a stranger wrote, at a level t or None. SettingsError if it fails; a ValueError
    says why itself."""
    try:
        return function(*args, **kw)
    except DnpError:
        raise
    except (Exception, SystemExit) as e:
        if memory_is_full(e):
            raise
        at = "" if t is None else f" at t = {int(t)}"
        if isinstance(e, ValueError):
            raise SettingsError(f"rule {name}{at}: {e}") from e
        frames = traceback.extract_tb(e.__traceback__)[1:]
        others = [f for f in frames if "site-packages" not in f.filename][-1:]
        where = "".join(f" in {f.filename}, line {f.lineno}" for f in others)
        raise SettingsError(
            f"rule {name} failed{at}{where} ({reason(e)}); fix it, or give other options."
        ) from e


def read(rule: str | Callable, options: Mapping[str, object] | None = None) -> Rule:
    """A rule from its name, from FILE.py:NAME, or from the function, object or class itself.

    SettingsError, one sentence with the fix, for what is not a rule or not an option of it.
    """
    name, source = (rule, find(rule)) if isinstance(rule, str) else (_name(rule), rule)
    if not callable(source):
        raise SettingsError(f"rule {name} is not a function; give a callable that returns a noise.")
    given, made, function, make = dict(options or {}), {}, source, None
    if isinstance(source, type):
        made = _fill(name, _of_constructor(name, source), given)
        make, given = functools.partial(_guarded, name, None, source, **made), {}
        function = make()
    if hasattr(function, "observe") and not hasattr(function, "reset"):
        raise SettingsError(
            f"rule {name} has observe() and no reset(z_T), so a chain would start with the memory "
            "of another; add it."
        )
    parameters = _parameters(name, function)
    for k in parameters:
        if k not in RESERVED and k.startswith(("eps_", "sigma_")):
            raise SettingsError(
                f"rule {name} asks for {k}, which is not known; {meant(k, RESERVED)}"
            )
    needs = tuple(k for k in RESERVED if k in parameters)
    if not set(needs) & set(NOISES):
        raise SettingsError(
            f"rule {name} does not take a noise; name at least one of {', '.join(NOISES)} as a "
            "parameter."
        )
    free = {k: p for k, p in parameters.items() if k not in RESERVED}
    passed = _fill(name, free, given)
    for k, value in (made | passed).items() if isinstance(rule, str) else ():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            raise SettingsError(
                f"the option {k} of rule {name} is a {type(value).__name__}, which a record cannot "
                "hold; make it a number, a text or a list of those."
            ) from None
    sha256 = own.UNKNOWN if _binds_reserved(source) else own.identity(_bare(source))
    return Rule(name, function, needs, made | passed, passed, sha256, make)


def find(name: str) -> Callable:
    """The rule of a name of `dnp.rules.RULES`, or of FILE.py:NAME, whose file is run."""
    if own.is_file(name):
        return own.find(name, "rule")
    from dnp.rules import RULES

    if name not in RULES:
        raise SettingsError(
            f"rule {name!r} is unknown; {meant(name, RULES)} Your own is FILE.py:NAME."
        )
    return RULES[name]


def _fill(
    name: str, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, object]
) -> dict[str, object]:
    """The options of a rule: what is given over the defaults. SettingsError for a wrong one."""
    for k in given:
        if k in RESERVED:
            raise SettingsError(f"{k} of rule {name} is given by the sampler; it is not an option.")
        if k not in parameters:
            have = meant(k, parameters) if parameters else "it has no options."
            raise SettingsError(f"rule {name} does not have the option {k!r}; {have}")
    options = {k: given.get(k, p.default) for k, p in parameters.items()}
    for k, value in options.items():
        if value is inspect.Parameter.empty:
            raise SettingsError(
                f"the parameter {k} of rule {name} has no default; give it one, or a name of "
                f"{', '.join(RESERVED)}."
            )
    return options


def _parameters(name: str, function: Callable) -> dict[str, inspect.Parameter]:
    """The parameters that can be passed by keyword and are not bound already."""
    bound = function.keywords if isinstance(function, functools.partial) else {}
    try:
        found = inspect.signature(_called(function)).parameters
    except (TypeError, ValueError):
        raise SettingsError(
            f"rule {name} does not say what it needs; wrap it in a function with named parameters."
        ) from None
    many = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    for k, p in found.items():
        if p.kind in many:
            raise SettingsError(
                f"rule {name} takes {many[p.kind]}{k}, which does not say what it needs; name each "
                "parameter."
            )
        if p.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise SettingsError(
                f"the parameter {k} of rule {name} is positional-only; arguments are passed by "
                "keyword, so take the / away."
            )
    return {k: p for k, p in found.items() if not (k in bound and k in RESERVED)}


def _of_constructor(name: str, rule: type) -> dict[str, inspect.Parameter]:
    """The options of a class; none where its constructor is torch's, of (*args, **kwargs)."""
    owner = next(c for c in rule.__mro__ if "__init__" in vars(c))
    return {} if owner.__module__.startswith("torch.") else _parameters(name, rule)


def _called(rule: Callable) -> Callable:
    """What has the signature: a module's forward, also inside a partial or torch.compile."""
    if isinstance(rule, functools.partial):
        return functools.partial(_called(rule.func), *rule.args, **rule.keywords)
    rule = _bare(rule)
    return rule.forward if hasattr(rule, "forward") and not isinstance(rule, type) else rule


def _bare(rule: Callable) -> Callable:
    """A rule without torch.compile around it."""
    rule = getattr(rule, "_orig_mod", rule)
    return getattr(rule, "_torchdynamo_orig_callable", rule)


def _binds_reserved(rule: Callable) -> bool:
    """Whether it is a partial that holds what a sampler gives, such as s, which no record tells."""
    while isinstance(rule, functools.partial):
        if set(rule.keywords) & set(RESERVED):
            return True
        rule = rule.func
    return False


def _name(rule: Callable) -> str:
    while isinstance(rule, functools.partial):
        rule = rule.func
    rule = _bare(rule)
    return getattr(rule, "__name__", type(rule).__name__)

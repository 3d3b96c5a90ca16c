"""What a rule is: any function whose parameter names say what it needs.

    eps_phi, eps_p, eps_n    noises (B, *S); those that are named are evaluated, and counted
    s, h                     scales of the prompt and of the negative; h is s where none is given
    z_t, t, t_next           the latent and the integer levels of the step
    sigma_t, sigma_next      sqrt(1 - abar), 0-d float64 tensors on the CPU

`t_next` and `sigma_next` are None where a sampler evaluates between two levels. All arguments are
passed by keyword. Every other parameter is an option of the rule and has a default. A rule returns
one noise, shaped like z_t. A rule with a memory is an object with `reset(z_T)`, `__call__` and
`observe(z_t, z_next, t, t_next, **eps)`, or a class of such objects, which takes its options.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import json
import linecache
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dnp.errors import DnpError, SettingsError, meant, memory_is_full, reason

NOISES = ("eps_phi", "eps_p", "eps_n")
RESERVED = (*NOISES, "s", "h", "z_t", "t", "t_next", "sigma_t", "sigma_next")
UNKNOWN = "unknown"  # the hash of a rule whose source cannot be read


@dataclass(frozen=True)
class Rule:
    """A rule as it is called. `sha256` is that of its whole file, its options and closure."""

    name: str
    function: Callable
    needs: tuple[str, ...]  # of RESERVED
    options: dict[str, object]  # all of them, defaults too
    passed: dict[str, object]  # those that each call gets; a class got them when it was made
    sha256: str

    def __call__(self, available: Mapping[str, object]) -> object:
        """The rule's noise from what it needs of `available`.

        SettingsError, with the level, if it fails.
        """
        needed = {k: available[k] for k in self.needs}
        return _guarded(self.name, available["t"], self.function, **needed, **self.passed)

    @property
    def remembers(self) -> bool:
        return hasattr(self.function, "observe") and hasattr(self.function, "reset")

    def reset(self, z_T: object) -> None:
        """Before the chain of a batch, for a rule that remembers."""
        if self.remembers:
            _guarded(self.name, None, self.function.reset, z_T)

    def observe(self, z_t: object, z_next: object, t: int, t_next: int, **seen: object) -> None:
        """After an outer step, for a rule that remembers."""
        _guarded(self.name, t, self.function.observe, z_t, z_next, t, t_next, **seen)


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
        own = [f for f in frames if "site-packages" not in f.filename][-1:]
        where = "".join(f" in {f.filename}, line {f.lineno}" for f in own)
        raise SettingsError(
            f"rule {name} failed{at}{where} ({reason(e)}); mend it, or give other options."
        ) from e


def read(rule: str | Callable, options: Mapping[str, object] | None = None) -> Rule:
    """A rule from its name, from FILE.py:NAME, or from the function itself.

    SettingsError, one sentence with the mend, for what is no rule or no option of it. A class is
    called with the options, so that each run has a memory of its own.
    """
    name, function = (rule, find(rule)) if isinstance(rule, str) else (_name(rule), rule)
    if not callable(function):
        raise SettingsError(f"rule {name} is no function; give a callable that returns a noise.")
    given, made = dict(options or {}), {}
    source = function
    if isinstance(function, type):
        made = _fill(name, _of_constructor(name, function), given)
        function, given = _guarded(name, None, function, **made), {}
    parameters = _parameters(name, function)
    for k in parameters:
        if k not in RESERVED and k.startswith(("eps_", "sigma_")):
            raise SettingsError(
                f"rule {name} asks for {k}, which is not known; {meant(k, RESERVED)}"
            )
    needs = tuple(k for k in RESERVED if k in parameters)
    if not set(needs) & set(NOISES):
        raise SettingsError(
            f"rule {name} takes no noise; name at least one of {', '.join(NOISES)} as a parameter."
        )
    free = {k: p for k, p in parameters.items() if k not in RESERVED}
    passed = _fill(name, free, given)
    for k, value in (made | passed).items() if isinstance(rule, str) else ():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            raise SettingsError(
                f"the option {k} of rule {name} is a {type(value).__name__} that no record can "
                "hold; make it a number, a text or a list of those."
            ) from None
    return Rule(name, function, needs, made | passed, passed, _sha256(source, options or {}))


def _fill(
    name: str, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, object]
) -> dict[str, object]:
    """The options of a rule: what is given over the defaults. SettingsError for a wrong one."""
    for k in given:
        if k in RESERVED:
            raise SettingsError(f"{k} of rule {name} is given by the sampler; it is no option.")
        if k not in parameters:
            have = meant(k, parameters) if parameters else "it has no options."
            raise SettingsError(f"rule {name} has no option {k!r}; {have}")
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
    kinds = {
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    for k, p in found.items():
        if p.kind in kinds:
            raise SettingsError(
                f"rule {name} takes {kinds[p.kind]}{k}, which does not say what it needs; name "
                "each parameter."
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


def _bare(rule: Callable) -> Callable:
    """A rule without torch.compile around it."""
    rule = getattr(rule, "_orig_mod", rule)
    return getattr(rule, "_torchdynamo_orig_callable", rule)


def _called(rule: Callable) -> Callable:
    """What has the signature: a module's forward, also inside a partial."""
    if isinstance(rule, functools.partial):
        return functools.partial(_called(rule.func), *rule.args, **rule.keywords)
    rule = _bare(rule)
    return rule.forward if hasattr(rule, "forward") and not isinstance(rule, type) else rule


# ------------------------------------------------------------------------------ names and files


def find(name: str) -> Callable:
    """The rule of a name of `dnp.rules.RULES`, or of FILE.py:NAME, whose file is run."""
    path, _, attribute = name.rpartition(":")
    if not is_file(name):
        from dnp.rules import RULES

        if name not in RULES:
            raise SettingsError(
                f"rule {name!r} is unknown; {meant(name, RULES)} Your own is FILE.py:NAME."
            )
        return RULES[name]
    if not Path(path).is_file():
        raise SettingsError(f"{path}: no such file; give --rule FILE.py:NAME.")
    spec = importlib.util.spec_from_file_location(f"_dnp_rule_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and torch.compile look there
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # whatever the user's file raises, sys.exit() too
        raise SettingsError(f"{path} does not run ({reason(e)}); mend it.") from e
    if attribute not in vars(module):
        have = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        mend = meant(attribute, have) if have else "it defines no function."
        raise SettingsError(f"{path} has no {attribute}; {mend}")
    return vars(module)[attribute]


def is_file(name: object) -> bool:
    """Whether a rule's name is FILE.py:NAME."""
    return isinstance(name, str) and name.rpartition(":")[0].endswith(".py")


def file_sha256(name: str) -> str | None:
    """The hash of the file of FILE.py:NAME, which is not run; None for the name of a rule here."""
    if not is_file(name):
        return None
    path = name.rpartition(":")[0]
    if not Path(path).is_file():
        raise SettingsError(f"{path}: no such file; give --rule FILE.py:NAME.")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _name(rule: Callable) -> str:
    while isinstance(rule, functools.partial):
        rule = rule.func
    rule = _bare(rule)
    return getattr(rule, "__name__", type(rule).__name__)


# --------------------------------------------------------------------------------------- hashes


def _sha256(function: Callable, options: Mapping[str, object]) -> str:
    """16 hex digits of a rule's whole file, its bound options and closure; or UNKNOWN."""
    digest = hashlib.sha256()
    try:
        _add(digest, function)
        _add(digest, dict(options))
    except (_Unreadable, RecursionError):
        return UNKNOWN
    return digest.hexdigest()[:16]


class _Unreadable(Exception):
    pass


def _add(digest, x: object) -> None:
    """Adds a value to a hash: numbers, text, lists, tensors, functions and modules."""
    x = _bare(x)
    if x is None or isinstance(x, bool | int | float | complex | str | bytes):
        digest.update(f"{type(x).__name__} {x!r};".encode())
    elif isinstance(x, tuple | list):
        digest.update(f"{type(x).__name__} {len(x)};".encode())
        for item in x:
            _add(digest, item)
    elif isinstance(x, dict):
        for k in sorted(x, key=str):
            _add(digest, k)
            _add(digest, x[k])
    elif isinstance(x, functools.partial):
        _add(digest, x.func)
        _add(digest, [x.args, x.keywords])
    elif hasattr(x, "detach") and hasattr(x, "numpy"):  # a tensor
        digest.update(f"{x.dtype} {tuple(x.shape)};".encode())
        digest.update(repr(x.detach().cpu().flatten().tolist()).encode())
    elif inspect.ismodule(x):
        _add(digest, x.__name__)
    elif isinstance(x, type):
        _add_source(digest, x)
    elif inspect.isfunction(x):  # what it decorates is in its closure
        _add_source(digest, x)
        _add(digest, [cell.cell_contents for cell in x.__closure__ or ()])
        _add(digest, [x.__defaults__, x.__kwdefaults__])
    elif inspect.ismethod(x):
        _add(digest, [x.__func__, x.__self__])
    elif hasattr(x, "__wrapped__"):
        _add(digest, x.__wrapped__)
    elif hasattr(x, "state_dict"):  # a torch module
        _add_source(digest, type(x))
        _add(digest, [dict(x.state_dict()), dict(x.named_children())])
        _add(digest, {k: v for k, v in vars(x).items() if k != "training" and k[0] != "_"})
    elif hasattr(x, "__dict__"):  # an object with a memory
        _add_source(digest, type(x))
        _add(digest, vars(x))
    else:
        raise _Unreadable


def _add_source(digest, x: type | Callable) -> None:
    """The name of a function or class and the bytes of its file, or of its notebook cell."""
    try:
        file = inspect.getsourcefile(x) or inspect.getfile(x)
    except TypeError:
        raise _Unreadable from None
    digest.update(f"{x.__qualname__};".encode())
    if Path(file).is_file():
        digest.update(Path(file).read_bytes())
    elif lines := linecache.getlines(file):
        digest.update("".join(lines).encode())
    else:
        raise _Unreadable

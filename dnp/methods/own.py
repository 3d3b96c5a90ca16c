"""Rules and methods of your own: FILE.py:NAME, whose file is run, and the identity of its code.

The identity is a hash of the name, of the bytes of its file, and of the files that this one imports
from the folder it lies in. What it is called with is recorded beside it. A lambda, a closure or an
object that was made elsewhere has no such identity: it is `UNKNOWN`, and the experiments refuse it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import linecache
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

from dnp.errors import SettingsError, meant, reason

UNKNOWN = "unknown"
PARSING = threading.Lock()  # CPython 3.11 fails where two threads parse at once (gh-106905)


def is_file(name: object) -> bool:
    """Whether a name is FILE.py:NAME."""
    return isinstance(name, str) and name.rpartition(":")[0].endswith(".py")


def find(name: str, what: str) -> object:
    """NAME of FILE.py:NAME, whose file is run; `what` is the setting that it was given for.

    SettingsError for a file that is not there or does not run, and for a name that it lacks.
    """
    file, _, attribute = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise SettingsError(f"{file}: no such file; give `{what}=FILE.py:NAME`.")
    folder, beside = str(path.resolve().parent), imported_beside(path)
    for module in beside:
        sys.modules.pop(module, None)  # what was changed since is read again
    for source in (path, *beside.values()):
        with suppress(OSError):  # Python tells cached bytecode to be old by whole seconds and size
            os.unlink(importlib.util.cache_from_source(str(source.resolve())))
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"_dnp_own_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and torch.compile look there
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # whatever the user's file raises, sys.exit() too
        raise SettingsError(f"{file} does not run ({reason(e)}); fix it.") from e
    for name, source in beside.items():
        found = getattr(sys.modules.get(name), "__file__", None)
        if found is not None and Path(found).resolve() != source:
            raise SettingsError(
                f"{file} imports {name}, and Python found {found} and not the file beside it; "
                "rename one of the two."
            )
    if attribute not in vars(module):
        have = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        fix = meant(attribute, have) if have else "it does not define any function."
        raise SettingsError(f"{file} has no {attribute}; {fix}")
    return vars(module)[attribute]


def imported_beside(file: Path, found: dict[str, Path] | None = None) -> dict[str, Path]:
    """The modules that a Python file imports from its own folder, also by way of each other, inside
    functions too: their names and files."""
    found = {} if found is None else found
    folder, names = file.resolve().parent, _imports(file.read_bytes())
    heads = {name.partition(".")[0] for name in names}  # of most there is nothing in the folder
    heads = {x for x in heads if os.path.isdir(folder / x) or os.path.isfile(folder / f"{x}.py")}
    for name in (name for name in names if name.partition(".")[0] in heads):
        for source in _files_of(folder, name):
            if source != file.resolve() and source not in found.values():
                found[name] = source
                imported_beside(source, found)
    return found


@functools.lru_cache(64)  # the same rules are identified for every picture
def _imports(code: bytes) -> tuple[str, ...]:
    """The modules, and what may be one, that some Python code imports; none of broken code."""
    try:
        with PARSING:
            tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return ()
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            found += [start, *(f"{start}.{a.name}".lstrip(".") for a in node.names)]
    return tuple(dict.fromkeys(found))


def _files_of(folder: Path, module: str) -> list[Path]:
    """The files of a module of a folder: a.py or a/__init__.py, and of a.b those of a too."""
    base, files = str(folder), []  # asked for every picture: as texts it is four times as fast
    for part in module.split("."):
        base = os.path.join(base, part)
        files += filter(os.path.isfile, (f"{base}.py", os.path.join(base, "__init__.py")))
    return [Path(file) for file in files]


def identity(x: object) -> str:
    """16 hexadecimal digits of a function's or class's name and code; or UNKNOWN."""
    while isinstance(x, functools.partial) and not x.args:  # the keywords it binds are options
        x = x.func
    if not (inspect.isfunction(x) or isinstance(x, type)):
        return UNKNOWN
    if getattr(x, "__globals__", {}).get("__name__") == "dnp.per_sample":
        x = x.__wrapped__  # what the decorator adds is not of the rule
    if "<" in x.__qualname__ or (inspect.isfunction(x) and (x.__closure__ or vars(x))):
        return UNKNOWN  # <lambda>, <locals>, or something that its file does not say
    try:
        file = inspect.getsourcefile(x) or inspect.getfile(x)
    except (TypeError, OSError):
        return UNKNOWN
    digest = hashlib.sha256(f"{x.__qualname__};".encode())
    if Path(file).is_file():
        for source in sorted({Path(file).resolve(), *imported_beside(Path(file)).values()}):
            digest.update(f"{source.name};".encode() + source.read_bytes())
    elif lines := linecache.getlines(file):  # the cell of a notebook
        digest.update("".join(lines).encode())
    else:
        return UNKNOWN
    return digest.hexdigest()[:16]

"""What a record is keyed by: the content that its picture depends on, the code that made it too.

A key is a sha256 of JSON, so the same content has the same key on any machine, and changed code
has another: a run finds what is there by its keys, makes what is missing, and never returns a
number that other code, weights or settings have made.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = 2  # rises where the settings of a record are others; 2: they have their Python names
# What no picture of an experiment depends on. All else does, also a file that is new.
APART = {"__init__", "__main__", "checks", "errors", "toy", "training"}
# What may differ between two records of one picture as it was asked for, in plain words.
CIRCUMSTANCES = ("code", "weights", "captioner", "device", "dtype")


@cache
def code_hash() -> str:
    """Of everything that samples: the equations, rules, methods, networks, weights' readers and
    captions. Comments, docstrings and the layout of a file do not change it."""
    files = [f for f in ROOT.glob("*.py") if f.stem not in APART]
    files += [*ROOT.glob("methods/*.py"), *ROOT.glob("sd/**/*.py"), *ROOT.glob("diffusers/*.py")]
    files.append(ROOT / "evaluation" / "contestants.py")
    return source_hash(files)


def dtypes(model) -> str:
    """Of the networks, and of the VAE's decoder where that is in half precision too: whether it is
    depends on the processor (`dnp/sd/device.py`)."""
    both = (getattr(model, name, "") for name in ("dtype", "vae_dtype"))
    own, of_vae = (str(dtype).removeprefix("torch.") for dtype in both)
    return f"{own}, VAE {of_vae}" if of_vae.endswith("float16") else own


@cache
def metrics_code() -> str:
    """Of what looks at the pictures and says what a prompt asks for."""
    files = [ROOT / "evaluation" / f"{x}.py" for x in ("metrics", "benchmarks", "trio", "measure")]
    return source_hash([*files, ROOT / "sd" / "recogniser.py", ROOT / "sd" / "world.py"])


def source_hash(files: list[Path]) -> str:
    """Of the names and the syntax of Python files, which is the same with other comments."""
    return key({f.relative_to(ROOT).as_posix(): _syntax(f.read_bytes()) for f in files})


def key(content: object) -> str:
    """32 hexadecimal digits of the sha256 of something that JSON can hold; 3 and 3.0 are one."""
    text = json.dumps(_plain(content), sort_keys=True)  # an interval may end at infinity
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def asked(content: dict) -> str:
    """The key of what was asked for, in short: changed code may add settings to the rest."""
    settings = content["settings"]
    return key(
        [*(content[k] for k in ("method", "prompt", "seed")), settings["s"], settings["steps"]]
    )


def other(content: dict, now: dict) -> list[str]:
    """Which circumstances differ."""
    return [name for name in CIRCUMSTANCES if content.get(name) != now[name]]


def digest(data: bytes) -> str:
    """Of the bytes of a file."""
    return hashlib.sha256(data).hexdigest()[:32]


def _plain(x: object) -> object:
    """JSON's own kinds, with one kind of number."""
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    if isinstance(x, float) and not math.isfinite(x):
        return {"not finite": str(x)}  # a rule's default may be infinity, and a text "inf"
    return float(x) if isinstance(x, int) and not isinstance(x, bool) else x


@cache
def _syntax(code: bytes) -> str:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]  # its docstring
    return ast.dump(tree)

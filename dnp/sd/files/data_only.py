"""What is asked of a stranger's file before it is opened, and of a folder before transformers is.

A captioner, a CLIP model and a tokenizer are data: a folder that needs code of its own, weights
from elsewhere or a library that loads them is refused, so nothing runs, asks or downloads.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from dnp.errors import WeightsError

DATA_ONLY = {"trust_remote_code": False, "local_files_only": True}  # for every from_pretrained
CODE = {"auto_map", "custom_pipeline", "custom_pipelines", "custom_generate"}
ELSEWHERE = {"audio_tokenizer_name_or_path", "use_pretrained_backbone"}
NAMES = {"weight_map", "configuration_files", "fast_tokenizer_files"}  # all must lie in the folder
OF_TORCH = {"eager", "sdpa", "batched_mm", "grouped_mm"}  # implementations without other code


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, opened for reading; OSError for anything else, at once, in words alone.

    A pipe without a writer would wait for ever, and a device may never end, so the file is opened
    without waiting and asked afterwards what it is: nothing can be put in its place in between.
    """
    flags = ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
    try:
        fd = os.open(path, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in flags))
    except OSError as e:  # without its number and the path, which whoever asks names
        raise type(e)((e.strerror or str(e)).lower()) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("it is not a regular file")
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def lies_in(folder: str | Path, name: str) -> Path | None:
    """Where in a folder of the hub's cache the model is that holds `name`: the newest snapshot."""
    folder = Path(folder)
    ways = ("snapshots/*", "*/snapshots/*", *(["*"] if folder.name == "snapshots" else []))
    found = [] if (folder / name).exists() else [p for way in ways for p in folder.glob(way)]
    found = [p for p in found if (p / name).exists()]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def read_regular(path: str | Path) -> bytes:
    """All bytes of a regular file; OSError for anything else, at once."""
    with open_regular(path) as file:
        return file.read()


def check_folder(folder: str | Path) -> None:
    """WeightsError if a folder for transformers is more than data; to be called before it opens it.

    Read are all JSON files of `folder` and of the folders in it. Refused are code, local or remote
    (auto_map and its kind), weights of an index or configs outside the folder, models that are
    loaded from elsewhere (adapters, backbones, audio tokenizers, attention kernels), quantised
    weights, and special files. Links are followed: hub caches consist of them, and
    what they lead to is read as JSON or safetensors, as the file itself would be.
    """
    folder = Path(folder)
    try:
        files = [p for p in sorted([*folder.glob("*"), *folder.glob("*/*")]) if not p.is_dir()]
        strange = [p for p in files if p.exists() and not p.is_file()]
    except OSError as e:
        raise WeightsError(f"{folder}: cannot be read ({e.strerror}); give another one.") from None
    if strange:
        raise WeightsError(f"{strange[0]} is not a regular file; remove it.")
    for path in files:
        if path.name.lower() == "adapter_config.json":
            raise WeightsError(
                f"{path}: adapters load their model from elsewhere; give a merged model's folder."
            )
        if path.suffix.lower() == ".json":
            for key, value in _entries(path):
                _refuse(path, key, value)


def _entries(path: Path) -> list[tuple[str, object]]:
    """Every (key, value) of the objects in a JSON file, those of nested ones too."""
    entries: list[tuple[str, object]] = []

    def kept(pairs: list[tuple[str, object]]) -> dict:
        entries.extend(pairs)
        return dict(pairs)

    try:
        json.loads(read_regular(path).decode("utf-8"), object_pairs_hook=kept)
    except FileNotFoundError:  # a link to nothing
        return []
    except (OSError, ValueError, RecursionError) as e:
        raise WeightsError(
            f"{path}: cannot be read as JSON ({str(e)[:200]}); restore or remove it."
        ) from None
    return entries


def _refuse(path: Path, key: str, value: object) -> None:
    """WeightsError for an entry that is more than data. A number is a token's of a vocabulary."""
    if not value or (type(value) in (int, float)):
        return
    if key in CODE:
        raise WeightsError(
            f"{path}: {key} asks for code of its own, which is never run; give a model of a kind "
            "that transformers has itself, such as BLIP."
        )
    if key in ELSEWHERE:
        raise WeightsError(
            f"{path}: {key} asks for weights from elsewhere; give a folder that has them all."
        )
    if key == "quantization_config":
        raise WeightsError(
            f"{path}: quantised weights need a library of their own; give the folder of the whole "
            "ones."
        )
    if re.match("_?(attn|experts)_implementation", key):  # one, or one for each part
        dtypes = [v for v in (value.values() if isinstance(value, dict) else [value]) if v]
        if not all(isinstance(v, str) and v in OF_TORCH for v in dtypes):
            raise WeightsError(
                f"{path}: {key} = {value!r:.80} is code from elsewhere, which is never run; remove "
                "the entry."
            )
    if key in NAMES:
        named = value.values() if isinstance(value, dict) else value
        for name in named if not isinstance(named, str) else [named]:
            if not isinstance(name, str) or re.search(r"[/\\:\0]", name) or name in ("", ".", ".."):
                raise WeightsError(
                    f"{path}: {key} names {name!r:.80}, which is not a file in its folder; restore "
                    "the folder."
                )

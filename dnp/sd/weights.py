"""Weights from a folder in the diffusers layout: strict, safetensors only, never a pickle.

    folder/unet/config.json + diffusion_pytorch_model.safetensors (or .fp16, or shards + index)
    folder/vae/config.json + diffusion_pytorch_model.safetensors
    folder/text_encoder/config.json + model.safetensors
    folder/tokenizer/ and folder/scheduler/scheduler_config.json
    folder/dnp.json                     optional: {"scale": {method: recommended scale}}

A network is built on the meta device, where it has shapes and no numbers, and every tensor of it
must come from the file: nothing random survives, and nothing in the file is passed over in silence.
Opening weights compares names and shapes and reads only what must be converted; the rest is mapped
into memory, and read, checked and laid out when a network is first called.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dnp.errors import WeightsError
from dnp.sd.layers import Conv2d

# Old and new spellings of the same tensors.
_RENAMES = (
    (re.compile(r"^text_model\."), ""),  # transformers before 5 writes the prefix
    (re.compile(r"(mid_block\.attentions\.0\.)query\."), r"\1to_q."),  # VAE of SD 1.4 and 1.5
    (re.compile(r"(mid_block\.attentions\.0\.)key\."), r"\1to_k."),
    (re.compile(r"(mid_block\.attentions\.0\.)value\."), r"\1to_v."),
    (re.compile(r"(mid_block\.attentions\.0\.)proj_attn\."), r"\1to_out.0."),
)
_HARMLESS = re.compile(r"(^|\.)position_ids$")  # a buffer of older transformers: 0, 1, 2, ...


def read_json(path: Path) -> dict:
    """The object in a JSON file; WeightsError if it is missing or not one."""
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise WeightsError(f"{path} is no regular file; restore it.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"{path}: no such file; a weights folder in the diffusers layout has it, so give "
            "--weights such a folder."
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise WeightsError(f"{path}: cannot be read as JSON ({e}); restore the file.") from None
    if not isinstance(data, dict):
        raise WeightsError(f"{path}: holds no JSON object; restore the file.")
    return data


def find(folder: Path, stem: str) -> list[Path]:
    """The safetensors file of one part of the model, or its shards."""
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.fp16.json",
                 f"{stem}.fp16.safetensors.index.json"):  # fmt: skip
        if (folder / name).is_file():
            return _shards(folder / name)
    pickles = [p for kind in ("*.bin", "*.ckpt", "*.pt", "*.pth") for p in folder.glob(kind)]
    if pickles:
        _refuse_pickle(pickles[0], stem)
    raise WeightsError(
        f"{folder / stem}.safetensors: no such file; fetch the safetensors variant of the weights."
    )


def _shards(index: Path) -> list[Path]:
    """The files that an index names, each once."""
    names = read_json(index).get("weight_map")
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(n, str) for n in names.values())
    ):
        raise WeightsError(f"{index}: weight_map names no files; restore the file.")
    files = sorted({index.parent / n for n in names.values()})
    for file in files:
        if file.parent != index.parent or file.suffix != ".safetensors":
            raise WeightsError(
                f"{index}: {file.name} is no safetensors file beside it; restore the folder."
            )
        if not file.is_file():
            raise WeightsError(f"{file}: no such file, but {index.name} names it; fetch it.")
    return files


def _refuse_pickle(path: Path, stem: str = "model") -> None:
    raise WeightsError(
        f"{path} is a pickle, which can run any code and is never opened; convert it to "
        f"{stem}.safetensors with safetensors.torch.save_file on a machine you trust it on."
    )


SMALL = 1 << 20  # elements: 4 MiB
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class Entry:
    """A tensor that lies in a safetensors file, at `start` to `stop`; its numbers are not read yet.

    `dtype` is None if it is no floating-point one. `third` is which third of a fused projection it
    is, or None for the whole.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    start: int
    stop: int
    third: int | None = None

    def read(self, shape: Sequence[int] | None = None) -> Tensor:
        """The tensor in a mapping of its own: a byte is read when it is used, and freed with it."""
        page = self.start - self.start % mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as f:
            data = mmap.mmap(f.fileno(), self.stop - page, access=mmap.ACCESS_COPY, offset=page)
        offset, count = self.start - page, math.prod(self.shape)
        if self.start % self.dtype.itemsize:
            data, offset = bytearray(data[offset:]), 0
        x = torch.frombuffer(data, dtype=self.dtype, count=count, offset=offset)
        x = x.reshape(self.shape)
        x = x if self.third is None else x.chunk(3)[self.third]
        return x if shape is None else x.reshape(shape)


def open_files(paths: Sequence[Path]) -> dict[str, Entry]:
    """Every tensor of the files, by its name there; only the headers are read."""
    entries: dict[str, Entry] = {}
    for path in paths:
        try:
            with safe_open(path, "pt"):  # checks the header: sizes, offsets, no holes, no overlaps
                pass
            with path.open("rb") as f:
                size = int.from_bytes(f.read(8), "little")
                header = json.loads(f.read(size))
        except (SafetensorError, OSError, ValueError) as e:
            _say_what_is_wrong(path, e)
        header.pop("__metadata__", None)
        for key, told in header.items():
            if key in entries:
                raise WeightsError(
                    f"{path}: {examples([key])} is in two shards; fetch the folder again."
                )
            shape, dtype = tuple(told["shape"]), DTYPES.get(told["dtype"])
            start, stop = (8 + size + n for n in told["data_offsets"])
            entries[key] = Entry(path, key, shape, dtype, start, stop)
    return entries


def _say_what_is_wrong(path: Path, e: Exception) -> None:
    try:
        with path.open("rb") as f:
            start = f.read(2)
    except OSError as again:
        raise WeightsError(f"{path}: cannot be read ({again.strerror}); mend that.") from None
    if start[:1] == b"\x80" or start == b"PK":
        _refuse_pickle(path)
    raise WeightsError(
        f"{path} is truncated or damaged ({e}); compare its size with the source and fetch it "
        "again."
    ) from None


def renamed(entries: Mapping[str, Entry], where: Path) -> dict[str, Entry]:
    """The tensors of a part of a folder under their names here, harmless extras left out."""
    kept = {k: e for k, e in entries.items() if not _HARMLESS.search(k)}
    new = {rename(k): e for k, e in kept.items()}
    if len(new) < len(kept):
        raise WeightsError(
            f"{where} holds some tensors twice, under an old and a new name; fetch it again."
        )
    return new


def rename(key: str) -> str:
    """A tensor's name as the networks here have it."""
    for old, new in _RENAMES:
        key = old.sub(new, key)
    return key


def fill(
    network: nn.Module, have: Mapping[str, Entry], device: torch.device, dtype: torch.dtype,
    what: str, hint: str = "",
) -> nn.Module:  # fmt: skip
    """Gives a network on the meta device its tensors, all of them and nothing else, one by one.

    A tensor of another type or device is converted as it is read, so that no more than the network
    and one tensor are in memory. WeightsError names what is missing, unexpected or of another
    shape; `what` says whose tensors they are and `hint` what the file may be instead.
    """
    want = network.state_dict()
    problems = {
        "missing": [k for k in want if k not in have],
        "unexpected": [k for k in have if k not in want],
        "mis-shaped": [
            f"{k} {_shape(have[k])} for {tuple(want[k].shape)}"
            for k in want
            if k in have and not _fits(have[k], want[k])
        ],
        "not floating point": [k for k in want if k in have and have[k].dtype is None],
    }
    if any(problems.values()):
        told = "; ".join(
            f"{len(keys)} {kind} ({examples(keys)})" for kind, keys in problems.items() if keys
        )
        raise WeightsError(
            f"{what}: {told}{'; ' + hint if hint else ''}; take both files from the same source."
        )
    state = {}
    for k in want:
        try:
            x = have[k].read(want[k].shape)
        except (OSError, ValueError, RuntimeError) as e:
            raise WeightsError(f"{what}: {k} cannot be read ({e}); fetch the file again.") from None
        state[k] = x.to(dtype).to(device)  # first the dtype: MPS has no float64
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False).eval()


def at_first_use(part: nn.Module, name: str, entries: Mapping[str, Entry]) -> None:
    """Has the numbers of `part` checked, and on a CPU laid out, when it is first called.

    `entries` are the tensors that it was filled with, under the names of the network in which
    `part` is called `name`, or "" for the whole. WeightsError names one with NaN or infinity.
    Convolutions are packed where that takes no memory: those in the file's own type are mapped
    again, unread, and of the rest the small ones; the others are faster in channels_last.
    """

    def entry_of(*names: str) -> Entry:
        return entries[".".join(filter(None, (name, *names)))]

    @torch.inference_mode(False)
    def prepare(part: nn.Module, _) -> None:
        for key, p in part.named_parameters():
            if not p.sum(dtype=torch.float32).isfinite() and not p.isfinite().all():
                entry = entry_of(key)
                raise WeightsError(
                    f"{entry.key} in {entry.path} holds NaN or infinity; the file is damaged, so "
                    "fetch it again."
                )
        hook.remove()
        for key, module in part.named_modules():
            if isinstance(module, Conv2d) and module.weight.device.type == "cpu":
                weight, entry = module.weight, entry_of(key, "weight")
                mapped = entry.dtype == weight.dtype
                if mapped or weight.numel() < SMALL:
                    module.pack(partial(entry.read, weight.shape) if mapped else None)
                else:
                    module.to(memory_format=torch.channels_last)

    hook = part.register_forward_pre_hook(prepare)


def examples(names: Sequence[str]) -> str:
    """The first five, each cut to what a line can hold."""
    some = [n if len(n) <= 120 else f"{n[:100]}... of {len(n):,} characters" for n in names[:5]]
    return ", ".join(some) + (", ..." if len(names) > 5 else "")


def _shape(entry: Entry) -> tuple[int, ...]:
    first, *rest = entry.shape or (0,)
    return tuple(entry.shape) if entry.third is None else (first // 3, *rest)


def _fits(entry: Entry, want: Tensor) -> bool:
    """The same shape, or a 1x1 convolution for a linear layer (attention of original VAEs)."""
    shape = _shape(entry)
    if len(shape) == 4 and want.ndim == 2 and shape[2:] == (1, 1):
        shape = shape[:2]
    return shape == tuple(want.shape) and (entry.third is None or entry.shape[0] % 3 == 0)


def fingerprint(paths: list[Path]) -> str:
    """A short name for a set of weight files: their sizes, first and last MiB, hashed."""
    digest = hashlib.sha256()
    for path in paths:
        size, mib = path.stat().st_size, 1 << 20
        with path.open("rb") as f:
            digest.update(str(size).encode() + f.read(mib))
            f.seek(max(size - mib, 0))
            digest.update(f.read(mib))
    return digest.hexdigest()[:16]

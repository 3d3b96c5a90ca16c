"""Weights from a folder in the diffusers layout: strict, safetensors only, never a pickle.

    folder/unet/config.json + diffusion_pytorch_model.safetensors (or .fp16, or shards + index)
    folder/vae/config.json + diffusion_pytorch_model.safetensors
    folder/text_encoder/config.json + model.safetensors
    folder/tokenizer/ and folder/scheduler/scheduler_config.json
    folder/dnp.json                     optional: see `dnp/sd/files/recommendations.py`

A network is built on the meta device, where it has shapes and no numbers, and every tensor of it
must come from the file: nothing random survives, and nothing in the file is passed over in silence
but known buffers and training state.
Opening weights compares names and shapes and reads only what must be converted; the rest is mapped
into memory, and read when it is first used. So a file must not be written to while its model
lives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dnp.errors import WeightsError
from dnp.sd.files import not_ours
from dnp.sd.files.fingerprint import file_state

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
            raise WeightsError(f"{path} is not a regular file; restore it.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"{path}: no such file; a weights folder in the diffusers layout has it, so give "
            "--weights such a folder."
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise WeightsError(f"{path}: cannot be read as JSON ({e}); restore the file.") from None
    if not isinstance(data, dict):
        raise WeightsError(f"{path}: does not hold a JSON object; restore the file.")
    return data


def find(folder: Path, stem: str) -> list[Path]:
    """The safetensors file of one part of the model, or its shards."""
    for kind in ("", ".fp16"):  # full precision first, as diffusers does
        if (folder / f"{stem}{kind}.safetensors").is_file():
            return [folder / f"{stem}{kind}.safetensors"]
        for name in (
            f"{stem}.safetensors.index{kind}.json",
            f"{stem}{kind}.safetensors.index.json",
        ):
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
        raise WeightsError(f"{index}: weight_map does not name files; restore the file.")
    files = sorted({index.parent / n for n in names.values()})
    for file in files:
        named = examples([file.name])
        if file.parent != index.parent or file.suffix != ".safetensors" or len(file.name) > 200:
            raise WeightsError(
                f"{index}: {named} is not a safetensors file beside it; restore the folder."
            )
        if not file.is_file():
            raise WeightsError(f"{file}: no such file, but {index.name} names it; fetch it.")
    return files


def _refuse_pickle(path: Path, stem: str = "model") -> None:
    raise WeightsError(
        f"{path} is a pickle, which can run any code and is never opened; convert it to "
        f"{stem}.safetensors with safetensors.torch.save_file on a machine you trust it on."
    )


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
PIECE = 32 << 20  # bytes that are converted before their file is mapped anew


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in a safetensors file under the name `key`; its numbers are not read yet.

    `dtype` is None if it is none of `DTYPES`. `state` tells whether the file is still the one that
    was opened. `third` is which third of a fused projection it is, or None for the whole;
    `transposed` says that it lies transposed in the file.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    state: tuple[int, ...]
    third: int | None = None
    transposed: bool = False

    def read(self, files: dict[Path, safe_open]) -> Tensor:
        """The tensor in its mapped file, which is opened if it is not among `files`: a byte is read
        when it is used, and written to memory alone. WeightsError if it is another file now."""
        try:
            if self.path not in files:
                files[self.path] = safe_open(self.path, "pt")
                if file_state(self.path) != self.state:
                    raise OSError("the file was changed")
            x = files[self.path].get_tensor(self.key)
        except (SafetensorError, OSError, RuntimeError) as e:
            raise WeightsError(
                f"{self.path}: {self.key} cannot be read ({e}); try again, or fetch the file again."
            ) from None
        if x.data_ptr() % x.itemsize:  # early files may lie at an odd byte, where no tensor can be
            x = x.clone()
        x = x.t() if self.transposed else x
        return x if self.third is None else x.chunk(3)[self.third]


def open_files(paths: Sequence[Path]) -> dict[str, Stored]:
    """Every tensor of the files, by its name there; only the headers are read."""
    found: dict[str, Stored] = {}
    for path in paths:
        try:
            state = file_state(path)
            with safe_open(path, "pt") as file:  # checks sizes and offsets: no holes, no overlaps
                told = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                told = {k: (tuple(x.get_shape()), x.get_dtype()) for k, x in told.items()}
        except (SafetensorError, OSError) as e:
            _say_what_is_wrong(path, e)
        small = {k: dtype for k, (_, dtype) in told.items() if dtype.startswith(("F8", "F4"))}
        if small:
            raise WeightsError(
                f"{path}: {len(small)} tensors are {next(iter(small.values()))} "
                f"({examples(list(small))}), numbers of 8 bits or fewer, which are not read; fetch "
                "the variant in float16 or float32."
            )
        for key, (shape, dtype) in told.items():
            if key in found:
                raise WeightsError(
                    f"{path}: {examples([key])} is in two shards; fetch the folder again."
                )
            found[key] = Stored(path, key, shape, DTYPES.get(dtype), state)
    return found


def _say_what_is_wrong(path: Path, e: Exception) -> None:
    try:
        with path.open("rb") as f:
            start = f.read(4)
    except OSError as again:
        raise WeightsError(f"{path}: cannot be read ({again.strerror}); fix that.") from None
    if start[:1] == b"\x80" or start[:2] == b"PK":
        _refuse_pickle(path)
    if start == b"GGUF":
        raise WeightsError(f"{path}: {not_ours.GGUF}.")
    raise WeightsError(
        f"{path} is truncated or damaged ({e}); compare its size with the source and fetch it "
        "again."
    ) from None


def renamed(
    tensors: Mapping[str, Stored], translate: Callable[[str], str], where: object
) -> dict[str, Stored]:
    """The tensors of a part under their names here; WeightsError if two get the same."""
    new: dict[str, Stored] = {}
    for old, stored in tensors.items():
        if (key := translate(old)) in new:
            both = examples([new[key].key, stored.key])
            raise WeightsError(f"{where} holds a tensor twice ({both}); fetch it again.")
        new[key] = stored
    return new


def without_harmless(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors of a folder's part that are not mere buffers."""
    return {k: x for k, x in tensors.items() if not _HARMLESS.search(k)}


def rename(key: str) -> str:
    """A tensor's name as the networks here have it."""
    for old, new in _RENAMES:
        key = old.sub(new, key)
    return key


@contextmanager
def unfilled() -> Iterator[None]:
    """Networks that are built inside have shapes and no numbers: on the meta device, undrawn."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """What torch.nn.init would draw is left as it is: a sixth of the time that opening took."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def fill(
    network: nn.Module, have: Mapping[str, Stored], device: torch.device, dtype: torch.dtype,
    what: str,
) -> nn.Module:  # fmt: skip
    """Gives a network on the meta device its tensors, all of them and nothing else, one by one.

    A tensor of another type or device is converted as it is read, so that little more than the
    network is in memory. WeightsError names what is missing, unexpected or of another
    shape; `what` says whose tensors they are.
    """
    want = network.state_dict()
    problems = {
        "missing": [k for k in want if k not in have],
        "unexpected": [k for k in have if k not in want],
        "mis-shaped": [
            f"{k} {have[k].shape} for {_wanted(have[k], want[k])}"
            for k in want
            if k in have and not _fits(have[k], want[k])
        ],
        "of a type that is not read": [k for k in want if k in have and have[k].dtype is None],
    }
    if any(problems.values()):
        differences = "; ".join(
            f"{len(keys)} {kind} ({examples(keys)})" for kind, keys in problems.items() if keys
        )
        raise WeightsError(f"{what}: {differences}; take both files from the same source.")
    files, converted, modules = {}, 0, dict(network.named_modules())
    for k in want:
        x = have[k].read(files).reshape(want[k].shape)
        y = x.to(dtype).to(device)  # first the dtype: MPS has no float64
        converted += 0 if y is x else x.nbytes
        if converted > PIECE:  # what was read of a map is in memory for as long as the map is
            files, converted = {}, 0
        where, _, name = k.rpartition(".")
        setattr(modules[where], name, nn.Parameter(y, requires_grad=False))
    return network.eval()


def examples(names: Sequence[str]) -> str:
    """The first five, each cut to what a line can hold, without control characters."""
    names = [n if n.isprintable() else repr(n)[1:-1] for n in names]
    some = [n if len(n) <= 120 else f"{n[:100]}... of {len(n):,} characters" for n in names[:5]]
    return ", ".join(some) + (", ..." if len(names) > 5 else "")


def _wanted(stored: Stored, want: Tensor) -> tuple[int, ...]:
    """The shape that a tensor must have in the file, which may hold three of them in one."""
    first, *rest = want.shape
    if stored.transposed:
        return (*rest, first)
    return tuple(want.shape) if stored.third is None else (3 * first, *rest)


def _fits(stored: Stored, want: Tensor) -> bool:
    """The same shape, or a 1x1 convolution for a linear layer (attention of original VAEs)."""
    shape = stored.shape
    if len(shape) == 4 and want.ndim == 2 and shape[2:] == (1, 1):
        shape = shape[:2]
    return shape == _wanted(stored, want)

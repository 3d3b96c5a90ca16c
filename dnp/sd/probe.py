"""What a strange pipeline computes, seen from outside: its wiring, and numbers of a small forward.

A switch of diffusers (FreeU, tiling, a processor, padding) is an attribute of a module, which
`wiring` reads. A hook or a patched forward is code, which only its numbers tell: `numbers` runs one
small forward of the text encoders, the denoiser and the VAE's decoder. Threads and speed measures
change those in the last digits, so they are computed in float64 and rounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dnp.errors import WeightsError, memory_is_full, reason

# Where a network came from and how it is trained, which changes no picture.
NAMES = {"transformers_version", "name_or_path", "architectures", "dtype", "torch_dtype"}
_APART = {*NAMES, "config", "generation_config", "gradient_checkpointing", "warnings_issued"}
_SCALAR, _SEVERAL = bool | int | float | str | None, list | tuple | set | frozenset
_OF_TORCH = torch.dtype | torch.device
_DRAWS = 8  # numbers of each result; float64 is sure of 6 of their digits, MPS's float32 of 3


def networks(pipe) -> dict[str, nn.Module]:
    """The networks that make a picture, by their names in the pipeline."""
    names = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    parts = {k: getattr(pipe, k, None) for k in names}
    return {k: part for k, part in parts.items() if part is not None}


def beside(pipe) -> list:
    """All beside tensors that changes a picture: classes, configs, wiring, tokenizers, LoRAs."""
    content: list = [type(pipe).__name__, sorted(getattr(pipe, "fused_loras", ()))]
    for part, network in networks(pipe).items():
        config = getattr(network.config, "to_dict", lambda c=network.config: dict(c))()
        content.append([part, {k: v for k, v in config.items() if k not in NAMES and k[0] != "_"}])
        modules = [*network.named_modules()]
        content.append(wiring(modules))
        for name, module in modules:
            if "scaling" in vars(module) and hasattr(module, "active_adapters"):  # a LoRA's layer
                adapters = [module.active_adapters, module.disable_adapters, module.merged_adapters]
                content.append([part, name, dict(module.scaling), adapters])
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        if (tokenizer := getattr(pipe, name, None)) is not None:
            backend = getattr(tokenizer, "backend_tokenizer", None)
            said = json.loads(backend.to_str()) if backend else {}
            said = {k: v for k, v in said.items() if k not in ("padding", "truncation")}
            ends = [tokenizer.model_max_length, tokenizer.special_tokens_map]
            content.append([name, tokenizer.get_vocab(), said, ends])
    return content


def wiring(modules: list[tuple[str, nn.Module]]) -> list:
    """Each module's class and plain attributes, and those of the objects that it holds."""
    return [[name, _plain(module, 1)] for name, module in modules]


def _plain(x: object, depth: int) -> object:
    """x as JSON can hold it: of an object its class, and `depth` floors of its attributes."""
    if isinstance(x, _SCALAR):
        return x
    if isinstance(x, _SEVERAL):
        return [_plain(y, depth) for y in (sorted(x, key=str) if isinstance(x, set) else x)]
    if isinstance(x, dict):
        return [[str(k), _plain(y, depth)] for k, y in x.items()]
    if isinstance(x, _OF_TORCH):
        return str(x) if isinstance(x, torch.dtype) else x.type
    code = x if hasattr(x, "__qualname__") else type(x)
    content: list = [f"{code.__module__}.{code.__qualname__}"]
    if depth >= 0 and not isinstance(x, Tensor) and hasattr(x, "__dict__"):
        own = vars(x).items()
        content += [[k, _plain(y, depth - 1)] for k, y in own if k[0] != "_" and k not in _APART]
    return content


@torch.no_grad()
def numbers(model, seed: int = 0) -> list[float]:
    """A few numbers of the model's condition, its eps at two levels, and its decoder; `seed` is of
    what its networks may draw.

    WeightsError where something in the pipeline does not compute in float64, so cannot be seen.
    """
    device = model.device
    kind, digits = (torch.float32, 3) if device.type == "mps" else (torch.float64, 6)
    model, shape = model.small()
    T = len(model.schedule.abar)
    try:
        with torch.random.fork_rng(), _Wide(kind):
            torch.manual_seed(seed)
            c = model.encode(["a cat and two dogs", ""])
            z = _draw((2, *shape)).to(device, kind)
            eps = model.eps(z, torch.tensor([T - 1, T // 3], device=device), c)
            picture = model.pipe.vae.decode(z[:1], return_dict=False)[0]
            results = [*(c if isinstance(c, tuple) else [c]), eps, picture]
            return [round(x, digits) for result in results for x in _drawn(result)]
    except WeightsError:
        raise
    except Exception as e:  # whatever a stranger's code says
        if memory_is_full(e):
            raise
        raise WeightsError(
            f"whether something was changed in this pipeline cannot be seen, since a forward in "
            f"float64 fails ({reason(e)}); undo what replaces its layers or its attention, as with "
            f"pipe.{model.denoiser}.set_default_attn_processor()."
        ) from None


def _drawn(x: Tensor) -> Iterator[float]:
    """Sums of x with random signs and weights, of about its root mean square."""
    x = x.double().cpu().flatten()
    weights = _draw((_DRAWS, x.numel())) / x.numel() ** 0.5
    yield from (weights @ x).tolist()


def _draw(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class _Wide(TorchFunctionMode):
    """Every operation in a wider type: tensors are converted as they are used, none is changed."""

    def __init__(self, kind: torch.dtype):
        super().__init__()
        self.kind = kind

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name == "__get__":  # a shape or a device
            return func(*args, **(kwargs or {}))
        written = name == "__setitem__" or (name.endswith("_") and name[:2] != "__")
        args = (*args[:1], *self.wide(args[1:])) if written else self.wide(args)
        return func(*args, **(self.wide(kwargs) if kwargs else {}))

    def wide(self, x):
        if isinstance(x, Tensor):
            return x.to(self.kind) if x.dtype != self.kind and x.is_floating_point() else x
        if type(x) in (list, tuple):
            return type(x)(map(self.wide, x))
        return {k: self.wide(y) for k, y in x.items()} if type(x) is dict else x

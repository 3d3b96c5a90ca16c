"""A model from a pipeline of diffusers that is open in Python: `dnp.from_diffusers(pipe)`.

The networks, the tokenizers and the text pass are the pipeline's own, with its LoRAs and textual
inversions. The samplers, rules and seeds are ours: of its scheduler only the levels are read.
diffusers is not imported here; who has a pipeline has it already.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor

from dnp.errors import SettingsError, WeightsError
from dnp.sd import OF_PIPELINE, probe
from dnp.sd.files import folder
from dnp.sd.finite import require_finite
from dnp.sd.model import StableDiffusion
from dnp.sd.sdxl import StableDiffusionXL


def from_diffusers(pipe) -> StableDiffusion:
    """A model for `dnp.generate`, `dnp.trajectory` and the experiments from a
    StableDiffusionPipeline or a StableDiffusionXLPipeline.

    It follows the pipeline: what is loaded into it later, or moved to a GPU, counts from then on.
    Its scheduler is read now. Not used: its scheduler's own steps, its safety checker, watermark
    and `clip_skip`. SettingsError for another pipeline; WeightsError for one that cannot be used.
    """
    kinds = {c.__name__ for c in type(pipe).__mro__}
    for name, kind in KINDS.items():
        if name in kinds:
            return kind(pipe)
    raise SettingsError(
        f"from_diffusers takes {' or '.join(KINDS)}, not {type(pipe).__name__}; other pipelines "
        "have DNS and auto-DNP in dnp.pipelines."
    )


@dataclass(frozen=True)
class PipelineConfig:
    """What a model says about itself, read off its pipeline."""

    unet: SimpleNamespace
    vae: SimpleNamespace
    prediction_type: str
    spacing: str
    phi: str
    identity: Identity
    scales: dict[str, float] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    captioner: None = None

    @property
    def fingerprint(self) -> str:
        return self.identity.name()


class FromPipeline(StableDiffusion):
    """A StableDiffusion whose parts are a pipeline's."""

    attention = None  # its U-Net is diffusers', whose maps are not read
    captioner = None  # auto-dnp's; set it, or give one to `generate`

    def __init__(self, pipe):
        self.pipe = pipe
        _refuse_what_is_no_eps(pipe)
        config = pipe.unet.config
        self.schedule, predicts, spacing, levels = read_schedule(pipe)
        size = config.sample_size
        size = tuple(size) if isinstance(size, list | tuple) else (size, size)
        phi = "zeros" if getattr(pipe.config, "force_zeros_for_empty_prompt", False) else "text"
        self.config = PipelineConfig(
            SimpleNamespace(in_channels=config.in_channels, sample_size=size),
            SimpleNamespace(
                factor=pipe.vae_scale_factor, scaling_factor=pipe.vae.config.scaling_factor
            ),
            predicts, spacing, phi, Identity(self, [predicts, spacing, phi, levels]),
        )  # fmt: skip

    @property
    def unet(self) -> _UNet:
        return _UNet(self.pipe.unet)

    @property
    def vae(self) -> _VAE:
        return _VAE(self.pipe.vae)

    @property
    def tokenizer(self):
        return self.pipe.tokenizer

    @property
    def device(self) -> torch.device:
        return self.pipe._execution_device  # where an offloaded pipeline computes

    @property
    def dtype(self) -> torch.dtype:
        return self.pipe.unet.dtype

    @property
    def vae_dtype(self) -> torch.dtype:
        return self.pipe.vae.dtype

    def check_finite(self) -> None:
        for network in probe.networks(self.pipe).values():
            require_finite(network, {})

    def encode(self, prompts: str | Sequence[str]) -> Tensor:
        """tau(c) by the pipeline: prompts -> context (B, L, D). It cuts a long prompt, and logs
        that."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        require_one_device(self.pipe)
        note_padding(self.pipe, prompts)
        return self.pipe.encode_prompt(prompts, self.device, 1, False)[0]


class FromPipelineXL(FromPipeline, StableDiffusionXL):
    """A StableDiffusionXL whose parts are a pipeline's."""

    encode = StableDiffusionXL.encode

    @property
    def tokenizer_2(self):
        return self.pipe.tokenizer_2

    def text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        require_one_device(self.pipe)
        note_padding(self.pipe, prompts)
        context, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        return context, pooled


KINDS = {"StableDiffusionXLPipeline": FromPipelineXL, "StableDiffusionPipeline": FromPipeline}


def read_schedule(pipe) -> tuple:
    """Schedule, prediction type, spacing and levels of a pipeline's scheduler."""
    said = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
    return folder.read_schedule(said, f"{type(pipe).__name__}'s scheduler")


def _refuse_what_is_no_eps(pipe) -> None:
    """WeightsError for a pipeline whose U-Net is no eps_theta(z_t, t, c) of text alone."""
    name, unet = type(pipe).__name__, pipe.unet.config
    if pipe.text_encoder is None or pipe.tokenizer is None:
        raise WeightsError(f"{name} has no text encoder (SDXL's refiner has none); take the base.")
    if unet.in_channels != pipe.vae.config.latent_channels:
        raise WeightsError(
            f"the U-Net takes {unet.in_channels} channels and the VAE has "
            f"{pipe.vae.config.latent_channels}; inpainting and upscaling are not supported."
        )
    if getattr(unet, "time_cond_proj_dim", None) is not None:
        raise WeightsError(
            "this U-Net was distilled with the guidance scale inside (LCM), so it has no noise of "
            "its own for each prompt; take the model that it was distilled from."
        )
    if getattr(unet, "encoder_hid_dim_type", None) is not None:
        raise WeightsError(
            "this U-Net also takes a picture (IP-Adapter); call pipe.unload_ip_adapter() first."
        )
    if unet.sample_size is None:
        raise WeightsError("unet.config has no sample_size; give it the latents' side, such as 64.")
    if getattr(pipe.vae.config, "latents_mean", None) is not None:
        raise WeightsError("a VAE with a latents_mean of its own is not supported; take another.")


class _UNet:
    """diffusers' U-Net, called as `dnp/sd/unet.py` is."""

    def __init__(self, network):
        self.network = network

    def __call__(
        self, z_t: Tensor, t: Tensor, context: Tensor,
        pooled: Tensor | None = None, numbers: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": numbers}
        return self.network(z_t, t, context, added_cond_kwargs=added, return_dict=False)[0]


class _VAE:
    """diffusers' VAE, called as `dnp/sd/vae.py` is."""

    def __init__(self, network):
        self.network = network

    def decode(self, z: Tensor) -> Tensor:
        vae = self.network
        if vae.dtype != torch.float16 or not getattr(vae.config, "force_upcast", False):
            return vae.decode(z, return_dict=False)[0]
        try:  # in float16 it overflows; the pipeline does the same
            return vae.to(torch.float32).decode(z.float(), return_dict=False)[0]
        finally:
            vae.to(torch.float16)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.network.encode(x).latent_dist
        return posterior.mean, posterior.logvar


# --------------------------------------------------------------------------------------- identity


class Identity:
    """The name of what a pipeline holds: every tensor with its LoRAs, their scales, the tokenizers,
    how the modules are wired, and what a small forward returns (`dnp/sd/probe.py`).

    Tensors are hashed when the name is asked for, by all cores (0.6 s of one core for a GB), and
    again when one was replaced or written to, or a LoRA was loaded, scaled, fused or put off. The
    forward is run at every call, so at the start of every run, and a change through `.data`, by a
    hook or by a patched method is seen where it changes its numbers by 1e-6 of their size.
    WeightsError where they are not the same twice.
    """

    def __init__(self, model: FromPipeline, settings: list):
        self.model, self.settings, self.fingerprint = model, settings, ""
        self.seen: tuple[str, dict] = "", {}

    def name(self) -> str:
        """OF_PIPELINE and 32 hexadecimal digits."""
        pipe = self.model.pipe
        _refuse_what_is_no_eps(pipe)
        with warnings.catch_warnings(action="ignore"):  # what it notes was noted
            now = read_schedule(pipe)[1:]
        if now != (*self.settings[:2], self.settings[-1]):
            raise WeightsError(
                "the pipeline's scheduler was changed after it was read; call "
                "dnp.from_diffusers(pipe) again."
            )
        numbers = probe.numbers(self.model)
        tensors = dict(_tensors(pipe))
        beside = json.dumps(
            [self.settings, probe.beside(pipe), numbers], sort_keys=True, default=str
        )
        if not self._same(beside, tensors):
            if numbers != probe.numbers(self.model, seed=1):
                raise WeightsError(
                    "this pipeline gives two results for one input, so its pictures have no name; "
                    "remove what draws or remembers: dropout (pipe.unet.eval()), a hook, a cache."
                )
            with ThreadPoolExecutor() as pool:
                digests = dict(zip(tensors, pool.map(_digest, tensors.values())))
            fingerprint = json.dumps([beside, digests], sort_keys=True)
            self.fingerprint = OF_PIPELINE + hashlib.sha256(fingerprint.encode()).hexdigest()[:32]
            self.seen = beside, {k: (weakref.ref(x), _written(x)) for k, x in tensors.items()}
        return self.fingerprint

    def _same(self, beside: str, tensors: dict[str, Tensor]) -> bool:
        before = self.seen[1]
        return (beside, tensors.keys()) == (self.seen[0], before.keys()) and all(
            before[k][0]() is x and before[k][1] == _written(x) for k, x in tensors.items()
        )


def require_one_device(pipe) -> None:
    """WeightsError if some networks were moved and others not. (An offloaded one moves itself.)"""
    parts = {k: n for k, n in probe.networks(pipe).items() if not hasattr(n, "_hf_hook")}
    where = {k: sorted({str(p.device) for p in n.parameters()}) for k, n in parts.items()}
    if len({device for devices in where.values() for device in devices}) > 1:
        said = ", ".join(f"{part} on {' and '.join(devices)}" for part, devices in where.items())
        raise WeightsError(
            f"this pipeline has its {said}; move it as a whole, with pipe.to(DEVICE)."
        )


def note_padding(pipe, prompts: Sequence[str]) -> None:
    """A note where a prompt has the text of the padding token, which "!" is in 2.x and SDXL."""
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(pipe, name, None)
        text, end = (getattr(tokenizer, f"{kind}_token", None) for kind in ("pad", "eos"))
        if text not in (None, end) and any(text in p for p in prompts):
            warnings.warn(
                f'the pipeline\'s {name} reads "{text}" in a prompt as padding; the original code '
                "and dnp.load read it as a word",
                stacklevel=3,
            )


def _tensors(pipe) -> Iterator[tuple[str, Tensor]]:
    for part, network in probe.networks(pipe).items():
        for kind in (network.named_parameters(), network.named_buffers()):
            yield from ((f"{part}.{name}", x) for name, x in kind)


def _written(x: Tensor) -> tuple:
    return x.data_ptr(), 0 if x.is_inference() else x._version


def _digest(x: Tensor) -> str:
    data = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(f"{x.dtype} {tuple(x.shape)};".encode() + data.tobytes()).hexdigest()

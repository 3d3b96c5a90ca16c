"""Stable Diffusion 1.x, 2.x and XL as diffusers has them open: the networks, the tokenizers and the
text pass are the pipeline's own, with its LoRAs and textual inversions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from dnp.diffusers.identity import Identity
from dnp.errors import WeightsError
from dnp.schedule import Schedule
from dnp.sd import probe
from dnp.sd.attention import AttentionMaps
from dnp.sd.files import folder
from dnp.sd.finite import require_finite
from dnp.sd.model import StableDiffusion
from dnp.sd.sdxl import StableDiffusionXL


@dataclass(frozen=True)
class PipelineConfig:
    """What a model says about itself, read off its pipeline."""

    unet: SimpleNamespace
    vae: SimpleNamespace
    prediction_type: str
    spacing: str
    phi: str
    text: SimpleNamespace
    identity: Identity
    scales: dict[str, float] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    things: tuple[str, ...] = ()
    captioner: None = None

    @property
    def fingerprint(self) -> str:
        return self.identity.name()


class FromPipeline(StableDiffusion):
    """A StableDiffusion whose parts are a pipeline's."""

    denoiser = "unet"  # its name in the pipeline
    captioner = None  # auto-dnp's; set it, or give one to `generate`

    def __init__(self, pipe):
        self.pipe = pipe
        self.refuse()
        self.schedule, predicts, spacing, self.read = self.read_scheduler()
        phi = "zeros" if getattr(pipe.config, "force_zeros_for_empty_prompt", False) else "text"
        channels, size = self.latents()
        self.config = PipelineConfig(
            SimpleNamespace(in_channels=channels, sample_size=size),
            SimpleNamespace(
                factor=pipe.vae_scale_factor, scaling_factor=pipe.vae.config.scaling_factor
            ),
            predicts, spacing, phi, SimpleNamespace(max_position_embeddings=self.positions()),
            Identity(self),
        )  # fmt: skip

    def refuse(self) -> None:
        """WeightsError for a pipeline whose U-Net is not an eps_theta(z_t, t, c) of text alone."""
        refuse_what_is_no_eps(self.pipe, self.pipe.unet)
        unet = self.pipe.unet.config
        if getattr(unet, "time_cond_proj_dim", None) is not None:
            raise WeightsError(
                "this U-Net was distilled with the guidance scale inside (LCM), so it has no noise "
                "of its own for each prompt; take the model that it was distilled from."
            )
        if getattr(unet, "encoder_hid_dim_type", None) is not None:
            raise WeightsError(
                "this U-Net also takes a picture (IP-Adapter); call pipe.unload_ip_adapter() first."
            )
        if unet.sample_size is None:
            raise WeightsError(
                "unet.config has no sample_size; give it the latents' side, such as 64."
            )

    def read_scheduler(self) -> tuple[Schedule, str, str, dict]:
        """Schedule, prediction type, spacing and levels of the pipeline's scheduler."""
        pipe = self.pipe
        said = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
        return folder.read_schedule(said, f"{type(pipe).__name__}'s scheduler")

    def latents(self) -> tuple[int, tuple[int, int]]:
        """Channels, height and width of the latents that it was trained on."""
        config = self.pipe.unet.config
        size = config.sample_size
        size = tuple(size) if isinstance(size, list | tuple) else (size, size)
        return config.in_channels, size

    def positions(self) -> int:
        """How many tokens its text encoder reads."""
        return self.pipe.text_encoder.config.max_position_embeddings

    def settings(self) -> list:
        """What it says of how to sample, for its name. WeightsError if that was changed."""
        self.refuse()
        with warnings.catch_warnings(action="ignore"):  # what it notes was noted
            now = self.read_scheduler()[1:]
        if now != (self.config.prediction_type, self.config.spacing, self.read):
            raise WeightsError(
                "the pipeline's scheduler was changed after it was read; call "
                "dnp.from_diffusers(pipe) again."
            )
        return [self.config.prediction_type, self.config.spacing, self.config.phi, self.read]

    def small(self) -> tuple[FromPipeline, tuple[int, int, int]]:
        """The model for a small forward, and (C, H, W) of its latents."""
        f = 2 ** (len(self.pipe.unet.config.block_out_channels) - 1)
        return self, (self.config.unet.in_channels, f, f)

    @property
    def unet(self) -> _UNet:
        return _UNet(self.pipe.unet)

    @property
    def vae(self) -> _VAE:
        return _VAE(self.pipe.vae, getattr(self.pipe.vae.config, "shift_factor", None) or 0.0)

    @property
    def tokenizer(self):
        return self.pipe.tokenizer

    @property
    def device(self) -> torch.device:
        networks = [*probe.networks(self.pipe).values()]
        if any(map(has_hooks, networks)):
            return self.pipe._execution_device  # where an offloaded pipeline computes
        return next(networks[0].parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return getattr(self.pipe, self.denoiser).dtype

    @property
    def vae_dtype(self) -> torch.dtype:
        return self.pipe.vae.dtype

    def attention(self, level: int) -> AttentionMaps:
        """A recorder of the maps of cross-attention, read beside whatever processor it has."""
        return AttentionMaps(self.pipe.unet, level)

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


def refuse_what_is_no_eps(pipe, denoiser, patch: int = 1) -> None:
    """WeightsError for a pipeline without text, or whose latents are not its VAE's alone; a token
    holds patch x patch of them."""
    name = type(pipe).__name__
    if pipe.text_encoder is None or pipe.tokenizer is None:
        raise WeightsError(f"{name} has no text encoder (SDXL's refiner has none); take the base.")
    channels = denoiser.config.in_channels // patch**2
    if channels != pipe.vae.config.latent_channels:
        raise WeightsError(
            f"the denoiser takes {channels} channels and the VAE has "
            f"{pipe.vae.config.latent_channels}; inpainting and upscaling are not supported."
        )
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
    """diffusers' VAE, called as `dnp/sd/vae.py` is; its latents are moved by `shift`."""

    def __init__(self, network, shift: float):
        self.network, self.shift = network, shift

    def decode(self, z: Tensor) -> Tensor:
        vae, z = self.network, z + self.shift
        if vae.dtype != torch.float16 or not getattr(vae.config, "force_upcast", False):
            return vae.decode(z, return_dict=False)[0]
        try:  # in float16 it overflows; the pipeline does the same
            return vae.to(torch.float32).decode(z.float(), return_dict=False)[0]
        finally:
            vae.to(torch.float16)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.network.encode(x.to(self.network.dtype)).latent_dist
        return posterior.mean - self.shift, posterior.logvar


def has_hooks(network: nn.Module) -> bool:
    """Whether something of accelerate or diffusers moves or casts its modules."""
    modules = [network]  # all of them: `network.modules()` takes ten times as long
    for module in modules:
        if "_hf_hook" in vars(module) or "_diffusers_hook" in vars(module):
            return True
        modules += filter(None, module._modules.values())
    return False


def require_one_device(pipe) -> None:
    """WeightsError if some networks were moved and others not. (An offloaded one moves itself.)"""
    parts = {k: n for k, n in probe.networks(pipe).items() if not hasattr(n, "_hf_hook")}
    where = {k: {p.device for p in n.parameters()} for k, n in parts.items()}
    if len(set().union(*where.values())) > 1:
        names = {part: " and ".join(sorted(map(str, devices))) for part, devices in where.items()}
        said = ", ".join(f"{part} on {devices}" for part, devices in names.items())
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

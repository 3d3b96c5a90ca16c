"""Stable Diffusion 3, Flux and PixArt as diffusers has them open: transformers, two of them flows.

    model     condition                                predicts            levels
    SD 3      CLIP and T5, pooled CLIP                 u = eps - z_0       the scheduler's, by steps
    Flux      T5, pooled CLIP                          u; 2 x 2 a token    the scheduler's, by steps
    PixArt    T5 and its mask                          eps, and a variance that is cut off

A flow's levels are its scheduler's own sigmas for the number of steps asked for (`set_timesteps`,
with the shift, and with mu where it depends on the size): `at_steps` makes the model on these, and
t is their index. At tau = 1, where it starts, alpha is 0 and eps says nothing of z_0, so that level
is cut to 1 - 1e-6, and the chain is computed in float64 (on MPS, which has none, 1 - 1e-4 in
float32). The network computes in its own dtype and is told tau = 1. phi is the pipeline's own empty
prompt.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dnp import units
from dnp.diffusers.unets import (
    FromPipeline,
    note_padding,
    refuse_what_is_no_eps,
    require_one_device,
)
from dnp.energy import eps_from_v
from dnp.errors import SettingsError, WeightsError
from dnp.schedule import Schedule

EULER = "FlowMatchEulerDiscreteScheduler"


class Pooled(NamedTuple):
    context: Tensor  # (B, L, D)
    pooled: Tensor  # (B, P)


class Masked(NamedTuple):
    context: Tensor  # (B, L, D)
    mask: Tensor  # (B, L), 1 for a token and 0 for padding


class FromTransformer(FromPipeline):
    """What the three share."""

    denoiser, unet, attention = "transformer", None, None  # no U-Net, whose maps are read
    packed = 1  # latents of packed x packed are one token's channels
    tokens: int | None = None  # of a text; None: as many as the pipeline's own call takes

    def refuse(self) -> None:
        refuse_what_is_no_eps(self.pipe, self.pipe.transformer, self.packed)
        if getattr(self.pipe.transformer, "encoder_hid_proj", None) is not None:
            raise WeightsError(
                "this transformer also takes a picture (IP-Adapter); call "
                "pipe.unload_ip_adapter() first."
            )

    def latents(self) -> tuple[int, tuple[int, int]]:
        side = self.pipe.transformer.config.sample_size
        return self.pipe.vae.config.latent_channels, (side, side)

    def positions(self) -> int:
        return self.tokens or self.default("max_sequence_length")

    def settings(self) -> list:
        return [*super().settings(), self.positions()]

    def default(self, name: str):
        """What the pipeline's own call takes for an argument that is not given."""
        return inspect.signature(type(self.pipe).__call__).parameters[name].default

    @property
    def patch(self) -> int:
        """The side of a token, in latents."""
        return self.packed * self.pipe.transformer.config.patch_size

    def small(self):
        model = copy.copy(self)
        model.tokens = 32  # more than what is encoded has; a T5 in float64 is slow
        return model, (self.config.unet.in_channels, 2 * self.patch, 2 * self.patch)

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latent of a picture of `size` (height, width); None: as trained."""
        C, H, W = super().latent_shape(size)
        if H % self.patch or W % self.patch:
            f = self.config.vae.factor
            raise SettingsError(
                f"a picture of {H * f} x {W * f} pixels is not possible; both sides must be "
                f"multiples of {self.patch * f}."
            )
        return C, H, W


class Flow(FromTransformer):
    """A flow on the levels of a number of steps."""

    spacing, cut = "trailing", 1e-6

    def read_scheduler(self) -> tuple[Schedule, str, str, dict]:
        """As if 1,000 steps were asked for; `at_steps` reads it again."""
        scheduler = self.pipe.scheduler
        kind, config = type(scheduler).__name__, scheduler.config
        wrong = [k for k in ("invert_sigmas", "stochastic_sampling") if config.get(k)]
        if kind != EULER or wrong:
            raise WeightsError(
                f"{type(self.pipe).__name__}'s scheduler is {kind}"
                f"{' with ' + wrong[0] if wrong else ''}, whose levels are not those of a plain "
                f"flow; give it a {EULER}, as in pipe.scheduler = {EULER}.from_config(...)."
            )
        self.schedule, self.times = self.levels(1000, None)
        said = {k: v for k, v in config.items() if k[0] != "_"}  # of classes, in any order
        return self.schedule, "flow", self.spacing, {"shift": scheduler.shift, **said}

    def settings(self) -> list:
        self.refuse()
        return ["flow", self.config.phi, copy.copy(self).read_scheduler()[-1], self.positions()]

    @property
    def latent_dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "mps" else torch.float64

    def small(self):
        model, shape = super().small()
        return model.at_steps(3, None), shape

    def at_steps(self, steps: int, size: tuple[int, int] | None = None) -> Flow:
        """The model on the scheduler's levels for this number of steps and this size."""
        model = copy.copy(self)
        model.schedule, model.times = self.levels(steps, size)
        return model

    def levels(self, steps: int, size: tuple[int, int] | None) -> tuple[Schedule, Tensor]:
        """The schedule, the cleanest level first, and the times (steps,) that the network takes."""
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(**self.asked(steps, scheduler.config, size))
        tau = scheduler.sigmas[:-1].double().cpu().flip(0)
        cut = self.cut if self.latent_dtype == torch.float64 else 1e-4
        tau = tau.clamp(max=1 - cut)
        try:
            schedule = Schedule.from_levels(1 - tau, tau)
        except ValueError:
            raise SettingsError(
                f"with {steps} steps the pipeline's scheduler names a level twice; choose fewer."
            ) from None
        return schedule, scheduler.timesteps.cpu().flip(0)

    def asked(self, steps: int, config, size) -> dict:
        """What the pipeline's call gives to `set_timesteps`."""
        if not config.get("use_dynamic_shifting"):
            return {"num_inference_steps": steps}
        _, H, W = self.pixels(size)
        tokens = (H // self.patch) * (W // self.patch)
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", self.most_shift)
        mu = low + (high - low) / (many - few) * (tokens - few)
        return {"num_inference_steps": steps, "mu": mu}

    def pixels(self, size) -> tuple[int, int, int]:
        if hasattr(self, "config"):
            return self.latent_shape(size)
        channels, sides = self.latents()
        return channels, *sides

    def eps(self, z_t: Tensor, t: int | Tensor, c: Pooled) -> Tensor:
        """eps_theta(z_t; t, c): (B, C, H, W), () or (B,), Pooled of B or 1 -> (B, C, H, W)."""
        kind = self.dtype

        def velocity(z: Tensor, t: Tensor, c: Pooled) -> Tensor:
            time = self.times[torch.as_tensor(t).cpu()].to(z.device).expand(len(z))
            c = Pooled(*(x.to(kind).expand(len(z), *x.shape[1:]) for x in c))
            return self.velocity(z, time, c)

        in_vp = units.in_vp(velocity, self.schedule, units.flow, units.eps_from_flow, kind)
        return in_vp(z_t, t, c)


class FromSD3(Flow):
    """Stable Diffusion 3 and 3.5."""

    most_shift = 1.16  # its pipeline's, where the scheduler says none

    def encode(self, prompts: str | Sequence[str]) -> Pooled:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        require_one_device(self.pipe)
        note_padding(self.pipe, prompts)
        context, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False,
            max_sequence_length=self.positions(),
        )  # fmt: skip
        return Pooled(context, pooled)

    def velocity(self, z: Tensor, time: Tensor, c: Pooled) -> Tensor:
        return self.pipe.transformer(
            hidden_states=z, timestep=time, encoder_hidden_states=c.context,
            pooled_projections=c.pooled, return_dict=False,
        )[0]  # fmt: skip


class FromFlux(Flow):
    """Flux; where the guidance is inside its transformer too, its strength is `guidance`."""

    packed, most_shift = 2, 1.15

    def __init__(self, pipe):
        self.guidance = inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default
        super().__init__(pipe)

    def settings(self) -> list:
        return [*super().settings(), self.guidance]

    def latents(self) -> tuple[int, tuple[int, int]]:
        side = self.pipe.default_sample_size
        return self.pipe.vae.config.latent_channels, (side, side)

    def asked(self, steps: int, config, size) -> dict:
        sigmas = torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()
        return {**super().asked(steps, config, size), "sigmas": sigmas}

    def encode(self, prompts: str | Sequence[str]) -> Pooled:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        require_one_device(self.pipe)
        context, pooled, _ = self.pipe.encode_prompt(
            prompts, None, device=self.device,
            max_sequence_length=self.positions(),
        )  # fmt: skip
        return Pooled(context, pooled)

    def velocity(self, z: Tensor, time: Tensor, c: Pooled) -> Tensor:
        (B, C, H, W), pipe, f = z.shape, self.pipe, self.config.vae.factor
        guidance = None
        if pipe.transformer.config.guidance_embeds:
            guidance = torch.full([B], self.guidance, dtype=torch.float32, device=z.device)
        out = pipe.transformer(
            hidden_states=pipe._pack_latents(z, B, C, H, W), timestep=time.to(z.dtype) / 1000,
            guidance=guidance, pooled_projections=c.pooled, encoder_hidden_states=c.context,
            txt_ids=z.new_zeros(c.context.shape[1], 3),
            img_ids=pipe._prepare_latent_image_ids(B, H // 2, W // 2, z.device, z.dtype),
            return_dict=False,
        )[0]  # fmt: skip
        return pipe._unpack_latents(out, H * f, W * f, f)


class FromPixArt(FromTransformer):
    """PixArt-alpha and -sigma; the size is taken as it is, without the pipeline's bins."""

    def encode(self, prompts: str | Sequence[str]) -> Masked:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        require_one_device(self.pipe)
        can_clean = all(importlib.util.find_spec(x) for x in ("bs4", "ftfy"))  # else it only logs
        context, mask, _, _ = self.pipe.encode_prompt(
            prompts, False, device=self.device,
            clean_caption=can_clean and self.default("clean_caption"),
            max_sequence_length=self.positions(),
        )  # fmt: skip
        return Masked(context, mask)

    def eps(self, z_t: Tensor, t: int | Tensor, c: Masked) -> Tensor:
        """eps_theta(z_t; t, c): (B, C, H, W), () or (B,), Masked of B or 1 -> (B, C, H, W)."""
        (B, C, H, W), kind, config = z_t.shape, self.dtype, self.pipe.transformer.config
        t = torch.as_tensor(t, device=z_t.device)
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if config.sample_size == 128:
            sides = z_t.new_tensor([[H, W]], dtype=kind) * self.config.vae.factor
            added = {
                "resolution": sides.expand(B, 2),
                "aspect_ratio": sides.new_tensor([[H / W]] * B),
            }
        out = self.pipe.transformer(
            z_t.to(kind), encoder_hidden_states=c.context.to(kind).expand(B, -1, -1),
            encoder_attention_mask=c.mask.expand(B, -1), timestep=t.expand(B),
            added_cond_kwargs=added, return_dict=False,
        )[0].to(z_t.dtype)  # fmt: skip
        out = out[:, :C]  # the rest is the variance
        if self.config.prediction_type == "epsilon":
            return out
        return eps_from_v(z_t, out, self.schedule.level(t))

"""`dnp.from_diffusers` for SD3, Flux and PixArt: the latents of the pipelines' own guidance."""

import functools
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import dnp
from conftest import slow_but
from dnp import guidance, units
from dnp.diffusers.pipelines import DistilledNote
from dnp.errors import SettingsError, WeightsError
from dnp.methods.method import Method
from tiny_pipelines import build, flux

P, NEGATIVE, SIZE = "a red car and a cat", "a dog in the snow", (32, 48)
FLOWS = ["SD3", "Flux"]
KINDS = [*FLOWS, "PixArt-alpha", "PixArt-sigma"]
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def opened(name, **scheduler):
    """(pipeline, model, arguments of its call), texts of 20 tokens; PixArt with DDIM put in."""
    from diffusers import DDIMScheduler

    pipe, call = build(name)
    kind = type(pipe.scheduler)
    if name.startswith("PixArt"):
        kind = DDIMScheduler
        scheduler = {"steps_offset": 1, "clip_sample": False, **scheduler}
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **scheduler)
    model = dnp.from_diffusers(pipe)
    model.tokens = call["max_sequence_length"]
    return pipe, model, {k: v for k, v in call.items() if k not in ("height", "width")}


def own_latents(pipe, call, method, s, z_T, steps, negative=""):
    """What the pipeline's own guidance makes of z_T, (B, C, H, W)."""
    is_flux, (B, C, H, W) = type(pipe).__name__ == "FluxPipeline", z_T.shape
    f = pipe.vae_scale_factor
    prompt, n, w = (P, negative, s) if method != "dns" else ("", P, s + 1)
    words = {"prompt": [prompt] * B, "negative_prompt": [n] * B}
    z = pipe._pack_latents(z_T, B, C, H, W) if is_flux else z_T.clone()
    made = pipe(
        **words, **{"true_cfg_scale" if is_flux else "guidance_scale": w}, latents=z,
        num_inference_steps=steps, output_type="latent", height=H * f, width=W * f, **call,
    ).images  # fmt: skip
    return pipe._unpack_latents(made, H * f, W * f, f) if is_flux else made


def assert_same(ours, theirs):
    """To 1e-4 of the largest value."""
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize(
    "case",
    slow_but([("SD3", 9), ("Flux", 9), ("PixArt-alpha", 10)],
             [(name, steps) for name in KINDS for steps in (1, 9, 10, 28, 50)]),
)  # fmt: skip
def test_cfg_dns_and_np2_latents_are_the_pipelines_own(case):
    name, steps = case
    pipe, model, call = opened(name)
    for method, s in (("dns", 2.5), ("np2", 3.0), ("cfg", 4.5)):
        if method == "cfg":  # with texts as long as by default
            model.tokens = None
            del call["max_sequence_length"]
        n = NEGATIVE if method == "np2" else None
        made = dnp.generate(model, P, method, n, s=s, steps=steps, size=SIZE, seed=5, images=2)
        z_T, z_0 = made.latents
        theirs = own_latents(pipe, call, method, s, z_T, steps, n or "")
        assert_same(z_0, theirs)
        assert made.nfe == 2 * steps and len(made.images) == 2
        assert made.images[0].size == SIZE[::-1]


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(
    "scheduler",
    [DYNAMIC, {"shift": 1.0}, {"shift": 6.0}, {"use_karras_sigmas": True}, {"shift_terminal": 0.1}],
    ids=str,
)
def test_levels_are_the_schedulers_own_for_these_steps(name, scheduler):
    """A shift that depends on the size, and whatever else `set_timesteps` makes of them."""
    pipe, model, call = opened(name, **scheduler)
    for size in (SIZE, (64, 64)) if scheduler is DYNAMIC else (SIZE,):
        made = dnp.generate(model, P, "cfg", s=4.5, steps=5, size=size)
        z_T, z_0 = made.latents
        assert_same(z_0, own_latents(pipe, call, "cfg", 4.5, z_T, 5))
        tau = units.flow(model.at_steps(5, size).schedule.abar)[1].flip(0)
        assert_close(tau, pipe.scheduler.sigmas[:-1].double(), atol=1.1e-6, rtol=1e-6)
    if scheduler is DYNAMIC:
        shifts = {model.at_steps(5, x).schedule.abar[3].item() for x in (SIZE, (64, 64))}
        assert len(shifts) == 2


def test_a_scheduler_that_is_put_in_later_counts_at_the_next_call():
    pipe, model, call = opened("SD3")
    before = model.config.fingerprint
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=1.0)
    assert model.config.fingerprint not in (before, None)
    made = dnp.generate(model, P, s=3.0, steps=5, size=SIZE)
    assert_same(made.latents[1], own_latents(pipe, call, "cfg", 3.0, made.latents[0], 5))


def test_the_order_of_what_a_scheduler_was_not_told_leaves_the_fingerprint():
    """It is that of a set of words, which differs between processes."""
    pipe, model, _ = opened("Flux")
    name, words = model.config.fingerprint, pipe.scheduler.config["_use_default_values"]
    assert len(words) > 1
    pipe.scheduler.register_to_config(_use_default_values=words[::-1])
    assert model.config.fingerprint == name


@pytest.mark.parametrize("name", KINDS)
def test_a_hook_on_the_denoiser_sees_the_rule(name):
    """eps of each row is phi + s (phi - p) of what the network returned for phi and p."""
    pipe, model, _ = opened(name)
    seen = []

    def record(module, args, named, out):
        seen.append((named.get("timestep"), out[0].clone()))

    hook = pipe.transformer.register_forward_hook(record, with_kwargs=True)
    rows = list(dnp.trajectory(model, P, "dns", s=2.5, steps=4, size=SIZE, images=2))
    hook.remove()
    assert len(seen) == 4 and [row[0] for row in rows][-1] == -1
    on = model.at_steps(4, SIZE) if name in FLOWS else model
    for (t, z_t, _, eps), (time, out) in zip(rows, seen):
        if name == "Flux":
            f = pipe.vae_scale_factor
            out = pipe._unpack_latents(out, SIZE[0], SIZE[1], f)
        out = out[:, : z_t.shape[1]].to(z_t.dtype)
        guided = guidance.dns(*out.chunk(2), 2.5)
        if name in FLOWS:
            alpha, sigma = units.flow(on.schedule.level(t))
            z = (alpha**2 + sigma**2).sqrt() * z_t
            guided = units.eps_from_flow(z, guided, alpha, sigma)
        assert_close(eps, guided, atol=1e-5, rtol=1e-4)
        assert time.shape == (4,)
    if name in FLOWS:  # the network is told 1 itself, and the chain is wide
        assert seen[0][0][0] == (1000 if name == "SD3" else 1)
        assert rows[0][1].dtype == torch.float64


@functools.cache
def with_cfg(name):
    """(a model that no test changes, what CFG makes with it)"""
    _, model, _ = opened(name)
    return model, dnp.generate(model, P, s=3.0, steps=4, size=SIZE, images=2, seed=3)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("answer", {"K": 2}),
        ("cfg", {"rule": "apg"}),
        ("cfg", {"rule": "cfg_zero_star", "sampler": "dpmpp2m"}),
        ("np", {"rule": "perp_neg", "negative": NEGATIVE}),
        ("np", {"negative": NEGATIVE, "interval": (0.3, 5.0), "eta": 1.0}),
    ],
    ids=str,
)
def test_every_rule_and_answer_run_and_a_picture_does_not_depend_on_its_batch(name, method, more):
    model, plain = with_cfg(name)
    kw = dict(s=3.0, steps=4, size=SIZE, **more)
    two = dnp.generate(model, P, method, images=2, seed=3, **kw)
    one = dnp.generate(model, P, method, seed=4, **kw)
    assert torch.isfinite(two.latents[1]).all()
    assert_same(two.latents[1][1:], one.latents[1])
    assert not torch.equal(two.latents[1], plain.latents[1])


@pytest.mark.parametrize("name", FLOWS)
def test_half_precision_and_pictures_by_the_vaes_own_scale_and_shift(name):
    pipe, model, _ = opened(name)
    pipe.to(torch.bfloat16)
    made = dnp.generate(model, P, s=3.0, steps=4, size=SIZE)
    assert made.settings["dtype"] == "bfloat16" and torch.isfinite(made.latents[1]).all()
    pipe.to(torch.float32)
    made = dnp.generate(model, P, s=3.0, steps=4, size=SIZE)
    config, z_0 = pipe.vae.config, made.latents[1]
    x = pipe.vae.decode(z_0 / config.scaling_factor + config.shift_factor, return_dict=False)[0]
    theirs = pipe.image_processor.postprocess(x.detach(), output_type="np")[0]
    ours = np.asarray(made.images[0]) / 255
    assert abs(ours - theirs).max() < 1.01 / 255
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    x = torch.from_numpy(pixels / 127.5 - 1).float().permute(2, 0, 1)[None]
    mean = pipe.vae.encode(x).latent_dist.mean
    back = model.encode_images([Image.fromarray(pixels)])
    assert_close(back, (mean - config.shift_factor) * config.scaling_factor, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_the_fingerprint_sees_weights_hooks_and_loras(name):
    pipe, model, _ = opened(name)
    first = model.config.fingerprint
    assert first == model.config.fingerprint == opened(name)[1].config.fingerprint
    names = {first}
    with torch.no_grad():
        next(pipe.transformer.parameters()).add_(0.01)
    names.add(model.config.fingerprint)
    hook = pipe.transformer.register_forward_hook(lambda m, a, out: (1.01 * out[0],))
    names.add(model.config.fingerprint)
    hook.remove()
    text = pipe.text_encoder_3 if name == "SD3" else pipe.text_encoder
    with torch.no_grad():
        next(text.parameters()).mul_(1.01)
    names.add(model.config.fingerprint)
    assert len(names) == 4 and all(x.startswith("pipeline-") for x in names)


def test_guidance_inside_of_flux_is_the_pipelines_own_and_noted():
    torch.manual_seed(0)
    pipe = flux(guidance_embeds=True)
    with pytest.warns(DistilledNote, match="may ignore negatives"):
        model = dnp.from_diffusers(pipe)
    made = dnp.generate(model, P, s=3.0, steps=3, size=SIZE)
    z_T, z_0 = made.latents
    assert_same(z_0, own_latents(pipe, {}, "cfg", 3.0, z_T, 3))
    before = model.config.fingerprint
    model.guidance = 1.0
    assert model.config.fingerprint != before
    other = dnp.generate(model, P, s=3.0, steps=3, size=SIZE)
    assert_same(other.latents[1], own_latents(pipe, {"guidance_scale": 1.0}, "cfg", 3.0, z_T, 3))
    assert not torch.equal(other.latents[1], z_0)


def test_what_cannot_be_is_one_sentence():
    pipe, model, _ = opened("SD3")
    with pytest.raises(SettingsError, match="both sides must be multiples of 4"):
        dnp.generate(model, P, steps=2, size=(34, 32))
    for method in ("ae", "neglect"):
        with pytest.raises(SettingsError, match="reads a network's attention, and this model has"):
            dnp.generate(model, P, method, steps=2, size=SIZE, subjects="car, cat")
    from diffusers import FlowMatchHeunDiscreteScheduler

    euler = pipe.scheduler
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(WeightsError, match="is FlowMatchHeunDiscreteScheduler, whose levels"):
        dnp.from_diffusers(pipe)
    pipe.scheduler = type(euler).from_config(euler.config, stochastic_sampling=True)
    with pytest.raises(WeightsError, match="with stochastic_sampling, whose"):
        dnp.generate(model, P, steps=2, size=SIZE)
    pipe.scheduler = euler
    pipe.transformer.register_to_config(in_channels=9)
    with pytest.raises(WeightsError, match="takes 9 channels and the VAE has 4"):
        dnp.from_diffusers(pipe)
    pixart, _, _ = opened("PixArt-alpha")
    pixart.text_encoder = None
    with pytest.raises(WeightsError, match="no text encoder"):
        dnp.from_diffusers(pixart)

    class SanaPipeline:
        """Not known."""

    with pytest.raises(SettingsError, match="not SanaPipeline: what its denoiser takes and"):
        dnp.from_diffusers(SanaPipeline())


def test_a_method_of_ones_own_runs_on_a_flow():
    class Half(Method):
        """phi + s (p - n), n: half of p"""

        name, own_rule, has_negative = "half", "negative_prompt", True

        def negative(self, z_t, t, eps_phi, eps_p):
            assert self.schedule.sigma_ve(int(t)) > 0 and int(t) < len(self.pairs)
            return eps_p / 2

    _, model, _ = opened("SD3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one step starts where it should: no note
        made = dnp.generate(model, P, Half, s=2.0, steps=1, size=SIZE)
    assert torch.isfinite(made.latents[1]).all()

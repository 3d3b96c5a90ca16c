"""The networks against diffusers and transformers, with the same random weights."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

import dnp
from conftest import MINI, agrees_with_pipeline, exact_tables, make_pipeline
from dnp.sd import speed
from dnp.sd.clip import CLIPTextModel
from dnp.sd.config import TextConfig, UNetConfig, VAEConfig
from dnp.sd.speed import ONEDNN, Linear
from dnp.sd.unet import UNet
from dnp.sd.vae import VAE
from single_files import opened

PROMPT, NEGATIVE = "a red car and a cat", "a dog in the snow"


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_single_forwards_agree(oracle, dtype, tolerance):
    pipeline, folder = oracle
    model = dnp.load(folder, dtype=dtype)
    close = {"atol": tolerance, "rtol": tolerance}
    parts = {n: getattr(pipeline, n) for n in ("text_encoder", "unet", "vae")}
    old = {n: part.dtype for n, part in parts.items()}
    try:
        for part in parts.values():
            part.to(dtype)
        prompts = [PROMPT, "", "glasses"]
        ids = pipeline.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
        context = model.encode(prompts)
        assert_close(context, parts["text_encoder"](ids).last_hidden_state, **close)

        channels, n, factor = model.config.unet.in_channels, 12, model.config.vae.factor
        z = randn(3, channels, n, n).to(dtype)
        for t in (torch.tensor(0), torch.tensor(999), torch.tensor([3, 500, 981])):
            rows = slice(max(1, t.numel()))
            want = parts["unet"](z[rows], t, context[rows]).sample
            assert_close(model.unet(z[rows], t, context[rows]), want, **close)

        want = parts["vae"].decode(z[:2]).sample
        assert_close(model.vae.decode(z[:2]), want, **close)
        x = randn(2, 3, n * factor, n * factor).to(dtype)
        posterior = parts["vae"].encode(x).latent_dist
        mean, logvar = model.vae.encode(x)
        assert_close(mean, posterior.mean, **close)
        assert_close(logvar, posterior.logvar, **close)
    finally:
        for name, part in parts.items():
            part.to(old[name])


def test_the_vae_rounds_as_diffusers_does_but_for_its_layout(oracle):
    """Against float64: the same error in the same layout; in the faster one less than 2e-5."""
    pipeline, folder = oracle
    model, z = dnp.load(folder), randn(1, 4, 12, 12)
    theirs = pipeline.vae.decode(z).sample.double()
    exact = pipeline.vae.double().decode(z.double()).sample
    pipeline.vae.float()
    scale = exact.abs().max()

    def error(x):
        return (x - exact).abs().max() / scale

    assert error(model.vae.decode(z).double()) < 2e-5
    for p in model.vae.parameters():
        p.data = p.data.contiguous()
    assert error(model.vae.decode(z).double()) < 1.5 * error(theirs)


def test_unet_takes_odd_sizes(oracle):
    """A latent that the levels cannot halve evenly is upsampled to its skips' sizes."""
    pipeline, folder = oracle
    model, z = opened(folder), randn(1, 4, 13, 10)
    context = model.encode(PROMPT)
    want = pipeline.unet(z, 500, context).sample
    assert_close(model.unet(z, torch.tensor(500), context), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["cfg", "np2", "dns"])
def test_complete_run_agrees(oracle, method):
    """Five steps. DNS at s is the pipeline with an empty prompt, negative p, guidance s + 1.

    Not seed 4: there the miniature's chain stands at a fork, and 1e-6 in z_T becomes 5e-3 in z_0.
    """
    pipeline, folder = oracle
    model, s = opened(folder), 2.5
    exact_tables(pipeline, model)
    negative = NEGATIVE if method == "np2" else None
    how = dict(s=s, steps=5, seed=5, images=2, size=(8 * model.config.vae.factor,) * 2)
    ours = dnp.generate(model, PROMPT, method, negative, **how)
    agrees_with_pipeline(pipeline, ours, PROMPT, NEGATIVE, s)


def test_complete_run_with_eta_agrees(oracle):
    """eta = 1, the oracle fed the same noise through its variance_noise."""
    pipeline, folder = oracle
    model = opened(folder)
    exact_tables(pipeline, model)
    scheduler, size = pipeline.scheduler, (8 * model.config.vae.factor,) * 2
    scheduler.set_timesteps(5)
    ours = dnp.generate(model, PROMPT, s=2.0, steps=5, seed=5, eta=1.0, size=size)
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(ours.latents[0].shape[1:], generator=generator)[None]
    context = model.encode(["", PROMPT])
    for t in scheduler.timesteps:
        out = pipeline.unet(z.repeat(2, 1, 1, 1), t, context).sample
        guided = out[:1] + 2.0 * (out[1:] - out[:1])
        noise = torch.randn(z.shape[1:], generator=generator)[None]
        z = scheduler.step(guided, t, z, eta=1.0, variance_noise=noise).prev_sample
    assert_close(ours.latents[1], z, atol=1e-4, rtol=1e-4)


def norms(network):
    kinds = (nn.GroupNorm, nn.LayerNorm)
    return {k: m.eps for k, m in network.named_modules() if isinstance(m, kinds)}


def test_norm_epsilons_and_parameter_counts_agree(oracle):
    pipeline, folder = oracle
    model = opened(folder)
    for part in ("text_encoder", "unet", "vae"):
        ours, theirs = getattr(model, part), getattr(pipeline, part)
        strip = {k.removeprefix("text_model."): eps for k, eps in norms(theirs).items()}
        assert norms(ours) == strip and len(strip) > 4
        count = [sum(p.numel() for p in n.parameters()) for n in (ours, theirs)]
        assert count[0] == count[1]


def test_stable_diffusion_1_has_its_published_size_and_epsilons():
    with torch.device("meta"):
        text, unet, vae = CLIPTextModel(TextConfig()), UNet(UNetConfig()), VAE(VAEConfig())

    def size(*networks):
        return sum(p.numel() for n in networks for p in n.parameters())

    assert size(text) == 123_060_480
    assert size(unet) == 859_520_964
    assert size(vae.decoder, vae.post_quant_conv) == 49_490_199
    group = {k: e for k, e in norms(unet).items() if "transformer_blocks" not in k}
    assert sorted(group.values()) == [1e-6] * 16 + [1e-5] * 45
    assert all((e == 1e-6) == (".attentions." in k) for k, e in group.items())
    assert list(norms(vae).values()) == [1e-6] * 52
    assert len(norms(vae.decoder)) == 30
    assert set(norms(text).values()) == {1e-5}


# -------------------------------------------------------------------- Stable Diffusion 1.5's size


@pytest.mark.slow
def test_full_size_agrees(tmp_path):
    """Text pass, U-Net forward and VAE decode at 32x32 latents, and a 2-step CFG run, float32."""
    pipeline = make_pipeline(
        unet=dict(cross_attention_dim=768, sample_size=64),
        vae=dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2),
        text=dict(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            vocab_size=49408,
        ),
        scheduler={},
        length=77,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    model = dnp.load(tmp_path)
    assert sum(p.numel() for p in model.unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in model.text_encoder.parameters()) == 123_060_480
    exact_tables(pipeline, model)
    close = {"atol": 1e-4, "rtol": 1e-4}
    with torch.inference_mode():
        ids = pipeline.tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
        context = model.encode(PROMPT)
        assert_close(context, pipeline.text_encoder(ids).last_hidden_state, **close)
        z, t = randn(1, 4, 32, 32), torch.tensor(500)
        want = pipeline.unet(z, t, context).sample
        assert_close(model.unet(z, t, context), want, **close)
        assert_close(model.vae.decode(z), pipeline.vae.decode(z).sample, **close)
    ours = dnp.generate(model, PROMPT, s=7.5, steps=2, seed=1, size=(256, 256))
    want = pipeline(
        PROMPT,
        num_inference_steps=2,
        guidance_scale=7.5,
        latents=ours.latents[0].clone(),
        output_type="latent",
    ).images
    assert_close(ours.latents[1], want, **close)


def test_the_miniature_opens_in_diffusers_from_its_folder():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(MINI)
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    scheduler = pipeline.scheduler.config
    assert (scheduler.clip_sample, scheduler.set_alpha_to_one) == (False, False)
    assert (scheduler.steps_offset, scheduler.timestep_spacing) == (1, "leading")
    assert scheduler.prediction_type == "epsilon"


def test_a_linear_layer_is_one_with_and_without_gradients():
    layer, x = Linear(96, 40), torch.randn(2, 5, 96)
    want = torch.nn.functional.linear(x, layer.weight, layer.bias)
    with torch.no_grad():
        assert_close(layer(x), want, atol=1e-6, rtol=1e-5)
        assert_close(layer(x.transpose(0, 1)), want.transpose(0, 1), atol=1e-6, rtol=1e-5)
    assert_close(layer(x), want, atol=0, rtol=0)  # torch's own, which has a gradient
    (gradient,) = torch.autograd.grad(layer(x).sum(), layer.weight)
    assert_close(gradient, x.sum((0, 1)).expand(40, 96))
    layer, x = layer.double().requires_grad_(False), x.double()
    assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias), atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of torch.jit
def test_a_linear_layer_has_every_derivative():
    x, v = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    layer = Linear(12, 7).requires_grad_(False)
    for guard in (torch.enable_grad, torch.no_grad):
        with guard():
            assert_close(torch.func.jvp(layer, (x,), (v,))[1], v @ layer.weight.T)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        y = layer(torch.autograd.forward_ad.make_dual(x, v))
        assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, v @ layer.weight.T)
    layer.bias.requires_grad_(True)
    layer(x).sum().backward()
    assert_close(layer.bias.grad, torch.full((7,), 10.0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, which people still use
def test_a_linear_layer_reads_a_bias_of_any_strides():
    layer, x = Linear(12, 7).requires_grad_(False), torch.randn(3, 12)
    for bias in (torch.randn(14)[::2], torch.randn(1).expand(7)):
        layer.bias.data = bias
        with torch.no_grad():
            assert_close(layer(x), x @ layer.weight.T + bias)
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.randn(3, 11))
    traced = torch.jit.trace(layer, x)
    assert_close(traced(x), layer(x))


@pytest.mark.skipif(not ONEDNN, reason="torch is built without oneDNN")
@pytest.mark.parametrize("few", [0, 2**40])
def test_on_a_cpu_the_unets_large_products_are_onednns(tiny, few, monkeypatch):
    from torch.profiler import profile

    monkeypatch.setattr(speed, "FEW", few)
    model = dnp.load(tiny)
    speed.apply(model)
    unet = model.unet
    width = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.in_features
    with torch.no_grad(), profile() as p:
        unet(torch.randn(1, 4, 8, 8), torch.tensor(500), torch.randn(1, 77, width))
    own = {"aten::addmm", "aten::mm"} & {event.name for event in p.events()}
    assert bool(own) == bool(few)


def test_the_speed_measures_step_aside_where_a_derivative_is_asked_for(tiny, monkeypatch):
    monkeypatch.setattr(speed, "FEW", 0)
    plain, fast = dnp.load(tiny), dnp.load(tiny)
    measures = speed.apply(fast)
    assert speed.apply(fast) == measures  # a second time nothing changes
    z, v, c = randn(2, 4, 12, 8), randn(2, 4, 12, 8), plain.encode("a cat")

    def derivatives(model):
        def eps(z):
            return model.eps(z, 500, c)

        z_t = z.clone().requires_grad_()
        (backward,) = torch.autograd.grad(eps(z_t).square().sum(), z_t)
        math = sdpa_kernel(SDPBackend.MATH)  # torch's other kernel has no forward derivative
        with torch.no_grad(), math:
            forward = torch.func.jvp(eps, (z,), (v,))[1]
            each = torch.func.vmap(lambda z: eps(z[None])[0])(z)
        return backward, forward, each

    for ours, theirs in zip(derivatives(fast), derivatives(plain)):
        assert ours.abs().max() > 0
        assert_close(ours, theirs, atol=0, rtol=0)

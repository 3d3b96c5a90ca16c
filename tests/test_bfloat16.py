"""bfloat16 on a CPU: where it is allowed, what stays in float32, how far its numbers are off."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

import dnp
from command_line import refused
from conftest import MINI
from dnp.app.png import read_settings, save
from dnp.errors import SettingsError
from dnp.sd import device, speed
from dnp.sd.device import choose_dtype

CPU = torch.device("cpu")
units = pytest.mark.skipif(not device.has_bf16_units(), reason="a processor without bf16 units")


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", None])
def test_bfloat16_needs_a_processor_with_its_units(monkeypatch, flag):
    flags = frozenset({"avx2", "avx512f", flag} - {None})
    monkeypatch.setattr(device, "cpu_flags", lambda: flags)
    assert choose_dtype("auto", CPU) == torch.float32
    with pytest.raises(SettingsError, match="float16 is slow and inexact on a CPU"):
        choose_dtype("float16", CPU)
    if flag:
        assert choose_dtype("bfloat16", CPU) == torch.bfloat16
        return
    with pytest.raises(SettingsError, match="takes 2 to 3 times as long"):
        choose_dtype("bfloat16", CPU)


def test_the_commands_line_says_how_to_get_it_where_it_can_be_had(monkeypatch, tiny):
    model = dnp.load(tiny)
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset({"amx_bf16"}))
    told = r"speed: a; b\. With --dtype bfloat16 a matrix product is (\d+\.\d) times as fast"
    assert float(re.fullmatch(told, speed.line(["a", "b"], model))[1]) > 0
    assert "bfloat16" not in speed.line([], dnp.load(tiny, dtype=torch.bfloat16))
    monkeypatch.setattr(device, "cpu_flags", frozenset)
    assert "bfloat16" not in speed.line([], model)


def test_guidance_and_sampler_work_in_float32(tiny):
    model = dnp.load(tiny, dtype=torch.bfloat16)
    networks = model.unet, model.text_encoder, model.vae.encoder, model.vae.decoder.conv_out
    kinds = [{p.dtype for p in n.parameters()} for n in networks]
    assert kinds == [{torch.bfloat16}, *[{torch.float32}] * 3]
    seen = []

    def rule(*, eps_phi, eps_p, z_t, s=1.0):
        seen.append({x.dtype for x in (eps_phi, eps_p, z_t)})
        return eps_phi + s * (eps_p - eps_phi)

    result = dnp.generate(model, "a cat", rule=rule, s=7.5, steps=2)
    assert seen == [{torch.float32}] * 2
    z_0 = result.latents[1]
    assert not z_0.bfloat16().float().equal(z_0)  # nothing rounded what the sampler made
    assert result.settings["dtype"] == "bfloat16"


def test_the_decoder_is_in_bfloat16_too_where_the_processor_has_the_units(monkeypatch, tiny):
    for flags, asked, kind in (
        ({"amx_bf16"}, None, torch.bfloat16),
        ({"amx_bf16"}, torch.float32, torch.float32),
        (set(), None, torch.float32),
        (set(), torch.bfloat16, torch.bfloat16),
    ):
        monkeypatch.setattr(device, "cpu_flags", lambda flags=flags: frozenset(flags))
        model = dnp.load(tiny, dtype=torch.bfloat16, vae_dtype=asked)
        parts = {n: {p.dtype for p in part.parameters()}
                 for n, part in model.vae.decoder.named_children()}  # fmt: skip
        assert parts.pop("conv_out") == {torch.float32}
        assert set.union(*parts.values()) == {kind} == {model.vae_dtype}
        made = dnp.generate(model, "a cat", steps=1)
        assert made.settings["vae_dtype"] == str(kind).removeprefix("torch.")
        assert model.encode_images(made.images).dtype == torch.float32
    assert dnp.load(tiny).vae_dtype == torch.float32
    with pytest.raises(SettingsError, match=r"give torch\.float32 or"):
        dnp.load(tiny, vae_dtype=torch.float16)


@units
def test_from_makes_a_picture_again_and_one_from_before_with_a_float32_decoder(cli, tmp_path):
    _, (png,), _, _ = cli("a cat", "--steps", 2, "--dtype", "bfloat16")
    told = read_settings(png)
    assert (told["dtype"], told["vae_dtype"]) == ("bfloat16", "bfloat16")
    assert cli("--from", png, "--out", "again")[0] == 0
    assert Path("again", png.name).read_bytes() == png.read_bytes()
    old = {k: v for k, v in told.items() if k not in ("vae_dtype", "batch")}
    before = save(Image.open(png), tmp_path, "before", old)
    assert cli("--from", before, "--out", "wide")[0] == 0
    wide = Path("wide", png.name)
    assert read_settings(wide) == told | {"vae_dtype": "float32"}
    a, b = (np.asarray(Image.open(path), float) for path in (png, wide))
    assert 0 < np.abs(a - b).mean() < 3
    assert cli("--from", before, "--dtype", "float32", "--out", "full")[0] == 0
    assert read_settings(Path("full", png.name))["vae_dtype"] == "float32"
    refused(cli("a cat", "--vae-dtype", "float16"), "choose auto, float32, float64 or bfloat16")


@units
def test_the_error_of_eps_and_of_a_picture_on_the_miniature():
    exact, half = dnp.load(MINI), dnp.load(MINI, dtype=torch.bfloat16)
    z, c = torch.randn(2, *exact.latent_shape()), exact.encode(["a red car", "a cat"])
    with torch.no_grad():
        want, plain = exact.eps(z, 500, c), half.eps(z, 500, c)
        speed.apply(half)
        fast = half.eps(z, 500, c)
    for got in (plain, fast):
        assert 1e-5 < (got - want).norm() / want.norm() < 0.05
    made = [dnp.generate(m, "a red car", s=4, steps=10).images[0] for m in (exact, half)]
    a, b = (torch.frombuffer(bytearray(x.tobytes()), dtype=torch.uint8).float() for x in made)
    assert (a - b).abs().mean() < 12  # of 255


KINDS = [torch.float32, pytest.param(torch.bfloat16, marks=units)]


@pytest.mark.skipif(not speed.ONEDNN, reason="torch is built without oneDNN")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("side", "stride"), [((4, 4), 1), ((3, 5), 1), ((5, 7), 2), ((4, 6), 2)])
def test_a_small_convolution_as_a_product_is_the_convolution(kind, side, stride):
    fast = speed.Conv2d(340, 344, 3, padding=1, stride=stride).requires_grad_(False)
    plain = nn.Conv2d(340, 344, 3, padding=1, stride=stride).double().requires_grad_(False)
    assert fast.weight.numel() >= speed.MANY
    x = torch.randn(2, 340, *side).to(kind)
    fast.to(kind)
    plain.load_state_dict(fast.state_dict())
    with torch.no_grad():
        assert fast._small(x) and not fast._small(torch.randn(2, 340, 40, 40))
        got, want = fast(x), plain(x.double())
    assert got.shape == want.shape and got.dtype == kind
    bound = 1e-5 if kind == torch.float32 else 1e-2
    assert_close(got.double(), want, rtol=bound, atol=bound)
    derived = x.clone().requires_grad_()
    fast(derived).sum().backward()  # torch's own, which has a derivative
    assert derived.grad.abs().sum() > 0

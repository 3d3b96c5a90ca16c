"""bfloat16 on a CPU: where it is allowed, what stays in float32, how far its numbers are off."""

import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import dnp
from conftest import MINI
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
    networks = model.unet, model.text_encoder, model.vae
    kinds = [{p.dtype for p in n.parameters()} for n in networks]
    assert kinds == [{torch.bfloat16}, {torch.float32}, {torch.float32}]
    seen = []

    def rule(*, eps_phi, eps_p, z_t, s=1.0):
        seen.append({x.dtype for x in (eps_phi, eps_p, z_t)})
        return eps_phi + s * (eps_p - eps_phi)

    result = dnp.generate(model, "a cat", rule=rule, s=7.5, steps=2)
    assert seen == [{torch.float32}] * 2
    z_0 = result.latents[1]
    assert not z_0.bfloat16().float().equal(z_0)  # nothing rounded what the sampler made
    assert result.settings["dtype"] == "bfloat16"


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

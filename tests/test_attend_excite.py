"""The equations of Attend-and-Excite, and the recorder of attention maps."""

import math

import pytest
import torch
from torch.testing import assert_close

import dnp
from conftest import MINI
from dnp import attend_excite as ae
from dnp.errors import SettingsError
from dnp.sd.attention import AttentionMaps


def test_the_kernel_is_the_published_one():
    e = math.exp(-1)
    total = (1 + 2 * e) ** 2
    want = torch.tensor([[e * e, e, e * e], [e, 1, e], [e * e, e, e * e]]).double() / total
    assert_close(ae.kernel(torch.float64), want)


def test_the_loss_of_hand_made_maps():
    maps = torch.zeros(1, 16, 2, dtype=torch.float64)
    maps[0, 5, 0] = 1.0  # one place inside
    maps[0, 0, 1] = 1.0  # a corner: reflect pad does not repeat it
    peak = ae.peaks(maps, [0, 1], (4, 4))
    centre = ae.kernel(torch.float64)[1, 1]
    assert_close(peak[0], torch.stack([centre, centre]))
    assert_close(ae.loss(torch.tensor([[0.2, 0.7], [1.5, 1.0]])), torch.tensor([0.8, 0.0]))
    words = ae.over_words(torch.full((1, 4, 7), 0.1), 3)
    assert_close(words, torch.full((1, 4, 3), 1 / 3))
    assert ae.step_size(0, 50) == 20 and abs(ae.step_size(49, 50) - 20 * 0.5**0.5) < 1e-12


@pytest.fixture(scope="module")
def model():
    return dnp.load(MINI, dtype=torch.float64)


def value(model, level=1):
    c, n = model.encode("a cat and a dog"), 16 // 2**level

    def of(z):
        with AttentionMaps(model.unet, level) as maps:
            model.eps(z, 700, c)
        return ae.loss(ae.peaks(ae.over_words(maps.mean(), 5), [1, 4], (n, n)))

    return of


def test_forwards_are_bit_equal_with_the_recorder_off_and_on(model):
    z = torch.randn(1, 4, 16, 16, dtype=torch.float64)
    c = model.encode("a cat")
    with torch.no_grad():
        off = model.eps(z, 500, c)
        with AttentionMaps(model.unet, 1) as maps:
            on = model.eps(z, 500, c)
        again = model.eps(z, 500, c)
    assert torch.equal(off, on) and torch.equal(off, again)
    found = maps.mean()
    assert_close(found.sum(-1), torch.ones(1, 64, dtype=torch.float64))
    assert maps.maps == [] and not any(layer._forward_hooks for layer in maps.layers)


def test_the_gradient_agrees_with_finite_differences_and_lowers_the_loss(model):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(1, 4, 16, 16, generator=g, dtype=torch.float64)
    way = torch.randn(z.shape, generator=g, dtype=torch.float64)
    of = value(model)
    with torch.no_grad():
        before, grad = ae.gradient(of, z)
        h = 1e-6
        want = (of(z + h * way) - of(z - h * way)) / (2 * h)
        assert_close((grad * way).sum()[None], want, rtol=1e-4, atol=1e-7)
        assert of(ae.excite(z, grad, 0.01)) < before


def test_a_level_without_attention_is_refused(model):
    with pytest.raises(SettingsError, match="choose 0 to 2"):
        AttentionMaps(model.unet, 3)

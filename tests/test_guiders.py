"""Our rules as guiders of diffusers, in a tiny modular pipeline of SDXL."""

import pytest
import torch
from torch.testing import assert_close

import dnp
from dnp.errors import SettingsError
from tiny_pipelines import build

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


@pytest.fixture(scope="module")
def draw():
    """A guider -> the latents of one prompt under it."""
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

    old, _ = build("SDXL")
    pipe = StableDiffusionXLAutoBlocks().init_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.update_components(**{name: getattr(old, name) for name in PARTS})

    def drawn(guider, steps=4, **call):
        pipe.update_components(guider=guider)
        return pipe(
            prompt="a red car", num_inference_steps=steps, height=32, width=32,
            generator=torch.Generator().manual_seed(0), output_type="latent", output="images",
            **call,
        )  # fmt: skip

    return drawn


def theirs(s, **kw):
    from diffusers.guiders import ClassifierFreeGuidance

    return ClassifierFreeGuidance(guidance_scale=s, **kw)


def test_cfg_and_dns_are_theirs_at_s_and_at_minus_s(draw):
    same = {"atol": 1e-4, "rtol": 1e-4}
    assert_close(draw(dnp.diffusers.guider("cfg", s=3.0)), draw(theirs(3.0)), **same)
    assert_close(draw(dnp.diffusers.guider("dns", s=2.0)), draw(theirs(-2.0)), **same)
    assert_close(draw(dnp.diffusers.guider("cfg", s=1.0)), draw(theirs(1.0)), **same)
    other = dict(negative_prompt="a dog")
    n = draw(dnp.diffusers.guider("cfg", s=3.0), **other)
    assert_close(n, draw(theirs(3.0), **other), **same)
    assert not torch.allclose(n, draw(theirs(3.0)), **same)


def test_dns_at_1_is_guided_too_where_theirs_is_off(draw):
    assert_close(draw(dnp.diffusers.guider("dns", s=1.0)), draw(theirs(-1.0)), atol=1e-4, rtol=1e-4)


def test_a_rule_of_ones_own_with_options_and_a_share_of_the_steps(draw):
    seen = []

    def half(eps_phi, eps_p, s, r=0.5):
        seen.append(eps_p.shape)
        return eps_phi + r * s * (eps_p - eps_phi)

    same = {"atol": 1e-4, "rtol": 1e-4}
    assert_close(draw(dnp.diffusers.guider(half, s=6.0)), draw(theirs(3.0)), **same)
    assert len(seen) == 4
    early = dnp.diffusers.guider(half, s=6.0, stop=0.5, r=0.25)
    assert_close(draw(early), draw(theirs(1.5, stop=0.5)), **same)
    assert len(seen) == 6
    assert draw(dnp.diffusers.guider("cfg_zero_star", s=3.0)).isfinite().all()


def test_a_rule_that_reads_t_gets_the_pipelines_timestep(draw):
    same, cut = {"atol": 1e-4, "rtol": 1e-4}, dict(levels=(999, 500), scales=(3.0, 0.0))
    early = draw(dnp.diffusers.guider("cfg_schedule", **cut))
    assert_close(
        draw(dnp.diffusers.guider("cfg_schedule", scales=(3.0,))), draw(theirs(3.0)), **same
    )

    def by_hand(eps_phi, eps_p, t):
        return eps_phi + (3.0 if t > 500 else 0.0) * (eps_p - eps_phi)

    assert_close(early, draw(dnp.diffusers.guider(by_hand)), **same)
    assert not torch.allclose(early, draw(theirs(3.0)), atol=1e-3)


def test_a_rule_that_remembers_is_begun_anew_for_each_picture(draw):
    class Fading:
        """Half the push of the call before it."""

        def reset(self, z_T):
            self.share = 2.0

        def __call__(self, eps_phi, eps_p, s):
            self.share /= 2
            return eps_phi + self.share * s * (eps_p - eps_phi)

    guider = dnp.diffusers.guider(Fading, s=3.0)
    first = draw(guider)
    assert torch.equal(first, draw(guider))
    assert not torch.allclose(first, draw(theirs(3.0)), atol=1e-3)


@pytest.mark.parametrize(
    ("rule", "more", "told"),
    [
        ("perp_neg", {}, "rule perp_neg needs eps_n, and a guider gets only two predictions"),
        ("apg", {}, "rule apg needs z_t, sigma_t, observe, which a guider does not get"),
        ("cfgg", {}, "did you mean cfg"),
        ("cfg", {"w": 2}, "does not have the option 'w'"),
        ("cfg", {"s": "3"}, "s = '3' is not possible"),
    ],
)
def test_what_a_guider_cannot_have_is_one_sentence(rule, more, told):
    with pytest.raises(SettingsError, match=told):
        dnp.diffusers.guider(rule, **more)

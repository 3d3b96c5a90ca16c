"""DNS and auto-DNP through the own calls of tiny random pipelines: what the scheduler gets."""

import warnings

import pytest
import torch
from torch.testing import assert_close

from dnp.diffusers import pipelines
from dnp.errors import SettingsError
from tiny_pipelines import BUILD, build, flux

P, S = "a red car and a cat", 2.5


@pytest.fixture(scope="module", params=[*BUILD])
def built(request):
    return build(request.param)


@pytest.fixture(scope="module")
def plain():
    """One that a test may call, and leaves as it is."""
    return build("1.x")


class Recorder:
    """Records what the denoiser returns, by call, and what the scheduler gets and from where."""

    def __init__(self, pipe):
        self.pipe, self.outputs, self.got, self.z = pipe, [], [], []

    def __enter__(self):
        denoiser = self.pipe.transformer if hasattr(self.pipe, "transformer") else self.pipe.unet
        self.hook = denoiser.register_forward_hook(lambda m, a, out: self.outputs.append(out[0]))
        step = self.pipe.scheduler.step
        self.step = step

        def recording(output, t, sample, *args, **kw):
            self.got.append(output.clone())
            self.z.append(sample.clone())
            return step(output, t, sample, *args, **kw)

        self.pipe.scheduler.step = recording
        return self

    def __exit__(self, *_):
        self.hook.remove()
        del self.pipe.scheduler.step

    def halves(self):
        """(of the negative, of the prompt) at each step, without PixArt's learned variance."""
        if len(self.outputs) == len(self.got):
            pairs = [out.chunk(2) for out in self.outputs]
        else:  # Flux evaluates the prompt, then the negative
            pairs = list(zip(self.outputs[1::2], self.outputs[::2]))
        return [[x[:, : self.got[0].shape[1]] for x in pair] for pair in pairs]


def start():
    return torch.Generator().manual_seed(3)


def first_of(pipe, prompt, call):
    """What the network predicts for a prompt at z_T, by the pipeline without guidance."""
    scale = pipelines.FAMILIES[type(pipe).__name__].scale
    with Recorder(pipe) as seen:
        pipe(prompt=prompt, generator=start(), num_inference_steps=3, output_type="latent",
             **{scale: 1.0}, **call)  # fmt: skip
    assert len(seen.outputs) == len(seen.got)  # one evaluation a step
    return seen.z[0], seen.got[0]


def test_the_scheduler_gets_dns(built):
    """phi + s (phi - p): at z_T of phi and p evaluated alone, and of each step's evaluations."""
    pipe, call = built
    z_phi, phi = first_of(pipe, "", call)
    z_p, p = first_of(pipe, P, call)
    assert torch.equal(z_phi, z_p)
    assert (phi - p).abs().max() > 1e-3  # the prompt is heard
    with Recorder(pipe) as seen:
        made = pipelines.dns(
            pipe, P, S, generator=start(), num_inference_steps=3, output_type="latent", **call
        )
    assert torch.equal(seen.z[0], z_p) and len(seen.got) == 3
    assert_close(seen.got[0], phi + S * (phi - p), atol=1e-5, rtol=1e-5)
    for got, (n, empty) in zip(seen.got, seen.halves(), strict=True):
        assert_close(got, empty + S * (empty - n), atol=1e-5, rtol=1e-5)
    assert made.images.isfinite().all()


def test_auto_dnp_describes_the_dns_image_and_starts_from_its_noise(built):
    pipe, call = built
    shown, words = [], ["a green bowl", "a dog"]

    def captioner(images):
        shown.extend(images)
        return words

    with Recorder(pipe) as seen:
        made = pipelines.auto_dnp(
            pipe, P, captioner, S, 1.5, seed=4, num_images_per_prompt=2, num_inference_steps=2,
            output_type="latent", **call,
        )  # fmt: skip
    assert made.negatives == words and shown == made.dns_images and len(made.images) == 2
    assert torch.equal(seen.z[0], seen.z[2]) and not torch.equal(seen.z[0][0], seen.z[0][1])
    dns, two_term = seen.halves()[:2], seen.halves()[2:]
    for got, (n, empty) in zip(seen.got[:2], dns, strict=True):
        assert_close(got, empty + 1.5 * (empty - n), atol=1e-5, rtol=1e-5)
    for got, (n, p) in zip(seen.got[2:], two_term, strict=True):
        assert_close(got, n + S * (p - n), atol=1e-5, rtol=1e-5)
    alone = pipe(
        prompt=P, negative_prompt=words[0], generator=torch.Generator().manual_seed(4),
        num_inference_steps=2, output_type="latent",
        **{pipelines.FAMILIES[type(pipe).__name__].scale: S}, **call,
    )  # fmt: skip
    assert_close(made.images[:1], alone.images, atol=1e-4, rtol=1e-4)


def test_a_generator_or_latents_of_ones_own_serve_both_chains(plain):
    pipe, call = plain
    z_T = torch.randn(1, 4, 8, 8)
    for own in ({"generator": start()}, {"latents": z_T.clone()}):
        with Recorder(pipe) as seen:
            pipelines.auto_dnp(
                pipe, P, lambda images: ["a dog"], S, num_inference_steps=2,
                output_type="latent", **own, **call,
            )  # fmt: skip
        assert torch.equal(seen.z[0], seen.z[2])
    assert torch.equal(own["latents"], z_T) and torch.equal(seen.z[0], z_T)


def test_prompts_of_a_batch_are_each_left(plain):
    pipe, call = plain
    with Recorder(pipe) as seen:
        pipelines.dns(pipe, [P, "a dog"], S, num_inference_steps=1, output_type="latent", **call)
    [(n, empty)] = seen.halves()
    assert len(empty) == 2 and not torch.equal(n[0], n[1])
    assert_close(seen.got[0], empty + S * (empty - n), atol=1e-5, rtol=1e-5)


class SanaPipeline:
    pass


class QwenImagePipeline:
    pass


class WanPipeline:
    pass


@pytest.mark.parametrize(
    ("pipe", "sentence"),
    [
        (QwenImagePipeline(), "scales what it guided to the norm"),
        (SanaPipeline(), "instruction before the prompt"),
        (WanPipeline(), "not known here; the known pipelines are StableDiffusionPipeline, .*Flux"),
    ],
)
def test_other_pipelines_are_refused_with_the_reason(pipe, sentence):
    with pytest.raises(SettingsError, match=sentence):
        pipelines.dns(pipe, P, S)
    with pytest.raises(SettingsError, match=sentence):
        pipelines.auto_dnp(pipe, P, lambda images: ["a dog"])


def test_the_refused_are_as_they_are_said_to_be():
    """Read in diffusers itself, so that a change there is noticed."""
    import inspect

    import diffusers

    qwen = inspect.getsource(diffusers.QwenImagePipeline.__call__)
    assert "comb_pred * (cond_norm / noise_norm)" in qwen
    sana = inspect.getsource(diffusers.SanaPipeline.encode_prompt)
    assert "complex_human_instruction=False" in sana
    taken = inspect.signature(diffusers.LatentConsistencyModelPipeline.__call__).parameters
    assert not any(k.startswith("negative") for k in taken)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (dict(guidance_scale=3.0), "guidance_scale is given by dnp.pipelines"),
        (dict(negative_prompt="a dog"), "negative_prompt is given"),
        (dict(prompt_embeds=torch.zeros(1, 20, 24)), "prompt_embeds is given"),
        (dict(guidance_rescale=0.7), "rescales the guided noise; leave it out"),
        (dict(clip_skip=1), "and not to the negative"),
        (dict(ip_adapter_image=torch.zeros(3, 8, 8)), "a picture for the prompt"),
        (dict(s=-1.0), "give a number of 0 or more"),
        (dict(s=float("nan")), "give a number of 0 or more"),
    ],
)
def test_what_would_change_the_guided_noise_is_refused(plain, call, sentence):
    pipe, _ = plain
    with pytest.raises(SettingsError, match=sentence):
        pipelines.dns(pipe, P, **call)


def test_a_scale_without_negative_and_two_prompts_are_refused(plain):
    pipe, _ = plain
    with pytest.raises(SettingsError, match="reads no negative at 1 or below"):
        pipelines.auto_dnp(pipe, P, lambda images: ["a dog"], s=0.5)
    with pytest.raises(SettingsError, match="takes one prompt"):
        pipelines.auto_dnp(pipe, [P], lambda images: ["a dog"])


def test_a_pipeline_with_a_call_of_its_own_is_refused(plain):
    from diffusers import StableDiffusionPipeline

    class Mine(StableDiffusionPipeline):
        def __call__(self, *args, **kw):
            return super().__call__(*args, **kw)

    class Same(StableDiffusionPipeline):
        pass

    parts = plain[0].components
    with pytest.raises(SettingsError, match="how Mine guides is not known"):
        pipelines.dns(Mine(**parts), P, S)
    same = Same(**parts)
    same.set_progress_bar_config(disable=True)
    made = pipelines.dns(same, P, S, num_inference_steps=1, output_type="latent")
    assert made.images.isfinite().all()


def test_distilled_models_get_a_note():
    from diffusers import LCMScheduler

    told = {"num_inference_steps": 1, "output_type": "latent", "height": 32, "width": 32}
    pipe = flux(guidance_embeds=True)
    pipe.set_progress_bar_config(disable=True)
    with pytest.warns(pipelines.DistilledNote, match="guidance_embeds.*may ignore negatives"):
        pipelines.dns(pipe, P, S, max_sequence_length=20, **told)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        pipelines.auto_dnp(pipe, P, lambda images: ["a dog"], max_sequence_length=20, **told)
    assert sum(issubclass(note.category, pipelines.DistilledNote) for note in notes) == 1
    pipe, _ = build("1.x")
    with warnings.catch_warnings():
        warnings.simplefilter("error", pipelines.DistilledNote)
        pipelines.dns(pipe, P, S, **told)
    pipe.unet.register_to_config(_name_or_path="someone/sd-turbo")
    with pytest.warns(pipelines.DistilledNote, match='"turbo" in its name'):
        pipelines.dns(pipe, P, S, **told)
    pipe.unet.register_to_config(_name_or_path="someone/sd")
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    with pytest.warns(pipelines.DistilledNote, match="LCMScheduler"):
        pipelines.dns(pipe, P, S, **told)
    pipe.unet.register_to_config(time_cond_proj_dim=32)
    with pytest.raises(SettingsError, match="evaluates no negative"):
        pipelines.dns(pipe, P, S, **told)


# --------------------------------------------------------------------------- pictures taken away


class Checker(torch.nn.Module):
    """A safety checker that takes away the pictures of the calls that it is told to, in its way."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, calls, fill=0.0, rows=None):
        super().__init__()
        self.calls, self.fill, self.rows, self.seen = calls, fill, rows, 0

    def forward(self, images=None, clip_input=None):
        flags = [
            self.seen in self.calls and (self.rows is None or i in self.rows)
            for i in range(len(images))
        ]
        self.seen += 1
        for i, flag in enumerate(flags):
            if flag:
                images[i] = images[i] * 0 + self.fill
        return images, flags


class Extractor:
    pixel_values = torch.zeros(1, 3, 8, 8)

    def __call__(self, x, return_tensors=None):
        return self

    def to(self, device):
        return self


def checked(checker):
    pipe, call = build("1.x")
    pipe.safety_checker, pipe.feature_extractor = checker, Extractor()
    return pipe, {**call, "num_inference_steps": 2}


@pytest.mark.parametrize("fill", [0.0, 0.5])
@pytest.mark.parametrize("rows", [None, [1]])
def test_a_dns_image_that_a_safety_checker_took_away_is_never_captioned(fill, rows):
    pipe, call = checked(Checker({0}, fill, rows))
    asked = []
    with pytest.raises(SettingsError, match=f"DNS image {2 if rows else 1} of 2 shows nothing"):
        pipelines.auto_dnp(pipe, P, asked.append, num_images_per_prompt=2, **call)
    assert asked == []


def test_a_black_dns_image_is_never_captioned_whatever_made_it_black():
    pipe, call = build("1.x")
    own = pipe.vae.decode
    pipe.vae.decode = lambda *args, **kw: tuple(x * 0 - 1 for x in own(*args, **kw))
    with pytest.raises(SettingsError, match="or the VAE overflowed and it is black"):
        pipelines.auto_dnp(pipe, P, lambda images: ["a dog"], num_inference_steps=2, **call)


def test_a_picture_that_a_safety_checker_took_away_is_told():
    pipe, call = checked(Checker({1}))
    with pytest.warns(UserWarning, match="picture 1 of 1 shows nothing: a safety checker"):
        made = pipelines.auto_dnp(pipe, P, lambda images: ["a dog"], **call)
    assert made.negatives == ["a dog"]

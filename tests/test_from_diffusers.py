"""`dnp.from_diffusers`: a pipeline as a model, against our own loader and the pipeline's runs."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import dnp
from conftest import MINI, ROOT, slow_but
from dnp.app import png
from dnp.app.command_line import main
from dnp.app.options import parse
from dnp.errors import SettingsError, WeightsError
from dnp.evaluation import contestants
from dnp.sd import speed
from tiny_pipelines import build

PROMPT, NEGATIVE = "a red car and a cat", "a dog in the snow"
NEAR = {"atol": 1e-5, "rtol": 1e-5}


def mini():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(MINI)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pair():
    """(pipeline, model from it, model of our own loader) of the miniature"""
    pipe = mini()
    return pipe, dnp.from_diffusers(pipe), dnp.load(MINI)


@pytest.fixture
def changed():
    """(pipeline, model from it) of small random networks, which a test may change."""
    pipe, _ = build("1.x")
    return pipe, dnp.from_diffusers(pipe)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """(pipeline, model from it, model of our own loader)"""
    pipe, _ = build("SDXL")
    folder = tmp_path_factory.mktemp("sdxl")
    pipe.save_pretrained(folder)
    return pipe, dnp.from_diffusers(pipe), dnp.load(folder)


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# --------------------------------------------------------------------------------------- parity


def test_its_attention_is_read_and_leaves_its_numbers_bit_equal(pair, sdxl):
    """The maps are our own U-Net's, and ae and neglect make the same pictures by either."""
    for (pipe, ours, own), level in ((pair, 0), (sdxl, 1)):
        c, d = (m.encode([PROMPT, ""]) for m in (ours, own))
        z, t = randn(2, *own.latent_shape()), torch.tensor(500)
        plain = ours.eps(z, t, c)
        with ours.attention(level) as maps:
            assert torch.equal(ours.eps(z, t, c), plain)
        with own.attention(level) as wanted:
            own.eps(z, t, d)
        found, wanted = maps.mean(), wanted.mean()
        assert found.shape == wanted.shape and found.std() > 0
        assert_close(found, wanted, atol=1e-5, rtol=1e-4)
        assert not any(m._forward_hooks for m in pipe.unet.modules())
        subjects = ["car", "cat"]
        assert ours.places(PROMPT, subjects) == own.places(PROMPT, subjects)
        with pytest.raises(SettingsError, match="is not in this U-Net; choose 0 to"):
            ours.attention(9)
    with pytest.raises(SettingsError, match="ae_level = 0 has no attention; choose another"):
        sdxl[1].attention(0)
    with pytest.raises(SettingsError, match='"dog" is not in the prompt'):
        dnp.generate(pair[1], PROMPT, "neglect", steps=1, subjects="dog, cat")


@pytest.mark.parametrize("method", ["ae", "neglect"])
@pytest.mark.parametrize("which", ["1.x", "SDXL"])
def test_ae_and_neglect_are_those_of_our_loader(pair, sdxl, which, method):
    _, ours, own = pair if which == "1.x" else sdxl
    of_chain = dict(s=3.0, steps=4, seed=5, size=(32, 32))
    kw = dict(**of_chain, subjects="car, cat", ae_level=0 if which == "1.x" else 1)
    if method == "ae":
        kw |= {"ae_step": 2.0, "ae_refinements": 1, "ae_until": 0.5, "ae_thresholds": (0.05,)}
    a, b = (dnp.generate(m, PROMPT, method, **kw) for m in (ours, own))
    assert_close(a.latents[1], b.latents[1], atol=1e-3, rtol=1e-3)
    assert (a.nfe, a.gradients) == (b.nfe, b.gradients)
    plain = dnp.generate(ours, PROMPT, **of_chain)
    assert not torch.equal(plain.latents[1], a.latents[1])


def test_ae_sees_a_lora_that_is_loaded(changed):
    """On a U-Net of several levels whose attention a LoRA changes."""
    from peft import LoraConfig

    pipe, model = changed
    kw = dict(s=3.0, steps=2, subjects="car, cat", ae_level=0, ae_step=2.0, ae_refinements=0)
    before = dnp.generate(model, PROMPT, "ae", **kw)
    pipe.unet.add_adapter(
        LoraConfig(r=2, target_modules=["to_k", "to_q"], init_lora_weights="gaussian")
    )
    with torch.no_grad():
        for name, x in pipe.unet.named_parameters():
            if "lora_B" in name:
                x.fill_(0.3)
    z, t, c = randn(1, *model.latent_shape()), torch.tensor(500), model.encode([PROMPT])
    plain = model.eps(z, t, c)
    with model.attention(0) as maps:
        assert torch.equal(model.eps(z, t, c), plain)
    with_lora = maps.mean()
    pipe.unet.disable_adapters()
    with model.attention(0) as maps:
        model.eps(z, t, c)
    assert not torch.allclose(with_lora, maps.mean(), atol=1e-4)
    assert torch.equal(dnp.generate(model, PROMPT, "ae", **kw).latents[1], before.latents[1])


def test_forwards_agree_with_our_loader(pair):
    _, ours, own = pair
    prompts = [PROMPT, "", "glasses"]
    c = ours.encode(prompts)
    assert_close(c, own.encode(prompts), **NEAR)
    assert ours.latent_shape() == own.latent_shape() and ours.config.spacing == own.config.spacing
    assert torch.equal(ours.schedule.abar, own.schedule.abar)
    z = randn(3, *own.latent_shape())
    for t in (torch.tensor(0), torch.tensor([3, 500, 981])):
        assert_close(ours.eps(z, t, c), own.eps(z, t, c), **NEAR)
    assert_close(ours.eps(z, 500, c[:1].expand(3, -1, -1)), own.eps(z, 500, c[:1]), **NEAR)
    picture, other = (np.asarray(m.decode(z[:1])[0], dtype=int) for m in (ours, own))
    assert abs(picture - other).max() <= 1
    images = own.decode(z[:1])
    assert_close(ours.encode_images(images), own.encode_images(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", slow_but(["cfg", "answer"], ["cfg", "np2", "dns", "answer"]))
def test_runs_of_10_steps_agree_with_our_loader(pair, method):
    _, ours, own = pair
    negative = NEGATIVE if method == "np2" else None
    call = dict(s=3.0, steps=10, seed=5, size=(32, 32))
    a, b = (dnp.generate(m, PROMPT, method, negative, **call) for m in (ours, own))
    assert_close(a.latents[1], b.latents[1], atol=1e-4, rtol=1e-4)
    assert a.nfe == b.nfe


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cfg", "np2", "dns"])
def test_runs_of_20_steps_agree_with_the_pipelines_own_guidance(pair, method):
    pipe, ours, _ = pair
    negative = NEGATIVE if method == "np2" else None
    made = dnp.generate(ours, PROMPT, method, negative, s=3.0, steps=20, seed=5)
    call = {
        "cfg": dict(prompt=PROMPT, guidance_scale=3.0),
        "np2": dict(prompt=PROMPT, negative_prompt=NEGATIVE, guidance_scale=3.0),
        "dns": dict(prompt="", negative_prompt=PROMPT, guidance_scale=4.0),
    }[method]
    z_T, z_0 = made.latents
    call |= dict(num_inference_steps=20, latents=z_T.clone())
    want = pipe(**call, output_type="latent").images
    assert_close(z_0, want, atol=1e-4, rtol=1e-4)
    (picture,) = pipe(**{**call, "latents": z_T.clone()}).images
    apart = abs(np.asarray(picture, dtype=int) - np.asarray(made.images[0], dtype=int))
    assert apart.max() <= 1


def test_sdxl_agrees_with_our_loader_and_the_pipelines_own_guidance(sdxl):
    pipe, ours, own = sdxl
    for options in ({}, {"phi": "text", "original_size": (90, 80), "crop": (3, 5)}):
        c, d = (m.encode([PROMPT, ""], **options) for m in (ours, own))
        for a, b in zip(c, d, strict=True):
            assert_close(a, b, **NEAR)
        z, t = randn(2, 4, 16, 16), torch.tensor(500)
        assert_close(ours.eps(z, t, c), own.eps(z, t, d), **NEAR)
    made = dnp.generate(ours, PROMPT, "cfg", s=3.0, steps=10, size=(32, 32))
    assert made.settings["phi"] == "zeros" and len(made.images) == 1
    want = dnp.generate(own, PROMPT, "cfg", s=3.0, steps=10, size=(32, 32))
    assert_close(made.latents[1], want.latents[1], atol=1e-4, rtol=1e-4)
    z_T, z_0 = made.latents
    own_guidance = pipe(
        PROMPT, guidance_scale=3.0, num_inference_steps=10, latents=z_T.clone(), height=32,
        width=32, output_type="latent",
    ).images  # fmt: skip
    assert_close(z_0, own_guidance, atol=1e-4, rtol=1e-4)


def test_a_pipeline_that_predicts_v_agrees_with_our_loader(tmp_path):
    pipe, _ = build("2.x")
    pipe.save_pretrained(tmp_path)
    ours, own = dnp.from_diffusers(pipe), dnp.load(tmp_path)
    assert ours.config.prediction_type == "v_prediction"
    assert ours.latent_shape() == own.latent_shape() == (4, 12, 8)
    a, b = (dnp.generate(m, PROMPT, "dns", s=2.0, steps=10) for m in (ours, own))
    assert_close(a.latents[1], b.latents[1], atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------------- identity and use


def test_the_fingerprint_is_of_numbers_and_not_of_objects(changed):
    pipe, model = changed
    name = model.config.fingerprint
    assert name.startswith("pipeline-") and len(name) == 9 + 32
    assert model.config.fingerprint == name == dnp.from_diffusers(pipe).config.fingerprint
    assert dnp.from_diffusers(build("1.x")[0]).config.fingerprint == name
    assert dnp.from_diffusers(build("2.x")[0]).config.fingerprint != name
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] += 1
    told = model.config.fingerprint
    assert told != name
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] -= 1
        pipe.vae.decoder.conv_out.bias += 1
    assert len({told, name, model.config.fingerprint}) == 3


def test_a_png_of_a_pipeline_says_so_when_it_is_asked_from(pair, tmp_path, capsys):
    _, ours, _ = pair
    made = dnp.generate(ours, PROMPT, "dns", s=2.0, steps=2)
    assert made.settings["fingerprint"] == ours.config.fingerprint
    path = png.save(made.images[0], tmp_path, "a", made.settings)
    with pytest.raises(SystemExit) as stopped:
        main(["--from", str(path), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and "came from a diffusers pipeline" in told
    assert "pipe.save_pretrained" in told and not (tmp_path / "out").exists()
    main(["--from", str(path), "--out", str(tmp_path / "out"), "--weights", str(MINI)])
    assert "not known whether these are the same" in capsys.readouterr().err
    (again,) = (tmp_path / "out").glob("*.png")
    from PIL import Image

    a, b = (np.asarray(image, dtype=int) for image in (Image.open(again), made.images[0]))
    assert abs(a - b).max() <= 1


def test_rules_trajectories_and_experiments_take_it(pair):
    _, ours, own = pair
    captioner, small = lambda images: ["a green bowl"] * len(images), {"size": (32, 32)}
    made = dnp.generate(ours, PROMPT, "auto-dnp", captioner=captioner, s=2.0, steps=2, **small)
    assert made.negative == "a green bowl" and len(made.dns_images) == 1
    with pytest.raises(SettingsError, match="no captioner"):
        dnp.generate(ours, PROMPT, "auto-dnp", steps=2)
    rows = list(dnp.trajectory(ours, PROMPT, negative=NEGATIVE, rule="perp_neg", steps=3, **small))
    assert len(rows) == 4 and rows[-1][0] == -1
    method = contestants.parse("answer:K=1")
    settings = contestants.settled(method, 2.0, 3, ours, **small)
    a, b = (contestants.sample(m, method, [PROMPT], [0], settings, [None])[0] for m in (ours, own))
    apart = abs(np.asarray(a.image, dtype=int) - np.asarray(b.image, dtype=int))
    assert apart.max() <= 1 and a.nfe == b.nfe
    assert speed.apply(ours) == []
    ours.check_finite()


def test_a_vae_that_overflows_in_half_precision_decodes_in_float32(changed):
    pipe, model = changed
    z = randn(1, 4, 8, 8)
    (wide,) = model.decode(z)
    pipe.vae.half()
    pipe.vae.register_to_config(force_upcast=True)
    (picture,) = model.decode(z)
    assert pipe.vae.dtype == torch.float16  # as the user has it
    assert abs(np.asarray(picture, dtype=int) - np.asarray(wide, dtype=int)).max() <= 4


def test_what_is_no_eps_of_text_alone_is_refused(changed):
    pipe, model = changed
    with pytest.raises(SettingsError, match="from_diffusers takes"):
        dnp.from_diffusers("weights/mini")
    for change, sentence in (
        ({"time_cond_proj_dim": 32}, "distilled with the guidance scale inside"),
        ({"time_cond_proj_dim": None, "encoder_hid_dim_type": "ip_image_proj"}, "IP-Adapter"),
        ({"encoder_hid_dim_type": None, "in_channels": 9}, "inpainting"),
    ):
        pipe.unet.register_to_config(**change)
        with pytest.raises(WeightsError, match=sentence):
            dnp.from_diffusers(pipe)
    with torch.no_grad():
        pipe.unet.conv_in.weight[0] = float("nan")
    with pytest.raises(WeightsError, match="NaN"):
        model.check_finite()
    pipe.text_encoder = None
    with pytest.raises(WeightsError, match="no text encoder"):
        dnp.from_diffusers(pipe)


def test_diffusers_is_imported_by_nothing_here():
    code = (
        "import sys, dnp; dnp.pipelines; dnp.from_diffusers; "
        "assert 'diffusers' not in sys.modules; print('none')"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert made.stdout.strip() == "none"


@pytest.mark.slow
def test_the_python_of_weights_readme_runs_and_its_two_pictures_are_one(
    tmp_path, monkeypatch, capsys
):
    text = (ROOT / "weights" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(tmp_path)
    space = {}
    for block in blocks:
        exec(compile(block, "<weights/README.md>", "exec"), space)
    assert space["dns"].tobytes() == space["same"].tobytes() != space["made"].images[0].tobytes()
    assert space["result"].settings["fingerprint"].startswith("pipeline-")
    own = dnp.generate(dnp.load(MINI), "a red car", "dns", s=2.0)
    apart = abs(np.asarray(own.images[0], dtype=int) - np.asarray(space["dns"], dtype=int))
    assert apart.max() <= 1
    assert re.match(r"\['.+'\] \(64, 64\)", capsys.readouterr().out)


def test_the_commands_of_weights_readme_parse():
    text = (ROOT / "weights" / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python -m dnp (.*)$", text, re.M)
    assert sum("--captioner" in command for command in commands) == 4
    for command in commands:
        assert parse(shlex.split(command))

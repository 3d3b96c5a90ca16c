"""SDXL on disk: single files, what is refused by name, --info, --from, and the published sizes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import dnp
from dnp.errors import WeightsError
from single_files import FIRST, SECOND, opened

PROMPT, SIZE = "a photo of a cat", (64, 64)
UNET = "model.diffusion_model."


def test_a_single_file_is_the_folder_it_was_made_from(both):
    _, folder, path = both
    one, other = opened(path), opened(folder)
    for name in ("text", "text_2", "unet", "vae", "phi", "prediction_type", "spacing"):
        assert getattr(one.config, name) == getattr(other.config, name), name
    for phi in ("zeros", "text"):
        for a, b in zip(one.encode([PROMPT, ""], phi=phi), other.encode([PROMPT, ""], phi=phi)):
            assert_close(a, b, atol=5e-6, rtol=0)
    made = [dnp.generate(m, PROMPT, s=2.5, steps=3, seed=3, size=SIZE) for m in (one, other)]
    assert_close(made[0].latents[1], made[1].latents[1], atol=1e-5, rtol=1e-5)
    a, b = (np.asarray(m.images[0], dtype=int) for m in made)
    assert abs(a - b).max() <= 1 and a.std() > 1


@pytest.mark.slow
def test_diffusers_reads_the_single_file_as_we_do(both):
    from diffusers import StableDiffusionXLPipeline

    _, folder, path = both
    theirs = StableDiffusionXLPipeline.from_single_file(
        path, config=str(folder), local_files_only=True
    )
    model = dnp.load(path)
    want, _, pooled, _ = theirs.encode_prompt([PROMPT, ""], do_classifier_free_guidance=False)
    c = model.encode([PROMPT, ""], phi="text", size=SIZE)
    assert_close(c.context, want, atol=1e-5, rtol=1e-5)
    assert_close(c.pooled, pooled, atol=1e-5, rtol=1e-5)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    added = {"text_embeds": pooled, "time_ids": c.numbers}
    with torch.inference_mode():
        want = theirs.unet(z, 500, want, added_cond_kwargs=added).sample
        assert_close(model.eps(z, 500, c), want, atol=1e-5, rtol=1e-5)
        assert_close(model.vae.decode(z), theirs.vae.decode(z).sample, atol=1e-4, rtol=1e-4)


def changed(path, tmp_path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def loses(start):
    def change(tensors):
        for key in [k for k in tensors if k.startswith(start)]:
            tensors.pop(key)

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (loses(FIRST), "no tensors of text_encoder; this is not a whole SDXL"),
        (loses(SECOND), "no tensors of text_encoder_2; this is not a whole SDXL"),
        (loses("conditioner."), "no tensors of text_encoder, text_encoder_2; this is not a whole"),
        (loses(UNET + "label_emb."), "six numbers are 1632 wide and the U-Net reads 0"),
        (loses(SECOND + "text_projection"), "'text_projection' is missing"),
        (loses(SECOND + "transformer.resblocks.3."), "16 missing"),
        (loses(UNET + "middle_block.1.transformer_blocks.9."), "20 missing"),
        (lambda t: t.update({SECOND + "extra": torch.zeros(1)}), r"1 unexpected \(extra"),
        (lambda t: t.update({"ztsnr": torch.zeros(1)}), r"\(ztsnr\); they do not belong to any"),
    ],
)
def test_a_damaged_single_file_is_told(both, tmp_path, change, sentence):
    with pytest.raises(WeightsError, match=sentence):
        dnp.load(changed(both[2], tmp_path, change))


def test_a_file_can_say_that_it_predicts_v(both, tmp_path):
    path = changed(both[2], tmp_path, lambda t: t.update(v_pred=torch.zeros(0)))
    assert opened(both[2]).config.prediction_type == "epsilon"
    assert dnp.load(path).config.prediction_type == "v_prediction"
    assert dnp.load(path, prediction_type="epsilon").config.prediction_type == "epsilon"


# ---------------------------------------------------------------------------- refused by name


def refiner(tensors):
    """As the refiner is: the second text encoder alone, in the first one's place."""
    loses(FIRST)(tensors)
    for key in [k for k in tensors if k.startswith(SECOND)]:
        tensors["conditioner.embedders.0.model." + key.removeprefix(SECOND)] = tensors.pop(key)
    tensors[UNET + "label_emb.0.0.weight"] = torch.zeros(128, 96 + 5 * 8)


def inpainting(tensors):
    tensors[UNET + "input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)


REFUSED = [(refiner, "the refiner of SDXL, which"), (inpainting, "the inpainting model of SDXL, w")]


@pytest.mark.parametrize(("change", "sentence"), REFUSED)
def test_refiner_and_inpainting_files_are_refused_by_name(both, tmp_path, change, sentence):
    with pytest.raises(WeightsError, match=f"this looks like {sentence}") as e:
        dnp.load(changed(both[2], tmp_path, change))
    assert str(e.value).count("; ") <= 1 and str(e.value).endswith("1.x, 2.x or XL.")


def edit(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("index", [True, False])
def test_a_folder_of_the_refiner_is_refused_by_name(both, tmp_path, index):
    folder = shutil.copytree(both[1], tmp_path / "refiner")
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    if index:
        edit(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline",
             requires_aesthetics_score=True, text_encoder=[None, None])  # fmt: skip
    else:
        (folder / "model_index.json").unlink()
    with pytest.raises(WeightsError, match="this looks like the refiner of SDXL, which is not sup"):
        dnp.load(folder)


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_of_the_inpainting_model_is_refused_by_name(both, tmp_path, named):
    folder = shutil.copytree(both[1], tmp_path / "inpainting")
    if named:
        edit(folder / "model_index.json", _class_name="StableDiffusionXLInpaintPipeline")
    else:
        edit(folder / "unet" / "config.json", in_channels=9)
    with pytest.raises(WeightsError, match="this looks like the inpainting model of SDXL, which"):
        dnp.load(folder)


def test_the_base_as_a_pipeline_from_pictures_saves_it_loads(both, tmp_path):
    folder = shutil.copytree(both[1], tmp_path / "base")
    edit(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline",
         requires_aesthetics_score=False)  # fmt: skip
    assert dnp.load(folder).config.text_2 is not None


def test_parts_of_two_models_are_told(both, tmp_path):
    folder = shutil.copytree(both[1], tmp_path / "mixed")
    edit(folder / "unet" / "config.json", addition_time_embed_dim=6)
    with pytest.raises(WeightsError, match="132 wide and the U-Net reads 144; take all parts"):
        dnp.load(folder)


# ---------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("which", [1, 2])
def test_info_says_sdxl(both, cli, which):
    code, pngs, out, err = cli("--info", "--weights", both[which])
    assert code == 0 and pngs == [] and err == ""
    assert "family      Stable Diffusion XL (SDXL)" in out
    assert ("diffusers folder", "original single file")[which - 1] in out.split("\n")[0]
    for part in ("text ", "text_2 ", "unet "):
        assert f"\n{part}" in out
    assert "phi         zeros" in out and "predicts    epsilon" in out


@pytest.mark.slow
@pytest.mark.parametrize("which", [1, 2])
def test_a_png_of_sdxl_makes_its_picture_again(both, cli, which):
    words = ["a cat", "--steps", 2, "--scale", 3, "--size", 64, 32, "--weights", both[which]]
    words += ["--phi", "text", "--original-size", 90, 80, "--crop", 3, 5, "--target-size", 70, 60]
    code, (png,), _, _ = cli(*words)
    picture = Image.open(png)
    told, before = json.loads(picture.text["dnp"]), np.asarray(picture)
    assert code == 0 and told["phi"] == "text" and told["size"] == [64, 32]
    sizes = [told[k] for k in ("original_size", "crop", "target_size")]
    assert sizes == [[90, 80], [3, 5], [70, 60]]
    kept = png.rename(png.with_name("kept.png"))
    code, (again,), _, err = cli("--from", kept)
    assert code == 0 and "other weights" not in err
    assert (np.asarray(Image.open(again)) == before).all()
    assert json.loads(Image.open(again).text["dnp"]) == told
    again.unlink()
    for other in (["--phi", "zeros"], ["--crop", 0, 0], ["--original-size", 64, 32]):
        _, (changed,), _, _ = cli("--from", kept, *other)
        assert (np.asarray(Image.open(changed)) != before).any(), other
        changed.unlink()


def test_a_png_says_which_phi_the_weights_gave(both, cli):
    _, (png,), _, _ = cli("a cat", "--steps", 1, "--size", 32, 32, "--weights", both[2])
    assert json.loads(Image.open(png).text["dnp"])["phi"] == "zeros"

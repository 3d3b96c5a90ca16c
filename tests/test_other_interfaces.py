"""Names, sizes, lists of prompts and pictures as people bring them from other tools."""

import re

import pytest
from PIL import Image, PngImagePlugin

import dnp
from command_line import pixels, refused
from dnp.app.other_interfaces import read_parameters
from dnp.app.png import read_settings
from dnp.errors import SettingsError
from dnp.methods import METHODS, other_names
from dnp.methods.chain import Chain
from dnp.methods.fields import table
from experiments import world

FOREIGN = [
    name for names in (*other_names.HERE, *other_names.NOT_AVAILABLE) for name in names.split()
]


def test_no_setting_of_ours_is_in_the_table_of_other_names():
    ours = {*table(*METHODS.values(), Chain), "prompt", "method", "negative", "weights", "out"}
    assert len(set(FOREIGN)) == len(FOREIGN) > 40 and not ours & set(FOREIGN)


@pytest.mark.parametrize("name", ["guidance_scale", "num_inference_steps", "width", "clip_skip"])
def test_a_name_of_another_tool_is_answered_with_the_name_here(mini, name):
    with pytest.raises(SettingsError) as told:
        dnp.generate(mini, "a cat", **{name: 3})
    assert str(told.value).startswith(f"{name} is not a setting; ") and len(str(told.value)) < 160
    assert re.search("here it is (s=X|steps=N|size=)|not available: ", str(told.value))


def test_an_unlike_name_gets_no_list_of_all_settings(mini):
    with pytest.raises(SettingsError) as told:
        dnp.generate(mini, "a cat", zzz=3)
    assert str(told.value) == "zzz is not a setting; python -m dnp --help lists them all."


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("--cfg", "here it is --s X"),
        ("--cfg-scale=7", "here it is --s X"),
        ("--num-inference-steps", "here it is --steps N"),
        ("--width", "--size 96x64"),
        ("--lora", "not available: load it in a diffusers pipeline"),
        ("--hires", "not available: draw at"),
        ("--karras", "--sampler dpmpp2m needs fewer steps"),
        ("--negativ", "did you mean --negative?"),
        ("--zzz", "--help lists what is possible"),
    ],
)
def test_an_option_of_another_tool_is_answered_with_the_option_here(cli, typed, sentence):
    refused(cli("a cat", typed), sentence)


@pytest.mark.parametrize("typed", [["--size", "96x64"], ["--size=96X64"], ["--size", 64, 96]])
def test_a_size_may_be_width_x_height_and_what_is_not_square_is_said(small_cli, typed):
    code, (png,), out, _ = small_cli("a cat", *typed, "--steps", 1)
    assert code == 0 and Image.open(png).size == (96, 64) and "size: width 96, height 64" in out


def test_a_square_size_is_not_said(small_cli):
    assert "width" not in small_cli("a cat", "--steps", 1)[2]


def test_a_negative_may_begin_with_a_dash(small_cli):
    code, (png,), _, _ = small_cli("a cat", "--negative", "-dog", "--steps", 1, "--s", 2)
    assert code == 0 and read_settings(png)["negative"] == "-dog"
    refused(small_cli("a cat", "--negative", "--steps", 1), "expected one argument")


def test_a_list_of_prompts_may_have_comments_and_any_character_in_a_line(small_cli, tmp_path):
    (tmp_path / "list.txt").write_text("# mine\n\na cat\u2028and a car\n  # more\r\na dog\n")
    code, pngs, _, _ = small_cli("--prompts", "list.txt", "--steps", 1)
    told = [read_settings(png)["prompt"] for png in pngs]
    assert code == 0 and sorted(told) == ["a cat\u2028and a car", "a dog"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('["a cat", "a dog"]', "looks like JSON; write one prompt on each line"),
        ('{"prompt": "a cat"}', "looks like JSON"),
        ("a cat\na dog --steps 20", "line 2: --steps is an option"),
        ("# nothing\n", "does not hold a prompt"),
    ],
)
def test_a_list_of_another_kind_is_refused_in_a_sentence(cli, tmp_path, text, sentence):
    (tmp_path / "list.txt").write_text(text)
    refused(cli("--prompts", "list.txt", "--steps", 1), sentence)


PARAMETERS = """a cat and
a red car
Negative prompt: a dog, ugly
Steps: 3, Sampler: Euler a, CFG scale: 2.5, Seed: 7, Size: 96x64, Model: "x, y", Clip skip: 2"""


def test_the_text_of_another_interface_is_read_with_a_note_on_the_rest():
    with pytest.warns(UserWarning, match="Not read: sampler Euler a, model .x, y., clip skip 2"):
        read = read_parameters(PARAMETERS)
    assert read == {"prompt": "a cat and a red car", "negative": "a dog, ugly", "method": "np2",
                    "steps": 3, "seed": 7, "s": 2.5, "size": [64, 96]}  # fmt: skip


@pytest.mark.parametrize("text", ["", "a cat", "Steps: x, Seed: 1", "a\nSteps: 3, Size: 3"])
def test_a_text_of_no_interface_is_none(text):
    assert read_parameters(text) is None


def test_from_reads_a_picture_of_another_interface(small_cli, tmp_path):
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("parameters", PARAMETERS)
    Image.new("RGB", (96, 64)).save(tmp_path / "other.png", pnginfo=chunk)
    code, (png,), _, err = small_cli("--from", "other.png", "--weights", world())
    assert code == 0 and "another interface wrote this picture" in err
    again = ["a cat and a red car", "--negative", "a dog, ugly", "--method", "np2", "--s", 2.5,
             "--steps", 3, "--seed", 7, "--size", "96x64", "--out", "again"]  # fmt: skip
    assert small_cli(*again)[0] == 0
    (typed,) = (tmp_path / "again").glob("*.png")
    assert (pixels(png) == pixels(typed)).all()


def test_a_picture_made_here_that_lost_our_chunk_is_still_read(small_cli, tmp_path):
    _, (png,), _, _ = small_cli("a cat", "--s", 2.5, "--steps", 3, "--seed", 7)
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("parameters", Image.open(png).text["parameters"])
    Image.open(png).save(tmp_path / "edited.png", pnginfo=chunk)
    code, (again,), _, _ = small_cli("--from", "edited.png", "--weights", world())
    assert code == 0 and (pixels(again) == pixels(png)).all() and again != png


@pytest.mark.parametrize(
    ("typed", "note"),
    [
        (["--s", 1], "at this scale (s = 1) the negative prompt has no effect"),
        (["--s", 0], "at this scale (s = 0) the negative prompt is drawn and not avoided"),
        (["--s", 0.5], "is drawn and not avoided"),
        (["--s", 0, "--method", "np"], "has no effect"),
        (
            ["--s", 2, "--method", "np", "--negative-scale", 0],
            "(h = 0) the negative prompt has no eff",
        ),
        (["--s", 2], ""),
        (["--s", 0.5, "--method", "np"], ""),
    ],
)
def test_a_negative_that_does_nothing_or_is_drawn_is_told(small_cli, typed, note):
    code, _, _, err = small_cli("a cat", "--negative", "a dog", "--steps", 1, *typed)
    assert code == 0 and (note in err if note else "at this scale" not in err)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [(["auto-dnp"], "have no captioner; give auto-dnp one"), (["ae"], "needs the subjects of"),
     (["cnp"], "have no captioner"), (["neglect"], "needs the subjects of")],
)  # fmt: skip
def test_what_weights_lack_is_told_before_they_are_loaded(cli, tiny, monkeypatch, typed, sentence):
    monkeypatch.setattr(dnp.sd.load, "load", lambda *_: pytest.fail("the weights were loaded"))
    refused(cli("a cat", "--method", *typed, "--weights", tiny), sentence)


def test_a_dns_image_is_kept_when_its_caption_fails(small_cli, monkeypatch):
    def fails(*_):
        def captioner(images):
            raise SettingsError("no words.")

        return captioner

    monkeypatch.setattr(dnp.sd.captioner, "load_captioner", fails)
    code, pngs, _, err = small_cli("a cat", "--method", "auto-dnp", "--steps", 2)
    assert code == 2 and pngs == [] and "no words." in err
    (dns,) = small_cli.dns
    assert read_settings(dns)["method"] == "dns"

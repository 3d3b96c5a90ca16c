"""Bad input of the command line, pictures that lie included: one sentence and exit code 2."""

import os
import shutil
import zlib

import pytest
from PIL import Image, PngImagePlugin

from conftest import MINI, change_json, refused
from dnp.app.png import read_settings, save

BAD = {
    "no prompt": ([], "no prompt"),
    "unknown method": (["a", "--method", "magic"], "choose cfg, np, np2, dns"),
    "misspelt method": (["a", "--method", "anser"], "did you mean answer?"),
    "misspelt option": (["a", "--sede", 3], "did you mean --seed?"),
    "prompt without quotes": (["a", "red", "car"], "put the prompt in quotes"),
    "unknown option": (["a", "--stepz", 3], "--stepz"),
    "unknown device": (["a", "--device", "tpu9"], "device 'tpu9' cannot be used here"),
    "device not here": (["a", "--device", "cuda:77"], "cannot be used here"),
    "unknown dtype": (["a", "--dtype", "int8"], "dtype 'int8' is unknown"),
    "half on a CPU": (["a", "--device", "cpu", "--dtype", "float16"], "choose --dtype float32"),
    "negative of cfg": (["a", "--method", "cfg", "--negative", "b"], "takes no negative prompt"),
    "negative of dns": (["a", "--method", "dns", "--negative", "b"], "takes no negative prompt"),
    "np without n": (["a", "--method", "np"], "add --negative TEXT"),
    "np2 without n": (["a", "--method", "np2"], "add --negative TEXT"),
    "negative scale of cfg": (["a", "--negative-scale", 2], "does not belong to method cfg"),
    "s-dns of cfg": (["a", "--s-dns", 2], "belongs to method dnp or auto-dnp or answer"),
    "K of dns": (["a", "--method", "dns", "--K", 2], "K belongs to method answer"),
    "K of -1": (["a", "--method", "answer", "--K", -1], "whole number from 0 to 1000"),
    "K-until of 2": (["a", "--method", "answer", "--K-until", 2], "choose a number from 0 to 1"),
    "normalize maybe": (["a", "--method", "answer", "--normalize", "x"], "choose yes or no"),
    "captioner of nowhere": (
        ["a", "--method", "auto-dnp", "--captioner", "nowhere"],
        "no captioner is there",
    ),
    "captions of pictures": (
        ["a", "--method", "auto-dnp", "--caption-per", "picture"],
        "choose seed or prompt",
    ),
    "normalize in words": (["a", "--method", "answer", "--normalize", "1"], "= '1' is not"),
    "seed in words": (["a", "--seed", "x"], "seed = 'x' is not possible; choose a whole number"),
    "thresholds in words": (["a", "--method", "ae", "--ae-thresholds", "x"], "give 1 to 5 numbers"),
    "help of no method": (["--help", "anser"], "did you mean answer?"),
    "no steps": (["a", "--steps", 0], "choose a whole number of at least 1"),
    "too many steps": (["a", "--steps", 1001], "choose 1 to 1000"),
    "steps in words": (["a", "--steps", "many"], "steps = 'many' is not possible; choose a whole"),
    "scale nan": (["a", "--scale", "nan"], "s = nan is not possible; give a number"),
    "scale inf": (["a", "--s", "inf"], "s = inf is not possible; give a number"),
    "negative scale inf": (
        ["a", "--method", "np", "--negative", "b", "--negative-scale", "inf"],
        "negative_scale = inf is not possible; give a number",
    ),
    "eta": (["a", "--eta", 1.5], "eta = 1.5 is not possible"),
    "eta nan": (["a", "--eta", "nan"], "eta = nan is not possible"),
    "seed": (["a", "--seed", -1], "seed = -1 is not possible"),
    "huge seed": (["a", "--seed", 2**63], "is not possible"),
    "negative scale without n": (["a", "--compare", "--negative-scale", 2], "add --negative TEXT"),
    "not a device": (["a", "--device", "hpu"], "device 'hpu' cannot be used here"),
    "no images": (["a", "--images", 0], "images = 0 is not possible"),
    "method and compare": (["a", "--compare", "--method", "dns"], "leave --method out"),
    "no weights": (["a", "--weights", "nowhere"], "nowhere: no such file or folder"),
    "no such PNG": (["--from", "nowhere.png"], "nowhere.png: no such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_exit_2(cli, name, tmp_path):
    words, sentence = BAD[name]
    code, new, _, err = cli(*words)
    assert code == 2 and new == [] and not (tmp_path / "outputs").exists()
    error = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and sentence in error[0] and error[0].endswith((".", "?"))
    assert "Traceback" not in err


def test_an_output_folder_that_cannot_be_written(cli, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(cli("a", "--out", tmp_path / "file"), "no picture can be written there")
    refused(cli("a", "--out", tmp_path / "file" / "below"), "no picture can be written there")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_disk_that_fills_up_leaves_nothing_half_written(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    refused(cli("a", "--steps", 1), "cannot be written")
    assert list((tmp_path / "outputs").iterdir()) == []


def test_a_png_without_our_chunk(cli, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    refused(cli("--from", tmp_path / "plain.png"), "holds no settings of dnp")
    (tmp_path / "text.png").write_text("not a picture")
    refused(cli("--from", tmp_path / "text.png"), "not a readable PNG")
    folder = tmp_path / "folder.png"
    folder.mkdir()
    refused(cli("--from", folder), "not a readable PNG")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_does_not_hang_as_from_or_under_an_output_s_name(cli, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    refused(cli("--from", tmp_path / "pipe.png"), "not a readable PNG (it is not a regular file)")
    refused(cli("--from", "/dev/zero"), "not a readable PNG (it is not a regular file)")
    (tmp_path / "outputs").mkdir()
    os.mkfifo(tmp_path / "outputs" / "a-cat-cfg-0.png")
    code, (png,), _, _ = cli("a cat", "--steps", 1)
    assert code == 0 and png.name == "a-cat-cfg-0-2.png"


def test_a_captioner_that_a_png_names_runs_no_code(cli, tmp_path, monkeypatch):
    evil = shutil.copytree(MINI / "captioner", tmp_path / "evil")
    change_json(evil / "config.json", model_type="new", auto_map={"AutoConfig": "evil.Config"})
    (evil / "evil.py").write_text("raise SystemExit('code of the folder ran')")
    settings = {"prompt": "a cat", "steps": 1, "method": "auto-dnp", "captioner": str(evil)}
    forged = save(Image.new("RGB", (8, 8)), tmp_path / "forged", "x", settings)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    refused(cli("--from", forged), "auto_map asks for code of its own, which is never run")


FORGED = [{"steps": "9"}, {"prompt": 5}, {"s": [1]}, {"seed": None}, {"steps": True}]
FORGED += [{"compare": "no"}, {"size": 64}, {"fingerprint": 1}]


@pytest.mark.parametrize("change", FORGED)
def test_a_png_whose_settings_were_not_written_here(cli, tmp_path, change):
    _, (png,), _, _ = cli("a cat", "--steps", 1)
    settings = {**read_settings(png), **change}
    forged = save(Image.open(png), tmp_path / "forged", "x", settings)
    refused(cli("--from", forged), "was never written here")


@pytest.mark.parametrize("key", ["colour", "rule_file", "tensor", "steps "])
def test_a_setting_in_a_png_that_is_not_known_is_not_passed_over(cli, tmp_path, key):
    settings = {"prompt": "a cat", "steps": 1, key: "x"}
    made = save(Image.new("RGB", (8, 8)), tmp_path / "strange", "x", settings)
    refused(cli("--from", made), f"holds {key} = 'x', which this version does not know")


HOSTILE = {
    "a huge scale": ({"s": 10**400}, "was never written here"),
    "a billion images": ({"images": 10**9}, "was never written here"),
    "no Unicode": ({"prompt": "\ud800"}, "not valid Unicode"),
    "an endless path": ({"weights": "w" * 5000}, "no such file or folder"),
    "a size in words": ({"size": ["a", "b"]}, "was never written here"),
    "a size of nothing": ({"size": [2, 2]}, "multiples of 4"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_settings_in_a_png(cli, tmp_path, name):
    change, sentence = HOSTILE[name]
    settings = {"prompt": "a cat", "steps": 1, **change}
    forged = save(Image.new("RGB", (8, 8)), tmp_path / "forged", "x", settings)
    refused(cli("--from", forged), sentence)


def test_a_png_that_is_a_bomb_or_nested_without_end(cli, tmp_path):
    size = (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    crc = zlib.crc32(b"IHDR" + size).to_bytes(4, "big")
    header = b"\x89PNG\r\n\x1a\n" + len(size).to_bytes(4, "big") + b"IHDR"
    (tmp_path / "bomb.png").write_bytes(header + size + crc)
    refused(cli("--from", tmp_path / "bomb.png"), "not a readable PNG")
    info = PngImagePlugin.PngInfo()
    info.add_text("dnp", "[" * 100_000)
    Image.new("RGB", (8, 8)).save(tmp_path / "nested.png", pnginfo=info)
    refused(cli("--from", tmp_path / "nested.png"), "not a readable PNG")

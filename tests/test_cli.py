"""The command line as a user types it: pictures, --from, --compare, and every kind of bad input."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

import dnp
from conftest import MINI, ROOT
from dnp import pictures
from dnp.cli import main
from dnp.sd import speed


def pixels(path):
    return np.asarray(Image.open(path))


def test_a_prompt_makes_a_picture_and_names_it(cli):
    code, (png,), out, _ = cli("a red car", "--steps", 2)
    assert code == 0 and "device: cpu, float32" in out and out.strip().endswith(png.name)
    picture = Image.open(png)
    assert (picture.format, picture.size, picture.mode) == ("PNG", (64, 64), "RGB")
    settings = json.loads(picture.text["dnp"])
    assert (settings["prompt"], settings["steps"], settings["seed"]) == ("a red car", 2, 0)


def test_a_size_is_height_and_width(cli):
    code, (png,), _, _ = cli("a cat", "--steps", 1, "--size", 32, 48)
    assert code == 0 and Image.open(png).size == (48, 32)
    code, new, _, _ = cli("--from", png)
    assert code == 0 and new == []  # the same picture
    refused(cli("a cat", "--size", 30, 32), "multiples of 4")
    refused(cli("a cat", "--size", 10**6, 10**6), "at most 4096")
    refused(cli("a cat", "--size", 32), "expected 2 arguments")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
     RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
)  # fmt: skip
def test_a_full_memory_is_told_in_a_sentence(cli, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("dnp.generate", full)
    refused(cli("a cat"), "the device's memory is full")
    error = ValueError("another")
    with pytest.raises(ValueError, match="another"):
        cli("a cat")
    error = RuntimeError("unsupported memory format")  # another fault is not hidden behind it
    with pytest.raises(RuntimeError, match="memory format"):
        cli("a cat")


def test_the_recommended_scale_is_the_default(cli):
    _, (png,), _, _ = cli("a cat", "--steps", 1)
    scales = json.loads((MINI / "dnp.json").read_text())["scale"]
    assert pictures.read_settings(png)["scale"] == scales["cfg"]


@pytest.mark.parametrize("method", ["cfg", "np", "np2", "dns"])
def test_from_makes_the_same_picture_again(cli, method):
    negative = ["--negative", "a dog"] if method in ("np", "np2") else []
    words = ["a red car", "--method", method, *negative, "--steps", 3, "--seed", 7, "--eta", 0.5]
    _, (first,), _, _ = cli(*words, "--scale", 2.5)
    copy = first.rename(first.with_name("copy.png"))
    code, (again,), _, _ = cli("--from", copy)
    assert code == 0 and (pixels(again) == pixels(copy)).all()
    code, (other,), _, _ = cli("--from", copy, "--seed", 8)
    assert code == 0 and not (pixels(other) == pixels(copy)).all()


def test_a_seed_is_one_picture_in_any_batch_and_order(cli):
    _, many, _, _ = cli("a cat", "--steps", 3, "--seed", 4, "--images", 3)
    (many[0].parent / "kept").mkdir()
    kept = [p.rename(p.parent / "kept" / p.name) for p in many]
    for seed, path in reversed(list(zip((4, 5, 6), kept))):
        _, (alone,), _, _ = cli("a cat", "--steps", 3, "--seed", seed)
        assert (pixels(alone) == pixels(path)).all()


def test_compare_shows_the_methods_that_need_only_what_was_given(cli):
    code, (two,), _, _ = cli("a red car", "--compare", "--steps", 2, "--images", 2)
    assert code == 0
    _, (four,), _, _ = cli(
        "a red car", "--compare", "--steps", 2, "--images", 2, "--negative", "a cat"
    )
    cell = 192 + 8 + 18  # with a line under it: what the picture lacks
    assert Image.open(four).height - Image.open(two).height == 2 * cell
    kept = four.rename(four.with_name("kept.png"))
    code, (again,), _, _ = cli("--from", kept)
    assert code == 0 and (pixels(again) == pixels(kept)).all()


def test_a_picture_of_other_settings_is_never_overwritten(cli):
    _, (first,), _, _ = cli("a cat", "--steps", 1)
    before = first.read_bytes()
    _, (second,), _, _ = cli("a cat", "--steps", 2)
    assert second != first and first.read_bytes() == before
    assert cli("a cat", "--steps", 1)[1] == []  # the same settings: the same file again


def test_the_empty_prompt_is_phi(cli):
    _, (cfg,), _, _ = cli("", "--steps", 2, "--scale", 3)
    _, (dns,), _, _ = cli("", "--steps", 2, "--scale", 3, "--method", "dns")
    assert abs(pixels(cfg).astype(int) - pixels(dns)).max() <= 1


def test_a_long_prompt_says_what_was_cut(cli):
    code, _, _, err = cli("a cat and " * 12 + "a dog", "--steps", 1)
    assert code == 0 and 'note: the prompt has 38 tokens and the limit is 30; cut off: "' in err
    assert 'a dog"' in err


def test_it_runs_as_a_script_from_another_folder(tmp_path):
    words = [sys.executable, ROOT / "train_free_sample.py", "a cat", "--steps", "2"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and (tmp_path / "outputs" / "a-cat-cfg-0.png").exists()
    done = subprocess.run([*words, "--steps", "0"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_the_module_is_the_same_command():
    words = [sys.executable, "-m", "dnp.cli", "a cat", "--steps", "0"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "0 steps are not possible" in done.stderr


# ------------------------------------------------------------------------------------- bad input

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
    "negative scale of cfg": (["a", "--negative-scale", 2], "belongs to method np"),
    "s-dns of cfg": (["a", "--s-dns", 2], "belongs to method dnp or auto-dnp or answer"),
    "K of dns": (["a", "--method", "dns", "--K", 2], "K belongs to method answer"),
    "K of -1": (["a", "--method", "answer", "--K", -1], "choose 0 to 1000"),
    "K-until of 2": (["a", "--method", "answer", "--K-until", 2], "a fraction from 0 to 1"),
    "tensor of nothing": (["a", "--method", "answer", "--tensor", "x"], "last, next"),
    "captioner of nowhere": (
        ["a", "--method", "auto-dnp", "--captioner", "nowhere"],
        "no captioner is there",
    ),
    "captions of pictures": (
        ["a", "--method", "auto-dnp", "--caption-per", "picture"],
        "choose seed or prompt",
    ),
    "no steps": (["a", "--steps", 0], "choose 1 to 1000"),
    "too many steps": (["a", "--steps", 1001], "choose 1 to 1000"),
    "steps in words": (["a", "--steps", "many"], "invalid int value: 'many'"),
    "scale nan": (["a", "--scale", "nan"], "not finite"),
    "scale inf": (["a", "--scale", "inf"], "not finite"),
    "negative scale inf": (
        ["a", "--method", "np", "--negative", "b", "--negative-scale", "inf"],
        "not finite",
    ),
    "eta": (["a", "--eta", 1.5], "eta 1.5 is not possible"),
    "eta nan": (["a", "--eta", "nan"], "eta nan is not possible"),
    "seed": (["a", "--seed", -1], "seed -1 is not possible"),
    "huge seed": (["a", "--seed", 2**63], "is not possible"),
    "negative scale without n": (["a", "--compare", "--negative-scale", 2], "add --negative TEXT"),
    "not a device": (["a", "--device", "hpu"], "device 'hpu' cannot be used here"),
    "no images": (["a", "--images", 0], "0 images are not possible"),
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


def refused(result, sentence):
    code, new, _, err = result
    assert code == 2 and new == [] and "Traceback" not in err
    assert sentence in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")


def test_an_output_folder_that_cannot_be_written(cli, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(cli("a", "--out", tmp_path / "file"), "no picture can be written there")
    refused(cli("a", "--out", tmp_path / "file" / "below"), "no picture can be written there")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_disk_that_fills_up_leaves_nothing_half_written(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures.os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
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
    refused(cli("--from", tmp_path / "pipe.png"), "not a readable PNG (it is no regular file)")
    refused(cli("--from", "/dev/zero"), "not a readable PNG (it is no regular file)")
    (tmp_path / "outputs").mkdir()
    os.mkfifo(tmp_path / "outputs" / "a-cat-cfg-0.png")
    code, (png,), _, _ = cli("a cat", "--steps", 1)
    assert code == 0 and png.name == "a-cat-cfg-0-2.png"


def test_a_captioner_that_a_png_names_runs_no_code(cli, tmp_path, monkeypatch):
    evil = shutil.copytree(MINI / "captioner", tmp_path / "evil")
    change_json(evil / "config.json", model_type="new", auto_map={"AutoConfig": "evil.Config"})
    (evil / "evil.py").write_text("raise SystemExit('code of the folder ran')")
    settings = {"prompt": "a cat", "steps": 1, "method": "auto-dnp", "captioner": str(evil)}
    forged = pictures.save(Image.new("RGB", (8, 8)), tmp_path / "forged", "x", settings)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    refused(cli("--from", forged), "auto_map asks for code of its own, which is never run")


FORGED = [{"steps": "9"}, {"prompt": 5}, {"scale": [1]}, {"seed": None}, {"steps": True}]
FORGED += [{"compare": "no"}, {"size": 64}, {"fingerprint": 1}]


@pytest.mark.parametrize("change", FORGED)
def test_a_png_whose_settings_were_not_written_here(cli, tmp_path, change):
    _, (png,), _, _ = cli("a cat", "--steps", 1)
    settings = {**pictures.read_settings(png), **change}
    forged = pictures.save(Image.open(png), tmp_path / "forged", "x", settings)
    refused(cli("--from", forged), "was never written here")


HOSTILE = {
    "a huge scale": ({"scale": 10**400}, "not finite"),
    "a billion images": ({"images": 10**9}, "choose 1 to 10000"),
    "no Unicode": ({"prompt": "\ud800"}, "not valid Unicode"),
    "an endless path": ({"weights": "w" * 5000}, "no such file or folder"),
    "a size in words": ({"size": ["a", "b"]}, "is not possible"),
    "a size of nothing": ({"size": [2, 2]}, "multiples of 4"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_settings_in_a_png(cli, tmp_path, name):
    change, sentence = HOSTILE[name]
    settings = {"prompt": "a cat", "steps": 1, **change}
    forged = pictures.save(Image.new("RGB", (8, 8)), tmp_path / "forged", "x", settings)
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


def test_from_with_another_method_drops_what_belongs_to_the_old_one(cli):
    words = ["a cat", "--method", "np", "--negative", "a dog", "--scale", 4, "--steps", 2]
    _, (png,), _, _ = cli(*words, "--negative-scale", 1)
    code, (dns,), _, _ = cli("--from", png, "--method", "dns")
    settings = pictures.read_settings(dns)
    scales = json.loads((MINI / "dnp.json").read_text())["scale"]
    assert (code, settings["scale"], settings["negative"]) == (0, scales["dns"], None)
    code, (np2,), _, _ = cli("--from", png, "--method", "np2")
    assert code == 0 and pictures.read_settings(np2)["negative"] == "a dog"
    code, (sheet,), _, _ = cli("--from", png, "--compare")
    assert code == 0 and pictures.read_settings(sheet)["scale"] is None
    code, (one,), _, _ = cli("--from", sheet, "--method", "cfg")
    assert code == 0 and Image.open(one).size == (64, 64)


def test_from_keeps_the_size_of_a_picture_made_in_python(cli, tmp_path):
    model = dnp.load(MINI)
    speed.apply(model)  # as the command does
    r = dnp.generate(model, "a cat", steps=2, size=(32, 48))
    made = pictures.save(r.images[0], tmp_path / "api", "x", {**r.settings, "weights": str(MINI)})
    code, (again,), _, _ = cli("--from", made)
    assert code == 0 and (pixels(again) == pixels(made)).all()


def test_too_few_steps_for_leading_spacing_are_noted(cli):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        told = "note: with steps = 3, leading spacing starts at t = 667 of 1000"
        assert told in cli("a cat", "--steps", 3)[3]
        assert "note" not in cli("a cat", "--steps", 10)[3]


def test_auto_dnp_tells_its_words_and_is_made_again_without_a_captioner(cli, monkeypatch):
    words = ["a cat", "--method", "auto-dnp", "--steps", 2, "--images", 2]
    code, pngs, out, _ = cli(*words)
    assert code == 0 and len(pngs) == 2 and "auto-dnp: 10 network evaluations" in out
    recorded = pictures.read_settings(pngs[0])
    assert f'n* = "{recorded["negative"]}"' in out and recorded["s_dns"] > 0
    monkeypatch.setattr(dnp.prompting, "load_captioner", None)  # not needed any more
    code, (folder,), _, _ = cli("--from", pngs[1], "--out", "outputs/again")
    (again,) = folder.glob("*.png")
    assert code == 0 and (pixels(again) == pixels(pngs[1])).all()


def test_another_seed_gets_other_words(cli, monkeypatch):
    texts = iter(["a dog", "a bear"])
    monkeypatch.setattr(
        dnp.prompting, "load_captioner", lambda *a: lambda images: [next(texts)] * len(images)
    )
    _, (png,), _, _ = cli("a cat", "--method", "auto-dnp", "--steps", 2)
    code, (other,), _, _ = cli("--from", png, "--seed", 5)
    assert code == 0 and pictures.read_settings(other)["negative"] == "a bear"
    code, (strong,), _, _ = cli("--from", png, "--scale", 5)
    assert code == 0 and pictures.read_settings(strong)["negative"] == "a dog"


def test_dnp_shows_its_dns_image_and_asks_for_words(cli, monkeypatch):
    answers = iter(["", "word " * 60, " a green  bowl "])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    code, pngs, out, _ = cli("a cat", "--method", "dnp", "--steps", 2, "--seed", 3)
    final, dns = pngs
    assert code == 0 and dns.name == "a-cat-dnp-dns-3.png" and out.count(str(dns.name)) == 3
    assert pictures.read_settings(final)["negative"] == "a green bowl"
    code, (given,), _, _ = cli(
        "a cat", "--method", "dnp", "--steps", 2, "--seed", 3, "--negative", "a green bowl",
        "--scale", pictures.read_settings(final)["scale"],
    )  # fmt: skip
    assert code == 0 and (pixels(given) == pixels(final)).all()
    again, before = cli("--from", final), pixels(final)
    assert again[0] == 0 and (before == pixels(final)).all() and again[1] == []  # the same file


def test_every_dns_image_is_kept_and_can_be_made_again(cli, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: "a bowl")
    words = ["a cat", "--method", "dnp", "--steps", 2, "--s-dns", 0.5, "--dns-images", 2]
    code, pngs, _, _ = cli(*words, "--images", 2)
    shown = [p for p in pngs if "-dns-" in p.name]
    assert code == 0 and len(pngs) == 6 and len(shown) == 4
    before = [pixels(p) for p in shown]
    assert len({b.tobytes() for b in before}) == 4
    for path, was in zip(shown, before):
        code, (made,), _, _ = cli("--from", path, "--out", f"outputs/again-{path.stem}")
        (again,) = made.glob("*.png")
        assert code == 0 and (pixels(again) == was).all()


def test_words_go_to_np_but_a_negative_is_no_n_star(cli, monkeypatch):
    texts = iter(["a dog"])
    monkeypatch.setattr(
        dnp.prompting, "load_captioner", lambda *a: lambda images: [next(texts)] * len(images)
    )
    _, (np_png,), _, _ = cli("a cat", "--method", "np", "--negative", "a bowl", "--steps", 2)
    code, (auto,), _, _ = cli("--from", np_png, "--method", "auto-dnp")
    assert code == 0 and pictures.read_settings(auto)["negative"] == "a dog"
    code, (np2,), _, _ = cli("--from", auto, "--method", "np2")
    assert code == 0 and pictures.read_settings(np2)["negative"] == "a dog"


def test_dnp_without_anybody_to_ask(cli, monkeypatch):
    def nobody(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    code, pngs, _, err = cli("a cat", "--method", "dnp", "--steps", 2)
    assert (
        code == 2 and "--negative TEXT" in err and [p.name for p in pngs] == ["a-cat-dnp-dns-0.png"]
    )


def test_info_tells_what_weights_hold(cli):
    code, pngs, out, _ = cli("--info")
    assert code == 0 and pngs == [] and "layout      diffusers folder" in out
    assert "8,788,228 parameters" in out and "predicts    epsilon" in out
    digest = hashlib.sha256((MINI / UNET).read_bytes()).hexdigest()
    assert digest in out
    refused(cli("--info", "--weights", "nowhere"), "no such file")


def test_prediction_can_be_overridden(cli):
    _, (plain,), _, _ = cli("a cat", "--steps", 2)
    code, (other,), _, _ = cli("a cat", "--steps", 2, "--prediction", "v_prediction")
    assert code == 0 and not (pixels(plain) == pixels(other)).all()
    refused(cli("a cat", "--prediction", "x0"), "choose epsilon or v_prediction")


def test_options_of_answer_are_recorded_and_used_again(cli):
    words = ["a cat", "--method", "answer", "--steps", 4, "--K", 3, "--tensor", "jump"]
    code, (png,), out, _ = cli(*words, "--form", "two-term", "--s-dns", 0.5)
    settings = pictures.read_settings(png)
    assert code == 0 and "answer: 16 network evaluations" in out
    assert (settings["K"], settings["tensor"], settings["form"]) == (3, "jump", "two-term")
    assert settings["s_dns"] == 0.5 and settings["normalize"] == "sample"
    before = pixels(png)
    code, new, _, _ = cli("--from", png)
    assert code == 0 and new == [] and (pixels(png) == before).all()


def test_every_method_of_the_package_is_on_the_command_line():
    for m in dnp.METHODS.values():
        assert m.rule in dnp.rules.RULES


def test_other_weights_than_the_png_was_made_with_are_noted(cli, tiny):
    _, (png,), _, _ = cli("a cat", "--steps", 1)
    code, _, _, err = cli("--from", png, "--weights", tiny)
    assert code == 0 and "other weights" in err


# --------------------------------------------------------------------------------- weights folders


@pytest.fixture
def copy(tiny, tmp_path):
    """A weights folder of one's own to damage."""
    folder = tmp_path / "damaged"
    for path in tiny.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(tiny)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(tiny)).write_bytes(path.read_bytes())
    return folder


UNET = "unet/diffusion_pytorch_model.safetensors"


def change_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_json(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_an_undamaged_copy_works(cli, copy):
    assert cli("a cat", "--steps", 1, "--weights", copy)[0] == 0


def test_truncated_weights(cli, copy):
    data = (copy / UNET).read_bytes()
    for size in (0, 4, 200, len(data) - 1):
        (copy / UNET).write_bytes(data[:size])
        refused(cli("a", "--weights", copy), "truncated or damaged")


def test_a_pickle_is_never_opened(cli, copy):
    torch.save({}, copy / "unet" / "diffusion_pytorch_model.bin")
    os.remove(copy / UNET)
    refused(cli("a", "--weights", copy), "is a pickle")
    torch.save({}, copy / UNET)
    refused(cli("a", "--weights", copy), "is a pickle")


def test_weights_of_other_shapes_are_counted_and_named(cli, copy):
    def damage(tensors):
        tensors["conv_in.weight"] = torch.zeros(3, 3)
        tensors["surprise"] = torch.zeros(1)
        for key in [k for k in tensors if "time_emb_proj" in k]:
            del tensors[key]

    change_tensors(copy / UNET, damage)
    code, _, _, err = cli("a", "--weights", copy)
    assert code == 2 and "16 missing (down_blocks.0.resnets.0.time_emb_proj.weight" in err
    assert "1 unexpected (surprise)" in err
    assert "1 mis-shaped (conv_in.weight (3, 3) for (24, 4, 3, 3))" in err


def test_integer_weights_are_refused(cli, copy):
    change_tensors(copy / UNET, lambda t: t.update({"conv_in.bias": t["conv_in.bias"].int()}))
    refused(cli("a", "--weights", copy), "1 of a type that is not read (conv_in.bias)")


def test_a_non_finite_eps_names_the_step(cli, copy):
    change_tensors(copy / UNET, lambda t: t["conv_out.bias"].fill_(3e38))
    refused(cli("a", "--weights", copy, "--steps", 3), "not finite at step 2 of 3")


LIES = [  # (part, entry of its config, value, what the error must say)
    ("unet", "class_embed_type", "timestep", "class_embed_type = 'timestep' is not supported"),
    ("unet", "block_out_channels", [24, -48], "block_out_channels = (24, -48) is not possible"),
    ("unet", "norm_num_groups", 7, "not divisible by norm_num_groups = 7"),
    ("unet", "block_out_channels", 48, "block_out_channels = 48 is not possible"),
    ("unet", "down_block_types", None, "down_attention = () is not possible"),
    ("unet", "down_block_types", [{}, {}], "down_block_types = {} is not supported"),
    ("unet", "mid_block_type", None, "mid_block_type = None is not supported"),
    ("unet", "layers_per_block", [1, 2], "layers_per_block = (1, 2) is not possible or not supp"),
    ("unet", "transformer_layers_per_block", [1, 2, 3], "(1, 2, 3) is not supported"),
    ("unet", "sample_size", 10**6, "is not possible"),
    ("vae", "out_channels", 4, "(3, 4) is not supported"),
    ("unet", "layers_per_block", 10**9, "layers_per_block = 1000000000 is not possible"),
    ("unet", "cross_attention_dim", "40", "cross_attention_dim = '40' is not possible"),
    ("unet", "down_block_types", ["DownBlock2D"], "down_attention has 1 entries for 2 levels"),
    ("unet", "up_block_types", ["SkipUpBlock2D", "X"], "'SkipUpBlock2D' is not supported"),
    ("unet", "cross_attention_dim", 48, "the text encoder is 40 wide"),
    ("unet", "in_channels", 9, "inpainting"),
    ("vae", "latent_channels", 16, "VAE has 16"),
    ("vae", "down_block_types", ["X", "X"], "down_block_types = 'X' is not supported"),
    ("vae", "scaling_factor", 0, "scaling_factor = 0 is not possible"),
    ("text_encoder", "hidden_act", "relu", "hidden_act = 'relu' is not supported"),
    ("text_encoder", "use_attention_mask", True, "use_attention_mask = True is not supported"),
    ("text_encoder", "vocab_size", 9, "token_embedding.weight (886, 40) for (9, 40)"),
    ("scheduler", "prediction_type", "sample", "prediction_type = 'sample' is not supported"),
    ("scheduler", "timestep_spacing", "x", "must be 'leading' or 'trailing' or 'linspace'"),
    ("scheduler", "beta_start", 2, "beta from 2 to"),
    ("scheduler", "beta_start", 10**400, "is not possible"),
    ("scheduler", "beta_end", None, "is not possible"),
    ("scheduler", "steps_offset", "1", "steps_offset = '1' is not possible"),
]


@pytest.mark.parametrize(("part", "entry", "value", "sentence"), LIES)
def test_a_config_that_describes_another_network(cli, copy, part, entry, value, sentence):
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    change_json(copy / part / name, **{entry: value})
    refused(cli("a", "--weights", copy), sentence)


def test_a_tokenizer_of_another_model(cli, copy):
    def cut(tensors):
        key = next(k for k in tensors if k.endswith("token_embedding.weight"))
        tensors[key] = tensors[key][:100].clone()

    change_tensors(copy / "text_encoder" / "model.safetensors", cut)
    change_json(copy / "text_encoder" / "config.json", vocab_size=100)
    refused(cli("a", "--weights", copy), "its tokens go up to 885")


def test_missing_and_broken_parts(cli, copy, tmp_path):
    (copy / "unet" / "config.json").write_text("{")
    refused(cli("a", "--weights", copy), "cannot be read as JSON")
    (copy / "unet" / "config.json").write_text("[]")
    refused(cli("a", "--weights", copy), "holds no JSON object")
    os.remove(copy / "unet" / "config.json")
    refused(cli("a", "--weights", copy), "config.json: no such file")
    (tmp_path / "single.safetensors").write_bytes(b"x")
    refused(cli("a", "--weights", tmp_path / "single.safetensors"), "is truncated or damaged")


def test_a_missing_tokenizer_and_file(cli, copy):
    vae = copy / "vae" / "diffusion_pytorch_model.safetensors"
    away = vae.rename(copy / "away")
    refused(cli("a", "--weights", copy), "no such file; fetch the safetensors variant")
    vae.with_name("diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    refused(cli("a", "--weights", copy), "weight_map names no files")
    away.rename(vae)
    for path in (copy / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()
    refused(cli("a", "--weights", copy), "neither tokenizer.json nor vocab.json and merges.txt")
    (copy / "tokenizer" / "tokenizer.json").write_text("{}")
    refused(cli("a", "--weights", copy), "no CLIP tokenizer")


def test_a_tensor_under_two_names(cli, copy):
    def twice(tensors):
        key = next(k for k in tensors if k.endswith("final_layer_norm.bias"))
        tensors["text_model.final_layer_norm.bias"] = tensors[key].clone()
        tensors["final_layer_norm.bias"] = tensors[key].clone()

    change_tensors(copy / "text_encoder" / "model.safetensors", twice)
    refused(cli("a", "--weights", copy), "holds a tensor twice")


def test_a_vae_that_returns_nan_is_no_black_picture(cli, copy):
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    change_tensors(path, lambda t: t["decoder.conv_norm_out.weight"].fill_(3e38))
    refused(cli("a", "--weights", copy, "--steps", 1), "the VAE's picture is not finite")


def test_old_vae_attention_names_and_prefixes_load(cli, copy):
    _, (new,), _, _ = cli("a cat", "--steps", 1, "--weights", copy)
    kept = new.rename(new.with_name("kept.png"))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        for key in [k for k in tensors if "mid_block.attentions" in k]:
            for a, b in old.items():
                if f".{a}." in key:
                    tensors[key.replace(f".{a}.", f".{b}.")] = tensors.pop(key)

    change_tensors(copy / "vae" / "diffusion_pytorch_model.safetensors", rename)

    def prefix(tensors):
        for key in list(tensors):
            tensors["text_model." + key.removeprefix("text_model.")] = tensors.pop(key)
        tensors["text_model.embeddings.position_ids"] = torch.arange(20)[None]

    change_tensors(copy / "text_encoder" / "model.safetensors", prefix)
    code, (again,), _, _ = cli("a cat", "--steps", 1, "--weights", copy)
    assert code == 0 and (pixels(again) == pixels(kept)).all()


def test_dnp_json_is_checked(cli, copy):
    (copy / "dnp.json").write_text('{"scale": {"cfg": "big"}}')
    refused(cli("a", "--weights", copy), "must map methods to finite numbers")
    (copy / "dnp.json").write_text('{"scale": {"cfg": 1.25}}')
    _, (png,), _, _ = cli("a", "--weights", copy, "--steps", 1)
    assert pictures.read_settings(png)["scale"] == 1.25


# --------------------------------------------------------------------------- a file of prompts


def test_prompts_of_a_file_are_those_of_single_calls(tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a red car\ta dog  \r\n", encoding="utf-8-sig")
    main(["--prompts", str(file), "--steps", "2", "--out", str(tmp_path / "a")])
    assert capsys.readouterr().out.count("device: ") == 1  # one model for all
    main(["a cat", "--steps", "2", "--out", str(tmp_path / "b")])
    main(["a red car", "--negative", "a dog", "--steps", "2", "--out", str(tmp_path / "b")])
    names = sorted(p.name for p in (tmp_path / "a").glob("*"))
    assert names == sorted(p.name for p in (tmp_path / "b").glob("*")) and len(names) == 2
    for name in names:
        a, b = (tmp_path / folder / name for folder in "ab")
        assert pictures.read_settings(a) == pictures.read_settings(b)
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        (None, [], "cannot be read"),
        (b"\xff\xfe\x00", [], "text file in UTF-8"),
        (b" \n\t\n", [], "holds no prompt"),
        (b"a cat\na cat\ta dog\ta bear\n", [], "line 2: more than one TAB"),
        (b"a cat\n", ["a dog"], "both given"),
        (b"a cat\na cat\ta dog\n", ["--method", "dns"], "dns takes no negative prompt"),
    ],
)
def test_files_of_prompts_that_cannot_be_drawn_are_refused_before_the_first(
    tmp_path, capsys, text, options, sentence
):
    file, out = tmp_path / "prompts.txt", tmp_path / "out"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(SystemExit) as stopped:
        main(["--prompts", str(file), "--out", str(out), *options])
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err
    assert not out.exists()

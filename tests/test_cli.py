"""The command line as a user types it: pictures, --from, --compare, and a file of prompts."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from PIL import Image

import dnp
from conftest import MINI, ROOT, change_json, pixels, refused, slow_but
from dnp.app.command_line import main
from dnp.app.png import read_settings, save
from dnp.sd import speed
from experiments import world

SMALL = ("--size", 32, 32)


def test_a_prompt_makes_a_picture_and_names_it(cli):
    code, (png,), out, _ = cli("a red car", "--steps", 2)
    assert code == 0 and "device: cpu, float32" in out and out.strip().endswith(png.name)
    picture = Image.open(png)
    assert (picture.format, picture.size, picture.mode) == ("PNG", (64, 64), "RGB")
    settings = json.loads(picture.text["dnp"])
    assert (settings["prompt"], settings["steps"], settings["seed"]) == ("a red car", 2, 0)


def test_a_size_is_height_and_width(small_cli):
    code, (png,), _, _ = small_cli("a cat", "--steps", 1, "--size", 32, 48)
    assert code == 0 and Image.open(png).size == (48, 32)
    code, new, _, _ = small_cli("--from", png)
    assert code == 0 and new == []  # the same picture
    refused(small_cli("a cat", "--size", 30, 32), "multiples of 4")
    refused(small_cli("a cat", "--size", 10**6, 10**6), "at most 4096")
    refused(small_cli("a cat", "--size", 32), "expected 2 arguments")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
     RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
)  # fmt: skip
def test_a_full_memory_is_told_in_a_sentence(small_cli, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("dnp.generation.generate_rows", full)
    refused(small_cli("a cat"), "the device's memory is full")
    error = ValueError("another")
    with pytest.raises(ValueError, match="another"):
        small_cli("a cat")
    error = RuntimeError("unsupported memory format")  # another fault is not hidden behind it
    with pytest.raises(RuntimeError, match="memory format"):
        small_cli("a cat")


def test_the_recommended_scale_is_the_default(small_cli):
    _, (png,), _, _ = small_cli("a cat", "--steps", 1)
    scales = json.loads((MINI / "dnp.json").read_text())["scale"]
    assert read_settings(png)["s"] == scales["cfg"]


@pytest.mark.parametrize(
    "method", slow_but(["cfg", "np", "cnp"], ["cfg", "np", "np2", "dns", "cnp"])
)
def test_from_makes_the_same_picture_again(small_cli, method):
    negative = ["--negative", "a dog"] if method in ("np", "np2") else []
    words = ["a red car", "--method", method, *negative, "--steps", 3, "--seed", 7, "--eta", 0.5]
    words += SMALL
    _, (first,), _, _ = small_cli(*words, "--scale", 2.5)
    copy = first.rename(first.with_name("copy.png"))
    code, (again,), _, _ = small_cli("--from", copy)
    assert code == 0 and (pixels(again) == pixels(copy)).all()
    code, (other,), _, _ = small_cli("--from", copy, "--seed", 8)
    assert code == 0 and not (pixels(other) == pixels(copy)).all()


def test_s_and_scale_are_one_option(small_cli):
    _, (made,), _, _ = small_cli("a cat", "--steps", 1, "--scale", 2.5)
    assert small_cli("a cat", "--steps", 1, "--s", 2.5)[1] == [] and read_settings(made)["s"] == 2.5


def test_a_seed_is_one_picture_in_any_batch_and_order(small_cli):
    _, many, _, _ = small_cli("a cat", "--steps", 3, "--seed", 4, "--images", 3, *SMALL)
    (many[0].parent / "kept").mkdir()
    kept = [p.rename(p.parent / "kept" / p.name) for p in many]
    for seed, path in reversed(list(zip((4, 5, 6), kept))):
        _, (alone,), _, _ = small_cli("a cat", "--steps", 3, "--seed", seed, *SMALL)
        assert (pixels(alone) == pixels(path)).all()


def test_compare_shows_the_methods_that_need_only_what_was_given(small_cli):
    words = ["a red car", "--compare", "--steps", 1, "--images", 2]
    code, (two,), _, _ = small_cli(*words)
    assert code == 0
    _, (four,), _, _ = small_cli(*words, "--negative", "a cat")
    cell = 192 + 8 + 18  # with a line under it: what the picture lacks
    assert Image.open(four).height - Image.open(two).height == 2 * cell
    kept = four.rename(four.with_name("kept.png"))
    code, (again,), _, _ = small_cli("--from", kept)
    assert code == 0 and (pixels(again) == pixels(kept)).all()


def test_a_picture_of_other_settings_is_never_overwritten(small_cli):
    _, (first,), _, _ = small_cli("a cat", "--steps", 1)
    before = first.read_bytes()
    _, (second,), _, _ = small_cli("a cat", "--steps", 2)
    assert second != first and first.read_bytes() == before
    assert small_cli("a cat", "--steps", 1)[1] == []  # the same settings: the same file again


def test_the_empty_prompt_is_phi(small_cli):
    _, (cfg,), _, _ = small_cli("", "--steps", 2, "--scale", 3)
    _, (dns,), _, _ = small_cli("", "--steps", 2, "--scale", 3, "--method", "dns")
    assert abs(pixels(cfg).astype(int) - pixels(dns)).max() <= 1


def test_a_long_prompt_says_what_was_cut(small_cli):
    code, _, _, err = small_cli("a cat and " * 12 + "a dog", "--steps", 1)
    assert code == 0 and 'note: the prompt has 38 tokens and the limit is 30; cut off: "' in err
    assert 'a dog"' in err


def test_it_runs_as_a_module_from_another_folder(tmp_path, monkeypatch, capsys):
    words = ["a cat", "--steps", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "dnp", *words], cwd=tmp_path, capture_output=True, text=True,
        timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "outputs" / "a-cat-cfg-0.png").exists()
    monkeypatch.setattr(sys, "argv", ["dnp", *words, "--steps", "0"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("dnp", run_name="__main__")
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and "steps = 0 is not possible" in told
    assert "Traceback" not in told


def test_a_sheet_holds_the_settings_that_were_given_and_no_row_s_own(small_cli):
    _, (sheet,), _, _ = small_cli("a cat", "--compare", "--steps", 1, "--K", 1, *SMALL)
    told = read_settings(sheet)
    assert (told["K"], told["steps"], told["s"], told["compare"]) == (1, 1, None, True)


def test_a_captioner_is_opened_only_for_a_method_that_asks_one(small_cli):
    code, (png,), _, _ = small_cli("a cat", "--steps", 1, "--captioner", "nowhere")
    assert code == 0 and read_settings(png)["captioner"] == "nowhere"
    words = ["a cat", "--steps", 1, "--captioner", "nowhere", "--method"]
    refused(small_cli(*words, "auto-dnp"), "no captioner is there")
    refused(small_cli(*words, "cnp"), "no captioner is there")


def test_from_with_another_method_drops_what_belongs_to_the_old_one(small_cli):
    words = ["a cat", "--method", "np", "--negative", "a dog", "--scale", 4, "--steps", 2]
    _, (png,), _, _ = small_cli(*words, "--negative-scale", 1, *SMALL)
    code, (dns,), _, _ = small_cli("--from", png, "--method", "dns")
    settings = read_settings(dns)
    scales = json.loads((MINI / "dnp.json").read_text())["scale"]
    assert (code, settings["s"], settings["negative"]) == (0, scales["dns"], None)
    code, (np2,), _, _ = small_cli("--from", png, "--method", "np2")
    assert code == 0 and read_settings(np2)["negative"] == "a dog"
    code, (sheet,), _, _ = small_cli("--from", png, "--compare")
    assert code == 0 and read_settings(sheet)["s"] is None
    code, (one,), _, _ = small_cli("--from", sheet, "--method", "cfg")
    assert code == 0 and Image.open(one).size == (32, 32)


def test_from_keeps_the_size_of_a_picture_made_in_python(small_cli, tmp_path):
    model = dnp.load(world())
    speed.apply(model)  # as the command does
    r = dnp.generate(model, "a cat", steps=2, size=(32, 48))
    made = save(r.images[0], tmp_path / "api", "x", {**r.settings, "weights": str(world())})
    code, (again,), _, _ = small_cli("--from", made)
    assert code == 0 and (pixels(again) == pixels(made)).all()


def test_too_few_steps_for_leading_spacing_are_noted(small_cli):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        told = "note: with steps = 3, leading spacing starts at t = 667 of 1000"
        assert told in small_cli("a cat", "--steps", 3, *SMALL)[3]
        assert "note" not in small_cli("a cat", "--steps", 10, *SMALL)[3]


def test_auto_dnp_tells_its_words_and_is_made_again_without_a_captioner(small_cli, monkeypatch):
    words = ["a cat", "--method", "auto-dnp", "--steps", 2, "--images", 2, *SMALL]
    code, pngs, out, _ = small_cli(*words)
    assert code == 0 and len(pngs) == 2 and "auto-dnp: 10 network evaluations" in out
    recorded = read_settings(pngs[0])
    assert f'n* = "{recorded["negative"]}"' in out and recorded["s_dns"] > 0
    monkeypatch.setattr(dnp.sd.captioner, "load_captioner", None)  # not needed any more
    code, (folder,), _, _ = small_cli("--from", pngs[1], "--out", "outputs/again")
    (again,) = folder.glob("*.png")
    assert code == 0 and (pixels(again) == pixels(pngs[1])).all()


def test_another_seed_gets_other_words(small_cli, monkeypatch):
    texts = iter(["a dog", "a bear"])
    monkeypatch.setattr(
        dnp.sd.captioner, "load_captioner", lambda *a: lambda images: [next(texts)] * len(images)
    )
    _, (png,), _, _ = small_cli("a cat", "--method", "auto-dnp", "--steps", 2, *SMALL)
    code, (other,), _, _ = small_cli("--from", png, "--seed", 5)
    assert code == 0 and read_settings(other)["negative"] == "a bear"
    code, (strong,), _, _ = small_cli("--from", png, "--scale", 5)
    assert code == 0 and read_settings(strong)["negative"] == "a dog"


def test_dnp_shows_its_dns_image_and_asks_for_words(small_cli, monkeypatch):
    answers = iter(["", "word " * 60, " a green  bowl "])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    code, pngs, out, _ = small_cli("a cat", "--method", "dnp", "--steps", 2, "--seed", 3, *SMALL)
    final, dns = pngs
    assert code == 0 and dns.name == "a-cat-dnp-dns-3.png" and out.count(str(dns.name)) == 3
    assert read_settings(final)["negative"] == "a green bowl"
    code, (given,), _, _ = small_cli(
        "a cat", "--method", "dnp", "--steps", 2, "--seed", 3, "--negative", "a green bowl",
        "--scale", read_settings(final)["s"], *SMALL,
    )  # fmt: skip
    assert code == 0 and (pixels(given) == pixels(final)).all()
    again, before = small_cli("--from", final), pixels(final)
    assert again[0] == 0 and (before == pixels(final)).all() and again[1] == []  # the same file


def test_every_dns_image_is_kept_and_can_be_made_again(small_cli, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: "a bowl")
    words = ["a cat", "--method", "dnp", "--steps", 2, "--s-dns", 0.5, "--dns-images", 2, *SMALL]
    code, pngs, _, _ = small_cli(*words, "--images", 2)
    shown = [p for p in pngs if "-dns-" in p.name]
    assert code == 0 and len(pngs) == 6 and len(shown) == 4
    before = [pixels(p) for p in shown]
    assert len({b.tobytes() for b in before}) == 4
    for path, was in zip(shown, before):
        code, (made,), _, _ = small_cli("--from", path, "--out", f"outputs/again-{path.stem}")
        (again,) = made.glob("*.png")
        assert code == 0 and (pixels(again) == was).all()


def test_a_dns_image_is_of_its_weights(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: "a bowl")
    folder = shutil.copytree(tiny, tmp_path / "weights")
    words = ["a cat", "--method", "dnp", "--steps", 2, "--s-dns", 1, "--weights", folder]
    _, (_, dns), _, _ = cli(*words, "--prediction", "epsilon")
    before = pixels(dns)
    told = cli("--from", dns, "--out", "again")[3]
    (again,) = (tmp_path / "again").iterdir()
    assert "other weights" not in told and (pixels(again) == before).all()
    change_json(folder / "scheduler" / "scheduler_config.json", beta_end=0.015)
    assert "other weights than the PNG" in cli("--from", dns, "--out", "again")[3]
    _, (_, new), _, _ = cli(*words, "--prediction", "epsilon")
    assert new.name == "a-cat-dnp-dns-0-2.png" and (pixels(dns) == before).all()


def test_words_go_to_np_but_a_negative_is_no_n_star(small_cli, monkeypatch):
    texts = iter(["a dog"])
    monkeypatch.setattr(
        dnp.sd.captioner, "load_captioner", lambda *a: lambda images: [next(texts)] * len(images)
    )
    words = ["a cat", "--method", "np", "--negative", "a bowl", "--steps", 2]
    _, (np_png,), _, _ = small_cli(*words, *SMALL)
    code, (auto,), _, _ = small_cli("--from", np_png, "--method", "auto-dnp")
    assert code == 0 and read_settings(auto)["negative"] == "a dog"
    code, (np2,), _, _ = small_cli("--from", auto, "--method", "np2")
    assert code == 0 and read_settings(np2)["negative"] == "a dog"


def test_dnp_without_anybody_to_ask(small_cli, monkeypatch):
    def nobody(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    code, pngs, _, err = small_cli("a cat", "--method", "dnp", "--steps", 2)
    assert (
        code == 2 and "--negative TEXT" in err and [p.name for p in pngs] == ["a-cat-dnp-dns-0.png"]
    )


def test_prediction_can_be_overridden(small_cli):
    _, (plain,), _, _ = small_cli("a cat", "--steps", 2)
    code, (other,), _, _ = small_cli("a cat", "--steps", 2, "--prediction", "v_prediction")
    assert code == 0 and not (pixels(plain) == pixels(other)).all()
    refused(small_cli("a cat", "--prediction", "x0"), "choose epsilon or v_prediction")


def test_options_of_answer_are_recorded_and_used_again(small_cli):
    words = ["a cat", "--method", "answer", "--steps", 4, "--K", 3, "--normalize", "no", *SMALL]
    two = ["--rule", "negative_prompt_two_term"]
    code, (png,), out, _ = small_cli(*words, *two, "--s-dns", 0.5)
    settings = read_settings(png)
    assert code == 0 and "answer: 16 network evaluations" in out
    assert (settings["K"], settings["rule"]) == (3, "negative_prompt_two_term")
    assert settings["s_dns"] == 0.5 and settings["normalize"] is False
    before = pixels(png)
    code, new, _, _ = small_cli("--from", png)
    assert code == 0 and new == [] and (pixels(png) == before).all()


def test_every_method_of_the_package_is_on_the_command_line():
    for name, m in dnp.METHODS.items():
        assert m.name == name and m.own_rule in dnp.rules.RULES


def test_other_weights_than_the_png_was_made_with_are_noted(small_cli, tiny):
    _, (png,), _, _ = small_cli("a cat", "--steps", 1)
    code, _, _, err = small_cli("--from", png, "--weights", tiny)
    assert code == 0 and "other weights" in err


def test_prompts_of_a_file_are_those_of_single_calls(small_cli, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\n  a red car\ta dog  \r\n", encoding="utf-8-sig")
    _, _, out, _ = small_cli("--prompts", "prompts.txt", "--steps", 2, "--out", "a")
    assert out.count("device: ") == 1  # one model for all
    small_cli("a cat", "--steps", 2, "--out", "b")
    small_cli("a red car", "--negative", "a dog", "--steps", 2, "--out", "b")
    names = sorted(p.name for p in (tmp_path / "a").glob("*"))
    assert names == sorted(p.name for p in (tmp_path / "b").glob("*")) and len(names) == 2
    for name in names:
        a, b = (tmp_path / folder / name for folder in "ab")
        assert read_settings(a) == read_settings(b)
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        (
            None,
            [],
            "prompts.txt: cannot be read (no such file or directory); give --prompts a text",
        ),
        (b"\xff\xfe\x00", [], "text file in UTF-8"),
        (b" \n\t\n", [], "does not hold a prompt"),
        (b"a cat\na cat\ta dog\ta bear\n", [], "line 2: more than one TAB"),
        (b"a cat\n", ["a dog"], "both given"),
        (b"a cat\na cat\ta dog\n", ["--method", "dns"], "dns takes no negative prompt"),
        (b"a cat and a dog\nthe grass\n", ["--method", "neglect"], "needs the subjects"),
        (b"a cat\na dog\n", ["--method", "ae", "--subjects", "cat"], "is not in the prompt"),
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

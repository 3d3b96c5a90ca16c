"""`train_free_sample.py`, the algorithm to read: its pictures are those of `dnp.generate`."""

import runpy
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from PIL import Image

import dnp
import train_free_sample
from command_line import ended
from conftest import ROOT, change_json
from dnp import guidance
from experiments import world

PROMPT = "a cat and a red car"


def test_the_lines_at_the_head_of_the_package_are_dns(tmp_path, monkeypatch):
    code = dnp.__doc__.split("\n\n", 1)[1].split("\n\nThe mathematics")[0]
    monkeypatch.chdir(ROOT)
    space = {}
    exec(textwrap.dedent(code).replace("opposite.png", str(tmp_path / "opposite.png")), space)
    made = dnp.generate(space["model"], "a red car", "dns", s=1.0, steps=20)
    assert torch.allclose(space["z_t"], made.latents[1], atol=1e-3)
    assert (tmp_path / "opposite.png").is_file()


PATH = str(ROOT / "train_free_sample.py")


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """The script as it is typed, in this process: (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [PATH, *map(str, words)])
        return ended(lambda: runpy.run_path(PATH, run_name="__main__"), capsys)

    return run


def test_it_is_short_enough_to_read():
    assert len((ROOT / "train_free_sample.py").read_text().splitlines()) < 100


def test_its_pictures_are_those_of_generate_to_the_byte(script, tmp_path):
    code, out, err = script(PROMPT, "--steps", 3, "--seed", 4, "--scale", 2, "--weights", world())
    assert code == 0, err
    model, how = dnp.load(world()), dict(s=2.0, steps=3, seed=4)
    auto = dnp.generate(model, PROMPT, "auto-dnp", s_dns=2.0, **how)
    assert f'n* = "{auto.negative}"' in out
    wanted = {
        "cfg": dnp.generate(model, PROMPT, "cfg", **how).images[0],
        "dns": dnp.generate(model, PROMPT, "dns", **how).images[0],
        "dnp": auto.images[0],
    }
    for name, picture in wanted.items():
        with Image.open(tmp_path / "outputs" / f"{name}.png") as drawn:
            assert drawn.tobytes() == picture.tobytes(), name
    assert (tmp_path / "outputs" / "sheet.png").is_file()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_its_latents_are_those_of_generate_on_v_prediction(tiny, tmp_path, spacing):
    folder = shutil.copytree(tiny, tmp_path / "tiny")
    change_json(folder / "scheduler" / "scheduler_config.json", timestep_spacing=spacing)
    model, how = dnp.load(folder), dict(s=2.0, steps=3, seed=4)
    assert (model.config.prediction_type, model.config.spacing) == ("v_prediction", spacing)
    r = dnp.generate(model, PROMPT, "np", "a dog", **how)
    rule = lambda phi, p, n: guidance.negative_prompt(phi, p, n, 2.0)
    z_0 = train_free_sample.sample(model, ["", PROMPT, "a dog"], rule, r.latents[0], 3)
    assert torch.equal(z_0, r.latents[1])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((PROMPT, "--method", "ae"), "--method"),
        ((PROMPT, "--steps", 0), "--steps 0 is not possible"),
        ((PROMPT, "--weights", "nowhere"), "nowhere"),
        ((PROMPT, "--ask"), "no words came"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(script, words, sentence):
    few = [] if "--steps" in words else ["--steps", 1]
    code, _, err = script(*words, *few)
    assert code == 2 and sentence in err and "Traceback" not in err


def test_nobody_at_standard_input_is_one_sentence_of_a_process(tmp_path):
    line = [sys.executable, PATH, PROMPT, "--steps", "1", "--ask"]
    done = subprocess.run(line, cwd=tmp_path, input="", capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and (tmp_path / "outputs" / "dns.png").is_file()
    assert "no words came" in done.stderr and "Traceback" not in done.stderr

"""The training code of the miniature, for a few seconds: it trains, resumes, exports, and the
folder loads; and the world that it draws is the one that the captions describe."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open

import dnp
from conftest import ROOT

TRAINING = ROOT / "weights" / "mini" / "training"
sys.path.append(str(TRAINING))


def run(script, *words):
    command = [sys.executable, TRAINING / script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_everything_trains_goes_on_where_it_stopped_and_exports_a_folder_that_loads(tmp_path):
    out, to = tmp_path / "run", tmp_path / "mini"
    common = ("--scenes", 400, "--out", out, "--to", to, "--device", "cpu", "--batch", 8)
    assert "dB PSNR" in run("train.py", "all", "--minutes", 0.6, *common)

    def step():
        with safe_open(out / "unet.safetensors", "pt") as f:
            return int(f.metadata()["step"])

    first = step()
    again = run("train.py", "unet", "--minutes", 0.5, "--resume", *common)
    assert f"at step {first}" in again and step() > first
    for part in ("vae", "clip", "recogniser", "captioner", "unet"):
        rows = [json.loads(line) for line in (out / f"{part}.jsonl").read_text().splitlines()]
        assert rows and all(np.isfinite(r["loss"]) for r in rows)
    result = dnp.generate(dnp.load(to), "a cat", "auto-dnp", steps=10)
    assert result.images[0].size == (64, 64) and result.negative is not None
    told = run("evaluate.py", "--weights", to, "--only", "scenes", "--scenes", 30, "--out", out)
    report = json.loads(told)
    assert report["VAE, dB"] > 5 and 0 <= report["captioner"]["two things"] <= 1


def test_a_checkpoint_is_not_overwritten_by_accident(tmp_path):
    (tmp_path / "vae.safetensors").write_bytes(b"")
    words = ["vae", "--scenes", "4", "--out", tmp_path, "--device", "cpu"]
    command = [sys.executable, TRAINING / "train.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "add --resume" in done.stderr


def test_scenes_depend_on_their_seed_and_number_alone():
    import world

    images, captions, scenes = world.dataset(12, 5, processes=1)
    assert images.shape == (12, 64, 64, 3) and images.dtype == np.uint8
    assert (world.render(world.scene_at(5, 7)[0]) == images[7]).all()
    again = world.dataset(9, 5, processes=1)
    assert (again[0] == images[:9]).all() and again[1] == captions[:9] and again[2] == scenes[:9]


def test_captions_name_what_is_drawn_and_hold_out_what_is_held_out():
    import world

    words, singles = set(world.words()), 0
    for i in range(400):
        scene, rng = world.scene_at(1, i)
        caption = world.caption(scene, rng)
        said = caption.split()
        assert set(said) <= words
        for thing in scene.things:
            assert thing.word in said
            if thing.colour:
                assert f"{thing.colour} {thing.word}" in caption
                assert (thing.colour, thing.word) not in world.HELD_OUT_COLOURS
        pair = frozenset(thing.word for thing in scene.things)
        assert pair not in world.HELD_OUT_PAIRS
        singles += len(scene.things) == 1
    assert 130 < singles < 210

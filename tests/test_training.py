"""The training code of the miniature, for a few seconds: it trains, resumes, exports, and the
folder loads; and the world that it draws is the one that the captions describe."""

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import dnp
from conftest import ROOT
from dnp.sd.config import MINI_VAE
from dnp.sd.vae import VAE

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
    assert report["VAE, dB"] > 5 and 0 <= report["captioner"]["two things"][0] <= 1


def test_a_checkpoint_is_not_overwritten_by_accident(tmp_path, capsys):
    from common import Trainer

    (path := tmp_path / "vae.safetensors").write_bytes(b"")
    args = Namespace(minutes=1, resume=False)
    with pytest.raises(SystemExit, match="2"):
        Trainer(torch.nn.Linear(1, 1), path, args, lr=1e-3, ema=0.9)
    assert "add --resume" in capsys.readouterr().err and path.read_bytes() == b""


def test_scenes_depend_on_their_seed_and_number_alone():
    import world

    images, captions, scenes = world.dataset(12, 5, processes=1)
    assert images.shape == (12, 64, 64, 3) and images.dtype == np.uint8
    assert (world.render(world.scene_at(5, 7)[0]) == images[7]).all()
    again = world.dataset(9, 5, processes=1)
    assert (again[0] == images[:9]).all() and again[1] == captions[:9] and again[2] == scenes[:9]


def test_captions_name_what_is_drawn_and_hold_out_what_is_held_out():
    import world
    from dnp.evaluation import trio

    words, count = set(world.words()), [0, 0, 0, 0]
    for i in range(2000):
        scene, rng = world.scene_at(1, i)
        caption = world.caption(scene, rng)
        said = caption.replace(",", "").split()
        assert set(said) <= words
        for thing in scene.things:
            assert thing.word in said
            if thing.colour:
                assert f"{thing.colour} {thing.word}" in caption
                assert (thing.colour, thing.word) not in trio.HELD_OUT_COLOURS
        shown = {thing.word for thing in scene.things}
        assert len(shown) == len(scene.things)  # none twice
        for n, held_out in ((2, trio.HELD_OUT_PAIRS), (3, trio.HELD_OUT_TRIOS)):
            assert not any(frozenset(c) in held_out for c in combinations(shown, n))
        count[len(shown)] += 1
    np.testing.assert_allclose(np.array(count) / 2000, [0.02, 0.34, 0.48, 0.16], atol=0.02)


def test_held_out_combinations_are_drawn_where_training_is_not_asked_for():
    import world

    scenes = [world.scene_at(1, i, "held-out")[0] for i in range(600)]
    held = [world.held_out({t.word for t in s.things}) for s in scenes]
    assert sum(held) > 20


def test_three_things_lie_in_the_frame_and_hide_one_another_by_a_sixth_at_most():
    import world

    three = [s for s in (world.scene_at(2, i)[0] for i in range(1500)) if len(s.things) == 3]
    assert len(three) > 120
    for scene in three:
        boxes = [t.box for t in scene.things]
        assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in boxes)
        for a, b in combinations(boxes, 2):
            w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
            small = min((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
            assert max(w, 0) * max(h, 0) < small / 6


def test_two_decoders_are_compared_in_points_of_the_same_pictures():
    from decoders import paired

    told = paired([[True, False], [False, False]], [[True, True], [False, True]])
    assert (told["first"], told["second"]) == (25.0, 75.0)
    assert told["difference"] == [50.0, 50.0, 50.0]  # both prompts gained one of two


@torch.no_grad()
def test_a_deeper_decoder_starts_as_the_same_function_to_the_bit():
    from decoder import deeper

    shallow = VAE(replace(MINI_VAE, layers_per_block=1))
    deep = deeper(shallow.state_dict())
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (mean, logvar), latents = shallow.encode(x), deep.encode(x)
    assert torch.equal(mean, latents[0]) and torch.equal(logvar, latents[1])
    assert torch.equal(shallow.decode(mean), deep.decode(mean))


@torch.no_grad()
def test_the_miniature_has_the_latents_of_its_shallow_encoder_to_the_bit():
    """Of which every U-Net, captioner and study of the four editions was made."""
    state = load_file(ROOT / "weights/mini/vae/diffusion_pytorch_model.safetensors")
    deep, shallow = VAE(MINI_VAE), VAE(replace(MINI_VAE, layers_per_block=1))
    deep.load_state_dict(state)
    shallow.load_state_dict({k: state[k] for k in shallow.state_dict()})
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for ours, same in zip(deep.encode(x), shallow.encode(x)):
        assert torch.equal(ours, same)

"""The fingerprint sees every byte and every setting, and costs little."""

import copy
import hashlib
import json
import mmap
import os
import pickle
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dnp
from dnp.app.command_line import main
from dnp.errors import WeightsError
from dnp.evaluation import contestants, runner
from dnp.evaluation.benchmarks import Prompt
from dnp.evaluation.grid import Grid, Run
from dnp.evaluation.measure import Instruments
from dnp.sd.files import fingerprint
from dnp.sd.files.fingerprint import Fingerprint, of_folder

UNET = "unet/diffusion_pytorch_model.safetensors"
STATUS = Path("/proc/self/status")


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


def name(path, **kw):
    return dnp.load(path, **kw).config.fingerprint


def counted(monkeypatch):
    """How many bytes are hashed from here on, in a list of one."""
    total, sha256 = [0], hashlib.sha256

    def counting(data=b""):
        total[0] += len(data)
        return sha256(data)

    monkeypatch.setattr(fingerprint.hashlib, "sha256", counting)
    return total


# ------------------------------------------------------------------------------------- what it sees


def big(path, middle=0):
    """A file of 40 MB, with one byte of its middle."""
    data = bytearray(40_000_000)
    data[20_000_000] = middle
    path.write_bytes(data)
    return path


def test_a_byte_in_the_middle_of_a_large_file_is_seen(tmp_path):
    one, two = (Fingerprint([big(tmp_path / str(i), i)]) for i in range(2))
    assert one.whole != two.whole


def test_every_piece_and_their_order_count(tmp_path, monkeypatch):
    n, names = mmap.PAGESIZE, set()
    monkeypatch.setattr(fingerprint, "PIECE", n)
    for data in (b"a" * n + b"b" * n, b"b" * n + b"a" * n, b"a" * n + b"b" * (n - 1), b"a" * n):
        (tmp_path / "x").write_bytes(data)
        names.add(Fingerprint([tmp_path / "x"]).whole)
        (tmp_path / "x").unlink()
    assert len(names) == 4


@pytest.mark.skipif(not STATUS.exists(), reason="reads Linux' own counters")
def test_a_hashed_file_is_not_resident(tmp_path):
    def mapped():  # of files, in MB
        return int(re.search(r"RssFile:\s+(\d+)", STATUS.read_text())[1]) / 1e3

    weights = Fingerprint([big(tmp_path / "weights", 0)])
    before = mapped()
    _ = weights.whole
    assert mapped() - before < 10  # of 40


def scaled(folder):
    path = folder / UNET
    tensors = load_file(path)
    save_file({k: x * 0.3 if "mid_block" in k else x for k, x in tensors.items()}, path)


def changed(file, **entries):
    def change(folder):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


CHANGES = {
    "tensors": scaled,
    "beta_end": changed("scheduler/scheduler_config.json", beta_end=0.013),
    "beta_schedule": changed("scheduler/scheduler_config.json", beta_schedule="linear"),
    "levels": changed("scheduler/scheduler_config.json", num_train_timesteps=900),
    "prediction": changed("scheduler/scheduler_config.json", prediction_type="epsilon"),
    "spacing": changed("scheduler/scheduler_config.json", timestep_spacing="trailing"),
    "offset": changed("scheduler/scheduler_config.json", steps_offset=0),
    "last level": changed("scheduler/scheduler_config.json", set_alpha_to_one=False),
    "scaling factor": changed("vae/config.json", scaling_factor=0.6),
    "heads": changed("unet/config.json", attention_head_dim=[3, 6]),
    "size": changed("unet/config.json", sample_size=[8, 8]),
    "activation": changed("text_encoder/config.json", hidden_act="quick_gelu"),
    "tokenizer": changed("tokenizer/tokenizer_config.json", model_max_length=12),
}


@pytest.fixture(scope="module")
def before(tiny):
    return name(tiny)


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_a_picture_changes_the_fingerprint(folder, before, what):
    CHANGES[what](folder)
    assert name(folder) != before


def test_the_prediction_that_the_user_says_is_seen_and_recommendations_are_not(folder):
    before = name(folder)
    assert name(folder, prediction_type="epsilon") != before
    assert name(folder, prediction_type="v_prediction") == before  # as the folder says
    (folder / "dnp.json").write_text('{"scale": {"cfg": 2.0}}')  # a record holds the scale itself
    assert name(folder) == before


def test_it_is_the_same_anywhere_and_for_any_type(folder, tmp_path):
    before = name(folder)
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert name(tmp_path / "elsewhere") == before == name(folder, dtype=torch.float64)
    assert before.startswith("all-") and len(before) == 36


def test_an_instruments_configs_are_seen(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"tensors")
    names = []
    for beams in (1, 3):
        (tmp_path / "generation_config.json").write_text(json.dumps({"num_beams": beams}))
        names.append(of_folder(tmp_path))
    assert names[0].whole != names[1].whole


# ------------------------------------------------------------------------------------ what it costs


def test_opening_hashes_no_tensor(folder, monkeypatch):
    size = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    total = counted(monkeypatch)
    model = dnp.load(folder)
    beside = sum(p.stat().st_size for p in (folder / "tokenizer").iterdir())
    assert total[0] <= beside < size / 10
    assert model.config.fingerprint and total[0] > size


def test_a_rewrite_with_the_old_size_and_time_is_seen(tmp_path):
    path = big(tmp_path / "x")
    told = path.stat()
    before = Fingerprint([path]).whole
    with path.open("r+b") as f:
        f.seek(20_000_000)
        f.write(b"x")
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert Fingerprint([path]).whole != before


# --------------------------------------------------------------------------------- which file it is


def test_a_file_written_to_while_its_model_lives_is_told(folder):
    model, path = dnp.load(folder), folder / UNET
    with path.open("r+b") as f:
        f.seek(-4, 2)
        f.write(b"\0\0\0\0")
    os.utime(path, (time.time() + 5,) * 2)
    with pytest.raises(WeightsError, match="was written to after it was opened"):
        dnp.generate(model, "a cat", steps=1)


@pytest.mark.parametrize("how", ["replaced", "deleted"])
def test_it_names_the_files_that_were_opened_and_not_their_successors(folder, how):
    right, model = name(folder), dnp.load(folder)
    (folder / UNET).rename(folder / "old") if how == "replaced" else None
    if how == "replaced":
        shutil.copy(folder / "old", folder / UNET)
        scaled(folder)
    else:
        shutil.rmtree(folder)
    assert model.config.fingerprint == right


def test_a_copy_of_a_model_keeps_it(folder):
    model = dnp.load(folder)
    for config in (copy.deepcopy(model).config, pickle.loads(pickle.dumps(model.config))):
        assert config.fingerprint == model.config.fingerprint


# ------------------------------------------------------------------------- what it is compared with


def test_from_tells_other_weights(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def cli(*words):
        main([str(w) for w in words])
        return "other weights" in capsys.readouterr().err

    assert not cli("a cat", "--steps", 1, "--weights", folder)
    (png,) = (tmp_path / "outputs").glob("*.png")
    assert not cli("--from", png)
    changed("scheduler/scheduler_config.json", beta_end=0.015)(folder)
    assert cli("--from", png)


def test_a_run_of_other_weights_makes_records_of_its_own(folder, tmp_path, capsys):
    grid = Grid((Prompt("a cat", "x"),), (contestants.parse("cfg"),), (1.0,), (0,), 1)
    out = tmp_path / "run"

    def images():
        work = Run(grid, dnp.load(folder), Instruments(None, None, None), out)
        runner.run(work, 0, 1)
        return [row["sha256"] for row in work.rows()]

    first = images()
    assert images() == first and len(list((out / "records").iterdir())) == 1
    scaled(folder)
    assert "note" not in capsys.readouterr().err
    assert images() != first and len(list((out / "records").iterdir())) == 2
    assert "1 pictures were made with other weights" in capsys.readouterr().err

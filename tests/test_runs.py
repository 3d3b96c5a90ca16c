"""Runs of the experiments: what they hold, and how they grow without making anything twice."""

import csv
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import dnp
from conftest import ROOT
from dnp.evaluation import record_keys
from dnp.sd import captioner
from experiments import world
from runs import evaluate, of, rows_of, tables

pytestmark = pytest.mark.usefixtures("weights_are_opened_once")


@pytest.fixture(scope="module")
def model():
    return dnp.load(world())


def test_a_run_holds_records_pictures_and_tables(finished):
    records = of(finished)
    assert len(records) == 18 + 6  # 3 methods x 3 prompts x 2 seeds, and the DNS images
    assert Counter(r["content"]["method"] for r in records.values()) == {
        "cfg": 6, "auto-dnp": 6, "answer": 6, "dns": 6,
    }  # fmt: skip
    for key, r in records.items():
        assert r["image"] == f"{key}.png" and record_keys.key(r["content"]) == key
        assert Image.open(finished / "images" / r["image"]).size == (64, 64)
        assert r["seconds"] > 0
    assert len(of(finished, "captions")) == 6 and len(of(finished, "scores")) == 9
    text = (finished / "tables.md").read_text()
    scales = dnp.load(world()).config.scales
    assert f"| cfg, s = {scales['cfg']:g} |" in text and "Differences to cfg" in text
    assert "things and colours, %" in text and "animals_objects" in text and "IS" in text
    assert "CLIPScore" in text and "3 prompts x 2 seeds" in text
    assert "answer:K=1" in (finished / "times.md").read_text()
    told = json.loads((finished / "run.json").read_text())
    assert told["code"] == record_keys.code_hash() and told["seeds"] == [0, 1]


def test_a_finished_run_makes_nothing_twice(finished, copy, made, capsys):
    evaluate(copy)
    assert made == [] and "note" not in capsys.readouterr().err
    assert tables(copy) == tables(finished)


@pytest.mark.slow
def test_a_grid_grows_and_keeps_what_is_there(finished, copy, made, tmp_path, capsys):
    evaluate(copy, "--seeds", 3)
    assert {seed for _, _, seed in made} == {2} and len(made) == 12  # and the DNS images
    made.clear()
    evaluate(copy, "--per-category", 2, "--seeds", 1)
    assert len({prompt for _, prompt, _ in made}) == 3 and len(made) == 12
    made.clear()
    grown = ("--method", "cfg", "auto-dnp", "auto-dnp:negative_scale=1", "dns")
    evaluate(copy, *grown)
    assert {method for method, _, _ in made} == {"auto-dnp"} and len(made) == 6
    assert "note" not in capsys.readouterr().err
    evaluate(tmp_path / "at once", *grown)
    assert tables(copy) == tables(tmp_path / "at once")
    made.clear()
    evaluate(copy)  # and back
    assert made == [] and tables(copy) == tables(finished)


def test_settings_as_resolved_are_the_key_and_not_what_was_typed(finished, copy, made, model):
    s = model.config.scales
    typed = (
        "--method",
        f"cfg:s={s['cfg']}",
        f"auto-dnp:s={s['auto-dnp']:.3f}",
        "answer:K=1,K_until=0.5",
    )
    evaluate(copy, *typed)
    assert made == []


def test_variants_share_dns_images_and_captions(made, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        captioner, "load_captioner", lambda *a: lambda images: (asked.append(1), ["a cat"])[1]
    )
    variants = ("auto-dnp", "auto-dnp:s=1", "auto-dnp:negative_scale=1", "auto-dnp:dns_images=2")
    evaluate(tmp_path, "--method", *variants, "negative-alone", "dns", "--seeds", 1)
    # 3 prompts: 4 auto-dnp and 1 negative-alone each, and 2 DNS images, one of them for dns itself
    assert Counter(method for method, _, _ in made) == {
        "auto-dnp": 12, "negative-alone": 3, "dns": 6,
    }  # fmt: skip
    assert len(asked) == 6
    costs = {r["method"]: r["nfe"] for r in rows_of(tmp_path)}
    assert costs["auto-dnp"] == ["10"] and costs["auto-dnp:dns_images=2"] == ["14"]
    assert costs["negative-alone"] == ["8"] and costs["dns"] == ["4"]


def test_one_caption_for_a_prompt_is_paid_once(tmp_path, made):
    evaluate(tmp_path, "--method", "auto-dnp:caption_per=prompt", "--seed-from", 5)
    assert Counter(made)["dns", "a cat and a dog", 5] == 1
    assert {seed for method, _, seed in made if method == "dns"} == {5}
    assert {r["nfe"][0] for r in rows_of(tmp_path)} == {"8"}  # 3 x 2 steps, and 4 for two pictures
    pictures = list(csv.DictReader((tmp_path / "pictures.csv").open()))
    assert {p["seed"] for p in pictures} == {"5", "6"}
    assert len({(p["prompt"], p["negative"]) for p in pictures}) == 3


@pytest.mark.slow
def test_dtype_size_and_seeds_are_those_that_are_asked_for(tmp_path, model):
    words = ("--method", "cfg", "cnp", "--seeds", 1, "--seed-from", 7)
    evaluate(tmp_path, *words, "--size", 64, 32, "--dtype", "float64")
    records = of(tmp_path)
    assert {r["content"]["dtype"] for r in records.values()} == {"float64"}
    for r in records.values():
        assert Image.open(tmp_path / "images" / r["image"]).size == (32, 64)
    wide = dnp.load(world(), dtype=torch.float64)
    own = dnp.generate(wide, "a cat and a dog", seed=7, steps=2, size=(64, 32)).images[0]
    (record,) = [r for r in records.values() if r["content"]["prompt"] == "a cat and a dog"
                 and r["content"]["method"] == "cfg"]  # fmt: skip
    assert Image.open(tmp_path / "images" / record["image"]).tobytes() == own.tobytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--benchmark", "hh"], "not a word of their world"),
        (["--benchmark", "nothing.txt"], "neither a benchmark nor a file of prompts; choose ae,"),
        (["--benchmark", "nott"], "did you mean not?"),
        (["--method", "dnq"], "did you mean"),
        (["--seeds", "0"], "choose 1 to 1000"),
        (["--captioner", "nowhere"], "no captioner is there"),
        (["--per-category", "0"], "choose 1 or more"),
        (["--method", "cfg", "cfg"], "named twice"),
        (["--scale", "2", "2"], "named twice"),
        (["--scale", "2", "--method", "cfg:s=3"], "has a scale of its own"),
        (["--baseline", "np"], "is not a --method"),
        (["--device", "nowhere"], "cannot be used here"),
        (["--recogniser", "nowhere"], "no recogniser"),
        (["--clip", "nowhere"], "no CLIP model"),
        (["--method", "semantic"], "nobody has written"),
        (["--negatives", "nothing.json"], "no negatives"),
        (["--methd"], "unrecognized arguments: --methd; did you mean --method?"),
        (["--seed-from", "-1"], "choose 0 to"),
        (["--seed-from", str(2**32 - 1)], "choose 0 to"),
        (["--size", "61", "64"], "multiples of"),
        (["--dtype", "float16"], "inexact on a CPU"),
        (["--dtype", "float8"], "--help"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, words, sentence):
    with pytest.raises(dnp.DnpError, match=sentence):
        evaluate(tmp_path / "x", *words)
    assert not (tmp_path / "x").exists()


def test_negatives_of_ones_own_are_the_words_of_semantic(tmp_path, model):
    (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "negatives.json").write_text('{"a cat ": "a dog"}')
    words = ["--benchmark", tmp_path / "prompts.txt", "--negatives", tmp_path / "negatives.json"]
    evaluate(tmp_path / "x", *words, "--method", "semantic:rule=perp_neg", "--seeds", 1)
    (row,) = csv.DictReader((tmp_path / "x" / "pictures.csv").open())
    assert row["negative"] == "a dog"
    own = dnp.generate(model, "a cat", "np", "a dog", rule="perp_neg", s=float(row["s"]), steps=2)
    with Image.open(tmp_path / "x" / "images" / row["image"]) as picture:
        apart = np.asarray(picture, float) - np.asarray(own.images[0])
    assert np.abs(apart).max() <= 2


@pytest.mark.slow
def test_pictures_that_are_sampled_together_keep_their_seeds_and_words(
    finished, copy, tmp_path, monkeypatch, made
):
    """As on a GPU. Only the last bits of a picture may depend on its batch."""
    monkeypatch.setattr(dnp.generation, "batch_size", lambda device: 16)
    evaluate(tmp_path / "new")
    before = of(finished)
    for key, record in of(tmp_path / "new").items():
        assert record["negative"] == before[key]["negative"] and record["nfe"] == before[key]["nfe"]
        images = [
            np.asarray(Image.open(folder / "images" / record["image"]), float)
            for folder in (finished, tmp_path / "new")
        ]
        assert np.abs(images[0] - images[1]).max() <= 2
    made.clear()
    evaluate(tmp_path / "hot", "--method", "cfg:s=1e25", "--steps", 10)
    assert len(made) == 6 + 6  # together, and then one by one, to know which overflow
    assert "6 pictures overflowed" in (tmp_path / "hot" / "tables.md").read_text()


def test_the_command_says_its_sentence_and_exits_2():
    done = subprocess.run(
        [sys.executable, "-m", "dnp.evaluation", "--method", "dnq"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: method 'dnq' is unknown")
    assert "Traceback" not in done.stderr

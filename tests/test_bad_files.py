"""Files that a command is given, damaged or hostile: one sentence, no wait, and none runs."""

import json
import os
from types import SimpleNamespace

import pytest
import torch

from dnp.errors import DnpError, SettingsError
from dnp.evaluation import controls, pairs, strength
from dnp.evaluation.people import answers, design
from dnp.evaluation.records import RunError
from dnp.schedule import Schedule
from dnp.sd.files.fingerprint import Fingerprint
from dnp.sd.recogniser import load_recogniser
from study import make_run, make_study

PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")


def one_sentence(told):
    text = str(told.value)
    assert text.endswith(".") and "\n" not in text


# ---------------------------------------------------- pictures.csv: --scales-from

HEADS = b"method,s,prompt,seed,full,colours\n"
GOOD = b"cfg,3,a cat,0,0.5,1\n"
TABLES = {
    "no text": b"\xff\xfe\x00",
    "a cell without end": HEADS + b"x" * 200_000 + b"\n",
    "a quote without end": HEADS + b'"cfg,3\n',
    "a line that is cut": HEADS + GOOD + b"cfg,3,a",
    "no column of methods": HEADS.replace(b"method", b"m") + GOOD,
    "no column of scales": HEADS.replace(b"s,p", b"x,p") + GOOD,
    "no column of prompts": HEADS.replace(b"prompt", b"p") + GOOD,
    "no column of seeds": HEADS.replace(b"seed", b"x") + GOOD,
    "a scale in words": HEADS + GOOD.replace(b"3", b"three"),
    "an infinite scale": HEADS + GOOD.replace(b"3", b"1e400"),
    "a seed in words": HEADS + GOOD.replace(b",0,", b",zero,"),
    "no seed": HEADS + GOOD.replace(b",0,", b",,"),
    "a score in words": HEADS + GOOD.replace(b"1\n", b"yes\n"),
    "a score that is not finite": HEADS + GOOD.replace(b"1\n", b"nan\n"),
}


@pytest.mark.parametrize("name", TABLES)
def test_damaged_tables_give_no_scale(tmp_path, name):
    (tmp_path / "pictures.csv").write_bytes(TABLES[name])
    for read in (controls.best_scales, lambda folders: controls.overlap(folders, ["a cat"])):
        with pytest.raises(
            SettingsError, match=r"is damaged .*type its run's command again"
        ) as told:
            read([tmp_path])
        one_sentence(told)
    (tmp_path / "pictures.csv").write_bytes(HEADS + GOOD)
    assert controls.best_scales([tmp_path])[0] == {"cfg": 3.0}


# ---------------------------------------------------- strength.json: --strengths

SCHEDULED = {"rule": "cfg_schedule", "rule_options": {"levels": [981], "scales": [2.0]}}
STRENGTHS = {
    "weights": "w", "steps": 1, "size": None, "prompts": ["a cat"], "seeds": [0],
    "methods": {"answer": {
        "s": 3.0, "by_step": [1.0], "cfg-equal": {"options": {"s": 2.0}, "by_step": [1.0]},
        "cfg-scheduled": {"options": SCHEDULED, "by_step": [1.0]},
    }},
}  # fmt: skip
EVIL = "from pathlib import Path\nPath('marker').touch()\ndef f(eps_p): return eps_p\n"
CHANGES = {  # of the method's row
    "a scale in words": lambda row: row.update(s="3"),
    "an equal one that is not finite": lambda row: row["cfg-equal"]["options"].update(s=1e999),
    "a rule's file": lambda row: row["cfg-scheduled"]["options"].update(rule="evil.py:f"),
    "a rule's file for the equal one": lambda row: row["cfg-equal"]["options"].update(
        rule="evil.py:f"
    ),
    "another option": lambda row: row["cfg-equal"]["options"].update(eta=1),
    "another option of the rule": lambda row: row["cfg-scheduled"]["options"][
        "rule_options"
    ].update(x=1),
    "levels in words": lambda row: row["cfg-scheduled"]["options"]["rule_options"].update(
        levels=["a"]
    ),
    "no scales": lambda row: row["cfg-scheduled"]["options"]["rule_options"].pop("scales"),
    "options that are a list": lambda row: row["cfg-equal"].update(options=[]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_strengths_that_no_run_has_written_are_refused_and_run_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    file, changed = tmp_path / "strength.json", json.loads(json.dumps(STRENGTHS))
    CHANGES[name](changed["methods"]["answer"])
    file.write_text(json.dumps(changed))
    with pytest.raises(SettingsError, match="no strengths; --strength writes") as told:
        for kind in controls.EQUAL:
            controls.has_scale(controls.parse(f"{kind}:of=answer", strength.read(file)))
    one_sentence(told)
    assert not (tmp_path / "marker").exists()
    file.write_text(json.dumps(STRENGTHS))
    assert controls.parse("cfg-equal:of=answer", strength.read(file)).options == {"s": 2.0}


def test_a_strength_of_a_method_without_a_scale_is_of_another_method(tmp_path):
    config = SimpleNamespace(fingerprint="w", scales={"answer": 3.0})
    of_cpu = {"device": torch.device("cpu"), "dtype": torch.float32, "eps": print}
    model = SimpleNamespace(config=config, schedule=Schedule.stable_diffusion(), **of_cpu)
    changed = json.loads(json.dumps(STRENGTHS))
    changed["methods"]["answer"]["s"] = None
    (tmp_path / "strength.json").write_text(json.dumps(changed))
    strengths = strength.read(tmp_path / "strength.json")
    chosen = [controls.parse(x, strengths) for x in ("answer", "cfg-equal:of=answer")]
    with pytest.raises(SettingsError, match="measured at s = none, and it runs at 3;"):
        controls.require_same(strengths, chosen, 1, None, model)


# ---------------------------------------------------- run.json: pairs make

MANIFESTS = {
    "prompts in words": {"prompts": "x"},
    "prompts without a category": {"prompts": [["a cat"]]},
    "a prompt that is a list": {"prompts": [[[], "x"]]},
    "no prompts": {"prompts": None},
    "seeds that are one": {"seeds": 0},
    "a seed in words": {"seeds": ["0"]},
    "methods in a list": {"methods": ["cfg"]},
    "a method of one number": {"methods": {"cfg": 1}},
    "a method of nothing": {"methods": {"cfg": []}},
    "settings without a scale": {"methods": {"cfg": [{}]}},
    "a scale in words": {"methods": {"cfg": [{"s": "3"}]}},
    "a scale that is not finite": {"methods": {"cfg": [{"s": 1e999}]}},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_damaged_manifest_is_told_with_the_mend(tmp_path, name):
    run = make_run(tmp_path / "run")
    file = run / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | MANIFESTS[name]))
    with pytest.raises(
        RunError, match=r"run.json is damaged; type its run's command again"
    ) as told:
        design.design(run, "answer@2", "cfg", 6, 2, 4)
    one_sentence(told)


def test_a_method_of_a_rule_without_a_scale_can_be_asked_about(tmp_path):
    manifest = {"methods": {"cfg:rule=mine": [{"s": None, "steps": 2}]}}
    made = design.condition(manifest, "cfg:rule=mine")
    assert (made["label"], made["method"], made["settings"]["s"]) == ("cfg:rule=mine", "cfg", None)
    with pytest.raises(SettingsError, match="write cfg:rule=mine@none"):
        design.condition(manifest, "cfg:rule=mine@2")


def test_a_record_without_an_entry_is_of_another_run(tmp_path):
    run = make_run(tmp_path / "run")
    manifest = design.read_run(run) | {"captioner": None}
    sides = (design.condition(manifest, x) for x in ("answer@2", "cfg"))
    store = design.Store(run / "records")
    key = next(p.stem for p in store.folder.iterdir())
    record = store.get(key)
    del record["content"]["dtype"]
    store.put(key, record)
    every, left_out = design.pairs_of(run, manifest, *sides)
    assert (len(every), dict(left_out)) == (11, {"not in the run": 1})


ASKED = {
    "a name too long for a folder": (["--out", "a" * 300], "name too long"),
    "a character of no name": (["--out", "a\0b"], "no file's name can have"),
    "a title that is no Unicode": (["--out", "s", "--title", "\udcff"], "not valid Unicode"),
    "a contact that is no Unicode": (["--out", "s", "--contact", "\udcff"], "not valid Unicode"),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_a_study_cannot_be_written_with_is_one_sentence(tmp_path, monkeypatch, name):
    run, (words, sentence) = make_run(tmp_path / "run"), ASKED[name]
    monkeypatch.chdir(tmp_path)
    argv = ["make", str(run), "--a", "answer@2", "--b", "cfg", "--pairs", "6", "--repeats", "2"]
    with pytest.raises(DnpError, match=sentence) as told:
        pairs.main([*argv, *words])
    one_sentence(told)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_study_can_be_made_in_the_folder_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    run = make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "empty")
    numbers = ["--pairs", "6", "--repeats", "2", "--out", "."]
    pairs.main(["make", str(run), "--a", "answer@2", "--b", "cfg", *numbers])
    assert (tmp_path / "empty" / "key.json").is_file()


# ---------------------------------------------------- pipes


@PIPES
@pytest.mark.parametrize(
    "read",
    [
        strength.read,
        load_recogniser,
        lambda path: Fingerprint([path]),
        lambda path: controls.best_scales([path.parent]),
    ],
)
def test_a_pipe_in_the_place_of_a_file_does_not_hang(tmp_path, read):
    os.mkfifo(tmp_path / "pictures.csv")
    with pytest.raises(DnpError, match=r"not a regular file|no strengths") as told:
        read(tmp_path / "pictures.csv")
    one_sentence(told)


@PIPES
@pytest.mark.parametrize("name", ["key.json", "pictures"])
def test_a_pipe_in_a_study_does_not_hang(tmp_path, name):
    study, _ = make_study(tmp_path)
    file = study / name if name == "key.json" else next((study / name).iterdir())
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(RunError, match="not a regular file") as told:
        answers.read_key(study)
    one_sentence(told)

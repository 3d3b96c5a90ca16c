"""Runs that can be killed, shared out and grown, and folders that were damaged."""

import csv
import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

import dnp
import dnp.sd.opening as opening
from conftest import MINI, ROOT
from dnp import prompting
from dnp.errors import SettingsError
from dnp.evaluation import (
    benchmarks,
    keys,
    methods,
    metrics,
    plots,
    recogniser,
    runner,
    scores,
    sheets,
)  # fmt: skip
from dnp.evaluation.__main__ import main
from dnp.evaluation.store import RunError, Store, picture
from dnp.evaluation.work import Grid, Run
from dnp.pictures import png
from dnp.sd.fingerprint import Fingerprint


@pytest.fixture(scope="module")
def model():
    return dnp.load(MINI)


@pytest.fixture(scope="module", autouse=True)
def weights_are_opened_once():
    """The runs here open the same weights about a hundred times, and change none of them."""
    rooms = {opening: "load", prompting: "load_captioner", metrics: "CLIPScorer"}
    rooms[recogniser] = "load_recogniser"
    with pytest.MonkeyPatch.context() as patch:
        for room, name in rooms.items():
            patch.setattr(room, name, once(getattr(room, name)))
        yield


def once(load):
    kept = {}

    def opened(*args, **named):
        asked = repr((args, named))
        if asked not in kept:
            kept[asked] = load(*args, **named)
        return kept[asked]

    return opened


GRID = (
    "--method",
    "cfg",
    "auto-dnp",
    "answer:K=1",
    "--per-category",
    1,
    "--seeds",
    2,
    "--steps",
    2,
)
TABLES = ("tables.md", "tables.csv", "pictures.csv", "evaluations.png", "run.json")


def evaluate(out, *words, **environment):
    before = {k: os.environ.pop(k, None) for k in ("RANK", "WORLD_SIZE")}
    os.environ.update(environment)
    try:
        main([str(w) for w in (*GRID, *words, "--out", out)])
    finally:
        for k, v in before.items():
            os.environ.pop(k, None)
            if v is not None:
                os.environ[k] = v


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    evaluate(folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def made(monkeypatch):
    """(method, prompt, seed) of every picture that is sampled, in order."""
    pictures, sampled = [], methods.sample

    def counted(model, method, prompt, seeds, *rest):
        pictures.extend((method.name, prompt, seed) for seed in seeds)
        return sampled(model, method, prompt, seeds, *rest)

    monkeypatch.setattr(methods, "sample", counted)
    return pictures


def tables(folder):
    """Every file that the tables are: they must be the same to the byte."""
    sheets = [p.name for kind in ("wins", "losses") for p in folder.glob(f"{kind}-*.png")]
    assert len(sheets) >= 2
    return {name: (folder / name).read_bytes() for name in (*TABLES, *sheets)}


def of(folder, name="records"):
    return {p.stem: json.loads(p.read_bytes()) for p in (folder / name).glob("*.json")}


def test_a_run_holds_records_pictures_and_tables(finished):
    records = of(finished)
    assert len(records) == 18 + 6  # 3 methods x 3 prompts x 2 seeds, and the DNS images
    assert Counter(r["content"]["method"] for r in records.values()) == {
        "cfg": 6, "auto-dnp": 6, "answer": 6, "dns": 6,
    }  # fmt: skip
    for key, r in records.items():
        assert r["image"] == f"{key}.png" and keys.key(r["content"]) == key
        assert Image.open(finished / "images" / r["image"]).size == (64, 64)
        assert r["seconds"] > 0
    assert len(of(finished, "captions")) == 6 and len(of(finished, "scores")) == 9
    text = (finished / "tables.md").read_text()
    scales = dnp.load(MINI).config.scales
    assert f"| cfg, s = {scales['cfg']:g} |" in text and "Differences to cfg" in text
    assert "things and colours, %" in text and "animals_objects" in text and "IS" in text
    assert "CLIPScore" in text and "3 prompts x 2 seeds" in text
    assert "answer:K=1" in (finished / "times.md").read_text()
    told = json.loads((finished / "run.json").read_text())
    assert told["code"] == keys.code_hash() and told["seeds"] == [0, 1]


def test_published_numbers_never_share_a_table_with_ours(finished):
    text = (finished / "tables.md").read_text()
    whole = [table for table in text.split("\n\n") if "|---" in table]
    theirs = [table for table in whole if "0.242 / 0.335 / 13.17" in table]
    assert len(whole) > 3 and len(theirs) == 1
    assert all(line.startswith(("| CFG", "| auto-DNP")) for line in theirs[0].splitlines()[2:])
    assert ", s = " not in theirs[0] and "Stable Diffusion" in text.split(theirs[0])[0][-200:]
    assert "13.17" not in (finished / "tables.csv").read_text()


def test_csv_holds_what_the_tables_show(finished):
    cells = list(csv.DictReader((finished / "tables.csv").open()))
    text = (finished / "tables.md").read_text()
    shown = [c for c in cells if c["column"] == "full prompt"]
    assert {c["table"] for c in shown} == {
        "all", "minus cfg", "animals", "animals_objects", "objects",
    }  # fmt: skip
    for c in shown:
        sign = "+" if c["table"] == "minus cfg" else ""
        mean, low, high = (f"{float(c[k]):{sign}.3f}" for k in ("mean", "low", "high"))
        assert f"{mean} [{low}, {high}]" in text
    pictures = list(csv.DictReader((finished / "pictures.csv").open()))
    assert len(pictures) == 18 and {p["seed"] for p in pictures} == {"0", "1"}
    of_cfg = [float(p["full"]) for p in pictures if p["method"] == "cfg"]
    (mean,) = [c["mean"] for c in shown if (c["table"], c["method"]) == ("all", "cfg")]
    assert float(mean) == pytest.approx(np.mean(of_cfg), rel=1e-5)
    for p in pictures:
        assert (finished / "images" / p["image"]).is_file()
        assert int(p["colours"]) in (0, 1) and (p["method"] == "auto-dnp") == bool(p["negative"])


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
        "answer:K=1,form=three-term",
    )
    evaluate(copy, *typed)
    assert made == []


def test_variants_share_dns_images_and_captions(made, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        prompting, "load_captioner", lambda *a: lambda images: (asked.append(1), ["a cat"])[1]
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


def rows_of(folder):
    rows = csv.DictReader((folder / "pictures.csv").open())
    return [{"method": r["method"], "nfe": [r["evaluations"]]} for r in rows]


def test_one_caption_for_a_prompt_is_paid_once(tmp_path, made):
    evaluate(tmp_path, "--method", "auto-dnp:caption_per=prompt", "--seed-from", 5)
    assert Counter(made)["dns", "a cat and a dog", 5] == 1
    assert {seed for method, _, seed in made if method == "dns"} == {5}
    assert {r["nfe"][0] for r in rows_of(tmp_path)} == {"8"}  # 3 x 2 steps, and 4 for two pictures
    pictures = list(csv.DictReader((tmp_path / "pictures.csv").open()))
    assert {p["seed"] for p in pictures} == {"5", "6"}
    assert len({(p["prompt"], p["negative"]) for p in pictures}) == 3


# What changes, what the run says, and how many pictures it makes anew.
CHANGES = {
    "code": (lambda p: p.setattr(keys, "code_hash", lambda: "0" * 32), "18 .* other code;"),
    "weights": (
        lambda p: p.setattr(opening, "load", other_weights),
        "18 .* other weights;",
    ),
    "captioner": (
        lambda p: p.setattr(Run, "content", other_captioner(Run.content)),
        "6 .* other captioner;",
    ),
}


def other_weights(*args, load=opening.load):
    model = load(*args)
    model.config = replace(model.config, files=Fingerprint([], "others"))
    return model


def other_captioner(content):
    return lambda self, *a: {**(c := content(self, *a)), "captioner": c["captioner"] and "other"}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_code_makes_new_records_and_says_so(copy, made, monkeypatch, capsys, what):
    before = {p: p.read_bytes() for name in ("images", "records") for p in (copy / name).iterdir()}
    change, note = CHANGES[what]
    change(monkeypatch)
    evaluate(copy)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(told) == 1 and re.search(note, told[0])
    assert len(made) == (6 if what == "captioner" else 24)  # the DNS images have no captioner
    assert all(path.read_bytes() == data for path, data in before.items())
    made.clear()
    evaluate(copy)
    assert made == []


def test_the_hash_of_the_code_sees_code_and_no_comments(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "dnp", tmp_path / "dnp")
    monkeypatch.setattr(keys, "ROOT", tmp_path / "dnp")
    now = keys.code_hash.__wrapped__
    first, metrics_first = now(), keys.metrics_code.__wrapped__()
    for name in ("guidance.py", "sd/unet.py", "evaluation/methods.py"):
        path = tmp_path / "dnp" / name
        text = path.read_text()
        path.write_text("# a comment\n" + text.replace('"""', '"""More words. ', 1))
        assert now() == first
        path.write_text(text + "\nx = 1\n")
        assert now() != first
        path.write_text(text)
        assert now() == first
    (tmp_path / "dnp" / "rules_of_ours.py").write_text("x = 1\n")
    assert now() != first  # a file that is new may be used by any
    (tmp_path / "dnp" / "rules_of_ours.py").unlink()
    for name in ("evaluation/report.py", "evaluation/metrics.py", "command.py"):
        (tmp_path / "dnp" / name).write_text("x = 1\n")
    assert now() == first and keys.metrics_code.__wrapped__() != metrics_first


def test_all_that_is_imported_to_sample_is_in_the_hash():
    told = "import sys, dnp.evaluation.methods; print(*(m for m in sys.modules if m[:4] == 'dnp.'))"
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    used = {name.removeprefix("dnp.") for name in done.stdout.split()}
    apart = {name for name in used if name in keys.APART}
    assert "guidance" in used and apart <= {"errors", "validation"}  # they refuse, and draw nothing
    beyond = {
        name
        for name in used
        if name.startswith("evaluation") and name not in ("evaluation.methods", "evaluation.cnp")
    }
    words = {"evaluation", *(f"evaluation.{m}" for m in ("benchmarks", "things", "trio"))}
    assert beyond <= words  # of prompts, which are in the key


def test_keys_are_of_the_content_alone():
    a = {"s": 3, "size": (8, 16), "b": True, "n": None}
    assert keys.key(a) == keys.key(dict(reversed(list({**a, "s": 3.0, "size": [8, 16]}.items()))))
    assert len(keys.key(a)) == 32
    for change in ({"s": 3.1}, {"b": 1}, {"n": ""}, {"n": 0}, {"size": (16, 8)}, {"more": None}):
        assert keys.key({**a, **change}) != keys.key(a)


def test_changed_metrics_score_anew_and_say_so(finished, copy, made, monkeypatch, capsys):
    scored, score, code = [], scores.score, keys.metrics_code
    monkeypatch.setattr(scores, "score", lambda *a: (scored.append(1), score(*a))[1])
    monkeypatch.setattr(keys, "metrics_code", lambda: "other")
    evaluate(copy)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert told == ["note: 9 units were scored by other metrics; they are scored anew."]
    assert (len(scored), made) == (9, [])
    assert (copy / "tables.md").read_bytes() == (finished / "tables.md").read_bytes()
    evaluate(copy)
    assert len(scored) == 9 and "note" not in capsys.readouterr().err
    monkeypatch.setattr(keys, "metrics_code", code)
    evaluate(copy)  # and back
    assert (len(scored), made) == (18, []) and tables(copy) == tables(finished)


def test_rescore_computes_the_metrics_anew_from_the_pictures(copy, finished, made, monkeypatch):
    for path in (copy / "scores").iterdir():
        record = Store(copy / "scores").get(path.stem)
        Store(copy / "scores").put(path.stem, {**record, "full": [0.5, 0.5]})
    evaluate(copy)
    assert "0.500 [0.500, 0.500]" in (copy / "tables.md").read_text()
    monkeypatch.setattr(prompting, "load_captioner", None)  # nothing is described
    evaluate(copy, "--rescore")
    assert made == [] and tables(copy) == tables(finished)
    with pytest.raises(SettingsError, match="9 pictures of this grid are not in"):
        evaluate(copy, "--rescore", "--seeds", 3)


@pytest.mark.slow
def test_dtype_size_and_seeds_are_those_that_are_asked_for(tmp_path, model):
    words = ("--method", "cfg", "cnp", "--seeds", 1, "--seed-from", 7)
    evaluate(tmp_path, *words, "--size", 64, 32, "--dtype", "float64")
    records = of(tmp_path)
    assert {r["content"]["dtype"] for r in records.values()} == {"float64"}
    for r in records.values():
        assert Image.open(tmp_path / "images" / r["image"]).size == (32, 64)
    wide = dnp.load(MINI, dtype=torch.float64)
    own = dnp.generate(wide, "a cat and a dog", seed=7, steps=2, size=(64, 32)).images[0]
    (record,) = [r for r in records.values() if r["content"]["prompt"] == "a cat and a dog"
                 and r["content"]["method"] == "cfg"]  # fmt: skip
    assert Image.open(tmp_path / "images" / record["image"]).tobytes() == own.tobytes()


def test_a_run_that_was_killed_goes_on_to_the_same_tables(finished, tmp_path, made, monkeypatch):
    class Killed(BaseException):
        pass

    replace = os.replace
    for stop in (1, 2, 7, 20, 25, 9, 3):  # pictures, records, captions, scores, the report

        def dies(source, target, left=[stop]):  # noqa: B006
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "replace", dies)
            evaluate(tmp_path)
    evaluate(tmp_path)
    assert tables(tmp_path) == tables(finished)
    assert of(tmp_path).keys() == of(finished).keys()
    for path in (finished / "images").iterdir():
        assert path.read_bytes() == (tmp_path / "images" / path.name).read_bytes()


def test_shares_make_the_tables_of_one_process(finished, tmp_path, capsys):
    evaluate(tmp_path, RANK="1", WORLD_SIZE="2")
    assert "3 of 9 of the units are there" in capsys.readouterr().out
    assert not (tmp_path / "tables.md").exists()
    evaluate(tmp_path, RANK="0", WORLD_SIZE="3")  # a run may go on with another number of them
    assert "6 of 9" in capsys.readouterr().out and not (tmp_path / "tables.md").exists()
    evaluate(tmp_path)
    assert tables(tmp_path) == tables(finished)


def test_every_unit_is_of_one_process_and_those_of_a_prompt_stay_together():
    prompts = tuple(benchmarks.Prompt(f"a {w}", "x") for w in benchmarks.ANIMALS[:5])
    grid = Grid(prompts, tuple(map(methods.parse, ("cfg", "dns"))), (1.0, 2.0), (0,), 2)
    for world in (1, 2, 3, 5, 7, 50):
        shares = [grid.share(rank, world) for rank in range(world)]
        assert sorted(map(str, itertools.chain(*shares))) == sorted(map(str, grid.units()))
        if world <= 5:
            assert all(len({u[2] for u in share}) <= -(-5 // world) for share in shares)
    assert all(len(grid.share(rank, 20)) == 1 for rank in range(20))


@pytest.mark.slow
def test_two_processes_at_once_make_the_tables_of_one(finished, tmp_path):
    command = [sys.executable, "-m", "dnp.evaluation", *map(str, GRID), "--out", str(tmp_path)]
    both = [
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
        )
        for rank in range(2)
    ]
    assert [p.wait(timeout=300) for p in both] == [0, 0]
    assert tables(tmp_path) == tables(finished)


@pytest.mark.slow
def test_kill_9_at_any_moment_and_go_on(finished, tmp_path):
    command = [sys.executable, "-m", "dnp.evaluation", *map(str, GRID), "--out", str(tmp_path)]
    rng = np.random.default_rng(0)
    for _ in range(20):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=7 + 3 * rng.random())
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    else:
        process = subprocess.run(command, cwd=ROOT, timeout=300, stderr=subprocess.DEVNULL)
    assert process.returncode == 0 and tables(tmp_path) == tables(finished)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--benchmark", "hh"], "no word of their world"),
        (["--benchmark", "nothing.txt"], "no list of prompts"),
        (["--method", "dnq"], "did you mean"),
        (["--seeds", "0"], "choose 1 to 1000"),
        (["--captioner", "nowhere"], "no captioner is there"),
        (["--per-category", "0"], "choose 1 or more"),
        (["--method", "cfg", "cfg"], "named twice"),
        (["--scale", "2", "2"], "named twice"),
        (["--scale", "2", "--method", "cfg:s=3"], "has a scale of its own"),
        (["--baseline", "np"], "is no --method"),
        (["--device", "nowhere"], "cannot be used here"),
        (["--recogniser", "nowhere"], "no recogniser"),
        (["--clip", "nowhere"], "no CLIP model"),
        (["--method", "semantic"], "nobody has written"),
        (["--what"], "--help"),
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


@pytest.mark.parametrize("share", [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(SettingsError, match="RANK from 0"):
        runner.share({"RANK": share[0], "WORLD_SIZE": share[1]})


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="type the same command to go on"):
        evaluate(tmp_path / "file")


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_written_valid(finished, tmp_path, monkeypatch):
    put, calls = Store.put, []

    def full(self, key, record):
        calls.append(key)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        put(self, key, record)

    monkeypatch.setattr(Store, "put", full)
    with pytest.raises(RunError, match="No space left on device"):
        evaluate(tmp_path)
    monkeypatch.undo()
    assert len(of(tmp_path)) == 4 and len(of(tmp_path, "scores")) == 1
    assert not list(tmp_path.rglob("*.partial"))
    evaluate(tmp_path)
    assert tables(tmp_path) == tables(finished)


def record_of(folder, method="cfg", seed=1):
    """The path of the record of one picture, and of the picture."""
    (r,) = [
        r for r in of(folder).values()
        if (r["content"]["method"], r["content"]["seed"], r["content"]["prompt"])
        == (method, seed, "a cat and a dog")
    ]  # fmt: skip
    image = folder / "images" / r["image"]
    return folder / "records" / f"{image.stem}.json", image


def edit(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


BAD = {  # what may stand where a record did
    "cut": lambda f: f.write_bytes(f.read_bytes()[:-50]),
    "empty": lambda f: f.write_bytes(b""),
    "gone": lambda f: f.unlink(),
    "brackets": lambda f: f.write_text("[" * 100_000),
    "a list": lambda f: f.write_text("[]"),
    "{}": lambda f: f.write_text("{}"),
    "a great number": lambda f: f.write_text('{"digest": 1' + "0" * 400 + "}"),
    "NaN": lambda f: f.write_text('{"digest": "", "x": NaN}'),
    "no text": lambda f: f.write_bytes(b"\xff\xfe\x00"),
    "a pipe": lambda f: (f.unlink(), os.mkfifo(f)),
    "another record": lambda f: shutil.copy(next(p for p in f.parent.iterdir() if p != f), f),
    "a dangling link": lambda f: (f.unlink(), f.symlink_to("nowhere")),
}


@pytest.mark.parametrize("bad", BAD)
def test_nothing_but_what_was_written_is_read(tmp_path, bad):
    (tmp_path / "images").mkdir()
    store, image = Store(tmp_path / "records"), tmp_path / "images" / "x.png"
    record = {"image": "x.png", "sha256": keys.digest(png(Image.new("RGB", (9, 9), "red"))), "n": 3}
    image.write_bytes(png(Image.new("RGB", (9, 9), "red")))
    store.put("x", record)
    store.put("y", record)
    image.with_name("y.png").write_bytes(png(Image.new("RGB", (9, 9), "blue")))
    assert store.get("x") == record and picture(tmp_path, record).getpixel((0, 0)) == (255, 0, 0)
    for path in (tmp_path / "records" / "x.json", image):
        BAD[bad](path)
    assert store.get("x") is None and picture(tmp_path, record) is None
    assert [r["n"] for r in store.all()] == [3]
    store.put("x", record)
    assert store.get("x") == record


@pytest.mark.parametrize("bad", ["cut", "gone", "a pipe", "a changed number", "the whole folder"])
@pytest.mark.parametrize(
    "store", ["records", *(pytest.param(s, marks=pytest.mark.slow) for s in ("captions", "scores"))]
)
def test_damaged_records_are_made_again(finished, copy, made, capsys, store, bad):
    paths = sorted((copy / store).iterdir())
    if store == "records" and bad != "the whole folder":
        paths = [record_of(copy)[0]]
    for path in paths if bad == "the whole folder" else paths[:1]:
        edit(path, b"1", b"2") if bad == "a changed number" else BAD.get(bad, BAD["gone"])(path)
    if store == "captions":  # a caption is asked for when its picture is made
        for key, record in of(copy).items():
            if record["content"]["method"] == "auto-dnp":
                (copy / "records" / f"{key}.json").unlink()
    evaluate(copy)
    if store == "records":
        assert len(made) == (24 if bad == "the whole folder" else 1)
        silent = bad in ("gone", "the whole folder")
        assert ("1 pictures or records are missing" in capsys.readouterr().err) != silent
    assert of(copy, store).keys() == of(finished, store).keys() and tables(copy) == tables(finished)


@pytest.mark.slow
@pytest.mark.parametrize("bad", ["cut", "gone", "a pipe", "images gone"])
def test_a_second_run_heals_a_lost_picture(finished, copy, bad, made, capsys):
    image = record_of(copy)[1]
    BAD[bad](image) if bad in BAD else shutil.rmtree(image.parent)
    evaluate(copy)
    assert "missing or damaged; they are made again" in capsys.readouterr().err
    if bad in BAD:
        assert made == [("cfg", "a cat and a dog", 1)]
    else:
        assert len(made) == 24
    assert tables(copy) == tables(finished)
    for path in (finished / "images").iterdir():
        assert path.read_bytes() == (copy / "images" / path.name).read_bytes()
    made.clear()
    evaluate(copy)
    assert made == []


def test_a_lost_dns_image_is_made_again_when_words_are_missing(finished, copy, made):
    record_of(copy, "dns")[1].unlink()
    evaluate(copy)
    assert made == []  # its words are kept, and with them all that depends on it
    record_of(copy, "auto-dnp")[1].unlink()
    evaluate(copy)
    assert [(m, seed) for m, _, seed in made] == [("dns", 1), ("auto-dnp", 1)]
    assert tables(copy) == tables(finished)


BLOCKED = {  # what no run can mend
    "a folder for a record": (
        lambda f: ((path := record_of(f)[0]).unlink(), path.mkdir()),
        "Is a directory",
    ),
    "a file for images": (
        lambda f: (shutil.rmtree(f / "images"), (f / "images").write_text("")),
        "File exists",
    ),
    "a pipe for records": (
        lambda f: (shutil.rmtree(f / "records"), os.mkfifo(f / "records")),
        "File exists",
    ),
    "a folder for tables.md": (
        lambda f: ((f / "tables.md").unlink(), (f / "tables.md").mkdir()),
        "Is a directory",
    ),
    "a folder for run.json": (
        lambda f: ((f / "run.json").unlink(), (f / "run.json").mkdir()),
        "Is a directory",
    ),
}


@pytest.mark.parametrize("block", BLOCKED)
def test_a_folder_that_cannot_be_used_is_one_sentence(copy, block):
    hurt, reason = BLOCKED[block]
    hurt(copy)
    with pytest.raises(RunError, match=rf"cannot be read or written \({reason}\)"):
        evaluate(copy)
    assert not list(copy.rglob("*.partial"))


def test_a_picture_lost_by_another_process_is_named(copy, monkeypatch):
    monkeypatch.setattr(Run, "kept", lambda self, content: self.records.get(keys.key(content)))
    path = record_of(copy)[1]
    path.unlink()
    with pytest.raises(RunError, match=rf"{path.name}: missing or damaged"):
        evaluate(copy)


def test_what_stands_in_run_json_is_not_read(finished, copy):
    for text in ("[]", "[" * 100_000, ""):
        (copy / "run.json").write_text(text)
        evaluate(copy)
        assert (copy / "run.json").read_bytes() == (finished / "run.json").read_bytes()


@pytest.mark.parametrize(
    ("at", "number"),
    [
        ("tables.md", errno.ENOSPC),
        pytest.param("evaluations.png", errno.EROFS, marks=pytest.mark.slow),
        pytest.param("wins", errno.EDQUOT, marks=pytest.mark.slow),
        pytest.param("times.md", errno.ENOSPC, marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_takes_no_report_is_one_sentence_and_the_next_run_writes_it(
    finished, copy, monkeypatch, at, number
):
    (copy / "tables.md").unlink()
    replace = os.replace

    def full(source, target, **kwargs):
        if os.path.basename(target).startswith(at):
            raise OSError(number, os.strerror(number))
        replace(source, target, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(RunError, match=os.strerror(number) + ".*same command to go on"):
            evaluate(copy)
    assert not list(copy.rglob("*.partial"))
    evaluate(copy)
    assert tables(copy) == tables(finished)


def test_pictures_that_overflow_are_recorded_and_do_not_stop_the_run(tmp_path):
    words = ("--method", "cfg:s=1e25", "--per-category", 1, "--seeds", 1, "--steps", 10)
    evaluate(tmp_path, *words)
    rows = of(tmp_path).values()
    assert len(rows) == 3 and all(r["failed"] for r in rows)
    assert "3 pictures overflowed" in (tmp_path / "tables.md").read_text()


def test_an_overflow_of_the_dns_image_is_one_of_its_picture(tmp_path):
    words = ("--method", "auto-dnp:s_dns=1e25", "--per-category", 1, "--seeds", 2, "--steps", 10)
    evaluate(tmp_path, *words)
    assert all(r["failed"] for r in of(tmp_path).values())
    assert "6 pictures overflowed" in (tmp_path / "tables.md").read_text()
    assert {r["nfe"][0] for r in rows_of(tmp_path)} == {"0"}


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


def test_empty_and_cut_captions_are_counted(tmp_path, monkeypatch):
    turns = itertools.count()
    said = lambda images: ["" if next(turns) % 2 else "a cat " * 40 for _ in images]
    monkeypatch.setattr(prompting, "load_captioner", lambda *a: said)
    evaluate(tmp_path, "--method", "auto-dnp")
    text = (tmp_path / "tables.md").read_text()
    assert "3 empty captions (phi)" in text and "3 captions cut" in text


def test_differences_are_taken_at_the_same_scale(tmp_path):
    evaluate(tmp_path, "--method", "cfg", "answer:K=1", "--scale", 1, 2, "--baseline", "cfg")
    text = (tmp_path / "tables.md").read_text()
    assert "answer:K=1, s = 2" in text and (tmp_path / "scales.png").exists()
    rows = list(csv.DictReader((tmp_path / "pictures.csv").open()))
    full = lambda m: {(r["prompt"], r["seed"]): float(r["full"]) for r in rows
                      if (r["method"], r["s"]) == (m, "2")}  # fmt: skip
    mean, _, _ = metrics.paired(full("answer:K=1"), full("cfg"), group=lambda k: k[0])
    table = text[text.index("Differences to cfg") :]
    line = next(x for x in table.splitlines() if x.startswith("| answer:K=1, s = 2 "))
    assert f"{mean:+.3f} [" in line


def test_a_plot_has_its_lines_and_legend():
    assert plots.ticks(1, 7.5).tolist() == [0, 2, 4, 6, 8]
    assert plots.ticks(26.7, 97).tolist() == [20, 40, 60, 80, 100]
    assert plots.ticks(0.5, 0.5) == pytest.approx([0.4, 0.6]) and len(plots.ticks(-3, 40)) < 11
    image = plots.plot({"a": [(1, 2, 1, 3), (2, 3, 2, 4)], "b": [(1, 1, 0, 2)]}, "x", "y")
    colours = {c for _, c in image.getcolors(100_000)}
    assert image.size == (760, 460)
    assert {(0x1B, 0x6C, 0xA8), (0xD1, 0x49, 0x5B)} <= colours


def test_the_command_says_its_sentence_and_exits_2():
    done = subprocess.run(
        [sys.executable, "-m", "dnp.evaluation", "--method", "dnq"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: method 'dnq' is unknown")
    assert "Traceback" not in done.stderr


INTERRUPTS = """import os, signal, sys
os.kill(os.getpid(), signal.SIGINT)
raise SystemExit("still here")
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch", "numpy", "dnp/sd/model.py", "transformers"])
def test_ctrl_c_while_importing_is_one_sentence(tmp_path, module):
    """A Ctrl-C comes from inside of each import, instead of at a time that a machine must keep."""
    shutil.copytree(ROOT / "dnp", tmp_path / "dnp")
    path = tmp_path / module
    if path.suffix != ".py":
        path.mkdir()
        path /= "__init__.py"
    path.write_text(INTERRUPTS)
    done = subprocess.run(
        [sys.executable, "-m", "dnp.evaluation", "--weights", MINI, "--out", tmp_path / "out"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stdout == "" or re.fullmatch(r"speed: .*\n", done.stdout)
    assert done.stderr == "interrupted; type the same command to go on.\n"


def test_nothing_heavy_is_imported_before_ctrl_c_is_met():
    told = "import sys, dnp.evaluation.__main__; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "False"


def test_sheets_print_the_prompt_over_every_column():
    pictures = [[Image.new("RGB", (64, 64), c) for c in ("red", "blue")]] * 2
    font = ImageFont.load_default(size=14)
    prompts = ["a red backpack and a orange glasses", "a cat"]
    image = sheets.sheet(["before\ncfg, s = 3", "after\nx"], pictures, prompts, "wins")
    for prompt, x in zip(prompts, (176, 376)):
        lines = sheets.wrap(prompt, font, 192)
        assert " ".join(lines) == prompt and all(font.getlength(line) <= 192 for line in lines)
        above = np.asarray(image)[:, x : x + 192]
        top = int(np.argmax((above == above[-9, 96]).all((1, 2)))) or image.height
        assert (above[40:top] < 128).any()  # ink over this column
    assert len(sheets.wrap("a red backpack and a orange glasses", font, 100)) == 3
    assert all(font.getlength(line) <= 50 for line in sheets.wrap("m" * 60, font, 50))


def test_sheets_of_a_run_are_drawn_with_its_prompts(finished, copy, monkeypatch):
    seen = []
    monkeypatch.setattr(
        sheets, "sheet", lambda rows, pics, columns, title: (seen.append(columns), pics[0][0])[1]
    )
    evaluate(copy)
    prompts = {r["content"]["prompt"] for r in of(finished).values()}
    assert seen and {c.split("\n")[0] for columns in seen for c in columns} <= prompts

"""The pairwise study without a browser: what is made, what is read, what is refused."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from conftest import MINI
from dnp.errors import SettingsError
from dnp.evaluation import benchmarks, pairs
from dnp.evaluation.people import answers, design, page
from dnp.evaluation.records import RunError, Store
from study import by_key, make_run, make_study, put, rows_of, write

SHIPPED = MINI / "study"


# ------------------------------------------------------------------------------------------ design


def test_the_study_that_is_shipped_is_whole_and_has_no_answers():
    """weights/mini/README.md says how to make it anew; after a change of the page alone:
    (SHIPPED / "index.html").write_text(page.page(answers.read_key(SHIPPED)))"""
    key = answers.read_key(SHIPPED)
    assert (SHIPPED / "index.html").read_text("utf-8") == page.page(key)
    assert (SHIPPED / "PLAN.md").read_text("utf-8") == page.plan(key)
    assert {p.name for p in (SHIPPED / "pictures").iterdir()} == set(key["pictures"])
    assert sorted(p.name for p in SHIPPED.iterdir()) == [
        "PLAN.md", "index.html", "key.json", "pictures",
    ]  # fmt: skip
    asked = [p["prompt"] for p in key["pairs"].values() if p["kind"] == "pair"]
    assert (key["a"]["method"], key["b"]["method"], len(asked)) == ("answer", "cfg", 40)
    assert set(asked) <= {p.text for p in benchmarks.load("trio")}
    assert page.minutes(key) <= 10


def test_a_study_names_nothing_that_says_which_picture_is_whose(tmp_path):
    folder, key = make_study(tmp_path)
    page = (folder / "index.html").read_text()
    for word in ("answer@2", "cfg", "ANSWER", '"kind"', "noise.png", "key.json", "float32"):
        assert word not in page
    names = {p.name for p in (folder / "pictures").iterdir()}
    assert all(re.fullmatch(r"[0-9a-f]{12}\.png", name) for name in names)
    assert names == set(key["pictures"])
    for name in names:
        assert Image.open(folder / "pictures" / name).info == {}  # no settings go with it


def test_the_page_asks_no_network_and_runs_its_own_script_alone(tmp_path):
    folder, _ = make_study(tmp_path)
    page = (folder / "index.html").read_text()
    assert not re.search(r"https?://|src=\"(?!data:)|url\(|@import|fetch\(|XMLHttp", page)
    assert "default-src 'none'" in page
    assert page.count("<script") == 2  # the plan and the script


def test_what_a_screen_reader_says_is_left_and_right(tmp_path):
    folder, _ = make_study(tmp_path)
    page = (folder / "index.html").read_text()
    alts = re.findall(r'<img[^>]* alt="([^"]*)"', page)
    assert alts == ["left picture", "right picture"]


def test_pictures_of_a_study_are_those_of_the_run(tmp_path):
    folder, key = make_study(tmp_path)
    manifest = design.read_run(tmp_path / "run")
    a, b = (design.condition(manifest, x) for x in ("answer@2", "cfg"))
    every, _ = design.pairs_of(tmp_path / "run", manifest, a, b)
    known = {(p.prompt, p.seed): p for p in every}
    real = [p for p in key["pairs"].values() if p["kind"] == "pair"]
    assert len(real) == 6
    for told in real:
        pair = known[told["prompt"], told["seed"]]
        for side in "ab":
            ours = np.asarray(Image.open(folder / "pictures" / told[side]))
            path = tmp_path / "run" / "images" / getattr(pair, side)["image"]
            assert np.array_equal(ours, np.asarray(Image.open(path)))


def test_one_side_comes_first_in_both_of_a_block_so_a_swap_of_one_balances_it(tmp_path):
    _, key = make_study(tmp_path, n=12)
    firsts = Counter()
    for block in key["plan"]["blocks"]:
        sides = [
            next(s for s, v in key["pairs"][p["pair"]].items() if v == p["pictures"][0])
            for p in block
        ]
        assert len(sides) == 2
        assert sides[0] == sides[1]
        firsts[sides[0]] += 1
    assert firsts["a"] + firsts["b"] == 6
    assert firsts["a"] and firsts["b"]  # a coin for each block, with this seed of both kinds


def test_checks_are_noise_and_another_prompt_of_both_methods(tmp_path):
    folder, key = make_study(tmp_path)
    checks = [p for p in key["pairs"].values() if p["kind"] != "pair"]
    assert Counter(p["kind"] for p in checks) == {"noise": 2, "other": 2}
    asked = {p["prompt"] for p in key["pairs"].values() if p["kind"] == "pair"}
    assert not asked & {p["prompt"] for p in checks}  # there are prompts enough
    for p in checks:
        assert (folder / "pictures" / p["wrong"]).is_file()
        assert p["right"] != p["wrong"]


def test_the_same_arguments_make_the_same_study_and_another_seed_another(tmp_path):
    run = make_run(tmp_path / "run")
    made = [design.design(run, "answer@2", "cfg", 6, 2, 4, seed).key["study"] for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_failed_damaged_and_foreign_records_are_left_out_and_counted(tmp_path):
    run = make_run(tmp_path / "run", failed=(3, 5))
    manifest = design.read_run(run)
    a, b = (design.condition(manifest, x) for x in ("answer@2", "cfg"))
    store, other = Store(run / "records"), Image.new("RGB", (16, 16))
    put(run, store, other, "cfg", b["settings"], manifest["prompts"][0][0], 0, code="older")
    every, _ = design.pairs_of(run, manifest, a, b)
    (run / "images" / every[0].a["image"]).write_bytes(b"changed")
    every, left_out = design.pairs_of(run, manifest, a, b)
    assert len(every) == 12 - 2 - 1
    assert sorted(left_out.values()) == [1, 2]
    study = design.design(run, "answer@2", "cfg", 8, 2, 4)
    assert "2 failed: a picture overflowed" in page.plan(study.key)


FORGED = {
    "no content": lambda r: r.pop("content"),
    "no method": lambda r: r["content"].pop("method"),
    "no picture": lambda r: r.pop("image"),
    "a list of prompts": lambda r: r["content"].update(prompt=[]),
    "a picture without end": lambda r: r.update(image="x" * 3000),
    "a picture of another folder": lambda r: r.update(image="../images/" + r["image"]),
    "a number for a picture": lambda r: r.update(image=3),
    "content that is a list": lambda r: r.update(content=[]),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_record_that_says_less_than_a_run_writes_is_left_out(tmp_path, name):
    run = make_run(tmp_path / "run")
    store = Store(run / "records")
    every = {path: store.get(path.stem) for path in sorted((run / "records").iterdir())}
    path, record = next(x for x in every.items() if x[1]["content"]["method"] == "cfg")
    FORGED[name](record)
    store.put(path.stem, record)  # sealed, so whole
    assert sum(design.design(run, "answer@2", "cfg", 6, 2).key["left_out"].values()) == 1


def test_pairs_are_spread_over_prompts_before_a_second_seed_is_taken(tmp_path):
    run = make_run(tmp_path / "run", seeds=(0, 1))
    manifest = design.read_run(run)
    a, b = (design.condition(manifest, x) for x in ("answer@2", "cfg"))
    every, _ = design.pairs_of(run, manifest, a, b)
    assert len(every) == 24
    assert [p.seed for p in design.choose(every, 6)] == [0] * 6
    assert len({p.prompt for p in design.choose(every, 12)}) == 12
    assert Counter(p.seed for p in design.choose(every, 16)) == {0: 12, 1: 4}


def test_a_rule_that_is_changed_is_another_study(tmp_path):
    folder, key = make_study(tmp_path)
    file = write(tmp_path, "x.csv", rows_of(key, "r" + "0" * 12, by_key()))
    key["exclusions"]["one_sided_p"] = 0.05
    (folder / "key.json").write_text(json.dumps(key))
    with pytest.raises(RunError, match=r"key\.json was changed"):
        answers.read(folder, [file], tmp_path)


BAD = {
    "several scales": (("answer", "cfg"), {}, "write answer@2 or answer@4"),
    "no such scale": (("answer@3", "cfg"), {}, "write answer@2 or answer@4"),
    "no number": (("answer@x", "cfg"), {}, "write answer@2 or answer@4"),
    "no such method": (("answr@2", "cfg"), {}, "not in this run"),
    "one method": (("cfg", "cfg@3"), {}, "name two methods"),
    "odd": (("answer@2", "cfg"), {"n": 5}, "even number"),
    "too many": (("answer@2", "cfg"), {"n": 14}, "has 12 whole pairs"),
    "repeats": (("answer@2", "cfg"), {"repeats": 5}, "repeated pairs"),
    "checks": (("answer@2", "cfg"), {"checks": 3}, "checks are not possible"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_asked_for_is_one_sentence(tmp_path, name):
    (a, b), numbers, sentence = BAD[name]
    with pytest.raises(SettingsError, match=re.escape(sentence)) as told:
        design.design(
            make_run(tmp_path / "run"), a, b, **{"n": 6, "repeats": 2, "checks": 4} | numbers
        )
    assert "\n" not in str(told.value)


def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(tmp_path):
    with pytest.raises(RunError, match="no finished experiment"):
        pairs.main(["make", str(tmp_path), "--a", "x", "--b", "y", "--out", str(tmp_path / "o")])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        design.read_run(tmp_path)


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path):
    folder, _ = make_study(tmp_path)
    argv = ["make", str(tmp_path / "run"), "--a", "answer@2", "--b", "cfg", "--pairs", "6"]
    with pytest.raises(SettingsError, match="not empty"):
        pairs.main([*argv, "--repeats", "2", "--out", str(folder)])
    assert not list(tmp_path.glob(".*partial"))


def test_the_commands_make_and_read_a_study(tmp_path, capsys):
    run, out = make_run(tmp_path / "run"), tmp_path / "study"
    argv = ["make", str(run), "--a", "answer@2", "--b", "cfg", "--pairs", "8", "--out", str(out)]
    pairs.main(argv)
    assert "16 pairs to look at" in capsys.readouterr().out
    key = answers.read_key(out)
    file = write(tmp_path, "one.csv", rows_of(key, "r" + "1" * 12, by_key()))
    (tmp_path / "bad.csv").write_text("hello")
    pairs.main(["read", str(out), str(file), str(tmp_path / "bad.csv")])
    told = capsys.readouterr()
    assert told.err.startswith("refused: ")
    assert (out / "analysis.md").read_text() in told.out

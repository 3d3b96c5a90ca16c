"""The pairwise study without a browser: what is made, what is read, what is refused."""

import csv
import io
import json
import random
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from conftest import MINI
from dnp.errors import SettingsError
from dnp.evaluation import answers, benchmarks, pairs, study_design, study_page
from dnp.evaluation.store import RunError, Store
from study import by_key, make_run, make_study, put, rows_of, text_of

SHIPPED = MINI / "study"


def write(folder, name, rows):
    path = folder / name
    path.write_text(text_of(rows), newline="")
    return path


# ------------------------------------------------------------------------------------------ design


def test_the_study_that_is_shipped_is_whole_and_has_no_answers():
    """weights/mini/README.md says how to make it anew; after a change of the page alone:
    (SHIPPED / "index.html").write_text(study_page.page(answers.read_key(SHIPPED)))"""
    key = answers.read_key(SHIPPED)
    assert (SHIPPED / "index.html").read_text("utf-8") == study_page.page(key)
    assert (SHIPPED / "PLAN.md").read_text("utf-8") == study_page.plan(key)
    assert {p.name for p in (SHIPPED / "pictures").iterdir()} == set(key["pictures"])
    assert sorted(p.name for p in SHIPPED.iterdir()) == [
        "PLAN.md", "index.html", "key.json", "pictures",
    ]  # fmt: skip
    asked = [p["prompt"] for p in key["pairs"].values() if p["kind"] == "pair"]
    assert (key["a"]["method"], key["b"]["method"], len(asked)) == ("answer", "cfg", 40)
    assert set(asked) <= {p.text for p in benchmarks.load("trio")}
    assert study_page.minutes(key) <= 10


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
    manifest = study_design.read_run(tmp_path / "run")
    a, b = (study_design.condition(manifest, x) for x in ("answer@2", "cfg"))
    every, _ = study_design.pairs_of(tmp_path / "run", manifest, a, b)
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
    made = [
        study_design.design(run, "answer@2", "cfg", 6, 2, 4, seed).key["study"]
        for seed in (1, 1, 2)
    ]
    assert made[0] == made[1] != made[2]


def test_failed_damaged_and_foreign_records_are_left_out_and_counted(tmp_path):
    run = make_run(tmp_path / "run", failed=(3, 5))
    manifest = study_design.read_run(run)
    a, b = (study_design.condition(manifest, x) for x in ("answer@2", "cfg"))
    store, other = Store(run / "records"), Image.new("RGB", (16, 16))
    put(run, store, other, "cfg", b.settings, manifest["prompts"][0][0], 0, code="older")
    every, _ = study_design.pairs_of(run, manifest, a, b)
    (run / "images" / every[0].a["image"]).write_bytes(b"changed")
    every, left_out = study_design.pairs_of(run, manifest, a, b)
    assert len(every) == 12 - 2 - 1
    assert sorted(left_out.values()) == [1, 2]
    study = study_design.design(run, "answer@2", "cfg", 8, 2, 4)
    assert "2 failed: a picture overflowed" in study_page.plan(study.key)


def test_pairs_are_spread_over_prompts_before_a_second_seed_is_taken(tmp_path):
    run = make_run(tmp_path / "run", seeds=(0, 1))
    manifest = study_design.read_run(run)
    a, b = (study_design.condition(manifest, x) for x in ("answer@2", "cfg"))
    every, _ = study_design.pairs_of(run, manifest, a, b)
    assert len(every) == 24
    assert [p.seed for p in study_design.choose(every, 6)] == [0] * 6
    assert len({p.prompt for p in study_design.choose(every, 12)}) == 12
    assert Counter(p.seed for p in study_design.choose(every, 16)) == {0: 12, 1: 4}


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
        study_design.design(
            make_run(tmp_path / "run"), a, b, **{"n": 6, "repeats": 2, "checks": 4} | numbers
        )
    assert "\n" not in str(told.value)


def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(tmp_path):
    with pytest.raises(RunError, match="no finished experiment"):
        pairs.main(["make", str(tmp_path), "--a", "x", "--b", "y", "--out", str(tmp_path / "o")])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        study_design.read_run(tmp_path)


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


# ----------------------------------------------------------------------------------------- reading


def numbers(folder):
    rows = csv.DictReader(io.StringIO((folder / "analysis.csv").read_text()))
    return {(r["raters"], r["question"], r["quantity"]): r for r in rows}


def test_the_analysis_counts_what_was_answered(tmp_path):
    folder, key = make_study(tmp_path)
    choosers = [by_key("a"), by_key("a"), by_key("b", ties=("follows",))]
    files = [
        write(tmp_path, f"{i}.csv", rows_of(key, f"r{i:012x}", choose))
        for i, choose in enumerate(choosers)
    ]
    report, refused = answers.read(folder, files, tmp_path / "out")
    assert refused == []
    got = numbers(tmp_path / "out")
    value = lambda *k: float(got[("kept", *k)]["value"])
    assert value("better", "A wins") == pytest.approx(2 / 3, abs=1e-6)
    assert value("better", "B wins") == pytest.approx(1 / 3, abs=1e-6)
    assert value("follows", "no clear winner") == pytest.approx(1 / 3, abs=1e-6)
    assert value("follows", "A, ties as half") == pytest.approx(5 / 6, abs=1e-6)
    assert value("follows", "A, ties dropped") == 1
    assert got["kept", "better", "A wins"]["n"] == "18"  # 3 raters x 6 pairs, no repeat, no check
    assert value("follows", "sign test of votes, p") == pytest.approx(2 * 0.5**12, rel=1e-4)
    assert value("follows", "sign test of prompts, p") == pytest.approx(2 * 0.5**6, rel=1e-4)
    assert value("better", "left, of left and right") == pytest.approx(0.5, abs=1e-6)
    assert report.count("| 0 of 6 |") == 3  # wrong checks
    assert report.count("| 4 of 4 |") == 3  # the same when repeated


def test_careless_raters_are_excluded_by_the_rules_and_told_with_and_without(tmp_path):
    folder, key = make_study(tmp_path, n=10)
    wrong = lambda pair, *_: "equal" if pair["kind"] == "noise" else "unclear"
    choosers = [by_key("a"), lambda *_: "left", wrong]
    files = [
        write(tmp_path, f"{i}.csv", rows_of(key, f"r{i:012x}", choose))
        for i, choose in enumerate(choosers)
    ]
    report, _ = answers.read(folder, files, tmp_path / "out")
    got = numbers(tmp_path / "out")
    assert float(got["kept", "better", "A wins"]["value"]) == 1
    assert float(got["all", "better", "A wins"]["value"]) == pytest.approx(15 / 20)
    assert report.count("| one side too often |") == 1
    assert report.count("| wrong answers of checks |") == 1
    assert "One rater is left" in report


def test_a_study_of_careless_raters_alone_has_no_numbers_without_them(tmp_path):
    folder, key = make_study(tmp_path)
    file = write(tmp_path, "x.csv", rows_of(key, "r" + "0" * 12, lambda *_: "left"))
    report, _ = answers.read(folder, [file], tmp_path / "out")
    assert report.count("No vote is left.") == 2
    assert not any(k[0] == "kept" for k in numbers(tmp_path / "out"))


def damaged(key, rows, kind):
    """(the file's bytes, a piece of the sentence that refuses it)."""
    text = text_of(rows)
    if kind == "empty":
        return b"", "does not begin"
    if kind == "another page's":
        return b"name,vote\r\nme,left\r\n", "does not begin"
    if kind == "semicolons of a spreadsheet":
        return text.replace(",", ";").encode(), "does not begin"
    if kind == "no text":
        return bytes(range(256)) * 9, "no text in the form of CSV"
    if kind == "a picture":
        return b"\x89PNG\r\n\x1a\n\0\0", "no text in the form of CSV"
    if kind == "an open quote":
        return (text + '"').encode(), "no text in the form of CSV"
    if kind == "of another study":
        return text.replace(key["study"], "s0123456789abcde").encode(), "is of study"
    if kind == "half of the answers":
        return text_of(rows[: len(rows) // 2]).encode(), f"of {len(rows)} answers or is cut off"
    if kind == "cut in a line":
        return text[: len(text) // 2].encode(), "cut off"
    if kind == "cut in the last line":
        return text[:-9].encode(), "cut off"
    if kind == "the header alone":
        return text_of([]).encode(), "holds 0 of"
    if kind == "too large":
        return b"x" * (answers.MOST_BYTES + 1), "larger"
    if kind == "an answer twice":
        again = [*rows[:-1], [*rows[0][:2], len(rows), *rows[0][3:]]]
        return text_of(again).encode(), "there twice or missing"
    if kind == "two raters":
        rows[3][1] = "r" + "f" * 12
        return text_of(rows).encode(), "several raters"
    if kind == "a cell too many":
        rows[3].append("x")
        return text_of(rows).encode(), "too many or too few cells"
    if kind == "sides changed":
        rows[1][8], rows[1][9] = rows[1][9], rows[1][8]
        return text_of(rows).encode(), "changes its side"
    place, value = {
        "rater": (1, "=1+1"), "number": (2, 7), "of": (3, 3), "pair": (4, "p0"), "showing": (5, 3),
        "prompt": (6, "a cat"), "seed": (7, 9), "left": (8, "x.png"), "right": (9, rows[2][8]),
        "question": (10, "worse"), "answer": (11, "both"), "milliseconds": (12, -5),
        "time": (13, "yesterday"),
    }[kind]  # fmt: skip
    rows[2][place] = value
    return text_of(rows).encode(), f"as its {kind}"


KINDS = [
    "empty", "another page's", "semicolons of a spreadsheet", "no text", "a picture",
    "an open quote", "of another study", "half of the answers", "cut in a line",
    "cut in the last line", "the header alone", "too large", "an answer twice", "two raters",
    "a cell too many", "sides changed", "rater", "number", "of", "pair", "showing", "prompt",
    "seed", "left", "right", "question", "answer", "milliseconds", "time",
]  # fmt: skip


def test_damaged_foreign_and_half_written_files_are_refused_one_by_one_and_the_rest_is_read(
    tmp_path,
):
    folder, key = make_study(tmp_path)
    whole = write(tmp_path, "whole.csv", rows_of(key, "r" + "0" * 12, by_key()))
    files, sentences = [], []
    for i, kind in enumerate(KINDS):
        data, sentence = damaged(key, rows_of(key, f"r{i + 1:012x}", by_key("b")), kind)
        files.append(tmp_path / f"{i}.csv")
        files[-1].write_bytes(data)
        sentences.append(sentence)
    _, refused = answers.read(folder, [*files[:9], whole, *files[9:]], tmp_path / "out")
    assert len(refused) == len(KINDS)
    for told, path, sentence, kind in zip(refused, files, sentences, KINDS):
        assert told.startswith(str(path)), kind
        assert sentence in told, kind
        assert "\n" not in told
    assert float(numbers(tmp_path / "out")["kept", "better", "A wins"]["value"]) == 1


def test_a_file_given_twice_and_a_second_file_of_a_rater_are_refused(tmp_path):
    folder, key = make_study(tmp_path)
    rater = "r" + "0" * 12
    one = write(tmp_path, "one.csv", rows_of(key, rater, by_key()))
    copy = write(tmp_path, "copy.csv", rows_of(key, rater, by_key()))
    other = write(tmp_path, "other.csv", rows_of(key, rater, by_key("b")))
    _, refused = answers.read(folder, [one, copy, other, tmp_path / "none.csv"], tmp_path / "out")
    assert ["is a copy of" in refused[0], "of the same rater as" in refused[1]] == [True, True]
    assert "no such file" in refused[2]
    assert numbers(tmp_path / "out")["all", "better", "A wins"]["n"] == "6"


def test_nothing_is_written_where_no_file_can_be_read(tmp_path):
    folder, _ = make_study(tmp_path)
    with pytest.raises(RunError, match="no file of answers can be read"):
        answers.read(folder, [tmp_path / "none.csv"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_study_whose_picture_was_changed_or_that_is_none_is_refused(tmp_path):
    folder, key = make_study(tmp_path)
    name = next(iter(key["pictures"]))
    (folder / "pictures" / name).write_bytes(b"another")
    with pytest.raises(RunError, match=f"{name} was changed"):
        answers.read_key(folder)
    with pytest.raises(RunError, match="no whole study"):
        answers.read_key(tmp_path)
    (folder / "key.json").write_text("[]")
    with pytest.raises(RunError, match="no whole study"):
        answers.read_key(folder)


def test_a_byte_order_mark_and_what_a_letter_does_to_lines_are_read(tmp_path):
    folder, key = make_study(tmp_path)
    text = text_of(rows_of(key, "r" + "0" * 12, by_key())).replace("\r\n", "\n")
    forms = ("\ufeff" + text, text.rstrip(), text + "\n \n", text.replace("\n", "\n\n"))
    for form in forms:
        (tmp_path / "x.csv").write_text(form, "utf-8", newline="")
        _, refused = answers.read(folder, [tmp_path / "x.csv"], tmp_path / "out")
        assert refused == []


def test_a_file_that_was_changed_anywhere_is_read_as_it_was_or_refused_in_a_sentence(tmp_path):
    _, key = make_study(tmp_path)
    rows, rng, path = rows_of(key, "r" + "0" * 12, by_key()), random.Random(17), tmp_path / "x.csv"
    path.write_text(text_of(rows), newline="")
    whole, lines, refused = answers.read_file(path, key), text_of(rows).split("\r\n"), 0
    for i in range(400):
        changed, k = list(lines), rng.randrange(len(lines) - 1)
        if i % 4 == 0:
            changed.insert(k, rng.choice(["", " ", ",", '"', "x,y", rng.choice(lines)]))
        elif i % 4 == 1:
            del changed[k]
        elif i % 4 == 2:
            j = rng.randrange(len(changed[k]))
            changed[k] = changed[k][:j] + rng.choice('\0"\n,ü') + changed[k][j:]
        else:
            changed = ["\r\n".join(lines)[: rng.randrange(len(text_of(rows)) - 2)]]
        path.write_text("\r\n".join(changed), "utf-8", newline="")
        try:
            assert answers.read_file(path, key) == whole
        except answers.Refused as e:
            refused += 1
            assert "\n" not in str(e)
            assert str(e).endswith(".")
    assert 300 < refused < 400

"""Files of answers: the numbers of whole ones by hand, and what is refused."""

import csv
import io
import random

import pytest

from dnp.evaluation.people import answers
from dnp.evaluation.records import RunError
from study import by_key, make_study, rows_of, text_of, write


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
        return bytes(range(256)) * 9, "not text in the form of CSV"
    if kind == "a picture":
        return b"\x89PNG\r\n\x1a\n\0\0", "not text in the form of CSV"
    if kind == "an open quote":
        return (text + '"').encode(), "not text in the form of CSV"
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
    with pytest.raises(RunError, match=r"not a whole study \(no such file or directory\); give a"):
        answers.read_key(tmp_path)
    (folder / "key.json").write_text("[]")
    with pytest.raises(RunError, match="not a whole study"):
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


def test_a_copy_under_another_name_and_moved_lines_are_refused(tmp_path):
    folder, key = make_study(tmp_path)
    good = write(tmp_path, "good.csv", rows_of(key, "r000000000001", by_key()))
    text = good.read_text()
    copy, moved = tmp_path / "copy.csv", tmp_path / "moved.csv"
    copy.write_text(text.replace("r000000000001", "r000000000002"), newline="")
    rows, n = rows_of(key, "r000000000003", by_key()), len(key["plan"]["questions"])
    head, rest = rows[:n], rows[n:]
    numbered = [[*row[:2], i, *row[3:]] for i, row in enumerate(rest + head, 1)]
    write(tmp_path, "moved.csv", numbered)
    _, refused = answers.read(folder, [good, copy, moved], tmp_path / "out")
    assert len(refused) == 2 and all("not in the order that the page draws" in x for x in refused)

"""What a run reports: tables, overflows, plots and sheets."""

import csv
import itertools
import re

import numpy as np
import pytest
from PIL import Image, ImageFont

from dnp.app import sheet as sheet_room
from dnp.errors import SettingsError
from dnp.evaluation import measure, plots, report, sheets
from dnp.evaluation import tables as tables_room
from dnp.sd import captioner, recogniser
from runs import evaluate, of, rows_of, tables

pytestmark = pytest.mark.usefixtures("weights_are_opened_once")


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
        assert f" {float(c['mean']):{sign}.3f}" in text and c["low"] == c["high"] == ""
    assert "[" not in text.split("Stable Diffusion")[0].split("|---")[1]  # of 3 prompts, none
    pictures = list(csv.DictReader((finished / "pictures.csv").open()))
    assert len(pictures) == 18 and {p["seed"] for p in pictures} == {"0", "1"}
    of_cfg = [float(p["full"]) for p in pictures if p["method"] == "cfg"]
    (mean,) = [c["mean"] for c in shown if (c["table"], c["method"]) == ("all", "cfg")]
    assert float(mean) == pytest.approx(np.mean(of_cfg), rel=1e-5)
    for p in pictures:
        assert (finished / "images" / p["image"]).is_file()
        assert int(p["colours"]) in (0, 1) and (p["method"] == "auto-dnp") == bool(p["negative"])


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


def test_empty_and_cut_captions_are_counted(tmp_path, monkeypatch):
    turns = itertools.count()
    said = lambda images: ["" if next(turns) % 2 else "a cat " * 40 for _ in images]
    monkeypatch.setattr(captioner, "load_captioner", lambda *a: said)
    evaluate(tmp_path, "--method", "auto-dnp")
    text = (tmp_path / "tables.md").read_text()
    assert "3 empty captions (phi)" in text and "3 captions cut" in text


@pytest.mark.slow
def test_differences_are_taken_at_the_same_scale(tmp_path):
    evaluate(tmp_path, "--method", "cfg", "answer:K=1", "--scale", 1, 2, "--baseline", "cfg")
    text = (tmp_path / "tables.md").read_text()
    assert "answer:K=1, s = 2" in text and (tmp_path / "scales.png").exists()
    rows = list(csv.DictReader((tmp_path / "pictures.csv").open()))
    full = lambda m: {(r["prompt"], r["seed"]): float(r["full"]) for r in rows
                      if (r["method"], r["s"]) == (m, "2")}  # fmt: skip
    answer, cfg = full("answer:K=1"), full("cfg")
    mean = np.mean([answer[k] - cfg[k] for k in answer.keys() & cfg.keys()])
    table = text[text.index("Differences to cfg") :]
    line = next(x for x in table.splitlines() if x.startswith("| answer:K=1, s = 2 "))
    assert f"{mean:+.3f}, p" in line


def test_a_plot_has_its_lines_and_legend():
    assert plots.ticks(1, 7.5).tolist() == [0, 2, 4, 6, 8]
    assert plots.ticks(26.7, 97).tolist() == [20, 40, 60, 80, 100]
    assert plots.ticks(0.5, 0.5) == pytest.approx([0.4, 0.6]) and len(plots.ticks(-3, 40)) < 11
    drawing = plots.plot({"a": [(1, 2, 1, 3), (2, 3, 2, 4)], "b": [(1, 1, 0, 2)]}, "x", "y")
    image = drawing.image()
    colours = {c for _, c in image.getcolors(100_000)}
    assert image.size == (760, 460)
    assert {(0x1B, 0x6C, 0xA8), (0xD1, 0x49, 0x5B)} <= colours


def test_a_pdf_has_letters_and_lines_and_a_table_of_its_objects():
    nan = float("nan")
    pdf = plots.plot({"a (b)": [(1, 2, nan, nan)], "c": [(2, 3, 2, 4)]}, "x", "y").pdf()
    assert rb"(a \(b\)) Tj" in pdf and pdf.startswith(b"%PDF-1") and b"/Image" not in pdf
    at = int(pdf.split(b"startxref\n")[1].split(b"\n")[0])
    assert pdf[at:].startswith(b"xref\n0 6\n")
    for i, line in enumerate(pdf[at:].split(b"\n")[3:8], 1):
        assert pdf[int(line[:10]) :].startswith(b"%d 0 obj" % i)
    told = int(pdf.split(b"/Length ")[1].split(b" ")[0])
    assert told == len(pdf.split(b"stream\n")[1].removesuffix(b"\nend"))


def test_points_that_would_hide_one_another_are_moved_apart():
    places = plots.apart([(0, 50, 10, 20), (1, 50, 15, 30), (2, 50, 60, 70), (0, 80, 0, 9)], 0, 99)
    assert places == [45, 55, 50, 80]  # the third is below, and the fourth beside
    assert plots.apart([(0, 5, 1, 2), (1, 5, 1, 2), (2, 5, 1, 2)], 5, 99) == [5, 15, 25]
    line = [(i % 2, 3.0 * (i // 2), 0, 9) for i in range(20)]  # two dense curves keep their order
    moved = plots.apart(line, -99, 99)
    for curve in (0, 1):
        assert np.diff(moved[curve::2]) == pytest.approx([3] * 9)


LABELLED = ("--method", "cfg", "auto-dnp:s=2", "--label", "cfg=CFG", "auto-dnp:s=2=DNP & us_")


def test_labels_and_a_primary_column(tmp_path):
    evaluate(tmp_path, *LABELLED, "--primary", "full")
    text, tex = ((tmp_path / f"tables.{k}").read_text() for k in ("md", "tex"))
    assert "| DNP & us_, s = 2 |" in text and "auto-dnp" not in text and "to CFG at" in text
    cells = list(csv.DictReader((tmp_path / "tables.csv").open()))
    assert {c["method"] for c in cells} == {"CFG", "DNP & us_"}
    assert {p.name for p in tmp_path.glob("*-*.png")} <= {
        "wins-DNP_us_s_2.png", "losses-DNP_us_s_2.png",
    }  # fmt: skip
    assert list(tmp_path.glob("*-DNP_us_s_2.png")) and (tmp_path / "evaluations.pdf").is_file()
    asked = list(csv.DictReader((tmp_path / "pictures.csv").open()))
    assert {r["method"] for r in asked} == {"cfg", "auto-dnp:s=2"}  # --scales-from reads these
    # Holm's correction has a family of one, and the others are marked
    compared = {c["column"]: c for c in cells if c["table"] == "minus CFG"}
    assert compared["full prompt"]["p"] == compared["full prompt"]["p_holm"] != ""
    assert all((c["p_holm"] == "") == (k != "full prompt") for k, c in compared.items())
    table = text[text.index("Differences") :].split("\n\n")[1].splitlines()
    assert table[0].count("(exploratory)") == len(compared) - 1 and table[2].count(", p ") == 1
    assert "the 1 differences of full prompt, the primary column. A bracket is" in text
    # every table again, with as many cells in each row
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == text.count("\n|---")
    assert r"DNP \& us\_, s = 2 & " in tex and r"things and colours, \%" in tex
    for block in tex.split(r"\begin{tabular}")[1:]:
        rows = [x for x in block.splitlines() if x.endswith(r" \\")]
        wide = {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows}
        assert wide == {len(block.split("}")[0].strip("{"))}
    bare = re.sub(r"(?m)^%.*|\\[&%_]|\$[-<>]\$| & ", "", tex)
    assert not set("%#_$&") & set(bare)


def test_the_columns_are_known_before_anything_is_made(finished, tmp_path, monkeypatch):
    texts = [r["content"]["prompt"] for r in of(finished).values()]
    heads = [tables_room.COLUMNS[c][0] for c in measure.columns(True, True, texts)]
    shown = (finished / "tables.md").read_text().split("\n|---")[0].split(" | ")
    assert [head for head, _, _ in tables_room.COLUMNS.values() if head in shown] == heads
    assert measure.columns(True, False, ["a cat"]) == ["full", "clipscore"]
    monkeypatch.setattr(recogniser, "of_weights", lambda *_: None)
    with pytest.raises(SettingsError, match="choose of minimum, full, clipscore"):
        evaluate(tmp_path, "--primary", "colours")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--label", "dns=DNS"), "is not METHOD=TEXT with a METHOD of --method; choose of cfg, "),
        (("--label", "cfg=a", "cfg=b"), "names a method twice"),
        (("--label", "cfg="), "1 to 60 characters"),
        (("--label", "cfg=a|b"), "1 to 60 characters"),
        (("--label", "cfg=\u03bb"), "1 to 60 characters of ASCII"),
        (("--label", "cfg=Answer:K 1"), "the name of another method; choose another"),
        (
            ("--primary", "quality"),
            "--primary quality is not a column of this run; choose of minimum",
        ),
        (("--primary", "right"), "--primary right is not a column of this run; choose of minimum"),
    ],
)
def test_labels_and_columns_that_cannot_be_are_told(finished, copy, words, told):
    with pytest.raises(SettingsError, match=re.escape(told)):
        evaluate(copy, *words)
    assert tables(copy) == tables(finished)


def test_an_interval_needs_ten_prompts_that_vary():
    few, many = [[float(i), 1.0] for i in range(9)], [[float(i)] for i in range(10)]
    assert np.isnan(report.interval(few)[1:]).all() and report.interval(few)[0] == 2.5
    mean, low, high = report.interval(many)
    assert low < mean == 4.5 < high
    assert np.isnan(report.interval([[0.0]] * 99)[1:]).all()


def test_sheets_print_the_prompt_over_every_column():
    drawn = [[Image.new("RGB", (64, 64), c) for c in ("red", "blue")]] * 2
    font = ImageFont.load_default(size=14)
    prompts = ["a red backpack and a orange glasses", "a cat"]
    labels = ["before\ncfg, s = 3", "after\nx"]
    image = sheet_room.contact_sheet(list(zip(labels, drawn)), prompts, "wins")
    left = image.width - 2 * 200
    for prompt, x in zip(prompts, (left, left + 200)):
        lines = sheet_room.wrap(prompt, font, 192)
        assert " ".join(lines) == prompt and all(font.getlength(line) <= 192 for line in lines)
        above = np.asarray(image)[:, x : x + 192]
        top = int(np.argmax((above == above[-9, 96]).all((1, 2)))) or image.height
        assert (above[40:top] < 128).any()  # ink over this column
    assert len(sheet_room.wrap("a red backpack and a orange glasses", font, 100)) == 3
    assert sheet_room.wrap("a b c\nd", font, font.getlength("a"), most=2) == ["a", "b …", "d"]
    assert all(font.getlength(line) <= 50 for line in sheet_room.wrap("m" * 60, font, 50))


def test_sheets_of_a_run_are_drawn_with_its_prompts(finished, copy, monkeypatch):
    seen = []
    monkeypatch.setattr(
        sheets,
        "contact_sheet",
        lambda rows, columns, title: (seen.append(columns), rows[0][1][0])[1],
    )
    evaluate(copy)
    prompts = {r["content"]["prompt"] for r in of(finished).values()}
    assert seen and {c.split("\n")[0] for columns in seen for c in columns} <= prompts
    for columns in seen:  # the greatest change first
        changes = [abs(float(c.rpartition(" ")[2])) for c in columns]
        assert changes == sorted(changes, reverse=True)
    assert max(map(len, seen)) > 2

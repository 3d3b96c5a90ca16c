"""What a run reports: tables, overflows, plots and sheets."""

import csv
import itertools

import numpy as np
import pytest
from PIL import Image, ImageFont

from dnp.app import sheet as sheet_room
from dnp.evaluation import plots, sheets
from dnp.sd import captioner
from runs import evaluate, of, rows_of

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
    assert f"{mean:+.3f} [" in line


def test_a_plot_has_its_lines_and_legend():
    assert plots.ticks(1, 7.5).tolist() == [0, 2, 4, 6, 8]
    assert plots.ticks(26.7, 97).tolist() == [20, 40, 60, 80, 100]
    assert plots.ticks(0.5, 0.5) == pytest.approx([0.4, 0.6]) and len(plots.ticks(-3, 40)) < 11
    image = plots.plot({"a": [(1, 2, 1, 3), (2, 3, 2, 4)], "b": [(1, 1, 0, 2)]}, "x", "y")
    colours = {c for _, c in image.getcolors(100_000)}
    assert image.size == (760, 460)
    assert {(0x1B, 0x6C, 0xA8), (0xD1, 0x49, 0x5B)} <= colours


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

"""Attend-and-Excite from the command line: PNGs, the sheet, recommendations of weights."""

import json

import pytest

from conftest import MINI
from dnp import cli, pictures
from test_attend_excite import PAIR


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        before = {*tmp_path.glob("outputs/*.png")}
        try:
            cli.main([str(w) for w in words])
        except SystemExit:
            return [], capsys.readouterr()
        return sorted({*tmp_path.glob("outputs/*.png")} - before), capsys.readouterr()

    return run


def test_a_png_makes_its_picture_again(command):
    how = ["--ae-step", 30, "--ae-thresholds", "0.1:0.3", "--ae-refinements", 2]
    (png,), told = command(PAIR, "--method", "ae", "--steps", 3, "--subjects", "dog", *how)
    assert "network evaluations, " in told.out and " gradients per picture" in told.out
    made = pictures.read_settings(png)
    assert (made["subjects"], made["ae_step"], made["ae_thresholds"]) == ("dog", 30, [0.1, 0.3])
    before = png.read_bytes()
    assert command("--from", png)[0] == [] and png.read_bytes() == before
    (other,), _ = command("a red car", "--from", png)
    assert pictures.read_settings(other)["subjects"] == "car"
    assert pictures.read_settings(other)["ae_step"] == 30
    (cfg,), _ = command("--from", png, "--method", "cfg")
    assert "ae_step" not in pictures.read_settings(cfg)


def test_ae_has_a_row_of_the_sheet_where_there_are_subjects(command, monkeypatch):
    rows = []
    sheet = pictures.contact_sheet
    monkeypatch.setattr(pictures, "contact_sheet", lambda r, *a: (rows.append(r), sheet(r, *a))[1])
    command(PAIR, "--compare", "--steps", 1, "--ae-refinements", 1)
    command("the grass", "--compare", "--steps", 1)
    names = [[label.split("\n")[0] for label, *_ in r] for r in rows]
    assert names == [
        ["cfg", "dns", "auto-dnp", "answer", "ae", "neglect"],
        ["cfg", "dns", "auto-dnp", "answer"],
    ]
    ae_row = rows[0][-2][0]
    assert "arXiv:2301.13826" in ae_row and "gradients" in ae_row


def test_a_damaged_recommendation_is_refused(command, tmp_path):
    (tmp_path / "mini").mkdir()
    for part in MINI.iterdir():
        if part.is_dir():
            (tmp_path / "mini" / part.name).symlink_to(part)
    for excite, sentence in (
        ({"step": 1}, "choose ae_step"),
        ([1], "choose ae_step"),
        ({"ae_step": "1"}, "is not possible"),
    ):
        (tmp_path / "mini" / "dnp.json").write_text(json.dumps({"attend_excite": excite}))
        made, told = command(PAIR, "--weights", tmp_path / "mini")
        assert made == [] and "attend_excite is not possible" in told.err and sentence in told.err
    (tmp_path / "mini" / "dnp.json").write_text(json.dumps({"things": "cat"}))
    assert "things must be a list of words" in command(PAIR, "--weights", tmp_path / "mini")[1].err

"""Attend-and-Excite from the command line (PNGs, the sheet, recommendations) and in experiments."""

import json
from collections import Counter

import pytest

import dnp
from dnp.app import png
from dnp.app import sheet as sheet_room
from dnp.errors import SettingsError
from dnp.evaluation import benchmarks, contestants, dry, strength
from dnp.evaluation.grid import Grid, Run
from dnp.evaluation.measure import Instruments
from experiments import world
from test_attend_excite import PAIR, SMALL


@pytest.fixture(scope="module")
def single():
    return dnp.load(world())


@pytest.fixture
def command(small_cli):
    """(pictures, stdout, stderr) of a command in small."""

    def run(*words):
        _, new, *told = small_cli(*words, "--size", 32, 32)
        return new, *told

    return run


def test_a_png_makes_its_picture_again(command):
    how = ["--ae-step", 30, "--ae-thresholds", "0.1:0.3", "--ae-refinements", 2]
    (picture,), out, _ = command(PAIR, "--method", "ae", "--steps", 3, "--subjects", "dog", *how)
    assert "network evaluations, " in out and " gradients per picture" in out
    made = png.read_settings(picture)
    assert (made["subjects"], made["ae_step"], made["ae_thresholds"]) == ("dog", 30, [0.1, 0.3])
    before = picture.read_bytes()
    assert command("--from", picture)[0] == [] and picture.read_bytes() == before
    (other,), *_ = command("a red car", "--from", picture)
    assert png.read_settings(other)["subjects"] == "car"
    assert png.read_settings(other)["ae_step"] == 30
    (cfg,), *_ = command("--from", picture, "--method", "cfg")
    assert "ae_step" not in png.read_settings(cfg)


def test_ae_has_a_row_of_the_sheet_where_there_are_subjects(command, monkeypatch):
    rows = []
    sheet = sheet_room.contact_sheet
    monkeypatch.setattr(
        sheet_room, "contact_sheet", lambda r, *a: (rows.append(r), sheet(r, *a))[1]
    )
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
    (tmp_path / "small").mkdir()
    for part in world().iterdir():
        if part.is_dir():
            (tmp_path / "small" / part.name).symlink_to(part)
    for excite, sentence in (
        ({"step": 1}, "attend_excite in dnp.json of these weights: step is not a setting; "),
        ({"ae_step": "1"}, "of these weights: ae_step = '1' is not possible; choose a number"),
        ({"ae_step": -1}, "of these weights: ae_step = -1 is not possible; choose a number of at"),
        ([1], "attend_excite must map settings to values"),
    ):
        (tmp_path / "small" / "dnp.json").write_text(json.dumps({"attend_excite": excite}))
        words = [PAIR, "--method", "ae", "--subjects", "cat, car"]
        made, _, err = command(*words, "--weights", tmp_path / "small")
        assert made == [] and sentence in err
    (tmp_path / "small" / "dnp.json").write_text(json.dumps({"things": "cat"}))
    assert "things must be a list of words" in command(PAIR, "--weights", tmp_path / "small")[2]


def test_the_experiments_count_a_gradient_as_two_evaluations(single):
    prompt, method = (
        "a cat and a red car",
        contestants.parse("ae:ae_thresholds=0.1,ae_refinements=1"),
    )
    own = contestants.settled(method, 2.0, 4, single, SMALL, prompt=prompt)
    assert own["ae_thresholds"] == (0.1,) and own["ae_until"] == 0.5  # published, or of the weights
    contestants.check(method, 2.0, 4, single, [prompt], [])
    made = contestants.sample(single, method, [prompt] * 2, [0, 1], own, [None] * 2)
    r = dnp.generate(
        single, prompt, "ae", s=2.0, steps=4, images=2, subjects="cat, car",
        ae_thresholds=(0.1,), ae_refinements=1, size=SMALL,
    )  # fmt: skip
    assert [m.nfe for m in made] == r.evaluations == [8 + 3 * g for g in r.gradients]
    assert Counter(m.image.tobytes() for m in made) == Counter(i.tobytes() for i in r.images)
    assert contestants.subjects_of(method, prompt) == "cat, car"
    assert contestants.subjects_of(contestants.parse("cfg"), prompt) is None
    with pytest.raises(SettingsError, match="names no thing of benchmark ae"):
        contestants.check(method, 2.0, 4, single, ["the grass"], [])


def test_a_dry_run_counts_the_most_that_the_moves_can_be(single, tmp_path):
    chosen = [contestants.parse(f"{name}:ae_refinements=3") for name in ("ae", "ae+auto-dnp")]
    grid = Grid((benchmarks.Prompt(PAIR, "animals"),), tuple(chosen), (None,), (0,), 10)
    work = Run(grid, single, Instruments(None, None, None, None, None), tmp_path)
    counted = [dry.evaluations(work, m, work.settings(m, None)) for m in chosen]
    passes = 5 + 3 * 3  # five of ten steps move; three of them have a threshold
    assert counted == [20 + 3 * passes, 30 + 3 * passes]
    with pytest.raises(SettingsError, match="ae has no strength"):
        strength.by_step(work, chosen[0])

"""A small run of the experiments, made once for all tests, and what is read from its folder."""

import csv
import functools
import json
import os
import shutil
from contextlib import contextmanager

import pytest

import dnp.sd.load as opening
from dnp.evaluation import contestants, metrics, sheets
from dnp.evaluation.__main__ import main
from dnp.sd import captioner, recogniser
from experiments import world


@functools.cache
def once(load):
    """`load`, which keeps what it has opened for all files of tests."""
    kept = {}

    def opened(*args, **named):
        asked = repr((args, named))
        if asked not in kept:
            kept[asked] = load(*args, **named)
        return kept[asked]

    return opened


@contextmanager
def opened_once():
    """The runs here open the same weights about a hundred times, and change none of them. Their
    sheets show pictures as small as they are, since an enlarged one takes 80 ms to pack."""
    rooms = {opening: "load", captioner: "load_captioner", metrics: "CLIPScorer"}
    rooms[recogniser] = "load_recogniser"
    with pytest.MonkeyPatch.context() as patch:
        for room, name in rooms.items():
            patch.setattr(room, name, once(getattr(room, name)))
        patch.setattr(sheets, "contact_sheet", functools.partial(sheets.contact_sheet, least=1))
        yield


@pytest.fixture(scope="module")
def weights_are_opened_once():
    with opened_once():
        yield


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
TABLES = (
    "tables.md", "tables.tex", "tables.csv", "pictures.csv", "evaluations.png", "evaluations.pdf",
    "run.json",
)  # fmt: skip


def typed(out, *words):
    """The words of a command."""
    return [str(w) for w in ("--weights", world(), *GRID, *words, "--out", out)]


def evaluate(out, *words, **environment):
    before = {k: os.environ.pop(k, None) for k in ("RANK", "WORLD_SIZE")}
    os.environ.update(environment)
    try:
        main(typed(out, *words))
    finally:
        for k, v in before.items():
            os.environ.pop(k, None)
            if v is not None:
                os.environ[k] = v


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    with opened_once():
        evaluate(folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def made(monkeypatch):
    """(method, prompt, seed) of every picture that is sampled, in order."""
    pictures, sampled = [], contestants.sample

    def counted(model, method, prompts, seeds, *rest):
        pictures.extend((method.name, *one) for one in zip(prompts, seeds))
        return sampled(model, method, prompts, seeds, *rest)

    monkeypatch.setattr(contestants, "sample", counted)
    return pictures


def tables(folder):
    """Every file that the tables are: they must be the same to the byte."""
    sheets = [p.name for kind in ("wins", "losses") for p in folder.glob(f"{kind}-*.png")]
    assert len(sheets) >= 2
    return {name: (folder / name).read_bytes() for name in (*TABLES, *sheets)}


def of(folder, name="records"):
    return {p.stem: json.loads(p.read_bytes()) for p in (folder / name).glob("*.json")}


def rows_of(folder):
    rows = csv.DictReader((folder / "pictures.csv").open())
    return [{"method": r["method"], "nfe": [r["evaluations"]]} for r in rows]

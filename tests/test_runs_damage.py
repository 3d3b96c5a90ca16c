"""Folders of a run that were damaged, cannot be written, or lie on a full disk."""

import errno
import os
import shutil

import pytest
from PIL import Image

from dnp.app.png import png
from dnp.evaluation import record_keys
from dnp.evaluation.grid import Run
from dnp.evaluation.records import RunError, Store, picture
from runs import evaluate, of, tables

pytestmark = pytest.mark.usefixtures("weights_are_opened_once")


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
    record = {
        "image": "x.png",
        "sha256": record_keys.digest(png(Image.new("RGB", (9, 9), "red"))),
        "n": 3,
    }
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
    monkeypatch.setattr(
        Run, "kept", lambda self, content: self.records.get(record_keys.key(content))
    )
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

"""A small run of experiments and raters of its study, for the tests of the study."""

import csv
import io
import json

import numpy as np
from PIL import Image

from dnp.app.png import png
from dnp.evaluation import record_keys
from dnp.evaluation.people.answers import COLUMNS
from dnp.evaluation.people.design import design
from dnp.evaluation.people.order import sequence
from dnp.evaluation.people.page import make
from dnp.evaluation.records import Store

THINGS = "cat dog bird bear lion horse elephant monkey frog turtle rabbit mouse".split()
OF = {"code": "c", "weights": "w", "device": "cpu", "dtype": "float32"}
METHODS = {
    "cfg": [{"s": 3.0, "steps": 5}],
    "answer": [{"s": 2.0, "steps": 5, "K": 2}, {"s": 4.0, "steps": 5, "K": 2}],
    "cfg:steps=9": [{"s": 3.0, "steps": 9}],
}


def make_run(folder, size=(16, 16), failed=(), prompts=12, seeds=(0,)):
    """A folder as python -m dnp.evaluation leaves it; `failed` holds numbers of prompts of cfg."""
    texts = [f"a {a} and a {b}" for a, b in zip(THINGS[:prompts], [*THINGS[1:], THINGS[0]])]
    texts[0] = 'a "cat", <b>ü</b> & </script> $title 中'  # what a page and a CSV must not trip over
    rng, store = np.random.default_rng(0), Store(folder / "records")
    (folder / "images").mkdir()
    for i, text in enumerate(texts):
        for seed in seeds:
            for label, scales in METHODS.items():
                for settings in scales:
                    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
                    put(folder, store, image, label, settings, text, seed, i in failed)
    told = {"prompts": [[t, "all"] for t in texts], "methods": METHODS, "seeds": list(seeds), **OF}
    (folder / "run.json").write_text(json.dumps(told))
    return folder


def put(folder, store, image, label, settings, text, seed, failed=False, **other):
    content = {
        "method": label.partition(":")[0], "settings": settings, "prompt": text, "seed": seed,
        "captioner": None, **OF, **other,
    }  # fmt: skip
    key, data = record_keys.key(content), png(image, {"method": label})
    (folder / "images" / f"{key}.png").write_bytes(data)
    told = "overflow" if failed and label == "cfg" else None
    record = {"image": f"{key}.png", "sha256": record_keys.digest(data), "failed": told}
    record |= {"negative": None, "nfe": 40, "words_nfe": 0, "notes": [], "seconds": 1.0}
    store.put(key, record | {"content": content})


def make_study(folder, **other):
    """(the study's folder, its key)."""
    run = make_run(folder / "run", **{k: other.pop(k) for k in ("size", "prompts") if k in other})
    numbers = {"n": 6, "repeats": 2, "checks": 4} | other
    study = design(run, "answer@2", "cfg", **numbers)
    make(study, folder / "study")
    return folder / "study", study.key


def rows_of(key, rater, choose):
    """The rows of a whole file; `choose(pair, question, left, right)` returns an answer."""
    rows = []
    for name, showing, left, right in sequence(key, rater):
        pair = key["pairs"][name]
        for q in key["plan"]["questions"]:
            told = choose(pair, q["id"], left, right)
            rows.append([name, showing, pair["prompt"], pair["seed"], left, right, q["id"], told])
    time = "2026-01-01T00:00:00.000Z"
    head = (key["study"], rater)
    return [[*head, i, len(rows), *row, 900 + i, time] for i, row in enumerate(rows, 1)]


def text_of(rows, columns=COLUMNS):
    file = io.StringIO()
    csv.writer(file).writerows([columns, *rows])
    return file.getvalue()


def by_key(preferred="a", ties=()):
    """A careful rater: right in checks, `preferred` in pairs, ties for the questions `ties`."""

    def choose(pair, question, left, right):
        if pair["kind"] == "pair" and question in ties:
            return "equal"
        good = pair[preferred if pair["kind"] == "pair" else "right"]
        return "left" if left == good else "right"

    return choose


def write(folder, name, rows):
    path = folder / name
    path.write_text(text_of(rows), newline="")
    return path

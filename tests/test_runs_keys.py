"""What a picture of the experiments is known by: changed code, weights and metrics."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import dnp.sd.load as opening
from conftest import ROOT
from dnp.errors import SettingsError
from dnp.evaluation import contestants, measure, record_keys
from dnp.evaluation.grid import Run
from dnp.evaluation.records import Store
from dnp.sd import captioner
from dnp.sd.files.fingerprint import Fingerprint
from experiments import world
from runs import evaluate, tables

pytestmark = pytest.mark.usefixtures("weights_are_opened_once")

# What changes, what the run says, and how many pictures it makes anew.
CHANGES = {
    "code": (lambda p: p.setattr(record_keys, "code_hash", lambda: "0" * 32), "9 .* other code;"),
    "weights": (
        lambda p: p.setattr(opening, "load", other_weights),
        "9 .* other weights;",
    ),
    "captioner": (
        lambda p: p.setattr(Run, "content", other_captioner(Run.content)),
        "3 .* other captioner;",
    ),
}


def other_weights(*args, load=opening.load):
    model = load(*args)
    model.config = replace(model.config, files=Fingerprint([], "others"))
    return model


def other_captioner(content):
    def changed(self, *a):
        made = content(self, *a)
        return made | {"captioner": made.get("captioner") and "other"}

    return changed


@pytest.mark.parametrize("what", CHANGES)
def test_changed_code_makes_new_records_and_says_so(copy, made, monkeypatch, capsys, what):
    before = {p: p.read_bytes() for name in ("images", "records") for p in (copy / name).iterdir()}
    change, note = CHANGES[what]
    change(monkeypatch)
    evaluate(copy, "--seeds", 1)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(told) == 1 and re.search(note, told[0])
    assert len(made) == (3 if what == "captioner" else 12)  # the DNS images have no captioner
    assert all(path.read_bytes() == data for path, data in before.items())
    made.clear()
    evaluate(copy, "--seeds", 1)
    assert made == []


def test_the_hash_of_the_code_sees_code_and_no_comments(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "dnp", tmp_path / "dnp")
    monkeypatch.setattr(record_keys, "ROOT", tmp_path / "dnp")
    now = record_keys.code_hash.__wrapped__
    first, metrics_first = now(), record_keys.metrics_code.__wrapped__()
    for name in ("guidance.py", "sd/unet.py", "evaluation/contestants.py"):
        path = tmp_path / "dnp" / name
        text = path.read_text()
        path.write_text("# a comment\n" + text.replace('"""', '"""More words. ', 1))
        assert now() == first
        path.write_text(text + "\nx = 1\n")
        assert now() != first
        path.write_text(text)
        assert now() == first
    (tmp_path / "dnp" / "rules_of_ours.py").write_text("x = 1\n")
    assert now() != first  # a file that is new may be used by any
    (tmp_path / "dnp" / "rules_of_ours.py").unlink()
    for name in ("evaluation/report.py", "evaluation/metrics.py", "app/terminal.py"):
        (tmp_path / "dnp" / name).write_text("x = 1\n")
    assert now() == first and record_keys.metrics_code.__wrapped__() != metrics_first


def test_all_that_is_imported_to_sample_is_in_the_hash():
    told = "import sys, dnp.evaluation.contestants; "
    told += "print(*(m for m in sys.modules if m[:4] == 'dnp.'))"
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    used = {name.removeprefix("dnp.") for name in done.stdout.split()}
    apart = {name for name in used if name in record_keys.APART}
    assert "generation" in used and apart <= {"errors"}  # they refuse, and draw nothing
    beyond = {
        name for name in used if name.startswith("evaluation") and name != "evaluation.contestants"
    }
    words = {"evaluation", *(f"evaluation.{m}" for m in ("benchmarks", "trio"))}
    assert beyond <= words  # of prompts, which are in the key


def test_a_default_that_is_infinite_has_a_key_of_its_own():
    a, b = (record_keys.key({"rule_options": {"tau": x}}) for x in (float("inf"), 1e300))
    assert a != b and a == record_keys.key({"rule_options": {"tau": float("inf")}})
    assert a != record_keys.key({"rule_options": {"tau": "inf"}})


def test_keys_are_of_the_content_alone():
    a = {"s": 3, "size": (8, 16), "b": True, "n": None}
    assert record_keys.key(a) == record_keys.key(
        dict(reversed(list({**a, "s": 3.0, "size": [8, 16]}.items())))
    )
    assert len(record_keys.key(a)) == 32
    for change in ({"s": 3.1}, {"b": 1}, {"n": ""}, {"n": 0}, {"size": (16, 8)}, {"more": None}):
        assert record_keys.key({**a, **change}) != record_keys.key(a)


def test_changed_metrics_score_anew_and_say_so(finished, copy, made, monkeypatch, capsys):
    scored, score, code = [], measure.score, record_keys.metrics_code
    monkeypatch.setattr(measure, "score", lambda *a: (scored.append(1), score(*a))[1])
    monkeypatch.setattr(record_keys, "metrics_code", lambda: "other")
    evaluate(copy)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert told == ["note: 9 units were scored by other metrics; they are scored again."]
    assert (len(scored), made) == (9, [])
    assert (copy / "tables.md").read_bytes() == (finished / "tables.md").read_bytes()
    evaluate(copy)
    assert len(scored) == 9 and "note" not in capsys.readouterr().err
    monkeypatch.setattr(record_keys, "metrics_code", code)
    evaluate(copy)  # and back
    assert (len(scored), made) == (18, []) and tables(copy) == tables(finished)


def test_rescore_computes_the_metrics_anew_from_the_pictures(copy, finished, made, monkeypatch):
    for path in (copy / "scores").iterdir():
        record = Store(copy / "scores").get(path.stem)
        Store(copy / "scores").put(path.stem, {**record, "full": [0.5, 0.5]})
    evaluate(copy)
    assert "| 0.500 |" in (copy / "tables.md").read_text()
    monkeypatch.setattr(captioner, "load_captioner", None)  # nothing is described
    evaluate(copy, "--rescore")
    assert made == [] and tables(copy) == tables(finished)
    with pytest.raises(SettingsError, match="9 pictures of this grid are not in"):
        evaluate(copy, "--rescore", "--seeds", 3)


def test_an_interval_that_ends_at_infinity_is_kept_and_found_again(copy, made):
    for _ in range(2):
        evaluate(copy, "--method", "cfg:interval=3:inf")
    assert [name for name, *_ in made] == ["cfg"] * 6
    assert "3:inf" in (copy / "tables.md").read_text()


def test_the_words_of_particles_are_for_plain_dns_images():
    given = contestants.parse("auto-dnp:particles=2,corrector=1,eta=1")
    settings = contestants.settled(given, None, 4, opening.load(world()), prompt="a cat")
    assert settings["particles"] == 2
    assert contestants.dns_settings(settings).keys() == {"s", "sampler", "steps", "eta"}


def test_a_record_says_in_which_dtype_its_picture_was_decoded():
    both = SimpleNamespace(dtype=torch.bfloat16, vae_dtype=torch.bfloat16)
    wide = SimpleNamespace(dtype=torch.bfloat16, vae_dtype=torch.float32)
    own = SimpleNamespace(dtype=torch.float64)
    told = [record_keys.dtypes(model) for model in (both, wide, own)]
    assert told == ["bfloat16, VAE bfloat16", "bfloat16", "float64"]

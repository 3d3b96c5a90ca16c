"""Runs that are killed, interrupted or shared out, and go on to the same tables."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from conftest import MINI, ROOT
from dnp.errors import SettingsError
from dnp.evaluation import benchmarks, contestants, runner
from dnp.evaluation.grid import Grid
from dnp.evaluation.records import sweep
from runs import evaluate, of, tables, typed

pytestmark = pytest.mark.usefixtures("weights_are_opened_once")


def test_a_run_that_was_killed_goes_on_to_the_same_tables(finished, tmp_path, made, monkeypatch):
    class Killed(BaseException):
        pass

    replace = os.replace
    for stop in (1, 2, 7, 20, 25, 9, 3):  # pictures, records, captions, scores, the report

        def dies(source, target, left=[stop]):  # noqa: B006
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "replace", dies)
            evaluate(tmp_path)
    evaluate(tmp_path)
    assert tables(tmp_path) == tables(finished)
    assert of(tmp_path).keys() == of(finished).keys()
    for path in (finished / "images").iterdir():
        assert path.read_bytes() == (tmp_path / "images" / path.name).read_bytes()


@pytest.mark.slow
def test_shares_make_the_tables_of_one_process(finished, tmp_path, capsys):
    evaluate(tmp_path, RANK="1", WORLD_SIZE="2")
    assert "3 of 9 of the units are there" in capsys.readouterr().out
    assert not (tmp_path / "tables.md").exists()
    evaluate(tmp_path, RANK="0", WORLD_SIZE="3")  # a run may go on with another number of them
    assert "6 of 9" in capsys.readouterr().out and not (tmp_path / "tables.md").exists()
    evaluate(tmp_path)
    assert tables(tmp_path) == tables(finished)


def test_every_unit_is_of_one_process_and_those_of_a_prompt_stay_together():
    prompts = tuple(benchmarks.Prompt(f"a {w}", "x") for w in benchmarks.ANIMALS[:5])
    grid = Grid(prompts, tuple(map(contestants.parse, ("cfg", "dns"))), (1.0, 2.0), (0,), 2)
    for world in (1, 2, 3, 5, 7, 50):
        shares = [grid.share(rank, world) for rank in range(world)]
        assert sorted(map(str, itertools.chain(*shares))) == sorted(map(str, grid.units()))
        if world <= 5:
            assert all(len({u[2] for u in share}) <= -(-5 // world) for share in shares)
    assert all(len(grid.share(rank, 20)) == 1 for rank in range(20))


@pytest.fixture
def tabled(copy):
    """The finished run, tabulated again by a process of its own, whose sheets are enlarged."""
    command = [sys.executable, "-m", "dnp.evaluation", *typed(copy)]
    subprocess.run(command, cwd=ROOT, timeout=300, check=True)
    return copy


@pytest.mark.slow
def test_two_processes_at_once_make_the_tables_of_one(tabled, tmp_path):
    command = [sys.executable, "-m", "dnp.evaluation", *typed(tmp_path)]
    both = [
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
        )
        for rank in range(2)
    ]
    assert [p.wait(timeout=300) for p in both] == [0, 0]
    assert tables(tmp_path) == tables(tabled)


@pytest.mark.slow
def test_kill_9_at_any_moment_and_go_on(tabled, tmp_path):
    command = [sys.executable, "-m", "dnp.evaluation", *typed(tmp_path)]
    rng = np.random.default_rng(0)
    for _ in range(20):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=7 + 3 * rng.random())
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    else:
        process = subprocess.run(command, cwd=ROOT, timeout=300, stderr=subprocess.DEVNULL)
    assert process.returncode == 0 and tables(tmp_path) == tables(tabled)


@pytest.mark.parametrize("share", [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(SettingsError, match="RANK from 0"):
        runner.share({"RANK": share[0], "WORLD_SIZE": share[1]})


INTERRUPTS = """import os, signal, sys
os.kill(os.getpid(), signal.SIGINT)
raise SystemExit("still here")
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch", "numpy", "dnp/sd/model.py", "transformers"])
def test_ctrl_c_while_importing_is_one_sentence(tmp_path, module):
    """A Ctrl-C comes from inside of each import, instead of at a time that a machine must keep."""
    shutil.copytree(ROOT / "dnp", tmp_path / "dnp")
    path = tmp_path / module
    if path.suffix != ".py":
        path.mkdir()
        path /= "__init__.py"
    path.write_text(INTERRUPTS)
    done = subprocess.run(
        [sys.executable, "-m", "dnp.evaluation", "--weights", MINI, "--out", tmp_path / "out"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stdout == "" or re.fullmatch(r"speed: .*\n", done.stdout)
    assert done.stderr == "interrupted; type the same command to go on.\n"


def test_nothing_heavy_is_imported_before_ctrl_c_is_met():
    told = "import sys, dnp.evaluation.__main__; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "False"


def test_temporary_files_that_nobody_writes_any_more_are_swept(tmp_path):
    (tmp_path / "images").mkdir()
    old, new = (tmp_path / "images" / f".{name}.png.x.partial" for name in ("old", "new"))
    kept = tmp_path / "images" / "a.png"
    for path in (old, new, kept):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    os.utime(kept, (0, 0))
    sweep(tmp_path)
    assert not old.exists() and new.exists() and kept.exists()

"""The command line in this process, on weights that are opened once; and what it wrote."""

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dnp.app.command_line import main
from dnp.sd import captioner, load
from experiments import world
from runs import once

MINI = Path(__file__).resolve().parents[1] / "weights" / "mini"


@functools.cache
def once_of(folder, load):
    """`load`, which opens a folder once; each call gets a model that knows nothing yet."""
    kept = {}

    def opened(path, *how):
        if Path(path).resolve() != folder:
            return load(path, *how)
        if how not in kept:
            kept[how] = load(path, *how)
            _ = kept[how].tokenizer
        return copy.copy(kept[how])  # its own captioner and words, the same networks

    return opened


def ended(command, capsys):
    """What a command leaves that is called in this process: (exit code, stdout, stderr)."""
    try:
        command()
        code = 0
    except SystemExit as e:
        code = e.code
    return code, *capsys.readouterr()


@pytest.fixture
def cli(tmp_path, capsys, monkeypatch):
    """Runs the script in-process: cli(*words) -> (exit code, PNGs written, stdout, stderr). On the
    miniature, as the script itself, where no weights are named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "load", once_of(MINI, load.load))
    monkeypatch.setattr(captioner, "load_captioner", once(captioner.load_captioner))

    def run(*words):
        before = set((tmp_path / "outputs").glob("*"))
        code, out, err = ended(lambda: main([str(w) for w in words]), capsys)
        new = sorted(set((tmp_path / "outputs").glob("*")) - before)
        run.dns = [path for path in new if "-auto-dnp-dns-" in path.name]
        new = [path for path in new if path not in run.dns]
        return code, new, out, err

    return run


@pytest.fixture
def small_cli(cli, monkeypatch):
    """`cli` on small random networks, `experiments.world`, where no weights are named: for tests of
    what is written, named, refused and made again, and not of what pictures show."""
    monkeypatch.setattr(load, "load", once_of(world().resolve(), load.load))
    named = {"--weights", "--from", "--model"}  # a PNG names the weights that it was made with

    def run(*words):
        result = cli(*words, *(() if named & set(words) else ("--weights", world())))
        run.dns = cli.dns
        return result

    return run


def pixels(path):
    return np.asarray(Image.open(path))


def refused(result, sentence):
    code, new, _, err = result
    assert code == 2 and new == [] and "Traceback" not in err
    assert sentence in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")

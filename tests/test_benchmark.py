"""The benchmark runs, and measures what it says; no test depends on a time."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from conftest import MINI
from dnp.errors import DnpError
from dnp.evaluation import benchmark, random_weights, rivals
from dnp.sd import config
from dnp.sd.load import describe


def test_its_folder_is_stable_diffusion_1_5():
    kinds = {"text_encoder": config.TextConfig, "unet": config.UNetConfig, "vae": config.VAEConfig}
    for part, kind in kinds.items():
        assert kind.from_dict(random_weights.SD1[part]) == kind()


@pytest.mark.slow
def test_the_table_against_diffusers(capsys):
    given = "--against diffusers --side 8 --rounds 1 --steps 2 --parts agree unet run"
    benchmark.main([*given.split(), "--weights", str(MINI)])
    lines = capsys.readouterr().out.splitlines()
    rows = [[c.strip() for c in x.strip("|").split("|")] for x in lines if x.startswith("| ")]
    assert rows[0][:5] == ["part", "bare", "dnp", "diffusers", "kept"]
    assert rows[0][5:] == ["dnp / bare", "dnp / diffusers", "dnp / kept"]
    table = {r[0]: r[1:] for r in rows[1:]}
    assert len(table) == 5
    for what, (_, ours, *_) in table.items():
        if "greatest difference" in what:
            assert float(ours) < 1e-5
    *times, a, b, c = table["unet, batch 2, latents 8 x 8"]
    assert all(x.endswith("s") for x in times) and min(float(x) for x in (a, b, c)) > 0
    assert "GFLOP/s" in lines[1] and "linear layers" in lines[2]


def test_a_ratio_is_our_least_over_theirs():
    args = benchmark.parse(["--side", "8"])
    turns = {"bare": [3.0, 4.0, 9.0], "dnp": [2.0, 1.5, 1.7]}
    cells = "| unet, batch 2, latents 8 x 8 | 3.00 / 4.00 s | 1.50 / 1.70 s | 0.50 |"
    assert benchmark.row("unet", turns, args) == cells
    turns = {"bare": [3000.0, 4000.0, 9000.0], "dnp": [2.0]}
    assert benchmark.row("memory", turns, args).endswith("| 3,000 / 4,000 MB | 2 / 2 MB | 0.00 |")


def test_who_is_measured_can_be_chosen():
    named = "--beside bare", "--against diffusers --beside kept", "--against diffusers", ""
    named = (*named, "--beside bare bare")
    chosen = [benchmark.parse(words.split()).contestants for words in named]
    every = ["bare", "dnp", "diffusers", "kept"]
    assert chosen == [["bare", "dnp"], ["dnp", "kept"], every, ["bare", "dnp"], ["bare", "dnp"]]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--side", "0"], "--side 0 is not possible"),
        (["--dtype", "float16"], "choose --dtype float32"),
        (["--device", "nowhere"], "cannot be used here"),
        (["--parts", "unets"], "--help lists what is possible"),
        (["--parts", "agree", "--weights", str(MINI)], "add --against diffusers"),
        (["--beside", "bare", "kept"], "are measured with --against diffusers; add it"),
        (["--parts", "load", "--weights", "/nowhere"], "/nowhere: no such file or folder"),
    ],
)
def test_settings_that_are_not_possible(given, sentence):
    with pytest.raises(DnpError, match=sentence):
        benchmark.main(given)


def test_what_another_library_cannot_do_is_a_sentence():
    """What a contestant's process answers, without the process, whose imports are dear."""
    questions, sent = iter(["measures"]), []

    def recv():
        for question in questions:
            return question
        raise EOFError

    args = benchmark.parse(["--weights", str(MINI), "--side", "9999999"])
    with warnings.catch_warnings():
        rivals.answer("dnp", args, SimpleNamespace(recv=recv, send=sent.append))
    (told,) = sent
    assert isinstance(told, DnpError) and "dnp cannot do measures" in str(told)


@pytest.mark.slow
def test_a_contestant_that_dies_is_said():
    args = benchmark.parse(["--weights", str(MINI)])
    with benchmark.Contestant("dnp", args) as contestant:
        assert 0 < contestant("load") < 60
        contestant.process.kill()
        with pytest.raises(DnpError, match="dnp ended with -9 while its unet was measured"):
            contestant("unet")
    assert contestant.process.exitcode == -9


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(capsys):
    ballast = torch.ones(200_000_000)  # the children's memory is not the parent's
    benchmark.main(["--side", "8", "--rounds", "1", "--parts", "memory", "--weights", str(MINI)])
    del ballast
    (ours,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("| memory")]
    assert 200 < float(ours.split("|")[3].split("/")[0].replace(",", "")) < 750


@pytest.mark.slow
def test_random_weights_are_of_the_full_size(tmp_path):
    random_weights.write_random_weights(tmp_path)
    assert "859,520,964" in describe(tmp_path)
    diffusers = benchmark.open_diffusers(benchmark.parse(["--weights", str(tmp_path)]))
    assert sum(p.numel() for p in diffusers.unet.parameters()) == 859_520_964

"""The benchmark runs, and measures what it says; no test depends on a time."""

import pytest
import torch

from conftest import MINI
from dnp import benchmark
from dnp.errors import SettingsError
from dnp.sd import config
from dnp.sd.model import describe


def test_its_folder_is_stable_diffusion_1_5():
    kinds = {"text_encoder": config.TextConfig, "unet": config.UNetConfig, "vae": config.VAEConfig}
    for part, kind in kinds.items():
        assert kind.from_dict(benchmark.SD1[part]) == kind()


@pytest.mark.slow
def test_the_table_against_diffusers(capsys):
    given = "--against diffusers --side 8 --rounds 1 --steps 2 --parts agree unet run rule"
    benchmark.main([*given.split(), "--weights", str(MINI)])
    lines = capsys.readouterr().out.splitlines()
    rows = [[c.strip() for c in x.strip("|").split("|")] for x in lines if x.startswith("| ")]
    assert rows[0][:4] == ["part", "dnp", "diffusers", "ratio"]
    table = {r[0]: r[1:] for r in rows[1:]}
    assert len(table) == 8
    for what, (ours, *_) in table.items():
        if "greatest difference" in what:
            assert float(ours) < 1e-5
    ours, theirs, ratio, _, tuned = table["U-Net forward, batch 2, latents 8 x 8"]
    assert ours.endswith("s") and theirs.endswith("s") and float(ratio) > 0 and float(tuned) > 0
    assert "matrix product" in lines[1] and "matrix product" in lines[-1]


def test_a_ratio_is_ours_over_theirs():
    cells = benchmark.row("x", {"dnp": 1.5, "diffusers": 3.0, "tuned": 0.005})
    assert cells == ["x", "1.50 s", "3.00 s", "0.50", "5.00 ms", "300.00"]
    assert benchmark.row("x", {"dnp": 1500.0}, "MB") == ["x", "1,500 MB", "", "", "", ""]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--side", "0"], "--side 0 is not possible"),
        (["--dtype", "bfloat16"], "leave --dtype out"),
        (["--device", "nowhere"], "cannot be used here"),
        (["--parts", "unets"], "--help lists what is possible"),
        (["--parts", "agree", "--weights", str(MINI)], "add --against diffusers"),
        (["--parts", "load", "--weights", "/nowhere"], "/nowhere: no such file or folder"),
        (["--parts", "unet", "--weights", str(MINI), "--side", "9999999"], "dnp cannot do unet"),
    ],
)
def test_settings_that_are_not_possible(given, sentence):
    with pytest.raises(SettingsError, match=sentence):
        benchmark.main(given)


def test_a_contestant_that_dies_is_said():
    args = benchmark.parse(["--weights", str(MINI)])
    with benchmark.Contestant("dnp", args) as contestant:
        assert 0 < contestant("load") < 60
        contestant.process.kill()
        with pytest.raises(SettingsError, match="dnp ended with -9 while its unet was measured"):
            contestant("unet")
    assert contestant.process.exitcode == -9


@pytest.mark.slow
def test_the_parts_in_processes_of_their_own(capsys):
    ballast = torch.ones(200_000_000)  # the children's memory is not the parent's
    given = "--against diffusers --side 8 --rounds 1 --parts decode load memory import"
    benchmark.main([*given.split(), "--weights", str(MINI)])
    del ballast
    lines = capsys.readouterr().out.splitlines()
    table = {r[0]: r[1:] for x in lines if x.startswith("| ") for r in [x.strip("| ").split(" | ")]}
    ours = next(v[0] for k, v in table.items() if k.startswith("peak memory"))
    assert 200 < float(ours.removesuffix(" MB").replace(",", "")) < 750
    assert {"load", "import", "VAE decode, latents 8 x 8"} < table.keys()


@pytest.mark.slow
def test_random_weights_are_of_the_full_size(tmp_path):
    benchmark.write_random_weights(tmp_path)
    assert "859,520,964" in describe(tmp_path)
    diffusers = benchmark.open_diffusers(benchmark.parse(["--weights", str(tmp_path)]))
    assert sum(p.numel() for p in diffusers.unet.parameters()) == 859_520_964

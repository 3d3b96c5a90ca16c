"""The benchmark runs, and measures what it says; no test depends on a time."""

import pytest

from conftest import MINI
from dnp import benchmark
from dnp.errors import SettingsError
from dnp.sd import config


def test_its_folder_is_stable_diffusion_1_5():
    kinds = {"text_encoder": config.TextConfig, "unet": config.UNetConfig, "vae": config.VAEConfig}
    for part, kind in kinds.items():
        assert kind.from_dict(benchmark.SD1[part]) == kind()


def test_the_table_against_diffusers(capsys):
    given = "--against diffusers --side 8 --rounds 1 --steps 2 --parts agree unet run decode rule"
    benchmark.main([*given.split(), "--weights", str(MINI)])
    lines = capsys.readouterr().out.splitlines()
    rows = [[c.strip() for c in x.strip("|").split("|")] for x in lines if x.startswith("| ")]
    assert rows[0][:4] == ["part", "dnp", "diffusers", "ratio"]
    table = {r[0]: r[1:] for r in rows[1:]}
    assert len(table) == 9
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
    ],
)
def test_settings_that_are_not_possible(given, sentence):
    with pytest.raises(SettingsError, match=sentence):
        benchmark.main(given)

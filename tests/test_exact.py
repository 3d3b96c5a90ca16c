"""The rules against the exact law: what the README's table says, in a fast setting."""

import csv

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from dnp.errors import SettingsError
from dnp.evaluation import exact
from dnp.toy import PointMass

F64 = torch.float64


@pytest.fixture(scope="module")
def told():
    """{(arrangement, label): result} of "right, not up" at s = 3, 800 samples, 20 steps."""
    return {
        (a, r.label): r
        for a, labels in {"square": None, "oblique": ("Eq. 4", "Perp-Neg, w = 1")}.items()
        for r in exact.experiment(
            a, "up", 3.0, [e for e in exact.ENTRIES if labels is None or e.label in labels],
            samples=800, steps=20,
        )
    }  # fmt: skip


def test_dng_ccfg_cfg_two_term_and_eq4_come_in_this_order_with_gaps(told):
    order = ("DNG, exact P", "CCFG, tau = 2", "CFG, ignores n", "two-term", "Eq. 4")
    d = [told["square", label].distance[0] for label in order]
    assert all(b - a >= 0.1 for a, b in zip(d, d[1:])), d
    assert told["square", "the exact law"].distance[0] < 0.1


def test_constant_weights_leave_the_data_and_state_dependent_ones_do_not(told):
    for label in ("Eq. 4", "two-term"):
        assert told["square", label].off[0] > 0.8
    for label in ("DNG, exact P", "CCFG, tau = 2", "DNG, tracked, eta = 1", "bounded, r = 0.25"):
        assert told["square", label].off[0] < 0.05
    assert told["square", "DNG, exact P"].right[0] > 0.98


def test_an_early_negative_helps_and_a_late_one_does_not(told):
    assert told["square", "Eq. 4, n early (sigma > 3)"].right[0] > 0.6
    assert told["square", "Eq. 4, n late (sigma <= 2)"].right[0] < 0.02


def test_perp_neg_is_eq4_on_the_square_only(told):
    gap = {
        a: told[a, "Eq. 4"].distance[0] - told[a, "Perp-Neg, w = 1"].distance[0]
        for a in ("square", "oblique")
    }
    assert abs(gap["square"]) < 0.2 and abs(gap["oblique"]) > 0.5


def test_eq4_lands_on_the_affine_combination():
    mu = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]], dtype=F64)
    model = PointMass(mu[0], list(mu[1:]), exact.toy("square").schedule)
    model.schedule = type(model.schedule)(model.schedule.abar, 1.0)
    z_T = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    entry = exact.ENTRIES[1]
    z_0 = exact.ends(model, entry, 0, 1, 3.0, z_T, 20)
    assert_close(z_0, (mu[0] + 3 * (mu[1] - mu[2])).expand(5, 2))


def test_a_negative_outside_its_interval_is_cfg_bit_for_bit():
    model, cfg = exact.toy("square"), exact.ENTRIES[0]
    z_T = model.sample(20, 999, generator=torch.Generator().manual_seed(0))
    never = exact.Entry("", exact.ENTRIES[1].rule, within=(1e9, 2e9))
    ends = [exact.ends(model, e, 0, 1, 3.0, z_T, 9) for e in (never, cfg)]
    assert torch.equal(*ends)


def test_right_wrong_and_off_are_what_they_say():
    model = exact.toy("square")
    z = torch.tensor([[2.0, -2.0], [2.0, 2.0], [2.0, -0.5], [9.0, 9.0]], dtype=F64)
    assert exact.where(model, z, [1]).tolist() == [0, 1, 2, 2]
    assert exact.where(model, z, [0, 1]).tolist() == [0, 0, 2, 2]


def test_sliced_distance_of_a_shift_is_its_mean_projection():
    """A shift by (d, 0) moves every projection by d |cos a|: the mean is 2 d / pi."""
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    shift = torch.tensor([3.0, 0.0], dtype=F64)
    value, low, high = exact.distance(x, x[torch.randperm(500)] + shift)
    assert value == pytest.approx(6 / torch.pi, rel=2e-3)
    assert low <= value <= high
    assert exact.distance(x, x)[0] == 0


def test_intervals_hold_the_truth_about_95_times_in_100():
    g = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(200):
        k = int((torch.rand(50, generator=g) < 0.1).sum())
        _, low, high = exact.wilson(k, 50)
        held += low <= 0.1 <= high
    assert 180 <= held <= 200
    p, low, high = exact.wilson(0, 50)
    assert p == 0 and 0 <= low < high < 0.1


def test_command_writes_the_table_and_the_picture(tmp_path, capsys):
    out = tmp_path / "out"
    exact.main(["--samples", "100", "--steps", "2", "--out", str(out)])
    assert capsys.readouterr().out.strip() == (out / "exact.md").read_text().strip()
    with (out / "exact.csv").open() as f:
        rows = list(csv.DictReader(f))
    blocks = sum(len(scales) for _, _, scales in exact.WANTS)
    assert len(rows) == blocks * (1 + len(exact.ENTRIES))
    assert all(abs(sum(float(r[x]) for x in ("right", "wrong", "off")) - 1) < 1e-4 for r in rows)
    with Image.open(out / "exact.png") as picture:
        assert picture.width > 900
    assert sorted(p.name for p in out.iterdir()) == ["exact.csv", "exact.md", "exact.png"]


def test_a_rule_of_ones_own_gets_a_row(tmp_path, capsys, monkeypatch):
    """Also one with a memory, which observe() tells the noises that it names."""
    (tmp_path / "mine.py").write_text(
        "class Heavy:\n"
        "    def reset(self, z_T):\n        self.last = 0.0\n"
        "    def __call__(self, eps_phi, eps_p, eps_n, s):\n"
        "        return eps_phi + s * (eps_p - eps_n) - self.last\n"
        "    def observe(self, z_t, z_next, t, t_next, eps_phi, eps_p, eps_n):\n"
        "        self.last = 0.1 * (eps_n - eps_phi)\n"
    )
    monkeypatch.chdir(tmp_path)
    exact.main(["--samples", "100", "--steps", "2", "--rule", "mine.py:Heavy"])
    assert capsys.readouterr().out.count("| mine.py:Heavy |") == 7


@pytest.mark.parametrize("bad", [["--samples", "3"], ["--steps", "0"], ["--steps", "x"]])
def test_impossible_settings_are_one_sentence(bad):
    with pytest.raises(SettingsError):
        exact.main(bad)


def test_the_floor_of_the_distance_is_that_of_the_law_itself_and_not_0():
    held, floors = 0, {}
    for arrangement, negative, _ in exact.WANTS:
        model, n = exact.toy(arrangement), exact.index(negative)
        for seed in range(12):
            g = torch.Generator().manual_seed(seed)
            law, again = (model.sample(4000, c=(0, n), generator=g) for _ in range(2))
            counted = (arrangement, negative) == ("square", "up")
            value, low, _ = exact.distance(again, law, 10 if counted else 2)  # groups
            floors[arrangement, negative, seed] = value
            held += low <= 0 and counted
    assert all(0.011 < v < 0.024 for (*_, seed), v in floors.items() if seed == 0)
    assert all(0.007 < v < 0.075 for v in floors.values())
    assert held == 1

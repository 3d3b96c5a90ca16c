"""`check_rule` tells right rules from broken ones, and energies from what is none."""

import time
from functools import partial

import pytest
import torch

from conftest import ROOT
from dnp import checks, guidance, rules
from dnp.checks import check_rule
from dnp.errors import SettingsError
from dnp.testing.field import apg_of_nodes
from false_energies import EIGHT, SEVEN, Memory

quiet = partial(check_rule, show=False)
ONE = dict(levels=[400])  # where the energy is not what is asked


def test_what_it_finds_for_the_papers_rules():
    cfg = quiet(guidance.cfg)
    assert cfg.ok and cfg.name == "cfg"
    assert (cfg["s = 0"], cfg["s = 1"], cfg["n = phi"]) == ("phi", "p", "has no n")
    assert cfg["linear"] == "phi: 1 - s, p: s, n: 0" and cfg["evaluations"] == "2: phi, p"
    assert (cfg["effective scale"], cfg["jump in s"], cfg["memory"]) == ("s", "no", "no")
    start = time.process_time()
    np = quiet(guidance.negative_prompt)
    assert time.process_time() - start < 5
    assert (np["n = phi"], np["n = p"], np["linear"]) == ("CFG", "phi", "phi: 1, p: s, n: -s")
    assert [np[f"same in {x}"] for x in ("x0", "v", "u")] == ["yes"] * 3
    assert (np["bounded in n"], np["growth in n"]) == ("no", "|dn|^1")
    assert np["harmless if unrelated"].startswith("no, 0.00 on the data")
    two = quiet(guidance.negative_prompt_two_scale)
    assert two["linear"] == "phi: 1 - s + h, p: s, n: -h"  # s and h are told apart
    assert (two["s = 1"], two["n = p"]) == ("h phi + p - h n", "(1 - s + h) phi + (s - h) p")


def test_what_it_finds_for_other_papers_rules():
    perp = quiet(rules.perp_neg, **ONE)
    assert (perp["n = phi"], perp["n = p"], perp["same in x0"]) == ("CFG", "CFG", "yes")
    assert perp["effective scale"] == "s, and a part at right angles to dp"
    ccfg = quiet(rules.ccfg, **ONE, tau=0.5, plain=True)
    assert (ccfg["n = phi"], ccfg["same in x0"], ccfg["bounded in n"]) == ("CFG", "no", "yes")
    bounded = quiet(rules.bounded, **ONE)
    assert (bounded["bounded in n"], bounded["n = p"]) == ("yes", "CFG at 0.75 s for h = s")
    assert bounded["harmless if unrelated"].startswith("yes")
    half = quiet(rules.half_space, **ONE)
    assert (half["n = phi"], half["s = 0"], half["same in x0"]) == ("CFG", "phi", "yes")
    assert quiet(rules.half_space, **ONE, scales=[3.0])["n = p"] == "phi"
    assert half["bounded in n"] == "yes" and half["harmless if unrelated"].startswith("yes")
    assert quiet(rules.half_space, **ONE, tau=-1.0)["bounded in n"] == "no"
    dual = quiet(rules.perp_neg_dual, **ONE)
    assert (dual["n = phi"], dual["same in x0"], dual["bounded in n"]) == ("CFG", "no", "yes")
    dual = quiet(rules.perp_neg_dual, **ONE, tau=0.0, floor=0.0)
    assert (dual["n = p"], dual["same in v"]) == ("CFG at -1 s", "yes")
    assert quiet(rules.apg, **ONE)["s = 1"] == "p"
    assert quiet(apg_of_nodes, **ONE)["linear"] == "phi: -s, p: 1 + s, n: 0"


def test_numbers_stand_beside_the_words_and_an_unknown_row_is_a_key_error():
    check = quiet("perp_neg", levels=[400], scales=[3.0])
    assert (check["n = phi"], quiet("cfg", scales=[3.0])["linear"]) == (
        "CFG",
        "phi: -2, p: 3, n: 0",
    )
    assert check.numbers["energy"] > 1e-3 and check["energy"].startswith("no: ")
    assert check.numbers["growth in n"] == pytest.approx(1, abs=1e-3)
    with pytest.raises(KeyError, match="did you mean energy"):
        check["enregy"]
    looked = check["looked at"]
    assert (
        "1 levels t = 400" in looked and "1 scales 3 to 3" in looked and "batches of 1 to" in looked
    )


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("rule", EIGHT, ids=lambda f: f.__name__)
def test_the_eight_kinds_of_false_energy_are_told(rule):
    check = quiet(rule)
    assert check["energy"].startswith("no: ") and check.numbers["energy"] > 1e-5


def batch_norm(eps_phi, eps_p, s):
    return eps_phi + s * (eps_p - eps_phi) / (eps_p - eps_phi).norm()


def nan_at_phi(eps_phi, eps_p, s):
    d = eps_p - eps_phi
    return eps_phi + s * d / d.norm(dim=tuple(range(1, d.ndim)), keepdim=True)


def in_place(eps_phi, eps_p, s):
    return eps_phi.add_(s * (eps_p - eps_phi))


def moves_z(eps_phi, eps_p, s, z_t):
    z_t.mul_(0.5)
    return eps_phi + s * (eps_p - eps_phi)


def wide(eps_phi, eps_p, s):
    return (eps_phi + s * (eps_p - eps_phi)).double()


def image_only(eps_phi, eps_p, s):
    return eps_phi + s * (eps_p - eps_phi) / (1 + eps_p.norm(dim=(1, 2, 3)))[:, None, None, None]


def nothing(eps_phi, eps_p, s):
    eps_phi + s * (eps_p - eps_phi)


def flat(eps_phi, eps_p, s):
    return (eps_phi + s * (eps_p - eps_phi)).flatten(1)[:, :1]


def chance(eps_phi, eps_p, s):
    return eps_phi + s * (eps_p - eps_phi) + 1e-3 * torch.randn_like(eps_p)


class Grows:
    """A memory shaped by the first batch that it has seen."""

    def reset(self, z_T):
        self.seen = getattr(self, "seen", torch.zeros(z_T.shape))

    def __call__(self, eps_phi, eps_p, s):
        return eps_phi + s * (eps_p - eps_phi) + self.seen

    def observe(self, z_t, z_next, t, t_next, **eps):
        self.seen = self.seen + 1


FAULTS = (
    ("batch mates", batch_norm), ("batch mates", SEVEN), ("batch mates", Memory("the batch")),
    ("p = phi, n = phi", nan_at_phi), ("arguments", in_place), ("arguments", moves_z),
    ("dtype", wide), ("shape", image_only), ("shape", nothing), ("shape", flat),
    ("deterministic", chance), ("shape", Grows()),
)  # fmt: skip


@pytest.mark.parametrize(("row", "rule"), FAULTS, ids=lambda x: getattr(x, "__name__", None))
def test_a_fault_is_a_row_and_never_a_raw_error(row, rule):
    check = quiet(rule, **ONE)
    assert not check.ok and next(r for r in check.rows if r.identity == row).ok is False


def test_a_fault_is_printed(capsys):
    check_rule(nothing)
    assert "returns None" in (text := capsys.readouterr().out) and "FAULT" in text


def test_a_coefficient_that_is_not_quite_one_is_not_printed_as_one():
    almost = lambda eps_phi, eps_p, s: eps_phi + s * (1.0000004 * eps_p - eps_phi)
    assert quiet(almost, **ONE)["s = 1"] == "1.0000004 p"


def test_growth_is_an_exponent():
    def log(eps_phi, eps_p, eps_n, s):
        dn = eps_n - eps_phi
        size = dn.flatten(1).norm(dim=1).reshape(-1, *(1,) * (dn.ndim - 1)).clamp(min=1e-300)
        return eps_phi + s * (eps_p - eps_phi) - size.log1p() * dn / size

    def saturates(eps_phi, eps_p, eps_n, s):
        return eps_phi + s * (eps_p - eps_phi) - 1e6 * ((eps_n - eps_phi) / 1e6).tanh()

    assert (
        quiet(log, **ONE)["bounded in n"] == "no"
        and quiet(saturates, **ONE)["bounded in n"] == "yes"
    )


def test_a_rule_of_ones_own_with_a_memory_is_checked():
    check = quiet(Memory(), **ONE)
    assert check.ok and check["batch mates"] == "independent"
    assert check["memory"].startswith("yes; after 3 steps its value differs by 0.")
    assert check.numbers["memory"] > 1e-3


def test_the_options_of_a_rule_are_its_own_also_where_a_name_is_ours():
    def rule(eps_phi, eps_p, s, show=1.0):
        return eps_phi + show * s * (eps_p - eps_phi)

    assert quiet(rule, options=dict(show=0.5), **ONE)["linear"] == "phi: 1 - 0.5 s, p: 0.5 s, n: 0"


@pytest.fixture(scope="module")
def table():
    """That of dnp/RULES.md, which `test_rules.py` compares with `rules_table`."""
    lines = (ROOT / "dnp" / "RULES.md").read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| rule | formula"))
    return lines[first : first + 2 + len(rules.RULES)]


def test_the_table_has_every_rule_and_its_docstrings_formula(table):
    assert all(line.replace("\\|", "").count("|") == 11 for line in table)
    for line, name in zip(table[2:], rules.RULES):
        assert line.startswith(f"| `{name}` | `")
    assert "`eps_phi + s * dp - g * P / (1 - P) * dn`" in "\n".join(table)


def test_linear_rules_and_exact_dng_are_energies_and_no_other(table):
    signs = [line.split("`")[1] for line in table[2:] if line.endswith("| yes |")]
    assert signs == [
        "perp_neg", "ccfg", "bounded", "half_space", "perp_neg_dual", "apg", "cfg_zero_star",
    ]  # fmt: skip
    assert sum(line.endswith("| no |") for line in table) == len(rules.RULES) - len(signs)


def test_the_command_takes_a_rule(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def mine(eps_p):\n    return eps_p\n")
    checks.main(["--rule", f"{tmp_path / 'mine.py'}:mine"])
    assert "evaluations            1: p" in capsys.readouterr().out
    with pytest.raises(SettingsError, match=r"unrecognized arguments: --foo; .*--help"):
        checks.main(["--foo"])


def test_whatever_is_a_rule_can_be_checked():
    class Module(torch.nn.Module):
        def forward(self, eps_phi, eps_p, s):
            return eps_phi + s * (eps_p - eps_phi)

    for rule in ("cfg", Module(), partial(guidance.cfg), Module):
        check = quiet(rule, **ONE)
        assert check.ok and check["s = 1"] == "p" and check["n = phi"] == "has no n"
    with pytest.raises(SettingsError, match="does not take a noise"):
        quiet(lambda s: s)

"""`check_rule` tells right rules from broken ones, and energies from what is none."""

from functools import partial

import pytest
import torch

from dnp import checks, guidance, rules
from dnp.checks import check_rule
from dnp.errors import SettingsError


def test_what_it_finds_for_the_papers_rules():
    cfg = check_rule(guidance.cfg, show=False)
    assert cfg.ok and cfg.name == "cfg"
    assert (cfg["s = 0"], cfg["s = 1"], cfg["n = phi"]) == ("phi", "p", "has no n")
    assert cfg["linear"] == "-2, 3; sum 1" and cfg["evaluations"] == "2: phi, p"
    np = check_rule(guidance.negative_prompt, show=False)
    assert (np["n = phi"], np["n = p"], np["linear"]) == ("CFG", "phi", "1, 3, -3; sum 1")
    assert (np["same in x0"], np["same in v"], np["bounded in n"]) == ("yes", "yes", "no")
    two = check_rule(guidance.negative_prompt_two_term, show=False)
    assert (two["s = 0"], two["s = 1"], two["n = phi"], two["n = p"]) == ("n", "p", "CFG", "p")
    assert check_rule(guidance.dns, show=False)["s = 1"] == "CFG at -1 s"


def test_what_it_finds_for_other_papers_rules():
    perp = check_rule(rules.perp_neg, show=False)
    assert (perp["n = phi"], perp["n = p"], perp["same in x0"]) == ("CFG", "CFG", "yes")
    ccfg = check_rule(rules.ccfg, show=False, tau=0.5, plain=True)
    assert (ccfg["n = phi"], ccfg["same in x0"], ccfg["bounded in n"]) == ("CFG", "no", "yes")
    assert check_rule(rules.bounded, show=False)["bounded in n"] == "yes"
    assert check_rule(rules.apg, show=False)["s = 1"] == "p"


@pytest.mark.parametrize("name", rules.RULES)
def test_linear_rules_and_exact_dng_are_energies_and_no_other(name):
    skew = float(check_rule(rules.RULES[name], show=False)["energy"].split()[-1])
    if name in ("perp_neg", "ccfg", "bounded", "apg", "cfg_zero_star"):
        assert skew > 0.1
    else:
        assert skew < 1e-12


def broken():
    def batch_mean(eps_phi, eps_p, s):
        return eps_phi + s * (eps_p - eps_phi) / (eps_p - eps_phi).norm()

    def nan_at_phi(eps_phi, eps_p, s):
        d = eps_p - eps_phi
        return eps_phi + s * d / d.flatten(1).norm(dim=1)[:, None, None, None]

    def in_place(eps_phi, eps_p, s):
        return eps_phi.add_(s * (eps_p - eps_phi))

    return {
        "batch mates": batch_mean,
        "p = phi, n = phi": nan_at_phi,
        "arguments": in_place,
    }


@pytest.mark.parametrize("fault", ["batch mates", "p = phi, n = phi", "arguments"])
def test_a_broken_rule_is_a_fault(fault, capsys):
    check = check_rule(broken()[fault])
    assert not check.ok
    assert next(row for row in check.rows if row.identity == fault).ok is False
    assert "FAULT" in capsys.readouterr().out


def test_a_rule_of_ones_own_with_a_memory_is_checked():
    class Own:
        def reset(self, z_T):
            self.seen = 0

        def __call__(self, eps_phi, eps_n, z_t, sigma_t, weight=0.5):
            return eps_phi - weight * (eps_n - eps_phi)

        def observe(self, z_t, z_next, t, t_next, **eps):
            self.seen += 1

    check = check_rule(Own(), show=False)
    assert check.ok and check["linear"] == "1.5, 0, -0.5; sum 1" and check["s = 0"] == "has no s"


def test_the_table_has_every_rule_and_its_docstrings_formula():
    table = checks.rules_table().splitlines()
    assert len(table) == 2 + len(rules.RULES)
    assert all(line.replace("\\|", "").count("|") == 11 for line in table)
    for line, name in zip(table[2:], rules.RULES):
        assert line.startswith(f"| `{name}` | `")
    assert "`eps_phi + s * dp - g * P / (1 - P) * dn`" in checks.rules_table()


def test_the_command_takes_no_arguments():
    with pytest.raises(SettingsError, match=r"unrecognized arguments: --foo; .*--help"):
        checks.main(["--foo"])


def test_a_rule_that_is_not_finite_is_a_fault_and_no_crash():
    def unsafe(eps_phi, eps_p, eps_n, s):
        d = eps_n - eps_phi
        return eps_phi + s * (eps_p - eps_phi) - d / d.norm()

    text = str(check_rule(unsafe, show=False))
    assert "not finite" in text and "NaN or infinite" in text


def test_whatever_is_a_rule_can_be_checked():
    class Module(torch.nn.Module):
        def forward(self, eps_phi, eps_p, s):
            return eps_phi + s * (eps_p - eps_phi)

    for rule in ("cfg", Module(), partial(guidance.cfg), Module):
        check = check_rule(rule, show=False)
        assert check.ok and check["s = 1"] == "p" and check["n = phi"] == "has no n"
    with pytest.raises(SettingsError, match="does not take a noise"):
        check_rule(lambda s: s, show=False)

"""The table of rules that others publish, and the known defects that it finds again."""

import pytest
import torch

from conftest import ROOT
from dnp.checks import check_rule
from dnp.rules import RULES
from dnp.testing import assert_reduces, draws
from dnp.testing.field import FORMULAS, GUIDERS, Guider, apg_of_nodes, brief, field, field_table
from dnp.testing.identities import find, reduces
from dnp.testing.subject import Subject

PAGE = (ROOT / "tests" / "FIELD.md").read_text(encoding="utf-8")


def test_the_page_has_a_row_for_each_rule():
    rows = [line.split(" | ")[1] for line in PAGE.splitlines() if line.startswith("| ")][1:]
    assert rows[: len(RULES) + len(FORMULAS)] == [*RULES, *FORMULAS] and len(rows) >= 20
    left = [g.removesuffix("Guidance") for g in GUIDERS]
    assert all(
        name in rows or f"{name} needs" in PAGE or f"{name} is not there" in PAGE for name in left
    )


def test_a_cell_has_no_number_that_rounds_in_another_way():
    assert brief("energy", "no: 1.2e-3 at t = 3") == "no"
    assert brief("linear", "phi: 1 - s, p: s, n: 0") == "phi: 1 - s, p: s, n: 0"
    assert brief("growth in n", "|dn|^0.99998") == "\\|dn\\|^1"


def test_perp_neg_of_nodes_reduces_over_the_batch_and_is_nan():
    f = Subject(FORMULAS["Perp-Neg of nodes"])
    assert not find("batch mates", f).ok and not find("p = phi, n = phi", f).ok


def test_an_apg_node_is_cfg_at_s_plus_1():
    assert_reduces(apg_of_nodes, lambda eps_phi, eps_p, s: eps_phi + (s + 1) * (eps_p - eps_phi))


@pytest.mark.slow
def test_the_page_is_what_the_command_prints():
    diffusers = pytest.importorskip("diffusers")
    if f"diffusers {diffusers.__version__}" not in PAGE:
        pytest.skip(f"the page is of another diffusers than {diffusers.__version__}")
    assert field_table(check_rule).strip() in PAGE


@pytest.mark.slow
def test_apg_of_diffusers_is_cfg_while_dp_is_at_most_15():
    pytest.importorskip("diffusers.guiders")
    guider, cfg = Subject(Guider("AdaptiveProjectedGuidance")), Subject("cfg")
    for short in (True, False):
        some = [d for d in draws(60) if (length(d) <= 15) == short]
        off, *_ = reduces(guider, lambda d, three, s, h: cfg.at(d, three, s=s), None, some)
        assert (off < 1e-9) == short


def length(draw):
    phi, p, _ = draw.noises()
    return (p - phi).flatten(1).norm(dim=1).max()


@pytest.mark.slow
def test_guiders_with_a_weak_branch_jump_at_scale_1():
    pytest.importorskip("diffusers.guiders")
    found = {name: rule for source, name, rule, _ in field() if source == "diffusers" and rule}
    three = torch.randn(3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    for name in ("SkipLayer", "PerturbedAttention", "SmoothedEnergy"):
        one, near = (found[name](*three, s) for s in (1.0, 1.0 + 1e-6))
        assert (one - near).norm() > 0.2 * one.norm(), name

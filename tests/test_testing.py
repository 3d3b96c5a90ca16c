"""`dnp.testing`: right rules pass, wrong ones fail in a sentence, whatever is drawn."""

import math
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings

from conftest import ROOT, slow_but
from dnp import energy, guidance, rules, toy
from dnp.checks import check_rule
from dnp.errors import SettingsError
from dnp.methods import METHODS
from dnp.schedule import Schedule
from dnp.testing import (
    assert_energy,
    assert_identities,
    assert_law,
    assert_reduces,
    cases,
    draws,
    levels,
    noises,
    scales,
    strategies,
    toys,
)
from dnp.testing.energies import curl, loop_sums
from dnp.testing.laws import chain_law
from dnp.testing.subject import Subject
from false_energies import NARROW, SEVEN, Memory, perp_neg_where

LIMITS = (  # rule, to, when: facts of the papers, over everything that is drawn
    ("perp_neg", "cfg", "n = phi"), ("perp_neg", "cfg", "n = p"), ("perp_neg", "cfg", dict(w=0)),
    ("negative_prompt", "cfg", "n = phi"), ("negative_prompt_two_term", "p", "n = p"),
    ("negative_prompt_two_scale", "cfg", dict(h=0)), ("cfg", "phi", "s = 0"), ("cfg", "p", "s = 1"),
    ("ccfg", "negative_prompt", dict(tau=0)), ("cfg_zero_star", "p", "s = 1"),
    ("dng", "cfg", "n = phi"), ("bounded", "negative_prompt_two_scale", dict(r=math.inf)),
)  # fmt: skip


@pytest.mark.parametrize(("rule", "to", "when"), LIMITS, ids=str)
def test_the_limits_of_published_rules(rule, to, when):
    assert_reduces(rule, to, when)


@pytest.mark.parametrize("case", cases("negative_prompt"), ids=str)
def test_cases_are_the_identities_one_by_one(case):
    case()


@pytest.mark.parametrize(
    "rule", ["dng", "apg", "ccfg", pytest.param(Memory(), id="a memory")], ids=str
)
def test_rules_with_thresholds_and_memories_have_the_identities(rule):
    assert_identities(rule)


def test_a_wrong_limit_is_one_sentence_with_the_case_and_both_numbers():
    with pytest.raises(AssertionError) as e:
        assert_reduces("negative_prompt", "cfg", "n = p", seed=3)
    sentence = re.fullmatch(
        r"negative_prompt is not cfg at n = p: it returns (\S+) where cfg returns (\S+), off by "
        r"\S+ of the whole: t = \d+, s = \S+, h = \S+, norm \S+, shape \(.*\) \(seed 3\)\.",
        str(e.value),
    )
    assert sentence and sentence[1] != sentence[2]
    with pytest.raises(AssertionError):  # h is apart from s, so this one is told
        assert_reduces("negative_prompt_two_scale", "negative_prompt")
    with pytest.raises(ValueError, match="'n = q' is unknown"):
        assert_reduces("cfg", "cfg", "n = q")


@pytest.mark.parametrize("rule", [*NARROW, SEVEN], ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", slow_but([0], [0, 11]))
def test_what_is_wrong_in_a_part_of_a_range_is_seen_whatever_the_seed(rule, seed):
    if rule is SEVEN:
        with pytest.raises(AssertionError, match=r"depends on batch mates.*shape \(7, "):
            assert_identities(rule, seed=seed)
    else:
        with pytest.raises(AssertionError, match="is not cfg"):
            assert_reduces(rule, "cfg", seed=seed)
        with pytest.raises(AssertionError, match=rf"not a gradient at t = .*\(seed {seed}\)"):
            assert_energy(rule, seed=seed)


def test_a_memory_that_mixes_the_batch_is_told_after_its_first_step():
    with pytest.raises(AssertionError, match="depends on batch mates: a sample alone differs"):
        assert_identities(Memory("the batch"))
    first = lambda eps_phi, eps_p, s: eps_phi + s * (eps_p - eps_phi)
    assert_identities(first)


@pytest.mark.parametrize("seed", slow_but([0], [0, 5]))
def test_the_exact_posterior_is_an_energy_also_where_its_weight_is_1e9(seed):
    """T5: p(n | z_t) alone weighs n. A clamp at 1 - 1e-9 was a false alarm of 3e-2, and a band that
    the nodes of a loop step over one of 2e-5."""
    assert_energy("dng", seed=seed, options=dict(p_max=1 - 1e-9))
    assert_energy("dng", seed=seed, options=dict(p_max=1 - 1e-9, p_min=1e-9, prior=0.5, g=1.0))


def test_the_sentence_of_a_false_energy_names_the_point_or_the_loop():
    with pytest.raises(AssertionError, match=r"at the point at \|z\| = .* where an energy has 0"):
        assert_energy("perp_neg")
    jumps = perp_neg_where("never", lambda s, z_t, t: False)
    assert_energy(jumps, levels=[300])
    with pytest.raises(AssertionError, match=r"at the loop of radius"):
        assert_energy(lambda eps_phi, eps_p, s: eps_phi + s * (eps_p - eps_phi).sign())


def test_differences_and_loops_find_the_curl_of_a_field_in_closed_form():
    """F = A z has the asymmetry of A, and the sum around a circle is its area times the curl."""
    A = torch.tensor([[1.0, 0.5], [-0.1, 2.0]], dtype=torch.float64)
    skew, doubt = curl(lambda z: z @ A.T, torch.ones(3, 2).double())
    torch.testing.assert_close(skew, torch.full((3,), 0.3).double(), rtol=1e-6, atol=0)
    assert doubt.max() < 1e-8
    centre, a, b = torch.zeros(1, 2), torch.tensor([[2.0, 0]]), torch.tensor([[0.0, 2]])
    wall = lambda z: torch.stack([0 * z[:, 0], (z[:, 0] > 0.3).double()], 1)  # a jump, no gradient
    sums, doubt = loop_sums(wall, *(x.double() for x in (centre, a, b)))
    assert sums.item() == pytest.approx(1.0, abs=0.02) and doubt < 1e-6
    step = lambda z: torch.stack([(z[:, 0] > 0.3).double(), 0 * z[:, 0]], 1)  # a jump, a gradient
    assert loop_sums(step, *(x.double() for x in (centre, a, b)))[0] < 1e-6


def ve(n=150, top=100.0, bottom=1e-3):
    sigma = torch.logspace(math.log10(bottom), math.log10(top), n, dtype=torch.float64)
    return Schedule(1 / (1 + sigma**2), 1.0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_law_of_a_chain_is_exact_without_samples(eta):
    eye, zero = torch.eye(1), torch.zeros(1)
    line = toy.Gaussian((zero, 2 * eye), [(zero, eye), (zero, eye)], ve())
    pairs = [*ve().abar.flip(0).tolist(), 1.0]
    C = torch.tensor([2.0, 1.0], dtype=torch.float64)[:, None, None]
    _, V = energy.gaussian_chain((-2.0, 3.0), 0 * C[:, 0], C, pairs, eta)
    assert_law("cfg", line, 3.0, eta, mean=0.0, covariance=V, within=1e-12)
    limit = (energy.ddpm_variance if eta else energy.ddim_variance)(2.0, 1.0, 3.0)
    assert_law("cfg", line, 3.0, eta, covariance=limit, within=0.05)
    with pytest.raises(AssertionError, match=r"the law of cfg at s = 3.*its covariance is 0\.2"):
        assert_law("cfg", line, 3.0, covariance=0.5)
    with pytest.raises(ValueError, match="cfg_zero_star is not affine in z_t at t = "):
        assert_law("cfg_zero_star", toys()["gaussians"], 3.0, covariance=0.5, steps=10)


@settings(max_examples=25, deadline=None)
@given(strategies.noises(batch=3), strategies.scales(), strategies.levels(), strategies.toys())
def test_strategies_draw_what_rules_take(three, s, t, model):
    eps = rules.perp_neg(*three, s)
    assert eps.shape == three[0].shape and 0 <= t < 1000 and hasattr(model, "eps")


def test_what_is_drawn_covers_its_ranges_and_a_seed_draws_it_again():
    for seed in range(20):
        t, s = levels(24, seed), scales(24, seed)
        assert t[0] == 999 and t[-1] == 0 and sum(480 <= x < 600 for x in t) >= 1
        assert {0.0, 1.0} <= set(s) and max(s) > 20 and min(s) < -3 and sum(x >= 8 for x in s) >= 3
        some = draws(48, seed)
        assert {d.shape[0] for d in some} == set(range(1, 10)) and {len(d.shape) for d in some} == {
            2,
            3,
            4,
            5,
        }
        assert all(len(set(d.shape[1:])) == len(d.shape) - 1 for d in some)  # unlike sides
        assert min(d.norm for d in some) < 0.02 and max(d.norm for d in some) > 500
        assert any(d.s != d.h for d in some) and draws(48, seed) == some
    assert torch.equal(noises((2, 3), 4)[0], noises((2, 3), 4)[0])
    assert noises((2, 3), norm=5.0, dtype=torch.float16)[2].dtype == torch.float16


@pytest.mark.parametrize("name", toys())
def test_every_toy_is_a_model_with_two_prompts(name):
    model = toys()[name]
    z = model.sample(3, 400, generator=torch.Generator().manual_seed(0))
    assert all(model.eps(z, 400, c).isfinite().all() for c in (None, 0, 1))


def test_hypothesis_is_imported_with_the_strategies_only():
    code = "import sys, dnp.testing; print('hypothesis' in sys.modules, 'diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_the_readmes_test_of_ones_own_rule_runs():
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    section = text.split("## Test your own rule in your own project")[1]
    space = {}
    exec(re.search(r"```python\n(.*?)```", section, re.S)[1], space)
    tests = [f for name, f in space.items() if name.startswith("test_")]
    for f in tests:
        marks = getattr(f, "pytestmark", [])
        for value in marks[0].args[1] if marks else [None]:
            f(value) if marks else f()
    assert len(tests) == 4


def test_the_asserts_take_a_file_and_name(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def mine(eps_phi, eps_p, s, k=1.0):\n    return eps_phi + k * s * (eps_p - eps_phi)\n"
    )
    assert_reduces(f"{path}:mine", guidance.cfg)
    assert_reduces(f"{path}:mine", "phi", dict(k=0))
    assert_energy(f"{path}:mine", toys()["square"], levels=[200])


METHOD = """
from dnp.methods.method import Method
class Shrunk(Method):
    'phi + s (p - n_t), n_t: p of a smaller latent'
    share: float = 0.5
    name, own_rule, has_negative = "shrunk", "negative_prompt", True
    def negative(self, z_t, t, eps_phi, eps_p):
        return self.noises(self.share * z_t, t, [self.conditions["p"]])[0]
class Drags(Method):
    'phi + s (p - n), with what the first step of its batch mates was'
    name, own_rule, takes_words, has_negative = "drags", "negative_prompt", True, True
    def start(self):
        self.first_p = None
    def evaluate(self, z_t, t, conditions):
        noises = super().evaluate(z_t, t, conditions)
        self.first_p = noises[0].mean(0) if self.first_p is None else self.first_p
        return [x + 0.1 * self.first_p for x in noises]
"""


def test_every_assert_and_the_table_take_a_method_of_ones_own(tmp_path):
    (path := tmp_path / "methods.py").write_text(METHOD)
    cases(f"{path}:Shrunk")[0]()  # `check.ok` below is all of `assert_identities`
    assert_energy(f"{path}:Shrunk", levels=[300])  # p of a smaller latent has an energy, too
    assert_reduces(METHODS["np"], "negative_prompt_two_scale")
    with pytest.raises(AssertionError, match="depends on batch mates"):
        assert_identities(f"{path}:Drags")
    with pytest.raises(AssertionError, match=r"is not cfg at \{'share': 0.9\}"):
        assert_reduces(f"{path}:Shrunk", "cfg", dict(share=0.9))
    eye = torch.eye(1)
    line = toy.Gaussian((0 * eye[0], 2 * eye), [(0 * eye[0], eye), (0 * eye[0], eye)])
    V = chain_law(Subject("cfg", {}, line), 3.0, 3.0, 0.0, 20)[1]
    assert_law(METHODS["cfg"], line, 3.0, covariance=V, steps=20, within=1e-12)
    check = check_rule(f"{path}:Shrunk", levels=[400], show=False)
    assert check.ok and check["memory"] == "none seen in 3 steps"
    with pytest.raises(SettingsError, match="neglect asks a model for more than noises"):
        check_rule(METHODS["neglect"])
    with pytest.raises(SettingsError, match="a scale and the chain are drawn"):
        assert_energy(METHODS["np"], steps=3)

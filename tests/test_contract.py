"""A rule is any function: what is refused, and what is read from it.

Toys stand for networks wherever a network proves nothing more (`dnp/methods/rule.py`).
"""

import functools

import pytest
import torch
from torch.testing import assert_close

import dnp
from dnp import guidance, methods, rules, sampling
from dnp.errors import NonFiniteError, SettingsError
from dnp.methods import rule as contract
from own_rules import (
    F64,
    PAIRS,
    SCHEDULE,
    STEPS,
    Called,
    Counted,
    Module,
    decorated,
    end,
    midpoint,
    pull,
    push,
    walk,
)

# ---------------------------------------------------------------------------------- what is refused


def only(eps_p):
    return eps_p


def positional(eps_phi, eps_p, /, s):
    return eps_phi


NOT_RULES = {
    "*args": (lambda *eps: eps, r"takes \*eps, which does not say"),
    "**kwargs": (lambda eps_p, **more: eps_p, r"takes \*\*more, which does not say"),
    "positional-only": (positional, "eps_phi of rule positional is positional-only"),
    "an unknown eps": (lambda eps_p, eps_negative: eps_p, "eps_negative, which is not known"),
    "a misspelt eps": (lambda eps_phy, eps_p: eps_p, "did you mean eps_phi"),
    "an unknown sigma": (lambda eps_p, sigma_last=None: eps_p, "sigma_last, which is not known"),
    "no eps": (lambda z_t, s: z_t, "does not take a noise; name at least one of eps_phi"),
    "no eps but an option": (lambda k=2: k, "does not take a noise"),
    "no default": (lambda eps_p, k: eps_p, "parameter k of rule <lambda> has no default"),
    "no signature": (torch.add, "does not say what it needs"),
    "no function": (3, "is not a function"),
    "no name": ("perp-neg", "did you mean perp_neg"),
    "no file": ("nowhere.py:f", "nowhere.py: no such file"),
}


@pytest.mark.parametrize("name", NOT_RULES)
def test_what_is_not_a_rule_is_refused_in_a_sentence(name):
    rule, sentence = NOT_RULES[name]
    with pytest.raises(SettingsError, match=sentence) as e:
        walk(rule)
    assert str(e.value).endswith((".", "?")) and "\n" not in str(e.value)


NOT_ITS_OWN = {
    "s": (only, {"s": 2.0}, "only has no guidance scale"),
    "h": (pull, {"negative_scale": 2.0}, "pull has no scale of the negative"),
    "h of perp_neg": (
        "perp_neg", {"method": "np", "negative": 1, "negative_scale": 1.0}, "no h",
    ),
    "a negative": (pull, {"negative": 1}, "pull takes no negative prompt"),
    "a method with a negative": (pull, {"method": "np", "negative": 1}, "has no eps_n"),
    "a chain": (pull, {"method": "answer"}, "has no eps_n"),
    "a negative interval": (pull, {"negative_interval": (0.1, 1.0)}, r"no negative \(no eps_n\)"),
    "no negative": (push, {}, "needs a negative prompt"),
    "a method without one": (push, {"method": "cfg"}, r"needs a negative \(eps_n\)"),
    "an option": (pull, {"rule_options": {"tua": 1}}, "did you mean tau"),
    "an option where none is": (only, {"rule_options": {"k": 1}}, "it has no options"),
    "an option of the sampler's": (pull, {"rule_options": {"s": 1}}, "given by the sampler"),
    "an option of no rule": (None, {"rule_options": {"tau": 1}}, "belong to a rule"),
    "an option of a class": ("apg", {"rule_options": {"betta": 1}}, "did you mean beta"),
    "an interval upside down": (pull, {"interval": (5.0, 1.0)}, "0 <= LO <= HI"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_ITS_OWN)
def test_what_a_rule_does_not_have_is_refused_in_a_sentence(name):
    rule, given, sentence = NOT_ITS_OWN[name]
    with pytest.raises(SettingsError, match=sentence):
        walk(rule, **given)


RESULTS = {
    "a sample too few": (lambda eps_p: eps_p[:1], r"shape \(1, 3\)"),
    "a broadcast": (lambda eps_p: eps_p[None], r"shape \(1, 2, 3\)"),
    "a number": (lambda eps_p: 1.0, "float"),
    "nothing": (lambda eps_p: None, "NoneType"),
    "several": (lambda eps_p: (eps_p, eps_p), "tuple"),
    "yes or no": (lambda eps_p: eps_p > 0, "bool"),
    "whole numbers": (lambda eps_p: eps_p.long(), "int64"),
    "another precision": (lambda eps_p: eps_p.float(), "float32"),
    "a parameter": (lambda eps_p: torch.nn.Parameter(eps_p), "Parameter"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_that_is_not_one_noise_is_refused(name):
    rule, found = RESULTS[name]
    wanted = rf"rule <lambda> returned {found} for float64 latents of shape \(2, 3\); return one"
    with pytest.raises(SettingsError, match=wanted):
        walk(rule)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_names_the_step_and_the_rule(value):
    def late(eps_p, t):
        return eps_p if t > PAIRS[3][0] else eps_p * value

    with pytest.raises(NonFiniteError, match=r"step 4 of 10.*rule late"):
        walk(late)


def test_a_rule_s_own_value_error_is_a_sentence_with_its_level():
    def unwilling(eps_p):
        raise ValueError("choose another.")

    with pytest.raises(SettingsError, match=f"rule unwilling at t = {PAIRS[0][0]}: choose another"):
        walk(unwilling)


# ------------------------------------------------------------------------------------- what is read


class Plain(torch.nn.Module):
    """A module without a constructor of its own."""

    def forward(self, eps_phi, eps_p, s):
        return pull(eps_phi, eps_p, s)


FORMS = {
    "function": pull, "module": Module(), "class of a module": Module, "plain module": Plain,
    "object": Called(), "class": Called, "method": Called().method, "decorated": decorated(1)(pull),
    "partial": functools.partial(pull, tau=1.0), "of a module": functools.partial(Module(), s=2.0),
    "partial of partial": functools.partial(functools.partial(pull, tau=3.0), tau=1.0),
    "lambda": lambda s, eps_p, eps_phi: pull(eps_phi, eps_p, s), "name": "cfg",
}  # fmt: skip
COMPILED = {"compiled": pull, "compiled module": Module()}  # in the test: the compiler loads slowly


@pytest.mark.parametrize("form", [*FORMS, *COMPILED])
def test_every_form_of_a_rule_is_the_same_rule(form):
    rule = FORMS[form] if form in FORMS else torch.compile(COMPILED[form], backend="eager")
    given = {} if form == "of a module" else {"s": 2.0}  # s is bound there
    assert_close(end(rule, **given), end(s=2.0))


def test_a_partial_no_longer_needs_what_it_binds():
    assert contract.read(functools.partial(pull, s=3.0)).needs == ("eps_phi", "eps_p")
    assert contract.read(functools.partial(pull, torch.zeros(1))).needs == ("eps_p", "s")
    assert contract.read(functools.partial(pull, tau=2.0)).options == {"tau": 2.0}
    with pytest.raises(SettingsError, match="has no guidance scale"):
        end(functools.partial(pull, s=3.0), s=2.0)
    assert_close(end(functools.partial(pull, s=3.0)), end(s=3.0))


@pytest.mark.slow
def test_a_rule_runs_under_the_compiler_of_this_machine():
    """In the slow tests, since it needs a C++ compiler and takes half a minute."""
    for rule in (pull, Module()):
        assert_close(end(torch.compile(rule), s=2.0), end(s=2.0))


def test_a_compiled_rule_has_the_name_and_the_hash_of_the_rule():
    for rule in (pull, Module()):
        plain, compiled = contract.read(rule), contract.read(torch.compile(rule, backend="eager"))
        assert (compiled.name, compiled.sha256) == (plain.name, plain.sha256)


def test_options_reach_the_rule_and_defaults_stand():
    assert_close(end(pull, s=2.0, rule_options={"tau": 0.5}), end(s=1.0))
    assert_close(end(Module, s=2.0, rule_options={"tau": 0.5}), end(s=1.0))
    assert contract.read("perp_neg").options == {"w": 1.0}
    assert contract.read("apg", {"r": 2}).options == {
        "eta": 0.0, "beta": -0.75, "r": 2, "space": "x0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        (lambda eps_p: eps_p, [0]),
        (lambda eps_phi: eps_phi, [None]),
        (lambda eps_n: eps_n, [1]),
        (lambda eps_p, eps_n: eps_p + eps_n, [0, 1]),
        (lambda eps_n, eps_phi, z_t: eps_phi + eps_n, [None, 1]),
        (lambda eps_n, eps_p, eps_phi: eps_phi + eps_n - eps_p, [None, 0, 1]),
    ],
)
def test_the_noises_that_are_named_are_evaluated_and_counted(rule, seen):
    model = Counted()
    given = {"negative": 1} if 1 in seen else {}
    made = dnp.generate(model, 0, rule=rule, steps=STEPS, images=2, **given)
    assert made.nfe == len(seen) * STEPS
    assert model.calls == [(t, c) for t, _ in PAIRS for c in seen] * 2


def test_the_rest_that_a_rule_may_ask_for_is_what_the_contract_says():
    told = []

    def curious(eps_p, eps_n, s, h, z_t, t, t_next, sigma_t, sigma_next):
        told.append((z_t, int(t), int(t_next), sigma_t, sigma_next, s, h))
        return eps_p

    rows = walk(curious, negative=1, s=2.0)
    assert [(t, t_next) for _, t, t_next, *_ in told] == PAIRS
    for (z_t, t, t_next, sigma_t, sigma_next, s, h), row in zip(told, rows):
        assert torch.equal(z_t, row[1]) and z_t is not row[1]  # a copy
        assert (s, h) == (2.0, 2.0)  # h is s where none is given
        for sigma, level in ((sigma_t, t), (sigma_next, t_next)):
            assert sigma.dtype == F64 and sigma.ndim == 0 and sigma.device.type == "cpu"
            assert sigma == (1 - SCHEDULE.level(level)).sqrt()
    told.clear()
    walk(curious, negative=1, s=2.0, negative_scale=0.5)
    assert told[0][5:] == (2.0, 0.5)


def test_between_two_levels_there_is_no_next_one(monkeypatch):
    monkeypatch.setattr(sampling, "ddim_sample", midpoint)
    told = []

    def curious(eps_p, t, t_next, sigma_next):
        told.append((int(t), t_next if t_next is None else int(t_next), sigma_next is None))
        return eps_p

    walk(curious)
    assert [row for row in told if row[0] in dict(PAIRS)] == [(*pair, False) for pair in PAIRS]
    between = [row for row in told if row[0] not in dict(PAIRS)]
    assert between == [((t + n) // 2, None, True) for t, n in PAIRS[:-1]]


def test_one_registry_has_the_papers_rules():
    paper = {name for name, f in vars(guidance).items() if name in rules.RULES and callable(f)}
    assert paper == {
        "cfg", "dns", "negative_prompt", "negative_prompt_two_term", "negative_prompt_two_scale",
    }  # fmt: skip
    assert {m.own_rule for m in methods.METHODS.values()} <= set(rules.RULES)


def test_without_a_method_the_signature_chooses_it():
    def chosen(rule, **given):
        return dnp.generate(Counted(), 0, rule=rule, steps=STEPS, **given).settings["method"]

    assert chosen(pull) == "cfg" and chosen(push, negative=1) == "np"
    assert chosen(None) == "cfg" and chosen(None, negative=1) == "np2"

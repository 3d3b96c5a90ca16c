"""A rule is any function: what is read from it, what is refused, and the doors that it comes in by.

Toys stand for networks wherever a network proves nothing more (`dnp/contract.py`, `dnp/guided.py`).
"""

import functools
import hashlib
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import dnp
from conftest import MINI
from dnp import answer, contract, guidance, methods, pictures, rules, sampling, toy
from dnp.energy import z0_from_eps
from dnp.errors import NonFiniteError, SettingsError
from dnp.evaluation import __main__ as evaluation
from dnp.evaluation import methods as compared
from dnp.schedule import Schedule
from dnp.sd import speed

F64, STEPS = torch.float64, 10
SCHEDULE = Schedule(Schedule.stable_diffusion().abar, abar_final=1.0)
PAIRS = SCHEDULE.pairs(STEPS)


class Counted(toy.Mixture):
    """A toy that notes the (level, prompt) of each evaluation."""

    def __init__(self):
        means = torch.tensor([[-1.0, 0.5, 0.2], [1.0, -0.5, 0.9], [0.3, 1.4, -1.1]])
        covariances = 0.2 * torch.eye(3).expand(3, 3, 3)
        super().__init__([0.3, 0.3, 0.4], means, covariances, [[0, 1], [2]], SCHEDULE)
        self.calls = []

    def eps(self, z_t, t, c=None):
        self.calls.append((int(t), c))
        return super().eps(z_t, t, c)


def walk(rule=None, z_T=None, model=None, **given):
    """The rows of a chain of ten steps on the toy, of two samples from fixed noise."""
    z_T = torch.tensor([[0.4, -1.2, 0.1], [-0.7, 0.3, 0.8]], dtype=F64) if z_T is None else z_T
    return list(dnp.trajectory(model or Counted(), 0, rule=rule, z_T=z_T, steps=STEPS, **given))


def end(rule=None, **given):
    return walk(rule, **given)[-1][1]


@pytest.fixture(scope="module")
def mini():
    """The miniature with the speed measures, as the commands have it."""
    model = dnp.load(MINI)
    speed.apply(model)
    return model


# --------------------------------------------------------------------------------- what is refused


def pull(eps_phi, eps_p, s, tau=1.0):
    return eps_phi + s * tau * (eps_p - eps_phi)


def push(eps_phi, eps_p, eps_n, s, h=None, w=1.0):
    return eps_phi + s * (eps_p - eps_phi) - w * (s if h is None else h) * (eps_n - eps_phi)


def only(eps_p):
    return eps_p


def positional(eps_phi, eps_p, /, s):
    return eps_phi


NO_RULES = {
    "*args": (lambda *eps: eps, r"takes \*eps, which does not say"),
    "**kwargs": (lambda eps_p, **more: eps_p, r"takes \*\*more, which does not say"),
    "positional-only": (positional, "eps_phi of rule positional is positional-only"),
    "an unknown eps": (lambda eps_p, eps_negative: eps_p, "eps_negative, which is not known"),
    "a misspelt eps": (lambda eps_phy, eps_p: eps_p, "did you mean eps_phi"),
    "an unknown sigma": (lambda eps_p, sigma_last=None: eps_p, "sigma_last, which is not known"),
    "no eps": (lambda z_t, s: z_t, "takes no noise; name at least one of eps_phi"),
    "no eps but an option": (lambda k=2: k, "takes no noise"),
    "no default": (lambda eps_p, k: eps_p, "parameter k of rule <lambda> has no default"),
    "no signature": (torch.add, "does not say what it needs"),
    "no function": (3, "is no function"),
    "no name": ("perp-neg", "did you mean perp_neg"),
    "no file": ("nowhere.py:f", "nowhere.py: no such file"),
}


@pytest.mark.parametrize("name", NO_RULES)
def test_what_is_no_rule_is_refused_in_a_sentence(name):
    rule, sentence = NO_RULES[name]
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
    "a negative interval": (pull, {"negative_interval": (0.1, 1.0)}, "has no eps_n"),
    "no negative": (push, {}, "needs a negative prompt"),
    "a method without one": (push, {"method": "cfg"}, r"needs a negative \(eps_n\)"),
    "a form": (push, {"method": "answer", "form": "two-term"}, "form is a name for a rule"),
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
    "a sample too few": (lambda eps_p: eps_p[:1], r"returned \(1, 3\) for latents \(2, 3\)"),
    "a number": (lambda eps_p: 1.0, "returned float for latents"),
    "nothing": (lambda eps_p: None, "returned NoneType for latents"),
    "a broadcast": (lambda eps_p: eps_p[None], r"returned \(1, 2, 3\)"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_of_another_shape_is_refused(name):
    rule, sentence = RESULTS[name]
    with pytest.raises(SettingsError, match=sentence):
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


# ----------------------------------------------------------------------------------- what is read


class Module(torch.nn.Module):
    def __init__(self, tau=1.0):
        super().__init__()
        self.tau, self.weight = tau, torch.nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, eps_phi, eps_p, s):
        return pull(eps_phi, eps_p, s, self.tau * self.weight)


class Plain(torch.nn.Module):
    """A module without a constructor of its own."""

    def forward(self, eps_phi, eps_p, s):
        return pull(eps_phi, eps_p, s)


class Called:
    def __call__(self, eps_phi, eps_p, s, tau=1.0):
        return pull(eps_phi, eps_p, s, tau)

    def method(self, eps_phi, eps_p, s):
        return pull(eps_phi, eps_p, s)


def decorated(k):
    def decorate(f):
        @functools.wraps(f)
        def inner(**given):
            return k * f(**given)

        return inner

    return decorate


FORMS = {
    "function": pull, "module": Module(), "class of a module": Module, "plain module": Plain,
    "object": Called(), "class": Called, "method": Called().method, "decorated": decorated(1)(pull),
    "partial": functools.partial(pull, tau=1.0), "of a module": functools.partial(Module(), s=2.0),
    "partial of partial": functools.partial(functools.partial(pull, tau=3.0), tau=1.0),
    "lambda": lambda s, eps_p, eps_phi: pull(eps_phi, eps_p, s), "name": "cfg",
    "compiled": torch.compile(pull, backend="eager"),
    "compiled module": torch.compile(Module(), backend="eager"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_rule_is_the_same_rule(form):
    given = {} if form == "of a module" else {"s": 2.0}  # s is bound there
    assert_close(end(FORMS[form], **given), end(s=2.0))


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
        assert z_t is row[1] and (s, h) == (2.0, 2.0)  # h is s where none is given
        for sigma, level in ((sigma_t, t), (sigma_next, t_next)):
            assert sigma.dtype == F64 and sigma.ndim == 0 and sigma.device.type == "cpu"
            assert sigma == (1 - SCHEDULE.level(level)).sqrt()
    told.clear()
    walk(curious, negative=1, s=2.0, negative_scale=0.5)
    assert told[0][5:] == (2.0, 0.5)


def midpoint(guided, z_t, schedule, steps, eta=0.0, generators=None, spacing="leading"):
    """A sampler that evaluates between two levels too: twice a step, the last one once."""
    for t, t_next in schedule.pairs(steps, spacing):
        eps = guided(z_t, torch.tensor(t))
        if t_next >= 0:
            half, level = (t + t_next) // 2, schedule.level
            middle, _ = sampling.ddim_step(z_t, eps, level(t), level(half))
            eps = guided(middle, torch.tensor(half))
        z_t, z0_hat = sampling.ddim_step(z_t, eps, schedule.level(t), schedule.level(t_next))
        yield t_next, z_t, z0_hat


def test_between_two_levels_there_is_no_next_one(monkeypatch):
    monkeypatch.setitem(sampling.SAMPLERS, "ddim", midpoint)
    told = []

    def curious(eps_p, t, t_next, sigma_next):
        told.append((int(t), t_next if t_next is None else int(t_next), sigma_next is None))
        return eps_p

    walk(curious)
    assert [row for row in told if row[0] in dict(PAIRS)] == [(*pair, False) for pair in PAIRS]
    between = [row for row in told if row[0] not in dict(PAIRS)]
    assert between == [((t + n) // 2, None, True) for t, n in PAIRS[:-1]]


def test_one_registry_has_the_papers_rules_and_the_old_keyword_works():
    paper = {name for name, f in vars(guidance).items() if name in rules.RULES and callable(f)}
    assert paper == {
        "cfg", "dns", "negative_prompt", "negative_prompt_two_term", "negative_prompt_two_scale",
    }  # fmt: skip
    assert {row.rule for row in methods.METHODS.values()} <= set(rules.RULES)
    eps = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    two = guidance.negative_prompt_two_scale
    assert torch.equal(two(*eps, g=2.0, h=1.0), two(*eps, s=2.0, h=1.0))


def test_without_a_method_the_signature_chooses_it():
    def chosen(rule, **given):
        return dnp.generate(Counted(), 0, rule=rule, steps=STEPS, **given).settings["method"]

    assert chosen(pull) == "cfg" and chosen(push, negative=1) == "np"
    assert chosen(None) == "cfg" and chosen(None, negative=1) == "np2"


# --------------------------------------------------------------------------- rules with a memory


class Memory:
    """CFG that notes what it is told."""

    def __init__(self):
        self.resets, self.steps = [], []

    def reset(self, z_T):
        self.resets.append(z_T)
        self.looks = torch.zeros(len(z_T))

    def __call__(self, eps_phi, eps_p, eps_n, s):
        self.looks += 1
        return eps_phi + s * (eps_p - eps_n)

    def observe(self, z_t, z_next, t, t_next, **eps):
        self.steps.append((z_t, z_next, t, t_next, eps))


@pytest.mark.parametrize(
    ("sampler", "given"),
    [
        (sampling.ddim_sample, {"method": "np", "negative": 1}),
        (sampling.ddim_sample, {"method": "answer", "K": 3, "K_until": 1.0}),
        (sampling.dpmpp2m_sample, {"method": "answer", "tensor": "next"}),
        (midpoint, {"method": "np", "negative": 1}),
        (midpoint, {"method": "answer", "K_until": 1.0}),
    ],
)
def test_a_memory_observes_each_outer_step_once_and_no_inner_one(monkeypatch, sampler, given):
    monkeypatch.setitem(sampling.SAMPLERS, "ddim", sampler)
    rule, model = Memory(), Counted()
    rows = walk(rule, model=model, s=2.0, **given)
    assert len(rule.resets) == 1 and rule.resets[0] is rows[0][1]
    assert [(t, t_next) for _, _, t, t_next, _ in rule.steps] == PAIRS
    for row, following, (z_t, z_next, _, _, eps) in zip(rows, rows[1:], rule.steps):
        assert z_t is row[1] and z_next is following[1]
        assert set(eps) == {"eps_phi", "eps_p", "eps_n"}  # of the step's first evaluation
        assert torch.equal(eps["eps_p"], toy.Mixture.eps(model, z_t, row[0], 0))
        assert torch.equal(row[3], eps["eps_phi"] + 2.0 * (eps["eps_p"] - eps["eps_n"]))
    twice = 2 * STEPS - 1 if sampler is midpoint else STEPS
    assert rule.looks.tolist() == [twice] * 2


def test_a_memory_is_reset_before_each_batch_and_a_class_has_one_for_each_run(monkeypatch):
    for size, shapes in ((1, [1, 1, 1]), (2, [2, 1])):
        monkeypatch.setattr(dnp.generation, "batch_size", lambda device, size=size: size)
        rule = Memory()
        made = dnp.generate(Counted(), 0, "np", 1, rule=rule, steps=STEPS, images=3)
        assert [len(z) for z in rule.resets] == shapes and len(rule.looks) == shapes[-1]
        assert len(rule.steps) == len(shapes) * STEPS
        assert_close(torch.cat(rule.resets).float(), made.latents[0])
    first, second = (contract.read("apg").function for _ in range(2))
    assert first is not second


def test_a_memory_sees_no_step_outside_the_interval():
    rule = Memory()
    walk(rule, method="np", negative=1, interval=inside(3, 7))
    assert [t for _, _, t, _, _ in rule.steps] == [t for t, _ in PAIRS[3:7]]


def test_a_memory_has_no_part_in_the_chain_of_a_dns_image(mini):
    rule = Memory()
    made = dnp.generate(
        mini, "a cat", "auto-dnp", steps=2, rule=rule, captioner=lambda images: ["a dog"]
    )
    assert len(rule.resets) == 1 and len(rule.steps) == 2 and made.nfe == 2 * 2 + 3 * 2


# ---------------------------------------------------------------------- sources of the negative


WORDS = ["a blue bowl"]
SOURCES = {  # method and settings, with the method that has words for the same negative
    "given": {"method": "np", "negative": WORDS[0]},
    "asked": {"method": "dnp", "captioner": lambda image: WORDS[0]},
    "told": {"method": "dnp", "negative": WORDS[0]},
    "captioned": {"method": "auto-dnp", "captioner": lambda images: WORDS * len(images)},
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_rule_works_with_every_source_of_words(mini, source):
    kw = dict(steps=2, s=2.0)
    made = dnp.generate(mini, "a cat", rule="negative_prompt_two_term", **SOURCES[source], **kw)
    want = dnp.generate(mini, "a cat", "np2", WORDS[0], **kw)
    assert made.negative == WORDS[0] and made.settings["rule"] == "negative_prompt_two_term"
    assert_close(made.latents[1], want.latents[1], atol=1e-5, rtol=1e-5)
    assert made.nfe == want.nfe + (4 if source in ("asked", "captioned") else 0)


@pytest.mark.parametrize("form", answer.FORMS)
def test_the_form_of_answer_is_an_alias_for_a_rule(form):
    rule = {"three-term": "negative_prompt", "two-term": "negative_prompt_two_term"}[form]
    for K_until in (0.0, 0.5, 1.0):
        given = {"method": "answer", "s": 2.0, "K_until": K_until}
        assert torch.equal(end(rule, **given), end(form=form, **given))


def test_answer_s_chain_hands_its_negative_to_any_rule():
    """On Eq. (4) written as perp_neg at w = 0 it is CFG; with another rule it is that rule."""
    assert_close(end("perp_neg", method="answer", rule_options={"w": 0.0}), end(s=7.5))
    seen = []

    def spied(eps_phi, eps_p, eps_n, s):
        seen.append((eps_phi, eps_n))
        return eps_phi + s * (eps_p - eps_n)

    assert torch.equal(end(spied, method="answer", s=2.0), end(method="answer", s=2.0))
    silent = [torch.equal(phi, n) for phi, n in seen]
    assert silent == [False] * 5 + [True] * 5  # K_t = 0 from half of the steps on


def test_two_scales_are_an_alias_for_np_only_where_no_rule_is_given():
    given = {"method": "np", "negative": 1, "s": 2.0, "negative_scale": 0.5}
    alias, named = end(**given), end("negative_prompt_two_scale", **given)
    assert torch.equal(alias, named)
    own = end(push, **given, rule_options={"w": 3.0})
    assert_close(own, end(**{**given, "negative_scale": 1.5}))  # h = 0.5, three times
    assert not torch.allclose(own, alias)


# --------------------------------------------------------------------------------- scales in time


def inside(first, last):
    """(lo, hi] in the variance-exploding sigma that holds the steps first, ..., last - 1."""
    return tuple(float(SCHEDULE.sigma_ve(PAIRS[i][0])) for i in (last, first))


@pytest.mark.parametrize("method", ["cfg", "np", "np2", "dns", "answer"])
def test_outside_the_interval_the_step_is_the_positive_branch_alone(method):
    model, given = Counted(), {"negative": 1} if method in ("np", "np2") else {}
    given |= {"K_until": 1.0, "K": 1} if method == "answer" else {}
    positive = None if method == "dns" else 0
    rows = walk(model=model, method=method, interval=inside(3, 7), s=2.0, **given)
    cost = 3 if method == "np" else 2
    for i, (t, z_t, _, eps) in enumerate(rows[:-1]):
        alone = toy.Mixture.eps(model, z_t, t, positive)
        within = 3 <= i < 7  # the upper end belongs to it, the lower one does not
        assert torch.equal(eps, alone) != within
        asked = [c for level, c in model.calls if level == t]
        assert len(asked) == (cost if within else 1) and (within or asked == [positive])
    made = dnp.generate(Counted(), 0, method, steps=STEPS, interval=inside(3, 7), **given)
    assert made.nfe == 4 * cost + 6


@pytest.mark.parametrize("method", ["np", "np2", "answer"])
def test_outside_the_negative_interval_the_negative_is_phi_and_costs_nothing(method):
    model, given = Counted(), {} if method == "answer" else {"negative": 1}
    given |= {"K": 3, "K_until": 1.0} if method == "answer" else {}
    rows = walk(model=model, method=method, negative_interval=inside(3, 7), s=2.0, **given)
    cost = {"np": 3, "np2": 2, "answer": 2 + 2 * 2}[method]
    for i, (t, z_t, _, eps) in enumerate(rows[:-1]):
        phi, p = (toy.Mixture.eps(model, z_t, t, c) for c in (None, 0))
        within = 3 <= i < 7
        assert torch.allclose(eps, guidance.cfg(phi, p, 2.0)) != within
    made = dnp.generate(Counted(), 0, method, steps=STEPS, negative_interval=inside(3, 7), **given)
    assert made.nfe == 4 * cost + 6 * 2


def test_both_intervals_together_and_the_rule_of_one_s_own():
    given = {"interval": inside(2, 8), "negative_interval": inside(4, 6), "negative": 1}
    made = dnp.generate(Counted(), 0, rule=push, steps=STEPS, **given)
    assert made.nfe == 2 * 3 + 4 * 2 + 4 * 1
    everywhere = {"interval": (0.0, 1e9), "negative_interval": (0.0, float("inf")), "negative": 1}
    assert torch.equal(end(push, **everywhere), end(push, negative=1))


def test_the_chain_of_a_dns_image_and_answer_s_inner_chain_have_no_interval(mini):
    kw = dict(steps=2, captioner=lambda images: (shown.extend(images), ["a dog"])[1])
    shown = []
    made = dnp.generate(mini, "a cat", "auto-dnp", interval=(1e8, 1e9), **kw)
    assert made.nfe == 2 * 2 + 2  # a whole DNS image, and p alone
    dnp.generate(mini, "a cat", "auto-dnp", **kw)
    assert shown[0].tobytes() == shown[1].tobytes()
    model = Counted()  # the inner chain of the only step inside runs on to levels outside
    walk(model=model, method="answer", K=3, K_until=1.0, interval=inside(2, 3))
    t = [t for t, _ in PAIRS]
    inner = [(t[i], c) for i in (3, 4) for c in (None, 0)]
    assert model.calls[2:8] == [(t[2], None), (t[2], 0), *inner]
    assert len(model.calls) == STEPS - 1 + 6


# ---------------------------------------------------------------------------------- trajectories


RUNS = {
    "cfg": {}, "np": {"negative": 1}, "dns": {}, "answer": {}, "cfg with noise": {"eta": 1.0},
    "dpmpp2m": {"sampler": "dpmpp2m"}, "a rule": {"rule": push, "negative": 1},
}  # fmt: skip


def check_rows(rows, schedule, pairs):
    """The promise of `trajectory`, of any model."""
    assert [row[0] for row in rows] == [t for t, _ in pairs] + [-1]
    for t, z_t, z0_hat, eps in rows[:-1]:
        assert eps.shape == z_t.shape
        assert_close(z0_hat, z0_from_eps(z_t, eps, schedule.level(t)), atol=1e-4, rtol=1e-4)
    t, z_0, same, eps = rows[-1]
    assert t == -1 and same is z_0 and eps is None


@pytest.mark.parametrize("name", RUNS)
def test_generate_is_the_last_row_of_a_trajectory_of_a_toy(name):
    given = {"s": 2.0, **RUNS[name]}
    given |= {"method": name} if name in methods.METHODS else {}
    rows = list(dnp.trajectory(Counted(), 0, steps=STEPS, seed=3, **given))
    check_rows(rows, SCHEDULE, PAIRS)
    made = dnp.generate(Counted(), 0, steps=STEPS, seed=3, **given)
    assert_close(made.latents[0], rows[0][1].float())
    assert_close(made.latents[1], rows[-1][1].float())
    assert made.images == [] and len(rows) == STEPS + 1


@pytest.mark.parametrize("method", ["cfg", "answer"])
def test_generate_is_the_last_row_of_a_trajectory_of_the_miniature(mini, method):
    kw = dict(method=method, steps=3, seed=2, images=2)
    rows = list(dnp.trajectory(mini, "a red car", **kw))
    check_rows(rows, mini.schedule, mini.schedule.pairs(3, mini.config.spacing))
    made = dnp.generate(mini, "a red car", **kw)
    assert torch.equal(made.latents[0], rows[0][1])
    assert_close(made.latents[1], rows[-1][1], atol=1e-4, rtol=1e-4)  # one batch of two, or two
    again = list(dnp.trajectory(mini, "a red car", method, z_T=rows[0][1], steps=3))
    assert_close(again[-1][1], rows[-1][1], atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------- the four doors

FILE = """
from pathlib import Path

with open(Path(__file__).with_name("marker"), "a") as marker:
    marker.write("imported ")


def soft(eps_phi, eps_p, eps_n, s, tau=1.0):
    return eps_phi + s * (eps_p - eps_phi) - tau * (eps_n - eps_phi)


exec("def hidden(eps_p): return eps_p")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file with a rule of one's own, whose import leaves a marker beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def pixels(image):
    return np.asarray(image if isinstance(image, Image.Image) else Image.open(image)).astype(int)


def test_the_four_doors_make_the_same_picture(cli, own, mini, monkeypatch):
    prompt, kw = "a cat and a red car", dict(steps=2, s=3.0, K_until=1.0)
    plain = dnp.generate(mini, prompt, "answer", **kw)
    by_name = dnp.generate(
        mini, prompt, "answer", rule="mine.py:soft", rule_options={"tau": 0.3}, **kw
    )
    soft = contract.find("mine.py:soft")
    by_value = dnp.generate(mini, prompt, "answer", rule=soft, rule_options={"tau": 0.3}, **kw)
    words = [prompt, "--method", "answer", "--steps", 2, "--scale", 3, "--K-until", 1]
    _, (typed,), _, _ = cli(*words, "--rule", "mine.py:soft", "--option", "tau=0.3")
    (own.parent / "prompts.txt").write_text(prompt + "\n")
    label = "answer:rule=mine.py:soft,o.tau=0.3,K_until=1"
    evaluation.main(
        f"--benchmark prompts.txt --method {label} --scale 3 --seeds 1 --steps 2 --out run".split()
    )
    (compared_with,) = own.parent.glob("run/images/*.png")
    monkeypatch.setitem(rules.RULES, "soft", functools.partial(soft, tau=0.3))
    row = methods.Method("mine", "soft", "p", "chain", "soft", "a row in the table")
    monkeypatch.setitem(methods.METHODS, "mine", row)
    by_row = dnp.generate(mini, prompt, "mine", **kw)
    words[2] = "mine"
    _, (typed_row,), _, _ = cli(*words)
    _, (registered,), _, _ = cli(*words[:2], "answer", *words[3:], "--rule", "soft")
    with pytest.raises(SettingsError, match="has a rule of its own; leave form out"):
        dnp.generate(mini, prompt, "mine", form="two-term", steps=2)

    want = pixels(by_value.images[0])
    assert abs(want - pixels(plain.images[0])).max() > 20
    for made in (by_name.images[0], typed, compared_with, by_row.images[0], typed_row, registered):
        assert abs(pixels(made) - want).max() <= 1


def test_a_png_holds_the_rule_s_name_its_options_and_the_hash(cli, own):
    words = ["a cat", "--negative", "a dog", "--steps", 1, "--rule", "mine.py:soft"]
    _, (png,), _, _ = cli(*words, "--option", "tau=0.3")
    held = pictures.read_settings(png)
    assert (held["rule"], held["rule_options"]) == ("mine.py:soft", {"tau": 0.3})
    assert held["rule_sha256"] == contract.read("mine.py:soft", {"tau": 0.3}).sha256
    assert held["rule_file"] == hashlib.sha256(own.read_bytes()).hexdigest()[:16]
    assert held["method"] == "np"
    _, (png,), _, _ = cli(*words[:-2], "--method", "np")
    held = pictures.read_settings(png)
    assert held["rule"] is None and "rule_sha256" not in held


def test_from_never_imports_a_file_that_a_png_names(cli, own):
    marker = own.with_name("marker")
    words = ["a cat", "--negative", "a dog", "--steps", 2, "--rule", "mine.py:soft"]
    _, (first,), _, _ = cli(*words, "--option", "tau=0.3")
    assert marker.exists()
    png = first.rename(own.with_name("kept.png"))
    marker.unlink()
    for more in ([], ["--scale", 2], ["--seed", 3], ["--option", "tau=1"]):
        code, new, _, err = cli("--from", png, *more)
        assert code == 2 and new == [] and not marker.exists()
        assert "no picture makes a file run; add --rule mine.py:soft" in err
    code, (other,), _, _ = cli("--from", png, "--rule", "perp_neg")
    assert code == 0 and not marker.exists()
    code, (_,), _, _ = cli("--from", png, "--method", "dns")
    assert code == 0 and not marker.exists()
    code, (again,), _, err = cli("--from", png, "--rule", "mine.py:soft")
    assert code == 0 and marker.exists() and "not the one" not in err
    assert (pixels(again) == pixels(png)).all()  # with the options of the PNG
    code, (other,), _, _ = cli("--from", png, "--rule", "mine.py:soft", "--option", "tau=1")
    assert code == 0 and pictures.read_settings(other)["rule_options"] == {"tau": 1}
    own.write_text(FILE.replace("- tau", "+ tau"))
    _, (turned,), _, err = cli("--from", png, "--rule", "mine.py:soft")
    assert "this rule's file is not the one that the PNG was made with" in err
    assert not (pixels(turned) == pixels(png)).all()


@pytest.mark.parametrize("name", ["mine.py:soft", "./mine.py:soft", "mine.py", "mine.py:soft:x"])
def test_no_spelling_of_a_file_in_a_png_makes_it_run(cli, own, name):
    settings = {"prompt": "a cat", "negative": "a dog", "steps": 1, "method": "np", "rule": name}
    forged = pictures.save(Image.new("RGB", (8, 8)), own.parent / "forged", "x", settings)
    code, new, _, err = cli("--from", forged)
    assert code == 2 and new == [] and not own.with_name("marker").exists()
    assert "Traceback" not in err


def test_a_png_with_a_rule_of_the_registry_opens_by_from(cli):
    words = ["a cat", "--negative", "a dog", "--steps", 2, "--rule", "ccfg", "--option", "tau=2"]
    _, (first,), _, _ = cli(*words, "--interval", 0.5, 20, "--negative-interval", 1, 20)
    png = first.rename(first.with_name("kept.png"))
    code, (again,), _, _ = cli("--from", png)
    held = pictures.read_settings(again)
    assert code == 0 and (pixels(again) == pixels(png)).all()
    assert (held["rule"], held["rule_options"]) == ("ccfg", {"tau": 2, "plain": False})
    assert (held["interval"], held["negative_interval"]) == ([0.5, 20.0], [1.0, 20.0])
    code, (other,), _, _ = cli("--from", png, "--option", "plain=true")
    assert pictures.read_settings(other)["rule_options"] == {"tau": 2, "plain": True}


TYPED = {
    "no such file": (["--rule", "other.py:soft"], "other.py: no such file"),
    "no such name": (["--rule", "mine.py:sotf"], "mine.py has no sotf; did you mean soft?"),
    "a module of numbers": (["--rule", "mine.py:FILE"], "mine.py has no FILE"),
    "an option without a value": (["--rule", "mine.py:soft", "--option", "tau"], "KEY=VALUE"),
    "an unknown option": (["--rule", "mine.py:soft", "--option", "k=1"], "no option 'k'"),
    "an option of no rule": (["--option", "tau=1"], "belongs to a rule"),
    "a file that does not run": (["--rule", "broken.py:f"], "broken.py does not run (ZeroDivision"),
    "a rule of the wrong kind": (["--rule", "broken2.py:f"], "takes **more"),
}


@pytest.mark.parametrize("name", TYPED)
def test_rules_that_are_typed_wrongly_are_one_sentence_and_exit_2(cli, own, name):
    own.with_name("broken.py").write_text("1 / 0\n")
    own.with_name("broken2.py").write_text("def f(eps_p, **more): return eps_p\n")
    words, sentence = TYPED[name]
    code, new, _, err = cli("a cat", "--negative", "a dog", "--steps", 1, *words)
    error = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and new == [] and len(error) == 1 and sentence in error[0]
    assert "Traceback" not in err


# ----------------------------------------------------------------------------------------- hashes


def bank(weight):
    return lambda eps_phi, eps_p: eps_phi + weight * (eps_p - eps_phi)


class Weighted(torch.nn.Module):
    def __init__(self, fill=1.0):
        super().__init__()
        self.inner = Module(fill)

    def forward(self, eps_p):
        return self.inner.tau * eps_p


def half_as_much(module):
    with torch.no_grad():
        module.weight.mul_(0.5)
    return module


PAIRS_OF_RULES = {  # two rules whose pictures differ, and so must their hashes
    "closures": lambda: (bank(1.0), bank(2.0)),
    "tensors in closures": lambda: (bank(torch.ones(3)), bank(torch.tensor([1.0, 2.0, 1.0]))),
    "partials": lambda: (functools.partial(pull, tau=1.0), functools.partial(pull, tau=2.0)),
    "positional in partials": lambda: tuple(
        functools.partial(pull, torch.full((1,), k)) for k in (0.0, 1.0)
    ),
    "decorators": lambda: (decorated(1)(pull), decorated(2)(pull)),
    "weights of modules": lambda: (Module(), half_as_much(Module())),
    "attributes of modules": lambda: (Module(1.0), Module(2.0)),
    "of modules inside": lambda: (Weighted(1.0), Weighted(2.0)),
    "attributes of objects": lambda: (rules.APG(r=1.0), rules.APG(r=2.0)),
    "functions": lambda: (pull, push),
    "classes": lambda: (Called, Memory),
    "compiled closures": lambda: tuple(torch.compile(bank(k), backend="eager") for k in (1.0, 2.0)),
}


@pytest.mark.parametrize("what", PAIRS_OF_RULES)
def test_bound_options_and_closure_values_change_the_hash(what):
    hashes = [[contract.read(r).sha256 for r in PAIRS_OF_RULES[what]()] for _ in range(2)]
    assert hashes[0] == hashes[1] and contract.UNKNOWN not in hashes[0]
    assert hashes[0][0] != hashes[0][1]


def test_options_and_every_byte_of_the_file_change_the_hash(own):
    plain = contract.read("mine.py:soft").sha256
    assert contract.read("mine.py:soft").sha256 == plain
    assert contract.read("mine.py:soft", {"tau": 0.3}).sha256 != plain
    own.write_text(FILE + "\nHELPER = 3\n")
    assert contract.read("mine.py:soft").sha256 != plain


def test_a_rule_without_a_source_is_unknown_and_the_experiments_refuse_it(own):
    def hides(eps_p):
        return eps_p * len([secret])

    secret = object()
    for rule in (hides, contract.find("mine.py:hidden"), functools.partial(pull, tau=object())):
        assert contract.read(rule).sha256 == contract.UNKNOWN
        with pytest.raises(SettingsError, match="cannot be read"):
            compared.parse("cfg:rule=mine.py:hidden")
    assert dnp.generate(Counted(), 0, rule=hides, steps=STEPS).settings["rule_sha256"] == "unknown"


def test_a_record_of_the_experiments_is_keyed_by_rule_options_and_file(own, mini):
    def settings(label):
        return compared.settled(compared.parse(label), None, 2, mini)

    one = settings("answer:rule=mine.py:soft,o.tau=0.3")
    assert (one["rule"], one["rule_options"]) == ("mine.py:soft", {"tau": 0.3})
    assert one["rule_sha256"] == contract.read("mine.py:soft", {"tau": 0.3}).sha256
    assert "form" not in one and "form" in settings("answer")
    assert settings("answer:rule=mine.py:soft,o.tau=0.4") != one
    own.write_text(FILE + "\n# another line\n")
    assert settings("answer:rule=mine.py:soft,o.tau=0.3")["rule_sha256"] != one["rule_sha256"]


def test_a_file_s_own_rule_leaves_no_name_of_another_module_behind(own):
    contract.find("mine.py:soft")
    assert "mine" not in sys.modules

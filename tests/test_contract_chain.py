"""A rule in the chain: its memory, the sources of its negative, its intervals, and trajectories.

Toys stand for networks wherever a network proves nothing more (`dnp/methods/conditions.py`).
"""

import pytest
import torch
from torch.testing import assert_close

import dnp
from dnp import dpmpp, guidance, methods, sampling, toy
from dnp.energy import z0_from_eps
from dnp.evaluation.answer_readings import Unconditional
from dnp.methods import rule as contract
from own_rules import PAIRS, SCHEDULE, STEPS, Counted, Memory, end, midpoint, push, walk

# ------------------------------------------------------------------------------ rules with a memory


@pytest.mark.parametrize(
    ("sampler", "given"),
    [
        (sampling.ddim_sample, {"method": "np", "negative": 1}),
        (sampling.ddim_sample, {"method": "answer", "K": 3, "K_until": 1.0}),
        (dpmpp.dpmpp2m_sample, {"method": "answer", "K": 3}),
        (sampling.ddim_sample, {"method": Unconditional}),
        (midpoint, {"method": "np", "negative": 1}),
        (midpoint, {"method": "answer", "K_until": 1.0}),
    ],
)
def test_a_memory_observes_each_outer_step_once_and_no_inner_one(monkeypatch, sampler, given):
    monkeypatch.setattr(sampling, "ddim_sample", sampler)
    rule, model = Memory(), Counted()
    rows = walk(rule, model=model, s=2.0, **given)
    assert len(rule.resets) == 1 and torch.equal(rule.resets[0], rows[0][1])
    assert [(t, t_next) for _, _, t, t_next, _ in rule.steps] == PAIRS
    for row, following, (z_t, z_next, _, _, eps) in zip(rows, rows[1:], rule.steps):
        assert torch.equal(z_t, row[1]) and torch.equal(z_next, following[1])
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
    apg = contract.read("apg")
    first, second = (apg.begin(torch.zeros(1, 3)).function for _ in range(2))
    assert first is not second and apg.function not in (first, second)


def test_a_memory_sees_no_step_outside_the_interval():
    rule = Memory()
    walk(rule, method="np", negative=1, interval=inside(3, 7))
    assert [t for _, _, t, _, _ in rule.steps] == [t for t, _ in PAIRS[3:7]]


def test_a_memory_has_no_part_in_the_chain_of_a_dns_image(small_model):
    rule = Memory()
    made = dnp.generate(
        small_model, "a cat", "auto-dnp", steps=2, rule=rule, captioner=lambda images: ["a dog"]
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
def test_a_rule_works_with_every_source_of_words(small_model, source):
    kw = dict(steps=2, s=2.0)
    made = dnp.generate(
        small_model, "a cat", rule="negative_prompt_two_term", **SOURCES[source], **kw
    )
    want = dnp.generate(small_model, "a cat", "np2", WORDS[0], **kw)
    assert made.negative == WORDS[0] and made.settings["rule"] == "negative_prompt_two_term"
    assert_close(made.latents[1], want.latents[1], atol=1e-5, rtol=1e-5)
    assert made.nfe == want.nfe + (4 if source in ("asked", "captioned") else 0)


def test_the_two_term_form_of_answer_is_a_rule():
    for K_until in (0.0, 0.5, 1.0):
        given = {"method": "answer", "s": 2.0, "K_until": K_until}
        assert torch.equal(end("negative_prompt", **given), end(**given))
        two, three = walk("negative_prompt_two_term", **given), walk(**given)
        phi, p = (toy.Mixture.eps(Counted(), two[0][1], two[0][0], c) for c in (None, 0))
        eps_neg = p - (three[0][3] - phi) / 2.0
        assert_close(two[0][3], eps_neg + 2.0 * (p - eps_neg))


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


def test_the_chain_of_a_dns_image_and_answer_s_inner_chain_have_no_interval(small_model):
    kw = dict(steps=2, captioner=lambda images: (shown.extend(images), ["a dog"])[1])
    shown = []
    made = dnp.generate(small_model, "a cat", "auto-dnp", interval=(1e8, 1e9), **kw)
    assert made.nfe == 2 * 2 + 2  # a whole DNS image, and p alone
    dnp.generate(small_model, "a cat", "auto-dnp", **kw)
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
    kw = dict(method=method, steps=3, seed=2, images=2, size=(32, 32))
    rows = list(dnp.trajectory(mini, "a red car", **kw))
    check_rows(rows, mini.schedule, mini.schedule.pairs(3, mini.config.spacing))
    made = dnp.generate(mini, "a red car", **kw)
    assert torch.equal(made.latents[0], rows[0][1])
    assert_close(made.latents[1], rows[-1][1], atol=1e-4, rtol=1e-4)  # one batch of two, or two
    again = list(dnp.trajectory(mini, "a red car", method, z_T=rows[0][1], steps=3))
    assert_close(again[-1][1], rows[-1][1], atol=1e-5, rtol=1e-5)

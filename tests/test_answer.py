"""ANSWER on toy models, in float64: what holds in every reading, and its mutants."""

import inspect
import itertools

import pytest
import torch
from torch.testing import assert_close

import mutants
from dnp import guidance, readings, sampling, settings, toy
from dnp.methods import answer as module
from dnp.methods.answer import FORMS, TENSORS, answer, evaluations
from dnp.schedule import Schedule, step_at

SCHEDULE = Schedule(Schedule.stable_diffusion().abar, abar_final=1.0)
PAIRS = SCHEDULE.pairs(8)
PHI, P = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([1.0, 2.0, -1.0])
MODEL = toy.PointMass(PHI.double(), [P.double()], SCHEDULE)
MIXTURE = toy.Mixture(
    [0.5, 0.5],
    torch.tensor([[-1.0, 0.5], [1.0, -0.5]]),
    torch.stack([0.2 * torch.eye(2), 0.3 * torch.eye(2)]),
    prompts=[[0], [1]],
    schedule=SCHEDULE,
)


def start(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def image_like(z, t, c):
    """A denoiser on (B, C, H, W) that is linear in nothing: for counting and for statistics."""
    shift = 0.0 if c is None else 0.7 * (1 + c)
    return torch.tanh(z * (1 + shift)) + shift * torch.cos(z + 0.001 * t)


def run(guided, z, pairs=PAIRS):
    """The chain's end under the guided model, over the steps `pairs`."""
    for t, t_next in pairs:
        eps = guided(z, torch.tensor(t))
        z, _ = sampling.ddim_step(z, eps, SCHEDULE.level(t), SCHEDULE.level(t_next))
    return z


def one(eps_fn, s=3.0, **options):
    return answer(eps_fn, None, 0, s, SCHEDULE, PAIRS, **options)


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("form", FORMS)
def test_without_inner_steps_answer_is_cfg_bit_for_bit(tensor, form):
    z = start(4, 2, 5, 5)
    cfg = lambda z, t: guidance.cfg(image_like(z, t, None), image_like(z, t, 0), 3.0)
    for nothing in ({"K": 0}, {"K_until": 0.0}):
        guided = one(image_like, tensor=tensor, form=form, **nothing)
        assert torch.equal(run(guided, z), run(cfg, z))


@pytest.mark.parametrize("s_dns", [None, 0.5, 2.0])
def test_one_unnormalised_step_is_cfg_at_s_times_one_plus_s_dns(s_dns):
    s = 1.5  # phi + s (p - (phi + s_dns (phi - p))) = phi + s (1 + s_dns) (p - phi)
    guided = one(image_like, s, K=1, K_until=1.0, tensor="last", normalize="none", s_dns=s_dns)
    z, t = start(2, 3, 4, 4), torch.tensor(PAIRS[2][0])
    scale = s * (1 + (s if s_dns is None else s_dns))
    assert_close(guided(z, t), guidance.cfg(image_like(z, t, None), image_like(z, t, 0), scale))


def test_next_is_last_with_one_inner_step_more():
    z, t = start(2, 3, 4, 4), torch.tensor(PAIRS[1][0])
    for K in (1, 2, 3):  # none of these chains is cut
        longer = one(image_like, K=K + 1, tensor="last")(z, t)
        assert_close(one(image_like, K=K, tensor="next")(z, t), longer)
        costs = evaluations(PAIRS, K, 0.5, "next"), evaluations(PAIRS, K + 1, 0.5, "last")
        assert costs[0] == costs[1]


@pytest.mark.parametrize("tensor", TENSORS)
def test_two_term_form_at_one_returns_the_conditional_noise(tensor):
    guided = one(image_like, 1.0, K=3, K_until=1.0, tensor=tensor, form="two-term")
    z, t = start(2, 3, 4, 4), torch.tensor(PAIRS[1][0])
    assert_close(guided(z, t), image_like(z, t, 0))


@pytest.mark.parametrize("normalize", ["sample", "channel"])
def test_normalised_negative_has_the_statistics_of_eps_phi(normalize):
    eps, reference = 5 + 3 * start(3, 4, 6, 6), start(3, 4, 6, 6, seed=1)
    dims = (1, 2, 3) if normalize == "sample" else (2, 3)
    out = readings.match(eps, reference, normalize)
    assert_close(out.mean(dims), reference.mean(dims))
    assert_close(out.std(dims), reference.std(dims))
    one_by_one = torch.cat(
        [readings.match(e[None], r[None], normalize) for e, r in zip(eps, reference)]
    )
    assert_close(out, one_by_one, rtol=0, atol=1e-14)  # no sample sees its batch mates
    assert readings.match(eps, reference, "none") is eps


def test_a_constant_negative_becomes_the_mean_and_not_nan():
    reference = start(2, 4, 3, 3)
    out = readings.match(torch.ones(2, 4, 3, 3, dtype=torch.float64), reference, "sample")
    assert_close(out, reference.mean((1, 2, 3), keepdim=True).expand_as(out))


@pytest.mark.parametrize(
    ("tensor", "K", "K_until"), [*itertools.product(TENSORS, (0, 1, 2, 5, 99), (0.0, 0.5, 1.0))]
)
def test_evaluations_are_as_documented(tensor, K, K_until):
    calls = []
    eps_fn = lambda z, t, c: (calls.append(int(t)), image_like(z, t, c))[1]
    run(one(eps_fn, K=K, K_until=K_until, tensor=tensor), start(1, 2, 3, 3))
    assert len(calls) == evaluations(PAIRS, K, K_until, tensor)
    assert min(calls) >= 0  # never at the clean end, where no network is defined
    if K == 2 and K_until == 0.5:  # the table in the README, in closed form
        assert len(calls) == 16 + 4 * {"last": 2, "jump": 2, "unconditional": 3, "next": 4}[tensor]


def test_conditions_may_share_one_forward():
    shared = lambda eps_fn, z, t, conditions: [eps_fn(z, t, c) for c in conditions]
    z, t = start(2, 2, 3, 3), torch.tensor(PAIRS[0][0])
    assert torch.equal(one(image_like)(z, t), one(image_like, evaluate=shared)(z, t))


def test_the_outer_state_is_untouched_by_the_inner_chain():
    z = start(2, 2, 4, 4)
    before = z.clone()
    for tensor in TENSORS:
        one(image_like, K=3, tensor=tensor)(z, torch.tensor(PAIRS[0][0]))
    assert torch.equal(z, before)


@pytest.mark.parametrize("s_dns", [0.5, 3.0])
def test_dns_chain_on_points_walks_to_the_reflected_point(s_dns):
    z = start(5, 3)
    noises = lambda z, t: (MODEL.eps(z, torch.tensor(t)), MODEL.eps(z, torch.tensor(t), 0))
    *_, (t_next, z_0, _) = module.dns_chain(noises, z, PAIRS, SCHEDULE, s_dns)
    assert t_next == -1  # (1 + s) phi - s p, Eq. (19) on point masses, for any number of steps
    assert_close(z_0, ((1 + s_dns) * PHI - s_dns * P).double().expand(5, 3))


def test_dns_chain_reuses_the_first_noises():
    calls = []
    noises = lambda z, t: (calls.append(t), (MODEL.eps(z, torch.tensor(t)),) * 2)[1]
    first = (start(1, 3), start(1, 3, seed=1))
    chain = list(module.dns_chain(noises, start(1, 3), PAIRS[:3], SCHEDULE, 2.0, first))
    assert calls == [t for t, _ in PAIRS[1:3]]
    assert_close(chain[0][2], guidance.dns(*first, 2.0))


def test_jump_is_the_noise_of_one_ddim_step():
    z_t, eps = start(3, 2, 4, 4), start(3, 2, 4, 4, seed=1)
    a_t, a_n = SCHEDULE.level(PAIRS[1][0]), SCHEDULE.level(PAIRS[4][0])
    z_n, _ = sampling.ddim_step(z_t, eps, a_t, a_n)
    assert_close(readings.jump(z_t, z_n, a_t, a_n, None), eps)


def test_at_equal_levels_the_jump_is_the_last_noise_and_not_nan():
    schedule = Schedule.stable_diffusion()  # its last pair under linspace has two levels abar_0
    pairs = schedule.pairs(4, "linspace")
    z, t = start(1, 2, 3, 3), torch.tensor(pairs[-1][0])
    both = [
        answer(image_like, None, 0, 3.0, schedule, pairs, K=1, K_until=1.0, tensor=tensor)(z, t)
        for tensor in ("jump", "last")
    ]
    assert torch.isfinite(both[0]).all() and torch.equal(*both)


def test_channels_need_more_than_one_number_each():
    with pytest.raises(ValueError, match="no channels"):
        readings.match(start(4, 3), start(4, 3), "channel")


def test_on_points_the_readings_differ_as_they_should():
    """On points a DNS chain keeps its noise and its z_0 hat, (1 + s) phi - s p: the last noise, the
    next one and the jump's are the same; (unconditional) aims at phi from elsewhere."""
    z, t = start(4, 3), PAIRS[0][0]
    target = ((1 + 3.0) * PHI - 3.0 * P).double()
    a_t = SCHEDULE.level(t)
    aimed = (z - a_t.sqrt() * target) / (1 - a_t).sqrt()
    phi, p = MODEL.eps(z, torch.tensor(t)), MODEL.eps(z, torch.tensor(t), 0)
    for tensor in ("last", "jump", "next"):
        eps = one(MODEL.eps, K=2, tensor=tensor, normalize="none")(z, torch.tensor(t))
        assert_close(eps, guidance.negative_prompt(phi, p, aimed, 3.0))
    eps = one(MODEL.eps, K=2, tensor="unconditional", normalize="none")(z, torch.tensor(t))
    noises = lambda z, t: (MODEL.eps(z, torch.tensor(t)), MODEL.eps(z, torch.tensor(t), 0))
    *_, (t_n, z_n, _) = module.dns_chain(noises, z, PAIRS[:2], SCHEDULE, 3.0)
    away = MODEL.eps(z_n, torch.tensor(t_n))
    assert_close(eps, guidance.negative_prompt(phi, p, away, 3.0))


def test_on_a_mixture_the_last_noise_pushes_and_the_next_one_gathers():
    """Component 0, the prompt, lies at x = -1. One inner step is CFG at a larger scale, and goes
    past it; a negative from two steps ahead gathers the samples instead."""
    z = start(400, 2)
    plain, last, following = (
        run(one(MIXTURE.eps, 1.5, s_dns=0.5, normalize="none", **options), z)[:, 0]
        for options in ({"K": 0}, {"K": 1}, {"K": 2, "tensor": "next"})
    )
    assert last.mean() < plain.mean() - 0.05 < -1
    assert following.std() < 0.7 * plain.std() and abs(following.mean() + 1) < 0.05


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"K": -1}, "0 to 1000"),
        ({"K": 1.5}, "0 to 1000"),
        ({"K_until": 1.2}, "from 0 to 1"),
        ({"K_until": float("nan")}, "from 0 to 1"),
        ({"tensor": "first"}, "last, next, unconditional, jump"),
        ({"form": "one-term"}, "three-term, two-term"),
        ({"normalize": "batch"}, "sample, channel, none"),
    ],
)
def test_options_that_are_not_possible_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        one(image_like, **options)


# ---------------------------------------------------------------------------------------- mutants

IDENTITIES = [
    lambda: test_one_unnormalised_step_is_cfg_at_s_times_one_plus_s_dns(0.5),
    lambda: test_two_term_form_at_one_returns_the_conditional_noise("next"),
    lambda: test_normalised_negative_has_the_statistics_of_eps_phi("sample"),
    lambda: test_normalised_negative_has_the_statistics_of_eps_phi("channel"),
    lambda: test_dns_chain_on_points_walks_to_the_reflected_point(3.0),
    test_dns_chain_reuses_the_first_noises,
    test_jump_is_the_noise_of_one_ddim_step,
    test_on_points_the_readings_differ_as_they_should,
    lambda: test_evaluations_are_as_documented("last", 2, 0.5),
    lambda: test_evaluations_are_as_documented("next", 99, 1.0),
    test_the_outer_state_is_untouched_by_the_inner_chain,
]


def over_the_batch(eps, reference, normalize):
    if normalize == "none":
        return eps
    return (eps - eps.mean()) / eps.std() * reference.std() + reference.mean()


right_match, right_jump, inner = readings.match, readings.jump, module.inner_pairs
MUTANTS = {
    "inner chain is CFG": ("dns", guidance.cfg),
    "inner chain ignores s": ("dns", lambda phi, p, s: guidance.dns(phi, p, 1.0)),
    "statistics of the whole batch": ("match", over_the_batch),
    "mean not matched": ("match", lambda e, r, n: right_match(e, r, n) + (n != "none")),
    "deviation not matched": (
        "match",
        lambda e, r, n: right_match(e, r, n) + 0.1 * (n != "none") * (r - right_match(0 * r, r, n)),
    ),
    "jump without the ratio": (
        "jump",
        lambda z, z_n, a, b, _: (z_n - z) / ((1 - b).sqrt() - (1 - a).sqrt()),
    ),
    "jump of the wrong sign": ("jump", lambda *a: -right_jump(*a)),
    "inner chain one step too long": (
        "inner_pairs",
        lambda t, pairs, K, until, _: inner(t, pairs, K + 1, until, "last"),
    ),
    "inner chain from the first step": (
        "inner_pairs",
        lambda t, pairs, K, until, how: inner(t, pairs, K, until, how) and pairs[:K],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_version_of_answer_fails_an_identity(name, monkeypatch):
    mutants.assert_noticed((module, readings), *MUTANTS[name], IDENTITIES, monkeypatch)


def test_the_right_version_passes_every_identity():
    mutants.assert_all_pass(IDENTITIES)


def test_defaults_and_choices_are_those_of_the_table_of_settings():
    signature = inspect.signature(answer).parameters
    for name in ("K", "K_until", "tensor", "form", "normalize"):
        assert settings.SETTINGS[name].default == signature[name].default
    assert settings.SETTINGS["tensor"].choices == TENSORS
    assert settings.SETTINGS["form"].choices == tuple(FORMS) == tuple(readings.RULES)
    assert settings.SETTINGS["normalize"].choices == readings.NORMALIZE
    assert tuple(sampling.SAMPLERS) == settings.SAMPLERS


# ----------------------------------------------------------------------- levels between two steps


@pytest.mark.parametrize("steps", [1, 7, 600, 1000])
def test_every_level_finds_its_own_step(steps):
    """Leading spacing has t = 999 twice at 1000 steps, and starts at 600 of 600."""
    schedule = Schedule.stable_diffusion()
    pairs = schedule.pairs(steps)
    for i, (t, t_next) in enumerate(pairs):
        found = step_at(pairs, t)
        assert pairs[found][0] == t and (found == i or pairs[i] == (t, t))
        if t > t_next + 1:
            assert step_at(pairs, t - 1) == i
    calls = []
    eps_fn = lambda z, t, c: (calls.append(int(t)), 0.1 * z)[1]
    guided = answer(eps_fn, None, 0, 2.0, schedule, pairs, K=2, K_until=1.0)
    z = start(1, 3)
    for t, _ in pairs[:3]:
        guided(z, torch.tensor(t))
    assert calls[:2] == [pairs[0][0]] * 2
    assert len(calls) <= 3 * 4


def test_answer_runs_under_a_sampler_that_evaluates_at_midpoints():
    """Heun at the middle of each step: the inner chain starts at the level that it is called at."""
    z = start(2, 3)
    starts = []
    chain = module.dns_chain

    def spied(noises, z, pairs, *rest):
        starts.append(pairs[0])
        return chain(noises, z, pairs, *rest)

    guided = one(MODEL.eps, K=2, K_until=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "dns_chain", spied)
        for t, t_next in PAIRS[:-1]:
            half, levels = (t + t_next) // 2, SCHEDULE.level
            eps = guided(z, torch.tensor(t))
            middle, _ = sampling.ddim_step(z, eps, levels(t), levels(half))
            eps = guided(middle, torch.tensor(half))
            z, _ = sampling.ddim_step(z, eps, levels(t), levels(t_next))
    assert torch.isfinite(z).all()
    assert starts == [p for t, n in PAIRS[:-1] for p in ((t, n), ((t + n) // 2, n))]


def test_a_level_outside_the_steps_is_told():
    with pytest.raises(ValueError, match="in none of the steps"):
        one(MODEL.eps)(start(1, 3), torch.tensor(PAIRS[0][0] + 1))

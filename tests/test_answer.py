"""ANSWER on toy models, in float64: what holds in every reading, and its mutants."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

import dnp
import mutants
from dnp import guidance, sampling, toy
from dnp.errors import SettingsError
from dnp.evaluation import answer_readings as readings
from dnp.evaluation.answer_readings import Jump, PerChannel, Unconditional
from dnp.generation import prepared
from dnp.methods import answer as module
from dnp.methods.answer import Answer, inner_pairs, match
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


READINGS = {"last": Answer, "unconditional": Unconditional, "jump": Jump, "channel": PerChannel}
TWO_TERM = {"rule": "negative_prompt_two_term"}


def one(eps_fn, s=3.0, kind=Answer, schedule=SCHEDULE, steps=8, spacing="leading", **options):
    """The guided model of a toy at the prompt 0."""
    model = SimpleNamespace(eps=eps_fn, schedule=schedule, spacing=spacing)
    given = {"s": s, "steps": steps, **options}
    call, guided = prepared(model, 0, kind, None, None, None, given)
    guided.begin(call, [None], torch.zeros(1))
    return guided


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("form", [{}, TWO_TERM])
def test_without_inner_steps_answer_is_cfg_bit_for_bit(reading, form):
    z = start(4, 2, 5, 5)
    cfg = lambda z, t: guidance.cfg(image_like(z, t, None), image_like(z, t, 0), 3.0)
    for nothing in ({"K": 0}, {"K_until": 0.0}):
        guided = one(image_like, kind=READINGS[reading], **form, **nothing)
        assert torch.equal(run(guided, z), run(cfg, z))


@pytest.mark.parametrize("s_dns", [None, 0.5, 2.0])
def test_one_unnormalised_step_is_cfg_at_s_times_one_plus_s_dns(s_dns):
    s = 1.5  # phi + s (p - (phi + s_dns (phi - p))) = phi + s (1 + s_dns) (p - phi)
    guided = one(image_like, s, K=1, K_until=1.0, normalize=False, s_dns=s_dns)
    z, t = start(2, 3, 4, 4), torch.tensor(PAIRS[2][0])
    scale = s * (1 + (s if s_dns is None else s_dns))
    assert_close(guided(z, t), guidance.cfg(image_like(z, t, None), image_like(z, t, 0), scale))


@pytest.mark.parametrize("reading", READINGS)
def test_two_term_form_at_one_returns_the_conditional_noise(reading):
    guided = one(image_like, 1.0, READINGS[reading], K=3, K_until=1.0, **TWO_TERM)
    z, t = start(2, 3, 4, 4), torch.tensor(PAIRS[1][0])
    assert_close(guided(z, t), image_like(z, t, 0))


@pytest.mark.parametrize("first", [1, 2])
def test_normalised_negative_has_the_statistics_of_eps_phi(first):
    eps, reference = 5 + 3 * start(3, 4, 6, 6), start(3, 4, 6, 6, seed=1)
    dims = (1, 2, 3)[first - 1 :]
    out = module.match(eps, reference, first)
    assert_close(out.mean(dims), reference.mean(dims))
    assert_close(out.std(dims), reference.std(dims))
    one_by_one = torch.cat([module.match(e[None], r[None], first) for e, r in zip(eps, reference)])
    assert_close(out, one_by_one, rtol=0, atol=1e-14)  # no sample sees its batch mates


@pytest.mark.parametrize(("kind", "first"), [(Answer, 1), (PerChannel, 2)])
def test_the_negative_is_matched_over_the_sample_or_over_each_channel(kind, first):
    z, t, s = start(3, 4, 6, 6), torch.tensor(PAIRS[1][0]), 3.0
    plain, matched = (one(image_like, s, kind, K=2, normalize=x)(z, t) for x in (False, True))
    phi, p = image_like(z, t, None), image_like(z, t, 0)
    eps_neg = p - (plain - phi) / s
    want = match(eps_neg, phi, first)
    assert_close(matched, guidance.negative_prompt(phi, p, want, s))
    assert not torch.allclose(eps_neg, want)


def test_a_constant_negative_becomes_the_mean_and_not_nan():
    reference = start(2, 4, 3, 3)
    out = match(torch.ones(2, 4, 3, 3, dtype=torch.float64), reference)
    assert_close(out, reference.mean((1, 2, 3), keepdim=True).expand_as(out))


def evaluations(reading, K, K_until):
    """Two for a step; of an inner chain the first step uses those, every further one costs two, and
    where it ends (unconditional) has one more, and is never the clean end."""
    total, ends = 2 * len(PAIRS), reading == "unconditional"
    for t, _ in PAIRS:
        moves = sum(t_next >= 0 or not ends for _, t_next in inner_pairs(t, PAIRS, K, K_until))
        total += 2 * (moves - 1) + ends if moves else 0
    return total


@pytest.mark.parametrize(
    ("reading", "K", "K_until"),
    [*itertools.product(READINGS, (0, 1, 2, 5, 99), (0.0, 0.5, 1.0))],
)
def test_evaluations_are_as_documented(reading, K, K_until):
    calls = []
    eps_fn = lambda z, t, c: (calls.append(int(t)), image_like(z, t, c))[1]
    guided = one(eps_fn, kind=READINGS[reading], K=K, K_until=K_until)
    run(guided, start(1, 2, 3, 3))
    assert len(calls) == guided.evaluations == evaluations(reading, K, K_until)
    assert min(calls) >= 0  # never at the clean end, where no network is defined
    if K == 2 and K_until == 0.5:  # the table in the README, in closed form
        assert len(calls) == 16 + 4 * (3 if reading == "unconditional" else 2)


def test_conditions_that_are_tensors_share_one_forward():
    z, t = start(2, 2, 3, 3), torch.tensor(PAIRS[0][0])
    forwards, shift = [], {"": 0.0, "p": 0.7}  # phi's and p's of `image_like`

    def eps_fn(z, t, c):
        forwards.append(len(z))
        return torch.tanh(z * (1 + c)) + c * torch.cos(z + 0.001 * t)

    model = SimpleNamespace(eps=eps_fn, schedule=SCHEDULE)
    model.encode = lambda prompts: torch.tensor([[[[shift[p]]]] for p in prompts]).double()
    call, guided = prepared(model, "p", Answer, None, None, None, {"s": 3.0, "steps": 8})
    guided.begin(call, [None] * 2, z)
    assert_close(guided(z, t), one(image_like)(z, t), rtol=1e-6, atol=1e-6)
    assert forwards == [4, 4]  # phi and p of two samples at z_t, and at the second inner step


def test_the_outer_state_is_untouched_by_the_inner_chain():
    z = start(2, 2, 4, 4)
    before = z.clone()
    for kind in READINGS.values():
        one(image_like, kind=kind, K=3)(z, torch.tensor(PAIRS[0][0]))
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
    assert_close(readings.jump(z_t, z_n, a_t, a_n), eps)


def test_at_equal_levels_the_jump_is_the_last_noise_and_not_nan():
    schedule = Schedule.stable_diffusion()  # its last pair under linspace has two levels abar_0
    t, t_next = schedule.pairs(4, "linspace")[-1]
    assert schedule.level(t) == schedule.level(t_next)
    how = dict(schedule=schedule, steps=4, spacing="linspace", K=1, K_until=1.0)
    z = start(1, 2, 3, 3)
    both = [one(image_like, kind=kind, **how)(z, torch.tensor(t)) for kind in (Jump, Answer)]
    assert torch.isfinite(both[0]).all() and torch.equal(*both)


def test_channels_need_more_than_one_number_each():
    with pytest.raises(SettingsError, match="no channels to match"):
        one(MODEL.eps, kind=PerChannel)(start(4, 3), torch.tensor(PAIRS[0][0]))


def test_on_points_the_readings_differ_as_they_should():
    """On points a DNS chain keeps its noise and its z_0 hat, (1 + s) phi - s p: the last noise, the
    next one and the jump's are the same; (unconditional) aims at phi from elsewhere."""
    z, t = start(4, 3), PAIRS[0][0]
    target = ((1 + 3.0) * PHI - 3.0 * P).double()
    a_t = SCHEDULE.level(t)
    aimed = (z - a_t.sqrt() * target) / (1 - a_t).sqrt()
    phi, p = MODEL.eps(z, torch.tensor(t)), MODEL.eps(z, torch.tensor(t), 0)
    for kind, K in ((Answer, 2), (Jump, 2), (Answer, 3)):
        eps = one(MODEL.eps, kind=kind, K=K, normalize=False)(z, torch.tensor(t))
        assert_close(eps, guidance.negative_prompt(phi, p, aimed, 3.0))
    eps = one(MODEL.eps, kind=Unconditional, K=2, normalize=False)(z, torch.tensor(t))
    noises = lambda z, t: (MODEL.eps(z, torch.tensor(t)), MODEL.eps(z, torch.tensor(t), 0))
    *_, (t_n, z_n, _) = module.dns_chain(noises, z, PAIRS[:2], SCHEDULE, 3.0)
    away = MODEL.eps(z_n, torch.tensor(t_n))
    assert_close(eps, guidance.negative_prompt(phi, p, away, 3.0))


def test_on_a_mixture_the_last_noise_pushes_and_a_longer_chain_gathers():
    """Component 0, the prompt, lies at x = -1. One inner step is CFG at a larger scale, and goes
    past it; a negative from two steps ahead gathers the samples instead."""
    z = start(400, 2)
    plain, last, following = (
        run(one(MIXTURE.eps, 1.5, s_dns=0.5, normalize=False, K=K), z)[:, 0] for K in (0, 1, 3)
    )
    assert last.mean() < plain.mean() - 0.05 < -1
    assert following.std() < 0.7 * plain.std() and abs(following.mean() + 1) < 0.05


@pytest.mark.parametrize("kind", READINGS.values())
def test_a_reading_is_a_method_by_its_class_and_by_its_file(kind):
    model = SimpleNamespace(schedule=SCHEDULE, eps=image_like, latent_shape=lambda size: (2, 4, 4))
    how = {"steps": 4, "s": 2.0, "K_until": 1.0}
    made = dnp.generate(model, 0, kind, **how)
    assert made.settings["method"] == kind.name and made.settings["K"] == 2
    if kind is not Answer:
        name = f"{readings.__file__}:{kind.__name__}"
        again = dnp.generate(model, 0, name, **how)
        assert torch.equal(again.latents[1], made.latents[1])
        assert not torch.equal(made.latents[1], dnp.generate(model, 0, "answer", **how).latents[1])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"K": -1}, "K = -1 is not possible; choose a whole number from 0 to 1000"),
        ({"K": 1.5}, "from 0 to 1000"),
        ({"K_until": 1.2}, "from 0 to 1"),
        ({"K_until": float("nan")}, "from 0 to 1"),
        ({"tensor": "first"}, "tensor is not a setting"),
        ({"form": "one-term"}, "form is not a setting"),
        ({"normalize": "batch"}, "choose yes or no"),
    ],
)
def test_options_that_are_not_possible_are_refused(options, sentence):
    with pytest.raises(SettingsError, match=sentence):
        one(image_like, **options)


# ---------------------------------------------------------------------------------------- mutants

IDENTITIES = [
    lambda: test_one_unnormalised_step_is_cfg_at_s_times_one_plus_s_dns(0.5),
    lambda: test_two_term_form_at_one_returns_the_conditional_noise("unconditional"),
    lambda: test_normalised_negative_has_the_statistics_of_eps_phi(1),
    lambda: test_normalised_negative_has_the_statistics_of_eps_phi(2),
    lambda: test_dns_chain_on_points_walks_to_the_reflected_point(3.0),
    test_dns_chain_reuses_the_first_noises,
    test_jump_is_the_noise_of_one_ddim_step,
    test_on_points_the_readings_differ_as_they_should,
    lambda: test_evaluations_are_as_documented("last", 2, 0.5),
    lambda: test_evaluations_are_as_documented("unconditional", 99, 1.0),
    test_the_outer_state_is_untouched_by_the_inner_chain,
]


def over_the_batch(eps, reference, first=1):
    return (eps - eps.mean()) / eps.std() * reference.std() + reference.mean()


right_jump, inner = readings.jump, module.inner_pairs
MUTANTS = {
    "inner chain is CFG": ("dns", guidance.cfg),
    "inner chain ignores s": ("dns", lambda phi, p, s, dns=guidance.dns: dns(phi, p, 1.0)),
    "statistics of the whole batch": ("match", over_the_batch),
    "mean not matched": ("match", lambda e, r, first=1: match(e, r, first) + 1),
    "deviation not matched": (
        "match", lambda e, r, first=1: match(e, r, first) + 0.1 * (r - match(0 * r, r, first)),
    ),
    "jump without the ratio": (
        "jump", lambda z, z_n, a, b: (z_n - z) / ((1 - b).sqrt() - (1 - a).sqrt()),
    ),
    "jump of the wrong sign": ("jump", lambda *a: -right_jump(*a)),
    "inner chain one step too long": (
        "inner_pairs", lambda t, pairs, K, until: inner(t, pairs, K + 1, until),
    ),
    "inner chain from the first step": (
        "inner_pairs", lambda t, pairs, K, until: inner(t, pairs, K, until) and pairs[:K],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_version_of_answer_fails_an_identity(name, monkeypatch):
    mutants.assert_noticed((module, readings, guidance), *MUTANTS[name], IDENTITIES, monkeypatch)


def test_the_right_version_passes_every_identity():
    mutants.assert_all_pass(IDENTITIES)


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
    guided = one(eps_fn, 2.0, schedule=schedule, steps=steps, K=2, K_until=1.0)
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
    with pytest.raises(ValueError, match="not in any step"):
        one(MODEL.eps)(start(1, 3), torch.tensor(PAIRS[0][0] + 1))

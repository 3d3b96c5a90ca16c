"""The neglected subject: its choice, its words, its negative, and the method `neglect`."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import dnp
import mutants
from dnp import toy
from dnp.app import options
from dnp.errors import SettingsError
from dnp.evaluation import benchmarks, contestants, dry, strength
from dnp.evaluation.grid import Grid, Run
from dnp.evaluation.measure import Instruments
from dnp.methods import attend_excite, neglect
from dnp.methods.neglect import without
from dnp.sampling import ddim_step
from dnp.schedule import Schedule
from experiments import world

TRIO = "a cat, a red car and a blue chair"
# z_t at the first two of five steps has sigma over 1.6
HERE = {"s": 2.0, "steps": 5, "size": (32, 32)}


@pytest.fixture(scope="module")
def model():
    return dnp.load(world(), dtype=torch.float64)


@pytest.fixture(scope="module")
def single():
    return dnp.load(world())


@pytest.mark.parametrize(
    ("prompt", "subjects", "texts"),
    [
        (TRIO, ["cat", "car", "chair"],
         ["a red car and a blue chair", "a cat and a blue chair", "a cat and a red car"]),
        ("a cat with a crown", ["cat", "crown"], ["a crown", "a cat"]),
        ("a cat with a bow and a dog", ["cat", "bow", "dog"],
         ["a bow and a dog", "a cat and a dog", "a cat with a bow"]),
        ("a cat with a bow and a dog with a crown", ["cat", "dog", "crown"],
         ["a bow and a dog with a crown", "a cat with a bow", "a cat with a bow and a dog"]),
        ("a cat and a dog with a crown, and a bird", ["dog"], ["a cat, and a bird"]),
        ("a lion, a frog, and a mouse", ["mouse", "frog"],
         ["a lion and a frog", "a lion, and a mouse"]),
        ("a red car", ["car"], [""]),
        ("A Cat and a dog", ["cat"], ["a dog"]),
        ("a cat and a catfish", ["cat"], ["a catfish"]),
        ("a cat,a dog AND a bird", ["cat", "dog"], ["a dog AND a bird", "a cat AND a bird"]),
        ("a red car and a car", ["red car", "car"], ["a car", "a red car"]),
        ("a Dog and a dog", ["Dog", "dog"], ["a dog", "a Dog"]),
        ("a  red   car and a cat", ["red car"], ["a cat"]),
        ("a dog, two dogs and a dog", ["dog", "dog"], ["two dogs and a dog", "a dog and two dogs"]),
    ],
)  # fmt: skip
def test_the_prompt_without_a_subject(prompt, subjects, texts):
    assert neglect.without(prompt, subjects) == texts


def test_the_parts_of_every_trio_are_what_it_asks_for():
    for prompt in benchmarks.load("trio"):
        asked = benchmarks.subjects(prompt.text)
        for i, text in enumerate(neglect.without(prompt.text, [thing for _, thing in asked])):
            assert benchmarks.subjects(text) == asked[:i] + asked[i + 1 :]


def test_the_neglected_subject_has_the_lowest_peak():
    peaks = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.2, 0.3], [0.4, 0.6, 0.05]])
    assert neglect.neglected(peaks).tolist() == [1, 0, 2]


def by_hand(model, z_t, t):
    """eps of the method at one step, from its three equations and plain forwards."""
    with model.attention(model.config.attend_excite["ae_level"]) as maps:
        eps_p = model.eps(z_t, t, model.encode(TRIO))
    tokens, count = model.places(TRIO, ["cat", "car", "chair"])
    peaks = attend_excite.peaks(attend_excite.over_words(maps.mean(), count), tokens, (4, 4))
    n_t = without(TRIO, ["cat", "car", "chair"])[int(peaks[0].argmin())]
    eps_phi, eps_n = (model.eps(z_t, t, model.encode(c)) for c in ("", n_t))
    return eps_phi + 2.0 * (eps_p - eps_phi) - 1.0 * (eps_n - eps_phi)


@pytest.fixture(scope="module")
def chains(model):
    """The chain of two samples, seeds 3 and 4, together."""
    return list(dnp.trajectory(model, TRIO, "neglect", seed=3, images=2, **HERE))


def test_the_chain_is_the_three_equations(model, chains):
    with torch.no_grad():
        for (t, z_t, z0_hat, eps), (t_next, z_next, *_) in list(zip(chains, chains[1:]))[:2]:
            for i in range(2):
                assert_close(eps[i : i + 1], by_hand(model, z_t[i : i + 1], torch.tensor(t)))
            level = model.schedule.level
            made = ddim_step(z_t, eps, level(t), level(t_next))
            assert_close(made, (z_next, z0_hat))


def test_below_its_interval_it_is_cfg(model, chains):
    t, z_t, _, eps = chains[3]
    assert model.schedule.sigma_ve(t) < 1.6
    with torch.no_grad():
        phi, p = (model.eps(z_t, torch.tensor(t), model.encode(c)) for c in ("", TRIO))
    assert_close(eps, phi + 2.0 * (p - phi))


def test_a_picture_does_not_depend_on_its_batch_mates(model, chains):
    one = list(dnp.trajectory(model, TRIO, "neglect", seed=4, **HERE))
    assert_close(chains[-1][1][1:], one[-1][1])


@pytest.mark.parametrize("name", ["peaks_of_prompt", "without"])
def test_mutants_of_the_wiring_are_noticed(name, model, monkeypatch):
    """Peaks or texts in another order than the subjects."""
    owner = {"peaks_of_prompt": attend_excite, "without": neglect}[name]
    right = getattr(owner, name)
    wrong = {
        "peaks_of_prompt": lambda *a: lambda maps, z_t: right(*a)(maps, z_t).flip(1),
        "without": lambda *a: right(*a)[::-1],
    }[name]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError):
        chain = dnp.trajectory(model, TRIO, "neglect", seed=3, images=2, **HERE)
        chain = list(itertools.islice(chain, 3))  # two steps are looked at
        test_the_chain_is_the_three_equations(model, chain)


MUTANTS = {
    "the best subject": ("neglected", lambda peaks: peaks.argmax(1)),
    "one choice for the batch": (
        "neglected", lambda peaks: peaks.mean(0).argmin().expand(len(peaks))
    ),
    "always the first": ("neglected", lambda peaks: torch.zeros(len(peaks), dtype=torch.long)),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_of_the_choice_are_noticed(mutant, monkeypatch):
    name, wrong = MUTANTS[mutant]
    test = test_the_neglected_subject_has_the_lowest_peak
    mutants.assert_noticed([neglect], name, wrong, [test], monkeypatch)


def test_evaluations_are_three_where_the_negative_acts_and_two_below(single, monkeypatch):
    forward, forwards = single.unet.forward, []
    count = lambda z, *a: (forwards.append(len(z)), forward(z, *a))[1]
    monkeypatch.setattr(single.unet, "forward", count)
    acting = [t for t, _ in single.schedule.pairs(5) if single.schedule.sigma_ve(t) > 1.6]
    r = dnp.generate(single, TRIO, "neglect", images=2, **HERE)
    assert r.nfe == 2 * 5 + len(acting) and sum(forwards) == 2 * r.nfe
    assert 0 < len(acting) < 5
    assert dnp.generate(single, TRIO, "neglect", negative_interval=(0, 0), **HERE).nfe == 10


def test_maps_are_read_only_where_the_negative_acts(single, monkeypatch):
    read, recorder = [], type(single).attention
    monkeypatch.setattr(type(single), "attention", lambda *a: (read.append(0), recorder(*a))[1])
    for given, count in (({}, 2), ({"negative_interval": (0, 0)}, 0), ({"interval": (0, 0)}, 0)):
        read.clear()
        dnp.generate(single, TRIO, "neglect", **HERE, **given)
        assert len(read) == 1 + count  # the first of them asks whether there is such a level


def test_it_takes_no_gradient_so_inference_mode_is_allowed(single):
    with torch.inference_mode():
        r = dnp.generate(single, TRIO, "neglect", **HERE)
    assert torch.equal(r.latents[1], dnp.generate(single, TRIO, "neglect", **HERE).latents[1])


def test_a_prompt_of_one_part_is_cfg_and_says_so(single):
    with pytest.warns(UserWarning, match="leaves an empty prompt, so method neglect equals CFG"):
        dnp.generate(single, "a red car", "neglect", steps=1)


def test_from_a_picture_h_follows_a_new_scale_and_a_given_h_stays(small_cli):
    small_cli("a cat and a dog", "--method", "neglect", "--steps", 1)
    png = "outputs/a-cat-and-a-dog-neglect-0.png"

    def h(**typed):
        return options.resolve({"from_": png, **typed}).settings.get("negative_scale")

    assert h(s=3.0) is None  # s / 2 again
    assert h(rule="perp_neg") is None
    assert h() == 2.5
    assert h(s=3.0, negative_scale=1.0) == 1.0
    small_cli("a cat", "--method", "np", "--negative", "a dog", "--negative-scale", 0, "--steps", 1)
    png = "outputs/a-cat-np-0.png"
    assert h(s=3.0) == 0


def test_limits(single):
    """h = 0, an empty interval and a single subject (n_t is phi) are CFG; h is s / 2."""
    z = lambda prompt, method, **own: dnp.generate(
        single, prompt, method, **{**HERE, **own}
    ).latents[1]
    cfg = z(TRIO, "cfg")
    assert_close(z(TRIO, "neglect", negative_scale=0.0), cfg)
    assert torch.equal(z(TRIO, "neglect", negative_interval=(0, 0)), cfg)
    assert torch.equal(z(TRIO, "neglect", negative_scale=1.0), z(TRIO, "neglect"))
    always = {"negative_interval": (0, 1e6), "negative_scale": 1.0}
    assert_close(z("a red car", "neglect", **always), z("a red car", "cfg"), rtol=1e-4, atol=1e-4)


def test_any_rule_takes_its_negative(model):
    made = {
        rule: dnp.generate(model, TRIO, "neglect", rule=rule, **HERE)
        for rule in ("negative_prompt", "bounded", "perp_neg")
    }
    assert len({r.latents[1].sum().item() for r in made.values()}) == 3
    assert made["bounded"].settings["negative_scale"] is None
    two = dnp.generate(model, TRIO, "neglect", negative_scale=2.0, **HERE)
    assert_close(made["negative_prompt"].latents[1], two.latents[1])


@pytest.mark.parametrize(
    ("prompt", "given", "sentence"),
    [
        (TRIO, {"negative": "a dog"}, "method neglect takes no negative prompt"),
        (TRIO, {"subjects": "cat, bird"}, 'the subject "bird" is not in the prompt'),
        ("the grass", {}, 'needs the subjects of the prompt; add them, as in subjects="cat, dog"'),
        (TRIO, {"ae_step": 1.0}, "ae_step belongs to method ae or ae.auto-dnp, not neglect"),
        (TRIO, {"ae_level": 3}, "choose 0 to 1"),
        (TRIO, {"rule": "cfg"}, "rule cfg has no eps_n"),
        (TRIO, {"subjects": ["cat", "car"]}, "subjects = .* is not possible; give a text"),
        ("a cat and a red car", {"subjects": "cat and a red car"}, "is not a part of the prompt"),
        ("a cat's hat and a dog", {"subjects": "cat 's"}, "is not a part of the prompt"),
        (None, {}, 'a prompt is a text, not None; the empty one is ""'),
        (["a cat"], {}, "a list is not a prompt"),
        (3, {}, "a prompt is a text, not int; give one"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(single, prompt, given, sentence):
    with pytest.raises(SettingsError, match=sentence):
        dnp.generate(single, prompt, "neglect", steps=1, **given)


def test_a_toy_has_no_attention():
    points = toy.PointMass(torch.zeros(2), [torch.ones(2)], Schedule.stable_diffusion())
    with pytest.raises(SettingsError, match="this model has none"):
        dnp.generate(points, 0, "neglect", steps=1)


def test_the_experiments_run_and_count_it(single, tmp_path, monkeypatch):
    method, prompt = contestants.parse("neglect"), "a cat and a red car"
    settings = contestants.settled(method, 3.0, 5, single, prompt=prompt)
    assert settings["negative_scale"] == 1.5 and settings["ae_level"] == 1
    contestants.check(method, 3.0, 5, single, [prompt], [])
    (made,) = contestants.sample(single, method, [prompt], [0], settings, [None])
    r = dnp.generate(single, prompt, "neglect", s=3.0, steps=5, subjects="cat, car")
    assert made.image.tobytes() == r.images[0].tobytes() and made.nfe == r.nfe
    grid = Grid((benchmarks.Prompt(prompt, "animals_objects"),), (method,), (3.0,), (0,), 5)
    work = Run(grid, single, Instruments(None, None, None, None, None), tmp_path)
    assert dry.evaluations(work, method, work.settings(method, 3.0)) == r.nfe
    assert len(strength.by_step(work, method, 3.0)) == 5
    monkeypatch.setattr(single, "config", replace(single.config, things=()))
    assert len(strength.by_step(work, method, 3.0)) == 5  # as sampling does, by the benchmark
    with pytest.raises(SettingsError, match="names no thing of benchmark ae"):
        contestants.check(method, 3.0, 5, single, ["the grass"], [])

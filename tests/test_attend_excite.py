"""Attend-and-Excite: its equations, the recorder of attention maps, the methods ae, ae+auto-dnp."""

import math

import pytest
import torch
from torch.testing import assert_close

import dnp
from conftest import MINI
from dnp import sampling, toy
from dnp.errors import SettingsError
from dnp.evaluation import benchmarks
from dnp.methods import attend_excite as ae
from dnp.schedule import Schedule
from dnp.sd.attention import AttentionMaps
from experiments import world

PAIR = "a cat and a dog"
QUICK = {"ae_refinements": 0, "ae_until": 0.5, "s": 2.0}
SMALL = (32, 32)  # pixels


@pytest.fixture(scope="module")
def model():
    return dnp.load(MINI, dtype=torch.float64)


@pytest.fixture(scope="module")
def single():
    """Small random networks, for what is counted, refused and wired."""
    return dnp.load(world())


def randn(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


# --------------------------------------------------------------------------------------- equations


def test_the_kernel_is_the_published_one():
    e = math.exp(-1)
    total = (1 + 2 * e) ** 2
    want = torch.tensor([[e * e, e, e * e], [e, 1, e], [e * e, e, e * e]]).double() / total
    assert_close(ae.kernel(torch.float64), want)


def test_the_loss_of_hand_made_maps():
    maps = torch.zeros(1, 16, 2, dtype=torch.float64)
    maps[0, 5, 0] = 1.0  # one place inside
    maps[0, 0, 1] = 1.0  # a corner: reflect pad does not repeat it
    peak = ae.peaks(maps, [0, 1], (4, 4))
    centre = ae.kernel(torch.float64)[1, 1]
    assert_close(peak[0], torch.stack([centre, centre]))
    assert_close(ae.loss(torch.tensor([[0.2, 0.7], [1.5, 1.0]])), torch.tensor([0.8, 0.0]))
    words = ae.over_words(torch.full((1, 4, 7), 0.1), 3)
    assert_close(words, torch.full((1, 4, 3), 1 / 3))
    assert ae.over_words(torch.zeros(1, 4, 7).half(), 3).dtype == torch.float32
    assert ae.step_size(0, 50) == 20 and abs(ae.step_size(49, 50) - 20 * 0.5**0.5) < 1e-12


def test_the_latent_moves_up_where_the_lowest_map_peaks_and_nowhere_else():
    """The maps are the latent itself, two words of 6 x 6, so each place can be looked at."""
    z = torch.full((1, 2, 6, 6), 0.1, dtype=torch.float64)
    z[0, 0, 4, 1], z[0, 1, 2, 3] = 2.0, 0.4
    value = lambda z: ae.loss(ae.peaks(z.flatten(2).transpose(1, 2), [0, 1], (6, 6)))
    losses, grad = ae.gradient(value, z)
    moved = ae.excite(z, grad, 0.5) - z
    want = torch.zeros_like(z)
    want[0, 1, 1:4, 2:5] = 0.5 * ae.kernel(torch.float64)
    assert_close(moved, want)
    assert value(z + moved) < losses
    high = torch.full_like(z, 1.2)  # every peak is at least 1: nothing is to be done
    assert_close(ae.gradient(value, high), (torch.zeros(1).double(), torch.zeros_like(z)))


# ---------------------------------------------------------------------------------------- the maps


def test_forwards_are_bit_equal_with_the_recorder_off_and_on(model):
    z, c = randn(1, 4, 8, 8), model.encode("a cat")
    with torch.no_grad():
        off = model.eps(z, 500, c)
        with AttentionMaps(model.unet, 1) as maps:
            on = model.eps(z, 500, c)
        again = model.eps(z, 500, c)
    assert torch.equal(off, on) and torch.equal(off, again)
    found = maps.mean()
    assert_close(found.sum(-1), torch.ones(1, 16, dtype=torch.float64))
    assert maps.maps == [] and not any(layer._forward_hooks for layer in maps.layers)


class Kept:
    """diffusers' own attention, which keeps its probabilities."""

    def __init__(self):
        self.maps = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        cross = encoder_hidden_states is not None
        context = encoder_hidden_states if cross else hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        q, k, v = map(attn.head_to_batch_dim, (q, k, v))
        p = attn.get_attention_scores(q, k)
        if cross:
            self.maps.append(p.unflatten(0, (len(hidden_states), -1)))
        return attn.to_out[0](attn.batch_to_head_dim(p @ v))


def test_the_maps_are_those_of_diffusers_attention(oracle):
    pipeline, folder = oracle
    ours, theirs, kept = dnp.load(folder, dtype=torch.float64), pipeline.unet.double(), Kept()
    old, z, c = theirs.attn_processors, randn(2, 4, 8, 8), ours.encode([PAIR, "a red car"])
    try:
        theirs.set_attn_processor(kept)
        with torch.no_grad():
            theirs(z, torch.tensor(700), c)
    finally:
        theirs.set_attn_processor(old)
        theirs.float()
    seen = 0
    for level in range(len(ours.unet.down_blocks)):
        try:
            recorder = ours.attention(level)
        except SettingsError:
            continue
        with recorder as maps, torch.no_grad():
            ours.eps(z, 700, c)
        same = [m for m in kept.maps if m.shape[2] == (8 >> level) ** 2]
        assert len(same) == len(recorder.layers) > 0
        assert_close(maps.mean(), torch.cat(same, 1).mean(1), atol=1e-6, rtol=1e-5)
        seen += len(same)
    assert seen == len(kept.maps)


def loss_of(model, level):
    """(z_t, t) -> the loss of the cat and the dog of PAIR."""
    peaks_of = ae.peaks_of_prompt(model, PAIR, "cat, dog", level)
    value = ae.loss_of_rows(model, model.encode([PAIR] * 2), [peaks_of] * 2, level)
    return lambda z_t, t: value(z_t, t, torch.arange(len(z_t)))


@pytest.mark.parametrize("level", [0, 1])
def test_the_gradient_agrees_with_finite_differences_and_lowers_the_loss(model, level):
    z, way = randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=1)
    value = loss_of(model, level)
    t, h = torch.tensor(700), 1e-6
    with torch.no_grad():
        before, grad = ae.gradient(lambda z: value(z, t), z)
        want = (value(z + h * way, t) - value(z - h * way, t)) / (2 * h)
        assert_close((grad * way).sum()[None], want, rtol=1e-4, atol=1e-7)
        assert before > 0.1 and value(ae.excite(z, grad, 0.01), t) < before


def test_the_speed_measures_leave_the_gradient_as_it_is(mini):
    z, t = randn(2, 4, 8, 8).float(), torch.tensor(700)
    made = []
    for m in (dnp.load(MINI), mini):
        value = loss_of(m, 1)
        with torch.no_grad():
            made.append(ae.gradient(lambda z, value=value: value(z, t), z))
    assert_close(made[0], made[1], rtol=1e-3, atol=1e-6)
    assert made[0][1].abs().max() > 0


@pytest.mark.parametrize(
    ("prompt", "subjects", "places", "count"),
    [
        (PAIR, ["cat", "dog"], [1, 4], 5),
        (PAIR, ["dog", "a cat"], [4, 1], 5),
        ("a wildcat and a cat", ["cat"], [7], 8),  # wi l d cat</w>: no word of its own
        ("a cat and a cat", ["cat", "cat"], [1, 4], 5),
        ("a wild cat, a dog", ["wild", "dog"], [3, 7], 8),  # wi l d</w>: the last one
    ],
)
def test_subjects_are_whole_words_of_the_prompt(model, prompt, subjects, places, count):
    text = model.tokenizer.convert_ids_to_tokens(model.tokenizer(prompt).input_ids)[1:-1]
    found, own = model.places(prompt, subjects)
    assert own == len(text) and [text[i] for i in found] == [
        model.tokenizer.tokenize(s)[-1] for s in subjects
    ]
    assert (found, own) == (places, count), text
    with pytest.raises(SettingsError, match='the subject "ca" is not in the prompt'):
        model.places(prompt, ["ca"])


# --------------------------------------------------------------------------------------- the moves


def falling(z, t, rows):
    """A loss of each sample with the gradient 1: its only number, if that is positive."""
    return z[:, 0].clamp(min=0)


def excitation(samples, steps=10, value=falling, **own):
    own = {"ae_step": 0.1, "ae_until": 0.5, "ae_thresholds": (0.5,), "ae_refinements": 20, **own}
    return ae.Excitation(value, steps, **own, passes=[0] * samples)


def test_a_threshold_is_reached_by_each_sample_alone():
    z = torch.tensor([[1.0], [0.55], [0.2]], dtype=torch.float64)
    move = excitation(3, ae_step=0.125)
    made = move(z, torch.tensor(9))
    # 1 to 0.5 in four moves of 0.125, 0.55 in one, 0.2 in none; then each moves once more
    assert_close(made, torch.tensor([[0.375], [0.3], [0.075]], dtype=torch.float64))
    assert move.passes == [5, 2, 1]
    for row, passes in zip(z.split(1), move.passes):
        alone = excitation(1, ae_step=0.125)
        alone(row, torch.tensor(9))
        assert alone.passes == [passes]


@pytest.mark.parametrize(("steps", "until", "most"), [(10, 0.5, 3), (7, 1.0, 2), (50, 0.3, 0)])
def test_the_passes_are_those_of_the_formula(steps, until, most):
    own = {"ae_until": until, "ae_thresholds": (0.05, 0.5, 0.8), "ae_refinements": most}
    move = excitation(1, steps, **own)
    z = torch.full((1, 1), 1e6, dtype=torch.float64)  # never low enough
    after = z
    for i in range(steps):
        after = move(after, torch.tensor(steps - i))
    moving = math.ceil(until * steps)
    refined = sum(k * steps // 5 < moving for k in range(3))
    assert move.passes == [moving + most * refined] == [ae.most_passes(steps, **own)]
    moves = [1 + most * (i in [k * steps // 5 for k in range(3)]) for i in range(moving)]
    want = sum(n * ae.step_size(i, steps, 0.1) for i, n in enumerate(moves))
    assert_close((z - after).item(), want, rtol=1e-6, atol=0)


# ------------------------------------------------------------------------------------- the methods


def test_evaluations_and_gradients_are_counted(single, monkeypatch):
    forwards, gradients = [], []
    forward, gradient = single.unet.forward, ae.gradient
    count = lambda z, *a: (forwards.append(len(z)), forward(z, *a))[1]
    monkeypatch.setattr(single.unet, "forward", count)
    monkeypatch.setattr(ae, "gradient", lambda f, z: (gradients.append(len(z)), gradient(f, z))[1])
    own = {"ae_thresholds": (1.0,), "ae_refinements": 2, "ae_until": 0.5, "ae_step": 5.0}
    r = dnp.generate(single, PAIR, "ae", steps=5, images=2, size=SMALL, **own)
    assert r.gradients == [3 + 2] * 2 and sum(gradients) == 10  # steps 0, 1, 2 and 2 refinements
    assert r.nfe == 2 * 5 + 5 and sum(forwards) == 2 * r.nfe
    assert r.evaluations == [r.nfe + 2 * 5] * 2
    plain = dnp.generate(single, PAIR, steps=1, size=SMALL)
    assert (plain.gradients, plain.evaluations) == ([0], [2])


def test_without_a_step_it_is_cfg_and_with_n_it_is_eq4(single):
    z = {
        m: dnp.generate(single, PAIR, m, n, steps=3, s=2.0, size=SMALL, **own).latents[1]
        for m, n, own in (
            ("cfg", None, {}),
            ("ae", None, {"ae_step": 0.0, "ae_refinements": 0}),
            ("np", "a bear", {}),
            ("ae+auto-dnp", "a bear", {"ae_until": 0.0}),
        )
    }
    assert torch.equal(z["ae"], z["cfg"]) and torch.equal(z["ae+auto-dnp"], z["np"])


def test_ae_auto_dnp_takes_the_words_of_auto_dnp(single):
    captioner = lambda images: ["a green bowl" for _ in images]
    made = [
        dnp.generate(single, PAIR, m, captioner=captioner, steps=3, seed=4, size=SMALL, **own)
        for m, own in (("auto-dnp", {}), ("ae+auto-dnp", QUICK))
    ]
    assert [r.negatives for r in made] == [["a green bowl"]] * 2
    assert made[0].dns_images[0].tobytes() == made[1].dns_images[0].tobytes()
    assert made[1].nfe == made[0].nfe + 2 and made[1].gradients == [2]
    assert not torch.equal(made[0].latents[1], made[1].latents[1])


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp2m"])
def test_trajectory_shows_the_moved_latent(sampler):
    model, z_T = dnp.load(world(), dtype=torch.float64), randn(1, 4, 8, 8)
    own = {**QUICK, "ae_step": 2.0, "sampler": sampler}
    (t, z_t, z0_hat, eps), (t_next, *_), *_ = dnp.trajectory(
        model, PAIR, "ae", z_T=z_T, steps=4, **own
    )
    value = loss_of(model, 1)
    before, grad = ae.gradient(lambda z: value(z, torch.tensor(t)), z_T)
    assert_close(z_t, z_T - 2 * grad)
    with torch.no_grad():
        assert value(z_t, torch.tensor(t)) < before
        phi, p = model.eps(z_t, t, model.encode("")), model.eps(z_t, t, model.encode(PAIR))
    assert_close(eps, phi + 2.0 * (p - phi))
    level = model.schedule.level
    assert_close(sampling.ddim_step(z_t, eps, level(t), level(t_next))[1], z0_hat)


@pytest.mark.slow
def test_a_picture_does_not_depend_on_its_batch_mates(model):
    z_T = randn(2, 4, 16, 16)
    own = {"ae_thresholds": (0.3,), "ae_refinements": 3, "ae_step": 200.0, "steps": 2}
    *_, (_, both, *_) = dnp.trajectory(model, PAIR, "ae", z_T=z_T, **own)
    for i in range(2):
        *_, (_, one, *_) = dnp.trajectory(model, PAIR, "ae", z_T=z_T[i : i + 1], **own)
        assert_close(both[i : i + 1], one)


BAD = [
    ("cfg", PAIR, {"ae_step": 1.0}, "ae_step belongs to method ae or ae.auto-dnp, not cfg"),
    ("cfg", PAIR, {"subjects": "cat"}, "subjects belongs to method ae"),
    ("ae", PAIR, {"subjects": "cat, bird"}, 'the subject "bird" is not in the prompt'),
    ("ae", "the grass", {}, "needs the subjects of the prompt"),
    ("ae", PAIR, {"subjects": " , "}, None),
    ("ae", PAIR, {"negative": "a dog"}, "takes no negative prompt"),
    (
        "ae",
        PAIR,
        {"ae_step": -1.0},
        "not possible; choose a number of at least 0",
    ),
    ("ae", PAIR, {"ae_until": 1.5}, "choose a number from 0 to 1"),
    ("ae", PAIR, {"ae_thresholds": ()}, "give 1 to 5 numbers"),
    ("ae", PAIR, {"ae_thresholds": (2.0,)}, "give 1 to 5 numbers"),
    ("ae", PAIR, {"ae_refinements": 1.5}, "choose a whole number from 0 to 1000"),
    ("ae", PAIR, {"ae_level": 3}, "choose 0 to 1"),
    ("ae", PAIR, {"ae_level": 1, "size": (8, 8)}, "maps of 1 x 1 here; choose a lower"),
]


@pytest.mark.parametrize(("method", "prompt", "given", "sentence"), BAD)
def test_what_cannot_be_is_one_sentence(single, method, prompt, given, sentence):
    if sentence is None:
        r = dnp.generate(single, prompt, method, steps=1, **{**given, **QUICK})
        assert r.settings["subjects"] == "cat, dog"
        return
    with pytest.raises(SettingsError, match=sentence):
        dnp.generate(single, prompt, method, steps=1, **given)


def test_other_models_have_no_attention_or_no_own_things(tiny, single):
    points = toy.PointMass(torch.zeros(2), [torch.ones(2)], Schedule.stable_diffusion())
    with pytest.raises(SettingsError, match="this model has none"):
        dnp.generate(points, 0, "ae", steps=1)
    other = dnp.load(tiny)
    with pytest.raises(SettingsError, match='add them, as in subjects="cat, dog"'):
        dnp.generate(other, PAIR, "ae", steps=1)
    with pytest.raises(SettingsError, match="ae_level = 2 is not in this U-Net; choose 0 to 1"):
        dnp.generate(other, PAIR, "ae", steps=1, subjects="cat")
    r = dnp.generate(other, PAIR, "ae", steps=1, subjects="cat", ae_level=1, **QUICK)
    assert r.settings["ae_step"] == 20 and r.settings["subjects"] == "cat"
    with torch.inference_mode(), pytest.raises(SettingsError, match=r"take torch\.no_grad"):
        dnp.generate(single, PAIR, "ae", steps=1)


def test_the_world_and_the_recommendations_of_the_miniature(mini, tmp_path):
    assert mini.config.things == (*benchmarks.ANIMALS, *benchmarks.OBJECTS)
    for prompt in benchmarks.attend_excite():
        subjects = [w for _, w in benchmarks.subjects(prompt.text)]
        assert ae.things(mini.config.things, prompt.text) == subjects
    own = ae.PUBLISHED | mini.config.attend_excite
    made = dnp.generate(mini, PAIR, "ae", steps=1, **QUICK).settings
    assert {k: made[k] for k in own} == {**own, **{k: v for k, v in QUICK.items() if k != "s"}}

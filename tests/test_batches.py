"""`batch`: every forward has one shape, so a picture is the same whatever is sampled beside it."""

from pathlib import Path

import pytest
import torch

import dnp
from dnp.errors import SettingsError
from dnp.generation import generate_rows
from dnp.methods.method import Asked
from dnp.toy import PointMass

PAIR = "a cat and a dog"
WAYS = {
    "eta": dict(method="cfg", eta=1.0, size=(32, 32)),  # of the miniature; the others are small
    "second order": dict(method="cfg", sampler="dpmpp2m"),
    "memory": dict(method="cfg", rule="apg"),
    "two scales": dict(method="np", negative="a bear", negative_scale=1.0),
    "answer": dict(method="answer"),
    "moves": dict(method="ae", ae_until=1.0, ae_refinements=2, ae_thresholds=(0.9,)),
    "parts": dict(method="neglect"),
    "captions": dict(method="auto-dnp", dns_images=2),
    "captions on the way": dict(method="cnp"),
}
EVERY = [pytest.param(w, marks=pytest.mark.slow) if w == "captions on the way" else w for w in WAYS]


@pytest.mark.parametrize("way", EVERY)
@pytest.mark.filterwarnings("ignore:with steps")
def test_a_picture_of_a_batch_is_the_same_alone_and_anywhere_in_another(small_model, mini, way):
    model = mini if way == "eta" else small_model
    kw = dict(steps=2, batch=3) | WAYS[way]
    five = dnp.generate(model, PAIR, images=5, seed=7, **kw)
    for i in (1, 4):
        alone = dnp.generate(model, PAIR, seed=7 + i, **kw)
        assert alone.images[0].tobytes() == five.images[i].tobytes()
        assert alone.latents[1][0].equal(five.latents[1][i])
        assert alone.negatives == five.negatives[i : i + 1]
        assert alone.gradients == five.gradients[i : i + 1]
        assert alone.evaluations == five.evaluations[i : i + 1]
    assert len(five.images) == len(five.gradients) == 5 and five.settings["batch"] == 3


def test_the_rows_that_fill_a_batch_up_are_not_counted(small_model):
    told, seen, eps = [], [], small_model.eps
    try:
        small_model.eps = lambda z, t, c: (seen.append(len(z)), eps(z, t, c))[1]
        made = dnp.generate(small_model, "a", steps=1, images=4, batch=3, progress=told.append)
    finally:
        del small_model.eps
    assert (made.nfe, told, seen) == (2, [3, 1], [6, 6])
    assert made.latents[0].shape[0] == 4


def test_a_single_picture_keeps_its_bits(small_model):
    plain, one = (dnp.generate(small_model, PAIR, steps=2, seed=3, batch=n) for n in (None, 1))
    assert plain.latents[1].equal(one.latents[1]) and plain.settings["batch"] is None


def test_a_batch_of_a_toy_and_what_cannot_be():
    toy = PointMass(torch.zeros(2), [torch.ones(2), -torch.ones(2)])
    three, one = (dnp.generate(toy, 1, steps=4, images=k, batch=3) for k in (3, 1))
    assert three.latents[1][:1].equal(one.latents[1])
    with pytest.raises(SettingsError, match="leave batch out"):
        dnp.trajectory(toy, 1, batch=3)
    with pytest.raises(SettingsError, match="batch = 0 is not possible"):
        dnp.generate(toy, 1, batch=0)


@pytest.mark.parametrize("more", [[], ["--method", "auto-dnp", "--eta", "1"]])
def test_from_makes_each_picture_of_a_batch_again_to_the_byte(small_cli, more):
    words = [PAIR, "--steps", "2", "--images", "4", "--batch", "3", *more]
    _, made, _, _ = small_cli(*words)
    for path in made[2:]:
        assert small_cli("--from", path, "--out", "again")[0] == 0
        assert Path("again", path.name).read_bytes() == path.read_bytes()


def test_a_sheet_of_a_batch_has_the_pictures_of_a_batch(small_cli):
    words = ["a cat", "--steps", "1", "--images", "2", "--batch", "2", "--compare"]
    _, (sheet,), _, _ = small_cli(*words)
    assert small_cli("--from", sheet, "--out", "again")[0] == 0
    assert Path("again", sheet.name).read_bytes() == sheet.read_bytes()


def test_rows_with_subjects_have_words_of_their_own_dns_images(small_model):
    rows = [Asked(PAIR, 0, None, "cat, dog"), Asked("a car and a bear", 4, None, "car, bear")]
    kw = dict(steps=2, batch=2, ae_refinements=0)
    both = generate_rows(small_model, rows, "ae+auto-dnp", **kw)
    for row, n, picture in zip(rows, both.negatives, both.images):
        alone = dnp.generate(small_model, row.prompt, "ae+auto-dnp", seed=row.seed, **kw)
        assert (alone.negative, alone.images[0].tobytes()) == (n, picture.tobytes())


def test_pictures_that_are_sampled_together_are_decoded_together(small_model, monkeypatch):
    """As on a GPU; on a CPU one at a time is as fast."""
    sizes, decode = [], small_model.decode
    monkeypatch.setattr(small_model, "decode", lambda z_0: sizes.append(len(z_0)) or decode(z_0))
    for size, wanted in ((16, [3]), (1, [1, 1, 1])):
        monkeypatch.setattr("dnp.generation.batch_size", lambda device, size=size: size)
        sizes.clear()
        dnp.generate(small_model, "a cat", steps=1, images=3)
        assert sizes == wanted

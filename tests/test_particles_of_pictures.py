"""`--particles` and `--corrector`: what `dnp/particles.py` does, in `generate` and in a PNG."""

import pytest
import torch

import dnp
from command_line import cli  # noqa: F401
from dnp import particles, toy
from dnp.app.drawing import effective
from dnp.errors import SettingsError
from dnp.guidance import coefficients

ONE = torch.eye(1)
LINE = toy.Gaussian((0 * ONE[0], 2 * ONE), [(0 * ONE[0], ONE), (ONE[0], 1.5 * ONE)])
GIVEN = dict(steps=20, eta=1.0)


@pytest.mark.parametrize(
    ("method", "more"),
    [("cfg", {}), ("dns", {}), ("np", {"negative": 1, "negative_scale": 0.5})],
)
def test_a_picture_is_one_of_the_particles_of_its_own_generator(method, more):
    r = dnp.generate(LINE, 0, method, s=2.0, seed=7, images=2, particles=4, **GIVEN, **more)
    weights = coefficients(method, 2.0, more.get("negative_scale"))
    for i, seed in enumerate((7, 8)):
        g = torch.Generator().manual_seed(seed)
        start, first = LINE.schedule.pairs(20)[0][0], None if method == "dns" else 0
        z_T = torch.cat([LINE.sample(1, start, first, generator=g) for _ in range(4)])
        noises = lambda z, t: [LINE.eps(z, t, c) for c in (None, 0, 1)]
        rows = list(particles.sample(noises, weights, z_T, LINE.schedule, 20, g))
        assert (rows[-1][1] - r.latents[1][i].double()).abs().min() < 1e-6
        torch.testing.assert_close(r.latents[0][i].double(), z_T[0], atol=1e-6, rtol=0)
        assert r.sizes[i] == pytest.approx([particles.effective_size(w) for _, _, w in rows])
    assert r.nfe == 4 * 20 * (3 if method == "np" else 2)
    assert not dnp.generate(LINE, 0, method, s=2.0, **GIVEN, **more).sizes


def test_a_particle_is_drawn_as_often_as_its_weight(monkeypatch):
    kept = torch.arange(3.0)[:, None], torch.tensor([1.0, 2.0, 7.0]).log().double()
    monkeypatch.setattr(particles, "sample", lambda *given: [(-1, *kept)])
    r = dnp.generate(LINE, 0, "cfg", s=2.0, steps=1, eta=1.0, images=500, particles=3)
    shares = torch.bincount(r.latents[1].flatten().long(), minlength=3) / 500
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.7]), atol=0.06, rtol=0)


def test_a_corrector_evaluates_at_every_level_but_the_clean_one():
    r = dnp.generate(LINE, 0, "cfg", s=2.0, steps=20, corrector=2)
    plain = dnp.generate(LINE, 0, "cfg", s=2.0, steps=20)
    assert r.nfe == 2 * (20 + 2 * 19) and not r.sizes
    assert r.latents[1].isfinite().all() and not torch.equal(r.latents[1], plain.latents[1])
    assert torch.equal(r.latents[0], plain.latents[0])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": "answer"}, "method answer is not one; choose cfg, dns, np"),
        ({"rule": "apg"}, "rule apg is not one"),
        ({"rule": lambda eps_p: eps_p}, "is not one"),
        ({"eta": 0.5}, "choose sampler ddim and eta=1"),
        ({"eta": 0.0, "sampler": "dpmpp2m"}, "choose sampler ddim"),
        ({"interval": (0, 3)}, "leave the interval out"),
        ({"batch": 2}, "leave batch out"),
        ({"particles": 1}, "particles"),
        ({"particles": None, "corrector": 2, "method": "answer"}, "corrector steps need"),
    ],
)
def test_what_names_no_law_is_refused_in_a_sentence(given, told):
    with pytest.raises(SettingsError, match=told):
        dnp.generate(LINE, 0, **{"particles": 4, **GIVEN, **given})


def test_a_trajectory_has_no_particles():
    with pytest.raises(SettingsError, match="leave particles out"):
        dnp.trajectory(LINE, 0, particles=4, **GIVEN)


def test_a_law_that_is_improper_is_told_by_the_size():
    assert effective([4.0, 1.2, 3.9]) == "  effective size 3.90 at the end, 1.20 at the least"
    assert "K is too small or the law is improper" in effective([1.1, 1.0, 1.3])


def test_a_png_of_particles_is_made_again_to_the_byte(cli):  # noqa: F811
    words = "--eta 1 --particles 3 --corrector 1 --steps 3 --seed 5".split()
    code, (path,), out, _ = cli("a cat", *words)
    assert code == 0 and "effective size" in out and "network evaluations" in out
    first = path.read_bytes()
    path.unlink()
    again = path.with_name("kept.png")
    again.write_bytes(first)
    code, (path,), _, _ = cli("--from", str(again))
    assert code == 0 and path.read_bytes() == first
    code, made, _, err = cli("a cat", "--particles", "3")
    assert (code, made) == (2, []) and "choose sampler ddim and --eta 1" in err

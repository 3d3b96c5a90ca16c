"""The particles on pictures, and the information of a prompt: small runs on the miniature."""

import pytest
import torch

import dnp
from conftest import ROOT
from dnp import toy
from dnp.errors import SettingsError
from dnp.evaluation import heaviest, information
from dnp.schedule import Schedule

MINI = ROOT / "weights" / "mini"


class Named(toy.Gaussian):
    """A toy whose prompts are words."""

    def encode(self, prompts):
        return None if prompts[0] == "" else 0


def test_the_information_of_a_prompt_is_the_kl_of_a_gaussian():
    sigma = torch.logspace(2, -3, 400, dtype=torch.float64).flip(0)
    eye, zero = torch.eye(2), torch.zeros(2)
    model = Named((zero, 2 * eye), [(zero + 1.0, eye)], Schedule(1 / (1 + sigma**2), 1.0))
    z_0 = model.sample(4000, -1, 0, generator=torch.Generator().manual_seed(0))
    nats = information.information(model, "p", z_0, 400)
    exact = 0.5 * (2 * 0.5 - 2 + 2 * 0.5 + 2 * torch.tensor(2.0).log().item())
    assert nats.shape == (2, 4000) and nats[0].mean().item() == pytest.approx(exact, rel=0.03)
    assert (nats[1] <= nats[0]).all() and nats[1].mean() > 0
    row = information.line("p", torch.tensor([[1.0, 3.0], [0.0, 2.0]]))
    assert row == "| p | 2.0 +- 1.0 | 1.0 +- 1.0 |"


def test_a_longer_sentence_of_the_commands_is_one_line_of_bad_input():
    with pytest.raises(SettingsError, match="particles = 1: choose 2 to 64"):
        heaviest.main(["--particles", "1"])
    with pytest.raises(SettingsError, match="samples = 1: choose 2 to"):
        information.main(["a cat", "--samples", "1"])


def test_particles_start_at_the_noise_of_generate_and_at_s_1_weigh_the_same():
    model = dnp.load(MINI)
    z_T = heaviest.first_noise(model, [5, 6])
    made = dnp.generate(model, "a cat", steps=2, seed=5, images=2)
    assert torch.equal(z_T, made.latents[0])
    *_, (z_0, log_w) = heaviest.weighted(model, "a cat", 1.0, 2, z_T, 0)
    assert z_0.shape == z_T.shape and log_w.abs().max() < 1e-3
    *_, (_, log_w) = heaviest.weighted(model, "a cat", 3.0, 2, z_T, 0)
    assert log_w[0] != log_w[1]


def test_differences_are_paired_by_prompt():
    right = {w: [[0.0, 100.0], [100.0, 100.0]] for w in heaviest.WAYS}
    right["heaviest"] = [[100.0], [100.0]]
    rows = heaviest.table(right, right)
    assert rows[2].startswith("| at random | 75.0 [") and rows[2].endswith("|  |  |")
    assert "| +25.0 [+0.0, +50.0] |" in rows[4]


@pytest.mark.slow
def test_both_commands_print_their_settings(capsys):
    heaviest.main(["--per-category", "1", "--steps", "2", "--particles", "2"])
    out = capsys.readouterr().out
    assert "5 prompts of trio, seed 0, K = 2, CFG at s = 3, eta = 1, 2 steps, 8 evaluations" in out
    assert [line.split(" | ")[0] for line in out.splitlines()[4:8]] == [
        f"| {way}" for way in heaviest.WAYS
    ]
    information.main(["a cat", "--samples", "2", "--steps", "2", "--levels", "3"])
    assert "2 samples a prompt" in (out := capsys.readouterr().out) and "| a cat | " in out

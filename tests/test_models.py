"""A model of one's own: of a function, of an object, and of FILE.py:NAME, at every door."""

import csv
import json
import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import dnp
from conftest import ROOT
from dnp import toy, units
from dnp.app import png
from dnp.errors import SettingsError, WeightsError
from dnp.evaluation import __main__ as evaluation
from dnp.evaluation import differences, exact, report, sheets, tables
from dnp.methods import models, own
from dnp.schedule import Schedule

F64 = torch.float64
SCHEDULE = Schedule.flow(shift=3.0)
MEANS = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=F64)

# Pictures of one colour: the condition is a prompt's length, and eps is exact for one point.
FILE = """
import torch
from PIL import Image

from dnp.schedule import Schedule

schedule = Schedule.cosine()
scale = torch.nn.Parameter(torch.tensor(1.0))


class Colours:
    schedule = schedule
    spacing = "trailing"

    def __init__(self):
        self.gain = torch.tensor(0.5)

    def encode(self, prompts):
        return torch.tensor([[len(p) / 40 - 0.5] for p in prompts])

    def eps(self, z_t, t, c):
        abar = schedule.level(t).to(z_t.dtype)
        z_0 = (scale * self.gain * c)[:, :, None, None]
        return (z_t - abar.sqrt() * z_0) / (1 - abar).sqrt()

    def latent_shape(self, size=None):
        return 3, *(size or (4, 5))

    @torch.no_grad()
    def decode(self, z_0):
        x = ((z_0 + 0.5).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1)
        return [Image.fromarray(y.numpy()) for y in x]


def make():
    return Colours()


class Draws(Colours):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()


class Deaf(Colours):
    encode = property()


def broken():
    raise RuntimeError("no such checkpoint")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def by_class():
    """A flow network of two prompts, 0 and 1, in float32, as a model."""
    points = toy.PointMass(MEANS.mean(0), list(MEANS), SCHEDULE)
    tau = units.flow(SCHEDULE.abar)[1]
    seen = []

    def velocity(z, t, c):
        assert z.dtype == torch.float32
        seen.append((int(t), c))
        at = tau[t].item()
        mean = points.means[2 if c is None else c]
        return ((z - (1 - at) * mean) / at - mean).float()

    eps = units.in_vp(velocity, SCHEDULE, units.flow, units.eps_from_flow, torch.float32)
    return dnp.model(eps, SCHEDULE, (2,), latent_dtype=F64), points, seen


# ------------------------------------------------------------------------------- of a function


@pytest.mark.parametrize("rule", ["cfg", "apg", "perp_neg", "negative_prompt", "dns", "ccfg"])
def test_a_flow_network_of_ones_own_runs_under_every_rule_as_the_exact_toy_does(rule):
    model, points, seen = by_class()
    z_T = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    negative = {"negative": 1} if rule in ("perp_neg", "negative_prompt", "ccfg") else {}
    kw = dict(rule=rule, s=2.0, steps=20, z_T=z_T, **negative)
    ours = list(dnp.trajectory(model, 0, **kw))
    assert [row[0] for row in ours] == [t for t, _ in SCHEDULE.pairs(20, "trailing")] + [-1]
    assert ours[0][0] == 999 and {c for _, c in seen} == {None, 0, *negative.values()}

    class Trailing:
        eps, schedule, spacing = staticmethod(points.eps), SCHEDULE, "trailing"

    theirs = list(dnp.trajectory(Trailing(), 0, **kw))
    assert_close(ours[-1][1], theirs[-1][1], atol=2e-3, rtol=2e-3)


def test_answer_and_generate_take_it_too_and_draw_z_T_in_its_dtype():
    model, _, _ = by_class()
    made = dnp.generate(model, 0, "answer", s=2.0, steps=10, images=3, seed=4)
    assert made.images == [] and made.latents[0].shape == (3, 2) and made.settings["K"] == 2
    first = torch.randn(2, generator=torch.Generator().manual_seed(4))
    assert torch.equal(made.latents[0][0], first)
    assert torch.isfinite(made.latents[1]).all()
    *_, (_, z_0, _, _) = dnp.trajectory(model, 0, s=1.0, steps=10)
    assert z_0.dtype == F64  # the chain's, wider than the network's
    assert_close(z_0[0], MEANS[0], atol=1e-3, rtol=1e-3)


def test_what_is_missing_is_named_in_one_sentence():
    eps = lambda z_t, t, c: z_t

    class Bare:
        """Nothing."""

    class Half:
        def __init__(self):
            self.eps, self.schedule = eps, SCHEDULE

    with pytest.raises(SettingsError, match=r"Bare .*no eps and no schedule\); a model has eps\("):
        dnp.generate(Bare(), 0)
    with pytest.raises(SettingsError, match=r"Half has neither latent_shape\(size\) nor sample"):
        dnp.generate(Half(), 0, steps=2)
    z_T = torch.zeros(1, 2)
    assert len(list(dnp.trajectory(Half(), 0, steps=2, z_T=z_T))) == 3
    with pytest.raises(SettingsError, match="is a Tensor, without abar, pairs, level"):
        dnp.model(eps, SCHEDULE.abar, (2,))
    with pytest.raises(SettingsError, match="eps of Model is a Tensor"):
        dnp.model(z_T, SCHEDULE, (2,))
    with pytest.raises(SettingsError, match="decoder is not a part of a model; did you mean"):
        dnp.model(eps, SCHEDULE, (2,), decoder=eps)
    with pytest.raises(SettingsError, match="latents of \\(2,\\) only"):
        dnp.generate(dnp.model(eps, SCHEDULE, (2,)), 0, size=(8, 8), steps=2)
    with pytest.raises(SettingsError, match="reads a network's attention"):
        dnp.generate(dnp.model(eps, SCHEDULE, (2,)), 0, "ae", steps=2)


def test_the_example_of_contributing_runs():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code, _ = re.findall(r"```python\n(.*?)```", text, re.S)
    space = {}
    exec(compile(code, "<CONTRIBUTING.md>", "exec"), space)
    result = space["result"]
    assert result.nfe == 60 and result.latents[1].shape == (1, 2)
    assert result.latents[1].isfinite().all() and result.settings["prompt"] == "a cat"
    assert len(code.strip().splitlines()) <= 9  # with two imports and an empty line


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda z_t, t, c: (z_t,), "returned tuple"),
        (lambda z_t, t, c: torch.cat([z_t, z_t], 1), r"returned shape \(1, 4\)"),
        (lambda z_t, t, c: z_t.double(), "returned float64"),
    ],
)
def test_an_eps_that_is_no_noise_is_told(wrong, told):
    with pytest.raises(SettingsError, match=f"eps of Model {told} for float32 latents"):
        dnp.generate(dnp.model(wrong, SCHEDULE, (2,)), 0, steps=2)


def test_levels_that_depend_on_the_steps_are_asked_for_once_a_call():
    asked = []

    class Stepped:
        schedule, eps = SCHEDULE, staticmethod(lambda z_t, t, c: z_t)

        def at_steps(self, steps, size):
            asked.append((steps, size))
            tau = (torch.arange(1, steps + 1, dtype=F64) / steps).clamp(max=0.999)
            levels = Schedule.from_levels(1 - tau, tau)
            return dnp.model(self.eps, levels, (1, 2, 2), at_steps=self.at_steps)

    rows = list(dnp.trajectory(Stepped(), None, "answer", s=2.0, steps=7, size=None))
    assert [t for t, *_ in rows] == [6, 5, 4, 3, 2, 1, 0, -1] and asked == [(7, None)]
    assert next(iter(dnp.trajectory(Stepped(), None, steps=1)))[0] == 0  # without a note


# ---------------------------------------------------------------------------- FILE.py:NAME


def test_the_command_line_draws_with_a_model_of_ones_own(cli, mine):
    code, (picture,), out, err = cli(
        "a cat", "--model", "mine.py:Colours", "--steps", 4, "--scale", 3
    )
    assert code == 0 and "model: mine.py:Colours" in out, err
    held = png.read_settings(picture)
    assert held["model"] == "mine.py:Colours" and "weights" not in held
    assert held["fingerprint"].startswith("own-") and held["device"] == "cpu"
    made = dnp.generate(models.find("mine.py:Colours"), "a cat", s=3.0, steps=4)
    assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(made.images[0]))
    assert made.images[0].size == (5, 4) and "fingerprint" not in made.settings
    code, (other,), _, _ = cli("a cat", "--model", "mine.py:make", "--steps", 4, "--compare")
    assert code == 0 and other.name == "a-cat-compare-0.png"


def test_no_picture_makes_its_model_run(cli, mine):
    _, (picture,), _, _ = cli("a cat", "--model", "mine.py:Colours", "--steps", 2)
    kept = picture.rename(mine.with_name("kept.png"))
    mine.write_text(FILE + "\nopen('marker', 'w').close()\n")
    code, new, _, err = cli("--from", kept)
    assert code == 2 and new == [] and not mine.with_name("marker").exists()
    assert "no picture makes a file run; add --model mine.py:Colours if you trust it" in err
    code, (again,), _, err = cli("--from", kept, "--model", "mine.py:Colours")
    assert code == 0 and mine.with_name("marker").exists()
    assert "these are other weights than the PNG was made with" in err  # its file was changed
    assert again.read_bytes() != b"" and png.read_settings(again)["steps"] == 2
    mine.write_text(FILE)
    code, _, _, err = cli("--from", kept, "--model", "mine.py:Colours")
    assert code == 0 and "other weights" not in err
    code, (_,), _, err = cli("--from", kept, "--weights", ROOT / "weights" / "mini", "--steps", 1)
    assert code == 0 and "these are other weights than the PNG" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "mine.py:Nobody"], "has no Nobody"),
        (["--model", "mine.py"], "give FILE.py:NAME"),
        (["--model", "gone.py:A"], "no such file"),
        (["--model", "mine.py:broken"], "failed (RuntimeError: no such checkpoint)"),
        (["--model", "mine.py:Deaf"], "mine.py:Deaf has no encode; a prompt in words needs"),
        (["--model", "mine.py:schedule"], "Schedule is not a model (it has no eps and no schedule"),
        (
            ["--model", "mine.py:make", "--weights", "weights/mini"],
            "--weights and --model are",
        ),
        (["--model", "mine.py:make", "--device", "cpu"], "--device and --model are both given"),
        (["--weights", "mine.py"], "Python code and not weights; a model of your own is --model"),
        (["--model", "mine.py:make", "--method", "ae"], "reads a network's attention"),
        (["--model", "mine.py:make", "--method", "auto-dnp"], "no captioner"),
    ],
)
def test_what_cannot_be_is_one_sentence(cli, mine, words, told):
    code, new, _, err = cli("a cat", *words)
    assert (code, new) == (2, []) and told in err and "Traceback" not in err


def test_a_fingerprint_is_of_code_and_of_all_tensors_that_can_be_seen(mine):
    name = lambda what="mine.py:Colours": models.load_own(what).config.fingerprint
    first = name()
    assert first == name() and len(first) == 4 + 32
    assert name("mine.py:make") not in (first, own.UNKNOWN)
    for old, new in (
        ("tensor(0.5)", "tensor(0.25)"), ("tensor(1.0)", "tensor(2.0)"), ("/ 40", "/ 30"),
        ("cosine()", "cosine(500)"), ('"trailing"', '"leading"'),
    ):  # fmt: skip
        mine.write_text(FILE.replace(old, new))
        assert name() not in (first, own.UNKNOWN), new
    mine.write_text(FILE)
    assert name("mine.py:Draws") == own.UNKNOWN


def test_a_fingerprint_sees_what_lies_beside_the_file_and_what_it_reads(mine):
    """A checkpoint that is read into a global, by a file beside, into a closure, or as numpy's."""
    text = """
import numpy, torch, beside
from safetensors.torch import load_file

net = torch.nn.Linear(1, 1)
net.load_state_dict(load_file("net.safetensors"))
table = numpy.load("table.npy")

def make():
    import dnp
    kept = torch.load("kept.pt", weights_only=True)
    def eps(z_t, t, c):
        return z_t * kept * net.bias * beside.gain * table[0]
    more = dict(encode=lambda x: [0.0] * len(x), decode=lambda z: [])
    return dnp.model(eps, dnp.schedule.Schedule.cosine(), (1, 2, 2), **more)
"""
    from safetensors.torch import save_file

    def lay(weight=1.0, kept=1.0, table=1.0, gain="gain = 1.0"):
        save_file({"weight": torch.tensor([[weight]]), "bias": torch.ones(1)}, "net.safetensors")
        torch.save(torch.tensor(kept), "kept.pt")
        np.save("table.npy", np.full(2, table))
        mine.with_name("beside.py").write_text(gain)
        return models.load_own("mine.py:make").config.fingerprint

    mine.write_text(text)
    all_of_them = [lay(), lay(weight=2.0), lay(kept=2.0), lay(table=2.0), lay(gain="gain = 2.0")]
    assert own.UNKNOWN not in all_of_them and len(set(all_of_them)) == 5 and lay() == all_of_them[0]


# ------------------------------------------------------------------------- the exact harness


TOY = """
import torch
from dnp.schedule import Schedule
from dnp.toy import Mixture

means = torch.tensor([[0.0, 2.0], [0.0, -2.0], [3.0, 0.0]])
law = Mixture([0.25, 0.25, 0.5], means, 0.1 * torch.eye(2).expand(3, 2, 2),
              [[0, 1], [1, 2], [0, 1, 2]], Schedule.flow(shift=3.0))
line = Mixture([1.0], torch.zeros(1, 1), torch.eye(1)[None], [[0]])
alone = Mixture([0.5, 0.5, 1.0], means, torch.eye(2).expand(3, 2, 2), [[0, 1], [0, 1]])
"""


def test_a_toy_of_ones_own_in_the_exact_harness(mine, capsys):
    mine.write_text(TOY)
    words = ["--samples", "400", "--steps", "10", "--toy", "mine.py:law", "--out", "out"]
    exact.main(words)
    told = capsys.readouterr().out
    assert told.count("**0, not 1**, law modes") == 2 and "not 2" not in told
    assert sorted(p.name for p in mine.with_name("out").iterdir()) == ["exact.csv", "exact.md"]
    rows = mine.with_name("out").joinpath("exact.csv").read_text().splitlines()
    shares = {x.split(",")[3]: x.split(",")[4:7:3] for x in rows if x.startswith("law,1,1.0,")}
    assert float(shares["the exact law"][0]) > 0.99
    assert float(shares["DNG"][0] if "DNG" in shares else 1) > 0


@pytest.mark.parametrize(
    ("name", "told"),
    [("line", "1 dimensions"), ("alone", "no prompt that leaves"), ("means", "is a Tensor; the")],
)
def test_a_toy_that_cannot_be_is_refused(mine, name, told):
    mine.write_text(TOY)
    with pytest.raises(SettingsError, match=told):
        exact.main(["--toy", f"mine.py:{name}"])


# -------------------------------------------------------------------------- installed anywhere


def test_the_miniature_of_the_clone_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dnp.load("weights/mini").latent_shape() == dnp.load(ROOT / "weights/mini").latent_shape()
    monkeypatch.setattr(dnp.sd, "ROOT", tmp_path / "site-packages")
    with pytest.raises(WeightsError, match="comes with the repository and not with the package"):
        dnp.load("weights/mini")
    with pytest.raises(WeightsError, match="no such file or folder"):
        dnp.load("weights/other")


# ------------------------------------------------------------------------- the experiments

METRIC = """
import numpy as np


def redness(pictures, prompts):
    assert len(pictures) == len(prompts)
    return [np.asarray(p)[..., 0].mean() / 255 for p in pictures]


def short(pictures, prompts):
    return [0.0]


full = redness
shut = lambda pictures, prompts: [0.0] * len(pictures)
"""
RUN = "--benchmark prompts.txt --method cfg cfg:rule=apg --steps 3 --scale 3 --seeds 2 --out run"


@pytest.fixture
def laid(mine, monkeypatch):
    (mine.parent / "prompts.txt").write_text("a cat\na red car and a dog in the snow\n")
    (mine.parent / "measure.py").write_text(METRIC)
    monkeypatch.setattr(tables, "COLUMNS", dict(tables.COLUMNS))
    for module in (report, differences, sheets):
        monkeypatch.setattr(module, "COLUMNS", tables.COLUMNS)


def test_from_contributing_to_a_table_of_a_paper(laid, mine):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    mine.write_text(re.findall(r"```python\n(.*?)```", text, re.S)[1])
    command = re.search(r"python -m dnp.evaluation (--model.*?[^\\])\n", text, re.S)[1]
    prompts = [f"a {c} {x}" for c in ("red", "blue") for x in "abcde"]
    (mine.parent / "prompts.txt").write_text("\n".join(prompts))
    (mine.parent / "negatives.json").write_text(json.dumps(dict.fromkeys(prompts, "green")))
    evaluation.main([*shlex.split(command.replace("\\\n", " ")), "--steps", "2", "--seeds", "1"])
    tex = (mine.parent / "run" / "tables.tex").read_text()
    rows = [line.split(" & ") for line in tex.splitlines() if line.count(" & ") == 2]
    assert [row[0] for row in rows] == [
        "method", *(f"{name}, s = 3" for name in ("CFG", "APG", "Perp-Neg", "ours"))
    ]  # fmt: skip
    assert all("[" in row[1] for row in rows[1:])
    assert "redness" in tex and (mine.parent / "run" / "evaluations.pdf").is_file()


def test_experiments_with_a_model_and_a_metric_of_ones_own(mine, laid, capsys):
    words = [*RUN.split(), "--model", "mine.py:Colours", "--metric", "measure.py:redness"]
    evaluation.main(words)
    told = capsys.readouterr().out
    assert "| redness |" in told or "redness" in told.split("|---")[0]
    out = mine.with_name("run")
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["weights"] == models.load_own("mine.py:Colours").config.fingerprint
    rows = list(csv.DictReader((out / "pictures.csv").open()))
    assert len(rows) == 8
    for row in rows:
        with Image.open(out / "images" / row["image"]) as picture:
            red = np.asarray(picture)[..., 0].mean() / 255
        assert float(row["redness"]) == pytest.approx(red, abs=1e-5)
    made = {p.name: p.stat().st_mtime_ns for p in (out / "images").iterdir()}
    evaluation.main(words)  # nothing is made again
    assert made == {p.name: p.stat().st_mtime_ns for p in (out / "images").iterdir()}
    mine.write_text(FILE.replace("tensor(0.5)", "tensor(0.25)"))
    evaluation.main(words)  # another model, other pictures
    assert len(list((out / "images").iterdir())) == 16


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--model mine.py:Draws", "holds something whose content cannot be seen"),
        ("--model mine.py:Deaf", "has no encode"),
        ("--model mine.py:make --weights elsewhere", "--weights and --model are both given"),
        ("--model mine.py:make --metric measure.py:full", "its name is taken"),
        ("--model mine.py:make --metric redness", "it is not FILE.py:NAME"),
        ("--model mine.py:make --metric measure.py:shut", "is not a plain function"),
        ("--model mine.py:make --metric measure.py:short", r"returned \[0.0\] for 2 pictures"),
        ("--model mine.py:make --method auto-dnp", "needs a captioner; give --captioner"),
    ],
)
def test_experiments_that_cannot_be_are_one_sentence(mine, laid, words, told):
    with pytest.raises(SettingsError, match=told):
        evaluation.main([*RUN.split(), *words.split()])

"""The benchmark runs, and measures what it says; no test depends on a time."""

import json
import warnings
from types import SimpleNamespace

import pytest
import torch

from conftest import MINI, slow_but
from dnp.errors import DnpError, SettingsError
from dnp.evaluation import benchmark, runner
from dnp.evaluation.speed import random_weights, rivals, table, throughput, turns
from dnp.evaluation.speed.rivals import Cell
from dnp.evaluation.speed.workers import Full, Worker, answer
from dnp.sd import config, device
from dnp.sd.load import describe
from experiments import world


def test_its_folders_are_of_the_published_sizes():
    kinds = {"text_encoder": config.TextConfig, "unet": config.UNetConfig, "vae": config.VAEConfig}
    for part, kind in kinds.items():
        assert kind.from_dict(random_weights.SIZES["sd1"][part]) == kind()
    xl = random_weights.SIZES["sdxl"]
    assert config.UNetConfig.from_dict(xl["unet"]) == config.SDXL_UNET
    assert config.VAEConfig.from_dict(xl["vae"]) == config.SDXL_VAE
    text_2 = config.TextConfig.from_dict(xl["text_encoder_2"])
    assert vars(text_2) | {"penultimate": True, "pooled_dim": 1280} == vars(config.SDXL_TEXT_2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny random weights of both families."""
    made = {size: tmp_path_factory.mktemp(size) for size in ("tiny", "tiny-xl")}
    for size, folder in made.items():
        random_weights.write_random_weights(folder, size)
    return made


@pytest.fixture(autouse=True)
def what_is_short_is_measured_a_few_times(monkeypatch):
    monkeypatch.setattr(rivals, "ENOUGH", 0.01)


def given(folders, *more):
    args = benchmark.parse(["--against", "diffusers", "--sizes", *folders, *more])
    args.folders, args.dtype = folders, ["float32"]
    return args


class InProcess(turns.Pool):
    """The sides without their processes, whose imports are dear."""

    def __getitem__(self, name):
        if name not in self.workers:
            self.workers[name] = Here(name, self.args)
        return self.workers[name]

    def drop(self, *names):
        for name in names:
            self.workers.pop(name, None)

    def __exit__(self, *_):
        self.drop(*self.names)


class Here(rivals.Rival):
    def send(self, *question):
        self.question = question

    def hear(self, seconds=None):
        return self(*self.question)


@pytest.mark.filterwarnings("ignore:.*torch_dtype:FutureWarning")
def test_the_table_and_its_files_at_tiny_sizes(folders, tmp_path, monkeypatch, capsys):
    """U-Net and run, both families, two batches."""
    monkeypatch.setattr(benchmark, "Pool", InProcess)
    monkeypatch.setattr(benchmark, "write_weights", lambda *_: pytest.fail("they are there"))
    monkeypatch.setattr(table, "rate", lambda *_: "1 GFLOP/s")
    words = "--batch 1 2 --rounds 1 --steps 1 --parts unet run --beside diffusers"
    args = given(folders, *words.split(), "--out", str(tmp_path / "out"))
    args.weights = "these"
    report = table.Report(args)
    benchmark.measure(benchmark.cells(args), args, turns.Budget(None, 8), report)
    told = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert len(told["rows"]) == 2**3 and not any(row["said"] for row in told["rows"])
    assert all(min(v) > 0 for row in told["rows"] for v in row["values"].values())
    page = (tmp_path / "out" / "speed.md").read_text()
    assert page == capsys.readouterr().out and "diffusers " in page.splitlines()[0]
    assert "| tiny-xl, float32, run, CFG, 1 steps, batch 2, latents 8 x 8 |" in page
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name[0] == "."] == []


@pytest.mark.filterwarnings("ignore:.*torch_dtype:FutureWarning")
@pytest.mark.parametrize("name", slow_but(["dnp"], ["dnp", "diffusers"]))
@pytest.mark.parametrize("size", slow_but(["tiny-xl"], ["tiny", "tiny-xl"]))
def test_a_run_needs_no_program_that_the_u_net_alone_did_not(folders, name, size):
    from torch._dynamo.utils import counters

    side = rivals.Rival(name, given(folders, "--compile", "eager"))
    counters.clear()
    side("unet", Cell("unet", size, "float32", True))
    assert counters["stats"]["unique_graphs"] == 1
    side("run", Cell("run", size, "float32", True), 2)
    assert counters["stats"]["unique_graphs"] == 1


class Fake:
    """A side whose answers are given."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []
        self.process = SimpleNamespace(is_alive=lambda: True)

    def send(self, what, cell, steps):
        self.asked.append((what, cell.batch, steps))

    def hear(self, seconds=None):
        told = self.answers(*self.asked[-1])
        if isinstance(told, Exception):
            raise told
        return told


def measured(cells, answers, words="", minutes=None):
    args = benchmark.parse(["--against", "diffusers", "--beside", "diffusers", *words.split()])
    pool = turns.Pool(args, args.contestants)
    pool.workers = {name: Fake(answers[name]) for name in args.contestants}
    least, budget = {}, turns.Budget(minutes, len(cells))
    rows = [turns.in_turn([cell], pool, args, budget, least)[0] for cell in cells]
    return rows, pool


def test_a_full_memory_and_a_failure_are_said_in_their_cells_and_the_rest_is_kept():
    full = lambda what, batch, steps: Full("full") if batch == 16 else 2.0
    fails = lambda *_: SettingsError("it fails | here; change it.")
    cells = [Cell("unet", "sd1", "float16", batch=batch) for batch in (16, 1)]
    rows, pool = measured(cells, {"dnp": lambda *_: 1.0, "diffusers": full})
    assert [row.shown("diffusers") for row in rows] == ["the memory is full", "2.00 / 2.00 s"]
    assert [row.shown("dnp") for row in rows] == ["1.00 / 1.00 s"] * 2
    assert [row.ratio("diffusers") for row in rows] == ["", "0.50"]
    assert len(pool["diffusers"].asked) == 1 + 4  # once in vain, then a warm turn and three
    (row,), _ = measured(cells[1:], {"dnp": fails, "diffusers": full})
    assert row.shown("dnp") == "it fails / here; change it." and row.ratio("diffusers") == ""


def test_what_does_not_fit_into_the_budget_is_left_out_and_said():
    cells = [Cell(part, "sd1", "float16") for part in ("unet", "run", "decode")]
    answers = {"dnp": lambda *_: 10.0, "diffusers": lambda *_: 20.0}
    rows, pool = measured(cells, answers, minutes=2)
    assert rows[1].shown("dnp").startswith("not measured: it takes 360 s, and 1")
    assert not any(what == "run" for what, *_ in pool["dnp"].asked)
    assert rows[2].shown("diffusers") == "20.00 / 20.00 s"
    rows, pool = measured(cells[:1], answers, minutes=1e-9)
    assert rows[0].shown("dnp") == "not measured: the budget of 1e-09 minutes is spent"
    assert pool["dnp"].asked == []


def test_weights_that_find_no_room_are_said_in_their_rows(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise SettingsError("there is no room; make some.")

    def ones(cells, pool, *_):
        return [turns.Row(cell, {name: [1.0] for name in pool.names}) for cell in cells]

    monkeypatch.setattr(benchmark, "write_weights", fails)
    monkeypatch.setattr(benchmark, "in_turn", ones)
    monkeypatch.setattr(benchmark, "header", lambda *_: [])
    words = "--sizes tiny sdxl --dtype float32 --parts unet --side 8".split()
    args = benchmark.parse(words)
    args.folders = {"tiny": tmp_path, "sdxl": tmp_path / "none"}
    planned = benchmark.cells(args)
    benchmark.measure(planned, args, turns.Budget(None, 2), table.Report(args))
    one, other = capsys.readouterr().out.splitlines()
    assert one.count("1.00 / 1.00 s") == 2 and other.count("there is no room; make some.") == 2


def test_they_take_turns_and_a_compiled_u_net_is_tried_by_all_at_once_first():
    order = []
    say = lambda name: lambda what, batch, steps: order.append((name, steps)) or 1.0
    cell = Cell("run", "sd1", "float16", compiled=True)
    measured([cell], {n: say(n) for n in ("dnp", "diffusers")}, "--rounds 2 --steps 9")
    one, two = ("dnp", 2), ("diffusers", 2)
    late = [("diffusers", 9), ("dnp", 9), ("dnp", 9), ("diffusers", 9)]
    assert order == [one, two, one, two, *late]


def test_a_gpu_is_asked_for_all_that_the_table_is_of():
    args = benchmark.parse("--against diffusers --device cuda --compile".split())
    args.dtype = ["float16", "bfloat16"]
    every = {cell for some in benchmark.cells(args) for cell in some}
    assert len(every) == 2**5 and args.budget < 8
    assert {c.part for c in every} == {"unet", "run"} and {c.batch for c in every} == {1, 16}
    assert {c.size for c in every} == {"sd1", "sdxl"} and {c.compiled for c in every} == {0, 1}


@pytest.mark.usefixtures("weights_are_opened_once")
def test_an_experiment_in_batches_makes_as_many_pictures(monkeypatch):
    monkeypatch.setattr(throughput, "STEPS", 2)
    monkeypatch.setattr("dnp.sd.find_weights", lambda path: world())
    shares, run = [], runner.run
    monkeypatch.setattr(runner, "run", lambda work, *of: (shares.append(of), run(work, *of)))
    lab = throughput.Laboratory("cpu", "wall")
    for batch in (1, 2):
        made, seconds = lab("experiment", "float32", batch, 2, 0, 1)
        assert made == 4 and seconds > 0
    assert lab("experiment", "float32", 2, 2, 1, 2)[0] == 2  # the second of two processes
    assert shares == [(0, 1), (0, 1), (1, 2)]


def test_pictures_an_hour_are_told_beside_two_processes_of_one_picture_each():
    found = {("float32", 1, 1): [50.0, 60.0], ("float32", 1, 2): [100.0]}
    found |= {("float32", 16, 1): [75.0], ("float32", 16, 2): [150.0]}
    *_, before, after = throughput.table(found, "wall", 32)
    assert before == "| float32, 1 | 60 | 100 | 0.60 | 1.00 |"
    assert after == "| float32, 16 | 75 | 150 | 0.75 | 1.50 |"


def test_memory_is_told_in_megabytes():
    row = turns.Row(Cell("memory", "sd1", "float32"), {"dnp": [2.0], "kept": [3000.0, 4000.0]})
    assert row.shown("kept") == "3,000 / 3,500 MB" and row.ratio("kept") == "0.00"


def test_who_is_measured_can_be_chosen():
    named = "--beside bare", "--against diffusers --beside kept", "--against diffusers", ""
    chosen = [benchmark.parse(words.split()).contestants for words in named]
    every = ["dnp", "diffusers", "kept", "channels_last"]
    assert chosen == [["bare", "dnp"], ["dnp", "kept"], every, ["bare", "dnp"]]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--side", "0"], "--side 0 is not possible"),
        (["--prompts", "500"], "--prompts 500 is not possible; give 1 to 276"),
        (["--batch", "1", "0"], "--batch .* is not possible"),
        (["--budget", "0"], "--budget 0.0 is not possible"),
        (["--dtype", "float16"], "choose --dtype float32"),
        (["--device", "nowhere"], "cannot be used here"),
        (["--parts", "unets"], "--help lists what is possible"),
        (["--parts", "agree", "--weights", str(MINI)], "add --against diffusers"),
        (["--weights", str(MINI), "--sizes", "tiny"], "leave one out"),
        (["--beside", "bare", "kept"], "are measured with --against diffusers; add it"),
    ],
)
def test_settings_that_are_not_possible(given, sentence):
    with pytest.raises(DnpError, match=sentence):
        benchmark.main(given)


def test_what_another_library_cannot_do_is_a_sentence():
    """What a worker's process answers, without the process."""
    questions, sent = iter([("unet", 1), ("unet", 2), ("unet", 3)]), []

    def recv():
        for question in questions:
            return question
        raise EOFError

    def ask(what, n):
        if n < 3:
            raise (ValueError("a\nb"), RuntimeError("CUDA out of memory. Tried"))[n - 1]

    with warnings.catch_warnings():
        answer("dnp", lambda: ask, (), SimpleNamespace(recv=recv, send=sent.append))
    assert str(sent[0]) == "dnp cannot do unet with these settings (a); change them."
    assert isinstance(sent[1], Full) and sent[2] is None


@pytest.mark.slow
def test_the_command_itself_and_a_contestant_that_dies_or_is_late(tmp_path, capsys):
    words = "--against diffusers --beside diffusers --side 8 --rounds 1 --dtype float32"
    words += f" --parts load memory agree --weights {MINI} --out {tmp_path}"
    ballast = torch.ones(200_000_000)  # the children's memory is not the parent's
    benchmark.main(words.split())
    del ballast
    rows = [[c.strip() for c in x.split("|")] for x in capsys.readouterr().out.splitlines()]
    told = {row[1]: row[2:] for row in rows if len(row) > 3}
    ours = told["mini, float32, memory, 2 steps, batch 1, latents 8 x 8"][0]
    assert 200 < float(ours.split("/")[0].replace(",", "")) < 750
    for part in ("text encoder", "U-Net", "VAE decode"):
        assert float(told[f"mini, float32, {part}"][0]) < 1e-5
    args = benchmark.parse(["--weights", str(MINI)])
    args.folders = {"mini": MINI}
    cell = Cell("load", "mini", "float32")
    with Worker("dnp", rivals.Rival, "dnp", args) as worker:
        assert 0 < worker("load", cell) < 60
        worker.send("unet", cell._replace(batch=10**6))
        with pytest.raises(DnpError, match="dnp's unet was stopped after 0 s"):
            worker.hear(0.01)
        with pytest.raises(DnpError, match="dnp ended with -9 while its unet was measured"):
            worker("unet", cell)


@pytest.mark.slow
def test_random_weights_are_of_the_full_size(tmp_path):
    random_weights.write_random_weights(tmp_path, "sd1")
    assert "859,520,964" in describe(tmp_path)
    pipe = rivals.open_diffusers(tmp_path, "cpu", "float32")
    assert sum(p.numel() for p in pipe.unet.parameters()) == 859_520_964


def test_a_budget_is_shared_by_what_is_measured_of_given_weights(monkeypatch):
    monkeypatch.setattr(device, "choose_device", lambda name: "cuda")
    monkeypatch.setattr(device, "choose_dtype", lambda name, device: None)
    given = []
    monkeypatch.setattr(benchmark, "measure", lambda *told: given.append(told))
    benchmark.main(["--weights", str(MINI), "--device", "cuda", "--budget", "4"])
    (planned, _, budget, _) = given[0]
    assert budget.share == 60 * 4 / len(planned)

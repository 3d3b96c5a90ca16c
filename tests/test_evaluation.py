"""Benchmarks, metrics with known values, and a runner that can be stopped and shared out."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import dnp
from conftest import MINI, ROOT
from dnp import prompting
from dnp.errors import SettingsError, WeightsError
from dnp.evaluation import benchmarks, methods, metrics, report, runner
from dnp.evaluation.__main__ import main
from dnp.evaluation.recogniser import load_recogniser

sys.path.append(str(ROOT / "weights" / "mini" / "training"))


@pytest.fixture(scope="module")
def model():
    return dnp.load(MINI)


@pytest.fixture(scope="module")
def judge():
    return load_recogniser(MINI / "training" / "recogniser.safetensors")


@pytest.fixture(scope="module")
def clip():
    return metrics.CLIPScorer(MINI / "clip", metrics.ONE_TEMPLATE)


# -------------------------------------------------------------------------------------- benchmarks


def test_attend_excite_has_the_published_form():
    prompts = benchmarks.attend_excite()
    counts = Counter(p.category for p in prompts)
    assert counts == {"animals": 66, "animals_objects": 144, "objects": 66}
    assert len({p.text for p in prompts}) == 276
    assert sum(" with a " in p.text for p in prompts) == 36
    for p in prompts:
        (c1, a), (c2, b) = benchmarks.subjects(p.text)
        assert a != b and p.text.startswith("a ") and " an " not in p.text
        assert (c1 is None) == (a in benchmarks.ANIMALS) or " with " in p.text
        assert c2 in (*benchmarks.COLOURS, None)
    asked = Counter(c for p in prompts for c, _ in benchmarks.subjects(p.text) if c)
    assert max(asked.values()) - min(asked.values()) <= 2  # every colour equally often


def test_the_world_of_the_miniature_and_the_benchmark_have_the_same_words():
    import world

    assert (world.ANIMALS, world.OBJECTS) == (benchmarks.ANIMALS, benchmarks.OBJECTS)
    assert world.COLOUR_NAMES == benchmarks.COLOURS


def test_people_and_hands_are_70_prompts_and_no_miniature_draws_them(model):
    prompts = benchmarks.people_and_hands()
    assert Counter(p.category for p in prompts) == {"people": 45, "hands": 25}
    assert len({p.text for p in prompts}) == 70
    with pytest.raises(SettingsError, match="no word of their world"):
        benchmarks.require_drawable(prompts, model.config.words)
    benchmarks.require_drawable(benchmarks.attend_excite(), model.config.words)
    benchmarks.require_drawable(prompts, ())  # weights that say nothing may be asked anything


def test_files_of_prompts_in_both_forms(tmp_path):
    lines, lists = tmp_path / "a.txt", tmp_path / "b.json"
    lines.write_text("a cat\n\n a dog \n")
    lists.write_text('{"animals": ["a cat and a dog"], "objects": ["a red car and a blue bow"]}')
    assert [p.text for p in benchmarks.read(lines)] == ["a cat", "a dog"]
    assert [p.category for p in benchmarks.read(lists)] == ["animals", "objects"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.json", "[" * 100_000),
        ("a.json", '{"a":' * 100_000),
        ("a.json", "[1]"),
        ("a.json", '{"a": [1]}'),
        ("a.txt", ""),
        ("b.txt", None),
    ],
)
def test_files_that_hold_no_prompts_are_refused(tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError, match="on each line"):
        benchmarks.read(tmp_path / name)


def test_a_pipe_as_a_benchmark_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "prompts.txt")
    with pytest.raises(SettingsError, match="no regular file"):
        benchmarks.read(tmp_path / "prompts.txt")


def test_choosing_prompts_spreads_over_each_category():
    chosen = benchmarks.choose(benchmarks.attend_excite(), 5)
    assert Counter(p.category for p in chosen) == dict.fromkeys(
        ("animals", "animals_objects", "objects"), 5
    )
    assert len(benchmarks.choose(benchmarks.attend_excite(), None)) == 276


def test_halves_of_a_prompt():
    assert benchmarks.parts("a cat and a red car") == ["a cat", "a red car"]
    assert benchmarks.parts("a cat with a crown") == ["a cat", "a crown"]
    with pytest.raises(SettingsError, match="no minimum-object score"):
        benchmarks.parts("a cat")


# ----------------------------------------------------------------------------------------- metrics


def test_templates_are_80_and_articles_are_mended_at_word_boundaries():
    assert len(metrics.TEMPLATES) == len(set(metrics.TEMPLATES)) == 80
    assert metrics.fill("a photo of a {}.", "a cat") == "a photo of a cat."
    assert metrics.fill("a photo of the {}.", "a cat") == "a photo of a cat."
    assert metrics.fill("a photo of my {}.", "a cat") == "a photo of my a cat."
    assert metrics.fill("a sketch of {}.", "panda and a apple") == "a sketch of panda and a apple."


def test_cosines_are_those_of_transformers(clip):
    from transformers import CLIPModel, CLIPProcessor

    model, processor = (c.from_pretrained(MINI / "clip") for c in (CLIPModel, CLIPProcessor))
    rng = np.random.default_rng(0)
    shapes = [(64, 64, 3), (96, 64, 3), (64, 130, 3)]
    images = [Image.fromarray(rng.integers(0, 255, s, dtype=np.uint8)) for s in shapes]
    texts = ["a cat", "a red car and a blue bowl", "an unheard-of thing"]
    batch = processor(text=texts, images=images[:1], return_tensors="pt", padding=True)
    with torch.inference_mode():
        cosines = model(**batch).logits_per_image / model.logit_scale.exp()
    assert_close(clip.images(images[:1]) @ clip.texts(texts).T, cosines, atol=1e-5, rtol=0)
    assert clip.images(images).shape == (3, 128)  # other shapes are resized and cut


def test_templates_are_averaged_as_unit_vectors(clip):
    many = metrics.CLIPScorer(MINI / "clip", ["{}", "a picture of {}"])
    rows = torch.cat([clip.texts(["a cat"]), clip.texts(["a picture of a cat"])])
    assert_close(many.texts(["a cat"])[0], torch.nn.functional.normalize(rows.mean(0), dim=0))


def test_clip_metrics_follow_their_recipes(clip):
    images = [Image.new("RGB", (64, 64), c) for c in ("red", "white")]
    prompt = "a cat and a red car"
    out = runner.clip_metrics(clip, images, prompt)
    u = clip.images(images)
    assert_close(torch.tensor(out["full"]), (u @ clip.texts([prompt]).T)[:, 0], atol=1e-5, rtol=0)
    halves = (u @ clip.texts(["a cat", "a red car"]).T).min(1).values
    assert_close(torch.tensor(out["minimum"]), halves, atol=1e-5, rtol=0)
    depicts = clip.texts([f"A photo depicts {prompt}"])  # one template: the same as no template
    assert_close(
        torch.tensor(out["clipscore"]), 2.5 * (u @ depicts.T)[:, 0].clamp(min=0), atol=1e-5, rtol=0
    )
    assert out["diversity"] == pytest.approx(1 - (u[0] @ u[1]).item(), abs=1e-5)
    one = runner.clip_metrics(clip, images[:1], "a cat")
    assert "minimum" not in one and one["diversity"] is None


def test_clip_score_is_clipped_and_scaled():
    assert metrics.clip_score([0.3, -0.2]) == [0.75, 0.0]


def test_inception_score_has_its_closed_forms():
    assert metrics.inception_score(torch.eye(7)) == pytest.approx(7)  # sure and diverse
    assert metrics.inception_score(torch.full((5, 4), 0.25)) == pytest.approx(1)  # unsure
    assert metrics.inception_score(torch.eye(4)[[2, 2, 2]]) == pytest.approx(1)  # all alike
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    marginal = [0.55, 0.45]
    kl = [sum(a * math.log(a / m) for a, m in zip(row, marginal)) for row in p.tolist()]
    assert metrics.inception_score(p) == pytest.approx(math.exp(sum(kl) / 2))
    with pytest.raises(ValueError, match="sum to 1"):
        metrics.inception_score(torch.ones(2, 2))


def test_diversity_is_the_mean_distance_of_pairs():
    assert metrics.diversity(torch.eye(3)) == pytest.approx(1)
    assert metrics.diversity(torch.eye(3)[[0, 0]]) == pytest.approx(0)
    assert metrics.diversity(torch.tensor([[1.0, 0], [0, 1], [0, 1]])) == pytest.approx(2 / 3)
    assert math.isnan(metrics.diversity(torch.eye(3)[:1]))


def test_the_interval_of_the_inception_score_is_about_the_score():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(6) / 3, (40, 3))
    records = [{"classes": rows.tolist()} for rows in p]
    score, low, high = report.inception_interval(records)
    assert score == pytest.approx(metrics.inception_score(torch.tensor(p.reshape(-1, 6))))
    assert low < score < high and 0.05 < high - low < 2


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        groups = rng.normal(rng.normal(0, 1, (40, 1)), 1, (40, 3))  # values of a prompt are alike
        mean, low, high = metrics.bootstrap(groups, seed=trial, draws=400)
        assert mean == pytest.approx(groups.mean())
        covered += low < 0 < high
    assert 0.89 < covered / 200 < 0.99
    assert metrics.bootstrap([[1.0], [1.0, 1.0]]) == (1, 1, 1)


def test_paired_differences_use_what_both_have():
    a = {("p", 0): 3.0, ("p", 1): 4.0, ("q", 0): 9.0}
    b = {("p", 0): 1.0, ("p", 1): 1.0}
    mean, low, high = metrics.paired(a, b, group=lambda key: key[0])
    assert mean == low == high == 2.5


def test_the_recogniser_knows_scenes_it_never_saw_and_no_mush(judge):
    import world

    images, _, scenes = world.dataset(150, 4321, split="held-out", processes=1)
    found = judge.find([Image.fromarray(i) for i in images])
    same = [{t.word for t in s.things} == {f.word for f in fs} for s, fs in zip(scenes, found)]
    assert np.mean(same) > 0.94
    hues = [
        (t.colour, f.colour)
        for s, fs in zip(scenes, found)
        for t in s.things
        for f in fs
        if t.word == f.word and t.colour
    ]
    assert np.mean([a == b for a, b in hues]) > 0.97
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(40)]
    flat = [
        Image.new("RGB", (64, 64), tuple(int(v) for v in c)) for c in rng.integers(0, 255, (40, 3))
    ]
    assert np.mean([bool(f) for f in judge.find(noise + flat)]) < 0.1


def test_presence_asks_for_things_and_for_their_colours(judge):
    import world

    boxes = [(0.05, 0.3, 0.45, 0.7), (0.55, 0.3, 0.95, 0.7)]
    things = [("cat", None), ("car", "red")]
    drawn = [
        world.Thing(w, c, world.drawings("noto")[w][0], box) for (w, c), box in zip(things, boxes)
    ]
    picture = Image.fromarray(world.render(world.Scene(tuple(drawn), "plain", "noto", 3)))
    ask = lambda text: metrics.presence(judge, [picture], text)[0]
    assert ask("a cat and a red car") == {"things": True, "colours": True, "asked": 2, "shown": 2}
    assert ask("a cat and a blue car") == {"things": True, "colours": False, "asked": 2, "shown": 2}
    assert ask("a cat and a dog") == {"things": False, "colours": False, "asked": 1, "shown": 2}
    assert metrics.presence(judge, [picture], "snow") == []  # asks for no thing: nothing to judge


def test_a_folder_that_is_no_clip_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no CLIP model"):
        metrics.CLIPScorer(tmp_path, metrics.ONE_TEMPLATE)
    for file in (MINI / "clip").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"visual_projection.*would be random"):
        metrics.CLIPScorer(tmp_path, metrics.ONE_TEMPLATE)
    (tmp_path / "processor_config.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be read as JSON"):
        metrics.CLIPScorer(tmp_path, metrics.ONE_TEMPLATE)


def test_a_file_that_is_no_recogniser_is_refused(tmp_path):
    for path in (tmp_path / "none", MINI / "vae" / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(WeightsError, match="no recogniser"):
            load_recogniser(path)


# ----------------------------------------------------------------------------------------- methods


def test_methods_are_parsed_and_unknown_ones_refused():
    m = methods.parse("auto-dnp:negative_scale=1,dns_images=2")
    assert (m.name, dict(m.options)) == ("auto-dnp", {"negative_scale": 1.0, "dns_images": 2})
    for wrong, sentence in [
        ("dnq", "choose cfg"), ("cfg:stepz=3", "is no option"), ("answer:K=two", "is no option"),
        ("np", "choose cfg"),
    ]:  # fmt: skip
        with pytest.raises(SettingsError, match=sentence):
            methods.parse(wrong)


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ("semantic", "nobody has written"),
        ("random", "give more prompts"),
        ("universal:K=1", "belongs to method answer"),
        ("cfg:eta=3", "choose 0 to 1"),
        ("cfg:steps=0", "choose 1 to 1000"),
        ("cnp:K=2", "no option of cnp"),
        ("cnp:s=nan", "not finite"),
        ("unconditional:s=2", "no option of unconditional"),
        ("negative-alone:negative_scale=1", "no option of negative-alone"),
        ("answer:tensor=x", "last, next"),
        ("auto-dnp:dns_images=0", "choose 1 to 100"),
    ],
)
def test_a_method_that_cannot_run_is_refused_before_anything_is_made(model, label, sentence):
    with pytest.raises(SettingsError, match=sentence):
        methods.check(methods.parse(label), None, 3, model, ["a cat and a red car"])


def test_every_method_that_can_run_passes_the_check(model):
    prompts = list(methods.SEMANTIC)
    for name in methods.METHODS:
        methods.check(methods.parse(name), 2.0, 3, model, prompts)
    benchmarks.require_drawable(
        [benchmarks.Prompt(n, "n") for n in methods.SEMANTIC.values()], model.config.words
    )
    assert set(prompts) <= {p.text for p in benchmarks.attend_excite()}


def make(model, label, prompt="a cat and a red car", steps=3, captioner=None, others=()):
    captioner = captioner or (lambda images: ["a green bowl"] * len(images))
    method = methods.parse(label)
    (made,) = methods.sample(model, method, prompt, 1, None, steps, captioner, others)
    return made


def test_a_unit_makes_the_pictures_of_its_seeds(model):
    captioner = lambda images: [f"a {w}" for w in ("dog", "bear", "lion")[: len(images)]]
    for label in ("cfg", "auto-dnp", "random", "negative-alone", "cnp"):
        method, others = methods.parse(label), ["a lion", "a frog"]
        made = methods.sample(model, method, "a cat", 3, None, 2, captioner, others)
        assert len({m.image.tobytes() for m in made}) == 3
        if label in ("auto-dnp", "negative-alone"):
            assert [m.negative for m in made] == ["a dog", "a bear", "a lion"]


def test_baselines_are_the_rules_they_name(model):
    p = "a cat and a red car"
    scales = model.config.scales
    same = lambda made, *a, **k: (
        made.image.tobytes() == dnp.generate(model, *a, steps=3, **k).images[0].tobytes()
    )
    assert same(make(model, "unconditional"), "", "cfg", s=1.0)
    assert same(make(model, "universal"), p, "np", methods.UNIVERSAL)
    assert same(make(model, "universal2"), p, "np2", methods.UNIVERSAL)
    assert same(make(model, "cfg:s=2"), p, "cfg", s=2.0)
    alone = make(model, "negative-alone")
    assert alone.negative == "a green bowl" and alone.nfe == 12
    assert same(alone, "a green bowl", "dns", s=scales["dns"])
    assert same(make(model, "answer:K=1"), p, "answer", K=1)
    made = make(model, "random", others=["a dog and a red car", "a lion", p])
    assert made.negative == "a lion" and same(made, p, "np", "a lion")
    hand = make(model, "semantic", prompt="a cat and a dog")
    assert hand.negative == methods.SEMANTIC["a cat and a dog"]


def test_random_negatives_depend_on_prompt_and_seed_alone():
    others = [p.text for p in benchmarks.attend_excite()]
    draw = lambda seed: methods.random_negative("a cat and a dog", seed, others)
    assert draw(3) == draw(3) and len({draw(s) for s in range(10)}) > 5
    assert not any({"cat", "dog"} & set(draw(s).split()) for s in range(10))


@pytest.mark.parametrize("steps", [2, 3])
def test_cnp_runs_a_whole_chain_at_every_step(model, steps):
    captions = []
    captioner = lambda images: (captions.append(1), ["a dog"])[1]
    made = make(model, "cnp", steps=steps, captioner=captioner)
    assert len(captions) == steps and made.negative == "a dog"
    assert made.nfe == steps**2 + 2 * steps
    same_words = dnp.generate(
        model, "a cat and a red car", "np", "a dog", steps=steps, s=model.config.scales["auto-dnp"]
    )  # with one caption throughout it is Eq. (4)
    assert_close(
        np.asarray(made.image, dtype=float), np.asarray(same_words.images[0], dtype=float),
        atol=2, rtol=0,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ runner

GRID = (
    "--method",
    "cfg",
    "auto-dnp",
    "answer:K=1",
    "--per-category",
    1,
    "--seeds",
    2,
    "--steps",
    2,
)
TABLES = ("tables.md", "evaluations.png")


def evaluate(out, *words, **environment):
    before = {k: os.environ.pop(k, None) for k in ("RANK", "WORLD_SIZE")}
    os.environ.update(environment)
    try:
        main([str(w) for w in (*GRID, *words, "--out", out)])
    finally:
        for k, v in before.items():
            os.environ.pop(k, None)
            if v is not None:
                os.environ[k] = v


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    evaluate(folder)
    return folder


def tables(folder):
    """Every file that the tables are: they must be the same to the byte."""
    sheets = [p.name for kind in ("wins", "losses") for p in folder.glob(f"{kind}-*.png")]
    assert len(sheets) >= 2
    return {name: (folder / name).read_bytes() for name in (*TABLES, *sheets)}


def test_a_run_holds_records_pictures_and_tables(finished):
    rows = runner.records(finished)
    assert [r["unit"] for r in rows] == list(range(9))
    assert {len(r["full"]) for r in rows} == {2} and rows[0]["nfe"] == [4, 4]
    for r in rows:
        for name in r["images"]:
            assert Image.open(finished / "images" / name).size == (64, 64)
    text = (finished / "tables.md").read_text()
    scales = dnp.load(MINI).config.scales
    assert f"| cfg, s = {scales['cfg']:g} |" in text and "Differences to cfg" in text
    assert "0.242 / 0.335 / 13.17" in text and "| - |" in text  # the paper's, where it has some
    assert "things and colours, %" in text and "animals_objects" in text and "IS" in text
    assert "CLIPScore" in text and "3 prompts x 2 seeds" in text
    seconds = runner.records(finished, "times")
    assert len(seconds) == 9 and all(t["seconds"] > 0 for t in seconds)
    assert "answer:K=1" in (finished / "times.md").read_text()


def test_a_run_cut_in_the_middle_of_a_line_goes_on_to_the_same_tables(finished, tmp_path):
    evaluate(tmp_path)
    path = tmp_path / "records-0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:50])
    times = tmp_path / "times-0.jsonl"
    times.write_bytes(times.read_bytes()[:-3])
    for name in TABLES:
        (tmp_path / name).unlink()
    evaluate(tmp_path)
    assert path.read_bytes().count(b"\n") == 9
    assert tables(tmp_path) == tables(finished)


def test_shares_make_the_tables_of_one_process(finished, tmp_path):
    evaluate(tmp_path, RANK="1", WORLD_SIZE="2")
    assert not (tmp_path / "tables.md").exists() and len(runner.records(tmp_path)) == 4
    evaluate(tmp_path, RANK="0", WORLD_SIZE="3")  # a run may go on with another number of them
    assert not (tmp_path / "tables.md").exists() and len(runner.records(tmp_path)) == 6
    evaluate(tmp_path)
    assert tables(tmp_path) == tables(finished)


@pytest.mark.slow
def test_two_processes_at_once_make_the_tables_of_one(finished, tmp_path):
    command = [sys.executable, "-m", "dnp.evaluation", *map(str, GRID), "--out", str(tmp_path)]
    both = [
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
        )
        for rank in range(2)
    ]
    assert [p.wait(timeout=300) for p in both] == [0, 0]
    assert tables(tmp_path) == tables(finished)


@pytest.mark.slow
def test_kill_9_at_any_moment_and_go_on(finished, tmp_path):
    command = [sys.executable, "-m", "dnp.evaluation", *map(str, GRID), "--out", str(tmp_path)]
    rng = np.random.default_rng(0)
    for _ in range(20):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=7 + 3 * rng.random())
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    else:
        process = subprocess.run(command, cwd=ROOT, timeout=300, stderr=subprocess.DEVNULL)
    assert process.returncode == 0 and tables(tmp_path) == tables(finished)


def test_a_folder_of_another_run_is_refused(finished):
    with pytest.raises(runner.RunError, match=r"holds another run.*steps"):
        evaluate(finished, "--steps", 3)
    with pytest.raises(runner.RunError, match=r"holds another run.*scales"):
        evaluate(finished, "--scale", 3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--benchmark", "hh"], "no word of their world"),
        (["--benchmark", "nothing.txt"], "no list of prompts"),
        (["--method", "dnq"], "choose cfg"),
        (["--seeds", "0"], "choose 1 to 1000"),
        (["--captioner", "nowhere"], "no captioner is there"),
        (["--per-category", "0"], "choose 1 or more"),
        (["--method", "cfg", "cfg"], "named twice"),
        (["--scale", "2", "2"], "named twice"),
        (["--scale", "2", "--method", "cfg:s=3"], "has a scale of its own"),
        (["--baseline", "np"], "is no --method"),
        (["--device", "nowhere"], "cannot be used here"),
        (["--recogniser", "nowhere"], "no recogniser"),
        (["--clip", "nowhere"], "no CLIP model"),
        (["--method", "semantic"], "nobody has written"),
        (["--what"], "--help"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, words, sentence):
    with pytest.raises(dnp.DnpError, match=sentence):
        evaluate(tmp_path / "x", *words)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("share", [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(SettingsError, match="RANK from 0"):
        runner.share({"RANK": share[0], "WORLD_SIZE": share[1]})


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(runner.RunError, match="type the same command to go on"):
        evaluate(tmp_path / "file")


def test_a_full_disk_leaves_what_was_written_valid(finished, tmp_path, monkeypatch):
    calls, append = [], runner._append

    def full(path, row):
        calls.append(path)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        append(path, row)

    monkeypatch.setattr(runner, "_append", full)
    with pytest.raises(runner.RunError, match="No space left on device"):
        evaluate(tmp_path)
    assert len(runner.records(tmp_path)) == 2
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.partial"))
    evaluate(tmp_path)
    assert tables(tmp_path) == tables(finished)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def change(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


DAMAGES = {
    "a line cut in the middle": (
        lambda f: change(f / "records-0.jsonl", b'{"unit": 1,', b'{"un\n{"unit": 1,'),
        r"records-0.jsonl: line 2 is damaged; delete that line",
    ),
    "a line that is JSON and no record": (
        lambda f: change(f / "records-0.jsonl", b'{"unit": 1,', b'{}\n{"unit": 1,'),
        r"line 2 is damaged",
    ),
    "a line of brackets": (
        lambda f: change(f / "records-0.jsonl", b'{"unit": 1,', b"[" * 100_000 + b'\n{"unit": 1,'),
        r"line 2 is damaged",
    ),
    "a number that was changed": (
        lambda f: change(f / "records-0.jsonl", b'"nfe": [4,', b'"nfe": [3,'),
        r"line 1 is damaged",
    ),
    "a unit out of range": (
        lambda f: change(f / "records-0.jsonl", b'{"unit": 1,', b'{"unit": 99,'),
        r"line 2 is damaged",
    ),
    "a true record of another run": (
        lambda f: runner._append(f / "records-1.jsonl", {"unit": 99, "method": "cfg"}),
        r"unit 99 of its records is none of this run",
    ),
    "a record of another method": (
        lambda f: runner._append(
            f / "records-1.jsonl",
            {**runner.records(f)[0], "unit": 8, "again": 1},
        ),
        r"unit 8 of its records is none of this run",
    ),
    "{} in times": (
        lambda f: (f / "times-0.jsonl").write_bytes(b"{}\n"),
        r"times-0.jsonl: line 1 is damaged",
    ),
    "run.json a list": (lambda f: (f / "run.json").write_text("[]"), r"run.json: damaged"),
    "run.json cut": (lambda f: (f / "run.json").write_text('{"a'), r"run.json: damaged"),
    "run.json of brackets": (
        lambda f: (f / "run.json").write_text("[" * 100_000),
        r"run.json: damaged",
    ),
    "run.json with more in it": (
        lambda f: change(f / "run.json", b"{", b'{"more": 1,'),
        r"holds another run",
    ),
    "run.json deleted": (
        lambda f: (f / "run.json").unlink(),
        r"records without their run.json",
    ),
    "a pipe for records": (
        lambda f: os.mkfifo(f / "records-7.jsonl"),
        r"records-7.jsonl: a pipe or device",
    ),
    "a pipe for the own records": (
        lambda f: ((f / "records-0.jsonl").unlink(), os.mkfifo(f / "records-0.jsonl")),
        r"records-0.jsonl: a pipe or device",
    ),
    "a pipe for times": (
        lambda f: os.mkfifo(f / "times-1.jsonl"),
        r"times-1.jsonl: a pipe or device",
    ),
    "a pipe for run.json": (
        lambda f: ((f / "run.json").unlink(), os.mkfifo(f / "run.json")),
        r"run.json: a pipe or device",
    ),
    "a folder for records": (
        lambda f: (f / "records-7.jsonl").mkdir(),
        r"cannot be written \(Is a directory\)",
    ),
    "a file for images": (
        lambda f: (shutil.rmtree(f / "images"), (f / "images").write_text("")),
        r"cannot be written \(File exists\)",
    ),
    "a folder for tables.md": (
        lambda f: ((f / "tables.md").unlink(), (f / "tables.md").mkdir()),
        r"cannot be written \(Is a directory\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_folder_is_one_sentence(copy, damage):
    hurt, sentence = DAMAGES[damage]
    hurt(copy)
    with pytest.raises(runner.RunError, match=sentence):
        evaluate(copy)
    assert not list(copy.rglob("*.partial"))


LOSSES = {
    "missing": lambda f: f.unlink(),
    "cut": lambda f: f.write_bytes(f.read_bytes()[:-50]),
    "another": lambda f: shutil.copy(f.with_name("00000-0.png"), f),
    "empty": lambda f: f.write_bytes(b""),
    "a pipe": lambda f: (f.unlink(), os.mkfifo(f)),
    "images gone": lambda f: shutil.rmtree(f.parent),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_second_run_heals_a_lost_picture(finished, copy, loss, monkeypatch):
    LOSSES[loss](copy / "images" / "00004-1.png")
    made, unit_of = [], runner.unit_of
    monkeypatch.setattr(runner, "unit_of", lambda i, *a: (made.append(i), unit_of(i, *a))[1])
    evaluate(copy)
    assert made == (list(range(9)) if loss == "images gone" else [4])
    assert tables(copy) == tables(finished)
    for path in (finished / "images").iterdir():
        assert path.read_bytes() == (copy / "images" / path.name).read_bytes()
    made.clear()
    evaluate(copy)
    assert made == []


def test_of_two_records_of_a_unit_the_one_of_the_pictures_counts(copy):
    """Another processor may have other last digits: what heals a picture replaces its record."""
    old = runner.records(copy)[4]
    healed = {**old, "again": 1, "full": [0.5, 0.5]}
    path = copy / "records-0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    runner._append(path, healed)  # and the older one stands in a file that is read later
    (copy / "records-1.jsonl").write_bytes(b"".join(lines))
    assert runner.records(copy)[4]["full"] == [0.5, 0.5]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("at", ["tables.md", "evaluations.png", "wins", "times.md"])
def test_a_disk_that_takes_no_report_is_one_sentence_and_the_next_run_writes_it(
    finished, copy, monkeypatch, number, at
):
    (copy / "tables.md").unlink()
    replace = os.replace

    def full(source, target, **kwargs):
        if os.path.basename(target).startswith(at):
            raise OSError(number, os.strerror(number))
        replace(source, target, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(runner.RunError, match=os.strerror(number) + ".*same command to go on"):
            evaluate(copy)
    assert not list(copy.rglob("*.partial"))
    evaluate(copy)
    assert tables(copy) == tables(finished)


def test_pictures_that_overflow_are_recorded_and_do_not_stop_the_run(tmp_path):
    words = ("--method", "cfg:s=1e25", "--per-category", 1, "--seeds", 1, "--steps", 10)
    evaluate(tmp_path, *words)
    rows = runner.records(tmp_path)
    assert len(rows) == 3 and all(r["failed"] for r in rows)
    assert "3 prompts overflowed" in (tmp_path / "tables.md").read_text()


def test_empty_and_cut_captions_are_counted(tmp_path, monkeypatch):
    said = lambda images: ["" if i % 2 else "a cat " * 40 for i in range(len(images))]
    monkeypatch.setattr(prompting, "load_captioner", lambda *a: said)
    evaluate(tmp_path, "--method", "auto-dnp")
    text = (tmp_path / "tables.md").read_text()
    assert "3 empty captions (phi)" in text and "3 captions cut" in text


def test_differences_are_taken_at_the_same_scale(tmp_path):
    evaluate(tmp_path, "--method", "cfg", "answer:K=1", "--scale", 1, 2, "--baseline", "cfg")
    text = (tmp_path / "tables.md").read_text()
    assert "answer:K=1, s = 2" in text and (tmp_path / "scales.png").exists()
    rows = runner.records(tmp_path)
    of = lambda m, s: {(r["prompt"], i): v for r in rows if (r["method"], r["scale"]) == (m, s)
                       for i, v in enumerate(r["full"])}  # fmt: skip
    mean, _, _ = metrics.paired(of("answer:K=1", 2.0), of("cfg", 2.0), group=lambda k: k[0])
    table = text[text.index("Differences to cfg") :]
    line = next(x for x in table.splitlines() if x.startswith("| answer:K=1, s = 2 "))
    assert f"{mean:+.3f} [" in line


def test_a_plot_has_its_lines_and_legend():
    assert report.ticks(1, 7.5).tolist() == [0, 2, 4, 6, 8]
    assert report.ticks(26.7, 97).tolist() == [20, 40, 60, 80, 100]
    assert report.ticks(0.5, 0.5) == pytest.approx([0.4, 0.6]) and len(report.ticks(-3, 40)) < 11
    image = report.plot({"a": [(1, 2, 1, 3), (2, 3, 2, 4)], "b": [(1, 1, 0, 2)]}, "x", "y")
    colours = {c for _, c in image.getcolors(100_000)}
    assert image.size == (760, 460)
    assert {(0x1B, 0x6C, 0xA8), (0xD1, 0x49, 0x5B)} <= colours


def test_the_command_says_its_sentence_and_exits_2():
    done = subprocess.run(
        [sys.executable, "-m", "dnp.evaluation", "--method", "dnq"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: method 'dnq' is unknown")
    assert "Traceback" not in done.stderr


INTERRUPTS = """import os, signal, sys
os.kill(os.getpid(), signal.SIGINT)
raise SystemExit("still here")
"""


@pytest.mark.parametrize("module", ["torch", "numpy", "dnp/sd/model.py", "transformers"])
def test_ctrl_c_while_importing_is_one_sentence(tmp_path, module):
    """A Ctrl-C comes from inside of each import, instead of at a time that a machine must keep."""
    shutil.copytree(ROOT / "dnp", tmp_path / "dnp")
    path = tmp_path / module
    if path.suffix != ".py":
        path.mkdir()
        path /= "__init__.py"
    path.write_text(INTERRUPTS)
    done = subprocess.run(
        [sys.executable, "-m", "dnp.evaluation", "--weights", MINI, "--out", tmp_path / "out"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted; type the same command to go on.\n"


def test_nothing_heavy_is_imported_before_ctrl_c_is_met():
    told = "import sys, dnp.evaluation.__main__; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "False"


def test_records_are_json_lines_that_other_tools_read(finished):
    rows = [json.loads(line) for line in (finished / "records-0.jsonl").open()]
    assert len(rows) == 9 and {"prompt", "method", "nfe", "sha256"} <= rows[0].keys()

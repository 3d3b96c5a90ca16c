"""Metrics with known values, and the recogniser that judges pictures."""

import hashlib
import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from conftest import MINI, ROOT
from dnp.errors import WeightsError
from dnp.evaluation import measure, metrics, tables
from dnp.sd.recogniser import Found, load_recogniser

sys.path.append(str(ROOT / "weights" / "mini" / "training"))


@pytest.fixture(scope="module")
def judge():
    return load_recogniser(MINI / "training" / "recogniser.safetensors")


@pytest.fixture(scope="module")
def clip():
    return metrics.CLIPScorer(MINI / "clip", metrics.ONE_TEMPLATE)


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
    out = measure.clip_metrics(clip, images, prompt)
    u = clip.images(images)
    assert_close(torch.tensor(out["full"]), (u @ clip.texts([prompt]).T)[:, 0], atol=1e-5, rtol=0)
    halves = (u @ clip.texts(["a cat", "a red car"]).T).min(1).values
    assert_close(torch.tensor(out["minimum"]), halves, atol=1e-5, rtol=0)
    depicts = clip.texts([f"A photo depicts {prompt}"])  # one template: the same as no template
    assert_close(
        torch.tensor(out["clipscore"]), 2.5 * (u @ depicts.T)[:, 0].clamp(min=0), atol=1e-5, rtol=0
    )
    assert out["diversity"] == pytest.approx(1 - (u[0] @ u[1]).item(), abs=1e-5)
    one = measure.clip_metrics(clip, images[:1], "a cat")
    assert "minimum" not in one and one["diversity"] is None


def test_clip_score_is_clipped_and_scaled():
    assert metrics.clip_score([0.3, -0.2]) == [0.75, 0.0]


def inception_score(p):
    return tables.inception_interval([{"classes": torch.as_tensor(p).tolist()}])[0]


def test_inception_score_has_its_closed_forms():
    assert inception_score(torch.eye(7)) == pytest.approx(7)  # sure and diverse
    assert inception_score(torch.full((5, 4), 0.25)) == pytest.approx(1)  # unsure
    assert inception_score(torch.eye(4)[[2, 2, 2]]) == pytest.approx(1)  # all alike
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    marginal = [0.55, 0.45]
    kl = [sum(a * math.log(a / m) for a, m in zip(row, marginal)) for row in p.tolist()]
    assert inception_score(p) == pytest.approx(math.exp(sum(kl) / 2))


def test_diversity_is_the_mean_distance_of_pairs():
    assert metrics.diversity(torch.eye(3)) == pytest.approx(1)
    assert metrics.diversity(torch.eye(3)[[0, 0]]) == pytest.approx(0)
    assert metrics.diversity(torch.tensor([[1.0, 0], [0, 1], [0, 1]])) == pytest.approx(2 / 3)
    assert math.isnan(metrics.diversity(torch.eye(3)[:1]))


def test_the_interval_of_the_inception_score_is_about_the_score():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(6) / 3, (40, 3))
    records = [{"classes": rows.tolist()} for rows in p]
    score, low, high = tables.inception_interval(records)
    assert score == pytest.approx(inception_score(p.reshape(-1, 6)))
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


def test_the_recogniser_knows_scenes_it_never_saw_and_no_mush(judge):
    import world

    images, _, scenes = world.dataset(150, 4321, split="held-out", processes=1)
    some = [i for i, scene in enumerate(scenes) if len(scene.things) < 3]  # never trained on three
    scenes = [scenes[i] for i in some]
    found = judge.find([Image.fromarray(images[i]) for i in some])
    same = [{t.word for t in s.things} == {f.word for f in fs} for s, fs in zip(scenes, found)]
    assert len(same) > 100 and np.mean(same) > 0.97
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
    seen = judge.find([picture])
    ask = lambda text: metrics.presence(seen, text)[0]
    same = {"things": True, "asked": 2, "shown": 2}
    assert ask("a cat and a red car") == {**same, "colours": True, "right": 2}
    assert ask("a cat and a blue car") == {**same, "colours": False, "right": 1}
    one = {"things": False, "colours": False, "asked": 1, "right": 1, "shown": 2}
    assert ask("a cat and a dog") == one
    assert metrics.presence(seen, "snow") == []  # asks for no thing: nothing to judge


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


def test_a_thing_is_there_from_one_half_on_or_from_what_is_asked_for(judge, monkeypatch):
    cat, count = judge.things.index("cat"), len(judge.things)
    there = torch.zeros(1, count).index_fill(1, torch.tensor([cat]), 0.6)
    both = there, torch.ones(1, count, len(judge.colours))
    monkeypatch.setattr(judge, "probabilities", lambda images: both)
    assert [[f.word for f in judge.find([None], *x)[0]] for x in ((), (0.8,))] == [["cat"], []]
    row = measure.score(measure.Instruments(None, None, judge), [None], "a cat")
    assert row["things"] == [True] and row["classes"][0][cat] == 1


def test_presence_counts_how_many_of_three_things_are_right():
    pictures = [
        [("cat", "gray"), ("car", "red"), ("chair", "blue")],
        [("cat", "gray"), ("car", "blue"), ("chair", "red")],  # the colours swapped
        [("cat", "gray"), ("car", "red")],
        [("dog", "gray")],
    ]
    seen = [[Found(w, c, 0.9) for w, c in found] for found in pictures]
    rows = metrics.presence(seen, "a cat, a red car and a blue chair")
    assert [r["right"] for r in rows] == [3, 1, 2, 0]
    assert [r["asked"] for r in rows] == [3, 3, 2, 0]
    assert [r["colours"] for r in rows] == [True, False, False, False]
    assert [r["things"] for r in rows] == [True, True, False, False]
    assert [r["shown"] for r in rows] == [3, 3, 2, 1]


def test_the_column_of_right_things_stands_only_beside_three_things():
    row = {"prompt": "a cat and a red car", "right": [1, 2]}
    three = {"prompt": "a cat, a red car and a bow", "right": [1, 2]}
    assert tables.shown([tables.Row("cfg", None, [row])]) == []
    assert tables.shown([tables.Row("cfg", None, [row, three])]) == ["right"]


def of_three(seed, i):
    """Whether scene i has three things, by what is drawn before anything is painted."""
    import world

    rng = np.random.default_rng([seed, i])
    rng.choice(list(world.STYLES)), rng.integers(2**31)
    return len(world._words(rng, "held-out")) == 3


def test_the_judge_knows_three_things_and_the_recogniser_stays_as_it_was(judge):
    import world

    path = MINI / "training" / "recogniser.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith("5efeafe6fd79db89")
    path = MINI / "training" / "judge.safetensors"
    assert path.stat().st_size < 2.5e6
    three = [i for i in range(800) if of_three(8642, i)]
    scenes = [world.scene_at(8642, i, "held-out")[0] for i in three]
    assert {len(s.things) for s in scenes} == {3}
    found = load_recogniser(path).find([Image.fromarray(world.render(s)) for s in scenes])
    right = [{t.word for t in s.things} <= {f.word for f in fs} for s, fs in zip(scenes, found)]
    assert len(right) > 70 and np.mean(right) > 0.92


def test_a_file_that_is_no_recogniser_is_refused(tmp_path):
    for path in (tmp_path / "none", MINI / "vae" / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(WeightsError, match="no recogniser"):
            load_recogniser(path)


def test_a_clip_folder_without_a_length_cuts_a_long_prompt_where_its_network_ends(clip, tmp_path):
    folder = shutil.copytree(MINI / "clip", tmp_path / "clip")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told.pop("model_max_length")
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    long = " ".join(["a red cat"] * 60)
    other = metrics.CLIPScorer(folder, metrics.ONE_TEMPLATE)
    torch.testing.assert_close(other.texts([long, "a cat"]), clip.texts([long, "a cat"]))


def test_a_hub_folder_of_clip_is_named(tmp_path):
    inside = tmp_path / "models--x" / "snapshots" / "1"
    shutil.copytree(MINI / "clip", inside)
    with pytest.raises(WeightsError, match=f"is a folder of the hub's cache; give {inside}"):
        metrics.CLIPScorer(tmp_path / "models--x", metrics.ONE_TEMPLATE)

"""Benchmarks, metrics with known values, and a runner that can be stopped and shared out."""

import hashlib
import math
import os
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
from dnp.errors import SettingsError, WeightsError
from dnp.evaluation import benchmarks, methods, metrics, scores, tables, trio
from dnp.evaluation.recogniser import Found, load_recogniser

sys.path.append(str(ROOT / "weights" / "mini" / "training"))

TRIO = {"trio": "14b9ab6b010e6d06", "trio-choosing": "8a8cdf69f79f177b"}  # sha256 of the lists


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
    out = scores.clip_metrics(clip, images, prompt)
    u = clip.images(images)
    assert_close(torch.tensor(out["full"]), (u @ clip.texts([prompt]).T)[:, 0], atol=1e-5, rtol=0)
    halves = (u @ clip.texts(["a cat", "a red car"]).T).min(1).values
    assert_close(torch.tensor(out["minimum"]), halves, atol=1e-5, rtol=0)
    depicts = clip.texts([f"A photo depicts {prompt}"])  # one template: the same as no template
    assert_close(
        torch.tensor(out["clipscore"]), 2.5 * (u @ depicts.T)[:, 0].clamp(min=0), atol=1e-5, rtol=0
    )
    assert out["diversity"] == pytest.approx(1 - (u[0] @ u[1]).item(), abs=1e-5)
    one = scores.clip_metrics(clip, images[:1], "a cat")
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
    score, low, high = tables.inception_interval(records)
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
    same = {"things": True, "asked": 2, "shown": 2}
    assert ask("a cat and a red car") == {**same, "colours": True, "right": 2}
    assert ask("a cat and a blue car") == {**same, "colours": False, "right": 1}
    one = {"things": False, "colours": False, "asked": 1, "right": 1, "shown": 2}
    assert ask("a cat and a dog") == one
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


@pytest.mark.parametrize("name", ["trio", "trio-choosing"])
def test_trio_is_fixed_names_nothing_twice_and_marks_what_is_held_out(name):
    prompts = benchmarks.load(name)
    text = "\n".join(f"{p.category}: {p.text}" for p in prompts)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == TRIO[name]
    each = len(prompts) // 5
    assert len(prompts) == {"trio": 120, "trio-choosing": 60}[name]
    assert set(Counter(p.category for p in prompts).values()) == {each}
    for p in prompts:
        asked = benchmarks.subjects(p.text)
        words = [word for _, word in asked]
        hues = [c for c, word in asked if word in benchmarks.OBJECTS]
        assert len(set(words)) == 3 and None not in hues and len(set(hues)) == len(hues)
        assert len(benchmarks.parts(p.text)) == 3
        assert not any(pair in trio.HELD_OUT_COLOURS for pair in asked)
        assert trio.held_out(set(words)) == (p.category == "held_out")
        if p.category == "held_out":  # the three together, and no two of them
            assert frozenset(words) in trio.HELD_OUT_TRIOS


def test_choosing_and_reporting_share_no_three_things():
    of = [{frozenset(w for _, w in benchmarks.subjects(p.text)) for p in benchmarks.load(n)}
          for n in TRIO]  # fmt: skip
    assert len(of[0]) == 120 and len(of[1]) == 60 and not of[0] & of[1]


def test_presence_counts_how_many_of_three_things_are_right():
    class Says:
        def find(self, images):
            return [[Found(w, c, 0.9) for w, c in found] for found in images]

    pictures = [
        [("cat", "gray"), ("car", "red"), ("chair", "blue")],
        [("cat", "gray"), ("car", "blue"), ("chair", "red")],  # the colours swapped
        [("cat", "gray"), ("car", "red")],
        [("dog", "gray")],
    ]
    rows = metrics.presence(Says(), pictures, "a cat, a red car and a blue chair")
    assert [r["right"] for r in rows] == [3, 1, 2, 0]
    assert [r["asked"] for r in rows] == [3, 3, 2, 0]
    assert [r["colours"] for r in rows] == [True, False, False, False]
    assert [r["things"] for r in rows] == [True, True, False, False]
    assert [r["shown"] for r in rows] == [3, 3, 2, 1]


def test_the_minimum_object_score_cuts_a_list_of_three_at_its_comma():
    assert benchmarks.parts("a cat, a car and a bow") == ["a cat", "a car", "a bow"]
    assert benchmarks.parts("a cat, asleep and a red car") == ["a cat, asleep", "a red car"]


def test_the_column_of_right_things_stands_only_beside_three_things():
    row = {"prompt": "a cat and a red car", "right": [1, 2]}
    three = {"prompt": "a cat, a red car and a bow", "right": [1, 2]}
    assert tables.shown({("cfg", None): [row]}) == []
    assert tables.shown({("cfg", None): [row, three]}) == ["right"]


def test_the_judge_knows_three_things_and_the_recogniser_stays_as_it_was(judge):
    import world

    path = MINI / "training" / "recogniser.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith("5efeafe6fd79db89")
    path = MINI / "training" / "judge.safetensors"
    assert path.stat().st_size < 2.5e6
    scenes = [world.scene_at(8642, i, "held-out")[0] for i in range(800)]
    scenes = [s for s in scenes if len(s.things) == 3]
    found = load_recogniser(path).find([Image.fromarray(world.render(s)) for s in scenes])
    right = [{t.word for t in s.things} <= {f.word for f in fs} for s, fs in zip(scenes, found)]
    assert len(right) > 70 and np.mean(right) > 0.92


def test_a_file_that_is_no_recogniser_is_refused(tmp_path):
    for path in (tmp_path / "none", MINI / "vae" / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(WeightsError, match="no recogniser"):
            load_recogniser(path)


# ----------------------------------------------------------------------------------------- methods


def test_methods_are_parsed_and_unknown_ones_refused():
    m = methods.parse("auto-dnp:negative_scale=1,dns_images=2")
    assert (m.name, dict(m.options)) == ("auto-dnp", {"negative_scale": 1.0, "dns_images": 2})
    for wrong, sentence in [
        ("dnq", "did you mean dns"), ("cfg:stepz=3", "is no option"),
        ("answer:K=two", "is no option"), ("np:rule=bounded", "needs words for each prompt"),
        ("dnp", "choose auto-dnp"), ("nd", "choose cfg"),
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
        methods.check(methods.parse(label), None, 3, model, ["a cat and a red car"], [])


def test_every_method_that_can_run_passes_the_check(model):
    prompts = list(methods.SEMANTIC)
    for name in methods.METHODS:
        methods.check(methods.parse(name), 2.0, 3, model, prompts, prompts)
    benchmarks.require_drawable(
        [benchmarks.Prompt(n, "n") for n in methods.SEMANTIC.values()], model.config.words
    )
    assert set(prompts) <= {p.text for p in benchmarks.attend_excite()}


def sample(model, label, prompt, seeds, steps, captioner, others):
    """As the runner does it, without its files."""
    method = methods.parse(label)
    settings = methods.settled(method, None, steps, model)
    if method.name not in methods.FROM_DNS:
        negatives = [methods.negative(method, prompt, k, others) for k in seeds]
        return methods.sample(model, method, prompt, seeds, settings, negatives, captioner)

    def describe(prompt, seeds, own):
        made = [dnp.generate(model, prompt, "dns", seed=k, **own) for k in seeds]
        captions = captioner([r.images[0] for r in made])
        return [methods.Words(c, r.nfe, 0.0) for c, r in zip(captions, made)]

    words = methods.n_stars(prompt, seeds, settings, describe)
    made = methods.sample(model, method, prompt, seeds, settings, [w.text for w in words])
    return [methods.Sample(m.image, m.negative, m.nfe + w.nfe) for m, w in zip(made, words)]


def make(model, label, prompt="a cat and a red car", steps=3, captioner=None, others=()):
    captioner = captioner or (lambda images: ["a green bowl"] * len(images))
    (made,) = sample(model, label, prompt, [0], steps, captioner, others)
    return made


def test_a_unit_makes_the_pictures_of_its_seeds(model):
    captioner = lambda images: [f"a {w}" for w in ("dog", "bear", "lion")[: len(images)]]
    for label in ("cfg", "auto-dnp", "random", "negative-alone", "cnp"):
        made = sample(model, label, "a cat", [0, 1, 2], 2, captioner, ["a lion", "a frog"])
        assert len({m.image.tobytes() for m in made}) == 3
        if label in ("auto-dnp", "negative-alone"):
            assert [m.negative for m in made] == ["a dog", "a bear", "a lion"]
        (alone,) = sample(
            model, label, "a cat", [1], 2, lambda images: ["a bear"], ["a lion", "a frog"]
        )
        if label != "cnp":
            assert alone.image.tobytes() == made[1].image.tobytes()


@pytest.mark.parametrize("option", ["", "dns_images=2", "s_dns=0.5,eta=0.3", "negative_scale=1"])
def test_kept_words_make_the_pictures_of_auto_dnp(model, option):
    """The DNS images are made and described apart from the pictures: nothing else is changed."""

    def captioner(images):
        return [f"a {benchmarks.COLOURS[int(np.asarray(im).sum()) % 11]} bowl" for im in images]

    label = f"auto-dnp:{option}" if option else "auto-dnp"
    made = sample(model, label, "a cat and a red car", [3, 4], 3, captioner, [])
    r = dnp.generate(
        model, "a cat and a red car", "auto-dnp", captioner=captioner, seed=3, images=2, steps=3,
        **dict(methods.parse(label).options),
    )  # fmt: skip
    assert [m.negative for m in made] == r.negatives and len(set(r.negatives)) == 2
    assert [m.nfe for m in made] == [r.nfe, r.nfe]
    assert [m.image.tobytes() for m in made] == [image.tobytes() for image in r.images]


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

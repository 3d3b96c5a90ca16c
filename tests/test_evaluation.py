"""The prompts of the benchmarks, and the methods that are compared on them."""

import hashlib
import os
import sys
from collections import Counter

import numpy as np
import pytest
from torch.testing import assert_close

import dnp
import experiments
from conftest import ROOT, slow_but
from dnp.errors import SettingsError
from dnp.evaluation import benchmarks, contestants, trio

sys.path.append(str(ROOT / "weights" / "mini" / "training"))

OPTIONS = ["dns_images=2", "s_dns=0.5,eta=0.3", "negative_scale=1"]
OPTIONS = slow_but(OPTIONS, ["", *OPTIONS])
TRIO = {"trio": "14b9ab6b010e6d06", "trio-choosing": "8a8cdf69f79f177b"}  # sha256 of the lists


@pytest.fixture(scope="module")
def model():
    return dnp.load(experiments.world())


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
    with pytest.raises(SettingsError, match="not a word of their world"):
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
    with pytest.raises(SettingsError, match="not a regular file"):
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


def test_the_minimum_object_score_cuts_a_list_of_three_at_its_comma():
    assert benchmarks.parts("a cat, a car and a bow") == ["a cat", "a car", "a bow"]
    assert benchmarks.parts("a cat, asleep and a red car") == ["a cat, asleep", "a red car"]


# ----------------------------------------------------------------------------------------- methods


def test_methods_are_parsed_and_unknown_ones_refused():
    m = contestants.parse("auto-dnp:negative_scale=1,dns_images=2")
    assert (m.name, dict(m.options)) == ("auto-dnp", {"negative_scale": 1.0, "dns_images": 2})
    for wrong, sentence in [
        ("dnq", "did you mean dns"), ("cfg:stepz=3", "is not an option"),
        ("answer:K=two", "is not an option"), ("np:rule=bounded", "needs words for each prompt"),
        ("dnp", "choose auto-dnp"), ("nd", "choose cfg"),
        ("cfg:rule=perp_neg", "method cfg has none; write semantic:rule=perp_neg"),
    ]:  # fmt: skip
        with pytest.raises(SettingsError, match=sentence):
            contestants.parse(wrong)


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ("semantic", "nobody has written"),
        ("random", "give more prompts"),
        ("universal:K=1", "is not an option"),
        ("cfg:eta=3", "from 0 to 1"),
        ("cfg:steps=0", "of at least 1"),
        ("cnp:K=2", "is not an option"),
        ("cnp:s=nan", "s = nan is not possible"),
        ("unconditional:s=2", "is not an option"),
        ("negative-alone:negative_scale=1", "is not an option"),
        ("answer:normalize=x", "is not an option"),
        ("auto-dnp:dns_images=0", "from 1 to 100"),
    ],
)
def test_a_method_that_cannot_run_is_refused_before_anything_is_made(model, label, sentence):
    with pytest.raises(SettingsError, match=sentence):
        contestants.check(contestants.parse(label), None, 3, model, ["a cat and a red car"], [])


def test_every_method_that_can_run_passes_the_check(model):
    prompts = list(contestants.SEMANTIC)
    for name in contestants.NAMES:
        contestants.check(contestants.parse(name), 2.0, 3, model, prompts, prompts)
    benchmarks.require_drawable(
        [benchmarks.Prompt(n, "n") for n in contestants.SEMANTIC.values()], model.config.words
    )
    assert set(prompts) <= {p.text for p in benchmarks.attend_excite()}


def sample(model, label, prompt, seeds, steps, captioner, others):
    """As the runner does it, without its files."""
    method = contestants.parse(label)
    settings = contestants.settled(method, None, steps, model)
    if method.name not in contestants.FROM_DNS:
        negatives = [contestants.negative(method, prompt, k, others) for k in seeds]
        prompts = [prompt] * len(seeds)
        return contestants.sample(model, method, prompts, seeds, settings, negatives, captioner)

    def describe(asked, own):
        made = [dnp.generate(model, prompt, "dns", seed=k, **own) for prompt, k in asked]
        captions = captioner([r.images[0] for r in made])
        return [contestants.Words(c, r.nfe, 0.0) for c, r in zip(captions, made)]

    asked = [(prompt, k) for k in seeds]
    words = contestants.n_stars(asked, settings, describe)
    texts = [w.text for w in words]
    made = contestants.sample(model, method, *zip(*asked), settings, texts)
    return [contestants.Sample(m.image, m.negative, m.nfe + w.nfe) for m, w in zip(made, words)]


def make(model, label, prompt="a cat and a red car", steps=3, captioner=None, others=()):
    captioner = captioner or (lambda images: ["a green bowl"] * len(images))
    (made,) = sample(model, label, prompt, [0], steps, captioner, others)
    return made


def test_a_unit_makes_the_pictures_of_its_seeds(model):
    captioner = lambda images: [f"a {w}" for w in ("dog", "bear")[: len(images)]]
    for label in ("cfg", "auto-dnp", "random", "negative-alone", "cnp"):
        made = sample(model, label, "a cat", [0, 1], 2, captioner, ["a lion", "a frog"])
        assert len({m.image.tobytes() for m in made}) == 2
        if label in ("auto-dnp", "negative-alone"):
            assert [m.negative for m in made] == ["a dog", "a bear"]
        (alone,) = sample(
            model, label, "a cat", [1], 2, lambda images: ["a bear"], ["a lion", "a frog"]
        )
        if label != "cnp":
            assert alone.image.tobytes() == made[1].image.tobytes()


@pytest.mark.parametrize("option", OPTIONS)
def test_kept_words_make_the_pictures_of_auto_dnp(model, option):
    """The DNS images are made and described apart from the pictures: nothing else is changed."""
    colours: dict[bytes, str] = {}  # of each picture by its bytes, so that unlike ones differ

    def captioner(images):
        unused = (
            colours.setdefault(im.tobytes(), benchmarks.COLOURS[len(colours)]) for im in images
        )
        return [f"a {colour} bowl" for colour in unused]

    label = f"auto-dnp:{option}" if option else "auto-dnp"
    made = sample(model, label, "a cat and a red car", [4, 5], 3, captioner, [])
    r = dnp.generate(
        model, "a cat and a red car", "auto-dnp", captioner=captioner, seed=4, images=2, steps=3,
        **dict(contestants.parse(label).options),
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
    assert same(make(model, "universal"), p, "np", contestants.UNIVERSAL)
    assert same(make(model, "universal2"), p, "np2", contestants.UNIVERSAL)
    assert same(make(model, "cfg:s=2"), p, "cfg", s=2.0)
    alone = make(model, "negative-alone")
    assert alone.negative == "a green bowl" and alone.nfe == 12
    assert same(alone, "a green bowl", "dns", s=scales["dns"])
    assert same(make(model, "answer:K=1"), p, "answer", K=1)
    made = make(model, "random", others=["a dog and a red car", "a lion", p])
    assert made.negative == "a lion" and same(made, p, "np", "a lion")
    hand = make(model, "semantic", prompt="a cat and a dog")
    assert hand.negative == contestants.SEMANTIC["a cat and a dog"]


def test_random_negatives_depend_on_prompt_and_seed_alone():
    others = [p.text for p in benchmarks.attend_excite()]
    draw = lambda seed: contestants.random_negative("a cat and a dog", seed, others)
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

"""What a prompt brings along: the test, the labels, the exact toy, and the command."""

import csv
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import dnp
from command_line import once_of
from conftest import MINI
from dnp.errors import SettingsError
from dnp.evaluation import audit as audits
from dnp.evaluation import audit_pictures, trust
from dnp.evaluation.audit import AMPLIFIES, BRINGS, audit, evaluations
from dnp.evaluation.labels import OfCaptions, OfWords, OfWorld, labels_for
from dnp.evaluation.mcnemar import LEVEL, compare, mcnemar, power
from dnp.evaluation.negatives.rules import RECOMMENDED, RULES, scale_against
from dnp.sd import load
from experiments import world
from test_models import FILE

# ------------------------------------------------------------------------------- the test


def test_mcnemar_counts_all_signs_of_the_pairs_that_differ():
    for n in range(1, 9):
        for more in range(n + 1):
            signs = [abs(2 * sum(s) - n) for s in product((0, 1), repeat=n)]
            share = sum(x >= abs(2 * more - n) for x in signs) / 2**n
            assert mcnemar(more, n - more) == pytest.approx(share, abs=1e-15)
    assert mcnemar(0, 0) == 1 and mcnemar(12, 0) == 2 / 2**12


def test_mcnemar_is_scipys_binomial_test():
    stats = pytest.importorskip("scipy.stats")
    for pair in ((15, 1), (18, 3), (7, 7), (90, 60)):
        assert mcnemar(*pair) == pytest.approx(stats.binomtest(pair[0], sum(pair)).pvalue)


def test_power_is_the_share_of_drawn_audits_that_find_the_label():
    g = torch.Generator().manual_seed(0)
    for n, low, high, tests in ((48, 0.1, 0.4, 11), (64, 0.09, 0.3, 11)):
        a, b = (torch.rand(4000, n, generator=g) < share for share in (high, low))
        up, down = (a & ~b).sum(1).tolist(), (b & ~a).sum(1).tolist()
        found = [u > d and mcnemar(u, d) * tests <= LEVEL for u, d in zip(up, down)]
        assert power(n, low, high, tests) == pytest.approx(sum(found) / 4000, abs=0.025)
    assert power(48, 0.2, 0.2, 11) < LEVEL / 22 and power(3, 0.0, 1.0, 2) == 0


def test_labels_are_compared_pair_by_pair_and_holm_goes_over_the_whole_family():
    a = [{"x"}] * 9 + [{"x", "y"}] * 3
    b = [set()] * 9 + [{"x", "y"}] * 2 + [{"y"}]
    found = compare("q", {"a": a, "b": b}, "a", "b", ["x", "y", "z", "w"])
    x, y, z, _ = found.lines
    assert (x.first, x.second, x.only_first, x.only_second, x.p) == (12, 2, 10, 0, 2 / 2**10)
    assert (y.only_first, y.only_second, y.p) == (0, 0, 1) and z.first == z.second == 0
    assert x.corrected == 4 * x.p  # the labels that nobody saw count too
    assert [line.label for line in found.more] == ["x"] and found.fewer == []
    back = compare("q", {"a": a, "b": b}, "b", "a", ["x"])
    assert [line.label for line in back.fewer] == ["x"] and back.more == []


# ------------------------------------------------------------------------------- the exact toy


@pytest.fixture(scope="module")
def of_toy():
    """{share of red cars: its audit} of 64 pictures."""
    return {
        red: audit(trust.Habits(red), 0, 64, 3.0, labels=trust.OfHabits(), steps=10)
        for red in (0.2, 0.6)
    }


def test_a_habit_is_named_and_a_model_without_one_has_none(of_toy):
    habit, none = of_toy[0.6], of_toy[0.2]
    brings = habit.comparisons[0]
    assert [x.label for x in brings.more] == ["red"] == [habit.habit]
    assert habit.verdict.startswith("brings along: red")
    assert [x.label for x in habit.comparisons[1].more] == ["red"]  # CFG makes more of it
    assert "red" not in [x.label for x in habit.comparisons[2].more]  # DNS has the opposite
    assert none.comparisons[0].more == [] and none.habit is none.negative is None
    assert "brings along: nothing that was found" in none.verdict and none.against == ""


def test_the_shares_are_those_of_the_law(of_toy):
    share = {k: sum("red" in x for x in v) / len(v) for k, v in of_toy[0.6].seen.items()}
    assert share["empty"] == pytest.approx(0.6 / 6 + 5 / 6 / 5, abs=0.14)
    assert share["prompt"] == pytest.approx(0.6, abs=0.16)
    assert share["dns"] < share["empty"] and share["cfg"] > share["prompt"]


def test_the_negative_of_a_miniatures_world_has_the_scale_that_the_page_of_negatives_recommends():
    class World(trust.OfHabits, OfWorld):
        def __init__(self):
            pass

    found = audit(trust.Habits(0.6), 0, 64, 3.0, labels=World(), steps=10)
    assert found.habit == "red" and found.scales["negative"] == scale_against("red")
    assert "at s = 3." in found.against and scale_against("plain") == 8
    assert all(x in RULES["two-term"] for x in RECOMMENDED.values())


def test_the_negative_has_the_habit_and_is_compared_with_the_same_seeds(of_toy):
    found = of_toy[0.6]
    assert found.negative == 1 and len(found.sets["negative"]) == 16
    was = sum("red" in x for x in found.seen["cfg"][:16])
    now = sum("red" in x for x in found.seen["negative"])
    assert f"in {was} of 16" in found.against and f"in {now} with" in found.against and now < was


def test_detectors_have_equal_evaluations_and_are_scored_by_the_truth():
    seen = {k: [{"red"}] * 30 for k in ("prompt", "cfg")}
    seen |= {k: [set()] * 20 + [{"red"}] * 10 for k in ("empty", "dns")}
    by = trust.named(seen, ["red", "blue"], 30)
    assert by == {"s = 1": {"red"}, "CFG": set(), "DNS lacks": set(), "DNS excess": set()}
    rows = trust.scores([(by, {"red"}, {"blue"}), (by, set(), {"red"})])
    assert rows["s = 1"] == trust.Score(1, 1, 1, 1, 2)
    assert rows["CFG"] == trust.Score(0, 1, 0, 2, 2)
    few = {k: v[:20] + [{"blue"}] * 10 for k, v in seen.items()}
    assert "blue" not in trust.named(few | {"cfg": seen["cfg"]}, ["blue"], 30)["CFG"]  # past 20


def test_the_trust_in_an_audit_is_a_table_and_a_line_for_each_prompt(tmp_path, capsys):
    seen = {k: [{"red"}] * 12 for k in ("prompt", "cfg")} | {
        k: [set()] * 12 for k in ("empty", "dns")
    }
    shares = {"red": [0.6, 0.2], "blue": [0.1, 0.2], "green": [0.25, 0.2]}
    table = {"a car": shares, "a red car on the road": {"red": [0.25, 0.2]}}
    rows, lines = trust.of_world(table, 12, lambda prompt: (seen, list(table[prompt])))
    assert list(rows) == [
        "miniature, objects: 1 prompts",
        "miniature, nothing left open: 1 prompts",
    ]
    assert ("a car", "s = 1", "red", "red", "") in lines  # green's share is between: not counted
    assert ("a red car on the road", "s = 1", "", "", "red") in lines and len(lines) == 8
    trust.main(["--pictures", "3", "--audits", "1", "--out", str(tmp_path)])
    text = (tmp_path / "trust.md").read_text()
    assert text.count("toy, ") == 3 and text.strip() == capsys.readouterr().out.strip()
    assert trust.counts(48) == {"empty": 48, "prompt": 48, "cfg": 32, "dns": 32}


# ------------------------------------------------------------------------------- the pictures


@pytest.fixture(scope="module")
def model():
    return load.load(world())


def test_a_picture_is_that_of_generate_from_the_same_noise(model):
    for method, given, prompt, s in (
        ("cfg", {"rule": audit_pictures.empty_alone}, "", 1.0),
        ("cfg", {"rule": audit_pictures.prompt_alone}, "a car", 1.0),
        ("dns", {"s": 2.0}, "a car", 2.0),
    ):
        given |= {"steps": 2, "images": 2, "seed": 5}
        (ours,) = audit_pictures.sampled(model, prompt, method, None, given)
        theirs = dnp.generate(model, prompt, method, s=s, steps=2, images=2, seed=5).images
        for a, b in zip(ours, theirs, strict=True):
            assert max(abs(x - y) for x, y in zip(a.tobytes(), b.tobytes())) <= 1


def test_kept_pictures_are_not_made_again_and_damaged_ones_are(model, tmp_path, monkeypatch):
    calls = []
    eps = type(model).eps
    monkeypatch.setattr(type(model), "eps", lambda *of: calls.append(1) or eps(*of))
    kept = audit_pictures.Kept(tmp_path / "kept")
    given = {"rule": audit_pictures.prompt_alone, "steps": 2, "images": 2}

    def made(**other):
        calls.clear()
        told = []
        (pictures,) = audit_pictures.sampled(
            model, "a car", "cfg", None, given | other, told.append, kept
        )
        assert sum(told) == 2 * (given | other)["steps"]
        return [p.tobytes() for p in pictures], len(calls)

    first, count = made()
    assert count == 2 and made() == (first, 0)
    assert made(seed=1)[1] == 2 and made(steps=3)[1] == 3
    for path in kept.folder.iterdir():
        path.write_bytes(path.read_bytes()[:200])
    assert made() == (first, 2)


# ------------------------------------------------------------------------------- the labels


def test_the_family_is_the_world_without_the_words_of_the_prompt():
    eyes = SimpleNamespace(things=("cat", "car"), colours=("red", "orange"))
    assert OfWorld(eyes, None).family([], "a red car") == ("cat", "orange")
    assert OfWorld(eyes, object()).family([], "a car on the road")[-1] == "room"


def test_a_negative_is_the_prompt_with_the_label():
    of_world = OfWorld(SimpleNamespace(things=(), colours=()), None)
    for prompt, label, negative in (
        ("a crown", "orange", "an orange crown"),
        ("a red car and a crown", "blue", "a red car and a blue crown"),
        ("an apple", "red", "a red apple"),
        ("the cat", "black", "the black cat"),
        ("a cat", "plain", "a cat on a plain background"),
        ("a cat", "dog", "a cat and a dog"),
    ):
        assert of_world.negative(prompt, label) == negative


def test_words_of_captions_are_tested_from_six_pictures_of_all_sets_on():
    labels = OfCaptions(lambda pictures: ["A Doctor, with a man."] * len(pictures))
    seen = labels.see([None] * 3)
    assert seen == [frozenset({"doctor", "man"})] * 3
    assert labels.family([seen, seen], "a doctor") == ("man",)
    assert labels.family([seen, seen[:2]], "a doctor") == ()


def test_clip_chooses_one_of_the_words():
    vectors = {"man": [1.0, 0], "woman": [0, 1.0]}
    clip = SimpleNamespace(
        images=torch.tensor, texts=lambda w: torch.tensor([vectors[x] for x in w])
    )
    words = OfWords("man,  woman", clip)
    assert words.see([[0.9, 0.1], [0.2, 0.8]]) == [frozenset({"man"}), frozenset({"woman"})]
    assert words.family([], "a man") == ("woman",) and words.negative("a nurse", "man")
    for bad in ("man", "man, man", "man,", ""):
        with pytest.raises(SettingsError, match="two or more, all different"):
            OfWords(bad, clip)


def test_what_is_given_stands_before_what_the_weights_have(model):
    assert isinstance(labels_for(model, "a car", world()), OfWorld)
    assert isinstance(labels_for(model, "a car", world(), "red, blue"), OfWords)
    assert isinstance(labels_for(model, "a car", world(), captions=True), OfCaptions)
    assert isinstance(labels_for(model, "a car"), OfCaptions)
    for given, sentence in (
        (("red, blue", None, True), "both given"),
        (("red, blue", None, False), "give --clip FOLDER"),
        ((None, MINI / "clip", False), "give them with --words"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            labels_for(model, "a car", None, *given)


# ------------------------------------------------------------------------------- the command


def test_the_command_writes_a_table_a_sheet_and_a_csv(tmp_path, capsys):
    words = ["a crown", "--weights", str(world()), "--pictures", "2", "--steps", "2"]
    audits.main([*words, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "The family (41): cat" in printed and "Power over 41 labels" in printed
    with (tmp_path / "a-crown-audit.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 3 * 41 and {r["comparison"] for r in rows} >= {BRINGS, AMPLIFIES}
    assert Image.open(tmp_path / "a-crown-audit.png").width > 2 * 160
    assert len([*(tmp_path / "audit-pictures").iterdir()]) == 4 * 2


def test_a_model_of_ones_own_is_audited_by_words_of_ones_own(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    words = ["a cat", "--pictures", "2", "--steps", "2", "--words", "red, blue sky, cat"]
    audits.main([*words, "--model", "mine.py:Colours", "--clip", str(MINI / "clip")])
    printed = capsys.readouterr().out
    assert "The family (2): red, blue sky." in printed and "nearest of the words" in printed
    names = {p.name for p in (tmp_path / "outputs").iterdir()}
    assert names >= {f"a-cat-audit.{x}" for x in ("png", "csv", "md")}


def test_progress_is_told_of_every_evaluation():
    told = []
    audit(trust.Habits(0.2), 0, 2, 3.0, told.append, labels=trust.OfHabits(), steps=3)
    assert sum(told) == evaluations(2, 3)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["a cat", "--pictures", "1"], "choose 2 to 1000"),
        ([" "], "the empty prompt brings nothing"),
        (["a cat", "--weights", "nowhere"], "nowhere"),
        (["a cat", "--model", "pipe"], r"give FILE\.py:NAME"),
        (["a cat", "--words", "man"], "two or more"),
        (["a cat", "--words", "a, b", "--captioner", "weights/mini/captioner"], "both given"),
        (["a cat", "--captioner", "nowhere"], "nowhere"),
        (["a cat", "--model", "mine.py:f", "--weights", "weights/mini"], "--weights and --model"),
        (["a cat", "--prediction", "x"], "x"),
        (["a cat", "--steps", "0"], "steps"),
        (["a cat", "--pic", "3"], "--pic 3"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_input_is_a_sentence(words, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "load", once_of(MINI, load.load))
    with pytest.raises(dnp.DnpError, match=sentence):
        audits.main([*words, "--out", str(tmp_path)])
    assert [*tmp_path.iterdir()] == []


def test_a_truth_that_cannot_be_read_is_a_sentence(tmp_path):
    (tmp_path / "t.json").write_text('{"a cat": {"red": [1]}}')
    for name, why in (("t.json", "not enough values"), ("none.json", "no such file or directory")):
        with pytest.raises(SettingsError, match=rf"cannot be read \({why}.*unasked\.py"):
            trust.read_truth(tmp_path / name)

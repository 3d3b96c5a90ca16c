"""The benchmark "p and not n": its pairs, numbers and law, and a small study of the miniature."""

import json
import re
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import dnp
from conftest import MINI, ROOT
from dnp.app.options import methods_table
from dnp.errors import SettingsError
from dnp.evaluation import __main__ as evaluation
from dnp.evaluation.negatives import command, law, making, report, study
from dnp.evaluation.negatives.rules import (
    ALONE,
    EMPTY_RULES,
    PAIRS,
    RECOMMENDED,
    REFERENCE,
    RULES,
    Setting,
)
from dnp.evaluation.negatives.seen import interval, kept, mean, scores, shows
from dnp.sd import speed
from dnp.sd.world import OBJECTS, subjects
from experiments import world

OTHER = Setting("s = 2", "cfg", {"s": 2.0})  # whichever is chosen, it is not the prompt alone
FEW = {
    "CFG": [OTHER, REFERENCE],
    "two-term": [Setting("s = 2", "np2", {"s": 2.0})],
    "DNG, eta = 1": RULES["DNG, eta = 1"][:1],
    "CFG, eta = 1": [Setting("s = 3", "cfg", {"s": 3.0, "eta": 1.0})],
}
CAT = {"things": {"cat": "gray"}, "setting": "plain"}
DOG = {"things": {"dog": "brown"}, "setting": "grass"}

# ------------------------------------------------------------------------------- the design


def test_pairs_and_noises_for_choosing_are_not_those_that_are_reported():
    for family, of in PAIRS.items():
        chosen, reported = ({tuple(pair) for pair in of[k]} for k in ("choosing", "reporting"))
        assert not chosen & reported and len(reported) == len(of["reporting"]), family
    first, last = (
        study.Cell("CFG", ALONE, "settings", part).seeds(k)
        for part, k in (("choosing", 0), ("reporting", 2000))
    )
    assert min(first) > max(last) and len(set(last)) == 16
    assert len(PAIRS["settings"]["choosing"] + PAIRS["settings"]["reporting"]) == 24


def test_n_is_a_kind_of_p_inside_and_has_nothing_to_do_with_it_outside():
    for part in ("choosing", "reporting"):
        for family in ("settings", "colours"):
            for p, n in PAIRS[family][part]:
                assert subjects(n)[0][1] == subjects(p)[0][1] and n != p
                assert (subjects(n)[0][0] is None) == (family == "settings")
    for p, n in PAIRS["outside"]["reporting"]:
        assert subjects(p)[0][1] != subjects(n)[0][1]
    assert {subjects(p)[0][1] for p, _ in PAIRS["colours"]["reporting"]} < {*OBJECTS}


def test_every_rule_has_six_settings_that_differ():
    alone = {"phi", "phi, eta = 1"}
    for rules in (RULES, EMPTY_RULES):
        for name, settings in rules.items():
            told = {x.said for x in settings}
            assert len(told) == len(settings) == (1 if name in alone else 6), name
            assert len({json.dumps([x.method, x.settings]) for x in settings}) == len(settings)


def test_the_page_has_the_tables_of_the_runs_that_lie_beside_the_weights():
    page = (ROOT / "dnp" / "NEGATIVES.md").read_text(encoding="utf-8")
    files = [MINI / "negatives" / of / "tables.md" for of in (".", "settings")]
    told = {line for file in files for line in file.read_text(encoding="utf-8").splitlines()}
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) > 60 and [line for line in rows if line not in told] == []
    assert all(x in RULES["two-term"] for x in RECOMMENDED.values())
    for family, setting in RECOMMENDED.items():
        chosen = f"| two-term | {setting.said} |"
        assert any(line.startswith(chosen) for line in rows), family
    assert "dnp/NEGATIVES.md" in methods_table()


# ------------------------------------------------------------------------------- the numbers


def test_the_page_explains_every_option_of_a_rule():
    page = (ROOT / "dnp" / "NEGATIVES.md").read_text(encoding="utf-8")
    options = page.split("## The options")[1].split("## What")[0]
    told = set(re.findall(r"^- (\w+) of ", options, re.M))
    settings = [s.settings for of in RULES.values() for s in of]
    asked = {option for one in settings for option in one.get("rule_options") or ()}
    assert told == asked | {"h"}


def test_done_is_p_seen_and_n_not():
    assert kept(CAT, "a cat") and not kept(CAT, "a dog") and kept(CAT, "")
    assert not kept({"things": {}, "setting": "plain"}, "")
    assert shows(CAT, "a cat on a plain background") and not shows(DOG, "a dog at night")
    assert shows(CAT, "a gray cat") and not shows(CAT, "a red cat") and shows(DOG, "a dog")
    found = scores([[CAT, DOG], [DOG, None]], [("a cat", "a gray cat"), ("a dog", "a cat")])
    np.testing.assert_array_equal(found["kept"], [[1, 0], [1, 0]])
    np.testing.assert_array_equal(found["done"], [[0, 0], [1, 0]])
    np.testing.assert_array_equal(found["leak"], [[1, np.nan], [0, np.nan]])
    assert mean(found["leak"]) == 0.5


def test_the_interval_is_over_the_seeds_of_each_pair_and_not_over_the_pairs():
    fixed = np.array([[0.0] * 40, [1.0] * 40])  # the pairs differ, their seeds do not
    assert interval(fixed) == (0.5, 0.5, 0.5)
    drawn = np.random.default_rng(0).integers(0, 2, (4, 100)).astype(float)
    value, low, high = interval(drawn)
    assert value == drawn.mean() and high - low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)
    assert np.isnan(interval(np.array([[np.nan, np.nan]]))[0])


def test_the_chosen_setting_has_the_greatest_done_of_those_that_keep_p():
    of = lambda done, kept: {"done": np.full((2, 2), done), "kept": np.full((2, 2), kept)}
    a, b, c = (Setting(x, "np2", {"s": i}) for i, x in enumerate("abc"))
    assert study.best({a: of(0.2, 1.0), b: of(0.6, 0.95), c: of(0.7, 0.7)}, 0.9) == b
    assert study.best({a: of(0.2, 1.0), b: of(0.2, 1.0)}, 0.9) == a  # the first of equal ones
    assert study.best({b: of(0.6, 0.5), c: of(0.5, 0.7)}, 0.9) == c  # none keeps p


# ------------------------------------------------------------------------------- the law


def test_a_distance_is_a_total_variation_of_each_pair_as_often_as_it_is_seen():
    laws = [Counter(plain=3, grass=1), Counter(night=1)]
    assert law.distance([Counter(plain=3, grass=1), Counter()], laws) == 0
    assert law.distance([Counter(night=4), Counter()], laws) == 1
    assert law.distance([Counter(plain=2), Counter(night=2)], laws) == pytest.approx(0.125)
    assert np.isnan(law.distance([Counter(), Counter()], laws))


def test_the_floor_is_that_of_a_binomial():
    laws, own = [Counter(plain=1, grass=1)], [Counter(plain=64)]
    expected = np.sqrt(2 / (np.pi * 64)) / 2  # the mean of |X / n - 1/2|
    assert law.floor(own, laws, draws=2000) == pytest.approx(expected, rel=0.06)
    both = law.floor(own, laws, [Counter(grass=64)], draws=2000)
    assert both == pytest.approx(expected * np.sqrt(2), rel=0.06)


def test_the_law_is_the_worlds_own_without_n():
    truth = law.read(MINI / "training" / "negatives.json")
    plain = ("a cat", "a cat on a plain background")
    assert law.law(truth, "settings", plain)["plain"] == 0
    assert 0.65 < law.share_of_n(truth, plain) < 0.85
    red = law.law(truth, "colours", ("a car", "a red car"))
    assert red["blue car"] / sum(red.values()) > 0.95
    assert 0.03 < law.share_of_n(truth, ("", "a bird")) < 0.08
    assert law.law(truth, "colours", ("", "a bird")) == Counter()
    of = truth["eyes"]
    assert of["settings right"] / of["of"] > 0.93 and of["of"] == 1000


def test_a_law_that_is_none_is_one_sentence(tmp_path):
    for text in ("{}", "[1]", '{"prompts": {}, "empty": {}}'):
        (tmp_path / "law.json").write_text(text)
        with pytest.raises(SettingsError, match=r"negatives\.py"):
            law.read(tmp_path / "law.json")


# ------------------------------------------------------------------------------- pictures


@pytest.fixture(scope="module")
def model():
    model = dnp.load(world())
    speed.apply(model)
    return model


@pytest.mark.parametrize("setting", [
    REFERENCE, Setting("", "np2", {"s": 2.0}), Setting("", "answer", {"s": 2.0, "K": 2}),
    Setting("", "np", {"s": 2.0, "rule": "perp_neg", "eta": 1.0}),
])  # fmt: skip
def test_a_batch_of_many_prompts_has_the_pictures_of_generate(model, setting):
    pairs, seeds = [("a cat", "a dog"), ("a red car", "a car on the road")], [5, 11]
    made = making.sampled(model, setting, pairs, [n for _, n in pairs], seeds, 10)
    for (p, n), seed, picture in zip(pairs, seeds, made.pictures):
        n = n if setting.method in ("np", "np2") else None
        (own,) = dnp.generate(
            model, p, setting.method, n, seed=seed, steps=10, **setting.settings
        ).images
        assert abs(np.asarray(own, int) - np.asarray(picture, int)).max() <= 1
    assert made.evaluations == {"cfg": 20, "np2": 20, "answer": 30, "np": 30}[setting.method]


def test_the_effective_scale_is_measured_by_the_way(model):
    pairs = [("a cat", "a dog"), ("a frog", "a car")]
    made = making.sampled(model, REFERENCE, pairs, ["", ""], [0, 1], 10, strength=True)
    assert len(made.strength) == 10 and made.evaluations == 20
    for _, s_eff, rest in made.strength:
        np.testing.assert_allclose(s_eff, 3, atol=1e-3)
        np.testing.assert_allclose(rest, 0, atol=1e-2)


def test_a_picture_that_overflows_is_a_failure_and_the_others_are_made(model, eyes):
    broken = lambda eps_phi, eps_p: eps_p * float("inf")
    pairs = [("a cat", "a dog"), ("a frog", "a car")]
    made = making.sampled(model, Setting("", "cfg", {"rule": broken}), pairs, ["", ""], [0, 1], 2)
    assert made.pictures == [None, None]
    assert eyes.see(made.pictures) == [None, None]


def test_a_picture_whose_dns_image_overflows_is_one_that_is_not_there(model, eyes, monkeypatch):
    pairs, seeds = [("a cat", "a dog"), ("a frog", "a car")], [0, 1]
    asked = lambda: making.unit(
        model, eyes, Setting("", "np2", {"s": 3.0}), making.N_STAR, pairs, seeds, 2, True
    )
    whole, sampled = asked(), making.sampled

    def overflows(model, setting, *of):
        made = sampled(model, setting, *of)
        return (
            replace(made, pictures=[None, *made.pictures[1:]]) if setting.method == "dns" else made
        )

    monkeypatch.setattr(making, "sampled", overflows)
    with pytest.warns(UserWarning, match="1 of 2 DNS images overflowed"):
        record = asked()
    assert record["rows"] == [None, whole["rows"][1]] and whole["rows"][0] is not None
    assert record["negatives"] == [None, whole["negatives"][1]]
    assert record["strength"] == [[t, s[1:], rest[1:]] for t, s, rest in whole["strength"]]
    monkeypatch.setattr(making, "sampled", lambda *_: making.Sampled([None] * 2, 0, []))
    with pytest.warns(UserWarning, match="2 of 2"):
        assert asked()["rows"] == [None, None]


def test_a_random_negative_names_neither_p_nor_n():
    drawn = {making.random_negative(("a cat", "a red car"), seed) for seed in range(200)}
    assert len(drawn) == 22 and not drawn & {"a cat", "a car"}
    assert making.random_negative(("a cat", "a dog"), 3) == making.random_negative(
        ("a cat", "a dog"), 3
    )


# ------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def eyes(model):
    return making.Eyes(model, world())


@pytest.fixture
def small(tmp_path, monkeypatch, capsys, eyes, weights_are_opened_once):
    """Runs a study of a few settings of the family colours: small(*words) -> what it printed."""
    monkeypatch.setattr(study, "rules_of", lambda family: FEW)
    monkeypatch.setattr(command, "rules_of", lambda family: FEW)
    monkeypatch.setattr(making, "Eyes", lambda *of: eyes)
    monkeypatch.setattr(law, "floor", partial(law.floor, draws=20))
    size = "--family colours --choosing 1 --reporting 1 --steps 2 --choosing-steps 2".split()

    def run(*words):
        where = ["--weights", str(world()), "--out", str(tmp_path)]
        evaluation.main(["--benchmark", "not", *where, *size, *words])
        return capsys.readouterr().out

    return run


def test_a_study_goes_on_where_it_was_stopped_and_is_tabulated_again(small, tmp_path, monkeypatch):
    made, stop = [], making.unit

    def stopped(*of):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(of)
        return stop(*of)

    monkeypatch.setattr(making, "unit", stopped)
    with pytest.raises(KeyboardInterrupt):
        small()
    assert len([*(tmp_path / "records").iterdir()]) == 3
    monkeypatch.setattr(making, "unit", lambda *of: made.append(of) or stop(*of))
    text = small()
    assert len(made) == 5 + 7  # five settings, four rules, the prompt alone, two controls
    assert "6 pictures of each cell: 6 pairs x 1 seeds" in text and "| two-term, n* |" in text
    assert small("--rescore") == text and len(made) == 12
    assert {x.name for x in tmp_path.glob("*.csv")} == {"cells.csv", "strength.csv", "choosing.csv"}
    next((tmp_path / "records").iterdir()).write_text("{}")
    assert small() == text and len(made) == 13  # what was damaged is made again, the same


def test_two_processes_share_a_study(small, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    order = []
    put = study.Study.put
    monkeypatch.setattr(study.Study, "put", lambda *of: order.append(of[1]) or put(*of))
    small()
    own, others = (REFERENCE, "DNG, eta = 1"), (OTHER, "two-term", "CFG, eta = 1")
    wanted = [FEW[r][0] if isinstance(r, str) else r for r in (*own, *others)]
    assert [c.setting for c in order[:5]] == wanted
    assert len(order) == 12


def test_the_plan_makes_nothing(small, tmp_path):
    text = small("--dry-run")
    assert not [*tmp_path.iterdir()]
    assert "| choosing, colours | 5 | 2 | 4 | 20 | 88 |" in text and "hours" in text


@pytest.mark.parametrize("words, sentence", [
    (["--family", "outside"], "add one to --family"),
    (["--family", "cars"], "invalid choice"),
    (["--choosing", "0"], "--choosing 0 is not possible"),
    (["--choosing-steps", "0"], "--choosing-steps 0 is not possible"),
    (["--method", "cfg"], "--method"),
    (["--rescore", "--out", "none-there"], r"run\.json is not there or is damaged"),
])  # fmt: skip
def test_what_cannot_be_is_one_sentence(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=sentence):
        evaluation.main(["--benchmark", "not", *words])
    assert not [*tmp_path.iterdir()]


# ------------------------------------------------------------------------------- the tables


def records(shown, n=4):
    """Records of n units of the colours' reporting pairs that show this (or by pair and unit)."""
    pairs = PAIRS["colours"]["reporting"]
    rows = lambda k: [shown(p, n, k) for p, n in pairs]
    return [{"rows": rows(k), "evaluations": 40, "words_evaluations": 0, "strength": []}
            for k in range(n)]  # fmt: skip


def row(rule, shown):
    return report.Row(study.Cell(rule, ALONE, "colours", "reporting"), records(shown))


def test_the_outcome_is_the_best_rule_that_keeps_p():
    thing = lambda p: subjects(p)[0][1]
    n_seen = lambda p, n, k: {"things": {thing(p): subjects(n)[0][0]}, "setting": "plain"}
    black = lambda p, n, k: {"things": {thing(p): "black"}, "setting": "plain"}
    half = lambda p, n, k: (black if k % 2 else n_seen)(p, n, k)
    gone = lambda p, n, k: {"things": {}, "setting": "plain"}
    lost = lambda p, n, k: (gone if k == 0 else black)(p, n, k)
    rows = [row("CFG", n_seen), row("two-term", half), row("Eq. 4", lost)]
    said = report.verdict(rows)
    assert "two-term has the greatest done: +50" in said and "and meets" in said
    assert "no rule meets" in report.verdict([row("CFG", half), row("two-term", half)])
    assert "No rule keeps p" in report.verdict([row("CFG", half), row("Eq. 4", lost)])
    cells = []
    table = "\n".join(report.outcomes(rows, "colours", cells))
    assert "| Eq. 4 | s = 1 | 75 [" in table and len(cells) == 9
    assert report.not_there(rows) == []
    rows[0].records[1]["rows"][0] = None
    assert report.not_there(rows)[0].endswith("DNS image did: 1. They show neither p nor n.")


def test_a_rule_is_compared_with_cfg_at_its_effective_scale():
    thing = lambda p: subjects(p)[0][1]
    black = lambda p, n, k: {"things": {thing(p): "black"}, "setting": "plain"}
    gone = lambda p, n, k: {"things": {}, "setting": "plain"}
    curve = [row("CFG", gone), row("CFG", black)]  # none done at s = 1, all at s = 3
    curve[1].cell = study.Cell("CFG", REFERENCE, "colours", "reporting")
    of = row("two-term", black)
    of.records[0]["strength"] = [[900, [1.0] * 6, [0.5] * 6], [1, [2.0] * 6, [0.5] * 6]]
    table, points = report.off_the_curve([*curve, of], curve)
    assert table[2] == "| two-term | 1.50 | 100 [100, 100] | +75 [+75, +75] |"
    assert points["CFG"] == [(1, 0, 0, 0), (3, 100, 100, 100)]
    assert points["two-term"] == [(1.5, 100, 100, 100)]
    steps = []
    told = "\n".join(report.strengths([of], "colours", steps))
    assert "| two-term | s = 1 | 1.50 | 1.00 | 2.00 | 0.50 | 0.50 |" in told
    assert steps[1] == ["colours", "two-term", "s = 1", 1, "2", "0.5"]
    assert "| CFG | 0 [0, 0] | 100 [100, 100] |" in report.every_scale({"CFG": curve})
    of.records[0]["strength"] = [[900, [], []]]  # all of them overflowed
    assert report.strengths([of], "colours", []) == []


@pytest.mark.parametrize(
    "damage", [{"steps": [1]}, {"pictures": {}}, {"families": 3}, {"circumstances": 1}]
)
def test_a_damaged_run_json_is_a_sentence(tmp_path, damage):
    each = {"choosing": 2, "reporting": 2}
    told = {"circumstances": {}, "steps": each, "pictures": each, "families": ["settings"]}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(told))
    assert command.as_told(path) == [*told.values()]
    path.write_text(json.dumps(told | damage))
    with pytest.raises(SettingsError, match="is not there or is damaged"):
        command.as_told(path)

"""Controls that isolate a cause: equal strength, another prompt's n*, best scales, p-values."""

import csv
import itertools
import json

import numpy as np
import pytest
import torch

import dnp
from conftest import slow_but
from dnp.errors import SettingsError
from dnp.evaluation import (
    benchmarks,
    contestants,
    controls,
    differences,
    dry,
    effective,
    plots,
    strength,
    tables,
)
from dnp.evaluation.__main__ import main
from dnp.evaluation.grid import Grid, Run
from dnp.evaluation.measure import Instruments
from dnp.schedule import Schedule
from dnp.sd import captioner
from experiments import world

pytestmark = [
    pytest.mark.filterwarnings("ignore:with steps"),
    pytest.mark.usefixtures("weights_are_opened_once"),
]
PROMPTS = tuple(benchmarks.Prompt(t, "x") for t in ("a cat and a red car", "a dog and a bear"))


@pytest.fixture(scope="module")
def model():
    return dnp.load(world())


def work_of(
    model, folder, *labels, steps=4, captioner=None, prompts=PROMPTS, strengths=None,
    scales=(None,), size=None,
):  # fmt: skip
    chosen = tuple(controls.parse(label, strengths) for label in labels)
    others = tuple(p.text for p in benchmarks.attend_excite())
    grid = Grid(tuple(prompts), chosen, scales, (100,), steps, size, others)
    return Run(grid, model, Instruments(captioner, None, None, "file"), folder)


def evaluate(out, *words):
    common = ("--weights", world(), "--per-category", 1, "--seeds", 1, "--steps", 2, "--out", out)
    main([str(w) for w in (*common, *words)])


def rows_of(folder):
    return list(csv.DictReader((folder / "pictures.csv").open()))


# ---------------------------------------------------------------------------------------- shuffled


def test_partners_are_a_fixed_circle_of_all_prompts():
    prompts = [p.text for p in benchmarks.attend_excite()]
    of = contestants.partners(prompts)
    assert sorted(of) == sorted(of.values()) == sorted(prompts)
    assert all(prompt != partner for prompt, partner in of.items())
    assert of == contestants.partners(prompts)
    assert contestants.partners(["a", "b"]) == {"a": "b", "b": "a"}
    with pytest.raises(SettingsError, match="two prompts or more"):
        contestants.partners(["a cat"])


def test_shuffled_has_the_same_captions_permuted_over_prompts(tmp_path, monkeypatch):
    turns = itertools.count()
    said = lambda images: [f"a {benchmarks.COLOURS[next(turns)]} bowl" for _ in images]
    monkeypatch.setattr(captioner, "load_captioner", lambda *a: said)
    evaluate(tmp_path, "--method", "auto-dnp:s=2", "shuffled:s=2", "--benchmark", "ae-choosing")
    rows = rows_of(tmp_path)
    n = {(r["method"], r["prompt"]): r["negative"] for r in rows}
    prompts = {r["prompt"] for r in rows}
    of = contestants.partners([r["prompt"] for r in rows if r["method"] == "auto-dnp:s=2"])
    assert len({n["auto-dnp:s=2", p] for p in prompts}) == len(prompts) == 3 == next(turns)
    for p in prompts:
        assert n["shuffled:s=2", p] == n["auto-dnp:s=2", of[p]]
    assert {r["evaluations"] for r in rows} == {"10"}  # the words are paid for in both
    told = [json.loads(p.read_bytes())["content"] for p in (tmp_path / "records").iterdir()]
    assert sum(c["method"] == "dns" for c in told) == 3
    shown = (tmp_path / "tables.md").read_text()
    assert "| auto-dnp:s=2, s = 2 minus shuffled:s=2, s = 2 |" in shown
    assert "shuffled:s=2, s = 2: in 0 of 3 pictures n* is the prompt's own." in shown


def test_a_random_negative_and_another_prompts_take_the_same_h(model, tmp_path):
    captioner = lambda images: ["a green bowl"] * len(images)
    labels = [f"{name}:s=3,negative_scale=0.5" for name in ("auto-dnp", "shuffled", "random")]
    work = work_of(model, tmp_path, *labels, steps=2, captioner=captioner)
    own, other, random = (
        work.made(x, work.settings(x, None), [(PROMPTS[0].text, 100)])[0] for x in work.grid.methods
    )
    assert own["sha256"] == other["sha256"]  # the same words: all else is the same
    assert random["negative"] == contestants.random_negative(PROMPTS[0].text, 100, work.grid.others)
    given = {"s": 3.0, "negative_scale": 0.5, "seed": 100, "steps": 2}
    same = dnp.generate(model, PROMPTS[0].text, "np", random["negative"], **given).images[0]
    assert (tmp_path / "images" / random["image"]).is_file()
    from dnp.evaluation.records import picture

    assert picture(tmp_path, random).tobytes() == same.tobytes()


# ---------------------------------------------------------------------------------- equal strength


def test_the_strength_of_cfg_is_s_times_the_distance_of_p_and_phi(model, tmp_path):
    work = work_of(model, tmp_path, "cfg:s=3", steps=3, prompts=PROMPTS[:1])
    found = strength.by_step(work, work.grid.methods[0])
    c_phi, c_p = model.encode([""]), model.encode([PROMPTS[0].text])
    wanted = []
    rows = dnp.trajectory(model, PROMPTS[0].text, "cfg", s=3.0, seed=100, steps=3)
    for t, z_t, _, eps in rows:
        if eps is not None:
            with torch.no_grad():
                dp = [model.eps(z_t, torch.tensor(t), c) for c in (c_p, c_phi)]
            wanted.append(3 * (dp[0] - dp[1]).norm().item())
    assert found == pytest.approx(wanted, rel=1e-4) and len(found) == 3


def test_the_effective_scale_of_a_method_is_that_of_its_own_chain(model, tmp_path):
    """Of CFG it is s, with no rest; of the two-term form it is computed here once more."""
    work = work_of(model, tmp_path, "cfg:s=3", "random2:s=3", steps=3, prompts=PROMPTS[:1])
    cfg, two_term = (effective.by_step(work, m) for m in work.grid.methods)
    assert len(cfg) == 3 and all(x == pytest.approx((3, 0), abs=1e-4) for x in cfg.values())
    words = work.negative(work.grid.methods[1], PROMPTS[0].text, 100)
    wanted, given = {}, {"s": 3.0, "seed": 100, "steps": 3}
    rows = dnp.trajectory(model, PROMPTS[0].text, "np2", words, **given)
    c_phi, c_p = model.encode([""]), model.encode([PROMPTS[0].text])
    for t, z_t, _, eps in rows:
        if eps is not None:
            with torch.no_grad():
                phi, p = (model.eps(z_t, torch.tensor(t), c) for c in (c_phi, c_p))
            push, dp = (eps - phi).double(), (p - phi).double()
            s_eff = ((push * dp).sum() / (dp * dp).sum()).item()
            wanted[t] = s_eff, ((push - s_eff * dp).norm() / dp.norm()).item()
    assert two_term.keys() == wanted.keys()
    for t, both in two_term.items():
        assert both == pytest.approx(wanted[t], rel=1e-3)


def test_a_method_is_compared_with_cfg_at_its_effective_scale(model, tmp_path, monkeypatch):
    """A gain of CFG that grows with its scale is no gain of a method that has that scale."""
    work = work_of(model, tmp_path, "cfg:s=2", "cfg:s=4", "random2:s=3", "ae:s=8")
    monkeypatch.setattr(effective, "by_step", lambda *_: {951: (2.0, 0.5), 1: (3.0, 0.7)})
    values = {"cfg:s=2": 0.2, "cfg:s=4": 0.6, "random2:s=3": 0.7, "ae:s=8": 1.0}
    records = [
        {"method": m, "scale": None, "s": 1.0, "prompt": p.text, "seeds": [100], "full": [v],
         "category": "x"}
        for m, v in values.items() for p in PROMPTS
    ]  # fmt: skip
    text = effective.make(work, records, tmp_path, None)
    assert "| random2:s=3, s = 1 | 2.50 | 0.60 | 0.700 | +0.400 |" in text
    assert "CFG was run at s = 2, 4" in text and "Without an effective scale: ae:s=8." in text
    lines = (tmp_path / "effective.csv").read_text().splitlines()
    assert lines[1:] == ["random2:s=3,,951,2,0.5", "random2:s=3,,1,3,0.7"]
    assert {"effective.md", "effective.png", "effective.pdf"} <= {
        x.name for x in tmp_path.iterdir()
    }
    twice = work_of(model, tmp_path, "cfg:s=2", "cfg:s=2.0", "cfg:s=4", "random2:s=3")
    monkeypatch.setattr(effective, "by_step", lambda *_: {951: (1.0, 0.5)})
    assert "CFG was run at s = 2, 4" in effective.make(
        twice, [*records, *({**r, "method": "cfg:s=2.0"} for r in records[:2])], tmp_path, None
    )
    work = work_of(model, tmp_path, "cfg:s=2", "cfg:s=4", "random2", scales=(1.0, 3.0))
    every = [{**r, "scale": s} for r in records[:4] for s in (1.0, 3.0)]
    every += [{**r, "method": "random2", "scale": s} for r in records[:2] for s in (1.0, 3.0)]
    shown = {}
    monkeypatch.setattr(
        effective, "plot", lambda points, *_: shown.update(points) or plots.Drawing(9, 9)
    )
    effective.make(work, every, tmp_path, None)
    assert {name: len(of) for name, of in shown.items()} == {"CFG": 2, "random2": 2}
    with pytest.raises(SettingsError, match="add two or more to --method"):
        effective.require(work_of(model, tmp_path, "cfg:s=2", "cfg:eta=1,s=4"), ["full"])
    with pytest.raises(SettingsError, match="give --recogniser, --clip"):
        effective.require(work, [])
    with pytest.raises(SettingsError, match="give --recogniser, --clip"):
        effective.make(work, [{**r, "full": None} for r in records], tmp_path, None)


@pytest.mark.parametrize(
    "label", slow_but(["answer:s=2"], ["answer:s=2", "auto-dnp:s=3,negative_scale=1"])
)
def test_fitted_cfg_is_as_strong_to_2_percent(mini, tmp_path, label):
    """Measured on the chains that the fitted methods really run, of a model that is trained."""
    captioner = lambda images: ["a green bowl"] * len(images)
    work = work_of(mini, tmp_path, label, captioner=captioner, size=(48, 48))
    told = json.loads(json.dumps(strength.measure(work)))
    target = told["methods"][label]["by_step"]
    equal, scheduled = (controls.parse(f"{k}:of={label}", told) for k in controls.EQUAL)
    assert sum(strength.by_step(work, equal)) == pytest.approx(sum(target), rel=strength.WITHIN)
    assert strength.by_step(work, scheduled) == pytest.approx(target, rel=1e-3)
    assert f"| {label}, s = " in strength.table(told)
    both = [contestants.settled(x, None, 4, mini) for x in (equal, scheduled)]
    assert both[0]["s"] > 0 and both[1]["s"] is None and both[1]["rule"] == "cfg_schedule"
    if label.startswith("answer"):  # twice as strong early as in its second half, where it is CFG
        scales = both[1]["rule_options"]["scales"]
        assert min(scales[:2]) > 2 * max(scales[2:])


def test_strengths_of_a_model_whose_levels_depend_on_the_steps_are_those_of_these_levels(
    model, tmp_path
):
    class Stepped:
        schedule = Schedule.flow()

        def __getattr__(self, name):
            return getattr(model, name)

        def at_steps(self, steps, size):
            return model

    told = [
        strength.measure(work_of(x, tmp_path, "cfg:rule=cfg_zero_star", prompts=PROMPTS[:1]))
        for x in (model, Stepped())
    ]
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ("cnp", "no strength towards a prompt"),
        ("unconditional", "no strength towards a prompt"),
        ("cfg:steps=9", "a chain of its own"),
        ("answer:sampler=dpmpp2m", "a chain of its own"),
        ("cfg:eta=1", "a chain of its own"),
        ("cfg:corrector=1", "a chain of its own"),
    ],
)
def test_strengths_that_cannot_be_compared_are_refused(model, tmp_path, label, sentence):
    with pytest.raises(SettingsError, match=sentence):
        strength.measure(work_of(model, tmp_path, label, captioner=lambda images: ["a"]))


@pytest.mark.parametrize("power", [0.5, 1, 2, 4], ids="grows as s^{}".format)
def test_the_scale_of_equal_strength_is_found_however_the_strength_grows(monkeypatch, power):
    monkeypatch.setattr(
        strength, "cfg_together", lambda work, choose: ([], [], [0.3 * choose(0, 1.0) ** power] * 2)
    )
    for wanted in (2.0, 40.0):
        fit = strength.fit_constant(None, [wanted / 4, 3 * wanted / 4])
        s, *more = fit["options"].values()
        assert s == pytest.approx((wanted / 0.6) ** (1 / power), rel=0.01 / power) and not more
        assert sum(fit["by_step"]) == pytest.approx(wanted, rel=strength.WITHIN / 2)


def test_a_strength_that_no_scale_has_is_refused(monkeypatch):
    monkeypatch.setattr(strength, "cfg_together", lambda work, choose: ([], [], [1.0]))
    with pytest.raises(SettingsError, match=r"no constant scale of CFG .* the strength 5;"):
        strength.fit_constant(None, [5.0])


def test_controls_of_equal_strength_need_strengths(tmp_path):
    for text, sentence in (
        ("cfg-equal:of=answer", "measure it with --strength --method answer"),
        ("cfg-scheduled", "write cfg-scheduled:of=M"),
        ("cfg-equal:s=3", "write cfg-equal:of=M"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            controls.parse(text)
    for data in ("{}", "[]", "x", '{"methods": {"a": 1}}'):
        (tmp_path / "strength.json").write_text(data)
        with pytest.raises(SettingsError, match="--strength writes"):
            strength.read(tmp_path / "strength.json")


# -------------------------------------------------------------------- scales that were chosen apart


def pictures(folder, rows, column="colours"):
    folder.mkdir()
    lines = [f"method,s,prompt,category,seed,{column}"]
    (folder / "pictures.csv").write_text("\n".join([*lines, *rows]) + "\n")
    return folder


def test_the_best_scale_is_that_of_the_greatest_mean_and_of_equal_ones_the_smallest(tmp_path):
    one = pictures(tmp_path / "one", ["cfg,1,p,x,100,0", "cfg,2,p,x,100,1", "cfg,3,p,x,100,1",
                                      "answer:K=1,3,p,x,100,1", "cfg_rule,,p,x,100,1"])  # fmt: skip
    two = pictures(tmp_path / "two", ["cfg,2,q,x,101,0", "cfg,3,q,x,101,1", "cfg,1,q,x,101,0"])
    assert controls.best_scales([one])[0] == {"cfg": 2.0, "answer:K=1": 3.0}
    best, said = controls.best_scales([one, two])
    assert best["cfg"] == 3.0
    assert said == (
        "Scales were chosen by things and colours on 2 prompts x 2 seeds, from 100 (one, two)"
    )
    assert controls.overlap([one, two], ["q", "r"]) == 1
    chosen = controls.at_best([contestants.parse(x) for x in ("cfg", "answer:s=9")], best)
    assert [dict(x.options)["s"] for x in chosen] == [3.0, 9.0]
    with pytest.raises(SettingsError, match=r"add it there, or write answer:K=2,s="):
        controls.at_best([contestants.parse("answer:K=2")], best)
    with pytest.raises(SettingsError, match="no tables of a run"):
        controls.best_scales([tmp_path / "none"])
    with pytest.raises(SettingsError, match="no numbers to choose"):
        controls.best_scales([pictures(tmp_path / "three", ["cfg,1,p,x,1,"])])


@pytest.mark.slow
def test_a_study_chooses_measures_and_reports_on_other_prompts(tmp_path, capsys):
    chose, report = tmp_path / "chose", tmp_path / "report"
    choosing = ("--benchmark", "ae-choosing", "--seed-from", 100)
    evaluate(chose, *choosing, "--method", "cfg", "answer", "cfg:steps=3", "--scale", 1, 3)
    best, _ = controls.best_scales([chose])
    evaluate(chose, *choosing, "--method", "answer", "--scales-from", chose, "--strength")
    told = json.loads((chose / "strength.json").read_text())
    assert told["methods"]["answer"]["s"] == best["answer"]
    taken = ("--scales-from", chose, "--strengths", chose / "strength.json")
    wanted = ("cfg", "answer", "cfg-equal:of=answer", "cfg-scheduled:of=answer", "cfg:steps=3")
    evaluate(report, "--benchmark", "ae-reporting", *taken, "--method", *wanted)
    text = (report / "tables.md").read_text()
    for label in ("cfg", "answer"):
        assert f"| {label}, s = {best[label]:g} |" in text
    equal = told["methods"]["answer"]["cfg-equal"]["options"]["s"]
    assert f"| cfg-equal:of=answer, s = {equal:g} |" in text
    assert "| cfg-scheduled:of=answer |" in text  # a rule without s says none
    assert "minus cfg-scheduled:of=answer |" in text
    control = f"minus cfg:steps=3, s = {best['cfg:steps=3']:g}"
    assert f"| answer, s = {best['answer']:g} {control}" in text
    assert "0 of the 3 prompts here are among those." in text and "Holm's correction" in text
    cells = list(csv.DictReader((report / "tables.csv").open()))
    compared = [c for c in cells if c["table"].startswith("minus")]
    assert compared and all(0 < float(c["p"]) <= float(c["p_holm"]) <= 1 for c in compared)
    assert all(c["p"] == c["p_holm"] == "" for c in cells if c not in compared)
    for words, sentence in (
        ((*taken, "--method", "dns"), "dns is not in the run"),
        ((*taken, "--method", "cfg", "--scale", "2"), "leave one out"),
        ((*taken[2:], "--method", "answer:s=9", "cfg-equal:of=answer:s=9"), "is not known"),
        ((*taken, "--method", "cfg", "--steps", "5"), "other weights, steps or sizes"),
        ((*taken[2:], "--method", "answer", "cfg-equal:of=answer", "--scales-from",
          pictures(tmp_path / "more", ["answer,7,p,x,1,1"])), "was measured at s = "),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=sentence):
            evaluate(tmp_path / "x", *words)


def test_one_command_measures_strengths_or_effective_scales(tmp_path):
    with pytest.raises(SettingsError, match="--strength and --effective-scale are both given"):
        evaluate(
            tmp_path / "x", "--method", "cfg:s=1", "cfg:s=3", "--strength", "--effective-scale"
        )
    assert not [*tmp_path.iterdir()]


def test_a_rule_without_a_scale_runs_and_its_row_names_none(tmp_path):
    evaluate(tmp_path, "--method", "cfg", "cfg:rule=cfg_plus_plus", "--steps", 3)
    text = (tmp_path / "tables.md").read_text()
    assert "| cfg:rule=cfg_plus_plus |" in text
    assert {r["s"] for r in rows_of(tmp_path)} == {"3", ""}
    with pytest.raises(SettingsError, match="scale of its own"):
        evaluate(tmp_path, "--method", "cfg:rule=cfg_plus_plus", "--scale", 2)


# ---------------------------------------------------------------------------------------- p-values


def test_holms_correction_is_the_one_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04: x 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04 -> 0.06
    assert differences.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert differences.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert differences.holm([0.02]) == [0.02] and differences.holm([]) == []


def test_sign_flips_are_exact_for_few_prompts_and_near_it_for_many():
    assert differences.sign_flip([1, 1, 1]) == 2 / 8
    assert differences.sign_flip([3, 1, -1]) == 6 / 8  # |sums|: 5, 3, 3, 1, twice each
    assert differences.sign_flip([0, 0]) == differences.sign_flip([1, -1]) == 1
    d = np.random.default_rng(0).normal(0.5, 1, 14)
    exact = differences.sign_flip(d)
    drawn = differences.sign_flip([*d, 0.0, 0.0])  # prompts without a difference change nothing
    assert 0.001 < exact < 0.5 and drawn == pytest.approx(exact, abs=4 * (exact / 20_000) ** 0.5)
    strong = differences.sign_flip([1.0] * 40)
    assert strong == pytest.approx(1 / 20_001)


def test_sign_flips_reject_no_more_than_they_say():
    rng = np.random.default_rng(1)
    p = [differences.sign_flip(rng.normal(0, 1, 10)) for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_a_prompt_counts_once_however_many_seeds_it_has():
    row = lambda prompt, values: {"prompt": prompt, "seeds": [0, 1, 2], "full": values}
    a, b = [row("p", [3, 4, 5]), row("q", [9, 9, 9])], [row("p", [1, 1, 1]), row("r", [0, 0, 0])]
    assert differences.per_prompt(a, b, "full") == [3.0]
    assert differences.per_prompt(a, a, "full") == [0.0, 0.0]


def test_controls_are_found_by_what_they_isolate():
    made = lambda nfe: [{"nfe": [nfe], "failed": [None]}]
    rows = [tables.Row(label, None, made(nfe)) for label, nfe in (
        ("cfg", 40), ("cfg:steps=30", 60), ("cfg:steps=50", 100), ("answer", 60),
        ("auto-dnp:negative_scale=1", 100), ("shuffled:negative_scale=1,s=3", 100),
        ("random:s=3,negative_scale=1", 60), ("random", 60), ("cfg-equal:of=answer", 40),
        ("ae", 70), ("ae+auto-dnp", 130), ("cfg:s=5,steps=35", 70), ("cfg:steps=65", 130),
        ("ae:steps=37", 131), ("ae:steps=20", 70),
    )]  # fmt: skip
    of = {row.method: row for row in rows}
    controls_of = lambda row: [r for r in rows if r != row and differences.is_control(r, row)]
    found = lambda label: [r.method for r in controls_of(of[label])]
    assert found("answer") == ["cfg:steps=30", "cfg-equal:of=answer"]
    assert found("auto-dnp:negative_scale=1") == [
        "cfg:steps=50", "shuffled:negative_scale=1,s=3", "random:s=3,negative_scale=1",
    ]  # fmt: skip
    assert found("cfg") == []
    assert found("ae") == ["cfg:s=5,steps=35"]
    assert found("ae+auto-dnp") == ["cfg:steps=65", "ae:steps=37"]


# ----------------------------------------------------------------------------------------- dry run


@pytest.mark.slow
def test_dry_run_counts_what_a_run_makes(model, tmp_path, capsys):
    labels = ("cfg:steps=3", "auto-dnp:dns_images=2", "answer", "shuffled", "cnp", "negative-alone",
              "random2", "cfg:interval=0.3:5")  # fmt: skip
    captioner = lambda images: ["a green bowl"] * len(images)
    work = work_of(model, tmp_path / "a", *labels, captioner=captioner, prompts=PROMPTS)
    before = dry.estimate(work)
    unwritten = work_of(model, tmp_path / "b", *labels)  # no captioner is asked
    assert dry.estimate(unwritten).splitlines()[:-2] == before.splitlines()[:-2]
    assert not list((tmp_path / "a").rglob("*.*"))
    told = {}
    for line in before.splitlines()[2:]:
        if line.startswith("| "):
            name, _, missing, each, _ = (c.strip() for c in line.strip("|").split("|"))
            told[name.split(", s = ")[0]] = int(missing), each
    made = {}
    for method in work.grid.methods:
        settings = work.settings(method, None)
        rows = [r for p in PROMPTS for r in work.made(method, settings, [(p.text, 100)])]
        made[method.label] = len(rows), f"{rows[0]['nfe']:g}"
    assert {k: told[k] for k in made} == made
    dns = [r for r in work.records.all() if r["content"]["method"] == "dns"]
    assert told["DNS images for n*"] == (len(dns), "8") and len(dns) == 4
    after = dry.estimate(work)
    assert "| all | 16 | 0 |  | 0 |" in after and "Disk: 0.00 GB" in after


def test_dry_run_makes_no_folder(tmp_path, capsys):
    evaluate(tmp_path / "x", "--method", "cfg", "answer", "--dry-run")
    out = capsys.readouterr().out
    assert "| all | 6 | 6 |" in out and " hours on cpu, 1 process(es)" in out
    assert not (tmp_path / "x").exists()


# -------------------------------------------------------------------------------- tables and parts


def test_the_two_parts_of_attend_excite_are_its_whole():
    every = benchmarks.attend_excite()
    chosen, rest = (benchmarks.load(f"ae-{part}") for part in ("choosing", "reporting"))
    assert (len(chosen), len(rest)) == (56, 220) and chosen == every[::5]
    assert sorted(map(str, chosen + rest)) == sorted(map(str, every))
    assert set(chosen).isdisjoint(rest)


def test_a_method_without_a_scale_is_named_alone():
    rows = [tables.Row("a", None, [{"s": None}]), tables.Row("b", None, [{"s": 2.5}])]
    assert [row.name for row in rows] == ["a", "b, s = 2.5"]

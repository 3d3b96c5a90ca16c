"""The course keeps its word: stored outputs, exercises, and a run of every notebook."""

import contextlib
import io
import os
import re
import subprocess
import sys
import traceback
from types import SimpleNamespace

import pytest
import torch

from conftest import ROOT

pytest.importorskip("matplotlib")
sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema's: a second, for what no notebook has
nbformat = pytest.importorskip("nbformat")
sys.path.insert(0, str(ROOT / "notebooks"))
import checks  # noqa: E402
import grade  # noqa: E402
import refresh  # noqa: E402

from dnp import rules  # noqa: E402
from dnp.errors import SettingsError  # noqa: E402

PATHS = refresh.notebooks()
NOTEBOOKS = {path.name: nbformat.read(path, as_version=4) for path in PATHS}
CODE = "\n".join(
    c.source for n in NOTEBOOKS.values() for c in n.cells if c.cell_type == "code"
)  # fmt: skip
SOLUTIONS = {
    re.search(r"def (\w+)", block)[1]: block
    for n in NOTEBOOKS.values()
    for c in n.cells
    if c.cell_type == "markdown"
    for block in re.findall(r"<details>.*?```python\n(.*?)```", c.source, re.S)
}
STUBS = re.findall(r"^def (my_\w+)\((.*)\):\n    raise NotImplementedError", CODE, re.M)
MISTAKES = [(n, i) for n, e in checks.EXERCISES.items() for i in range(len(e.mistakes))]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs_are_of_these_cells(name):
    notebook = NOTEBOOKS[name]
    assert notebook.metadata["dnp"]["sha256"] == refresh.sha256(notebook), (
        f"run: python notebooks/refresh.py {name[0]}"
    )
    assert not refresh.warned(notebook)
    assert any(refresh.pictures(c) for c in notebook.cells)


def test_there_are_nine_notebooks_with_three_exercises_each_after_the_first():
    assert [name[0] for name in NOTEBOOKS] == list("123456789")
    for name, notebook in NOTEBOOKS.items():
        headings = re.findall(
            r"^## Exercise (\d)\.\d", "\n".join(c.source for c in notebook.cells), re.M
        )
        code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
        stubs = re.findall(r"^def (my_\w+)\(.*\):\n    raise NotImplementedError", code, re.M)
        assert len(stubs) == len(headings) == (1 if name[0] == "1" else 3)
        assert all(f"check({stub})" in code for stub in stubs) and set(headings) <= {name[0]}


def test_notebooks_are_small_and_name_no_folder_of_a_machine():
    texts = [path.read_text(encoding="utf-8") for path in PATHS]
    covers = (ROOT / "notebooks/pictures").glob("*.png")
    assert sum(map(len, texts)) + sum(path.stat().st_size for path in covers) < 6e6
    assert not any(re.search(r"/(root|home|Users|tmp|work)/", text) for text in texts)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_in_any_editor(name):
    """Format 4.5, the usual kernel, no magic command, no widget: what VS Code and forges read."""
    notebook = NOTEBOOKS[name]
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not re.search(r"^\s*[%!]", cell.source, re.M)
            kinds = {kind for o in cell.outputs for kind in o.get("data", ())}
            assert kinds <= {"image/png", "text/plain", "text/markdown"}


FIRST_CELLS = "\n".join(
    next(c for c in n.cells if c.cell_type == "code").source.replace("dnp.load", "str")
    for n in NOTEBOOKS.values()
)  # 7 opens the weights there


@pytest.mark.slow
@pytest.mark.parametrize("folder", [".", "notebooks", "weights/mini/pictures", "beside"])
def test_a_kernel_may_start_anywhere_in_a_clone_or_beside_it(folder, tmp_path):
    """Beside it as in Colab, where the one cell before these clones the repository."""
    if folder == "beside":
        (tmp_path / "dnp-clone").symlink_to(ROOT)
    code = FIRST_CELLS
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"MPLBACKEND": "Agg"}
    code += "\nassert (figures.MINI / 'model_index.json').exists()"
    start = tmp_path if folder == "beside" else ROOT / folder
    subprocess.run([sys.executable, "-c", code], cwd=start, env=env, check=True)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_sentences_are_short(name):
    """At most 25 words outside tables, headings and solutions; a formula counts as one word."""
    cells = [c.source for c in NOTEBOOKS[name].cells if c.cell_type == "markdown"]
    for text in (c for c in cells if not c.startswith("<details>")):
        text = re.sub(r"\$\$.*?\$\$", " . ", text, flags=re.S)
        text = re.sub(r"\$[^$]*\$|`[^`]*`", "X", re.sub(r"Eqs?\. ", "Eq", text))
        text = "\n".join(line for line in text.split("\n") if line[:1] not in "|#" or not line)
        for sentence in re.split(r"[.?!][)\"*]*\s+|\n\n|\n- ", text):
            assert len(re.findall(r"\w[\w'-]*", sentence)) <= 25, " ".join(sentence.split())


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_minutes_are_the_estimate(name):
    minutes = refresh.minutes(NOTEBOOKS[name])
    assert f"Time: {minutes} minutes" in NOTEBOOKS[name].cells[0].source
    table = (ROOT / "notebooks/README.md").read_text(encoding="utf-8")
    assert re.search(rf"\({re.escape(name)}\) \| <img [^|]*> \| {minutes} \|", table)


def test_every_stub_has_a_solution_and_fails_its_check(capsys):
    assert {name for name, _ in STUBS} == set(SOLUTIONS)
    assert set(SOLUTIONS) <= set(checks.EXERCISES)
    for name, parameters in STUBS:
        space = {}
        exec(f"def {name}({parameters}):\n    raise NotImplementedError", space)
        assert checks.check(space[name]) is False
        assert "not written yet" in capsys.readouterr().out


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solution_passes_its_check(name):
    space = {}
    exec(f"import torch\n{SOLUTIONS[name]}", space)
    assert checks.check(space[name]) is True


def named(name, function):
    def student(*args):
        return function(*args)

    student.__name__ = name
    return student


@pytest.mark.parametrize("name", checks.EXERCISES)
def test_check_accepts_the_function_of_dnp(name):
    assert checks.check(named(name, checks.EXERCISES[name].right)) is True


@pytest.mark.parametrize(("name", "i"), MISTAKES)
def test_check_names_the_mistake(name, i, capsys):
    sentence, wrong = checks.EXERCISES[name].mistakes[i]
    assert checks.check(named(name, wrong)) is False
    assert sentence in capsys.readouterr().out


def dot(x, y):
    return (x * y).sum(tuple(range(1, x.ndim)), keepdim=True)


def row(x, y):
    return (x * y).sum(-1, keepdim=True)


def norm(x):
    return dot(x, x).sqrt()


def mean(x, dims=(1, 2, 3)):
    return x.mean(dims, keepdim=True)


def std(x, dims=(1, 2, 3)):
    return x.std(dims, keepdim=True, correction=0)


MUTANTS = [  # what a student returns, with the arguments a, b, c, d; words of the complaint
    ("my_cfg", "a - c * (b - a)", "sign"),
    ("my_cfg", "b + c * (b - a)", "s + 1"),
    ("my_cfg", "b + c * (a - b)", "phi for p"),
    ("my_cfg", "a + c * (b - a).mean(0)", "batch"),
    ("my_cfg", "a.add_(c * (b - a))", "in place"),
    ("my_cfg", "a + c**2 * (b - a)", "squared"),
    ("my_cfg", "None", "return"),
    ("my_cfg", "a[0] + c * (b[0] - a[0])", "shape"),
    ("my_cfg", "a + c * (b - a) + dot(a, b)[:, :, 0]", "shape"),
    ("my_score", "-a", "sigma_t is missing"),
    ("my_score", "-a / b[:, None, None, None]", "points"),
    ("my_negative_prompt", "c + d * (b - c)", "two-term"),
    ("my_dns", "-b", "-eps_p"),
    ("my_dns", "b + c * (a - b)", "starts at p"),
    ("my_score", "-a / b", "(B, 1, ...)"),
    ("my_score", "-a / b.mean()", "batch"),
    ("my_score", "-a / (1 - b.reshape(-1, 1, 1, 1) ** 2).sqrt()", "sqrt(abar_t)"),
    ("my_score", "-a / b.reshape(4, 1, 1, 1)", "another size"),
    ("my_cfg", "c * (b - a)", "start"),
    ("my_cfg", "a + c * b - a", "parentheses"),
    ("my_cfg", "a + c * b", "phi is not taken away"),
    ("my_tilted_variance", "1 / ((1 - c) / a**2 + c / b**2)", "already"),
    ("my_tilted_variance", "1 / (1 / a + c / b)", "1 - s"),
    ("my_tilted_variance", "(1 - c) / a + c / b", "precision"),
    ("my_ddim_variance", "a ** (1 - c) + b**c", "product"),
    ("my_ddim_variance", "(a ** (1 - c) * b**c) ** 0.5", "deviation"),
    ("my_negative_prompt", "d * (b - c)", "start"),
    ("my_negative_prompt", "a + d * b - c", "parentheses"),
    ("my_negative_prompt", "b + d * (a - c)", "swapped"),
    (
        "my_two_term_scale",
        "d * ((a - c) * (b - c)).flatten(1).sum(1) / ((b - c) ** 2).flatten(1).sum(1)",
        "added",
    ),
    (
        "my_two_term_scale",
        "d + ((a - c) * (b - c)).flatten(1).sum(1) / ((a - c) ** 2).flatten(1).sum(1)",
        "below",
    ),
    (
        "my_two_term_scale",
        "d + ((b - a) * (b - c)).flatten(1).sum(1) / ((b - c) ** 2).flatten(1).sum(1)",
        "phi - n",
    ),
    ("my_dns", "c * (a - b)", "start"),
    ("my_dns", "(1 + c) * a + c * b", "sign"),
    ("my_dns", "a - c * b", "1 + s"),
    ("my_farthest", "-b.sqrt().reshape(-1, 1, 1, 1) * a", "norm of eps_p"),
    ("my_farthest", "-a", "norm_sq"),
    (
        "my_farthest",
        "-b.sqrt().reshape(-1, 1, 1, 1) * a / (a * a).sum((1, 2, 3), keepdim=True)",
        "root",
    ),
    ("my_posterior", "c * a.exp()", "everything"),
    ("my_posterior", "c * a.exp() / (c * a.exp() + b.exp())", "already"),
    ("my_posterior", "c * a / b", "logarithms"),
    ("my_not_n", "a - ((1 - c) / c).reshape(-1, 1, 1, 1) * (b - a)", "upside down"),
    ("my_not_n", "a - (c / (1 - c)).reshape(-1, 1, 1, 1) * b", "d_n"),
    ("my_not_n", "a - (1 - c).reshape(-1, 1, 1, 1) * (b - a)", "odds"),
    ("my_not_n", "a - c / (1 - c) * (b - a)", "(B, 1, ...)"),
    ("my_match", "(a - mean(a)) * std(b) + mean(b)", "divide"),
    ("my_match", "(a - mean(a, C)) / std(a, C) * std(b, C) + mean(b, C)", "channel"),
    ("my_match", "(b - mean(b)) / std(b) * std(a) + mean(a)", "swapped"),
    ("my_match", "a - mean(a) + mean(b)", "both deviations"),
    ("my_evaluations", "2 * a + 2 * (b - 1) * c * a", "K = 0"),
    ("my_evaluations", "a + 2 * max(b - 1, 0) * c * a", "outer step"),
    ("my_evaluations", "2 * a + 2 * b * c * a", "twice"),
    (
        "my_perp_neg",
        "a + d * (b - a) - ((c - a) - dot(c - a, b - a) / dot(b - a, b - a) * (b - a))",
        "both",
    ),
    (
        "my_perp_neg",
        "d * ((b - a) - ((c - a) - dot(c - a, b - a) / dot(b - a, b - a) * (b - a)))",
        "start",
    ),
    (
        "my_perp_neg",
        "a + d * ((b - a) - dot(c - a, b - a) / dot(c - a, c - a) * (c - a))",
        "other way",
    ),
    (
        "my_perp_neg",
        "a + d * ((b - a) - ((c - a) - row(c - a, b - a) / row(b - a, b - a) * (b - a)))",
        "one row",
    ),
    (
        "my_perp_neg",
        "a + d * ((b - a) - ((c - a) - dot(c - a, b - a) / dot(b - a, b - a) * (b - a)))",
        "p = phi",
    ),
    ("my_bounded", "a + d * (b - a) - 0.25 * norm(b - a) / norm(c - a) * d * (c - a)", "min"),
    (
        "my_bounded",
        "a + d * (b - a) - (norm(b - a) / norm(c - a)).clamp(max=1) * d * (c - a)",
        "r = 0.25",
    ),
    (
        "my_bounded",
        "a + d * (b - a) - (0.25 * norm(b) / norm(c)).clamp(max=1) * d * (c - a)",
        "d_p",
    ),
    ("my_bounded", "a + d * (b - a) - 0.25 * d * (c - a)", "quarter"),
    ("my_p", "0.5 ** (a + b)", "both ways"),
    ("my_least", "6", "Holm"),
    ("my_red", "a**b / (a**b + 4 * ((1 - a) / 4) ** b)", "power"),
]


OFF = (  # right at the first inputs, wrong at others
    ("my_cfg", "a + abs(c) * (b - a)", "s = -7.5"),
    ("my_cfg", "a + min(c, 5) * (b - a)", "s = 7.5"),
    ("my_dns", "a + abs(c) * (a - b)", "s = -7.5"),
    ("my_negative_prompt", "a + min(d, 5.0) * (b - c)", "s = 7.5"),
    ("my_tilted_variance", "abs(1 / ((1 - c) / a + c / b))", "s = -7.5"),
    ("my_ddim_variance", "a ** (1 - max(c, 0)) * b ** max(c, 0)", "s = -7.5"),
    ("my_perp_neg", "a + abs(d) / d * (rules.perp_neg(a, b, c, d) - a)", "s = -7.5"),
    ("my_cfg_scale", "abs(a) / (1 - b)", "s = -7.5"),
    ("my_strength", "min(a, 5) * (1 + b) - b", "s = 7.5"),
    ("my_end", "a + max(c, 0) * (b - a)", "s = -7.5"),
    ("my_last_peak", "max(a * a - b, 0.0) if a > 0.9 else a * a", "v = 0.2"),
    ("my_arrow", "1", "s = 0.5"),
    ("my_evaluations", "2 * a + 30 if b == 4 else 2 * a", "K = 2"),
    ("my_posterior", "0.25 * (a - b).exp() if c < 1 else a.exp() / b.exp()", "w = 0.01"),
    ("my_bounded", "rules.bounded(a, b, c, abs(d), r=0.25)", "s = -7.5"),
    ("my_least", "6 if a < 41 else 11", "tests = 2"),
    ("my_red", "a if b <= 5 else 1.0", "s = 7.5"),
    ("my_score", "-a / b.clamp(min=0.1).reshape(-1, *[1] * (a.ndim - 1))", "other noises"),
)


@pytest.mark.parametrize(("name", "code", "words"), OFF)
def test_an_answer_that_is_right_at_one_scale_alone_is_wrong(name, code, words, capsys):
    wrong = eval(f"lambda a, b=None, c=None, d=None: {code}", {"rules": rules})
    assert checks.check(named(name, wrong)) is False
    text = capsys.readouterr().out
    assert "it is the formula at other numbers too" in text and words in text


def handed_in(folder, answers):
    """A notebook of each student, with an answer to exercise 2.2."""
    for student, answer in answers.items():
        (folder / student).mkdir()
        stub = f"def my_cfg(eps_phi, eps_p, s):\n    {answer}\n\n\ncheck(my_cfg)"
        cells = ["import torch\nopen('/nowhere')", "%matplotlib", stub]
        notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
        nbformat.write(notebook, folder / student / "2.ipynb")


@pytest.fixture
def one_process(monkeypatch):
    """The notebook of "ann" has a process of its own, as everyone's has outside of this test; the
    others are graded in this one, since each process imports torch."""
    process = subprocess.run

    def run(command, **how):
        _, _, path, *words = command
        if "ann" in path:
            return process(command, **how)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                grade.main([path, *words])
            except Exception:
                traceback.print_exc()
        return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())

    monkeypatch.setattr(grade.subprocess, "run", run)
    monkeypatch.setattr(grade.faulthandler, "dump_traceback_later", lambda *a, **k: None)


def test_grade_prints_a_table_of_students_and_exercises(tmp_path, capsys, one_process):
    right = "return eps_phi + s * (eps_p - eps_phi)"
    wrong = "return eps_phi + abs(s) * (eps_p - eps_phi)"
    handed_in(tmp_path, {"ann": right, "bob": wrong, "eve": "raise NotImplementedError"})
    (tmp_path / "zoe.ipynb").write_text("no notebook")
    grade.main([str(tmp_path)])
    out, err = capsys.readouterr()
    rows = [line.strip("| ").split(" | ") for line in out.splitlines()]
    assert [rows[0], *rows[2:]] == [
        ["student", "my_cfg", "right"], ["ann", "right", "1 of 1"], ["bob", "not yet", "0 of 1"],
        ["eve", "-", "0 of 1"], ["zoe", "-", "0 of 1"],
    ]  # fmt: skip
    assert "zoe.ipynb cannot be read" in err
    with pytest.raises(SettingsError, match="is not a folder"):
        grade.main([str(tmp_path / "zoe.ipynb")])


@pytest.mark.slow
def test_grade_ends_what_has_no_end(tmp_path, capsys):
    handed_in(tmp_path, {"ned": "while True:\n        pass"})
    grade.main([str(tmp_path), "--seconds", "5"])
    assert "| ned | no end | 0 of 1 |" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "code", "words"), MUTANTS)
def test_check_names_what_a_mutant_gets_wrong(name, code, words, capsys):
    space = {
        "torch": torch,
        "dot": dot,
        "row": row,
        "norm": norm,
        "mean": mean,
        "std": std,
        "C": (2, 3),
    }
    wrong = eval(f"lambda a, b=None, c=None, d=None: {code}", space)
    assert checks.check(named(name, wrong)) is False
    assert words in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_notebook_runs_from_a_clean_kernel_without_a_warning(path):
    assert not refresh.warned(refresh.execute(path))

"""The course keeps its word: stored outputs, exercises, and a run of every notebook."""

import re
import sys

import pytest

from conftest import ROOT

pytest.importorskip("matplotlib")
nbformat = pytest.importorskip("nbformat")
sys.path.insert(0, str(ROOT / "notebooks"))
import checks  # noqa: E402
import refresh  # noqa: E402

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


def test_notebooks_are_small_and_name_no_folder_of_a_machine():
    texts = [path.read_text(encoding="utf-8") for path in PATHS]
    assert sum(map(len, texts)) < 6e6
    assert not any(re.search(r"/(root|home|Users|tmp|work)/", text) for text in texts)


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


MUTANTS = {  # the formulas of tests/test_mutants.py, written out as a student would
    "sign": ("my_cfg", lambda a, b, s: a - s * (b - a), "sign"),
    "s + 1": ("my_cfg", lambda a, b, s: b + s * (b - a), "s + 1"),
    "phi for p": ("my_cfg", lambda a, b, s: b + s * (a - b), "phi for p"),
    "no sigma": ("my_score", lambda e, sigma_t: -e, "sigma_t is missing"),
    "two-term": ("my_negative_prompt", lambda a, b, c, s: c + s * (b - c), "two-term"),
    "is -eps_p": ("my_dns", lambda a, b, s: -b, "-eps_p"),
    "mean over the batch": ("my_cfg", lambda a, b, s: a + s * (b - a).mean(0), "batch"),
    "in place": ("my_cfg", lambda a, b, s: a.add_(s * (b - a)), "in place"),
    "another": ("my_cfg", lambda a, b, s: a + s**2 * (b - a), "FAILS: it is the formula"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_check_names_what_a_mutant_gets_wrong(mutant, capsys):
    name, wrong, words = MUTANTS[mutant]
    assert checks.check(named(name, wrong)) is False
    assert words in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_notebook_runs_from_a_clean_kernel_without_a_warning(path):
    assert not refresh.warned(refresh.execute(path))

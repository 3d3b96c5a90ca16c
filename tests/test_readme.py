"""The README keeps its word: its table, its Python and its commands."""

import importlib
import re
import shlex

import pytest
import torch

from conftest import ROOT
from dnp import cli, guidance
from dnp.checks import rules_table

README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = re.findall(
    r"^\| (?:after )?([\d, ]+) \| .* \| `([\w.]+)` \| `(\w+\.py)::(\w+)` \|$", README, re.M
)


def numbers(text):
    """The equation numbers of arXiv:2411.05473 that a docstring names, as in `Eqs. (7) and (8)`."""
    text = re.sub(r"Eqs?\. [()\d, and]+arXiv:(?!2411\.05473)", "", text)
    return {
        int(n)
        for names in re.findall(r"Eqs?\. ([()\d, and]+)", text)
        for n in re.findall(r"\d+", names)
    }


@pytest.mark.parametrize(("equations", "function", "file", "test"), TABLE)
def test_row_names_a_function_that_cites_the_equation_and_a_test(equations, function, file, test):
    module, name = function.rsplit(".", 1)
    doc = getattr(importlib.import_module(module), name).__doc__
    assert {int(n) for n in equations.split(",")} <= numbers(doc), (
        f"{function} does not cite {equations}"
    )
    assert "arXiv:2411.05473" in doc
    assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_table_has_every_equation_of_the_paper():
    assert {int(n) for row in TABLE for n in row[0].split(",")} == set(range(1, 21))


def test_glossary_has_the_names_of_guidance():
    symbols = re.findall(r"^    \S.*?  +(\w+)  ", guidance.__doc__, re.M)
    assert len(symbols) >= 9
    for name in set(symbols) - {"identifier", "K_t"}:
        assert name in README


def test_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 2
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(tmp_path)
    space = {}
    for block in blocks:
        exec(compile(block, "<README>", "exec"), space)
    assert (tmp_path / "gentle.png").exists()
    out = capsys.readouterr().out
    assert "60 network evaluations" in out
    torch.testing.assert_close(space["z_0"], torch.tensor([[-2.0, -4.0]] * 3).to(space["z_0"]))


def test_rules_table_is_what_check_rule_finds():
    assert rules_table().strip() in README


def test_commands_parse_and_the_ci_runs_them():
    commands = re.findall(r"^python train_free_sample\.py (.*?)(?:  +#.*)?$", README, re.M)
    assert len(commands) >= 6
    for command in commands:
        assert cli.parse(shlex.split(command))
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert commands[0] in ci
    assert "pip install -q -r requirements-test.txt && python -m pytest" in ci


def test_help_names_every_method_and_option(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0
    for word in ("cfg", "np2", "dns", "--negative", "--scale", "--compare", "--from", "--weights"):
        assert word in text


def test_links_lead_somewhere():
    pages = [p for p in ROOT.rglob("*.md") if not {".venv", "outputs"} & set(p.parts)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (page.parent / target).exists(), f"{page}: {target}"

"""The README keeps its word: its table, its Python and its commands."""

import hashlib
import importlib
import re
import shlex
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch

import dnp
from conftest import MINI, ROOT
from dnp import guidance
from dnp.app import command_line, options
from dnp.evaluation import __main__ as evaluation
from dnp.evaluation import contestants
from dnp.methods import METHODS
from dnp.methods.method import formula

sys.path.append(str(ROOT / "weights" / "mini" / "training"))

import sheets

README = (ROOT / "README.md").read_text(encoding="utf-8")
DATA = {".safetensors", ".json", ".txt"}
EQUATIONS = re.findall(r"^\| (?:after )?([\d, ]+) \| .* \| `([\w.]+)` \|$", README, re.M)
TESTS = re.findall(
    r"^\| (?:after )?([\d, ]+) \| `(\w+\.py)::(\w+)` \|$",
    (ROOT / "tests" / "README.md").read_text(encoding="utf-8"),
    re.M,
)
TABLE = [(*row, file, test) for row, (_, file, test) in zip(EQUATIONS, TESTS)]
PAGES = [
    p
    for p in ROOT.rglob("*.md")
    if not {".venv", "outputs", "runs"} & set(p.relative_to(ROOT).parts)
]


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


def test_table_has_every_equation_of_the_paper_and_each_has_a_test():
    assert [row[0] for row in EQUATIONS] == [row[0] for row in TESTS]
    assert {int(n) for row in TABLE for n in row[0].split(",")} == set(range(1, 21))


def test_glossary_has_the_names_of_guidance():
    symbols = re.findall(r"^    \S.*?  +(\w+)  ", guidance.__doc__, re.M)
    assert len(symbols) >= 9
    for name in set(symbols) - {"identifier", "K_t"}:
        assert name in README


def test_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 3
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(tmp_path)
    space = {}
    for block in blocks:
        exec(compile(block, "<README>", "exec"), space)
    assert (tmp_path / "gentle.png").exists() and (tmp_path / "opposite.png").exists()
    lines = dnp.__doc__.split("\n\n", 1)[1].split("\n\nThe mathematics")[0]
    assert blocks[0].strip() == textwrap.dedent(lines).strip()
    out = capsys.readouterr().out
    assert "60 network evaluations" in out
    printed = dict(re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S))[""]
    assert set(printed.splitlines()) <= set(out.splitlines())
    assert re.search(r"This prints `(.*?)`", README)[1] in out
    torch.testing.assert_close(space["z_0"], torch.tensor([[-2.0, -4.0]] * 3).to(space["z_0"]))


def test_methods_table_is_made_from_the_classes():
    lines = ["| method | formula | n, or source | evaluations in T steps |", "|---" * 4 + "|"]
    for name, m in METHODS.items():
        text, source = formula(m)
        lines.append(f"| `{name}` | `{text}` | {source} | {m.cost} |")
    assert "\n".join(lines) in README


def test_commands_parse_and_the_ci_runs_them():
    commands = re.findall(r"^python -m dnp (.*?)(?:  +#.*)?$", README, re.M)
    assert len(commands) >= 6
    for command in commands:
        assert options.parse(shlex.split(command))
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert commands[0] in ci
    assert "pip install -q -r requirements-test.txt && python -m pytest" in ci


def test_commands_of_experiments_name_methods_and_options_that_there_are(monkeypatch):
    """Of every page; `C=...` and `$C` of a page stand for their words. mine.py is the reader's."""
    monkeypatch.chdir(ROOT)
    found = 0
    for page in PAGES:
        blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
        for block in blocks:
            lines, C = block.replace("\\\n", " ").splitlines(), ""
            for line in lines:
                C = (re.findall(r'^C="(.*)"$', line) or [C])[0]
                line = re.sub(r"^\$C\b", lambda _, C=C: C, line).split(" && ")[0]
                if line.startswith("python -m dnp.evaluation --"):
                    args = evaluation.parse(shlex.split(line, comments=True)[3:])
                    for method in (m for m in args.method if "mine.py" not in m):
                        contestants.parse(re.sub(r"^cfg-(equal|scheduled):of=", "", method))
                        found += 1
    assert found > 100


def test_help_names_every_method_and_option(capsys):
    with pytest.raises(SystemExit) as done:
        command_line.main(["--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0
    for word in ("cfg", "np2", "dns", "--negative", "--scale", "--compare", "--from", "--weights"):
        assert word in text


def test_readme_is_short_and_shows_its_picture_and_command_first():
    assert len(README.encode()) < 10_000
    assert README.index("pictures/front.webp") < README.index("python -m dnp") < 2_500


def anchors(page):
    """The names of a page's headings in a link, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_and_pictures_lead_somewhere():
    assert len(PAGES) >= 10
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        targets = re.findall(r"\]\((?!http)([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
        for target in targets:
            path, _, anchor = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(there), f"{page}: {target}"


def test_one_command_draws_every_picture_of_the_weights_and_every_one_is_linked():
    pages = "".join(
        page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *MINI.glob("*.md"))
    )
    linked = set(re.findall(r"\]\((?:weights/mini/)?pictures/(\w+)\.webp\)", pages))
    assert set(sheets.SHEETS) == linked == {p.stem for p in (MINI / "pictures").glob("*.webp")}


def test_sheets_draw_the_readmes_first_command():
    first = re.findall(r"^python -m dnp (.*)$", README, re.M)[0]
    assert shlex.split(first) == sheets.COMPARE


def test_the_plot_of_the_study_has_the_words_of_its_text(tmp_path, monkeypatch):
    table = "table,method,s,column,mean,low,high\n"
    for method in ("cfg", "answer", "np"):
        for s in ("3", "1")[: 1 if method == "np" else 2]:
            table += f'all,{method},{s},"things and colours, %",5{s},40,60\n'
            table += f"all,{method},{s},CLIPScore,0.2,0.1,0.3\n"
    (tmp_path / "tables.csv").write_text(table)
    monkeypatch.setattr(sheets, "plot", lambda *drawn: SimpleNamespace(image=lambda: drawn))
    curves, _, y_label = sheets.adherence(tmp_path)
    assert curves["CFG"] == [(1, 51, 40, 60), (3, 53, 40, 60)]
    assert set(curves) == {"CFG", "ANSWER"}  # np has one scale only
    study = (MINI / "STUDY.md").read_text(encoding="utf-8")
    assert all(word in study for word in (*curves, y_label))


def test_the_miniatures_card_lists_its_files_as_they_are():
    card = (MINI / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w./]+)` \| ([\d,]+) \| `(\w{64})` \|$", card, re.M)
    for name, size, digest in rows:
        data = (MINI / name).read_bytes()
        assert (size, digest) == (f"{len(data):,}", hashlib.sha256(data).hexdigest()), name
    there = {p.relative_to(MINI).as_posix() for p in MINI.rglob("*") if p.suffix in DATA}
    listed = {p for p in there if not p.startswith(("training/sprites", "study", "negatives/"))}
    assert {name for name, *_ in rows} == listed

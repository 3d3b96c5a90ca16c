"""Grades a class: a table of students and exercises, by the checks of the notebooks.

    python notebooks/grade.py FOLDER

FOLDER holds notebooks. A folder in it is a student, with any number of notebooks; a notebook that
lies in it directly is a student too. Of a notebook the imports, the functions and the cells of
exercises are run, without what they draw: what students wrote runs on your machine, as it would if
you opened it. Each notebook has a process of its own and --seconds.

    right    all identities hold            not yet    one fails, or it stops with an error
    -        not written, or not there      no end     it, or one before it, ran over --seconds
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import faulthandler
import io
import json
import subprocess
import sys
from pathlib import Path

import checks

from dnp.app.terminal import Parser, run
from dnp.errors import SettingsError

MARK = "grades: "  # before the line that the process of a notebook prints


def grades(path: Path) -> dict[str, str]:
    """What each exercise of a notebook is worth, printed as it is found."""
    found, space = {}, {"__name__": "student"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        try:
            tree = ast.parse(source)
        except SyntaxError:  # also a line that begins with % or !
            found |= dict.fromkeys(
                (n for n in checks.EXERCISES if f"def {n}(" in source), "not yet"
            )
            continue
        mine = {
            n.name for n in tree.body if isinstance(n, ast.FunctionDef)
        } & checks.EXERCISES.keys()
        kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
        kinds += (ast.Assign, ast.AnnAssign) if mine else ()
        for node in (n for n in tree.body if isinstance(n, kinds)):
            with contextlib.suppress(Exception):  # what it lacks, the check says
                exec(compile(ast.Module([node], []), path.name, "exec"), space)
        for name in mine:
            found[name] = graded(space.get(name))
            print(f"\n{MARK}{json.dumps(found)}", flush=True)
    return found


def graded(function: object) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        right = callable(function) and checks.check(function)
    return "right" if right else "-" if "not written yet" in said.getvalue() else "not yet"


def of_student(paths: list[Path], seconds: float) -> dict[str, str]:
    """The grades of some notebooks; the better one where an exercise is in two."""
    best: dict[str, str] = {}
    for path in paths:
        command = [
            sys.executable,
            __file__,
            str(path.resolve()),
            "--one",
            "--seconds",
            str(seconds),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [x for x in done.stdout.splitlines() if x.startswith(MARK)]
        new = json.loads(lines[-1].removeprefix(MARK)) if lines else {}
        if "Timeout (" in done.stderr:
            text = path.read_text(encoding="utf-8")
            new = {n: "no end" for n in checks.EXERCISES if f"def {n}(" in text} | new
        elif not lines:
            print(f"note: {path} cannot be read; is it a notebook?", file=sys.stderr)
        best |= {k: v for k, v in new.items() if best.get(k) != "right"}
    return best


def students(folder: Path) -> dict[str, list[Path]]:
    """The notebooks of each student, by name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            inside = path.relative_to(folder).parts
            found.setdefault(inside[0] if len(inside) > 1 else path.stem, []).append(path)
    return found


def table(of: dict[str, dict[str, str]]) -> str:
    """Markdown: a row for each student, a column for each exercise that somebody has."""
    names = [n for n in checks.EXERCISES if any(n in g for g in of.values())]
    lines = [["student", *names, "right"], ["---"] * (len(names) + 2)]
    for student, found in of.items():
        cells = [found.get(n, "-") for n in names]
        lines.append([student, *cells, f"{cells.count('right')} of {len(names)}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(argv: list[str] | None = None) -> None:
    style = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="python notebooks/grade.py", description=__doc__, formatter_class=style)
    p.add_argument("folder", type=Path, metavar="FOLDER")
    p.add_argument("--seconds", type=float, default=120, metavar="X", help="default 120")
    p.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.one:
        faulthandler.dump_traceback_later(args.seconds, exit=True)  # from here, after the imports
        print(f"\n{MARK}{json.dumps(grades(args.folder))}")
        return
    if not args.folder.is_dir():
        raise SettingsError(f"{args.folder} is not a folder; give the one with your students'.")
    of = students(args.folder)
    if not of:
        raise SettingsError(f"no notebook is in {args.folder}; give the folder of your students'.")
    print(table({name: of_student(paths, args.seconds) for name, paths in of.items()}))


if __name__ == "__main__":
    run(main, "interrupted.")

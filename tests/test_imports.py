"""The rooms of the package: what may import what, and how large a file may be."""

import ast
import functools
import subprocess
import sys

import pytest

from conftest import ROOT

EQUATIONS = (
    "schedule", "units", "per_sample", "process", "energy", "guidance", "sampling", "toy", "rules",
    "theorems", "particles", "training", "dpmpp",
)  # fmt: skip
# Bottom to top, by longest prefix: a module imports from its own floor and those below.
FLOORS = (
    ("errors",),
    EQUATIONS,
    ("methods",),
    ("testing",),
    ("generation", "sd"),
    ("diffusers", "app"),
    ("checks", "evaluation"),
    ("__main__",),
)
ROOMS = {
    "methods", "testing", "sd", "sd.files", "diffusers", "app",
    "evaluation", "evaluation.negatives", "evaluation.people", "evaluation.speed",
}  # fmt: skip
AT_THE_TOP = {*EQUATIONS, "__init__", "__main__", "errors", "checks", "generation"}
FILES = {
    ".".join(path.relative_to(ROOT / "dnp").with_suffix("").parts): path
    for path in (ROOT / "dnp").rglob("*.py")
    if path != ROOT / "dnp" / "__init__.py"
}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}
PURE = {
    "__future__",
    "collections",
    "contextlib",
    "dataclasses",
    "functools",
    "math",
    "torch",
    "typing",
}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole.removeprefix("dnp.") in MODULES else node.module


@functools.cache
def imported(name):
    """Every module that a file of dnp imports, also inside a function."""
    return tuple(imports(ast.parse(MODULES[name].read_text())))


def own(name):
    """The modules of dnp among them, without `dnp.`."""
    names = (module.removeprefix("dnp.") for module in imported(name) if module[:4] == "dnp.")
    return {n for n in names if n in MODULES and n != name}


def floor(name):
    fits = [
        (len(prefix), i)
        for i, prefixes in enumerate(FLOORS)
        for prefix in prefixes
        if f"{name}.".startswith(f"{prefix}.")
    ]
    return max(fits)[1]


def test_the_rooms_are_these():
    folders = {p.parent.relative_to(ROOT / "dnp").as_posix() for p in FILES.values()}
    assert folders == {".", *(name.replace(".", "/") for name in ROOMS)}
    assert {name for name in FILES if "." not in name} | {"__init__"} == AT_THE_TOP


def test_nothing_imports_upwards():
    up = [(a, b) for a in MODULES for b in own(a) if floor(b) > floor(a)]
    assert up == [] and ("sd.model", "errors") in [(a, b) for a in MODULES for b in own(a)]


def peeled(needs):
    """The floors of a graph of imports: what imports nothing that is left is taken away, in turns.

    Those inside of functions count too. What is left at the end is a circle."""
    floors = []
    while ready := [name for name, of in needs.items() if not of & needs.keys()]:
        floors.append(ready)
        needs = {name: of for name, of in needs.items() if name not in ready}
    return floors, needs


def test_files_import_each_other_in_no_circle():
    assert peeled({name: own(name) for name in MODULES})[1] == {}


def test_rooms_and_files_stand_on_at_most_8_floors_without_a_circle():
    """Below the command, which hands the highest room to one beneath it."""
    house = lambda name: name.split(".")[0]
    needs = {house(a): set() for a in MODULES if a != "__main__"}
    for a in MODULES.keys() - {"__main__"}:
        needs[house(a)] |= {house(b) for b in own(a)} - {house(a)}
    floors, circle = peeled(needs)
    assert circle == {} and len(floors) <= 8, floors


def test_no_file_is_longer_than_320_lines():
    long = {name: n for name, p in MODULES.items() if (n := len(p.read_text().splitlines())) > 320}
    assert long == {}


def test_no_function_takes_14_positional_arguments():
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                count = len(node.args.posonlyargs) + len(node.args.args)
                assert count < 14, f"{name}.{node.name}"


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_equations_import_torch_alone(name):
    for module in imported(name):
        top, *rest = module.split(".")
        assert top in PURE or (top == "dnp" and rest[0] in EQUATIONS), f"{name}.py: {module}"


def test_a_method_reaches_a_model_only_through_its_contract():
    for name in MODULES:
        if name.split(".")[0] == "methods":
            assert not any(n.startswith(("sd", "app", "generation")) for n in own(name)), name


def test_import_is_light():
    code = "import sys, dnp, dnp.methods, dnp.app.options; print('torch' in sys.modules);"
    code += (
        "import dnp.generation; print('transformers' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False"] * 3, done.stderr

"""What the equations, the contract and the package import."""

import ast
import subprocess
import sys

import pytest

from conftest import ROOT

EQUATIONS = (
    "schedule", "energy", "guidance", "sampling", "toy", "answer", "readings", "rules",
)  # fmt: skip
PURE = {"__future__", "collections", "dataclasses", "functools", "math", "torch", "typing"}


def imported(name):
    """Every module that a file of dnp imports, also inside a function."""
    for node in ast.walk(ast.parse((ROOT / "dnp" / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = node.module == "dnp"
            yield from (f"dnp.{a.name}" for a in node.names) if inside else [node.module]


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_equations_import_torch_alone(name):
    for module in imported(name):
        top, *rest = module.split(".")
        assert top in PURE or (top == "dnp" and rest[0] in EQUATIONS), f"{name}.py: {module}"


def test_the_contract_imports_python_alone_and_the_equations():
    for module in imported("contract"):
        top, *rest = module.split(".")
        own = top == "dnp" and rest[0] in ("errors", "rules")
        assert top in sys.stdlib_module_names or own, module


def test_import_is_light():
    code = "import sys, dnp, dnp.methods, dnp.settings; print('torch' in sys.modules);"
    code += (
        "import dnp.generation; print('transformers' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False"] * 3, done.stderr

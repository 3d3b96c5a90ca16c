"""What the equations, the contract and the package import."""

import ast
import subprocess
import sys

import pytest

from conftest import ROOT

EQUATIONS = (
    "schedule", "energy", "guidance", "sampling", "toy", "answer", "readings", "rules", "theorems",
    "particles",
)  # fmt: skip
# Bottom to top: a module imports from its own floor and those below.
FLOORS = (
    ("errors",),
    EQUATIONS,
    (
        "methods", "settings", "validation", "contract", "folders", "command", "checks", "testing",
        "prompting", "pictures", "attend_excite", "guided", "neglect", "options",
    ),
    ("sd",),
    ("plan", "generation"),
    ("evaluation", "cli", "pipelines", "benchmark", "contestants", "random_weights"),
)  # fmt: skip
MODULES = {
    ".".join(path.relative_to(ROOT / "dnp").with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "dnp").rglob("*.py")
    if path != ROOT / "dnp" / "__init__.py"
}
PACKAGES = ("sd", "evaluation", "testing")
PURE = {"__future__", "collections", "dataclasses", "functools", "math", "torch", "typing"}


def imported(name):
    """Every module that a file of dnp imports, also inside a function."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = node.module == "dnp" or node.module.removeprefix("dnp.") in PACKAGES
            yield from (f"{node.module}.{a.name}" for a in node.names) if inside else [node.module]


def own(name):
    """The modules of dnp among them, without `dnp.`."""
    names = (module.removeprefix("dnp.") for module in imported(name))
    return {n for n in names if n in MODULES and n != name}


def floor(name):
    return next(i for i, names in enumerate(FLOORS) if name.split(".")[0] in names)


def test_nothing_imports_upwards():
    up = [(a, b) for a in MODULES for b in own(a) if floor(b) > floor(a)]
    assert up == [] and ("sd.model", "errors") in [(a, b) for a in MODULES for b in own(a)]


def test_imports_have_no_circle():
    """Those inside of functions too: what imports nothing that is left is taken away, in turns."""
    left = {name: own(name) for name in MODULES}
    while ready := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ready:
            del left[name]
    assert left == {}


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

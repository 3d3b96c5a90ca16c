"""The doors that a rule of one's own comes in by, and the hash that it is known by."""

import functools
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import dnp
from dnp import methods, rules
from dnp.app import png
from dnp.errors import SettingsError
from dnp.evaluation import __main__ as evaluation
from dnp.evaluation import contestants as compared
from dnp.methods import own
from dnp.methods import rule as contract
from experiments import world
from own_rules import STEPS, Called, Counted, Memory, Module, decorated, pull, push

# -------------------------------------------------------------------------------------- the doors

FILE = """
from pathlib import Path

with open(Path(__file__).with_name("marker"), "a") as marker:
    marker.write("imported ")


def soft(eps_phi, eps_p, eps_n, s, tau=1.0):
    return eps_phi + s * (eps_p - eps_phi) - tau * (eps_n - eps_phi)


exec("def hidden(eps_p): return eps_p")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A file with a rule of one's own, whose import leaves a marker beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def pixels(image):
    return np.asarray(image if isinstance(image, Image.Image) else Image.open(image)).astype(int)


def test_the_doors_make_the_same_picture(small_cli, mine, small_model, monkeypatch):
    prompt, kw = "a cat and a red car", dict(steps=2, s=3.0, K_until=1.0)
    plain = dnp.generate(small_model, prompt, "answer", **kw)
    by_name = dnp.generate(
        small_model, prompt, "answer", rule="mine.py:soft", rule_options={"tau": 0.3}, **kw
    )
    soft = contract.find("mine.py:soft")
    by_value = dnp.generate(
        small_model, prompt, "answer", rule=soft, rule_options={"tau": 0.3}, **kw
    )
    words = [prompt, "--method", "answer", "--steps", 2, "--scale", 3, "--K-until", 1]
    _, (typed,), _, _ = small_cli(*words, "--rule", "mine.py:soft", "--option", "tau=0.3")
    (mine.parent / "prompts.txt").write_text(prompt + "\n")
    label = "answer:rule=mine.py:soft,o.tau=0.3,K_until=1"
    evaluation.main(
        f"--weights {world()} --benchmark prompts.txt --method {label} --scale 3 --seeds 1 "
        "--steps 2 --out run".split()
    )
    (compared_with,) = mine.parent.glob("run/images/*.png")
    monkeypatch.setitem(rules.RULES, "soft", functools.partial(soft, tau=0.3))

    class Mine(methods.Answer):
        name, own_rule = "mine", "soft"

    by_class = dnp.generate(small_model, prompt, Mine, **kw)
    monkeypatch.setitem(methods.METHODS, "mine", Mine)
    by_row = dnp.generate(small_model, prompt, "mine", **kw)
    words[2] = "mine"
    _, (typed_row,), _, _ = small_cli(*words)
    _, (registered,), _, _ = small_cli(*words[:2], "answer", *words[3:], "--rule", "soft")
    want = pixels(by_value.images[0])
    assert abs(want - pixels(plain.images[0])).max() > 20
    in_python = [made.images[0] for made in (by_name, by_class, by_row)]
    for made in (*in_python, typed, compared_with, typed_row, registered):
        assert abs(pixels(made) - want).max() <= 1


def test_a_png_holds_the_rule_s_name_its_options_and_the_hash(small_cli, mine):
    words = ["a cat", "--negative", "a dog", "--steps", 1, "--rule", "mine.py:soft"]
    _, (picture,), _, _ = small_cli(*words, "--option", "tau=0.3")
    held = png.read_settings(picture)
    assert (held["rule"], held["rule_options"]) == ("mine.py:soft", {"tau": 0.3})
    assert held["rule_sha256"] == contract.read("mine.py:soft", {"tau": 0.3}).sha256
    assert held["method"] == "np"
    _, (picture,), _, _ = small_cli(*words[:-2], "--method", "np")
    held = png.read_settings(picture)
    assert held["rule"] is None and "rule_sha256" not in held


def test_from_never_imports_a_file_that_a_png_names(small_cli, mine):
    marker = mine.with_name("marker")
    words = ["a cat", "--negative", "a dog", "--steps", 2, "--rule", "mine.py:soft"]
    _, (first,), _, _ = small_cli(*words, "--option", "tau=0.3")
    assert marker.exists()
    kept = first.rename(mine.with_name("kept.png"))
    marker.unlink()
    for more in ([], ["--scale", 2], ["--seed", 3], ["--option", "tau=1"]):
        code, new, _, err = small_cli("--from", kept, *more)
        assert code == 2 and new == [] and not marker.exists()
        assert "no picture makes a file run; add --rule mine.py:soft" in err
    code, (other,), _, _ = small_cli("--from", kept, "--rule", "perp_neg")
    assert code == 0 and not marker.exists()
    code, (_,), _, _ = small_cli("--from", kept, "--method", "dns")
    assert code == 0 and not marker.exists()
    code, (again,), _, err = small_cli("--from", kept, "--rule", "mine.py:soft")
    assert code == 0 and marker.exists() and "code is not that" not in err
    assert (pixels(again) == pixels(kept)).all()  # with the options of the PNG
    code, (other,), _, _ = small_cli("--from", kept, "--rule", "mine.py:soft", "--option", "tau=1")
    assert code == 0 and png.read_settings(other)["rule_options"] == {"tau": 1}
    mine.write_text(FILE.replace("- tau", "+ tau"))
    _, (turned,), _, err = small_cli("--from", kept, "--rule", "mine.py:soft")
    assert "this rule's code is not that which the PNG was made with" in err
    assert not (pixels(turned) == pixels(kept)).all()


@pytest.mark.parametrize("name", ["mine.py:soft", "./mine.py:soft", "mine.py", "mine.py:soft:x"])
def test_no_spelling_of_a_file_in_a_png_makes_it_run(small_cli, mine, name):
    settings = {"prompt": "a cat", "negative": "a dog", "steps": 1, "method": "np", "rule": name}
    forged = png.save(Image.new("RGB", (8, 8)), mine.parent / "forged", "x", settings)
    code, new, _, err = small_cli("--from", forged)
    assert code == 2 and new == [] and not mine.with_name("marker").exists()
    assert "Traceback" not in err


def test_a_png_with_a_rule_of_the_registry_opens_by_from(small_cli):
    words = ["a cat", "--negative", "a dog", "--steps", 2, "--rule", "ccfg", "--option", "tau=2"]
    _, (first,), _, _ = small_cli(*words, "--interval", 0.5, 20, "--negative-interval", 1, 20)
    kept = first.rename(first.with_name("kept.png"))
    code, (again,), _, _ = small_cli("--from", kept)
    held = png.read_settings(again)
    assert code == 0 and (pixels(again) == pixels(kept)).all()
    assert (held["rule"], held["rule_options"]) == ("ccfg", {"tau": 2, "plain": False})
    assert (held["interval"], held["negative_interval"]) == ([0.5, 20.0], [1.0, 20.0])
    code, (other,), _, _ = small_cli("--from", kept, "--option", "plain=true")
    assert png.read_settings(other)["rule_options"] == {"tau": 2, "plain": True}


TYPED = {
    "no such file": (["--rule", "other.py:soft"], "other.py: no such file"),
    "no such name": (["--rule", "mine.py:sotf"], "mine.py has no sotf; did you mean soft?"),
    "a module of numbers": (["--rule", "mine.py:FILE"], "mine.py has no FILE"),
    "an option without a value": (["--rule", "mine.py:soft", "--option", "tau"], "KEY=VALUE"),
    "an unknown option": (
        ["--rule", "mine.py:soft", "--option", "k=1"],
        "does not have the option 'k'",
    ),
    "an option of no rule": (
        ["--option", "tau=1"],
        "rule_options belong to a rule; give one with --rule NAME",
    ),
    "a file that does not run": (["--rule", "broken.py:f"], "broken.py does not run (ZeroDivision"),
    "a rule of the wrong kind": (["--rule", "broken2.py:f"], "takes **more"),
    "a file that ends the process": (["--rule", "exits.py:f"], "exits.py does not run (SystemExit"),
    "a file with an error of its own": (["--rule", "own.py:f"], "own.py does not run (Own)"),
    "a file whose error has lines": (["--rule", "lines.py:f"], "not run (ValueError: one); fix it"),
    "a file that answers for any name": (["--rule", "any.py:g"], "any.py has no g; choose f."),
    "a file of nothing": (["--rule", "empty.py:f"], "it does not define any function"),
    "a name that moves the cursor": (["--rule", "\x1b[2J.py:f"], r"error: \x1b[2J.py: no such"),
    "a class that cannot be made": (
        ["--rule", "made.py:F"],
        "made.py, line 2 (OSError: no); fix",
    ),
    "a memory that cannot begin": (
        ["--rule", "made.py:G"],
        "made.py, line 6 (KeyError: 'x'); fix it",
    ),
    "a memory that fails": (["--rule", "made.py:H"], "made.py, line 12 (SystemExit: 3); fix it"),
    "a memory that says why": (["--rule", "made.py:I"], "rule made.py:I at t = 1: too soon"),
    "a rule that fails": (["--rule", "fails.py:f"], "fails.py, line 2 (KeyError: 'x'); fix it"),
    "a rule that ends the process": (["--rule", "fails.py:g"], "line 4 (SystemExit: 3); fix it"),
    "a rule without an end": (["--rule", "fails.py:h"], "line 6 (RecursionError: maximum"),
    "an option of another kind": (["--rule", "perp_neg", "--option", "w=x"], "other options."),
    "an option without an end": (["--rule", "perp_neg", "--option", "w=" + "[" * 9**5], "too deep"),
    "an option that is no number": (["--rule", "perp_neg", "--option", "w=NaN"], "w NaN is not fi"),
    "an endless option": (["--rule", "perp_neg", "--option", "w=[1e999]"], "w [1e999] is not fini"),
    "a default that no PNG holds": (
        ["--rule", "held.py:f"],
        "w of rule held.py:f is a object, which a record cannot hold",
    ),
    "a default of many digits": (["--rule", "held.py:g"], "w of rule held.py:g is a int, which"),
}
BROKEN = {
    "broken": "1 / 0",
    "broken2": "def f(eps_p, **more): return eps_p",
    "exits": "import sys; sys.exit(0)",
    "own": "class Own(BaseException):\n    def __str__(self): return self.x\nraise Own",
    "lines": "raise ValueError('one\\ntwo')",
    "any": "def f(eps_p): return eps_p\ndef __getattr__(name): raise RuntimeError(name)",
    "empty": "",
    "made": """class F:
 def __init__(self): raise OSError('no')
 def __call__(self, eps_p): 0
class G:
 def __call__(self, eps_n): return eps_n
 def reset(self, z_T): {}['x']
 def observe(self, *at, **eps): 0
class H:
 def __call__(self, eps_n): return eps_n
 def reset(self, z_T): 0
 def observe(self, *at, **eps):
  raise SystemExit(3)
class I(H):
 def observe(self, *at, **eps): raise ValueError('too soon')""",
    "fails": "def f(eps_n):\n    return {}['x']\ndef g(eps_n):\n    raise SystemExit(3)\n"
    "def h(eps_n):\n    return h(eps_n)",
    "held": "def f(eps_p, w=object()): return eps_p\ndef g(eps_p, w=10**5000): return eps_p",
}


@pytest.mark.parametrize("name", TYPED)
def test_rules_that_are_typed_wrongly_are_one_sentence_and_exit_2(small_cli, mine, name):
    for stem, text in BROKEN.items():
        mine.with_name(f"{stem}.py").write_text(text + "\n")
    words, sentence = TYPED[name]
    code, new, _, err = small_cli("a cat", "--negative", "a dog", "--steps", 1, *words)
    error = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and new == [] and len(error) == 1 and sentence in error[0]
    assert error[0] == err.splitlines()[-1] and error[0].isprintable()
    assert "Traceback" not in err


# --------------------------------------------------------------------- the identity of the code


def bank(weight):
    return lambda eps_phi, eps_p: eps_phi + weight * (eps_p - eps_phi)


def pull_by_wrapping(f):
    @functools.wraps(f)
    def inner(eps_phi, eps_p, s):
        return f(eps_phi, eps_p, s)

    return inner


APART = {  # the same code, told apart by the options beside it
    "partials": (functools.partial(pull, tau=1.0), functools.partial(pull, tau=2.0), pull),
    "of partials": (functools.partial(functools.partial(pull, tau=1.0), tau=2.0), pull),
}
UNKNOWN = {  # what a function's name and its file do not say
    "closures": bank(1.0),
    "lambdas": lambda eps_phi, eps_p: eps_phi,
    "positional in partials": functools.partial(pull, torch.zeros(1)),
    "a scale in partials": functools.partial(pull, s=2.0),
    "a scale in partials of partials": functools.partial(functools.partial(pull, s=2.0), tau=1.0),
    "decorators": decorated(2)(pull),
    "wrappers": pull_by_wrapping(pull),
    "modules": Module(),
    "objects": rules.APG(r=2.0),
    "methods of objects": Called().method,
    "compiled closures": bank(2.0),
}


@pytest.mark.parametrize("what", APART)
def test_options_are_recorded_beside_the_identity(what):
    read = [contract.read(rule) for rule in APART[what]]
    assert len({r.sha256 for r in read}) == 1 and own.UNKNOWN not in {r.sha256 for r in read}
    assert [r.options["tau"] for r in read[:-1]] == [r.keywords["tau"] for r in APART[what][:-1]]
    one, other = (contract.read("apg", {"r": r}) for r in (1.0, 2.0))
    assert one.sha256 == other.sha256 and one.options != other.options


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_its_file_does_not_say_has_no_identity(what):
    rule = UNKNOWN[what]
    if what == "compiled closures":
        rule = torch.compile(rule, backend="eager")
    assert contract.read(rule).sha256 == own.UNKNOWN


def test_every_rule_of_the_registry_has_its_own_identity():
    known = [contract.read(name).sha256 for name in rules.RULES]
    assert own.UNKNOWN not in known and len({*known}) == len(known)
    known = [contract.read(rule).sha256 for rule in (pull, push, Called, Memory, Module)]
    assert own.UNKNOWN not in known and len({*known}) == len(known)


def test_every_byte_of_the_file_changes_the_identity_and_no_option_does(mine):
    plain = contract.read("mine.py:soft").sha256
    assert contract.read("mine.py:soft").sha256 == plain != own.UNKNOWN
    assert contract.read("mine.py:soft", {"tau": 0.3}).sha256 == plain
    mine.write_text(FILE + "\nHELPER = 3\n")
    assert contract.read("mine.py:soft").sha256 != plain


def test_a_rule_without_a_source_is_unknown_and_the_experiments_refuse_it(mine):
    def hides(eps_p):
        return eps_p * len([secret])

    secret = object()
    for rule in (hides, contract.find("mine.py:hidden")):
        assert contract.read(rule).sha256 == own.UNKNOWN
    with pytest.raises(SettingsError, match="cannot be told from another's"):
        compared.parse("cfg:rule=mine.py:hidden")
    assert dnp.generate(Counted(), 0, rule=hides, steps=STEPS).settings["rule_sha256"] == "unknown"


def test_a_record_of_the_experiments_is_keyed_by_rule_options_and_file(mine, small_model):
    def settings(label):
        return compared.settled(compared.parse(label), None, 2, small_model)

    one = settings("answer:rule=mine.py:soft,o.tau=0.3")
    assert (one["rule"], one["rule_options"]) == ("mine.py:soft", {"tau": 0.3})
    assert one["rule_sha256"] == contract.read("mine.py:soft").sha256
    assert settings("answer:rule=mine.py:soft,o.tau=0.4") != one
    mine.write_text(FILE + "\n# another line\n")
    assert settings("answer:rule=mine.py:soft,o.tau=0.3")["rule_sha256"] != one["rule_sha256"]


def test_a_file_s_own_rule_leaves_no_name_of_another_module_behind(mine):
    contract.find("mine.py:soft")
    assert "mine" not in sys.modules

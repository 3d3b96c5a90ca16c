"""A method of one's own, by every door, and what is refused."""

import inspect
import sys
from dataclasses import fields

import pytest
import torch

import dnp
from command_line import pixels, refused
from dnp.app import png
from dnp.errors import SettingsError
from dnp.evaluation import contestants, record_keys
from dnp.evaluation.grid import Grid, Run
from dnp.evaluation.measure import Instruments
from dnp.evaluation.trio import Prompt
from dnp.generation import prepared
from dnp.methods import METHODS, own
from dnp.methods.attend_excite import AttendExcite, ExcitedAutoDNP
from dnp.methods.fields import setting
from dnp.methods.method import Method
from dnp.methods.words import AutoDNP
from own_rules import Blurred, Counted, pull

FILE = f"""
import torch.nn.functional as F
from dnp.methods.fields import setting
from dnp.methods.method import Method

{inspect.getsource(Blurred)}"""
NAME = "mine.py:Blurred"
HOW = {"steps": 2, "s": 2.0}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A file with a method of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


# ------------------------------------------------------------------------------- the same by all


def test_an_own_method_that_captions_has_its_captioner_in_the_key_and_its_words(mine, mini):
    """Another captioner makes another record, as with the built-in methods."""
    mine.write_text(
        "from dnp.methods.words import AutoDNP\n\n\nclass Mine(AutoDNP):\n    name = 'mine'\n"
    )
    c, keys = contestants.parse("mine.py:Mine"), []
    for captioner in ("one", "another"):
        grid = Grid((Prompt("a cat", "all"),), (c,), (None,), (0,), 2)
        work = Run(grid, mini, Instruments(None, None, None, captioner), mine.parent / captioner)
        of = work.settings(c, None), work.circumstances(c.captioned)
        keys.append(record_keys.key(work.content(c, *of, "a cat", 0)))
    assert keys[0] != keys[1]
    settled = contestants.settled(c, None, 2, mini)
    (made,) = contestants.sample(mini, c, ["a cat"], [0], settled, [None], lambda images: ["a dog"])
    assert made.negative == "a dog" and made.nfe == 5 * 2


def test_the_doors_make_the_same_picture_and_the_same_record(cli, mine, mini):
    blurred = own.find(NAME, "method")
    by_class, by_name, one = (
        dnp.generate(mini, "a cat", m, radius=r, **HOW)
        for m, r in ((blurred, 2), (NAME, 2), (NAME, None))
    )
    words = ["a cat", "--method", NAME, "--radius", 2, "--steps", 2, "--s", 2]
    code, (typed,), told, _ = cli(*words)
    assert code == 0 and typed.name == "a-cat-blurred-0.png" and "6 network evaluations" in told
    contestant = contestants.parse(f"{NAME},radius=2")
    settled = contestants.settled(contestant, 2.0, 2, mini)
    (sampled,) = contestants.sample(mini, contestant, ["a cat"], [0], settled, [None])
    want = by_class.images[0]
    assert sampled.image.tobytes() == by_name.images[0].tobytes() == want.tobytes()
    assert (pixels(typed) == pixels_of(want)).all() and by_class.nfe == sampled.nfe == 3 * 2
    assert one.images[0].tobytes() != want.tobytes() and one.settings["radius"] == 1
    identity = own.identity(blurred)
    assert identity != own.UNKNOWN and by_class.settings["method"] == "blurred"
    for made in (by_name.settings, png.read_settings(typed), {**settled, "method": NAME}):
        assert (made["method"], made["radius"]) == (NAME, 2)
        assert made["method_sha256"] == identity == by_class.settings["method_sha256"]
    assert "method_sha256" not in dnp.generate(mini, "a cat", steps=1).settings


def pixels_of(image):
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .reshape(*image.size[::-1], 3)
        .numpy()
    )


def test_multiple_inheritance_keeps_every_field(mini):
    names = lambda kind: {f.name for f in fields(kind)}
    assert names(ExcitedAutoDNP) == names(AttendExcite) | names(AutoDNP)

    class Both(METHODS["neglect"], Blurred):
        name = "both"

    assert names(Both) == names(METHODS["neglect"]) | {"radius"}
    made = dnp.generate(mini, "a cat and a dog", Both, radius=3, ae_level=0, **HOW).settings
    assert (made["radius"], made["ae_level"], made["method_sha256"]) == (3, 0, "unknown")
    given = {"dns_images": 2, "ae_step": 1.0, "steps": 2}
    _, guided = prepared(mini, "a cat and a dog", "ae+auto-dnp", None, None, None, given)
    assert (guided.dns_images, guided.ae_step) == (2, 1.0)


# ------------------------------------------------------------------------------- what is refused


def changed(**other):
    """Blurred with other attributes; a field is (kind, setting)."""
    kinds = {k: v[0] for k, v in other.items() if isinstance(v, tuple)}
    other = {k: v[1] if k in kinds else v for k, v in other.items()}
    return type("Mine", (Blurred,), {"__annotations__": kinds, **other})


def field(kind=int, default=1):
    return kind, setting(default, "a setting of one's own")


class Nameless(Method):
    """phi + s (p - phi)"""


NOT_METHODS = {
    "no name": (Nameless, "Nameless is called 'cfg', which is a method of dnp; give the class a"),
    "a built-in's name": (changed(name="answer"), "called 'answer', which is a method of dnp"),
    "a name that is not a text": (changed(name=3), "is called 3, which is"),
    "a field of the chain": (changed(steps=field()), "setting steps of method blurred means"),
    "a field of a call": (changed(model=field()), "setting model of method blurred means som"),
    "a field that is what is drawn": (changed(prompt=field()), "prompt of method blurred mea"),
    "a field that is n": (changed(negative=field()), "setting negative of method blurred me"),
    "a field that is a hook": (changed(move=field()), "setting move of method blurred means"),
    "an instance": (Blurred(), "is not a method; give a name, or a subclass"),
    "a dict": (dict, "<class 'dict'> is not a method; give a name, or a subclass"),
    "another class": (Counted, "is not a method; give a name, or a subclass"),
    "a function": (pull, "is not a method; give a name, or a subclass"),
    "no negative": (
        changed(negative=None), "uses rule negative_prompt, which needs eps_n, and does not",
    ),
    "nothing": (changed(negative=lambda *a: None), "the negative of method blurred returned N"),
    "another shape": (
        changed(negative=lambda *a: a[1][:, :1]), r"negative of method .* shape \(1, 1, 16, 16",
    ),
    "another dtype": (
        changed(negative=lambda *a: a[1].double()), "negative of method blurred .* float64 for",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_METHODS)
def test_what_is_not_a_method_is_refused_in_a_sentence(mini, what):
    kind, sentence = NOT_METHODS[what]
    with pytest.raises(SettingsError, match=sentence) as e:
        dnp.generate(mini, "a cat", kind, **HOW)
    assert str(e.value).endswith(".") and "\n" not in str(e.value) and "rule Mine" not in str(e)


def test_a_misspelt_setting_is_led_to_its_own(cli, mine, mini):
    with pytest.raises(SettingsError, match=r"radiu is not a setting; did you mean radius\?"):
        dnp.generate(mini, "a cat", NAME, radiu=2)
    with pytest.raises(SettingsError, match="radius = 9 is not possible; choose a whole number fr"):
        dnp.generate(mini, "a cat", NAME, radius=9)
    with pytest.raises(SettingsError, match="K belongs to method answer, not blurred"):
        dnp.generate(mini, "a cat", NAME, K=2)
    with pytest.raises(SettingsError, match=r"'radiu=2' in .* is not an option; .*\bradius\b"):
        contestants.parse(f"{NAME},radiu=2")
    refused(cli("a cat", "--method", NAME, "--radius", 9), "radius = 9 is not possible")
    refused(cli("a cat", "--method", "mine.py:Blured"), "mine.py has no Blured; did you mean Blurr")
    refused(cli("a cat", "--method", "mine.py:F"), "is not a method; give a name")


def test_no_picture_makes_a_method_run(cli, mine):
    _, (made,), _, _ = cli("a cat", "--method", NAME, "--radius", 2, "--steps", 1, "--s", 2)
    kept = made.rename(mine.with_name("kept.png"))
    mine.write_text(FILE + "\nopen('marker', 'w')\n")
    refused(cli("--from", kept), f"no picture makes a file run; add --method {NAME} if you trust")
    refused(cli("--from", kept, "--seed", 3), "no picture makes a file run")
    assert not mine.with_name("marker").exists()


def test_a_picture_is_made_again_where_its_file_is_trusted(cli, mine):
    _, (made,), _, _ = cli("a cat", "--method", NAME, "--radius", 2, "--steps", 1, "--s", 2)
    kept = made.rename(mine.with_name("kept.png"))
    code, (again,), _, err = cli("--from", kept, "--method", NAME)
    held, now = (png.read_settings(path) for path in (kept, again))
    assert code == 0 and held == now and (now["radius"], now["s"]) == (2, 2.0)
    assert (pixels(again) == pixels(kept)).all() and "code is not that" not in err
    mine.write_text(FILE + "# another line\n")
    _, _, _, err = cli("--from", kept, "--method", NAME, "--seed", 1)
    assert "this method's code is not that which the PNG was made with" in err
    code, (other,), _, _ = cli("--from", kept, "--method", "cfg")
    held = png.read_settings(other)
    assert code == 0 and held["method"] == "cfg" and not {"radius", "method_sha256"} & held.keys()

"""What people type in other interfaces' ways is said and not silently turned; and what is shown."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

import dnp
from conftest import pixels
from dnp.app import sheet as sheet_room
from dnp.app.other_interfaces import tell_what_is_not_read
from dnp.app.png import read_settings

WORLD = ("a", "cat", "red", "car", "and")


def test_a_negative_without_a_method_is_two_term_and_says_so(cli):
    words = ["a red car", "--negative", "a cat", "--steps", 1]
    code, (png,), _, err = cli(*words)
    assert code == 0 and "is used as elsewhere, n + s (p - n): np2" in err
    assert read_settings(png)["method"] == "np2"
    kept = png.rename(png.with_name("kept.png"))
    _, (named,), _, err = cli(*words, "--method", "np2")
    assert "elsewhere" not in err and (pixels(named) == pixels(kept)).all()


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("a (cat:1.3)", r"^weights such as \(cat:1.3\): read as plain text here"),
        ("a (red cat : .8)", r"^weights such as \(cat:1.3\): read as plain text here"),
        ("a cat <lora:x:0.8>", "<lora:...>: read as plain text here"),
        ("a cat BREAK a car", "^BREAK: read as plain text here"),
        (
            "((a cat)) AND [a dog|a car]",
            r"^double brackets, alternatives such as \[a\|b\] and AND: read as plain text here",
        ),
        ("a [red] cat", "^square brackets: read"),
        ("a {red|blue} cat", r"^alternatives such as \{a\|b\}: read"),
        ("a __colour__ cat", "^wildcards such as __colour__: read"),
        ("a cat embedding:bad-hands", "^embedding:NAME: read"),
        ("a cat::2 a car::-1", "^weights such as cat::2: read"),
        ("a cat --ar 16:9", "^options such as --ar 16:9 inside a prompt: read"),
        ("a cat and a zeppelin", "have never read zeppelin; the picture follows the other words"),
    ],
)
def test_syntax_of_other_interfaces_and_words_of_no_closed_world_get_a_note(text, note):
    with pytest.warns(UserWarning, match=note):
        tell_what_is_not_read(text, WORLD)


@pytest.mark.filterwarnings("error")
def test_plain_words_and_an_open_world_get_none():
    tell_what_is_not_read("a cat (and a red car)", WORLD)
    tell_what_is_not_read("a train (time 12:30), 16:9, a cat and a car -- red", ())
    tell_what_is_not_read("A CAT AND A CAR", ())
    tell_what_is_not_read("a zeppelin, breaking a sound barrier", ())


def test_the_command_says_such_a_note(cli):
    code, _, _, err = cli("a (cat:1.3)", "--steps", 1)
    assert code == 0 and "note: weights such as (cat:1.3): read as plain text here." in err


def test_the_compare_sheet_writes_n_star_under_the_cells_of_auto_dnp(cli, monkeypatch):
    rows, sheet = {}, sheet_room.contact_sheet

    def seen(given, *rest):
        rows.update({label.split("\n")[0]: words for label, _, words in given})
        return sheet(given, *rest)

    monkeypatch.setattr(sheet_room, "contact_sheet", seen)
    captioner = lambda *a: lambda images: ["a green bowl"] * len(images)
    monkeypatch.setattr(dnp.sd.captioner, "load_captioner", captioner)
    code, _, _, _ = cli("a cat", "--compare", "--steps", 1)
    assert code == 0 and rows["auto-dnp"][0].startswith("n* = a green bowl")
    assert "n*" not in rows["cfg"][0]


def test_a_result_shows_itself_as_its_pictures_under_its_dns_images(mini):
    made = dnp.generate(mini, "a cat", "auto-dnp", captioner=lambda x: ["a dog"] * 2, steps=1,
                        images=2)  # fmt: skip
    shown = np.asarray(Image.open(io.BytesIO(made._repr_png_())))
    k = 3  # a 64th of 160 pixels, and more
    assert shown.shape == (2 * k * 64, 2 * k * 64, 3)
    rows = [np.concatenate([np.asarray(x) for x in r], 1) for r in (made.dns_images, made.images)]
    small = np.asarray(Image.fromarray(shown).resize((2 * 64, 2 * 64), Image.Resampling.BOX))
    assert abs(small.astype(int) - np.concatenate(rows)).mean() < 6  # each in its place
    assert dataclasses.replace(made, images=[])._repr_png_() is None  # a toy makes none

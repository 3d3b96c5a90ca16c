"""`--prompts FILE`: a list is drawn together by `--batch`, and an interrupted one goes on."""

from pathlib import Path

import pytest
import torch

import dnp
from conftest import slow_but
from dnp.app import png
from dnp.errors import SettingsError
from dnp.generation import generate_rows
from dnp.methods.method import Asked
from dnp.toy import PointMass
from experiments import world

PAIRS = ["a cat and a dog", "a car and a bear", "a red apple and a cat"]
WAYS = {
    "cfg": (PAIRS, ["--batch", 2]),
    "np": ([f"{p}\ta {n}" for p, n in zip(PAIRS, ("bear", "dog", "car"))], ["--batch", 2]),
    "auto-dnp": (PAIRS[:2], ["--batch", 4, "--images", 2, "--caption-per", "prompt"]),
    "ae": (PAIRS, ["--batch", 2, "--ae-refinements", 1]),
}


def written(*lines: str) -> Path:
    Path("list.txt").write_text("\n".join(lines))
    return Path("list.txt")


def pictures(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.png")}


@pytest.fixture
def forwards(monkeypatch) -> list[int]:
    """The pictures of each chain that is begun."""
    seen, begun = [], dnp.generation.begun
    counted = lambda call, guided, rows, *more: (
        seen.append(len(rows)),
        begun(call, guided, rows, *more),
    )[1]
    monkeypatch.setattr(dnp.generation, "begun", counted)
    return seen


@pytest.mark.parametrize("way", slow_but(["cfg", "auto-dnp"], list(WAYS)))
@pytest.mark.filterwarnings("ignore:with steps")
def test_the_pictures_of_a_batched_list_are_those_of_single_prompts(small_cli, forwards, way):
    lines, more = WAYS[way]
    more = ["--method", way, "--steps", 1, *more]
    assert small_cli("--prompts", written(*lines), *more)[0] == 0
    together = forwards.copy()
    for line in lines:
        prompt, *negative = line.split("\t")
        words = ["--negative", *negative] if negative else []
        assert small_cli(prompt, *words, *more, "--out", "alone")[0] == 0
    assert set(forwards) == set(together) == {more[more.index("--batch") + 1]}
    assert len(together) == 2 < len(forwards) - 2
    assert pictures("outputs") == pictures("alone")
    for path in list(Path("outputs").glob("*.png"))[::2]:  # a DNS image has another name there
        assert small_cli("--from", path, "--out", "again")[0] == 0
        assert path.read_bytes() in pictures("again").values()


def test_a_list_with_and_without_negatives_is_drawn_in_two_groups(small_cli, forwards):
    file = written("a cat", "a dog\ta bear", "a car", "a bear\ta cat")
    code, made, out, _ = small_cli("--prompts", file, "--steps", 1, "--batch", 2)
    assert (code, len(made), forwards) == (0, 4, [2, 2])
    assert out.count("cfg: ") == out.count("np2: ") == 1


def test_each_sheet_of_a_list_is_of_its_own_prompt(small_cli):
    file = written("a cat", "a dog")
    _, made, _, _ = small_cli("--prompts", file, "--steps", 1, "--batch", 2, "--compare")
    assert [path.name for path in made] == ["a-cat-compare-0.png", "a-dog-compare-0.png"]


@pytest.mark.parametrize("method", ["cfg", "auto-dnp"])
def test_an_interrupted_list_goes_on(small_cli, forwards, monkeypatch, method):
    words = ["--prompts", written(*PAIRS), "--steps", 1, "--batch", 2, "--method", method]
    assert small_cli(*words, "--out", "whole")[0] == 0
    save, kept = png.save, []

    def stops(picture, folder, name, settings):
        if len(kept) == 1:
            raise KeyboardInterrupt
        kept.extend([name] if "-dns-" not in name else [])
        return save(picture, folder, name, settings)

    monkeypatch.setattr(png, "save", stops)
    assert small_cli(*words)[0] == 130
    monkeypatch.setattr(png, "save", save)
    forwards.clear()
    code, _, _, err = small_cli(*words)
    assert code == 0 and "the pictures of 1 of 3 prompts are in outputs already" in err
    assert pictures("outputs") == pictures("whole")
    assert forwards == [2] * (1 if method == "cfg" else 2)
    forwards.clear()
    assert "of 3 of 3 prompts" in small_cli(*words)[3] and not forwards
    assert "already" not in small_cli(*words, "--seed", 1)[3] and forwards


def test_pictures_of_given_words_are_not_those_of_a_caption(small_cli, forwards):
    words = ["--steps", 1, "--batch", 1, "--method", "auto-dnp", "--s-dns", 2, "--size", 32, 32]
    assert small_cli("--prompts", written("a cat\ta dog"), *words)[0] == 0
    _, made, _, err = small_cli("--prompts", written("a cat"), *words)
    assert "already" not in err and "a-cat-auto-dnp-0-2.png" in [path.name for path in made]
    forwards.clear()
    assert (
        "of 1 of 1 prompts" in small_cli("--prompts", written("a cat"), *words)[3] and not forwards
    )


def test_rows_of_several_prompts_share_words_with_their_own_prompt_alone():
    model, asked = dnp.load(world()), []
    captioner = lambda shown: asked.append(len(shown)) or ["a bear", "a car"]
    rows = [Asked(p, seed) for p in PAIRS[:2] for seed in (3, 4)]
    kw = dict(steps=2, batch=4, caption_per="prompt")
    made = generate_rows(model, rows, "auto-dnp", captioner, **kw)
    assert asked == [2] and made.negatives == ["a bear"] * 2 + ["a car"] * 2
    for i, row in enumerate(rows[::2]):
        dns = dnp.generate(model, row.prompt, "dns", seed=3, steps=2, batch=4)
        assert dns.images[0].tobytes() == made.dns_images[i].tobytes()


def test_two_prompts_of_a_model_without_encode_are_not_drawn_as_one():
    toy = PointMass(torch.zeros(2), [torch.ones(2), -torch.ones(2)])
    with pytest.raises(SettingsError, match="one prompt in a forward"):
        generate_rows(toy, [Asked(0, 0), Asked(1, 1)], "cfg", steps=2, batch=2)


def test_a_dns_image_of_auto_dnp_is_made_again_to_the_byte(small_cli):
    small_cli("a cat", "--method", "auto-dnp", "--steps", 2, "--s-dns", 2)
    (path,) = small_cli.dns
    small_cli("--from", path, "--out", "again")
    small_cli("a cat", "--method", "dns", "--steps", 2, "--s", 2, "--out", "typed")
    for folder in ("again", "typed"):
        assert pictures(folder) == {"a-cat-dns-0.png": path.read_bytes()}

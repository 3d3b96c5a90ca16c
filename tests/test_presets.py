"""The papers' protocols, end to end on random weights in the real layouts at tiny sizes."""

import json

import pytest
import torch

from conftest import ARCHITECTURES, MINI, make_pipeline
from dnp.errors import SettingsError
from dnp.evaluation import metrics, presets
from dnp.evaluation.__main__ import main, parse
from test_prompting import folders  # noqa: F401 - tiny BLIP-2

pytestmark = pytest.mark.filterwarnings("ignore:with steps")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny random CLIP, saved as transformers does."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(MINI / "clip")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    text = small | {"vocab_size": len(tokenizer), "max_position_embeddings": 77}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = small | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 16}
    CLIPImageProcessorPil(size=size, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd15")
    make_pipeline(**ARCHITECTURES["four levels"]).save_pretrained(folder)
    return folder


def run(preset, weights, captioner, clip, out, *words):
    given = ("--preset", preset, "--weights", weights, "--captioner", captioner, "--clip", clip)
    tiny = ("--per-category", 1, "--seeds", 1, "--steps", 1, "--out", out)
    main([str(w) for w in (*given, *tiny, *words)])
    return (out / "tables.md").read_text(), json.loads((out / "run.json").read_text())


def apart(text):
    """The tables without a number of the paper, and those that hold one."""
    every = [table for table in text.split("\n\n") if "|---" in table]
    theirs = [t for t in every if "0.335" in t or "2 times as often" in t]
    assert len(theirs) == 1 and ", s = " not in theirs[0]
    return [t for t in every if t not in theirs], theirs[0]


def test_dnp_paper_on_the_layout_of_stable_diffusion(sd15, folders, clip, tmp_path):  # noqa: F811
    text, told = run("dnp-paper", sd15, folders / "blip-2", clip, tmp_path / "out")
    assert [c for _, c in told["prompts"]] == [
        "animals", "animals_objects", "objects", "people", "hands",
    ]  # fmt: skip
    assert list(told["methods"]) == ["cfg", "auto-dnp"] and told["scales"] == [7.5]
    assert told["methods"]["auto-dnp"][0]["s_dns"] == 7.5
    assert told["metrics"]["clip"]["templates"] == list(metrics.TEMPLATES)
    ours, theirs = apart(text)
    assert "| cfg, s = 7.5 |" in ours[0] and "min. object: the 4 prompts" in text
    assert "| auto-DNP, people | - / 0.331 / 10.13" in theirs
    assert "what of it is a guess" in text and "| a guess | 50 DDIM steps at s = 7.5" in text


@pytest.mark.slow
def test_answer_paper_on_the_layout_of_sdxl(sdxl, folders, clip, tmp_path):  # noqa: F811
    text, told = run("answer-paper", sdxl[1], folders / "blip-2", clip, tmp_path / "out")
    assert list(told["methods"]) == ["cfg", "auto-dnp", "answer"]
    ours, theirs = apart(text)
    assert "| answer, s = 7.5 |" in ours[0] and "| ANSWER | 2 times" in theirs
    assert "| a guess | 4 seeds" in text


def test_dry_run_of_a_preset_prints_its_whole_cost(sd15, folders, capsys, tmp_path):  # noqa: F811
    given = ["--preset", "dnp-paper", "--weights", str(sd15), "--dry-run"]
    main([*given, "--captioner", str(folders / "blip-2"), "--out", str(tmp_path / "x")])
    out = capsys.readouterr().out
    each = 3 * 50 + 45 + 25  # A&E: 50 of each category; H&H: both lists are whole
    assert f"| cfg, s = 7.5 | {32 * each:,} | {32 * each:,} | 100 |" in out
    assert f"| DNS images for n* | {32 * each:,} |" in out and "hours on cpu" in out
    assert not (tmp_path / "x").exists()


def test_what_is_typed_stands_over_a_preset():
    args = parse(["--preset", "dnp-paper", "--seeds", "3", "--scale", "5"])
    assert (args.seeds, args.scale, args.steps, args.benchmark) == (3, [5.0], 50, "dnp-paper")
    assert parse([]).seeds == 4
    with pytest.raises(SettingsError, match="dnp-paper or answer-paper"):
        parse(["--preset", "dnp"])


def test_a_preset_has_numbers_a_paper_prints_and_says_what_is_a_guess():
    for name in presets.PRESETS:
        lines = presets.published(name, name)
        guesses = [line for line in lines if line.startswith("| a guess | ")]
        assert len(guesses) >= 5 and any(line.startswith("What arXiv:2") for line in lines)
    assert any("0.258 / 0.346" in line for line in presets.published("ae", None))
    assert presets.published("trio", None) == []

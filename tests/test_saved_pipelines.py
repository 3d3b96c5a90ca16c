"""What people save and type: LoRAs and learnt words in folders, "!", files of other programs,
subjects that are cut off, folders of the hub's cache, sizes that are no pair."""

import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import dnp
from dnp.errors import SettingsError, WeightsError
from dnp.sd.captioner import load_captioner
from single_files import SECOND, opened
from test_from_diffusers_loaded import adapters
from tiny_pipelines import build

NEAR = {"atol": 1e-4, "rtol": 1e-4}


def quiet():
    """Without the note on what a 2.x file predicts."""
    return warnings.catch_warnings(action="ignore")


# ------------------------------------------------------------------------------------- LoRAs


@pytest.mark.parametrize("parts", ["unet", "text_encoder", "text_encoder_2", ""])
@pytest.mark.parametrize("fused", [False, True])
def test_a_lora_saved_with_its_pipeline_is_told_with_the_fix(tmp_path, parts, fused):
    pytest.importorskip("peft", reason="diffusers loads LoRAs by peft")
    pipe, _ = build("SDXL")
    state = {k: x for k, x in adapters(pipe).items() if k.startswith(parts + "." if parts else "")}
    pipe.load_lora_weights(state, adapter_name="mine")
    if fused:
        pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "a")
    with pytest.raises(WeightsError, match=r"a LoRA .*pipe\.fuse_lora\(\) and then pipe\.unload_l"):
        dnp.load(tmp_path / "a")


@pytest.mark.parametrize("kind", ["1.x", "SDXL"])
def test_a_fused_lora_that_was_unloaded_is_in_the_folder(tmp_path, kind):
    pytest.importorskip("peft", reason="diffusers loads LoRAs by peft")
    pipe, _ = build(kind)
    plain = dnp.from_diffusers(pipe).encode("a cat")
    pipe.load_lora_weights(adapters(pipe), adapter_name="mine")
    wanted = dnp.from_diffusers(pipe).encode("a cat")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path)
    assert_close(dnp.load(tmp_path).encode("a cat"), wanted, **NEAR)
    assert (wanted[0] - plain[0]).abs().max() > 1e-3


# ------------------------------------------------------------------------- textual inversions


@pytest.mark.parametrize("kind", ["1.x", "SDXL"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_learnt_word_in_a_folder_is_read_with_all_its_vectors(tmp_path, kind, count):
    pipe, _ = build(kind)
    for end in ("", "_2") if kind == "SDXL" else ("",):
        encoder, tokenizer = getattr(pipe, f"text_encoder{end}"), getattr(pipe, f"tokenizer{end}")
        for word, n in (("<toy>", count), ("<toy>s", 2)):
            pipe.load_textual_inversion(
                {word: torch.randn(n, encoder.config.hidden_size)}, token=word,
                text_encoder=encoder, tokenizer=tokenizer,
            )  # fmt: skip
    pipe.save_pretrained(tmp_path)
    ours, theirs = dnp.load(tmp_path), dnp.from_diffusers(pipe)
    for prompt in ("a <toy>", "<toy>", "a cat, <toy> and a dog", "<toy>, <toy>", "a cat"):
        a, b = (m.text([prompt]) if kind == "SDXL" else [m.encode(prompt)] for m in (ours, theirs))
        for x, y in zip(a, b, strict=True):
            assert_close(x, y, **NEAR)
    ids = lambda prompt: ours.token_ids([prompt], ours.tokenizer, ours.config.text)[0]
    written = " ".join(["<toy>", *(f"<toy>_{k}" for k in range(1, count))])
    assert torch.equal(ids("a <toy>"), ids(f"a {written}"))
    assert ours.places("a <toy> cat", ["<toy>", "cat"])[0] == [count, count + 1]


# --------------------------------------------------------------------------------------- "!"


def words(model, prompt, second=False):
    """The tokens of a prompt without start, end and padding; and the padding."""
    tokenizer = model.tokenizer_2 if second else model.tokenizer
    config = model.config.text_2 if second else model.config.text
    ids, ends = model.token_ids([prompt], tokenizer, config)
    return ids[0, 1 : ends[0]].tolist(), set(ids[0, ends[0] + 1 :].tolist())


EXCLAIMED = {
    "a cat!": [320, 2368, 256], "!": [256], "! a": [256, 320], "!!": [748], "a ! cat": [320, 256,
    2368], "wow!cat": [2781, 256, 2368], "!!!": [995],
}  # fmt: skip


@pytest.mark.parametrize("prompt", EXCLAIMED)
def test_an_exclamation_mark_is_a_word_and_never_padding(family, prompt):
    name, _, folder, path = family
    for where in (folder, path):
        with quiet():
            model = opened(where)
        assert words(model, prompt) == (EXCLAIMED[prompt], {0 if name == "2.x" else 49407})


def test_an_exclamation_mark_is_a_word_to_both_encoders_of_sdxl(both):
    _, folder, path = both
    for where in (folder, path):
        model = opened(where)
        assert words(model, "a cat!") == ([320, 2368, 256], {49407})
        assert words(model, "a cat!", second=True) == ([320, 2368, 256], {0})


def test_a_subject_after_an_exclamation_mark_is_found(family):
    *_, path = family
    with quiet():
        model = opened(path)
    assert model.places("wow! a cat!dog", ["cat", "dog"]) == ([3, 5], 6)


def test_a_pipeline_keeps_its_tokenizer_and_says_what_it_does_with_an_exclamation_mark():
    for kind, tells in (("1.x", False), ("SDXL", True)):
        pipe, _ = build(kind)
        model = dnp.from_diffusers(pipe)
        with pytest.warns(UserWarning) as told:
            model.encode("a cat!")
            warnings.warn("another", stacklevel=1)
        assert any('reads "!" in a prompt as padding' in str(w.message) for w in told) == tells


# -------------------------------------------------------------------- files of other programs


def turned(tensors):
    tensors[SECOND + "text_projection.weight"] = tensors.pop(SECOND + "text_projection").T


def positions(name):
    return lambda tensors: tensors.update({name: torch.arange(77)[None]})


NAMES = {
    "diffusers' own converter": turned,
    "position_ids": positions(SECOND + "transformer.text_model.embeddings.position_ids"),
    "position_ids without a prefix": positions(SECOND + "embeddings.position_ids"),
    "position_ids in transformers' spelling": positions(
        "conditioner.embedders.1.transformer.text_model.embeddings.position_ids"
    ),
    "mask": lambda t: t.update({SECOND + "attn_mask": torch.zeros(77, 77)}),
}


@pytest.mark.parametrize("name", NAMES)
def test_an_sdxl_file_of_another_program_is_the_same_model(both, tmp_path, name):
    *_, path = both
    tensors = load_file(path)
    NAMES[name](tensors)
    save_file({k: x.contiguous() for k, x in tensors.items()}, tmp_path / "x.safetensors")
    a, b = opened(path), dnp.load(tmp_path / "x.safetensors")
    kinds = [(m.config.text, m.config.text_2) for m in (a, b)]
    assert kinds[0] == kinds[1]  # of which the tokenizers are made, slowly
    b.tokenizer, b.tokenizer_2 = a.tokenizer, a.tokenizer_2
    with torch.no_grad():
        for x, y in zip(a.text(["a cat", ""]), b.text(["a cat", ""]), strict=True):
            assert torch.equal(x, y)


# ------------------------------------------------------------------------------------ subjects


def test_what_is_wrong_with_a_subject_is_true(family):
    *_, path = family
    with quiet():
        model = opened(path)
    long = ", ".join(["a very detailed oil painting of a big green park"] * 8) + ", a cat and a dog"
    room = ["cat"] * 74
    for prompt, subjects, told in (
        (long, ["cat"], "cut off: the prompt has 93 tokens and the limit is 75; shorten"),
        (" ".join([*room, "a", "dog"]), ["dog"], "cut off: the prompt has 76 tokens"),
        ("a cat", ["cat", "cat"], "named 2 times and stands in the prompt .* 1 times; name it"),
        ("a cat and a cat", ["cat"] * 3, "named 3 times and stands in the prompt .* 2 times"),
        ("a cat", ["dog"], "is not in the prompt"),
        ("a cat", [""], "is not in the prompt"),
        ("category", ["cat"], "is not in the prompt"),
    ):
        with pytest.raises(SettingsError, match=told):
            model.places(prompt, subjects)
    assert model.places(" ".join([*room, "dog", "a"]), ["dog"]) == ([74], 75)
    assert model.places("a cat and a cat", ["cat", "cat"]) == ([1, 4], 5)


# ----------------------------------------------------------------------------- the hub's cache


def test_a_folder_of_the_hubs_cache_leads_to_its_newest_snapshot(tiny, tmp_path):
    cache = tmp_path / "models--a--b"
    shutil.copytree(tiny, cache / "snapshots" / "0123")
    (cache / "refs").mkdir()
    for above in (cache, cache / "snapshots", tmp_path):
        with pytest.raises(WeightsError, match=r"of the hub's cache; give .*snapshots.0123\."):
            dnp.load(above)
    assert dnp.load(cache / "snapshots" / "0123")


def test_a_captioner_in_the_hubs_cache_leads_to_its_snapshot(tmp_path):
    inside = tmp_path / "snapshots" / "4567"
    inside.mkdir(parents=True)
    (inside / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"of the hub's cache; give .*4567\."):
        load_captioner(tmp_path)


@pytest.mark.parametrize("size", [64, "64", (64,), (64, 64, 3), 64.0, (64.0, 64)])
def test_a_size_that_is_no_pair_of_whole_numbers_is_told(tiny, size):
    model = dnp.load(tiny)
    for ask in (lambda: model.latent_shape(size), lambda: dnp.generate(model, "a", size=size)):
        with pytest.raises(SettingsError, match="is not possible; give "):
            ask()


@pytest.mark.parametrize("name", ["original_size", "crop", "target_size"])
def test_a_size_of_sdxl_that_is_no_pair_is_told(name):
    model = dnp.from_diffusers(build("SDXL")[0])
    with pytest.raises(SettingsError, match=f"{name} 64 is not possible; give two numbers"):
        model.encode("a cat", **{name: 64})

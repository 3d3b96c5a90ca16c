"""Weights folders as the command meets them: whole, damaged, or of another network."""

import hashlib
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import MINI, change_json, pixels, refused
from dnp.app.png import read_settings


def test_info_tells_what_weights_hold(cli):
    code, pngs, out, _ = cli("--info")
    assert code == 0 and pngs == [] and "layout      diffusers folder" in out
    assert "8,788,228 parameters" in out and "predicts    epsilon" in out
    digest = hashlib.sha256((MINI / UNET).read_bytes()).hexdigest()
    assert digest in out
    refused(cli("--info", "--weights", "nowhere"), "no such file")


@pytest.fixture
def copy(tiny, tmp_path):
    """A weights folder of one's own to damage."""
    folder = tmp_path / "damaged"
    for path in tiny.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(tiny)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(tiny)).write_bytes(path.read_bytes())
    return folder


UNET = "unet/diffusion_pytorch_model.safetensors"


def change_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_an_undamaged_copy_works(cli, copy):
    assert cli("a cat", "--steps", 1, "--weights", copy)[0] == 0


def test_truncated_weights(cli, copy):
    data = (copy / UNET).read_bytes()
    for size in (0, 4, 200, len(data) - 1):
        (copy / UNET).write_bytes(data[:size])
        refused(cli("a", "--weights", copy), "truncated or damaged")


def test_a_pickle_is_never_opened(cli, copy):
    torch.save({}, copy / "unet" / "diffusion_pytorch_model.bin")
    os.remove(copy / UNET)
    refused(cli("a", "--weights", copy), "is a pickle")
    torch.save({}, copy / UNET)
    refused(cli("a", "--weights", copy), "is a pickle")


def test_weights_of_other_shapes_are_counted_and_named(cli, copy):
    def damage(tensors):
        tensors["conv_in.weight"] = torch.zeros(3, 3)
        tensors["surprise"] = torch.zeros(1)
        for key in [k for k in tensors if "time_emb_proj" in k]:
            del tensors[key]

    change_tensors(copy / UNET, damage)
    code, _, _, err = cli("a", "--weights", copy)
    assert code == 2 and "16 missing (down_blocks.0.resnets.0.time_emb_proj.weight" in err
    assert "1 unexpected (surprise)" in err
    assert "1 mis-shaped (conv_in.weight (3, 3) for (24, 4, 3, 3))" in err


def test_integer_weights_are_refused(cli, copy):
    change_tensors(copy / UNET, lambda t: t.update({"conv_in.bias": t["conv_in.bias"].int()}))
    refused(cli("a", "--weights", copy), "1 of a type that is not read (conv_in.bias)")


def test_a_non_finite_eps_names_the_step(cli, copy):
    change_tensors(copy / UNET, lambda t: t["conv_out.bias"].fill_(3e38))
    refused(cli("a", "--weights", copy, "--steps", 3), "not finite at step 2 of 3")


LIES = [  # (part, entry of its config, value, what the error must say)
    ("unet", "class_embed_type", "timestep", "class_embed_type = 'timestep' is not supported"),
    ("unet", "block_out_channels", [24, -48], "block_out_channels = (24, -48) is not possible"),
    ("unet", "norm_num_groups", 7, "not divisible by norm_num_groups = 7"),
    ("unet", "block_out_channels", 48, "block_out_channels = 48 is not possible"),
    ("unet", "down_block_types", None, "down_attention = () is not possible"),
    ("unet", "down_block_types", [{}, {}], "down_block_types = {} is not supported"),
    ("unet", "mid_block_type", None, "mid_block_type = None is not supported"),
    ("unet", "layers_per_block", [1, 2], "layers_per_block = (1, 2) is not possible or not supp"),
    ("unet", "transformer_layers_per_block", [1, 2, 3], "(1, 2, 3) is not supported"),
    ("unet", "sample_size", 10**6, "is not possible"),
    ("vae", "out_channels", 4, "(3, 4) is not supported"),
    ("unet", "layers_per_block", 10**9, "layers_per_block = 1000000000 is not possible"),
    ("unet", "cross_attention_dim", "40", "cross_attention_dim = '40' is not possible"),
    ("unet", "down_block_types", ["DownBlock2D"], "down_attention has 1 entries for 2 levels"),
    ("unet", "up_block_types", ["SkipUpBlock2D", "X"], "'SkipUpBlock2D' is not supported"),
    ("unet", "cross_attention_dim", 48, "the text encoder is 40 wide"),
    ("unet", "in_channels", 9, "inpainting"),
    ("vae", "latent_channels", 16, "VAE has 16"),
    ("vae", "down_block_types", ["X", "X"], "down_block_types = 'X' is not supported"),
    ("vae", "scaling_factor", 0, "scaling_factor = 0 is not possible"),
    ("text_encoder", "hidden_act", "relu", "hidden_act = 'relu' is not supported"),
    ("text_encoder", "use_attention_mask", True, "use_attention_mask = True is not supported"),
    ("text_encoder", "vocab_size", 9, "token_embedding.weight (886, 40) for (9, 40)"),
    ("scheduler", "prediction_type", "sample", "prediction_type = 'sample' is not supported"),
    ("scheduler", "timestep_spacing", "x", "must be 'leading' or 'trailing' or 'linspace'"),
    ("scheduler", "beta_start", 2, "beta from 2 to"),
    ("scheduler", "beta_start", 10**400, "is not possible"),
    ("scheduler", "beta_end", None, "is not possible"),
    ("scheduler", "steps_offset", "1", "steps_offset = '1' is not possible"),
]


@pytest.mark.parametrize(("part", "entry", "value", "sentence"), LIES)
def test_a_config_that_describes_another_network(cli, copy, part, entry, value, sentence):
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    change_json(copy / part / name, **{entry: value})
    refused(cli("a", "--weights", copy), sentence)


def test_a_tokenizer_of_another_model(cli, copy):
    def cut(tensors):
        key = next(k for k in tensors if k.endswith("token_embedding.weight"))
        tensors[key] = tensors[key][:100].clone()

    change_tensors(copy / "text_encoder" / "model.safetensors", cut)
    change_json(copy / "text_encoder" / "config.json", vocab_size=100)
    refused(cli("a", "--weights", copy), "its tokens go up to 885")


def test_missing_and_broken_parts(cli, copy, tmp_path):
    (copy / "unet" / "config.json").write_text("{")
    refused(cli("a", "--weights", copy), "cannot be read as JSON")
    (copy / "unet" / "config.json").write_text("[]")
    refused(cli("a", "--weights", copy), "does not hold a JSON object")
    os.remove(copy / "unet" / "config.json")
    refused(cli("a", "--weights", copy), "config.json: no such file")
    (tmp_path / "single.safetensors").write_bytes(b"x")
    refused(cli("a", "--weights", tmp_path / "single.safetensors"), "is truncated or damaged")


def test_a_missing_tokenizer_and_file(cli, copy):
    vae = copy / "vae" / "diffusion_pytorch_model.safetensors"
    away = vae.rename(copy / "away")
    refused(cli("a", "--weights", copy), "no such file; fetch the safetensors variant")
    vae.with_name("diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    refused(cli("a", "--weights", copy), "weight_map does not name files")
    away.rename(vae)
    for path in (copy / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()
    refused(cli("a", "--weights", copy), "neither tokenizer.json nor vocab.json and merges.txt")
    (copy / "tokenizer" / "tokenizer.json").write_text("{}")
    refused(cli("a", "--weights", copy), "no CLIP tokenizer")


def test_a_tensor_under_two_names(cli, copy):
    def twice(tensors):
        key = next(k for k in tensors if k.endswith("final_layer_norm.bias"))
        tensors["text_model.final_layer_norm.bias"] = tensors[key].clone()
        tensors["final_layer_norm.bias"] = tensors[key].clone()

    change_tensors(copy / "text_encoder" / "model.safetensors", twice)
    refused(cli("a", "--weights", copy), "holds a tensor twice")


def test_a_vae_that_returns_nan_is_no_black_picture(cli, copy):
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    change_tensors(path, lambda t: t["decoder.conv_norm_out.weight"].fill_(3e38))
    refused(cli("a", "--weights", copy, "--steps", 1), "the VAE's picture is not finite")


def test_old_vae_attention_names_and_prefixes_load(cli, copy):
    _, (new,), _, _ = cli("a cat", "--steps", 1, "--weights", copy)
    kept = new.rename(new.with_name("kept.png"))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        for key in [k for k in tensors if "mid_block.attentions" in k]:
            for a, b in old.items():
                if f".{a}." in key:
                    tensors[key.replace(f".{a}.", f".{b}.")] = tensors.pop(key)

    change_tensors(copy / "vae" / "diffusion_pytorch_model.safetensors", rename)

    def prefix(tensors):
        for key in list(tensors):
            tensors["text_model." + key.removeprefix("text_model.")] = tensors.pop(key)
        tensors["text_model.embeddings.position_ids"] = torch.arange(20)[None]

    change_tensors(copy / "text_encoder" / "model.safetensors", prefix)
    code, (again,), _, _ = cli("a cat", "--steps", 1, "--weights", copy)
    assert code == 0 and (pixels(again) == pixels(kept)).all()


def test_dnp_json_is_checked(cli, copy):
    (copy / "dnp.json").write_text('{"scale": {"cfg": "big"}}')
    refused(cli("a", "--weights", copy), "must map methods to finite numbers")
    (copy / "dnp.json").write_text('{"scale": {"cfg": 1.25}}')
    _, (path,), _, _ = cli("a", "--weights", copy, "--steps", 1)
    assert read_settings(path)["s"] == 1.25

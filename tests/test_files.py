"""Every layout that people have on disk: shards, variants, and the original single file.

A single file is made here from a diffusers folder by a translation of its own, and diffusers'
`from_single_file` must read it too and give the same eps: so neither translation is its own proof.
"""

import functools
import itertools
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import dnp
from conftest import ARCHITECTURES, MINI, ROOT, make_pipeline, slow_but
from dnp.errors import NonFiniteError, SettingsError, WeightsError
from dnp.sd.config import SD1_TEXT, SD1_UNET, SD2_TEXT, SD2_UNET, TextConfig
from dnp.sd.files import names
from single_files import FAMILIES, make_family


@functools.cache
def of_folder(folder):
    """What a folder that no test changes computes: the measure of every file made from it."""
    return outputs(dnp.load(folder))


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is a Stable Diffusion 2.x.*")
        yield


def outputs(model):
    """Context, eps and pixels of one prompt, from our networks."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(1, 4, 8, 8, generator=g)
    c = model.encode(["a photo of a cat"])
    with torch.inference_mode():
        return c, model.eps(z, torch.tensor(500), c), model.vae.decode(z)


def test_a_single_file_is_the_folder_it_was_made_from(family):
    _, _, folder, path = family
    for a, b in zip(outputs(dnp.load(path)), of_folder(folder)):
        assert_close(a, b, atol=5e-6, rtol=0)


def diffusers_agrees(folder, path):
    """diffusers' own reader of single files, with the configs of `folder`, computes what we do."""
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_single_file(
        path, config=str(folder), local_files_only=True, safety_checker=None
    )
    c, eps, x = outputs(dnp.load(path))
    g = torch.Generator().manual_seed(0)
    z = torch.randn(1, 4, 8, 8, generator=g)
    ids = theirs.tokenizer("a photo of a cat", padding="max_length", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert_close(theirs.text_encoder(ids)[0], c, atol=1e-5, rtol=1e-5)
        assert_close(theirs.unet(z, 500, c).sample, eps, atol=1e-5, rtol=1e-5)
        assert_close(theirs.vae.decode(z).sample, x, atol=1e-4, rtol=1e-4)


def test_diffusers_reads_the_single_file_as_we_do(family):
    _, _, folder, path = family
    diffusers_agrees(folder, path)


FULL = {  # configs, and the parameters of U-Net and text encoder
    "1.x": (SD1_TEXT, SD1_UNET, 859_520_964, 123_060_480),
    "2.x": (SD2_TEXT, SD2_UNET, 865_910_724, 340_387_840),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_diffusers_reads_a_full_size_single_file_as_we_do(name, tmp_path):
    text, unet, unet_count, text_count = FULL[name]
    sizes = dict(
        unet=dict(
            FAMILIES[name]["unet"], block_out_channels=unet.block_out_channels,
            cross_attention_dim=unet.cross_attention_dim,
            attention_head_dim=list(unet.heads),
        ),
        text=dict(
            FAMILIES[name]["text"], hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size, num_hidden_layers=text.num_hidden_layers,
        ),
    )  # fmt: skip
    pipeline, folder, path = make_family(sizes, (128, 256, 512, 512), name == "2.x", tmp_path)
    del pipeline
    for weights in folder.glob("*/*.safetensors"):
        weights.unlink()  # only the configs are needed from here on
    model = dnp.load(path)
    assert (model.config.text, model.config.unet) == (text, unet)
    assert sum(p.numel() for p in model.unet.parameters()) == unet_count
    assert sum(p.numel() for p in model.text_encoder.parameters()) == text_count
    del model
    diffusers_agrees(folder, path)


def test_the_whole_vocabulary_tokenizes_as_clip_does():
    one = names.clip_tokenizer(TextConfig())
    assert one("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert one("a elephant with a glasses").input_ids == [
        49406, 320, 10299, 593, 320, 6116, 49407,
    ]  # fmt: skip
    assert one.pad_token_id == 49407
    assert names.clip_tokenizer(TextConfig(hidden_act="gelu")).pad_token_id == 0


def damaged(path, tmp_path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def test_what_a_2x_file_predicts_is_told_and_can_be_overridden(family, tmp_path):
    name, _, _, path = family
    if name == "1.x":
        pytest.skip("1.x predicts eps")

    def spread(tensors):
        key = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
        tensors[key] = 0.2 * torch.randn(64, generator=torch.Generator().manual_seed(0))

    v = damaged(path, tmp_path, spread)
    with pytest.warns(UserWarning, match="predicts v_prediction.*--prediction"):
        model = dnp.load(v)
    assert model.config.prediction_type == "v_prediction"
    assert model.config.unet.sample_size == (96, 96)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what the user says needs no warning
        told = dnp.load(v, prediction_type="epsilon").config
        other = dnp.load(path, prediction_type="v_prediction").config
    assert (told.prediction_type, told.unet.sample_size) == ("epsilon", (64, 64))
    assert (other.prediction_type, other.unet.sample_size) == ("v_prediction", (96, 96))
    with pytest.raises(SettingsError, match="epsilon or v_prediction"):
        dnp.load(v, prediction_type="x0")


def test_a_2x_file_made_from_a_diffusers_folder_has_no_last_layer_to_leave_out(family, tmp_path):
    name, _, folder, path = family
    if name == "1.x":
        pytest.skip("1.x has no such layer")
    start = "cond_stage_model.model."
    last = "transformer.resblocks.23.", "text_projection", "logit_scale"

    def convert(tensors):
        for key in [k for k in tensors if k.startswith(tuple(start + k for k in last))]:
            tensors.pop(key)

    path = damaged(path, tmp_path, convert)
    for a, b in zip(outputs(dnp.load(path)), of_folder(folder)):
        assert_close(a, b, atol=5e-6, rtol=0)
    diffusers_agrees(folder, path)


def in_the_names_of_1x(folder, prefix, layers):
    """A change to a 2.x file: its text encoder as converters write one of transformers."""

    def convert(tensors):
        for key in [k for k in tensors if k.startswith("cond_stage_model.")]:
            tensors.pop(key)
        for key, x in load_file(folder / "text_encoder" / "model.safetensors").items():
            key = f"cond_stage_model.transformer.{prefix}{key.removeprefix('text_model.')}"
            tensors[key] = x
            if layers == 24 and ".22." in key:  # the last one, which is never used
                tensors[key.replace(".22.", ".23.")] = torch.zeros_like(x)

    return convert


@pytest.mark.parametrize(
    "written",
    slow_but([(23, ""), (24, "text_model.")], [*itertools.product((23, 24), ("", "text_model."))]),
    ids=str,
)
def test_a_2x_file_with_the_text_encoder_under_the_names_of_1x(family, tmp_path, written):
    name, pipeline, folder, path = family
    layers, prefix = written
    if name == "1.x":
        pytest.skip("of 2.x")
    path = damaged(path, tmp_path, in_the_names_of_1x(folder, prefix, layers))
    with pytest.warns(UserWarning, match="is a Stable Diffusion 2.x, .* uses 23 layers"):
        model = dnp.load(path)
    text = model.config.text
    assert (text.hidden_act, text.num_hidden_layers) == ("gelu", 23)
    for a, b in zip(outputs(model), of_folder(folder)):
        assert_close(a, b, atol=5e-6, rtol=0)
    words = ["a photo of a cat", "", "glasses"]
    ids = pipeline.tokenizer(words, padding="max_length", return_tensors="pt").input_ids
    want = pipeline.text_encoder(ids).last_hidden_state
    assert_close(model.encode(words), want, atol=1e-5, rtol=1e-5)


def test_a_text_encoder_of_one_family_and_a_unet_of_the_other_are_refused(family, tmp_path):
    name, _, folder, path = family

    def mix(tensors):
        if name == "2.x":  # a text encoder as short as that of 1.x
            in_the_names_of_1x(folder, "", 23)(tensors)
            for key in [k for k in tensors if re.search(r"encoder\.layers\.(1[2-9]|2\d)\.", k)]:
                tensors.pop(key)
        else:
            for key in [k for k in tensors if "encoder.layers.0." in k]:
                for i in range(3, 23):
                    tensors[key.replace(".0.", f".{i}.", 1)] = tensors[key].clone()

    with pytest.raises(WeightsError, match=r"\d\d layers is of 1.x or of 2.x and its U-Net of the"):
        dnp.load(damaged(path, tmp_path, mix))


def test_position_ids_of_any_spelling_are_passed_over(family, tmp_path):
    *_, folder, path = family
    keys = [
        f"cond_stage_model.{a}transformer.{b}embeddings.position_ids"
        for a in ("", "model.") for b in ("", "text_model.")
    ]  # fmt: skip
    ids = torch.arange(77)[None]
    path = damaged(path, tmp_path, lambda t: t.update({k: ids.clone() for k in keys}))
    for a, b in zip(outputs(dnp.load(path)), of_folder(folder)):
        assert_close(a, b, atol=5e-6, rtol=0)


@pytest.mark.parametrize(("layers", "whole", "used"), [(24, True, 23), (24, False, 23),
    (23, True, 23), (23, False, 23), (3, True, 2), (3, False, 3)])  # fmt: skip
def test_layers_of_openclip_that_are_used(layers, whole, used):
    shapes = {f"transformer.resblocks.{i}.mlp.c_fc.weight": (64, 16) for i in range(layers)}
    shapes |= {"token_embedding.weight": (49408, 16), "positional_embedding": (77, 16)}
    assert names.text_config(shapes, True, whole).num_hidden_layers == used


def test_missing_and_unexpected_tensors_are_counted_and_named(family, tmp_path):
    *_, path = family

    def lose(tensors):
        for key in [k for k in tensors if "middle_block.2." in k]:
            tensors.pop(key)
        tensors["model.diffusion_model.extra.weight"] = torch.zeros(3)

    with pytest.raises(WeightsError, match=r"10 missing \(.*, \.\.\.\); 1 unexpected \(extra"):
        dnp.load(damaged(path, tmp_path, lose))


ATTN = "attentions.0.transformer_blocks.0.attn2"
CELL = "down_blocks.0.resnets.0.conv1.weight"
KINDS = [
    ({"conditioner.embedders.1.model.x": (1,)}, "this is not a whole SDXL"),
    ({"conditioner.embedders.0.model.ln_final.bias": (1280,)}, "the refiner of SDXL"),
    ({"conditioner.embedders.0.open_clip.model.ln_final.bias": (4,)}, "Stable Video Diffusion"),
    ({"model.diffusion_model.input_blocks.1.0.time_stack.x": (1,)}, "Stable Video Diffusion"),
    ({CELL: (1,), "down_blocks.0.resnets.0.temporal_res_block.x": (1,)}, "Stable Video Diffusion"),
    ({CELL: (1,), f"down_blocks.0.{ATTN}.to_k.weight": (8, 2048)}, "give the folder above"),
    ({CELL: (1,), f"down_blocks.0.{ATTN}.to_k.weight": (8, 1280)}, "refiner of SDXL"),
    ({"add_embedding.linear_1.weight": (8, 8), CELL: (1,)}, "give the folder above"),
    ({"model.diffusion_model.label_emb.0.0.weight": (8, 8)}, "this is not a whole SDXL"),
    ({"lora_unet_down.lora_up.weight": (1,)}, "a LoRA, .* merge it into its model"),
    ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": ()}, "a LoRA, .* dnp.from_diffusers"),
    ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 8)}, "a LoRA, .* merge it"),
    ({f"down_blocks.0.{ATTN}.processor.to_q_lora.down.weight": (4, 8)}, "a LoRA, .* merge it"),
    ({f"unet.down_blocks.0.{ATTN}.to_q.lora.up.weight": (4, 8)}, "a LoRA, .* merge it"),
    ({f"unet.down_blocks.0.{ATTN}.to_q.lora_A.weight": (4, 8)}, "a LoRA, .* merge it"),
    ({"lora_unet_down_blocks_0_attn1_to_q.lokr_w1": (4, 8)}, "a LoKr .* merge it"),
    ({"lycoris_down_blocks_0_attn1_to_q.lokr_w2_a": (4, 8)}, "a LoKr .* merge it"),
    ({"lora_unet_down_blocks_0_attn1_to_q.hada_w1_a": (4, 8)}, "a LoHa .* merge it"),
    ({"control_model.input_blocks.0.0.weight": (1,)}, "a ControlNet, .* the model that it was"),
    ({CELL: (1,), "controlnet_cond_embedding.conv_in.weight": (1,)}, "a ControlNet, .* the model"),
    ({CELL: (1,), "controlnet_down_blocks.0.weight": (1,)}, "a ControlNet, .* the model that"),
    ({"ip_adapter.1.to_k_ip.weight": (4, 8)}, "an IP-Adapter, .* the model that it was"),
    ({"image_proj.proj.weight": (4, 8), "ip_adapter.1.to_q_lora.up.weight": (4, 8)}, "an IP-Adap"),
    ({"emb_params": (2, 768)}, "a textual inversion, .* dnp.from_diffusers"),
    ({"<my-cat>": (768,)}, "a textual inversion"),
    ({"any word": (3, 1024)}, "a textual inversion"),
    ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "a textual inversion"),
    ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "Stable Diffusion 3, .* dnp.pipelines"),
    ({"context_embedder.weight": (1,), "pos_embed.pos_embed": (1,)}, "Stable Diffusion 3"),
    ({"double_blocks.0.img_attn.x": (1,)}, "Flux, .* dnp.pipelines"),
    ({"context_embedder.bias": (1,), "single_transformer_blocks.0.x": (1,)}, "Flux"),
    ({CELL: (1,)}, "give the folder above"),
    ({"decoder.conv_in.weight": (1,)}, "VAE alone: give the whole model"),
    ({"text_model.x": (1,)}, "text encoder alone: give the whole model"),
    ({"embeddings.token_embedding.weight": (9, 8)}, "text encoder alone"),
    ({"encoder.layers.0.mlp.fc1.weight": (9, 8), "final_layer_norm.bias": (8,)}, "text encoder al"),
    ({"transformer.resblocks.0.ln_1.bias": (8,)}, "text encoder alone"),
    ({"shared.weight": (8, 8), "encoder.block.0.layer.0.x": (8,)}, "T5 text encoder alone"),
    ({"model.diffusion_model.out.2.weight.quant_state.bitsandbytes__nf4": (4,)}, "quantised weigh"),
    ({"nothing.known": (1,)}, "not a whole Stable Diffusion"),
]


@pytest.mark.parametrize(("names", "sentence"), KINDS)
def test_files_of_other_kinds_are_recognised(tmp_path, names, sentence):
    path = tmp_path / "x.safetensors"
    save_file({k: torch.zeros(v) for k, v in names.items()}, path)
    with pytest.raises(WeightsError, match=sentence) as e:
        dnp.load(path)
    assert "U-Net" not in str(e.value) or "folder above" in sentence


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_8_bits_are_told_with_the_mend(family, folder, tmp_path, kind):
    *_, path = family
    told = r"\d+ tensors are F8_E\w+ .*fetch the variant in float16"

    def small(tensors):
        tensors |= {k: x.to(kind) for k, x in tensors.items() if k.endswith("to_q.weight")}

    with pytest.raises(WeightsError, match=told):
        dnp.load(damaged(path, tmp_path, small))
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: x.to(kind) for k, x in load_file(unet).items()}, unet)
    with pytest.raises(WeightsError, match=told):
        dnp.load(folder)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("StableDiffusionXLInpaintPipeline", "the inpainting model of SDXL"),
        ("StableDiffusionXLImg2ImgPipeline", "the refiner of SDXL"),
        ("StableVideoDiffusionPipeline", "Stable Video Diffusion"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3, .* dnp.pipelines"),
        ("SD3Transformer2DModel", "Stable Diffusion 3"),
        ("FluxPipeline", "Flux, .* dnp.pipelines"),
        ("ControlNetModel", "a ControlNet, .* the model that it was"),
        ("UNet2DConditionModel", "give the folder above"),
    ],
)
def test_folders_of_other_kinds_are_recognised(tmp_path, name, sentence):
    file = "config.json" if name.endswith("Model") else "model_index.json"
    (tmp_path / file).write_text(json.dumps({"_class_name": name}))
    with pytest.raises(WeightsError, match=sentence):
        dnp.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("pytorch_lora_weights", "a LoRA, .* merge it"), ("learned_embeds", "a textual inversion, ")],
)
def test_what_is_no_model_in_a_folder_is_recognised(tmp_path, name, sentence):
    (tmp_path / f"{name}.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=sentence):
        dnp.load(tmp_path)


@pytest.mark.parametrize("name", ["flux1-dev-Q4_K_S.gguf", "renamed.safetensors"])
def test_gguf_is_known_by_its_first_bytes(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(40))
    with pytest.raises(WeightsError, match=r"this is GGUF, .* float16 or float32, as \.safe"):
        dnp.load(path)


# --------------------------------------------------------------------------- variants of folders


@pytest.fixture
def folder(tiny, tmp_path):
    for path in tiny.rglob("*"):
        if path.is_file():
            target = tmp_path / "copy" / path.relative_to(tiny)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path / "copy"


def shard(folder, pieces=3, name="diffusion_pytorch_model"):
    """Splits the U-Net of a folder into shards and their index."""
    tensors = load_file(folder / f"{name}.safetensors")
    (folder / f"{name}.safetensors").unlink()
    keys, where = sorted(tensors), {}
    for i in range(pieces):
        file = f"{name}-{i + 1:05d}-of-{pieces:05d}.safetensors"
        part = {k: tensors[k] for k in keys[i::pieces]}
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_shards_are_the_whole(folder, tiny):
    shard(folder / "unet")
    for a, b in zip(outputs(dnp.load(folder)), of_folder(tiny)):
        assert_close(a, b, atol=5e-6, rtol=0)


def test_full_precision_in_shards_comes_before_an_fp16_file(folder, tiny):
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: x.half() for k, x in load_file(whole).items()}, folder / "unet" / "half")
    shard(folder / "unet")
    (folder / "unet" / "half").rename(whole.with_suffix(".fp16.safetensors"))
    for a, b in zip(outputs(dnp.load(folder)), of_folder(tiny)):
        assert_close(a, b, atol=5e-6, rtol=0)


def test_shards_as_diffusers_writes_them(tmp_path, tiny):
    pipeline = make_pipeline(**ARCHITECTURES["linear, v"])
    pipeline.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    for a, b in zip(outputs(dnp.load(tmp_path)), of_folder(tiny)):
        assert_close(a, b, atol=5e-6, rtol=0)


def test_an_fp16_variant_loads(tmp_path, tiny):
    pipeline = make_pipeline(**ARCHITECTURES["linear, v"]).to(torch.float16)
    pipeline.save_pretrained(tmp_path, variant="fp16")
    model = dnp.load(tmp_path)
    assert model.dtype == torch.float32
    for a, b in zip(outputs(model), of_folder(tiny)):
        assert_close(a, b, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: d["weight_map"].update(x="../x.safetensors"), "not a safetensors file beside"),
        (lambda d: d["weight_map"].update(x="x.bin"), "not a safetensors file beside"),
        (lambda d: d["weight_map"].update(x="gone.safetensors"), "names it; fetch it"),
        (lambda d: d.pop("weight_map"), "does not name files"),
        (lambda d: d["weight_map"].update(x=3), "does not name files"),
    ],
)
def test_a_damaged_index_is_refused(folder, damage, sentence):
    index = shard(folder / "unet")
    d = json.loads(index.read_text())
    damage(d)
    index.write_text(json.dumps(d))
    with pytest.raises(WeightsError, match=sentence):
        dnp.load(folder)


def test_a_tensor_in_two_shards_is_refused(folder):
    shard(folder / "unet")
    one, two, _ = sorted((folder / "unet").glob("*.safetensors"))
    extra = load_file(two)
    extra[next(iter(load_file(one)))] = torch.zeros(1)
    save_file(extra, two)
    with pytest.raises(WeightsError, match="in two shards"):
        dnp.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("part", "stem", "key"),
    [
        ("text_encoder", "model", "final_layer_norm.bias"),
        ("unet", "diffusion_pytorch_model", "conv_in.bias"),
        ("vae", "diffusion_pytorch_model", "decoder.conv_in.bias"),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_a_call_with_a_name(
    folder, part, stem, key, value
):
    path = folder / part / f"{stem}.safetensors"
    tensors = load_file(path)
    tensors[next(k for k in tensors if k.endswith(key))].view(-1)[0] = value
    save_file(tensors, path)
    model = dnp.load(folder)
    for _ in range(2):  # the second time as the first
        with pytest.raises(WeightsError, match=r"bias in .*safetensors holds NaN or infinity"):
            model.check_finite()
    with pytest.raises(NonFiniteError):
        dnp.generate(model, "a cat", steps=1)


def test_finite_weights_whose_sum_is_infinite_load(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_out.bias"] = torch.full_like(tensors["conv_out.bias"], 3e38)
    save_file(tensors, path)
    model = dnp.load(folder)
    model.check_finite()
    assert outputs(model)[1].max() > 1e38


@pytest.mark.parametrize("pad", range(8))
def test_tensors_at_any_byte_are_read(tmp_path, pad):
    from dnp.sd.files.tensors import open_files

    want = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4.0).half()}
    header, data = {"pad": {"dtype": "U8", "shape": [pad], "data_offsets": [0, pad]}}, b"x" * pad
    for name, x in want.items():
        raw = x.numpy().tobytes()
        kind = {torch.float32: "F32", torch.float16: "F16"}[x.dtype]
        ends = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": ends}
        data += raw
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    entries = open_files([path])
    for name, x in want.items():
        got = entries[name].read({})
        assert_close(got, x, atol=0, rtol=0)
        assert got.data_ptr() % got.itemsize == 0
    assert entries["pad"].dtype is None


def test_a_file_that_is_another_one_when_it_is_read_is_told(tmp_path):
    from dnp.sd.files.tensors import open_files

    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2, 3)}, path)
    stored, opened = open_files([path])["a"], {}
    save_file({"a": torch.ones(2, 3)}, tmp_path / "other")
    before = stored.read(opened)
    (tmp_path / "other").replace(path)
    assert_close(before, torch.zeros(2, 3))  # it is mapped, and stays what it was
    with pytest.raises(WeightsError, match=r"a cannot be read \(the file was changed\)"):
        stored.read({})


PEAK = """
import re, sys, warnings
from pathlib import Path
import torch, dnp, dnp.sd.load
def kib(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
torch.manual_seed(0)
before = kib("VmRSS")
model = dnp.load(sys.argv[1])
peak = kib("VmHWM")
networks = (model.text_encoder, model.unet, model.vae)
print((peak - before) * 1024 / sum(p.numel() * 4 for n in networks for p in n.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' own counters")
@pytest.mark.parametrize("variant", ["fp16", None])
def test_loading_takes_little_more_memory_than_the_tensors(tmp_path, variant):
    kinds = ARCHITECTURES["linear, v"]
    unet = dict(kinds["unet"], block_out_channels=(240, 480), norm_num_groups=24)
    pipeline = make_pipeline(**{**kinds, "unet": unet})
    pipeline.to(torch.float16 if variant else torch.float32)
    pipeline.save_pretrained(tmp_path, variant=variant)
    run = [sys.executable, "-c", PEAK, str(tmp_path)]
    ratio = float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert ratio < 1.2 if variant else ratio < 0.2  # float32 is mapped, and not read


def test_a_tensor_that_is_there_twice_is_refused(family, tmp_path):
    *_, path = family
    start = "model.diffusion_model."
    old, new = start + "input_blocks.0.0.weight", start + "conv_in.weight"
    with pytest.raises(WeightsError, match=r"holds a tensor twice \(.*conv_in"):
        dnp.load(damaged(path, tmp_path, lambda t: t.update({new: t[old].clone()})))


@pytest.mark.parametrize(
    "extra",
    ["input_blocks.1.2.weight", "output_blocks.0.3.weight", "output_blocks.0.2.weight",
     f"output_blocks.{'9' * 50}.0.weight", "evil.position_ids"],
)  # fmt: skip
def test_tensors_of_no_network_are_unexpected(family, tmp_path, extra):
    *_, path = family
    key = "model.diffusion_model." + extra
    with pytest.raises(WeightsError, match="1 unexpected"):
        dnp.load(damaged(path, tmp_path, lambda t: t.update({key: torch.zeros(2)})))


@pytest.mark.parametrize("count", [0, 1])
def test_a_bias_too_short_to_tell_v_from_eps_is_mis_shaped(family, tmp_path, count):
    *_, path = family
    key = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    with pytest.raises(WeightsError, match="1 mis-shaped"):
        dnp.load(damaged(path, tmp_path, lambda t: t.update({key: torch.zeros(count)})))


def test_a_number_too_large_for_the_type_is_told_as_such(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.bias"][0] = 1e5
    save_file(tensors, path)
    model = dnp.load(folder, dtype=torch.float16)
    with pytest.raises(WeightsError, match="too large for float16; choose --dtype float32"):
        model.check_finite()


@pytest.mark.parametrize("length", [20.5, "20", None, -1, 1])
def test_a_tokenizer_whose_length_is_no_number_is_refused(folder, length):
    path = folder / "tokenizer" / "tokenizer_config.json"
    d = json.loads(path.read_text()) | {"model_max_length": length}
    path.write_text(json.dumps(d))
    model = dnp.load(folder)
    if length is None:  # transformers' own default: no limit
        return
    with pytest.raises(WeightsError, match="no room for them"):
        model.encode("a cat")


def test_a_tokenizer_that_knows_nothing_or_half_is_refused(folder):
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    (folder / "tokenizer" / "tokenizer.json").symlink_to("/nowhere")  # transformers passes it over
    with pytest.raises(WeightsError, match=r"neither tokenizer\.json nor vocab\.json"):
        dnp.load(folder)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    tokens = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(tokens))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(WeightsError, match="it knows no words"):
        dnp.load(folder).encode("a cat")
    tokens = {
        t: i for i, t in enumerate(["<|startoftext|>", "<|endoftext|>", *map(str, range(600))])
    }
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(tokens))
    with pytest.raises(WeightsError, match=r"merges\.txt is cut off"):
        dnp.load(folder).encode("a cat")


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float8_e4m3fn])
def test_a_type_that_is_no_float_of_16_bits_or_more_is_refused(folder, dtype):
    with pytest.raises(SettingsError, match="cannot be used"):
        dnp.load(folder, dtype=dtype)


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_told(path):
    with pytest.raises(WeightsError, match="no such file or folder") as e:
        dnp.load(path)
    assert str(e.value).isprintable()


def test_a_device_that_is_not_here_is_told(tiny):
    with pytest.raises(SettingsError, match="'nowhere' cannot be used here"):
        dnp.load(tiny, device="nowhere")


def test_names_are_told_without_control_characters(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "z\n\x1b[31m": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="1 unexpected") as e:
        dnp.load(folder)
    assert str(e.value).isprintable()


def test_heads_of_a_text_encoder_are_never_guessed(folder):
    path = folder / "text_encoder" / "config.json"
    d = json.loads(path.read_text())
    del d["num_attention_heads"]
    path.write_text(json.dumps(d))
    with pytest.raises(WeightsError, match="num_attention_heads is missing"):
        dnp.load(folder)


def test_a_schedule_that_is_not_named_is_linear_as_in_diffusers(folder):
    from diffusers import DDIMScheduler

    path = folder / "scheduler" / "scheduler_config.json"
    d = json.loads(path.read_text()) | {"thresholding": None}
    del d["beta_schedule"]
    path.write_text(json.dumps(d))
    theirs = DDIMScheduler.from_pretrained(path.parent).alphas_cumprod
    assert_close(dnp.load(folder).schedule.abar.float(), theirs, atol=1e-5, rtol=1e-5)


def test_a_scale_factor_in_the_file_is_the_one_that_is_used(family, tmp_path):
    *_, path = family
    assert dnp.load(path).config.vae.scaling_factor == 0.18215
    for value, want in ((0.18215, 0.18215), (0.25, 0.25)):
        file = damaged(path, tmp_path, lambda t, x=value: t.update(scale_factor=torch.tensor(x)))
        assert dnp.load(file).config.vae.scaling_factor == want
    with pytest.raises(WeightsError, match="scaling_factor = nan is not possible"):
        dnp.load(damaged(path, tmp_path, lambda t: t.update(scale_factor=torch.tensor(torch.nan))))


def test_what_merged_files_hold_beside_the_networks_is_passed_over(family, tmp_path):
    *_, path = family
    extras = [
        "first_stage_model.model_ema.decay", "embedding_manager.embedder.position_ids",
        "denoiser.sigmas", "cond_stage_model.logit_scale",
        "cond_stage_model.transformer.text_model.text_projection.weight",
    ]  # fmt: skip
    dnp.load(damaged(path, tmp_path, lambda t: t.update({k: torch.zeros(1) for k in extras})))
    with pytest.raises(
        WeightsError, match=r"1 unexpected tensors \(ztsnr\); they do not belong to any"
    ):
        dnp.load(damaged(path, tmp_path, lambda t: t.update(ztsnr=torch.zeros(1))))


def test_the_readme_says_how_large_the_miniature_is():
    told = re.search(r"([\d.]+) MB, ([\d.]+) of them", (ROOT / "weights/README.md").read_text())
    files = [p for p in MINI.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    own = "text_encoder", "tokenizer", "unet", "vae", "scheduler"
    model = [p for p in files if p.relative_to(MINI).parts[0] in own]
    for text, some in zip(told.groups(), (files, model)):
        assert abs(float(text) - sum(p.stat().st_size for p in some) / 1e6) < 0.1

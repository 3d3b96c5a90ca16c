"""SDXL at its published size: names, shapes and counts, in a single file and in a folder."""

import json
import shutil
import struct

import pytest
import torch

import dnp
from conftest import SDXL_UNET, SDXL_VAE
from dnp.sd.clip import CLIPTextModel
from dnp.sd.config import SDXL_TEXT, SDXL_TEXT_2
from dnp.sd.config import SDXL_UNET as PUBLISHED_UNET
from dnp.sd.config import SDXL_VAE as PUBLISHED_VAE
from dnp.sd.files import folder
from dnp.sd.unet import UNet
from dnp.sd.vae import VAE
from originals import without_prefix
from single_files import PARTS, sdxl_to_original


@pytest.fixture(scope="module")
def full():
    """The tensors of each part at the published size, on the meta device, by diffusers' and
    transformers' own classes; and their configs."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection
    from transformers import CLIPTextModel as First

    first = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        vocab_size=49408,
    )  # fmt: skip
    second = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
        vocab_size=49408, projection_dim=1280, hidden_act="gelu",
    )  # fmt: skip
    with torch.device("meta"):
        networks = {
            "text_encoder": First(first),
            "text_encoder_2": CLIPTextModelWithProjection(second),
            "unet": UNet2DConditionModel(
                block_out_channels=(320, 640, 1280), attention_head_dim=[5, 10, 20],
                cross_attention_dim=2048, sample_size=128, addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816, **SDXL_UNET,
            ),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512), norm_num_groups=32, **SDXL_VAE
            ),
        }  # fmt: skip
    return networks


COUNTS = {
    "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "unet": 2_567_463_684,
    "vae": 83_653_863,
}  # fmt: skip


def test_names_shapes_and_counts_at_the_published_size(full):
    with torch.device("meta"):
        ours = {
            "text_encoder": CLIPTextModel(SDXL_TEXT), "text_encoder_2": CLIPTextModel(SDXL_TEXT_2),
            "unet": UNet(PUBLISHED_UNET), "vae": VAE(PUBLISHED_VAE),
        }  # fmt: skip
    for part, network in ours.items():
        for one in (network, full[part]):
            assert sum(p.numel() for p in one.parameters()) == COUNTS[part], part
        theirs = {k: p.shape for k, p in full[part].named_parameters()}
        assert {k: p.shape for k, p in network.named_parameters()} == without_prefix(theirs), part


def hollow(tensors, path):
    """A safetensors file in float16 whose numbers are a hole: zeros that take no disk."""
    header, end = {}, 0
    for key, x in tensors.items():
        start, end = end, end + 2 * x.numel()
        header[key] = {"dtype": "F16", "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # an odd byte could not be mapped
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + end)
    return path


@pytest.mark.slow
def test_a_single_file_of_the_published_size_is_known(full, tmp_path):
    parts = {part: dict(network.state_dict()) for part, network in full.items()}
    path = hollow(sdxl_to_original(parts), tmp_path / "xl.safetensors")
    assert path.stat().st_size == pytest.approx(6.94e9, rel=0.01)
    told = folder.read(path)
    assert (told.text, told.text_2) == (SDXL_TEXT, SDXL_TEXT_2)
    assert (told.unet, told.vae, told.phi) == (PUBLISHED_UNET, PUBLISHED_VAE, "zeros")
    model = dnp.load(path, dtype=torch.float16)  # maps, and so reads none of them but the VAE
    count = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in COUNTS}
    assert count == COUNTS


@pytest.mark.slow
def test_a_folder_of_the_published_size_is_known(full, both, tmp_path):
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(both[1] / part, tmp_path / part)
    for part, network in full.items():
        (tmp_path / part).mkdir()
        if part.startswith("text"):
            network.config.save_pretrained(tmp_path / part)
        else:
            network.save_config(tmp_path / part)
        hollow(network.state_dict(), tmp_path / part / f"{PARTS[part]}.safetensors")
    told = folder.read(tmp_path)
    assert (told.text, told.text_2) == (SDXL_TEXT, SDXL_TEXT_2)
    assert (told.unet, told.vae) == (PUBLISHED_UNET, PUBLISHED_VAE)
    model = dnp.load(tmp_path, dtype=torch.float16)
    count = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in COUNTS}
    assert count == COUNTS

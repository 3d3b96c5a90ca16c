"""A world for the tests of experiments: the miniature's words, captioner, CLIP and recogniser
around small random networks, since these tests are not about what pictures show."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from dnp.evaluation.speed.random_weights import network_of

MINI = Path(__file__).resolve().parents[1] / "weights" / "mini"
SMALLER = {  # what is other than in the miniature's configs
    "text_encoder": dict(hidden_size=24, intermediate_size=48, num_hidden_layers=1),
    "unet": dict(
        block_out_channels=[8, 16],
        cross_attention_dim=24,
        norm_num_groups=4,
        attention_head_dim=2,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    ),
    "vae": dict(block_out_channels=[8, 8, 8], layers_per_block=1, norm_num_groups=4),
}


@functools.cache
def made():
    return tempfile.TemporaryDirectory(prefix="world-")  # goes when the process ends


@functools.cache
def world():
    """The folder of these weights, of pictures of 64 x 64; written when it is first asked for."""
    folder = Path(made().name)
    for name in ("captioner", "clip", "training"):
        (folder / name).symlink_to(MINI / name)
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(MINI / name, folder / name)
    for name in ("dnp.json", "model_index.json"):
        shutil.copy(MINI / name, folder / name)
    torch.manual_seed(0)
    for part, other in SMALLER.items():
        config = json.loads((MINI / part / "config.json").read_text()) | other
        config.pop("projection_dim", None)  # of a second text encoder, which is not there
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
        network = network_of(part, config).requires_grad_(False)
        for name, p in network.named_parameters():
            if "embedding.weight" in name or "attn2" in name:
                p.normal_()  # prompts differ
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        save_file(
            network.state_dict(), folder / part / f"{stem}.safetensors", metadata={"format": "pt"}
        )
    return folder

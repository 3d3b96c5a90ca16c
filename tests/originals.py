"""The original layout of a single file, by a translation of its own: not the loader's tables.

diffusers' `from_single_file` reads what is made here, so that this is no proof of itself. All take
and return tensors by their names, which may lie on the meta device.
"""

import torch


def unet_to_original(unet):
    """A U-Net of diffusers with two residual blocks a level."""
    out = {}
    inner = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    for key, x in unet.items():
        part = key.split(".")
        if part[0] == "down_blocks":
            i = 1 + 3 * int(part[1]) + (2 if part[2] == "downsamplers" else int(part[3]))
        if part[0] == "up_blocks":
            last = 2 if part[2] == "upsamplers" else int(part[3])
            i = 3 * int(part[1]) + last
        if part[2:3] == ["resnets"] or part[1:2] == ["resnets"]:
            tail = f"{inner[part[-2]]}.{part[-1]}"
        match part[:3]:
            case ["time_embedding", name, kind]:
                key = f"time_embed.{'0' if name.endswith('1') else '2'}.{kind}"
            case ["add_embedding", name, kind]:
                key = f"label_emb.0.{'0' if name.endswith('1') else '2'}.{kind}"
            case ["conv_in", kind]:
                key = f"input_blocks.0.0.{kind}"
            case ["conv_norm_out", kind]:
                key = f"out.0.{kind}"
            case ["conv_out", kind]:
                key = f"out.2.{kind}"
            case ["mid_block", "resnets", j]:
                key = f"middle_block.{2 * int(j)}.{tail}"
            case ["mid_block", "attentions", _]:
                key = "middle_block.1." + ".".join(part[3:])
            case ["down_blocks", _, "resnets"]:
                key = f"input_blocks.{i}.0.{tail}"
            case ["down_blocks", _, "attentions"]:
                key = f"input_blocks.{i}.1." + ".".join(part[4:])
            case ["down_blocks", _, "downsamplers"]:
                key = f"input_blocks.{i}.0.op.{part[-1]}"
            case ["up_blocks", _, "resnets"]:
                key = f"output_blocks.{i}.0.{tail}"
            case ["up_blocks", _, "attentions"]:
                key = f"output_blocks.{i}.1." + ".".join(part[4:])
            case ["up_blocks", level, "upsamplers"]:
                place = 2 if f"up_blocks.{level}.attentions.0.norm.weight" in unet else 1
                key = f"output_blocks.{i}.{place}.conv.{part[-1]}"
        out["model.diffusion_model." + key] = x
    return out


def vae_to_original(vae):
    """A VAE of diffusers with four levels."""
    out = {}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
    for key, x in vae.items():
        half, *part = key.split(".")
        if part[:2] == ["mid_block", "attentions"]:
            name = attention[part[3]]
            key = f"{half}.mid.attn_1.{name}.{part[-1]}"
            x = x[:, :, None, None] if x.ndim == 2 else x
        elif part[:2] == ["mid_block", "resnets"]:
            key = f"{half}.mid.block_{int(part[2]) + 1}." + ".".join(part[3:])
        elif part[0] == "down_blocks":
            kind = "block." + part[3] if part[2] == "resnets" else "downsample"
            key = f"{half}.down.{part[1]}.{kind}." + ".".join(part[4:])
        elif part[0] == "up_blocks":
            kind = "block." + part[3] if part[2] == "resnets" else "upsample"
            key = f"{half}.up.{3 - int(part[1])}.{kind}." + ".".join(part[4:])
        key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        out["first_stage_model." + key] = x
    return out


def without_prefix(text):
    return {k.removeprefix("text_model."): x for k, x in text.items()}


def openclip(text, layers, start):
    """A text encoder of transformers in OpenCLIP's names, its last layer again until `layers`."""
    out = {}
    last = 1 + max(int(k.split(".")[2]) for k in text if k.startswith("encoder.layers."))
    out[start + "positional_embedding"] = text["embeddings.position_embedding.weight"]
    out[start + "token_embedding.weight"] = text["embeddings.token_embedding.weight"]
    for kind in ("weight", "bias"):
        out[f"{start}ln_final.{kind}"] = text[f"final_layer_norm.{kind}"]
    names = {
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    for layer in range(layers):
        source = f"encoder.layers.{min(layer, last - 1)}."
        target = f"{start}transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            for new, old in names.items():
                out[f"{target}{old}.{kind}"] = text[f"{source}{new}.{kind}"].clone()
            parts = [text[f"{source}self_attn.{p}_proj.{kind}"] for p in "qkv"]
            out[f"{target}attn.in_proj_{kind}"] = torch.cat(parts)
    return out

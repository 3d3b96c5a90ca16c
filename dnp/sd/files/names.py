"""The original layout of Stable Diffusion: one file with U-Net, VAE and text encoder in it.

    model.diffusion_model.*                          the U-Net
    first_stage_model.*                              the VAE
    cond_stage_model.transformer.*                   the text encoder of 1.x (CLIP ViT-L/14)
    cond_stage_model.model.*                         the text encoder of 2.x (OpenCLIP ViT-H)
    conditioner.embedders.0.transformer.*            SDXL: the first text encoder, that of 1.x
    conditioner.embedders.1.model.*                  SDXL: the second (OpenCLIP ViT-bigG)

A 2.x that was converted from a diffusers folder of transformers 5 has its text encoder under the
name of 1.x and in transformers' spelling, so the names do not tell the family: the shapes do.
Names are translated by the tables below; the architecture is read off the shapes.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from dnp.errors import WeightsError
from dnp.sd.config import TextConfig, UNetConfig, VAEConfig

Shapes = Mapping[str, tuple[int, ...]]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT_1, TEXT_2 = "cond_stage_model.transformer.", "cond_stage_model.model."
TEXT_XL = "conditioner.embedders.1.model."
PREDICTS_V = "v_pred"  # an empty tensor, by which fine-tunes of SDXL that predict v say so
VOCABULARY = 49_408  # CLIP's tokens: 256 bytes, these at a word's end, 48,894 merges, start and end

_RESNET = {
    r"\.in_layers\.0\.": ".norm1.",
    r"\.in_layers\.2\.": ".conv1.",
    r"\.emb_layers\.1\.": ".time_emb_proj.",
    r"\.out_layers\.0\.": ".norm2.",
    r"\.out_layers\.3\.": ".conv2.",
    r"\.skip_connection\.": ".conv_shortcut.",
}
_UNET = {
    r"^time_embed\.0\.": "time_embedding.linear_1.",
    r"^time_embed\.2\.": "time_embedding.linear_2.",
    r"^label_emb\.0\.0\.": "add_embedding.linear_1.",
    r"^label_emb\.0\.2\.": "add_embedding.linear_2.",
    r"^input_blocks\.0\.0\.": "conv_in.",
    r"^out\.0\.": "conv_norm_out.",
    r"^out\.2\.": "conv_out.",
    r"^middle_block\.0\.": "mid_block.resnets.0.",
    r"^middle_block\.1\.": "mid_block.attentions.0.",
    r"^middle_block\.2\.": "mid_block.resnets.1.",
}
_VAE = {
    r"\.mid\.block_1\.": ".mid_block.resnets.0.",
    r"\.mid\.block_2\.": ".mid_block.resnets.1.",
    r"\.mid\.attn_1\.norm\.": ".mid_block.attentions.0.group_norm.",
    r"\.mid\.attn_1\.([qkv])\.": r".mid_block.attentions.0.to_\1.",
    r"\.mid\.attn_1\.proj_out\.": ".mid_block.attentions.0.to_out.0.",
    r"\.(down|up)\.(\d+)\.block\.": r".\1_blocks.\2.resnets.",
    r"\.(down|up)\.(\d+)\.(down|up)sample\.": r".\1_blocks.\2.\1samplers.0.",
    r"\.nin_shortcut\.": ".conv_shortcut.",
    r"\.norm_out\.": ".conv_norm_out.",
}
_TEXT_2 = {
    r"^token_embedding\.": "embeddings.token_embedding.",
    r"^positional_embedding$": "embeddings.position_embedding.weight",
    r"^ln_final\.": "final_layer_norm.",
    r"^text_projection(\.weight)?$": "text_projection.weight",  # without .weight: transposed
    r"^transformer\.resblocks\.": "encoder.layers.",
    r"\.ln_([12])\.": r".layer_norm\1.",
    r"\.attn\.out_proj\.": ".self_attn.out_proj.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
}
# Buffers and training state that belong to no network.
HARMLESS = re.compile(
    r"^(model_ema\.|loss\.|first_stage_model\.(loss|model_ema)\.|embedding_manager\."
    r"|cond_stage_model\.((model|transformer)\.(text_model\.)?)?"
    r"(logit_scale|text_projection|attn_mask)|denoiser\.sigmas$"
    r"|conditioner\.embedders\.1\.model\.(logit_scale|attn_mask)$"
    r"|v_pred$|(betas|global_step|logvar|lvlb_weights|scale_factor|posterior_\w+"
    r"|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?)$)"
    r"|^(cond_stage_model|conditioner\.embedders\.1)\.(model\.)?(transformer\.)?(text_model\.)?"
    r"embeddings\.position_ids$"
)


def _apply(table: Mapping[str, str], name: str) -> str:
    for old, new in table.items():
        name = re.sub(old, new, name)
    return name


def as_in_1x(name: str) -> str:
    """A name of SDXL's first text encoder as 1.x has it; any other name as it is."""
    return name.replace("conditioner.embedders.0.", "cond_stage_model.", 1)


def unet_name(layers: int) -> Callable[[str], str]:
    """Translates a U-Net name; `layers` residual blocks on each level going down.

    Input block i is block (i - 1) % (layers + 1) of its level, where the last one is the
    downsampler; output block i is block i % (layers + 1), and an upsampler follows the last.
    """
    per = layers + 1

    def translate(name: str) -> str:
        name = _apply(_UNET, name)
        blocks = ("resnets", "attentions")
        if m := re.match(r"input_blocks\.(\d{1,3})\.(?:0\.(op)|([01]))\.(.*)", name):
            level, j = divmod(int(m[1]) - 1, per)
            kind = "downsamplers.0.conv" if m[2] else f"{blocks[int(m[3])]}.{j}"
            name = f"down_blocks.{level}.{kind}.{m[4]}"
        elif m := re.match(r"output_blocks\.(\d{1,3})\.(?:[12]\.(conv)|([01]))\.(.*)", name):
            level, j = divmod(int(m[1]), per)
            kind = "upsamplers.0.conv" if m[2] else f"{blocks[int(m[3])]}.{j}"
            name = f"up_blocks.{level}.{kind}.{m[4]}"
        return _apply(_RESNET, name)

    return translate


def vae_name(levels: int) -> Callable[[str], str]:
    """Translates a VAE name; the original counts the levels up from the finest one."""

    def translate(name: str) -> str:
        name = _apply(_VAE, name)
        return re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", name)

    return translate


def text_2_names(name: str) -> list[tuple[str, int | None]]:
    """The names of an OpenCLIP tensor, each with its third of a fused projection."""
    name = _apply(_TEXT_2, name)
    if m := re.match(r"(.*)\.attn\.in_proj_(weight|bias)$", name):
        return [(f"{m[1]}.self_attn.{x}_proj.{m[2]}", i) for i, x in enumerate("qkv")]
    return [(name, None)]


# ----------------------------------------------------------------------------- what the shapes say


def is_xl(names: Iterable[str]) -> bool:
    """Whether a file is SDXL's, by a second text encoder or the U-Net's added conditioning."""
    return any(name.startswith((TEXT_XL, UNET + "label_emb.")) for name in names)


def unet_config(s: Shapes, pooled: int = 0) -> UNetConfig:
    """The U-Net of tensors `s` under their original names; `pooled` is the width of SDXL's pooled
    text. Heads are not in the shapes: 8 with convolutions around attention (1.x), one for each 64
    channels with linear layers (2.x and SDXL)."""
    ops = sorted(int(m[1]) for k in s if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.weight", k)))
    blocks = 1 + max(int(m[1]) for k in s if (m := re.match(r"input_blocks\.(\d+)\.", k)))
    layers = ops[0] - 1 if ops else blocks - 1
    levels = len(ops) + 1
    first = [1 + (layers + 1) * i for i in range(levels)]
    channels = tuple(s[f"input_blocks.{i}.0.out_layers.3.weight"][0] for i in first)
    cross = next(v for k, v in s.items() if k.endswith("attn2.to_k.weight"))[1]
    linear = len(s["middle_block.1.proj_in.weight"]) == 2
    block = re.compile(r"(input_blocks\.\d+|middle_block)\.1\.transformer_blocks\.(\d+)\.")
    deep = Counter(where for where, _ in {m.groups() for m in map(block.match, s) if m})
    depth = [deep.get(f"input_blocks.{i}", 1) for i in first]
    depth[-1] = max(depth[-1], deep["middle_block"])
    added = s["label_emb.0.0.weight"][1] if "label_emb.0.0.weight" in s else 0

    def has(where: str, i: int) -> bool:
        return f"{where}_blocks.{i}.1.norm.weight" in s

    return UNetConfig(
        in_channels=s["input_blocks.0.0.weight"][1],
        out_channels=s["out.2.weight"][0],
        block_out_channels=channels,
        down_attention=tuple(has("input", i) for i in first),
        up_attention=tuple(has("output", (layers + 1) * i) for i in range(levels)),
        layers_per_block=layers,
        heads=tuple(max(1, c // 64) if linear else 8 for c in channels),
        cross_attention_dim=cross,
        use_linear_projection=linear,
        depth=tuple(depth) if any(d > 1 for d in depth) else (1,),
        added_dim=added,
        added_freq_dim=(added - pooled) // 6 if added else 256,  # six numbers
    )


def vae_config(s: Shapes) -> VAEConfig:
    levels = 1 + max(int(m[1]) for k in s if (m := re.match(r"encoder\.down\.(\d+)\.", k)))
    layers = 1 + max(
        int(m[1]) for k in s if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", k))
    )
    return VAEConfig(
        latent_channels=s["post_quant_conv.weight"][0],
        block_out_channels=tuple(
            s[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)
        ),
        layers_per_block=layers,
    )


def is_second(text: Shapes, unet: Shapes, openclip: bool) -> bool:
    """Whether it is a 2.x: a text encoder of 23 or 24 layers (ViT-H, 1.x has 12 of ViT-L) and
    linear projections around the U-Net's attention. WeightsError if only one of them is so, since
    no shape then tells how the text encoder works."""
    layers, linear = text_layers(text, openclip), len(unet["middle_block.1.proj_in.weight"]) == 2
    if openclip or (layers in (23, 24)) == linear:
        return openclip or linear
    raise WeightsError(
        f"its text encoder of {layers} layers is of 1.x or of 2.x and its U-Net of the other"
    )


def text_layers(s: Shapes, openclip: bool) -> int:
    layer = r"transformer\.resblocks\.(\d+)\." if openclip else r"encoder\.layers\.(\d+)\."
    return 1 + max(int(m[1]) for k in s if (m := re.match(layer, k)))


def text_config(s: Shapes, second: bool, whole: bool, openclip: bool | None = None) -> TextConfig:
    """The text encoder. That of 2.x is without its last layer, which Stable Diffusion does not use:
    a file holds the `whole` of OpenCLIP (24 layers and a projection), or was made from a diffusers
    folder, which has 23 layers and no projection. `openclip` says whose spelling the names have;
    None is that of the family."""
    openclip = second if openclip is None else openclip
    layers = text_layers(s, openclip)
    start = "transformer.resblocks.0.mlp.c_fc" if openclip else "encoder.layers.0.mlp.fc1"
    tokens = "token_embedding" if openclip else "embeddings.token_embedding"
    positions = "positional_embedding" if openclip else "embeddings.position_embedding.weight"
    vocabulary, width = s[f"{tokens}.weight"]
    return TextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=s[f"{start}.weight"][0],
        num_hidden_layers=layers - (second and (layers == 24 or (whole and layers != 23))),
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=s[positions][0],
        hidden_act="gelu" if second else "quick_gelu",
    )


def text_xl_config(s: Shapes) -> TextConfig:
    """SDXL's second text encoder, of which every layer is used. Its projection is OpenCLIP's, or
    transposed under the name that diffusers' own converter gives it."""
    turned = s["text_projection.weight"][::-1] if "text_projection.weight" in s else None
    return replace(
        text_config(s, second=True, whole=False),
        num_hidden_layers=text_layers(s, openclip=True),
        penultimate=True,
        pooled_dim=(turned or s["text_projection"])[1],
    )


# ------------------------------------------------------------------------------------- tokenizer


def byte_symbols() -> list[str]:
    """CLIP's (GPT-2's) printable stand-ins for the 256 bytes, in its own order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def read_merges(path: Path) -> list[tuple[str, str]]:
    """CLIP's 48,894 byte-pair merges, in their order, from its published file."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return [tuple(line.split()) for line in lines[1 : 48_894 + 1]]  # the first line is a header


def clip_tokenizer(config: TextConfig):
    """CLIP's whole tokenizer (49,408 tokens), since a single file holds none. Stable Diffusion 1.x
    pads with the end token, OpenCLIP (2.x, and SDXL's second) with token 0."""
    from transformers import CLIPTokenizer  # slow to import, so not before it is needed

    path = Path(__file__).parents[1] / "vocabulary" / "bpe_simple_vocab_16e6.txt.gz"
    merges, symbols = read_merges(path), byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        pad_token="!" if config.hidden_act == "gelu" else "<|endoftext|>",
        model_max_length=config.max_position_embeddings,
    )
    return with_padding_apart(tokenizer)


def with_padding_apart(tokenizer):
    """The tokenizer, for which its padding token is not a text that a prompt can have.

    OpenCLIP pads with 0 and reads "!" as the word 256, "!</w>". transformers knows padding by its
    text, "!", and so reads every "!" of a prompt as 0, and diffusers with it: not followed here.
    """
    from tokenizers import Tokenizer

    said = json.loads(tokenizer.backend_tokenizer.to_str())
    apart = {tokenizer.pad_token} & set(said["model"].get("vocab", ()))
    apart -= {tokenizer.bos_token, tokenizer.eos_token}
    said["added_tokens"] = [t for t in said["added_tokens"] if t["content"] not in apart]
    if apart:
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(said))
    return tokenizer

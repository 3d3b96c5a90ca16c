"""Architectures as frozen dataclasses, read from the `config.json` files of a weights folder.

Field names are those of the diffusers and transformers configs. What those configs can say and
this code does not build (other block types, other embeddings) is refused by name, never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from reprlib import repr as brief  # a value may be any length

from dnp.errors import WeightsError


@dataclass(frozen=True)
class TextConfig:
    """CLIP text encoder; the defaults are ViT-L/14, Stable Diffusion 1.x (123,060,480)."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"  # "gelu" in Stable Diffusion 2.x and SDXL's second encoder
    penultimate: bool = False  # SDXL: the context is the output of the layer before the last
    pooled_dim: int = 0  # SDXL's second encoder: width of its pooled output, 0 for none

    def __post_init__(self) -> None:
        _check(self, "text_encoder")
        if self.hidden_act not in ("quick_gelu", "gelu"):
            _refuse("text_encoder", "hidden_act", self.hidden_act)
        _divides("text_encoder", self.hidden_size, self.num_attention_heads, "num_attention_heads")

    @classmethod
    def from_dict(cls, d: dict) -> TextConfig:
        _fixed("text_encoder", d, {"layer_norm_eps": 1e-5, "use_attention_mask": False})
        if "num_attention_heads" not in d:  # no shape tells them
            raise WeightsError(
                "text_encoder/config.json: num_attention_heads is missing; restore the file."
            )
        return cls(**_known(cls, d))


@dataclass(frozen=True)
class UNetConfig:
    """Noise predictor; the defaults are Stable Diffusion 1.x (859,520,964 parameters)."""

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_attention: tuple[bool, ...] = (True, True, True, False)  # finest level first
    up_attention: tuple[bool, ...] = (False, True, True, True)  # coarsest level first
    layers_per_block: int = 2
    heads: tuple[int, ...] = (8, 8, 8, 8)  # attention heads of each level, finest first
    cross_attention_dim: int = 768
    norm_num_groups: int = 32
    use_linear_projection: bool = False  # True in Stable Diffusion 2.x
    sample_size: tuple[int, ...] = (64, 64)  # height, width of the latents that it was trained on
    depth: tuple[int, ...] = (1,)  # transformer blocks: of all levels, or of each, finest first
    added_dim: int = 0  # SDXL: width of the pooled text and the six numbers' sinusoids, 0 for none
    added_freq_dim: int = 256  # SDXL: width of one number's sinusoid

    def __post_init__(self) -> None:
        _check(self, "unet")
        channels, part = self.block_out_channels, "unet"
        for name in ("down_attention", "up_attention", "heads"):
            if len(getattr(self, name)) != len(channels):
                raise WeightsError(
                    f"unet/config.json: {name} has {len(getattr(self, name))} entries for "
                    f"{len(channels)} levels of block_out_channels; give one for each level."
                )
        if len(self.depth) not in (1, len(channels)):
            _refuse(part, "transformer_layers_per_block", self.depth)
        if self.added_dim and self.added_dim <= 6 * self.added_freq_dim:
            _refuse(part, "projection_class_embeddings_input_dim", self.added_dim)
        _divides(part, self.added_freq_dim, 2, "2 (cosines and sines of a number)")
        _divides(part, channels[0], 2, "2 (cosines and sines of t)")
        for i, width in enumerate(channels):
            _divides(part, width, self.norm_num_groups, "norm_num_groups")
            used = self.down_attention[i] or self.up_attention[-1 - i] or i == len(channels) - 1
            if used:  # the coarsest level always has the middle block's attention
                _divides(part, width, self.heads[i], "attention_head_dim (the number of heads)")

    @classmethod
    def from_dict(cls, d: dict) -> UNetConfig:
        _fixed("unet", d, _UNET_FIXED)
        kind, dim = (d.get(k) for k in ("addition_embed_type", _ADDED))
        if kind not in (None, "text_time") or (kind is None) != (dim is None):
            _refuse("unet", "addition_embed_type", kind)
        down, up = "down_block_types", "up_block_types"
        kinds = {
            down: {"CrossAttnDownBlock2D": True, "DownBlock2D": False},
            up: {"CrossAttnUpBlock2D": True, "UpBlock2D": False},
        }
        fields = _known(cls, d)
        levels = len(_sequence(fields.get("block_out_channels", cls.block_out_channels)))
        for key, field in ((down, "down_attention"), (up, "up_attention")):
            if key in d:
                fields[field] = tuple(
                    _allowed("unet", key, b, kinds[key]) for b in _sequence(d[key])
                )
        # diffusers calls the number of heads attention_head_dim: 8 means 8 heads.
        heads = d.get("num_attention_heads") or d.get("attention_head_dim", 8)
        fields["heads"] = tuple(heads) if isinstance(heads, list | tuple) else (heads,) * levels
        size = fields.get("sample_size", cls.sample_size)
        fields["sample_size"] = size if isinstance(size, tuple) else (size, size)
        fields["added_dim"] = 0 if dim is None else dim
        if d.get("addition_time_embed_dim") is not None:
            fields["added_freq_dim"] = d["addition_time_embed_dim"]
        depth = _one(d.get("transformer_layers_per_block", 1))
        fields["depth"] = tuple(depth) if isinstance(depth, list | tuple) else (depth,)
        for key in ("layers_per_block", "cross_attention_dim"):
            if key in fields:
                fields[key] = _one(fields[key])
        return cls(**fields)


@dataclass(frozen=True)
class VAEConfig:
    """Autoencoder; the defaults are Stable Diffusion's (83,653,863 parameters, factor 8)."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215  # z = scaling_factor * encoder output, so that std(z) is 1

    def __post_init__(self) -> None:
        _check(self, "vae")
        if (self.in_channels, self.out_channels) != (3, 3):
            _refuse("vae", "in_channels, out_channels", (self.in_channels, self.out_channels))
        for channels in self.block_out_channels:
            _divides("vae", channels, self.norm_num_groups, "norm_num_groups")

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, d: dict) -> VAEConfig:
        _fixed("vae", d, _VAE_FIXED)
        for key, kind in (("down_block_types", "DownEncoder"), ("up_block_types", "UpDecoder")):
            for block in _sequence(d.get(key, ())):
                _allowed("vae", key, block, {f"{kind}Block2D": True})
        return cls(**_known(cls, d))


# What these networks have built in. A config that says otherwise describes another network.
_ADDED = "projection_class_embeddings_input_dim"
_UNET_FIXED = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
_VAE_FIXED = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}


def _known(cls: type, d: dict) -> dict:
    """The entries of `d` that are fields of `cls`, lists as tuples; null is the default."""
    known = {k: v for k, v in d.items() if k in cls.__dataclass_fields__ and v is not None}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}


def _sequence(value: object) -> list | tuple:
    """A list, or () for anything else, which the counts then refuse."""
    return value if isinstance(value, list | tuple) else ()


def _one(value: object) -> object:
    """The value that all entries of a list share; the list itself if they differ."""
    equal = isinstance(value, list | tuple) and value and all(v == value[0] for v in value)
    return value[0] if equal else value


def _refuse(part: str, key: str, value: object) -> None:
    raise WeightsError(
        f"{part}/config.json: {key} = {brief(value)} is not supported; "
        "use weights of the Stable Diffusion 1.x, 2.x or XL architecture."
    )


def _allowed(part: str, key: str, value: object, kinds: dict[str, bool]) -> bool:
    if not isinstance(value, str) or value not in kinds:
        _refuse(part, key, value)
    return kinds[value]


def _fixed(part: str, d: dict, fixed: dict) -> None:
    for key, value in fixed.items():
        spellings = ("silu", "swish") if value == "silu" else (value,)
        if key in d and _one(d[key]) not in spellings:
            _refuse(part, key, d[key])


def _divides(part: str, channels: int, by: int, name: str) -> None:
    if channels % by:
        raise WeightsError(
            f"{part}/config.json: {channels} channels are not divisible by {name} = {by}; "
            "the config does not belong to such a network."
        )


# Far above every published model, far below what exhausts a machine.
_MOST = {"layers_per_block": 100, "depth": 100, "num_hidden_layers": 1000, "sample_size": 4096}
_MAY_BE_0 = ("added_dim", "pooled_dim")
_KINDS = {
    "int": lambda v, most: type(v) is int and 0 < v <= most,
    "float": lambda v, most: type(v) in (int, float) and 0 < v <= most,
    "bool": lambda v, most: type(v) is bool,
    "str": lambda v, most: type(v) is str,
}


def _check(config: object, part: str) -> None:
    """Every field has its declared kind and a possible size, before anything is allocated."""
    for name, field in config.__dataclass_fields__.items():
        value, most = getattr(config, name), _MOST.get(name, 1_000_000)
        many = field.type.startswith("tuple")
        good = _KINDS[field.type.removeprefix("tuple[").removesuffix(", ...]")]
        values = value if many else (value,)
        if name in _MAY_BE_0 and type(value) is int and value == 0:
            continue
        listed = isinstance(values, tuple) and 0 < len(values) <= 16
        if not listed or not all(good(v, most) for v in values):
            raise WeightsError(
                f"{part}/config.json: {name} = {brief(value)} is not possible or not supported; "
                "use the file that came with the weights."
            )


# Presets. Stable Diffusion 1.x, and the autoencoder of both families, are the defaults.
SD1_TEXT, SD1_UNET = TextConfig(), UNetConfig()
SD2_TEXT = TextConfig(  # OpenCLIP ViT-H/14 without its last layer (340,387,840)
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
)
SD2_UNET = UNetConfig(  # 865,910,724; 768-v models have sample_size (96, 96)
    heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True
)
SDXL_TEXT = TextConfig(penultimate=True)
SDXL_TEXT_2 = TextConfig(  # OpenCLIP ViT-bigG/14 with its projection (694,659,840)
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
    penultimate=True,
    pooled_dim=1280,
)
SDXL_UNET = UNetConfig(  # 2,567,463,684
    block_out_channels=(320, 640, 1280),
    down_attention=(False, True, True),
    up_attention=(True, True, False),
    heads=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    sample_size=(128, 128),
    depth=(1, 2, 10),
    added_dim=2816,
)
SDXL_VAE = VAEConfig(scaling_factor=0.13025)
MINI_TEXT = TextConfig(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=32,
)
MINI_UNET = UNetConfig(
    block_out_channels=(64, 128, 192),
    down_attention=(True, True, False),
    up_attention=(False, True, True),
    layers_per_block=1,
    heads=(4, 4, 4),
    cross_attention_dim=128,
    norm_num_groups=16,
    sample_size=(16, 16),
)
MINI_VAE = VAEConfig(block_out_channels=(16, 32, 64), layers_per_block=4, norm_num_groups=8)

"""Tiny random pipelines of diffusers, one of each family, all with the miniature's tokenizer."""

import torch

from conftest import ARCHITECTURES, MINI, make_pipeline, randomise

LENGTH = 20


def tokenizer(**kw):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(MINI / "tokenizer", model_max_length=LENGTH, **kw)


def clip(width, seed, projects=False, **kw):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    words = tokenizer()
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=len(words), max_position_embeddings=LENGTH, projection_dim=width,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, **kw,
    )  # fmt: skip
    return randomise((CLIPTextModelWithProjection if projects else CLIPTextModel)(config), seed)


def t5(width, seed):
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=4,
        vocab_size=len(tokenizer()),
    )  # fmt: skip
    return randomise(T5EncoderModel(config), seed)


def vae(seed=1, **kw):
    from diffusers import AutoencoderKL

    network = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        **kw,
    )  # fmt: skip
    return randomise(network, seed)


def ddim():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def sd1():
    """Of two levels: `test_parity.py` has the four of Stable Diffusion 1.x."""
    unet = dict(
        block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=4,
        cross_attention_dim=24, norm_num_groups=8, sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = dict(block_out_channels=(8, 16, 24), layers_per_block=1, norm_num_groups=4)
    of = ARCHITECTURES["four levels"]
    text = {**of["text"], "num_hidden_layers": 2}
    return make_pipeline(**{**of, "unet": unet, "vae": vae, "text": text})


def sd2():
    return make_pipeline(**ARCHITECTURES["linear, v"])


def sdxl():
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=[2, 4],
        cross_attention_dim=64, norm_num_groups=8, use_linear_projection=True, sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=[1, 2],
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=40 + 6 * 8,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae(scaling_factor=0.13025, force_upcast=False), clip(24, 2),
        clip(40, 3, projects=True, hidden_act="gelu"), tokenizer(), tokenizer(pad_token="!"),
        randomise(unet, 4), ddim(), add_watermarker=False,
    )  # fmt: skip


def sd3():
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=64,
        caption_projection_dim=32, pooled_projection_dim=64, pos_embed_max_size=16,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        randomise(transformer, 4), FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae(shift_factor=0.06, scaling_factor=1.5), clip(24, 2, projects=True), tokenizer(),
        clip(40, 3, projects=True, hidden_act="gelu"), tokenizer(pad_token="!"), t5(64, 5),
        tokenizer(),
    )  # fmt: skip


def flux(guidance_embeds=False):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=24,
        guidance_embeds=guidance_embeds, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), vae(shift_factor=0.06, scaling_factor=1.5), clip(24, 2),
        tokenizer(), t5(32, 5), tokenizer(), randomise(transformer, 4),
    )  # fmt: skip


def pixart(kind="PixArtAlphaPipeline"):
    import diffusers

    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=16, sample_size=16, caption_channels=32, norm_num_groups=4,
        use_additional_conditions=False,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler()
    return getattr(diffusers, kind)(
        tokenizer(), t5(32, 5), vae(), randomise(transformer, 4), scheduler
    )


def pixart_sigma():
    return pixart("PixArtSigmaPipeline")


SIDE = {"height": 32, "width": 32}
T5 = {**SIDE, "max_sequence_length": LENGTH}
PIXART = {**T5, "clean_caption": False, "use_resolution_binning": False}
BUILD = {  # name: (builder, arguments of its call)
    "1.x": (sd1, SIDE),
    "2.x": (sd2, SIDE),
    "SDXL": (sdxl, SIDE),
    "SD3": (sd3, T5),
    "Flux": (flux, T5),
    "PixArt-alpha": (pixart, PIXART),
    "PixArt-sigma": (pixart_sigma, PIXART),
}


def build(name):
    """(pipeline, arguments of its call) of a family."""
    torch.manual_seed(0)
    builder, call = BUILD[name]
    pipe = builder()
    pipe.set_progress_bar_config(disable=True)
    return pipe, call

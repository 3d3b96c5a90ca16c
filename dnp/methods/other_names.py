"""What settings are called in other tools, and what they are called here.

One table for Python and the command line: `dnp.generate(guidance_scale=3)` and `--cfg 3` get the
same sentence. A name here is marked `name=VALUE`, as in `dnp/errors.py`.
"""

from __future__ import annotations

_S, _STEPS, _SIZE = "`s=X`", "`steps=N`", "size=(64, 96), height first, and --size 96x64"
_IMAGES, _NEGATIVE = "`images=N`", "`negative=TEXT`"
_SAMPLER = "`sampler=ddim` or `sampler=dpmpp2m`"
HERE = {  # other tools' names: the setting here
    "cfg cfg_scale guidance guidance_scale scale_cfg": _S,
    "num_inference_steps num_steps sampling_steps ddim_steps inference_steps": _STEPS,
    "width height w resolution": _SIZE,
    "batch_count n_iter n_samples num_images num_images_per_prompt count": _IMAGES,
    "negative_prompt neg negative_prompts uncond": _NEGATIVE,
    "scheduler sampler_name sampling_method": _SAMPLER,
    "euler_a euler_ancestral ancestral ddpm": "`eta=1`, DDIM with fresh noise at each step",
    "model_path model_id checkpoint ckpt ckpt_path": "dnp.load(PATH), and --weights PATH",
    "generator random_seed noise_seed": "`seed=N`",
    "outdir output output_dir o": "`out=FOLDER`",
    "precision fp16 half torch_dtype": "`dtype=float16`, which needs a GPU",
    "cuda gpu": "`device=cuda`",
    "from_file prompt_file": "`prompts=FILE`",
}
NOT_AVAILABLE = {  # other tools' names: what can be done instead
    "clip_skip": "the last layer of the text encoder is read, as Stable Diffusion was trained",
    "karras use_karras_sigmas sigmas": (
        "levels are the weights' own; `sampler=dpmpp2m` needs fewer steps"
    ),
    "euler": "DDIM takes the same step in other units; choose `sampler=ddim`",
    "lora loras lora_scale": (
        "load it in a diffusers pipeline and pass that to dnp.from_diffusers, or merge it first"
    ),
    "controlnet ip_adapter": "no other network is read beside the U-Net",
    "hires hires_fix hr_scale upscale enable_hr": "draw at the weights' own size",
    "image init_image strength denoising_strength mask": "pictures are drawn from noise alone",
    "guidance_rescale": "`rule=apg` lowers saturation at high scales",
    "tiling seamless": "change the model in Python, by dnp.from_diffusers",
}


def said_of(name: str) -> str:
    """The end of a sentence about a setting of another tool's name; "" for an unknown name."""
    name = name.lstrip("-").replace("-", "_").lower()
    for names, here in HERE.items():
        if name in names.split():
            return f"here it is {here}."
    for names, instead in NOT_AVAILABLE.items():
        if name in names.split():
            return f"it is not available: {instead}."
    return ""

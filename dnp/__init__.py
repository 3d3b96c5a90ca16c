"""dnp: diffusion-negative sampling from scratch. These lines are DNS, Eqs. (2) and (19):

    import torch, dnp

    model, s = dnp.load("weights/mini"), 1.0
    c_phi, c_p = (model.encode([prompt]) for prompt in ("", "a red car"))
    z_t = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    for t, t_next in model.schedule.pairs(20):
        with torch.no_grad():
            eps_phi, eps_p = model.eps(z_t, t, c_phi), model.eps(z_t, t, c_p)
        eps = eps_phi + s * (eps_phi - eps_p)
        abar = model.schedule.level
        z_t, _ = dnp.sampling.ddim_step(z_t, eps, abar(t), abar(t_next))
    model.decode(z_t)[0].save("opposite.png")

The mathematics stands here: start at `guidance.py`. `generation.py` is the door.

    methods/     what makes a picture: one class for each method
    sd/          the model, and reading its weights
    diffusers/   other people's pipelines
    app/         the command line, PNGs, sheets
    evaluation/  the laboratory: experiments, exact law, people's study, benchmark of speed
"""

from importlib import import_module

__version__ = "0.3.0"
_HOME = {  # name: the module that has it; imported when it is first used, so that --help is instant
    "METHODS": "methods",
    "DnpError": "errors",
    "NonFiniteError": "errors",
    "PictureError": "errors",
    "Result": "methods.result",
    "SettingsError": "errors",
    "StableDiffusion": "sd.model",
    "WeightsError": "errors",
    "batch_size": "generation",
    "check_rule": "checks",
    "from_diffusers": "diffusers.from_diffusers",
    "generate": "generation",
    "load": "sd.load",
    "model": "methods.models",
    "trajectory": "generation",
}
__all__ = [*_HOME]
_MODULES = {  # the rooms and files that are attributes too
    **{name: name for name in (
        "app", "checks", "diffusers", "energy", "errors", "evaluation", "generation", "guidance",
        "methods", "rules", "sampling", "schedule", "sd", "toy", "training", "units",
    )},
    "pipelines": "diffusers.pipelines",
}  # fmt: skip


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f"dnp.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"dnp.{_MODULES[name]}")
    raise AttributeError(f"module 'dnp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})

"""dnp: diffusion-negative sampling from scratch. Start at `dnp/guidance.py`.

model = dnp.load("weights/mini")
result = dnp.generate(model, "a red car", method="dns", seed=0)
result.images[0].show()
"""

from importlib import import_module

__version__ = "0.2.0"
_HOME = {  # name: the module that has it; imported when it is first used, so that --help is instant
    "METHODS": "methods",
    "DnpError": "errors",
    "NonFiniteError": "errors",
    "PictureError": "errors",
    "Result": "generation",
    "SettingsError": "errors",
    "StableDiffusion": "sd.model",
    "WeightsError": "errors",
    "batch_size": "generation",
    "check_rule": "checks",
    "from_diffusers": "diffusers.from_diffusers",
    "generate": "generation",
    "load": "sd.load",
    "trajectory": "generation",
}
__all__ = [*_HOME]
_MODULES = {  # the rooms and files that are attributes too
    **{name: name for name in (
        "app", "checks", "energy", "errors", "evaluation", "generation", "guidance", "methods",
        "rules", "sampling", "schedule", "sd", "toy",
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

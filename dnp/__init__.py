"""dnp: diffusion-negative sampling from scratch. Start at `dnp/guidance.py`.

model = dnp.load("weights/mini")
result = dnp.generate(model, "a red car", method="dns", seed=0)
result.images[0].show()
"""

from importlib import import_module

__version__ = "0.1.0"
_HOMES = {  # imported when first asked for: torch takes a second, which --help need not wait for
    "dnp.errors": ["DnpError", "NonFiniteError", "PictureError", "SettingsError", "WeightsError"],
    "dnp.generation": ["METHODS", "Result", "batch_size", "generate"],
    "dnp.sd.model": ["StableDiffusion", "load"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = ("answer", "energy", "errors", "generation", "guidance", "pictures", "prompting",
          "sampling", "schedule", "sd", "toy")  # fmt: skip
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _ROOMS:
        return import_module(f"dnp.{name}")
    raise AttributeError(f"module 'dnp' has no attribute {name!r}")

"""dnp: diffusion-negative sampling from scratch. Start at `dnp/guidance.py`.

model = dnp.load("weights/mini")
result = dnp.generate(model, "a red car", method="dns", seed=0)
result.images[0].show()
"""

from dnp.errors import DnpError, NonFiniteError, PictureError, SettingsError, WeightsError
from dnp.generation import METHODS, Result, batch_size, generate
from dnp.sd.model import StableDiffusion, load

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "DnpError",
    "NonFiniteError",
    "PictureError",
    "Result",
    "SettingsError",
    "StableDiffusion",
    "WeightsError",
    "batch_size",
    "generate",
    "load",
]

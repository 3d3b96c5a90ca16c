"""What `dnp.generate` returns, and what makes its pictures again."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from dnp.methods import METHODS, own


@dataclass
class Result:
    """What `generate` returns: k pictures and all that is needed to make them again."""

    images: list[Image.Image]  # none of a toy
    latents: tuple[Tensor, Tensor]  # z_T and z_0, float32 on the CPU, each (k, C, H, W)
    negatives: list[str | None]  # of each picture
    nfe: float  # network evaluations per picture, one for each condition and step: their mean
    gradients: list[int]  # gradient passes of each picture, by Attend-and-Excite
    settings: dict = field(default_factory=dict)
    dns_images: list[Image.Image] = field(default_factory=list)  # those of the first picture first
    sizes: list[list[float]] = field(default_factory=list)  # with particles: effective, by step

    @property
    def negative(self) -> str | None:
        """The negative prompt, where it is the same for every picture; else that of the first."""
        return self.negatives[0]

    @property
    def evaluations(self) -> list[float]:
        """What each picture cost in network evaluations, a gradient pass as two more of them."""
        mean = sum(self.gradients) / len(self.gradients)
        return [whole(round(self.nfe - mean + 3 * g, 6)) for g in self.gradients]

    def _repr_png_(self) -> bytes | None:
        """How a notebook shows it: the pictures side by side, the DNS images above them."""
        if not self.images:
            return None
        rows = [row for row in (self.dns_images, self.images) if row]
        width, height = self.images[0].size
        k = max(1, -(-160 // max(width, height)))  # small ones are enlarged by a whole factor
        strip = Image.new("RGB", (k * width * max(map(len, rows)), k * height * len(rows)), "white")
        for y, row in enumerate(rows):
            for x, picture in enumerate(row):
                big = picture.resize((k * width, k * height))
                strip.paste(big, (k * width * x, k * height * y))
        file = io.BytesIO()
        strip.save(file, format="PNG")
        return file.getvalue()


def settings_of(call, guided) -> dict:
    """The settings of a call, without what makes the pictures."""
    made = {"prompt": call.prompt, "method": guided.label}
    for one in (guided, call):
        made |= {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}
    made["rule"] = None
    del made["rule_options"]
    if guided.named:
        rule = guided.rule
        made |= {"rule": rule.name, "rule_options": rule.options, "rule_sha256": rule.sha256}
    if type(guided) not in METHODS.values():
        made["method_sha256"] = own.identity(type(guided))
    return made


def record(call, guided) -> dict:
    """The settings as a PNG holds them."""
    made = settings_of(call, guided)
    fingerprint = getattr(call.config, "fingerprint", None)  # a pipeline's takes a forward
    if fingerprint is not None:
        kinds = {k: getattr(call.model, k, None) for k in ("dtype", "vae_dtype")}
        made |= {k: str(x).removeprefix("torch.") for k, x in kinds.items() if x is not None}
        made |= {"device": call.device.type, "fingerprint": fingerprint}
    return made


def whole(x: float) -> float:
    """7.0 as 7."""
    return int(x) if x == int(x) else x

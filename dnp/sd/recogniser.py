"""The referee of the miniature's world: which things a picture shows, and in which colours.

A small convolutional network, trained by `weights/mini/training/train.py recogniser` on scenes of
its own (another seed, noise and blur added). It is neither the captioner nor the CLIP model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dnp.errors import WeightsError
from dnp.sd.files.data_only import open_regular
from dnp.sd.world import subjects

SIZE = 64  # pixels along each side


@dataclass(frozen=True)
class Found:
    """One thing in a picture: its word, its likeliest colour, and the thing's probability."""

    word: str
    colour: str
    probability: float


class Recogniser(nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] -> logits of things (the last is the background) and of
    colours in each cell of an 8 x 8 grid."""

    def __init__(self, things: Sequence[str], colours: Sequence[str]):
        super().__init__()
        self.things, self.colours = tuple(things), tuple(colours)

        def layer(c_in: int, c_out: int, kernel: int, stride: int) -> nn.Sequential:
            conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=1)
            return nn.Sequential(conv, nn.GroupNorm(8, c_out, eps=1e-5), nn.SiLU())

        self.body = nn.Sequential(
            layer(3, 32, 4, 2),  #                                   (B, 32, 32, 32)
            layer(32, 96, 3, 2),  #                                  (B, 96, 16, 16)
            layer(96, 96, 3, 1),
            layer(96, 96, 3, 1),
            layer(96, 192, 3, 2),  #                                 (B, 192, 8, 8)
            layer(192, 192, 3, 1),
            layer(192, 192, 3, 1),
        )
        self.head = nn.Conv2d(192, len(things) + 1 + len(colours), 1)
        self.gain = nn.Parameter(torch.ones(len(things)))
        self.bias = nn.Parameter(torch.full((len(things),), -3.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.head(self.body(x)).float()
        return h.split([len(self.things) + 1, len(self.colours)], dim=1)

    def presence(self, things: Tensor) -> Tensor:
        """Logits (B, things) that a thing is somewhere in the picture: the logarithm of the number
        of cells that show it, with a gain and a bias of its own."""
        count = things.log_softmax(1)[:, :-1].flatten(2).logsumexp(2)
        return self.gain * count + self.bias

    def colour_of(self, things: Tensor, colours: Tensor) -> Tensor:
        """Probabilities (B, things, colours): the colours of the cells, weighted by the thing."""
        where = things.log_softmax(1)[:, :-1].flatten(2).softmax(2)  #  (B, things, cells)
        return where @ colours.softmax(1).flatten(2).transpose(1, 2)

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Of every thing (B, things), and of every colour if it is there (B, things, colours)."""
        pictures = [im.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX) for im in images]
        x = torch.from_numpy(np.stack([np.asarray(im) for im in pictures]))
        things, colours = self(x.permute(0, 3, 1, 2).float() / 127.5 - 1)
        return self.presence(things).sigmoid(), self.colour_of(things, colours)

    def find(self, images: Sequence[Image.Image], threshold: float = 0.5) -> list[list[Found]]:
        """The things in each picture, the surest first."""
        return self.named(*self.probabilities(images), threshold)

    def named(self, things: Tensor, colours: Tensor, threshold: float = 0.5) -> list[list[Found]]:
        """The same from `probabilities` of the pictures."""
        found = []
        for there, hue in zip(things, colours):
            order = [i for i in there.argsort(descending=True).tolist() if there[i] > threshold]
            found.append(
                [
                    Found(self.things[i], self.colours[hue[i].argmax()], there[i].item())
                    for i in order
                ]
            )
        return found


def of_weights(weights: Path, things: int) -> Path | None:
    """The recogniser that a weights folder holds for pictures of so many things, if it does."""
    path = weights / "training" / ("judge" if things > 2 else "recogniser")
    return path.with_suffix(".safetensors") if path.with_suffix(".safetensors").is_file() else None


def load_recogniser(path: str | Path) -> Recogniser:
    """The recogniser of a safetensors file that carries its lists of things and colours."""
    try:
        open_regular(path).close()  # safe_open would wait for a pipe for ever
        with safe_open(path, "pt") as f:
            labels = {k: json.loads(f.metadata()[k]) for k in ("things", "colours")}
            model = Recogniser(**labels)
            names = list(f.keys())
            model.load_state_dict({k: f.get_tensor(k).float() for k in names})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as e:
        reason = str(e).strip().split("\n")[0][:200]
        raise WeightsError(
            f"{path}: no recogniser ({reason}); give the file that train.py recogniser wrote."
        ) from None
    return model.eval()


def lacking(recogniser: Recogniser, images: Sequence[Image.Image], prompt: str) -> list[list[str]]:
    """The things that `prompt` asks for and each picture does not show in their colours, by the
    recogniser, as the prompt has them: ["red clock"]. One of each word is looked for."""
    missing = []
    for found in recogniser.find(images):
        colour = {f.word: f.colour for f in found}
        missing.append(
            [f"{c} {w}" if c else w for c, w in subjects(prompt)
             if w not in colour or c not in (None, colour[w])]
        )  # fmt: skip
    return missing

"""What the weights of a Stable Diffusion hold, in whichever layout they lie on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dnp.schedule import Schedule
from dnp.sd.config import TextConfig, UNetConfig, VAEConfig
from dnp.sd.files import recommendations, tensors


@dataclass(frozen=True)
class Contents:
    """What either layout holds: configs, tensors not yet read, schedule and tokenizer."""

    text: TextConfig
    unet: UNetConfig
    vae: VAEConfig
    tensors: dict[str, tuple[dict[str, tensors.Stored], str]]  # part: (its tensors, whose they are)
    files: list[Path]
    schedule: Schedule
    prediction_type: str
    spacing: str
    levels: dict[str, object]  # what the schedule was computed from
    tokenizer: Callable
    tokenizer_files: dict[str, str] = field(default_factory=dict)  # their sha256
    recommended: recommendations.Recommended = recommendations.NONE
    captioner: Path | None = None
    text_2: TextConfig | None = None  # SDXL's second text encoder, and its tokenizer
    tokenizer_2: Callable | None = None
    tokenizer_2_files: dict[str, str] = field(default_factory=dict)
    phi: str = "text"

    def settings(self) -> dict[str, object]:
        """All that is read beside the tensors and changes a picture made with the same arguments;
        no recommendation, since what was taken of them is an argument."""
        read = {p: asdict(getattr(self, p)) for p in ("text", "unet", "vae")}
        if self.text_2 is not None:
            read |= {"text_2": asdict(self.text_2), "tokenizer_2": self.tokenizer_2_files}
        read |= {p: getattr(self, p) for p in ("prediction_type", "spacing", "levels")}
        return read | {"tokenizer": self.tokenizer_files}

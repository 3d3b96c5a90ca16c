"""Metrics, each with its protocol: what exactly was computed, to stand beside the number.

A score without its recipe cannot be compared: A&E's CLIP score is a raw cosine of templates'
mean, CLIPScore is 2.5 max(cos, 0) with a prefix, and torchmetrics prints 100 cos.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dnp.errors import WeightsError
from dnp.evaluation.benchmarks import PROMPTS, subjects
from dnp.sd.captioner import quiet_transformers, refuse_random
from dnp.sd.files.data_only import DATA_ONLY, check_folder, lies_in
from dnp.sd.files.fingerprint import of_folder
from dnp.sd.recogniser import Found

# The 80 templates of Radford et al. 2021 (github.com/openai/CLIP, MIT) for ImageNet's classes.
TEMPLATES = (PROMPTS / "clip_templates.txt").read_text("utf-8").splitlines()
ONE_TEMPLATE = ["{}"]  # for a CLIP that never saw the others' words, such as the miniature's


def fill(template: str, text: str) -> str:
    """A template with its text, "a a" and "the a" made "a" (A&E's recipe), whole words only."""
    return re.sub(r"\b(?:a|the) a\b", "a", template.format(text))


class CLIPScorer:
    """Cosines between pictures and texts under a transformers CLIP folder.

    A text's embedding is the normalised mean over templates of normalised embeddings.
    """

    def __init__(self, folder: str | Path, templates: Sequence[str], device: str = "cpu"):
        if inside := lies_in(folder, "config.json"):
            raise WeightsError(f"{folder} is a folder of the hub's cache; give {inside}.")
        if not (Path(folder) / "config.json").is_file():  # transformers would ask a hub for it
            raise WeightsError(f"{folder}: no CLIP model (no config.json); give its folder.")
        check_folder(folder)
        with quiet_transformers():
            from transformers import CLIPModel, CLIPTokenizer

            try:
                self.model, info = CLIPModel.from_pretrained(
                    folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True,
                    **DATA_ONLY,
                )  # fmt: skip
                self.tokenizer = CLIPTokenizer.from_pretrained(folder, **DATA_ONLY)
                pixels = _normalisation(Path(folder))
            except Exception as e:  # transformers raises whatever its parsers raise
                reason = str(e).strip().split("\n")[0][:200]
                raise WeightsError(
                    f"{folder}: no CLIP model ({reason}); give its folder."
                ) from None
        refuse_random(folder, info)
        self.model = self.model.to(device).eval()
        self.templates, self.device, self.known = list(templates), device, {}
        self.files = of_folder(Path(folder))
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in pixels)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (B, D)."""
        for text in texts:
            if text not in self.known:
                mean = self._embed([fill(t, text) for t in self.templates]).mean(0)
                self.known[text] = F.normalize(mean, dim=0)
        return torch.stack([self.known[t] for t in texts])

    def _embed(self, texts: Sequence[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings  # a folder may have none
        length = min(self.tokenizer.model_max_length, length)
        how = dict(padding=True, truncation=True, max_length=length, return_tensors="pt")
        ids = self.tokenizer(list(texts), **how)
        out = self.model.text_model(**ids.to(self.device)).pooler_output
        return F.normalize(self.model.text_projection(out), dim=1)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit embeddings (B, D); pictures are resized and cut as CLIP's own processor does."""
        out = self.model.vision_model(self.pixels(images).to(self.device)).pooler_output
        return F.normalize(self.model.visual_projection(out), dim=1)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """(B, 3, size, size): the shorter side resized (bicubic), the middle cut, normalised."""
        size = self.model.config.vision_config.image_size
        rows = []
        for image in images:
            short = min(image.size)
            shape = [max(size, int(size * side / short)) for side in image.size]
            image = image.convert("RGB").resize(shape, Image.Resampling.BICUBIC)
            x, y = ((side - size) // 2 for side in image.size)
            rows.append(np.asarray(image.crop((x, y, x + size, y + size)), np.float32) / 255)
        x = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)
        return (x - self.mean) / self.std

    @torch.inference_mode()
    def depicts(self, prompt: str) -> Tensor:
        """CLIPScore's embedding of a prompt, (1, D): its one prefix, no templates."""
        return self._embed([f"A photo depicts {prompt}"])


def clip_score(cosines: Sequence[float]) -> list[float]:
    """2.5 max(cos, 0) of each cosine (Hessel et al. 2021, arXiv:2104.08718), whose recipe is
    CLIP ViT-B/32 with the one template "A photo depicts {}"."""
    return [2.5 * max(c, 0.0) for c in cosines]


def diversity(embeddings: Tensor) -> float:
    """Mean cosine distance over the pairs of unit embeddings (N, D); NaN for fewer than two."""
    n = len(embeddings)
    e = embeddings.double()
    return (
        1 - ((e @ e.T).sum() - e.square().sum()).item() / (n * (n - 1)) if n > 1 else float("nan")
    )


def presence(seen: Sequence[Sequence[Found]], prompt: str) -> list[dict[str, bool | int]]:
    """What each picture shows of what `prompt` asks for, by what the recogniser has `seen` in it.

    things    all (one, two or three) things are there
    colours   and have the colours that the prompt names: all right
    asked     how many of the asked things are there
    right     how many are there in the colours that the prompt names
    shown     how many things are there at all

    Nothing for a prompt that asks for no thing of the world. One of each word is looked for.
    """
    wanted, rows = subjects(prompt), []
    if not wanted:
        return []
    for found in seen:
        colour = {f.word: f.colour for f in found}
        there = [word in colour for _, word in wanted]
        right = [word in colour and c in (None, colour[word]) for c, word in wanted]
        rows.append(
            {
                "things": all(there),
                "colours": all(right),
                "asked": sum(there),
                "right": sum(right),
                "shown": len(found),
            }
        )
    return rows


# ------------------------------------------------------------------------------------- intervals


def bootstrap(
    groups: Sequence[Sequence[float]], seed: int = 0, draws: int = 2000
) -> tuple[float, float, float]:
    """(mean, low, high): the mean over all values and its 95 % interval, percentile bootstrap over
    groups: the values of one prompt, since pictures of one prompt are alike."""
    sums = np.array([np.sum(g) for g in groups], dtype=np.float64)
    counts = np.array([len(g) for g in groups], dtype=np.float64)
    rows = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
    means = sums[rows].sum(1) / counts[rows].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return sums.sum() / counts.sum(), low, high


def _normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels that a CLIP folder was trained with."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            d = json.loads((folder / name).read_text())
            d = d.get("image_processor", d)
            return d["image_mean"], d["image_std"]
    raise WeightsError(f"{folder}: preprocessor_config.json is missing; restore the folder.")

"""Metrics, each with its protocol: what exactly was computed, to stand beside the number.

A score without its recipe cannot be compared: A&E's CLIP score is a raw cosine of templates'
mean, CLIPScore is 2.5 max(cos, 0) with a prefix, and torchmetrics prints 100 cos.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dnp.errors import WeightsError
from dnp.evaluation.benchmarks import subjects
from dnp.sd.captioner import quiet_transformers, refuse_random
from dnp.sd.files.data_only import DATA_ONLY, check_folder
from dnp.sd.files.fingerprint import of_folder
from dnp.sd.recogniser import Recogniser

# The 80 templates of Radford et al. 2021 (github.com/openai/CLIP, MIT) for ImageNet's classes.
TEMPLATES = (
    """
a bad photo of a {}.|a photo of many {}.|a sculpture of a {}.|a photo of the hard to see {}.
a low resolution photo of the {}.|a rendering of a {}.|graffiti of a {}.|a bad photo of the {}.
a cropped photo of the {}.|a tattoo of a {}.|the embroidered {}.|a photo of a hard to see {}.
a bright photo of a {}.|a photo of a clean {}.|a photo of a dirty {}.|a dark photo of the {}.
a drawing of a {}.|a photo of my {}.|the plastic {}.|a photo of the cool {}.
a close-up photo of a {}.|a black and white photo of the {}.|a painting of the {}.
a painting of a {}.|a pixelated photo of the {}.|a sculpture of the {}.
a bright photo of the {}.|a cropped photo of a {}.|a plastic {}.|a photo of the dirty {}.
a jpeg corrupted photo of a {}.|a blurry photo of the {}.|a photo of the {}.
a good photo of the {}.|a rendering of the {}.|a {} in a video game.|a photo of one {}.
a doodle of a {}.|a close-up photo of the {}.|a photo of a {}.|the origami {}.
the {} in a video game.|a sketch of a {}.|a doodle of the {}.|a origami {}.
a low resolution photo of a {}.|the toy {}.|a rendition of the {}.|a photo of the clean {}.
a photo of a large {}.|a rendition of a {}.|a photo of a nice {}.|a photo of a weird {}.
a blurry photo of a {}.|a cartoon {}.|art of a {}.|a sketch of the {}.|a embroidered {}.
a pixelated photo of a {}.|itap of the {}.|a jpeg corrupted photo of the {}.
a good photo of a {}.|a plushie {}.|a photo of the nice {}.|a photo of the small {}.
a photo of the weird {}.|the cartoon {}.|art of the {}.|a drawing of the {}.
a photo of the large {}.|a black and white photo of a {}.|the plushie {}.|a dark photo of a {}.
itap of a {}.|graffiti of the {}.|a toy {}.|itap of my {}.|a photo of a cool {}.
a photo of a small {}.|a tattoo of the {}.
""".strip()
    .replace("\n", "|")
    .split("|")
)
ONE_TEMPLATE = ["{}"]  # for a CLIP that never saw the others' words, such as the miniature's


def fill(template: str, text: str) -> str:
    """A template with its text, "a a" and "the a" made "a" (A&E's recipe), whole words only."""
    return re.sub(r"\b(?:a|the) a\b", "a", template.format(text))


class CLIPScorer:
    """Cosines between pictures and texts under a transformers CLIP folder.

    A text's embedding is the normalised mean over templates of normalised embeddings.
    """

    def __init__(self, folder: str | Path, templates: Sequence[str], device: str = "cpu"):
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
        ids = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
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


def inception_score(probabilities: Tensor) -> float:
    """exp(mean over pictures of KL(p(y | x) || p(y))) for probabilities (N, classes), in float64.

    Salimans et al. 2016, arXiv:1606.03498: the exponential of a mean divergence, over one split.
    1 is the least (all pictures alike or unsure), the number of classes the most.
    """
    p = probabilities.double()
    if p.ndim != 2 or not torch.allclose(p.sum(1), torch.ones(len(p), dtype=p.dtype), atol=1e-4):
        raise ValueError("probabilities must be (N, classes) with rows that sum to 1")
    kl = (torch.xlogy(p, p) - torch.xlogy(p, p.mean(0))).sum(1)
    return kl.mean().exp().item()


def diversity(embeddings: Tensor) -> float:
    """Mean cosine distance over the pairs of unit embeddings (N, D); NaN for fewer than two."""
    n = len(embeddings)
    e = embeddings.double()
    return (
        1 - ((e @ e.T).sum() - e.square().sum()).item() / (n * (n - 1)) if n > 1 else float("nan")
    )


def presence(
    recogniser: Recogniser, images: Sequence[Image.Image], prompt: str
) -> list[dict[str, bool | int]]:
    """What each picture shows of what `prompt` asks for, by the recogniser.

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
    for found in recogniser.find(images):
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


def paired(
    a: dict[tuple, float], b: dict[tuple, float], group: Callable[[tuple], object], seed: int = 0
) -> tuple[float, float, float]:
    """The mean of a - b over the keys (prompt, seed) that both have, and its 95 % interval by
    bootstrap over the groups (prompts)."""
    groups: dict[object, list[float]] = {}
    for key in sorted(a.keys() & b.keys()):
        groups.setdefault(group(key), []).append(a[key] - b[key])
    return bootstrap(list(groups.values()), seed)


def _normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels that a CLIP folder was trained with."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            d = json.loads((folder / name).read_text())
            d = d.get("image_processor", d)
            return d["image_mean"], d["image_std"]
    raise WeightsError(f"{folder}: preprocessor_config.json is missing; restore the folder.")

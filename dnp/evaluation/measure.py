"""What looks at the pictures of a unit, and the numbers that it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from dnp.evaluation import record_keys
from dnp.evaluation.benchmarks import parts
from dnp.evaluation.metrics import CLIPScorer, clip_score, diversity, presence
from dnp.sd.captioner import Captioner
from dnp.sd.recogniser import Recogniser

PROTOCOL = {
    "full": "cosine of picture and prompt; no factor, no clipping; mean over pictures",
    "minimum": "split at ' and ', else ' with ' (three things: ', ' too); smallest cosine; mean",
    "clipscore": "2.5 max(cos, 0) with the one template 'A photo depicts {}' (arXiv:2104.08718)",
    "classes": "the recogniser's probabilities that each thing is there, divided by their sum",
    "IS": "exp of the mean KL of classes to their mean; one split, all pictures of the row",
    "things": "the recogniser finds every thing that the prompt names (probability over 0.5)",
    "colours": "and its likeliest colour is the named one",
    "right": "how many of the named things are there in their named colours",
    "diversity": "mean cosine distance of the CLIP embeddings of a prompt's pictures",
    "intervals": "95 %, percentile bootstrap over prompts, 2000 draws",
}


@dataclass
class Instruments:
    """What looks at the pictures; `recogniser` and `clip` may be None where there is none."""

    captioner: Captioner | None
    clip: CLIPScorer | None
    recogniser: Recogniser | None
    captioner_file: str | None = None  # fingerprints
    recogniser_file: str | None = None

    def identity(self) -> dict:
        """All that the numbers depend on, apart from the pictures."""
        clip = self.clip and {"file": self.clip.files.whole, "templates": self.clip.templates}
        return {
            "code": record_keys.metrics_code(),
            "clip": clip,
            "recogniser": self.recogniser_file,
        }


def score(instruments: Instruments, images: Sequence[Image.Image], prompt: str) -> dict:
    """The numbers of a prompt's pictures: a list with one for each, but for `diversity`."""
    row: dict = {}
    if instruments.clip is not None:
        row |= clip_metrics(instruments.clip, images, prompt)
    if instruments.recogniser is not None:
        found = presence(instruments.recogniser, images, prompt)
        if found:
            row |= {name: [picture[name] for picture in found] for name in found[0]}
        there, _ = instruments.recogniser.probabilities(images)
        share = there / there.sum(1, keepdim=True)
        row["classes"] = [[round(p, 5) for p in picture] for picture in share.tolist()]
    return row


def clip_metrics(clip: CLIPScorer, images: Sequence[Image.Image], prompt: str) -> dict:
    """The CLIP metrics of a prompt's pictures, six digits each."""
    embedded = clip.images(images)
    full, depicts = ((embedded @ t.T)[:, 0] for t in (clip.texts([prompt]), clip.depicts(prompt)))
    out = {"full": full.tolist(), "clipscore": clip_score(depicts.tolist())}
    if " and " in prompt or " with " in prompt:
        out["minimum"] = (embedded @ clip.texts(parts(prompt)).T).min(1).values.tolist()
    out = {k: [round(v, 6) for v in values] for k, values in out.items()}
    return out | {"diversity": round(diversity(embedded), 6) if len(images) > 1 else None}

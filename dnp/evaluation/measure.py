"""What looks at the pictures of a unit, and the numbers that it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from dnp.errors import SettingsError, is_finite, reason
from dnp.evaluation import record_keys, tables
from dnp.evaluation.benchmarks import parts, subjects
from dnp.evaluation.metrics import CLIPScorer, clip_score, diversity, presence
from dnp.methods import own
from dnp.sd.captioner import Captioner
from dnp.sd.recogniser import Recogniser

OCCUPIED = (  # names that a record of scores has for something else
    *tables.COLUMNS, *tables.OF_A_ROW, "classes", "shown", "prompt", "category", "seeds", "method",
    "scale", "negatives", "images", "nfe", "words_nfe", "seconds", "failed", "notes", "keys", "s",
    "empty", "sha256", "metrics",
)  # fmt: skip
Metric = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[float]]
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
    metrics: dict[str, Metric] = field(default_factory=dict)  # one's own, by their columns

    def identity(self) -> dict:
        """All that the numbers depend on, apart from the pictures."""
        clip = self.clip and {"file": self.clip.files.whole, "templates": self.clip.templates}
        known = {
            "code": record_keys.metrics_code(),
            "clip": clip,
            "recogniser": self.recogniser_file,
        }
        of_own = {name: own.identity(metric) for name, metric in self.metrics.items()}
        return known | ({"own": of_own} if of_own else {})


def score(instruments: Instruments, images: Sequence[Image.Image], prompt: str) -> dict:
    """The numbers of a prompt's pictures: a list with one for each, but for `diversity`."""
    row: dict = {}
    if instruments.clip is not None:
        row |= clip_metrics(instruments.clip, images, prompt)
    if instruments.recogniser is not None:
        there, colours = instruments.recogniser.probabilities(images)
        found = presence(instruments.recogniser.named(there, colours), prompt)
        if found:
            row |= {name: [picture[name] for picture in found] for name in found[0]}
        share = there / there.sum(1, keepdim=True)
        row["classes"] = [[round(p, 5) for p in picture] for picture in share.tolist()]
    for name, metric in instruments.metrics.items():
        row[name] = measured(name, metric, images, prompt)
    return row


def columns(clip: bool, recogniser: bool, prompts: Sequence[str]) -> list[str]:
    """The columns that the tables of these prompts have, by what looks at their pictures."""
    most = max(len(subjects(prompt)) for prompt in prompts)
    have = {
        "full": clip,
        "clipscore": clip,
        "minimum": clip and any(" and " in p or " with " in p for p in prompts),
        **dict.fromkeys(("colours", "things", "asked"), recogniser and most > 0),
        "right": recogniser and most > 2,
    }
    return [column for column in tables.COLUMNS if have.get(column, True)]  # one's own always


def own_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """The metrics of FILE.py:NAME, whose files are run, by NAME; each gets a column of the tables.

    A metric is a function (pictures, prompts) -> one number for each picture. SettingsError for
    what is not one, or cannot be told from another.
    """
    found: dict[str, Metric] = {}
    for typed in names:
        column = typed.rpartition(":")[2]
        if not own.is_file(typed) or column in (*OCCUPIED, *found):
            why = "its name is taken" if own.is_file(typed) else "it is not FILE.py:NAME"
            raise SettingsError(f"the metric {typed!r} is not possible ({why}); give another.")
        found[column] = own.find(typed, "metric")
        if not callable(found[column]) or own.identity(found[column]) == own.UNKNOWN:
            raise SettingsError(
                f"the metric {typed} is not a plain function of its file; write it as one, "
                "(pictures, prompts) -> numbers."
            )
        tables.COLUMNS[column] = (column, 1, 3)
    return found


def measured(name: str, metric: Metric, images: Sequence[Image.Image], prompt: str) -> list[float]:
    """One's own metric of a prompt's pictures, six digits each. SettingsError if it fails."""
    try:
        values = [float(x) for x in metric(list(images), [prompt] * len(images))]
    except Exception as e:
        raise SettingsError(f"the metric {name} failed ({reason(e)}); fix it.") from e
    if len(values) != len(images) or not all(map(is_finite, values)):
        raise SettingsError(
            f"the metric {name} returned {values!r:.60} for {len(images)} pictures; return one "
            "finite number for each."
        )
    return [round(x, 6) for x in values]


def clip_metrics(clip: CLIPScorer, images: Sequence[Image.Image], prompt: str) -> dict:
    """The CLIP metrics of a prompt's pictures, six digits each."""
    embedded = clip.images(images)
    full, depicts = ((embedded @ t.T)[:, 0] for t in (clip.texts([prompt]), clip.depicts(prompt)))
    out = {"full": full.tolist(), "clipscore": clip_score(depicts.tolist())}
    if " and " in prompt or " with " in prompt:
        out["minimum"] = (embedded @ clip.texts(parts(prompt)).T).min(1).values.tolist()
    out = {k: [round(v, 6) for v in values] for k, values in out.items()}
    return out | {"diversity": round(diversity(embedded), 6) if len(images) > 1 else None}

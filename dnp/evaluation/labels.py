"""What an audit looks for in pictures: a family of labels, and who sees them.

    OfWorld      things and colours by the recogniser of a miniature, settings by its CLIP
    OfWords      words of your own, of which CLIP chooses one for each picture
    OfCaptions   the words of a captioner

Each has `family(seen, prompt)`, the labels that are tested, without those that the prompt asks for;
`see(pictures)`, the labels of each; and `negative(prompt, label)`, the prompt with a label.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from dnp.errors import SettingsError
from dnp.evaluation.metrics import ONE_TEMPLATE, TEMPLATES, CLIPScorer
from dnp.sd.files.data_only import open_regular
from dnp.sd.recogniser import Found, Recogniser, load_recogniser, of_weights
from dnp.sd.world import COLOURS, SETTINGS, subjects

SURE = 0.8  # the recogniser's probability that a thing is there
LEAST = 6  # pictures whose captions hold a word, for it to be tested; 6 to 0 has a p of .03
PASSED_OVER = set("a an and are at by for from has in is it its of on or that the there this to "
                  "with".split())  # fmt: skip
Seen = list[frozenset[str]]  # the labels of each picture


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.lower()))


class OfWorld:
    """Things with a probability over .8, the likeliest colour of each of them, and the setting
    whose words CLIP finds nearest, behind the things that were found."""

    def __init__(self, recogniser: Recogniser, clip: CLIPScorer | None):
        self.recogniser, self.clip = recogniser, clip
        self.what = "things and colours by the recogniser at .8"
        self.what += "; settings by CLIP" if clip else ""

    def family(self, seen: Iterable[Seen], prompt: str) -> tuple[str, ...]:
        names = (
            *self.recogniser.things,
            *self.recogniser.colours,
            *(SETTINGS if self.clip else ()),
        )
        return tuple(x for x in names if x not in words_of(prompt))

    def see(self, pictures: Sequence[Image.Image]) -> Seen:
        found = self.recogniser.find(pictures, SURE)
        seen = [{f.word for f in fs} | {f.colour for f in fs} for fs in found]
        for labels, setting in zip(seen, self.settings(pictures, found) if self.clip else ()):
            labels.add(setting)
        return [frozenset(labels) for labels in seen]

    def settings(self, pictures: Sequence[Image.Image], found: Sequence[list[Found]]) -> list[str]:
        """The setting of each picture, with the things that were found in it, by CLIP."""
        settings = []
        for fs, picture in zip(found, self.clip.images(pictures)):
            things = " and ".join(f"a {f.word}" for f in fs)
            texts = [f"{things} {after}" if fs else alone for after, alone in SETTINGS.values()]
            settings.append([*SETTINGS][(self.clip.texts(texts) @ picture).argmax()])
        return settings

    def negative(self, prompt: str, label: str) -> str:
        if label in SETTINGS:
            return f"{prompt} {SETTINGS[label][0]}"
        thing = next((word for colour, word in subjects(prompt) if colour is None), None)
        if label in COLOURS and thing:
            article = "an" if label[0] in "aeiou" else "a"
            coloured, changed = re.subn(
                rf"\ban? {thing}\b", f"{article} {label} {thing}", prompt, count=1
            )
            return coloured if changed else prompt.replace(thing, f"{label} {thing}", 1)
        return f"{prompt} and a {label}"


class OfWords:
    """For each picture the word whose text CLIP finds nearest."""

    def __init__(self, words: str, clip: CLIPScorer):
        """`words` are parted by commas; SettingsError for fewer than two."""
        self.words, self.clip = [" ".join(w.split()) for w in words.split(",")], clip
        if len(set(self.words)) < max(2, len(self.words)) or not all(self.words):
            raise SettingsError(
                f'--words "{words}" is not possible; give two or more, all different, such as '
                '--words "man, woman".'
            )
        self.what = "the nearest of the words by CLIP"

    def family(self, seen: Iterable[Seen], prompt: str) -> tuple[str, ...]:
        return tuple(w for w in self.words if not words_of(w) <= words_of(prompt))

    def see(self, pictures: Sequence[Image.Image]) -> Seen:
        near = self.clip.images(pictures) @ self.clip.texts(self.words).T
        return [frozenset([self.words[i]]) for i in near.argmax(1).tolist()]

    def negative(self, prompt: str, label: str) -> str:
        return f"{prompt}, {label}"


class OfCaptions:
    """The words of a captioner's texts. The family are those in the captions of six pictures or
    more of all sets together: which set they are of has no part in that, so a test of it holds."""

    what = f"words of the captioner, those of {LEAST} pictures or more"

    def __init__(self, captioner: Callable[[Sequence[Image.Image]], Sequence[str]]):
        self.captioner = captioner

    def family(self, seen: Iterable[Seen], prompt: str) -> tuple[str, ...]:
        counts = Counter(word for labels in seen for picture in labels for word in picture)
        return tuple(
            sorted(w for w, n in counts.items() if n >= LEAST and w not in words_of(prompt))
        )

    def see(self, pictures: Sequence[Image.Image]) -> Seen:
        return [frozenset(words_of(text) - PASSED_OVER) for text in self.captioner(pictures)]

    def negative(self, prompt: str, label: str) -> str:
        return f"{prompt}, {label}"


Labels = OfWorld | OfWords | OfCaptions


def labels_for(
    model, prompt: str, weights: Path | None = None, words: str | None = None,
    clip: Path | None = None, captions: bool = False,
) -> Labels:  # fmt: skip
    """Words, where they are given; else, without `captions`, the recogniser of a weights folder,
    with its CLIP; else the model's captioner. SettingsError where there is none of them."""
    if words is not None and captions:
        raise SettingsError("--words and --captioner are both given; leave one of them out.")
    own_clip = weights / "clip" if weights and (weights / "clip").is_dir() else None
    recogniser = of_weights(weights, len(subjects(prompt))) if weights else None
    folder = clip or own_clip
    scorer = None
    if folder is not None and (words is not None or (recogniser and not captions)):
        # A miniature's own CLIP has read captions of its world, and none of the 80 templates.
        closed = folder == own_clip and model.config.words
        scorer = CLIPScorer(folder, ONE_TEMPLATE if closed else TEMPLATES, str(model.device))
    if words is not None:
        if scorer is None:
            raise SettingsError("--words are told apart by CLIP; give --clip FOLDER.")
        return OfWords(words, scorer)
    if recogniser and not captions:
        return OfWorld(load_recogniser(recogniser), scorer)
    if clip is not None:
        raise SettingsError('--clip tells words apart; give them with --words "man, woman".')
    if getattr(model, "captioner", None) is None:
        raise SettingsError(
            'these weights have nothing that names what pictures show; give --words "A, B" with '
            "--clip FOLDER, or --captioner FOLDER."
        )
    return OfCaptions(model.captioner)


def tabulated(path: Path, script: str, check: Callable[[dict], object]) -> dict:
    """What a script of the weights' training has counted in its world; `check` fails for another
    kind of table. SettingsError if it cannot be read."""
    try:
        with open_regular(path) as f:
            truth = json.load(f)
        check(truth)
        return truth
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise SettingsError(
            f"{path}: cannot be read ({str(e)[:120]}); make it with weights/mini/training/{script}."
        ) from None

"""The methods whose negative is words, or none: CFG, Eq. (4), DNS, DNP and auto-DNP."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dnp.errors import SettingsError
from dnp.methods.fields import setting
from dnp.methods.method import SCALE, Asked, Method

if TYPE_CHECKING:
    from PIL.Image import Image

Captioner = Callable[["Sequence[Image]"], Sequence[str]]  # pictures -> texts
APART = 1_000_003  # between the seeds of a picture's first, second, ... DNS image
SEEDS = 2**32  # torch seeds its CPU generator with 32 bits, so more would repeat


class CFG(Method):
    """phi + s (p - phi), Eq. 3"""


class DNS(Method):
    """phi + s (phi - p), Eq. 19"""

    name, own_rule, positive = "dns", "dns", "phi"


class NegativePrompt(Method):
    """phi + s (p - n), Eq. 4"""

    name, own_rule, cost = "np", "negative_prompt", "3T"
    takes_words = has_negative = two_scale = True

    def weight_of_n(self) -> float | None:
        """The coefficient of eps_n, where the rule is one of the linear forms."""
        from dnp.guidance import coefficients

        form = {"negative_prompt": "np", "negative_prompt_two_scale": "np",
                "negative_prompt_two_term": "np2"}.get(self.rule.name)  # fmt: skip
        h = self.negative_scale if self.rule.name == "negative_prompt_two_scale" else None
        return form and coefficients(form, self.s, h)[2]

    def words(self, call):
        if call.negative is None:
            who = f"rule {self.rule.name}" if self.named else f"method {self.name}"
            raise SettingsError(f"{who} needs a negative prompt; add `negative=TEXT`.")
        return super().words(call)


class TwoTerm(NegativePrompt):
    """n + s (p - n), two-term"""

    name, own_rule, two_scale, cost = "np2", "negative_prompt_two_term", False, "2T"


class AutoDNP(NegativePrompt):
    """phi + s (p - n*), a captioner's n*

    n* are its words for a DNS image from the picture's own z_T.
    """

    s_dns: float | None = setting(
        None, "scale of the DNS image (answer: of the inner chain); default: the weights', else s"
    )
    dns_images: int = setting(1, "DNS images for each n*", low=1, high=100)
    caption_per: str = setting("seed", "one n* for each seed or prompt", choices=("seed", "prompt"))
    name, cost = "auto-dnp", "2T + 3T"

    def complete(self, call) -> None:
        super().complete(call)
        if call.negative is None and self.s_dns is None:
            self.s_dns = call.recommended("dns", SCALE if self.s is None else self.s)

    def words(self, call):
        if call.negative is not None:
            return Method.words(self, call)
        captioner, every = self.captioner(call), [call.row(i) for i in range(call.images)]
        of = described(every, self.caption_per)
        rows = [every[i] for i in sorted(set(of))]
        rounds = [
            call.again("dns", [Asked(r.prompt, k) for r, k in zip(rows, seeds)],
                       s=self.s_dns)
            for seeds in zip(*(dns_seeds(row.seed, self.dns_images) for row in rows))
        ]  # fmt: skip
        pictures = [one for each in zip(*(r.images for r in rounds)) for one in each]
        texts, n = describe(captioner, pictures), len(rounds)
        words = [", ".join(filter(None, texts[i : i + n])) for i in range(0, len(texts), n)]
        of_row = dict(zip(sorted(set(of)), words))
        return [of_row[i] for i in of], pictures, sum(r.nfe * len(rows) for r in rounds)

    def captioner(self, call) -> Captioner:
        return captioner_of(call, self.name)


class DNP(AutoDNP):
    """phi + s (p - n*), your words for n*"""

    name = "dnp"

    def captioner(self, call) -> Captioner:
        if call.captioner is None:
            raise SettingsError(
                "method dnp needs words for its DNS image: give a captioner (picture -> text), or "
                "the words as `negative=TEXT`."
            )
        return lambda pictures: [call.captioner(picture) for picture in pictures]


def captioner_of(call, method: str) -> Captioner:
    """The captioner that is given, else the weights' own."""
    captioner = call.captioner or getattr(call.model, "captioner", None)
    if captioner is None:
        raise SettingsError(
            f"these weights have no captioner; give {method} one with `captioner=FOLDER`."
        )
    return captioner


def describe(captioner: Captioner, pictures: Sequence[Image]) -> list[str]:
    """One caption for each picture, stripped. An empty one is phi, and a warning says so.

    SettingsError if the captioner does not return one text for each picture.
    """
    captions = captioner(pictures)
    texts = isinstance(captions, Sequence) and all(isinstance(c, str) for c in captions)
    if isinstance(captions, str) or not texts or len(captions) != len(pictures):
        raise SettingsError(
            f"the captioner returned {captions!r:.80} for {len(pictures)} pictures; it must return "
            "a list with one text for each."
        )
    captions = [" ".join(c.split()) for c in captions]
    for i, caption in enumerate(captions, 1):
        if not caption:
            warnings.warn(
                f"the captioner had no words for picture {i} of {len(pictures)}; the negative "
                "prompt is empty there, which is plain CFG",
                stacklevel=2,
            )
    return captions


def described(rows: Sequence[Asked], caption_per: str) -> list[int]:
    """Of each picture the one whose DNS image its n* describes: itself, or its prompt's first."""
    first: dict[object, int] = {}
    per_prompt = caption_per == "prompt"
    return [first.setdefault(row.prompt, i) if per_prompt else i for i, row in enumerate(rows)]


def dns_seeds(seed: int, count: int) -> list[int]:
    """The seeds of a picture's DNS images; the first has its own, so that it starts at its z_T."""
    return [(seed + APART * j) % SEEDS for j in range(count)]

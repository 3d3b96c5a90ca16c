"""A prompt, a method and a seed -> pictures: `dnp.generate`, and its steps: `dnp.trajectory`.

    generate = negatives (words for n, if the method makes them) + trajectory (one chain for each
               batch) + the decoder
    trajectory = a guided model (`Guided`: conditions, rule, intervals) under a sampler

A model is whatever has `eps(z_t, t, c)` and `schedule`: a Stable Diffusion, a toy, one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from dnp import prompting
from dnp.errors import SettingsError
from dnp.methods import Method
from dnp.plan import Plan, Row
from dnp.settings import SEEDS

FAR = 1_000_003  # between the seeds of a picture's first, second, ... DNS image


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

    @property
    def negative(self) -> str | None:
        """The negative prompt, where it is the same for every picture; else that of the first."""
        return self.negatives[0]

    @property
    def evaluations(self) -> list[float]:
        """What each picture cost in network evaluations, a gradient pass as two more of them."""
        mean = sum(self.gradients) / len(self.gradients)
        return [_whole(round(self.nfe - mean + 3 * g, 6)) for g in self.gradients]

    def sheet(self) -> Image.Image:
        """The pictures side by side, with the DNS images above them where there are any."""
        from dnp.pictures import contact_sheet  # what it draws is no part of a picture's key

        s, k = self.settings, len(self.images)
        heads = [f"seed {s['seed'] + i}" for i in range(k)]
        label = f"{s['method']}\ns = {s['scale']:g}" if s["scale"] is not None else s["method"]
        mean = sum(self.evaluations) / len(self.evaluations)
        rows = [(f"{label}\n{mean:g} evaluations", self.images)]
        if len(self.dns_images) == k:
            rows.insert(0, ("DNS image", self.dns_images))
        n = f'    n = "{self.negative}"' if self.negative is not None else ""
        return contact_sheet(rows, heads, f'p = "{s["prompt"]}"{n}')

    def _repr_png_(self) -> bytes | None:
        """How a notebook shows it."""
        from dnp.pictures import png

        return png(self.sheet()) if self.images else None


def generate(
    model, prompt, method: str | None = None, negative=None, s: float | None = None,
    steps: int = 50, seed: int = 0, images: int = 1, captioner: Callable | None = None, *,
    progress: Callable[[int], None] | None = None, **settings,
) -> Result:  # fmt: skip
    """Samples `images` pictures of `prompt`, with the seeds seed, seed + 1, ...

    method    a row of `dnp.methods.METHODS`; None is cfg, np2 where a negative is given, or what
              the signature of `rule` asks for
    negative  the negative prompt n; "" is phi. np and np2 need one; dnp and auto-dnp take it as n*
              and then make no DNS image
    s         guidance scale; None is the weights' recommendation for the method, else 7.5
    captioner dnp: a callable picture -> text. auto-dnp: pictures -> texts; None is the weights' own
    progress  called after every step with the number of pictures that made it
    settings  rule, rule_options, negative_scale, interval, negative_interval, sampler, eta, size,
              s_dns, dns_images, caption_per, K, K_until, tensor, form, normalize: see
              `dnp/settings.py`. A rule is a name of `dnp.rules.RULES`, FILE.py:NAME, or a function
              by the contract of `dnp/contract.py`

    The initial noise of a picture comes from its own CPU generator, so a seed means one picture,
    whatever its batch. SettingsError for what is not possible; NonFiniteError names the step.
    """
    given = {**settings, "negative": negative, "s": s, "steps": steps, "seed": seed}
    plan = Plan.of(model, prompt, method, {**given, "images": images})
    record = plan.record()  # now: a weight file that was changed is told before the work
    words, dns, evaluated = negatives(plan, captioner, progress)
    latents, pictures, decode = [], [], getattr(model, "decode", lambda z_0: [])
    gradients: list[int] = []
    batch = batch_size(plan.device)
    for first in range(0, images, batch):
        rows = range(first, min(first + batch, images))
        with torch.no_grad():
            guided, generators, z_T = plan.chain([seed + i for i in rows], [words[i] for i in rows])
            for t, z_0, _, _ in plan.walk(guided, z_T, generators):  # noqa: B007
                if t >= 0 and progress:
                    progress(len(rows))
            latents.append((z_T.float().cpu(), z_0.float().cpu()))
            pictures += decode(z_0)
            gradients += guided.gradients
            evaluated += guided.evaluations * len(rows) + sum(guided.gradients)
    z_T, z_0 = (torch.cat(parts) for parts in zip(*latents))
    record["negative"] = words[0]
    nfe = _whole(evaluated / images)
    return Result(pictures, (z_T, z_0), words, nfe, gradients, record, dns)


def trajectory(
    model, prompt, method: str | None = None, negative=None, s: float | None = None,
    steps: int = 50, seed: int = 0, images: int = 1, captioner: Callable | None = None, *,
    z_T: Tensor | None = None, **settings,
) -> Iterator[Row]:  # fmt: skip
    """The chain of `generate` as rows (t, z_t, z0_hat, eps), of all pictures in one batch.

    steps + 1 rows; the last is (-1, z_0, z_0, None). `model` may be a toy: its prompts are integers
    and phi is None. `z_T` (B, *S) is where the chain starts; None draws it from the seeds, for a
    toy from its own law at the first level, since its noisiest level is not quite N(0, I).
    """
    given = {**settings, "negative": negative, "s": s, "steps": steps, "seed": seed}
    plan = Plan.of(
        model, prompt, method, {**given, "images": len(z_T) if z_T is not None else images}
    )
    words, _, _ = negatives(plan, captioner)
    seeds = [seed + i for i in range(plan.chosen["images"])]
    with torch.no_grad():
        guided, generators, drawn = plan.chain(seeds, words, draw=z_T is None)
        start = drawn if z_T is None else z_T
    return plan.walk(guided, start, generators)


def negatives(
    plan: Plan, captioner: Callable | None = None, progress: Callable[[int], None] | None = None
) -> tuple[list, list[Image.Image], int]:
    """The words n of each picture; the DNS images that they describe; the evaluations of all.

    DNP and auto-DNP, arXiv:2411.05473: DNS from the picture's own z_T, then words for it.
    """
    chosen, images = plan.chosen, plan.chosen["images"]
    if not plan.row.makes_dns_image or chosen["negative"] is not None:
        return [chosen["negative"]] * images, [], 0
    captioner = _captioner(plan.model, plan.row, captioner)
    count = images if chosen["caption_per"] == "seed" else 1
    shared = {k: chosen[k] for k in ("steps", "eta", "size", "sampler")}
    shared |= {k: chosen[k] for k in ("phi", "original_size", "crop", "target_size")}
    rounds = [
        generate(
            plan.model, plan.prompt, "dns", s=plan.s_dns, seed=(chosen["seed"] + FAR * j) % SEEDS,
            images=count, progress=progress, **shared,
        )
        for j in range(chosen["dns_images"])
    ]  # fmt: skip
    dns = [image for of_one_picture in zip(*(r.images for r in rounds)) for image in of_one_picture]
    texts = prompting.describe(captioner, dns)
    groups = [texts[i : i + len(rounds)] for i in range(0, len(texts), len(rounds))]
    words = [", ".join(filter(None, group)) for group in groups]
    words = words if chosen["caption_per"] == "seed" else words * images
    return words, dns, sum(r.nfe * count for r in rounds)


def _captioner(model, row: Method, captioner: Callable | None) -> prompting.Captioner:
    """A captioner of batches: the given one, or with auto-dnp the model's own."""
    if captioner is None and row.negative == "captioned":
        captioner = getattr(model, "captioner", None)
        if captioner is None:
            raise SettingsError(
                "these weights have no captioner; give auto-dnp one with --captioner FOLDER."
            )
        return captioner
    if captioner is None:
        raise SettingsError(
            "method dnp needs words for its DNS image: give a captioner (picture -> text), or the "
            "words as the negative prompt."
        )
    return prompting.one_by_one(captioner) if row.negative == "asked" else captioner


def batch_size(device: torch.device) -> int:
    """How many pictures are sampled together.

    On a CPU more gain little, and one at a time its last bits are the same in any batch; a GPU
    gains much.
    """
    return 1 if device.type == "cpu" else 16


def _whole(x: float) -> float:
    """7.0 as 7."""
    return int(x) if x == int(x) else x

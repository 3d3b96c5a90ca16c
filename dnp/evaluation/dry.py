"""What a grid will cost: pictures, network evaluations, disk, and hours from one measured step."""

from __future__ import annotations

import copy
import time
import warnings
from contextlib import nullcontext

import numpy as np
import torch
from PIL import Image

from dnp import generation
from dnp.evaluation import contestants, record_keys
from dnp.evaluation.grid import DNS, Run
from dnp.evaluation.tables import markdown
from dnp.methods.attend_excite import AttendExcite, most_passes
from dnp.methods.words import dns_seeds
from dnp.sampling import noise_like

RECORD = 4096  # bytes of a picture's record, rounded up to what a disk gives


def estimate(work: Run, world: int = 1) -> str:
    """The text of --dry-run; `world` processes share the work. Nothing is made or written.

    Evaluations are counted by running each method once with a network that says zero, and for
    Attend-and-Excite, whose moves depend on the picture, as the most that they can be; hours are
    those of the network and the decoder, by one step and one picture that are measured.
    """
    rows, dns, total = [], {}, [0, 0, 0.0]
    for method in work.grid.methods:
        for s in work.grid.scales:
            settings, missing = work.settings(method, s), 0
            of_words = method.name in contestants.FROM_DNS
            own = contestants.dns_settings(settings) if of_words else {}
            for prompt in work.grid.prompts:
                new = [c for c in work.contents((method, s, prompt)) if work.kept(c) is None]
                missing += len(new)
                for c in new if of_words else ():
                    images = _dns_images(work, c, own, settings.get("dns_images", 1))
                    dns.update((record_keys.key(x), x) for x in images if work.kept(x) is None)
            each = evaluations(work, method, settings)
            at = "" if settings["s"] is None else f", s = {settings['s']:g}"
            label = method.label + at
            rows.append((label, len(work.grid.prompts) * len(work.grid.seeds), missing, each))
    if dns:
        each = evaluations(work, DNS, next(iter(dns.values()))["settings"])
        rows.append(("DNS images for n*", len(dns), len(dns), each))
    for _, asked, missing, each in rows:
        total = [total[0] + asked, total[1] + missing, total[2] + missing * each]
    step, decode, size = measured(work)
    hours = (total[2] * step + total[1] * decode) / 3600 / world
    body = [[a, f"{b:,}", f"{c:,}", f"{d:g}", f"{c * d:,.0f}"] for a, b, c, d in rows]
    body.append(["all", f"{total[0]:,}", f"{total[1]:,}", "", f"{total[2]:,.0f}"])
    heads = ["method", "pictures", "to make", "evaluations each", "evaluations"]
    device = f"{work.model.device}, {world} process(es)"
    return "\n".join(
        [
            *markdown(heads, body),
            f"Disk: {total[1] * (size + RECORD) / 1e9:.2f} GB at most.",
            f"Time: {hours:.2f} hours on {device}: {1000 * step:.3g} ms for an evaluation and "
            f"{1000 * decode:.3g} ms for a decoded picture, measured now. Captions and scores are "
            "not counted.",
        ]
    )


def _dns_images(work: Run, content: dict, of: dict, images: int) -> list[dict]:
    """The contents of the DNS images, with the settings `of`, that the n* of a picture is of."""
    prompt, first = content.get("words_of", content["prompt"]), content["words"]
    seeds = dns_seeds(first, images)
    where = work.circumstances(DNS.captioned)
    return [work.content(DNS, of, where, prompt, seed) for seed in seeds]


def evaluations(work: Run, method: contestants.Contestant, settings: dict) -> float:
    """Network evaluations of one picture, without those of its DNS images."""
    most = 0
    if issubclass(method.kind, AttendExcite):
        most = 3 * most_passes(**settings)
        settings = settings | {"ae_until": 0.0}
    model, prompt = copy.copy(work.model), work.grid.prompts[0].text
    silent = Silent()
    model.eps, model.attention = silent.eps, silent.attention
    model.decode = lambda z_0: [Image.new("RGB", (8, 8))] * len(z_0)
    negative = work.negative(method, prompt, 0)
    negative = "a" if method.name in contestants.FROM_DNS else negative
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captioner = lambda images: ["a"] * len(images)  # noqa: E731
        (sample,) = contestants.sample(
            model, method, [prompt], [0], settings, [negative], captioner
        )
    return sample.nfe + most


class Silent:
    """A network that says zero, and the recorder (`dnp/sd/attention.py`) of its maps, zero too."""

    def eps(self, z_t: torch.Tensor, t: torch.Tensor, c: object) -> torch.Tensor:
        self.shape, self.tokens = z_t.shape, (c[0] if isinstance(c, tuple) else c).shape[1]
        return torch.zeros_like(z_t)

    def attention(self, level: int) -> nullcontext[Silent]:
        self.level = level
        return nullcontext(self)

    def mean(self) -> torch.Tensor:
        height, width = (-(-side // 2**self.level) for side in self.shape[-2:])
        return torch.zeros(self.shape[0], height * width, self.tokens)


@torch.no_grad()
def measured(work: Run) -> tuple[float, float, int]:
    """Seconds of one evaluation of the network and of one decoded picture (the median of five,
    after one that is not timed), and the bytes of a picture that nothing compresses."""
    model, size = work.model, work.grid.size
    k = work.grid.batch or generation.batch_size(model.device)
    generators = [torch.Generator().manual_seed(i) for i in range(k)]
    z = noise_like(torch.empty(k, *model.latent_shape(size)), generators)
    z = z.to(model.device, model.dtype)
    z_2, c = torch.cat([z, z]), model.encode(["", work.grid.prompts[0].text] * k)
    t = torch.tensor(len(model.schedule.abar) // 2, device=model.device)
    steps, decodes = [], []
    for _ in range(6):
        start = time.perf_counter()
        model.eps(z_2, t, c).sum().item()  # waits for the device
        steps.append((time.perf_counter() - start) / (2 * k))
        start = time.perf_counter()
        (image, *_) = model.decode(z)
        decodes.append((time.perf_counter() - start) / k)
    step, decode = (float(np.median(x[1:])) for x in (steps, decodes))
    return step, decode, 3 * image.width * image.height

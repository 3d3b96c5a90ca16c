"""A grid of methods x scales x prompts x seeds in a folder: what it makes is keyed by content.

A picture and its record are named by the key of all that the picture depends on
(`dnp/evaluation/record_keys.py`): `images/KEY.png`, `records/KEY.json`. A run makes what is
missing, so it can be killed at any moment and go on, and grow by methods, scales, prompts and
seeds; with changed code or weights it makes new records beside the old ones, and says so. DNS
images are records too, and `captions/` holds the words for them: all variants share both.
`scores/` holds the numbers of each unit, one (method, scale, prompt) with its seeds; changed
metrics score again.

Process RANK of WORLD_SIZE takes every WORLD_SIZE-th prompt. On a CPU what is made depends on the
content alone, to the byte; on a GPU the last bits may depend on the batch.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from dnp import generation
from dnp.app.png import png, write
from dnp.errors import NonFiniteError
from dnp.evaluation import contestants, measure, record_keys
from dnp.evaluation.benchmarks import Prompt
from dnp.evaluation.measure import Instruments
from dnp.evaluation.records import Store, is_picture, picture, sweep, writing
from dnp.methods import METHODS
from dnp.methods.words import describe

DNS = contestants.Contestant("dns", "dns")
One = tuple[str, int]  # a picture of a method: its prompt and its seed
Unit = tuple[contestants.Contestant, float | None, Prompt]  # at a scale, with all seeds


@dataclass(frozen=True)
class Grid:
    """What is asked for."""

    prompts: tuple[Prompt, ...]
    methods: tuple[contestants.Contestant, ...]
    scales: tuple[float | None, ...]  # None: the weights' recommendation for the method
    seeds: tuple[int, ...]
    steps: int
    size: tuple[int, int] | None = None  # (height, width) in pixels; None: as trained
    others: tuple[str, ...] = ()  # where random negatives come from
    batch: int | None = None  # pictures of a forward, of several prompts; None: one, as on a CPU
    by_hand: Mapping[str, str] = field(default_factory=lambda: contestants.SEMANTIC)

    def units(self) -> list[Unit]:
        return [(a, s, p) for a in self.methods for s in self.scales for p in self.prompts]

    def share(self, rank: int, world: int) -> list[Unit]:
        """The units of one process. Those of a prompt stay together, since they share DNS images,
        unless there are fewer prompts than processes."""
        few, n = len(self.prompts) < world, len(self.prompts)
        return [u for i, u in enumerate(self.units()) if (i if few else i % n) % world == rank]


class Run:
    """A grid in a folder: what is there, what is missing, and how it is made."""

    def __init__(self, grid: Grid, model, instruments: Instruments, folder: Path):
        texts = [p.text for p in grid.prompts]
        given = (grid.others, grid.size, grid.batch, grid.by_hand)
        for method in grid.methods:
            for s in grid.scales:
                contestants.check(method, s, grid.steps, model, texts, *given)
        self.grid, self.model, self.instruments, self.folder = grid, model, instruments, folder
        self.metrics = record_keys.key(instruments.identity())
        self.partners = contestants.partners(texts) if len(set(texts)) > 1 else {}  # of shuffled n*
        self.sound: dict[str, dict] = {}  # records whose pictures were looked at, by key
        self.lost = 0
        with writing(folder):
            (folder / "images").mkdir(parents=True, exist_ok=True)
            sweep(folder)
            self.records, self.captions, self.scores = (
                Store(folder / name) for name in ("records", "captions", "scores")
            )

    # ---------------------------------------------------------------------------------- what is it

    def settings(self, method: contestants.Contestant, s: float | None) -> dict:
        prompt = self.grid.prompts[0].text
        asked = contestants.subjects_of(method, prompt)
        return contestants.settled(
            method, s, self.grid.steps, self.model, self.grid.size, prompt, asked, self.grid.batch
        )

    def content(self, method, settings: dict, where: dict, prompt: str, seed: int) -> dict:
        """All that a picture depends on; its key is the record's name. `where`: `circumstances`."""
        first = self.grid.seeds[0] if settings.get("caption_per") == "prompt" else seed
        shuffled = method.name == "shuffled"
        return {
            "version": record_keys.VERSION,
            "method": method.name,
            "settings": settings,
            "prompt": prompt,
            "seed": seed,
            "negative": self.negative(method, prompt, seed),
            "subjects": contestants.subjects_of(method, prompt),
            "words": first if method.captioned else None,  # the seed that n* belongs to
            **({"words_of": self.partners[prompt]} if shuffled else {}),  # and the prompt
            **where,
        }

    def negative(self, method: contestants.Contestant, prompt: str, seed: int) -> str | None:
        """The negative prompt of a picture, where it is known before anything is sampled."""
        return contestants.negative(method, prompt, seed, self.grid.others, self.grid.by_hand)

    def circumstances(self, captioned: bool) -> dict:
        """What a picture depends on beside what was asked for; a pipeline's takes a forward."""
        return {
            "code": record_keys.code_hash(),
            "weights": self.model.config.fingerprint,
            "captioner": self.instruments.captioner_file if captioned else None,
            "device": self.model.device.type,
            "dtype": record_keys.dtypes(self.model),
        }

    def contents(self, unit: Unit, settings: dict | None = None) -> list[dict]:
        """`content` of each picture of a unit."""
        method, s, prompt = unit
        settings = settings or self.settings(method, s)
        where = self.circumstances(method.captioned)
        return [self.content(method, settings, where, prompt.text, k) for k in self.grid.seeds]

    def kept(self, content: dict) -> dict | None:
        """The record of a picture; None if it is not there, or its picture is not as it was."""
        key = record_keys.key(content)
        if key not in self.sound and key in self.records:
            record = self.records.get(key)
            sound = record is not None and is_picture(record)
            if sound and picture(self.folder, record) is not None:
                self.sound[key] = record
            else:
                self.lost += 1
        return self.sound.get(key)

    # -------------------------------------------------------------------------------------- making

    def ahead(self, units: Sequence[Unit]) -> None:
        """Makes what is missing of the first unit; with what is missing of the next ones of its
        method it fills the last batch. A method of your own sees one prompt at a time."""
        method, s, _ = units[0]
        settings = self.settings(method, s)
        asked = self.missing(units[0], settings)
        others = (u for u in units[1:] if u[:2] == (method, s) and method.kind in METHODS.values())
        later = itertools.chain.from_iterable(self.missing(u, settings) for u in others)
        asked += itertools.islice(later, -len(asked) % self.batch(settings))
        self.made(method, settings, asked)

    def missing(self, unit: Unit, settings: dict) -> list[One]:
        pairs = zip(self.grid.seeds, self.contents(unit, settings))
        return [(unit[2].text, seed) for seed, content in pairs if self.kept(content) is None]

    def batch(self, settings: dict) -> int:
        return settings.get("batch") or generation.batch_size(self.model.device)

    def made(self, method: contestants.Contestant, settings: dict, asked: Sequence[One]) -> list:
        """The records of pictures; those that are missing are made."""
        where = self.circumstances(method.captioned)
        contents = {one: self.content(method, settings, where, *one) for one in asked}
        records = {one: self.kept(content) for one, content in contents.items()}
        missing = [one for one, record in records.items() if record is None]
        size = self.batch(settings)
        for i in range(0, len(missing), size):
            some = missing[i : i + size]
            for one, record in zip(some, self._sample(method, settings, some)):
                key, image = record_keys.key(contents[one]), record.pop("picture")
                data = png(image)
                record |= {"image": f"{key}.png", "sha256": record_keys.digest(data)}
                record |= {"content": contents[one], "torch": torch.__version__}
                write(self.folder / "images" / f"{key}.png", data)
                self.records.put(key, record)  # last: it says that all is there
                self.sound[key] = records[one] = record
        return [records[one] for one in asked]

    def _sample(self, method, settings, asked: Sequence[One]) -> list[dict]:
        """What is new of some records. A picture whose latents overflow at a great scale is a
        failure of the method and not of the run: it is black, and its record says `failed`."""
        with warnings.catch_warnings(record=True) as notes:  # words that are cut
            warnings.simplefilter("always")
            try:
                words = self.negatives(method, settings, asked)
                start = time.perf_counter()
                samples = contestants.sample(
                    self.model, method, *zip(*asked), settings, [w.text for w in words],
                    self.instruments.captioner,
                )  # fmt: skip
                seconds, failed = (time.perf_counter() - start) / len(asked), None
            except NonFiniteError as e:
                if len(asked) > 1:
                    return [r for one in asked for r in self._sample(method, settings, [one])]
                samples = [contestants.Sample(self.black(), None, 0)]
                seconds, failed = 0.0, str(e)
                words = [contestants.Words(None, 0, 0.0)]
        rows = [
            {
                "picture": sample.image,
                "negative": sample.negative,
                "nfe": sample.nfe,
                "words_nfe": w.nfe,
                "seconds": seconds + w.seconds,
                "failed": failed,
                "notes": [],
            }
            for sample, w in zip(samples, words)
        ]
        told = dict.fromkeys(str(note.message) for note in notes)
        for row, (prompt, _), w in zip(rows, asked, words) if told else ():
            row["notes"] = [note for note in self._cut(prompt, w.text) if note in told]
        its_own = {note for row in rows for note in row["notes"]}
        rows[0]["notes"] += [note for note in told if note not in its_own]
        return rows

    def _cut(self, *texts: str | None) -> list[str]:
        """What a model says of words that it cuts off."""
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            for text in filter(None, texts):
                self.model.encode([text])
        return [str(note.message) for note in notes]

    def black(self) -> Image.Image:
        """A black picture of the size that the model makes."""
        shape = self.model.latent_shape(self.grid.size)
        if hasattr(self.model.config, "vae"):
            return Image.new("RGB", [self.model.config.vae.factor * n for n in shape[:0:-1]])
        zeros = torch.zeros(1, *shape, device=self.model.device)  # a model of one's own
        return Image.new("RGB", self.model.decode(zeros)[0].size)

    def negatives(self, method, settings, asked: Sequence[One]) -> list[contestants.Words]:
        """The negative prompt of each picture, and what it costs to make it."""
        if method.name not in contestants.FROM_DNS:
            texts = (self.negative(method, *one) for one in asked)
            return [contestants.Words(text, 0, 0.0) for text in texts]
        contents = [self.content(method, settings, {}, *one) for one in asked]
        sources = [(c.get("words_of", c["prompt"]), c["words"]) for c in contents]
        return contestants.n_stars(sources, settings, self.words)

    def words(self, asked: Sequence[One], settings: dict) -> list[contestants.Words]:
        """The captions of DNS images, which are made where they are missing."""
        rows, captioner, file = [], self.instruments.captioner, self.instruments.captioner_file
        for (prompt, _), dns in zip(asked, self.made(DNS, settings, asked)):
            if dns["failed"]:
                raise NonFiniteError(dns["failed"])
            key = record_keys.key([dns["sha256"], file, record_keys.code_hash()])
            caption = self.captions.get(key)
            if caption is None:
                start = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # an empty one is counted by the report
                    (text,) = describe(captioner, [picture(self.folder, dns)])
                caption = {"text": text, "seconds": time.perf_counter() - start}
                caption |= {"image": dns["image"], "prompt": prompt}
                self.captions.put(key, caption)
            rows.append(
                contestants.Words(caption["text"], dns["nfe"], dns["seconds"] + caption["seconds"])
            )
        return rows

    # ------------------------------------------------------------------------------------- scoring

    def _kept(self, unit: Unit, settings: dict | None = None) -> list[dict] | None:
        records = [self.kept(content) for content in self.contents(unit, settings)]
        return None if None in records else records

    def of(self, unit: Unit, records: Sequence[dict] | None = None) -> str | None:
        """The key of the scores of a unit: that of its pictures; None where one is missing."""
        records = records or self._kept(unit)
        return records and record_keys.key([unit[2].text, [r["sha256"] for r in records]])

    def unit(self, unit: Unit, rescore: bool = False, make: bool = True) -> dict | None:
        """The row of one (method, scale, prompt) for the tables: a list with one entry for each
        seed under each name. None if a picture is missing, or, unless they may be made, scores."""
        method, s, prompt = unit
        rows = self._kept(unit, settings := self.settings(method, s))
        if rows is None:
            return None
        of = self.of(unit, rows)
        numbers = self.scores.get(of)
        if rescore or numbers is None or numbers["metrics"] != self.metrics:
            if not make:
                return None
            images = [picture(self.folder, r) for r in rows]
            numbers = measure.score(self.instruments, images, prompt.text)
            numbers |= {"metrics": self.metrics}
            self.scores.put(of, numbers)
        share = len(self.grid.seeds) if settings.get("caption_per") == "prompt" else 1
        return {
            "method": method.label,
            "scale": s,
            "s": settings["s"],
            "prompt": prompt.text,
            "category": prompt.category,
            "seeds": list(self.grid.seeds),
            "keys": [record_keys.key(r["content"]) for r in rows],
            "nfe": [r["nfe"] + r["words_nfe"] / share for r in rows],
            "negatives": [r["negative"] for r in rows],
            "failed": [r["failed"] for r in rows],
            "notes": [note for r in rows for note in r["notes"]],
            "empty": sum(r["negative"] == "" for r in rows) * (method.captioned),
            "images": [r["image"] for r in rows],
            "sha256": [r["sha256"] for r in rows],
            "seconds": [r["seconds"] for r in rows],
            **{k: v for k, v in numbers.items() if k != "metrics"},
        }

    def rows(self) -> list[dict]:
        """Those of all units that are there, whoever made them."""
        rows = (self.unit(unit, make=False) for unit in self.grid.units())
        return [row for row in rows if row is not None]

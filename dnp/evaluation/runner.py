"""Runs a grid of methods x scales x prompts and keeps what it makes, so that it can be stopped.

The unit of work is one (method, scale, prompt) with all its seeds. A finished unit is one line in
`records-RANK.jsonl`, its pictures are in `images/`, its times in `times-RANK.jsonl`. A line cut off
by a crash is dropped when the run goes on; every line carries its own digest, so one that was
changed is named, and a unit whose pictures are missing or damaged is made again. Process RANK of
WORLD_SIZE takes every WORLD_SIZE-th unit; what a unit holds depends on the grid alone, so the
tables do too.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from dnp.errors import DnpError, NonFiniteError, SettingsError
from dnp.evaluation import methods as m
from dnp.evaluation.benchmarks import Prompt, parts
from dnp.evaluation.metrics import CLIPScorer, clip_score, diversity, presence
from dnp.evaluation.recogniser import Recogniser
from dnp.pictures import png, write
from dnp.prompting import Captioner
from dnp.sd.fingerprint import Fingerprint


class RunError(DnpError):
    """An evaluation folder cannot be used, or cannot be written any more."""


PROTOCOL = {
    "full": "cosine of picture and prompt; no factor, no clipping; mean over pictures",
    "minimum": "split at ' and ', else ' with '; the smaller cosine of a picture; mean of them",
    "clipscore": "2.5 max(cos, 0) with the one template 'A photo depicts {}' (arXiv:2104.08718)",
    "classes": "the recogniser's probabilities that each thing is there, divided by their sum",
    "IS": "exp of the mean KL of classes to their mean; one split, all pictures of the row",
    "things": "the recogniser finds every thing that the prompt names (probability over 0.5)",
    "colours": "and its likeliest colour is the named one",
    "diversity": "mean cosine distance of the CLIP embeddings of a prompt's pictures",
    "intervals": "95 %, percentile bootstrap over prompts, 2000 draws",
}


@dataclass(frozen=True)
class Grid:
    """All that the records depend on, apart from the weights."""

    prompts: tuple[Prompt, ...]
    methods: tuple[m.Method, ...]
    scales: tuple[float | None, ...]  # None: the weights' recommendation for the method
    seeds: int
    steps: int

    def units(self) -> list[tuple[m.Method, float | None, Prompt]]:
        return [(a, s, p) for a in self.methods for s in self.scales for p in self.prompts]


@dataclass
class Instruments:
    """What looks at the pictures; `recogniser` and `clip` may be None where there is none."""

    captioner: Captioner | None
    clip: CLIPScorer | None
    recogniser: Recogniser | None
    captioner_file: Fingerprint | None = None
    recogniser_file: Fingerprint | None = None


def manifest(grid: Grid, model, instruments: Instruments, form: str | None = None) -> dict:
    """What must be the same for a run to go on in a folder; also the protocol of its numbers.
    Fingerprints have the form of the one given, if any."""
    clip = instruments.clip

    def named(files: Fingerprint | None) -> str | None:
        return None if files is None else files.like(form)

    settled = {
        a.label: [m.settled(a, s, grid.steps, model) for s in grid.scales] for a in grid.methods
    }
    return {
        "prompts": [[p.text, p.category] for p in grid.prompts],
        "methods": settled,  # the settings of each, for each scale
        "universal": m.UNIVERSAL,
        "semantic": m.SEMANTIC,
        "scales": list(grid.scales),
        "seeds": grid.seeds,
        "steps": grid.steps,
        "weights": named(model.config.files),
        "device": model.device.type,
        "dtype": str(model.dtype),
        "captioner": named(instruments.captioner_file),
        "recogniser": named(instruments.recogniser_file),
        "clip": None if clip is None else {"file": named(clip.files), "templates": clip.templates},
        "protocol": PROTOCOL,
    }


def run(grid: Grid, model, instruments: Instruments, folder: Path, rank: int, world: int) -> None:
    """Makes what is not there yet of this process's share. RunError names a folder of another run
    or a disk that takes no more; what was written stays valid."""
    texts = [p.text for p in grid.prompts]
    for method in grid.methods:
        for s in grid.scales:
            m.check(method, s, grid.steps, model, texts)
    told = manifest(grid, model, instruments, _form(folder / "run.json"))
    with writing(folder):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        _same_run(folder, told)
        for name in ("records", "times"):
            _drop_cut_line(folder / f"{name}-{rank}.jsonl")
        units = list(enumerate(grid.units()))[rank::world]
        before = made(grid, folder)
        kept = {i for i, _ in units if i in before and _has_pictures(before[i], folder)}
        units = [(i, unit) for i, unit in units if i not in kept]
        bar = tqdm(units, desc=f"process {rank + 1} of {world}", unit="unit", disable=not units)
        for index, unit in bar:
            record, pictures, seconds = unit_of(index, unit, grid, model, instruments, texts)
            if index in before:  # its pictures were lost; the latest record counts
                record["again"] = before[index].get("again", 0) + 1
            for name, data in pictures.items():
                write(folder / "images" / name, data)
            _append(folder / f"times-{rank}.jsonl", {"unit": index, "seconds": seconds})
            _append(folder / f"records-{rank}.jsonl", record)  # last: it says that all is there


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what a disk says, full or read-only, into a RunError."""
    try:
        yield
    except OSError as e:
        raise RunError(
            f"{folder}: cannot be written ({e.strerror or e}); make room or give --out another "
            "folder, and type the same command to go on."
        ) from None


def unit_of(index, unit, grid, model, instruments, texts) -> tuple[dict, dict[str, bytes], float]:
    """The record of a unit, its pictures as PNG files, and the seconds for a picture.

    A picture whose latents overflow at a great scale is a failure of the method and not of the
    run: the unit is then black pictures, and its record says `failed`.
    """
    method, s, prompt = unit
    with warnings.catch_warnings(record=True) as notes:  # a cut or an empty caption
        warnings.simplefilter("always")
        start, failed = time.perf_counter(), None
        try:
            samples = m.sample(
                model, method, prompt.text, grid.seeds, s, grid.steps, instruments.captioner, texts
            )
        except NonFiniteError as e:
            sides = model.config.unet.sample_size[::-1]
            black = Image.new("RGB", [model.config.vae.factor * side for side in sides])
            samples, failed = [m.Sample(black, None, 0)] * grid.seeds, str(e)
        seconds = time.perf_counter() - start
    images = [sample.image for sample in samples]
    names = [f"{index:05d}-{seed}.png" for seed in range(grid.seeds)]
    record = {
        "unit": index,
        "method": method.label,
        "scale": s,
        "s": m.settled(method, s, grid.steps, model)["s"],
        "prompt": prompt.text,
        "category": prompt.category,
        "nfe": [sample.nfe for sample in samples],
        "negatives": [sample.negative for sample in samples],
        "images": names,
        "notes": [str(note.message) for note in notes],
        "failed": failed,
    }
    if instruments.clip is not None:
        record |= clip_metrics(instruments.clip, images, prompt.text)
    if instruments.recogniser is not None:
        rows = presence(instruments.recogniser, images, prompt.text)
        if rows:
            record |= {key: [row[key] for row in rows] for key in rows[0]}
        there, _ = instruments.recogniser.probabilities(images)
        share = there / there.sum(1, keepdim=True)
        record["classes"] = [[round(p, 5) for p in row] for row in share.tolist()]
    data = {name: png(image) for name, image in zip(names, images)}
    record["sha256"] = [_digest(data[name]) for name in names]
    return record, data, seconds / grid.seeds


def clip_metrics(clip: CLIPScorer, images: Sequence[Image.Image], prompt: str) -> dict:
    """The CLIP metrics of a prompt's pictures, six digits each."""
    embedded = clip.images(images)
    full, depicts = ((embedded @ t.T)[:, 0] for t in (clip.texts([prompt]), clip.depicts(prompt)))
    out = {"full": full.tolist(), "clipscore": clip_score(depicts.tolist())}
    if " and " in prompt or " with " in prompt:
        out["minimum"] = (embedded @ clip.texts(parts(prompt)).T).min(1).values.tolist()
    out = {k: [round(v, 6) for v in values] for k, values in out.items()}
    return out | {"diversity": round(diversity(embedded), 6) if len(images) > 1 else None}


# ------------------------------------------------------------------------------------------ files


def records(folder: Path, name: str = "records") -> list[dict]:
    """All whole lines of all processes, in the order of the units, each unit once: the latest.

    RunError names a line that is not as it was written.
    """
    rows: dict[int, dict] = {}
    for path in sorted(folder.glob(f"{name}-*.jsonl")):
        for row in _lines(path):
            known = rows.setdefault(row["unit"], row)
            if row.get("again", 0) > known.get("again", 0):
                rows[row["unit"]] = row
    return [rows[i] for i in sorted(rows)]


def made(grid: Grid, folder: Path) -> dict[int, dict]:
    """The records by unit; RunError if one is of no unit of the grid."""
    units, rows = grid.units(), {row["unit"]: row for row in records(folder)}
    for i, row in rows.items():
        method, s, prompt = units[i] if i < len(units) else (None, None, None)
        if method is None or (row["method"], row["scale"], row["prompt"]) != (
            method.label, s, prompt.text,
        ):  # fmt: skip
            raise RunError(
                f"{folder}: unit {i} of its records is none of this run; give --out another folder."
            )
    return rows


def picture(folder: Path, record: dict, seed: int) -> Image.Image:
    """A picture of a record; RunError if it is not there as it was made."""
    path = folder / "images" / record["images"][seed]
    data = regular(path).read_bytes() if path.exists() else b""
    if _digest(data) != record["sha256"][seed]:
        raise RunError(f"{path}: missing or damaged; type the same command to make it again.")
    return Image.open(io.BytesIO(data)).convert("RGB")


def _has_pictures(record: dict, folder: Path) -> bool:
    try:
        return all(picture(folder, record, seed) for seed in range(len(record["images"])))
    except RunError:
        return False


def regular(path: Path) -> Path:
    """The path; RunError if it is a pipe or a device, from which reading would wait for ever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise RunError(f"{path}: a pipe or device, no file; remove it and run again.")
    return path


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _lines(path: Path) -> Iterator[dict]:
    data = regular(path).read_bytes()
    for i, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            written = row.pop("digest") == _digest(json.dumps(row).encode())
        except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
            written = False
        if not written:
            raise RunError(f"{path}: line {i} is damaged; delete that line and run again.")
        yield row


def _drop_cut_line(path: Path) -> None:
    if regular(path).exists():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            write(path, whole)


def _append(path: Path, row: dict) -> None:
    row = {**row, "digest": _digest(json.dumps(row).encode())}
    with path.open("ab") as f:
        f.write(json.dumps(row).encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())


def _form(path: Path) -> str | None:
    """The fingerprint of the weights in a manifest, whose form its others have too."""
    try:
        return json.loads(path.read_bytes())["weights"] if path.is_file() else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None  # `_same_run` says what is wrong with it


def _same_run(folder: Path, told: dict) -> None:
    path, told = folder / "run.json", json.loads(json.dumps(told))
    old = any(folder.glob("records-*.jsonl"))  # asked first: another process may begin just now
    try:
        before = json.loads(regular(path).read_bytes()) if path.exists() else None
    except (ValueError, RecursionError):
        before = ()
    if before is None and old:
        raise RunError(
            f"{folder} holds records without their run.json, so nobody knows their settings; "
            "restore that file, or give --out another folder."
        )
    if before is None:
        write(path, (json.dumps(told, indent=1) + "\n").encode())
    elif not isinstance(before, dict):
        raise RunError(f"{path}: damaged; restore that file, or give --out another folder.")
    elif before != told:
        other = [key for key in told if before.get(key) != told[key]] or ["keys in run.json"]
        raise RunError(
            f"{folder} holds another run (other {', '.join(other)}); give --out another "
            "folder, or the settings of that run."
        )


def share(environment: dict[str, str]) -> tuple[int, int]:
    """(rank, world size) from RANK and WORLD_SIZE, as torchrun sets them; (0, 1) without."""
    try:
        rank, world = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise SettingsError(
            f"RANK = {environment.get('RANK')} of WORLD_SIZE = {environment.get('WORLD_SIZE')} is "
            "not possible; set both, RANK from 0 to WORLD_SIZE - 1."
        )
    return rank, world


def threads(device: torch.device) -> None:
    """One CPU thread for each process: sums in another order have other last bits, and a table
    must not depend on how many cores or processes made it."""
    if device.type == "cpu":
        torch.set_num_threads(1)

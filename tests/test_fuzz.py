"""Damaged weights: each case loads what the file says, or is refused in one sentence.

Every case is a folder or a single file with one seeded damage, opened and used in another process:
a crash, a hang of 10 s, a traceback, 500 MB of memory or a line of foreign code fails. More cases:
DNP_FUZZ_CASES=20000 DNP_FUZZ_SEED=7 python -m pytest -m slow tests/test_fuzz.py
"""

import hashlib
import os
import random
import shutil
import warnings
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dnp
from conftest import ARCHITECTURES, make_pipeline
from damages import BYTES, damage
from dnp.errors import DnpError
from single_files import FAMILIES, SECOND, make_both, make_family
from test_files import shard

CASES = int(os.environ.get("DNP_FUZZ_CASES", 2400))
SEED = int(os.environ.get("DNP_FUZZ_SEED", 0))
LIMIT = 500_000_000  # bytes of address space that a case may take beside the libraries


# ------------------------------------------------------------------------------------ the victim


def tensor_hash(x):
    return hashlib.sha256(x.float().contiguous().numpy().tobytes()).hexdigest()


def use(path):
    """Loads weights and makes every part of them work; hashes of the tensors that it got."""
    model = dnp.load(path)
    model.check_finite()
    images = dnp.generate(model, "a cat", s=1.5, steps=1, size=(32, 32), seed=0).images
    model.encode_images(images)
    networks = [getattr(model, part) for part in model.entries]
    tensors = [p for n in networks for p in n.parameters()]
    if not all(p.isfinite().all() for p in tensors):
        raise ValueError("NaN or infinity was loaded and used")
    return Counter(tensor_hash(p) for p in tensors)


def serve(pipe):
    """In a process of its own: answers paths with what became of them."""
    import resource

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    use(pipe.recv())  # imports, thread stacks and the like
    pipe.send(("ready", None))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))
    while path := pipe.recv():
        try:
            pipe.send(("loaded", use(path)))
        except DnpError as e:
            pipe.send(("refused", str(e)))
        except BaseException as e:  # a panic of a Rust library is no Exception
            pipe.send(("raised", f"{type(e).__name__}: {e}"))


class Victim:
    """The process that opens damaged weights; it is started again when it dies."""

    def __init__(self, good):
        self.good, self.process = good, None

    def __call__(self, path):
        if self.process is None:
            context = get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other,), daemon=True)
            self.process.start()
            other.close()
            self.pipe.send(self.good)
            assert self.pipe.recv() == ("ready", None)
        self.pipe.send(path)
        try:
            if self.pipe.poll(10):
                return self.pipe.recv()
            told = ("hangs", "over 10 s")
        except EOFError:
            told = ("crashed", "")
        self.stop()
        return told

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


# -------------------------------------------------------------------------------------- the test


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Folders, one in shards, and a single file of each family: all small, all good."""
    root = tmp_path_factory.mktemp("originals")
    make_pipeline(**ARCHITECTURES["linear, v"]).save_pretrained(root / "folder")
    (root / "folder" / "dnp.json").write_text('{"scale": {"cfg": 2.0}, "words": ["a", "cat"]}')
    shutil.copytree(root / "folder", root / "shards")
    shard(root / "shards" / "unet")
    for name, second in (("single", False), ("second", True)):
        sizes = dict(FAMILIES["2.x" if second else "1.x"])
        sizes["unet"] = sizes["unet"] | dict(
            block_out_channels=(32, 32, 32, 32), cross_attention_dim=16, attention_head_dim=8
        )
        if second:
            sizes["unet"] |= dict(attention_head_dim=1)
        sizes["text"] = sizes["text"] | dict(hidden_size=16, intermediate_size=32)
        *_, path = make_family(sizes, (32, 32, 32, 32), second, root / name)
        path.rename(root / f"{name}.safetensors")
        shutil.rmtree(root / name)
    widths = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=1)
    _, folder, path = make_both(
        root / "both", text=widths, text_2=widths | {"projection_dim": 24},
        unet=dict(
            block_out_channels=(32, 32, 32), attention_head_dim=1, cross_attention_dim=32,
            addition_time_embed_dim=4, projection_class_embeddings_input_dim=48,
        ),
        vae=dict(block_out_channels=(32, 32, 32, 32), norm_num_groups=32),
    )  # fmt: skip
    names = "folder", "shards", "single.safetensors", "second.safetensors"
    return [*(root / n for n in names), folder, path]


def what_the_files_say(path):
    """The hashes of every tensor in the files, and of the thirds of fused ones."""
    files, told = path.rglob("*.safetensors") if path.is_dir() else [path], Counter()
    for key, x in ((k, x) for f in files for k, x in load_file(f).items()):
        fused = "in_proj_" in key
        x = x.T if key == SECOND + "text_projection" else x
        told.update(tensor_hash(part) for part in (x.chunk(3) if fused else [x]))
    return told


@pytest.mark.slow
def test_no_damage_gets_through(originals, tmp_path):
    victim, seen, failures = Victim(originals[0]), Counter(), []
    marker = tmp_path / "code was run"
    for case in range(CASES):
        r = random.Random(f"{SEED}-{case}")
        original = r.choice(originals)
        target = tmp_path / "case" / original.name
        target.parent.mkdir()
        copy = shutil.copytree if original.is_dir() else shutil.copy
        copy(original, target)
        path, how = damage(r, target, marker)
        what, told = victim(target)
        one_line = isinstance(told, str) and 0 < len(told) < 2000 and "\n" not in told
        if what == "loaded":
            good = not told - what_the_files_say(target)
        else:
            good = what == "refused" and one_line and told.endswith(".")
        if not good or marker.exists():
            failures.append(f"case {case}: {how} of {path.name}: {what} {str(told)[:300]}")
            marker.unlink(missing_ok=True)
        seen[how, what] += 1
        shutil.rmtree(target.parent)
    victim.stop()
    assert not failures, f"{len(failures)} of {CASES}:\n" + "\n".join(failures[:40])
    assert {what for _, what in seen} == {"loaded", "refused"}
    assert {how for how, _ in seen} == {
        *(f.__name__ for f in BYTES), "lie", "bad_json", "another thing",
    }  # fmt: skip

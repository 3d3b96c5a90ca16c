"""Damaged weights: each case loads what the file says, or is refused in one sentence.

Every case is a folder or a single file with one seeded damage, opened and used in another process:
a crash, a hang of 10 s, a traceback, 500 MB of memory or a line of foreign code fails. More cases:
DNP_FUZZ_CASES=20000 DNP_FUZZ_SEED=7 python -m pytest -m slow tests/test_fuzz.py
"""

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
import warnings
import zipfile
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dnp
from conftest import ARCHITECTURES, make_pipeline
from dnp.errors import DnpError
from test_files import FAMILIES, make_family, shard
from test_sdxl_files import SECOND, make_both

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


# ----------------------------------------------------------------------------------- the damages


def split(data):
    """(header as an object, bytes of the tensors) of a safetensors file."""
    n = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def joined(header, body, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def flips(r, data):
    data, header = bytearray(data), struct.unpack("<Q", data[:8])[0] + 8
    for _ in range(r.choice([1, 1, 2, 8, 100])):
        data[r.randrange(r.choice([8, header, len(data)]))] = r.randrange(256)
    return bytes(data)


def truncation(r, data):
    header, body = split(data)
    start = len(data) - len(body)
    ends = [v["data_offsets"][1] + start for k, v in header.items() if k != "__metadata__"]
    cut = r.choice([0, 1, 7, 8, 9, start, r.randrange(len(data)), r.choice(ends)])
    return data[: max(0, cut + r.choice([-1, 0, 0, 1]))]


def more_bytes(r, data):
    return data + bytes(r.choice([1, 8, 4096]))


def header_length(r, data):
    n = struct.unpack("<Q", data[:8])[0]
    near = [
        0,
        1,
        n - 1,
        n + 1,
        n + 8,
        2 * n,
        len(data),
        len(data) - 8,
        100_000_001,
        r.getrandbits(64),
    ]
    return (
        struct.pack("<Q", r.choice([*near, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])) + data[8:]
    )


def header_entry(r, data):
    """Another type, shape or place for one tensor, or for all."""
    header, body = split(data)
    places = {k: v["data_offsets"] for k, v in header.items() if k != "__metadata__"}
    odd = [-1, 0, 1, 2**31, 2**63, 2**64, 10**30, 1.5, "4", None, True, [], {}]
    for key in [r.choice(list(places))] if r.random() < 0.9 else places:
        told = header[key]
        kind = r.randrange(9)
        if kind == 0:
            told["dtype"] = r.choice(["F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "X", 3])
        elif kind == 1:
            told["shape"] = told["shape"][::-1] if len(told["shape"]) > 1 else [*told["shape"], 1]
        elif kind == 2:
            told["shape"] = [r.choice(odd) for _ in range(r.randrange(5))]
        elif kind == 3:
            told["data_offsets"] = [r.choice(odd), r.choice(odd)]
        elif kind == 4:
            told["data_offsets"] = told["data_offsets"][::-1]
        elif kind == 5:  # two tensors at one place
            told["data_offsets"] = places[r.choice(list(places))]
        elif kind == 6:
            told["data_offsets"] = [n + r.choice([-4, -1, 1, 4]) for n in told["data_offsets"]]
        elif kind == 7:
            del told[r.choice(list(told))]
        else:
            header[key] = r.choice(odd)
    return joined(header, body)


def header_names(r, data):
    """A tensor gone, renamed or twice, or metadata that is none."""
    header, body = split(data)
    keys = [k for k in header if k != "__metadata__"]
    key, other = r.sample(keys, 2)
    kind = r.randrange(5)
    if kind == 0:
        odd = ["x", "", "a" * 10**5, "\ud800", key + ".", key.replace(".0.", ".2.")]
        odd += [key.replace(".0.", f".{'9' * 5000}."), key + ".position_ids"]
        header[r.choice(odd)] = header.pop(key)
    elif kind == 1:
        header[key], header[other] = header[other], header[key]
    elif kind == 2:
        header["__metadata__"] = r.choice([3, [], {"a": 1}, {"a": {"b": 2}}, "x", None])
    elif kind == 3:
        twice = json.dumps({key: header[key]})[1:-1] + ", "
        return joined(b"{" + twice.encode() + json.dumps(header).encode()[1:], body)
    else:
        return joined(r.choice([b"[]", b"{}", b"", b"null", b"[" * 10**5, b'{"a":' * 10**4]), body)
    return joined(header, body)


def not_finite(r, data):
    header, body = split(data)
    body, keys = bytearray(body), [k for k in header if header[k].get("dtype") == "F32"]
    start, stop = header[r.choice(keys)]["data_offsets"]
    value = struct.pack("<f", r.choice([float("nan"), float("inf"), float("-inf"), 3e38]))
    at = start + 4 * r.randrange((stop - start) // 4)
    body[at : at + 4] = value
    return joined(header, bytes(body))


class Exploit:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def another_thing(r, path, marker):
    """Something in the file's place that is no safetensors file."""
    kind = r.randrange(8)
    path.unlink()
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(path)
    elif kind == 2:
        path.symlink_to(path.parent)
    elif kind == 3:
        path.symlink_to(r.choice(["/dev/null", "/dev/zero", "/nowhere"]))
    elif kind == 4:
        os.mkfifo(path)
    elif kind == 5:
        path.write_bytes(pickle.dumps(Exploit(marker), protocol=r.randrange(6)))
    elif kind == 6:
        with zipfile.ZipFile(path, "w") as z:
            z.writestr("archive/data.pkl", pickle.dumps(Exploit(marker)))
    else:
        torch.save({"x": torch.zeros(1)}, path)


LIES = [
    -1, 0, 1, 2, 3, 7, 10**9, 10**18, 10**400, 0.5, -0.0, 1e308, "8", "", "../x", True, False, None,
    [], {}, [0], [-1, 2], [10**9] * 3, [None], ["x"], [[1]], [1] * 1000, {"a": 1}, float("nan"),
    float("inf"), "gelu", "v_prediction", "\ud800", [64, 32], [True, False],
]  # fmt: skip


def lie(r, path):
    """One or two entries of a JSON file say something else."""
    whole = json.loads(path.read_text())
    for _ in range(r.choice([1, 1, 2])):
        d = whole
        while d:
            key = r.choice(list(d))
            if not isinstance(d[key], dict) or r.random() < 0.3:
                d[key] = r.choice(LIES)
                break
            d = d[key]  # an index or a tokenizer has its content further down
    path.write_text(json.dumps(whole))


def bad_json(r, path):
    data = path.read_bytes()
    kind = r.randrange(5)
    if kind == 0:
        data = data[: r.randrange(len(data))]
    elif kind == 1:
        data = b"\xff\xfe" + data
    elif kind == 2:
        data = r.choice([b"[" * 10**5, b"[]", b"3", b'"x"', b"null", b"{", b'{"a":' * 10**5])
    elif kind == 3:
        data = bytearray(data)
        for _ in range(r.choice([1, 3, 30])):
            data[r.randrange(len(data))] = r.randrange(256)
    else:
        path.unlink()
        r.choice(
            [path.mkdir, lambda: path.symlink_to(path), lambda: os.mkfifo(path), lambda: None]
        )()
        return
    path.write_bytes(bytes(data))


BYTES = [
    flips, truncation, more_bytes, header_length, header_entry, header_entry, header_names,
    not_finite,
]  # fmt: skip


def damage(r, root, marker):
    """Damages one file of a weights folder, or the single file; says which and how."""
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    tensors = [p for p in files if p.suffix == ".safetensors"]
    others = [p for p in files if p.suffix == ".json"]
    if not others or r.random() < 0.6:
        path = r.choice(tensors)
        if r.random() < 0.1:
            another_thing(r, path, marker)
            return path, "another thing"
        how = r.choice(BYTES)
        path.write_bytes(how(r, path.read_bytes()))
    else:
        path = r.choice(others)
        how = r.choice([lie, lie, bad_json])
        how(r, path)
    return path, how.__name__


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

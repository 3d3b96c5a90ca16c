"""Seeded damages of a weights folder or a single file, for `test_fuzz.py`."""

import json
import os
import pickle
import struct
import zipfile

import torch


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
    """Something in the file's place that is not a safetensors file."""
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

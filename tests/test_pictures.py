"""PNG files: a name is taken once, no pipe hangs, and settings are read without the pixels."""

import errno
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from conftest import ROOT
from dnp.app import png
from dnp.errors import PictureError

GREY = Image.new("RGB", (8, 8), "grey")
SAVE = """
import os, sys, time
from pathlib import Path
from PIL import Image
from dnp.app import png
picture, me, folder = Image.new("RGB", (8, 8)), int(sys.argv[1]), Path(sys.argv[2])
(folder / f"ready-{me}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.001)
for i in range(200):
    png.save(picture, folder, f"a-{i}", {"me": me, "i": i})
"""


def test_two_commands_in_one_folder_lose_no_picture(tmp_path):
    run = [[sys.executable, "-c", SAVE, str(me), str(tmp_path)] for me in (0, 1)]
    both = [subprocess.Popen(words, cwd=ROOT) for words in run]
    assert [p.wait(timeout=240) for p in both] == [0, 0]
    kept = sorted((s["me"], s["i"]) for s in (png.read_settings(p) for p in tmp_path.glob("*.png")))
    assert kept == [(me, i) for me in (0, 1) for i in range(200)]
    assert len(list(tmp_path.iterdir())) == 402  # and no temporary file is left


def test_a_name_that_is_taken_while_a_picture_is_written_is_kept(tmp_path, monkeypatch):
    fsync = os.fsync

    def meanwhile(fd):  # the file is finished, and has no name yet
        fsync(fd)
        if not (tmp_path / "a.png").exists():
            (tmp_path / "a.png").write_bytes(png.png(GREY, {"of": "another"}))

    monkeypatch.setattr(os, "fsync", meanwhile)
    path = png.save(GREY, tmp_path, "a", {"of": "us"})
    assert path.name == "a-2.png" and png.read_settings(path) == {"of": "us"}
    assert png.read_settings(tmp_path / "a.png") == {"of": "another"}


def test_the_same_settings_take_the_same_name_again_also_with_a_tuple(tmp_path):
    settings = {"size": (64, 32), "seed": 3}
    first = png.save(GREY, tmp_path, "a", settings)
    red = Image.new("RGB", (8, 8), "red")
    assert png.save(red, tmp_path, "a", settings) == first
    assert Image.open(first).tobytes() == red.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_fault_while_a_picture_is_written_leaves_nothing(tmp_path, monkeypatch, there, step):
    if there:  # a picture of the same settings, which stays
        png.save(GREY, tmp_path, "a", {})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = [p.read_bytes() for p in tmp_path.iterdir()]
    monkeypatch.setattr(os, step, full)
    with pytest.raises(PictureError, match="No space left"):
        png.save(GREY, tmp_path, "a", {})
    assert [p.read_bytes() for p in tmp_path.iterdir()] == before


IN_THE_WAY = {
    "folder": os.mkdir,
    "pipe": getattr(os, "mkfifo", None),
    "link to nothing": lambda path: os.symlink("nowhere", path),
    "link to a device": lambda path: os.symlink("/dev/zero", path),
    "empty file": lambda path: Path(path).touch(),
    "other picture": lambda path: GREY.save(path),
}


@pytest.mark.skipif(os.name == "nt", reason="pipes with names")
@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_stands_under_an_output_s_name_is_kept_and_does_not_hang(tmp_path, kind):
    IN_THE_WAY[kind](tmp_path / "a.png")
    before = os.lstat(tmp_path / "a.png")
    path = png.save(GREY, tmp_path, "a", {"seed": 1})
    assert path.name == "a-2.png" and png.read_settings(path) == {"seed": 1}
    after = os.lstat(tmp_path / "a.png")
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.skipif(os.name == "nt", reason="pipes with names")
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/tty", "socket"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, monkeypatch, kind):
    import socket

    path = tmp_path / "a.png" if kind in ("pipe", "socket") else Path(kind)
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "socket":
        monkeypatch.chdir(tmp_path)  # a socket's name is short
        socket.socket(socket.AF_UNIX).bind("a.png")
    with pytest.raises(PictureError, match="not a readable PNG"):
        png.read_settings(path)


# -------------------------------------------------------------------------------------- the chunk


def chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
PIXELS = chunk(b"IDAT", zlib.compress(bytes(72)))
END = chunk(b"IEND", b"")
TEXT = json.dumps({"prompt": "a cat"}).encode()
OURS = chunk(b"tEXt", b"dnp\0" + TEXT)
BOMB = zlib.compress(b"[" + b" " * 50_000_000 + b"]")
SIGNATURE = b"\x89PNG\r\n\x1a\n"

FORMS = {
    "plain": HEADER + OURS + PIXELS,
    "behind the pixels": HEADER + PIXELS + OURS,
    "packed": HEADER + chunk(b"zTXt", b"dnp\0\0" + zlib.compress(TEXT)) + PIXELS,
    "international": HEADER + chunk(b"iTXt", b"dnp\0\0\0en\0dnp\0" + TEXT) + PIXELS,
    "both": HEADER + chunk(b"iTXt", b"dnp\0\1\0\0\0" + zlib.compress(TEXT)) + PIXELS,
    "beside others": HEADER + chunk(b"tEXt", b"dnp2\0{}") + OURS + chunk(b"tEXt", b"x\0y") + PIXELS,
    "the last of two": HEADER + chunk(b"tEXt", b"dnp\0{}") + OURS + PIXELS,
    "beside a bomb": HEADER + chunk(b"zTXt", b"x\0\0" + BOMB) + OURS + PIXELS,
    "pixels that are damaged": HEADER + OURS + chunk(b"IDAT", b"no zlib stream", crc=1),
}


@pytest.mark.parametrize("form", FORMS)
def test_settings_are_read_in_every_form_that_png_has_for_text(tmp_path, form):
    (tmp_path / "a.png").write_bytes(SIGNATURE + FORMS[form] + END)
    assert png.read_settings(tmp_path / "a.png") == {"prompt": "a cat"}


@pytest.mark.parametrize("way", ["add_text", "add_text, packed", "add_itxt", "add_itxt, packed"])
def test_settings_are_read_as_pillow_writes_them(tmp_path, way):
    info, text = PngImagePlugin.PngInfo(), json.dumps({"prompt": "Käse 猫"}, ensure_ascii=False)
    name, _, packed = way.partition(", ")
    getattr(info, name)("dnp", text, zip=bool(packed))  # tEXt becomes iTXt for such words
    GREY.save(tmp_path / "a.png", pnginfo=info)
    assert png.read_settings(tmp_path / "a.png") == {"prompt": "Käse 猫"}


REFUSED = {
    "another format": (b"GIF89a" + HEADER + OURS + PIXELS + END, "another format's"),
    "no end": (SIGNATURE + HEADER + OURS + PIXELS, "cut off"),
    "half a chunk": (SIGNATURE + HEADER + OURS[:-5], "Truncated"),
    "half a checksum": (SIGNATURE + HEADER + OURS[:-2], "checksum"),
    "half a head": (SIGNATURE + HEADER + OURS + PIXELS + END[:6], "not a readable"),
    "no kind of chunk": (SIGNATURE + HEADER + chunk(b"\0\0\0\0", b"") + END, "broken"),
    "an endless chunk": (SIGNATURE + HEADER + b"\xff\xff\xff\xfftEXtdnp\0{}", "cut off"),
    "damaged settings": (
        SIGNATURE + HEADER + chunk(b"tEXt", b"dnp\0" + TEXT, crc=5) + END,
        "checksum",
    ),
    "a packed bomb": (
        SIGNATURE + HEADER + chunk(b"zTXt", b"dnp\0\0" + BOMB) + END,
        "(?i)too large",
    ),
    "a damaged pack": (SIGNATURE + HEADER + chunk(b"zTXt", b"dnp\0\0abc") + END, "not a readable"),
    "no UTF-8": (
        SIGNATURE + HEADER + chunk(b"iTXt", b"dnp\0\0\0\0\0\xff") + END,
        "holds no settings",
    ),
    "too long a text": (
        SIGNATURE + HEADER + chunk(b"tEXt", b"dnp\0" + b" " * 2**20 + TEXT) + END,
        "holds no settings",
    ),
    "no text": (SIGNATURE + HEADER + PIXELS + END, "holds no settings"),
    "a list": (SIGNATURE + HEADER + chunk(b"tEXt", b"dnp\0[]") + END, "holds no settings"),
    "half a chunk's words": (SIGNATURE + HEADER + chunk(b"iTXt", b"dnp\0\0") + END, "holds no"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_png_that_cannot_be_one_of_ours_is_refused_in_a_sentence(tmp_path, name):
    data, sentence = REFUSED[name]
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PictureError, match=sentence):
        png.read_settings(tmp_path / "a.png")


def test_more_chunks_than_a_picture_has_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(png, "MOST_CHUNKS", 100)
    (tmp_path / "a.png").write_bytes(SIGNATURE + HEADER + chunk(b"abCd", b"") * 99 + OURS + END)
    with pytest.raises(PictureError, match="more than 100 chunks"):
        png.read_settings(tmp_path / "a.png")


READ = """
import resource, sys, time
from pathlib import Path
from dnp.app import png
png.read_settings(Path(sys.argv[1]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start = peak(), time.process_time()
print(png.read_settings(Path(sys.argv[2])), peak() - before, time.process_time() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes of Linux")
def test_a_png_of_178_million_pixels_is_read_in_a_few_kilobytes(tmp_path):
    pack, row, rows = zlib.compressobj(1), bytes(13_001), []
    rows = [pack.compress(row * 100) for _ in range(137)] + [pack.flush()]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 13_000, 13_700, 8, 0, 0, 0, 0))
    large = SIGNATURE + header + chunk(b"IDAT", b"".join(rows)) + OURS + END
    assert len(large) < 1_000_000
    (tmp_path / "large.png").write_bytes(large)
    (tmp_path / "small.png").write_bytes(SIGNATURE + HEADER + PIXELS + OURS + END)
    run = [sys.executable, "-c", READ, tmp_path / "small.png", tmp_path / "large.png"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    read, kilobytes, seconds = done.stdout.rsplit(maxsplit=2)
    assert read == "{'prompt': 'a cat'}" and int(kilobytes) < 1000 and float(seconds) < 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"prompt": "a cat", "method": "cfg", "s": 7.5, "steps": 20, "seed": 3},
            "a cat\nSteps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 3, Size: 40x24",
        ),
        (
            {"prompt": "a cat", "method": "np2", "negative": "a dog, a bear", "s": 2.0,
             "steps": 9, "seed": 0, "sampler": "dpmpp2m"},
            "a cat\nNegative prompt: a dog, a bear\n"
            "Steps: 9, Sampler: DPM++ 2M, CFG scale: 2, Seed: 0, Size: 40x24",
        ),
        (
            {"prompt": "a cat", "method": "dns", "s": 2.0, "steps": 9, "seed": 0},
            "\nNegative prompt: a cat\n"
            "Steps: 9, Sampler: DDIM, CFG scale: 3, Seed: 0, Size: 40x24",
        ),
        (
            {"prompt": "a café", "method": "auto-dnp", "negative": "猫", "s": 3.0, "steps": 9,
             "seed": 1},
            "a café\nNegative prompt: 猫\nSteps: 9, Sampler: DDIM, CFG scale: 3, Seed: 1, "
            "Size: 40x24, Rule: phi + s (p - n*)",
        ),
        (
            {"prompt": "a cat", "method": "neglect", "s": 3.0, "steps": 9, "seed": 1,
             "negative_scale": 1.5},
            "a cat\nSteps: 9, Sampler: DDIM, CFG scale: 3, Seed: 1, Size: 40x24, "
            "Rule: phi + s (p - phi) - h (n_t - phi)",
        ),
        (
            {"prompt": "a cat", "method": "answer", "s": 3.0, "steps": 9, "seed": 1,
             "negative_scale": 1.5},
            "a cat\nSteps: 9, Sampler: DDIM, CFG scale: 3, Seed: 1, Size: 40x24, "
            "Rule: phi + s (p - phi) - h (n - phi)",
        ),
        (
            {"prompt": "a cat", "method": "cfg", "s": None, "steps": 9, "seed": 1,
             "rule": "FILE.py:mine"},
            'a cat\nSteps: 9, Sampler: DDIM, Seed: 1, Size: 40x24, Rule: "FILE.py:mine"',
        ),
        ({"prompt": "a cat", "method": "cfg", "s": 2.0, "compare": True}, None),
        ({"anything": 1}, None),
    ],
)  # fmt: skip
def test_a_png_holds_the_parameters_that_other_interfaces_read(tmp_path, settings, text):
    path = png.save(Image.new("RGB", (40, 24)), tmp_path, "a", settings)
    with Image.open(path) as image:
        assert image.text.get("parameters") == text
    assert png.read_settings(path) == settings  # ours are as they were

"""Runs the notebooks from a clean kernel, in order, and stores their outputs.

    python notebooks/refresh.py            all nine
    python notebooks/refresh.py 2 5        these
    python notebooks/refresh.py --check    runs them and changes nothing; fails at a warning

A picture is rewritten only where its pixels differ. The hash of the cells and of the Python files
that they import goes into a notebook's metadata, and the picture of its cell tagged `cover` into
`pictures/`. All nine take about 5 minutes on one core of an AMD EPYC.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image, ImageChops

HERE = Path(__file__).resolve().parent


def notebooks() -> list[Path]:
    return sorted(HERE.glob("[0-9]*.ipynb"))


def sha256(notebook) -> str:
    """16 digits of what the outputs were made from."""
    digest = hashlib.sha256()
    for cell in notebook.cells:
        digest.update(f"{cell.cell_type}\0{cell.source}\0".encode())
    for path in sorted(HERE.glob("*.py")):
        if path.name not in (Path(__file__).name, "grade.py"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def minutes(notebook) -> int:
    """An estimate of the time that a notebook needs: words outside solutions at 100 a minute, a
    minute for each cell with a figure, and the minutes in the headings of exercises and questions;
    rounded up to 5. Running takes seconds and is not counted."""
    texts = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    words = sum(len(text.split()) for text in texts if not text.startswith("<details>"))
    drawn = sum(bool(pictures(cell)) for cell in notebook.cells)
    stated = sum(int(m) for m in re.findall(r"^## .*\((\d+) minutes\)", "\n".join(texts), re.M))
    return 5 * math.ceil((words / 100 + drawn + stated) / 5)


def execute(path: Path):
    """The notebook with the outputs of a clean kernel; its first error stops."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # a note of the kernel's own debugger
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(HERE)}},
    )  # fmt: skip
    client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "file_extension": ".py"},
        "dnp": {"sha256": sha256(notebook)},
    }
    return notebook


def warned(notebook) -> list[str]:
    """What a cell wrote to stderr."""
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]


def pictures(cell) -> list[dict]:
    return [o.data for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]


def pixels(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def keep_same(new, old) -> None:
    """Puts the stored bytes back where a picture of the same place has the same pixels."""
    for now, before in zip(new.cells, old.cells):
        for a, b in zip(pictures(now), pictures(before)):
            x, y = pixels(a["image/png"]), pixels(b["image/png"])
            if x.size == y.size and ImageChops.difference(x, y).getbbox() is None:
                a["image/png"] = b["image/png"]


def write(path: Path, data: bytes) -> None:
    if path.exists() and path.read_bytes() == data:
        return
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def main(argv: list[str]) -> None:
    check, wanted = "--check" in argv, [a for a in argv if a != "--check"]
    for path in notebooks():
        if wanted and path.name[0] not in wanted:
            continue
        began = time.perf_counter()
        new = execute(path)
        if warned(new):
            sys.exit(f"{path.name} warns: {''.join(warned(new))}")
        print(f"{path.name}: {time.perf_counter() - began:.0f} s", flush=True)
        if check:
            continue
        keep_same(new, nbformat.read(path, as_version=4))
        write(path, (nbformat.writes(new) + "\n").encode())
        for cell in new.cells:
            if "cover" in cell.metadata.get("tags", ()):
                (HERE / "pictures").mkdir(exist_ok=True)
                png = base64.b64decode(pictures(cell)[0]["image/png"])
                write(HERE / "pictures" / f"{path.stem}.png", png)


if __name__ == "__main__":
    main(sys.argv[1:])

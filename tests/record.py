"""Records what every method makes, to show that a redesign changed nothing.

    python tests/record.py before.json        # at the old commit
    python tests/record.py after.json --against before.json

Latents, evaluations, gradients, words and records of every method, rule, sampler and option:
through Python on the miniature and on a toy, through the command line (pixels and the fields of
the PNG), and through the experiments. Bits depend on the machine, so a record is kept outside the
repository.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WEIGHTS = ROOT / "weights" / "mini"
BEAR = ["--negative", "a bear"]
CALLS = [  # method, and options as they are typed; Python's are made from them
    "cfg", "cfg --eta 1 --s 5", "cfg --sampler dpmpp2m", "cfg --interval 0.3 5", "cfg --s 1",
    "cfg --rule apg", "cfg --rule cfg_plus_plus", "cfg --rule cfg_zero_star", "dns --s 2", "dns",
    "np BEAR", "np BEAR --negative-scale 1", "np BEAR --negative-interval 2 1e9", "np2 BEAR",
    "np BEAR --rule dng --eta 1", "np BEAR --rule perp_neg --option w=0.5", "np BEAR --rule ccfg",
    "np BEAR --rule bounded --negative-scale 2", "np BEAR --rule negative_prompt_two_scale",
    "dnp BEAR", "auto-dnp", "auto-dnp --dns-images 2 --s-dns 2 --negative-scale 0.5",
    "auto-dnp --caption-per prompt", "auto-dnp --rule ccfg", "auto-dnp BEAR",
    "answer", "answer --K 3 --K-until 0.3 --s-dns 1", "answer --normalize none",
    "answer --rule bounded --option r=0.5", "answer --rule negative_prompt_two_term",
    "answer --interval 0.5 9 --K 1", "ae", "ae --ae-refinements 2 --ae-step 5 --ae-until 0.3",
    "ae --ae-thresholds 0.1:0.6 --ae-level 0", "ae --subjects cat --rule apg", "ae+auto-dnp",
    "neglect", "neglect --s 4", "neglect --negative-scale 1 --sampler dpmpp2m",
    "neglect --rule perp_neg --negative-interval 0.5 20", "neglect --ae-level 0 --eta 1",
]  # fmt: skip
GRID = ["cfg", "cfg:interval=0.3:5", "auto-dnp:negative_scale=1", "auto-dnp:dns_images=2", "answer",
        "ae", "neglect", "universal", "universal2", "random", "random2", "shuffled",
        "unconditional", "negative-alone", "cnp:steps=3", "ae+auto-dnp", "neglect:s=3",
        "auto-dnp:rule=ccfg,o.tau=1",
        "auto-dnp:caption_per=prompt"]  # fmt: skip


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def of_tensor(x: torch.Tensor) -> str:
    return sha(x.contiguous().numpy().tobytes())


def typed(call: str) -> tuple[str, list[str]]:
    method, *words = call.split()
    new = (ROOT / "dnp" / "__main__.py").exists()  # normalize was sample, channel or none
    words = ["no" if w == "none" and new else w for w in words]
    return method, [x for w in words for x in (BEAR if w == "BEAR" else [w])]


def arguments(words: list[str]) -> dict:
    """The same options for Python."""
    out, key = {}, ""
    for w in words:
        if w.startswith("--"):
            key = w[2:].replace("-", "_")
        elif key == "option":
            k, v = w.split("=")
            out.setdefault("rule_options", {})[k] = float(v)
        elif ":" in w:
            out[key] = tuple(map(float, w.split(":")))
        else:
            with contextlib.suppress(ValueError):
                w = int(w) if w.isdigit() and key not in ("s", "eta", "s_dns") else float(w)
            w = {"no": False}.get(w, w)
            out[key] = (out[key], w) if key in out else w
    return out


def python() -> dict:
    import dnp

    model, made = dnp.load(WEIGHTS), {}
    for call in CALLS:
        method, words = typed(call)
        r = dnp.generate(
            model, "a cat and a red car", method, steps=6, seed=3, images=2, **arguments(words)
        )
        made[call] = {
            "latents": [of_tensor(x) for x in r.latents],
            "pictures": [sha(i.tobytes()) for i in r.images],
            "nfe": r.nfe, "gradients": r.gradients, "negatives": r.negatives,
            "dns": [sha(i.tobytes()) for i in r.dns_images], "record": r.settings,
        }  # fmt: skip
    return made


def command() -> dict:
    """Pixels and fields of every PNG that the command line writes."""
    made = {}
    door = (
        ["-m", "dnp"]
        if (ROOT / "dnp" / "__main__.py").exists()
        else [ROOT / "train_free_sample.py"]
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for call in CALLS[::2]:
        method, words = typed(call)
        scale = "--s" if (ROOT / "dnp" / "__main__.py").exists() else "--scale"
        words = [scale if w == "--s" else w for w in words]
        with tempfile.TemporaryDirectory() as folder:
            line = [sys.executable, *door, "a cat and a red car", "--method", method, *words,
                    "--steps", "6", "--seed", "3", "--out", folder]  # fmt: skip
            subprocess.run(line, check=True, capture_output=True, cwd=folder, env=env)
            for path in sorted(Path(folder).glob("*.png")):
                with Image.open(path) as picture:
                    made[f"{call} {path.name}"] = {
                        "pixels": sha(picture.tobytes()), "record": json.loads(picture.text["dnp"]),
                        "parameters": picture.text.get("parameters"),
                    }  # fmt: skip
    return made


def experiments() -> dict:
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.txt"
        prompts.write_text("a cat and a red car\na dog and a blue chair\n")
        line = [sys.executable, "-m", "dnp.evaluation", "--benchmark", prompts, "--seeds", "1",
                "--steps", "4", "--out", Path(folder) / "out", "--method", *GRID]  # fmt: skip
        subprocess.run(line, check=True, capture_output=True, cwd=ROOT)
        made = {}
        for path in sorted((Path(folder) / "out" / "records").glob("*.json")):
            r = json.loads(path.read_text())
            c = r["content"]
            name = f"{c['method']} {c['prompt']} {c['seed']} " + json.dumps(
                {k: v for k, v in c["settings"].items() if k != "rule_sha256"}, sort_keys=True
            )
            made[name] = {"sha256": r["sha256"], "nfe": r["nfe"], "words_nfe": r["words_nfe"],
                          "negative": r["negative"]}  # fmt: skip
        return made


def toys() -> dict:
    from dnp import generation, toy

    means = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, -2.0]])
    mixture = toy.Mixture(
        [0.3, 0.3, 0.4], means, 0.2 * torch.eye(2).expand(3, 2, 2), [[0, 1], [1, 2]]
    )
    made = {}
    for call in ("cfg", "dns", "np --negative 1", "np2 --negative 1", "answer --K 3",
                 "cfg --sampler dpmpp2m", "cfg --eta 0.5",
                 "np --rule perp_neg --negative 1"):  # fmt: skip
        method, words = typed(call)
        rows = list(
            generation.trajectory(mixture, 0, method, s=2.0, steps=12, images=3, **arguments(words))
        )
        made[call] = [[t, *(of_tensor(x) for x in rest if x is not None)] for t, *rest in rows]
    return made


def differences(before: dict, after: dict, at: str = "") -> list[str]:
    """One line for each thing that is not as it was."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [
            line
            for k in keys
            for line in differences(before.get(k, "absent"), after.get(k, "absent"), f"{at}/{k}")
        ]
    return [] if before == after else [f"{at}: {before!r:.70} -> {after!r:.70}"]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("out", type=Path)
    p.add_argument("--against", type=Path)
    p.add_argument("--only", nargs="+", default=["python", "toys", "command", "experiments"])
    args = p.parse_args()
    found = {name: globals()[name]() for name in args.only}
    record = json.loads(json.dumps(found, default=str))
    args.out.write_text(json.dumps(record))
    print(f"{sum(map(len, record.values()))} results recorded")
    if args.against:
        old = json.loads(args.against.read_text())
        lines = differences({k: old[k] for k in args.only}, record)
        print("\n".join(lines) or "nothing changed")
        sys.exit(bool(lines))

"""Records what every method makes, to show that a redesign changed nothing.

    python tests/record.py before.json        # at the old commit
    python tests/record.py after.json --against before.json

Two prompts, two seeds, 20 steps, the miniature, through `dnp.generate` and through the command; and
every rule and ANSWER on a toy. Bits depend on the machine, so a record is kept outside the
repository. Through the command pictures must be equal to the byte; bare latents to 1e-4.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WEIGHTS = ROOT / "weights" / "mini"
PROMPTS = ("a cat and a dog", "a red car")
CALLS = {  # name: (arguments of dnp.generate, the same for the command)
    "cfg": ({}, []),
    "cfg s=5 eta=1": ({"s": 5.0, "eta": 1.0}, ["--scale", "5", "--eta", "1"]),
    "np": ({"negative": "a bear"}, ["--negative", "a bear"]),
    "np h=1": (
        {"negative": "a bear", "negative_scale": 1.0},
        ["--negative", "a bear", "--negative-scale", "1"],
    ),
    "np2": ({"negative": "a bear"}, ["--negative", "a bear"]),
    "dns": ({}, []),
    "dnp": ({"negative": "a blue chair"}, ["--negative", "a blue chair"]),
    "auto-dnp": ({}, []),
    "auto-dnp n=2": (
        {"dns_images": 2, "s_dns": 2.0, "negative_scale": 0.5},
        ["--dns-images", "2", "--s-dns", "2", "--negative-scale", "0.5"],
    ),
    "auto-dnp prompt": ({"caption_per": "prompt"}, ["--caption-per", "prompt"]),
    "answer": ({}, []),
    "answer next": ({"tensor": "next", "K": 3}, ["--tensor", "next", "--K", "3"]),
    "answer jump": (
        {"tensor": "jump", "form": "two-term"},
        ["--tensor", "jump", "--form", "two-term"],
    ),
    "answer unconditional": (
        {"tensor": "unconditional", "normalize": "channel", "K_until": 0.3, "s_dns": 1.0},
        "--tensor unconditional --normalize channel --K-until 0.3 --s-dns 1".split(),
    ),
}


def latents() -> dict[str, list[float]]:
    """z_0 of every call, flattened, in float32, with its evaluations in front."""
    import dnp

    model, made = dnp.load(WEIGHTS), {}
    for prompt in PROMPTS:
        for name, (arguments, _) in CALLS.items():
            method = name.split()[0]
            r = dnp.generate(model, prompt, method, steps=20, seed=3, images=2, **arguments)
            made[f"{prompt}: {name}"] = [r.nfe, *r.latents[1].flatten().tolist()]
    return made


def pictures() -> dict[str, str]:
    """sha256 of the pixels of every picture that the command writes, and of the compare sheet."""
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for prompt in PROMPTS:
            for name, (_, arguments) in CALLS.items():
                method, out = name.split()[0], Path(folder) / f"{len(made)}"
                script = [sys.executable, ROOT / "train_free_sample.py", prompt, "--out", out]
                more = ["--method", method, "--steps", "20", "--seed", "3", "--images", "2"]
                subprocess.run(
                    [*script, *more, *arguments], check=True, capture_output=True, cwd=folder
                )
                for seed in (3, 4):
                    (path,) = out.glob(f"*-{method}-{seed}.png")
                    made[f"{prompt}: {name}, seed {seed}"] = digest(path)
    return made


def digest(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        return hashlib.sha256(picture.tobytes()).hexdigest()


def toys() -> dict[str, list[float]]:
    """The chain's end of every rule and of every reading of ANSWER on a mixture, in float64."""
    from dnp import answer, guidance, sampling, toy
    from dnp.schedule import Schedule

    schedule = Schedule(Schedule.stable_diffusion().abar, abar_final=1.0)
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5], [0.3, 1.4]])
    mixture = toy.Mixture(
        [0.3, 0.3, 0.4], means, 0.2 * torch.eye(2).expand(3, 2, 2), [[0], [1, 2]], schedule
    )
    eps, z_T = mixture.eps, torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()
    guided = {
        "cfg": lambda z, t: guidance.cfg(eps(z, t), eps(z, t, 0), 2.5),
        "np": lambda z, t: guidance.negative_prompt(eps(z, t), eps(z, t, 0), eps(z, t, 1), 1.5),
        "np2": lambda z, t: guidance.negative_prompt_two_term(eps(z, t, 0), eps(z, t, 1), 1.5),
        "dns": lambda z, t: guidance.dns(eps(z, t), eps(z, t, 0), 0.5),
    }
    pairs = schedule.pairs(20)
    for tensor in ("last", "next", "unconditional", "jump"):
        for form in ("three-term", "two-term"):
            guided[f"answer {tensor} {form}"] = answer.answer(
                eps, None, 0, 1.5, schedule, pairs, K=2, tensor=tensor, form=form
            )
    made = {}
    for name, model in guided.items():
        *_, (_, z_0, _) = sampling.ddim_sample(model, z_T, schedule, 20)
        made[name] = z_0.flatten().tolist()
    return made


def differences(before: dict, after: dict) -> list[str]:
    """One line for each thing that is not as it was."""
    lines = [
        f"command, {k}: other pixels"
        for k, v in before["pictures"].items()
        if after["pictures"].get(k) != v
    ]
    for part, bound in (("latents", 1e-4), ("toys", 1e-12)):
        for k, v in before[part].items():
            away = (torch.tensor(after[part][k]) - torch.tensor(v)).abs().max().item()
            if away > bound:
                lines.append(f"{part}, {k}: {away:.2g} away")
    return lines


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("out", type=Path)
    p.add_argument("--against", type=Path)
    args = p.parse_args()
    record = {"latents": latents(), "toys": toys(), "pictures": pictures()}
    args.out.write_text(json.dumps(record))
    print(f"{sum(map(len, record.values()))} results recorded")
    if args.against:
        lines = differences(json.loads(args.against.read_text()), record)
        print("\n".join(lines) or "nothing changed")
        sys.exit(bool(lines))

"""The protocols of the papers, as far as they are known, and the numbers that they print.

What the papers do not say is a guess, and marked as one where the tables are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnp.evaluation.tables import markdown


@dataclass(frozen=True)
class Preset:
    """Defaults of the command, what is known of the protocol, and what is a guess."""

    arguments: dict
    known: tuple[str, ...]
    guesses: tuple[str, ...]


PRESETS = {
    "dnp-paper": Preset(
        {
            "benchmark": "dnp-paper", "per_category": 50, "seeds": 32, "steps": 50, "scale": [7.5],
            "method": ["cfg", "auto-dnp"],
        },
        (
            "arXiv:2411.05473: Stable Diffusion",
            "A&E, 3 categories x 50 prompts x 32 seeds",
            "H&H, 45 prompts of people and 25 of hands, x 32 seeds",
            "captions by BLIP-2",
            "CLIP scores of the full prompt and of its minimum object; inception score",
        ),
        (
            "50 DDIM steps at s = 7.5, Attend-and-Excite's own protocol",
            "the DNS image at the same s",
            "which 50 prompts of a category (spread evenly over ours, whose colours are ours too)",
            "the prompts of H&H (all but four are ours)",
            "CLIP ViT-B/16, the mean of 80 templates (Attend-and-Excite's recipe)",
            "the network of the inception score: none is here for real weights, so it is left out",
        ),
    ),
    "answer-paper": Preset(
        {
            "benchmark": "ae", "per_category": 50, "seeds": 4, "steps": 50, "scale": [7.5],
            "method": ["cfg", "auto-dnp", "answer"],
        },
        (
            "arXiv:2508.02973: SDXL with CFG and with DNP are what ANSWER is compared with",
            "prompts of A&E, Pick-a-Pic, DrawBench and PartiPrompts (A&E's form is here; give the "
            "others with --benchmark FILE)",
        ),
        (
            "50 DDIM steps at s = 7.5",
            "4 seeds, 50 prompts of a category",
            "the captioner of DNP: BLIP-2",
            "ANSWER itself is a reading of its abstract (`dnp/methods/answer.py`)",
            "CLIP ViT-B/16, the mean of 80 templates",
        ),
    ),
}  # fmt: skip
_DNP = "What arXiv:2411.05473 prints for Stable Diffusion (Table 2)"
_OTHERS = "Its weights, prompts and CLIP are others, so it is no row of the tables above:"
_GUESSED = "Where the protocol here is a guess it may be another, so it is no row of ours:"
PUBLISHED = {  # benchmark: (sentence, heading, {method: numbers})
    "ae": (_DNP, "min. object / full prompt / IS", {
        "CFG": "0.242 / 0.335 / 13.17", "auto-DNP": "0.258 / 0.346 / 13.35",
    }),
    "hh": (_DNP, "full prompt / IS", {
        "CFG": "people 0.322 / 9.95, hands 0.309 / 12.04",
        "auto-DNP": "people 0.331 / 10.13, hands 0.321 / 12.39",
    }),
    "dnp-paper": (_DNP, "min. object / full prompt / IS / people prefer: correctness, quality", {
        "CFG, A&E": "0.242 / 0.335 / 13.17 / 18.90, 25.73 %",
        "auto-DNP, A&E": "0.258 / 0.346 / 13.35 / 64.22, 63.81 %",
        "Attend-and-Excite, A&E": "0.264 / 0.349 / 11.86 / 30.06, 33.12 %",
        "Attend-and-Excite + auto-DNP, A&E": "0.276 / 0.362 / 13.12 / 52.99, 59.53 %",
        "CFG, people": "- / 0.322 / 9.95 / 27.60, 29.0 %",
        "auto-DNP, people": "- / 0.331 / 10.13 / 57.98, 65.80 %",
        "CFG, hands": "- / 0.309 / 12.04 / 20.45, 22.47 %",
        "auto-DNP, hands": "- / 0.321 / 12.39 / 59.66, 69.35 %",
    }),
    "answer-paper": ("What arXiv:2508.02973 says in its abstract of SDXL", "people prefer it", {
        "ANSWER": "2 times as often as the others",
    }),
}  # fmt: skip


def published(benchmark: str, preset: str | None) -> list[str]:
    """Lines below the tables: the protocol with its guesses, and a paper's numbers in a table of
    their own; none where no paper prints any."""
    lines = _protocol(PRESETS[preset]) if preset else []
    name = preset or benchmark
    if name not in PUBLISHED:
        return lines
    said, heading, numbers = PUBLISHED[name]
    why = _GUESSED if preset else _OTHERS
    return [*lines, f"{said}. {why}", "", *markdown(["method", heading], list(numbers.items()))]


def _protocol(preset: Preset) -> list[str]:
    shown: Sequence[tuple[str, Sequence[str]]]
    shown = (("known", preset.known), ("a guess", preset.guesses))
    body = [[kind, text] for kind, texts in shown for text in texts]
    return ["The protocol of the paper, and what of it is a guess:", "", *markdown(["", ""], body)]

"""The protocols of the papers as defaults of the command, and what stands below their tables.

What the papers do not say is a guess, and marked as one in `protocols/`.
"""

from __future__ import annotations

from pathlib import Path

PROTOCOLS = Path(__file__).parent / "protocols"
PRESETS = {
    "dnp-paper": {
        "benchmark": "dnp-paper", "per_category": 50, "seeds": 32, "steps": 50, "scale": [7.5],
        "method": ["cfg", "auto-dnp"],
    },
    "answer-paper": {
        "benchmark": "ae", "per_category": 50, "seeds": 4, "steps": 50, "scale": [7.5],
        "method": ["cfg", "auto-dnp", "answer"],
    },
}  # fmt: skip


def published(benchmark: str, preset: str | None) -> list[str]:
    """Lines below the tables: the protocol with its guesses, and a paper's numbers in a table of
    their own; none where no paper prints any."""
    file = PROTOCOLS / f"{preset or benchmark}.md"
    return file.read_text("utf-8").split("\n") if file.is_file() else []

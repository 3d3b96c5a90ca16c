"""What people bring from other interfaces: the syntax of a prompt, and the text in a picture."""

from __future__ import annotations

import re
import warnings

# What others read in a prompt, and nobody reads here.
SYNTAX = {
    r"\([^():]*[^\s():\d]\s*:\s*\d*\.?\d+\s*\)": "weights such as (cat:1.3)",
    r"\(\(|\)\)": "double brackets",
    r"\[[^\[\]]*[|:][^\[\]]*\]": "alternatives such as [a|b]",
    r"\[[^\[\]|:]+\]": "square brackets",
    r"\{[^{}]*\|[^{}]*\}": "alternatives such as {a|b}",
    r"__\w+__": "wildcards such as __colour__",
    r"<(lora|lyco|hypernet):[^>]*>": "<lora:...>",
    r"\bembedding:\S+": "embedding:NAME",
    r"\bBREAK\b": "BREAK",
    r"(?<=\S)\s+AND\s+(?=\S)": "AND",
    r"\w::-?[\d.]*": "weights such as cat::2",
    r"(?<!\S)--[a-z]+": "options such as --ar 16:9 inside a prompt",
}
# Of the line of settings: its name, ours, and what it holds.
READ = (("steps", "steps", int), ("seed", "seed", int), ("cfg scale", "s", float))


def tell_what_is_not_read(text: str, words: tuple[str, ...]) -> None:
    """Notes on what is read as plain text: other interfaces' syntax, words of no closed world."""
    found = [what for pattern, what in SYNTAX.items() if re.search(pattern, text)]
    if found and text != text.upper():
        listed = " and ".join(filter(None, [", ".join(found[:-1]), found[-1]]))
        warnings.warn(f"{listed}: read as plain text here", stacklevel=1)
    unknown = [w for w in re.findall(r"[^\W\d_]+", text.lower()) if words and w not in words]
    if unknown:
        warnings.warn(
            f"these weights have never read {', '.join(dict.fromkeys(unknown))}; the picture "
            "follows the other words",
            stacklevel=1,
        )


def read_parameters(text: str) -> dict[str, object] | None:
    """The settings in the `parameters` text that other interfaces write; None if it is not one.

        PROMPT
        Negative prompt: NEGATIVE
        Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x768, ...

    Prompt and negative may have several lines. A note says which settings have no counterpart here.
    """
    *lines, last = text.strip().split("\n")
    entries = dict(re.findall(r'([A-Z][\w ]*): ("(?:[^"\\]|\\.)*"|[^,]*)(?:, |$)', last))
    entries = {k.lower(): v.strip() for k, v in entries.items()}
    if "steps" not in entries or "seed" not in entries:
        return None
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    settings: dict[str, object] = {"prompt": " ".join(prompt.split())}
    if negative.strip():
        settings |= {"negative": " ".join(negative.split()), "method": "np2"}
    try:
        settings |= {our: kind(entries.pop(k)) for k, our, kind in READ if k in entries}
        if "size" in entries:
            width, height = entries.pop("size").split("x")
            settings["size"] = [int(height), int(width)]
    except ValueError:
        return None
    left = f" Not read: {', '.join(f'{k} {v}' for k, v in entries.items())}" if entries else ""
    warnings.warn(
        "another interface wrote this picture; its prompt, negative, steps, seed, scale and size "
        f"are taken, and its weights and initial noise are not.{left}",
        stacklevel=1,
    )
    return settings

"""Cuts CLIP's byte-pair vocabulary to the merges that a list of words needs.

    python weights/mini/training/vocabulary.py bpe_simple_vocab_16e6.txt.gz

writes `weights/mini/tokenizer/vocab.json` and `merges.txt`. The source file (MIT, Copyright (c)
2021 OpenAI) travels in the `open-clip-torch` wheel. The cut keeps all 256 bytes, so any string
still encodes; a word of the list encodes to the same pieces as with the whole vocabulary.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from world import words

# Words that people type, beside those of the captions: negative prompts and connectives. They are
# one token each, but the captions do not use them, so their embeddings are untrained.
EXTRA = """
ugly deformed blurry bad worst low high quality detailed anatomy extra missing hands fingers face
person man woman boy girl people house tree flower water sky sun mountain sea forest street city
big small large tiny old new young happy sad next to left right under above behind front of two
three many no not without wearing holding sitting standing riding eating sleeping playing looking
drawing painting image art style watermark text logo noise broken wrong color colors dark bright
""".split()


def byte_symbols() -> list[str]:
    """CLIP's (GPT-2's) printable stand-ins for the 256 bytes, in its own order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def merges_used(word: str, ranks: dict[tuple[str, str], int]) -> set[tuple[str, str]]:
    """The merges that byte-pair encoding applies to one lower-case ASCII word."""
    parts, used = [*word[:-1], word[-1] + "</w>"], set()
    while pairs := [p for p in zip(parts, parts[1:]) if p in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        used.add(best)
        i = 0
        while i < len(parts) - 1:
            if (parts[i], parts[i + 1]) == best:
                parts[i : i + 2] = ["".join(best)]
            i += 1
    return used


def main(source: str, folder: Path) -> None:
    lines = gzip.decompress(Path(source).read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 48_894 + 1]]  # the first line is a header
    ranks = {pair: i for i, pair in enumerate(merges)}
    used = set().union(*(merges_used(w, ranks) for w in [*words(), *EXTRA]))
    kept = sorted(used, key=ranks.__getitem__)
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(p) for p in kept)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocab + "\n", encoding="utf-8")
    text = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in kept)
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    print(f"{len(tokens)} tokens, {len(kept)} merges in {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the path of bpe_simple_vocab_16e6.txt.gz")
    main(sys.argv[1], Path(__file__).resolve().parents[1] / "tokenizer")

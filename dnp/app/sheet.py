"""The one drawer of labelled grids of pictures: sheets of methods and seeds, wins and losses."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from PIL import Image, ImageDraw, ImageFont

from dnp.methods import METHODS
from dnp.methods.method import formula
from dnp.methods.words import AutoDNP
from dnp.sd import find_weights

GREY = (90, 90, 90)
LABEL = 320  # pixels of the widest label of a row


def contact_sheet(
    rows: Sequence[tuple], columns: Sequence[str] = (), title: str = "", least: int = 160
) -> Image.Image:
    """A labelled grid: one row per (label, pictures) or (label, pictures, words under each).

    Pictures smaller than `least` pixels are enlarged by a whole factor, so that they can be judged.
    """
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=14)
    rows = [(label, pictures, next(iter(words), ())) for label, pictures, *words in rows]
    width, height = rows[0][1][0].size
    factor = max(1, -(-least // max(width, height)))
    cell_w, cell_h, gap, line_h = width * factor, height * factor, 8, 18
    labels = [_label(label, font, small) for label, _, _ in rows]
    heads = [wrap(head, small, cell_w) for head in columns]
    under = [[wrap(text, small, cell_w, most=4) for text in words] for _, _, words in rows]
    title = title if len(title) <= 120 else title[:119] + "…"
    left = max([3 * gap + int(f.getlength(t)) for label in labels for t, f, _ in label] or [gap])
    top = gap + (34 if title else 0) + line_h * max(map(len, heads), default=0) + 4 * bool(heads)
    heights = [cell_h + gap + line_h * max(map(len, texts), default=0) for texts in under]
    wide = left + max(len(pictures) for _, pictures, _ in rows) * (cell_w + gap)
    wide = max(wide, int(font.getlength(title)) + 2 * gap)
    sheet = Image.new("RGB", (wide, top + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, fill="black", font=font)
    for j, lines in enumerate(heads):
        for k, line in enumerate(lines):
            place = left + j * (cell_w + gap) + cell_w / 2, top - 2 - line_h * (len(lines) - k)
            draw.text(place, line, fill=GREY, font=small, anchor="ma")
    y = top
    for label, (_, pictures, _), texts, row_h in zip(labels, rows, under, heights):
        for k, (line, its_font, colour) in enumerate(label):
            place = gap, y + cell_h / 2 + 22 * (k - len(label) / 2)
            draw.text(place, line, fill=colour, font=its_font)
        for j, picture in enumerate(pictures):
            x = left + j * (cell_w + gap)
            sheet.paste(picture.resize((cell_w, cell_h), Image.Resampling.BICUBIC), (x, y))
            for k, line in enumerate(texts[j] if texts else []):
                draw.text((x, y + cell_h + 2 + line_h * k), line, fill=GREY, font=small)
        y += row_h
    return sheet


def _label(text: str, font: ImageFont.FreeTypeFont, small: ImageFont.FreeTypeFont) -> list[tuple]:
    """A row's label as (line, font, colour): its first line is a name, the others explain it."""
    if not text:
        return []
    name, *rest = text.split("\n")
    lines = [(line, font, "black") for line in wrap(name, font, LABEL)]
    return lines + [(line, small, GREY) for part in rest for line in wrap(part, small, LABEL)]


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float, most: int = 1000) -> list[str]:
    """Lines that are no wider than `width` pixels, at most `most` for each line of the text."""
    lines = []
    for own_line in text.splitlines():
        broken = _broken(own_line, font, width)
        lines += broken if len(broken) <= most else [*broken[: most - 1], broken[most - 1] + " …"]
    return lines


def _broken(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """A line, broken between its words, and within a word that is too long."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            longer = word
        while font.getlength(longer) > width and len(longer) > 1:
            fits = (n for n in range(len(longer), 0, -1) if font.getlength(longer[:n]) <= width)
            n = next(fits, 1)
            lines.append(longer[:n])
            longer = longer[n:]
        line = longer
    return [*lines, line]


def compare_sheet(args: SimpleNamespace, results: dict):
    """Methods in rows, seeds in columns; one column has one initial noise. Under the cells n*, and
    what a picture lacks, where the weights have a recogniser of their world."""
    from dnp.sd import recogniser
    from dnp.sd.world import subjects

    wanted = subjects(args.prompt)
    closed = wanted and args.model is None  # a model of one's own has no world with a recogniser
    judge = recogniser.of_weights(find_weights(args.weights), len(wanted)) if closed else None
    judge = judge and recogniser.load_recogniser(judge)
    rows = []
    for method, parts in results.items():
        kind, s = METHODS[method], parts[0].settings["s"]
        text, source = formula(kind)
        label = f"{method}\n{text}\n{source}, s = {s:g}\n{cost(parts)}"
        made = [picture for part in parts for picture in part.images]
        stars = [f"n* = {n}" for part in parts for n in part.negatives]
        words = stars if issubclass(kind, AutoDNP) else [""] * len(made)
        if judge and kind.positive == "p":
            missing = recogniser.lacking(judge, made, args.prompt)
            lacks = [f"lacks {', '.join(m)}" if m else "lacks nothing" for m in missing]
            words = [f"{n}\n{text}".lstrip() for n, text in zip(words, lacks)]
        rows.append((label, made, words))
    seed, images = args.settings.get("seed", 0), args.settings.get("images", 1)
    title = f'p = "{args.prompt}"'
    title += f'    n = "{args.negative}"' if args.negative is not None else ""
    return contact_sheet(rows, [f"seed {seed + i}" for i in range(images)], title)


def cost(parts: list) -> str:
    """The network evaluations of a picture, and its gradient passes if it has any: their means."""
    gradients = [g for part in parts for g in part.gradients]
    nfe = round(sum(p.nfe * len(p.gradients) for p in parts) / len(gradients), 1)
    passes = f", {sum(gradients) / len(gradients):g} gradients" if any(gradients) else ""
    return f"{nfe:g} network evaluations{passes}"

"""The tables and the figure of `--benchmark not`, from the records that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnp.app.png import png, write
from dnp.evaluation.differences import at_scale, holm, says, sign_flip
from dnp.evaluation.negatives import law
from dnp.evaluation.negatives.rules import BASELINES, CONTROLS, HOPE, INSIDE, MARGIN, PAIRS, PRIMARY
from dnp.evaluation.negatives.seen import interval, mean, scores
from dnp.evaluation.negatives.study import GROUPS, Cell, Study
from dnp.evaluation.plots import plot
from dnp.evaluation.records import RunError
from dnp.evaluation.tables import csv_text, markdown

# The figure has the rules that n has a part in, and a colour for each.
UNPLOTTED = (*CONTROLS, "ANSWER", "ANSWER, two-term", "CFG, eta = 1")


@dataclass
class Row:
    """A reported cell with the records of the units that every cell of its group has."""

    cell: Cell
    records: list[dict]

    @property
    def units(self) -> list[list]:
        return [r["rows"] for r in self.records]

    @property
    def scores(self) -> dict[str, np.ndarray]:
        return scores(self.units, self.cell.pairs)

    @property
    def cost(self) -> float:
        return float(np.mean([r["evaluations"] + r["words_evaluations"] for r in self.records]))


def rows_of(study: Study, cells: Sequence[Cell]) -> list[Row]:
    """Of the units that all of these cells have; none where they share none."""
    n = max((study.units(c.family, c.part) for c in cells), default=0)
    there = [k for k in range(n) if all(study.get(c, k) is not None for c in cells)]
    return [Row(c, [study.get(c, k) for k in there]) for c in cells] if there else []


def text(values: np.ndarray, sign: str = "") -> str:
    """A mean of shares and its interval, in percent."""
    numbers = [f"{100 * v:{sign}.0f}" for v in interval(values)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def baseline(rows: Sequence[Row], row: Row) -> Row:
    """CFG of the same group: of eta = 1 for a rule of eta = 1; phi where p is empty."""
    plain = "phi" if row.cell.family == "empty" else "CFG"
    own = BASELINES.get(row.cell.rule, plain).replace("CFG", plain)
    return next(r for r in rows if r.cell.rule == own)


def against(rows: Sequence[Row]) -> dict[str, tuple[np.ndarray, float, float]]:
    """{rule: (done minus CFG's of each picture, p, p by Holm's correction)} of a group's rules."""
    apart = ("CFG", "phi", "the prompt alone", *CONTROLS, *BASELINES.values(), "phi, eta = 1")
    asked = [r for r in rows if r.cell.rule not in apart]
    found = {r.cell.rule: r.scores["done"] - baseline(rows, r).scores["done"] for r in asked}
    p = [sign_flip(d.ravel()) for d in found.values()]
    return dict(zip(found, zip(found.values(), p, holm(p))))


def outcomes(rows: Sequence[Row], group: str, cells: list) -> list[str]:
    """Done, kept and leak of each cell of a group, and done minus CFG's."""
    differences, body = against(rows), []
    for row in rows:
        of, rule = row.scores, row.cell.rule
        leak = text(of["leak"]) if np.isfinite(of["leak"]).any() else "-"
        line = [rule, row.cell.setting.said, text(of["done"]), text(of["kept"]), leak]
        if rule in differences:
            d, _, p = differences[rule]
            less = mean(baseline(rows, row).scores["kept"]) - mean(of["kept"])
            line += [f"{text(d, '+')}, p {says(p)}", "yes" if less <= MARGIN + 1e-9 else "no"]
        else:
            line += ["", ""]
        body.append([*line, f"{row.cost:g}"])
        for name in ("done", "kept", "leak"):
            cells.append([group, rule, row.cell.setting.said, name, of[name].size,
                          *(f"{v:.4g}" for v in interval(of[name]))])  # fmt: skip
    heads = ["rule", "setting", "done, %", "kept, %", "leak, %", "done minus CFG's", "keeps p",
             "evaluations"]  # fmt: skip
    return markdown(heads, body)


def not_there(rows: Sequence[Row]) -> list[str]:
    """A sentence for the pictures that are not there; none where all are."""
    missing = sum(x is None for row in rows for unit in row.units for x in unit)
    said = "Pictures that overflowed, or whose DNS image did: {}. They show neither p nor n."
    return [said.format(missing), ""] if missing else []


def verdict(rows: Sequence[Row]) -> str:
    """The primary outcome, in a sentence."""
    best = None
    for rule, (d, _, p) in against(rows).items():
        row = next(r for r in rows if r.cell.rule == rule)
        less = mean(baseline(rows, row).scores["kept"]) - mean(row.scores["kept"])
        if less <= MARGIN + 1e-9 and (best is None or mean(d) > best[1]):
            best = rule, mean(d), text(d, "+"), p
    if best is None:
        return "**Primary outcome.** No rule keeps p as CFG does, within 5 points."
    rule, gain, said, p = best
    met = "and meets" if gain >= HOPE else "and no rule meets"
    own, plain = BASELINES.get(rule, "CFG"), ""
    if own != "CFG":
        done = {r.cell.rule: r.scores["done"] for r in rows}
        plain = f" (to {own}; to CFG of eta = 0 it is {text(done[rule] - done['CFG'], '+')})"
    return (
        f"**Primary outcome.** Of the rules that keep p within 5 points of CFG, {rule} has the "
        f"greatest done: {said} points over CFG{plain}, p {says(p)} by Holm's correction over all "
        f"rules, {met} the hope of +{100 * HOPE:.0f}."
    )


def rest(rows: Sequence[Row], truth: dict) -> list[str]:
    """Total variations to the law and to the prompt at s = 1, each with its floor."""
    alone = next((r for r in rows if r.cell.rule == "the prompt alone"), None)
    pairs, body = rows[0].cell.pairs, []
    laws = {kind: [law.law(truth, kind, pair) for pair in pairs] for kind in law.KINDS}
    for row in rows:
        line = [row.cell.rule]
        for other in (None, alone):
            for kind in law.KINDS:
                own = law.seen(row.units, kind, pairs)
                if other is None:
                    to, least = laws[kind], law.floor(own, laws[kind])
                elif other is row:
                    line.append("")
                    continue
                else:
                    to = law.seen(other.units, kind, pairs)
                    least = law.floor(own, laws[kind], to)
                tv = law.distance(own, to)
                line.append("-" if np.isnan(tv) else f"{tv:.2f} ({least:.2f})")
            if alone is None:
                break
        body.append([*line, str(int(row.scores["done"].sum()))])
    heads = ["rule", "settings, to the law", "colours, to the law"]
    heads += [] if alone is None else ["settings, to s = 1", "colours, to s = 1"]
    return markdown([*heads, "pictures"], body)


# ------------------------------------------------------------------------------- effective scale


def strength(row: Row) -> tuple[np.ndarray, np.ndarray, list[int]] | None:
    """The effective scale and the rest, (steps, pictures), and the levels t; None if unmeasured."""
    steps = row.records[0]["strength"]
    if not steps:
        return None
    return *(np.array([step[i] for step in steps]) for i in (1, 2)), [step[0] for step in steps]


def strengths(rows: Sequence[Row], group: str, by_step: list) -> list[str]:
    """A line for each cell: the effective scale in each third of the steps, and the rest."""
    body = []
    for row in rows:
        if (found := strength(row)) is None:
            continue
        s_eff, off, levels = found
        thirds = np.array_split(np.arange(len(levels)), 3)
        body.append([row.cell.rule, row.cell.setting.said, f"{np.mean(s_eff):.2f}",
                     *(f"{s_eff[i].mean():.2f}" for i in thirds if len(i)),
                     *(f"{off[i].mean():.2f}" for i in thirds if len(i))])  # fmt: skip
        by_step += [[group, row.cell.rule, row.cell.setting.said, t,
                     f"{a.mean():.4g}", f"{b.mean():.4g}"]
                    for t, a, b in zip(levels, s_eff, off)]  # fmt: skip
    heads = ["rule", "setting", "effective scale", "first third", "middle", "last",
             "rest: first third", "middle", "last"]  # fmt: skip
    return markdown(heads, body) if body else []


def both(first: Sequence[Row], second: Sequence[Row]) -> list[str]:
    """Two groups of the family outside beside each other: kept, and how far the noise is moved at
    right angles to dp, in lengths of dp, in the first and in the last third of the steps."""
    lines: dict[str, list[str]] = {}
    for row in (*first, *second):
        aside = ""
        if found := strength(row):
            thirds = np.array_split(found[1], 3)
            aside = f"{thirds[0].mean():.1f} / {thirds[-1].mean():.1f}"
        line = [row.cell.setting.said, text(row.scores["kept"]), aside]
        lines[row.cell.rule] = [*lines.get(row.cell.rule, []), *line]
    kinds = ("for a setting", "for a colour")
    heads = ["rule", *(x for kind in kinds for x in (f"as {kind}", "kept, %", "aside"))]
    return markdown(heads, [[rule, *line] for rule, line in lines.items()])


def every_scale(curves: dict[str, Sequence[Row]]) -> list[str]:
    """Done of CFG at each of its scales: its best here is chosen on the pictures themselves."""
    body = [[rule, *(text(r.scores["done"]) for r in rows)] for rule, rows in curves.items()]
    settings = next(iter(curves.values()))
    return markdown(["done, %", *(r.cell.setting.said for r in settings)], body)


def off_the_curve(rows: Sequence[Row], curve: Sequence[Row]) -> tuple[list[str], dict]:
    """Done minus that of CFG at the same effective scale, which lies between two of CFG's; and the
    points of the figure. The scales are means over steps and pictures."""
    known = sorted((float(r.cell.setting.settings["s"]), r.scores["done"]) for r in curve)
    points = {"CFG": [(s, *(100 * v for v in interval(d))) for s, d in known]}
    body = []
    for row in rows:
        if row.cell.rule in ("CFG", "the prompt alone") or (found := strength(row)) is None:
            continue
        s, done = float(found[0].mean()), row.scores["done"]
        cfg, at = at_scale(known, s)
        n = min(cfg.shape[1], done.shape[1])
        d = done[:, :n] - cfg[:, :n]
        points[row.cell.rule] = [(s, *(100 * v for v in interval(done)))]
        beyond = "" if at == s else f"; compared at {at:g}"
        body.append([row.cell.rule, f"{s:.2f}{beyond}", text(done), text(d, "+")])
    heads = ["rule", "effective scale", "done, %", "minus CFG's at that scale"]
    return markdown(heads, body), points


# ---------------------------------------------------------------------------------------- report


def choosing(study: Study, family: str) -> tuple[list[str], list[list]]:
    """The settings that were chosen among, with what was seen; the chosen ones are marked."""
    found = study.choosing(family)
    if not found:
        return [], []
    try:
        chosen = study.chosen(family)
    except RunError:
        chosen = {}
    csv, lines = [], {}
    for cell, of in found.items():
        mark = "*" if chosen.get(cell.rule) == cell.setting else ""
        lines.setdefault(cell.rule, []).append(
            f"{mark}{cell.setting.said}: {100 * mean(of['done']):.0f} / "
            f"{100 * mean(of['kept']):.0f}{mark}"
        )
        csv.append([family, cell.rule, cell.setting.said, of["done"].size,
                    *(f"{mean(of[k]):.4g}" for k in ("done", "kept", "leak")), mark])  # fmt: skip
    body = [[rule, "; ".join(of)] for rule, of in lines.items()]
    return markdown(["rule", "done / kept, % (chosen in italics)"], body), csv


def make(study: Study, truth_file: Path | None) -> str:
    """Writes tables.md, three CSVs and the figure into the folder, and returns the text. What is
    not there yet is said to be missing."""
    truth = law.read(truth_file) if truth_file else None
    lines, cells, by_step, chosen_csv, outside = [], [], [], [], []
    if truth:
        of = truth["eyes"]
        lines += [f"Settings are seen by CLIP, which names that of {of['settings right']} of "
                  f"{of['of']} true scenes.", ""]  # fmt: skip
    for name, family, source in GROUPS:
        if family not in study.families or source not in study.families:
            continue
        lines += [f"## {name}", ""]
        if family == source:
            table, csv = choosing(study, family)
            chosen_csv += csv
            count = study.units(family, "choosing") * len(PAIRS[family]["choosing"])
            lines += [f"The choice, {count} pictures of each setting, {study.steps['choosing']} "
                      "steps:", "", *table]  # fmt: skip
        try:
            rows = rows_of(study, study.reported(family, source))
        except RunError:
            rows = []
        if not rows:
            lines += ["Not run to the end: nothing is reported here.", ""]
            continue
        pairs, count = rows[0].cell.pairs, rows[0].scores["done"].size
        lines += [f"{count} pictures of each cell: {len(pairs)} pairs x {count // len(pairs)} "
                  f"seeds, {study.steps['reporting']} steps; 95 % intervals over the seeds of each "
                  "pair. p is of sign flips of the pictures, two-sided, with Holm's correction "
                  "over the rules.", ""]  # fmt: skip
        if truth and family in INSIDE:
            share = np.mean([law.share_of_n(truth, pair) for pair in pairs])
            lines += [f"The world's own share of n in scenes of p: {100 * share:.0f} %.", ""]
        if family == PRIMARY:
            lines += [verdict(rows), ""]
        lines += [*outcomes(rows, name, cells), *not_there(rows)]
        if truth:
            lines += ["The rest of the pictures that show p and not n, total variations with their "
                      "floors:", "", *rest(rows, truth)]  # fmt: skip
        lines += strengths(rows, name, by_step)
        outside += [rows] if family == "outside" else []
        curves = {k: rows_of(study, of) for k, of in study.curves().items() if family == PRIMARY}
        if all(curves.values()) and curves:
            table, points = off_the_curve(rows, curves["CFG"])
            lines += [
                "CFG at every scale, on the reported pairs (exploratory):",
                "",
                *every_scale(curves),
                "Against CFG at the same effective scale:",
                "",
                *table,
            ]
            shown = {k: of for k, of in points.items() if k not in UNPLOTTED}
            figure = plot(shown, "effective scale, mean over steps", "done, %").image()
            write(study.folder / "figure.png", png(figure))
    if len(outside) > 1:
        lines += ["## outside, in short", "", *both(*outside)]
    said = "\n".join(lines)
    heads = ["family", "rule", "setting"]
    for name, columns, body in (
        ("cells", ["outcome", "pictures", "mean", "low", "high"], cells),
        ("strength", ["t", "effective_scale", "rest"], by_step),
        ("choosing", ["pictures", "done", "kept", "leak", "chosen"], chosen_csv),
    ):
        write(study.folder / f"{name}.csv", csv_text([*heads, *columns], body).encode())
    write(study.folder / "tables.md", (said + "\n").encode())
    return said

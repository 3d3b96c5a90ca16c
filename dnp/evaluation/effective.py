"""How much of CFG there is in each method of a run, and what is left of its gain there.

    s_eff = <eps - eps_phi, dp> / |dp|^2,   rest = |eps - eps_phi - s_eff dp| / |dp|
    dp = eps_p - eps_phi, all three at the z_t of the method's own chain

The scale is our reading of the abstract of arXiv:2602.22570 (`dnp.guidance.effective_scale`): a
gain over CFG that is gone at equal s_eff was only stronger guidance. `--effective-scale` of
`python -m dnp.evaluation` measures each method of a grid on the first seed of a dozen of its
prompts, and compares it with CFG at that scale, between two scales of CFG in the same grid.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dnp.app.png import write
from dnp.errors import NonFiniteError, SettingsError
from dnp.evaluation.contestants import Contestant
from dnp.evaluation.differences import at_scale
from dnp.evaluation.grid import Run
from dnp.evaluation.plots import plot
from dnp.evaluation.report import drawn, write_drawing
from dnp.evaluation.strength import APART, along
from dnp.evaluation.tables import COLUMNS, Row, by_picture, csv_text, grouped, interval, markdown
from dnp.guidance import effective_scale

UNSEEN = "nothing looks at these pictures; give --recogniser, --clip or --metric."
PROMPTS = 12  # whose chains are followed, evenly from the grid
Steps = dict[int, tuple[float, float]]  # at each t: s_eff and the rest, means over the chains


def is_curve(method: Contestant) -> bool:
    """Whether it is CFG with nothing but a scale."""
    return method.name == "cfg" and not method.options.keys() - {"s"}


def require(work: Run, columns: Sequence[str]) -> None:
    """SettingsError for a grid without two scales of CFG, between which another could lie, and for
    tables without a column."""
    if not columns:
        raise SettingsError(UNSEEN)
    plain = [(m, s) for m in work.grid.methods if is_curve(m) for s in work.grid.scales]
    if len({work.settings(*one)["s"] for one in plain}) < 2:
        raise SettingsError(
            "--effective-scale compares with CFG at several scales; add two or more to --method, "
            "such as cfg:s=1 cfg:s=3 cfg:s=8."
        )


def by_step(work: Run, method: Contestant, s: float | None = None) -> Steps:
    """The effective scale and the rest of a method at each step; none where each chain overflowed.
    SettingsError for a method of `strength.APART`."""
    texts, seed, found = [p.text for p in work.grid.prompts], work.grid.seeds[0], {}
    some = dict.fromkeys(texts[i * len(texts) // PROMPTS] for i in range(PROMPTS))
    for prompt in tqdm(some, desc=method.label, unit="prompt"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the run has told them
                steps = along(work, method, s, prompt, seed, ("phi", "p"))
        except NonFiniteError:
            continue
        for t, eps, eps_phi, eps_p in steps:
            row = tuple(x.item() for x in effective_scale(eps, eps_phi, eps_p))
            if np.isfinite(row).all():  # not of a prompt that is phi
                found.setdefault(t, []).append(row)
    return {t: tuple(np.mean(rows, 0).tolist()) for t, rows in found.items()}


def make(work: Run, records: Sequence[dict], folder: Path, primary: str | None) -> str:
    """Measures every method and writes `effective.md`, `effective.csv` (a line for each step), and
    the figure `effective.png`, `.pdf`: the column of the run's figures against the effective scale.
    Returns the text. SettingsError where no picture has a number."""
    rows = {(r.method, r.scale): r for r in grouped(records)}
    if (column := drawn([*rows.values()], primary)) is None:
        raise SettingsError(UNSEEN)
    heading, factor, digits = COLUMNS[column]
    found, curve, points, csv, body = {}, {}, {}, [], []
    for method in work.grid.methods:
        for scale in work.grid.scales:
            row = rows[method.label, scale]
            if is_curve(method):
                curve[work.settings(method, scale)["s"]] = row
            elif method.name not in APART and (steps := by_step(work, method, scale)):
                found[method.label, scale] = steps
    pictures = sorted(
        set.intersection(*(set(by_picture(r.records, column)) for r in rows.values()))
    )
    prompts = [prompt for prompt, _ in pictures]

    def cell(values: np.ndarray, sign: str = "") -> tuple[str, list[float]]:
        """Pictures as a mean with its interval over prompts: its text and its numbers."""
        by_prompt: dict[str, list[float]] = {}
        for prompt, value in zip(prompts, values):
            by_prompt.setdefault(prompt, []).append(factor * value)
        numbers = [*interval([*by_prompt.values()])]
        mean, low, high = (f"{v:{sign}z.{digits}f}" for v in numbers)
        return (mean if np.isnan(numbers[1]) else f"{mean} [{low}, {high}]"), numbers

    def of(row: Row) -> np.ndarray:
        values = by_picture(row.records, column)
        return np.array([values[picture] for picture in pictures], np.float64)

    known = [(s, of(curve[s])) for s in sorted(curve)]
    points["CFG"] = [(s, *cell(values)[1]) for s, values in known]
    for key, steps in found.items():
        s_eff, rest = np.mean([*steps.values()], 0)
        cfg, at = at_scale(known, float(s_eff))
        text, numbers = cell(of(rows[key]))
        beyond = "" if at == s_eff else f"; compared at {at:g}"
        less, _ = cell(of(rows[key]) - cfg, "+")
        body.append([rows[key].name, f"{s_eff:.2f}{beyond}", f"{rest:.2f}", text, less])
        points.setdefault(rows[key].called, []).append((float(s_eff), *numbers))
        csv += [[*key, t, f"{a:.4g}", f"{b:.4g}"] for t, (a, b) in steps.items()]
    apart = [m.label for m in work.grid.methods if m.name in APART]
    said = [f"Without an effective scale: {', '.join(apart)}.", ""] if apart else []
    heads = ["method", "effective scale", "rest", heading, "minus CFG's at that scale"]
    text = "\n".join([
        f"Effective scales, means over the steps of {min(PROMPTS, len(work.grid.prompts))} chains; "
        f"CFG was run at s = {', '.join(f'{s:g}' for s, _ in known)}:", "",
        *markdown(heads, body), *said,
    ])  # fmt: skip
    heads = ["method", "scale", "t", "effective_scale", "rest"]
    write(folder / "effective.csv", csv_text(heads, csv).encode())
    write(folder / "effective.md", text.encode())
    points = {name: sorted(of_method) for name, of_method in points.items()}
    write_drawing(folder / "effective", plot(points, "effective scale, mean over steps", heading))
    return text

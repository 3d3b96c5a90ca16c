"""The study behind `--benchmark not`: what it makes, in which order, and what it chooses.

`command.py` has the command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tqdm import tqdm

from dnp.evaluation import record_keys
from dnp.evaluation.negatives import making
from dnp.evaluation.negatives.rules import (
    ALONE,
    CONTROLS,
    INSIDE,
    MARGIN,
    PAIRS,
    PRIMARY,
    REFERENCE,
    RULES,
    SEED_FROM,
    Setting,
    rules_of,
)
from dnp.evaluation.negatives.seen import mean, scores
from dnp.evaluation.records import RunError, Store, writing

# A group of reported cells: its name, the family of its pairs, and the family that chose.
GROUPS = (
    ("settings", "settings", "settings"),
    ("colours", "colours", "colours"),
    ("outside, as strong as for settings", "outside", "settings"),
    ("outside, as strong as for colours", "outside", "colours"),
    ("empty", "empty", "empty"),
)
FAMILIES = tuple(PAIRS)


@dataclass(frozen=True)
class Cell:
    """A setting of a rule on the pairs of a family; `of` says which n, None the pairs' own."""

    rule: str
    setting: Setting
    family: str
    part: str  # choosing or reporting
    of: str | None = None

    @property
    def pairs(self) -> list[list[str]]:
        return PAIRS[self.family][self.part]

    def seeds(self, k: int) -> list[int]:
        """Of the unit k, one for each pair."""
        n = len(self.pairs)
        return [SEED_FROM[self.part] + k * n + i for i in range(n)]


class Study:
    """A study in a folder: what is there, what is missing, and what was chosen by it."""

    def __init__(
        self, folder: Path | None, circumstances: dict, steps: dict[str, int],
        pictures: dict[str, int], families: Sequence[str] = FAMILIES,
    ):  # fmt: skip
        """`steps` and `pictures` are of the choosing and of the reporting part; without a folder
        it is a plan."""
        self.folder, self.circumstances, self.known = folder, circumstances, {}
        self.steps, self.pictures, self.families = steps, pictures, families
        if folder is not None:
            with writing(folder):
                self.store = Store(folder / "records")

    def units(self, family: str, part: str) -> int:
        """How many units a cell has: its pictures over its pairs, rounded up."""
        n = len(PAIRS[family][part])
        return -(-self.pictures[part] // n) if n else 0

    def content(self, cell: Cell, k: int) -> dict:
        return making.content(
            cell.setting, cell.of, cell.pairs, cell.seeds(k), self.steps[cell.part],
            self.circumstances,
        )  # fmt: skip

    def get(self, cell: Cell, k: int) -> dict | None:
        key = record_keys.key(self.content(cell, k))
        if key not in self.known:
            record = self.store.get(key)
            if record is None:
                return None
            self.known[key] = record
        return self.known[key]

    def put(self, cell: Cell, k: int, record: dict) -> None:
        content = self.content(cell, k)
        self.store.put(record_keys.key(content), {**record, "content": content})

    def rows(self, cell: Cell, k: int) -> list[dict] | None:
        """What is seen in the pictures of a unit; None if it is not there."""
        record = self.get(cell, k)
        return record and record["rows"]

    # ------------------------------------------------------------------------------------ choosing

    def candidates(self, family: str) -> list[Cell]:
        """The cells of the choosing part; CFG's reference is one of them."""
        found = [
            Cell(rule, setting, family, "choosing")
            for rule, settings in rules_of(family).items()
            for setting in settings
        ]
        return found if PAIRS[family]["choosing"] else []

    def choosing(self, family: str) -> dict[Cell, dict]:
        """The scores of every candidate; of some only, where the family is not finished."""
        found = {}
        for cell in self.candidates(family):
            rows = [self.rows(cell, k) for k in range(self.units(family, "choosing"))]
            if None not in rows:
                found[cell] = scores(rows, cell.pairs)
        return found

    @cache  # noqa: B019
    def chosen(self, family: str) -> dict[str, Setting]:
        """The setting of each rule, by the choosing part. RunError where that is not finished."""
        found = self.choosing(family)
        if len(found) < len(self.candidates(family)):
            raise RunError(
                f"{self.folder}: the settings of the family {family} are not chosen yet; type the "
                "run's command again."
            )
        return {
            rule: best({c.setting: of for c, of in found.items() if c.rule == rule}, floor)
            for floor in [self.floor(found)]
            for rule in rules_of(family)
        }

    @staticmethod
    def floor(found: dict[Cell, dict]) -> float:
        """The least kept: that of CFG at the weights' scale less the margin; for phi, its own."""
        reference = {c.setting: of for c, of in found.items() if c.rule in ("CFG", "phi")}
        return mean(reference.get(REFERENCE, reference.get(ALONE))["kept"]) - MARGIN

    # ----------------------------------------------------------------------------------- reporting

    def reported(self, family: str, source: str) -> list[Cell]:
        """The cells of a group: each rule at its chosen setting, and the controls."""
        chosen = self.chosen(source)
        cells = [Cell(rule, setting, family, "reporting") for rule, setting in chosen.items()]
        if family == "empty":
            return cells
        cells.insert(0, Cell("the prompt alone", ALONE, family, "reporting"))
        if family in INSIDE:
            two_term = chosen["two-term"]
            cells.append(Cell(CONTROLS[0], two_term, family, "reporting", making.N_STAR))
            cells.append(Cell(CONTROLS[1], two_term, family, "reporting", making.RANDOM))
        return cells

    def curves(self) -> dict[str, list[Cell]]:
        """CFG at each of its scales, which is more than was chosen: what its best would have been,
        and the curve of the figure."""
        return {
            rule: [Cell(rule, setting, PRIMARY, "reporting") for setting in RULES[rule]]
            for rule in ("CFG", "CFG, eta = 1")
        }

    def work(self) -> Iterator[list[tuple[Cell, int]]]:
        """Lists of (cell, unit) in the order of the work; each needs the ones before it."""
        for family in self.families:
            n = self.units(family, "choosing")
            yield [(cell, k) for k in range(n) for cell in self.candidates(family)]
            for _, pairs, source in GROUPS:
                if pairs == family and source in self.families:
                    n, cells = self.units(family, "reporting"), self.reported(family, source)
                    yield [(cell, k) for k in range(n) for cell in cells]
        if PRIMARY in self.families:
            n = self.units(PRIMARY, "reporting")
            yield [(cell, k) for k in range(n) for of in self.curves().values() for cell in of]


def best(found: dict[Setting, dict], floor: float) -> Setting:
    """The greatest done of the settings that keep p, else the greatest kept; of equal ones the
    first, which is the weaker."""
    keeps = {x: of for x, of in found.items() if mean(of["kept"]) >= floor}
    by = "done" if keeps else "kept"
    return max(keeps or found, key=lambda x: mean((keeps or found)[x][by]))


# ------------------------------------------------------------------------------------ running it


def run(study: Study, model, eyes, rank: int, world: int) -> None:
    """Makes what is missing: this process's share, then what the others have not made yet."""
    with tqdm(desc=f"process {rank + 1} of {world}", unit="picture") as bar:
        for units in study.work():
            bar.total = (bar.total or 0) + sum(len(cell.pairs) for cell, _ in units)
            bar.refresh()
            for cell, k in units[rank::world] + [
                u for i, u in enumerate(units) if i % world != rank
            ]:
                if study.get(cell, k) is None:
                    strength = cell.part == "reporting" and k == 0 and cell.family != "empty"
                    record = making.unit(
                        model, eyes, cell.setting, cell.of, cell.pairs, cell.seeds(k),
                        study.steps[cell.part], strength,
                    )  # fmt: skip
                    study.put(cell, k, record)
                bar.update(len(cell.pairs))

"""`dnp.json`: what a weights folder recommends, and its world if that is closed.

`scale` maps methods to scales, `attend_excite` settings of ae (`dnp/settings.py`) to values;
`words` are all those of a closed world, and `things` those that a picture can be of.
"""

from __future__ import annotations

from pathlib import Path

from dnp.errors import SettingsError, WeightsError
from dnp.sd import weights
from dnp.settings import EXCITATION
from dnp.validation import check, is_finite

Recommended = tuple[dict[str, float], tuple[str, ...], tuple[str, ...], dict[str, object]]
NONE: Recommended = ({}, (), (), {})


def read(folder: Path) -> Recommended:
    """Scales, words, things and settings; WeightsError for a file that cannot be."""
    file = folder / "dnp.json"
    if not file.exists():
        return NONE
    d = weights.read_json(file)
    scales, excite = d.get("scale", {}), d.get("attend_excite", {})
    if not isinstance(scales, dict) or not all(map(is_finite, scales.values())):
        raise WeightsError(f"{file}: scale must map methods to finite numbers; restore the file.")
    texts = {name: d.get(name, []) for name in ("words", "things")}
    for name, text in texts.items():
        if not isinstance(text, list) or not all(isinstance(w, str) for w in text):
            raise WeightsError(f"{file}: {name} must be a list of words; restore the file.")
    try:
        if not isinstance(excite, dict) or not excite.keys() <= EXCITATION.keys():
            raise SettingsError(f"choose {', '.join(EXCITATION)}.")
        check(excite, "ae")
    except SettingsError as e:
        raise WeightsError(f"{file}: attend_excite is not possible: {e}") from None
    scales = {method: float(s) for method, s in scales.items()}
    return scales, tuple(texts["words"]), tuple(texts["things"]), excite

"""`dnp.json`: what a weights folder recommends, and its world if that is closed.

`scale` maps methods to scales, `attend_excite` settings of ae, which checks them, to values;
`words` are all those of a closed world, and `things` those that a picture can be of.
"""

from __future__ import annotations

from pathlib import Path

from dnp.errors import WeightsError, is_finite
from dnp.sd.files import tensors

Recommended = tuple[dict[str, float], tuple[str, ...], tuple[str, ...], dict[str, object]]
NONE: Recommended = ({}, (), (), {})


def read(folder: Path) -> Recommended:
    """Scales, words, things and settings; WeightsError for a file that cannot be."""
    file = folder / "dnp.json"
    if not file.exists():
        return NONE
    d = tensors.read_json(file)
    scales, excite = d.get("scale", {}), d.get("attend_excite", {})
    if not isinstance(scales, dict) or not all(map(is_finite, scales.values())):
        raise WeightsError(f"{file}: scale must map methods to finite numbers; restore the file.")
    texts = {name: d.get(name, []) for name in ("words", "things")}
    for name, text in texts.items():
        if not isinstance(text, list) or not all(isinstance(w, str) for w in text):
            raise WeightsError(f"{file}: {name} must be a list of words; restore the file.")
    if not isinstance(excite, dict):
        raise WeightsError(f"{file}: attend_excite must map settings to values; restore the file.")
    scales = {method: float(s) for method, s in scales.items()}
    return scales, tuple(texts["words"]), tuple(texts["things"]), excite

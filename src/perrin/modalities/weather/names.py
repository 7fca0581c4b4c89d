"""What fields of a file are called: a variable on levels is a field for each level, `zg500` of `zg` at 500 hPa."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from perrin.errors import PerrinError

if TYPE_CHECKING:  # a model runs where there is no xarray
    from perrin.modalities.weather.fields import Fields

_HECTOPASCALS = {
    "hPa": 1.0,
    "mbar": 1.0,
    "mb": 1.0,
    "millibar": 1.0,
    "millibars": 1.0,
    "Pa": 0.01,
    "kPa": 10.0,
}
_VECTORS = ("u", "v", "ua", "va", "uas", "vas", "u10", "v10")


def named(fields: Fields) -> dict[str, str]:
    """The part of a file that each name is of: `zg500` of `zg@500` or, where levels are in Pa, of `zg@50000`.

    A level of another kind is named by its number, and left out where it is the only one.

    Raises:
        PerrinError: two have one name.
    """
    out: dict[str, str] = {}
    for part, p in fields.parts.items():
        words = [p.variable]
        for (dim, index), place in zip(p.at, part.split("@")[1:]):
            coordinate = fields.dataset.coords.get(dim)
            scale = None if coordinate is None else _HECTOPASCALS.get(str(coordinate.attrs.get("units", "")))
            if coordinate is not None and scale is not None:
                words.append(f"{float(coordinate.values[index]) * scale:g}")
            elif fields.dataset.sizes[dim] > 1:
                words.append(place)
        name = re.sub(r"\W", "_", "".join(words))
        if name in out:
            raise PerrinError(
                f"expected fields of different names, given {out[name]} and {part} in {fields.label}, which are both called "
                f"{name}: rename one"
            )
        out[name] = part
    return out


def attributes(fields: Fields, part: str) -> dict[str, str]:
    """What is kept of a variable's attributes."""
    found = fields.dataset[fields.parts[part].variable].attrs
    return {k: str(found[k]) for k in ("standard_name", "long_name", "units", "cell_methods") if k in found}


def is_vector(name: str, words: dict[str, str]) -> bool:
    """Whether a field is a component of a vector, by its standard name, or by its own where it has none."""
    standard = words.get("standard_name", "")
    if not standard:
        return name.rstrip("0123456789") in _VECTORS or name in _VECTORS
    return bool({"eastward", "northward", "x", "y"} & set(standard.split("_")))

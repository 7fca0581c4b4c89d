"""Rain and other amounts: the interval that values are sums or means over, and their unit.

A kilogram of water covers a square metre by a millimetre. An amount a over an interval T is the rate r = a / T. By CF 1.11
the bounds of time say how long T is (chapter 7.1), and `cell_methods` whether values are sums, means or of an instant (7.3);
in a file without bounds T is taken to be the distance of its times, and where it has one time only, the interval that
`cell_methods` names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from perrin.errors import PerrinError, warn

if TYPE_CHECKING:  # the model runs where there is no xarray
    from perrin.modalities.weather.fields import Fields

_SECONDS = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hr": 3600, "hour": 3600}
_SECONDS |= {"d": 86400, "day": 86400}
_DEPTHS = {"kg m-2": 1.0, "mm": 1.0, "cm": 10.0, "m": 1000.0, "in": 25.4, "inch": 25.4}
"""Water, in kg m⁻²."""

STANDARD_NAMES = (
    "precipitation_amount",
    "precipitation_flux",
    "rainfall_amount",
    "rainfall_flux",
    "rainfall_rate",
    "lwe_precipitation_rate",
    "lwe_thickness_of_precipitation_amount",
    "thickness_of_rainfall_amount",
)
"""CF's names of what is the same but for its unit, and for snow."""


@dataclass(frozen=True)
class WaterUnit:
    """A unit of water.

    Arguments:
        depth: kg m⁻² in one.
        seconds: in the time that it is for, of rates; `None` for amounts.
    """

    depth: float
    seconds: float | None = None


def parse_unit(text: str) -> WaterUnit | None:
    """`kg m-2`, `mm`, `mm/h`, `kg m**-2 s**-1`, …; `None` for what is no water."""
    words = text.strip().replace("**", "").replace("^", "").replace("/m2", " m-2").replace(".", " ")
    words = re.sub(r"\s+of\s+water(\s+equivalent)?", "", words)
    match = re.fullmatch(r"(.+?)(?:\s*/\s*([a-zA-Z]+)|\s+([a-zA-Z]+)-1)?", words)
    if not match:
        return None
    depth, time = _DEPTHS.get(" ".join(match[1].split())), match[2] or match[3]
    seconds = None if time is None else _SECONDS.get(time, _SECONDS.get(time.rstrip("s").lower()))
    if depth is None or (time and seconds is None):
        return None
    return WaterUnit(depth, seconds)


def factor(given: str, wanted: str, interval: float | None) -> float | None:
    """What values in one unit are multiplied by for another; `None` where they cannot be converted.

    Arguments:
        given, wanted: units.
        interval: of an amount that is made of a rate, or the other way round, seconds.
    """
    if given == wanted:
        return 1.0
    a, b = parse_unit(given), parse_unit(wanted)
    if a is None or b is None:
        return None
    out = a.depth / b.depth
    if (a.seconds is None) == (b.seconds is None):
        return out * (b.seconds or 1.0) / (a.seconds or 1.0)
    if interval is None:
        return None
    return out * interval / a.seconds if a.seconds else out * (b.seconds or 1.0) / interval


def method(fields: Fields, part: str) -> tuple[str, float | None]:
    """What `cell_methods` says of time, such as `sum`, or an empty word; and the interval there, seconds."""
    words = str(fields.dataset[fields.parts[part].variable].attrs.get("cell_methods", ""))
    match = re.search(r"\b(?:time|forecast_period):\s+(?:\w+:\s+)*(\w+)[^()]*?(?:\(([^)]*)\)|$|\w+:)", words)
    if not match:
        return "", None
    found = re.search(r"interval:\s*([\d.]+)\s*([a-zA-Z]+)", match[2] or "")
    scale = _SECONDS.get(found[2], _SECONDS.get(found[2].rstrip("s"))) if found else None
    return match[1], float(found[1]) * scale if found and scale else None


def intervals(fields: Fields, part: str) -> tuple[float, float] | None:
    """The shortest and the longest interval that values are of, seconds; `None` where nothing says so."""
    word, named = method(fields, part)
    if word == "point":
        return 0.0, 0.0
    name = next((n for n in ("forecast_period", "time") if n in fields.dataset.coords), None)
    if name is None:
        return None if named is None else (named, named)
    bounds = fields.dataset.get(str(fields.dataset[name].attrs.get("bounds", "")))
    if bounds is not None:
        found = _lengths(np.diff(bounds.values.reshape(-1, 2), axis=1).ravel(), fields, name)
    elif fields.dataset.sizes.get(name, 1) > 1:
        apart = fields.times if name == "time" else [lead.seconds for lead in fields.leads]
        steps = _lengths(np.diff(np.array(apart)), fields, None)
        found = [min(steps)]  # times between may be left out
    else:
        found = [] if named is None else [named]
    return (min(found), max(found)) if found and min(found) > 0 else None


def _lengths(found: Any, fields: Fields, name: str | None) -> list[float]:
    """Seconds of differences of times, or of numbers in the unit of a coordinate."""
    unit = "s" if name is None else str(fields.dataset[name].attrs.get("units", "s"))
    scale = _SECONDS.get(unit, _SECONDS.get(unit.rstrip("s"), 0))
    if found.dtype.kind == "m":
        return [float(v / np.timedelta64(1, "s")) for v in found]
    return [v.total_seconds() if hasattr(v, "total_seconds") else float(v) * scale for v in found]


def check_interval(fields: Fields, part: str, wanted: float | None) -> None:
    """Values must be of about the interval that a model was trained on, within a factor of two.

    Arguments:
        fields, part: the file, and its variable.
        wanted: seconds; `None`: the model does not know.

    Raises:
        PerrinError: they are of another.
    """
    word, _ = method(fields, part)
    if word and word not in ("sum", "mean", "point"):
        raise PerrinError(
            f"expected sums or means over time, given {part} with cell_methods 'time: {word}' in {fields.label}: choose "
            "another variable"
        )
    if wanted is None:
        return
    found = intervals(fields, part)
    if found is None:
        warn(
            f"{fields.label} does not say over how long {part} is: taken to be {duration(wanted)} (the bounds of its "
            "times would say it)"
        )
        return
    if found == (wanted, wanted) or wanted / 2 <= found[0] <= found[1] <= 2 * wanted:
        return
    given = " to ".join(dict.fromkeys(map(duration, found)))
    raise PerrinError(
        f"expected {part} over about {duration(wanted)}, as in training, given {given} in {fields.label}: make sums over "
        f"{duration(wanted)}, set the bounds of time if they are, or train a model for yours (perrin train "
        "weather/downscale --amounts)"
    )


def duration(seconds: float) -> str:
    """`10 minutes`."""
    if not seconds:
        return "an instant"
    sizes = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}
    unit = next((u for u, size in sizes.items() if seconds >= size), "second")
    number = seconds / sizes[unit]
    return f"{number:.4g} {unit}{'' if number == 1 else 's'}"

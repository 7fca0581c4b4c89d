"""Observations as a table: one line each, with time, latitude, longitude and value."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import cftime
import numpy as np

from perrin.errors import PerrinError
from perrin.modalities.weather.sst import COLDEST, HOTTEST
from perrin.modalities.weather.sst_model import ObservedMonth

_NAMES = {
    "time": ("time", "date", "month"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon"),
    "value": ("value", "sst"),
    "error": ("error", "std", "sigma"),
}


def read_observations(path: str | Path, error: float | None = None) -> list[ObservedMonth]:
    """Read a CSV file of temperatures in °C, month by month.

    Arguments:
        path: with a header; columns `time` (2009-12 or 2009-12-31), `latitude`, `longitude`, `value` and, perhaps, `error`.
        error: standard deviation of all errors, K, where the table has none.

    Raises:
        PerrinError: a column is missing, a line cannot be read, a value is no temperature, or no error is known.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        reason = getattr(problem, "strerror", None) or "no text"
        raise PerrinError(
            f"expected a CSV table of observations, given {path} ({reason}): check the path"
        ) from problem
    header = [name.strip().lower() for name in rows[0]] if rows else []
    at = {}
    for role, names in _NAMES.items():
        found = [header.index(n) for n in names if n in header]
        if found:
            at[role] = found[0]
        elif role != "error":
            raise PerrinError(
                f"expected columns time, latitude, longitude and value in {path}, given {', '.join(header) or 'none'}: "
                f"rename yours, for {role} is lacking"
            )
    if error is not None and not error > 0:
        raise PerrinError(f"expected --error above 0, given {error}")
    if "error" not in at and error is None:
        raise PerrinError(
            f"expected the errors of the observations, given none in {path}: add a column error or --error"
        )
    months: dict[tuple[int, int], list[list[float]]] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        try:
            match = re.match(r"\s*(\d{1,4})-(\d{1,2})(?:-\d|\s*$)", row[at["time"]])
            values = [float(row[at[k]]) for k in ("latitude", "longitude", "value")]
            values.append(float(row[at["error"]]) if "error" in at else float(error or 0))
        except (ValueError, IndexError):
            match = None
        if match is None or not 1 <= int(match[2]) <= 12 or not np.isfinite(values).all():
            raise PerrinError(
                f"expected a time such as 2009-12 and numbers in line {number} of {path}, given {','.join(row)[:60]!r}"
            )
        if not (
            abs(values[0]) <= 90
            and abs(values[1]) <= 360
            and COLDEST <= values[2] <= HOTTEST
            and values[3] > 0
        ):
            raise PerrinError(
                f"expected degrees, a temperature in °C and an error above 0 in line {number} of {path}, given "
                f"{','.join(row)[:60]!r}: correct it{' (0 °C is 273.15 K)' if values[2] > HOTTEST else ''}"
            )
        months.setdefault((int(match[1]), int(match[2])), []).append(values)
    if not months:
        raise PerrinError(f"expected observations in {path}, given a table without lines")
    out = []
    for (year, month), found_rows in sorted(months.items()):
        latitude, longitude, value, sigma = np.array(found_rows, dtype=np.float64).T
        out.append(
            ObservedMonth(
                time=cftime.datetime(year, month, 1, calendar="standard"),
                latitude=latitude,
                longitude=longitude,
                value=value,
                error=sigma,
            )
        )
    return out

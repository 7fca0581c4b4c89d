"""Observations as a table: one line each, with time, latitude, longitude and value."""

from __future__ import annotations

import re
from pathlib import Path

import cftime
import numpy as np

from perrin.errors import PerrinError
from perrin.modalities.weather.sst import COLDEST, HOTTEST
from perrin.modalities.weather.sst_model import ObservedMonth
from perrin.modalities.weather.tables import read_observed

_NAMES = {
    "time": ("time", "date", "month"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon"),
    "value": ("value", "sst"),
}


def read_observations(path: str | Path, error: float | None = None) -> list[ObservedMonth]:
    """Read a CSV file of temperatures in °C, month by month.

    Arguments:
        path: with a header; columns `time` (2009-12 or 2009-12-31), `latitude`, `longitude`, `value` and, perhaps, `error`.
        error: standard deviation of all errors, K, where the table has none.

    Raises:
        PerrinError: a column is missing, a line cannot be read, a value is no temperature, or no error is known.
    """
    months: dict[tuple[int, int], list[list[float]]] = {}
    for row in read_observed(path, _NAMES, error):
        match = re.match(r"(\d{1,4})-(\d{1,2})(?:-\d|$)", row.cells["time"])
        values = row.numbers("latitude", "longitude", "value", "error")
        if match is None or not 1 <= int(match[2]) <= 12 or values is None:
            raise PerrinError(f"expected a time such as 2009-12 and numbers in {row.place}, given {row.text}")
        if not (
            abs(values[0]) <= 90
            and abs(values[1]) <= 360
            and COLDEST <= values[2] <= HOTTEST
            and values[3] > 0
        ):
            raise PerrinError(
                f"expected degrees, a temperature in °C and an error above 0 in {row.place}, given {row.text}: correct "
                f"it{' (0 °C is 273.15 K)' if values[2] > HOTTEST else ''}"
            )
        months.setdefault((int(match[1]), int(match[2])), []).append(values)
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

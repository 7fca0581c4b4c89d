"""Monthly sea surface temperature: anomalies on a coarse grid.

The record is averaged over coarse cells by area, land left out; a coarse cell is sea when any part of it has data in every
month. Anomalies are departures from the mean of each calendar month over the training years, and from nothing else, so that
later years stay unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cftime
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from perrin.errors import PerrinError
from perrin.modalities.weather.fields import Fields
from perrin.modalities.weather.grid import cell_areas, coarsen, latitude_edges, longitude_edges

Array = NDArray[np.float64]
TRAINING = (1950, 1994)
_NAMES = ("sea_surface_temperature", "surface_temperature")


@dataclass(frozen=True, kw_only=True)
class SeaSurface:
    """A monthly record.

    Arguments:
        times: the first of each month, cftime objects.
        latitude, longitude: cells' centres, degrees.
        area: of the cells, steradians, `[latitude, longitude]`.
        temperature: `[time, latitude, longitude]`, in the file's unit, NaN on land.
        climatology: of the months January to December, `[12, latitude, longitude]`.
        units: of the temperature.
    """

    times: list[Any]
    latitude: Array
    longitude: Array
    area: Array
    temperature: Array
    climatology: Array
    units: str

    @property
    def sea(self) -> NDArray[np.bool_]:
        """Where there is sea, `[latitude, longitude]`."""
        return np.asarray(np.isfinite(self.temperature).all(0))

    @property
    def months(self) -> NDArray[np.intp]:
        """Months of the times, 0 for January."""
        return np.array([t.month - 1 for t in self.times])

    @property
    def anomaly(self) -> Array:
        """Departures from the climatology, `[time, latitude, longitude]`."""
        return self.temperature - self.climatology[self.months]

    def dataset(self) -> xr.Dataset:
        """The temperature and its anomaly, for `write_fields` and `Fields`."""
        dims = ("time", "latitude", "longitude")
        sst = {"standard_name": "sea_surface_temperature", "units": self.units}
        anomaly = {
            "long_name": "departure from the monthly climatology of the training years",
            "units": "K",
            "units_metadata": "temperature: difference",
        }
        return xr.Dataset(
            {"sst": (dims, self.temperature, sst), "sst_anomaly": (dims, self.anomaly, anomaly)},
            {"time": self.times, "latitude": self.latitude, "longitude": self.longitude},
        )


def read_sst(fields: Fields, *, cell: float = 5.0, training: tuple[int, int] = TRAINING) -> SeaSurface:
    """Read a monthly record.

    Arguments:
        fields: a file with a sea surface temperature over consecutive months and the whole sphere.
        cell: size of the coarse cells, degrees; a divisor of 180.
        training: the first and last year of the climatology.

    Raises:
        PerrinError: there is no such variable, months are missing, training years are not in the file, or the cells do not
            fit the sphere.
    """
    count = round(180 / cell) if cell > 0 else 0
    if count < 2 or abs(count * cell - 180) > 1e-9:
        raise PerrinError(f"expected cells whose size divides 180 degrees, given {cell:g}: try 5")
    part = find_sst(fields)
    numbers = np.array([12 * t.year + t.month for t in fields.times])
    if len(numbers) < 24 or np.any(np.diff(numbers) != 1):
        raise PerrinError(f"expected two or more years of consecutive months, given others in {fields.label}")
    times = [cftime.datetime(t.year, t.month, 1, calendar=t.calendar) for t in fields.times]
    edges = latitude_edges(fields.latitude), longitude_edges(fields.longitude)
    new = np.linspace(-90, 90, count + 1), np.linspace(0, 360, 2 * count + 1)
    coarse = np.stack(
        [coarsen(fields.read(part, time=i), *edges, *new, least=1e-6) for i in range(len(numbers))]
    )
    coarse[:, ~np.isfinite(coarse).all(0)] = np.nan
    years = np.array([t.year for t in times])
    used = (years >= training[0]) & (years <= training[1])
    months = np.array([t.month for t in times])
    if len(set(months[used])) < 12:
        raise PerrinError(
            f"expected training years in {fields.label}, which has {years[0]} to {years[-1]}, given "
            f"{training[0]}-{training[1]}"
        )
    climatology = np.stack([coarse[used & (months == m)].mean(0) for m in range(1, 13)])
    return SeaSurface(
        times=times,
        latitude=(new[0][1:] + new[0][:-1]) / 2,
        longitude=(new[1][1:] + new[1][:-1]) / 2,
        area=cell_areas(*new),
        temperature=coarse,
        climatology=climatology,
        units=fields.units(part),
    )


def weights_of(sea: NDArray[np.bool_]) -> Array:
    """Areas of the cells of sea of a grid over the whole sphere without the poles, `[points]`, sum 1."""
    rows, columns = sea.shape
    area = cell_areas(np.linspace(-90, 90, rows + 1), np.linspace(0, 360, columns + 1))[sea]
    return np.asarray(area / area.sum())


def find_sst(fields: Fields) -> str:
    """The variable of sea surface temperature.

    Raises:
        PerrinError: there is none.
    """
    for part, place in fields.parts.items():
        if fields.dataset[place.variable].attrs.get("standard_name") in _NAMES:
            return part
    for part in fields.parts:
        if part.lower() in ("sst", "tos", "analysed_sst"):
            return part
    raise PerrinError(
        f"expected a variable with standard_name sea_surface_temperature, given {', '.join(fields.parts)} in "
        f"{fields.label}: set that attribute"
    )

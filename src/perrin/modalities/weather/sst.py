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
COLDEST, HOTTEST = -5.0, 45.0
"""No monthly mean of a sea is beyond, °C."""
_NAMES = ("sea_surface_temperature", "surface_temperature")
_KINDS = (
    "sea_surface_foundation_temperature",
    "sea_surface_skin_temperature",
    "sea_surface_subskin_temperature",
    "sea_water_temperature",
    "sea_water_potential_temperature",
    "sea_water_conservative_temperature",
)
"""Standard names that a variable called `sst` or `tos` may have."""
_KELVIN = ("K", "kelvin", "Kelvin", "degK")
_CELSIUS = ("degC", "degree_Celsius", "degrees_Celsius", "celsius", "Celsius", "C", "deg_C", "degree_C", "")


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
        offset: what to take from it to have it in °C.
    """

    times: list[Any]
    latitude: Array
    longitude: Array
    area: Array
    temperature: Array
    climatology: Array
    units: str
    offset: float = 0.0

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
        PerrinError: there is no such variable, its units or values are none of a sea's temperature, months are missing,
            training years are not in the file, or the cells do not fit the sphere.
    """
    count = round(180 / cell) if cell > 0 else 0
    if count < 2 or abs(count * cell - 180) > 1e-9:
        raise PerrinError(f"expected cells whose size divides 180 degrees, given {cell:g}: try 5")
    part = find_sst(fields)
    offset = celsius_offset(fields, part)
    numbers = np.array([12 * t.year + t.month for t in fields.times])
    if len(numbers) < 24 or np.any(np.diff(numbers) != 1):
        raise PerrinError(f"expected two or more years of consecutive months, given others in {fields.label}")
    times = [cftime.datetime(t.year, t.month, 1, calendar=t.calendar) for t in fields.times]
    edges = latitude_edges(fields.latitude), longitude_edges(fields.longitude)
    new = np.linspace(-90, 90, count + 1), np.linspace(0, 360, 2 * count + 1)
    coarse = np.stack(
        [coarsen(fields.read(part, time=i), *edges, *new, least=1e-6) for i in range(len(numbers))]
    )
    check_range(coarse - offset, fields, part)
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
        offset=offset,
    )


def weights_of(sea: NDArray[np.bool_]) -> Array:
    """Areas of the cells of sea of a grid over the whole sphere without the poles, `[points]`, sum 1."""
    rows, columns = sea.shape
    area = cell_areas(np.linspace(-90, 90, rows + 1), np.linspace(0, 360, columns + 1))[sea]
    return np.asarray(area / area.sum())


def find_sst(fields: Fields) -> str:
    """The variable of sea surface temperature: by its standard name, else by its name if it has no other standard name.

    Raises:
        PerrinError: there is none.
    """
    names = {part: standard_name(fields, part) for part in fields.parts}
    for wanted in _NAMES:
        for part, name in names.items():
            if name == wanted:
                return part
    for part, name in names.items():
        if part.lower() in ("sst", "tos", "analysed_sst") and name in ("", "unknown", *_KINDS):
            return part
    found = ", ".join(f"{part} ({name})" if name else part for part, name in names.items())
    raise PerrinError(
        f"expected a variable with standard_name sea_surface_temperature, given {found} in {fields.label}: choose "
        "another file, or set that attribute if it is one"
    )


def standard_name(fields: Fields, part: str) -> str:
    """Of a variable, or an empty string."""
    return str(fields.dataset[fields.parts[part].variable].attrs.get("standard_name", ""))


def celsius_offset(fields: Fields, part: str) -> float:
    """What to take from a temperature to have it in °C; one without units is in °C.

    Raises:
        PerrinError: the units are neither kelvin nor degrees Celsius.
    """
    units = fields.units(part)
    if units in _KELVIN:
        return 273.15
    if units not in _CELSIUS:
        raise PerrinError(
            f"expected a temperature in K or degC, given units {units!r} in {fields.label}: convert it"
        )
    return 0.0


def check_range(values: Array, fields: Fields, part: str) -> None:
    """Raise a `PerrinError` unless monthly means in °C are possible ones of a sea: not far below freezing, nor hot."""
    low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
    if low < COLDEST or high > HOTTEST:
        raise PerrinError(
            f"expected sea surface temperatures from {COLDEST:g} to {HOTTEST:g} °C, given {low:.1f} to {high:.1f} "
            f"in {part} of {fields.label}: check its units, and that it is the sea's"
        )

"""Fields on a latitude–longitude grid, read lazily from NetCDF, Zarr or an xarray dataset into one convention.

The canonical dimensions, in this order and named by their CF standard names:

    realization, forecast_reference_time, forecast_period, latitude, longitude

Latitudes ascend from south to north, longitudes from 0° within [0, 360). A valid time is the reference time plus the
forecast period; an observed or analysed field has only `time`, its valid time. Times are cftime objects of the file's
calendar, and two are the same when their calendar fields are (`stamp`), so that a forecast in the standard calendar meets an
analysis in `noleap` on every day that both have. A period is a number of seconds, or of calendar months where the file's
unit is months. Missing values are NaN. Levels and other dimensions make variables of their own: `ta@500`.

A dimension is found by its coordinate's `standard_name`, else its units, else its `axis`, else its name (CF 1.11,
chapter 4).
"""

from __future__ import annotations

import datetime
import importlib.util
import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from perrin.errors import PerrinError
from perrin.modalities.weather.grid import cell_areas, is_circle, latitude_edges, longitude_edges

Array = NDArray[np.float64]
Stamp = tuple[int, int, int, int, int]

DIMENSIONS = ("realization", "forecast_reference_time", "forecast_period", "latitude", "longitude")

_DEGREES = {
    "latitude": {"degrees_north", "degree_north", "degrees_N", "degree_N", "degreesN", "degreeN"},
    "longitude": {"degrees_east", "degree_east", "degrees_E", "degree_E", "degreesE", "degreeE"},
}
_AXES = {"latitude": "Y", "longitude": "X", "time": "T"}
_FALLBACKS = {
    "latitude": ("latitude", "lat", "y"),
    "longitude": ("longitude", "lon", "x"),
    "time": ("time", "valid_time", "date"),
    "realization": ("realization", "member", "number", "ensemble", "ens", "sample"),
    "forecast_reference_time": (
        "forecast_reference_time",
        "init_time",
        "init",
        "reference_time",
        "initial_time",
    ),
    "forecast_period": ("forecast_period", "lead_time", "lead", "step", "prediction_timedelta"),
}
_SECONDS = {"second": 1, "s": 1, "minute": 60, "min": 60, "hour": 3600, "h": 3600, "day": 86400, "d": 86400}


GRIB = (".grib", ".grib1", ".grib2", ".grb", ".grb1", ".grb2")


@dataclass(frozen=True, order=True)
class Lead:
    """A forecast period: seconds, or whole calendar months."""

    months: int = 0
    seconds: float = 0.0

    def after(self, time: Any) -> Any:
        """The valid time of a forecast that starts at `time`, a cftime object."""
        if self.months:
            month = time.month - 1 + self.months
            time = time.replace(year=time.year + month // 12, month=month % 12 + 1)
        return time + datetime.timedelta(seconds=self.seconds)

    def __str__(self) -> str:
        if self.months:
            return f"{self.months} mon"
        hours = self.seconds / 3600
        return f"{hours / 24:g} d" if hours and hours % 24 == 0 else f"{hours:g} h"


def stamp(time: Any) -> Stamp:
    """What makes two times equal, whatever their calendars: year, month, day, hour, minute."""
    return (time.year, time.month, time.day, time.hour, time.minute)


@dataclass(frozen=True)
class Part:
    """One two-dimensional field: a variable of the file at fixed places of its other dimensions."""

    variable: str
    at: tuple[tuple[str, int], ...] = ()


class Fields:
    """Variables on one grid, read in pieces.

    Arguments:
        dataset: an xarray dataset; values stay where they are until `read` asks for them.
        label: what messages call it.

    Raises:
        PerrinError: no latitudes or longitudes can be found, or the grid is not a product of both.
    """

    def __init__(self, dataset: xr.Dataset, label: str = "the dataset") -> None:
        self.label = label
        self.dataset = _canonical(dataset, label)
        self.latitude: Array = self.dataset["latitude"].values.astype(np.float64)
        self.longitude: Array = self.dataset["longitude"].values.astype(np.float64)
        self.parts = _parts(self.dataset)
        if not self.parts:
            raise PerrinError(f"expected variables over latitude and longitude, given none in {label}")

    @cached_property
    def area(self) -> Array:
        """Areas of the cells, `[latitude, longitude]`, steradians: from the file's bounds, else from midpoints."""
        edges = []
        for name, build in (("latitude", latitude_edges), ("longitude", longitude_edges)):
            bounds = self.dataset.coords.get(f"{name}_bounds")
            edges.append(
                build(self.dataset[name].values)
                if bounds is None
                else _edges_of(np.asarray(bounds.transpose(name, ...).values, np.float64))
            )
        return cell_areas(*edges)

    @property
    def is_global(self) -> bool:
        """Whether the cells cover the sphere."""
        return is_circle(self.longitude) and bool(abs(self.area.sum() / (4 * np.pi) - 1) < 1e-6)

    @property
    def members(self) -> int:
        """The number of ensemble members, 1 where the file has no such dimension."""
        return int(self.dataset.sizes.get("realization", 1))

    @property
    def is_forecast(self) -> bool:
        """Whether fields are by start and period, not by valid time."""
        return "forecast_reference_time" in self.dataset.coords and "time" not in self.dataset.coords

    @property
    def has_leads(self) -> bool:
        """Whether fields have a forecast period, or a start apart from their valid times."""
        return "forecast_period" in self.dataset.coords or "forecast_reference_time" in self.dataset.coords

    @cached_property
    def times(self) -> list[Any]:
        """Valid times of a file without forecast periods, cftime objects.

        Raises:
            PerrinError: it has none.
        """
        if self.is_forecast:
            raise PerrinError(
                f"expected fields by valid time, given forecasts by start and period in {self.label}: choose a file of "
                "analyses or observations"
            )
        return _times(self.dataset, "time", self.label)

    def time_coordinates(self) -> dict[str, Any]:
        """`times` and, where the file has them, their bounds, for a dataset of the same times."""
        bounds = self.dataset.get(str(self.dataset["time"].attrs.get("bounds", "")))
        if bounds is None or bounds.dims[:1] != ("time",) or bounds.ndim != 2:
            return {"time": self.times}
        return {
            "time": ("time", self.times, {"bounds": "time_bounds"}),
            "time_bounds": (("time", "bound"), bounds.values),
        }

    @cached_property
    def references(self) -> list[Any]:
        """Initial times; the valid times where the file has no forecast period."""
        if "forecast_reference_time" in self.dataset.coords:
            return _times(self.dataset, "forecast_reference_time", self.label)
        return self.times

    @cached_property
    def leads(self) -> list[Lead]:
        """Forecast periods; one of zero where the file has none."""
        if "forecast_period" in self.dataset.coords:
            return _leads(self.dataset["forecast_period"], self.label)
        if "time" in self.dataset.dims and "forecast_reference_time" in self.dataset.coords:
            start = self.references[0]
            return [Lead(seconds=(t - start).total_seconds()) for t in self.times]
        return [Lead()]

    @cached_property
    def _place(self) -> Mapping[Stamp, int]:
        return {stamp(t): i for i, t in enumerate(self.times)}

    def find(self, time: Any) -> int | None:
        """The index of a valid time in `times`, or `None`."""
        return self._place.get(stamp(time))

    def read(self, part: str, rows: slice = slice(None), **where: Any) -> Array:
        """A piece of one field: `[..., rows, longitude]` in canonical order, dimensions that have an index left out.

        Arguments:
            part: a key of `parts`.
            rows: a slice of latitudes.
            where: an index, slice or list for any of `realization`, `forecast_reference_time`, `forecast_period`,
                `time`; one for a dimension that the file lacks must be 0 or a slice.
        """
        field = self.dataset[self.parts[part].variable]
        chosen = {d: i for d, i in where.items() if d in field.dims}
        field = field.isel(dict(self.parts[part].at) | chosen | {"latitude": rows})
        return np.asarray(field.values, dtype=np.float64)

    def units(self, part: str) -> str:
        """The units of a variable, or an empty string."""
        return str(self.dataset[self.parts[part].variable].attrs.get("units", ""))

    def forecast(
        self, part: str, init: int, lead: int, rows: slice = slice(None), members: slice = slice(None)
    ) -> Array:
        """Members of one forecast, `[members, rows, longitude]`."""
        if "forecast_reference_time" in self.dataset.dims:
            where = {"forecast_reference_time": init, "forecast_period": lead, "time": lead}
        elif len(self.leads) > 1:
            where = {"forecast_period": lead, "time": lead}
        else:
            where = {"time": init}
        x = self.read(part, rows, realization=members, **where)
        return x if x.ndim == 3 else x[None]


def open_fields(path: str | Path) -> Fields:
    """Open a NetCDF, GRIB or PP file or a Zarr store; nothing but coordinates is read.

    Raises:
        PerrinError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise PerrinError(
            f"expected a NetCDF file or Zarr store, given {path}, which does not exist: check the path"
        )
    if path.is_dir() and importlib.util.find_spec("zarr") is None:
        raise PerrinError(f"expected the package zarr for {path}, which is not installed: pip install zarr")
    options: dict[str, Any] = {"decode_timedelta": False}
    options["decode_times"] = xr.coders.CFDatetimeCoder(use_cftime=True)
    try:
        if path.is_dir():
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", RuntimeWarning
                )  # slow without consolidated metadata: it is one file
                dataset = xr.open_dataset(path, engine="zarr", cache=False, **options)
        elif path.suffix.lower() in GRIB:
            from perrin.modalities.weather.grib import open_grib

            dataset = open_grib(path, **options)
        elif path.suffix.lower() == ".pp":
            from perrin.modalities.weather.pp import open_pp

            dataset = open_pp(path)
        else:
            dataset = xr.open_dataset(path, engine="netcdf4", cache=False, **options)
    except PerrinError:
        raise
    except Exception as error:  # each engine has its own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, OSError) and (error.errno or 0) > 0:
            reason = error.strerror or reason
        remedy = "is it a store?" if path.is_dir() else "check it with ncdump -h"
        raise PerrinError(
            f"expected a NetCDF file or Zarr store, given {path} ({reason}): {remedy}"
        ) from error
    return Fields(dataset, path.name)


def _canonical(dataset: xr.Dataset, label: str) -> xr.Dataset:
    names = {name: role for role in _FALLBACKS if (name := _find(dataset, role))}
    for role in ("latitude", "longitude"):
        if role not in names.values():
            raise PerrinError(
                f"expected a coordinate with standard_name {role}, given {label} with {', '.join(map(str, dataset.dims))}: "
                f"set the attribute standard_name = '{role}' on it"
            )
    for name, role in names.items():
        if role in ("latitude", "longitude") and dataset[name].ndim != 1:
            raise PerrinError(
                f"expected one-dimensional {role}s, given {name}{dataset[name].dims} in {label}: remap it to a "
                "latitude–longitude grid first"
            )
    dataset = _unlag(dataset.set_coords([n for n in names if n in dataset.data_vars]), names)
    found = [(n, role) for n, role in names.items() if n in dataset and dataset[n].ndim == 1]
    dims = {str(dataset[n].dims[0]): n for n, _ in found if dataset[n].dims[0] not in names}
    dataset = dataset.swap_dims(dims)
    bounds: dict[str, str] = {}
    for name, role in names.items():
        key = dataset[name].attrs.get("bounds") if name in dataset else None
        if role in ("latitude", "longitude") and key in dataset:
            bounds[str(key)] = f"{role}_bounds"
    dataset = dataset.rename({k: v for k, v in names.items() if k in dataset and k != v} | bounds)
    dataset = dataset.set_coords(list(bounds.values()))
    if {"time", "forecast_period"} <= set(
        dataset.dims
    ):  # each start has all periods: `time` is when it starts
        if "forecast_reference_time" in dataset.variables:
            raise PerrinError(
                f"expected forecasts by start and period, given time, period and start apart in {label}: make "
                "forecast_reference_time a dimension and time its valid times"
            )
        dataset = dataset.rename(time="forecast_reference_time")
    for role in ("latitude", "longitude"):
        if role not in dataset.indexes:
            dataset = dataset.set_xindex(role)
        values = dataset[role].values
        if (
            values.dtype.kind not in "fiu"
            or not (np.abs(values) <= (90.001 if role == "latitude" else 720)).all()
        ):
            raise PerrinError(
                f"expected {role}s in degrees, given {values[0]} to {values[-1]} in {label}: remap it to a "
                "latitude–longitude grid first"
            )
    longitude = dataset["longitude"].values.astype(np.float64)
    if len(longitude) > 1 and np.isclose(abs(longitude[-1] - longitude[0]), 360):  # the seam, twice
        dataset = dataset.isel(longitude=slice(0, -1))
        longitude = longitude[:-1]
    wrapped = np.mod(longitude, 360.0)
    if "longitude_bounds" in dataset.coords:
        turn = (wrapped - longitude)[:, None]
        dataset["longitude_bounds"] = dataset["longitude_bounds"] + turn
    dataset = dataset.assign_coords(longitude=("longitude", wrapped, dataset["longitude"].attrs))
    dataset = dataset.isel(longitude=_order(wrapped), latitude=_order(dataset["latitude"].values))
    return dataset.transpose("realization", ..., "latitude", "longitude", missing_dims="ignore")


def _unlag(dataset: xr.Dataset, names: dict[str, str]) -> xr.Dataset:
    """A lagged ensemble, each of whose members has a start, by valid time: it is there when the last has started."""
    by = {role: name for name, role in names.items()}
    start, member = by.get("forecast_reference_time"), by.get("realization")
    if start not in dataset.coords or member is None:
        return dataset
    dim = str(dataset[member].dims[0]) if member in dataset.coords and dataset[member].ndim else member
    if dim not in dataset[start].dims:
        return dataset
    own = dataset[start].transpose(dim, ...).values.reshape(dataset.sizes[dim], -1)
    if (own != own[:, :1]).any():
        return dataset
    words = {k: v for k, v in dataset[start].attrs.items() if k != "axis"}
    dataset = dataset.drop_vars([n for n in (start, by.get("forecast_period")) if n in dataset.coords])
    return dataset.assign_coords({start: ((), own.max(), words), "member_start": (dim, own[:, 0])})


def _order(values: Any) -> slice | NDArray[np.intp]:
    """How to put values in ascending order: a slice where that will do, which reads faster."""
    order = np.argsort(values, kind="stable")
    n = len(order)
    if np.array_equal(order, np.arange(n)):
        return slice(None)
    return slice(None, None, -1) if np.array_equal(order, np.arange(n)[::-1]) else order


def _find(dataset: xr.Dataset, role: str) -> str | None:
    """The name of the variable, or bare dimension, that plays a role."""
    bounds = {v.attrs.get("bounds") for v in dataset.variables.values()}
    candidates = sorted(
        (str(n) for n, v in dataset.variables.items() if v.ndim <= 2 and n not in bounds),
        key=lambda n: dataset[n].ndim,
    )

    def attribute(name: str, key: str) -> str:
        variable = dataset[name]
        return str(variable.attrs.get(key, variable.encoding.get(key, "")))

    tests = [
        lambda n: attribute(n, "standard_name") == role,
        lambda n: attribute(n, "units") in _DEGREES.get(role, ()),
        lambda n: attribute(n, "axis") == _AXES.get(role, "-") and not attribute(n, "standard_name"),
    ]
    for test in tests:
        for name in candidates:
            if test(name):
                return name
    named = [n for n in candidates if n in dataset.coords or dataset[n].ndim <= 1]
    known = {str(n).lower(): str(n) for n in (*dataset.dims, *named)}
    return next((known[name] for name in _FALLBACKS[role] if name in known), None)


def _edges_of(bounds: Array) -> Array:
    """Edges `[n + 1]` of contiguous cells with bounds `[n, 2]` in ascending order."""
    low, high = bounds.min(1), bounds.max(1)
    return np.append(low, high[-1])


def _parts(dataset: xr.Dataset) -> dict[str, Part]:
    out = {}
    for name, variable in dataset.data_vars.items():
        if not {"latitude", "longitude"} <= set(variable.dims) or variable.dtype.kind not in "fiub":
            continue
        others = [str(d) for d in variable.dims if d not in (*DIMENSIONS, "time")]
        for index in itertools.product(*(range(dataset.sizes[d]) for d in others)):
            values = (dataset[d].values[i] if d in dataset.coords else i for d, i in zip(others, index))
            places = [f"{v:g}" if np.issubdtype(type(v), np.number) else str(v) for v in values]
            out["@".join([str(name), *places])] = Part(str(name), tuple(zip(others, index)))
    return out


def _times(dataset: xr.Dataset, name: str, label: str) -> list[Any]:
    if name not in dataset.coords:
        raise PerrinError(
            f"expected times in a coordinate with standard_name {name}, given none in {label}: set that attribute"
        )
    values = np.atleast_1d(dataset[name].values)
    if values.dtype.kind == "M":
        return [
            cftime.datetime(*[int(w) for w in _split(v)], calendar="standard")
            for v in values.astype("datetime64[s]")
        ]
    if not isinstance(values.flat[0], cftime.datetime):
        raise PerrinError(
            f"expected times such as 'hours since 2000-01-01', given {name} = {values.flat[0]} in {label}: "
            "set its attributes units and calendar"
        )
    return list(values)


def _split(time: np.datetime64) -> list[str]:
    return str(time).replace("T", "-").replace(":", "-").split("-")


def _leads(coordinate: xr.DataArray, label: str) -> list[Lead]:
    values = np.atleast_1d(coordinate.values)
    if values.dtype.kind == "m":
        return [Lead(seconds=float(v / np.timedelta64(1, "s"))) for v in values]
    unit = str(coordinate.attrs.get("units", "")).strip()
    if unit.rstrip("s") == "month":
        return [Lead(months=int(v)) for v in values]
    scale = _SECONDS.get(unit) or _SECONDS.get(unit.rstrip("s"))
    if scale is None:
        raise PerrinError(
            f"expected forecast periods in hours, days or months, given units {unit!r} in {label}: set the units of the "
            "forecast period, such as 'hours'"
        )
    return [Lead(seconds=float(v) * scale) for v in values]

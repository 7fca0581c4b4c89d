"""Forecasts written as CF NetCDF, or as Zarr where that package is installed.

The file has the canonical dimensions (`perrin.modalities.weather.fields`), standard names, bounds of the cells, and one
compressed chunk for each member, initial time and period: what a reader asks for at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from perrin import __version__
from perrin.errors import PerrinError
from perrin.modalities.weather.fields import DIMENSIONS
from perrin.modalities.weather.grid import latitude_edges, longitude_edges
from perrin.modalities.weather.outputs import check_path
from perrin.run.atomic import atomic_path
from perrin.run.store import consolidate

ORDER = (*DIMENSIONS[:3], "time", "layer", *DIMENSIONS[3:], "y", "x")
"""All dimensions that can be written, in the order of a file: of fields on the sphere, or in layers on a plane."""
_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "realization": {"standard_name": "realization", "units": "1"},
    "forecast_reference_time": {"standard_name": "forecast_reference_time"},
    "forecast_period": {"standard_name": "forecast_period"},
    "time": {"standard_name": "time"},
    "latitude": {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"},
    "longitude": {"standard_name": "longitude", "units": "degrees_east", "axis": "X"},
    "layer": {"long_name": "layer, from the top", "units": "1", "axis": "Z", "positive": "down"},
    "y": {"standard_name": "projection_y_coordinate", "units": "m", "axis": "Y"},
    "x": {"standard_name": "projection_x_coordinate", "units": "m", "axis": "X"},
}


def write_fields(path: str | Path, dataset: xr.Dataset, attributes: Mapping[str, str] | None = None) -> None:
    """Write a dataset by CF, completely or not at all; data as float32, missing values as NaN.

    Arguments:
        path: where to: a name that ends in .nc or .nc4 for NetCDF-4, in .zarr for Zarr.
        dataset: variables over the canonical dimensions or some of them, or over `time`; forecast periods are numbers
            with the attribute `units` (hours, days, or months), times are cftime or datetime64.
        attributes: of the file, such as `title` and `source`.

    Raises:
        PerrinError: another suffix, another dimension, a coordinate is missing, or the file cannot be written.
    """
    check_path(path)
    out, encoding = prepare(dataset, attributes or {})
    if Path(path).suffix == ".zarr":
        _write_zarr(Path(path), out, encoding)
        return
    for settings in encoding.values():
        if "chunks" in settings:
            settings |= {"zlib": True, "complevel": 4, "shuffle": True, "chunksizes": settings.pop("chunks")}
    with atomic_path(path) as temporary:
        out.to_netcdf(temporary, engine="netcdf4", format="NETCDF4", encoding=encoding)


def prepare(
    dataset: xr.Dataset, attributes: Mapping[str, str]
) -> tuple[xr.Dataset, dict[Any, dict[str, Any]]]:
    """The dataset in canonical order with CF's attributes and bounds, and its encoding."""
    order = [d for d in ORDER if d in dataset.dims]
    if strange := [str(d) for d in dataset.dims if d not in (*order, "bound")]:
        raise PerrinError(
            f"expected the dimensions {', '.join(DIMENSIONS)} or time, given {strange[0]}: rename it"
        )
    if lacking := [d for d in order if d not in dataset.coords and d != "realization"]:
        raise PerrinError(f"expected a coordinate for each dimension, given none for {lacking[0]}: assign it")
    out = dataset.transpose(*order, ...)
    if "realization" in out.dims and "realization" not in out.coords:
        out = out.assign_coords(realization=np.arange(out.sizes["realization"], dtype=np.int32))
    for name in set(out.coords) & set(_ATTRIBUTES):
        out[name] = out[name].assign_attrs(_ATTRIBUTES[str(name)])
    for name in {"time", "forecast_reference_time"} & set(out.coords):
        out[name] = out[name].assign_attrs(_leap_seconds(out[name]))
    for name in out.data_vars:
        out[name] = out[name].assign_attrs(temperature(out[name].attrs))
    for name, build in (("latitude", latitude_edges), ("longitude", longitude_edges)):
        if name in out.dims and out.sizes[name] > 1:
            if f"{name}_bounds" not in out:
                edges = build(out[name].values)
                out[f"{name}_bounds"] = ((name, "bound"), np.stack([edges[:-1], edges[1:]], 1))
            out[name].attrs["bounds"] = f"{name}_bounds"
    encoding: dict[Any, dict[str, Any]] = {n: {"_FillValue": None} for n in out.variables}
    for name in dataset.data_vars:
        if name in ("latitude_bounds", "longitude_bounds"):
            continue
        one = ("realization", "forecast_reference_time", "forecast_period", "time")
        chunks = tuple(1 if d in one else out.sizes[d] for d in out[name].dims)
        encoding[name] = {"dtype": "float32", "_FillValue": np.float32(np.nan)} | (
            {"chunks": chunks} if chunks else {}
        )
    if "time_bounds" in out:  # CF: the unit of both is one
        first = out["time_bounds"].values.flat[0].strftime("%Y-%m-%d %H:%M:%S")
        for name in ("time", "time_bounds"):
            encoding[name]["units"] = f"minutes since {first}"
    words = {
        "Conventions": "CF-1.11",
        "history": f"written by perrin {__version__}",
    }  # no date: same run, same bytes
    return out.assign_attrs(words | dict(attributes)), encoding


def temperature(words: Mapping[str, Any]) -> dict[str, Any]:
    """A field's attributes, with CF's `units_metadata` for temperatures (1.11, 3.1.2)."""
    on_scale = "temperature" in words.get("standard_name", "")
    return ({"units_metadata": "temperature: on_scale"} if on_scale else {}) | dict(words)


def _leap_seconds(times: xr.DataArray) -> dict[str, str]:
    """CF's `units_metadata` for times (1.11, 4.4.1)."""
    calendar = getattr(times.values.flat[0], "calendar", "standard") if times.size else ""
    return {"units_metadata": "leap_seconds: none"} if calendar in ("standard", "gregorian") else {}


def _write_zarr(path: Path, dataset: xr.Dataset, encoding: dict[Any, dict[str, Any]]) -> None:
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("tmp", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.to_zarr(temporary, mode="w", encoding=encoding, consolidated=False)
        consolidate(temporary)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PerrinError(
            f"expected to write {path}, met: {reason}; free some space or choose another path"
        ) from error
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)

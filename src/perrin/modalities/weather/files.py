"""Forecasts written as CF NetCDF.

The file has the canonical dimensions (`perrin.modalities.weather.fields`), standard names, bounds of the cells, and one
compressed chunk for each member, initial time and period: what a reader asks for at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from perrin.errors import PerrinError
from perrin.modalities.weather.fields import DIMENSIONS
from perrin.modalities.weather.grid import latitude_edges, longitude_edges
from perrin.run.atomic import atomic_path

_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "realization": {"standard_name": "realization", "units": "1", "axis": "E"},
    "forecast_reference_time": {"standard_name": "forecast_reference_time"},
    "forecast_period": {"standard_name": "forecast_period"},
    "time": {"standard_name": "time"},
    "latitude": {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"},
    "longitude": {"standard_name": "longitude", "units": "degrees_east", "axis": "X"},
}


def write_netcdf(path: str | Path, dataset: xr.Dataset, attributes: Mapping[str, str] | None = None) -> None:
    """Write a dataset as CF NetCDF-4, completely or not at all; data as float32, missing values as NaN.

    Arguments:
        path: where to.
        dataset: variables over the canonical dimensions or some of them, or over `time`; forecast periods are numbers
            with the attribute `units` (hours, days, or months), times are cftime or datetime64.
        attributes: of the file, such as `title` and `source`.

    Raises:
        PerrinError: another dimension is first in the order, a coordinate is missing, or the file cannot be written.
    """
    order = [d for d in (*DIMENSIONS[:3], "time", *DIMENSIONS[3:]) if d in dataset.dims]
    if strange := [str(d) for d in dataset.dims if d not in order]:
        raise PerrinError(
            f"expected the dimensions {', '.join(DIMENSIONS)} or time, given {strange[0]}: rename it"
        )
    if lacking := [d for d in order if d not in dataset.coords and d != "realization"]:
        raise PerrinError(f"expected a coordinate for each dimension, given none for {lacking[0]}: assign it")
    out = dataset.transpose(*order)
    if "realization" in out.dims and "realization" not in out.coords:
        out = out.assign_coords(realization=np.arange(out.sizes["realization"], dtype=np.int32))
    for name in set(out.coords) & set(_ATTRIBUTES):
        out[name] = out[name].assign_attrs(_ATTRIBUTES[str(name)])
    for name, build in (("latitude", latitude_edges), ("longitude", longitude_edges)):
        if name in out.dims and out.sizes[name] > 1:
            edges = build(out[name].values)
            out[f"{name}_bounds"] = ((name, "bound"), np.stack([edges[:-1], edges[1:]], 1))
            out[name].attrs["bounds"] = f"{name}_bounds"
    encoding: dict[Any, dict[str, Any]] = {n: {"_FillValue": None} for n in out.variables}
    for name in dataset.data_vars:
        one = ("realization", "forecast_reference_time", "forecast_period", "time")
        chunks = [1 if d in one else out.sizes[d] for d in out[name].dims]
        encoding[name] = {"dtype": "float32", "_FillValue": np.float32(np.nan), "zlib": True, "complevel": 4}
        encoding[name] |= {"shuffle": True, "chunksizes": chunks} if chunks else {}
    out = out.assign_attrs({"Conventions": "CF-1.11"} | dict(attributes or {}))
    with atomic_path(path) as temporary:
        out.to_netcdf(temporary, engine="netcdf4", format="NETCDF4", encoding=encoding)

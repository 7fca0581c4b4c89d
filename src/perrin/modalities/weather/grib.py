"""GRIB files through cfgrib and ecCodes, in the form that `perrin.modalities.weather.fields` reads.

cfgrib names coordinates by CF: `time` is the reference time, `step` the period, `valid_time` the time, `number` the member.
A file of analyses (all steps are 0) becomes fields by time, any other one forecasts.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import xarray as xr

from perrin.errors import PerrinError, install


def open_grib(path: Path, **options: Any) -> xr.Dataset:
    """The messages of a file as one dataset.

    Arguments:
        path: of the file; no index is written beside it.
        options: of `xarray.open_dataset`.

    Raises:
        PerrinError: cfgrib is missing, the messages are of several grids or times, or there are none.
    """
    if importlib.util.find_spec("cfgrib") is None:
        raise PerrinError(
            f"expected the package cfgrib for {path}, which is not installed: {install('grib')}"
        )
    import cfgrib

    try:
        parts = cfgrib.open_datasets(str(path), backend_kwargs={"indexpath": ""}, **options)
    except EOFError as error:
        raise PerrinError(f"expected GRIB messages in {path}, given none: check it with grib_ls") from error
    keep = {"time", "step", "valid_time", "number"}
    parts = [p.drop_vars([c for c in p.coords if not p[c].dims and c not in keep]) for p in parts]
    try:
        whole = xr.merge(parts, join="exact", compat="no_conflicts")
    except (ValueError, xr.MergeError) as error:
        raise PerrinError(
            f"expected messages of one grid, the same levels, times and steps in {path}, given several: take out one kind "
            "with grib_copy -w typeOfLevel=…"
        ) from error
    if "step" in whole.dims or "step" not in whole.coords or float(whole["step"]) != 0:
        whole = whole.drop_vars("valid_time", errors="ignore")
        return whole.expand_dims([c for c in ("time", "step") if c in whole.coords and c not in whole.dims])
    whole = whole.drop_vars("step")
    if "time" in whole.dims:
        return whole.swap_dims(time="valid_time").drop_vars("time")
    return whole.drop_vars("time").expand_dims("valid_time")

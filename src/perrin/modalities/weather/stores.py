"""Stores that grow: Zarr v3 by CF, of known size, written in pieces by one process or by many.

Every field has one chunk for each member, initial time and period, what a reader asks for at once; the chunks of one
member are one file (a shard), so that members are written side by side and ten thousand chunks are not as many files. A
piece that is written twice is the same as one that is written once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from perrin.modalities.weather.files import prepare, temperature
from perrin.modalities.weather.outputs import check_path
from perrin.run.store import consolidate

_ONE = ("realization", "forecast_reference_time", "forecast_period")


def create_store(
    path: str | Path,
    template: xr.Dataset,
    fields: Mapping[str, Mapping[str, Any]],
    dims: tuple[str, ...],
    attributes: Mapping[str, str],
    *,
    chunks: Mapping[str, int] | None = None,
    shards: Mapping[str, int] | None = None,
) -> None:
    """Make a store with its coordinates and without values: missing until they are written.

    Arguments:
        path: a folder that does not exist yet, or one that is replaced.
        template: coordinates of every dimension, and fields that are written now.
        fields: attributes of each field to come.
        dims: their dimensions, canonical ones in canonical order.
        attributes: of the store.
        chunks: sizes of chunks; by default 1 along members and times of forecasts, and all of the others.
        shards: sizes of shards along dimensions; none by default.
    """
    import zarr

    path = Path(path)
    temporary = path.with_name(path.name + ".new")
    for old in (temporary, path):
        shutil.rmtree(old, ignore_errors=True)
    whole, encoding = prepare(template, attributes)
    for settings in encoding.values():
        settings.pop("chunks", None)
    whole.to_zarr(temporary, mode="w", encoding=encoding, consolidated=False)
    group = zarr.open_group(str(temporary), mode="r+")
    shape = tuple(whole.sizes[d] for d in dims)
    sizes = {d: 1 if d in _ONE else n for d, n in zip(dims, shape)} | dict(chunks or {})
    chunk = tuple(min(sizes[d], n) for d, n in zip(dims, shape))
    shard = None
    if shards:
        shard = tuple(-(-shards.get(d, c) // c) * c for d, c in zip(dims, chunk))
    for name, words in fields.items():
        group.create_array(
            name,
            shape=shape,
            dtype="float32",
            chunks=chunk,
            shards=shard,
            fill_value=float("nan"),
            dimension_names=dims,
            attributes=temperature(words),
        )
    os.replace(temporary, path)


def write_region(path: str | Path, name: str, where: tuple[int | slice, ...], values: NDArray[Any]) -> None:
    """Write a piece of a field; pieces of different shards may be written at the same time.

    Arguments:
        path: the store.
        name: of the field.
        where: an index or a slice for each of its leading dimensions.
        values: what belongs there.
    """
    import zarr

    array = zarr.open_array(str(Path(path) / name), mode="r+")
    array[where] = np.asarray(values, dtype=np.float32)


def finish(store: str | Path, out: str | Path) -> None:
    """Give a finished store its name: the folder itself, or its content as NetCDF, a piece of a member in memory at once.

    Raises:
        PerrinError: the output has another suffix, or cannot be written.
    """
    check_path(out)
    store, out = Path(store), Path(out)
    if out.suffix == ".zarr":
        consolidate(store)
        old = out.with_name(f".{out.name}.{os.getpid()}.old")
        if out.exists():
            os.replace(out, old)
        os.replace(store, out)
        shutil.rmtree(old, ignore_errors=True)
        return
    from perrin.run.atomic import atomic_path

    with atomic_path(out) as temporary:
        _to_netcdf(store, temporary)


def _to_netcdf(store: Path, path: Path) -> None:
    import netCDF4
    import zarr

    group = zarr.open_group(str(store), mode="r")
    with netCDF4.Dataset(path, "w", format="NETCDF4") as file:
        file.setncatts(dict(group.attrs))
        arrays: dict[str, Any] = dict(group.arrays())
        dims = {n: array.metadata.dimension_names or () for n, array in arrays.items()}  # of a scalar: None
        for name, array in arrays.items():
            for dim, size in zip(dims[name], array.shape):
                if dim not in file.dimensions:
                    file.createDimension(dim, size)
        for name in sorted(arrays, key=lambda n: (arrays[n].ndim, n)):
            array = arrays[name]
            big = array.ndim > 2
            before = array.ndim - 3
            words = {k: v for k, v in dict(array.attrs).items() if k != "_FillValue"}
            more: dict[str, Any] = {}
            if big:
                more = {"zlib": True, "complevel": 4, "shuffle": True, "fill_value": np.float32(np.nan)}
                more["chunksizes"] = array.chunks
            variable = file.createVariable(name, array.dtype.newbyteorder("="), dims[name], **more)
            variable.setncatts(words)
            if big:
                for where in np.ndindex(array.shape[:before]):
                    for at in range(0, array.shape[before], 64):
                        piece = (*where, slice(at, at + 64))
                        variable[piece] = array[piece]
            else:
                variable[...] = array[...]

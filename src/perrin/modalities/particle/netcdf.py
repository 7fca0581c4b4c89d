"""HDF5 with dimension scales, which is NetCDF-4 to whoever reads that: named axes, units and long names as CF has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError
from perrin.modalities.particle.hdf5 import new_hdf5

SUFFIXES = (".h5", ".hdf5", ".nc")


@dataclass(frozen=True)
class Variable:
    """Numbers on named axes.

    Arguments:
        axes: their names, one for each dimension.
        data: the numbers.
        long_name: what they are.
        units: as UDUNITS writes them; `1` where there is none.
    """

    axes: tuple[str, ...]
    data: NDArray[Any]
    long_name: str
    units: str = "1"


def check_suffix(path: str | Path, what: str = "flows") -> None:
    """Raise a `PerrinError` unless such a file can have that name."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise PerrinError(
            f"expected a file of {what} ({', '.join(SUFFIXES)}), given {path}: change its suffix"
        )


def write_variables(path: str | Path, variables: Mapping[str, Variable], words: Mapping[str, Any]) -> None:
    """Write variables, atomically. One whose only axis has its own name is that axis's coordinate; axes without one count.

    Arguments:
        words: what the file says of itself, as attributes.

    Raises:
        PerrinError: the file cannot be written.
        ValueError: an axis has two lengths.
    """
    check_suffix(path)
    lengths: dict[str, int] = {}
    for variable in variables.values():
        for axis, length in zip(variable.axes, variable.data.shape, strict=True):
            if lengths.setdefault(axis, length) != length:
                raise ValueError(f"expected {lengths[axis]} along {axis}, given {length}")
    with new_hdf5(path) as file:
        for axis, length in lengths.items():
            own = variables.get(axis)
            file.create_dataset(axis, data=np.arange(length) if own is None else own.data).make_scale(axis)
        for name, variable in variables.items():
            if name in lengths:
                made = file[name]
            else:
                packed: dict[str, Any] = (
                    {"compression": "gzip", "compression_opts": 4, "shuffle": True}
                    if variable.data.ndim > 1
                    else {}
                )
                made = file.create_dataset(name, data=variable.data, **packed)
                for k, axis in enumerate(variable.axes):
                    made.dims[k].attach_scale(file[axis])
            made.attrs["long_name"] = variable.long_name
            made.attrs["units"] = variable.units
        file.attrs["Conventions"] = "CF-1.8"
        for key, value in words.items():
            file.attrs[key] = value

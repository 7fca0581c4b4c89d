"""PP files of the Met Office's Unified Model, in the form that `perrin.modalities.weather.fields` reads.

A file is a sequence of fields, each a header of 45 integers and 19 reals and then its values: big-endian Fortran records of
32-bit words (Unified Model documentation paper F03). What is read of them: unpacked fields on a latitude–longitude grid, at
one start. Values stay on disk until they are asked for. Variables have CF's names where their STASH code is known here, else
the code itself, such as m01s05i205; `_minimum` and `_maximum` over time, and the code again where a name is taken twice.

Times by LBTIM = 100 IA + 10 IB + IC: IC is the calendar; with IB = 0 or 1 a field is of T1, with IB = 2 a mean from T1 to
T2, and the forecast started at T2 (IB = 1) or LBFT hours before T2 (IB = 2).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from perrin.errors import PerrinError

NAMES: dict[tuple[int, int], tuple[str, str]] = {
    (0, 2): ("eastward_wind", "m s-1"),
    (0, 3): ("northward_wind", "m s-1"),
    (0, 4): ("air_potential_temperature", "K"),
    (0, 10): ("specific_humidity", "1"),
    (0, 24): ("surface_temperature", "K"),
    (0, 30): ("land_binary_mask", "1"),
    (0, 31): ("sea_ice_area_fraction", "1"),
    (0, 33): ("surface_altitude", "m"),
    (0, 409): ("surface_air_pressure", "Pa"),
    (3, 225): ("eastward_wind", "m s-1"),
    (3, 226): ("northward_wind", "m s-1"),
    (3, 236): ("air_temperature", "K"),
    (3, 237): ("specific_humidity", "1"),
    (3, 245): ("relative_humidity", "%"),
    (5, 216): ("precipitation_flux", "kg m-2 s-1"),
    (15, 201): ("eastward_wind", "m s-1"),
    (15, 202): ("northward_wind", "m s-1"),
    (16, 202): ("geopotential_height", "m"),
    (16, 203): ("air_temperature", "K"),
    (16, 204): ("relative_humidity", "%"),
    (16, 222): ("air_pressure_at_sea_level", "Pa"),
}
"""Section and item of the atmosphere's STASH: CF's standard name and unit."""
_CALENDARS = {1: "standard", 2: "360_day", 4: "365_day"}
_METHODS = {0: "", 128: "time: mean", 4096: "time: minimum", 8192: "time: maximum"}
_PRESSURE = 8


@dataclass(frozen=True)
class Header:
    """Of one field: the words of its header by their numbers in the documentation, from 1, and where its values begin."""

    words: tuple[Any, ...]
    offset: int

    def __getitem__(self, number: int) -> Any:
        return self.words[number - 1]

    def date(self, first: int) -> Any:
        """T1 (word 1 on) or T2 (7)."""
        year, month, day, hour, minute, second = (int(self[first + k]) for k in range(6))
        second = second if self[22] >= 3 else 0  # LBREL; before it the sixth word was the day of the year
        calendar = _CALENDARS[self[13] % 10]
        return cftime.datetime(year, month, day, hour, minute, second, calendar=calendar)

    @property
    def times(self) -> tuple[Any, tuple[Any, Any] | None, Any]:
        """Valid time, its bounds or `None`, start or `None`."""
        kind, one = self[13] // 10 % 10, self.date(1)
        if kind < 2:
            return one, None, self.date(7) if kind else None
        two = self.date(7)
        return one + (two - one) / 2, (one, two), two - datetime.timedelta(hours=int(self[14]))

    @property
    def code(self) -> str:
        """The STASH code, `m01s00i024`."""
        return f"m{self[45]:02d}s{self[42] // 1000:02d}i{self[42] % 1000:03d}"

    @property
    def level(self) -> float:
        """Pressure, hPa, else the number of a level."""
        return round(float(self[52]), 3) if self[26] == _PRESSURE else float(self[33])


def open_pp(path: Path) -> xr.Dataset:
    """The fields of a file as one dataset.

    Raises:
        PerrinError: it is no PP file, or its fields are packed, on other grids, of several starts, or not of every time
            and level.
    """
    headers = read_headers(path)
    for h in headers:
        _check(h, path)
    first = headers[0]
    if any(
        [h[k] for k in (18, 19, 59, 60, 61, 62)] != [first[k] for k in (18, 19, 59, 60, 61, 62)]
        for h in headers
    ):
        raise PerrinError(
            f"expected fields of one grid in {path}, given several: save each variable as a file of its own"
        )
    groups: dict[tuple[Any, ...], list[Header]] = {}
    for h in headers:
        groups.setdefault((h[45], h[42], h[25], h[26]), []).append(h)
    rows, columns = (np.arange(1, first[n] + 1) for n in (18, 19))
    coords = {
        "latitude": ("latitude", np.round(first[59] + first[60] * rows, 6), {"units": "degrees_north"}),
        "longitude": ("longitude", np.round(first[61] + first[62] * columns, 6), {"units": "degrees_east"}),
    }
    parts: dict[str, xr.Dataset] = {}
    for fields in groups.values():
        name = _name(fields[0])
        name = f"{name}_{fields[0].code}" if name in parts else name
        parts[name] = _dataset(name, fields, path)
    try:
        out = xr.merge(parts.values(), join="exact", compat="no_conflicts")
    except (ValueError, xr.MergeError) as error:
        raise PerrinError(
            f"expected variables of the same times and levels in {path}, given others ({', '.join(parts)}): save each as "
            "a file of its own"
        ) from error
    members = {h[37] for h in headers}
    if len(members) == 1 and 0 not in members:
        out = out.assign_coords(realization=((), int(first[37])))
    return out.assign_coords(coords)


def read_headers(path: Path) -> list[Header]:
    """The headers of a file's fields.

    Raises:
        PerrinError: it is no PP file, or one that was cut off.
    """
    found, size = [], path.stat().st_size
    wrong = PerrinError(
        f"expected a PP file of 32-bit words, given {path}, which is none or was cut off: check it"
    )
    with path.open("rb") as file:
        while (at := file.tell()) < size:
            head = file.read(268)  # length, 64 words, length; length of the values
            if len(head) < 268:
                raise wrong
            sizes = [int(np.frombuffer(head, ">i4", 1, k)[0]) for k in (0, 260, 264)]
            if sizes[:2] != [256, 256] or sizes[2] < 0 or at + 272 + sizes[2] > size:
                raise wrong
            integers, reals = np.frombuffer(head, ">i4", 45, 4), np.frombuffer(head, ">f4", 19, 184)
            found.append(Header((*integers.tolist(), *reals.tolist()), at + 268))
            if (found[-1][18] * found[-1][19] + found[-1][20]) * 4 > sizes[2] and found[-1][21] == 0:
                raise wrong
            file.seek(at + 272 + sizes[2])
    if not found:
        raise wrong
    return found


def _check(h: Header, path: Path) -> None:
    """Say what of a field cannot be read."""
    remedy = "convert the file to NetCDF with Iris"
    if h[21] % 1000:
        raise PerrinError(
            f"expected unpacked fields, given {h.code} packed (LBPACK {h[21]}) in {path}: {remedy}"
        )
    if h[16] not in (1, 2) or h[60] == 0 or h[62] == 0 or h[18] < 2 or h[19] < 2:
        raise PerrinError(
            f"expected fields on a regular latitude–longitude grid, given {h.code} on another (LBCODE {h[16]}) in {path}: "
            "remap it first"
        )
    if h[13] % 10 not in _CALENDARS or h[13] // 10 % 10 > 2 or h[25] not in _METHODS:
        raise PerrinError(
            f"expected fields of a time, or means, minima or maxima over one span, given {h.code} with LBTIM {h[13]} and "
            f"LBPROC {h[25]} in {path}: {remedy}"
        )


def _name(h: Header) -> str:
    standard = NAMES.get((h[42] // 1000, h[42] % 1000)) if h[45] == 1 else None
    method = _METHODS[h[25]].partition(": ")[2]
    return "_".join(
        [standard[0] if standard else h.code, *([method] if method in ("minimum", "maximum") else [])]
    )


def _dataset(name: str, fields: Sequence[Header], path: Path) -> xr.Dataset:
    """One variable by time and, where it has some, level."""
    place = {(h.times[0], h.level, h[43]): h for h in fields}
    times, levels, other = (sorted({key[k] for key in place}) for k in range(3))
    if len(place) < len(fields) or len(place) < len(times) * len(levels) or len(other) > 1:
        raise PerrinError(
            f"expected each time and level once, given {len(fields)} fields of {name} for {len(times)} times and "
            f"{len(levels)} levels in {path}: save what belongs together as a file of its own"
        )
    grid = [[place[t, p, other[0]] for p in levels] for t in times]
    first = fields[0]
    values = _Values(
        path, np.array([[h.offset for h in row] for row in grid]), (first[18], first[19]), first[63]
    )
    leveled = first[26] == _PRESSURE or len(levels) > 1
    shape = (*values.shape[: 2 if leveled else 1], *values.shape[2:])
    values.leveled, values.shape = leveled, shape
    dims = ("time", *(["level"] if leveled else []), "latitude", "longitude")
    standard = NAMES.get((first[42] // 1000, first[42] % 1000)) if first[45] == 1 else None
    words = (
        {"long_name": first.code}
        if standard is None
        else {"standard_name": standard[0], "units": standard[1]}
    )
    if method := _METHODS[first[25]]:
        words["cell_methods"] = method
    variable = xr.Variable(dims, indexing.LazilyIndexedArray(values), words)
    coords: dict[str, Any] = {"time": ("time", times)}
    if leveled:
        coords["level"] = ("level", levels, {"units": "hPa"} if first[26] == _PRESSURE else {})
    bounds = [row[0].times[1] for row in grid]
    if None not in bounds:
        coords["time"] = ("time", times, {"bounds": "time_bounds"})
        coords["time_bounds"] = (("time", "bound"), np.array(bounds))
    starts = {row[0].times[2] for row in grid}
    if len(starts) == 1 and None not in starts:
        coords["forecast_reference_time"] = ((), starts.pop())
    elif len({h[14] for h in fields}) > 1 and None not in starts:
        raise PerrinError(
            f"expected forecasts of one start in {path}, given {name} of {len(starts)}: save each as a file of its own"
        )
    return xr.Dataset({name: variable}, coords)


class _Values(BackendArray):
    """Values of fields of a file, `[time, (level,) rows, columns]`, NaN where they are missing."""

    def __init__(self, path: Path, offsets: NDArray[np.int64], grid: tuple[int, int], missing: float) -> None:
        self.path, self.offsets, self.grid, self.missing = path, offsets, grid, missing
        self.shape: tuple[int, ...] = (*offsets.shape, *grid)
        self.leveled, self.dtype = True, np.dtype(np.float32)

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> NDArray[np.float32]:
        offsets = (self.offsets if self.leveled else self.offsets[:, 0])[key[:-2]]
        found = [
            np.fromfile(self.path, ">f4", self.grid[0] * self.grid[1], offset=int(at)).reshape(self.grid)[
                key[-2:]
            ]
            for at in np.ravel(offsets)
        ]
        x = np.array(found, np.float32).reshape(*np.shape(offsets), *(np.shape(found[0]) if found else ()))
        return np.where(x == np.float32(self.missing), np.float32(np.nan), x)

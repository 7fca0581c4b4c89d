"""Rain from the radars of Australia's Bureau of Meteorology, on a grid of latitude and longitude.

Their files (Rainfields) hold accumulations on an equal-area conical grid (Albers; Snyder 1987, pp. 98–103) around the
radar. A cell of latitude and longitude has the mean of the pixels whose centres are in it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from perrin.errors import PerrinError

Array = NDArray[np.float64]
_A, _E2 = 6378137.0, 0.00669438  # of GRS 80


def _q(phi: Array) -> Array:
    """Snyder's eq. 3-12."""
    e, s = np.sqrt(_E2), np.sin(phi)
    return np.asarray(
        (1 - _E2) * (s / (1 - _E2 * s**2) - np.log((1 - e * s) / (1 + e * s)) / (2 * e)), dtype=np.float64
    )


def albers_inverse(
    x: Array, y: Array, parallels: tuple[float, float], origin: tuple[float, float]
) -> tuple[Array, Array]:
    """Latitude and longitude, degrees, of points of an Albers equal-area conical projection of the ellipsoid.

    Snyder, "Map projections: a working manual", USGS Professional Paper 1395, 1987, eqs. 14-12 ff.

    Arguments:
        x, y: metres.
        parallels: the standard ones, degrees.
        origin: latitude and central meridian, degrees.
    """
    phi_0, phi_1, phi_2 = np.deg2rad([origin[0], *parallels])

    def m(phi: float) -> float:
        return float(np.cos(phi) / np.sqrt(1 - _E2 * np.sin(phi) ** 2))

    q_0, q_1, q_2 = (float(_q(np.array(p))) for p in (phi_0, phi_1, phi_2))
    n = (m(phi_1) ** 2 - m(phi_2) ** 2) / (q_2 - q_1)
    C = m(phi_1) ** 2 + n * q_1
    rho_0 = _A * np.sqrt(C - n * q_0) / n
    sign = np.sign(n)
    rho = np.hypot(x, rho_0 - y)
    q = (C - (rho * n / _A) ** 2) / n
    theta = np.arctan2(sign * x, sign * (rho_0 - y))
    phi = np.arcsin(q / 2)
    for _ in range(6):
        s = np.sin(phi)
        phi = phi + (1 - _E2 * s**2) ** 2 / (2 * np.cos(phi)) * ((q - _q(phi)) / (1 - _E2))
    return np.rad2deg(phi), origin[1] + np.rad2deg(theta / n)


def read_radar(path: str | Path, *, cell: float = 0.01, station: str | None = None) -> xr.Dataset:
    """Accumulations by time, `precipitation`, for `write_fields`.

    Arguments:
        path: a zip or a folder of Rainfields NetCDF files.
        cell: degrees.
        station: its identifier, where there are files of several.

    Raises:
        PerrinError: there are no such files, or of several stations.
    """
    times, begins, fields, stations = [], [], [], {}
    grid: tuple[Array, Array] | None = None
    for data in _files(Path(path)):
        with _open(data) as file:
            if "precipitation" not in file.variables or not hasattr(file, "station_id"):
                continue
            own = str(file.station_id)
            stations[own] = str(getattr(file, "station_name", own))
            if own != (station or next(iter(stations))):
                continue
            if grid is None:
                number, grid = _grid(file, cell)
            rain = np.ma.filled(file["precipitation"][:].astype(np.float64), np.nan).ravel()
            rain[rain < 0] = np.nan  # a few flags beside the declared one
            end = file["valid_time"]
            times.append(cftime.num2date(end[...], end.units, calendar="standard"))
            begin = file.variables.get("start_time")
            if begin is not None:
                begins.append(cftime.num2date(begin[...], begin.units, calendar="standard"))
            fields.append(_binned(rain, number, (len(grid[0]), len(grid[1]))))
    if grid is None or (station is None and len(stations) > 1):
        found = ", ".join(f"{k} ({v})" for k, v in stations.items()) or "none"
        raise PerrinError(
            f"expected Rainfields files of one station in {path}, found stations {found}: choose one with --station"
        )
    order = np.argsort(np.array([t.isoformat() for t in times]))
    words = {
        "standard_name": "precipitation_amount",
        "long_name": "accumulated precipitation",
        "units": "kg m-2",
        "cell_methods": "time: sum",
    }
    time: dict[str, Any] = {"time": [times[i] for i in order]}
    if len(begins) == len(times):
        time["time"] = ("time", time["time"], {"bounds": "time_bounds"})
        time["time_bounds"] = (("time", "bound"), [[begins[i], times[i]] for i in order])
    return xr.Dataset(
        {
            "precipitation": (
                ("time", "latitude", "longitude"),
                np.stack(fields)[order].astype(np.float32),
                words,
            )
        },
        time | {"latitude": grid[0], "longitude": grid[1]},
    )


def _files(path: Path) -> Iterator[bytes]:
    try:
        if path.is_dir():
            for each in sorted(path.rglob("*.nc")):
                yield each.read_bytes()
            return
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".nc"):
                    yield archive.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise PerrinError(f"expected a zip or a folder of NetCDF files, given {path}: {error}") from error


def _open(data: bytes) -> Any:
    import netCDF4

    return netCDF4.Dataset("memory", memory=data)


def _grid(file: Any, cell: float) -> tuple[NDArray[np.intp], tuple[Array, Array]]:
    """The cell of each pixel (−1: none), and the cells' centres: the largest box that the pixels fill, in groups of
    8 × 8 whole cells, for coarse ones to be made of."""
    proj = file["proj"]
    scale = 1000.0 if file["x"].units == "km" else 1.0
    x, y = np.meshgrid(
        np.asarray(file["x"][:], np.float64) * scale, np.asarray(file["y"][:], np.float64) * scale
    )
    parallels = tuple(float(p) for p in proj.standard_parallel)
    origin = float(proj.latitude_of_projection_origin), float(proj.longitude_of_central_meridian)
    lat, lon = albers_inverse(x, y, (parallels[0], parallels[1]), origin)
    ends = []
    for across in (lat.T, lon):  # lines from one side of the radar's square to the other
        edge = np.sort(across[:, [0, -1]], axis=1)
        low, high = int(np.ceil(edge[:, 0].max() / cell)), int(np.floor(edge[:, 1].min() / cell))
        over = (high - low) % 8
        ends.append((low + over // 2, high - (over - over // 2)))
    (south, north), (west, east) = ends
    i, j = np.floor(lat / cell).astype(np.intp) - south, np.floor(lon / cell).astype(np.intp) - west
    rows, columns = north - south, east - west
    good = (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
    number = np.where(good, i * columns + j, -1).ravel()
    latitude: Array = (south + np.arange(rows, dtype=np.float64) + 0.5) * cell
    longitude: Array = (west + np.arange(columns, dtype=np.float64) + 0.5) * cell
    return number, (latitude, longitude)


def _binned(values: Array, number: NDArray[np.intp], shape: tuple[int, int]) -> Array:
    """Means of the values of each cell; NaN where it has none."""
    ok = (number >= 0) & np.isfinite(values)
    size = shape[0] * shape[1]
    total = np.bincount(number[ok], weights=values[ok], minlength=size)
    count = np.bincount(number[ok], minlength=size)
    with np.errstate(invalid="ignore"):
        return (total / count).reshape(shape)

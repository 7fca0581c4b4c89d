"""Latitude–longitude grids on the unit sphere.

A cell between latitudes φ₁, φ₂ and longitudes λ₁, λ₂ (rad) has the area (λ₂ − λ₁)(sin φ₂ − sin φ₁), in steradians; the
cells of a whole sphere sum to 4π. Overlaps of two grids are products of an overlap in sin φ and one in λ, which makes the
area-weighted mean of a fine grid over a coarse one two small matrix products (conservative remapping of first order,
Jones 1999).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perrin.errors import PerrinError

Array = NDArray[np.float64]


def latitude_edges(latitude: ArrayLike) -> Array:
    """The edges of rows: half-way between centres, `[n + 1]` for centres `[n]`, degrees.

    The outermost edge lies half a row outside, or at the pole where that is beyond it or short of it by less than 0.3
    rows: by 0.27 rows on Gaussian grids, whose polar rows are a little wider.

    Raises:
        PerrinError: the latitudes are not monotonic within [−90, 90].
    """
    centre = np.asarray(latitude, dtype=np.float64)
    step = np.diff(centre)
    if len(centre) < 2 or not (np.all(step > 0) or np.all(step < 0)) or np.abs(centre).max() > 90 + 1e-6:
        raise PerrinError("expected two or more monotonic latitudes from -90 to 90, given others: sort them")
    inner = (centre[1:] + centre[:-1]) / 2
    ends = []
    for c, s in ((centre[0], -step[0]), (centre[-1], step[-1])):
        edge = c + s / 2
        ends.append(np.copysign(90.0, edge) if 90 - abs(edge) < 0.3 * abs(s) else edge)
    return np.concatenate([ends[:1], inner, ends[1:]])


def longitude_edges(longitude: ArrayLike) -> Array:
    """The edges of columns, `[n + 1]` for ascending centres `[n]`, degrees; around the whole circle they meet.

    Raises:
        PerrinError: the longitudes are not ascending within 360 degrees.
    """
    centre = np.asarray(longitude, dtype=np.float64)
    step = np.diff(centre)
    if len(centre) < 2 or np.any(step <= 0) or centre[-1] - centre[0] >= 360:
        raise PerrinError(
            "expected two or more ascending longitudes within 360 degrees, given others: sort them"
        )
    gap = centre[0] + 360 - centre[-1]
    inner = (centre[1:] + centre[:-1]) / 2
    if is_circle(centre):
        first = centre[0] - gap / 2
        return np.concatenate([[first], inner, [first + 360]])
    return np.concatenate([[centre[0] - step[0] / 2], inner, [centre[-1] + step[-1] / 2]])


def is_circle(longitude: ArrayLike) -> bool:
    """Whether ascending longitudes go around the whole circle: the gap at the seam is a column, as elsewhere."""
    centre = np.asarray(longitude, dtype=np.float64)
    return len(centre) > 2 and centre[0] + 360 - centre[-1] < 1.5 * np.diff(centre).max()


def cell_areas(lat_edges: ArrayLike, lon_edges: ArrayLike) -> Array:
    """Areas of the cells between edges in degrees, `[rows, columns]`, steradians."""
    height = np.abs(np.diff(np.sin(np.deg2rad(np.asarray(lat_edges, dtype=np.float64)))))
    width = np.abs(np.diff(np.deg2rad(np.asarray(lon_edges, dtype=np.float64))))
    return height[:, None] * width


def _overlap(coarse: Array, fine: Array) -> Array:
    """Lengths shared by the intervals between ascending edges, `[coarse, fine]`."""
    low = np.maximum(coarse[:-1, None], fine[None, :-1])
    high = np.minimum(coarse[1:, None], fine[None, 1:])
    return np.maximum(high - low, 0)


def coarsen(
    field: ArrayLike,
    lat_edges: ArrayLike,
    lon_edges: ArrayLike,
    new_lat_edges: ArrayLike,
    new_lon_edges: ArrayLike,
    *,
    least: float = 0.5,
) -> Array:
    """The area-weighted mean of a field over the cells of another grid, missing values (NaN) left out.

    Arguments:
        field: `[..., rows, columns]`.
        lat_edges, lon_edges, new_lat_edges, new_lon_edges: ascending edges in degrees; longitudes may differ by turns.
        least: a new cell is missing where a smaller part of its area than this has data.
    """
    x = np.asarray(field, dtype=np.float64)
    south = _overlap(*(np.sin(np.deg2rad(np.asarray(e, np.float64))) for e in (new_lat_edges, lat_edges)))
    new_lon, lon = (np.deg2rad(np.asarray(e, np.float64)) for e in (new_lon_edges, lon_edges))
    east = sum(_overlap(new_lon, lon + turn * 2 * np.pi) for turn in (-1, 0, 1))
    known = np.isfinite(x)
    weight = south @ known @ np.transpose(east)
    total = south @ np.where(known, x, 0) @ np.transpose(east)
    area = cell_areas(new_lat_edges, new_lon_edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight >= (least - 1e-9) * area, total / weight, np.nan)

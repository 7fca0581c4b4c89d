"""Fields of any grid of the whole sphere on a Gauss grid, by their spherical harmonics.

The coefficients of degree below L are the area-weighted least-squares fit on the grid that a field is on
(`perrin.nets.sphere`), and their sum on the Gauss grid of L rows is the field there: what is finer is left out, not folded
back. A grid of n rows, poles counted as half, and k columns determines the degrees below min(n, k / 2).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from perrin.nets.sphere import SphericalHarmonics, gauss_latitudes

Array = NDArray[np.float64]


def resolved(latitude: Array, columns: int) -> int:
    """The number of degrees that a grid determines."""
    polar = int((np.abs(latitude) > 90 - 1e-6).sum())
    return min(len(latitude) - polar // 2, (columns + 1) // 2)


def to_gauss(x: Array, latitude: Array, longitude: Array, rows: int, columns: int) -> NDArray[np.float32]:
    """Fields `[…, latitude, longitude]` on the Gauss grid, `[…, rows, columns]`; as they are where they are on it.

    Arguments:
        x: without missing values.
        latitude, longitude: ascending, degrees, of the whole sphere.
        rows, columns: of the Gauss grid, whose first column is 0°.
    """
    own = gauss_latitudes(rows)[0].numpy()
    same = len(latitude) == rows and len(longitude) == columns and abs(longitude[0]) < 1e-6
    if same and np.allclose(latitude, own, atol=1e-3):
        return x.astype(np.float32)
    there, here = _transforms(latitude.tobytes(), len(longitude), float(longitude[0]), rows, columns)
    return here.inverse(there(torch.from_numpy(x))).numpy().astype(np.float32)


@lru_cache(maxsize=8)
def _transforms(
    latitude: bytes, width: int, first: float, rows: int, columns: int
) -> tuple[SphericalHarmonics, SphericalHarmonics]:
    """From a grid, and to the Gauss grid."""
    phi = torch.from_numpy(np.frombuffer(latitude).copy())
    degree = min(rows, len(phi) - 1, (width + 1) // 2)
    return (
        SphericalHarmonics(phi, width, degree=degree, first=first),
        SphericalHarmonics(gauss_latitudes(rows)[0], columns, degree=degree),
    )

"""Made-up showers, to try downscaling with where there is no radar; no weather, and no measure of any model.

A field of normal numbers g with the isotropic spectrum of a power law, S(k) ∝ k^−β, β = 2.5, is carried by a wind and
renewed as an autoregression; what it has above a threshold rains, exponentially more the higher it is (the "string of
beads" model: Pegram & Clothier, J. Hydrology 241, 2001, 26–41, without its climate):

    g_n(x) = ρ g_{n−1}(x − u) + √(1 − ρ²) η_n(x),        a = a₀ (exp(s (g − q)) − 1) where g > q, else 0

with q the quantile of a normal number that leaves the share of wet cells.
"""

from __future__ import annotations

import datetime
from statistics import NormalDist

import cftime
import numpy as np
import xarray as xr
from numpy.typing import NDArray

Array = NDArray[np.float64]


def gaussian_fields(
    times: int,
    size: int,
    *,
    beta: float = 2.5,
    rho: float = 0.95,
    wind: tuple[int, int] = (2, 5),
    seed: int = 0,
) -> Array:
    """g, `[times, size, size]`, on a torus: mean 0, variance 1.

    Arguments:
        times, size: how many, and cells each way.
        beta: β.
        rho: ρ.
        wind: u, rows and columns from one time to the next.
        seed: of the noise.
    """
    draw = np.random.default_rng(seed)
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    k[0, 0] = np.inf  # no mean
    amplitude = k ** (-beta / 2)
    full = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    full[0, 0] = np.inf
    amplitude /= np.sqrt((full**-beta).mean())
    fields: list[Array] = []
    for n in range(times):
        eta = np.fft.irfft2(amplitude * np.fft.rfft2(draw.standard_normal((size, size))), s=(size, size))
        fields.append(rho * np.roll(fields[-1], wind, (0, 1)) + np.sqrt(1 - rho**2) * eta if n else eta)
    return np.stack(fields)


def showers(
    times: int = 3,
    size: int = 64,
    *,
    wet: float = 0.3,
    amount: float = 0.1,
    growth: float = 2.0,
    seed: int = 0,
) -> xr.Dataset:
    """Sums over 10 minutes on cells of 0.01°, `precipitation`, for `write_fields`.

    Arguments:
        times, size: how many, and cells each way.
        wet: share of the cells in which it rains, on average.
        amount: a₀, kg m⁻².
        growth: s.
        seed: of the noise.
    """
    g = gaussian_fields(times, 2 * size, seed=seed)[
        :, :size, :size
    ]  # a part of the torus, so that no ends meet
    rain = amount * np.expm1(growth * np.maximum(g - NormalDist().inv_cdf(1 - wet), 0))
    words = {
        "standard_name": "precipitation_amount",
        "long_name": "accumulated precipitation, made up",
        "units": "kg m-2",
        "cell_methods": "time: sum",
    }
    step = datetime.timedelta(minutes=10)
    ends = [cftime.datetime(2001, 1, 1, 12) + n * step for n in range(times)]
    centres = 0.01 * (np.arange(size) - size // 2 + 0.5)
    return xr.Dataset(
        {"precipitation": (("time", "latitude", "longitude"), rain.astype(np.float32), words)},
        {
            "time": ("time", ends, {"bounds": "time_bounds"}),
            "time_bounds": (("time", "bound"), [[end - step, end] for end in ends]),
            "latitude": 45 + centres,
            "longitude": 10 + centres,
        },
    )

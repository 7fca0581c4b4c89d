"""A made record of sea surface temperature, whose process is known."""

from __future__ import annotations

import numpy as np
import xarray as xr

from perrin.modalities.weather.sst import SeaSurface

DECAY = np.array([0.95, 0.85, 0.7])


def made_amplitudes(months: int) -> np.ndarray:
    """Of the made record's patterns, `[months, 3]`."""
    rng = np.random.default_rng(0)
    a = np.zeros((months, 3))
    for t in range(1, months):
        a[t] = DECAY * a[t - 1] + np.sqrt(1 - DECAY**2) * rng.standard_normal(3)
    return a


def made_patterns(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Three, at degrees, `[3, rows, columns]`."""
    phi, lam = np.deg2rad(latitude)[:, None], np.deg2rad(longitude)[None]
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) ** 2 * np.sin(2 * lam), np.sin(phi) + 0 * lam])


def made_expectation(sst: SeaSurface, starts: np.ndarray, lead: int, training: tuple[int, int]) -> np.ndarray:
    """Anomalies of the made record expected by whoever knows the process and its state, `[starts, points]`: no forecast has
    a smaller mean square error.

    The anomalies are from the means of training years in which the amplitudes' mean is not 0.
    """
    a, months = made_amplitudes(len(sst.times)), sst.months
    years = np.array([t.year for t in sst.times])
    known = (years >= training[0]) & (years <= training[1])
    usual = np.stack([a[known & (months == m)].mean(0) for m in range(12)])
    patterns = made_patterns(sst.latitude, sst.longitude)[:, sst.sea]
    return (DECAY**lead * a[starts] - usual[months[starts + lead]]) @ patterns


def made_record(years: int = 34) -> xr.Dataset:
    """Three patterns that decay at their own rates, a rest that is white in time, a season, and a continent; °C, 7.5°."""
    rng = np.random.default_rng(1)
    n = 12 * years
    latitude, longitude = np.arange(-86.25, 90, 7.5), np.arange(3.75, 360, 7.5)
    phi = np.deg2rad(latitude)[:, None]
    season = 4 * np.cos(2 * np.pi * np.arange(n) / 12)
    patterns = made_patterns(latitude, longitude)
    values = 12 + season[:, None, None] * np.sin(phi) + np.tensordot(made_amplitudes(n), patterns, 1)
    values = values + 0.2 * rng.standard_normal(values.shape)
    values[:, (np.abs(latitude) < 40)[:, None] & (longitude > 100) & (longitude < 140)] = np.nan
    return xr.Dataset(
        {
            "sst": (
                ("time", "lat", "lon"),
                values,
                {"standard_name": "sea_surface_temperature", "units": "degC"},
            )
        },
        {
            "time": xr.date_range("1950-01-01", periods=n, freq="MS", use_cftime=True),
            "lat": latitude,
            "lon": longitude,
        },
    )

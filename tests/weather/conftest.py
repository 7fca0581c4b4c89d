"""A made record of sea surface temperature, and a model of it that is trained in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from perrin.bundle import write_bundle
from perrin.modalities.weather.fields import Fields
from perrin.modalities.weather.sst import SeaSurface, read_sst
from perrin.modalities.weather.sst_train import SSTOptions, train_sst
from perrin.train import TrainOptions

DECAY = np.array([0.95, 0.85, 0.7])


def made_record(years: int = 34) -> xr.Dataset:
    """Three patterns that decay at their own rates, a rest that is white in time, a season, and a continent; °C, 7.5°."""
    rng = np.random.default_rng(0)
    n = 12 * years
    latitude, longitude = np.arange(-86.25, 90, 7.5), np.arange(3.75, 360, 7.5)
    phi, lam = np.deg2rad(latitude)[:, None], np.deg2rad(longitude)[None]
    patterns = np.stack(
        [np.cos(phi) * np.cos(lam), np.cos(phi) ** 2 * np.sin(2 * lam), np.sin(phi) + 0 * lam]
    )
    a = np.zeros((n, 3))
    for t in range(1, n):
        a[t] = DECAY * a[t - 1] + np.sqrt(1 - DECAY**2) * rng.standard_normal(3)
    month = np.arange(n)
    season = 4 * np.cos(2 * np.pi * month / 12)
    values = 12 + season[:, None, None] * np.sin(phi) + np.tensordot(a, patterns, 1)
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


@pytest.fixture(scope="session")
def record() -> xr.Dataset:
    """See `made_record`."""
    return made_record()


@pytest.fixture(scope="session")
def sea_surface(record: xr.Dataset) -> SeaSurface:
    """The record on a grid of 15°."""
    return read_sst(Fields(record), cell=15, training=(1950, 1977))


@pytest.fixture(scope="session")
def sst_bundle(sea_surface: SeaSurface, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of it."""
    folder = tmp_path_factory.mktemp("bundle") / "made"
    options = SSTOptions(
        training=(1950, 1977),
        choice=(1978, 1983),
        leads=4,
        modes=4,
        predicted=8,
        amplitudes=4,
        field_amplitudes=5,
        degree=8,
        field_degree=10,
    )
    train = TrainOptions(steps=40, batch=32, warmup=5, log_every=1000, save_every=1000)
    model, found = train_sst(sea_surface, options, train, folder)
    write_bundle(
        folder,
        modality="weather",
        model=model.to_json(),
        weights=model.weights(),
        card="made",
        training=found,
    )
    return folder

"""The made record of `oceans`, and a model of it that is trained in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr
from oceans import made_record

from perrin.bundle import write_bundle
from perrin.modalities.weather.fields import Fields
from perrin.modalities.weather.sst import SeaSurface, read_sst
from perrin.modalities.weather.sst_train import SSTOptions, train_sst
from perrin.train import TrainOptions


@pytest.fixture(scope="session")
def record() -> xr.Dataset:
    """See `oceans.made_record`."""
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

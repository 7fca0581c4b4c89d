"""Sea surface temperatures and the linear inverse model, on made records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("netCDF4")

import xarray as xr

from perrin.cli import main
from perrin.errors import PerrinError
from perrin.modalities.weather.fields import Fields, open_fields
from perrin.modalities.weather.lim import LinearInverseModel
from perrin.modalities.weather.sst import read_sst

G = np.array([[0.9, 0.2, 0.0], [-0.2, 0.8, 0.1], [0.0, 0.0, 0.5]])


def record(years: int = 6) -> xr.Dataset:
    """A seasonal cycle and a warming of 1 K in all years after the fourth, with a continent from 100°E to 140°E."""
    times = xr.date_range("1950-01-01", periods=12 * years, freq="MS", use_cftime=True)
    latitude, longitude = np.arange(89, -90, -2.0), np.arange(1, 360, 2.0)
    month = np.arange(12 * years)
    season = 10 + 5 * np.cos(2 * np.pi * month / 12)
    values = (
        np.broadcast_to((season + (month >= 48))[:, None, None], (12 * years, 90, 180))
        + 10 * np.cos(np.deg2rad(latitude))[:, None]
    )
    values = np.where((longitude > 100) & (longitude < 140), np.nan, values)
    attributes = {"standard_name": "sea_surface_temperature", "units": "degC"}
    return xr.Dataset(
        {"sst": (("time", "lat", "lon"), values, attributes)},
        {"time": times, "lat": latitude, "lon": longitude},
    )


def test_anomalies_are_from_the_training_years() -> None:
    sst = read_sst(Fields(record()), training=(1950, 1953))
    sea = sst.sea
    assert sst.temperature.shape == (72, 36, 72)
    assert not sea[:, 20:28].any()
    assert sea.sum() == 36 * 64
    np.testing.assert_allclose(sst.anomaly[:48, sea], 0, atol=1e-12)
    np.testing.assert_allclose(sst.anomaly[48:, sea], 1)
    assert sst.area.sum() == pytest.approx(4 * np.pi)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    record().to_netcdf("in.nc")
    assert main(["data", "weather/sst", "--file", "in.nc", "-o", "out.nc", "--years", "1950-1953"]) == 0
    assert "72 months, 2304 cells of sea" in capsys.readouterr().out
    fields = open_fields("out.nc")
    assert list(fields.parts) == ["sst", "sst_anomaly"]
    assert np.nanmax(fields.read("sst_anomaly", time=50)) == pytest.approx(1, abs=1e-6)
    for bad, words in {
        "data weather/sst -o x.nc": "--file",
        "data weather/sst --file in.nc -o x.nc --years 1900-1910": "1950 to 1955",
        "data weather/sst --file in.nc -o x.nc --cell 7": "divides 180",
        "data weather/sst --file in.nc -o x.txt": ".nc",
        "data weather/snow --file in.nc -o x.nc": "weather/sst",
    }.items():
        assert main(bad.split()) == 2, bad
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.nc", "out.nc", "out.nc.run.json"]


def test_gaps_are_said() -> None:
    gap = record().isel(time=[*range(30), *range(31, 72)])
    with pytest.raises(PerrinError, match="consecutive"):
        read_sst(Fields(gap), training=(1950, 1953))


def series(steps: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """y(t+1) = G y(t) + noise seen at 20 points through orthogonal patterns of different strength; and the patterns."""
    r = np.random.default_rng(seed)
    patterns = np.linalg.qr(r.normal(size=(20, 3)))[0].T * np.array([3.0, 2.0, 1.0])[:, None]
    y = np.zeros((steps, 3))
    for t in range(1, steps):
        y[t] = G @ y[t - 1] + r.normal(size=3)
    return y @ patterns + noise * r.normal(size=(steps, 20)), patterns


def test_the_model_finds_the_propagator() -> None:
    """The eigenvalues of G do not depend on the basis; forecasts are those of the true one."""
    x, patterns = series(200_000, 0.0, 0)
    model = LinearInverseModel.fit(x, np.ones(20), 3)
    found, true = (np.sort_complex(np.linalg.eigvals(m)) for m in (model.G, G))
    np.testing.assert_allclose(found, true, atol=0.01)
    y = np.array([1.0, -2.0, 0.5])
    exact = np.linalg.matrix_power(G, 3) @ y @ patterns
    np.testing.assert_allclose(model.mean(y @ patterns, 3), exact, atol=0.05 * np.abs(exact).max())


def test_members_have_the_mean_and_spread_of_the_errors() -> None:
    x, _ = series(20_000, 0.5, 1)
    model = LinearInverseModel.fit(x[:15_000], np.ones(20), 3)
    for rival in (model, replace(model, damping=0 * model.damping)):
        error = x[15_002:] - rival.mean(x[15_000:-2], 2)
        members = rival.ensemble(x[7], 2, 4000, seed=3)
        np.testing.assert_allclose(members.mean(0), rival.mean(x[7], 2), atol=5 * members.std() / 60)
        np.testing.assert_allclose(members.std(0), error.std(0), rtol=0.1)


def test_members_do_not_depend_on_their_number() -> None:
    x, _ = series(500, 0.5, 1)
    model = LinearInverseModel.fit(x, np.ones(20), 3)
    few, many = (model.ensemble(x[0], 3, m, seed=5, start=2) for m in (3, 11))
    np.testing.assert_allclose(few, many[:3], rtol=0, atol=1e-12)
    assert not np.allclose(few, model.ensemble(x[0], 3, 3, seed=5, start=3))


def test_what_is_left_out_decays() -> None:
    """A local process of no pattern: its autocorrelation is found, and its forecast is that power of it."""
    r = np.random.default_rng(0)
    x = np.zeros((50_000, 40))
    for t in range(1, len(x)):
        x[t] = 0.7 * x[t - 1] + r.normal(size=40)
    x[:, 0] *= 50  # a pattern to catch
    model = LinearInverseModel.fit(x, np.ones(40), 1)
    np.testing.assert_allclose(model.damping[1:], 0.7, atol=0.03)
    np.testing.assert_allclose(model.mean(x[5], 3)[1:], 0.7**3 * x[5, 1:], atol=0.25)


def test_too_many_modes() -> None:
    with pytest.raises(PerrinError, match="modes"):
        LinearInverseModel.fit(np.zeros((10, 20)), np.ones(20), 10)

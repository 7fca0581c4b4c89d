"""Scenarios: pattern scaling and variability that are known are found again; tables, commands, members."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cftime
import numpy as np
import pytest
import xarray as xr
from killed import assert_same_bytes, kill_when

from perrin.cli import main
from perrin.core import sample_seeds
from perrin.errors import PerrinError
from perrin.modalities.weather.fields import Fields, open_fields
from perrin.modalities.weather.scenario import (
    area_mean,
    at_years,
    fit_scenario,
    fit_variability,
    pattern,
    read_forcing,
    read_scenario,
)
from perrin.train import TrainOptions

OPTIONS = TrainOptions(steps=2, batch=16, lr=1e-3, warmup=1, log_every=10**9, save_every=10**9)


def run(years: int, seed: int, *, monthly: bool = False, rate: float = 0.02) -> xr.Dataset:
    """Warming by `rate` K a year, 2 + latitude / 30 times that at each point, and one mode of variability of 0.5 K."""
    rng = np.random.default_rng(seed)
    latitude, longitude = np.arange(-30.0, 31.0, 10.0), np.arange(0.0, 60.0, 10.0)
    months = range(1, 13) if monthly else [6]
    times = [cftime.datetime(1900 + y, m, 16, calendar="360_day") for y in range(years) for m in months]
    G = rate * (np.array([t.year for t in times]) - 1900)
    slope = 2 + latitude[:, None] / 30 + 0 * longitude
    mode = np.cos(np.deg2rad(longitude) * 6) + 0 * latitude[:, None]
    x = 280 + slope * G[:, None, None] + 0.5 * mode * rng.standard_normal((len(times), 1, 1))
    x += 0.1 * rng.standard_normal(x.shape)
    if monthly:
        x += 5 * np.cos(2 * np.pi * (np.array([t.month for t in times]) - 1) / 12)[:, None, None]
    x[:, 0, 0] = np.nan
    attributes = {"standard_name": "air_temperature", "units": "K"}
    return xr.Dataset(
        {"tas": (("time", "lat", "lon"), x.astype(np.float32), attributes)},
        {"time": times, "lat": latitude, "lon": longitude},
    )


@pytest.mark.parametrize("monthly", [False, True])
def test_what_is_known_is_found_again(tmp_path: Path, monthly: bool) -> None:
    """Slopes, the seasonal cycle, the mode and the variances of draws at a temperature beyond those seen."""
    years = 40 if monthly else 200
    fields = Fields(run(years, 0, monthly=monthly))
    record = read_scenario(fields)
    forcing = {1900 + y: 0.02 * y for y in range(years)}
    model, losses = fit_scenario(
        fields, record, forcing, np.ones(len(record.times), bool), OPTIONS, tmp_path, count=6
    )
    assert set(losses) == {"normal", "trained"}
    assert record.values.shape[1] == 41  # of 42 cells one is missing
    assert set(record.parts.tolist()) == (set(range(12)) if monthly else {0})
    slope = (2 + fields.latitude[:, None] / 30 + 0 * fields.longitude)[record.keep]
    np.testing.assert_allclose(model.b.mean(0), slope, atol=0.25)
    if monthly:
        np.testing.assert_allclose(model.a.mean(1)[0] - model.a.mean(1)[6], 10, atol=0.5)
    mode = (np.cos(np.deg2rad(fields.longitude) * 6) + 0 * fields.latitude[:, None])[record.keep]
    G, parts = np.full(6, 5.0), np.full(6, 0)
    d = model.draw(G, parts, sample_seeds(0, range(200)))
    mean = model.mean(G[:1], parts[:1])[0]
    np.testing.assert_allclose(d.mean((0, 1)), mean, atol=0.08)
    variance = 0.25 * mode**2 + 0.01
    assert float((d.var((0, 1)) / variance).mean()) == pytest.approx(1, abs=0.15)
    together = np.corrcoef((d - mean).reshape(-1, 41)[:, [0, 1]].T)[0, 1]
    want = 0.25 * mode[0] * mode[1] / np.sqrt(variance[0] * variance[1])
    assert together == pytest.approx(want, abs=0.1)


def test_spreads_are_those_of_years_not_fitted_to() -> None:
    """Of white noise every function has the same spread in other years, whatever the fit says of its own."""
    rng = np.random.default_rng(0)
    r, weight = rng.standard_normal((60, 40)), np.full(40, 1 / 40)
    v = fit_variability(r, np.zeros(60, dtype=np.intp), weight, count=10)
    np.testing.assert_allclose(v.spread, v.spread[0], rtol=0.35)
    z = (v.spread**2) @ (v.modes**2) + v.rest**2
    np.testing.assert_allclose((z * weight).sum(), 1.0, atol=0.1)
    np.testing.assert_allclose((v.modes * weight) @ v.modes.T, np.eye(10), atol=1e-10)


def test_pattern_and_area_mean() -> None:
    G = np.array([0.0, 1.0, 2.0, 3.0])
    x = np.stack([1 + 2 * G, 4 - G], 1)
    a, b = pattern(x, G, np.zeros(4, dtype=np.intp))
    np.testing.assert_allclose((a[0], b[0]), ([1, 4], [2, -1]), atol=1e-12)
    fields = Fields(run(30, 1))
    record = read_scenario(fields)
    found = area_mean(fields, record, smooth=3)
    weight = fields.area[record.keep]
    each = record.values @ weight / weight.sum()
    assert found[1910] == pytest.approx(each[9:12].mean())
    assert found[1900] == pytest.approx(each[:2].mean())
    with pytest.raises(PerrinError, match="none for 1905"):
        at_years({y: 0.0 for y in range(1900, 1930) if y != 1905}, record.times, "x")


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """train on one run, forecast another's temperatures; member k is the same whatever their number; refusals in a line."""
    low, table = tmp_path / "low.nc", tmp_path / "g.csv"
    run(60, 0).to_netcdf(low)
    table.write_text("year,temperature\n" + "".join(f"{1960 + y},{281 + 0.1 * y}\n" for y in range(5)))
    bundle = tmp_path / "m"
    words = ["train", "weather/scenario", "--data", str(low), "--out", str(bundle), "--steps", "2"]
    assert main([*words, "--hold-out", "1950-01/1959-12"]) == 0
    training = json.loads((bundle / "config.json").read_text())["training"]
    losses = training["losses"]
    assert training["network_kept"] == (losses["trained"] < losses["normal"])
    verdict = f"etwork: {'kept' if training['network_kept'] else 'not kept'}, on the last fifth of the times its loss is "
    assert verdict in (bundle / "card.md").read_text()
    assert verdict.replace(":", "") in capsys.readouterr().out
    out = []
    for members in (2, 12):
        path = tmp_path / f"{members}.nc"
        forecast = ["forecast", str(bundle), "--forcing", str(table), "--members", str(members)]
        assert main([*forecast, "-o", str(path)]) == 0
        out.append(open_fields(path))
    few, many = (f.read("tas") for f in out)
    assert few.shape == (2, 5, 7, 6)
    np.testing.assert_array_equal(few, many[:2])
    assert np.isnan(few[:, :, 0, 0]).all()
    assert np.isfinite(few[:, :, 1:]).all()
    assert [t.year for t in out[0].times] == list(range(1960, 1965))
    assert out[0].dataset["tas"].attrs["units"] == "K"
    assert np.nanmean(few[:, -1]) > np.nanmean(few[:, 0])
    capsys.readouterr()
    celsius = tmp_path / "celsius.csv"
    celsius.write_text("year,temperature\n1960,8.1\n")
    for bad, said in (
        (["forecast", str(bundle), "--forcing", str(celsius), "-o", "x.nc"], "use the same unit"),
        (["forecast", str(bundle), "-o", "x.nc"], "--forcing"),
        (["forecast", str(bundle), "--forcing", str(table), "--days", "3", "-o", "x.nc"], "leave it out"),
        (["forecast", str(bundle), "--forcing", str(table), "--start", "1800-01", "-o", "x.nc"], "years of"),
        (["forecast", "weather/sst", "--forcing", str(table), "-o", "x.nc"], "scenarios"),
        *[
            (["train", f"weather/{name}", "--out", str(tmp_path / "n")], "expected --data with")
            for name in ("scenario", "qg", "sst", "downscale")
        ],
        *[
            ([*words[:1], f"weather/{name}", *words[2:], "--from", "weather/sst"], "which starts anew")
            for name in ("scenario", "qg", "sst", "downscale")
        ],
    ):
        assert main(bad) == 2
        error = capsys.readouterr().err.strip()
        assert said in error
        assert len(error.splitlines()) == 1
    for text, said in (
        ("year,warmth\n1960,1\n", "columns year and temperature"),
        ("year,temperature\n1960,warm\n", "line 2 of .*g.csv, given '1960,warm'"),
        ("year,temperature\n\n", "without lines"),
    ):
        table.write_text(text)
        with pytest.raises(PerrinError, match=said):
            read_forcing(table)


def test_killed_between_two_segments_and_started_again(tmp_path: Path) -> None:
    """kill −9 in the second group of members, after its first 64 years: the same bytes as of a run in peace."""
    low, table, bundle = tmp_path / "low.nc", tmp_path / "g.csv", tmp_path / "m"
    run(60, 0).to_netcdf(low)
    table.write_text("year,temperature\n" + "".join(f"{1960 + y},{281 + 0.01 * y}\n" for y in range(70)))
    assert main(["train", "weather/scenario", "--data", str(low), "--out", str(bundle), "--steps", "2"]) == 0
    words = ["forecast", str(bundle), "--forcing", str(table), "--members", "12", "--workers", "1", "-o"]
    out, folder = tmp_path / "a.zarr", tmp_path / "a.zarr.partial"
    kill_when((folder / "state-0-10.safetensors").exists, [*words, str(out)])
    assert len((folder / "done").read_text().splitlines()) == 10
    assert not out.exists()
    shutil.copytree(folder, tmp_path / "other.zarr.partial")
    assert main([*words, str(out)]) == 0
    assert main([*words, str(tmp_path / "b.zarr")]) == 0
    assert assert_same_bytes(out, tmp_path / "b.zarr") > 2 * 12  # shards of 64 and 6 years of each
    later = table.read_text().replace("2029,", "2039,")  # the same temperatures of other years
    table.write_text(later)
    assert main([*words, str(tmp_path / "other.zarr")]) == 2

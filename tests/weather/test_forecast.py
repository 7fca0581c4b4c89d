"""Forecasts of sea surface temperature: the mean's truth, the ensemble's, files, and work that is stopped."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from killed import assert_same_bytes, kill_when
from oceans import made_expectation, made_record

from perrin import load
from perrin.bundle import write_bundle
from perrin.cli import main
from perrin.core import sample_seeds
from perrin.errors import PerrinError
from perrin.modalities import find_bundle
from perrin.modalities.weather import seasonal
from perrin.modalities.weather.fields import Fields, open_fields
from perrin.modalities.weather.residual import fit_modes
from perrin.modalities.weather.sources import Climatology
from perrin.modalities.weather.sst import SeaSurface, read_sst, weights_of
from perrin.modalities.weather.sst_train import SSTOptions, train_sst
from perrin.modalities.weather.verify import VerifyOptions, verify
from perrin.nets.sphere import SphericalHarmonics
from perrin.train import TrainOptions


def run(*words: str) -> int:
    """The command line."""
    return main(["forecast", *words])


def test_regression_finds_the_process() -> None:
    """Errors near those of the exact expectation, in years not fitted, and the same of the residuals that `fit` returns."""
    training = (1950, 2049)
    sst = read_sst(Fields(made_record(150)), cell=15, training=training)
    x, months, weight = sst.anomaly[:, sst.sea], sst.months, weights_of(sst.sea)
    n = 1200
    model, starts, residuals = seasonal.fit(x[:n], months[:n], weight, leads=4, modes=3, predicted=6, folds=5)
    np.testing.assert_allclose(model.E.T @ (model.E * weight[:, None]), np.eye(6), atol=1e-10)
    t = np.arange(n + 12, len(x) - 4)
    past = seasonal.past_means(x, t)

    def least(t: np.ndarray, lead: int) -> float:
        return float(((made_expectation(sst, t, lead, training) - x[t + lead]) ** 2 @ weight).mean())

    for lead in (1, 4):
        found = np.stack([model.mean(p, m)[lead - 1] for p, m in zip(past, months[t])])
        error = ((found - x[t + lead]) ** 2 @ weight).mean()
        assert least(t, lead) < error < 1.15 * least(t, lead)
        inside = (residuals[:, lead - 1] ** 2 @ weight).mean()
        assert inside == pytest.approx(least(starts, lead), rel=0.1)
    assert len(starts) == len(residuals)


def test_memory_that_has_a_season_is_found() -> None:
    """Points that keep 0.9 of an anomaly from winter and 0.3 from summer: a tenth of the excess error of one memory for
    all months, whose part of the error is known, is left."""
    rng, n = np.random.default_rng(3), 2400
    months = np.arange(n) % 12
    keep = 0.6 + 0.3 * np.cos(2 * np.pi * months / 12)
    x = np.zeros((n, 8))
    for t in range(1, n):
        x[t] = keep[t - 1] * x[t - 1] + rng.standard_normal(8)
    model, _, residuals = seasonal.fit(x, months, np.ones(8), leads=1, modes=1, predicted=2, folds=5)
    one = (x[1:] * x[:-1]).sum() / (x[:-1] ** 2).sum()
    excess = ((keep[:-1] - one)[:, None] * x[:-1]).var()
    assert (residuals**2).mean() - 1 < 0.1 * excess + 3 * np.sqrt(2 / residuals.size)
    past = seasonal.past_means(x, np.array([1200]))[0]
    moved = past.copy()
    moved[0] += 1  # of the last month alone
    gain = [(model.mean(moved, m) - model.mean(past, m))[0].mean() for m in (0, 6)]
    np.testing.assert_allclose(gain, [0.9, 0.3], atol=0.15)


def test_a_forecast_goes_back_to_the_level() -> None:
    """A sea that has been warmer by a constant for ten years is forecast warmer by it; months that a record lacks count as
    the climatology."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((400, 30)).cumsum(1)
    months = np.arange(400) % 12
    model, _, _ = seasonal.fit(x[:300], months[:300], np.ones(30), leads=3, modes=3, predicted=6)
    shift, t = rng.standard_normal(30), np.array([350])
    a, b = (model.mean(seasonal.past_means(y, t)[0], 2) for y in (x, x + shift))
    np.testing.assert_allclose(b - a, np.broadcast_to(shift, a.shape), atol=1e-9)
    short, padded = x[320:351], np.concatenate([np.zeros((100, 30)), x[320:351]])
    np.testing.assert_allclose(
        seasonal.past_means(short, np.array([30])), seasonal.past_means(padded, np.array([130])), atol=1e-12
    )
    with pytest.raises(PerrinError, match="12 months"):
        seasonal.past_means(short, np.array([10]))


def test_residuals_have_the_spread_they_were_fitted_to() -> None:
    """Smooth patterns with known variances, and isotropic noise: the ensemble's variance over the year is theirs at every
    lead and place."""
    rng = np.random.default_rng(1)
    latitude = np.arange(-82.5, 90, 15)
    harmonics = SphericalHarmonics(torch.from_numpy(latitude), 24, degree=8)
    sea = np.ones((12, 24), dtype=bool)
    weight = weights_of(sea)
    phi = np.deg2rad(np.repeat(latitude[:, None], 24, 1)[sea])
    n, leads = 1200, 3
    months = np.arange(n) % 12
    size = 1 + 0.5 * np.cos(2 * np.pi * months / 12)
    a = rng.standard_normal(n)
    grow = np.array([0.5, 1.0, 1.5])
    r = size[:, None, None] * (
        a[:, None, None] * grow[:, None] * np.cos(phi) + 0.3 * rng.standard_normal((n, leads, len(phi)))
    )
    model = fit_modes(r, months, weight, sea, harmonics, count=2, folds=5)
    drawn = np.stack(
        [
            model.residual(
                rng.standard_normal(2), model.noise(rng.standard_normal((leads, 64)), harmonics, sea), k % 12
            )
            for k in range(3000)
        ]
    )
    truth = (size**2).mean() * (grow[:, None] ** 2 * np.cos(phi) ** 2 + 0.09)
    ratio = drawn.var(0) / truth
    assert ratio.mean() == pytest.approx(1, abs=0.05)
    assert ratio.min() > 0.8
    assert ratio.max() < 1.2


def test_members_do_not_depend_on_their_number(sst_bundle: Path, tmp_path: Path) -> None:
    for members in (2, 5):
        out = str(tmp_path / f"{members}.zarr")
        assert run(str(sst_bundle), "--members", str(members), "--months", "3", "-o", out, "--seed", "4") == 0
    few, many = (xr.open_zarr(tmp_path / f"{m}.zarr", consolidated=False).sst.values for m in (2, 5))
    np.testing.assert_array_equal(few, many[:2])
    assert np.nanmean(many.std(0)) > 0.05


def test_netcdf_and_zarr_hold_the_same(sst_bundle: Path, tmp_path: Path) -> None:
    for name in ("a.nc", "a.zarr"):
        assert run(str(sst_bundle), "--members", "2", "-o", str(tmp_path / name)) == 0
    a, b = (open_fields(tmp_path / name) for name in ("a.nc", "a.zarr"))
    np.testing.assert_array_equal(a.read("sst"), b.read("sst"))
    assert [str(lead) for lead in a.leads] == ["1 mon", "2 mon", "3 mon", "4 mon"]
    assert a.is_global
    raw = xr.open_dataset(tmp_path / "a.nc", decode_times=False)
    assert {n: raw[n].attrs["standard_name"] for n in raw.coords} == {n: n for n in raw.coords}
    assert raw.sst.attrs["standard_name"] == "sea_surface_temperature"
    assert raw.attrs["Conventions"].startswith("CF-")
    assert not list(tmp_path.glob("*.partial"))


def variants(record: xr.Dataset) -> dict[str, xr.Dataset]:
    """The same states in other clothes."""
    last = record.isel(time=slice(-24, None))
    turned = (
        last.assign_coords(lon=(last.lon + 180) % 360 - 180).sortby("lon").isel(lat=slice(None, None, -1))
    )
    names = last.rename(lat="y", lon="x", sst="t0", time="when")
    names.y.attrs["units"], names.x.attrs["units"] = "degrees_north", "degrees_east"
    names.when.attrs["standard_name"] = "time"
    kelvin = last + 273.15
    kelvin.sst.attrs = {"standard_name": "surface_temperature", "units": "K"}
    noleap = last.assign_coords(
        time=xr.date_range("1982-01-01", periods=24, freq="MS", calendar="noleap", use_cftime=True)
    )
    return {"turned": turned, "names": names, "kelvin": kelvin, "noleap": noleap}


@pytest.mark.parametrize("name", ["turned", "names", "kelvin", "noleap"])
def test_files_in_other_clothes(record: xr.Dataset, sst_bundle: Path, tmp_path: Path, name: str) -> None:
    variants(record)[name].to_netcdf(tmp_path / "in.nc")
    record.isel(time=slice(-24, None)).to_netcdf(tmp_path / "plain.nc")
    for file in ("in", "plain"):
        words = [
            "--file",
            str(tmp_path / f"{file}.nc"),
            "--members",
            "2",
            "-o",
            str(tmp_path / f"{file}.zarr"),
        ]
        assert run(str(sst_bundle), *words) == 0
    found, plain = (open_fields(tmp_path / f"{f}.zarr") for f in ("in", "plain"))
    shift = 273.15 if name == "kelvin" else 0
    np.testing.assert_allclose(found.read("sst") - shift, plain.read("sst"), atol=2e-4)
    assert found.references[0].calendar == ("noleap" if name == "noleap" else plain.references[0].calendar)
    assert found.units("sst") == ("K" if name == "kelvin" else "degC")


def test_missing_cells_are_filled_from_the_others(record: xr.Dataset, sst_bundle: Path) -> None:
    """Without a tenth of its cells the state is nearly the same: three patterns make most of it."""
    model = load(sst_bundle)
    last = record.isel(time=slice(-24, None)).copy(deep=True)
    whole = model.starts(Fields(last))[0]
    rows = (last.lat > 30) & (last.lat < 75) & (last.lon < 60)
    holes = last.where(~rows)
    found = model.starts(Fields(holes))[0]
    gone = np.abs(found.past - whole.past).max(0) > 1e-9
    assert 4 < gone.sum() < 30
    assert np.sqrt(((found.past - whole.past)[0, gone] ** 2).mean()) < 0.3 * whole.past[0].std() + 0.2


def test_what_does_not_fit_is_said_in_one_line(
    record: xr.Dataset, sst_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = record.isel(time=slice(-24, None))
    last.isel(time=slice(-6, None)).to_netcdf(tmp_path / "short.nc")
    last.where(last.lat > 0).to_netcdf(tmp_path / "half.nc")
    wrong = last.copy(deep=True)
    wrong.sst.attrs["units"] = "degF"
    wrong.to_netcdf(tmp_path / "fahrenheit.nc")
    hot = last + 273.15
    hot.sst.attrs = last.sst.attrs
    hot.to_netcdf(tmp_path / "hot.nc")
    last.rename(sst="rain").assign_attrs().to_netcdf(tmp_path / "rain.nc")
    rain = last.rename(sst="rain").copy(deep=True)
    rain.rain.attrs = {}
    rain.to_netcdf(tmp_path / "rain.nc")
    out = ["--members", "2", "-o", str(tmp_path / "o.nc")]
    for file, word in {
        "short": "12 months",
        "half": "oceans",
        "fahrenheit": "units",
        "hot": "check the units",
        "rain": "sea_surface_temperature",
    }.items():
        assert run(str(sst_bundle), "--file", str(tmp_path / f"{file}.nc"), *out) == 2
        told = capsys.readouterr().err
        assert word in told
        assert told.count("\n") == 1
    for more in (["--months", "9"], ["--start", "2001-13"], ["--start", "1999-01"], ["--members", "0"]):
        assert run(str(sst_bundle), *out, *more) == 2
    assert run(str(sst_bundle), "--members", "2", "-o", str(tmp_path / "o.csv")) == 2
    assert not list(tmp_path.glob("o.*"))


def test_what_is_not_the_sea_is_told_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Around the climatology of `weather/sst`: the sea varies by half a kelvin, air over the ice is far colder."""
    model = load(find_bundle("weather/sst"))
    n, (rows, columns) = 12, model.sea.shape
    usual = np.full((n, rows, columns), np.nan)
    usual[:, model.sea] = model.climatology + model.sample_months[:n]
    dims, rng = ("time", "latitude", "longitude"), np.random.default_rng(0)

    def told(
        values: np.ndarray, name: str = "sst", words: str = "sea_surface_temperature", *more: str
    ) -> str:
        """What is said, or nothing."""
        attributes = {"standard_name": words, "units": "degC"} if words else {"units": "degC"}
        times = xr.date_range("2001-01-01", periods=n, freq="MS", use_cftime=True)
        coordinates = {"time": times, "latitude": model.latitude, "longitude": model.longitude}
        path = tmp_path / "in.nc"
        xr.Dataset({name: (dims, values, attributes)}, coordinates).to_netcdf(path)
        output = ["-o", str(tmp_path / "out.nc"), "--overwrite", "--members", "1", "--months", "1"]
        code = run("weather/sst", "--file", str(path), *output, *more)
        lines = capsys.readouterr().err.splitlines()
        warning = "perrin: warning: "  # of the short past
        said = "\n".join(line for line in lines if not line.startswith(warning))
        assert code == (2 if said.startswith("perrin: ") else 0)
        assert code == 0 or (len(lines) == 1 and said)
        return said if code else ""

    assert told(usual) == told(usual + 1) == told(usual, "tos", "") == ""
    ice = np.abs(model.latitude)[:, None] > 65
    air = usual - 1 - 15 * ice + 0.5 * rng.standard_normal(usual.shape)
    assert "K in the mean, in t2m of in.nc at 2001-01" in told(air, "t2m", "surface_temperature")
    assert "t2m (air_temperature)" in told(air, "t2m", "air_temperature")
    assert "sst (air_temperature)" in told(air, "sst", "air_temperature")
    assert "K, +273." in told(usual + 273.15)
    assert "check the units and that it is the sea's" in told(np.roll(usual, 6, 0))  # another month's name
    assert "(root mean square) of the model's climatology" in told(0 * usual)  # anomalies
    warm = usual + 4
    mean = 4 + model.regression.weight @ model.sample_months[0]
    assert f"{mean:+.1f} K in the mean" in told(warm)
    assert told(warm, "sst", "sea_surface_temperature", "--unlike-climatology") == ""


def test_a_record_in_kelvin_makes_the_same_model(record: xr.Dataset, tmp_path: Path) -> None:
    options = SSTOptions(
        training=(1950, 1977), choice=(1978, 1983), leads=2, modes=3, predicted=4, amplitudes=3, field_amplitudes=3,
        degree=6, field_degree=6,
    )  # fmt: skip
    train = TrainOptions(steps=1, batch=8, warmup=1)
    kelvin = record + 273.15
    kelvin.sst.attrs = record.sst.attrs | {"units": "K"}
    models = [
        train_sst(read_sst(Fields(r), cell=15, training=(1950, 1977)), options, train, tmp_path / name)[0]
        for name, r in (("celsius", record), ("kelvin", kelvin))
    ]
    np.testing.assert_allclose(models[0].climatology, models[1].climatology, atol=1e-9)
    with pytest.raises(PerrinError, match="use more training years"):
        train_sst(
            read_sst(Fields(record), cell=15, training=(1968, 1977)),
            replace(options, training=(1968, 1977), field_amplitudes=100),
            train,
            tmp_path / "short",
        )
    cold = record - 40
    cold.sst.attrs = record.sst.attrs
    with pytest.raises(PerrinError, match="from -5 to 45 °C, given"):
        read_sst(Fields(cold), cell=15, training=(1950, 1977))


def test_killed_and_started_again(sst_bundle: Path, tmp_path: Path) -> None:
    """kill −9 in the middle: the same bytes as of a run in peace."""
    words = [str(sst_bundle), "--members", "100", "--seed", "9", "--workers", "1", "-o"]
    out = tmp_path / "a.zarr"
    log = out.with_name("a.zarr.partial") / "done"
    kill_when(
        lambda: log.is_file() and log.read_text().count("\n") >= 20,
        ["forecast", *words, str(out)],
    )
    assert log.is_file()
    done = log.read_text().count("\n")
    assert 20 <= done < 100
    assert not out.exists()
    with log.open("a") as file:
        file.write("0 9")  # a line that was cut off
    assert run(*words, str(out)) == 0
    assert run(*words, str(tmp_path / "b.zarr")) == 0
    assert assert_same_bytes(out, tmp_path / "b.zarr") > 100


def test_unfinished_work_of_other_settings_is_left_alone(sst_bundle: Path, tmp_path: Path) -> None:
    from perrin.run.partial import read_key

    folder = tmp_path / "a.nc.partial"
    read_key(folder, {"seed": 1})
    (folder / "done").write_text("0 0\n")
    assert run(str(sst_bundle), "--members", "2", "-o", str(tmp_path / "a.nc")) == 2
    assert (folder / "done").read_text() == "0 0\n"


def test_forecasts_are_better_than_climatology_and_calibrated(
    record: xr.Dataset, sst_bundle: Path, tmp_path: Path, sea_surface: SeaSurface
) -> None:
    record.to_netcdf(tmp_path / "in.nc")
    out = tmp_path / "ens.zarr"
    words = [
        "--file",
        str(tmp_path / "in.nc"),
        "--start",
        "1979-01:1981-12",
        "--members",
        "10",
        "--months",
        "3",
    ]
    assert run(str(sst_bundle), *words, "-o", str(out)) == 0
    truth = Fields(sea_surface.dataset()[["sst"]])
    climatology = Climatology(truth, (1950, 1977))
    options = VerifyOptions(against=("climatology",))
    found = verify(open_fields(out), truth, options, climatology)["variables"]["sst"]["leads"]
    starts, x = np.arange(12 * 29, 12 * 32), sea_surface.anomaly[:, sea_surface.sea]
    for lead, row in enumerate(found, 1):
        scores = {k: v["value"] for k, v in row["scores"].items()}
        exact = made_expectation(sea_surface, starts, lead, (1950, 1977))
        least = np.sqrt(((exact - x[starts + lead]) ** 2 @ weights_of(sea_surface.sea)).mean())
        assert row["initial_times"] == 36
        # 8 % for what 28 years leave unknown (16 % of the square), 5 % for the mean of 10 members, and the rest for the
        # level of ten years, which this record, whose climate stays, does not have
        assert least < scores["rmse"] < 1.2 * least
        assert 0.75 < scores["ssr"] < 1.3
        assert row["references"]["climatology"]["skill"]["crps"]["value"] > 0.2


def test_seeds_of_members_differ_by_start(sst_bundle: Path, record: xr.Dataset) -> None:
    model = load(sst_bundle)
    a, b = model.starts(Fields(record), [(1980, 1), (1980, 2)])
    seed = sample_seeds(0, range(1))
    x, y = (model.anomalies(s, seed) - model.regression.mean(s.past, s.time.month - 1) for s in (a, b))
    assert np.corrcoef(x.ravel(), y.ravel())[0, 1] > 0.5  # the same seed: like noise
    with pytest.raises(PerrinError, match="12 months"):
        model.starts(Fields(record), [(1950, 6)])


def test_a_short_past_is_said_and_counts_as_the_climatology(
    record: xr.Dataset, sst_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(sst_bundle)
    last = record.isel(time=slice(-24, None))
    start = model.starts(Fields(last))[0]
    lacking = slice(-120, -24)
    usual = np.full((96, *model.sea.shape), np.nan)
    usual[:, model.sea] = np.tile(model.climatology, (8, 1))
    x = np.full((24, *model.sea.shape), np.nan)
    for i in range(24):
        x[i, model.sea] = model._anomaly(Fields(last), "sst", i, 0.0, False) + model.climatology[i % 12]
    whole = xr.Dataset(
        {"sst": (("time", "lat", "lon"), np.concatenate([usual, x]), last.sst.attrs)},
        {
            "time": np.concatenate([record.time.values[lacking], last.time.values]),
            "lat": model.latitude,
            "lon": model.longitude,
        },
    )
    found = model.starts(Fields(whole))[0]
    np.testing.assert_allclose(found.past, start.past, atol=1e-6)
    assert (start.months, found.months) == (24, 120)
    for name, data, words in (("short", last, "24 of the 120 months before"), ("whole", whole, "")):
        data.to_netcdf(tmp_path / f"{name}.nc")
        out = tmp_path / f"{name}-out.nc"
        assert (
            run(str(sst_bundle), "--file", str(tmp_path / f"{name}.nc"), "--members", "1", "-o", str(out))
            == 0
        )
        told = capsys.readouterr()
        assert words in told.out
        assert told.err.count("which the forecast leans: give ten years") == bool(
            words
        )  # no numbers of this bundle
        assert ("climatology" in xr.open_dataset(out, decode_times=False).attrs["comment"]) == bool(words)


def test_what_a_short_past_costs_is_the_table_of_the_study() -> None:
    """The bundle that ships says the RMSE of the documentation, for the number of months below and the longest lead."""
    model = load(find_bundle("weather/sst"))
    page = Path("docs/weather/forecast.md").read_text()
    for words, months in (
        ("the mean of this model, past of 12", 12),
        *((f"… of {n}", n) for n in (24, 60, 120)),
    ):
        row = re.search(rf"\| {words} months \|(.+)", page)
        assert row
        assert model.by_past[str(months)] == [float(v) for v in row[1].split("|")[3:6]]
    told = model.lacking(59, 12)
    assert "59 of the 120 months" in told
    assert "at 6 months was 0.491 K with 24 months and 0.455 K with 120" in told
    assert "at 1 month was 0.292 K with 12 months" in model.lacking(12, 2)


def test_a_bundle_of_an_earlier_version_is_refused_in_one_line(
    sst_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(sst_bundle)
    weights = model.weights()
    weights["regression.c"] = weights["regression.c"][..., 0]
    old = tmp_path / "old"
    write_bundle(old, modality="weather", model=model.to_json(), weights=weights, card="old")
    assert run(str(old), "--members", "1", "-o", str(tmp_path / "o.nc")) == 2
    told = capsys.readouterr().err
    assert "train it again" in told
    assert told.count("\n") == 1

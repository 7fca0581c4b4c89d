"""Scores against closed forms, other libraries and what must hold; the verification of files whole."""

from __future__ import annotations

import json
import math
import tracemalloc
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("netCDF4")

import xarray as xr

from perrin.cli import main
from perrin.errors import PerrinError
from perrin.modalities.weather import REFERENCES, report, scores, sources
from perrin.modalities.weather.fields import Fields, open_fields
from perrin.modalities.weather.files import write_fields
from perrin.modalities.weather.sources import Climatology
from perrin.modalities.weather.verify import VerifyOptions, block_draws, verify

ROWS, COLUMNS = 12, 24
LATITUDE = np.arange(-82.5, 90, 15.0)
LONGITUDE = np.arange(0, 360, 15.0)


def gaussian_crps(y: np.ndarray) -> np.ndarray:
    """Of N(0, 1): y (2Φ(y) − 1) + 2φ(y) − 1/√π (Gneiting & Raftery 2007, equation 21)."""
    erf = np.vectorize(math.erf)(y / math.sqrt(2))
    return y * erf + 2 * np.exp(-(y**2) / 2) / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)


# scores


@pytest.mark.parametrize("members", [2, 5, 16])
def test_fair_crps_is_that_of_the_distribution(members: int) -> None:
    """Over draws, the fair CRPS has the mean of N(0, 1)'s own, 1/√π for a reliable forecast; the biased one is larger."""
    r = np.random.default_rng(members)
    n = 200_000
    x, y = r.normal(size=(members, n)), r.normal(size=n)
    fair, biased = scores.crps(x, y)
    error = fair.std() / math.sqrt(n)
    assert abs(fair.mean() - 1 / math.sqrt(math.pi)) < 4 * error
    assert abs(biased.mean() - (1 + 1 / members) / math.sqrt(math.pi)) < 4 * error
    shifted = scores.crps(x, np.full(n, 1.3))[0]
    assert abs(shifted.mean() - gaussian_crps(np.array([1.3]))[0]) < 4 * shifted.std() / math.sqrt(n)


def test_crps_of_other_libraries() -> None:
    r = np.random.default_rng(0)
    x, y = 280 + r.normal(size=(9, 500)), 280 + r.normal(size=500)
    x[:, 0] = x[0, 0]
    fair, biased = scores.crps(x, y)
    seen = 0
    try:
        import properscoring

        np.testing.assert_allclose(biased, properscoring.crps_ensemble(y, x.T), atol=1e-12)
        seen += 1
    except ImportError:
        pass
    try:
        import scoringrules

        theirs = scoringrules.crps_ensemble(y, x.T, estimator="fair", backend="numpy")
        np.testing.assert_allclose(fair, theirs, atol=1e-12)
        seen += 1
    except ImportError:
        pass
    if not seen:
        pytest.skip("neither properscoring nor scoringrules is here")


def test_scores_package_agrees() -> None:
    probability = pytest.importorskip("scores.probability")
    r = np.random.default_rng(1)
    x, y = r.normal(size=(7, 300)), r.normal(size=300)
    fcst, obs = xr.DataArray(x, dims=("member", "point")), xr.DataArray(y, dims="point")
    fair, biased = scores.crps(x, y)
    for ours, method in ((fair, "fair"), (biased, "ecdf")):
        theirs = probability.crps_for_ensemble(fcst, obs, "member", method=method)
        assert math.isclose(ours.mean(), float(theirs), rel_tol=1e-12)
    table = scores.event_table(x, y, 0.4, np.ones(300))
    for name, fair_correction in (("brier_fair", True), ("brier", False)):
        theirs = probability.brier_score_for_ensemble(
            fcst, obs, "member", 0.4, fair_correction=fair_correction
        )
        assert math.isclose(float(scores.event_scores(table)[name]), float(theirs.squeeze()), rel_tol=1e-12)


def test_energy_score_in_one_dimension_is_crps() -> None:
    r = np.random.default_rng(2)
    x, y = r.normal(size=(6, 1)), r.normal(size=1)
    for weight in (1.0, 0.3):
        squares = scores.squared_distances(x - y, np.array([weight]))
        assert math.isclose(scores.energy_score(squares, weight), scores.crps(x, y)[0][0], abs_tol=1e-7)


def test_energy_score_of_scoringrules() -> None:
    scoringrules = pytest.importorskip("scoringrules")
    r = np.random.default_rng(3)
    x, y = r.normal(size=(6, 10)), r.normal(size=10)
    squares = scores.squared_distances(x[:, :4] - y[:4], np.ones(4)) + scores.squared_distances(
        x[:, 4:] - y[4:], np.ones(6)
    )
    theirs = scoringrules.es_ensemble(y, x, estimator="fair", backend="numpy")
    assert math.isclose(scores.energy_score(squares, 1.0), float(theirs), rel_tol=1e-7)


def test_ranks_are_flat_even_with_ties() -> None:
    r = np.random.default_rng(4)
    x = r.integers(0, 4, size=(5, 120_000)).astype(float)
    found = np.bincount(scores.ranks(x[1:], x[0], r.random(120_000)), minlength=5)
    assert ((found - 24_000) ** 2 / 24_000).sum() < 23.5  # χ² with 4 degrees of freedom, p = 1e-4
    np.testing.assert_array_equal(
        scores.ranks(np.array([[1.0], [2], [3]]), np.array([2.5]), np.zeros(1)), [2]
    )


def test_events_by_hand() -> None:
    x = np.array([[1.0, 0, 1, 0], [1, 1, 0, 0]])
    y = np.array([1.0, 1, 0, 1])
    table = scores.event_table(x, y, 0.5, np.ones(4))
    np.testing.assert_array_equal(table, [[0, 1], [1, 1], [0, 1]])
    found = scores.event_scores(table)
    assert found["brier"] == (0 + 0.25 + 0.25 + 1) / 4
    assert found["brier_fair"] == found["brier"] - (0.25 + 0.25) / 4
    assert found["csi"] == 2 / 4
    assert found["frequency_bias"] == 1
    assert found["rate"] == 0.75
    diagram = scores.reliability(table)
    np.testing.assert_array_equal(diagram["frequency"], [1, 0.5, 1])
    np.testing.assert_array_equal(diagram["share"], [0.25, 0.5, 0.25])


def test_fair_brier_is_that_of_the_probability() -> None:
    r = np.random.default_rng(5)
    n = 400_000
    table = scores.event_table(r.normal(size=(3, n)), r.normal(size=n), 0.5, np.ones(n))
    p = 0.5 * math.erfc(0.5 / math.sqrt(2))
    assert abs(scores.event_scores(table)["brier_fair"] - p * (1 - p)) < 4 / math.sqrt(n)


# whole files


def make(members: int = 8, inits: int = 30, leads: int = 2, seed: int = 0) -> tuple[xr.Dataset, xr.Dataset]:
    """A reliable forecast: truth and members are draws around a signal, of standard deviation 1 and 2."""
    r = np.random.default_rng(seed)
    days = xr.date_range("2001-01-01", periods=inits + leads, freq="D", use_cftime=True)
    signal = 3 * r.normal(size=(inits + leads, ROWS, COLUMNS))
    truth = signal + r.normal(size=signal.shape)
    x = np.empty((members, inits, leads, ROWS, COLUMNS))
    for lead in range(leads):
        at = slice(lead + 1, lead + 1 + inits)
        x[:, :, lead] = signal[at] + (lead + 1) * r.normal(size=(members, inits, ROWS, COLUMNS))
    place = {"latitude": LATITUDE, "longitude": LONGITUDE}
    forecast = xr.Dataset(
        {
            "t": (
                ("realization", "forecast_reference_time", "forecast_period", "latitude", "longitude"),
                x,
                {"units": "K"},
            )
        },
        {
            "forecast_reference_time": days[:inits],
            "forecast_period": ("forecast_period", np.arange(1, leads + 1), {"units": "days"}),
            **place,
        },
    )
    return forecast, xr.Dataset(
        {"t": (("time", "latitude", "longitude"), truth, {"units": "K"})}, {"time": days, **place}
    )


def leads(result: dict) -> list[dict]:
    return result["variables"]["t"]["leads"]


def test_a_reliable_forecast() -> None:
    forecast, truth = make()
    found = leads(verify(Fields(forecast), Fields(truth), VerifyOptions(thresholds=(0.0,))))[0]
    value = {k: v["value"] for k, v in found["scores"].items()}
    error = {k: v["error"] for k, v in found["scores"].items()}
    for name, true in {
        "crps": 1 / math.sqrt(math.pi),
        "crps_biased": (1 + 1 / 8) / math.sqrt(math.pi),
        "ssr": 1.0,
        "spread": 1.0,
        "rmse": math.sqrt(1 + 1 / 8),
        "bias": 0.0,
        "mae": math.sqrt(1 + 1 / 8) * math.sqrt(2 / math.pi),
    }.items():
        assert abs(value[name] - true) < 4 * error[name], name
        assert 0 < error[name] < 0.02
    assert max(abs(9 * share - 1) for share in found["rank_histogram"]) < 0.1
    flat = found["events"][0]["reliability"]
    assert sum(flat["share"]) == pytest.approx(1)
    wide = leads(verify(Fields(forecast), Fields(truth)))[1]["scores"]
    assert wide["ssr"]["value"] > 1.5
    assert found["initial_times"] == 30


def test_weights_are_areas() -> None:
    """An error in one row weighs as much as the row's part of the sphere."""
    forecast, truth = make(members=3, inits=2, leads=1)
    forecast["t"][:] = 0
    truth["t"][:] = 0
    truth["t"][:, 2] = 1
    found = leads(verify(Fields(forecast), Fields(truth)))[0]["scores"]
    part = (np.sin(np.deg2rad(-45)) - np.sin(np.deg2rad(-60))) / 2
    for name in ("crps", "crps_biased", "mae"):
        assert found[name]["value"] == pytest.approx(part, rel=1e-12)
    assert found["rmse"]["value"] == found["energy"]["value"] == pytest.approx(math.sqrt(part), rel=1e-12)
    assert found["bias"]["value"] == pytest.approx(-part, rel=1e-12)


def test_bands_change_nothing() -> None:
    forecast, truth = make(inits=4)
    forecast["t"] = forecast["t"].round(0)  # ties
    truth["t"] = truth["t"].round(0)
    climatology = Climatology(Fields(truth), window=400)
    common = {"thresholds": (0.5,), "quantiles": (0.9,), "against": REFERENCES}
    one, many = (
        verify(Fields(forecast), Fields(truth), VerifyOptions(megabytes=m, **common), climatology)  # type: ignore[arg-type]
        for m in (64, 0.02)
    )
    a, b = (json.dumps(r["variables"]) for r in (one, many))
    assert json.loads(a).keys() == json.loads(b).keys()

    def compare(x: object, y: object) -> None:
        if isinstance(x, dict):
            for k in x:
                compare(x[k], y[k])  # type: ignore[index]
        elif isinstance(x, list):
            for i, j in zip(x, y, strict=True):  # type: ignore[call-overload]
                compare(i, j)
        elif isinstance(x, float):
            assert x == pytest.approx(y, rel=1e-9, abs=1e-12)
        else:
            assert x == y

    compare(json.loads(a), json.loads(b))


def test_missing_points_are_left_out() -> None:
    forecast, truth = make(inits=4)
    truth["t"][:, 3, 4] = np.nan
    forecast["t"][2, 1, 0, 7] = np.nan  # one member, one initial time
    dirty, clean = forecast.copy(deep=True), truth.copy(deep=True)
    found = leads(verify(Fields(dirty), Fields(clean)))[0]
    assert all(v["value"] is not None for k, v in found["scores"].items() if k != "log_spectrum_error")
    assert found["coverage"] < 1
    assert "spectrum" not in found
    dirty["t"][:, :, :, 3, 4] = 1e6  # where the truth is missing it does not matter
    again = leads(verify(Fields(dirty), Fields(clean)))[0]
    assert again["scores"]["crps"] == found["scores"]["crps"]


def test_references_and_skill() -> None:
    """Climatology of 102 independent draws, the truth among them, has its variance; the truth as forecast has ACC 1."""
    _, truth = make(inits=100)
    perfect = xr.Dataset(
        {
            "t": (
                ("forecast_reference_time", "forecast_period", "latitude", "longitude"),
                truth["t"].values[1:, None],
            )
        },
        {
            "forecast_reference_time": truth.time.values[:-1],
            "forecast_period": ("forecast_period", [24.0], {"units": "hours"}),
            "latitude": LATITUDE,
            "longitude": LONGITUDE,
        },
    )
    record = Fields(truth)
    result = verify(
        Fields(perfect), record, VerifyOptions(against=REFERENCES), Climatology(record, window=400)
    )
    found = leads(result)[0]
    assert found["scores"]["acc"]["value"] == pytest.approx(1)
    assert found["scores"]["rmse"]["value"] == 0
    assert all(r["skill"]["crps"]["value"] == 1 for r in found["references"].values())
    climatology = found["references"]["climatology"]["scores"]
    assert climatology["rmse"]["value"] == pytest.approx(math.sqrt(10) * (1 - 1 / 102), rel=0.01)
    assert climatology["crps"]["value"] == pytest.approx(math.sqrt(10 / math.pi) * (1 - 2 / 102), rel=0.01)
    persistence = found["references"]["persistence"]["scores"]
    assert persistence["rmse"]["value"] == pytest.approx(math.sqrt(20), rel=0.02)
    assert persistence["crps"] == persistence["mae"]
    assert found["scores"]["log_spectrum_error"]["value"] == 0


@pytest.mark.parametrize("exact", [True, False])
def test_lead_zero(exact: bool) -> None:
    """Persistence has no error at lead 0, nor has an exact ensemble: what is 0/0 or x/0 is null, without a warning."""
    forecast, truth = make(inits=12)
    period = ("forecast_period", [0, 1], {"units": "days"})
    forecast = forecast.assign_coords(forecast_period=period)
    if exact:
        forecast.t[:, :, 0] = truth.t.values[:12]
    record = Fields(truth)
    climatology = Climatology(record, window=400)
    options = VerifyOptions(against=REFERENCES, thresholds=(0.0,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = leads(verify(Fields(forecast), record, options, climatology))
    assert [row["lead"] for row in found] == ["0 h", "1 d"]
    first, second = found
    assert first["references"]["persistence"]["scores"]["rmse"]["value"] == 0
    assert first["references"]["persistence"]["skill"]["rmse"] == {"value": None, "error": None}
    assert second["references"]["persistence"]["skill"]["rmse"]["value"] is not None
    assert (first["scores"]["ssr"]["value"] is None) == exact
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_spectrum_of_truth_and_members() -> None:
    """Members with twice the amplitude have four times the power at every degree."""
    forecast, truth = make(members=2, inits=2, leads=1)
    for k in range(2):
        forecast["t"][k, :, 0] = 2 * truth["t"].values[1:3]
    found = leads(verify(Fields(forecast), Fields(truth)))[0]
    np.testing.assert_allclose(
        np.array(found["spectrum"]["forecast"]), 4 * np.array(found["spectrum"]["truth"]), rtol=1e-10
    )
    assert found["scores"]["log_spectrum_error"]["value"] == pytest.approx(math.log(4))


def test_standard_errors_are_those_of_means() -> None:
    """Over independent initial times the bootstrap gives σ/√n, in blocks of one and roughly so in longer ones."""
    r = np.random.default_rng(0)
    x = r.normal(size=400)
    for block, tolerance in ((1, 0.1), (7, 0.3)):
        draws = block_draws(400, block, 2000, 0)
        assert (draws.sum(1) == 400).all()
        assert (draws @ x / 400).std() == pytest.approx(1 / 20, rel=tolerance)
    chain = np.repeat(r.normal(size=100), 4)  # every number four times: 100 independent ones
    assert (block_draws(400, 40, 2000, 0) @ chain / 400).std() == pytest.approx(chain.std() / 10, rel=0.3)


def test_names_of_references() -> None:
    assert sources.REFERENCES == REFERENCES


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """60 members of 90 × 180 are 8 MB a field in float64; 24 fields are read with little more than the budget."""
    r = np.random.default_rng(0)
    latitude, longitude = np.arange(-89, 90, 2.0), np.arange(0, 360, 2.0)
    days = xr.date_range("2001-01-01", periods=7, freq="D", use_cftime=True)
    x = r.normal(size=(60, 6, 1, 90, 180)).astype("float32")
    place = {"latitude": latitude, "longitude": longitude}
    dims = ("realization", "forecast_reference_time", "forecast_period", "latitude", "longitude")
    period = ("forecast_period", [24], {"units": "hours"})
    forecast = xr.Dataset(
        {"t": (dims, x)}, {"forecast_reference_time": days[:6], "forecast_period": period, **place}
    )
    truth = xr.Dataset(
        {"t": (dims[1:2] + dims[3:], x[0, :, 0])}, {"forecast_reference_time": days[1:], **place}
    )
    forecast.to_netcdf(tmp_path / "f.nc", encoding={"t": {"chunksizes": (1, 1, 1, 10, 180)}})
    truth.rename(forecast_reference_time="time").to_netcdf(tmp_path / "t.nc")
    del x, forecast, truth
    files = open_fields(tmp_path / "f.nc"), open_fields(tmp_path / "t.nc")
    tracemalloc.start()
    verify(*files, VerifyOptions(megabytes=2, degrees=0, resamples=10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_other_layouts_of_time() -> None:
    """One initial time with `time` along the forecast, its period beside it or not at all; and no period anywhere."""
    forecast, truth = make(members=3, inits=1, leads=2)
    whole = leads(verify(Fields(forecast), Fields(truth)))
    one = forecast.isel(forecast_reference_time=0)
    valid = truth.time.values[1:3]
    along = one.rename(forecast_period="time").assign_coords(time=valid)
    period = along.assign_coords(forecast_period=("time", [1, 2], {"units": "days"}))
    for other in (along, period):
        found = leads(verify(Fields(other), Fields(truth)))
        assert [lead["scores"]["crps"] for lead in found] == [lead["scores"]["crps"] for lead in whole]
    bare = along.drop_vars("forecast_reference_time")
    found = leads(verify(Fields(bare), Fields(truth)))
    assert [lead["initial_times"] for lead in found] == [2]
    mean = np.mean([lead["scores"]["crps"]["value"] for lead in whole])
    assert found[0]["scores"]["crps"]["value"] == pytest.approx(mean)


def test_climatology_must_match() -> None:
    forecast, truth = make(inits=3)
    for other in (truth.rename(t="x").assign(y=truth.t), truth.isel(latitude=slice(0, 4))):
        with pytest.raises(PerrinError, match="expected"):
            verify(Fields(forecast), Fields(truth), None, Climatology(Fields(other)))


def test_noleap_meets_standard() -> None:
    forecast, truth = make(inits=80)
    other = xr.date_range("2001-01-01", periods=82, calendar="noleap", use_cftime=True)
    same = verify(Fields(forecast), Fields(truth))
    moved = verify(Fields(forecast), Fields(truth.assign_coords(time=other)))
    assert leads(same) == leads(moved)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    forecast, truth = make(inits=5)
    write_fields("f.nc", forecast)
    turned = truth.assign_coords(longitude=(truth.longitude + 180) % 360 - 180).sortby("longitude")
    turned.isel(latitude=slice(None, None, -1)).rename(latitude="lat", longitude="lon").to_netcdf("t.nc")
    words = ["verify", "f.nc", "t.nc", "--threshold", "1", "--against", "persistence", "--json", "s.json"]
    assert main(words) == 0
    out = capsys.readouterr().out
    for word in ("fair CRPS", "SSR", "persistence", "1 d", "2 d", "Brier"):
        assert word in out
    result = json.loads(Path("s.json").read_text())
    direct = verify(Fields(forecast.astype("float32")), Fields(truth))
    assert leads(result)[0]["scores"]["crps"]["value"] == pytest.approx(
        leads(direct)[0]["scores"]["crps"]["value"], rel=1e-6
    )
    for bad, words_ in {
        "verify f.nc none.nc": "does not exist",
        "verify f.nc t.nc --against climatology": "--climatology FILE",
        "verify f.nc t.nc --climatology-years 3": "1950-1994",
        "verify f.nc f.nc": "expected",
        "verify f.nc t.nc --json .": "add a file name",
    }.items():
        assert main(bad.split()) == 2, bad
        error = capsys.readouterr().err
        assert words_ in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.isel(latitude=slice(0, 4)), "remap"),
        (lambda f: f.assign(t=f.t.assign_attrs(units="degC")), "convert"),
        (lambda f: f.rename(t="a").assign(b=f.t), "rename"),
        (
            lambda f: f.assign_coords(forecast_reference_time=f.forecast_reference_time + timedelta(9999)),
            "valid",
        ),
        (
            lambda f: f.assign_coords(forecast_period=f.forecast_period.assign_attrs(units="weeks")),
            "set the units",
        ),
    ],
)
def test_what_does_not_match_is_said(change: object, words: str) -> None:
    forecast, truth = make(inits=3)
    with pytest.raises(PerrinError, match="expected") as caught:
        verify(Fields(change(forecast)), Fields(truth))  # type: ignore[operator]
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def layout(start: str) -> tuple[xr.Dataset, xr.Dataset, float]:
    """Three starts, all with two periods, the starts along a dimension named `start`; the truth; the error by NumPy."""
    r = np.random.default_rng(4)
    begins, steps = np.datetime64("2020-01-01") + np.arange(3), np.array([1, 2], "timedelta64[D]")
    x = r.normal(size=(4, 3, 2, ROWS, COLUMNS))
    days = np.datetime64("2020-01-01") + np.arange(6)
    y = r.normal(size=(6, ROWS, COLUMNS))
    where = {"latitude": ("latitude", LATITUDE, {"units": "degrees_north"})}
    where |= {"longitude": ("longitude", LONGITUDE, {"units": "degrees_east"})}
    forecast = xr.Dataset(
        {"t2m": (("number", start, "step", "latitude", "longitude"), x, {"units": "K"})},
        {
            **where,
            "number": np.arange(4),
            start: begins.astype("datetime64[ns]"),
            "step": steps.astype("timedelta64[ns]"),
        },
    )
    forecast["valid_time"] = ((start, "step"), (begins[:, None] + steps).astype("datetime64[ns]"))
    truth = xr.Dataset(
        {"t2m": (("time", "latitude", "longitude"), y, {"units": "K"})},
        {**where, "time": days.astype("datetime64[ns]")},
    )
    edges = np.sin(np.deg2rad(np.linspace(-90, 90, ROWS + 1)))
    w = np.broadcast_to(np.diff(edges)[:, None], (ROWS, COLUMNS))
    second = x.mean(0)[:, 1] - y[2:5]  # two days after each start
    return forecast, truth, float(np.sqrt((second**2 * w).sum() / (3 * w.sum())))


@pytest.mark.parametrize("start", ["time", "init", "forecast_reference_time"])
def test_starts_and_periods_as_cfgrib_lays_them_out(start: str, tmp_path: Path) -> None:
    """There `time` is when a forecast starts; every start must meet its own truth."""
    forecast, truth, rmse = layout(start)
    if start == "init":
        forecast["init"].attrs["standard_name"] = "forecast_reference_time"
    forecast.to_netcdf(tmp_path / "forecast.nc")
    truth.to_netcdf(tmp_path / "truth.nc")
    leads = verify(open_fields(tmp_path / "forecast.nc"), open_fields(tmp_path / "truth.nc"))["variables"][
        "t2m"
    ]["leads"]
    assert [lead["initial_times"] for lead in leads] == [3, 3]
    assert leads[1]["scores"]["rmse"]["value"] == pytest.approx(rmse, rel=1e-6)


def test_arguments_the_wrong_way_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forecast, truth, _ = layout("time")
    forecast.to_netcdf(tmp_path / "forecast.nc")
    truth.to_netcdf(tmp_path / "truth.nc")
    assert main(["verify", str(tmp_path / "truth.nc"), str(tmp_path / "forecast.nc")]) == 2
    errors = capsys.readouterr().err
    assert "the forecast comes first, then the truth" in errors
    assert errors.count("\n") == 1


def test_a_climatology_with_gaps_has_states_where_it_has_them() -> None:
    forecast, truth, _ = layout("time")
    days = np.datetime64("2015-01-01") + np.array([0, 1, 2, 3, 4, 365, 366, 367])
    record = truth.isel(time=np.zeros(8, int)).assign_coords(time=days.astype("datetime64[ns]"))
    for dataset in (forecast, truth, record):  # as a file gives them
        dataset["latitude"].attrs["units"] = "degrees_north"
    found = verify(
        Fields(forecast),
        Fields(truth),
        VerifyOptions(against=("climatology",)),
        Climatology(Fields(record), window=1),
    )
    assert found["variables"]["t2m"]["leads"][0]["references"]["climatology"]["scores"]["rmse"]["value"] > 0


def test_digits_of_the_tables() -> None:
    """Two digits of the standard error, small numbers with a power of ten; a bias of rounding is 0, a small one is not."""
    for value, error, words in (
        (0.5587, 0.0171, "0.559(17)"),
        (-1.234e-6, 4.5e-8, "-1.234(45)e-06"),
        (1.2e-7, 3.4e-6, "0.1(34)e-06"),
        (12.3, 45.0, "12(45)"),
        (0.25, None, "0.25"),
    ):
        found = report._cell({"value": value, "error": error})
        assert found == words
    scores = {"rmse": {"value": 0.4, "error": 0.1}, "bias": {"value": -1.2e-10, "error": 1.4e-11}}
    assert report._cell(report._rounded(scores, "bias")) == "0"
    scores["rmse"]["value"] = 1e-6
    assert report._cell(report._rounded(scores, "bias")) == "-1.20(14)e-10"


def test_files_that_are_no_forecasts_have_no_lead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = xr.date_range("2001-01-01", periods=3, freq="D", use_cftime=True)
    place = {"time": times, "lat": np.arange(-60.0, 61, 30), "lon": np.arange(0, 360, 60.0)}
    x = np.random.default_rng(0).normal(size=(3, 5, 6))
    for name, field in (("a.nc", x), ("b.nc", x + 1)):
        xr.Dataset({"t": (("time", "lat", "lon"), field)}, place).to_netcdf(tmp_path / name)
    assert (
        main(["verify", str(tmp_path / "a.nc"), str(tmp_path / "b.nc"), "--html", str(tmp_path / "p.html")])
        == 0
    )
    told = capsys.readouterr().out
    assert " 0 h" not in told + (tmp_path / "p.html").read_text()
    assert any(line.split()[:2] == ["–", "3"] for line in told.splitlines())

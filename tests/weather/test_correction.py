"""Bias correction: closed forms, another library's numbers, and files."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from test_cf import complaints

from perrin.cli import main
from perrin.modalities.weather.correction import METHODS, CorrectionOptions, correct, probability, quantiles
from perrin.modalities.weather.fields import open_fields

N = 400
TAU = (np.arange(N) + 0.5) / N


def normal(mean: float, std: float, n: int = N) -> np.ndarray:
    """Exact quantiles of a normal distribution at one place, in an order that is none."""
    import torch

    x = mean + std * torch.special.ndtri(torch.from_numpy((np.arange(n) + 0.5) / n)).numpy()
    return np.random.default_rng(0).permutation(x)[:, None]


def exact(method: str, nodes: int = N, ratio: bool = False) -> CorrectionOptions:
    return CorrectionOptions(method=method, nodes=nodes, ratio=ratio, group="all")


def test_normal_distributions() -> None:
    """o = N(1, 2²), h = N(0, 1), x = N(3, 1.5²): quantile-delta adds 1 + z to 3 + 1.5 z, the others follow likewise."""
    o, h, x = normal(1, 2), normal(0, 1), normal(3, 1.5)
    z = (x - 3) / 1.5
    truth = {
        "quantile-delta": 3 + 1.5 * z + 1 + z,
        "mean-variance": 3 + 1 + 1.5 * z * o.std(ddof=1) / h.std(ddof=1),
        "mean": x + 1,
    }
    for method, expected in truth.items():
        np.testing.assert_allclose(correct(x, o, h, exact(method)), expected, rtol=1e-9, atol=1e-9)
    inside = (
        np.abs(x) < 2.5
    )  # τ = Φ(x), x + 1 + Φ⁻¹(τ) = 1 + 2 x but for interpolation; beyond h the step stays
    found = correct(x, o, h, exact("quantile-mapping"))
    np.testing.assert_allclose(found[inside], 1 + 2 * x[inside], atol=0.01)
    np.testing.assert_allclose(found[x > 3.5], x[x > 3.5] + o.max() - h.max(), atol=1e-9)


@pytest.mark.parametrize("ratio", [False, True])
def test_quantile_delta_keeps_the_change_of_every_quantile(ratio: bool) -> None:
    """The value at τ of x is F_o⁻¹ + F_x⁻¹ − F_h⁻¹ after, or F_o⁻¹ F_x⁻¹ / F_h⁻¹, for skewed distributions."""
    rng = np.random.default_rng(1)
    o, h, x = (rng.gamma(k, s, (N, 3)) + 0.1 for k, s in ((2, 1), (3, 2), (2.5, 3)))
    found = np.take_along_axis(correct(x, o, h, exact("quantile-delta", ratio=ratio)), np.argsort(x, 0), 0)
    o, h, x = (quantiles(v, TAU) for v in (o, h, x))
    np.testing.assert_allclose(found / o if ratio else found - o, x / h if ratio else x - h, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_the_past_becomes_the_reference(method: str) -> None:
    """What is corrected is what was compared: quantiles, mean and variance, or mean are then the reference's."""
    rng = np.random.default_rng(2)
    o, h = rng.gamma(2, 1, (N, 2, 3)), rng.standard_normal((N, 2, 3))
    found = correct(h, o, h, exact(method))
    np.testing.assert_allclose(found.mean(0), o.mean(0))
    if method != "mean":
        np.testing.assert_allclose(found.std(0), o.std(0))
    if method.startswith("quantile"):
        np.testing.assert_allclose(np.sort(found, 0), np.sort(o, 0), atol=1e-12)


def test_probability_is_the_inverse_of_quantiles() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((50, 4))
    other = rng.standard_normal((30, 4))
    np.testing.assert_allclose(quantiles(x, TAU[::40]), np.quantile(x, TAU[::40], axis=0, method="hazen"))
    inside = (other > x.min(0)) & (other < x.max(0))
    tau = probability(other, x)
    for j in range(4):
        again = np.quantile(x[:, j], tau[:, j], method="hazen")
        np.testing.assert_allclose(again[inside[:, j]], other[inside[:, j], j], atol=1e-12)
    ties = np.array([[0.0], [0.0], [1.0], [2.0]])
    np.testing.assert_allclose(probability(ties, ties)[:, 0], [0.25, 0.25, 0.625, 0.875])


def test_missing_values() -> None:
    """A value that is missing stays so and leaves the others as if it had never been; a place without values is missing."""
    o, h, x = normal(1, 2), normal(0, 1), normal(3, 1.5)
    gaps = [np.concatenate([v, np.full((3, 1), np.nan)]) for v in (o, h, x)]
    for method in METHODS:
        a, b = (correct(*v, exact(method)) for v in ((x, o, h), (gaps[2], gaps[0], gaps[1])))
        np.testing.assert_allclose(b[:N], a)
        assert np.isnan(b[N:]).all()
        assert np.isnan(correct(x, np.full_like(o, np.nan), h, exact(method))).all()


def test_dry_days_stay_dry() -> None:
    rng = np.random.default_rng(4)
    o, h = (rng.gamma(0.5, s, (N, 2)) * (rng.random((N, 2)) < 0.6) for s in (3, 5))
    found = correct(h, o, h, exact("quantile-delta", ratio=True))
    assert (found >= 0).all()
    assert (found[h == 0] == 0).all()


def peer(source: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers of xsdba, in the interpreter that PERRIN_XSDBA names or in this one."""
    python = os.environ.get("PERRIN_XSDBA", "")
    if not python and importlib.util.find_spec("xsdba") is None:
        pytest.skip("needs xsdba, here or in the interpreter that PERRIN_XSDBA names")
    data = json.dumps({k: v.tolist() for k, v in arrays.items()})
    head = (
        "import json, sys, warnings; warnings.simplefilter('ignore'); import numpy as np, xarray as xr, xsdba\n"
        "D = {k: np.array(v) for k, v in json.load(sys.stdin).items()}\n"
        "def series(x):\n"
        "    t = xr.date_range('2001-01-01', periods=len(x), freq='D', calendar='noleap', use_cftime=True)\n"
        "    return xr.DataArray(x, dims='time', coords={'time': t}, attrs={'units': 'K'})\n"
    )
    done = subprocess.run(
        [python or sys.executable, "-c", head + source], input=data, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {k: np.array(v) for k, v in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.peers
@pytest.mark.parametrize("ratio", [False, True])
def test_against_xsdba(ratio: bool) -> None:
    """xsdba's quantile delta mapping and linear scaling, but for its ranks, which reach from 0 to 1."""
    rng = np.random.default_rng(5)
    n = 4000
    o, h, x = (rng.gamma(k, s, n) + 5 for k, s in ((2, 1), (3, 2), (2.5, 3)))
    found = peer(
        f"kind = {'*' if ratio else '+'!r}\n"
        "o, h, x = (series(D[k]) for k in 'ohx')\n"
        "q = (np.arange(50) + 0.5) / 50\n"
        "qdm = xsdba.QuantileDeltaMapping.train(o, h, nquantiles=q, kind=kind, group='time')\n"
        "eqm = xsdba.EmpiricalQuantileMapping.train(o, h, nquantiles=q, kind=kind, group='time')\n"
        "lin = xsdba.Scaling.train(o, h, kind=kind, group='time')\n"
        "a = dict(interp='linear', extrapolation='constant')\n"
        "print(json.dumps({'quantile-delta': qdm.adjust(x, **a).values.tolist(), 'mean': lin.adjust(x).values.tolist(),"
        " 'quantile-mapping': eqm.adjust(x, **a).values.tolist()}))\n",
        o=o,
        h=h,
        x=x,
    )
    for method, theirs in found.items():
        ours = correct(x[:, None], o[:, None], h[:, None], exact(method, 50, ratio))[:, 0]
        inside = (x > np.quantile(x, 0.01)) & (x < np.quantile(x, 0.95))  # 3 nodes from the end
        # their mapping is linear in x between nodes, ours in τ: apart where nodes are, in the tail
        np.testing.assert_allclose(ours[inside], theirs[inside], atol=0.3 if "mapping" in method else 0.01)
        np.testing.assert_allclose(ours, theirs, atol=0.3 if "mapping" in method else 0.1)


def monthly(first: int, years: int, bias: float, scale: float, seed: int, name: str = "tas") -> xr.Dataset:
    """Made temperatures by month, with bounds of time, a place that is missing, and a bias that July has alone."""
    time = xr.date_range(f"{first}-01-01", periods=12 * years, freq="MS", calendar="noleap", use_cftime=True)
    rng = np.random.default_rng(seed)
    month = np.arange(12 * years) % 12
    x = (
        280
        + 10 * np.cos(2 * np.pi * (month - 6) / 12)[:, None, None]
        + scale * rng.standard_normal((12 * years, 3, 4))
    )
    x += bias * (month == 6)[:, None, None]
    x[:, 1, 2] = np.nan
    words = {"standard_name": "air_temperature", "units": "K", "cell_methods": "time: mean"}
    return xr.Dataset(
        {name: (("time", "lat", "lon"), x.astype(np.float32), words)},
        {"time": time, "lat": [50.0, 10.0, -30.0], "lon": [-100.0, -60.0, -20.0, 20.0]},
    )


def test_files(tmp_path: Path) -> None:
    """July's bias goes and the year's course stays; the grid, the calendar and the attributes are the simulation's."""
    monthly(1951, 60, 0, 1, 0).to_netcdf(tmp_path / "obs.nc")
    monthly(1951, 60, 4, 2, 1, "t").to_netcdf(tmp_path / "hist.nc")
    monthly(2051, 60, 4, 2, 2, "t").isel(time=slice(6, None)).to_netcdf(tmp_path / "sim.nc")
    words = ["--reference", str(tmp_path / "obs.nc"), "--historical", str(tmp_path / "hist.nc")]
    for method in METHODS:
        out = tmp_path / f"{method}.nc"
        assert main(["correct", str(tmp_path / "sim.nc"), *words, "--method", method, "-o", str(out)]) == 0
        found, before = open_fields(out), open_fields(tmp_path / "sim.nc")
        assert [t.isoformat() for t in found.times] == [t.isoformat() for t in before.times]
        assert found.times[0].calendar == "noleap"
        assert found.latitude.tolist() == [-30, 10, 50]
        change = found.read("t") - before.read("t")
        assert np.isnan(change[:, 1, 3]).all()  # 20° W is the last of its row now
        month = np.array([t.month for t in found.times])
        assert np.nanmean(change[month == 7]) == pytest.approx(-4, abs=0.2)
        assert np.nanmean(change[month != 7]) == pytest.approx(0, abs=0.1)
        spread = np.nanstd(found.read("t")[month == 7])
        assert spread == pytest.approx(2 if method == "mean" else 1, rel=0.15)  # of 60 values each
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_with_one_start_becomes_netcdf(tmp_path: Path) -> None:
    """Climate runs have their start as a scalar coordinate beside the times: it is kept."""
    times = xr.date_range("1960-06-01", periods=30, freq="YS-JUN", calendar="360_day", use_cftime=True)
    start = xr.date_range("1859-09-01", periods=1, calendar="360_day", use_cftime=True)[0]
    x = np.random.default_rng(0).normal(280, 1, (30, 2, 4)).astype(np.float32)
    run = xr.Dataset(
        {"tas": (("time", "latitude", "longitude"), x, {"standard_name": "air_temperature", "units": "K"})},
        {
            "time": times,
            "latitude": ("latitude", [-30.0, 30.0], {"units": "degrees_north"}),
            "longitude": ("longitude", [0.0, 90.0, 180.0, 270.0], {"units": "degrees_east"}),
            "forecast_reference_time": ((), start, {"standard_name": "forecast_reference_time"}),
        },
    )
    run.to_netcdf(tmp_path / "run.nc")
    (run - 2).assign(tas=(run.tas - 2).assign_attrs(run.tas.attrs)).to_netcdf(tmp_path / "seen.nc")
    words = [
        "--reference",
        tmp_path / "seen.nc",
        "--group",
        "all",
        "--method",
        "mean",
        "-o",
        tmp_path / "o.nc",
    ]
    assert main(["correct", str(tmp_path / "run.nc"), *map(str, words)]) == 0
    found = open_fields(tmp_path / "o.nc")
    np.testing.assert_allclose(found.read("tas"), x - 2, rtol=1e-6)
    assert [str(t) for t in found.references] == ["1859-09-01 00:00:00"]
    assert complaints(tmp_path / "o.nc") == []


def test_an_ensemble_of_means_as_the_rollout_writes_it(tmp_path: Path) -> None:
    """Members and periods are pooled; the months are those of the means, of which the bounds go along."""
    import cftime

    from perrin.modalities.weather.fields import DIMENSIONS

    rng = np.random.default_rng(6)
    hours = np.cumsum([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] * 10) * 24.0
    edges = np.stack([np.concatenate([[0], hours[:-1]]), hours], 1)
    words = {"standard_name": "air_temperature", "units": "K"}
    x = 250 + 3 * rng.standard_normal((2, 1, 120, 3, 4))
    sim = xr.Dataset(
        {"ta": (DIMENSIONS, x.astype(np.float32), words)},
        {
            "realization": [0, 1],
            "forecast_reference_time": [cftime.DatetimeNoLeap(2001, 1, 1)],
            "forecast_period": ("forecast_period", edges.mean(1), {"units": "hours", "bounds": "fp_bounds"}),
            "fp_bounds": (("forecast_period", "two"), edges),
            "latitude": [-30.0, 10.0, 50.0],
            "longitude": [0.0, 90.0, 180.0, 270.0],
        },
    )
    sim.forecast_period.attrs["standard_name"] = "forecast_period"
    sim.to_netcdf(tmp_path / "sim.nc")
    obs = 255 + rng.standard_normal((120, 3, 4))
    time = xr.date_range("2001-01-01", periods=120, freq="MS", calendar="noleap", use_cftime=True)
    xr.Dataset(
        {"ta": (("time", "lat", "lon"), obs, words)},
        {"time": time, "lat": [-30.0, 10, 50], "lon": [0.0, 90, 180, 270]},
    ).to_netcdf(tmp_path / "obs.nc")
    out = tmp_path / "out.zarr"
    words_ = ["--reference", str(tmp_path / "obs.nc"), "--nodes", "10", "-o", str(out)]
    assert main(["correct", str(tmp_path / "sim.nc"), *words_]) == 0
    found = open_fields(out)
    y = found.read("ta")
    assert y.shape == x.shape
    pooled = y.reshape(2, 10, 12, 3, 4)
    np.testing.assert_allclose(pooled.mean((0, 1)), obs.reshape(10, 12, 3, 4).mean(0), atol=0.1)
    np.testing.assert_array_equal(found.dataset["forecast_period_bounds"].values, edges)
    may = x.astype(np.float32).astype(np.float64).reshape(2, 10, 12, 3, 4)[:, :, 4].reshape(20, 3, 4)
    options = CorrectionOptions(nodes=10)
    truth = correct(may, obs[4::12], may, options)
    np.testing.assert_allclose(pooled[:, :, 4].reshape(20, 3, 4), truth, rtol=1e-6)
    assert main(["correct", str(tmp_path / "sim.nc"), *words_[:-1], str(tmp_path / "out.nc")]) == 0
    assert complaints(tmp_path / "out.nc") == []


def test_what_is_probably_not_meant_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other years without --historical, few values, and amounts by differences, which come out negative."""
    obs, sim = monthly(2001, 4, 0, 1, 0), monthly(2051, 4, 0, 1, 1)
    for each, mean in ((obs, 0.1), (sim, 2.0)):
        rng = np.random.default_rng(int(10 * mean))
        each.tas[:] = rng.gamma(0.3, mean, each.tas.shape)
        each.tas.attrs.update(standard_name="precipitation_flux", units="mm day-1")
    obs.to_netcdf(tmp_path / "obs.nc")
    sim.to_netcdf(tmp_path / "sim.nc")
    words = ["correct", str(tmp_path / "sim.nc"), "--reference", str(tmp_path / "obs.nc"), "--overwrite"]
    assert main([*words, "--method", "mean", "-o", str(tmp_path / "out.nc")]) == 0
    told = capsys.readouterr().err
    assert "are of different years" in told
    assert "has only 4 values of tas" in told
    assert "corrected values are: --ratio" in told
    assert main([*words, "--ratio", "-o", str(tmp_path / "out.nc")]) == 0
    assert "--ratio" not in capsys.readouterr().err
    (-sim).assign(tas=(-sim.tas).assign_attrs(sim.tas.attrs)).to_netcdf(tmp_path / "minus.nc")
    words[1] = str(tmp_path / "minus.nc")
    assert main([*words, "--ratio", "-o", str(tmp_path / "no.nc")]) == 2
    assert "expected no negative values of tas for --ratio" in capsys.readouterr().err
    assert not list(tmp_path.glob("no*"))


def test_what_does_not_fit_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    obs, sim = monthly(1951, 4, 0, 1, 0), monthly(1951, 4, 0, 1, 1)
    obs.to_netcdf(tmp_path / "obs.nc")
    sim.to_netcdf(tmp_path / "sim.nc")
    obs.isel(time=slice(0, 20)).to_netcdf(tmp_path / "short.nc")
    obs.isel(lat=slice(0, 2)).to_netcdf(tmp_path / "part.nc")
    other = obs.copy()
    other.tas.attrs["units"] = "degC"
    other.to_netcdf(tmp_path / "celsius.nc")
    dew = obs.rename(tas="dewpoint")
    dew.dewpoint.attrs["standard_name"] = "dew_point_temperature"
    dew.to_netcdf(tmp_path / "dew.nc")
    cases = {
        "short.nc": ([], "at least 2 times of month 9"),
        "part.nc": ([], "the same grid"),
        "celsius.nc": ([], "tas in degC"),
        "dew.nc": ([], "a variable that both files have, given tas in"),
        "obs.nc": (["--ratio", "--method", "mean-variance"], "mean-variance"),
        "none.nc": ([], "does not exist"),
    }
    for name, (more, told) in cases.items():
        words = [
            str(tmp_path / "sim.nc"),
            "--reference",
            str(tmp_path / name),
            "-o",
            str(tmp_path / "out.nc"),
        ]
        assert main(["correct", *words, *more]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    assert not list(tmp_path.glob("out*"))

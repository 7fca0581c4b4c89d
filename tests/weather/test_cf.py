"""What is written, read by the compliance checker of others; GRIB that ecCodes wrote, read by us."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cftime
import numpy as np
import pytest
import xarray as xr

from perrin.cli import main
from perrin.modalities.weather.fields import open_fields
from perrin.modalities.weather.files import write_fields


def complaints(path: Path) -> list[str]:
    """What the IOOS compliance checker says of CF 1.11, one line each."""
    if importlib.util.find_spec("compliance_checker") is None:
        pytest.skip("needs compliance-checker")
    report = path.with_suffix(".json")
    # in a process of its own: its libraries and netCDF4's do not always end well together
    code = (
        "import sys; from compliance_checker.runner import CheckSuite, ComplianceChecker as C; "
        "CheckSuite.load_all_available_checkers(); "
        "C.run_checker(sys.argv[1], ['cf:1.11'], 0, 'strict', output_filename=sys.argv[2], output_format='json')"
    )
    subprocess.run([sys.executable, "-c", code, str(path), str(report)], capture_output=True, check=False)
    found = json.loads(report.read_text())["cf:1.11"]
    # in an ensemble of forecasts a lead stands right of the reference time; CF recommends another order, and no more
    return [
        m
        for part in found["all_priorities"]
        if part["value"][0] < part["value"][1]
        for m in part["msgs"]
        if "recommended order T, Z, Y, X" not in m
    ]


def test_forecasts_and_fields_are_clean(sst_bundle: Path, record: xr.Dataset, tmp_path: Path) -> None:
    record.to_netcdf(tmp_path / "in.nc")
    assert (
        main(["forecast", str(sst_bundle), "--members", "2", "--months", "2", "-o", str(tmp_path / "a.nc")])
        == 0
    )
    words = ["--file", str(tmp_path / "in.nc"), "--cell", "30", "--years", "1950-1970"]
    assert main(["data", "weather/sst", *words, "-o", str(tmp_path / "b.nc")]) == 0
    hours = xr.Dataset(
        {
            "ta": (
                ("realization", "forecast_reference_time", "forecast_period", "latitude", "longitude"),
                np.zeros((2, 1, 3, 4, 8)),
                {"standard_name": "air_temperature", "units": "K"},
            )
        },
        {
            "forecast_reference_time": [cftime.DatetimeNoLeap(2001, 1, 1)],
            "forecast_period": ("forecast_period", [0.0, 6.0, 12.0], {"units": "hours"}),
            "latitude": [-60.0, -20.0, 20.0, 60.0],
            "longitude": np.arange(8) * 45.0,
        },
    )
    write_fields(tmp_path / "c.nc", hours, {"title": "zeros", "source": "a test"})
    for name in ("a", "b", "c"):
        assert complaints(tmp_path / f"{name}.nc") == []


def test_the_checker_finds_what_is_wrong(tmp_path: Path) -> None:
    data = {"t": ("x", np.zeros(2), {"units": "furlong per", "standard_name": "no_such_name"})}
    xr.Dataset(data, attrs={"Conventions": "CF-1.11"}).to_netcdf(tmp_path / "bad.nc")
    assert complaints(tmp_path / "bad.nc")


def write_grib(
    path: Path, fields: np.ndarray, steps: tuple[int, ...], times: tuple[int, ...] = (1200,)
) -> None:
    """Temperature at two levels by ecCodes: `[member, time, step, level, row, column]`, rows from north to south."""
    ec = pytest.importorskip("eccodes")
    members, rows, columns = fields.shape[0], *fields.shape[-2:]
    grid = {
        "Ni": columns,
        "Nj": rows,
        "latitudeOfFirstGridPointInDegrees": 60.0,
        "latitudeOfLastGridPointInDegrees": -60.0,
        "longitudeOfFirstGridPointInDegrees": 0.0,
        "longitudeOfLastGridPointInDegrees": 360 - 360 / columns,
        "iDirectionIncrementInDegrees": 360 / columns,
        "jDirectionIncrementInDegrees": 120 / (rows - 1),
        "dataDate": 20010301,
    }
    with path.open("wb") as file:
        for (m, t, s, k), _ in np.ndenumerate(fields[..., 0, 0]):
            handle = ec.codes_grib_new_from_samples("regular_ll_pl_grib2")
            words = dict(grid)
            if members > 1:
                words |= {"productDefinitionTemplateNumber": 1, "numberOfForecastsInEnsemble": members}
                words |= {"perturbationNumber": m}
            words |= {"shortName": "t", "dataTime": times[t], "stepRange": str(steps[s])}
            words |= {"typeOfLevel": "isobaricInhPa", "level": (500, 850)[k], "bitsPerValue": 24}
            for key, value in words.items():
                ec.codes_set(handle, key, value)
            ec.codes_set_values(handle, fields[m, t, s, k].ravel())
            ec.codes_write(handle, file)
            ec.codes_release(handle)


def test_grib_ensemble(tmp_path: Path) -> None:
    """Members, periods and levels of a forecast, on our axes: south to north."""
    rng = np.random.default_rng(0)
    x = 250 + rng.standard_normal((2, 1, 3, 2, 4, 8))
    write_grib(tmp_path / "f.grib", x, (0, 6, 12))
    found = open_fields(tmp_path / "f.grib")
    assert found.members == 2
    assert [str(lead) for lead in found.leads] == ["0 h", "6 h", "12 h"]
    assert [t.isoformat() for t in found.references] == ["2001-03-01T12:00:00"]
    assert sorted(found.parts) == ["t@500", "t@850"]
    np.testing.assert_allclose(found.latitude, [-60, -20, 20, 60])
    np.testing.assert_allclose(found.forecast("t@850", 0, 2), x[:, 0, 2, 1, ::-1], atol=1e-4)
    assert not list(tmp_path.glob("*.idx"))


def test_grib_forecast_is_verified_against_grib_analyses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    truth = 250 + rng.standard_normal((1, 2, 1, 2, 4, 8))
    forecast = truth[:, :1].repeat(4, 0) + rng.standard_normal((4, 1, 2, 2, 4, 8))
    write_grib(tmp_path / "f.grib2", forecast, (6, 12))
    write_grib(tmp_path / "t.grb", truth, (0,), times=(1200, 1800))
    seen = open_fields(tmp_path / "t.grb")
    assert [t.hour for t in seen.times] == [12, 18]
    assert main(["verify", str(tmp_path / "f.grib2"), str(tmp_path / "t.grb")]) == 0
    assert "t@500" in capsys.readouterr().out


def test_what_is_no_grib_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.grib").write_bytes(b"not at all")
    assert main(["verify", str(tmp_path / "x.grib"), str(tmp_path / "x.grib")]) == 2
    assert capsys.readouterr().err.count("\n") == 1

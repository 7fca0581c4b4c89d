"""Rain of any unit and interval: what is the same is made the same, and what is not is refused in one line."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import cftime
import netCDF4
import numpy as np
import pytest
import xarray as xr
from test_cf import complaints

from perrin import load
from perrin.cli import main
from perrin.modalities.weather.amounts import factor, intervals, method
from perrin.modalities.weather.fields import Fields, open_fields

WORDS = {"standard_name": "precipitation_amount", "units": "kg m-2", "cell_methods": "time: sum"}


def rain(apart: int = 10, times: int = 3, bounds: int | None = None, **words: str) -> xr.Dataset:
    """Coarse cells of 0.04°, some of them dry, times `apart` minutes apart, each of the `bounds` minutes before."""
    x = np.random.default_rng(0).gamma(0.5, size=(times, 4, 5)).round(2)
    at = [cftime.datetime(2020, 10, 31, 7) + timedelta(minutes=apart * k) for k in range(times)]
    found = xr.Dataset(
        {"precipitation": (("time", "latitude", "longitude"), x * (x > 0.2), WORDS | words)},
        {"time": at, "latitude": -28 + 0.04 * np.arange(4), "longitude": 152 + 0.04 * np.arange(5)},
    )
    if bounds is not None:
        ends = [[t - timedelta(minutes=bounds), t] for t in at]
        found = found.assign_coords(time_bounds=(("time", "bound"), ends))
        found["time"].attrs["bounds"] = "time_bounds"
    return found


def test_units_are_converted() -> None:
    """10 minutes of 6 mm an hour are a millimetre, which is a kilogram on a square metre."""
    for unit in ("kg m-2", "kg/m2", "kg m**-2", "kg m^-2", "mm"):
        assert factor(unit, "kg m-2", None) == 1
    assert factor("m", "kg m-2", None) == 1000
    assert factor("m of water equivalent", "mm", None) == 1000
    assert factor("inch", "kg m-2", None) == 25.4
    for unit in ("mm/h", "mm h-1", "mm hr-1", "mm / hour", "kg m-2 h-1", "kg m**-2 h**-1"):
        assert factor(unit, "kg m-2", 600) == pytest.approx(1 / 6)
    assert factor("kg m-2 s-1", "kg m-2", 600) == 600
    assert factor("kg m-2 s-1", "mm/day", None) == 86400
    assert factor("m s-1", "kg m-2", 600) == 600_000
    assert factor("mm", "mm/h", 600) == 6
    for unit in ("dBZ", "K", "kg m-2 K-1", "mm/furlong", ""):
        assert factor(unit, "kg m-2", 600) is None


def test_intervals_are_those_of_cf() -> None:
    """Bounds first, then the distance of times, then what `cell_methods` says."""

    def found(data: xr.Dataset) -> tuple[float, float] | None:
        return intervals(Fields(data), "precipitation")

    assert found(rain(10)) == (600, 600)
    assert found(rain(30, bounds=10)) == (600, 600)
    assert found(rain(10).isel(time=[0, 2])) == (1200, 1200)
    assert found(rain(times=1)) is None
    assert found(rain(times=1, bounds=60)) == (3600, 3600)
    assert found(rain(times=1, cell_methods="time: sum (interval: 10 minutes)")) == (600, 600)
    assert found(rain(cell_methods="area: mean time: point")) == (0, 0)
    words = "area: mean time: mean (interval: 0.5 hr comment: of the model)"
    assert method(Fields(rain(cell_methods=words)), "precipitation") == ("mean", 1800)
    assert method(Fields(rain(cell_methods="area: mean")), "precipitation") == ("", None)


def forecasts() -> xr.Dataset:
    """Sums since the start, as some centres give them."""
    x = rain().precipitation.values[None]
    where = ("forecast_reference_time", "forecast_period", "latitude", "longitude")
    period = {"units": "hours", "standard_name": "forecast_period", "bounds": "period_bounds"}
    return xr.Dataset(
        {"tp": (where, x, WORDS), "period_bounds": (("forecast_period", "bound"), [[0, 1], [0, 2], [0, 3]])},
        {
            "forecast_reference_time": [cftime.datetime(2020, 10, 31)],
            "forecast_period": ("forecast_period", [1, 2, 3], period),
            "latitude": -28 + 0.04 * np.arange(4),
            "longitude": 152 + 0.04 * np.arange(5),
        },
    )


REFUSED = {
    "hours": (rain(60), "over about 10 minutes, as in training, given 1 hour in a.nc: make sums over 10 minutes"),
    "bounds": (rain(10, bounds=60), "given 1 hour in a.nc"),
    "since the start": (forecasts(), "given 1 hour to 3 hours in a.nc"),
    "instants": (rain(cell_methods="time: point"), "given an instant in a.nc"),
    "largest": (rain(cell_methods="time: maximum"), "expected sums or means over time, given precipitation with"),
    "no unit": (rain(units=""), "for example 'kg m-2'"),
    "reflectivity": (rain(units="dBZ"), "expected precipitation in kg m-2, given 'dBZ' in a.nc: convert it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_rain_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data, line = REFUSED[name]
    data.to_netcdf("a.nc")
    assert main(["downscale", "weather/rain", "a.nc", "-o", "b.nc", "--members", "1"]) == 2
    found = capsys.readouterr().err
    assert line in found
    assert found.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.nc"]


def test_rates_are_amounts_over_the_model_s_interval(tmp_path: Path) -> None:
    model = load("weather/rain")
    assert model.interval == 600
    rate = rain(units="mm h-1", standard_name="rainfall_rate", cell_methods="time: mean")
    rate = rate.rename(precipitation="rr").assign(rr=lambda d: (6 * d["rr"]).assign_attrs(d["rr"].attrs))
    for name, data in {"amounts": rain(bounds=10), "rates": rate}.items():
        data.to_netcdf(tmp_path / f"{name}.nc")
        words = [str(tmp_path / f"{name}.nc"), "-o", str(tmp_path / f"fine-{name}.nc")]
        assert main(["downscale", "weather/rain", *words, "--members", "1", "--workers", "1"]) == 0
    a, b = (open_fields(tmp_path / f"fine-{name}.nc") for name in ("amounts", "rates"))
    np.testing.assert_allclose(b.read("precipitation"), a.read("precipitation"), atol=1e-5)
    words = b.dataset["precipitation"].attrs
    assert (words["units"], words["comment"]) == (
        "kg m-2",
        "amounts over 10 minutes, made of rates in mm h-1",
    )
    assert complaints(tmp_path / "fine-rates.nc") == []


def test_a_file_that_does_not_say_is_taken_as_the_model_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rain(times=1).to_netcdf(tmp_path / "a.nc")
    words = [str(tmp_path / "a.nc"), "-o", str(tmp_path / "b.nc"), "--members", "1"]
    assert main(["downscale", "weather/rain", *words]) == 0
    assert "perrin: warning: a.nc does not say over how long precipitation is" in capsys.readouterr().err


def test_bounds_of_times_are_kept(tmp_path: Path) -> None:
    """By `perrin data weather/coarse`, in the unit of the times."""
    data = rain(30, bounds=10)
    data.assign_coords(longitude=data.longitude / 4, latitude=data.latitude / 4).to_netcdf(tmp_path / "a.nc")
    words = ["--file", str(tmp_path / "a.nc"), "--factor", "2", "-o", str(tmp_path / "b.nc")]
    assert main(["data", "weather/coarse", *words]) == 0
    found = open_fields(tmp_path / "b.nc")
    assert found.times == list(data.time.values)
    assert intervals(found, "precipitation") == (600, 600)
    assert complaints(tmp_path / "b.nc") == []
    with netCDF4.Dataset(tmp_path / "b.nc") as file:
        np.testing.assert_array_equal(np.diff(file["time_bounds"][:]), 10)
        np.testing.assert_array_equal(file["time"][:], [10, 40, 70])

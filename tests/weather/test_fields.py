"""Grids and files: exact areas, and one convention whatever a file calls things."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("netCDF4")

import cftime
import xarray as xr

from perrin.errors import PerrinError
from perrin.modalities.weather.fields import Fields, Lead, open_fields
from perrin.modalities.weather.files import write_fields
from perrin.modalities.weather.grid import cell_areas, coarsen, latitude_edges, longitude_edges
from perrin.nets.sphere import equiangular_latitudes, gauss_latitudes

LATITUDE = np.arange(-87.5, 90, 5.0)
LONGITUDE = np.arange(0, 360, 10.0)


def smooth(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    return 280 + 10 * np.sin(np.deg2rad(latitude))[:, None] + np.cos(np.deg2rad(longitude - 20))


@pytest.mark.parametrize(
    "latitude",
    [
        gauss_latitudes(32)[0],
        gauss_latitudes(160)[0],
        equiangular_latitudes(19, poles=True)[0],
        equiangular_latitudes(18, poles=False)[0].flip(0),
    ],
)
def test_cells_cover_the_sphere(latitude: object) -> None:
    area = cell_areas(latitude_edges(np.asarray(latitude)), longitude_edges(LONGITUDE))
    assert area.shape == (len(latitude), 36)  # type: ignore[arg-type]
    assert math.isclose(area.sum(), 4 * math.pi, rel_tol=1e-12)
    assert (area > 0).all()


def test_a_region_has_its_own_area() -> None:
    area = cell_areas(latitude_edges([10, 20, 30]), longitude_edges([5, 15]))
    exact = math.radians(20) * (math.sin(math.radians(35)) - math.sin(math.radians(5)))
    assert math.isclose(area.sum(), exact, rel_tol=1e-12)


def test_coarsening_keeps_the_mean_and_the_missing() -> None:
    fine_lat, fine_lon = np.arange(-90, 91, 2.0), np.arange(0, 361, 2.0)
    new_lat, new_lon = np.arange(-90, 91, 5.0), np.arange(-5, 356, 5.0)  # the seam elsewhere
    x = np.random.default_rng(0).normal(size=(2, 90, 180))
    fine, coarse = cell_areas(fine_lat, fine_lon), cell_areas(new_lat, new_lon)
    y = coarsen(x, fine_lat, fine_lon, new_lat, new_lon)
    np.testing.assert_allclose((y * coarse).sum((1, 2)), (x * fine).sum((1, 2)), rtol=0, atol=1e-12)
    x[:, :, :10] = np.nan  # 0° to 20°
    y = coarsen(x, fine_lat, fine_lon, new_lat, new_lon)
    assert np.isnan(y[..., 1:5]).all()
    assert np.isfinite(y[..., [0, 5]]).all()
    constant = coarsen(np.where(np.isnan(x), np.nan, 3.0), fine_lat, fine_lon, new_lat, new_lon, least=0.1)
    np.testing.assert_allclose(constant[np.isfinite(constant)], 3)


def variants() -> dict[str, object]:
    """The same field, as different people would write it."""
    field = smooth(LATITUDE, LONGITUDE)
    field[3, 4] = np.nan
    times = xr.date_range("2001-01-01", periods=3, freq="D", use_cftime=True)
    data = np.stack([field, field + 1, field + 2])
    plain = xr.Dataset(
        {"t": (("time", "lat", "lon"), data, {"units": "K"})},
        {"time": times, "lat": LATITUDE, "lon": LONGITUDE},
    )
    names = plain.rename(lat="row", lon="column", time="when")
    names.row.attrs["standard_name"] = "latitude"
    names.column.attrs["units"] = "degrees_east"
    names.when.attrs["standard_name"] = "time"
    centred = plain.assign_coords(lon=(plain.lon + 180) % 360 - 180).sortby("lon")
    noleap = plain.assign_coords(
        time=xr.date_range("2001-01-01", periods=3, calendar="noleap", use_cftime=True)
    )
    bare = plain.drop_vars(["lat", "lon"]).assign(
        latitude=("lat", LATITUDE, {"axis": "Y"}), longitude=("lon", LONGITUDE)
    )
    return {
        "plain": plain,
        "names": names,
        "centred": centred,
        "descending": plain.isel(lat=slice(None, None, -1)),
        "transposed": plain.transpose("lon", "time", "lat"),
        "noleap": noleap,
        "360_day": plain.assign_coords(
            time=xr.date_range("2001-01-01", periods=3, calendar="360_day", use_cftime=True)
        ),
        "seam twice": xr.concat([plain, plain.isel(lon=[0]).assign_coords(lon=[360.0])], "lon"),
        "auxiliary": bare,
    }


@pytest.mark.parametrize("name", variants())
def test_every_writing_reads_the_same(name: str, tmp_path: Path) -> None:
    variants()[name].to_netcdf(tmp_path / "a.nc", encoding={"t": {"_FillValue": -999.0}})  # type: ignore[attr-defined]
    fields = open_fields(tmp_path / "a.nc")
    expected = smooth(LATITUDE, LONGITUDE)
    expected[3, 4] = np.nan
    np.testing.assert_allclose(fields.latitude, LATITUDE)
    np.testing.assert_allclose(fields.longitude, LONGITUDE)
    np.testing.assert_allclose(fields.read("t", time=1), expected + 1)
    np.testing.assert_allclose(fields.read("t", slice(2, 5), time=2), expected[2:5] + 2)
    assert fields.is_global
    assert [t.day for t in fields.times] == [1, 2, 3]
    assert fields.find(cftime.datetime(2001, 1, 2, calendar="standard")) == 1


def test_levels_are_variables_of_their_own() -> None:
    data = np.arange(2 * 36 * 36.0).reshape(2, 36, 36)
    dataset = xr.Dataset(
        {"z": (("level", "lat", "lon"), data), "lat_bnds": (("lat", "bnds"), np.zeros((36, 2)))},
        {"level": [500, 850], "lat": LATITUDE, "lon": LONGITUDE},
    )
    fields = Fields(dataset)
    assert list(fields.parts) == ["z@500", "z@850"]
    np.testing.assert_array_equal(fields.read("z@850"), data[1])


def test_bounds_of_the_file_give_the_areas() -> None:
    edges = np.array([-90, -50, -5, 20, 90.0])
    dataset = xr.Dataset(
        {
            "t": (("lat", "lon"), np.zeros((4, 36))),
            "lat_bnds": (("lat", "bnds"), np.stack([edges[1:], edges[:-1]], 1)[::-1]),
        },
        {"lat": ("lat", [60.0, 10, -30, -70], {"bounds": "lat_bnds"}), "lon": LONGITUDE},
    )
    fields = Fields(dataset)
    np.testing.assert_allclose(fields.area.sum(1), 2 * np.pi * np.diff(np.sin(np.deg2rad(edges))))


@pytest.mark.parametrize("name", ["out.nc", "out.zarr"])
@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
def test_written_files_come_back(tmp_path: Path, calendar: str, name: str) -> None:
    if name.endswith("zarr"):
        pytest.importorskip("zarr")
    data = np.random.default_rng(0).normal(size=(3, 2, 4, 36, 36)).astype(np.float32)
    data[:, :, :, 5] = np.nan
    dataset = xr.Dataset(
        {
            "sst": (
                ("realization", "forecast_reference_time", "forecast_period", "latitude", "longitude"),
                data,
                {"units": "K", "standard_name": "sea_surface_temperature"},
            )
        },
        {
            "forecast_reference_time": xr.date_range(
                "2000-01-30", periods=2, freq="10D", calendar=calendar, use_cftime=True
            ),
            "forecast_period": ("forecast_period", [6, 12, 24, 48], {"units": "hours"}),
            "latitude": LATITUDE,
            "longitude": LONGITUDE,
        },
    )
    for _ in range(2):  # the second replaces the first
        write_fields(tmp_path / name, dataset, {"title": "a test"})
    fields = open_fields(tmp_path / name)
    assert fields.members == 3
    assert fields.leads == [Lead(seconds=3600.0 * h) for h in (6, 12, 24, 48)]
    assert [str(lead) for lead in fields.leads] == ["6 h", "12 h", "1 d", "2 d"]
    assert fields.references[0].calendar == calendar
    np.testing.assert_array_equal(fields.forecast("sst", 1, 2), data[:, 1, 2])
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    with pytest.raises(PerrinError, match="expected the dimensions"):
        write_fields(tmp_path / "other.nc", dataset.rename(latitude="row"))
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "letter").write_text("dear")
    for name in ("mine.zarr", "out.txt"):
        with pytest.raises(PerrinError, match="expected"):
            write_fields(tmp_path / name, variants()["plain"])  # type: ignore[arg-type]
    assert (tmp_path / "mine.zarr" / "letter").read_text() == "dear"


def test_months_are_calendar_months() -> None:
    start = cftime.datetime(1999, 11, 1, calendar="noleap")
    assert Lead(months=3).after(start) == cftime.datetime(2000, 2, 1, calendar="noleap")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.rename(lat="a", lon="b"), "standard_name = 'latitude'"),
        (lambda d: d.drop_vars("t"), "expected variables"),
        (
            lambda d: d.assign_coords(lat=(("lat", "lon"), np.zeros((36, 36)))).rename_dims(lat="i", lon="j"),
            "remap",
        ),
    ],
)
def test_errors_say_what_to_do(change: object, words: str) -> None:
    with pytest.raises(PerrinError, match="expected") as caught:
        Fields(change(variants()["plain"].isel(time=0)))  # type: ignore[operator, attr-defined]
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_grids_that_are_not_of_latitudes() -> None:
    """A projection's metres, with two-dimensional latitudes beside them or without."""
    metres = xr.Dataset(
        {"t": (("y", "x"), np.zeros((4, 5)))}, {"y": np.arange(4) * 1e5, "x": np.arange(5) * 1e5}
    )
    two = metres.assign(
        a=(("y", "x"), np.zeros((4, 5)), {"units": "degrees_north"}),
        b=(("y", "x"), np.zeros((4, 5)), {"standard_name": "longitude"}),
    )
    for dataset in (metres, two):
        with pytest.raises(PerrinError, match="remap"):
            Fields(dataset)


def test_files_that_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.nc").write_text("no")
    for name in ("a.nc", "none.nc"):
        with pytest.raises(PerrinError, match="expected a NetCDF file"):
            open_fields(tmp_path / name)

"""Members that are files become one ensemble; PP files are read; GloSea4's real one is both."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path

import cftime
import numpy as np
import pytest

pytest.importorskip("netCDF4")
pytest.importorskip("zarr")

import itertools

import xarray as xr
from test_cf import complaints

from perrin.cli import main
from perrin.errors import PerrinError
from perrin.modalities.weather.fields import Lead, open_fields
from perrin.modalities.weather.files import write_fields
from perrin.modalities.weather.members import find_files, gather, read_members

LATITUDE, LONGITUDE = np.arange(-75.0, 90, 30), np.arange(0.0, 360, 45)
DAY = 24.0


def value(member: int, day: float, level: float = 0) -> float:
    """What a member has of a valid day, wherever."""
    return 100 * member + day + level / 1000


def write_member(path: Path, member: int, start: int, days: list[int], **more: object) -> None:
    """A file of one member that starts on a day of January."""
    fields = np.stack([np.full((len(LATITUDE), len(LONGITUDE)), value(member, start + d)) for d in days])
    dataset = xr.Dataset(
        {"ta": (("step", "lat", "lon"), fields, {"standard_name": "air_temperature", "units": "K"})},
        {
            "step": ("step", np.array(days) * DAY, {"standard_name": "forecast_period", "units": "hours"}),
            "init": (
                (),
                cftime.datetime(2001, 1, start, calendar="noleap"),
                {"standard_name": "forecast_reference_time"},
            ),
            "lat": ("lat", LATITUDE, {"units": "degrees_north"}),
            "lon": ("lon", LONGITUDE, {"units": "degrees_east"}),
            **more,
        },
    )
    dataset.to_netcdf(path)


def days_of(path: Path) -> list[list[float]]:
    """The values of a file's members by lead, which must not vary over the grid."""
    fields = open_fields(path)
    found = np.stack([fields.forecast("ta", 0, j) for j in range(len(fields.leads))], 1)
    assert np.ptp(found, axis=(2, 3)).max() == 0
    return found[:, :, 0, 0].tolist()


def run(*words: object) -> int:
    """A command."""
    return main([str(w) for w in words])


def test_members_by_number(tmp_path: Path) -> None:
    for member in (2, 10, 1):
        write_member(tmp_path / f"run3_{member}.nc", member, 5, [1, 2, 3])
    (tmp_path / "notes.txt").write_text("not of it")
    assert run("data", "weather/ensemble", "--file", tmp_path, "-o", tmp_path / "o.nc") == 0
    found = open_fields(tmp_path / "o.nc")
    assert found.dataset["realization"].values.tolist() == [1, 2, 10]
    assert "member_start" not in found.dataset.coords
    assert [str(lead) for lead in found.leads] == ["1 d", "2 d", "3 d"]
    assert days_of(tmp_path / "o.nc") == [[value(m, 5 + d) for d in (1, 2, 3)] for m in (1, 2, 10)]


def test_numbers_of_files_come_before_names_and_names_before_counting(tmp_path: Path) -> None:
    for name, number in (("a1", 7), ("a2", 3)):
        write_member(tmp_path / f"{name}.nc", number, 5, [1], realization=((), number))
    assert [m.number for m in read_members(find_files(tmp_path, (".nc",)))] == [3, 7]
    write_member(tmp_path / "b8.nc", 8, 5, [1])  # one does not say: names
    assert [m.number for m in read_members(find_files(str(tmp_path / "[ab]?.nc"), (".nc",)))] == [1, 2, 8]
    write_member(tmp_path / "b08.nc", 9, 5, [1])  # twice the same: in order
    assert [m.number for m in read_members(find_files(tmp_path, (".nc",)))] == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_a_lagged_ensemble_starts_with_its_last_member(tmp_path: Path, suffix: str) -> None:
    for member, start in enumerate((3, 4, 6)):
        write_member(tmp_path / f"m{member}.nc", member, start, [1, 2, 3, 4, 5])
    out = tmp_path / f"o.{suffix}"
    assert run("data", "weather/ensemble", "--file", tmp_path / "m*.nc", "-o", out) == 0
    found = open_fields(out)
    assert [t.day for t in found.references] == [6]
    assert found.leads == [Lead(seconds=86400 * d) for d in (1, 2)]  # the 7th and 8th, which all have
    assert [t.day for t in found.dataset["member_start"].values] == [3, 4, 6]
    assert days_of(out) == [[value(m, 7), value(m, 8)] for m in range(3)]
    assert not list(tmp_path.glob("*.partial"))
    again = tmp_path / "again.nc"  # of one file the members' starts are known too
    assert run("data", "weather/ensemble", "--file", out, "-o", again) == 0
    assert [t.day for t in open_fields(again).dataset["member_start"].values] == [3, 4, 6]
    assert days_of(again) == days_of(out)


def test_a_lagged_ensemble_as_others_write_it(tmp_path: Path) -> None:
    """By member and valid time, with a start and periods for each member."""
    days = np.array([8, 9])
    starts = np.array([[3, 3], [6, 6]])
    dims = ("realization", "time", "latitude", "longitude")
    fields = np.array([[value(m, d) for d in days] for m in range(2)])[..., None, None]
    dataset = xr.Dataset(
        {"ta": (dims, np.broadcast_to(fields, (2, 2, 6, 8)), {"standard_name": "air_temperature"})},
        {
            "realization": [0, 1],
            "time": [cftime.datetime(2001, 1, d) for d in days],
            "forecast_reference_time": (
                ("realization", "time"),
                np.array([[cftime.datetime(2001, 1, d) for d in row] for row in starts]),
            ),
            "forecast_period": (("realization", "time"), (days - starts) * DAY, {"units": "hours"}),
            "latitude": LATITUDE,
            "longitude": LONGITUDE,
        },
    )
    dataset.to_netcdf(tmp_path / "a.nc")
    found = open_fields(tmp_path / "a.nc")
    assert [t.day for t in found.references] == [6]
    assert found.leads == [Lead(seconds=86400 * d) for d in (2, 3)]
    assert days_of(tmp_path / "a.nc") == [[value(m, d) for d in days] for m in range(2)]


@pytest.mark.parametrize("bounds", [True, False])
def test_means_of_months_are_forecasts_by_months(tmp_path: Path, bounds: bool) -> None:
    """Whether bounds say so or the distances of times do."""
    edges = [cftime.datetime(2001 + k // 12, k % 12 + 1, 1) for k in range(10, 14)]
    middles = [a + (b - a) / 2 for a, b in itertools.pairwise(edges)]
    for member, day in enumerate((20, 25)):
        start = cftime.datetime(2001, 10, day)
        fields = np.stack([np.full((6, 8), value(member, t.month)) for t in middles])
        dataset = xr.Dataset(
            {"ta": (("time", "lat", "lon"), fields, {"standard_name": "air_temperature"})},
            {
                "time": ("time", middles, {"bounds": "edges"} if bounds else {}),
                "init": ((), start, {"standard_name": "forecast_reference_time"}),
                "lat": LATITUDE,
                "lon": LONGITUDE,
            },
        )
        if bounds:
            dataset["edges"] = (("time", "two"), np.array([edges[:-1], edges[1:]]).T)
        dataset.to_netcdf(tmp_path / f"{member}.nc")
    gather(read_members(find_files(tmp_path, (".nc",))), tmp_path / "o.nc")
    found = open_fields(tmp_path / "o.nc")
    assert found.leads == [Lead(months=m) for m in (1, 2, 3)]
    assert str(found.references[0]) == "2001-10-01 00:00:00"
    assert days_of(tmp_path / "o.nc") == [[value(m, k) for k in (11, 12, 1)] for m in range(2)]


def test_states_by_time_with_levels(tmp_path: Path) -> None:
    """Runs of a scenario are no forecasts: they stay by time; levels become variables."""
    levels = [500.0, 850.0]
    for member in range(2):
        days = np.arange(1 + member, 40)
        fields = np.array([[value(member, d, p) for p in levels] for d in days])[..., None, None]
        dataset = xr.Dataset(
            {
                "ta": (("time", "plev", "lat", "lon"), np.broadcast_to(fields, (len(days), 2, 6, 8))),
                "orog": (("lat", "lon"), np.zeros((6, 8))),  # constant: left out
            },
            {
                "time": [
                    cftime.datetime(2001, 1 + (d - 1) // 30, (d - 1) % 30 + 1, calendar="360_day")
                    for d in days
                ],
                "plev": levels,
                "lat": LATITUDE,
                "lon": LONGITUDE,
            },
        )
        dataset.to_netcdf(tmp_path / f"{member}.nc")
    found = gather(read_members(find_files(tmp_path, (".nc",))), tmp_path / "o.zarr")
    assert found.dropped == 1
    fields = open_fields(tmp_path / "o.zarr")
    assert sorted(fields.parts) == ["ta500", "ta850"]
    assert len(fields.times) == 38
    assert fields.times[-1].calendar == "360_day"
    for name, level in (("ta500", 500), ("ta850", 850)):
        for member in range(2):
            got = fields.read(name, realization=member)[:, 0, 0]
            np.testing.assert_allclose(got, [value(member, d, level) for d in range(2, 40)], rtol=1e-6)


def test_on_another_grid_means_are_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 1, 1, 36, 72))
    dims = ("realization", "forecast_reference_time", "forecast_period", "latitude", "longitude")
    fine = {"latitude": np.arange(-87.5, 90, 5), "longitude": np.arange(0.0, 360, 5)}
    coords = {
        "forecast_reference_time": [cftime.datetime(2001, 1, 1)],
        "forecast_period": ("forecast_period", [24], {"units": "hours"}),
    }
    write_fields(tmp_path / "in.nc", xr.Dataset({"ta": (dims, x, {"units": "K"})}, coords | fine))
    coarse = {"latitude": np.arange(-85.0, 90, 10), "longitude": np.arange(5.0, 360, 15)}
    sea = np.zeros((18, 24))
    write_fields(tmp_path / "like.nc", xr.Dataset({"sst": (dims[-2:], sea)}, coarse))
    sea[3:5] = np.nan
    write_fields(tmp_path / "land.nc", xr.Dataset({"sst": (dims[-2:], sea)}, coarse))
    for like in ("like", "land"):
        words = [
            "--file",
            tmp_path / "in.nc",
            "--like",
            tmp_path / f"{like}.nc",
            "-o",
            tmp_path / f"o-{like}.nc",
        ]
        assert run("data", "weather/ensemble", *words) == 0
    before, after, masked = (open_fields(tmp_path / n) for n in ("in.nc", "o-like.nc", "o-land.nc"))
    y = after.forecast("ta", 0, 0)
    got = (y * after.area).sum((1, 2)), (before.forecast("ta", 0, 0) * before.area).sum((1, 2))
    np.testing.assert_allclose(*got, atol=1e-6)
    np.testing.assert_array_equal(masked.forecast("ta", 0, 0), np.where(np.isnan(sea), np.nan, y))


def test_what_does_not_fit_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.zarr"

    def told(words: str, where: object = tmp_path) -> None:
        assert run("data", "weather/ensemble", "--file", where, "-o", out) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        assert not list(out.parent.glob("out*"))

    told("expected files of members")
    told("which does not exist", tmp_path / "none.nc")
    write_member(tmp_path / "a.nc", 1, 3, [1])
    write_member(tmp_path / "b.nc", 2, 9, [1])
    told("expected times that all members have")
    write_member(tmp_path / "b.nc", 2, 3, [1])
    xr.open_dataset(tmp_path / "a.nc", decode_timedelta=False).load().rename(ta="tb").to_netcdf(
        tmp_path / "c.nc"
    )
    told("expected ta in c.nc, given tb")
    (tmp_path / "c.nc").unlink()
    with xr.open_dataset(tmp_path / "a.nc", decode_timedelta=False) as found:
        found.drop_vars(["init", "step"]).assign_coords(step=[0]).rename(step="time").assign_coords(
            time=[np.datetime64("2001-01-04", "ns")]
        ).to_netcdf(tmp_path / "c.nc")
    told("expected forecasts alone or states by time alone")
    (tmp_path / "c.nc").unlink()
    xr.open_dataset(tmp_path / "a.nc", decode_timedelta=False).load().isel(lat=slice(3)).to_netcdf(
        tmp_path / "c.nc"
    )
    told("expected the same grid")


def pp_field(
    values: np.ndarray, first: tuple[int, ...], second: tuple[int, ...], **words: int | float
) -> bytes:
    """A record of a PP file by the Unified Model's documentation (F03): words by their names there."""
    places = {
        "LBTIM": 13,
        "LBFT": 14,
        "LBCODE": 16,
        "LBPACK": 21,
        "LBPROC": 25,
        "LBVC": 26,
        "BLEV": 52,
        "STASH": 42,
    }
    head = [0] * 64
    head[:6], head[6:12] = first, second
    rows, columns = values.shape
    for word, value in {
        12: 122,
        14: values.size,
        15: 1,
        17: rows,
        18: columns,
        21: 3,
        25: 129,
        44: 1,
    }.items():
        head[word] = value
    for word, value in zip((55, 58, 59, 60, 61, 62), (90.0, 105.0, -30.0, -45.0, 45.0, -1e30)):
        head[word] = value  # type: ignore[call-overload]
    for name, value in words.items():
        head[places[name] - 1] = value  # type: ignore[call-overload]
    data = np.nan_to_num(values, nan=-1e30).astype(">f4").tobytes()
    marks = [struct.pack(">i", n) for n in (256, len(data))]
    return marks[0] + struct.pack(">45i19f", *head) + marks[0] + marks[1] + data + marks[1]


def pp_file(path: Path) -> dict[str, np.ndarray]:
    """A forecast from the 20th of January in a 360-day calendar, rows from north to south: means of three months at the
    surface, a value missing, and of two pressures, the last first."""
    rng = np.random.default_rng(1)
    found = {
        n: rng.normal(280, 5, (3, 6, 8)).astype(np.float32)
        for n in ("surface_temperature", "air_temperature@500", "air_temperature@850")
    }
    found["surface_temperature"][1, 2, 3] = np.nan
    records = []
    for k in (2, 0, 1):
        for name, x in found.items():
            code = 24 if name.startswith("surface") else 16203
            level = {} if code == 24 else {"LBVC": 8, "BLEV": float(name[-3:])}
            dates = (2001, 2 + k, 1, 0, 0, 0), (2001, 3 + k, 1, 0, 0, 0)
            words = {"STASH": code, "LBFT": 24 * (41 + 30 * k), "LBPROC": 128} | level
            records.append(pp_field(x[k, ::-1], *dates, **words))
    path.write_bytes(b"".join(records))
    return found


def test_pp_files_are_read(tmp_path: Path) -> None:
    values = pp_file(tmp_path / "a.pp")
    found = open_fields(tmp_path / "a.pp")
    assert sorted(found.parts) == sorted(values)
    assert found.units("surface_temperature") == "K"
    assert [str(t) for t in found.references] == ["2001-01-20 00:00:00"]
    assert found.times[0].calendar == "360_day"
    assert [lead.seconds / 86400 for lead in found.leads] == [26, 56, 86]  # the middles of February to April
    np.testing.assert_array_equal(found.latitude, LATITUDE)
    np.testing.assert_array_equal(found.longitude, LONGITUDE)
    for name, x in values.items():
        np.testing.assert_array_equal([found.forecast(name, 0, j)[0] for j in range(3)], x)
        np.testing.assert_array_equal(found.read(name, slice(2, 5), time=1), x[1, 2:5])
    assert run("data", "weather/ensemble", "--file", tmp_path / "a.pp", "-o", tmp_path / "o.nc") == 0
    months = open_fields(tmp_path / "o.nc")
    assert months.leads == [Lead(months=m) for m in (1, 2, 3)]
    np.testing.assert_array_equal(
        months.forecast("air_temperature850", 0, 2)[0], values["air_temperature@850"][2]
    )


def test_pp_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Each says in one line what is wrong."""
    pp_file(tmp_path / "a.pp")
    whole, path, x = (tmp_path / "a.pp").read_bytes(), tmp_path / "b.pp", np.zeros((6, 8))
    dates = (2001, 2, 1, 0, 0, 0), (2001, 3, 1, 0, 0, 0)
    for content, words in (
        (b"", "none or was cut off"),
        (b"no such thing" * 40, "none or was cut off"),
        (whole[:-7], "none or was cut off"),
        (pp_field(x, *dates, LBPACK=1, STASH=24), "m01s00i024 packed"),
        (pp_field(x, *dates, LBCODE=101, STASH=24), "another .LBCODE 101"),
        (pp_field(x, *dates, LBTIM=132, STASH=24), "LBTIM 132"),
        (pp_field(x, *dates, STASH=24) + pp_field(np.zeros((5, 8)), *dates, STASH=30), "of one grid"),
        (pp_field(x, *dates, STASH=24) * 2, "each time and level once"),
    ):
        path.write_bytes(content)
        with pytest.raises(PerrinError, match=words):
            open_fields(path)


ORACLE = """
import sys, warnings
import numpy as np
warnings.simplefilter("ignore")
import iris
for name in sys.argv[1:]:
    cube = iris.load_cube(name)
    start = cube.coord("forecast_reference_time")
    values, leads = np.ma.filled(cube.data, np.nan), cube.coord("forecast_period").points
    np.savez(name.rsplit("/", 1)[-1] + ".npz", values=values, leads=leads,
             start=str(start.units.num2date(start.points[0])), latitude=cube.coord("latitude").points)
"""


@pytest.mark.peers
def test_pp_as_iris_reads_it(tmp_path: Path) -> None:
    """`PERRIN_IRIS=python-with-iris python -m pytest -m peers`: Iris in another Python, as its libraries and netCDF4's do
    not get on in one process."""
    python = os.environ.get("PERRIN_IRIS") or pytest.skip("needs PERRIN_IRIS")
    folder = Path(pytest.importorskip("iris_sample_data").path)
    names = [folder / "A1B.2098.pp", *sorted((folder / "GloSea4").glob("*.pp"))]
    subprocess.run([python, "-c", ORACLE, *map(str, names)], cwd=tmp_path, check=True)
    for name in names:
        theirs, ours = np.load(tmp_path / f"{name.name}.npz"), open_fields(name)
        (part,) = ours.parts
        values = [ours.forecast(part, 0, j)[0] for j in range(len(ours.leads))]
        np.testing.assert_array_equal(np.squeeze(values), np.squeeze(theirs["values"]))
        np.testing.assert_allclose([lead.seconds / 3600 for lead in ours.leads], np.ravel(theirs["leads"]))
        assert str(ours.references[0]) == str(theirs["start"])
        np.testing.assert_allclose(ours.latitude, theirs["latitude"])


def test_glosea4(tmp_path: Path) -> None:
    """The Met Office's seasonal ensemble of July 2011: 13 members, a lagged one, six months."""
    folder = Path(pytest.importorskip("iris_sample_data").path) / "GloSea4"
    out = tmp_path / "glosea.nc"
    assert run("data", "weather/ensemble", "--file", folder, "-o", out) == 0
    fields = open_fields(out)
    assert fields.dataset["realization"].values.tolist() == [*range(6), *range(7, 14)]
    days = [t.day for t in fields.dataset["member_start"].values]
    assert days == [18, 18, 19, 19, 20, 20, 21, 22, 22, 23, 23, 24, 24]
    assert fields.leads == [Lead(months=m) for m in range(1, 7)]
    assert str(fields.references[0]) == "2011-07-01 00:00:00"
    assert complaints(out) == []
    x = np.stack([fields.forecast("surface_temperature", 0, j) for j in range(6)], 1)
    (k,) = [k for k, n in enumerate(fields.dataset["realization"].values) if n == 9]
    raw = (folder / "ensemble_009.pp").read_bytes()  # six equal records, the last of January
    last = np.frombuffer(raw, ">f4", 145 * 192, len(raw) - 4 - 4 * 145 * 192).reshape(145, 192)
    np.testing.assert_array_equal(x[k, 5], last if fields.latitude[0] == -90 else last[::-1])

    # Each member in turn as the truth of the others: the mean of the fair CRPS is half the mean difference of two.
    scores = []
    for k in range(13):
        one = xr.Dataset(
            {"surface_temperature": (("time", "latitude", "longitude"), x[k, :1], {"units": "K"})},
            {
                "time": [cftime.datetime(2011, 8, 1)],
                "latitude": fields.latitude,
                "longitude": fields.longitude,
            },
        )
        write_fields(tmp_path / "truth.nc", one)
        others = xr.open_dataset(out, decode_timedelta=False).load()
        others.isel(realization=[j for j in range(13) if j != k]).to_netcdf(tmp_path / "others.nc")
        report = tmp_path / "scores.json"
        assert run("verify", tmp_path / "others.nc", tmp_path / "truth.nc", "--json", report) == 0
        found = json.loads(report.read_text())["variables"]["surface_temperature"]["leads"]
        assert [row["lead"] for row in found] == ["1 mon"]
        scores.append(found[0]["scores"]["crps"]["value"])
    pairs = np.abs(x[:, None, 0] - x[None, :, 0]).sum((0, 1)) / (13 * 12)
    expected = (pairs * fields.area).sum() / fields.area.sum() / 2
    np.testing.assert_allclose(np.mean(scores), expected, rtol=1e-5)

"""The page of a verification: one file, well formed, its maps are the fields."""

from __future__ import annotations

import base64
import html.parser
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from perrin.cli import main
from perrin.modalities.weather.fields import open_fields
from perrin.modalities.weather.page import BOTH, ONE, VIRIDIS, picture, plot


class Tags(html.parser.HTMLParser):
    """Checks that every tag is closed, and keeps what is asked for."""

    empty = frozenset({"meta", "img", "rect", "line", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in self.empty:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.empty or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def pixels(figure: str) -> np.ndarray:
    """The colours of a picture, `[rows, columns, 3]`."""
    data = base64.b64decode(re.search(r"base64,([^\"]+)", figure)[1])  # type: ignore[index]
    found, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        found[kind] = body
        at += 12 + size
    width, height = struct.unpack(">II", found[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(height, width + 1)[:, 1:]
    return np.frombuffer(found[b"PLTE"], np.uint8).reshape(-1, 3)[rows]


def test_a_map_is_the_field() -> None:
    """North is up; the ends of the scale, its middle and missing values have their colours."""
    x = np.array([[-1.0, 0.0, 1.0], [5.0, -5.0, np.nan]])
    found = pixels(picture(x, -1, 1, BOTH, "a < b"))
    low, middle, high = BOTH[0], BOTH[2], BOTH[-1]
    np.testing.assert_array_equal(found[1], [low, middle, high])
    np.testing.assert_array_equal(found[0], [high, low, (200, 200, 200)])


def test_a_map_says_its_colours_and_places() -> None:
    """The bar goes through the scale from low to high; degrees stand at the rows and columns of their cells."""
    latitude, longitude = np.arange(-88.0, 89, 4), np.arange(2.0, 360, 4)
    page = picture(np.zeros((45, 90)), -2, 30, VIRIDIS, "t", "degC", (latitude, longitude))
    assert "linear-gradient(to right,rgb(68,1,84),rgb(71,45,123)" in page
    assert "<span>-2</span><span>14</span><span>30 degC</span>" in page
    marks = re.findall(r'<span class="(\w+)" style="\w+:([\d.]+)%">([^<]+)<', page)
    expected = [("row", 60, "60° S"), ("row", 0, "0°"), ("row", -60, "60° N")]  # from the middle, downwards
    expected += [("column", -90, "90° E"), ("column", 0, "180°"), ("column", 90, "90° W")]
    for (kind, share, word), (k, degrees, w) in zip(marks, expected, strict=True):
        assert (kind, word) == (k, w)
        assert float(share) == pytest.approx(50 + degrees / (1.8 if kind == "row" else 3.6), abs=0.06)
    west = picture(np.zeros((2, 3)), 0, 1, ONE, "t", "", (np.array([50.0, 51]), np.array([-6.0, -5, -4])))
    assert re.findall(r">([^<]+ [EW])<", west) == ["6° W", "5.5° W", "5° W", "4.5° W", "4° W"]


def test_viridis_is_matplotlibs() -> None:
    cm = pytest.importorskip("matplotlib").colormaps["viridis"]
    np.testing.assert_allclose(VIRIDIS, 255 * cm(np.linspace(0, 1, 9))[:, :3], atol=0.51)


def test_a_long_curve_is_of_whole_years(tmp_path: Path) -> None:
    """60 years of a sea with seasons and a trend: the curve of annual means is the trend alone, a straight line."""
    months = np.arange(720)
    x = 10 + 5 * np.cos(2 * np.pi * months / 12) + months / 240
    times = xr.date_range("1950-01-01", periods=720, freq="MS", use_cftime=True)
    place = {"lat": np.arange(-60.0, 61, 30), "lon": np.arange(0, 360, 60.0), "time": times}
    field = np.broadcast_to(x[:, None, None], (720, 5, 6))
    xr.Dataset({"t": (("time", "lat", "lon"), field, {"units": "degC"})}, place).to_netcdf(tmp_path / "t.nc")
    assert main(["view", str(tmp_path / "t.nc")]) == 0
    page = (tmp_path / "t.html").read_text()
    assert "mean over the area (degC), means of 12 months" in page
    assert "evenly chosen" not in page
    (curve,) = re.findall(r'points="([^"]+)"', page)
    points = np.array([p.split(",") for p in curve.split()], float)
    assert len(points) == 60
    np.testing.assert_allclose(points[:, 1], np.linspace(points[0, 1], points[-1, 1], 60), atol=0.11)


def test_a_curve_goes_through_its_points() -> None:
    svg = plot("t", [0, 1, 2], {"a": [0.0, 10.0, float("nan")]}, low=0)
    points = re.search(r'points="([^"]+)"', svg)[1].split()  # type: ignore[index]
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in points)
    assert (x0, y0) == (52, 206)  # the corner
    assert x1 == pytest.approx(52 + 420 / 2)
    assert y1 == pytest.approx(206 - 198 / 1.05, abs=0.1)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    latitude, longitude = np.arange(-78.75, 80, 22.5), np.arange(0, 360, 22.5)
    times = xr.date_range("2001-01-01", periods=6, freq="D", use_cftime=True)
    truth = xr.DataArray(
        rng.standard_normal((6, 8, 16)), [("time", times), ("lat", latitude), ("lon", longitude)]
    )
    truth[:, 3, 4] = np.nan
    lead = ("forecast_period", np.array([1, 2]), {"units": "days"})
    x = rng.standard_normal((5, 2, 2, 8, 16))
    dims = ("realization", "forecast_reference_time", "forecast_period", "latitude", "longitude")
    forecast = xr.Dataset(
        {"t<2>": (dims, x, {"units": "K"})},
        {
            "forecast_reference_time": times[:2],
            "forecast_period": lead,
            "latitude": latitude,
            "longitude": longitude,
        },
    )
    forecast.to_netcdf(tmp_path / "f.nc")
    truth.to_dataset(name="t<2>").assign_attrs().to_netcdf(tmp_path / "t.nc")
    words = ["verify", str(tmp_path / "f.nc"), str(tmp_path / "t.nc"), "--against", "persistence"]
    page = tmp_path / "p.html"
    assert main([*words, "--html", str(page), "--place", "-30", "355"]) == 0
    tags = Tags()
    tags.feed(page.read_text())
    assert tags.open == []
    assert all(link.startswith("data:image/png;base64,") for link in tags.links)
    assert len(tags.links) == 8  # truth, mean, error and spread at two leads
    text = " ".join(tags.text)
    assert "t<2>" in text
    assert "at -34°, 0°" in text
    assert main([*words, "--html", str(tmp_path)]) == 2
    assert main([*words, "--html", str(page), "--place", "91", "0"]) == 2
    assert "expected --place" in capsys.readouterr().err


def test_view_of_rain_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing beside it: numbers and curves are those of the file, maps are its fields, darker where more falls."""
    file = tmp_path / "rain.nc"
    assert main(["data", "weather/rain", "--sample", "-o", str(file)]) == 0
    assert main(["view", str(file)]) == 0
    assert capsys.readouterr().out.endswith(f"1 variable in {tmp_path / 'rain.html'}\n")
    page = (tmp_path / "rain.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    fields = open_fields(file)
    x = fields.read("precipitation")
    mean = (x * fields.area).sum((1, 2)) / fields.area.sum()
    for word, value in (
        ("least", "0"),
        ("mean over area and times", f"{mean.mean():.3g}"),
        ("largest", f"{x.max():.3g}"),
        ("zero", f"{100 * (x == 0).mean():.3g} % of the rest"),
    ):
        assert f"<th>{word}</th><td>{value}</td>" in page
    curves = [
        np.array([p.split(",") for p in found.split()], float)
        for found in re.findall(r'points="([^"]+)"', page)
    ]
    for curve, values in zip(
        curves, (mean, x.max((1, 2))), strict=True
    ):  # upside down, and from 0 or the least on
        drop = curve[:, 1].max() - curve[:, 1]
        np.testing.assert_allclose(drop / drop.max(), (values - values.min()) / np.ptp(values), atol=2e-3)
    maps = re.findall(r"<img[^>]+>", page)
    top = np.quantile(x[x > 0], 0.995)
    assert f"Colours: 0 to {top:.3g} kg m-2" in page
    for found, field in zip(maps, x, strict=True):
        dark = 3 * 255 - pixels(found).sum(-1)[::-1]
        level = (np.clip(field / top, 0, 1) * 254).round()
        assert (np.diff(dark.ravel()[np.argsort(level, axis=None, kind="stable")].astype(int)) >= 0).all()
        assert len(np.unique(dark[field == 0])) == 1
    assert main(["view", str(file)]) == 0  # its own page, again
    assert main(["view", str(file), "-o", str(tmp_path / "page.pdf")]) == 2


def test_view_of_an_ensemble(sst_bundle: Path, tmp_path: Path) -> None:
    """Means of the members in one scale, their spread, two of them; land is grey."""
    file = tmp_path / "ens.zarr"
    assert main(["forecast", str(sst_bundle), "--members", "3", "--months", "4", "-o", str(file)]) == 0
    assert main(["view", str(file), "-o", str(tmp_path / "p.html")]) == 0
    page = (tmp_path / "p.html").read_text()
    assert "3 members; forecast from " in page
    captions = re.findall(r"<figure><div.+?<figcaption>([^<]+)<", page)
    assert [c.split(",")[0] for c in captions] == ["mean of the members"] * 4 + [
        "spread",
        "member 0",
        "member 1",
    ]
    fields = open_fields(file)
    assert fields.references[0].strftime("%Y-%m") == "2000-12"
    assert captions[3] == "mean of the members, 4 mon (2001-04)"
    x = fields.read("sst")[:, 0]
    low, high = np.nanquantile(x.mean(0), [0.005, 0.995])
    assert re.findall(r"<img[^>]+>", page)[0] in picture(x.mean(0)[0], low, high, VIRIDIS, captions[0])
    assert re.findall(r"<img[^>]+>", page)[4] in picture(
        x[:, 3].std(0, ddof=1), 0, np.nanquantile(x[:, 3].std(0, ddof=1), 0.995), ONE, captions[4]
    )


def test_view_of_fields_that_do_not_change_or_are_not_there(tmp_path: Path) -> None:
    place = {"lat": np.arange(-60.0, 61, 30), "lon": np.arange(0, 360, 60.0)}
    height = np.arange(30.0).reshape(5, 6) - 14.5
    file = tmp_path / "fixed.nc"
    dims = ("lat", "lon")
    xr.Dataset({"orog": (dims, height), "none": (dims, np.nan * height)}, place).to_netcdf(file)
    assert main(["view", str(file)]) == 0
    page = (tmp_path / "fixed.html").read_text()
    assert "no times; 5 × 6 cells" in page
    assert "No values." in page
    low, high = np.quantile(height, [0.005, 0.995])
    size = max(-low, high)
    assert re.findall(r"<img[^>]+>", page) == re.findall(
        r"<img[^>]+>", picture(height, -size, size, BOTH, "")
    )

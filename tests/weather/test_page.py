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
from perrin.modalities.weather.page import _BOTH, picture, plot


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
    found = pixels(picture(x, -1, 1, _BOTH, "a < b"))
    low, middle, high = _BOTH[0], _BOTH[2], _BOTH[-1]
    np.testing.assert_array_equal(found[1], [low, middle, high])
    np.testing.assert_array_equal(found[0], [high, low, (200, 200, 200)])


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

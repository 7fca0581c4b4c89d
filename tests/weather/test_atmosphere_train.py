"""An atmosphere of the user's own: a made record whose law is known, files of every shape, gaps, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("netCDF4")

import xarray as xr
from test_cf import complaints

from perrin import load
from perrin.bundle import read_bundle
from perrin.cli import main
from perrin.modalities.weather.atmosphere import AtmosphereTask, Normalisation, last_states
from perrin.modalities.weather.atmosphere_data import Record
from perrin.modalities.weather.atmosphere_train import held, read_states, score
from perrin.modalities.weather.fields import Fields, open_fields
from perrin.modalities.weather.regrid import to_gauss
from perrin.nets.sphere import SphericalHarmonics, equiangular_latitudes, gauss_latitudes, isotropic

DAYS, DEGREE, ANGLE, RHO = 600, 6, 22.5, 0.98
NOISE = (1 - RHO**2) ** 0.5
"""Of a day, in units of the fields' standard deviation."""
WORDS = {
    "zg500": ("geopotential_height", "m", 5500.0, 100.0),
    "ta850": ("air_temperature", "K", 280.0, 10.0),
}


def coefficients(days: int = DAYS, seed: int = 0) -> torch.Tensor:
    """Two fields that a day turns by `ANGLE`, and that isotropic noise keeps at variance one: `[T, 2, L, L]`.

    a_lm ← ρ e^{−imω} a_lm + √(1 − ρ²) ε_lm
    """
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.ones(DEGREE, dtype=torch.float64) / DEGREE
    white = torch.randn(days, 2, DEGREE**2, generator=generator, dtype=torch.float64)
    noise = isotropic(white, spectrum)
    turn = torch.polar(torch.ones(DEGREE).double(), -torch.arange(DEGREE).double() * np.deg2rad(ANGLE))
    a = [noise[0]]
    for e in noise[1:]:
        a.append(RHO * turn * a[-1] + NOISE * e)
    return torch.stack(a)


def on_grid(a: torch.Tensor, latitude: torch.Tensor, columns: int) -> np.ndarray:
    """The fields in their units."""
    x = SphericalHarmonics(latitude, columns, degree=DEGREE).inverse(a).numpy()
    for c, (_, _, mean, std) in enumerate(WORDS.values()):
        x[:, c] = mean + std * x[:, c]
    return x


def dataset(
    x: np.ndarray, latitude: Any, *, calendar: str = "standard", start: str = "2001-01-01", freq: str = "24h"
) -> xr.Dataset:
    """A plain file of them."""
    times = xr.date_range(start, periods=len(x), freq=freq, use_cftime=True, calendar=calendar)
    columns = x.shape[-1]
    data = {
        n: (("time", "lat", "lon"), x[:, c], {"standard_name": s, "units": u, "cell_methods": "time: mean"})
        for c, (n, (s, u, _, _)) in enumerate(WORDS.items())
    }
    coords = {"time": times, "lat": np.asarray(latitude), "lon": np.arange(columns) * 360 / columns}
    return xr.Dataset(data, coords)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record on a Gauss grid of 16 × 32."""
    path = tmp_path_factory.mktemp("record") / "plain.nc"
    latitude = gauss_latitudes(16)[0]
    dataset(on_grid(coefficients(), latitude, 32), latitude).to_netcdf(path)
    return path


def opened(path: Path) -> xr.Dataset:
    return xr.open_dataset(path, decode_times=xr.coders.CFDatetimeCoder(use_cftime=True))


def train(*words: str) -> int:
    return main(
        [
            "train",
            "weather/atmosphere",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--rows",
            "8",
            "--width",
            "16",
            *words,
        ]
    )


@pytest.mark.parametrize("loss", ["crps", "diffusion"])
def test_a_known_law_is_learned(
    plain: Path,
    tmp_path: Path,
    loss: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A day's error is that of the noise, nearly, and far below persistence's; no less, for nothing can know the noise. The
    spread is as large."""
    if loss == "diffusion":  # of which a step takes 16 evaluations
        fewer = partial(score, members=6, starts=2)
        monkeypatch.setattr("perrin.modalities.weather.atmosphere_commands.score", fewer)
    out = str(tmp_path / "my")
    words = ["--data", str(plain), "--out", out, "--loss", loss, "--steps", "180", "--batch", "4"]
    assert train(*words, "--lr", "1e-2") == 0
    said = capsys.readouterr()
    assert "no orography (surface_altitude) and no land (land_area_fraction) in the files: zeros" in said.err
    assert "climatology CRPS" in said.out
    rows = {(r["field"], r["day"]): r for r in read_bundle(out).config["training"]["scores"]}
    assert len(rows) == 6
    x = on_grid(coefficients(), gauss_latitudes(8)[0], 16)[-60:]
    weight = gauss_latitudes(8)[1].numpy()[:, None] / 32
    for c, (name, (_, unit, _, std)) in enumerate(WORDS.items()):
        r, noise = rows[name, 1], NOISE * std
        assert r["unit"] == unit
        still = np.sqrt((np.diff(x[:, c], axis=0) ** 2 * weight).sum((1, 2)).mean())
        assert r["persistence_rmse"] == pytest.approx(still, rel=0.1)
        assert r["climatology_crps"] > 0.4 * std
        assert 0.9 * noise < r["rmse"] < 0.5 * r["persistence_rmse"]
        least = noise / np.pi**0.5  # of a normal law that is known
        assert 0.75 * least < r["crps"] < 0.4 * r["persistence_mae"]
        assert 0.6 < r["ssr"] < 1.4
    model = load(out)
    assert model.steps == (1 if loss == "crps" else 16)
    assert model.config.vectors == ()
    command = f"perrin train weather/atmosphere --device cpu --threads 1 --rows 8 --width 16 --data {plain}"
    assert command in Path(out, "card.md").read_text()
    if loss == "crps":
        _forecast_and_verify(plain, tmp_path, capsys)


def _forecast_and_verify(plain: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the record itself and from what `perrin data` makes of it: the same members, which beat persistence."""
    my, small = str(folder / "my"), str(folder / "small.nc")
    assert main(["data", "weather/atmosphere", "--file", str(plain), "--rows", "8", "-o", small]) == 0
    assert "600 states of 2 fields on 8 x 16 points" in capsys.readouterr().out
    more = [
        "--start",
        "2002-07-01:2002-07-03",
        "--members",
        "3",
        "--days",
        "2",
        "--device",
        "cpu",
        "--workers",
        "1",
    ]
    for name, file in (("raw.nc", str(plain)), ("small.zarr", small)):
        out = str(folder / name)
        assert main(["forecast", my, "--file", file, *more, "-o", out]) == 0
    assert complaints(folder / "raw.nc") == []
    raw, own = (open_fields(folder / n).read("zg500") for n in ("raw.nc", "small.zarr"))
    np.testing.assert_allclose(raw, own, atol=0.02)
    report = str(folder / "v.json")
    words = [str(folder / "small.zarr"), small, "--against", "persistence", "--json", report]
    assert main(["verify", *words]) == 0
    leads = json.loads(Path(report).read_text())["variables"]["ta850"]["leads"]
    assert leads[0]["references"]["persistence"]["skill"]["crps"]["value"] > 0.5
    capsys.readouterr()
    assert main(["forecast", my, "--members", "1", "--days", "1", "-o", str(folder / "x.nc")]) == 2
    said = capsys.readouterr().err
    assert (
        said == "perrin: expected --file with states to start from, given none: my has no sample of its own\n"
    )


def test_odd_files_are_the_plain_one(plain: Path, tmp_path: Path) -> None:
    """Another grid, north to south, −180 to 180, a dimension of levels in Pa, other names, noleap, a file a year."""
    a = coefficients()
    latitude = equiangular_latitudes(25, poles=True)[0]
    odd = dataset(on_grid(a, latitude, 48), latitude, calendar="noleap")
    odd = odd.assign_coords(lon=(odd.lon + 180) % 360 - 180).sortby("lon").isel(lat=slice(None, None, -1))
    odd["lat"].attrs["standard_name"], odd["lon"].attrs["standard_name"] = "latitude", "longitude"
    odd = odd.rename(lat="breite", lon="laenge")
    one = xr.concat([odd.zg500, odd.zg500 - 4000], "plev").rename("zg").transpose("time", "plev", ...)
    one = one.assign_coords(plev=("plev", [50000.0, 85000.0], {"units": "Pa"}))
    files = {
        "z1": one.isel(time=slice(0, 365)).to_dataset(),
        "z2": one.isel(time=slice(365, None)).to_dataset(),
        "t": odd[["ta850"]],
    }
    for name, set_ in files.items():
        set_.to_netcdf(tmp_path / f"{name}.nc")
    both = [Record([open_fields(plain)], rows=8)]
    both.append(Record([open_fields(tmp_path / f"{n}.nc") for n in files], ["ta850", "zg500"], 8))
    assert both[1].names == ("ta850", "zg500")
    assert both[1].attributes["zg500"]["units"] == "m"
    x, y = (read_states(r) for r in both)
    torch.testing.assert_close(y.flip(1), x, atol=2e-3, rtol=0)
    torch.testing.assert_close(both[1].days, both[0].days)
    # and of the law: on the model's own grid
    np.testing.assert_allclose(x.numpy(), on_grid(a, gauss_latitudes(8)[0], 16), atol=2e-3)
    every = Record([open_fields(tmp_path / "z1.nc")])
    assert every.names == ("zg500", "zg850")
    assert every.rows == 24


def test_finer_fields_lose_only_what_the_grid_does_not_resolve() -> None:
    """On a grid of 2.5° with all degrees below 40: the degrees below 32 stay, as Gauss's quadrature has them."""
    spectrum = torch.ones(40, dtype=torch.float64) / 40
    white = torch.randn(40**2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = isotropic(white, spectrum)
    latitude = equiangular_latitudes(73, poles=True)[0]
    x = SphericalHarmonics(latitude, 144, degree=40).inverse(a).numpy()
    found = to_gauss(x, latitude.numpy(), np.arange(144) * 2.5, 32, 64)
    truth = SphericalHarmonics(gauss_latitudes(32)[0], 64, degree=32).inverse(a[:32, :32]).numpy()
    assert (
        np.abs(found - truth).max() < 0.1
    )  # a sixth of what is left out; what little is folded, lies at the poles
    assert np.abs(found - truth)[4:-4].max() < 0.02


def test_no_step_reaches_over_a_gap(plain: Path) -> None:
    """Without days 100 to 102 and 300: pairs are of neighbouring days, and all of them are there."""
    keep = [i for i in range(DAYS) if i not in (100, 101, 102, 300)]
    record = Record([Fields(opened(plain).isel(time=keep), "gaps")], rows=8)
    used = np.ones(len(keep), bool)
    used[400:] = False
    lengths = record.runs(used)
    assert lengths == [100, 197, 103]
    day = torch.tensor(keep, dtype=torch.float64)[used]
    for span in (1, 2, 4):
        ends = last_states(lengths, span)
        assert (day[ends] - day[ends - span] == span).all()
        assert len(ends) == 400 - 3 * span
    states = day.float()[:, None, None, None].expand(-1, 1, 8, 16).contiguous()
    norm = Normalisation.fit(states, 1, gauss_latitudes(8)[1], lengths)
    assert float(norm.change * norm.std) == pytest.approx(1, rel=3e-3)  # rounded
    assert record.after(99, 24) is None
    assert record.after(99, 96) == 100
    latitude = gauss_latitudes(8)[0]
    often = dataset(on_grid(coefficients(40), latitude, 16), latitude, freq="6h")
    record = Record([Fields(often.isel(time=[*range(12), *range(14, 40)]), "often")])
    assert record.stride(24) == 4
    assert record.runs(np.ones(38, bool)) == [12, 26]
    assert record.days[:5].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert record.after(8, 24) is None
    assert record.after(10, 24) == 12


def test_a_run_that_was_killed_goes_on(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--data", str(plain), "--loss", "diffusion", "--steps", "6", "--batch", "4", "--save-every", "2"]
    loss, made = AtmosphereTask.loss, []

    def counted(self: AtmosphereTask, *a: Any) -> Any:
        made.append(1)
        if len(made) == 6:
            raise KeyboardInterrupt
        return loss(self, *a)

    monkeypatch.setattr(AtmosphereTask, "loss", counted)
    monkeypatch.setattr("perrin.modalities.weather.atmosphere_commands.score", lambda *a: ([], 0))
    assert train(*words, "--out", str(tmp_path / "a")) == 130
    assert not (tmp_path / "a" / "model.safetensors").exists()
    assert train(*words, "--out", str(tmp_path / "a")) == 0
    assert len(made) == 6 + 2
    assert train(*words, "--out", str(tmp_path / "b")) == 0
    a, b = ((tmp_path / n / "model.safetensors").read_bytes() for n in "ab")
    assert a == b


def test_pressure_keeps_its_digits_and_its_mean(plain: Path) -> None:
    """Normalised and back, a pressure of the surface is that of the file to a tenth of a pascal; a mean that hardly
    varies is held, one that does is not."""
    set_ = opened(plain)
    x = 30 * (set_.zg500 - 5500) / 100
    weight = xr.DataArray(gauss_latitudes(16)[1].numpy() / 64, dims="lat")
    fixed = 98000 + 8000 * np.sin(np.deg2rad(set_.lat)) ** 2 + x - (x * weight).sum(("lat", "lon"))
    words = {"standard_name": "surface_air_pressure", "units": "Pa"}
    for moving, holds in ((0, ("ps",)), (20, ())):
        season = moving * np.sin(np.arange(DAYS) / 58)
        ps = (fixed + xr.DataArray(season, dims="time")).transpose("time", "lat", "lon").assign_attrs(words)
        record = Record([Fields(ps.to_dataset(name="ps"), "made")], rows=8)
        states = read_states(record)
        norm = Normalisation.fit(states, 1, gauss_latitudes(8)[1])
        assert (norm.restore(norm.normalise(states)) - states).abs().max() < 0.1
        assert states.dtype == torch.float32
        assert held(record, states, norm) == holds
        half = Normalisation((norm.mean / norm.std).half().float() * norm.std, norm.std, norm.change)
        torch.testing.assert_close(half.mean, norm.mean, rtol=0, atol=0)  # as the bundle has it


def test_constants_and_vectors(plain: Path, tmp_path: Path) -> None:
    """Orography as altitude, or as geopotential of another file, and land in per cent: the same."""
    set_ = opened(plain)
    height = (set_.zg500[0] - 5000).drop_vars("time")
    land = (set_.ta850[0] - 280).drop_vars("time") / 40 + 0.5
    own = set_.assign(
        height=height.assign_attrs(standard_name="surface_altitude", units="m"),
        lsm=land.expand_dims(time=set_.time).assign_attrs(units="1", standard_name="land_binary_mask"),
        u=set_.ta850.assign_attrs(standard_name="eastward_wind"),
        v10=set_.ta850.assign_attrs(standard_name=""),
    )
    other = xr.Dataset(
        {
            "z": (9.80665 * height).assign_attrs(standard_name="surface_geopotential", units="m2 s-2"),
            "sftlf": (100 * land).assign_attrs(units="%", standard_name=""),
        }
    )
    a = Record([Fields(own, "own")])
    b = Record([Fields(set_, "bare")], static=Fields(other, "other"))
    assert a.names == ("zg500", "ta850", "u", "v10")
    assert a.vectors == ("u", "v10")
    assert a.lacking == b.lacking == ""
    np.testing.assert_allclose(a.constants, b.constants, atol=1e-5)
    np.testing.assert_allclose(a.constants[0], height.values / 3000, atol=1e-5)
    own.to_netcdf(tmp_path / "own.nc")
    words = ["--file", str(tmp_path / "own.nc"), "--variables", "u", "-o", str(tmp_path / "u.zarr")]
    assert main(["data", "weather/atmosphere", *words]) == 0
    again = Record([open_fields(tmp_path / "u.zarr")])
    np.testing.assert_allclose(again.constants, a.constants, atol=1e-5)
    np.testing.assert_array_equal(again.read(slice(3, 5))[:, 0], own.u[3:5].astype(np.float32))


def test_what_does_not_fit_is_said_in_a_line(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_ = opened(plain).isel(time=slice(0, 60)).load()
    holes = set_.copy(deep=True)
    holes["ta850"][7, 2, 3] = np.nan
    region = set_.isel(lon=slice(0, 8))
    coarse = set_.isel(lat=slice(0, None, 3))
    members = set_.expand_dims(realization=[0, 1])
    noleap = set_.convert_calendar("noleap").drop_vars("ta850").rename(zg500="z")
    short = set_.isel(time=slice(0, 20))
    flat = set_.assign(ta850=0 * set_.ta850 + set_.ta850[0])
    files = {"holes": holes, "region": region, "members": members, "noleap": noleap, "short": short}
    files |= {"sixty": set_, "flat": flat, "coarse": coarse}
    for name, one in files.items():
        one.to_netcdf(tmp_path / f"{name}.nc")

    def of(*names: str) -> list[str]:
        return ["--data", *(str(tmp_path / f"{n}.nc") for n in names)]

    sixty = of("sixty")
    cases = [
        (
            of("holes"),
            "expected ta850 everywhere, given missing values at 2001-01-08 00:00:00 in holes.nc: fill them",
        ),
        (of("region"), "expected a grid of the whole sphere, given a part of it in region.nc"),
        (of("members"), "expected one state a time, given 2 members in members.nc"),
        (
            of("sixty", "noleap"),
            "expected one calendar, given standard in sixty.nc and noleap in noleap.nc: convert one",
        ),
        (
            of("short"),
            "expected 30 or more steps of 24 hours with the state before to train on, given 16 in 18 times",
        ),
        (of("flat"), "expected fields that vary, given ta850 of flat.nc, which is the same at all times"),
        (
            [*sixty, "--hours", "36"],
            "expected --hours that the record's interval of 24 hours divides, given 36",
        ),
        (
            [*sixty, "--hours", "6"],
            "expected --hours that the record's interval of 24 hours divides, given 6",
        ),
        (
            [*sixty, "--rows", "32"],
            "expected --rows as a multiple of 8 up to 16, which the grid of sixty.nc resolves",
        ),
        (
            [*sixty, "--rows", "12"],
            "expected --rows as a multiple of 8 up to 16, which the grid of sixty.nc resolves",
        ),
        (
            [*sixty, "--variables", "hus"],
            "expected --variables among zg500, ta850, which the files have by time, given",
        ),
        (
            [*sixty, "--years", "1990-1995"],
            "expected --years within 2001 to 2001, the years of sixty.nc, given 1990-1995",
        ),
        (
            [*sixty, "--years", "2001-2001", "--choose", "2001-2002"],
            "expected --choose apart from --years, given 2001-2002",
        ),
        (
            [*sixty, "--loss", "diffusion", "--leads", "2"],
            "expected --leads 1 with --loss diffusion, given 2",
        ),
        ([*sixty, "--leads", "0"], "expected --leads of at least 1, given 0"),
        ([*sixty, "--leads", "40"], "expected 30 or more steps of 24 hours"),
        ([*sixty, "--loss", "mse"], "expected --loss crps or diffusion, given 'mse'"),
        ([*sixty, "--static", str(tmp_path / "none.nc")], "which does not exist: check the path"),
        ([], "expected --data with fields by time of the whole sphere, given none"),
    ]
    for words, line in cases:
        assert train(*words, "--out", str(tmp_path / "my")) == 2, line
        said = [s for s in capsys.readouterr().err.splitlines() if s.startswith("perrin: expected")]
        assert len(said) == 1
        assert line in said[0]
        assert not (tmp_path / "my" / "model.safetensors").exists()
    assert main(["train", "weather/sst", *of("sixty", "short"), "--out", str(tmp_path / "s")]) == 2
    assert "expected one file for --data of weather/sst, given 2: join them" in capsys.readouterr().err
    words = ["--file", str(tmp_path / "sixty.nc"), str(tmp_path / "short.nc"), "-o", str(tmp_path / "s.nc")]
    assert main(["data", "weather/sst", *words]) == 2
    assert "expected one --file for weather/sst, given 2: join them" in capsys.readouterr().err

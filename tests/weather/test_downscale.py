"""Downscaling: conservation, exact tiles, closed forms, the files that it writes, and what it refuses."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from statistics import NormalDist

import cftime
import numpy as np
import pytest
import torch
import xarray as xr
from test_cf import complaints

from perrin import load
from perrin.cli import main
from perrin.core import sample_seeds
from perrin.modalities.weather.downscale_model import DownscaleModel, Downscaling, inside, parse_spans
from perrin.modalities.weather.downscale_train import read_record
from perrin.modalities.weather.downscaling import (
    DownscaleConfig,
    ResidualNetwork,
    Scales,
    block_mean,
    cells_of,
    conserve,
    fine_of,
    fit_regression,
    interpolate,
    regress,
)
from perrin.modalities.weather.fields import Fields, open_fields
from perrin.modalities.weather.grid import cell_areas, coarsen
from perrin.modalities.weather.radar import albers_inverse, read_radar
from perrin.modalities.weather.showers import gaussian_fields, showers
from perrin.nets.local_unet import LocalUNet, LocalUNetConfig, by_tiles, tiled_work


def shaken(config: LocalUNetConfig) -> LocalUNet:
    """A network with weights of which none is zero."""
    torch.manual_seed(0)
    network = LocalUNet(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(
                0.2 * torch.randn(p.shape, generator=generator) / math.sqrt(p[0].numel() if p.ndim > 1 else 1)
            )
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize(("levels", "blocks"), [(1, 1), (2, 2), (3, 1)])
def test_network_sees_as_far_as_it_says(levels: int, blocks: int) -> None:
    config = LocalUNetConfig(inputs=1, outputs=1, width=4, levels=levels, blocks=blocks)
    network = shaken(config)
    size = 2 * config.halo + 16
    for at in (size // 2, size // 2 + 1, size // 2 + config.stride - 1):
        x = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(1), requires_grad=True)
        network(x, torch.zeros(1))[0, 0, at, at].backward()
        seen = x.grad[0, 0].abs().sum(0).nonzero()
        assert int((seen - at).abs().max()) <= config.halo
        assert int((seen - at).abs().max()) > config.halo / 3  # and the bound is no idle one


@pytest.mark.parametrize("circle", [False, True])
def test_tiles_leave_no_seams(circle: bool) -> None:
    """The map is the same whatever the tiles: no blending is needed, for the margin is as wide as the network sees."""
    config = LocalUNetConfig(inputs=2, outputs=1, width=8, levels=3)
    network = shaken(config)
    x = torch.randn(1, 2, 68, 120, generator=torch.Generator().manual_seed(2))

    def found(size: int, x: torch.Tensor = x) -> torch.Tensor:
        run = lambda piece: network(piece, torch.zeros(1))  # noqa: E731
        return by_tiles(run, x, size=size, halo=config.halo, stride=config.stride, circle=circle)

    whole = found(128)
    wanted = torch.zeros(68, 120, dtype=torch.bool)
    wanted[40, 50] = True  # the only tile that is made
    only = by_tiles(
        lambda piece: network(piece, torch.zeros(1)),
        x,
        size=16,
        halo=config.halo,
        stride=4,
        circle=circle,
        where=wanted,
    )
    torch.testing.assert_close(only[..., 32:48, 48:64], whole[..., 32:48, 48:64], rtol=0, atol=1e-5)
    assert int((only != 0).sum()) == 16 * 16
    assert whole.std() > 0.03
    for size in (16, 36, 64):
        torch.testing.assert_close(found(size), whole, rtol=0, atol=1e-5)
    if circle:  # and there is no seam where longitude begins
        torch.testing.assert_close(found(64, x.roll(20, -1)), whole.roll(20, -1), rtol=0, atol=1e-5)
    else:
        torch.testing.assert_close(network(x, torch.zeros(1)), whole, rtol=0, atol=1e-5)


def fields(
    rows: int = 16, columns: int = 24, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, list[np.ndarray]]:
    """A fine field with land, areas of its cells and their edges."""
    y = torch.randn(2, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y[:, :4, :4] = torch.nan  # a whole coarse cell
    y[:, 9, 10:13] = torch.nan
    edges = [np.linspace(-40, 40, rows + 1), np.linspace(30, 150, columns + 1)]
    return y, torch.from_numpy(cell_areas(*edges)), edges


def test_block_means_are_those_of_conservative_remapping() -> None:
    y, area, edges = fields()
    found = block_mean(y, area, 4, whole=False)
    expected = coarsen(y.numpy(), *edges, *(e[::4] for e in edges), least=1e-6)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    whole = block_mean(y, area, 4, whole=True)
    assert int(whole.isnan().sum()) == int(found.isnan().sum()) + 2 * 2


@pytest.mark.parametrize("amounts", [False, True])
def test_coarse_means_are_conserved(amounts: bool) -> None:
    y, area, _ = fields()
    c = torch.rand(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    if amounts:
        y, c[:, 1, 1] = y.clamp(min=0), 0
        y[:, 8:12, 0:4] = 0  # an amount where the guess has none
    found = conserve(y, c, area, 4, amounts=amounts)
    mean = block_mean(found, area, 4, whole=False)
    known = mean.isfinite()
    assert known.float().mean() > 0.9
    torch.testing.assert_close(mean[known], c[known], rtol=1e-12, atol=1e-12)
    assert torch.equal(found.isnan(), y.isnan())
    torch.testing.assert_close(conserve(found, c, area, 4, amounts=amounts), found, equal_nan=True)
    if amounts:
        assert found.nan_to_num(0).min() == 0
        assert (found[:, 4:8, 4:8] == 0).all()
        torch.testing.assert_close(found[:, 8, 0], c[:, 2, 0])


def test_interpolation_is_linear_and_goes_around() -> None:
    line = torch.arange(8, dtype=torch.float64).expand(5, 8)
    fine = interpolate(line[None], 4, circle=False)[0]
    inner = (torch.arange(32) + 0.5) / 4 - 0.5
    torch.testing.assert_close(fine[7, 2:-2], inner[2:-2].double())
    c = torch.randn(1, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    around = interpolate(c, 4, circle=True)
    torch.testing.assert_close(interpolate(c.roll(3, -1), 4, circle=True), around.roll(12, -1))
    c[0, 2, 3] = torch.nan  # its neighbours are interpolated from the others
    torch.testing.assert_close(
        interpolate(torch.ones_like(c) * (c / c), 4, circle=True).nan_to_num(1), torch.ones_like(around)
    )


def test_regression_finds_its_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(200, 3, 5, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 5, 9, 4, dtype=torch.float64, generator=generator)
    y = regress(c, weight, 2, circle=True)
    assert torch.equal(fine_of(cells_of(y, 2), 2), y)
    found = fit_regression(c, y, 2, circle=True)
    torch.testing.assert_close(regress(c, found, 2, circle=True), y, rtol=0, atol=0.02)


def bare(amounts: bool = False) -> DownscaleModel:
    """A model before training: its residual is normal with the variance of `Scales.residual`, exactly."""
    config = DownscaleConfig(fields=("x",), amounts=amounts, cell=1.0, width=4, dropout=0)
    return DownscaleModel(
        config,
        LocalUNet(config.network(residual=False)).eval(),
        ResidualNetwork(config.network(residual=True)).eval(),
        Scales(
            mean=torch.zeros(1),
            std=torch.ones(1),
            detail=torch.full((1, 1, 1), 2.0),
            residual=torch.tensor([0.5]),
        ),
        {"x": {"units": "1"}},
        steps=30,
    )


def test_members_have_the_closed_form_s_mean_and_variance() -> None:
    """With a normal residual of deviation 2 × 0.5, and its mean over f² cells taken off: 1 − 1/f² of its variance."""
    grid = Downscaling(bare(), np.arange(-8, 9, 4.0), np.arange(10, 35, 4.0), tile=8)
    c = torch.randn(1, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = grid.draw(c, 0, sample_seeds(0, range(64)))[:, 0]
    expected = grid.mean(c, 0)[0]
    assert float((x.mean(0) - expected).abs().mean()) < 1.5 / 8
    variance = float(((x - expected) ** 2).mean())
    assert variance == pytest.approx(1 - 1 / 16, rel=0.03)
    torch.testing.assert_close(
        block_mean(x, grid.area, 4, whole=True), c.expand(64, -1, -1), rtol=0, atol=1e-10
    )
    step = (x[..., 8, :] - x[..., 7, :]).abs().mean()  # over the edge of tiles, and of coarse cells alone
    other = (x[..., 12, :] - x[..., 11, :]).abs().mean()
    assert float(step / other) == pytest.approx(1, abs=0.1)


def test_amounts_are_never_negative_and_stay_dry() -> None:
    grid = Downscaling(bare(amounts=True), np.arange(-8, 9, 4.0), np.arange(10, 35, 4.0))
    c = torch.rand(1, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    c[0, 2, 2:4] = 0
    c[0, 0, 0] = torch.nan
    dry = grid.draw(torch.zeros_like(c), 0, sample_seeds(0, range(2)))
    assert dry.shape == (2, 1, 20, 28)
    assert (dry == 0).all()
    x = grid.draw(c, 0, sample_seeds(0, range(3)))
    assert float(x.nan_to_num(0).min()) == 0
    assert (x[:, :, 8:12, 8:16] == 0).all()
    assert x[:, :, :4, :4].isnan().all()
    assert int(x.isnan().sum()) == 3 * 16
    mean = block_mean(x, grid.area, 4, whole=False)
    torch.testing.assert_close(mean, c.expand(3, -1, -1, -1), rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.fixture(scope="session")
def fine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three years of months on a globe of 16 × 32 cells, with land."""
    rng = np.random.default_rng(0)
    times = [cftime.datetime(2000 + k // 12, k % 12 + 1, 15) for k in range(36)]
    latitude, longitude = -90 + 11.25 * (np.arange(16) + 0.5), 11.25 * np.arange(32)
    season = np.cos(2 * np.pi * np.arange(36) / 12)[:, None, None]
    x = 15 + 5 * np.cos(np.deg2rad(latitude))[:, None] + season + rng.standard_normal((36, 16, 32))
    x[:, 3:9, 5:14] = np.nan
    words = {"standard_name": "sea_surface_temperature", "units": "degC", "cell_methods": "time: mean"}
    path = tmp_path_factory.mktemp("fine") / "fine.nc"
    xr.Dataset(
        {"sst": (("time", "lat", "lon"), x, words)},
        {
            "time": times,
            "lat": ("lat", latitude, {"units": "degrees_north"}),
            "lon": ("lon", longitude, {"units": "degrees_east"}),
        },
    ).to_netcdf(path)
    return path


@pytest.fixture(scope="session")
def made(fine_file: Path) -> Path:
    """A model of it, trained for a moment by the command line, and its coarse means."""
    folder = fine_file.parent
    words = [
        "--steps",
        "6",
        "--batch",
        "4",
        "--width",
        "8",
        "--patch",
        "8",
        "--threads",
        "1",
        "--hold-out",
        "2002-11/2002-12",
    ]
    assert (
        main(["train", "weather/downscale", "--data", str(fine_file), "--out", str(folder / "model"), *words])
        == 0
    )
    assert main(["data", "weather/coarse", "--file", str(fine_file), "-o", str(folder / "coarse.nc")]) == 0
    coarse = xr.open_dataset(folder / "coarse.nc", decode_times=False)
    coarse.isel(time=slice(34, 36)).to_netcdf(folder / "two.nc")
    return folder


def downscale(folder: Path, name: str, out: Path, *words: str) -> int:
    return main(
        ["downscale", str(folder / "model"), str(folder / name), "-o", str(out), "--workers", "1", *words]
    )


def test_files_conserve_and_are_clean(made: Path, tmp_path: Path) -> None:
    assert downscale(made, "two.nc", tmp_path / "a.nc", "--members", "2") == 0
    assert downscale(made, "two.nc", tmp_path / "b.zarr", "--members", "3", "--tile", "12") == 0
    assert complaints(tmp_path / "a.nc") == []
    a, b = open_fields(tmp_path / "a.nc"), open_fields(tmp_path / "b.zarr")
    truth, coarse = open_fields(made / "fine.nc"), open_fields(made / "two.nc")
    assert a.dataset["sst"].dims[0] == "realization"
    assert a.units("sst") == "degC"
    np.testing.assert_allclose(a.latitude, truth.latitude)
    np.testing.assert_allclose(a.longitude, truth.longitude)
    assert [t.month for t in a.references] == [11, 12]
    land = np.isnan(truth.read("sst", time=0))
    for i in range(2):
        x, y = a.forecast("sst", i, 0), b.forecast("sst", i, 0)
        assert len(x) == 2
        assert len(y) == 3
        np.testing.assert_allclose(x, y[:2], atol=3e-5)  # neither the number of members nor the tiles matter
        assert np.abs(x[0] - x[1])[~land].mean() > 0.1
        assert (np.isnan(x) == land).all()
        mean = block_mean(torch.from_numpy(x), torch.from_numpy(a.area), 4, whole=False).numpy()
        expected = coarse.read("sst", time=i)
        np.testing.assert_allclose(mean, np.broadcast_to(expected, mean.shape), rtol=1e-6)
        assert np.isnan(expected).any()  # land as large as a coarse cell
    assert main(["verify", str(tmp_path / "a.nc"), str(made / "fine.nc")]) == 0


def test_members_of_a_part_and_of_forecasts(made: Path, tmp_path: Path) -> None:
    """A part of the region in kelvin; an ensemble of forecasts, whose member k is downscaled to member k."""
    two = xr.open_dataset(made / "two.nc", decode_times=False)
    part = two[["sst"]].isel(latitude=slice(1, 4), longitude=slice(2, 6)).copy()
    part["sst"] = (part.sst + 273.15).assign_attrs(two.sst.attrs | {"units": "K"})
    part.to_netcdf(tmp_path / "part.nc")
    assert (
        main(
            [
                "downscale",
                str(made / "model"),
                str(tmp_path / "part.nc"),
                "-o",
                str(tmp_path / "p.nc"),
                "--members",
                "1",
            ]
        )
        == 0
    )
    x = open_fields(tmp_path / "p.nc").forecast("sst", 0, 0)[0]
    assert x.shape == (12, 16)
    assert np.nanmax(x) < 60
    sst = np.stack([two.sst.values, two.sst.values + 1])[:, None]  # [member, start, lead, ...]
    ensemble = xr.Dataset(
        {
            "sst": (
                ("realization", "forecast_reference_time", "forecast_period", "latitude", "longitude"),
                sst,
                two.sst.attrs,
            )
        },
        {
            "realization": [0, 1],
            "forecast_reference_time": [cftime.datetime(2002, 10, 15)],
            "forecast_period": (
                "forecast_period",
                [1, 2],
                {"units": "months", "standard_name": "forecast_period"},
            ),
            "latitude": two.latitude,
            "longitude": two.longitude,
        },
    )
    ensemble.to_netcdf(tmp_path / "ens.nc")
    out = str(tmp_path / "e.nc")
    assert (
        main(["downscale", str(made / "model"), str(tmp_path / "ens.nc"), "-o", out, "--members", "3"]) == 0
    )
    found = open_fields(tmp_path / "e.nc")
    assert [str(lead) for lead in found.leads] == ["1 mon", "2 mon"]
    for lead in range(2):
        mean = block_mean(
            torch.from_numpy(found.forecast("sst", 0, lead)), torch.from_numpy(found.area), 4, whole=False
        )
        for k in range(3):
            np.testing.assert_allclose(mean[k], sst[k % 2, 0, lead], rtol=1e-6)


def test_bundles_are_read_as_written(made: Path) -> None:
    model = load(made / "model")
    assert isinstance(model, DownscaleModel)
    assert model.place is not None
    record = read_record(open_fields(made / "fine.nc"), 4)
    used = ~inside(record.times, parse_spans(["2002-11/2002-12"]))
    assert used.sum() == 34
    january = [v for v, t, u in zip(record.values, record.times, used) if u and t.month == 1]
    np.testing.assert_allclose(model.place.climatology[0].numpy(), np.mean(january, axis=0), atol=1e-3)


def test_what_is_left_out_or_slow_is_said(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """16 × 32 cells by 5; tiles of 4, each looked at with 48 around it."""
    words = ["--file", str(made / "fine.nc"), "--factor", "5", "-o", str(tmp_path / "five.nc")]
    assert main(["data", "weather/coarse", *words]) == 0
    said = capsys.readouterr()
    assert said.err == (
        "perrin: warning: 1 row and 2 columns at the ends left out, which make up no whole cells of 5 x 5\n"
    )
    assert "36 times, 3 x 6 cells" in said.out
    assert downscale(made, "two.nc", tmp_path / "a.nc", "--members", "1", "--tile", "4") == 0
    halo = LocalUNetConfig(inputs=1, outputs=1, width=4).halo
    times = round(16 / 4 * (4 + 2 * halo) / 4)  # every row is seen by each of 4 rows of tiles
    line = f"tiles of 4 cells are looked at with a margin of {halo} on every side: {times} times the work"
    assert line in capsys.readouterr().err
    assert downscale(made, "two.nc", tmp_path / "b.nc", "--members", "1", "--tile", "64") == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "circle", "cells"),
    [(128, False, 64 * 64), (32, False, 128 * 128), (16, True, (56 + 64 + 64 + 56) * 4 * 96)],
)
def test_the_work_of_tiles(size: int, circle: bool, cells: int) -> None:
    """On 64 × 64 cells with a margin of 40: each tile of 32 sees all of them, one of 16 by 96 around a circle."""
    assert tiled_work(64, 64, size, 40, circle=circle) == cells / 64**2


REFUSED = {
    "downscale weather/sst two.nc -o a.nc": "a bundle that 'perrin downscale' works with",
    "forecast model -o a.nc": "works with (weather/speedy, weather/speedy-diffusion, weather/sst)",
    "downscale model none.nc -o a.nc": "given none.nc, which does not exist",
    "downscale model two.nc -o a.txt": "ends in .nc",
    "downscale model two.nc -o a.nc --tile 0": "expected --tile of at least 1",
    "downscale model two.nc -o a.nc --factor 100": "expected --factor 4, that of model, given 100: leave it out, or train",
    "downscale model fine.nc -o a.nc": "expected coarse cells made of the model's cells of 11.25 degrees",
    "downscale model two.nc -o a.nc --times 2001-01/2001-02": "expected --times within 2002-11",
    "downscale model two.nc -o a.nc --times 2001": "expected --times such as",
    "downscale model other.nc -o a.nc": "expected sst (sea_surface_temperature)",
    "downscale model uneven.nc -o a.nc": "in even steps",
    "train weather/downscale --data fine.nc --out b --hold-out 2001": "expected --hold-out such as 1990-01/2009-12",
    "train weather/downscale --data fine.nc --out b --hold-out 2000-01/2002-12": "expected times to train on, given none",
    "train weather/downscale --data fine.nc --out b --hold-out 2000-01/2002-06": "--anywhere",
    "train weather/downscale --data fine.nc --out b --variables ta": "given 'ta'",
    "train weather/downscale --data negative.nc --out b --amounts --patch 8": "expected amounts, given -",
    "train weather/downscale --data fine.nc --out b --patch 6": "multiple of 4",
    "train weather/downscale --out b": "expected --data",
    "data weather/coarse -o a.nc": "expected --file",
    "data weather/coarse --file forecast.nc --factor 2 -o a.nc": "by start and period in forecast.nc: choose a file",
    "data weather/rain --file two.nc -o a.nc": "expected a zip or a folder of NetCDF files",
}


@pytest.mark.parametrize("command", REFUSED)
def test_refusals_are_one_line(
    command: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    two = xr.open_dataset("two.nc", decode_times=False)
    if "other" in command:
        two.rename(sst="ta").assign(
            ta=lambda d: d["ta"].assign_attrs(standard_name="air_temperature")
        ).to_netcdf("other.nc")
    if "forecast.nc" in command:
        renamed = two[["sst"]].rename(time="forecast_reference_time")
        renamed["forecast_reference_time"].attrs["standard_name"] = "forecast_reference_time"
        renamed.assign_coords(forecast_period=1).expand_dims("forecast_period").to_netcdf("forecast.nc")
    if "uneven" in command:
        two[["sst"]].isel(latitude=[0, 2, 3]).to_netcdf("uneven.nc")
    if "negative" in command:
        (xr.open_dataset("fine.nc", decode_times=False) - 20).to_netcdf("negative.nc")
    assert main(command.split()) == 2
    line = capsys.readouterr().err.strip()
    assert REFUSED[command] in line
    assert "\n" not in line
    assert not Path("a.nc").exists()


def test_made_up_showers_are_the_random_field_that_they_say() -> None:
    """Variance, spectrum, wind and renewal in closed form; the share of wet cells; the mean amount, of a lognormal tail."""
    g = gaussian_fields(40, 128, beta=2.5, rho=0.9, wind=(2, 5), seed=1)
    other = gaussian_fields(40, 128, beta=2.5, rho=0.0, seed=2)
    assert float((other**2).mean()) == pytest.approx(1, abs=0.05)
    k = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None])
    power = (np.abs(np.fft.fft2(other)) ** 2).mean(0)
    inside = (k > 0.02) & (k < 0.4)
    slope = np.polyfit(np.log(k[inside]), np.log(power[inside]), 1)[0]
    assert slope == pytest.approx(-2.5, abs=0.03)
    after = np.roll(g[:-1], (2, 5), (1, 2))
    small = [np.fft.fft2(x)[..., inside] for x in (after, g[1:])]
    kept = (small[0] * small[1].conj()).sum().real / (np.abs(small[0]) ** 2).sum()
    assert kept == pytest.approx(0.9, abs=0.02)
    x = showers(60, 64, wet=0.3, amount=0.1, growth=1.0, seed=3).precipitation.values
    q = NormalDist().inv_cdf(0.7)
    tail = math.exp(0.5 - q) * (1 - NormalDist().cdf(q - 1)) - 0.3
    assert float((x > 0).mean()) == pytest.approx(0.3, abs=0.12)  # a part of a torus with long waves
    assert float(x.mean()) == pytest.approx(0.1 * tail, rel=0.5)
    assert np.array_equal(showers().precipitation, showers().precipitation)


def test_the_page_s_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any data; coarse means are kept."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "weather" / "downscale.md").read_text()
    block = next(b for b in page.split("```") if "weather/rain --sample" in b)
    for line in block.splitlines()[1:]:
        assert main(line.split()[1:]) == 0
    fine, coarse, rain = (open_fields(f"{n}.nc") for n in ("fine", "coarse", "rain"))
    x = torch.from_numpy(fine.forecast("precipitation", 1, 0))
    assert x.shape == (5, 64, 64)
    mean = block_mean(x, torch.from_numpy(fine.area), 4, whole=True).numpy()
    expected = coarse.read("precipitation", time=1)
    np.testing.assert_allclose(mean, np.broadcast_to(expected, mean.shape), rtol=1e-5)
    assert complaints(Path("rain.nc")) == complaints(Path("coarse.nc")) == []
    assert 0.1 < float((rain.read("precipitation") > 0).mean()) < 0.6


def test_albers_keeps_areas() -> None:
    """The origin is where it is, and a square kilometre covers one on the ellipsoid: R² Δ(authalic sine) Δλ."""
    parallels, origin = (-26.2, -29.3), (-27.7178, 153.24)
    lat, lon = albers_inverse(np.zeros(1), np.zeros(1), parallels, origin)
    np.testing.assert_allclose([lat[0], lon[0]], origin, atol=1e-9)
    h = 500.0
    for x, y in ((0, 0), (120e3, 90e3), (-100e3, 60e3)):
        corners = np.array([(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)])
        lat, lon = (np.deg2rad(v) for v in albers_inverse(*corners.T, parallels, origin))
        middle = lat.mean()
        e2, a = 0.00669438, 6378137.0
        meridian = a * (1 - e2) / (1 - e2 * np.sin(middle) ** 2) ** 1.5
        normal = a / np.sqrt(1 - e2 * np.sin(middle) ** 2)
        u, v = normal * np.cos(middle) * (lon - lon.mean()), meridian * (lat - lat.mean())
        area = 0.5 * abs(np.dot(u, np.roll(v, -1)) - np.dot(v, np.roll(u, -1)))
        assert area == pytest.approx(1e6, rel=1e-4)


def test_radar_files_are_read(tmp_path: Path) -> None:
    """Rain that rises to the north, on the grid of a radar; files of two stations need a choice."""
    axis = np.linspace(31.75, -31.75, 128)
    with zipfile.ZipFile(tmp_path / "radar.zip", "w") as archive:
        for name, station, minute in (("a", "66", 0), ("b", "66", 10), ("c", "2", 0)):
            proj = xr.DataArray(
                np.int8(0),
                attrs={
                    "standard_parallel": [-26.2, -29.3],
                    "longitude_of_central_meridian": 153.24,
                    "latitude_of_projection_origin": -27.7178,
                },
            )
            rain = np.broadcast_to(axis[:, None] + 40 + minute, (128, 128)).copy()
            rain[0, 0] = -0.1
            xr.Dataset(
                {
                    "precipitation": (("y", "x"), rain, {"units": "kg m-2"}),
                    "proj": proj,
                    "valid_time": ((), 1604102400 + 60 * minute, {"units": "seconds since 1970-01-01"}),
                },
                {"y": ("y", axis, {"units": "km"}), "x": ("x", axis[::-1], {"units": "km"})},
                {"station_id": station, "station_name": f"of {station}"},
            ).to_netcdf(tmp_path / f"{name}.nc")
            archive.write(tmp_path / f"{name}.nc", f"{name}.nc")
    found = read_radar(tmp_path / "radar.zip", station="66", cell=0.02)
    assert found.precipitation.shape[0] == 2
    assert not np.isnan(found.precipitation.values).any()
    expected = 40 + (found.latitude.values + 27.7178) * 110.8  # km in a degree
    np.testing.assert_allclose(found.precipitation.values[0].mean(1), expected, atol=0.6)
    np.testing.assert_allclose(found.precipitation.values[1] - found.precipitation.values[0], 10, atol=1e-4)
    with pytest.raises(Exception, match=r"stations 66 \(of 66\), 2 \(of 2\)"):
        read_radar(tmp_path / "radar.zip")


def test_dimensions_of_any_name_and_order(made: Path) -> None:
    """Descending latitudes and ±180° longitudes are the same record."""
    fine = xr.open_dataset(made / "fine.nc", decode_times=False)
    turned = fine.assign_coords(lon=("lon", (fine.lon.values + 180) % 360 - 180, fine.lon.attrs))
    turned = turned.isel(lat=slice(None, None, -1)).rename(lat="y")
    turned["y"].attrs = {"standard_name": "latitude", "units": "degrees_north"}
    a, b = (read_record(Fields(xr.decode_cf(d)), 4) for d in (fine, turned))
    np.testing.assert_array_equal(a.values, b.values)

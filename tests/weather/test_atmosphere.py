"""A day-by-day model: noise, symmetry of the network, insolation, and rollouts from files."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from killed import assert_same_bytes, kill_when
from test_cf import complaints

from perrin import load
from perrin.bundle import write_bundle
from perrin.cli import main
from perrin.core import CounterNoise, Dense, NetworkDenoiser, sample_seeds
from perrin.errors import PerrinError
from perrin.modalities.weather import MODALITY
from perrin.modalities.weather.atmosphere import (
    FIELD,
    AtmosphereConfig,
    AtmosphereTask,
    Normalisation,
    SphereGaussian,
    build_denoiser,
    extra_channels,
    harmonics,
)
from perrin.modalities.weather.atmosphere_model import AtmosphereModel
from perrin.modalities.weather.fields import open_fields
from perrin.modalities.weather.infill import correlation
from perrin.nets.sphere import gauss_latitudes, power
from perrin.nets.sphere_unet import SphereUNet, SphereUNetConfig

CONFIG = AtmosphereConfig(
    fields=("z", "u", "v"), vectors=("u", "v"), rows=8, columns=16, width=16, levels=2, blocks=1, dropout=0.0
)


def test_noise_is_isotropic() -> None:
    """Variance one everywhere, the poles' rows too; covariances are a function of the angle alone: the addition theorem."""
    process = SphereGaussian(features=(1, 8, 16), degree=8)
    count = 6000
    x = process.draw(CounterNoise(sample_seeds(0, range(count))), Dense(count), name="x", step=0).flatten(1)
    latitude = gauss_latitudes(8)[0].numpy()
    places = np.repeat(latitude, 16), np.tile(np.arange(16) * 22.5, 8)
    l = np.arange(8)
    truth = correlation((2 * l + 1) / 64, places, places)
    np.testing.assert_allclose((x.T @ x / count).numpy(), truth, atol=0.08)


def test_network_turns_with_the_earth_and_knows_the_poles() -> None:
    config = SphereUNetConfig(inputs=3, outputs=2, vectors=(1, 2), width=16, levels=2, blocks=1)
    torch.manual_seed(0)
    net = SphereUNet(config).double().eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x, level = torch.randn(2, 3, 8, 16).double(), torch.tensor([0.3, -1.0]).double()
    y = net(x, level)
    torch.testing.assert_close(net(x.roll(4, -1), level), y.roll(4, -1))
    # the first convolution sees a constant wind over the pole change its sign: it is no constant field
    one = torch.ones(1, 3, 8, 16).double()
    found = net.enter(
        torch.where(
            net.signs[:, None, None],
            torch.nn.functional.pad(one, (1, 1, 1, 1), value=-1.0),
            torch.nn.functional.pad(one, (1, 1, 1, 1), value=1.0),
        )
    )
    assert found.shape == (1, 16, 8, 16)
    assert net(one, level[:1]).isfinite().all()


def test_untrained_is_exact_for_normal_changes() -> None:
    denoiser = build_denoiser(CONFIG).eval()
    x, t = torch.randn(2, 3, 8, 16), torch.tensor([0.3, 0.8])
    condition = torch.randn(2, 13, 8, 16)
    with torch.no_grad():
        found = denoiser({FIELD: x}, t, condition=condition, layouts={FIELD: Dense(2)})[FIELD]
    alpha = (1 - t)[:, None, None, None]
    torch.testing.assert_close(found, alpha * x / (alpha**2 + (1 - alpha) ** 2))


def test_insolation() -> None:
    """1/π at the equator at the equinox, none in the polar night, and 1/4 in the mean over sphere and year."""
    latitude, weight = gauss_latitudes(32)
    day = torch.arange(0, 365.0, 5)
    light = extra_channels(torch.zeros(2, 32, 4), latitude, day)[:, -1, :, 0].double()
    assert float((light @ weight).mean() / 2) == pytest.approx(0.25, abs=0.003)
    assert float(light[16, 15:17].mean()) == pytest.approx(1 / np.pi, abs=0.005)  # day 80
    assert float(light[0, -1]) == 0  # 1 January at 86°N
    tilt = 0.4091 * np.cos(2 * np.pi * 10 / 365.2425)  # where the sun does not set: sin δ sin φ
    assert float(light[0, 0]) == pytest.approx(
        np.sin(tilt) * np.sin(np.deg2rad(-float(latitude[0]))), rel=1e-4
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model: changes are isotropic noise."""
    torch.manual_seed(0)
    denoiser = build_denoiser(CONFIG).eval().requires_grad_(False)
    norm = Normalisation(
        torch.tensor([5500.0, 3.0, 0.0]), torch.tensor([200.0, 8.0, 6.0]), torch.tensor([0.3, 0.5, 0.6])
    )
    words = {n: {"standard_name": s, "units": u} for n, s, u in [("z", "geopotential_height", "m")]}
    words |= {"u": {"standard_name": "eastward_wind", "units": "m s-1"}}
    words |= {"v": {"standard_name": "northward_wind", "units": "m s-1"}}
    sample = norm.restore(torch.randn(2, 3, 8, 16))
    model = AtmosphereModel(denoiser, CONFIG, norm, torch.zeros(2, 8, 16), words, sample, 40.0, steps=4)
    folder = tmp_path_factory.mktemp("bundle") / "air"
    write_bundle(folder, modality="weather", model=model.to_json(), weights=model.weights(), card="made")
    return folder


def test_rollout(bundle: Path, tmp_path: Path) -> None:
    for members in (2, 3):
        out = str(tmp_path / f"{members}.zarr")
        words = ["--members", str(members), "--days", "3", "-o", out, "--workers", "1", "--device", "cpu"]
        assert main(["forecast", str(bundle), *words]) == 0
    few, many = (open_fields(tmp_path / f"{m}.zarr") for m in (2, 3))
    for part in ("z", "u", "v"):
        np.testing.assert_array_equal(few.read(part), many.read(part)[:2])
    assert [str(lead) for lead in many.leads] == ["1 d", "2 d", "3 d"]
    u = many.read("u")
    step = (u[:, 0, 1:] - u[:, 0, :-1]) / (8 * 0.5)
    assert step.std() == pytest.approx(1, rel=0.3)  # four evaluations a step


def test_killed_in_mid_rollout_and_started_again(bundle: Path, tmp_path: Path) -> None:
    """kill −9 between two segments of a member: the same bytes as of a run in peace."""
    words = [
        str(bundle),
        "--members",
        "4",
        "--days",
        "150",
        "--seed",
        "3",
        "--workers",
        "1",
        "--device",
        "cpu",
        "-o",
    ]
    out = tmp_path / "a.zarr"
    folder = tmp_path / "a.zarr.partial"
    begun = folder / "data.zarr" / "z" / "c" / "1"  # member 1, of whose shards one is there
    kill_when(begun.exists, ["forecast", *words, str(out)])
    done = (folder / "done").read_text().splitlines()
    assert "0 0" in done
    assert "0 2" not in done
    assert not out.exists()
    assert main(["forecast", *words, str(out)]) == 0
    assert main(["forecast", *words, str(tmp_path / "b.zarr")]) == 0
    assert assert_same_bytes(out, tmp_path / "b.zarr") > 3 * 3 * 3  # members, shards, fields


def test_files_on_other_grids(bundle: Path, tmp_path: Path) -> None:
    """States of low degree on a regular grid with poles, −180 to 180 and north to south, are those on the model's own."""
    rng = np.random.default_rng(0)
    coefficients = harmonics(8, 16, 4)(torch.from_numpy(rng.standard_normal((6, 8, 16))))
    fine = torch.arange(-90, 91, 15.0, dtype=torch.float64)
    from perrin.nets.sphere import SphericalHarmonics

    other = SphericalHarmonics(fine, 24, degree=4).inverse(coefficients).numpy()
    own = harmonics(8, 16, 4).inverse(coefficients).numpy()
    times = xr.date_range("2001-03-01", periods=2, freq="D", use_cftime=True, calendar="noleap")
    dims = ("time", "lat", "lon")

    def save(name: str, x: np.ndarray, latitude: np.ndarray, columns: int) -> None:
        data = {n: (dims, x[2 * i : 2 * i + 2]) for i, n in enumerate(("z", "u", "v"))}
        lon = np.arange(columns) * 360 / columns
        set_ = xr.Dataset(data, {"time": times, "lat": latitude, "lon": lon})
        if name == "other":
            set_ = (
                set_.assign_coords(lon=(lon + 180) % 360 - 180).sortby("lon").isel(lat=slice(None, None, -1))
            )
        set_.to_netcdf(tmp_path / f"{name}.nc")

    save("other", other, fine.numpy(), 24)
    save("own", own, gauss_latitudes(8)[0].numpy(), 16)
    for name in ("other", "own"):
        words = ["--file", str(tmp_path / f"{name}.nc"), "--members", "1", "--days", "1", "--device", "cpu"]
        assert main(["forecast", str(bundle), *words, "-o", str(tmp_path / f"{name}.zarr")]) == 0
    a, b = (open_fields(tmp_path / f"{n}.zarr") for n in ("other", "own"))
    np.testing.assert_allclose(a.read("u"), b.read("u"), atol=1e-3)
    assert a.references[0].calendar == "noleap"
    assert main(["forecast", str(bundle), *words, "--start", "2002-01-01", "-o", str(tmp_path / "x.nc")]) == 2
    assert main(["forecast", str(bundle), "--months", "2", "-o", str(tmp_path / "x.nc")]) == 2


def test_members_start_from_their_own_analyses(bundle: Path, tmp_path: Path) -> None:
    """A file of three analyses, 1000 m apart: member k starts from number k mod 3."""
    times = xr.date_range("2001-03-01", periods=2, freq="D", use_cftime=True)
    latitude = gauss_latitudes(8)[0].numpy()
    heights = 5500 + 1000 * np.arange(3)[:, None, None, None] + np.zeros((3, 2, 8, 16))
    dims = ("number", "time", "lat", "lon")
    data = {"z": (dims, heights)} | dict.fromkeys("uv", (dims, 0 * heights))
    xr.Dataset(
        data, {"number": np.arange(3), "time": times, "lat": latitude, "lon": np.arange(16) * 22.5}
    ).to_netcdf(tmp_path / "a.nc")
    out = str(tmp_path / "f.zarr")
    words = ["--file", str(tmp_path / "a.nc"), "--members", "5", "--days", "1", "--device", "cpu", "-o", out]
    assert main(["forecast", str(bundle), *words]) == 0
    found = open_fields(out).read("z")[:, 0, 0].mean((1, 2))
    np.testing.assert_allclose(found, [5500, 6500, 7500, 5500, 6500], atol=150)


def test_groups_of_members_are_those_of_any_number(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where members are made together: the first three of five are the three, and what is done is kept."""
    monkeypatch.setattr(AtmosphereModel, "together", 2)
    for members in (3, 5):
        words = [
            "--members",
            str(members),
            "--days",
            "2",
            "--device",
            "cpu",
            "-o",
            str(tmp_path / f"{members}.zarr"),
        ]
        assert main(["forecast", str(bundle), *words]) == 0
    few, many = (open_fields(tmp_path / f"{m}.zarr").read("u") for m in (3, 5))
    assert np.isfinite(many).all()
    np.testing.assert_array_equal(few, many[:3])
    monkeypatch.setattr(AtmosphereModel, "together", 1)
    words = ["--members", "3", "--days", "2", "--device", "cpu", "-o", str(tmp_path / "alone.zarr")]
    assert main(["forecast", str(bundle), *words]) == 0
    np.testing.assert_allclose(open_fields(tmp_path / "alone.zarr").read("u"), few, atol=1e-3)


@pytest.mark.parametrize("name", ["speedy", "speedy-diffusion"])
def test_the_bundles_that_ship(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """From its sample of a held-out date: far better than persistence on the first two days, with the truth's spectrum."""
    out, truth = str(tmp_path / "e.zarr"), str(tmp_path / "t.nc")
    words = ["--members", "3", "--days", "2", "--workers", "1", "--device", "cpu", "-o", out]
    assert main(["forecast", f"weather/{name}", *words]) == 0
    assert main(["data", "weather/speedy", "--sample", "-o", truth]) == 0
    report = tmp_path / "v.json"
    assert main(["verify", out, truth, "--against", "persistence", "--json", str(report)]) == 0
    assert "zg510 (m): 3 members, fair CRPS" in capsys.readouterr().out
    found = json.loads(report.read_text())["variables"]
    assert len(found) == 7
    for field in ("zg510", "ta835", "ua835"):
        for lead in found[field]["leads"]:
            assert lead["references"]["persistence"]["skill"]["crps"]["value"] > 0.6
            # of one truth: a degree's log power has a standard error near 0.2, the mean of 19 one near 0.05
            power = {k: np.array(v)[1:20] for k, v in lead["spectrum"].items()}
            assert abs(np.log(power["forecast"] / power["truth"]).mean()) < 0.15
    folder = MODALITY.bundle_folder() / name
    assert sum(p.stat().st_size for p in folder.iterdir()) < 15e6


def test_task_pairs_the_right_states() -> None:
    """The target is the change over a stride, and the condition holds the states before it."""
    states = torch.arange(20.0)[:, None, None, None].expand(20, 3, 8, 16).contiguous()
    change = torch.tensor([1.0, 2.0, 4.0])
    task = AtmosphereTask(
        build_denoiser(CONFIG),
        CONFIG,
        states,
        torch.arange(20.0),
        2,
        torch.zeros(2, 8, 16),
        change,
        batch=5,
        seed=0,
    )
    _, batch = task.prepare(0, generator=torch.Generator().manual_seed(0), rank=0, world=1)
    torch.testing.assert_close(batch["x_0"], (2 / change)[:, None, None].expand(5, 3, 8, 16))
    now, before = batch["condition"][:, 0], batch["condition"][:, 3]
    torch.testing.assert_close(now - before, torch.full_like(now, 2.0))
    loss = task.loss(task.denoiser, 0, batch)["loss"]
    assert loss.isfinite()


def test_task_of_several_runs_pairs_states_of_one() -> None:
    """Two runs, ten states each: no pair reaches from one into the other, and every pair of each is drawn."""
    states = (torch.arange(10.0) + torch.tensor([[0.0], [100.0]]))[..., None, None, None]
    states = states.expand(2, 10, 3, 8, 16).contiguous()
    task = AtmosphereTask(
        build_denoiser(CONFIG),
        CONFIG,
        states,
        states[..., 0, 0, 0],
        2,
        torch.zeros(2, 8, 16),
        torch.ones(3),
        batch=12,
        seed=0,
    )
    _, batch = task.prepare(0, generator=torch.Generator().manual_seed(0), rank=0, world=1)
    torch.testing.assert_close(batch["x_0"], torch.full_like(batch["x_0"], 2.0))
    now = sorted(batch["condition"][:, 0, 0, 0].tolist())
    assert now == [2, 3, 4, 5, 6, 7, 102, 103, 104, 105, 106, 107]


def options(*more: str) -> list[str]:
    """Of short rollouts of one member."""
    return ["--members", "1", "--workers", "1", "--device", "cpu", "--seed", "3", *more]


def test_states_have_no_degrees_beyond_the_grid_s(bundle: Path) -> None:
    """Whatever a step starts from, what comes out is its own sum of harmonics of degree below 8."""
    model = load(bundle)
    now = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 8, 16))).float()
    found = model.step(now, now, 40.0, CounterNoise(sample_seeds(0, range(2))))
    transform = harmonics(8, 16, 8)
    assert (now - transform.inverse(transform(now))).abs().max() > 0.5
    torch.testing.assert_close(found, transform.inverse(transform(found)), atol=2e-6, rtol=0)


def test_means_are_those_of_the_steps(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Means over 5 days and over calendar months, from a start on 10 February 2001 (day 40), against every step's."""
    for name, words in {"all": (), "days": ("--every", "5d"), "months": ("--every", "month")}.items():
        out = str(tmp_path / f"{name}.zarr")
        assert main(["forecast", str(bundle), *options("--days", "80", *words), "-o", out]) == 0
    steps, days, months = (open_fields(tmp_path / f"{n}.zarr") for n in ("all", "days", "months"))
    x = steps.read("u")[0, 0]
    np.testing.assert_allclose(days.read("u")[0, 0], x.reshape(16, 5, 8, 16).mean(1), atol=1e-5)
    assert [lead.seconds / 3600 for lead in days.leads[:2]] == [60, 180]
    assert days.dataset["forecast_period_bounds"].values[1].tolist() == [120, 240]
    assert days.dataset["u"].attrs["cell_methods"] == "forecast_period: mean (interval: 24 hours)"
    # February's first ten days are over, so that the first whole month is March: steps 20 … 50 are of 2 March to 1 April
    edges = np.cumsum([19, 31, 30])
    truth = [x[a:b].mean(0) for a, b in pairwise(edges)]
    np.testing.assert_allclose(months.read("u")[0, 0], truth, atol=1e-5)
    assert [lead.after(months.references[0]).month for lead in months.leads] == [3, 4]
    words = ["--days", "80", "--every", "month", "-o", str(tmp_path / "months.nc")]
    capsys.readouterr()
    assert main(["forecast", str(bundle), *options(*words)]) == 0
    assert "80 days as 2 means of month (19 days in no whole one left out), in" in capsys.readouterr().out
    assert main(["forecast", str(bundle), "--file", str(tmp_path / "months.nc"), "-o", "again.nc"]) == 2
    line = "given a forecast in months.nc: start from what it started from, with more --days\n"
    assert capsys.readouterr().err.endswith(line)
    np.testing.assert_array_equal(open_fields(tmp_path / "months.nc").read("u"), months.read("u"))
    assert complaints(tmp_path / "months.nc") == []


def test_means_that_cannot_be_are_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.nc")
    for words in (
        ["--every", "5"],
        ["--every", "0d"],
        ["--every", "20d"],
        ["--every", "month"],
        ["--years", "1"],
        ["--years", "0"],
        ["--every", "4d"],
    ):
        assert main(["forecast", str(bundle), *options("--days", "15"), *words, "-o", out]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 7
    assert said.endswith(
        "expected --days that means of 4 days make up, given 15 and --every 4d: say 12 or 16\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("every", [(), ("--every", "month")])
def test_a_member_goes_on_from_its_last_segment(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: tuple[str, ...]
) -> None:
    """Stopped in the third segment: no step of the first two is made again, and the bytes are those of peace."""
    words = [str(bundle), *options("--days", "172", *every)]
    assert main(["forecast", *words, "-o", str(tmp_path / "b.zarr")]) == 0
    step, made = AtmosphereModel.step, []

    def counted(self: AtmosphereModel, *a: object) -> torch.Tensor:
        made.append(1)
        if len(made) == 150:
            raise KeyboardInterrupt
        return step(self, *a)  # type: ignore[arg-type]

    monkeypatch.setattr(AtmosphereModel, "step", counted)
    assert main(["forecast", *words, "-o", str(tmp_path / "a.zarr")]) == 130
    assert main(["forecast", *words, "-o", str(tmp_path / "a.zarr")]) == 0
    assert len(made) <= 150 + 172 - 128
    files = sorted(
        p.relative_to(tmp_path / "a.zarr") for p in (tmp_path / "a.zarr").rglob("*") if p.is_file()
    )
    assert len(files) > 6
    for path in files:
        assert (tmp_path / "a.zarr" / path).read_bytes() == (tmp_path / "b.zarr" / path).read_bytes()


def fitted(config: AtmosphereConfig, states: torch.Tensor, change: torch.Tensor) -> NetworkDenoiser:
    """A network that knows its climatology, with random weights."""
    torch.manual_seed(1)
    denoiser = build_denoiser(config).eval().requires_grad_(False)
    for p in denoiser.network.net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    denoiser.network.climatology.fit(states, change)
    return denoiser


def test_climatology_is_of_the_states() -> None:
    """States around a pattern: what the network is told has variance one, and the constant part is gone."""
    transform, change = harmonics(8, 16, 8), torch.tensor([0.1, 0.2, 0.4])
    pattern = transform.inverse(transform(torch.randn(3, 8, 16)))
    process = SphereGaussian(features=(3, 8, 16), degree=8)
    noise = CounterNoise(sample_seeds(0, range(3000)))
    size = torch.tensor([0.01, 1.0, 3.0])[:, None, None]
    states = pattern + size * process.draw(noise, Dense(3000), name="x", step=0)
    climatology = build_denoiser(replace(CONFIG, climatology=True)).network.climatology
    climatology.fit(states, change)
    now, tendency, anomaly = climatology(states[1:], states[:-1]).chunk(3, 1)
    torch.testing.assert_close(now, states[1:])
    torch.testing.assert_close(
        tendency, (states[1:] - states[:-1]) / change[:, None, None], rtol=2e-3, atol=1e-4
    )
    assert (anomaly.var((0, 2, 3)) - 1).abs().max() < 0.02
    assert anomaly.mean(0).abs().max() < 0.1
    # each coefficient's own: E|a_lm|² = 4π size² / L² for white noise of degree below L
    below = torch.tril(torch.ones(8, 8)).bool()
    truth = (4 * np.pi) ** 0.5 / 8 * size[:, 0]
    found = climatology.log_scale.exp()[:, below]
    torch.testing.assert_close(found, truth.expand_as(found), rtol=0.06, atol=0)


def test_climatology_is_a_linear_change_of_what_is_told() -> None:
    """The first convolution of a network without can be written as one with: outputs agree."""
    torch.manual_seed(0)
    plain = build_denoiser(CONFIG).double().eval().requires_grad_(False)
    for p in plain.parameters():
        torch.nn.init.normal_(p, std=0.1)
    change = torch.tensor([0.5, 0.25, 0.125])  # whose logarithms are rounded
    told = build_denoiser(replace(CONFIG, climatology=True)).double().eval().requires_grad_(False)
    told.network.climatology.fit(torch.randn(50, 3, 8, 16), change)
    of, weights = told.network.climatology.log_change.exp().flatten(), dict(plain.named_parameters())
    for name, p in told.named_parameters():
        if name.endswith("net.enter.weight"):
            w, p[:] = weights[name], 0.0
            p[:, :3], p[:, 3:6] = w[:, :3], w[:, 3:6] + w[:, 6:9]
            p[:, 6:9] = -w[:, 6:9] * of[:, None, None]
            p[:, 12:] = w[:, 9:]
        elif "climatology" not in name:
            p.copy_(weights[name])
    x, condition = torch.randn(2, 3, 8, 16).double(), torch.randn(2, 13, 8, 16).double()
    t = torch.tensor([0.3, 0.8]).double()
    a, b = (d({FIELD: x}, t, condition=condition, layouts={FIELD: Dense(2)})[FIELD] for d in (plain, told))
    torch.testing.assert_close(a, b)


def test_bundle_keeps_climatology_bound_and_what_is_held(tmp_path: Path) -> None:
    """A model that is written and read makes the same step; no coefficient leaves the bound; the held mean stays."""
    config = replace(CONFIG, climatology=True, bound=3.0, holds=("z",))
    transform, change = harmonics(8, 16, 8), torch.tensor([0.3, 0.5, 0.6])
    states = transform.inverse(transform(0.1 * torch.randn(400, 3, 8, 16)))
    denoiser = fitted(config, states, change)
    denoiser.half().float()
    words = {n: {"standard_name": "air_temperature", "units": "K"} for n in config.fields}
    norm = Normalisation(torch.zeros(3), torch.ones(3), change.log().half().float().exp())
    model = AtmosphereModel(
        denoiser, config, norm, torch.zeros(2, 8, 16), words, torch.zeros(2, 3, 8, 16), 40.0, steps=4
    )
    write_bundle(tmp_path / "b", modality="weather", model=model.to_json(), weights=model.weights(), card="c")
    again = load(tmp_path / "b")
    assert again.config == config
    for tensors in zip(denoiser.parameters(), again.denoiser.parameters(), strict=True):
        torch.testing.assert_close(*tensors, rtol=0, atol=0)
    noise = CounterNoise(sample_seeds(0, range(2)))
    found = model.step(states[2:4], states[:2], 3.0, noise)
    torch.testing.assert_close(again.step(states[2:4], states[:2], 3.0, noise), found)
    climatology = denoiser.network.climatology
    a, mean = transform(found), transform(climatology.mean)
    ratio = ((a - mean).abs() / climatology.log_scale.exp())[..., torch.tril(torch.ones(8, 8)).bool()]
    assert ratio.max() < 3.001
    assert (ratio > 2.999).any()  # changes are several times the states' own scale here
    torch.testing.assert_close(transform(found[:, 0])[:, 0, 0], transform(states[2:4, 0])[:, 0, 0])
    inside = transform(states[:20])
    torch.testing.assert_close(climatology.bound(inside, mean, 9.0), inside, rtol=0, atol=0)


def test_errors_of_the_past_states() -> None:
    """Isotropic, as much in each degree, half common to both; the next state stays the true one."""
    change = torch.tensor([1.0, 2.0, 4.0])
    states = torch.zeros(4, 3, 8, 16)
    task = AtmosphereTask(
        build_denoiser(CONFIG),
        CONFIG,
        states,
        torch.arange(4.0),
        1,
        torch.zeros(2, 8, 16),
        change,
        batch=4000,
        seed=0,
        jitter=0.5,
    )
    task.plan = lambda step: (0, torch.zeros(4000, dtype=torch.int64))  # type: ignore[assignment]
    _, batch = task.prepare(0, generator=torch.Generator().manual_seed(0), rank=0, world=1)
    now, before = batch["condition"][:, :3], batch["condition"][:, 3:6]
    torch.testing.assert_close(batch["x_0"], -now / change[:, None, None])
    scaled = now / change[:, None, None]
    expected = 0.5**2 / 5  # E u⁴ = 1/5
    torch.testing.assert_close(scaled.var((0, 1)), torch.full((8, 16), expected), rtol=0.1, atol=0)
    torch.testing.assert_close(
        (now * before).mean() / now.square().mean(), torch.tensor(0.5), rtol=0.05, atol=0
    )
    shares = power(harmonics(8, 16, 8)(scaled)).mean((0, 1)) / expected
    torch.testing.assert_close(shares, torch.full((8,), 1 / 8), rtol=0.15, atol=0)


def test_impossible_configurations_are_refused() -> None:
    for more in ({"bound": 3.0}, {"bound": -1.0, "climatology": True}, {"holds": ("q",)}):
        with pytest.raises(PerrinError, match="expected"):
            replace(CONFIG, **more)

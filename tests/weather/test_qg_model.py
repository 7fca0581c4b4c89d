"""A prior of pieces of two-layer flow: untrained it is optimal interpolation; what is learned, kept, read and refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from test_cf import complaints

from perrin.bundle import read_bundle, write_bundle
from perrin.cli import main
from perrin.errors import PerrinError
from perrin.modalities.weather.qg_commands import prior
from perrin.modalities.weather.qg_model import (
    FIELD,
    QGConfig,
    QGDenoiser,
    QGModel,
    QGObservations,
    QGTask,
    optimal_interpolation,
    read_qg_observations,
    spectrum,
)


def toy() -> tuple[QGModel, torch.Tensor]:
    """Red noise that moves in x, in two layers that differ, `[runs, times, 2, 8, 8]`."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(40, 2, 8, 8, generator=generator)
    k = torch.fft.fftfreq(8, 1 / 8)
    K2 = k[:, None] ** 2 + k[None, :5] ** 2
    a = torch.fft.rfft2(white) / (1 + K2)
    a[:, 1] = 0.5 * a[:, 0] + 0.5 * a[:, 1]
    a[..., 0, 0] = 0
    x = torch.fft.irfft2(a, s=(8, 8))
    runs = torch.stack([3 * x.roll(t, -1) for t in range(5)], 1)
    denoiser = prior(runs, {"hours": 24.0, "length": 8.0}, states=2, stride=2, widths=(8,))
    return QGModel(denoiser, steps=24), runs


def seen(model: QGModel) -> QGObservations:
    d = torch.float64
    return QGObservations(
        state=torch.tensor([0, 1, 1]),
        layer=torch.tensor([0, 0, 1]),
        y=torch.tensor([1.5, 2.7, 7.9], dtype=d),
        x=torch.tensor([0.1, 4.5, 3.0], dtype=d),
        value=torch.tensor([1.0, -0.8, 0.4], dtype=d),
        error=torch.tensor([0.1, 0.2, 0.1], dtype=d),
    )


def test_normal_estimate_is_bayes_rule_with_the_pieces_covariance() -> None:
    """Against the dense matrix of the covariance, made of all shifts of the pieces."""
    model, runs = toy()
    c = model.config
    assert (c.states, c.hours, c.size) == (2, 48.0, 8)
    x = (runs / torch.tensor(c.scale)[:, None, None]).double()
    pieces = torch.cat([x[:, k : k + 3 : 2] for k in range(3)])
    moved = torch.stack([pieces.roll((i, j), (3, 4)) for i in range(8) for j in range(8)])
    flat = moved.flatten(0, 1).flatten(1)
    C = flat.T @ flat / len(flat)
    denoiser, t = model.denoiser, torch.tensor([0.3])
    x_t = torch.randn(1, *c.shape, generator=torch.Generator().manual_seed(1))
    W, s = denoiser.normal(x_t.flatten(1, 2), t)
    alpha, sigma = 0.7, 0.3
    eye = torch.eye(len(C), dtype=torch.float64)
    K = alpha * C @ torch.linalg.inv(alpha**2 * C + sigma**2 * eye)
    torch.testing.assert_close(W.flatten(), (K @ x_t.flatten().double()).float(), atol=1e-4, rtol=1e-3)
    left = (C - alpha * K @ C).diagonal().reshape(4, -1).mean(1).sqrt()
    torch.testing.assert_close(s[0], left.float(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(denoiser({FIELD: x_t}, t)[FIELD].flatten(), W.flatten())  # untrained

    o = seen(model)
    H, scale = (
        o.matrix(c),
        torch.tensor(c.scale, dtype=torch.float64)[:, None, None].expand(c.shape).flatten(),
    )
    gain = C @ H.T @ torch.linalg.inv(H @ C @ H.T + torch.eye(3, dtype=torch.float64))
    at = torch.tensor([0, 70, 200])
    mean, variance = optimal_interpolation(denoiser, o, at)
    torch.testing.assert_close(mean.flatten(), gain @ (o.value / o.error) * scale, atol=1e-4, rtol=1e-3)
    want = ((C - gain @ H @ C).diagonal() * scale**2)[at]
    torch.testing.assert_close(variance, want, atol=1e-4, rtol=1e-3)


def test_an_untrained_prior_draws_as_optimal_interpolation_says() -> None:
    model, _ = toy()
    o = seen(model)
    at = torch.tensor([0, 70, 130, 200])
    mean, variance = optimal_interpolation(model.denoiser, o, at)
    draws = model.posterior(o, 400, batch=200)
    scale = torch.tensor(model.config.scale, dtype=torch.float64)[:, None, None]
    assert float(((draws.double().mean(0) - mean) / scale).square().mean().sqrt()) < 0.06
    found = draws.double().flatten(1)[:, at].var(0)
    torch.testing.assert_close(found / variance, torch.ones(4, dtype=torch.float64), atol=0.25, rtol=0)
    torch.testing.assert_close(model.posterior(o, 2), draws[:2], atol=1e-4, rtol=1e-3)


def test_values_between_cells_are_of_the_four_around_them() -> None:
    c = QGConfig(states=1, size=8, length=8.0, widths=(8,), scale=(2.0, 1.0))
    d = torch.float64
    one = QGObservations(
        state=torch.tensor([0]),
        layer=torch.tensor([0]),
        y=torch.tensor([7.75], dtype=d),  # three quarters of row 7, a quarter of row 0
        x=torch.tensor([2.5], dtype=d),
        value=torch.tensor([0.0], dtype=d),
        error=torch.tensor([0.5], dtype=d),
    )
    H = one.matrix(c).reshape(c.shape)
    assert float(H[0, 0, 7, 2]) == pytest.approx(0.75 * 2 / 0.5)
    assert float(H[0, 0, 0, 2]) == pytest.approx(0.25 * 2 / 0.5)
    assert float(H.abs().sum()) == pytest.approx(4.0)


def test_pieces_are_strided_and_shifted_and_the_loss_of_nothing_learned_is_one() -> None:
    model, runs = toy()
    x = runs / torch.tensor(model.config.scale)[:, None, None]
    task = QGTask(model.denoiser, x, batch=512, stride=2)
    key, batch = task.prepare(0, generator=torch.Generator().manual_seed(0), rank=0, world=1)
    torch.testing.assert_close(
        batch["x_0"][:, 1], batch["x_0"][:, 0].roll(2, -1)
    )  # the toy moves a cell a time
    assert float(task.loss(model.denoiser, key, batch)["loss"]) == pytest.approx(1.0, abs=0.03)


def test_a_bundle_keeps_the_model(tmp_path: Path) -> None:
    model, _ = toy()
    torch.nn.init.normal_(model.denoiser.network.outer.weight, std=0.1)
    write_bundle(tmp_path / "b", modality="weather", model=model.to_json(), weights=model.weights(), card="x")
    again = QGModel.from_bundle(read_bundle(tmp_path / "b"))
    x_t = torch.randn(2, *model.config.shape)
    for t in (0.05, 0.5):
        times = torch.full((2,), t)
        a, b = (m.denoiser({FIELD: x_t}, times)[FIELD] for m in (model, again))
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-2)
    a, b = (m.denoiser.covariance for m in (model, again))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """data, train, assimilate, from the command line; and what they refuse, in one line."""
    store, bundle, table = tmp_path / "qg.zarr", tmp_path / "qg", tmp_path / "obs.csv"
    assert main(["data", "weather/qg", "--days", "24", "--runs", "1", "--spinup", "2", "-o", str(store)]) == 0
    train = [
        "train",
        "weather/qg",
        "--data",
        str(store),
        "--out",
        str(bundle),
        "--stride",
        "1",
        "--steps",
        "1",
    ]
    assert main([*train, "--batch", "1"]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        truth = xr.open_zarr(store, chunks=None)
    table.write_text("time,layer,y,x,value,error\n96,1,1000,250000,500,50\n192,1,30000,20000,-200,50\n")
    out = [tmp_path / name for name in ("flow.nc", "flow.zarr")]
    words = ["assimilate", str(bundle), "--observations", str(table)]
    for path, members in zip(out, "13"):
        assert main([*words, "-o", str(path), "--members", members]) == 0
        assert (tmp_path / f"{path.name}.run.json").is_file()
    with xr.open_dataset(out[0]) as found, xr.open_zarr(out[1], chunks=None) as many:
        assert found["psi"].dims == ("realization", "time", "layer", "y", "x")
        assert found["psi"].shape == (1, 4, 2, 32, 32)
        assert bool(np.isfinite(many["psi"]).all())
        np.testing.assert_array_equal(found["psi"][0], many["psi"][0])
        for name in ("layer", "y", "x"):  # and times are those of the data
            assert found[name].attrs == truth[name].attrs
            np.testing.assert_array_equal(found[name], truth[name])
        np.testing.assert_array_equal(found["time"], truth["time"][1:5])
    assert complaints(out[0]) == []
    capsys.readouterr()
    assert main(["forecast", str(bundle), "-o", str(tmp_path / "f.nc")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    config = QGConfig(hours=96.0)
    for text, words_ in (
        ("time,layer,y,x\n", "columns time, layer, y, x and value .* for value is lacking"),
        ("time,layer,y,x,value\n0,1,0,0,1\n", "--error"),
        ("time,layer,y,x,value,error\n0,3,0,0,1,1\n", "layer 1 or 2"),
        ("time,layer,y,x,value,error\n0,1,0,6e5,1,1\n", "from 0 to 500000 m"),
        ("time,layer,y,x,value,error\n0,1,0,0,1,1\n50,1,0,0,1,1\n", "96 hours apart"),
        ("time,layer,y,x,value,error\n", "without lines"),
    ):
        table.write_text(text)
        with pytest.raises(PerrinError, match=words_):
            read_qg_observations(table, config)
    with pytest.raises(PerrinError, match="check the path"):
        read_qg_observations(tmp_path / "none.csv", config)


def test_spectrum_of_white_noise_is_one() -> None:
    x = torch.randn(4000, 1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    S = spectrum(x)
    eye = torch.eye(2).expand(8, 5, 2, 2).to(S.dtype)
    torch.testing.assert_close(S, eye, atol=0.12, rtol=0)
    assert QGDenoiser(QGConfig(states=1, size=8, widths=(8,)), S).share.sum() == pytest.approx(1.0)

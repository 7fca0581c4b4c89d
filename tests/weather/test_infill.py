"""Fields given observations: the Kalman filter's answer where it is exact, and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from oceans import made_patterns

from perrin import load
from perrin.cli import main
from perrin.core import sample_seeds
from perrin.modalities.weather.fields import open_fields
from perrin.modalities.weather.infill import (
    Infill,
    Observations,
    correlation,
    nearest,
    optimal_interpolation,
)
from perrin.modalities.weather.residual import ResidualModes
from perrin.modalities.weather.sst_network import AmplitudeConfig, build_denoiser
from perrin.nets.sphere import SphericalHarmonics, isotropic
from perrin.run.outputs import read_record

LATITUDE = np.arange(-82.5, 90, 15)
PLACES = np.repeat(LATITUDE, 24), np.tile(np.arange(7.5, 360, 15), 12)
SPECTRUM = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])


def problem() -> tuple[Infill, Observations]:
    """Three patterns with normal amplitudes, isotropic noise, and 20 observations."""
    rng = np.random.default_rng(2)
    phi, lam = np.deg2rad(PLACES[0]), np.deg2rad(PLACES[1])
    modes = np.stack([np.cos(phi) * np.cos(lam), np.sin(phi), np.cos(phi) ** 2 * np.sin(2 * lam)])
    prior = ResidualModes(
        scale=1 + 0.3 * np.cos(np.arange(12) / 6 * np.pi)[:, None, None] * np.cos(phi),
        modes=modes[:, None],
        spread=np.array([1.5, 1.0, 0.6]),
        fitted=np.ones(3),
        rest=0.4 + 0 * phi[None],
        spectrum=SPECTRUM,
        memory=0.0,
    )
    at = rng.choice(len(phi), 20, replace=False)
    observations = Observations(
        latitude=PLACES[0][at],
        longitude=PLACES[1][at],
        value=rng.standard_normal(20),
        error=np.linspace(0.1, 0.4, 20),
    )
    harmonics = SphericalHarmonics(torch.from_numpy(LATITUDE), 24, degree=6)
    denoiser = build_denoiser(AmplitudeConfig(count=3, condition=2)).eval().requires_grad_(False)
    sea = np.ones((12, 24), dtype=bool)
    return (
        Infill(prior, denoiser, PLACES, sea, harmonics, np.zeros(2), 2, observations, iterations=4),
        observations,
    )


def test_mean_and_variance_are_the_kalman_filters() -> None:
    """On a linear-Gaussian field: within 3 %, of the posterior's spread and of its variance."""
    infill, o = problem()
    everywhere = correlation(SPECTRUM, PLACES, PLACES)
    P = infill.modes.T @ infill.modes + infill.depth[:, None] * everywhere * infill.depth
    at = nearest(PLACES, (o.latitude, o.longitude))
    gain = P[:, at] @ np.linalg.inv(P[np.ix_(at, at)] + np.diag(o.error**2))
    mean, variance = gain @ o.value, np.diag(P - gain @ P[at])
    found = infill.members(sample_seeds(0, range(6000)), batch=2000)
    spread = np.sqrt(variance.mean())
    assert np.sqrt(((found.mean(0) - mean) ** 2).mean()) < 0.03 * spread
    assert found.var(0).mean() == pytest.approx(variance.mean(), rel=0.03)
    ratio = found.var(0) / variance
    assert np.abs(ratio - 1).max() < 0.12  # of 6000 members: 0.018 is one standard error


def test_isotropic_covariance_is_the_addition_theorem() -> None:
    harmonics = SphericalHarmonics(torch.from_numpy(LATITUDE), 24, degree=6)
    white = torch.randn(8000, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = harmonics.inverse(isotropic(white, torch.from_numpy(SPECTRUM))).flatten(1).numpy()
    np.testing.assert_allclose(x.T @ x / len(x), correlation(SPECTRUM, PLACES, PLACES), atol=0.08)
    np.testing.assert_allclose(np.diag(correlation(SPECTRUM, PLACES, PLACES)), 1)


def test_a_member_does_not_depend_on_the_others() -> None:
    infill, _ = problem()
    seeds = sample_seeds(3, range(3))
    np.testing.assert_array_equal(infill.members(seeds)[2:], infill.members(seeds[2:]))


def test_optimal_interpolation_of_one_observation() -> None:
    """One exact value v at variance 1: exp(−d/L) v, and 1 − exp(−2d/L)."""
    at = np.array([100])
    mean, variance = optimal_interpolation(
        PLACES, np.ones(288), 2000.0, at, np.array([2.0]), np.array([1e-9])
    )
    cosine = correlation(np.array([0.0, 1.0]), (PLACES[0][at], PLACES[1][at]), PLACES)[0]
    decay = np.exp(-6371 * np.arccos(np.clip(cosine, -1, 1)) / 2000)
    np.testing.assert_allclose(mean, 2 * decay, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(variance, 1 - decay**2, atol=1e-6)


def table(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(["time,lat,lon,value,error", *lines]) + "\n")
    return str(path)


def test_command(sst_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(sst_bundle)
    at = np.arange(0, len(model.places[0]), 9)
    anomaly = np.array([1.0, -1.0, 0.5]) @ made_patterns(model.latitude, model.longitude)[:, model.sea]
    values = model.climatology[6] + anomaly
    lines = [
        f"1980-07-15,{la},{lo - 360 if lo > 180 else lo},{v:.3f},0.1"
        for la, lo, v in zip(model.places[0][at], model.places[1][at], values[at])
    ]
    csv = table(tmp_path / "obs.csv", lines)
    out = tmp_path / "post.nc"
    words = [
        "assimilate",
        str(sst_bundle),
        "--observations",
        csv,
        "--members",
        "4",
        "-o",
        str(out),
        "--workers",
        "1",
    ]
    assert main(words) == 0
    told = read_record(out)["result"]  # as of every rollout
    assert (told["members"], told["starts"]) == (4, 1)
    fields = open_fields(out)
    x = fields.forecast("sst", 0, 0)[:, model.sea]
    error = x.mean(0) - values
    hidden = np.setdiff1d(np.arange(len(values)), at)
    assert np.abs(error[at]).mean() < 0.1  # the observations' error
    assert np.abs(error[hidden]).mean() < 0.2
    assert (fields.references[0].year, fields.references[0].month) == (1980, 7)
    capsys.readouterr()
    for line, word in {
        "1980-07,0,60,900,0.1": "°C",
        "1980-13,0,60,20,0.1": "line 2",
        "1980-07,0,north,20,0.1": "line 2",
        "1980-07,0,120,20,0.1": "at sea",
    }.items():
        table(tmp_path / "obs.csv", [line])
        assert main([*words[:-3], str(tmp_path / "other.nc")]) == 2
        told = capsys.readouterr().err
        assert word in told
        assert told.strip().count("\n") == 0
        assert not list(tmp_path.glob("other.nc*"))
    (tmp_path / "obs.csv").write_text("time,lat,value\n1980-07,0,20\n")
    assert main(words) == 2
    assert "longitude" in capsys.readouterr().err

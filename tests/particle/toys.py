"""Toy jets, showers and flows: shaped like the real ones, made here, so that no data are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perrin.cli import main
from perrin.modalities.particle.jets.files import Jets
from perrin.modalities.particle.showers.files import Showers
from perrin.modalities.particle.showers.geometry import ANGLES, CUT, LAYERS, RADII


def toy_jets(count: int, seed: int = 0) -> Jets:
    rng = np.random.default_rng(seed)
    number = rng.integers(5, 60, count)
    particles = np.zeros((count, 30, 4), dtype=np.float32)
    for row, n in zip(particles, number.clip(max=30)):
        pt = np.sort(rng.dirichlet(np.full(n, 0.3)) + 1e-5)[::-1]
        row[:n] = np.stack([*rng.normal(0, 0.08, (2, n)), 0.9 * pt / pt.sum(), np.ones(n)], 1)
    jets = np.stack(
        [rng.uniform(800, 1600, count), rng.normal(0, 1, count), rng.gamma(4, 20, count) + 5, number], 1
    )
    return Jets(particles, jets.astype(np.float32))


def toy_showers(count: int, seed: int = 0) -> Showers:
    rng = np.random.default_rng(seed)
    incident = 1000 * np.exp(rng.uniform(0, np.log(50), count))
    depth, radius = np.arange(LAYERS), np.arange(RADII)
    profile = depth**2.5 * np.exp(-depth / 4.0)
    shape = (profile / profile.sum())[:, None, None] * np.exp(-radius / 0.8) * np.ones((1, ANGLES, 1))
    mean = shape / shape.sum() * incident[:, None, None, None] / 0.3
    voxels = 0.3 * rng.gamma(np.maximum(mean, 1e-6), 1.0)
    voxels[voxels < CUT] = 0
    return Showers(incident.astype(np.float32), voxels.reshape(count, -1).astype(np.float32))


def refused(command: str, told: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command is refused in one line, which has some words, and leaves nothing in a folder."""
    assert main(command.split()) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert told in error[0]
    assert not list(folder.iterdir())

"""The students that ship: from the same noise one evaluation jumps to where the teacher's path ends."""

from __future__ import annotations

import numpy as np
from test_commands import pytestmark  # noqa: F401

from perrin.modalities import find_bundle, load

ONE = {"steps": 1, "first_steps": 1}


def test_jets() -> None:
    teacher, student = (load(str(find_bundle(f"particle/{name}"))) for name in ("jets", "jets-fast"))
    assert student.sampling.solver == "consistency"
    assert student.config == teacher.config
    for kind in ("gluon", "quark", "top"):
        a, b = teacher.sample(24, seed=3, kind=kind), student.sample(24, seed=3, kind=kind, **ONE)
        for column in range(4):  # pT, η, mass, constituents
            assert np.corrcoef(a.jets[:, column], b.jets[:, column])[0, 1] > 0.99
        alike = np.corrcoef(a.particles[:, :10, 2].ravel(), b.particles[:, :10, 2].ravel())[0, 1]
        other = np.corrcoef(a.particles[:, :10, 2].ravel(), b.particles[::-1, :10, 2].ravel())[0, 1]
        assert alike > 0.97 > other


def test_showers() -> None:
    teacher, student = (load(str(find_bundle(f"particle/{name}"))) for name in ("showers", "showers-fast"))
    a = teacher.sample(6, seed=3, energy=(5.0, 40.0))
    b = student.sample(6, seed=3, energy=(5.0, 40.0), **ONE)
    np.testing.assert_allclose(b.incident, a.incident)
    layers = [s.voxels.reshape(6, 45, -1).sum(2) / s.incident.reshape(6, 1) for s in (a, b)]
    assert np.abs(layers[1] - layers[0]).mean() < 0.25 * np.abs(layers[1][::-1] - layers[0]).mean()
    truth, ours = (np.log1p(s.voxels) for s in (a, b))
    assert (
        np.corrcoef(truth.ravel(), ours.ravel())[0, 1]
        > 0.98
        > np.corrcoef(truth.ravel(), ours[::-1].ravel())[0, 1]
    )

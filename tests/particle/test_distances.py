"""Distances against closed forms, and against what the package `jetnet` 0.2.5 gives for the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from perrin.core.scores import fair_crps
from perrin.errors import PerrinError
from perrin.modalities.particle.metrics.classifier import ClassifierOptions, auc, classifier_auc
from perrin.modalities.particle.metrics.distances import (
    fpd,
    frechet,
    kpd,
    mmd_polynomial,
    separation,
    separation_of,
    wasserstein,
)


def _samples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(4000, 6)) @ rng.normal(size=(6, 6))
    y = rng.normal(size=(4000, 6)) * 1.1 + 0.2
    return x, y @ np.random.default_rng(7).normal(size=(6, 6))


def test_fpd_is_jetnets() -> None:
    # jetnet.evaluation.fpd(x, y, min_samples=1000, max_samples=3000, num_batches=5, num_points=6)
    x, y = _samples()
    found = fpd(x, y, smallest=1000, largest=3000, batches=5, points=6)
    assert found.value == pytest.approx(0.413914152374164, rel=1e-5)
    assert found.error == pytest.approx(0.007488789552301299, rel=1e-5)
    same = fpd(x[:2000], x[2000:], smallest=500, largest=1500, batches=5, points=6)
    assert same.value == pytest.approx(0.00010160103232777015, rel=1e-4)


def test_kpd_is_jetnets() -> None:
    # jetnet.evaluation.kpd(x, y, num_batches=4, batch_size=500)
    found = kpd(*_samples(), batches=4, size=500)
    assert found.value == pytest.approx(0.08649946970019995, rel=1e-9)
    assert found.error == pytest.approx(0.005020561171846363, rel=1e-9)


def test_frechet_of_commuting_covariances() -> None:
    a, b, shift = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.0]), np.array([1.0, 0.0, 2.0])
    want = 5 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    found = frechet(shift, turn @ np.diag(a) @ turn.T, np.zeros(3), turn @ np.diag(b) @ turn.T)
    assert found == pytest.approx(want, rel=1e-12)


def test_mmd_is_unbiased_and_counts_by_hand() -> None:
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [1.0]])
    k = lambda a, b: (a * b + 1) ** 4  # noqa: E731
    want = k(1, 2) + k(0, 1) - 2 * np.mean([k(1, 0), k(1, 1), k(2, 0), k(2, 1)])
    assert mmd_polynomial(x, y) == pytest.approx(want)
    rng = np.random.default_rng(0)
    found = [mmd_polynomial(*rng.normal(size=(2, 40, 3))) for _ in range(300)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(300)


def test_w1_and_separation_in_closed_form() -> None:
    x = np.random.default_rng(0).normal(size=1000)
    assert wasserstein(x, x + 0.7) == pytest.approx(0.7)
    assert wasserstein(x, np.zeros(0)) == np.inf
    assert separation(np.array([1.0, 0]), np.array([0.0, 3])) == pytest.approx(1)
    assert separation(np.array([2.0, 2]), np.array([1.0, 1])) == 0
    assert separation(np.array([3.0, 1]), np.array([1.0, 1])) == pytest.approx(
        0.5 * (0.25**2 / 1.25 + 0.25**2 / 0.75)
    )
    assert separation_of(x, x + 100) == pytest.approx(1)
    assert separation_of(np.zeros(5), np.ones(5), log=True) == pytest.approx(1)


def test_features_that_cannot_be_compared() -> None:
    x = np.ones((10, 3))
    with pytest.raises(PerrinError, match="expected finite generated features"):
        fpd(x, np.full((10, 3), np.nan))
    with pytest.raises(PerrinError, match="expected features"):
        kpd(x, np.ones((10, 2)))


def test_auc_counts_pairs() -> None:
    a, b = np.array([0.9, 0.5, 0.4]), np.array([0.5, 0.1])
    assert auc(a, b) == pytest.approx((2 + 1.5 + 1) / 6)
    assert auc(a, a) == pytest.approx(0.5)


def test_a_classifier_finds_what_there_is_to_find() -> None:
    rng = np.random.default_rng(0)
    options = ClassifierOptions(hidden=32, epochs=30, lr=3e-3, splits=2, batch=200)
    x, y = rng.normal(size=(2, 2000, 4))
    assert classifier_auc(x, y, options).value == pytest.approx(0.5, abs=0.07)
    # two normals a distance d apart: the best possible AUC is Φ(d/√2)
    found = classifier_auc(x, y + np.array([1.0, 0, 0, 0]), options)
    assert found.value == pytest.approx(0.7602, abs=0.035)
    assert classifier_auc(x, y + 1.0, options).value == classifier_auc(x, y + 1.0, options).value


@pytest.mark.parametrize("members", [1, 2, 7])
def test_fair_crps_is_the_double_sum(members: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(s, 5, generator=generator, dtype=torch.float64) for s in (members, 1))
    y = y[0]
    want = (x - y).abs().mean(0)
    if members > 1:
        want = want - (x[:, None] - x[None]).abs().sum((0, 1)) / (2 * members * (members - 1))
    torch.testing.assert_close(fair_crps(x, y), want)


def test_fair_crps_does_not_depend_on_the_number_of_members() -> None:
    # CRPS of a standard normal at 0 is (√2 − 1)/√π
    x = torch.randn(3, 200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(fair_crps(x, torch.zeros(200_000).double()).mean()) == pytest.approx(
        (2**0.5 - 1) / np.pi**0.5, abs=3e-3
    )

"""Distances between two samples of features, as the field defines them.

    Fréchet      d² = |μ₁ − μ₂|² + Tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)
    FPD          d² at sizes N evenly spaced in 1/N, extrapolated linearly to 1/N → 0
    KPD          the median over batches of the unbiased MMD² with the kernel (x·y/d + 1)⁴
    W1           ∫ |F − G|, of one observable
    separation   ½ ∫ (p − q)² / (p + q), of one observable in bins

FPD and KPD divide every feature by its largest magnitude in the reference, and draw with replacement; defaults, draws and
order are those of the `jetnet` package, so that numbers are the same to rounding.

References: Kansal et al., "Evaluating generative models in high energy physics", arXiv:2211.10295 (FPD, KPD); Heusel et al.
2017; Chong and Forsyth 2020 (extrapolation); CaloChallenge, arXiv:2410.21611 (separation power).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError

Array = NDArray[Any]


@dataclass(frozen=True)
class Measured:
    """A number and its error, one standard deviation."""

    value: float
    error: float


def frechet(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    """d² of two normal distributions.

    `Tr (Σ₁ Σ₂)^½` is the sum of the square roots of the eigenvalues of `Σ₁^½ Σ₂ Σ₁^½`, which is symmetric, so that no
    complex or singular root can appear.

    Arguments:
        mean1, mean2: `[d]`.
        cov1, cov2: `[d, d]`.
    """
    values, vectors = np.linalg.eigh(np.atleast_2d(cov1))
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    inner = root @ np.atleast_2d(cov2) @ root
    overlap = np.sqrt(np.linalg.eigvalsh((inner + inner.T) / 2).clip(min=0)).sum()
    shift = np.atleast_1d(mean1) - np.atleast_1d(mean2)
    return float(shift @ shift + np.trace(np.atleast_2d(cov1)) + np.trace(np.atleast_2d(cov2)) - 2 * overlap)


def frechet_of(x: Array, y: Array) -> float:
    """d² between two samples `[n, d]` and `[m, d]`."""
    return frechet(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))


def fpd(
    reference: Array,
    generated: Array,
    *,
    smallest: int | None = None,
    largest: int | None = None,
    batches: int = 20,
    points: int = 10,
    seed: int = 42,
) -> Measured:
    """The Fréchet physics distance, extrapolated to infinite samples, and the error of the intercept.

    Arguments:
        reference, generated: features, `[n, d]` and `[m, d]`.
        smallest, largest: sizes between which it is measured: 20,000 and 50,000, as `jetnet` has them, or, where a sample is
            smaller than 50,000, two fifths of the smaller sample and all of it.
        batches: draws for each size.
        points: sizes.
        seed: of the draws.
    """
    from scipy.optimize import curve_fit

    x, y = normalised(reference, generated)
    least = min(len(x), len(y))
    low, high = (20_000, 50_000) if least >= 50_000 else (max(2 * least // 5, 2), least)
    low, high = smallest or low, largest or high
    sizes = (1 / np.linspace(1.0 / low, 1.0 / high, points)).astype("int32")
    rng = np.random.default_rng(seed)
    found = []
    for size in sizes:
        drawn = [(rng.choice(len(x), size=size), rng.choice(len(y), size=size)) for _ in range(batches)]
        found.append(np.mean([frechet_of(x[i], y[j]) for i, j in drawn]))
    line, spread = curve_fit(
        lambda u, intercept, slope: intercept + slope * u, 1 / sizes, found, bounds=([0, 0], [np.inf, np.inf])
    )
    return Measured(float(line[0]), float(np.sqrt(spread[0, 0])))


def kpd(
    reference: Array, generated: Array, *, batches: int = 10, size: int = 5_000, seed: int = 42
) -> Measured:
    """The kernel physics distance: median over batches, and half the interval from 16 to 84 %.

    Arguments:
        reference, generated: features, `[n, d]` and `[m, d]`.
        batches, size: how many draws, of how many samples.
        seed: of the draws.
    """
    x, y = normalised(reference, generated)
    found = []
    for number in range(batches):
        rng = np.random.default_rng(seed + 1000 * number)
        first, second = rng.choice(len(x), size=size), rng.choice(len(y), size=size)
        found.append(mmd_polynomial(x[first], y[second]))
    low, high = np.percentile(found, (16.275, 83.725))
    return Measured(float(np.median(found)), float(high - low) / 2)


def mmd_polynomial(x: Array, y: Array, degree: int = 4) -> float:
    """The unbiased estimate of MMD² with the kernel `(x·y/d + 1)^degree`; it may be below zero."""

    def kernel(a: Array, b: Array) -> Array:
        return np.asarray((a @ b.T / a.shape[1] + 1.0) ** degree)

    xx, yy, (m, n) = kernel(x, x), kernel(y, y), (len(x), len(y))
    own = (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(own - 2 * kernel(x, y).mean())


def normalised(reference: Array, generated: Array) -> tuple[Array, Array]:
    """Both divided by the largest magnitude of each feature in the reference, float64.

    Raises:
        PerrinError: fewer than two rows, different features, or numbers that are not finite.
    """
    x, y = np.asarray(reference, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise PerrinError(
            f"expected features [n, d] and [m, d] of at least 2 samples, given {x.shape} and {y.shape}"
        )
    for name, data in (("reference", x), ("generated", y)):
        if not np.isfinite(data).all():
            raise PerrinError(
                f"expected finite {name} features, given NaN or infinity: leave those samples out"
            )
    scale = np.abs(x).max(0)
    scale[scale == 0] = 1
    return x / scale, y / scale


def wasserstein(x: Array, y: Array) -> float:
    """W1 of two samples of one observable, in its unit; infinite where one is empty."""
    from scipy.stats import wasserstein_distance

    if len(x) == 0 or len(y) == 0:
        return float("inf")
    return float(wasserstein_distance(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)))


def separation(p: Array, q: Array) -> float:
    """½ Σ (p − q)² / (p + q) of two histograms, each of which is first divided by its sum: 0 (alike) to 1 (apart)."""
    a, b = p / max(p.sum(), 1e-300), q / max(q.sum(), 1e-300)
    both = a + b
    return float(0.5 * ((a - b) ** 2 / np.where(both > 0, both, 1)).sum())


def separation_of(reference: Array, generated: Array, bins: int = 50, log: bool = False) -> float:
    """The separation power of two samples of an observable, in equal bins that cover both.

    Arguments:
        log: bins of equal width in the logarithm; values of 0 and below have one bin of their own.
    """
    x, y = np.asarray(reference, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    if log:
        none = np.array([float((x <= 0).sum())]), np.array([float((y <= 0).sum())])
        x, y = np.log(x[x > 0]), np.log(y[y > 0])
    else:
        none = np.zeros(1), np.zeros(1)
    if not len(x) or not len(y):
        return separation(np.append(none[0], len(x)), np.append(none[1], len(y)))
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    p, q = (np.concatenate([m, np.histogram(v, edges)[0]]) for m, v in zip(none, (x, y)))
    return separation(p, q)

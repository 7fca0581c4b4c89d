"""Estimates with standard errors, and distances between one-dimensional distributions.

A metric is a pair `(value, error)`, either of which may be `None`: no denominator, or no way to estimate the error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

Metric = tuple[float | None, float | None]
Metrics = dict[str, Metric]

_RESAMPLES = 1000


def proportion(flags: Sequence[bool] | np.ndarray) -> Metric:
    """Share of `True` with its binomial error `√(p (1 − p) / n)`."""
    n = len(flags)
    if n == 0:
        return None, None
    p = float(sum(flags)) / n
    return p, math.sqrt(p * (1 - p) / n)


def mean(values: Sequence[float] | np.ndarray) -> Metric:
    """Mean with its standard error."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array) or not np.isfinite(array).all():
        return None, None
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None


def median(values: Sequence[float] | np.ndarray) -> Metric:
    """Median with its bootstrap standard error (1,000 resamples, always the same ones for the same n).

    An infinite value stands for one that is larger than all others; the median is `None` where it is infinite itself.
    """
    array = np.sort(np.asarray(values, dtype=np.float64))
    n = len(array)
    if n == 0 or not np.isfinite(value := _middle(array)):
        return None, None
    draws = np.random.default_rng(0).integers(0, n, size=(_RESAMPLES, n))
    draws.sort(axis=1)
    low, high = array[draws[:, (n - 1) // 2]], array[draws[:, n // 2]]
    finite = np.isfinite(high)
    error = float((0.5 * (low + high))[finite].std()) if n > 1 and finite.all() else None
    return float(value), error


def _middle(array: np.ndarray) -> float:
    n = len(array)
    return float(0.5 * (array[(n - 1) // 2] + array[n // 2]))


def combine(parts: Sequence[Metrics]) -> dict[str, dict[str, float | None]]:
    """One group as it is; several as their mean and the standard error of it."""
    if len(parts) == 1:
        return {name: {"value": value, "error": error} for name, (value, error) in parts[0].items()}
    metrics: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(key for part in parts for key in part):
        values = [value for part in parts if (value := part.get(name, (None, None))[0]) is not None]
        average, error = mean(values)
        metrics[name] = {"value": average, "error": error}
    return metrics


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    r"""`W_1 = ∫ |F_a(x) − F_b(x)| dx` of two samples, exact (no bins), in the unit of the values.

    Arguments:
        a, b: values, `[n]` and `[m]`, in any order, none empty.
    """
    a, b = np.sort(np.asarray(a, dtype=np.float64)), np.sort(np.asarray(b, dtype=np.float64))
    both = np.sort(np.concatenate([a, b]))
    f_a = np.searchsorted(a, both[:-1], side="right") / len(a)
    f_b = np.searchsorted(b, both[:-1], side="right") / len(b)
    return float(np.sum(np.abs(f_a - f_b) * np.diff(both)))


def total_variation(a: Mapping[int, int], b: Mapping[int, int]) -> float | None:
    """`½ Σ_k |p_k − q_k|` of two tables of counts; `None` where one is empty."""
    n, m = sum(a.values()), sum(b.values())
    if not n or not m:
        return None
    return 0.5 * sum(abs(a.get(k, 0) / n - b.get(k, 0) / m) for k in {*a, *b})

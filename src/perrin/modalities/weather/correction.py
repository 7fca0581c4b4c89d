"""Bias correction: a simulation is given the distribution of a reference at each place and time of the year.

With x the simulation to correct, F_o, F_h and F_x the distributions of the reference (observations), of the historical
simulation of the reference's period, and of x, and μ, σ their means and standard deviations:

    mean               x + μ_o − μ_h
    mean-variance      μ_x + μ_o − μ_h + (x − μ_x) σ_o / σ_h                       Teutschbein & Seibert 2012, eq. 16–20
    quantile-mapping   x + F_o⁻¹(τ) − F_h⁻¹(τ),  τ = F_h(x)                        Panofsky & Brier 1968
    quantile-delta     x + F_o⁻¹(τ) − F_h⁻¹(τ),  τ = F_x(x)                        Cannon et al. 2015, eq. 3–6

Of these quantile-delta keeps the simulated change of every quantile, mean and mean-variance that of the mean;
quantile-mapping keeps none and does not take x beyond the reference. Where ratios matter (precipitation, wind speed) the
sums become products, x F_o⁻¹(τ) / F_h⁻¹(τ); mean-variance has no such form.

Of n values the i-th smallest is the quantile τ = (i − ½)/n (Hazen), ties share their mean rank. The correction is known at
τ = (k − ½)/N, is linear between and constant beyond, as wide as that of the last node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError

Array = NDArray[np.float64]

METHODS = ("quantile-delta", "quantile-mapping", "mean-variance", "mean")
GROUPS = {
    "month": lambda month: month - 1,
    "season": lambda month: month % 12 // 3,
    "all": lambda month: 0,
}
"""Which of a year's parts a month belongs to."""


@dataclass(frozen=True, kw_only=True)
class CorrectionOptions:
    """How to correct.

    Arguments:
        method: of `METHODS`.
        ratio: products in place of sums.
        group: times of the year that are corrected apart, of `GROUPS`.
        nodes: N, quantiles at which the correction is known; no more than there are values.
        megabytes: memory for values at a time.
    """

    method: str = "quantile-delta"
    ratio: bool = False
    group: str = "month"
    nodes: int = 50
    megabytes: float = 256

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            PerrinError: one is out of range.
        """
        for name, known in (("method", METHODS), ("group", tuple(GROUPS))):
            if getattr(self, name) not in known:
                raise PerrinError(f"expected --{name} {', '.join(known)}, given {getattr(self, name)!r}")
        if self.nodes < 2:
            raise PerrinError(f"expected --nodes of at least 2, given {self.nodes}")
        if self.ratio and self.method == "mean-variance":
            raise PerrinError(
                "expected --method quantile-delta, quantile-mapping or mean with --ratio, given mean-variance"
            )

    def groups(self, times: list[Any]) -> NDArray[np.intp]:
        """The part of the year of each time."""
        return np.array([GROUPS[self.group](t.month) for t in times], dtype=np.intp)


def correct(x: Array, reference: Array, historical: Array, options: CorrectionOptions) -> Array:
    """The simulation, corrected: values of one part of the year, `[n, …]` each with n of its own; NaN is missing.

    A place where any of the three has fewer than two values is missing after.
    """
    change = _ratio if options.ratio else np.subtract
    apply: Callable[..., Array] = np.multiply if options.ratio else np.add
    with np.errstate(invalid="ignore", divide="ignore"):
        enough = np.ones(x.shape[1:], dtype=bool)
        for each in (x, reference, historical):
            enough &= np.isfinite(each).sum(0) >= 2
        if options.method in ("mean", "mean-variance"):
            mu_x, mu_o, mu_h = (_mean(v) for v in (x, reference, historical))
            if options.method == "mean":
                found = apply(x, change(mu_o, mu_h))
            else:
                scale = _std(reference) / _std(historical)
                found = mu_x + mu_o - mu_h + (x - mu_x) * scale
        else:
            counts = [int(np.isfinite(v).sum(0)[enough].min(initial=len(v))) for v in (reference, historical)]
            nodes = max(2, min(options.nodes, *counts))
            tau = (np.arange(nodes) + 0.5) / nodes
            step = change(quantiles(reference, tau), quantiles(historical, tau))
            own = x if options.method == "quantile-delta" else historical
            found = apply(x, _between(step, probability(x, own)))
    return np.where(enough & np.isfinite(x), found, np.nan)


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 1 where b is 0: nothing that is multiplied makes rain of a dry day."""
    return np.where(b == 0, 1.0, a / np.where(b == 0, 1.0, b))


def _mean(x: Array) -> Array:
    known = np.isfinite(x)
    return np.where(known, x, 0).sum(0) / known.sum(0)


def _std(x: Array) -> Array:
    known = np.isfinite(x)
    square = np.where(known, x - _mean(x), 0) ** 2
    return np.sqrt(square.sum(0) / (known.sum(0) - 1))


def quantiles(x: Array, tau: Array) -> Array:
    """Hazen's quantiles along the first axis, `[len(tau), …]`, of the values that are not missing."""
    s = np.sort(x, axis=0)  # NaN at the end
    n = np.isfinite(x).sum(0)
    at = tau.reshape(-1, *[1] * (x.ndim - 1)) * n - 0.5
    return _interpolate(s, np.clip(at, 0, np.maximum(n - 1, 0)))


def probability(x: Array, own: Array) -> Array:
    """F(x) for the distribution of `own`, `[n, …]`, the inverse of `quantiles`; ties are at the middle of their ranks.

    Where `own` has fewer than two values it is 0.
    """
    count, places = len(x), x[0].size
    out = np.zeros((count, places))
    columns = zip(x.reshape(count, places).T, np.sort(own, axis=0).reshape(len(own), places).T)
    for j, (values, known) in enumerate(columns):
        known = known[: np.isfinite(known).sum()]
        n = len(known)
        if n < 2:
            continue
        low, high = np.searchsorted(known, values, "left"), np.searchsorted(known, values, "right")
        rank = (low + high) / 2  # of a value among them; between two of them what is linear between
        if own is not x:
            between = low == high
            i = np.clip(low, 1, n - 1)
            a, b = known[i - 1], known[i]
            part = np.clip((values - a) / np.where(b > a, b - a, 1), 0, 1)
            rank = np.where(between, i - 0.5 + part, rank)
        out[:, j] = rank / n
    return out.reshape(x.shape)


def _between(nodes: Array, tau: Array) -> Array:
    """Linear interpolation of values at τ = (k − ½)/N."""
    return _interpolate(nodes, np.clip(np.nan_to_num(tau) * len(nodes) - 0.5, 0, len(nodes) - 1))


def _interpolate(values: Array, at: Array) -> Array:
    """Along the first axis, at places that count from 0."""
    low = np.floor(at).astype(np.intp)
    low = np.minimum(low, max(len(values) - 2, 0))
    high = np.minimum(low + 1, len(values) - 1)
    part = at - low
    a, b = np.take_along_axis(values, low, 0), np.take_along_axis(values, high, 0)
    return np.where(part == 0, a, a + part * (b - a))

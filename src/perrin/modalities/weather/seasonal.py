"""Direct seasonal regression: the mean forecast of monthly anomalies, and residuals that were not fitted.

With x_t the anomalies of month t and x̄_n the mean of the last n months, the amplitudes y of k empirical orthogonal
functions E of the training period (orthonormal by area), a = (y(x_t), y(x̄_4), y(x̄_12)), predict those at each lead L
separately for each month of the start,

    g = E B_{L,m} a,        B by ridge regression, the samples of month m′ weighted by exp(κ (cos 2π(m − m′)/12 − 1)),

and each point adds its own memory,

    x̂(t + L) = c_0 x_t + c_1 x̄_4 + c_2 x̄_12 + c_3 g,

with c by regression over the training period, drawn towards that of all points together. The g of this second
regression, and the residuals that `fit` returns, are from models that have not seen the years about them (blocked
cross-validation): residuals of a fit in sample are too small, and their ensemble would be too sure.

It differs from the linear inverse model (`perrin.modalities.weather.lim`) by its seasons, its longer past, and its
leads: nothing is raised to a power.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError

Array = NDArray[np.float64]
PAST = (1, 4, 12)
"""Months of the means that a forecast starts from."""


@dataclass(frozen=True, kw_only=True)
class SeasonalRegression:
    """Fitted by `fit`.

    Arguments:
        E: functions, `[points, K]`, orthonormal under `weight`; the first k are predictors, all are predicted.
        weight: of the points, `[points]`, sum 1.
        B: `[leads, 12, K, 3k]`, for each month of the start.
        c: `[leads, points, 4]`.
    """

    E: Array
    weight: Array
    B: Array
    c: Array

    @property
    def leads(self) -> int:
        """The longest lead, months."""
        return len(self.B)

    def amplitudes(self, past: Array) -> Array:
        """a, `[..., 3k]`, of means over the past `[..., 3, points]`."""
        k = self.B.shape[-1] // len(PAST)
        y = past @ (self.E[:, :k] * self.weight[:, None])
        return np.asarray(y.reshape(*y.shape[:-2], -1))

    def mean(self, past: Array, month: int) -> Array:
        """The expected anomalies of the months after a start, `[leads, points]`.

        Arguments:
            past: x_t, x̄_4 and x̄_12, `[3, points]`, as `past_means` gives.
            month: of the start, 0 for January.
        """
        g = self.B[:, month] @ self.amplitudes(past) @ self.E.T
        return np.einsum("lpi,ip->lp", self.c[..., :3], past) + self.c[..., 3] * g


def past_means(x: Array, t: NDArray[np.intp]) -> Array:
    """x_t, x̄_4 and x̄_12 at times t of a record `[time, points]`, `[len(t), 3, points]`.

    Raises:
        PerrinError: there are fewer than 12 months up to one of them.
    """
    if len(t) and min(t) < PAST[-1] - 1:
        raise PerrinError(
            f"expected {PAST[-1]} months of data up to the start of a forecast, given {min(t) + 1}: start later"
        )
    total = np.concatenate([np.zeros_like(x[:1]), np.cumsum(x, 0)])
    return np.stack([(total[t + 1] - total[t + 1 - n]) / n for n in PAST], 1)


def fit(
    x: Array,
    months: NDArray[np.intp],
    weight: Array,
    *,
    leads: int = 12,
    modes: int = 20,
    predicted: int = 80,
    ridge: float = 10.0,
    kappa: float = 1.0,
    years: float = 1e6,
    folds: int = 6,
    shrink: float = 1.0,
) -> tuple[SeasonalRegression, NDArray[np.intp], Array]:
    """Fit to a record without gaps.

    Arguments:
        x: anomalies, `[time, points]`.
        months: 0 for January, `[time]`.
        weight: areas of the points.
        leads: the longest lead, months.
        modes, predicted: k and K.
        ridge: in units of the variance of the first amplitude.
        kappa: how much nearer months count more.
        years: the past is forgotten over this many years.
        folds: of the cross-validation.
        shrink: how much a point's c is drawn towards that of all, in units of a typical variance.

    Returns:
        The model; the starts of the residuals; residuals `x − x̂` of all leads, `[starts, leads, points]`, each by a
        model that has not seen the year before and after it.

    Raises:
        PerrinError: the record is too short.
    """
    n = len(x)
    if n < 12 * folds + 2 * leads:
        raise PerrinError(
            f"expected at least {12 * folds + 2 * leads} months to fit, given {n}: use more training years"
        )
    w = weight / weight.sum()
    every = np.arange(n)
    first = PAST[-1] - 1
    past = np.zeros((n, len(PAST), x.shape[1]))
    past[first:] = past_means(x, every[first:])
    fading = np.exp((every - n) / (12 * years))

    def regress(known: NDArray[np.intp]) -> tuple[Array, Array]:
        """E and B of the months that are known."""
        _, s, rows = np.linalg.svd(x[known] * np.sqrt(w), full_matrices=False)
        count = min(predicted, len(rows))
        E = rows[:count].T / np.sqrt(w)[:, None]
        k = min(modes, count)
        y = x @ (E * w[:, None])
        a = (past @ (E[:, :k] * w[:, None])).reshape(n, -1)
        B = np.zeros((leads, 12, count, a.shape[1]))
        inside = np.zeros(n, dtype=bool)
        inside[known] = True
        for lead in range(1, leads + 1):
            t = every[first : n - lead]
            t = t[inside[t] & inside[t + lead]]
            for m in range(12):
                q = np.exp(kappa * (np.cos(2 * np.pi * (months[t] - m) / 12) - 1)) * fading[t]
                aq = a[t] * q[:, None]
                gram = aq.T @ a[t] + ridge * s[0] ** 2 / len(known) * np.eye(a.shape[1])
                B[lead - 1, m] = np.linalg.solve(gram, aq.T @ y[t + lead]).T
        return E, B

    def linear(E: Array, B: Array, t: NDArray[np.intp], lead: int) -> Array:
        k = B.shape[-1] // len(PAST)
        a = (past[t] @ (E[:, :k] * w[:, None])).reshape(len(t), -1)
        return np.einsum("tki,ti->tk", B[lead - 1, months[t]], a) @ E.T

    g = np.zeros((leads, n, x.shape[1]), dtype=np.float32)
    for block in np.array_split(every, folds):
        known = every[(every < block[0] - 12) | (every > block[-1] + 12)]
        E, B = regress(known)
        t = block[block >= first]
        for lead in range(1, leads + 1):
            g[lead - 1, t] = linear(E, B, t, lead)

    starts = every[first : n - leads]
    residuals = np.zeros((len(starts), leads, x.shape[1]))
    c = np.zeros((leads, x.shape[1], 4))
    for lead in range(1, leads + 1):
        t = every[first : n - lead]
        F = np.concatenate([past[t].transpose(2, 0, 1), g[lead - 1, t].T[..., None]], -1)
        Y = x[t + lead].T[..., None]
        for block in [*np.array_split(every, folds), every[:0]]:
            held = len(block) > 0  # none at last: that fit is kept
            use = (t + lead < block[0] - 12) | (t > block[-1] + 12) if held else t >= 0
            Fq = (F[:, use] * fading[t[use], None]).transpose(0, 2, 1)
            gram, right = Fq @ F[:, use], Fq @ Y[:, use]
            whole, total = np.tensordot(w, gram, 1), np.tensordot(w, right, 1)
            common = np.linalg.solve(whole, total)
            pull = shrink * np.trace(whole) / 4 * np.eye(4)
            found = common + np.linalg.solve(gram + pull, right - gram @ common)
            if not held:
                c[lead - 1] = found[..., 0]
            else:
                own = np.isin(t, block) & (t < n - leads)
                e = Y[:, own, 0] - (F[:, own] @ found)[..., 0]
                residuals[t[own] - first, lead - 1] = e.T
    E, B = regress(every)
    return SeasonalRegression(E=E, weight=w, B=B, c=c), starts, residuals

"""Direct seasonal regression: the mean forecast of monthly anomalies, and residuals that were not fitted.

With x̄_n the mean of the last n months of anomalies (x̄_1 = x_t), the sea is described by its level m = x̄_120, the mean
of ten years, and by its departures from it, d_n = x̄_n − m for n = 1, 2, 6 and 24. A forecast goes back to the level and
not to the climatology of the training years, for the sea warms. Months that a record lacks count as that climatology:
with a short past the level is drawn towards it.

The amplitudes y of k empirical orthogonal functions E of x − m (orthonormal by area) predict those of K at each lead L,

    g = E B_{L,m} y(d_1),

for each month m of the start, by the normal process whose coefficients of two months have the correlation
κ₀ + (1 − κ₀) exp(κ (cos 2π(m − m′)/12 − 1)): what all months have in common, and departures that neighbours share. And
each point adds its own memory,

    x̂(t + L) = m + Σ_n c_n d_n + c_g g,        c = Σ_h c^h (1, cos, sin of one and of two turns of the year),

with c by regression over the training period, drawn towards that of all points together. The g of this second
regression, and the residuals that `fit` returns, are from models that have not seen the years about them (blocked
cross-validation): residuals of a fit in sample are too small, and their ensemble would be too sure.

It differs from the linear inverse model (`perrin.modalities.weather.lim`) by its level, its seasons, its longer past, and
its leads: nothing is raised to a power.

References: means of the last ten years as "normals", Huang, van den Dool & Barnston 1996, Journal of Climate 9, 809.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError

Array = NDArray[np.float64]
PAST = (1, 2, 6, 24)
"""Months of the means whose departures from the level a forecast starts from."""
LEVEL = 120
"""Months of the level."""
LEAST = 12
"""Months that a forecast needs at least."""


@dataclass(frozen=True, kw_only=True)
class SeasonalRegression:
    """Fitted by `fit`.

    Arguments:
        E: functions, `[points, K]`, orthonormal under `weight`; the first k are predictors, all are predicted.
        weight: of the points, `[points]`, sum 1.
        B: `[leads, 12, K, k]`, for each month of the start.
        c: of d_1, d_2, d_6, d_24 and g, by harmonics of the year, `[leads, points, 5, 5]`.
    """

    E: Array
    weight: Array
    B: Array
    c: Array

    @property
    def leads(self) -> int:
        """The longest lead, months."""
        return len(self.B)

    def amplitudes(self, x: Array) -> Array:
        """y of the first k functions, `[..., k]`, of fields `[..., points]`."""
        return np.asarray(x @ (self.E[:, : self.B.shape[-1]] * self.weight[:, None]))

    def mean(self, past: Array, month: int) -> Array:
        """The expected anomalies of the months after a start, `[leads, points]`.

        Arguments:
            past: d_1, d_2, d_6, d_24 and m, `[5, points]`, as `past_means` gives.
            month: of the start, 0 for January.
        """
        d, level = past[:-1], past[-1]
        g = self.B[:, month] @ self.amplitudes(d[0]) @ self.E.T
        c = self.c @ harmonics(np.array([month]))[0]
        return np.asarray(level + np.einsum("lpi,ip->lp", c[..., :-1], d) + c[..., -1] * g)


def harmonics(months: NDArray[np.intp]) -> Array:
    """1, cosine and sine of one and of two turns of the year, `[n, 5]`."""
    a = 2 * np.pi * months / 12
    return np.stack([np.ones_like(a), np.cos(a), np.sin(a), np.cos(2 * a), np.sin(2 * a)], -1)


def past_means(x: Array, t: NDArray[np.intp]) -> Array:
    """d_1, d_2, d_6, d_24 and m at times t of a record of anomalies `[time, points]`, `[len(t), 5, points]`.

    Raises:
        PerrinError: there are fewer than 12 months up to one of them.
    """
    if len(t) and min(t) < LEAST - 1:
        raise PerrinError(
            f"expected {LEAST} months of data up to the start of a forecast, given {min(t) + 1}: start later"
        )
    total = np.concatenate([np.zeros_like(x[:1]), np.cumsum(x, 0)])
    level, *means = ((total[t + 1] - total[np.maximum(t + 1 - n, 0)]) / n for n in (LEVEL, *PAST))
    return np.stack([*(mean - level for mean in means), level], 1)


def fit(
    x: Array,
    months: NDArray[np.intp],
    weight: Array,
    *,
    leads: int = 12,
    modes: int = 20,
    predicted: int = 60,
    ridge: float = 3.0,
    kappa: float = 1.0,
    common: float = 0.6,
    folds: int = 6,
    shrink: float = 1.0,
    seasons: float = 0.5,
) -> tuple[SeasonalRegression, NDArray[np.intp], Array]:
    """Fit to a record without gaps.

    Arguments:
        x: anomalies, `[time, points]`.
        months: 0 for January, `[time]`.
        weight: areas of the points.
        leads: the longest lead, months.
        modes, predicted: k and K.
        ridge: in units of the mean square of y.
        kappa, common: κ and κ₀.
        folds: of the cross-validation.
        shrink: how much a point's c is drawn towards that of all, in units of its predictor's mean square.
        seasons: the size of c's seasons that is expected, relative to c.

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
    first = LEAST - 1
    every = np.arange(first, n)
    past = past_means(x, every)
    d, level = past[:, :-1], past[:, -1]

    _, _, rows = np.linalg.svd(d[:, 0] * np.sqrt(w), full_matrices=False)
    E = rows[: min(predicted, len(rows))].T / np.sqrt(w)[:, None]
    W = E * w[:, None]
    k = min(modes, E.shape[1])
    y = d[:, 0] @ W[:, :k]
    turn = 2 * np.pi * (months[every][:, None] - np.arange(12)) / 12
    alike = common + (1 - common) * np.exp(kappa * (np.cos(turn) - 1))  # `[starts, 12]`
    size = (y**2).sum(1).mean()
    kernel = (y @ y.T) * alike[:, months[every]] / size

    starts = every[: n - leads - first]
    residuals = np.zeros((len(starts), leads, x.shape[1]))
    B, c = np.zeros((leads, 12, E.shape[1], k)), np.zeros((leads, x.shape[1], len(PAST) + 1, 5))
    for lead in range(1, leads + 1):
        i = np.arange(n - lead - first)  # of the starts
        target = x[every[i] + lead] - level[i]
        z = target @ W
        # Of each block of starts: those whose data or target are within a year of it.
        held = [(b, slice(max(0, b[0] - lead - 12), b[-1] + lead + 13)) for b in np.array_split(i, folds)]
        g = np.zeros_like(z)
        for block, near in held:
            rest = np.delete(i, near)
            g[block] = kernel[np.ix_(block, rest)] @ _dual(kernel[np.ix_(rest, rest)], z[rest], ridge)
        F = np.concatenate([d[i], (g @ E.T)[:, None]], 1)
        season = harmonics(months[every[i]])
        c[lead - 1], left = _pointwise(F, target, season, w, held, shrink, seasons)
        residuals[:, lead - 1] = left[: len(starts)]
        dual = _dual(kernel[np.ix_(i, i)], z, ridge)
        B[lead - 1] = np.einsum("nm,nK,nk->mKk", alike[i], dual, y[i], optimize=True) / size
    return SeasonalRegression(E=E, weight=w, B=B, c=c), starts, residuals


def _dual(kernel: Array, z: Array, ridge: float) -> Array:
    """Weights of the samples whose kernel to a start predicts z there, `[n, K]`."""
    return np.asarray(np.linalg.solve(kernel + ridge * np.eye(len(kernel)), z), dtype=np.float64)


def _pointwise(
    F: Array,
    target: Array,
    season: Array,
    weight: Array,
    held: list[tuple[NDArray[np.intp], slice]],
    shrink: float,
    seasons: float,
) -> tuple[Array, Array]:
    """c of each point, and what it leaves out by cross-validation.

    Arguments:
        F: predictors, `[n, 5, points]`.
        target: `[n, points]`.
        season: harmonics of the starts, `[n, 5]`.
        weight: of the points.
        held: blocks of samples, and what their regression must not see.
        shrink, seasons: as in `fit`.

    Returns:
        c, `[points, 5, 5]`, and residuals, `[n, points]`.
    """
    n, count, points = F.shape
    X = (F.transpose(2, 0, 1)[..., None] * season[:, None]).reshape(points, n, -1)
    Y = np.ascontiguousarray(target.T)[..., None]

    def moments(use: slice) -> tuple[Array, Array]:
        part = X[:, use].transpose(0, 2, 1)
        return part @ X[:, use], part @ Y[:, use]

    every = moments(slice(None))

    def solve(gram: Array, right: Array) -> Array:
        whole, total = np.tensordot(weight, gram, 1), np.tensordot(weight, right, 1)
        size = whole.diagonal()[:: season.shape[1]]
        pull = np.diag(np.outer(size, [1.0] + [seasons**-2] * (season.shape[1] - 1)).ravel())
        common = np.linalg.solve(whole + 1e-3 * pull, total)
        return np.asarray(common + np.linalg.solve(gram + shrink * pull, right - gram @ common))

    left = np.zeros_like(target)
    for block, near in held:
        gram, right = moments(near)
        found = solve(every[0] - gram, every[1] - right)
        left[block] = (Y[:, block] - X[:, block] @ found)[..., 0].T
    return solve(*every).reshape(points, count, -1), left

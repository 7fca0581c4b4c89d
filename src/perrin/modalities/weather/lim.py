"""The linear inverse model: the linear Markov process that has a record's covariances (Penland & Sardeshmukh 1995).

Anomalies x (time t in months) are projected on the leading k empirical orthogonal functions E of the training period,
orthonormal in the inner product weighted by area, y = Eᵀ W x. With C₀ = ⟨y yᵀ⟩ and C₁ = ⟨y(t+1) yᵀ⟩,

    G = C₁ C₀⁻¹,        y(t + τ) = G^τ y(t) + noise of covariance C₀ − G^τ C₀ (G^τ)ᵀ .

What the functions leave out, r = x − E y, decays at each point at its own rate, r(t + τ) = ρ^τ r(t) + noise of variance
(1 − ρ^2τ) ⟨r²⟩, with ρ its correlation with the step before. The model of the paper has ρ = 0: `replace(model, damping=0 *
model.damping)`; with ρ it is the stronger rival at short leads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perrin import core
from perrin.errors import PerrinError

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LinearInverseModel:
    """Fitted by `fit`.

    Arguments:
        E: empirical orthogonal functions, `[points, k]`.
        weight: area weights, `[points]`, sum 1.
        G: the propagator over one step, `[k, k]`.
        C0: covariance of the amplitudes, `[k, k]`.
        rest: standard deviation of what the functions leave out, `[points]`.
        damping: ρ, `[points]`, 0 to 1.
    """

    E: Array
    weight: Array
    G: Array
    C0: Array
    rest: Array
    damping: Array

    @staticmethod
    def fit(x: Array, weight: Array, modes: int) -> LinearInverseModel:
        """Fit to consecutive steps of anomalies.

        Arguments:
            x: anomalies, `[time, points]`, their mean over time near 0.
            weight: areas of the points, `[points]`.
            modes: k.

        Raises:
            PerrinError: there are fewer steps or points than functions asked for.
        """
        if not 1 <= modes < min(x.shape):
            raise PerrinError(f"expected 1 to {min(x.shape) - 1} modes for {len(x)} steps, given {modes}")
        w = weight / weight.sum()
        _, _, rows = np.linalg.svd(x * np.sqrt(w), full_matrices=False)
        E = rows[:modes].T / np.sqrt(w)[:, None]
        y = x @ (E * w[:, None])
        C0 = y.T @ y / len(y)
        C1 = y[1:].T @ y[:-1] / (len(y) - 1)
        r = x - y @ E.T
        square = (r**2).mean(0)
        damping = (r[1:] * r[:-1]).mean(0) / np.maximum(square, np.finfo(np.float64).tiny)
        return LinearInverseModel(
            E=E, weight=w, G=C1 @ np.linalg.inv(C0), C0=C0, rest=np.sqrt(square), damping=damping.clip(0, 1)
        )

    def mean(self, x: Array, steps: int) -> Array:
        """The expected anomalies `steps` after `x`, `[..., points]`."""
        y = x @ (self.E * self.weight[:, None])
        later = y @ np.linalg.matrix_power(self.G, steps).T
        return later @ self.E.T + self.damping**steps * (x - y @ self.E.T)

    def covariance(self, steps: int) -> Array:
        """Of the amplitudes' forecast error, `[k, k]`."""
        power = np.linalg.matrix_power(self.G, steps)
        return self.C0 - power @ self.C0 @ power.T

    def ensemble(self, x: Array, steps: int, members: int, seed: int, start: int = 0) -> Array:
        """Members of the forecast, `[members, points]`; member i depends on the seed, the start and on i alone.

        Arguments:
            x: anomalies at the initial time, `[points]`.
            steps: the lead.
            members: how many.
            seed: of the run.
            start: a number of the initial time, which makes its noise its own.
        """
        values, vectors = np.linalg.eigh(self.covariance(steps))
        root = vectors * np.sqrt(np.maximum(values, 0))
        noise = core.CounterNoise(core.sample_seeds(seed, range(members)))
        k, points = len(self.G), len(self.rest)
        white = (
            noise.normal(core.Dense(members), (k + points,), field="lim", step=start)
            .numpy()
            .astype(np.float64)
        )
        rest = self.rest * np.sqrt(1 - self.damping ** (2 * steps))
        return self.mean(x, steps) + white[:, :k] @ root.T @ self.E.T + white[:, k:] * rest

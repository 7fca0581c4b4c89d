"""Fields given scattered observations: posterior sampling of amplitudes by a guide, and of the rest by kriging.

A month's anomalies are  x = σ (Σ_k s_k a_k φ_k + ρ n)  as in `perrin.modalities.weather.residual` with a single lead: a
diffusion model is the prior of the amplitudes a, the rest n is isotropic Gaussian noise. Observations y = H x + ε at
points are, given a, normal:

    y ~ N(H σ s φ a, R),        R = D C D + diag(ε²),    D = σ ρ at the points,    C_ij = Σ_l S_l P_l(cos θ_ij)

with θ_ij the angle between two points (the addition theorem). With the Cholesky factor of R = L Lᵀ the measurement L⁻¹
y has unit noise, and the guide (`perrin.core.guides.posterior.MMPS`) samples a from its posterior. Given a, the rest is
sampled exactly: a draw from the prior, corrected by the kriging of what it misses at the observations (Journel &
Huijbregts 1978, conditional simulation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perrin.core import SOLVERS, CounterNoise, Dense, NetworkDenoiser, plan_steps, sample
from perrin.core.grids import logit_normal
from perrin.core.guides.operators import Matrix
from perrin.core.guides.posterior import MMPS, Measurement
from perrin.errors import PerrinError
from perrin.modalities.weather.residual import ResidualModes
from perrin.modalities.weather.sst_network import FIELD
from perrin.nets.sphere import SphericalHarmonics

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Observations:
    """Values at places.

    Arguments:
        latitude, longitude: degrees, `[n]`.
        value: anomalies, `[n]`.
        error: standard deviations, `[n]`.
    """

    latitude: Array
    longitude: Array
    value: Array
    error: Array


def correlation(spectrum: Array, a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
    """C between places, `[n, m]`: Σ_l S_l P_l(cos θ).

    Arguments:
        spectrum: S_l, `[L]`, sum 1.
        a, b: latitudes and longitudes, degrees.
    """

    def unit(place: tuple[Array, Array]) -> Array:
        phi, lam = np.deg2rad(place[0]), np.deg2rad(place[1])
        return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], -1)

    x = np.clip(unit(a) @ unit(b).T, -1, 1)
    return np.asarray(np.polynomial.legendre.legval(x, spectrum))


class Infill:
    """Posterior of one month's anomalies.

    Arguments:
        prior: modes of anomalies, of one lead.
        denoiser: of their amplitudes.
        places: latitudes and longitudes of the points, `[points]` each.
        sea: which cells of the grid are points, `[rows, columns]`.
        harmonics: of the grid.
        condition: of the network, `[C]`.
        month: 0 for January.
        observations: see there; each is of the nearest point.
        scale: of the prior's spread, for years more variable than those it was fitted to.
        steps, iterations: evaluations of the network, and of conjugate gradients in each.

    Raises:
        PerrinError: an observation is on land, far from any point.
    """

    def __init__(
        self,
        prior: ResidualModes,
        denoiser: NetworkDenoiser,
        places: tuple[Array, Array],
        sea: NDArray[np.bool_],
        harmonics: SphericalHarmonics,
        condition: Array,
        month: int,
        observations: Observations,
        *,
        scale: float = 1.0,
        steps: int = 24,
        iterations: int = 12,
    ) -> None:
        self.prior, self.denoiser, self.sea, self.harmonics = prior, denoiser, sea, harmonics
        self.condition, self.month, self.steps, self.iterations = condition, month, steps, iterations
        o = observations
        at = nearest(places, (o.latitude, o.longitude))
        sigma = prior.scale[month, 0] * scale
        self.modes = sigma * (prior.spread[:, None] * prior.modes[:, 0])  # [K, points]
        self.depth = sigma * prior.rest[0]
        own = (places[0][at], places[1][at])
        d = self.depth[at]
        R = d[:, None] * correlation(prior.spectrum, own, own) * d + np.diag(o.error**2)
        self.L = np.linalg.cholesky(R + 1e-9 * np.trace(R) / len(R) * np.eye(len(R)))
        self.gain = np.linalg.solve(
            self.L.T,
            np.linalg.solve(self.L, d[:, None] * correlation(prior.spectrum, own, places) * self.depth),
        ).T
        self.at, self.observations = at, o
        white = np.linalg.solve(self.L, np.column_stack([self.modes[:, at].T, o.value]))
        self.H, self.y = white[:, :-1], white[:, -1]

    def members(self, seeds: Tensor, *, batch: int = 1) -> Array:
        """Fields from the posterior, `[M, points]`; each depends on its own seed alone.

        Arguments:
            seeds: of the members, `[M]`, int64.
            batch: how many are made together: with 1 the bits do not depend on M, with more only the digits.
        """
        return np.concatenate([self._members(part) for part in seeds.split(batch)])

    def _members(self, seeds: Tensor) -> Array:
        count = len(seeds)
        noise, layouts = CounterNoise(seeds), {FIELD: Dense(count)}
        process = self.denoiser.process
        guide = MMPS(
            denoiser=self.denoiser,
            schedule=process.fields[FIELD].schedule,
            measurement=Measurement(
                Matrix(torch.from_numpy(self.H).float()), torch.from_numpy(self.y).float()[None], std=1.0
            ),
            field=FIELD,
            iterations=self.iterations,
        )
        plan = plan_steps(
            process,
            SOLVERS["heun"],
            self.steps,
            grid=lambda n: logit_normal(n, mean=0.0, std=1.8, start=0.999),
        )
        given = torch.from_numpy(self.condition).float().expand(count, -1)
        state = sample(guide, process, plan, layouts, noise, condition=given)
        a = state[FIELD].numpy().astype(np.float64)
        degree = len(self.prior.spectrum)
        white = noise.normal(Dense(count), (1, degree**2), field="rest", step=0).numpy().astype(np.float64)
        rest = self.depth * np.concatenate([self.prior.noise(w, self.harmonics, self.sea) for w in white])
        jitter = noise.normal(Dense(count), (len(self.at),), field="error", step=0).numpy()
        x = a @ self.modes + rest
        missed = self.observations.value - x[:, self.at] - self.observations.error * jitter
        return np.asarray(x + missed @ self.gain.T)


def nearest(places: tuple[Array, Array], wanted: tuple[Array, Array], limit: float = 5.0) -> NDArray[np.intp]:
    """The point nearest to each wanted place.

    Raises:
        PerrinError: one is more than `limit` degrees from any.
    """
    C = correlation(np.array([0.0, 1.0]), wanted, places)  # the cosine of the angle
    far = C.max(1) < np.cos(np.deg2rad(limit))
    if far.any():
        i = int(np.argmax(far))
        raise PerrinError(
            f"expected observations at sea, given one at {wanted[0][i]:g}, {wanted[1][i]:g}, more than {limit:g} degrees "
            "from the model's sea: leave it out"
        )
    return np.asarray(C.argmax(1))


def optimal_interpolation(
    places: tuple[Array, Array],
    variance: Array,
    length: float,
    at: NDArray[np.intp],
    value: Array,
    error: Array,
) -> tuple[Array, Array]:
    """The classical rival: the mean and the variance at every point of a Gaussian field with the correlation exp(−d/length).

    Gandin 1963; Reynolds & Smith 1994.

    Arguments:
        places: latitudes and longitudes, degrees, `[points]` each.
        variance: of the field, `[points]`.
        length: km.
        at: the points observed, `[n]`.
        value, error: `[n]`.
    """

    def covariance(i: NDArray[np.intp], j: NDArray[np.intp]) -> Array:
        c = correlation(np.array([0.0, 1.0]), (places[0][i], places[1][i]), (places[0][j], places[1][j]))
        d = 6371 * np.arccos(np.clip(c, -1, 1))
        return np.asarray(np.exp(-d / length) * np.sqrt(variance[i, None] * variance[j]))

    every = np.arange(len(variance))
    B = covariance(every, at)
    K = np.linalg.solve(covariance(at, at) + np.diag(error**2), B.T).T
    return K @ value, np.maximum(variance - (K * B).sum(1), 0)

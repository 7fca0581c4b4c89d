"""What a mean forecast leaves out, as amplitudes to diffuse and a rest.

Residuals r of all leads of one start are one vector, so that a member is a trajectory and not a set of unrelated maps.
Scaled for each lead, point and month of the start,

    z = r / σ,        σ²: the mean of r² and two harmonics of the year, at each lead and point,

and expanded in their leading joint modes, z = Σ_k s_k a_k φ_k + ρ n. The amplitudes a, of unit variance over the
training period, are what a diffusion model draws. The rest has its standard deviation ρ at each lead and point, and is
drawn as isotropic noise on the sphere (`perrin.nets.sphere.isotropic`) with the power spectrum that it has, correlated
from lead to lead.

Modes fit their own sample best. So s_k and ρ are not those of the training sample: they are found by cross-validation
over blocks of years, from the projections of years on modes of the others. And σ's season is drawn towards none, so that
z is larger where σ is: s_k² and ρ² are means weighted by σ², with which the variance of r over the year is kept, and not
that of z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from perrin.errors import PerrinError
from perrin.nets.sphere import SphericalHarmonics, isotropic, power

Array = NDArray[np.float64]
_FLOOR = 0.2
_LEAST = 0.01
"""The smallest σ, K: water that was always frozen in the training years may not be in later ones."""


@dataclass(frozen=True, kw_only=True)
class ResidualModes:
    """Fitted by `fit_modes`.

    Arguments:
        scale: σ for each month of the start, `[12, leads, points]`.
        modes: φ, `[K, leads, points]`, orthonormal under the area weights, summed over leads.
        spread: s, `[K]`, and `fitted`, the standard deviation of the amplitudes in the training sample.
        fitted: see there.
        rest: ρ, `[leads, points]`.
        spectrum: of the rest, for degrees 0 … L − 1, sum 1.
        memory: correlation of the rest between neighbouring leads.
    """

    scale: Array
    modes: Array
    spread: Array
    fitted: Array
    rest: Array
    spectrum: Array
    memory: float

    @property
    def count(self) -> int:
        """K."""
        return len(self.modes)

    def amplitudes(self, r: Array, months: NDArray[np.intp], weight: Array) -> Array:
        """a of residuals `[n, leads, points]`, of unit variance over the training period, `[n, K]`."""
        z = (r / self.scale[months]) * weight
        return np.einsum("nlp,klp->nk", z, self.modes) / self.fitted

    def residual(self, a: Array, n: Array, month: int) -> Array:
        """r of amplitudes `[K]` and of the rest's noise `[leads, points]` of unit variance."""
        z = np.tensordot(a * self.spread, self.modes, 1) + self.rest * n
        return np.asarray(self.scale[month] * z)

    def noise(self, white: Array, harmonics: SphericalHarmonics, sea: NDArray[np.bool_]) -> Array:
        """The rest's noise, `[leads, points]`, of unit variance, from standard normal numbers `[leads, L²]`.

        Arguments:
            white: `[leads, L²]`.
            harmonics: of the whole grid.
            sea: which cells are points, `[rows, columns]`.
        """
        fields = harmonics.inverse(isotropic(torch.from_numpy(white), torch.from_numpy(self.spectrum)))
        own = fields.numpy()[:, sea]
        out = np.empty_like(own)
        out[0] = own[0]
        for lead in range(1, len(own)):
            out[lead] = self.memory * out[lead - 1] + np.sqrt(1 - self.memory**2) * own[lead]
        return out


def seasonal_scale(r: Array, months: NDArray[np.intp]) -> Array:
    """σ, `[12, leads, points]`: the mean of r² and two harmonics of the year, drawn towards none, for 45 years are few."""
    angle = 2 * np.pi * months / 12
    mean = (r**2).mean(0)
    basis = np.stack(
        [np.ones_like(angle), np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], 1
    )
    shape = r.shape[1:]
    c = np.linalg.lstsq(basis, (r**2 / np.maximum(mean, 1e-12)).reshape(len(r), -1), rcond=None)[0]
    c[1:] *= 0.7
    m = 2 * np.pi * np.arange(12) / 12
    twelve = np.stack([np.ones_like(m), np.cos(m), np.sin(m), np.cos(2 * m), np.sin(2 * m)], 1)
    ratio = np.maximum((twelve @ c).reshape(12, *shape), _FLOOR)
    return np.maximum(np.sqrt(ratio * mean), _LEAST)


def fit_modes(
    r: Array,
    months: NDArray[np.intp],
    weight: Array,
    sea: NDArray[np.bool_],
    harmonics: SphericalHarmonics,
    *,
    count: int = 48,
    folds: int = 9,
) -> ResidualModes:
    """Fit to residuals of consecutive starts.

    Arguments:
        r: `[starts, leads, points]`.
        months: of the starts, 0 for January.
        weight: areas of the points, sum 1.
        sea: which cells of the grid are points.
        harmonics: of the grid.
        count: K.
        folds: of the cross-validation.

    Raises:
        PerrinError: the cross-validation leaves fewer starts than K.
    """
    scale = seasonal_scale(r, months)
    share = scale**2 / (scale[months] ** 2).mean(0)  # of the year's variance, `[12, leads, points]`
    root = np.sqrt(weight)
    z = ((r / scale[months]) * root).reshape(len(r), -1)

    def modes_of(rows: Array) -> tuple[Array, Array]:
        values, left = np.linalg.eigh(rows @ rows.T)
        order = np.argsort(values)[::-1][:count]
        s = np.sqrt(np.maximum(values[order], 1e-12))
        return (rows.T @ left[:, order] / s).T, s / np.sqrt(len(rows))

    leads, points = r.shape[1:]
    squares, rest = np.zeros(count), np.zeros((leads, points))
    spectra, pairs = np.zeros(harmonics.degree), np.zeros(2)
    every = np.arange(len(r))
    for block in np.array_split(every, folds):
        known = every[(every < block[0] - leads - 12) | (every > block[-1] + leads + 12)]
        if len(known) < count:
            raise PerrinError(
                f"expected a longer record to find {count} functions in, given {len(r)} months, of which cross-validation "
                f"leaves {len(known)}: use more training years (--years)"
            )
        phi, _ = modes_of(z[known])
        a = z[block] @ phi.T
        left = (z[block] - a @ phi).reshape(len(block), leads, points) / root
        q = share[months[block]]
        squares += (a**2 * (q.reshape(len(block), -1) @ (phi**2).T)).sum(0)
        rest += (q * left**2).sum(0)
        n = left / np.sqrt((left**2).mean(0))
        pairs += [(n[:, 1:] * n[:, :-1]).sum(), (n[:, 1:] ** 2).sum()]
        grid = np.zeros((len(block[::6]), leads, *sea.shape))
        grid[..., sea] = n[::6]
        spectra += power(harmonics(torch.from_numpy(grid))).numpy().sum((0, 1))
    phi, fitted = modes_of(z)
    spectrum = spectra / spectra.sum()
    return ResidualModes(
        scale=scale,
        modes=phi.reshape(-1, leads, points) / root,
        spread=np.sqrt(np.maximum.accumulate((squares / len(r))[::-1])[::-1]),
        fitted=fitted,
        rest=np.sqrt(rest / len(r)),
        spectrum=spectrum,
        memory=float(np.clip(pairs[0] / pairs[1], 0, 0.99)) if leads > 1 else 0.0,
    )

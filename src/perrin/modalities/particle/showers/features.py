"""High-level features of showers, as CaloChallenge defines them.

With energies e_v of the voxels v of a layer at (η_v, φ_v) = r_v (cos α_v, sin α_v), in mm,

    E = Σ e_v,   centre c_η = Σ η_v e_v / E,   width w_η = √(Σ η_v² e_v / E − c_η²),

likewise for φ and r; the sparsity of a layer is its share of empty voxels. An empty layer has zeros.

The depth of the shower's centre, Σ l E_l / Σ E_l, is in layers; the response is Σ e / E_inc.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perrin.modalities.particle.showers.files import Showers
from perrin.modalities.particle.showers.geometry import ETA, LAYERS, PHI, RADIUS

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Features:
    """Features of N showers.

    Arguments:
        incident: `[N]`, MeV.
        total: `[N]`, MeV.
        layers: `[N, 45]`, MeV.
        centre_eta, centre_phi, width_eta, width_phi, centre_r, width_r: `[N, 45]`, mm.
        sparsity: `[N, 45]`.
    """

    incident: Array
    total: Array
    layers: Array
    centre_eta: Array
    centre_phi: Array
    width_eta: Array
    width_phi: Array
    centre_r: Array
    width_r: Array
    sparsity: Array

    @property
    def response(self) -> Array:
        """Deposited over incident energy, `[N]`."""
        return self.total / self.incident

    @property
    def depth(self) -> Array:
        """The layer of the centre of energy, `[N]`."""
        return self.layers @ np.arange(LAYERS) / np.maximum(self.total, 1e-16)


def features(showers: Showers) -> Features:
    """All features of a set of showers."""
    e = showers.voxels.reshape(len(showers), LAYERS, -1).astype(np.float64)
    layer = e.sum(-1)

    def moments(x: Array) -> tuple[Array, Array]:
        centre = e @ x / (layer + 1e-16)
        square = e @ x**2 / (layer + 1e-16)
        return centre, np.sqrt((square - centre**2).clip(min=0))

    (eta, eta_w), (phi, phi_w), (r, r_w) = (moments(x) for x in (ETA, PHI, RADIUS))
    incident = showers.incident.astype(np.float64)
    return Features(incident, layer.sum(1), layer, eta, phi, eta_w, phi_w, r, r_w, (e <= 0).mean(-1))


def high_level(f: Features) -> Array:
    """The input of CaloChallenge's high-level classifier, `[N, 226]`."""
    parts = [np.log10(f.incident)[:, None], np.log10(f.layers + 1e-8)]
    parts += [x / 100 for x in (f.centre_eta, f.centre_phi, f.width_eta, f.width_phi)]
    return np.concatenate(parts, 1)


def low_level(showers: Showers) -> Array:
    """The input of CaloChallenge's low-level classifier, `[N, 6481]`: voxels in per cent of the incident energy."""
    incident = showers.incident.astype(np.float64)[:, None]
    return np.concatenate([np.log10(incident), 100 * showers.voxels / incident], 1)

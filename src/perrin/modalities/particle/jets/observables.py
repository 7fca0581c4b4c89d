"""Observables of jets: what their particles add up to, in units of the jet's pT.

Particles are massless: p = pT (cos φ, sin φ, sinh η), E = pT cosh η. The mass of a relative jet is that of the sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.modalities.particle.jets.efp import connected_graphs, efps, graph_sets
from perrin.modalities.particle.jets.files import Jets

Array = NDArray[Any]


def momentum(particles: Array) -> Array:
    """(px, py, pz, E) of the sum of the particles, `[N, 4]`, in units of the jet's pT.

    Arguments:
        particles: `[N, 30, ≥ 3]`: η_rel, φ_rel, pT_rel (0 for rows that are none).
    """
    p = np.asarray(particles, dtype=np.float64)
    eta, phi, pt = p[..., 0], p[..., 1], p[..., 2]
    parts = (pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta))
    return np.stack([part.sum(1) for part in parts], 1)


def relative_mass(particles: Array) -> Array:
    """√(E² − p²) of the sum, `[N]`, in units of the jet's pT."""
    px, py, pz, e = momentum(particles).T
    return np.asarray(np.sqrt((e**2 - px**2 - py**2 - pz**2).clip(min=0)))


def jet_observables(jets: Jets) -> dict[str, Array]:
    """One number per jet: masses, momenta, multiplicities."""
    total = momentum(jets.particles)
    return {
        "mass of the particles / pT": relative_mass(jets.particles),
        "pT of the particles / pT": np.hypot(total[:, 0], total[:, 1]),
        "particles": jets.mask.sum(1).astype(np.float64),
        "jet mass (GeV)": jets.jets[:, 2].astype(np.float64),
        "jet pT (GeV)": jets.jets[:, 0].astype(np.float64),
        "constituents": jets.jets[:, 3].astype(np.float64),
    }


def particle_observables(jets: Jets) -> dict[str, Array]:
    """One number per particle."""
    rows = jets.particles[jets.mask].astype(np.float64)
    return {"η_rel": rows[:, 0], "φ_rel": rows[:, 1], "pT_rel": rows[:, 2]}


def w1_polynomials(all_36: Array) -> Array:
    """The five polynomials of W1EFP among the 36: connected, four edges, four points; `[N, 5]`."""
    chosen = [g for g in connected_graphs(4) if 1 + max(max(e) for e in g) == 4]
    where = [graph_sets().index((g,)) for g in chosen]
    return all_36[:, where]


__all__ = ["efps", "jet_observables", "momentum", "particle_observables", "relative_mass", "w1_polynomials"]

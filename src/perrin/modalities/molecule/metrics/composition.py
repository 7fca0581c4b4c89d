r"""What molecules are made of, against real ones: counts of elements, charges, bonds, atoms and rings.

Total variation `½ Σ_k |p_k − q_k|` for categories (elements; formal charges; bond orders, without "no bond"; sizes of
rings), `W_1` for the number of atoms and of rings per molecule. As in MiDi (Vignac et al., arXiv:2302.09048), which
takes W_1 for charges and counts "no bond" among the orders. Rings are RDKit's symmetrised smallest set of smallest
rings, of the molecules that it sanitises; those with more than eight atoms count as one size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from perrin.modalities.molecule.metrics.statistics import Metrics, total_variation, wasserstein
from perrin.modalities.molecule.structure import Molecule

LARGEST = 9


class Composition:
    """Counts over a set of molecules with bonds."""

    def __init__(self, molecules: Sequence[Molecule]) -> None:
        self.elements = _count([m.numbers for m in molecules])
        self.charges = _count([m.charges for m in molecules])
        self.orders = _count([m.bonds[:, 2] for m in molecules if m.bonds is not None and len(m.bonds)])
        self.atoms = np.array([len(m) for m in molecules])
        rings = [sizes for m in molecules if (sizes := _rings(m)) is not None]
        self.rings = np.array([len(sizes) for sizes in rings])
        self.ring_sizes = Counter(min(size, LARGEST) for sizes in rings for size in sizes)


def composition_metrics(sample: Composition, reference: Composition) -> Metrics:
    """Distances of the distributions."""
    rings = len(sample.rings) and len(reference.rings)
    return {
        "elements": (total_variation(sample.elements, reference.elements), None),
        "charges": (total_variation(sample.charges, reference.charges), None),
        "bond_orders": (total_variation(sample.orders, reference.orders), None),
        "ring_sizes": (total_variation(sample.ring_sizes, reference.ring_sizes), None),
        "atoms_per_molecule": (wasserstein(sample.atoms, reference.atoms), None),
        "rings_per_molecule": (wasserstein(sample.rings, reference.rings) if rings else None, None),
    }


def _count(arrays: Sequence[np.ndarray]) -> Counter[int]:
    if not arrays:
        return Counter()
    values, counts = np.unique(np.concatenate(arrays), return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist())))


def _rings(molecule: Molecule) -> list[int] | None:
    from perrin.modalities.molecule.chem import graph, sanitize

    if molecule.bonds is None:
        return None
    mol = sanitize(graph(molecule.numbers, molecule.bonds, molecule.charges, implicit=False))
    return None if mol is None else [len(ring) for ring in mol.GetRingInfo().AtomRings()]

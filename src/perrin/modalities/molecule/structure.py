"""A molecule on the host: what files are read into, what samples become, what metrics look at.

`Molecule` holds plain NumPy arrays and no RDKit object, so that it pickles, caches and compares cheaply. Bonds are
Kekulé orders (1, 2, 3), never 1.5; hydrogens are explicit atoms.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

SYMBOLS: dict[int, str] = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
"""Elements of QM9, by atomic number. Other bundles may know more."""


@dataclass(frozen=True, kw_only=True)
class Molecule:
    """Atoms, positions and Kekulé bonds of one molecule.

    Arguments:
        numbers: atomic numbers, `[n]`, int64.
        positions: Cartesian coordinates in Å, `[n, 3]`, float64.
        bonds: rows `(i, j, order)` with `i < j` and order 1, 2 or 3, `[m, 3]`, int64; `None` when the source has no
            bonds (an XYZ file), which is not the same as a molecule without any.
        charges: formal charges, `[n]`, int64; all zero when the source has none.
        name: a title, written as the first line of the SDF record.
        properties: data items of the SDF record.
        stated: pairs (atom, hydrogens that it has and that are not written) of the atoms whose number a mol block states,
            by a valence or as a radical.
        isotopes: pairs (atom, mass number) of the atoms that are a given isotope. Models and measures know none.
        wedges: of a flat drawing, rows (narrow end, other end, RDKit's number of the direction); `None` in 3D.
    """

    numbers: np.ndarray
    positions: np.ndarray
    bonds: np.ndarray | None
    charges: np.ndarray
    name: str = ""
    properties: dict[str, Any] = field(default_factory=dict)
    stated: tuple[tuple[int, int], ...] = ()
    isotopes: tuple[tuple[int, int], ...] = ()
    wedges: tuple[tuple[int, int, int], ...] | None = None

    @property
    def flat(self) -> bool:
        """Whether the positions are those of a drawing, which say nothing of the geometry."""
        return self.wedges is not None

    def __len__(self) -> int:
        return len(self.numbers)

    def heavy_first(self) -> Molecule:
        """The same molecule with hydrogens behind the heavy atoms, as chemists write it; the order is kept otherwise."""
        order = np.argsort(self.numbers == 1, kind="stable")
        place = np.argsort(order).tolist()
        bonds = self.bonds
        if bonds is not None and len(bonds):
            ends = np.sort(np.argsort(order)[bonds[:, :2]], axis=1)
            bonds = np.column_stack((ends, bonds[:, 2]))
            bonds = bonds[np.lexsort((bonds[:, 1], bonds[:, 0]))]
        return replace(
            self,
            numbers=self.numbers[order],
            positions=self.positions[order],
            bonds=bonds,
            charges=self.charges[order],
            stated=tuple((place[i], count) for i, count in self.stated),
            isotopes=tuple((place[i], mass) for i, mass in self.isotopes),
            wedges=None if self.wedges is None else tuple((place[i], place[j], d) for i, j, d in self.wedges),
        )

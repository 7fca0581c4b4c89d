"""The **bonds** protocol: the generated bonds and formal charges, judged strictly; no distance is looked at.

An atom is stable when its bond orders add up to a valence that its element *and* formal charge allow (`VALENCES`,
written down from textbook octet valences, not derived from data: a table collected from a data set inherits its
mistakes). A molecule is stable when all its atoms are. It is valid when RDKit sanitises it with no hydrogen added,
and connected when it is one fragment. `smiles` exists for molecules that are valid and connected.

Net charge is reported apart (`neutral`) and no part of stability: every molecule of QM9 is neutral, so for QM9 a net
charge is a fault, but a salt in the user's own data is none. `sound` is the strictest figure: stable, valid,
connected and neutral. RDKit takes an atom that lacks a hydrogen for a radical and calls it valid; stability does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import canonical_smiles, graph, sanitize
from perrin.modalities.molecule.structure import Molecule

VALENCES: dict[tuple[int, int], tuple[int, ...]] = {
    (1, 0): (1,),
    (5, 0): (3,), (5, -1): (4,),
    (6, 0): (4,), (6, 1): (3,), (6, -1): (3,),
    (7, 0): (3,), (7, 1): (4,), (7, -1): (2,),
    (8, 0): (2,), (8, 1): (3,), (8, -1): (1,),
    (9, 0): (1,), (9, -1): (0,),
    (14, 0): (4,),
    (15, 0): (3, 5), (15, 1): (4,),
    (16, 0): (2, 4, 6), (16, 1): (3, 5), (16, -1): (1,),
    (17, 0): (1,), (17, -1): (0,),
    (35, 0): (1,), (35, -1): (0,),
    (53, 0): (1,), (53, -1): (0,),
}  # fmt: skip
"""Sums of bond orders allowed for (atomic number, formal charge). Anything else is not stable."""


@dataclass(frozen=True, kw_only=True)
class BondsRow:
    """What the protocol says of one molecule."""

    atoms: int
    stable_atoms: int
    valid: bool
    connected: bool
    neutral: bool
    smiles: str | None
    """Canonical, without stereochemistry; `None` unless valid and connected."""

    @property
    def stable(self) -> bool:
        """Every atom has an allowed valence."""
        return self.stable_atoms == self.atoms


def bonds(molecules: Sequence[Molecule]) -> list[BondsRow]:
    """Judge every molecule by the protocol.

    Raises:
        PerrinError: a molecule has no bonds (`None`).
    """
    return [_row(molecule, number) for number, molecule in enumerate(molecules, 1)]


def valence_sums(molecule: Molecule) -> np.ndarray:
    """Sum of the bond orders at each atom, `[n]`, int64."""
    rows = np.asarray(molecule.bonds).reshape(-1, 3)
    sums = np.zeros(len(molecule), dtype=np.int64)
    np.add.at(sums, rows[:, :2], rows[:, 2:])
    return sums


def _row(molecule: Molecule, number: int) -> BondsRow:
    if molecule.bonds is None:
        raise PerrinError(
            f"expected generated bonds for the bonds protocol, given none in molecule {number} (an XYZ file has "
            "none): give an SDF, or use the lookup protocol"
        )
    charges = molecule.charges.tolist()
    states = zip(molecule.numbers.tolist(), charges, valence_sums(molecule).tolist())
    stable = sum(total in VALENCES.get((element, charge), ()) for element, charge, total in states)
    mol = graph(molecule.numbers, molecule.bonds, molecule.charges, implicit=False)
    connected = len(Chem.GetMolFrags(mol)) == 1
    sane = sanitize(mol) if len(molecule) else None
    return BondsRow(
        atoms=len(molecule),
        stable_atoms=stable,
        valid=sane is not None,
        connected=connected,
        neutral=sum(charges) == 0,
        smiles=canonical_smiles(sane) if sane is not None and connected else None,
    )

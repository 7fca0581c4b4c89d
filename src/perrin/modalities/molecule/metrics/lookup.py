"""The **lookup** protocol: bonds from distances by a table (EDM: Hoogeboom et al., ICML 2022, arXiv:2203.17003).

Two atoms at distance `d` (pm) are bonded with order

    1  if d < s + 10,   2  if also d < b + 5,   3  if also d < t + 3,

where `s`, `b`, `t` are the typical lengths of their single, double and triple bond (a missing entry ends the chain).
An atom is stable when its orders add up to its valence (H 1, C 4, N 3, O 2, F 1); a molecule is stable when all its
atoms are. A molecule is valid when RDKit sanitises the graph of those orders (no charges, implicit hydrogens allowed,
as in EDM), and its SMILES is that of the *largest fragment*: a molecule in pieces counts as valid here.

The protocol is kept for comparison with published numbers. Real QM9 does not reach 100 % under it, because one table
of distances cannot tell every bond order. The generated bonds, if any, are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem, rdBase

from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import canonical_smiles, graph, sanitize
from perrin.modalities.molecule.structure import SYMBOLS, Molecule

H, C, N, O, F = 1, 6, 7, 8, 9

SINGLE: dict[tuple[int, int], float] = {
    (H, H): 74, (H, C): 109, (H, N): 101, (H, O): 96, (H, F): 92,
    (C, C): 154, (C, N): 147, (C, O): 143, (C, F): 135,
    (N, N): 145, (N, O): 140, (N, F): 136,
    (O, O): 148, (O, F): 142, (F, F): 142,
}  # fmt: skip
"""Typical length of a single bond, pm."""

DOUBLE: dict[tuple[int, int], float] = {
    (C, C): 134, (C, N): 129, (C, O): 120, (N, N): 125, (N, O): 121, (O, O): 121,
}  # fmt: skip

TRIPLE: dict[tuple[int, int], float] = {(C, C): 120, (C, N): 116, (C, O): 113, (N, N): 110}

MARGINS = (10.0, 5.0, 3.0)
"""Tolerances for single, double and triple bonds, pm."""

VALENCE: dict[int, int] = {H: 1, C: 4, N: 3, O: 2, F: 1}


def _thresholds() -> np.ndarray:
    """Upper distance of each order, Å, `[3, 10, 10]` by atomic number; -1 where the order does not exist."""
    table = np.full((3, 10, 10), -1.0)
    for row, (lengths, margin) in enumerate(zip((SINGLE, DOUBLE, TRIPLE), MARGINS)):
        for (a, b), length in lengths.items():
            table[row, a, b] = table[row, b, a] = (length + margin) / 100
    return table


THRESHOLDS = _thresholds()


@dataclass(frozen=True, kw_only=True)
class LookupRow:
    """What the protocol says of one molecule: counts, and the SMILES of its largest fragment if it is valid."""

    atoms: int
    stable_atoms: int
    smiles: str | None

    @property
    def stable(self) -> bool:
        """All atoms have their valence."""
        return self.stable_atoms == self.atoms


def lookup_orders(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Bond orders by the table.

    Arguments:
        numbers: atomic numbers, `[b, n]`, 0 where there is no atom.
        positions: Å, `[b, n, 3]`.

    Returns:
        orders 0 to 3, symmetric with a zero diagonal, `[b, n, n]`, int8.
    """
    distances = np.linalg.norm(positions[:, :, None] - positions[:, None], axis=-1)
    limits = THRESHOLDS[:, numbers[:, :, None], numbers[:, None]]
    single = distances < limits[0]
    double = single & (distances < limits[1])
    triple = double & (distances < limits[2])
    orders = single.astype(np.int8) + double.astype(np.int8) + triple.astype(np.int8)
    orders *= 1 - np.eye(numbers.shape[1], dtype=np.int8)
    return orders


def lookup(molecules: Sequence[Molecule], batch: int = 256) -> list[LookupRow]:
    """Judge every molecule by the protocol.

    Raises:
        PerrinError: an element outside H, C, N, O, F, for which the table has no lengths.
    """
    rows = []
    valence = np.zeros(10, dtype=np.int64)
    valence[list(VALENCE)] = list(VALENCE.values())
    for start in range(0, len(molecules), batch):
        chunk = molecules[start : start + batch]
        width = max(max(map(len, chunk)), 1)
        numbers = np.zeros((len(chunk), width), dtype=np.int64)
        positions = np.zeros((len(chunk), width, 3))
        for row, molecule in enumerate(chunk):
            unknown = set(molecule.numbers.tolist()) - set(VALENCE)
            if unknown:
                raise PerrinError(
                    f"expected the elements {', '.join(SYMBOLS.values())} of the lookup protocol, given atomic number "
                    f"{min(unknown)} in molecule {start + row + 1}: use the bonds protocol"
                )
            numbers[row, : len(molecule)] = molecule.numbers
            positions[row, : len(molecule)] = molecule.positions
        orders = lookup_orders(numbers, positions)
        stable = ((orders.sum(-1) == valence[numbers]) & (numbers > 0)).sum(-1)
        for row, molecule in enumerate(chunk):
            n = len(molecule)
            smiles = largest_fragment(molecule.numbers, orders[row, :n, :n])
            rows.append(LookupRow(atoms=n, stable_atoms=int(stable[row]), smiles=smiles))
    return rows


def largest_fragment(numbers: np.ndarray, orders: np.ndarray) -> str | None:
    """Canonical SMILES of the largest fragment of the graph, `None` when RDKit rejects the molecule.

    Arguments:
        numbers: atomic numbers, `[n]`.
        orders: bond orders, `[n, n]`.
    """
    i, j = np.nonzero(np.triu(orders))
    mol = sanitize(graph(numbers, np.stack([i, j, orders[i, j]], axis=1), implicit=True))
    if mol is None or mol.GetNumAtoms() == 0:
        return None
    with rdBase.BlockLogs():
        fragments = Chem.GetMolFrags(mol, asMols=True)
    return canonical_smiles(max(fragments, key=lambda fragment: fragment.GetNumAtoms()))

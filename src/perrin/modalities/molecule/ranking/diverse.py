"""Picking K different molecules: MaxMin (Kennard and Stone, Technometrics 11, 137 (1969)) on Morgan fingerprints.

The first pick is the best of the ranking. Each further pick is the molecule farthest from those picked so far,

    argmax_i min_{j picked} d(i, j),    d = 1 − Tanimoto(bits of radius 2, 2,048 bits),

the better ranked of equals. There is no random number in it. Cost: K rows of similarities, never the whole matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

RADIUS, BITS = 2, 2048


def pick_diverse(mols: Sequence[Chem.Mol], count: int) -> list[int]:
    """Indices of `count` molecules (all, where there are fewer) in the order in which they are picked.

    Arguments:
        mols: sanitised, without explicit hydrogens, best first.
        count: how many.
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    prints = [generator.GetFingerprint(mol) for mol in mols]
    if not prints or count < 1:
        return []
    picked = [0]
    nearest = np.full(len(prints), np.inf)
    while len(picked) < min(count, len(prints)):
        nearest = np.minimum(
            nearest, 1 - np.array(DataStructs.BulkTanimotoSimilarity(prints[picked[-1]], prints))
        )
        nearest[picked] = -1
        picked.append(int(nearest.argmax()))  # the first of equals
    return picked

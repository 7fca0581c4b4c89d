"""The strict verdict of the bonds protocol on padded tensors, where there are too many molecules for RDKit."""

from __future__ import annotations

import torch
from torch import Tensor

from perrin.core import State
from perrin.modalities.molecule.fields import BONDS, CHARGES, TYPES, Vocabulary
from perrin.modalities.molecule.metrics.bonds import VALENCES


def stable_atoms(state: State, mask: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Whether the bond orders of an atom add up to an allowed valence, `[B, N]`; padding is."""
    z = torch.tensor(vocabulary.elements, device=mask.device)[state[TYPES]]
    charge = torch.tensor(vocabulary.charges, device=mask.device)[state[CHARGES]]
    total = (state[BONDS] * _pairs(mask)).sum(-1)
    out = ~mask
    for (element, q), allowed in VALENCES.items():
        if element in vocabulary.elements:
            here = (z == element) & (charge == q)
            for valence in allowed:
                out = out | (here & (total == valence))
    return out


def connected(state: State, mask: Tensor) -> Tensor:
    """Whether bonds lead from any atom to all others, `[B]`; molecules begin at the first row."""
    adjacent = (state[BONDS] > 0) & _pairs(mask)
    reach = torch.zeros_like(mask)
    reach[:, 0] = True
    for _ in range(mask.shape[1] - 1):
        reach = reach | (adjacent & reach.unsqueeze(1)).any(2)
    return (reach | ~mask).all(1)


def sound(state: State, mask: Tensor, vocabulary: Vocabulary) -> Tensor:
    """All atoms stable, one fragment, no net charge, `[B]`.

    Arguments:
        state: types, charges `[B, N]` and bonds `[B, N, N]` as category numbers.
        mask: the atoms, `[B, N]`.

    What RDKit's sanitisation adds to that (aromaticity, kekulisation) is not looked at: with Kekulé bond orders and allowed
    valences it has nothing left to refuse.
    """
    charge = torch.tensor(vocabulary.charges, device=mask.device)[state[CHARGES]]
    neutral = (charge * mask).sum(1) == 0
    return stable_atoms(state, mask, vocabulary).all(1) & connected(state, mask) & neutral


def _pairs(mask: Tensor) -> Tensor:
    return mask.unsqueeze(2) & mask.unsqueeze(1)

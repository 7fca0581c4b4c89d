"""The strict verdict of the bonds protocol, and counts of what a molecule holds, on padded tensors: for more molecules than
RDKit can look at."""

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


def contents(state: State, mask: Tensor, vocabulary: Vocabulary) -> Tensor:
    """What a molecule is made of, `[B, F]`, to compare two sets of molecules by their means.

    Atoms of each element of the vocabulary, charged atoms, hydrogens that are not on carbon, double and triple bonds, rings
    (bonds − atoms + 1), three- and four-membered rings, and single bonds between two atoms that each have a
    double bond (conjugation).
    """
    element = torch.tensor(vocabulary.elements, device=mask.device)[state[TYPES]]
    charge = torch.tensor(vocabulary.charges, device=mask.device)[state[CHARGES]]
    order = state[BONDS] * _pairs(mask)
    bonded = (order > 0).float()
    degree = bonded.sum(2)
    light = ((element == 1) & mask).float()
    rest = ((element != 1) & (element != 6) & mask).float()
    unsaturated = (order == 2).any(2).float()
    square = bonded @ bonded
    walks = square.square().sum((1, 2))  # closed walks of four steps
    count = bonded.sum((1, 2)) / 2
    features = [((element == z) & mask).sum(1) for z in vocabulary.elements]
    features += [((charge != 0) & mask).sum(1), torch.einsum("bi,bij,bj->b", light, bonded, rest)]
    features += [(order == k).sum((1, 2)) / 2 for k in (2, 3)]
    features += [count - mask.sum(1) + 1, (square * bonded).sum((1, 2)) / 6]
    features += [(walks + 2 * count - 2 * degree.square().sum(1)) / 8]
    features += [torch.einsum("bi,bij,bj->b", unsaturated, (order == 1).float(), unsaturated) / 2]
    return torch.stack([f.float() for f in features], dim=1)


def environments(state: State, mask: Tensor, vocabulary: Vocabulary, *, radius: int = 2) -> Tensor:
    """Labels of the surroundings of each heavy atom, `[B, N, radius + 1]`, int64; 0 for hydrogens and padding.

    Two atoms have the same label at radius r if element, charge and bonds with neighbours agree up to r bonds away (the
    subtrees of Weisfeiler and Lehman; Shervashidze et al., J. Mach. Learn. Res. 12, 2539 (2011)), but for collisions of a
    64-bit hash. Labels are the same on all devices.
    """
    generator = torch.Generator().manual_seed(0)
    types, charges = len(vocabulary.elements), len(vocabulary.charges)
    table = torch.randint(2**62, (types * charges,), generator=generator).to(mask.device)
    factors = 2 * torch.randint(2**61, (4,), generator=generator) + 1
    factors[0] = 0  # no bond
    weights = factors.to(mask.device)[state[BONDS]] * _pairs(mask)
    heavy = (torch.tensor(vocabulary.elements, device=mask.device)[state[TYPES]] != 1) & mask
    label = table[state[TYPES] * charges + state[CHARGES]]
    labels = [label]
    for _ in range(radius):
        label = _mixed(label)
        label = _mixed(3 * label + (weights * label.unsqueeze(1)).sum(2))
        labels.append(label)
    return torch.stack(labels, dim=-1) * heavy.unsqueeze(-1)


def _mixed(x: Tensor) -> Tensor:
    """A bijection of 64-bit integers that spreads every bit (the finaliser of SplitMix64, with arithmetic shifts)."""
    x = (x ^ (x >> 30)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31)


def _pairs(mask: Tensor) -> Tensor:
    return mask.unsqueeze(2) & mask.unsqueeze(1)

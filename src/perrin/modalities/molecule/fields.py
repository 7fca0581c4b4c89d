"""The fields of a molecule and their encoding: the one place that knows category numbers.

| field       | layout | values                                             |
|-------------|--------|----------------------------------------------------|
| `positions` | Padded | Å divided by `Vocabulary.position_scale`, centred  |
| `types`     | Padded | index into `Vocabulary.elements`                   |
| `charges`   | Padded | index into `Vocabulary.charges`                    |
| `bonds`     | Pairs  | Kekulé order: 0 none, 1, 2, 3                      |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perrin.core import Categorical, Composite, Gaussian, Layout, Padded, Pairs, Power, RectifiedFlow, State
from perrin.errors import PerrinError
from perrin.modalities.molecule.structure import Molecule

POSITIONS, TYPES, CHARGES, BONDS = "positions", "types", "charges", "bonds"
BOND_ORDERS = 4


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a model can express.

    Arguments:
        elements: atomic numbers, in category order.
        charges: formal charges, in category order.
        position_scale: standard deviation of centred coordinates in the training data, Å.
        type_counts, charge_counts, bond_counts: how often each category occurs in the training data (the marginal priors).
        size_counts: pairs (number of atoms, how often).
    """

    elements: tuple[int, ...]
    charges: tuple[int, ...]
    position_scale: float
    type_counts: tuple[float, ...]
    charge_counts: tuple[float, ...]
    bond_counts: tuple[float, ...]
    size_counts: tuple[tuple[int, int], ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Vocabulary:
        """From JSON, which has lists. Raises `TypeError` or `KeyError` when a name is unknown or missing."""
        v = dict(data)
        for key in ("elements", "charges", "type_counts", "charge_counts", "bond_counts"):
            v[key] = tuple(v[key])
        v["size_counts"] = tuple((int(n), int(c)) for n, c in v["size_counts"])
        return cls(**v)

    @property
    def max_atoms(self) -> int:
        """The largest molecule in the training data."""
        return max(n for n, _ in self.size_counts)


def molecule_process(vocabulary: Vocabulary, *, bond_exponent: float, type_exponent: float) -> Composite:
    """Positions on rectified flow with zero centre of mass; categories with marginal priors.

    Arguments:
        bond_exponent, type_exponent: `p` of the keep probability `(1 − t)^p`; above 1 the field is settled after the
            positions, below 1 before them.
    """
    return Composite(
        fields={
            POSITIONS: Gaussian(features=(3,), schedule=RectifiedFlow(), zero_com=True),
            TYPES: Categorical.marginal(vocabulary.type_counts, Power(exponent=type_exponent)),
            CHARGES: Categorical.marginal(vocabulary.charge_counts, Power(exponent=type_exponent)),
            BONDS: Categorical.marginal(vocabulary.bond_counts, Power(exponent=bond_exponent)),
        }
    )


def layouts_for(mask: Tensor) -> dict[str, Layout]:
    """The layouts of a padded batch with `mask` `[B, N]`."""
    rows, pairs = Padded(mask), Pairs(mask)
    return {POSITIONS: rows, TYPES: rows, CHARGES: rows, BONDS: pairs}


def padded(
    molecules: Sequence[Molecule], vocabulary: Vocabulary, *, width: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Centred positions over `position_scale` `[B, width, 3]`, types and mask `[B, width]`, of known elements."""
    positions = np.zeros((len(molecules), width, 3), dtype=np.float32)
    types = np.zeros((len(molecules), width), dtype=np.int64)
    mask = np.zeros((len(molecules), width), dtype=bool)
    for k, molecule in enumerate(molecules):
        n = len(molecule)
        mask[k, :n] = True
        positions[k, :n] = (molecule.positions - molecule.positions.mean(0)) / vocabulary.position_scale
        types[k, :n] = [vocabulary.elements.index(z) for z in molecule.numbers.tolist()]
    return positions, types, mask


def encode(molecules: Sequence[Molecule], vocabulary: Vocabulary, *, width: int) -> tuple[State, Tensor]:
    """Molecules as a padded state of `width` rows and its mask `[B, N]`.

    Raises:
        PerrinError: an element, a charge, a size or missing bonds that the vocabulary cannot express.
    """
    count = len(molecules)
    charges = np.full((count, width), vocabulary.charges.index(0), dtype=np.int64)
    bonds = np.zeros((count, width, width), dtype=np.int64)
    for k, molecule in enumerate(molecules):
        n = len(molecule)
        reason = unsupported(molecule, vocabulary)
        if reason or n > width:
            raise PerrinError(
                f"molecule {molecule.name or k + 1}: {reason or f'{n} atoms, more than {width}'}"
            )
        assert molecule.bonds is not None
        charges[k, :n] = [vocabulary.charges.index(q) for q in molecule.charges.tolist()]
        for i, j, order in molecule.bonds.tolist():
            bonds[k, i, j] = bonds[k, j, i] = order
    positions, types, mask = padded(molecules, vocabulary, width=width)
    state = {POSITIONS: positions, TYPES: types, CHARGES: charges, BONDS: bonds}
    return {k: torch.from_numpy(x) for k, x in state.items()}, torch.from_numpy(mask)


def unsupported(molecule: Molecule, vocabulary: Vocabulary) -> str:
    """Why the vocabulary cannot express a molecule, or an empty string."""
    if molecule.bonds is None:
        return "expected bonds, given none: use an SDF or SMILES file"
    bad = sorted(set(molecule.numbers.tolist()) - set(vocabulary.elements))
    if bad:
        return (
            f"expected elements with the atomic numbers {', '.join(map(str, vocabulary.elements))}, which the model knows, "
            f"given {', '.join(map(str, bad))}: train a model on your own data"
        )
    bad = sorted(set(molecule.charges.tolist()) - set(vocabulary.charges))
    if bad:
        return (
            f"expected formal charges {', '.join(map(str, vocabulary.charges))}, which the model knows, given "
            f"{', '.join(map(str, bad))}: train a model on your own data"
        )
    if len(molecule) < 1:
        return "expected at least one atom, given none"
    return ""


def decode(
    state: State, mask: Tensor, vocabulary: Vocabulary, names: Sequence[str] | None = None
) -> list[Molecule]:
    """A padded state as molecules, coordinates in Å."""
    host = {k: x.detach().cpu().numpy() for k, x in state.items()}
    sizes = mask.sum(1).tolist()
    elements, charges = np.array(vocabulary.elements), np.array(vocabulary.charges)
    out = []
    for k, n in enumerate(sizes):
        orders = np.triu(host[BONDS][k, :n, :n], 1)
        i, j = np.nonzero(orders)
        out.append(
            Molecule(
                numbers=elements[host[TYPES][k, :n]],
                positions=host[POSITIONS][k, :n].astype(np.float64) * vocabulary.position_scale,
                bonds=np.stack((i, j, orders[i, j]), axis=1).astype(np.int64),
                charges=charges[host[CHARGES][k, :n]],
                name=names[k] if names else "",
            )
        )
    return out

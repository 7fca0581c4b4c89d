"""Molecules as padded tensors, in buckets of similar size, on whichever device trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perrin.core import State
from perrin.errors import PerrinError
from perrin.modalities.molecule.fields import (
    BONDS,
    CHARGES,
    POSITIONS,
    TYPES,
    Vocabulary,
    encode,
    unsupported,
)
from perrin.modalities.molecule.structure import Molecule

WIDTHS = (18, 21, 29)
"""Padded widths of QM9's buckets: three shapes, since each costs compile time."""


def widths_for(max_atoms: int) -> tuple[int, ...]:
    """Padded widths that hold molecules of up to `max_atoms` atoms."""
    if max_atoms <= WIDTHS[-1]:
        return (*(w for w in WIDTHS if w < max_atoms), max_atoms)
    out = list(WIDTHS)
    while out[-1] < max_atoms:
        out.append(min(max_atoms, -(-out[-1] * 5 // 4)))
    return tuple(out)


@dataclass(frozen=True)
class Bucket:
    """Molecules padded to one width: integer fields are int8 until a batch is taken.

    Arguments:
        state, mask: see `fields`.
        values: properties of the molecules, `[M, P]`, NaN where not known; `None` for no properties.
    """

    state: State
    mask: Tensor
    values: Tensor | None = None

    def __len__(self) -> int:
        return self.mask.shape[0]

    def to(self, device: torch.device) -> Bucket:
        """The same bucket on another device."""
        values = None if self.values is None else self.values.to(device)
        return Bucket({k: v.to(device) for k, v in self.state.items()}, self.mask.to(device), values)

    def take(self, index: Tensor) -> tuple[State, Tensor]:
        """The batch of the molecules numbered `index`, with integer fields as int64."""
        state = {k: v[index] for k, v in self.state.items()}
        return {k: v if k == POSITIONS else v.long() for k, v in state.items()}, self.mask[index]


def pack_buckets(buckets: Sequence[Bucket]) -> dict[str, Tensor]:
    """Buckets as tensors with names, for a file."""
    out = {f"{i}.{k}": v for i, b in enumerate(buckets) for k, v in {**b.state, "mask": b.mask}.items()}
    return out | {f"{i}.values": b.values for i, b in enumerate(buckets) if b.values is not None}


def unpack_buckets(tensors: Mapping[str, Tensor], count: int) -> list[Bucket]:
    """The buckets of `pack_buckets`."""
    out = []
    for i in range(count):
        own = {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{i}.")}
        mask, values = own.pop("mask"), own.pop("values", None)
        out.append(Bucket(own, mask, values))
    return out


def buckets_from_ragged(
    sizes: Tensor,
    numbers: Tensor,
    charges: Tensor,
    positions: Tensor,
    bond_counts: Tensor,
    bonds: Tensor,
    vocabulary: Vocabulary,
    values: Tensor | None = None,
) -> list[Bucket]:
    """Ragged arrays (atoms and bonds of one molecule after another) as buckets, without a Python loop over molecules.

    Arguments:
        sizes, bond_counts: atoms and bonds of each molecule, `[M]`.
        numbers, charges, positions: of all atoms, `[A]`, `[A]`, `[A, 3]` in Å.
        bonds: rows (i, j, order) with atom numbers within the molecule, `[B, 3]`.
        values: properties of each molecule, `[M, P]`.
    """
    count = len(sizes)
    type_of = _lookup(vocabulary.elements, 128)
    charge_of = _lookup([q + 64 for q in vocabulary.charges], 128)
    owner = torch.repeat_interleave(torch.arange(count), sizes)
    row = torch.arange(len(owner)) - (sizes.cumsum(0) - sizes)[owner]
    bond_owner = torch.repeat_interleave(torch.arange(count), bond_counts)
    mean = torch.zeros(count, 3).index_add_(0, owner, positions) / sizes[:, None]
    centred = (positions - mean[owner]) / vocabulary.position_scale
    out, below = [], 0
    for width in widths_for(int(sizes.max())):
        chosen = (sizes > below) & (sizes <= width)
        below = width
        m = int(chosen.sum())
        if m == 0:
            continue
        number = torch.cumsum(chosen, 0) - 1
        atoms, pairs = chosen[owner], chosen[bond_owner]
        k, r = number[owner[atoms]], row[atoms]
        state = {
            POSITIONS: torch.zeros(m, width, 3),
            TYPES: torch.zeros(m, width, dtype=torch.int8),
            CHARGES: torch.full((m, width), vocabulary.charges.index(0), dtype=torch.int8),
            BONDS: torch.zeros(m, width, width, dtype=torch.int8),
        }
        state[POSITIONS][k, r] = centred[atoms]
        state[TYPES][k, r] = type_of[numbers[atoms].long()]
        state[CHARGES][k, r] = charge_of[charges[atoms].long() + 64]
        kb, (i, j, order) = number[bond_owner[pairs]], bonds[pairs].long().T
        state[BONDS][kb, i, j] = order.to(torch.int8)
        state[BONDS][kb, j, i] = order.to(torch.int8)
        own = None if values is None else values[chosen]
        out.append(Bucket(state, torch.arange(width) < sizes[chosen][:, None], own))
    return out


def buckets_from_molecules(
    molecules: Sequence[Molecule], vocabulary: Vocabulary, properties: Sequence[str] = ()
) -> list[Bucket]:
    """A list of molecules as buckets, for the user's own files; `properties` are names of their data items."""
    groups: dict[int, list[Molecule]] = {}
    widths = widths_for(max(len(m) for m in molecules))
    for molecule in molecules:
        groups.setdefault(next(w for w in widths if w >= len(molecule)), []).append(molecule)
    out = []
    for width in sorted(groups):
        state, mask = encode(groups[width], vocabulary, width=width)
        state = {k: v if k == POSITIONS else v.to(torch.int8) for k, v in state.items()}
        out.append(Bucket(state, mask, _items(groups[width], properties) if properties else None))
    return out


def _items(molecules: Sequence[Molecule], names: Sequence[str]) -> Tensor:
    """Data items that are numbers, `[M, P]`; NaN for others."""
    rows = [[m.properties.get(name) for name in names] for m in molecules]
    known = [[float(x) if isinstance(x, int | float) else float("nan") for x in row] for row in rows]
    return torch.tensor(known, dtype=torch.float64)


def count_vocabulary(
    sizes: Tensor, numbers: Tensor, charges: Tensor, positions: Tensor, bond_counts: Tensor, bonds: Tensor
) -> Vocabulary:
    """Count what the data hold: elements, charges, bonds, sizes, and the spread of centred coordinates."""
    count = len(sizes)
    owner = torch.repeat_interleave(torch.arange(count), sizes)
    mean = (
        torch.zeros(count, 3, dtype=torch.float64).index_add_(0, owner, positions.double()) / sizes[:, None]
    )
    spread = float((positions.double() - mean[owner]).square().mean().sqrt())
    elements, element_counts = torch.unique(numbers, return_counts=True)
    values, value_counts = torch.unique(charges, return_counts=True)
    charge_counts = dict(zip(values.tolist(), value_counts.tolist(), strict=True))
    for q in (-1, 0, 1):
        charge_counts.setdefault(q, 0)
    pairs = float((sizes * (sizes - 1) // 2).sum())
    orders = torch.bincount(bonds[:, 2].long(), minlength=4)[:4].tolist()
    size_values, size_counts = torch.unique(sizes, return_counts=True)
    return Vocabulary(
        elements=tuple(elements.tolist()),
        charges=tuple(sorted(charge_counts)),
        position_scale=round(spread, 6),
        type_counts=tuple(float(c) for c in element_counts.tolist()),
        charge_counts=tuple(float(charge_counts[q]) for q in sorted(charge_counts)),
        bond_counts=(pairs - sum(orders[1:]), *(float(c) for c in orders[1:])),
        size_counts=tuple(zip(size_values.tolist(), size_counts.tolist(), strict=True)),
    )


def size_counts(buckets: Sequence[Bucket]) -> tuple[tuple[int, int], ...]:
    """Pairs (number of atoms, how many molecules have it) of the buckets."""
    sizes = torch.cat([b.mask.sum(1) for b in buckets])
    values, counts = torch.unique(sizes, return_counts=True)
    return tuple(zip(values.tolist(), counts.tolist(), strict=True))


def supported(molecules: Sequence[Molecule], vocabulary: Vocabulary, source: Any) -> list[Molecule]:
    """The molecules that a vocabulary can express.

    Raises:
        PerrinError: there is none; the message gives the first reason.
    """
    reasons = [unsupported(m, vocabulary) for m in molecules]
    kept = [m for m, reason in zip(molecules, reasons, strict=True) if not reason]
    if not kept:
        raise PerrinError(
            f"expected molecules the model can express in {source}, found none: "
            f"{reasons[0] if reasons else 'the file is empty'}"
        )
    return kept


def _lookup(values: Sequence[int], size: int) -> Tensor:
    table = torch.full((size,), -1, dtype=torch.int8)
    table[torch.tensor(list(values))] = torch.arange(len(values), dtype=torch.int8)
    return table

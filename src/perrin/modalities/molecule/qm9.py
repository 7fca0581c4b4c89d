r"""QM9: 130,831 small organic molecules with DFT geometries, as ragged tensors.

Source. The PyPI package `qm9pack` (Ramakrishnan et al., Sci. Data 1, 140022 (2014), without the 3,054
molecules that failed the consistency check) carries B3LYP/6-31G(2df,p) coordinates, properties and one
SMILES per molecule.

Bonds and formal charges come from the SMILES, hydrogens from the coordinates (`qm9_prepare`), never an
order from a distance. The 8 molecules whose SMILES and coordinates disagree are kept with `has_bonds =
False`: they have coordinates for metrics that need no bonds, and are left out of training.

Storage. One safetensors file, built once. Molecule `i` owns the atoms `offsets[i]:offsets[i + 1]`, the
bonds `bond_offsets[i]:bond_offsets[i + 1]` (atom numbers within the molecule) and the bytes
`smiles_offsets[i]:smiles_offsets[i + 1]` of `smiles`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from perrin.errors import PerrinError
from perrin.modalities.molecule.qm9_cache import FILE, cache_dir
from perrin.modalities.molecule.qm9_prepare import FORMAT, prepare_qm9, source_files
from perrin.modalities.molecule.structure import Molecule

if TYPE_CHECKING:
    from torch import Tensor

COUNT = 130_831
"""Molecules in qm9pack 1.0.3."""


@dataclass(frozen=True, kw_only=True)
class QM9:
    """The data set, or a subset of it, as ragged tensors (M molecules, A atoms, B bonds, P properties).

    Arguments:
        offsets: first atom of each molecule, `[M + 1]`, int64.
        numbers: atomic numbers, `[A]`, uint8.
        charges: formal charges, `[A]`, int8.
        positions: Cartesian coordinates in Å, `[A, 3]`, float32.
        bond_offsets: first bond of each molecule, `[M + 1]`, int64.
        bonds: rows `(i, j, order)`, `i < j`, `[B, 3]`, uint8.
        has_bonds: whether the SMILES matched the coordinates, `[M]`, bool.
        properties: columns named by `property_names`, in the units of `units`, `[M, P]`, float64.
        smiles_blob, smiles_offsets: canonical SMILES without stereochemistry, uint8 and `[M + 1]` int64.
            Where `has_bonds` is false it is that of the source, which may not be what the coordinates show.
    """

    offsets: Tensor
    numbers: Tensor
    charges: Tensor
    positions: Tensor
    bond_offsets: Tensor
    bonds: Tensor
    has_bonds: Tensor
    properties: Tensor
    smiles_blob: Tensor
    smiles_offsets: Tensor
    property_names: tuple[str, ...]
    units: dict[str, str]

    def __len__(self) -> int:
        return len(self.has_bonds)

    @property
    def sizes(self) -> Tensor:
        """Atoms per molecule, `[M]`, int64."""
        return self.offsets.diff()

    def property(self, name: str) -> Tensor:
        """One property of all molecules, `[M]`, float64, in `units[name]`."""
        if name not in self.property_names:
            raise PerrinError(
                f"expected a property of QM9 ({', '.join(self.property_names)}), given {name!r}"
            )
        return self.properties[:, self.property_names.index(name)]

    def smiles(self) -> list[str]:
        """Canonical SMILES of every molecule, without stereochemistry."""
        blob, ends = self.smiles_blob.numpy().tobytes().decode("ascii"), self.smiles_offsets.tolist()
        return [blob[a:b] for a, b in pairwise(ends)]

    def molecule(self, i: int) -> Molecule:
        """Molecule `i`; its `bonds` are `None` where `has_bonds` is false."""
        i = range(len(self))[i]
        a, b = int(self.offsets[i]), int(self.offsets[i + 1])
        c, d = int(self.bond_offsets[i]), int(self.bond_offsets[i + 1])
        values = dict(zip(self.property_names, self.properties[i].tolist()))
        index = int(values.pop("index", i))
        return Molecule(
            numbers=self.numbers[a:b].numpy().astype(np.int64),
            positions=self.positions[a:b].numpy().astype(np.float64),
            bonds=self.bonds[c:d].numpy().astype(np.int64) if bool(self.has_bonds[i]) else None,
            charges=self.charges[a:b].numpy().astype(np.int64),
            name=f"dsgdb9nsd_{index:06d}",
            properties=values,
        )

    def subset(self, indices: Sequence[int] | Tensor) -> QM9:
        """The molecules with these indices, in this order."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        offsets, atoms = _gather(self.offsets, rows)
        bond_offsets, bonds = _gather(self.bond_offsets, rows)
        smiles_offsets, letters = _gather(self.smiles_offsets, rows)
        return QM9(
            offsets=offsets,
            numbers=self.numbers[atoms],
            charges=self.charges[atoms],
            positions=self.positions[atoms],
            bond_offsets=bond_offsets,
            bonds=self.bonds[bonds],
            has_bonds=self.has_bonds[rows],
            properties=self.properties[rows],
            smiles_blob=self.smiles_blob[letters],
            smiles_offsets=smiles_offsets,
            property_names=self.property_names,
            units=self.units,
        )

    def split(self) -> dict[str, Tensor]:
        """Indices of the parts: 100,000 for training, 10 % for the test, the rest for validation (seed 42).

        A subset is split in the same proportions. Molecules without bonds are in; filter by `has_bonds`.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(42))
        train, test = len(self) * 100_000 // COUNT, len(self) // 10
        return {"train": order[:train], "test": order[train : train + test], "valid": order[train + test :]}


def load_qm9(limit: int | None = None) -> QM9:
    """QM9 from the cache, which the first call builds (half a minute).

    Arguments:
        limit: keep only this many molecules: the first of the fixed random order of `split`, so they are
            representative (the file is sorted by size) and, up to 100,000, outside the full set's test part.
    """
    if limit is not None and limit < 1:
        raise PerrinError(f"expected a limit of at least 1 molecule, given {limit}")
    path = cache_dir() / FILE
    data = _read(path) if path.is_file() else None
    if data is None:
        prepare_qm9(source_files(), path, count=COUNT)
        data = _read(path)
    if data is None:
        raise PerrinError(
            f"expected a readable cache at {path}, given a damaged file: delete it and try again"
        )
    if limit is None or limit >= len(data):
        return data
    return data.subset(torch.randperm(len(data), generator=torch.Generator().manual_seed(42))[:limit])


def _gather(offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets of the chosen segments and the index of their elements in the old storage."""
    sizes = offsets.diff()[rows]
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    shift = offsets[:-1][rows] - ends[:-1]
    return ends, torch.arange(int(ends[-1])) + torch.repeat_interleave(shift, sizes)


def _read(path: Path) -> QM9 | None:
    """The cache file, or `None` if it is damaged or of another format."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError):
        return None
    names = tuple(json.loads(metadata["properties"]))
    blob = tensors.pop("smiles")
    return QM9(**tensors, smiles_blob=blob, property_names=names, units=json.loads(metadata["units"]))

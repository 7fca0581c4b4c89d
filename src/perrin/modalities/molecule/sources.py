"""Where training molecules come from: QM9, or the user's file."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perrin.errors import PerrinError, note
from perrin.modalities.molecule.dataset import (
    Bucket,
    buckets_from_molecules,
    buckets_from_ragged,
    count_vocabulary,
    pack_buckets,
    supported,
    unpack_buckets,
)
from perrin.modalities.molecule.fields import Vocabulary
from perrin.modalities.molecule.files import read_molecules
from perrin.modalities.molecule.kept import note_coinciding, without_isotopes
from perrin.modalities.molecule.structure import Molecule
from perrin.train.ranks import find_ranks
from perrin.train.shared import shared_tensors


def training_data(
    a: Namespace, vocabulary: Vocabulary | None, properties: Sequence[str] = (), spared: Collection[str] = ()
) -> tuple[Vocabulary, list[Bucket], int]:
    """What `perrin train` trains on: vocabulary (counted unless given), buckets with the values of `properties`, and how
    many molecules are left out. Of a file's molecules none need have the properties that are `spared`.

    Several ranks read one file in the run's folder, which the first of them prepares (`perrin.train.shared`).
    """

    def prepare() -> tuple[Vocabulary, list[Bucket], int]:
        if a.data:
            molecules = without_isotopes(read_molecules(a.data), a.data)
            note_coinciding(molecules, a.data)
            return from_files(
                molecules, vocabulary, source=a.data, limit=a.limit, properties=properties, spared=spared
            )
        return from_qm9(a.limit, vocabulary, properties)

    ranks = find_ranks(a.devices if a.devices == "auto" or str(a.devices).isdecimal() else 1)
    if ranks.world <= 1:
        return prepare()

    def make() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        found, buckets, skipped = prepare()
        facts = {
            "vocabulary": json.dumps(asdict(found)),
            "skipped": str(skipped),
            "buckets": str(len(buckets)),
        }
        return pack_buckets(buckets), facts

    source = Path(a.data).read_bytes() if a.data and Path(a.data).is_file() else b"qm9"
    known = json.dumps([a.limit, asdict(vocabulary) if vocabulary else None, list(properties)])
    key = hashlib.sha256(known.encode() + source).hexdigest()
    tensors, facts = shared_tensors(Path(a.out) / "data.safetensors", key, make, rank=ranks.rank)
    buckets = unpack_buckets(tensors, int(facts["buckets"]))
    return Vocabulary.from_json(json.loads(facts["vocabulary"])), buckets, int(facts["skipped"])


def from_qm9(
    limit: int | None = None, vocabulary: Vocabulary | None = None, properties: Sequence[str] = ()
) -> tuple[Vocabulary, list[Bucket], int]:
    """QM9's training part (of the first `limit` molecules): vocabulary (counted unless given), buckets, and how many
    molecules it cannot express.

    Arguments:
        properties: names of properties that the buckets hold, in the units of QM9.

    Raises:
        PerrinError: QM9 has no such property, or the vocabulary fits none of its molecules.
    """
    from perrin.modalities.molecule.qm9 import load_qm9

    data = load_qm9(limit)
    index = data.split()["train"] if limit is None else torch.arange(len(data))
    data = data.subset(index[data.has_bonds[index]])
    values = torch.stack([data.property(name) for name in properties], 1) if properties else None
    arrays = (data.sizes, data.numbers, data.charges, data.positions, data.bond_offsets.diff(), data.bonds)
    if vocabulary is None:
        vocabulary = count_vocabulary(*arrays)
        return vocabulary, buckets_from_ragged(*arrays, vocabulary, values), 0
    known = torch.isin(data.numbers.long(), torch.tensor(vocabulary.elements))
    known &= torch.isin(data.charges.long(), torch.tensor(vocabulary.charges))
    owner = torch.repeat_interleave(torch.arange(len(data)), data.sizes)
    kept = torch.ones(len(data), dtype=torch.bool).index_put_((owner[~known],), torch.tensor(False))
    if not kept.any():
        raise PerrinError(
            "expected a bundle that can express molecules of QM9, given one without its elements: start from another"
        )
    part = data.subset(torch.nonzero(kept)[:, 0])
    arrays = (part.sizes, part.numbers, part.charges, part.positions, part.bond_offsets.diff(), part.bonds)
    values = None if values is None else values[kept]
    return vocabulary, buckets_from_ragged(*arrays, vocabulary, values), len(data) - len(part)


def from_files(
    molecules: Sequence[Molecule],
    vocabulary: Vocabulary | None,
    *,
    source: Any,
    limit: int | None = None,
    properties: Sequence[str] = (),
    spared: Collection[str] = (),
) -> tuple[Vocabulary, list[Bucket], int]:
    """The user's molecules as buckets, the vocabulary, and how many molecules it cannot express.

    Arguments:
        properties: data items that the buckets hold; a molecule may lack them.
        spared: of these, those that all may lack.

    Raises:
        PerrinError: no molecule is left, most lack hydrogens, the limit is below 1, or no molecule has a data item.
    """
    if limit is not None and limit < 1:
        raise PerrinError(f"expected --limit of at least 1, given {limit}")
    molecules = list(molecules)[:limit]
    with_bonds = [m for m in molecules if m.bonds is not None]
    if not with_bonds:
        raise PerrinError(f"expected molecules with bonds in {source}, found none: use an SDF or SMILES file")
    _check_hydrogens(with_bonds, source)
    vocabulary = vocabulary or _count(with_bonds)
    kept = supported(with_bonds, vocabulary, source)
    lacking = [
        name for name in properties if not any(isinstance(m.properties.get(name), int | float) for m in kept)
    ]
    if unlearnt := [name for name in lacking if name in spared]:
        note(
            f"no molecule in {source} has {', '.join(unlearnt)}: wishes for them stay possible, but nothing is learnt "
            "of them"
        )
    for name in lacking:
        if name not in spared:
            items = sorted({k for m in kept for k, v in m.properties.items() if isinstance(v, int | float)})
            raise PerrinError(
                f"expected molecules with the data item {name} in {source}, given none (numbers there: "
                f"{', '.join(items) or 'none'}): correct --conditions"
            )
    return vocabulary, buckets_from_molecules(kept, vocabulary, properties), len(molecules) - len(kept)


def _count(molecules: Sequence[Molecule]) -> Vocabulary:
    bonds = [m.bonds for m in molecules if m.bonds is not None]
    return count_vocabulary(
        torch.tensor([len(m) for m in molecules]),
        torch.from_numpy(np.concatenate([m.numbers for m in molecules])),
        torch.from_numpy(np.concatenate([m.charges for m in molecules])),
        torch.from_numpy(np.concatenate([m.positions for m in molecules])).float(),
        torch.tensor([len(b) for b in bonds]),
        torch.from_numpy(np.concatenate(bonds)),
    )


def _check_hydrogens(molecules: Sequence[Molecule], source: Any) -> None:
    from perrin.modalities.molecule.metrics.bonds import bonds

    bare = [m for m in molecules if 1 not in m.numbers]
    unstable = sum(not row.stable for row in bonds(molecules))
    if bare and unstable > len(molecules) // 2:
        raise PerrinError(
            f"expected explicit hydrogens, but most molecules in {source} lack them: add them with positions "
            "(RDKit: Chem.AddHs(mol, addCoords=True)), or give SMILES"
        )

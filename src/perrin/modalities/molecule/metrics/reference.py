"""Real molecules that generated ones are compared with: the test split, and others of the training split as its
floor.

A model as good as the data would come as near to the test split as other real molecules do, and no nearer: a distance
between two finite samples is never zero. So each distance has a *floor*: as many molecules of the training split,
drawn at random, against the same test split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from perrin.modalities.molecule.structure import Molecule


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A data set in two parts.

    Arguments:
        name: shown in tables.
        test: molecules with bonds.
        smiles: canonical SMILES of the test split, without stereochemistry.
        train_smiles: the same of the training split.
        train_size: molecules with bonds in the training split.
        train: molecules of the training split, by their numbers `0 … train_size − 1`.
        cache: a folder for statistics that take long, or `None`.
    """

    name: str
    test: Sequence[Molecule]
    smiles: Sequence[str]
    train_smiles: Sequence[str]
    train_size: int
    train: Callable[[Sequence[int]], list[Molecule]]
    cache: Path | None = None

    def floor(self, count: int, seed: int = 0) -> list[Molecule]:
        """Molecules of the training split, drawn without replacement; all where there are fewer."""
        return self.train(np.random.default_rng(seed).permutation(self.train_size)[:count].tolist())

    @cached_property
    def known(self) -> frozenset[str]:
        """SMILES of the training split."""
        return frozenset(self.train_smiles)


def qm9_reference() -> Reference:
    """QM9: 13,083 molecules for the test and 100,000 for training, less those without bonds."""
    from perrin.modalities.molecule.qm9 import cache_dir, load_qm9

    data = load_qm9()
    split = data.split()
    train, test = (split[name][data.has_bonds[split[name]]].tolist() for name in ("train", "test"))
    return Reference(
        name="QM9",
        test=[data.molecule(i) for i in test],
        smiles=data.subset(split["test"]).smiles(),
        train_smiles=data.subset(split["train"]).smiles(),
        train_size=len(train),
        train=lambda rows: [data.molecule(train[row]) for row in rows],
        cache=cache_dir().parent / "fcd",
    )

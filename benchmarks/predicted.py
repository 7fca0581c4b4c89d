"""How far the property network is off at geometries that are not DFT's.

    python benchmarks/predicted.py -n 300

Molecules of QM9's test split, predicted at DFT's geometry and at the one that `perrin rank` makes of their SMILES: one
conformer by ETKDG and MMFF94. Mean absolute errors against QM9's values, with standard errors. Molecules whose SMILES has
another number of atoms, or no conformer, or of which the network says nothing, are left out of both.
"""

from __future__ import annotations

import argparse

import torch

import perrin
from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.predicted import DEFAULT, strange
from perrin.modalities.molecule.qm9 import load_qm9


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--network", default=DEFAULT)
    a = parser.parse_args()
    data, network = load_qm9(), perrin.load(a.network)
    ranges = network.config.ranges
    rows = [i for i in data.split()["test"].tolist() if data.has_bonds[i]][: a.n]
    pairs, values = [], []
    for i, smiles in zip(rows, data.subset(rows).smiles(), strict=True):
        try:
            made = add_geometry(smiles)
        except PerrinError:
            continue
        if len(made) == int(data.sizes[i]) and not strange(made, network.config.vocabulary):
            pairs.append((data.molecule(i), made))
            values.append([float(data.property(r.name)[i]) for r in ranges])
    for name, molecules in zip(("DFT", "MMFF94"), zip(*pairs, strict=True), strict=True):
        error = (network.of(molecules) - torch.tensor(values, dtype=torch.float64)).abs()
        told = [
            f"{r.name} {m:.4g} ± {s:.2g} {r.unit}"
            for r, m, s in zip(
                ranges, error.mean(0).tolist(), (error.std(0) / len(error) ** 0.5).tolist(), strict=True
            )
        ]
        print(f"{name}, {len(error)} molecules: {', '.join(told)}")


if __name__ == "__main__":
    main()

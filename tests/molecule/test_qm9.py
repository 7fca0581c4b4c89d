"""QM9: a miniature of the source prepared for real, and (slow) the published numbers on the whole set."""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from perrin.errors import PerrinError
from perrin.modalities.molecule import qm9
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.qm9_prepare import PROPERTIES, parse_number, prepare_qm9

SYMBOL = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
SMILES = ["C", "O=CC#N", "c1cc[nH]c1", "[NH3+]CC(=O)[O-]", "O=C=O"]
MIXED = "C[N-][N+]#N"
HYDROGENS_FIRST = [4, 5, 0, 1, 6, 2, 3]


def record(index: int, smiles: str, numbers: list[int], positions: np.ndarray) -> dict[str, str]:
    row = {column: "0." for column, _ in PROPERTIES.values()}
    row |= {
        "Index": str(index),
        "SMILES": smiles,
        "Elements": str([SYMBOL[number] for number in numbers]),
        "XYZ_Ang": str(positions.tolist()).replace(" ", ""),
        "Dipole_debye": "1.5*^-6",
    }
    return row


def write_source(path: Path, rows: list[dict[str, str]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> qm9.QM9:
    """Five good molecules, one in which an atom is another element, one with a moved hydrogen, one renumbered, and a
    good one whose hydrogens stand between its heavy atoms."""
    rows = []
    for index, smiles in enumerate(SMILES, 1):
        molecule = add_geometry(smiles)
        rows.append(record(index, smiles, molecule.numbers.tolist(), molecule.positions))
    methanol = add_geometry("CO")
    rows.append(record(6, "CN", methanol.numbers.tolist(), methanol.positions))
    moved = methanol.positions.copy()
    moved[2] = moved[1] + [0.0, 0.0, 1.0]
    rows.append(record(7, "CO", methanol.numbers.tolist(), moved))
    hexane = add_geometry("CCCCCC")
    order = [0, 4, 2, 3, 1, 5, *range(6, 20)]  # the hydrogens still agree, the bonds do not
    rows.append(record(8, "CCCCCC", hexane.numbers[order].tolist(), hexane.positions[order]))
    oxide = add_geometry(MIXED)
    rows.append(record(9, MIXED, oxide.numbers[HYDROGENS_FIRST].tolist(), oxide.positions[HYDROGENS_FIRST]))
    write_source(tmp_path / "part.csv", rows)
    target = tmp_path / "qm9" / qm9.FILE
    prepare_qm9([tmp_path / "part.csv"], target)
    assert os.listdir(target.parent) == [qm9.FILE]
    monkeypatch.setenv("PERRIN_CACHE", str(tmp_path))
    return qm9.load_qm9()


@pytest.mark.parametrize(
    ("text", "value"), [("0.", 0.0), ("-1.25", -1.25), ("1.2*^-6", 1.2e-6), (" 3 ", 3.0), ("-7.*^2", -700.0)]
)
def test_numbers_as_mathematica_writes_them(text: str, value: float) -> None:
    assert parse_number(text) == value


def test_bonds_and_charges_are_those_of_the_smiles(miniature: qm9.QM9) -> None:
    assert miniature.has_bonds.tolist() == [True] * 5 + [False] * 3 + [True]
    for i, smiles in enumerate(SMILES):
        expected, molecule = add_geometry(smiles), miniature.molecule(i)
        assert molecule.numbers.tolist() == expected.numbers.tolist()
        assert molecule.charges.tolist() == expected.charges.tolist()
        assert molecule.bonds is not None
        assert expected.bonds is not None
        assert molecule.bonds.tolist() == expected.bonds.tolist()
        assert np.allclose(molecule.positions, expected.positions, atol=1e-6)
        assert molecule.name == f"dsgdb9nsd_{i + 1:06d}"
        assert molecule.properties["mu"] == 1.5e-6
    assert miniature.molecule(5).bonds is None
    assert miniature.smiles()[:5] == ["C", "N#CC=O", "c1cc[nH]c1", "[NH3+]CC(=O)[O-]", "O=C=O"]


def test_hydrogens_may_stand_anywhere(miniature: qm9.QM9) -> None:
    molecule = miniature.molecule(8)
    assert molecule.numbers.tolist() == [1, 1, 6, 7, 1, 7, 7]
    assert molecule.charges.tolist() == [0, 0, 0, -1, 0, 1, 0]
    assert molecule.bonds is not None
    assert molecule.bonds.tolist() == [[0, 2, 1], [1, 2, 1], [2, 3, 1], [2, 4, 1], [3, 5, 1], [5, 6, 3]]


def test_tensors_have_the_promised_types(miniature: qm9.QM9) -> None:
    types = {
        "offsets": torch.int64, "numbers": torch.uint8, "charges": torch.int8, "positions": torch.float32,
        "bond_offsets": torch.int64, "bonds": torch.uint8, "has_bonds": torch.bool, "properties": torch.float64,
        "smiles_blob": torch.uint8, "smiles_offsets": torch.int64,
    }  # fmt: skip
    assert {name: getattr(miniature, name).dtype for name in types} == types
    assert bool((miniature.bonds[:, 0] < miniature.bonds[:, 1]).all())
    assert miniature.units["homo"] == "hartree"
    assert miniature.property("index").tolist() == list(range(1, 10))
    with pytest.raises(PerrinError, match="given 'dipole'"):
        miniature.property("dipole")


def test_subset_is_the_same_molecules(miniature: qm9.QM9) -> None:
    chosen = [3, 0, 6, -1]
    part = miniature.subset(chosen)
    assert len(part) == 4
    for new, old in enumerate(chosen):
        a, b = part.molecule(new), miniature.molecule(old)
        assert np.array_equal(a.positions, b.positions)
        assert (a.bonds is None) == (b.bonds is None)
        if a.bonds is not None and b.bonds is not None:
            assert np.array_equal(a.bonds, b.bonds)
        assert (a.name, a.properties) == (b.name, b.properties)
        assert part.smiles()[new] == miniature.smiles()[old]


def test_split_is_a_partition_in_a_fixed_order(miniature: qm9.QM9) -> None:
    parts = miniature.subset([0] * 1000).split()
    assert {name: len(part) for name, part in parts.items()} == {"train": 764, "test": 100, "valid": 136}
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(1000))
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(42))
    assert torch.equal(torch.cat([parts["train"], parts["test"], parts["valid"]]), order)


def test_limit_and_reuse(miniature: qm9.QM9) -> None:
    path = qm9.cache_dir() / qm9.FILE
    before = path.stat().st_mtime_ns
    assert len(qm9.load_qm9(limit=3)) == 3
    assert path.stat().st_mtime_ns == before
    with pytest.raises(PerrinError, match="at least 1"):
        qm9.load_qm9(limit=0)


def test_package_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERRIN_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PerrinError, match=r"pip install 'perrin\[molecule\]'"):
        qm9.load_qm9()
    assert os.listdir(tmp_path) == []


def test_damaged_source_and_unwritable_cache(tmp_path: Path) -> None:
    methane = add_geometry("C")
    write_source(tmp_path / "part.csv", [record(1, "C", methane.numbers.tolist(), methane.positions)])
    with pytest.raises(PerrinError, match="expected 2 molecules"):
        prepare_qm9([tmp_path / "part.csv"], tmp_path / "a.safetensors", count=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(PerrinError, match="expected to write"):
        prepare_qm9([tmp_path / "part.csv"], tmp_path / "file" / "a.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["file", "part.csv"]


@pytest.mark.slow
def test_published_numbers_on_real_qm9() -> None:
    """Lookup on the first 10,000 molecules of the test part (a random sample); bonds on the same."""
    if importlib.util.find_spec("qm9pack") is None:
        pytest.skip("needs qm9pack")
    from perrin.modalities.molecule.metrics import evaluate

    data = qm9.load_qm9()
    assert len(data) == 130_831
    assert int((~data.has_bonds).sum()) == 8
    assert {name: len(part) for name, part in data.split().items()} == {
        "train": 100_000, "test": 13_083, "valid": 17_748,
    }  # fmt: skip
    molecules = [data.molecule(i) for i in data.split()["test"][:10_000].tolist()]
    metrics = evaluate(molecules, "lookup")["protocols"]["lookup"]["metrics"]
    assert 100 * metrics["atom_stable"]["value"] == pytest.approx(99.40, abs=0.05)
    assert 100 * metrics["molecule_stable"]["value"] == pytest.approx(95.45, abs=0.5)
    assert 100 * metrics["valid"]["value"] == pytest.approx(97.72, abs=0.4)
    bonded = [molecule for molecule in molecules if molecule.bonds is not None]
    strict = evaluate(bonded, "bonds", reference=data.smiles())["protocols"]["bonds"]["metrics"]
    assert strict["sound"]["value"] == 1.0
    assert strict["novel"]["value"] == 0.0

"""Molecules to RDKit and back: what is given is kept, an aromatic bond never becomes a rounded one."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rdkit")

from rdkit import Chem

from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import (
    add_geometry,
    canonical_smiles,
    from_rdkit,
    graph,
    sanitize,
    to_rdkit,
)
from perrin.modalities.molecule.structure import Molecule

SMILES = [
    "C",
    "[C-]#[O+]",
    "C[N+](=O)[O-]",
    "c1ccccc1",
    "C[NH3+]",
    "C1CC1",
    "C.O",
    "c1cc[nH]c1",
    "N#CC=O",
    "FC(F)F",
]


def bare(
    numbers: list[int], bonds: list[tuple[int, int, int]] | None, charges: list[int] | None = None
) -> Molecule:
    """A molecule whose coordinates do not matter, on a line 5 Å apart."""
    positions = np.zeros((len(numbers), 3))
    positions[:, 0] = 5.0 * np.arange(len(numbers))
    return Molecule(
        numbers=np.array(numbers),
        positions=positions,
        bonds=None if bonds is None else np.array(bonds, dtype=np.int64).reshape(-1, 3),
        charges=np.array(charges if charges is not None else [0] * len(numbers)),
    )


@pytest.mark.parametrize("smiles", SMILES)
def test_round_trip_keeps_atoms_bonds_charges_and_positions(smiles: str) -> None:
    molecule = add_geometry(smiles)
    again = from_rdkit(to_rdkit(molecule))
    for field in ("numbers", "positions", "bonds", "charges"):
        assert np.array_equal(getattr(molecule, field), getattr(again, field)), field
    sane = sanitize(to_rdkit(molecule))
    assert sane is not None
    assert canonical_smiles(sane) == Chem.CanonSmiles(smiles)


def test_bonds_are_rows_i_j_order_sorted() -> None:
    molecule = add_geometry("C[N+](=O)[O-]")
    assert molecule.bonds is not None
    assert molecule.bonds[:3].tolist() == [[0, 1, 1], [0, 4, 1], [0, 5, 1]]
    assert [1, 2, 2] in molecule.bonds.tolist()
    assert [1, 3, 1] in molecule.bonds.tolist()
    assert molecule.charges.tolist() == [0, 1, 0, -1, 0, 0, 0]


def test_benzene_has_three_double_bonds_and_is_aromatic_again_after_sanitising() -> None:
    molecule = add_geometry("c1ccccc1")
    assert molecule.bonds is not None
    ring = [order for i, j, order in molecule.bonds.tolist() if i < 6 and j < 6]
    assert sorted(ring) == [1, 1, 1, 2, 2, 2]
    sane = sanitize(to_rdkit(molecule))
    assert sane is not None
    assert sum(bond.GetIsAromatic() for bond in sane.GetBonds()) == 6


def test_aromatic_bonds_without_a_kekule_structure_are_an_error() -> None:
    mol = Chem.RWMol(to_rdkit(bare([6] * 5, [(i, (i + 1) % 5, 1) for i in range(4)] + [(0, 4, 1)])))
    for bond in mol.GetBonds():
        bond.SetBondType(Chem.BondType.AROMATIC)
        bond.SetIsAromatic(True)
    for atom in mol.GetAtoms():
        atom.SetIsAromatic(True)
    with pytest.raises(PerrinError, match="Kekulé"):
        from_rdkit(mol)


def test_order_one_and_a_half_is_refused_and_not_truncated() -> None:
    numbers, bonds = np.array([6, 6]), np.array([[0.0, 1.0, 1.5]])
    with pytest.raises(PerrinError, match=r"given 1\.5"):
        graph(numbers, bonds, implicit=False)


def test_to_rdkit_repairs_nothing() -> None:
    five_valent = bare([6, 1, 1, 1, 1, 1], [(0, i, 1) for i in range(1, 6)])
    mol = to_rdkit(five_valent)
    assert mol.GetNumBonds() == 5
    assert sanitize(mol) is None
    close = bare([6, 6], [])
    close.positions[1, 0] = 1.5
    assert to_rdkit(close).GetNumBonds() == 0


def test_no_hydrogen_is_added_to_an_atom_that_lacks_one() -> None:
    methyl = sanitize(to_rdkit(bare([6, 1, 1, 1], [(0, i, 1) for i in range(1, 4)])))
    assert methyl is not None
    assert methyl.GetAtomWithIdx(0).GetNumRadicalElectrons() == 1
    assert canonical_smiles(methyl) == "[CH3]"


def test_sanitize_leaves_its_argument_alone() -> None:
    mol = to_rdkit(add_geometry("c1ccccc1"))
    sanitize(mol)
    assert not any(bond.GetIsAromatic() for bond in mol.GetBonds())


def test_geometry_is_reproducible_and_real() -> None:
    first, second = add_geometry("CO", seed=3), add_geometry("CO", seed=3)
    assert np.array_equal(first.positions, second.positions)
    assert np.linalg.norm(first.positions[0] - first.positions[1]) == pytest.approx(1.42, abs=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: to_rdkit(bare([6], None)), "expected a molecule with bonds"),
        (lambda: from_rdkit(Chem.MolFromSmiles("CC")), "expected 3D coordinates"),
        (lambda: from_rdkit(to_rdkit(bare([0, 6], [(0, 1, 1)]))), "dummy atom"),
        (lambda: add_geometry("C(("), "expected a SMILES that RDKit can read"),
        (lambda: add_geometry(""), "expected a SMILES that RDKit can read"),
    ],
)
def test_bad_input_gives_one_line(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PerrinError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_bond_of_another_kind_is_refused() -> None:
    mol = Chem.RWMol(to_rdkit(bare([7, 5], [(0, 1, 1)])))
    mol.GetBondWithIdx(0).SetBondType(Chem.BondType.DATIVE)
    with pytest.raises(PerrinError, match="dative between atoms 1 and 2"):
        from_rdkit(mol)

"""Between `Molecule` and RDKit: what is given is kept, nothing is guessed from distances or repaired.

A `Molecule` has explicit hydrogens, Kekulé bond orders 1, 2, 3 and formal charges. `to_rdkit` copies
exactly that and does not sanitise, because a generated molecule may be wrong and must survive being looked
at; `sanitize` is the separate question whether RDKit accepts it. Atoms carry the no-implicit flag: RDKit
adds no hydrogen to an atom that lacks one, it calls the atom a radical. `from_rdkit` kekulizes first, so
that an aromatic bond (1.5) becomes 1 or 2 by a Kekulé structure and never by rounding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from rdkit.Geometry import Point3D

from perrin.errors import PerrinError
from perrin.modalities.molecule.structure import Molecule

BOND_TYPES: dict[int, Chem.BondType] = {
    1: Chem.BondType.SINGLE,
    2: Chem.BondType.DOUBLE,
    3: Chem.BondType.TRIPLE,
}

ORDERS: dict[Chem.BondType, int] = {kind: order for order, kind in BOND_TYPES.items()}


def to_rdkit(molecule: Molecule) -> Chem.Mol:
    """The same atoms, bonds, charges and coordinates as an RDKit molecule, not sanitised.

    Raises:
        PerrinError: the molecule has no bonds (`None`), or a bond order other than 1, 2, 3.
    """
    if molecule.bonds is None:
        raise PerrinError(
            f"expected a molecule with bonds, given {molecule.name or 'one'} without (an XYZ file has none): "
            "give an SDF, or use the lookup protocol"
        )
    mol = graph(molecule.numbers, molecule.bonds, molecule.charges, molecule.isotopes, implicit=False)
    conformer = Chem.Conformer(len(molecule))
    conformer.Set3D(not molecule.flat)
    for i, (x, y, z) in enumerate(np.asarray(molecule.positions, dtype=np.float64).tolist()):
        conformer.SetAtomPosition(i, Point3D(x, y, z))
    mol.AddConformer(conformer, assignId=True)
    for i, j, direction in molecule.wedges or ():
        kind = mol.GetBondBetweenAtoms(i, j).GetBondType()
        mol.RemoveBond(i, j)
        mol.AddBond(i, j, kind)  # a wedge is narrow where its bond begins
        mol.GetBondBetweenAtoms(i, j).SetBondDir(Chem.BondDir.values[direction])
    if molecule.name:
        mol.SetProp("_Name", molecule.name)
    return mol


def graph(
    numbers: np.ndarray,
    bonds: np.ndarray,
    charges: np.ndarray | None = None,
    isotopes: Iterable[tuple[int, int]] = (),
    *,
    implicit: bool,
) -> Chem.RWMol:
    """An RDKit molecule without coordinates, not sanitised.

    Arguments:
        numbers: atomic numbers, `[n]`.
        bonds: rows `(i, j, order)`, `[m, 3]`.
        charges: formal charges, `[n]`.
        isotopes: pairs (atom, mass number).
        implicit: whether RDKit may add implicit hydrogens to atoms that lack them, as EDM's evaluation lets it.
    """
    mol = Chem.RWMol()
    for number in numbers.tolist():
        atom = Chem.Atom(number)
        atom.SetNoImplicit(not implicit)
        mol.AddAtom(atom)
    if charges is not None:
        for i in np.flatnonzero(charges).tolist():
            mol.GetAtomWithIdx(i).SetFormalCharge(int(charges[i]))
    for i, mass in isotopes:
        mol.GetAtomWithIdx(i).SetIsotope(mass)
    for i, j, order in bonds.tolist():
        if not (0 <= i < len(numbers) and 0 <= j < len(numbers)):
            raise PerrinError(f"bond {i + 1}-{j + 1} names an atom that is not there")
        if order not in BOND_TYPES:
            raise PerrinError(
                f"expected bond orders 1, 2 or 3, given {order} between atoms {i} and {j}: kekulize first"
            )
        mol.AddBond(i, j, BOND_TYPES[order])
    return mol


def sanitize(mol: Chem.Mol) -> Chem.Mol | None:
    """A sanitised copy (valences, aromaticity, rings), or `None` when RDKit rejects the molecule. Logs nothing."""
    copy = Chem.Mol(mol)
    with rdBase.BlockLogs():
        failed = Chem.SanitizeMol(copy, catchErrors=True)
    return None if failed else copy


def rejection(mol: Chem.Mol) -> str:
    """Why `sanitize` returns `None`, in RDKit's words."""
    with rdBase.BlockLogs():
        problems = Chem.DetectChemistryProblems(mol)
    return from_one(problems[0].Message()) if problems else "no reason given"


def from_one(text: str) -> str:
    """RDKit's words with atoms counted from 1, as chemists do: `atom # 0 C` becomes `atom C1`."""
    return re.sub(r"atom # (\d+) ([A-Z][a-z]?)", lambda m: f"atom {m[2]}{int(m[1]) + 1}", text)


def canonical_smiles(mol: Chem.Mol) -> str | None:
    """Canonical SMILES of a sanitised molecule, hydrogens implicit, without stereochemistry."""
    with rdBase.BlockLogs():
        try:
            return Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)
        except (ValueError, RuntimeError):
            return None


def isomeric_smiles(mol: Chem.Mol) -> str | None:
    """Canonical SMILES of a sanitised molecule with the stereochemistry that its geometry or its drawing shows."""
    with rdBase.BlockLogs():
        try:
            return Chem.MolToSmiles(Chem.RemoveHs(with_stereo(mol)))
        except (ValueError, RuntimeError):
            return None


def with_stereo(mol: Chem.Mol) -> Chem.Mol:
    """A copy of a sanitised molecule with the stereochemistry of its conformer: of a flat one, wedges and double bonds."""
    mol = Chem.Mol(mol)
    if mol.GetConformer().Is3D():
        Chem.AssignStereochemistryFrom3D(mol)
    else:
        Chem.AssignChiralTypesFromBondDirs(mol)
        for bond in mol.GetBonds():
            if bond.GetBondDir() in (Chem.BondDir.BEGINWEDGE, Chem.BondDir.BEGINDASH):
                bond.SetBondDir(Chem.BondDir.NONE)  # said by the atoms now
        Chem.DetectBondStereochemistry(mol)
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    return mol


def from_rdkit(mol: Chem.Mol, *, flat: bool = False) -> Molecule:
    """The molecule's atoms as they are: hydrogens that are implicit in `mol` stay out (call `Chem.AddHs` first).

    Arguments:
        mol: with a conformer.
        flat: whether a drawing will do; its wedges are kept.

    Raises:
        PerrinError: there is no 3D conformer, the aromatic bonds have no Kekulé structure, an atom is a dummy, or a
            bond is neither single, double nor triple.
    """
    name = mol.GetProp("_Name") if mol.HasProp("_Name") else ""
    label = f"molecule {name!r}" if name else "the molecule"
    drawn = mol.GetNumConformers() > 0 and mol.GetNumAtoms() > 1 and not mol.GetConformer().Is3D()
    if mol.GetNumConformers() == 0 or (drawn and not flat):
        raise PerrinError(f"expected 3D coordinates, given none in {label}: give a 3D file, or SMILES")
    edges = [
        mol.GetBondWithIdx(k) for k in range(mol.GetNumBonds())
    ]  # much faster than iterating over GetBonds()
    if any(bond.GetIsAromatic() or bond.GetBondType() == Chem.BondType.AROMATIC for bond in edges):
        mol = _kekulized(mol, label)
        edges = [mol.GetBondWithIdx(k) for k in range(mol.GetNumBonds())]
    atoms = [mol.GetAtomWithIdx(i) for i in range(mol.GetNumAtoms())]
    numbers = [atom.GetAtomicNum() for atom in atoms]
    if 0 in numbers:
        raise PerrinError(
            f"expected chemical elements, given a dummy atom (atom {numbers.index(0) + 1}) in {label}"
        )
    bonds = []
    for bond in edges:
        i, j = sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
        order = ORDERS.get(bond.GetBondType())
        if order is None:
            raise PerrinError(
                f"expected single, double or triple bonds, given {str(bond.GetBondType()).lower()} "
                f"between atoms {i + 1} and {j + 1} of {label}"
            )
        bonds.append((i, j, order))
    return Molecule(
        numbers=np.array(numbers, dtype=np.int64),
        positions=np.array(mol.GetConformer().GetPositions(), dtype=np.float64).reshape(-1, 3),
        bonds=np.array(sorted(bonds), dtype=np.int64).reshape(-1, 3),
        charges=np.array([atom.GetFormalCharge() for atom in atoms], dtype=np.int64),
        name=name,
        isotopes=tuple((i, mass) for i, atom in enumerate(atoms) if (mass := atom.GetIsotope())),
        wedges=_wedges(edges) if drawn else None,
    )


def _wedges(edges: list[Chem.Bond]) -> tuple[tuple[int, int, int], ...]:
    told = (Chem.BondDir.BEGINWEDGE, Chem.BondDir.BEGINDASH, Chem.BondDir.EITHERDOUBLE, Chem.BondDir.UNKNOWN)
    return tuple(
        (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), int(bond.GetBondDir()))
        for bond in edges
        if bond.GetBondDir() in told
    )


def stated_hydrogens(mol: Chem.Mol) -> tuple[tuple[int, int], ...]:
    """Of a molecule as it was read from a mol block: `Molecule.stated`."""
    told = [a for a in mol.GetAtoms() if a.GetNoImplicit() or a.GetNumRadicalElectrons()]
    for atom in told:
        atom.UpdatePropertyCache(strict=False)
    return tuple((atom.GetIdx(), atom.GetTotalNumHs()) for atom in told)


def _kekulized(mol: Chem.Mol, label: str) -> Chem.Mol:
    copy = Chem.Mol(mol)
    with rdBase.BlockLogs():
        try:
            copy.UpdatePropertyCache(strict=False)
            Chem.FastFindRings(copy)
            Chem.Kekulize(copy, clearAromaticFlags=True)
        except (ValueError, RuntimeError) as error:
            raise PerrinError(
                f"expected aromatic bonds with a Kekulé structure, given none for {label}: write it with bonds 1 and 2"
            ) from error
    return copy


def add_geometry(smiles: str, *, seed: int = 0) -> Molecule:
    """A molecule in 3D from SMILES: hydrogens added, ETKDGv3 embedding, MMFF94 (or UFF) relaxation.

    Arguments:
        smiles: what to build; more than one fragment is allowed.
        seed: of the embedding; the same seed gives the same coordinates.

    Raises:
        PerrinError: RDKit cannot read the SMILES, or finds no geometry for it.
    """
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None or mol.GetNumAtoms() == 0:
            raise PerrinError(
                f"expected a SMILES that RDKit can read, given {smiles!r}: correct or remove it"
            )
        mol = Chem.AddHs(mol)
        options: Any = rdDistGeom.ETKDGv3()
        options.randomSeed = seed
        if rdDistGeom.EmbedMolecule(mol, options) != 0:
            options.useRandomCoords = True
            if rdDistGeom.EmbedMolecule(mol, options) != 0:
                raise PerrinError(
                    f"expected a SMILES with a 3D geometry, given none for {smiles!r}: give an SDF instead"
                )
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=1000)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.UFFOptimizeMolecule(mol, maxIters=1000)
    return from_rdkit(mol)

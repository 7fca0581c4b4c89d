"""Conformers: positions drawn for a given molecular graph.

Elements, formal charges and bonds are given, to a network that was trained with parts as what it knows (`parts.everything`),
to any other by `perrin.core.guides.Shown`. They arrive exactly; only positions are drawn.

*Stereochemistry.* The network commutes with reflections, so it is blind to handedness: it draws a molecule and its mirror
image alike. What is specified in the input is compared with the geometry: chiral tags of tetrahedral centres, and the
dihedral of double bonds. If all centres are inverted, the conformer is mirrored, which is as likely and loses nothing; if
some are, or a double bond is, another molecule was drawn, and it is rejected. What is not specified is left free.

*Broken geometry* is rejected too: a bond that is longer than 1.3 (a multiple one: 1.15) or shorter than 0.7 times the sum of
the covalent radii, or atoms that are not bonded and closer than that sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem, rdBase
from rdkit.Chem import rdMolTransforms
from rdkit.Geometry import Point3D
from torch.nn import functional as F

from perrin.core import CounterNoise, Plan, sample, sample_seeds
from perrin.core.guides import Given, Shown
from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import from_rdkit, rejection, sanitize, to_rdkit, with_stereo
from perrin.modalities.molecule.edit import ATTEMPT, Travel
from perrin.modalities.molecule.fields import (
    BOND_ORDERS,
    BONDS,
    CHARGES,
    TYPES,
    Vocabulary,
    encode,
    layouts_for,
    unsupported,
)
from perrin.modalities.molecule.files import each_record, smiles_entries
from perrin.modalities.molecule.kept import with_hydrogens
from perrin.modalities.molecule.model import MoleculeModel, SamplingOptions, Unit, filled, make_units
from perrin.modalities.molecule.parts import everything
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.textfile import kind

LONG, LONG_MULTIPLE, SHORT = 1.3, 1.15, 0.7
"""Bond lengths, over sums of covalent radii."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What conformers are wanted of.

    Arguments:
        molecule: elements, charges and Kekulé bonds, hydrogens included; its positions are not looked at.
        template: the same atoms in RDKit, sanitised, with the stereochemistry that is specified.
    """

    molecule: Molecule
    template: Chem.Mol

    @classmethod
    def from_smiles(cls, smiles: str, name: str = "") -> Query:
        """Stereochemistry as the SMILES gives it.

        Raises:
            PerrinError: RDKit cannot read it, or it is more than one molecule.
        """
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(smiles)
            if mol is None or mol.GetNumAtoms() == 0:
                raise PerrinError(
                    f"expected a SMILES that RDKit can read, given {smiles!r}: correct or remove it"
                )
            return cls._of(Chem.AddHs(mol), name or smiles)

    @classmethod
    def from_molecule(cls, molecule: Molecule) -> Query:
        """Stereochemistry as the geometry shows it, or the wedges of a drawing.

        Raises:
            PerrinError: it has no bonds or wrong valences, or is more than one molecule.
        """
        whole, _ = with_hydrogens(molecule)
        mol = sanitize(to_rdkit(whole))
        if mol is None:
            raise PerrinError(
                f"expected a molecule with right valences, given {molecule.name or 'one'} that RDKit rejects "
                f"({rejection(to_rdkit(whole))}): mend it"
            )
        with rdBase.BlockLogs():
            mol = with_stereo(mol)
        return cls._of(mol, molecule.name)

    @classmethod
    def _of(cls, mol: Chem.Mol, name: str) -> Query:
        if len(Chem.GetMolFrags(mol)) > 1:
            raise PerrinError(
                f"expected one molecule, given {name} in {len(Chem.GetMolFrags(mol))} pieces: split it"
            )
        flat = Chem.Mol(mol)
        flat.RemoveAllConformers()
        conformer = Chem.Conformer(mol.GetNumAtoms())
        conformer.Set3D(True)
        flat.AddConformer(conformer, assignId=True)
        molecule = replace(from_rdkit(flat), name=name)
        template = Chem.Mol(mol)
        template.RemoveAllConformers()
        return cls(molecule=molecule, template=template)

    def matched(self, positions: np.ndarray) -> np.ndarray | None:
        """The positions `[n, 3]` if they show the stereochemistry that is specified, their mirror image if that does, else
        `None`."""
        mol = Chem.Mol(self.template)
        conformer = Chem.Conformer(mol.GetNumAtoms())
        conformer.Set3D(True)
        for i, (x, y, z) in enumerate(np.asarray(positions, dtype=np.float64).tolist()):
            conformer.SetAtomPosition(i, Point3D(x, y, z))
        mol.AddConformer(conformer, assignId=True)
        for bond in self.template.GetBonds():
            wanted = bond.GetStereo()
            if wanted in _CIS or wanted in _TRANS:
                ends = list(bond.GetStereoAtoms())
                if len(ends) == 2:
                    turn = rdMolTransforms.GetDihedralDeg(
                        conformer, ends[0], bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), ends[1]
                    )
                    if (abs(turn) < 90) != (wanted in _CIS):
                        return None
        with rdBase.BlockLogs():
            Chem.AssignAtomChiralTagsFromStructure(mol, replaceExistingTags=True)
        same = [
            atom.GetChiralTag() == mol.GetAtomWithIdx(atom.GetIdx()).GetChiralTag()
            for atom in self.template.GetAtoms()
            if atom.GetChiralTag() in _TETRAHEDRAL
        ]
        if all(same):
            return positions
        return None if any(same) else positions * np.array([-1.0, 1.0, 1.0])


_CIS = (Chem.BondStereo.STEREOZ, Chem.BondStereo.STEREOCIS)
_TRANS = (Chem.BondStereo.STEREOE, Chem.BondStereo.STEREOTRANS)
_TETRAHEDRAL = (Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW)


def read_queries(path: str | Path) -> list[Query]:
    """The molecules of an SDF, SMILES or CSV file.

    Raises:
        PerrinError: the file or an entry cannot be read; the message says which.
    """
    out = []
    for query in each_query(path):
        if isinstance(query, PerrinError):
            raise query
        out.append(query)
    return out


def each_query(path: str | Path) -> list[Query | PerrinError]:
    """Every entry of an SDF, SMILES or CSV file: what is wanted, or what is wrong with it.

    Raises:
        PerrinError: the file cannot be read, or has no entries.
    """
    suffix = kind(path)
    out: list[Query | PerrinError] = []
    if suffix == ".sdf":
        for number, molecule in each_record(path, flat=True):
            out.append(
                molecule
                if isinstance(molecule, PerrinError)
                else _query(f"record {number} of {path}", Query.from_molecule, molecule)
            )
    elif suffix in (".smi", ".smiles", ".csv"):
        for number, smiles, name in smiles_entries(path):
            out.append(_query(f"line {number} of {path}", Query.from_smiles, smiles, name))
    else:
        raise PerrinError(f"expected a file .sdf, .smi, .smiles or .csv, which says the bonds, given {path}")
    if not out:
        raise PerrinError(f"expected molecules in {path}, found none")
    return out


def _query(where: str, make: Callable[..., Query], *given: object) -> Query | PerrinError:
    try:
        return make(*given)
    except PerrinError as error:
        return PerrinError(f"{error} ({where})")


def unfit(molecule: Molecule, vocabulary: Vocabulary) -> str:
    """Why a model that knows such molecules cannot express this one, or an empty text."""
    if reason := unsupported(molecule, vocabulary):
        return f"{reason} ({molecule.name})"
    if len(molecule) > vocabulary.max_atoms:
        return (
            f"expected molecules of at most {vocabulary.max_atoms} atoms, the largest that the model knows, given "
            f"{molecule.name} with {len(molecule)}: train a model on larger ones"
        )
    return ""


class ConformerSampler:
    """Draws conformers: sample `i` is of query `i // each`.

    Arguments:
        model: any molecule model; best one that was trained with parts.
        queries: what of.
        each: conformers of each.

    Raises:
        PerrinError: the model cannot express a molecule.
    """

    def __init__(
        self, model: MoleculeModel, queries: Sequence[Query], each: int, *, travel: Travel | None = None
    ) -> None:
        self.model, self.queries, self.each = model, list(queries), each
        self.travel = travel or Travel.of(model)
        for query in self.queries:
            if reason := unfit(query.molecule, model.config.vocabulary):
                raise PerrinError(reason)

    def query(self, number: int) -> Query:
        """What draw `number` is of."""
        return self.queries[number % ATTEMPT // self.each]

    def units(self, numbers: Sequence[int], seed: int, *, batch: int) -> list[Unit]:
        """Draws of one width together, large ones first."""
        return make_units([(i, len(self.query(i).molecule)) for i in numbers], batch=batch)

    def plan(self, options: SamplingOptions) -> Plan:
        """The rows of a draw."""
        return self.travel.plan(self.model, options)

    def run_unit(self, unit: Unit, seed: int, options: SamplingOptions) -> list[Molecule]:
        """Draw one unit; nothing is checked yet. A draw depends on the seed and its number, on nothing else."""
        model, count = self.model, len(unit.indices)
        rows = filled(count)
        molecules = [self.query(i).molecule for i in unit.indices]
        vocabulary, network = model.config.vocabulary, model.config.network
        known, mask = encode([molecules[i] for i in rows], vocabulary, width=unit.width)
        known, mask = {k: v.to(model.device) for k, v in known.items()}, mask.to(model.device)
        sizes = {TYPES: len(vocabulary.elements), CHARGES: len(vocabulary.charges), BONDS: BOND_ORDERS}
        allowed = {name: F.one_hot(known[name].long(), k).bool() for name, k in sizes.items()}
        process = model.denoiser.process
        guide = (Given if network.parts else Shown)(denoiser=model.denoiser, process=process, allowed=allowed)
        noise = CounterNoise(sample_seeds(seed, torch.tensor(unit.indices)[rows]).to(model.device))
        state = sample(
            guide, process, self.plan(options), layouts_for(mask), noise,
            condition=everything(known, mask) if network.parts else None, self_condition=network.self_condition,
        )  # fmt: skip
        found = state["positions"][:count].double().cpu().numpy() * vocabulary.position_scale
        return [
            replace(m, positions=x[: len(m)], properties={}) for m, x in zip(molecules, found, strict=True)
        ]

    def checked(self, number: int, molecule: Molecule) -> tuple[Molecule, str]:
        """The conformer, mirrored if need be, and why it is rejected, or an empty string."""
        positions = self.query(number).matched(molecule.positions)
        if positions is None:
            return molecule, "of other stereochemistry"
        molecule = replace(molecule, positions=positions)
        return molecule, "of broken geometry" if is_broken(molecule) else ""


def is_broken(molecule: Molecule) -> bool:
    """Whether a bond is too long or too short, or atoms that are not bonded are too close; see the module."""
    from ase.data import covalent_radii

    n = len(molecule)
    assert molecule.bonds is not None
    if not np.isfinite(molecule.positions).all():
        return True
    radii = covalent_radii[molecule.numbers]
    d = np.linalg.norm(molecule.positions[:, None] - molecule.positions, axis=-1)
    ratio = d / (radii[:, None] + radii)
    apart = ~np.eye(n, dtype=bool)
    i, j, order = molecule.bonds.T
    apart[i, j] = apart[j, i] = False
    lengths, limits = ratio[i, j], np.where(order > 1, LONG_MULTIPLE, LONG)
    return bool((lengths > limits).any() or (lengths < SHORT).any() or (ratio[apart] < 1.0).any())

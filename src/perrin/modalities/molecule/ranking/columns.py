"""The properties that molecules are ranked by, with their units.

Everything is computed by RDKit on the molecule without its explicit hydrogens. QED: Bickerton et al., Nat. Chem. 4, 90
(2012), with its mean weights. SA: Ertl and Schuffenhauer, J. Cheminform. 1, 8 (2009), 1 (easy to make) to 10, by the
scorer in RDKit's `Contrib`, which ships in its wheel with the fragment frequencies. logP: Wildman and Crippen (1999).
TPSA: Ertl, Rohde and Selzer (2000), nitrogen and oxygen only. Lipinski's rule counts, as he did, N and O as acceptors and
their hydrogens as donors; `HBA` and `HBD` are RDKit's stricter counts. PAINS: the 480 substructures of Baell and
Holloway, J. Med. Chem. 53, 2719 (2010), in RDKit's `FilterCatalog`; an alert is a warning and no verdict.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import QED, Crippen, Descriptors, rdMolDescriptors
from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams

from perrin.modalities.molecule.chem import graph, isomeric_smiles, sanitize, to_rdkit
from perrin.modalities.molecule.predicted import read_name
from perrin.modalities.molecule.structure import Molecule


@dataclass(frozen=True, kw_only=True)
class Column:
    """One property of a molecule.

    Arguments:
        name: as files and the command line write it.
        unit: empty for a pure number.
        meaning: a few words.
        kind: `float`, `int`, `flag` (0 or 1) or `text`.
        aliases: other names that are understood; case does not matter in any of them.
    """

    name: str
    meaning: str
    unit: str = ""
    kind: str = "float"
    aliases: tuple[str, ...] = ()


def _column(name: str, meaning: str, unit: str = "", kind: str = "float", *aliases: str) -> Column:
    return Column(name=name, meaning=meaning, unit=unit, kind=kind, aliases=aliases)


DESCRIPTORS: tuple[Column, ...] = (
    _column("QED", "drug-likeness, 0 to 1"),
    _column("SA", "synthetic accessibility, 1 easy to 10 hard", "", "float", "sascore", "sa_score"),
    _column("logP", "octanol-water partition coefficient (Crippen)"),
    _column("TPSA", "topological polar surface area", "Å²"),
    _column("MW", "molecular weight", "Da", "float", "weight", "molwt"),
    _column("lipinski", "violations of Lipinski's rule, 0 to 4", "", "int"),
    _column("pains", "PAINS alerts", "", "int"),
    _column("HBD", "hydrogen-bond donors", "", "int", "donors"),
    _column("HBA", "hydrogen-bond acceptors", "", "int", "acceptors"),
    _column("rotatable", "rotatable bonds", "", "int", "rotatable_bonds"),
    _column("rings", "rings", "", "int"),
    _column("aromatic", "aromatic rings", "", "int", "aromatic_rings"),
    _column("fsp3", "share of sp³ carbon"),
    _column("heavy", "heavy atoms", "", "int", "heavy_atoms"),
    _column("fragments", "separate pieces", "", "int"),
    _column("charge", "net formal charge", "e", "int"),
)
"""Cheap, always computed."""

XTB: tuple[Column, ...] = (
    _column("xtb_energy", "GFN2-xTB total energy of the geometry as it is", "Ha"),
    _column("xtb_gap", "GFN2-xTB gap between HOMO and LUMO", "eV"),
    _column("xtb_homo", "GFN2-xTB energy of the HOMO", "eV"),
    _column("xtb_lumo", "GFN2-xTB energy of the LUMO", "eV"),
    _column("xtb_dipole", "GFN2-xTB dipole moment, of neutral molecules", "D"),
)
"""On request."""

STRAIN = _column("xtb_strain", "energy that GFN2-xTB relaxation gains", "kcal/mol")
"""On request by name: a relaxation costs a hundred times a single point."""

IDENTITY: tuple[Column, ...] = (
    _column("valid", "RDKit sanitises it", "", "flag"),
    _column("duplicate", "an earlier molecule is the same", "", "flag"),
    _column("known", "it is in the reference", "", "flag"),
)

CARRIED: tuple[Column, ...] = (
    _column("wishes_met", "the property network finds all wishes met", "", "flag"),
)
"""Of the file, not computed again."""

TEXTS: tuple[Column, ...] = (
    _column("smiles", "canonical SMILES with the stereochemistry of the geometry", "", "text"),
    _column("pains_alerts", "names of the PAINS alerts", "", "text"),
)

COLUMNS: dict[str, Column] = {c.name: c for c in (*DESCRIPTORS, *XTB, STRAIN, *CARRIED, *IDENTITY, *TEXTS)}


def column_of(name: str) -> Column | None:
    """What is known of a column: one of `COLUMNS`, or a prediction, whose unit is in its name."""
    if (column := COLUMNS.get(name)) is not None:
        return column
    predicted = read_name(name)
    if predicted is None:
        return None
    return Column(
        name=name, unit=predicted[1], meaning=f"{predicted[0]}, by a property network from the geometry"
    )


def sanitized(molecule: Molecule) -> Chem.Mol | None:
    """The sanitised molecule without its hydrogens; `None` without bonds or where RDKit rejects it."""
    if molecule.bonds is None or not len(molecule):
        return None
    with rdBase.BlockLogs():
        try:
            mol = sanitize(graph(molecule.numbers, molecule.bonds, molecule.charges, implicit=False).GetMol())
            return None if mol is None else Chem.RemoveHs(mol)
        except (ValueError, RuntimeError, OverflowError):
            return None


def describe(molecule: Molecule) -> dict[str, Any]:
    """`DESCRIPTORS`, `smiles`, `pains_alerts` and `valid` of a molecule; only `valid` where RDKit rejects it."""
    mol = sanitized(molecule)
    if mol is None:
        return {"valid": 0}
    values = descriptors(mol)
    smiles = None
    if np.isfinite(molecule.positions).all():
        sane = sanitize(to_rdkit(molecule))
        smiles = isomeric_smiles(sane) if sane is not None else None
        if sane is not None and molecule.isotopes:  # all else is of the elements
            values["MW"] = round(Descriptors.MolWt(sane), 3)
    return {"valid": 1, "smiles": smiles or Chem.MolToSmiles(mol, isomericSmiles=False), **values}


def descriptors(mol: Chem.Mol) -> dict[str, Any]:
    """`DESCRIPTORS` and `pains_alerts` of a sanitised molecule without explicit hydrogens."""
    weight, logp = Descriptors.MolWt(mol), Crippen.MolLogP(mol)
    donors, acceptors = rdMolDescriptors.CalcNumLipinskiHBD(mol), rdMolDescriptors.CalcNumLipinskiHBA(mol)
    alerts = [entry.GetDescription() for entry in _pains().GetMatches(mol)]
    return {
        "QED": round(QED.qed(mol), 4),
        "SA": round(_scorer().calculateScore(mol), 3),
        "logP": round(logp, 4),
        "TPSA": round(rdMolDescriptors.CalcTPSA(mol), 2),
        "MW": round(weight, 3),
        "lipinski": sum((weight > 500, logp > 5, donors > 5, acceptors > 10)),
        "pains": len(alerts),
        "HBD": rdMolDescriptors.CalcNumHBD(mol),
        "HBA": rdMolDescriptors.CalcNumHBA(mol),
        "rotatable": rdMolDescriptors.CalcNumRotatableBonds(mol),
        "rings": rdMolDescriptors.CalcNumRings(mol),
        "aromatic": rdMolDescriptors.CalcNumAromaticRings(mol),
        "fsp3": round(rdMolDescriptors.CalcFractionCSP3(mol), 4),
        "heavy": mol.GetNumHeavyAtoms(),
        "fragments": len(Chem.GetMolFrags(mol)),
        "charge": Chem.GetFormalCharge(mol),
        "pains_alerts": ", ".join(alerts),
    }


def prepare() -> None:
    """Load the tables now, so that processes forked later share them: the fragments of SA take over a second."""
    _pains()
    _scorer()


@cache
def _pains() -> Any:
    parameters = FilterCatalogParams()
    parameters.AddCatalog(FilterCatalogParams.FilterCatalogs.PAINS)
    return FilterCatalog(parameters)


@cache
def _scorer() -> Any:
    """RDKit's `sascorer`, which is no module of a package: loaded from the folder `Contrib` of the wheel."""
    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = importlib.util.spec_from_file_location("perrin_sascorer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        module.readFragmentScores()
    except OSError as error:
        from perrin.errors import PerrinError

        raise PerrinError(
            f"expected RDKit with its folder Contrib/SA_Score, given one without ({path}): pip install rdkit"
        ) from error
    return module

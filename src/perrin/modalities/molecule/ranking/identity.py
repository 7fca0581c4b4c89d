"""When two molecules are the same, and whether one is known.

Two keys are compared, and either is enough: the canonical SMILES without stereochemistry, and the InChIKey of the
fixed-hydrogen InChI without stereochemistry. SMILES tell apart what is one molecule in two resonance forms
(CN=[N+]=[N-] and C[N-][N+]#N); InChI does not. The *standard* InChI goes further and merges tautomers with mobile
hydrogens (2-pyridone and 2-hydroxypyridine), which are different molecules in 3D, with different properties; the
fixed-hydrogen layer keeps them apart. Stereoisomers count as the same, as in the metrics: data sets of SMILES often
lack their stereochemistry. So do isotopologues.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdkit import Chem, rdBase

from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import canonical_smiles
from perrin.modalities.molecule.files import sdf_blocks, smiles_entries
from perrin.modalities.molecule.ranking.columns import sanitized
from perrin.modalities.molecule.structure import Molecule
from perrin.run.pool import map_unordered

Keys = tuple[str | None, str | None]
"""SMILES and InChIKey; `None` where there is none."""

_WORK: dict[str, Any] = {}


def keys_of(mol: Chem.Mol | None) -> Keys:
    """The two keys of a sanitised molecule."""
    if mol is None:
        return None, None
    with rdBase.BlockLogs():
        try:
            inchi = Chem.MolToInchiKey(mol, options="/FixedH /SNon") or None
        except (ValueError, RuntimeError):
            inchi = None
    return canonical_smiles(mol), inchi


def duplicates(keys: Sequence[Keys]) -> list[int | None]:
    """For each molecule the index of the first one that is the same, or `None` where it is the first."""
    first: dict[str, int] = {}
    out: list[int | None] = []
    for i, pair in enumerate(keys):
        found = [first[key] for key in pair if key is not None and key in first]
        origin = min(found) if found else i
        for key in pair:
            if key is not None:
                first.setdefault(key, origin)
        out.append(origin if found else None)
    return out


@dataclass(frozen=True, kw_only=True)
class Known:
    """Molecules that are known.

    Arguments:
        name: of the file or data set.
        keys: SMILES and InChIKeys.
        count: how many molecules.
        skipped: records that RDKit rejects.
    """

    name: str
    keys: frozenset[str]
    count: int
    skipped: int = 0

    def __contains__(self, keys: Keys) -> bool:
        return any(key in self.keys for key in keys if key is not None)


def read_known(reference: str, workers: int = 1) -> Known:
    """The known molecules of `qm9` (all 130,831, by their SMILES) or of a file: SDF in 2D or 3D, SMILES, or CSV.

    Raises:
        PerrinError: there is no such file, or RDKit accepts nothing in it.
    """
    if reference == "qm9":
        from perrin.modalities.molecule.qm9 import load_qm9

        smiles = load_qm9().smiles()
        return Known(name="QM9", keys=frozenset(smiles), count=len(smiles))
    texts, kind = reference_texts(reference)
    found: list[Keys] = []
    for _, part in map_unordered(
        _keys_of_part,
        [range(i, min(i + 500, len(texts))) for i in range(0, len(texts), 500)],
        workers=workers,
        setup=_setup,
        arguments=(texts, kind),
    ):
        found += part
    good = [pair for pair in found if any(pair)]
    if not good:
        raise PerrinError(
            f"expected molecules that RDKit accepts in the reference {reference}, given none: check the file"
        )
    keys = frozenset(key for pair in good for key in pair if key is not None)
    return Known(name=Path(reference).name, keys=keys, count=len(good), skipped=len(found) - len(good))


def reference_texts(reference: str) -> tuple[list[str], str]:
    """The SMILES or mol blocks of a reference file, and which of the two they are (`smiles` or `block`).

    Raises:
        PerrinError: the file is missing, empty or of a kind without bonds.
    """
    suffix = Path(reference).suffix.lower()
    if suffix in (".smi", ".smiles", ".csv"):
        return [smiles for _, smiles, _ in smiles_entries(reference)], "smiles"
    if suffix == ".sdf":
        return sdf_blocks(reference), "block"
    if suffix in (".xyz", ".extxyz"):
        raise PerrinError(
            f"expected a reference with bonds, given {reference}, an XYZ file: give SDF or SMILES"
        )
    raise PerrinError(f"expected a reference (qm9, or a file .sdf, .smi or .csv), given {reference!r}")


def parse(text: str, kind: str) -> Chem.Mol | None:
    """A sanitised molecule without explicit hydrogens, or `None`."""
    with rdBase.BlockLogs():
        try:
            mol = Chem.MolFromSmiles(text) if kind == "smiles" else Chem.MolFromMolBlock(text)
        except (ValueError, RuntimeError):
            return None
        if mol is not None and any(atom.GetIsotope() for atom in mol.GetAtoms()):
            for atom in mol.GetAtoms():
                atom.SetIsotope(0)
            mol = Chem.RemoveHs(mol)
    return mol if mol is not None and mol.GetNumAtoms() else None


def molecule_keys(molecules: Iterable[Molecule]) -> list[Keys]:
    """The keys of molecules as they are in a file."""
    return [keys_of(sanitized(molecule)) for molecule in molecules]


def _setup(texts: list[str], kind: str) -> None:
    _WORK.update(texts=texts, kind=kind)


def _keys_of_part(part: range) -> list[Keys]:
    return [keys_of(parse(_WORK["texts"][i], _WORK["kind"])) for i in part]

r"""Preparing QM9: the CSV files of `qm9pack` become one safetensors file, with bonds that nothing guessed.

Bonds. The heavy atoms of the SMILES stand in the order of the coordinates. Bond orders (Kekulé) and formal
charges of the heavy atoms are read from the SMILES; every hydrogen is joined to its nearest heavy atom, and
the result is accepted only when each heavy atom received exactly the number of hydrogens that the SMILES
gives it, and no bond is longer than 2 Å. No bond and no order ever comes from a distance.

On the whole set: the elements or the hydrogen counts disagree in 6 molecules of 130,831, and 2 more have
bonds above 2.1 Å because their carbons are numbered differently; those 8 get `has_bonds = False`. Elsewhere
the longest bond is 1.79 Å. Every molecule is neutral; 580 are zwitterions or ylides with formal charges.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from perrin.errors import PerrinError, install
from perrin.run.atomic import write_tensors

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "perrin-qm9-v1"

LONGEST_BOND = 2.0
"""Å. A bond of the SMILES that is longer in the coordinates means that the atoms are numbered differently."""

PROPERTIES: dict[str, tuple[str, str]] = {
    "index": ("Index", "1"),
    "A": ("RotA_GHz", "GHz"),
    "B": ("RotB_GHz", "GHz"),
    "C": ("RotC_GHz", "GHz"),
    "mu": ("Dipole_debye", "D"),
    "alpha": ("Polarizability_bohr3", "bohr^3"),
    "homo": ("HOMO_au", "hartree"),
    "lumo": ("LUMO_au", "hartree"),
    "gap": ("HOMO_LUMO_gap_au", "hartree"),
    "r2": ("R2_bohr2", "bohr^2"),
    "zpve": ("ZPVE_au", "hartree"),
    "u0": ("InternalEnergy_0K_au", "hartree"),
    "u298": ("InternalEnergy_298K_au", "hartree"),
    "h298": ("Enthalphy_298K_au", "hartree"),
    "g298": ("GibbsFreeEnergy_298K_au", "hartree"),
    "cv": ("Heatcapacity_Cv_cal_mol_K", "cal/(mol K)"),
}
"""Name: (column of the source, unit). `index` is the number of the molecule in the original QM9, from 1."""

ATOMIC_NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}


def source_files() -> list[Path]:
    """The CSV files of the installed `qm9pack`, found without importing it (it needs pkg_resources)."""
    spec = importlib.util.find_spec("qm9pack")
    roots = list(spec.submodule_search_locations or []) if spec else []
    files = [path for root in roots for path in sorted(Path(root, "data").glob("qm9_part*.csv"))]
    if not files:
        raise PerrinError(f"expected the QM9 data, given no package 'qm9pack': {install('molecule')}")
    return files


def prepare_qm9(files: Sequence[Path], target: Path, *, count: int | None = None) -> None:
    """Read the CSV files and write the cache file, atomically.

    Arguments:
        files: the CSV files, in order.
        target: the safetensors file to make.
        count: molecules expected, for the progress bar and as a check.
    """

    rows: dict[str, list[Any]] = {name: [] for name in ("numbers", "charges", "positions", "bonds", "smiles")}
    properties: list[list[float]] = []
    with _progress("preparing QM9 (once)", count) as advance:
        for record in _records(files):
            numbers, positions = _atoms(record)
            charges, bonds, smiles = _chemistry(record["SMILES"], numbers, positions)
            for name, value in zip(rows, (numbers, charges, positions, bonds, smiles.encode("ascii"))):
                rows[name].append(value)
            properties.append([parse_number(record[column]) for column, _ in PROPERTIES.values()])
            advance()
    if count is not None and len(properties) != count:
        raise PerrinError(
            f"expected {count} molecules from qm9pack 1.0.3, given {len(properties)}: reinstall qm9pack"
        )
    bonds_known = [np.zeros((0, 3), np.uint8) if bonds is None else bonds for bonds in rows["bonds"]]
    tensors = {
        "offsets": _offsets(rows["numbers"]),
        "numbers": torch.from_numpy(np.concatenate(rows["numbers"])),
        "charges": torch.from_numpy(np.concatenate(rows["charges"])),
        "positions": torch.from_numpy(np.concatenate(rows["positions"])),
        "bond_offsets": _offsets(bonds_known),
        "bonds": torch.from_numpy(np.concatenate(bonds_known)),
        "has_bonds": torch.tensor([bonds is not None for bonds in rows["bonds"]]),
        "properties": torch.tensor(properties, dtype=torch.float64),
        "smiles": torch.from_numpy(np.frombuffer(b"".join(rows["smiles"]), dtype=np.uint8).copy()),
        "smiles_offsets": _offsets(rows["smiles"]),
    }
    units = {name: unit for name, (_, unit) in PROPERTIES.items()}
    metadata = {"format": FORMAT, "properties": json.dumps(list(units)), "units": json.dumps(units)}
    write_tensors(target, tensors, metadata)
    unmatched = int((~tensors["has_bonds"]).sum())
    print(
        f"QM9: {len(properties)} molecules in {target}; "
        f"{unmatched} without bonds (SMILES and coordinates disagree)",
        file=sys.stderr,
    )


def parse_number(text: str) -> float:
    """A number as QM9 writes it: `0.`, `-1.5e-3`, and Mathematica's `6.2*^-6`."""
    return float(text.strip().replace("*^", "e"))


def _records(files: Sequence[Path]) -> Iterator[dict[str, str]]:
    for path in files:
        with open(path, newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


def _atoms(record: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers `[n]` (uint8) and positions `[n, 3]` (float32, Å) of one record."""
    symbols = record["Elements"].strip("[] ").replace("'", "").split(",")
    numbers = np.array([ATOMIC_NUMBERS[symbol.strip()] for symbol in symbols], dtype=np.uint8)
    values = record["XYZ_Ang"].replace("[", "").replace("]", "").split(",")
    positions = np.array([parse_number(value) for value in values], dtype=np.float32)
    return numbers, positions.reshape(len(numbers), 3)


def _chemistry(
    smiles: str, numbers: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Formal charges `[n]`, bonds `[m, 3]` (`None` when they do not match) and the canonical SMILES."""
    from rdkit import Chem

    charges = np.zeros(len(numbers), dtype=np.int8)
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        return charges, None, smiles
    canonical = Chem.MolToSmiles(mol, isomericSmiles=False)
    Chem.Kekulize(mol, clearAromaticFlags=True)
    heavy, hydrogens = np.flatnonzero(numbers != 1), np.flatnonzero(numbers == 1)
    atoms = list(mol.GetAtoms())
    if [atom.GetAtomicNum() for atom in atoms] != numbers[heavy].tolist():
        return charges, None, canonical
    distances = np.linalg.norm(positions[hydrogens, None] - positions[None, heavy], axis=-1)
    parents = distances.argmin(1) if len(hydrogens) else np.zeros(0, dtype=np.int64)
    if np.bincount(parents, minlength=len(heavy)).tolist() != [atom.GetTotalNumHs() for atom in atoms]:
        return charges, None, canonical
    pairs = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()], dtype=np.int64)
    ends = positions[heavy[pairs.reshape(-1, 2)]]
    if (np.linalg.norm(ends[:, 0] - ends[:, 1], axis=-1) > LONGEST_BOND).any():
        return charges, None, canonical
    charges[heavy] = [atom.GetFormalCharge() for atom in atoms]
    bonds = [
        (heavy[bond.GetBeginAtomIdx()], heavy[bond.GetEndAtomIdx()], int(bond.GetBondTypeAsDouble()))
        for bond in mol.GetBonds()
    ]
    bonds += [(heavy[parent], hydrogen, 1) for parent, hydrogen in zip(parents, hydrogens)]
    rows = sorted((int(min(i, j)), int(max(i, j)), order) for i, j, order in bonds)
    return charges, np.array(rows, dtype=np.uint8).reshape(-1, 3), canonical


def _offsets(parts: Sequence[Any]) -> Tensor:
    sizes = torch.tensor([0, *map(len, parts)], dtype=torch.int64)
    return sizes.cumsum(0)


class _Advance(Protocol):
    def __call__(self) -> None: ...


@contextmanager
def _progress(title: str, total: int | None) -> Iterator[_Advance]:
    """A counter: a rich bar on a terminal, a plain line every 20,000 molecules elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)
        return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done % 20_000 == 0:
            print(f"{title}: {done} of {total or '?'}", file=sys.stderr, flush=True)

    yield advance

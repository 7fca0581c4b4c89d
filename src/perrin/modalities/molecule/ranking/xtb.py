"""Energies, frontier orbitals and dipole by GFN2-xTB, of the geometry as it is in the file.

One self-consistent calculation by `tblite` in the gas phase at 300 K electronic temperature. The charge is the sum of the
formal charges; an odd number of electrons is a doublet, and then there is no gap. The dipole of an ion depends on the
origin, so ions have none. Reference: Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15, 1652 (2019).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from perrin.modalities.molecule.metrics.relax import COINCIDE, METHOD, one_thread_tblite, relax_one
from perrin.modalities.molecule.structure import Molecule

BOHR = 0.529177210903
HARTREE = 27.211386245988
DEBYE = 2.541746473


def single_point(molecule: Molecule) -> dict[str, float]:
    """The columns `XTB` of a molecule: Ha, eV and D. Empty where atoms coincide or the energy does not converge."""
    with one_thread_tblite():
        from tblite.interface import Calculator

    positions = np.asarray(molecule.positions, dtype=np.float64)
    gaps = np.linalg.norm(positions[:, None] - positions[None], axis=-1) + 10 * np.eye(len(positions))
    if not len(positions) or not np.isfinite(positions).all() or gaps.min() < COINCIDE:
        return {}
    charge = int(np.sum(molecule.charges))
    electrons = int(np.sum(molecule.numbers)) - charge
    try:
        numbers = np.asarray(molecule.numbers)
        calculator = Calculator(METHOD, numbers, positions / BOHR, float(charge), electrons % 2)
        calculator.set("verbosity", 0)
        result = calculator.singlepoint()
        levels = np.asarray(result.get("orbital-energies")) * HARTREE
        occupied = round(float(np.sum(result.get("orbital-occupations")))) // 2
        dipole = float(np.linalg.norm(result.get("dipole"))) * DEBYE
        out = {"xtb_energy": float(result.get("energy"))}
    except (RuntimeError, ValueError):
        return {}
    if charge == 0:
        out["xtb_dipole"] = dipole
    if electrons % 2 == 0 and 0 < occupied < len(levels):
        homo, lumo = float(levels[occupied - 1]), float(levels[occupied])
        out |= {"xtb_homo": homo, "xtb_lumo": lumo, "xtb_gap": lumo - homo}
    decimals = {"xtb_energy": 8, "xtb_dipole": 4}
    return {k: round(v, decimals.get(k, 4)) for k, v in out.items() if np.isfinite(v)}


def strain(molecule: Molecule) -> dict[str, Any]:
    """The column `STRAIN`, kcal/mol: what `perrin evaluate --relax` calls the energy drop; empty where it fails."""
    found, _ = relax_one(molecule)
    return {} if found.failure else {"xtb_strain": round(found.drop, 4)}

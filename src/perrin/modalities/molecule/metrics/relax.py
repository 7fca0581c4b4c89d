r"""How far a molecule is from a minimum: relaxation by GFN2-xTB.

GFN2-xTB (Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15, 1652 (2019)) from the package `tblite`, through
its ASE calculator; the minimiser is ASE's BFGS, until no atom feels a force above `fmax` (0.01 eV/Å). With `x` the
generated and `x*` the relaxed coordinates,

    drop = E(x) − E(x*)  (kcal/mol),   RMSD = min_{R ∈ SO(3), t} √(Σ_i |x_i − R x*_i − t|² / n)  (Å)

over all atoms, hydrogens included, in the order they have: the relaxation does not permute them. `rmsd_heavy` leaves
hydrogens out of the sum and of the alignment. The charge is the sum of the formal charges; an odd number of electrons
is a doublet. Every molecule starts from a fresh calculator, so that its result depends on nothing else.

A relaxation *fails* when the energy does not converge, atoms coincide, or the forces are still too large after
`max_steps`. Failures are counted, and stand in the medians as values above all others, so that they cannot make a set
look better. A bond is *broken* when its length ends above 1.3 times the sum of the covalent radii.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from perrin.errors import PerrinError
from perrin.modalities.molecule.metrics.packages import require
from perrin.modalities.molecule.metrics.statistics import Metrics, mean, median, proportion
from perrin.modalities.molecule.structure import Molecule

METHOD = "GFN2-xTB"
STRETCH = 1.3
"""A bond longer than this times the sum of its covalent radii is broken."""
COINCIDE = 0.2
"""Å. Atoms closer than this are on top of each other."""

_WORK: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class RelaxOptions:
    """Which molecules to relax, and how far.

    Arguments:
        count: how many, drawn at random from the molecules that are valid and connected.
        seed: of the draw.
        fmax: largest force on an atom at the end, eV/Å.
        max_steps: steps of the minimiser.
    """

    count: int = 500
    seed: int = 0
    fmax: float = 0.01
    max_steps: int = 1000

    def __post_init__(self) -> None:
        if self.count < 1 or self.max_steps < 1 or not 0 < self.fmax < float("inf"):
            raise PerrinError(
                "expected to relax at least 1 molecule by at least 1 step to a force above 0 eV/Å, given "
                f"{self.count}, {self.max_steps} and {self.fmax}"
            )


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """One relaxation: energies in kcal/mol, RMSD in Å, or the reason why it failed."""

    drop: float = float("inf")
    rmsd: float = float("inf")
    rmsd_heavy: float = float("inf")
    steps: int = 0
    broken: bool = False
    failure: str = ""


def relax(
    molecules: Sequence[Molecule],
    options: RelaxOptions | None = None,
    *,
    workers: int = 1,
    advance: Callable[[int], None] = lambda n: None,
) -> list[Relaxed]:
    """Relax all of these molecules, in processes of one thread each.

    Raises:
        PerrinError: the package `tblite` is not there.
    """
    from perrin.run.pool import map_unordered

    require("tblite", "the relaxation")
    options = options or RelaxOptions()
    results: list[Relaxed] = [Relaxed()] * len(molecules)
    arguments = (list(molecules), options)
    for i, found in map_unordered(
        _run, range(len(molecules)), workers=workers, setup=_setup, arguments=arguments
    ):
        results[i] = found
        advance(1)
    return results


def relax_one(molecule: Molecule, options: RelaxOptions | None = None) -> tuple[Relaxed, np.ndarray]:
    """Relax one molecule; also its last coordinates, `[n, 3]` in Å (the given ones where it could not start)."""
    from ase import Atoms, units
    from ase.calculators.calculator import CalculatorError
    from ase.optimize import BFGS

    with one_thread_tblite():
        from tblite.ase import TBLite

    options = options or RelaxOptions()
    charge = int(np.sum(molecule.charges))
    electrons = int(np.sum(molecule.numbers)) - charge
    start = np.asarray(molecule.positions, dtype=np.float64)
    gaps = np.linalg.norm(start[:, None] - start[None], axis=-1) + 10 * np.eye(len(start))
    if not np.isfinite(start).all() or (len(start) > 1 and gaps.min() < COINCIDE):
        return Relaxed(failure="atoms coincide"), start
    atoms = Atoms(numbers=molecule.numbers, positions=start)
    atoms.calc = TBLite(method=METHOD, charge=charge, multiplicity=1 + electrons % 2, verbosity=0)
    try:
        before = float(atoms.get_potential_energy())
        minimiser = BFGS(atoms, logfile=None)
        converged = minimiser.run(fmax=options.fmax, steps=options.max_steps)
        after = float(atoms.get_potential_energy())
    except (CalculatorError, RuntimeError, ValueError, np.linalg.LinAlgError):
        return Relaxed(failure="energy did not converge"), start
    end = atoms.get_positions()
    if not (np.isfinite(after) and np.isfinite(end).all()):
        return Relaxed(failure="energy did not converge"), start
    if not converged:
        return Relaxed(failure=f"forces above {options.fmax} eV/Å", steps=minimiser.nsteps), end
    heavy = molecule.numbers > 1
    found = Relaxed(
        drop=(before - after) * units.mol / units.kcal,
        rmsd=aligned_rmsd(start, end),
        rmsd_heavy=aligned_rmsd(start[heavy], end[heavy]) if heavy.any() else 0.0,
        steps=minimiser.nsteps,
        broken=_broken(molecule, end),
    )
    return found, end


def aligned_rmsd(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square distance of `[n, 3]` points after the best proper rotation and shift (Kabsch 1976)."""
    a, b = a - a.mean(0), b - b.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    if np.linalg.det(u @ vt) < 0:
        u[:, -1] *= -1
    return float(np.sqrt(np.square(a @ (u @ vt) - b).sum() / len(a)))


def relax_metrics(results: Sequence[Relaxed]) -> Metrics:
    """Medians (with failures as the largest values), means of what succeeded, and the shares of failed and broken."""
    good = [r for r in results if not r.failure]
    return {
        "energy_drop": median([r.drop for r in results]),
        "rmsd": median([r.rmsd for r in results]),
        "rmsd_heavy": median([r.rmsd_heavy for r in results]),
        "mean_energy_drop": mean([r.drop for r in good]),
        "mean_rmsd": mean([r.rmsd for r in good]),
        "failed": proportion([bool(r.failure) for r in results]),
        "broken": proportion([r.broken for r in good]),
    }


def settings(options: RelaxOptions) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "method": METHOD,
        "minimiser": "BFGS",
        **asdict(options),
        "tblite": require("tblite", "the relaxation"),
    }


def _broken(molecule: Molecule, positions: np.ndarray) -> bool:
    from ase.data import covalent_radii

    if molecule.bonds is None or not len(molecule.bonds):
        return False
    i, j = molecule.bonds[:, 0], molecule.bonds[:, 1]
    limits = STRETCH * (covalent_radii[molecule.numbers[i]] + covalent_radii[molecule.numbers[j]])
    return bool((np.linalg.norm(positions[i] - positions[j], axis=1) > limits).any())


@contextmanager
def one_thread_tblite() -> Iterator[None]:
    """tblite's OpenMP reads this when it is loaded; its threads cost time for molecules of this size."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _setup(molecules: list[Molecule], options: RelaxOptions) -> None:
    _WORK.update(molecules=molecules, options=options)


def _run(i: int) -> Relaxed:
    return relax_one(_WORK["molecules"][i], _WORK["options"])[0]

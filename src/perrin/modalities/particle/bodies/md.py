"""Molecular dynamics through ASE: liquid argon by Lennard-Jones forces (Rahman 1964) and copper by effective-medium theory.

A crystal is given velocities of Maxwell and Boltzmann without a net momentum; argon is melted at three times its temperature
first. Then it is brought to its temperature by stochastic rescaling of velocities (Bussi, Donadio and Parrinello 2007),
which keeps the net momentum zero, and followed by the velocity Verlet method, alone (`nve`) or with the rescaling (`nvt`).
The temperature is that of 3N − 3 degrees of freedom: the centre of mass rests.

Positions are in Å and not folded into the box, velocities in Å/fs, energies in eV, forces in eV/Å, temperatures in K.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perrin.errors import PerrinError, install
from perrin.modalities.particle.netcdf import SUFFIXES, Variable, write_variables

XYZ = (".xyz", ".extxyz")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class System:
    """What is simulated.

    Arguments:
        symbol: of the element.
        cell: side of the face-centred cubic cell of four atoms, Å; with it goes the density, which is kept.
        temperature: the usual one, K.
        step: fs.
        melt: fs at three times the temperature.
        settle: fs at the temperature before the first state that is kept.
    """

    symbol: str
    cell: float
    temperature: float
    step: float = 5.0
    melt: float = 0.0
    settle: float = 3000.0


SYSTEMS = {
    "argon": System(
        symbol="Ar", cell=5.7803, temperature=94.4, step=10.0, melt=2000.0, settle=4000.0
    ),  # 1.374 g/cm³
    "copper": System(symbol="Cu", cell=3.61, temperature=300.0),
}
EPSILON, SIGMA = 0.0103236, 3.405
"""Of argon: 119.8 K in eV, and Å."""
CUTOFF = 2.5 * SIGMA
"""Where the force, which is led to zero smoothly from 0.66 of it on, ends."""
COUPLING = 200.0
"""Time constant of the thermostat, fs."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's settings.

    Arguments:
        system: a name in `SYSTEMS`.
        atoms: how many, 4 k³.
        temperature: K.
        ensemble: `nve` or `nvt`.
        interval: between states, fs.
        times: states that are kept.
    """

    system: str = "argon"
    atoms: int = 108
    temperature: float = 94.4
    ensemble: str = "nve"
    interval: float = 50.0
    times: int = 41

    def __post_init__(self) -> None:
        side = round((max(self.atoms, 1) / 4) ** (1 / 3))
        least = math.ceil(2 * CUTOFF / SYSTEMS["argon"].cell) if self.system == "argon" else 1
        if 4 * side**3 != self.atoms or side < least:
            fit = [4 * k**3 for k in range(least, least + 4)]
            raise PerrinError(
                f"expected a number of atoms that fills a cube of {self.system}, {', '.join(map(str, fit))}, …, "
                f"given {self.atoms}"
            )
        if not 0 < self.temperature < math.inf:
            raise PerrinError(f"expected a temperature above 0 K, given {self.temperature:g}")
        steps = self.interval / SYSTEMS[self.system].step
        if steps < 0.5 or abs(steps - round(steps)) > 1e-6:
            raise PerrinError(
                f"expected an interval of whole steps of {SYSTEMS[self.system].step:g} fs, given {self.interval:g}"
            )


def check_ase() -> None:
    """Raise a `PerrinError` without ASE."""
    try:
        import ase  # noqa: F401
    except ModuleNotFoundError as error:
        raise PerrinError(f"expected the package ase, found none: {install('md')}") from error


def calculator(system: str) -> Any:
    """ASE's calculator of a system."""
    if system == "argon":
        from ase.calculators.lj import LennardJones

        return LennardJones(epsilon=EPSILON, sigma=SIGMA, rc=CUTOFF, smooth=True)
    from ase.calculators.emt import EMT

    return EMT()


def crystal(run: Run) -> Any:
    """ASE's atoms at their places, with a calculator."""
    from ase import Atoms

    system = SYSTEMS[run.system]
    side = round((run.atoms / 4) ** (1 / 3))
    basis = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    corners = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    places = system.cell * (corners + basis).reshape(-1, 3)
    atoms = Atoms(system.symbol * run.atoms, positions=places, cell=[side * system.cell] * 3, pbc=True)
    atoms.calc = calculator(run.system)
    return atoms


def kelvin(atoms: Any) -> float:
    """Temperature of 3N − 3 degrees of freedom."""
    from ase import units

    return float(2 * atoms.get_kinetic_energy() / ((3 * len(atoms) - 3) * units.kB))


def make(run: Run, seed: int) -> Arrays:
    """One trajectory: `positions`, `velocities`, `forces` `[T, N, 3]`; `potential_energy`, `kinetic_energy`, `temperature`
    `[T]`.

    Arguments:
        seed: of the velocities and the thermostat.
    """
    from ase import units
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
    from ase.md.verlet import VelocityVerlet

    system, rng = SYSTEMS[run.system], np.random.default_rng(seed)
    atoms = crystal(run)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * run.temperature, rng=rng)
    Stationary(atoms)
    if system.melt:
        _thermostat(atoms, 3 * run.temperature, system.step, rng).run(round(system.melt / system.step))
    held = _thermostat(atoms, run.temperature, system.step, rng)
    held.run(round(system.settle / system.step))
    Stationary(atoms)
    moving = held if run.ensemble == "nvt" else VelocityVerlet(atoms, system.step * units.fs)
    states = []
    for k in range(run.times):
        if k:
            moving.run(round(run.interval / system.step))
        states.append(
            {
                "positions": atoms.get_positions(),
                "velocities": atoms.get_velocities() * units.fs,
                "forces": atoms.get_forces(),
                "potential_energy": np.float64(atoms.get_potential_energy()),
                "kinetic_energy": np.float64(atoms.get_kinetic_energy()),
                "temperature": np.float64(kelvin(atoms)),
            }
        )
    return {name: np.stack([s[name] for s in states]) for name in states[0]}


def _thermostat(atoms: Any, temperature: float, step: float, rng: np.random.Generator) -> Any:
    """Bussi's, for a centre of mass at rest."""
    from ase import units
    from ase.md.bussi import Bussi

    found = Bussi(atoms, step * units.fs, temperature_K=temperature, taut=COUPLING * units.fs, rng=rng)
    found.ndof = 3 * len(atoms) - 3
    found.target_kinetic_energy = 0.5 * found.ndof * units.kB * temperature
    return found


def check_suffix(path: str | Path) -> None:
    """Raise a `PerrinError` unless trajectories of atoms can be written to a file of that name."""
    if Path(path).suffix.lower() not in (*SUFFIXES, *XYZ):
        raise PerrinError(
            f"expected a file of atoms ({', '.join((*SUFFIXES, *XYZ))}), given {path}: change its suffix"
        )


_LONG = {
    "positions": ("positions, not folded into the box", "angstrom"),
    "velocities": ("velocities", "angstrom fs-1"),
    "forces": ("forces", "eV angstrom-1"),
    "potential_energy": ("potential energy", "eV"),
    "kinetic_energy": ("kinetic energy", "eV"),
    "temperature": ("temperature of 3N - 3 degrees of freedom", "K"),
}


def write_md(path: str | Path, run: Run, parts: Sequence[Arrays], seed: int) -> None:
    """Write trajectories, atomically: extended XYZ by its suffix, else HDF5 that is NetCDF-4."""
    atoms = crystal(run)
    if Path(path).suffix.lower() in XYZ:
        _write_xyz(path, run, parts, atoms)
        return
    axes = ("trajectory", "time", "atom", "axis")
    found = {
        "time": Variable(("time",), run.interval * np.arange(run.times), "time", "fs"),
        "atomic_number": Variable(("atom",), atoms.get_atomic_numbers(), "atomic number"),
        "cell": Variable(("axis",), atoms.cell.lengths(), "sides of the periodic box", "angstrom"),
    }
    for name, (told, units) in _LONG.items():
        data = np.stack([p[name] for p in parts])
        found[name] = Variable(axes[: data.ndim], data, told, units)
    words = asdict(run) | {"title": f"molecular dynamics of {run.system} by ASE", "seed": seed}
    write_variables(path, found, words)


def _write_xyz(path: str | Path, run: Run, parts: Sequence[Arrays], atoms: Any) -> None:
    from ase import units
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    from perrin.run.atomic import write_text

    frames = []
    for number, part in enumerate(parts):
        for k in range(run.times):
            frame = atoms.copy()
            frame.set_positions(part["positions"][k])
            frame.set_velocities(part["velocities"][k] / units.fs)
            frame.info = {"trajectory": number, "time_fs": run.interval * k}
            frame.calc = SinglePointCalculator(
                frame, energy=float(part["potential_energy"][k]), forces=part["forces"][k]
            )
            frames.append(frame)
    text = io.StringIO()
    write(text, frames, format="extxyz")
    write_text(path, text.getvalue())

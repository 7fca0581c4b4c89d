"""Molecular dynamics: conservation, temperature, structure and diffusion of liquids, and ASE's own answers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ase")
from ase import units
from ase.io import read
from ase.md.verlet import VelocityVerlet

from perrin.errors import PerrinError
from perrin.modalities.particle.bodies.md import (
    EPSILON,
    SIGMA,
    SYSTEMS,
    Run,
    calculator,
    crystal,
    make,
    write_md,
)


@pytest.fixture(scope="module")
def argon() -> tuple[Run, dict[str, np.ndarray]]:
    run = Run(system="argon", interval=50.0, times=11)
    return run, make(run, 1)


def test_energy_and_momentum_are_conserved(argon: tuple[Run, dict[str, np.ndarray]]) -> None:
    _, found = argon
    energy = found["potential_energy"] + found["kinetic_energy"]
    assert np.ptp(energy) < 0.03 * np.ptp(found["kinetic_energy"])
    assert np.abs(found["velocities"].sum(1)).max() < 1e-12
    assert np.abs(found["forces"].sum(1)).max() < 1e-10


def test_it_is_a_liquid_of_that_temperature(argon: tuple[Run, dict[str, np.ndarray]]) -> None:
    _, found = argon
    # NVE after the thermostat: one draw of the energy, whose spread at 108 atoms is about 6 %
    assert found["temperature"].mean() == pytest.approx(94.4, rel=0.2)
    side = 3 * SYSTEMS["argon"].cell
    density = 108 * 39.948 / 6.02214e23 / (side * 1e-8) ** 3
    assert density == pytest.approx(1.374, rel=1e-3)  # Rahman's, g/cm³
    away = found["positions"][:, :, None] - found["positions"][:, None]
    away -= side * np.round(away / side)
    distance = np.linalg.norm(away, axis=-1)[:, *np.triu_indices(108, 1)]
    count, edges = np.histogram(distance, 40, (2.5, 8.5))
    middle = 0.5 * (edges[1:] + edges[:-1])
    g = count / (distance.size / side**3 * 4 * math.pi * middle**2 * np.diff(edges))
    assert 3.5 < middle[g.argmax()] < 3.9  # Rahman: 3.7 Å
    assert 2.3 < g.max() < 3.6
    assert middle[g > 0.1].min() > 3.0
    far = np.abs(found["positions"][-1] - found["positions"][0])
    assert 0.2 < (far**2).sum(-1).mean() < 2.5  # 6 D t with D = 2.43e-5 cm²/s is 0.73 Å² in 0.5 ps


def test_the_same_as_ase_alone(argon: tuple[Run, dict[str, np.ndarray]]) -> None:
    run, found = argon
    atoms = crystal(run)
    atoms.set_positions(found["positions"][3])
    atoms.set_velocities(found["velocities"][3] / units.fs)
    assert atoms.get_potential_energy() == pytest.approx(found["potential_energy"][3], abs=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), found["forces"][3], atol=1e-10)
    VelocityVerlet(atoms, 10 * units.fs).run(5)
    np.testing.assert_allclose(atoms.get_positions(), found["positions"][4], atol=1e-9)


def test_argon_is_lennard_jones() -> None:
    from ase import Atoms

    pair = Atoms("Ar2", positions=[[0, 0, 0], [2 ** (1 / 6) * SIGMA, 0, 0]])
    pair.calc = calculator("argon")
    assert pair.get_potential_energy() == pytest.approx(
        -EPSILON, rel=1e-6
    )  # the pair's well, inside the smooth cut
    assert EPSILON / units.kB == pytest.approx(119.8, rel=1e-4)


def test_copper_keeps_its_temperature_and_its_lattice() -> None:
    run = Run(system="copper", atoms=32, temperature=300.0, ensemble="nvt", interval=50.0, times=41)
    found = make(run, 0)
    kinetic = found["temperature"]
    assert kinetic.mean() == pytest.approx(300, rel=4 * math.sqrt(2 / 93 / 10))
    assert kinetic.std() / 300 == pytest.approx(math.sqrt(2 / 93), rel=0.6)  # canonical: √(2/(3N − 3))
    assert np.linalg.norm(found["positions"] - found["positions"].mean(0), axis=-1).max() < 1.0


def test_the_seed_makes_the_trajectory() -> None:
    run = Run(system="copper", atoms=4, temperature=200.0, interval=5.0, times=2)
    one, same, other = (make(run, s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one["positions"], same["positions"])
    assert np.abs(one["positions"] - other["positions"]).max() > 1e-3


def test_files_are_read_by_others(tmp_path: Path, argon: tuple[Run, dict[str, np.ndarray]]) -> None:
    run, found = argon
    write_md(tmp_path / "a.xyz", run, [found, found], 0)
    frames = read(tmp_path / "a.xyz", ":")
    assert len(frames) == 22
    frame = frames[13]
    assert (frame.info["trajectory"], frame.info["time_fs"]) == (1, 100.0)
    np.testing.assert_allclose(frame.get_positions(), found["positions"][2], atol=1e-7)
    np.testing.assert_allclose(frame.get_velocities() * units.fs, found["velocities"][2], atol=1e-9)
    assert frame.get_potential_energy() == pytest.approx(found["potential_energy"][2])
    np.testing.assert_allclose(frame.get_forces(), found["forces"][2], atol=1e-7)
    netcdf = pytest.importorskip("netCDF4")
    write_md(tmp_path / "a.nc", run, [found, found], 0)
    with netcdf.Dataset(tmp_path / "a.nc") as file:
        assert file["positions"].dimensions == ("trajectory", "time", "atom", "axis")
        assert (file["positions"].units, file["velocities"].units) == ("angstrom", "angstrom fs-1")
        np.testing.assert_array_equal(file["positions"][1], found["positions"])
        assert set(file["atomic_number"][:]) == {18}


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"atoms": 100}, "108, 256"),
        ({"atoms": 32}, "108, 256"),
        ({"temperature": 0.0}, "above 0 K"),
        ({"interval": 12.0}, "whole steps of 10 fs"),
    ],
)
def test_bad_runs_are_refused(bad: dict, told: str) -> None:
    with pytest.raises(PerrinError, match=told):
        Run(**bad)

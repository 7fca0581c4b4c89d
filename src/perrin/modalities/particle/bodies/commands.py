"""`perrin data particle/nbody|plasma|md`."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import asdict
from typing import Any

import numpy as np

from perrin.errors import PerrinError, counted
from perrin.modalities.particle.chunks import STATE, chunks, finish

START = math.log(0.02)
"""ln a at which Zel'dovich's displacements begin."""
HUBBLE = 100.0
"""km/s in a Mpc/h."""


def even_times(times: int, interval: float) -> None:
    """Raise a `PerrinError` unless there can be such times."""
    if times < 1 or not 0 < interval < math.inf:
        raise PerrinError(f"expected at least 1 time and an interval above 0, given {times} and {interval:g}")


def nbody(a: Namespace, b: Namespace) -> None:
    """Densities, and with `--particles` positions and velocities, of boxes of gravitating bodies."""
    from perrin.modalities.particle.bodies.nbody import Gravity
    from perrin.modalities.particle.flow.files import Trajectories, check_suffix, write_flow
    from perrin.modalities.particle.netcdf import Variable

    check_suffix(a.out, "densities")
    even_times(b.times, b.interval)
    d = b.dimensions
    side = {1: 256, 2: 128, 3: 64}[d] if b.bodies is None else b.bodies
    gravity = Gravity(dimensions=d, size=side, bodies=side, box=b.box, sigma8=b.sigma8)
    if b.grid < 2 or b.grid % 2 or side % b.grid:
        raise PerrinError(f"expected an even --grid that divides the mesh of {side}, given {b.grid}")
    eta = b.interval * (np.arange(b.times) - (b.times - 1))
    if eta[0] <= START:
        raise PerrinError(
            f"expected a first time after a = {math.exp(START):.3g}, given a = {math.exp(eta[0]):.3g}: use fewer "
            "--times or a shorter --interval"
        )
    key = {"what": "nbody", "seed": a.seed, "times": b.times, "interval": b.interval, "grid": b.grid}
    key |= {"particles": b.particles, **asdict(gravity)}
    parts = chunks(a, key, b.n, _make_nbody, (gravity, a.seed, eta, b.grid, b.particles))
    words = asdict(gravity) | {
        "title": "gravitating bodies in an Einstein-de Sitter universe, by a particle-mesh solver",
        "seed": a.seed,
    }
    values = np.stack([parts[k]["density"] for k in range(b.n)])
    more = {"scale_factor": Variable(("time",), np.exp(eta), "scale factor")}
    if b.particles:
        axes = ("trajectory", "time", "particle", "axis")
        for name, units, told in (
            ("positions", "1", "comoving positions over the box's side"),
            ("velocities", "km s-1", "peculiar velocities"),
        ):
            more[name] = Variable(axes, np.stack([parts[k][name] for k in range(b.n)]), told, units)
    write_flow(a.out, Trajectories(values, b.interval, words, "density", float(eta[0])), more)
    finish(a, key)
    print(f"{counted(b.n, 'trajectories')} of {counted(b.times, 'states')} in {a.out}")


def _make_nbody(number: int) -> dict[str, np.ndarray]:
    import torch

    gravity, seed, times, grid, particles = STATE["arguments"]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    x, p = gravity.start(gravity.displacement(generator), START)
    eta, out = START, []
    for time in times:
        x, p = gravity.run(x, p, eta, float(time))
        eta = float(time)
        found = {"density": gravity.density(x, grid)}
        if particles:
            rate = HUBBLE * gravity.box * math.exp(-eta)  # p = e^{η/2} x′, v = a H box x′, H = 100 a^{-3/2}
            found |= {"positions": x.remainder(1.0), "velocities": rate * p}
        out.append(found)
    return {k: torch.stack([o[k] for o in out]).float().numpy() for k in out[0]}


CASES = {
    "two-stream": {"wave": 0.5 * math.sqrt(3 / 8), "streams": 1.0, "thermal": 0.1, "top": 3.0, "waves": 3},
    "landau": {"wave": 0.5, "streams": 0.0, "thermal": 1.0, "top": 5.0, "waves": 1},
}
"""Plasmas that can be made: the box's wave number, velocities, the end of the velocity axis, waves at the start."""
PRESSED = {"two-stream": 0.01, "landau": 0.05}
"""Largest amplitude of each wave at the start; of the streams it is drawn evenly below."""


def plasma(a: Namespace, b: Namespace) -> None:
    """Phase-space densities, fields and energies of a plasma, and with `--particles` the electrons."""
    from perrin.modalities.particle.bodies.plasma import Plasma
    from perrin.modalities.particle.flow.files import Trajectories, check_suffix, write_flow
    from perrin.modalities.particle.netcdf import Variable

    check_suffix(a.out, "plasmas")
    even_times(b.times, b.interval)
    case = dict(CASES[b.case])
    if b.thermal is not None and (b.case != "two-stream" or not 0 <= b.thermal < math.inf):
        raise PerrinError(
            f"expected --thermal of at least 0 with --case two-stream, given {b.thermal:g} with {b.case}: speeds of "
            "landau are in units of the thermal one"
        )
    case |= {k: v for k, v in (("wave", b.wave), ("thermal", b.thermal)) if v is not None}
    if b.grid < 4 or b.grid % 2:
        raise PerrinError(f"expected an even --grid of at least 4, given {b.grid}")
    made = Plasma(wave=case["wave"], bodies=b.bodies)
    key = {"what": "plasma", "seed": a.seed, "times": b.times, "interval": b.interval, "grid": b.grid}
    key |= {"case": b.case, "particles": b.particles, **case, **asdict(made)}
    parts = chunks(
        a, key, b.n, _make_plasma, (made, b.case, case, a.seed, b.times, b.interval, b.grid, b.particles)
    )
    words = asdict(made) | {
        "case": b.case,
        "streams": case["streams"],
        "thermal": case["thermal"],
        "seed": a.seed,
    }
    words |= {
        "box": made.box,
        "top": case["top"],
        "title": "electrons in one dimension, by the particle-in-cell method",
    }

    def all_of(name: str) -> np.ndarray:
        return np.stack([parts[k][name] for k in range(b.n)])

    line = made.box * np.arange(made.size) / made.size
    more = {
        "cell": Variable(("cell",), line, "x of the mesh, in units of v₀/ω_p"),
        "electric_field": Variable(
            ("trajectory", "time", "cell"), all_of("electric_field"), "electric field"
        ),
    }
    for name, told in (("kinetic_energy", "of electrons"), ("field_energy", "of the electric field")):
        axes = ("trajectory", "time")
        more[name] = Variable(axes, all_of(name), f"energy {told} over the box's length")
    if b.particles:
        axes3 = ("trajectory", "time", "particle")
        more["positions"] = Variable(axes3, all_of("positions"), "x, in units of v₀/ω_p")
        more["velocities"] = Variable(axes3, all_of("velocities"), "velocity over v₀")
    write_flow(a.out, Trajectories(all_of("phase_space"), b.interval, words, "phase_space"), more)
    finish(a, key)
    print(f"{counted(b.n, 'trajectories')} of {counted(b.times, 'states')} in {a.out}")


def _make_plasma(number: int) -> dict[str, np.ndarray]:
    import torch

    made, name, case, seed, times, interval, grid, particles = STATE["arguments"]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    drawn = torch.rand(case["waves"], generator=generator, dtype=torch.float64).tolist()
    amplitudes = tuple(PRESSED[name] * (u if name == "two-stream" else 1.0) for u in drawn)
    x, v = made.start(generator, streams=case["streams"], thermal=case["thermal"], amplitudes=amplitudes)
    out = []
    for k in range(times):
        if k:
            x, v = made.run(x, v, interval)
        kinetic, electric = made.energies(x, v)
        found = {
            "phase_space": made.phase_space(x, v, grid, case["top"]).float().numpy(),
            "electric_field": made.electric(x).numpy(),
            "kinetic_energy": np.float64(kinetic),
            "field_energy": np.float64(electric),
        }
        if particles:
            found |= {"positions": x.remainder(made.box).float().numpy(), "velocities": v.float().numpy()}
        out.append(found)
    return {k: np.stack([o[k] for o in out]) for k in out[0]}


def md(a: Namespace, b: Namespace) -> None:
    """Trajectories of atoms by ASE, as HDF5, NetCDF or extended XYZ."""
    from perrin.modalities.particle.bodies.md import SYSTEMS, Run, check_ase, check_suffix, write_md

    check_suffix(a.out)
    even_times(b.times, b.interval)
    run = Run(
        system=b.system,
        atoms=b.bodies,
        temperature=SYSTEMS[b.system].temperature if b.temperature is None else b.temperature,
        ensemble=b.ensemble,
        interval=b.interval,
        times=b.times,
    )
    check_ase()
    key = {"what": "md", "seed": a.seed, **asdict(run)}
    parts = chunks(a, key, b.n, _make_md, (run, a.seed))
    write_md(a.out, run, [parts[k] for k in range(b.n)], a.seed)
    finish(a, key)
    print(
        f"{counted(b.n, 'trajectories')} of {counted(b.times, 'states')} of {counted(run.atoms, 'atoms')} in {a.out}"
    )


def _make_md(number: int) -> dict[str, np.ndarray]:
    from perrin.modalities.particle.bodies.md import make

    run, seed = STATE["arguments"]
    return make(run, seed * 1_000_003 + number)


MAKERS: dict[str, Any] = {"nbody": nbody, "plasma": plasma, "md": md}
"""The data sets of this folder."""

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


MAKERS: dict[str, Any] = {"nbody": nbody}
"""The data sets of this folder."""

"""Could a model of the next state of atoms pay? What it would have to be faster than, for liquid argon.

    python benchmarks/atoms.py [--starts 24] [--interval 200]

Prints the CPU time of an interval and the distance from trajectories of 5 fs steps, after 0.2 to 4 ps, for the velocity
Verlet method with steps of 10 to 100 fs and Lennard-Jones forces of all pairs at once (those of `perrin data particle/md`,
to rounding, which is checked), and the CPU time of ASE's forces and of one evaluation of a small E(3)-equivariant network
of the same atoms. A model of the next state makes several evaluations for each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from perrin.modalities.particle.bodies.md import CUTOFF, EPSILON, SIGMA, Run, crystal, make
from perrin.nets.equivariant import EquivariantTransformer

MASS = 39.948 * 103.642696
"""Of argon, in eV fs²/Å²."""
TIMES = (200.0, 1000.0, 2000.0, 3000.0, 4000.0)


def forces(x: Tensor, side: float) -> tuple[Tensor, Tensor]:
    """Energy `[B]` and forces `[B, N, 3]`, smoothly led to zero from 0.66 of the cutoff on as ASE does."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1], 1)
    d = x[:, i] - x[:, j]
    d = d - side * torch.round(d / side)
    r2, inner, outer = (d * d).sum(-1), (0.66 * CUTOFF) ** 2, CUTOFF**2
    c6 = (SIGMA**2 / r2) ** 3
    e, slope = 4 * EPSILON * (c6 * c6 - c6), -48 * EPSILON * (c6 * c6 - 0.5 * c6) / r2
    s = torch.where(r2 > inner, (outer - r2) ** 2 * (outer + 2 * r2 - 3 * inner) / (outer - inner) ** 3, 1.0)
    ds = torch.where(r2 > inner, 12 * (outer - r2) * (inner - r2) / (outer - inner) ** 3, 0.0)
    near = r2 < outer
    f = -((slope * s + e * ds) * near).unsqueeze(-1) * d
    return (e * s * near).sum(1), torch.zeros_like(x).index_add(1, i, f).index_add(1, j, -f)


def verlet(x: Tensor, v: Tensor, side: float, step: float, time: float) -> tuple[Tensor, Tensor]:
    """Positions and velocities after a time."""
    f = forces(x, side)[1]
    for _ in range(round(time / step)):
        v = v + 0.5 * step * f / MASS
        x = x + step * v
        f = forces(x, side)[1]
        v = v + 0.5 * step * f / MASS
    return x, v


def correlation(x: Tensor, y: Tensor) -> float:
    """Of vectors without a mean."""
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())


def cost(work: Callable[[], object], count: int = 5) -> float:
    """Milliseconds of CPU time."""
    work()
    begin = time.process_time()
    for _ in range(count):
        work()
    return 1000 * (time.process_time() - begin) / count


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=24)
    parser.add_argument("--interval", type=float, default=200.0, help="fs, for the times that are told")
    a = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(times=1)
    first = make(run, 11)
    atoms = crystal(run)
    side, n = float(atoms.cell.lengths()[0]), run.atoms
    x, v = (torch.from_numpy(first[k]) for k in ("positions", "velocities"))
    error = float((forces(x, side)[1] - torch.from_numpy(first["forces"])).abs().max())
    print(f"largest difference from ASE's forces {error:.1e} eV/Å")
    xs, vs = [], []
    for _ in range(a.starts):
        x, v = verlet(x, v, side, 10.0, 500.0)
        xs.append(x)
        vs.append(v)
    x0, v0 = torch.cat(xs), torch.cat(vs)

    def path(step: float) -> tuple[list[tuple[Tensor, Tensor]], float]:
        begin, state, out, now = time.process_time(), (x0, v0), [], 0.0
        for end in TIMES:
            state = verlet(*state, side, step, end - now)
            out.append(state)
            now = end
        return out, 1000 * (time.process_time() - begin) / a.starts * a.interval / now

    truth, _ = path(5.0)
    print("correlations with steps of 5 fs after " + ", ".join(f"{t / 1000:g}" for t in TIMES) + " ps")
    for step in (10.0, 20.0, 40.0, 50.0, 100.0):
        found, ms = path(step)
        moved = ", ".join(f"{correlation(p[0] - x0, q[0] - x0):.3f}" for p, q in zip(found, truth))
        speed = ", ".join(f"{correlation(p[1], q[1]):.3f}" for p, q in zip(found, truth))
        print(
            f"steps of {step:3g} fs: {ms:5.2f} ms for {a.interval:g} fs; displacements {moved}; velocities {speed}"
        )
    print("velocities with the start's: " + ", ".join(f"{correlation(v0, q[1]):.3f}" for q in truth))

    def ase_forces() -> object:
        atoms.positions += 1e-3  # else ASE answers from memory
        return atoms.get_forces()

    net = EquivariantTransformer(
        depth=3,
        width=64,
        vectors=8,
        pair_width=16,
        heads=4,
        sets=4,
        pair_hidden=32,
        gathered=4,
        time_width=32,
    )
    graph = net.graph(torch.ones(1, n, dtype=torch.bool), [], torch.zeros(0))
    given = torch.randn(1, n, 64), torch.randn(1, 3, n, 8), torch.randn(1, n, n, 16), torch.randn(1, 32)
    with torch.no_grad():
        network = cost(lambda: net(*given, graph))
    print(
        f"CPU time: forces of all pairs {cost(lambda: forces(x, side)):.2f} ms, ASE's {cost(ase_forces):.2f} ms, "
        f"one evaluation of the network {network:.2f} ms"
    )


if __name__ == "__main__":
    main()

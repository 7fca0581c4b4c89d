"""Solvers as tables: each writes, for a schedule and a grid, the rows `x ← a · x_anchor + Σ_j b_j · D_j + c · ξ`.

- `onestep`: Euler, DDIM, DDPM, consistency.
- `twostage`: midpoint, Heun with churn, DPM-Solver++ 2S.
- `multistep`: DPM-Solver++ 1M, 2M, 3M and their SDE forms, exponential Adams–Bashforth, UniPC, SA-Solver.
- `transforms`: time travel, restart and Langevin rows around any of them.
- `adaptive`: Dormand–Prince, which has no table because it chooses its times as it goes.
"""

from perrin.core.solvers.base import Point, Solver, forward
from perrin.core.solvers.multistep import (
    DPMSolverPP1M,
    DPMSolverPP2M,
    DPMSolverPP3M,
    ExpAB,
    Multistep,
    SASolver,
    UniPC,
)
from perrin.core.solvers.onestep import DDIM, DDPM, Consistency, Euler
from perrin.core.solvers.transforms import Langevin, Restart, TimeTravel
from perrin.core.solvers.twostage import DPMSolverPP2S, Heun, Midpoint

SOLVERS: dict[str, Solver] = {
    "euler": Euler(),
    "ddim": DDIM(),
    "ddpm": DDPM(),
    "midpoint": Midpoint(),
    "heun": Heun(),
    "edm": Heun(churn=40.0, t_min=0.05, t_max=50.0, noise=1.003),
    "flow-euler": Euler(),
    "flow-midpoint": Midpoint(),
    "flow-heun": Heun(),
    "dpmpp-1m": DPMSolverPP1M(),
    "dpmpp-2m": DPMSolverPP2M(),
    "dpmpp-3m": DPMSolverPP3M(),
    "dpmpp-2s": DPMSolverPP2S(),
    "sde-dpmpp-1m": DPMSolverPP1M(sde=True),
    "sde-dpmpp-2m": DPMSolverPP2M(sde=True),
    "sde-dpmpp-3m": DPMSolverPP3M(sde=True),
    "eab-1": ExpAB(1),
    "eab-2": ExpAB(2),
    "eab-3": ExpAB(3),
    "eab-4": ExpAB(4),
    "unipc-1": UniPC(1),
    "unipc-2": UniPC(2),
    "unipc-3": UniPC(3),
    "sa": SASolver(),
    "sa-ode": SASolver(predictor=3, corrector=3, tau=0.0),
    "consistency": Consistency(),
    "repaint": TimeTravel(solver=DDPM(), length=2, repeats=2),
    "restart": Restart(solver=DPMSolverPP2M()),
    "langevin": Langevin(solver=DPMSolverPP2M()),
}
"""Ready-made solvers by the name that the command line uses."""

__all__ = [
    "DDIM",
    "DDPM",
    "SOLVERS",
    "Consistency",
    "DPMSolverPP1M",
    "DPMSolverPP2M",
    "DPMSolverPP2S",
    "DPMSolverPP3M",
    "Euler",
    "ExpAB",
    "Heun",
    "Langevin",
    "Midpoint",
    "Multistep",
    "Point",
    "Restart",
    "SASolver",
    "Solver",
    "TimeTravel",
    "UniPC",
    "forward",
]

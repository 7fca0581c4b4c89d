"""Plans: a sampler written out as data.

A plan is made once, in float64 on the CPU, from a process, a solver and a grid of times. It is a list of stages and, for
each field, one coefficient row per stage. For a Gaussian field the row is

    x ← a · x_anchor + Σ_j b_j · D_j + c · ξ

where `D_0` is the newest estimate of the clean data, `D_1` the one before, and so on. For a categorical field the row is a
`Jump`. The loop that runs a plan (`perrin.core.sampling`) knows no α, no σ and no method's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from perrin.core.processes import Process
    from perrin.core.solvers import Solver


class PlanError(ValueError):
    """A solver, a schedule and a grid that do not go together, found before anything is computed."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What all fields share in one row of the plan.

    Arguments:
        time: where the network is evaluated on the current state, or `None` for a row without evaluation.
        start, stop: the times between which this row moves a field that only knows first-order moves; equal when it
            must leave such a field alone (a corrector).
        store: remember the state before the row as the anchor.
        anchored: start the update from the anchor instead of the current state.
        role: `move`, or what a solver that wraps another one has inserted (`renoise`, `langevin`).
    """

    time: float | None
    start: float
    stop: float
    store: bool = False
    anchored: bool = False
    role: str = "move"


@dataclass(frozen=True)
class Affine:
    """Coefficients of one row for a Gaussian field: `a`, `b` (newest estimate first) and `c`."""

    a: float
    b: tuple[float, ...] = ()
    c: float = 0.0


def affine(x: Tensor, row: Affine, estimates: Sequence[Tensor], noise: Tensor | None = None) -> Tensor:
    """`a x + Σ_j b_j D_j + c ξ` in a new tensor of the dtype of `x`: one pass over memory for each nonzero term.

    The first product makes the tensor and the other terms are added in place, so nothing that the caller holds is written
    to. Terms with zero coefficients are not touched. Elementwise: no bit depends on the batch.
    """
    terms = [(b, d) for b, d in zip(row.b, estimates, strict=False) if b]
    if row.a == 0 and terms:
        b, d = terms.pop(0)
        out = (d if d.dtype == x.dtype else d.to(x.dtype)) * b
    elif row.a == 1 and terms:
        b, d = terms.pop(0)
        out = torch.add(x, d if d.dtype == x.dtype else d.to(x.dtype), alpha=b)
    else:
        out = x * row.a
    for b, d in terms:
        out.add_(d, alpha=b)
    if row.c and noise is not None:
        out.add_(noise, alpha=row.c)
    return out


@dataclass(frozen=True)
class Jump:
    """One move of a Markov chain on categories from keep probability `alpha_start` up to `alpha_stop`.

    `decode` takes the most probable category instead of drawing one; it is set on the last row only. `temperature` is that
    of the draw; see `Categorical`.
    """

    alpha_start: float
    alpha_stop: float
    decode: bool = False
    temperature: float = 1.0


Row = Affine | Jump | None
"""`None` leaves the field as it is."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Stages, and a row for each field and stage. Made by `make_plan`."""

    stages: tuple[Stage, ...]
    rows: Mapping[str, tuple[Row, ...]]
    solver: str
    notes: tuple[str, ...] = ()

    @property
    def nfe(self) -> int:
        """The number of network evaluations that running the plan makes. Always."""
        return sum(stage.time is not None for stage in self.stages)

    @property
    def start(self) -> float:
        """The plan's first time."""
        return self.stages[0].start

    @property
    def history(self) -> int:
        """How many estimates back a row looks, at least 1."""
        return max([1] + [len(r.b) for rows in self.rows.values() for r in rows if isinstance(r, Affine)])

    def __repr__(self) -> str:
        lines = [f"Plan({self.solver}: {self.nfe} evaluations, {len(self.stages)} rows)"]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def plan_table(plan: Plan) -> str:
    """Every row of a plan as text: times, the evaluation, and the coefficients of each field."""
    lines = [repr(plan)]
    for k, stage in enumerate(plan.stages):
        at = "no evaluation" if stage.time is None else f"D at t = {stage.time:.4f}"
        anchor = " from the anchor" if stage.anchored else ""
        lines.append(f"row {k + 1}: {at}, t {stage.start:.4f} → {stage.stop:.4f}{anchor}")
        for name, rows in plan.rows.items():
            row = rows[k]
            if isinstance(row, Affine):
                terms = "".join(f" {b:+.5f} D_{j}" for j, b in enumerate(row.b))
                lines.append(f"    {name}: {row.a:.5f} x{terms}" + (f" {row.c:+.5f} ξ" if row.c else ""))
            elif isinstance(row, Jump):
                kept = f"kept {row.alpha_start:.4f} → {row.alpha_stop:.4f}"
                lines.append(f"    {name}: {kept}{', most probable' if row.decode else ''}")
    return "\n".join(lines)


def make_plan(
    process: Process, solver: Solver, times: Tensor | Sequence[float], *, decode: bool = False
) -> Plan:
    """Write a sampler out.

    Arguments:
        process: the process whose reverse is sampled; a `Composite` for a state of several fields.
        solver: the method, such as `DPMSolverPP2M()`.
        times: strictly falling times (see `perrin.core.grids`), or evaluations asked through `plan_steps`.
        decode: take the most probable category in the last row instead of drawing one.

    Raises:
        PlanError: a coefficient is not finite, which means that solver, schedule and grid do not go together.
    """
    from perrin.core.solvers.base import points_remembered

    with points_remembered():
        return _make_plan(process, solver, times, decode)


def _make_plan(process: Process, solver: Solver, times: Tensor | Sequence[float], decode: bool) -> Plan:
    from perrin.core.grids import checked
    from perrin.core.processes import Composite
    from perrin.core.solvers.base import Point

    grid = checked(torch.as_tensor(times, dtype=torch.float64))
    fields = process.fields if isinstance(process, Composite) else {"x": process}
    clock = process.clock if isinstance(process, Composite) else process
    for schedule in {id(f.schedule): f.schedule for f in fields.values()}.values():
        Point.remember(schedule, grid)
    stages = solver.stages(grid, clock.schedule)
    highest = max(max(stage.start, stage.stop) for stage in stages)
    rows, notes = {}, []
    for name, field in fields.items():
        try:
            rows[name] = tuple(field.rows(solver, stages, decode=decode))
        except ZeroDivisionError as error:
            raise PlanError(
                f"expected a grid on which {solver.name} is defined for field {name!r}; "
                f"the signal or the noise vanishes inside it: start it lower, or end it above 0"
            ) from error
        if highest > field.schedule.limit and any(isinstance(row, Affine) for row in rows[name]):
            raise PlanError(
                f"expected times up to {field.schedule.limit:g} for field {name!r} ({field.schedule}), "
                f"but {solver.name} on this grid goes to t = {highest:g}: start the grid lower, or take the churn away"
            )
        for k, row in enumerate(rows[name]):
            if isinstance(row, Affine) and not math.isfinite(row.a + sum(row.b) + row.c):
                raise PlanError(
                    f"expected finite coefficients for field {name!r}, row {k} of {solver.name} at t = {stages[k].start:g} "
                    f"is {row}; start the grid below t = 1, or use a solver that allows a start without signal (DDIM)"
                )
        if not field.takes_order(solver.order) and solver.order > 1:
            notes.append(f"field {name!r} ({type(field).__name__}) takes the same times at first order")
    return Plan(stages=tuple(stages), rows=rows, solver=solver.name, notes=tuple(notes))


def plan_steps(
    process: Process,
    solver: Solver,
    nfe: int,
    *,
    exponent: float = 1.0,
    start: float = 1.0,
    grid: Callable[[int], Tensor] | None = None,
    decode: bool = False,
) -> Plan:
    """A plan with exactly `nfe` network evaluations on the times `grid(intervals)`, by default `power(intervals,
    exponent=…, start=…)`."""
    from perrin.core.grids import power

    intervals = solver.intervals(nfe)
    times = grid(intervals) if grid else power(intervals, exponent=exponent, start=start)
    return make_plan(process, solver.for_nfe(nfe), times, decode=decode)

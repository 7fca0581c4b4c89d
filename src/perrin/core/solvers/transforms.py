"""Solvers made from solvers: they insert renoise rows (RePaint, restart, time travel) or Langevin rows into another's plan.

A renoise row corrupts the state from time s up to t > s, `x ← (α_t/α_s) x + √(σ_t² − (α_t σ_s/α_s)²) ξ`; a multistep method
starts again after it. A Langevin row stays at its time: with the estimate `D` there it draws anew a part δ of the noise,

    x ← √(1 − δ) x + α_t (1 − √(1 − δ)) D + √δ σ_t ξ,

an exact step of the Ornstein–Uhlenbeck process around `α_t D`; for small δ it is Langevin's `x + (δ/2) σ² s + √δ σ ξ` with
the score `s = (α D − x)/σ²`.

References: Lugmayr et al. 2022 (RePaint, algorithm 1); Xu et al. 2023 (restart sampling); Song et al. 2021
(predictor–corrector).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from perrin.core.plan import Affine, PlanError, Stage
from perrin.core.schedules import Schedule
from perrin.core.solvers.base import Point, Solver, forward
from perrin.core.solvers.multistep import DPMSolverPP2M
from perrin.core.solvers.onestep import DDPM

RENOISE, LANGEVIN = "renoise", "langevin"


@dataclass(frozen=True, kw_only=True)
class _Renoised(Solver):
    """Runs another solver on several falling grids, with a renoise row between the end of one and the start of the next."""

    solver: Solver

    @property
    def order(self) -> int:  # type: ignore[override]
        return self.solver.order

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return True

    @abstractmethod
    def passes(self, times: list[float]) -> list[list[float]]:
        """The falling grids."""

    def stages(self, times: Tensor, schedule: Schedule) -> list[Stage]:
        out: list[Stage] = []
        for grid in self.passes(times.tolist()):
            if out:
                out.append(Stage(time=None, start=out[-1].stop, stop=grid[0], role=RENOISE))
            out += self.solver.stages(times.new_tensor(grid), schedule)
        return out

    def rows(self, stages: Sequence[Stage], schedule: Schedule) -> list[Affine]:
        out: list[Affine] = []
        first = 0
        for k in [k for k, s in enumerate(stages) if s.role == RENOISE] + [len(stages)]:
            out += self.solver.rows(stages[first:k], schedule)
            if k < len(stages):
                out.append(forward(Point.at(schedule, stages[k].start), Point.at(schedule, stages[k].stop)))
            first = k + 1
        return out

    def _one_each(self, nfe: int) -> int:
        if Solver.intervals(self, nfe) != self.solver.intervals(nfe):
            raise PlanError(
                f"expected a solver of one evaluation for each interval inside {type(self).__name__}, given "
                f"{self.solver.name}: give its grid to make_plan, and read the cost from plan.nfe"
            )
        return nfe


@dataclass(frozen=True, kw_only=True)
class TimeTravel(_Renoised):
    """RePaint's resampling: every `length` intervals go back over them, `repeats` times in all (Lugmayr et al. 2022).

    With a hard constraint (`inpainting`) the later passes bring the free part into harmony with the fixed one.

    Arguments:
        solver: what goes down; RePaint has DDPM.
        length: intervals to go back ("jump length").
        repeats: how often each interval is taken ("resampling"), 1 is once.
        budget: evaluations beyond one for each interval; set by `plan_steps`.
    """

    solver: Solver = field(default_factory=DDPM)
    length: int = 2
    repeats: int = 2
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.length < 1 or self.repeats < 1:
            raise PlanError(f"expected length ≥ 1 and repeats ≥ 1, given {self.length} and {self.repeats}")

    def intervals(self, nfe: int) -> int:
        return -(-self._one_each(nfe) // self.repeats)

    def for_nfe(self, nfe: int) -> TimeTravel:
        return replace(self, solver=self.solver.for_nfe(nfe), budget=nfe - self.intervals(nfe))

    def passes(self, times: list[float]) -> list[list[float]]:
        left = math.inf if self.budget is None else self.budget
        out, first = [], 0
        for end in [*range(self.length, len(times) - 1, self.length), len(times) - 1]:
            for _ in range(self.repeats - 1):
                back = int(min(end - max(0, end - self.length), left))
                if back == 0:
                    break
                out.append(times[first : end + 1])
                first, left = end - back, left - back
        out.append(times[first:])
        return [grid for grid in out if len(grid) > 1]


@dataclass(frozen=True, kw_only=True)
class Restart(_Renoised):
    """Restart sampling: on reaching `low`, go back up to `high` and come down in `steps` even intervals, `repeats` times.

    The added noise contracts the errors that the ODE has collected above (Xu et al. 2023).

    Arguments:
        solver: what goes down.
        low, high: times; `low` is moved to the nearest time of the grid, and `high` above it where that is above `high`.
        steps: intervals of each way down.
        repeats: number of restarts; `plan_steps` makes fewer if the budget is small.
    """

    solver: Solver = field(default_factory=DPMSolverPP2M)
    low: float = 0.1
    high: float = 0.4
    steps: int = 3
    repeats: int = 2

    def __post_init__(self) -> None:
        if not (0 < self.low < self.high and self.steps >= 1 and self.repeats >= 0):
            raise PlanError(f"expected 0 < low < high, steps ≥ 1 and repeats ≥ 0, given {self}")

    def _affordable(self, nfe: int) -> int:
        return max(0, min(self.repeats, (nfe - 2) // self.steps))

    def intervals(self, nfe: int) -> int:
        return self._one_each(nfe) - self.steps * self._affordable(nfe)

    def for_nfe(self, nfe: int) -> Restart:
        return replace(self, solver=self.solver.for_nfe(nfe), repeats=self._affordable(nfe))

    def passes(self, times: list[float]) -> list[list[float]]:
        if len(times) < 3 or self.repeats == 0:
            return [times]
        at = min(range(1, len(times) - 1), key=lambda i: abs(times[i] - self.low))
        low = times[at]
        high = self.high if self.high > low else (low + times[0]) / 2
        again = [high + (low - high) * k / self.steps for k in range(self.steps)]
        return [times[: at + 1], *([[*again, low]] * (self.repeats - 1)), again + times[at:]]


@dataclass(frozen=True, kw_only=True)
class Langevin(Solver):
    """Before each interval of another solver, `corrections` Langevin rows at its start (predictor–corrector).

    Arguments:
        solver: the predictor.
        corrections: rows at each time of the grid but the last.
        delta: δ, the part of the noise's variance that is drawn anew.
        budget: how many Langevin rows in all; set by `plan_steps`, and spread from the end of the grid.
    """

    solver: Solver = field(default_factory=DPMSolverPP2M)
    corrections: int = 1
    delta: float = 0.1
    budget: int | None = None

    def __post_init__(self) -> None:
        if not (self.corrections >= 0 and 0 < self.delta <= 1):
            raise PlanError(f"expected corrections ≥ 0 and 0 < delta ≤ 1, given {self}")

    @property
    def order(self) -> int:  # type: ignore[override]
        """1: a Langevin row has an error of its own, `O(δ)`, which does not vanish with more steps."""
        return 1

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.corrections > 0

    def _moves(self, nfe: int) -> int:
        Solver.intervals(self, nfe)
        return -(-nfe // (self.corrections + 1))

    def intervals(self, nfe: int) -> int:
        return self.solver.intervals(self._moves(nfe))

    def for_nfe(self, nfe: int) -> Langevin:
        moves = self._moves(nfe)
        return replace(self, solver=self.solver.for_nfe(moves), budget=nfe - moves)

    def stages(self, times: Tensor, schedule: Schedule) -> list[Stage]:
        inner = self.solver.stages(times, schedule)
        starts = [k for k, s in enumerate(inner) if s.time is not None and not s.anchored]
        rows = len(starts) * self.corrections if self.budget is None else self.budget
        share, extra = divmod(rows, len(starts))
        out: list[Stage] = []
        for k, stage in enumerate(inner):
            if k in starts:
                number = share + (starts.index(k) >= len(starts) - extra)
                t = stage.start
                out += [Stage(time=t, start=t, stop=t, role=LANGEVIN)] * number
            out.append(stage)
        return out

    def rows(self, stages: Sequence[Stage], schedule: Schedule) -> list[Affine]:
        moves = [k for k, s in enumerate(stages) if s.role != LANGEVIN]
        inner = dict(zip(moves, self.solver.rows([stages[k] for k in moves], schedule), strict=True))
        out: list[Affine] = []
        seen: list[bool] = []  # for each evaluation so far, whether it is the inner solver's
        for k, stage in enumerate(stages):
            if stage.time is not None:
                seen.append(k in inner)
            out.append(_widen(inner[k], seen) if k in inner else self._row(stage.start, schedule))
        return out

    def _row(self, t: float, schedule: Schedule) -> Affine:
        p, keep = Point.at(schedule, t), math.sqrt(1 - self.delta)
        return Affine(keep, (p.alpha * (1 - keep),), math.sqrt(self.delta) * p.sigma)


def _widen(row: Affine, seen: Sequence[bool]) -> Affine:
    """The row with zeros for the estimates that are not the inner solver's."""
    b, left = [], list(row.b)
    for own in reversed(seen):
        if not left:
            break
        b.append(left.pop(0) if own else 0.0)
    return Affine(row.a, tuple(b), row.c)

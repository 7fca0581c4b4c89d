"""`Composite`: the interface of a process, mapped over a dict of fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor

from perrin.core.layout import Layout, Layouts
from perrin.core.noise import Noise
from perrin.core.plan import Row, Stage
from perrin.core.processes.base import Process, State
from perrin.core.processes.clean import Clean
from perrin.core.processes.clocks import Clock, Clocked, checked
from perrin.core.schedules import Schedule
from perrin.core.solvers import Solver


@dataclass(frozen=True, kw_only=True)
class Composite(Process):
    """A process for each field of a state.

    Arguments:
        fields: process by field name.
        clocks: a field's own time as a function of the shared one, by field name; the shared time itself where not named.
            `{"bonds": PowerClock(2)}` settles the bonds earlier than the rest. The field's schedule becomes `Clocked`.
        clock_field: whose schedule a solver consults where it must choose times itself (churn); by default the first that is
            noised.
    """

    fields: Mapping[str, Process]
    clock_field: str | None = None
    clocks: Mapping[str, Clock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted({*self.clocks, *filter(None, [self.clock_field])} - set(self.fields))
        if unknown:
            raise ValueError(f"expected fields among {sorted(self.fields)}, given {unknown}")
        object.__setattr__(
            self, "fields", {k: _clocked(p, self.clocks.get(k)) for k, p in self.fields.items()}
        )

    @property
    def clock(self) -> Process:
        """The field whose schedule the stages are made from."""
        first = next((k for k, p in self.fields.items() if not isinstance(p, Clean)), next(iter(self.fields)))
        return self.fields[self.clock_field or first]

    @property
    def schedule(self) -> Schedule:  # type: ignore[override]
        return self.clock.schedule

    def corrupt_state(self, x_0: State, t: Tensor, noise: Noise, layouts: Layouts) -> State:
        """`x_t`, field by field, with the clock `t` `[B]`."""
        return {k: p.corrupt(x_0[k], t, noise, layouts[k], name=k) for k, p in self.fields.items()}

    def diffuse_state(
        self, x_t: State, t: Tensor, s: Tensor, noise: Noise, layouts: Layouts, *, step: int
    ) -> State:
        """`x_s` given `x_t`, field by field, for times `t ≤ s` `[B]`."""
        return {
            k: p.diffuse(x_t[k], t, s, noise, layouts[k], name=k, step=step) for k, p in self.fields.items()
        }

    def prior_state(
        self, noise: Noise, layouts: Layouts, *, time: float = 1.0, start: Mapping[str, Tensor] | None = None
    ) -> State:
        """A draw at `time`, field by field, of the fields that `start` does not give."""
        given = dict(start or {})
        drawn = {
            k: p.prior(noise, layouts[k], name=k, time=time) for k, p in self.fields.items() if k not in given
        }
        return {**{k: (given[k] if k in given else drawn[k]) for k in self.fields}, **given}

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Noise, layout: Layout, *, name: str) -> Tensor:
        return self.fields[name].corrupt(x_0, t, noise, layout, name=name)

    def prior(self, noise: Noise, layout: Layout, *, name: str, time: float = 1.0) -> Tensor:
        return self.fields[name].prior(noise, layout, name=name, time=time)

    def rows(self, solver: Solver, stages: Sequence[Stage], *, decode: bool) -> list[Row]:
        raise TypeError("a composite has rows for each of its fields: use make_plan")

    def step(
        self,
        x: Tensor,
        estimates: Sequence[Tensor],
        row: Row,
        noise: Noise,
        layout: Layout,
        *,
        name: str,
        step: int,
    ) -> Tensor:
        return self.fields[name].step(x, estimates, row, noise, layout, name=name, step=step)

    def project_state(self, x: State, layouts: Layouts) -> State:
        """Every field into its process's space."""
        return {k: p.project(x[k], layouts[k]) for k, p in self.fields.items()}

    def target_state(self, x_0: State, x_t: State, t: Tensor, layouts: Layouts) -> State:
        """The estimates of a denoiser that knows `x_0`, field by field."""
        return {k: p.target(x_0[k], x_t[k], t, layouts[k]) for k, p in self.fields.items()}


def _clocked(process: Process, clock: Clock | None) -> Process:
    schedule = process.schedule
    if clock is None or (isinstance(schedule, Clocked) and schedule.clock == clock):
        return process
    return cast(Process, replace(cast(Any, process), schedule=Clocked(schedule, checked(clock))))

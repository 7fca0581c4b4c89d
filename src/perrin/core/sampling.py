"""The sampling loop: run a plan's rows. It knows no α, no σ and no method's name.

There is no host synchronisation in the loop: coefficients are Python floats, times are rows of one device tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from perrin.core.denoiser import Denoiser, check
from perrin.core.layout import Layouts
from perrin.core.noise import Noise
from perrin.core.plan import Plan
from perrin.core.processes import PRIOR_STEP, Composite, Process, State
from perrin.core.replay import Mode, accelerated

Constraint = Callable[[State, float], State]
"""Called with the state after a row and the time it stands at; returns the state to go on with."""


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    process: Process,
    plan: Plan,
    layouts: Layouts,
    noise: Noise,
    *,
    condition: Any = None,
    start: State | None = None,
    constraint: Constraint | None = None,
    self_condition: bool = False,
    progress: Callable[[int], None] | None = None,
    mode: Mode = "eager",
) -> State:
    """Draw samples: from the prior (or `start`) through every row of `plan`.

    Arguments:
        denoiser: estimates the clean state; called exactly `plan.nfe` times. A guide may make several network passes
            in each call: `network_passes(denoiser, plan)` in all.
        process: the composite the plan was made for (a lone process is a composite with the field `"x"`).
        layouts: which rows belong to which sample, per field.
        noise: `CounterNoise(seeds)` makes sample i independent of the batch it sits in.
        condition: handed to the denoiser.
        start: fields of the state at the plan's first time, in place of draws from their priors there; the value of a
            `Clean` field, always.
        constraint: acts on the state after each row.
        self_condition: hand the denoiser its previous estimate.
        progress: called with the number of rows done.
        mode: how the denoiser is run: `eager`; `compile` (`torch.compile`); `graph` (CUDA graph replay, eager on a CPU). See
            `perrin.core.replay`.

    Returns:
        The state at the plan's last time.
    """
    check(denoiser, plan)
    denoiser = accelerated(denoiser, mode)
    composite = process if isinstance(process, Composite) else Composite(fields={"x": process})
    x = composite.prior_state(noise, layouts, time=plan.start, start=start)
    rows = range(len(plan.stages))
    return advance(
        denoiser,
        composite,
        plan,
        rows,
        x,
        [],
        layouts,
        noise,
        condition=condition,
        constraint=constraint,
        self_condition=self_condition,
        progress=progress,
    )[0]


@torch.no_grad()
def advance(
    denoiser: Denoiser,
    composite: Composite,
    plan: Plan,
    rows: range,
    x: State,
    history: Sequence[State],
    layouts: Layouts,
    noise: Noise,
    *,
    condition: Any = None,
    constraint: Constraint | None = None,
    self_condition: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[State, list[State]]:
    """Some rows of a plan, as `sample` runs them: all at once or in pieces, the numbers are the same.

    Arguments:
        rows: which; the first must not start from an anchor that lies before it.
        x, history: the state before them, and the estimates of the rows before, newest first.

    Returns:
        The state and the estimates after them.
    """
    first = next(iter(x.values()))
    dtype = next((v.dtype for v in x.values() if v.is_floating_point()), torch.float32)
    evaluations = [s.time for s in plan.stages[rows.start : rows.stop] if s.time is not None]
    times = torch.tensor(evaluations, dtype=dtype).to(first.device, non_blocking=True)
    clock = iter(times.unsqueeze(1).expand(-1, _batch(layouts)).unbind(0))
    fields = [
        (name, field, layouts[name], plan.rows[name])
        for name, field in composite.fields.items()
        if any(row is not None for row in plan.rows[name])
    ]
    depth = plan.history

    history = list(history)
    estimates: dict[str, list[Tensor]] = {name: [h[name] for h in history] for name, *_ in fields}
    anchor = x
    for k in rows:
        stage = plan.stages[k]
        if stage.store:
            anchor = x
        if stage.time is not None:
            previous = history[0] if self_condition and history else None
            estimate = denoiser(x, next(clock), condition=condition, layouts=layouts, previous=previous)
            history = [estimate, *history[: depth - 1]]
            estimates = {name: [h[name] for h in history] for name in estimates}
        base = anchor if stage.anchored else x
        moved: State = {}
        for name, field, layout, moves in fields:
            row = moves[k]
            if row is not None:
                moved[name] = field.step(
                    base[name], estimates[name], row, noise, layout, name=name, step=PRIOR_STEP + 1 + k
                )
        x = {**x, **moved}
        if constraint is not None:
            x = constraint(x, stage.stop)
        if progress is not None:
            progress(k + 1)
    return x, history


def _batch(layouts: Layouts) -> int:
    return next(iter(layouts.values())).batch

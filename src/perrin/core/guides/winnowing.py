"""Winnowing: sequential Monte Carlo with fewer and fewer particles.

Each sample starts as a group of P candidates. At a few times, the group is resampled to fewer by

    w = G(x_t, t) / G(x_s, s),        s the time before,

with `G(x_t, t) ≈ p(y | x_t)` of a network that reads noised states (at first, `G = 1`), and the last one is left at t = 0.
So the candidates whose fate is decided early cost little. For P → ∞ what is left is a draw of `p(x_0) p(y | x_0)`, whatever
G was on the way, as in `steer`; with a handful it lies between that and `p(x_0)`.

Candidate 0 of a group, let alone, is the sample that `sample` draws by its seed. Unlike `steer`, any solver will do whose
rows look back at estimates only, and estimates are handed back to networks with self-conditioning.

References: as for `steer`; Doucet et al. 2001 ("Sequential Monte Carlo methods in practice"), for the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from perrin.core.denoiser import Denoiser, check
from perrin.core.guides.steering import choose, parents_of
from perrin.core.layout import Layouts
from perrin.core.noise import Noise
from perrin.core.plan import Plan, PlanError
from perrin.core.processes import Composite, Process, State
from perrin.core.replay import Mode, accelerated
from perrin.core.sampling import advance


@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """What a batch of groups of one size needs: candidate c of group g is sample `g · size + c`.

    Arguments:
        layouts, noise, condition: as in `sample`.
        potential: `log G` of noised states (state, times `[B]`), `[B]`.
        denoiser: in place of the run's, such as a guide that holds tensors of the batch's size.
    """

    layouts: Layouts
    noise: Noise
    potential: Callable[[State, Tensor], Tensor]
    condition: Any = None
    denoiser: Denoiser | None = None


@torch.no_grad()
def winnow(
    denoiser: Denoiser,
    process: Process,
    plan: Plan,
    places: Callable[[int], Places],
    *,
    cuts: Sequence[tuple[float, int]],
    start: Callable[[Places], State | None] | None = None,
    self_condition: bool = False,
    mode: Mode = "eager",
) -> State:
    """Draw one sample of each group; see the module.

    Arguments:
        denoiser, process, plan, self_condition, mode: as in `sample`.
        places: the setting of groups of so many candidates, the same groups for every number.
        cuts: pairs (until which time, how many candidates); times fall to 0, numbers do not rise. Of two that fall
            between the same rows of the plan, the first counts.
        start: the candidates' state at the plan's first time, or fields of it, as in `sample`; called once.

    Raises:
        PlanError: the plan has rows that start from an anchor.
        ValueError: cuts in another order, or less than 2 candidates at the end.
    """
    if any(stage.anchored for stage in plan.stages):
        raise PlanError(f"expected a plan without anchors (DDPM, DDIM, Euler, DPM++), given {plan.solver}")
    composite = process if isinstance(process, Composite) else Composite(fields={"x": process})
    pieces = _pieces(plan, cuts)
    x: State = {}
    history: list[State] = []
    log_g: Tensor | None = None
    for k, (rows, size) in enumerate(pieces):
        here = places(size)
        own = here.denoiser or denoiser
        check(own, plan)
        groups = next(iter(here.layouts.values())).batch // size
        if k == 0:
            given = start(here) if start is not None else None
            x = composite.prior_state(here.noise, here.layouts, time=plan.start, start=given)
        x, history = advance(
            accelerated(own, mode),
            composite,
            plan,
            rows,
            x,
            history,
            here.layouts,
            here.noise,
            condition=here.condition,
            self_condition=self_condition,
        )
        device = next(iter(x.values())).device
        now = here.potential(x, torch.full((groups * size,), plan.stages[rows.stop - 1].stop, device=device))
        weights = (now if log_g is None else now - log_g).reshape(groups, size)
        left = pieces[k + 1][1] if k + 1 < len(pieces) else 1
        parents = parents_of(weights, here.noise, field="winnowing", step=rows.stop, places=left)
        which = (parents + torch.arange(groups, device=device)[:, None] * size).reshape(-1)
        x, *history = (
            {name: choose(v, here.layouts[name], which) for name, v in s.items()} for s in (x, *history)
        )
        log_g = now[which]
    return x


def evaluations(plan: Plan, cuts: Sequence[tuple[float, int]]) -> int:
    """Of the denoiser for each sample."""
    return sum(
        size * sum(plan.stages[k].time is not None for k in rows) for rows, size in _pieces(plan, cuts)
    )


def _pieces(plan: Plan, cuts: Sequence[tuple[float, int]]) -> list[tuple[range, int]]:
    """Rows that are run with the same number of candidates, and that number."""
    numbers, times = [n for _, n in cuts], [t for t, _ in cuts]
    if (
        not cuts
        or times[-1] != 0
        or numbers[-1] < 2
        or any(a <= b for a, b in pairwise(times))
        or any(a < b for a, b in pairwise(numbers))
    ):
        raise ValueError(
            f"expected falling times down to 0 and numbers of at least 2 candidates that do not rise, given {list(cuts)}"
        )
    out: list[tuple[range, int]] = []
    row = 0
    for time, number in cuts:
        stop = next((k + 1 for k, stage in enumerate(plan.stages) if stage.stop <= time), len(plan.stages))
        stop = stop if time else len(plan.stages)
        if stop > row:
            out.append((range(row, stop), number))
        row = max(row, stop)
    return out

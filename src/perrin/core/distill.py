"""Distillation to few steps: a student that jumps where its teacher integrates.

Two ways to the same function f, the end of the teacher's path through `x_t`. *Paths*: the teacher samples, its states at
the student's times are kept (`paths`), and f is regressed on the ends,

    |f(x_t, t) − x_0|,    x_t … x_0 one path of the teacher's probability-flow ODE (Luhman and Luhman 2021, at some times).

Nothing is bootstrapped, so a student learns in hundreds of updates, and no data are needed; it is what the shipped
student of showers was made by. The absolute error, rounded near zero, prefers values that occur to their mean.

*Consistency* (Song et al. 2023): the student's value is constant along the teacher's ODE,

    |f(x_t, t) − sg f⁻(x_s, s)|²,    x_s = one deterministic, second-order row of the teacher from t to s < t,

so that `f(x_t, t)` is the end of the path through `x_t`. Where σ = 0 a head with a skip makes `f(x, 0) = x`, which fixes the
constant. The student is a denoiser like its teacher, and is sampled by `x_s = α_s f(x_t, t) + σ_s ξ` (`few_step`).

Chosen over distribution matching (Yin et al. 2024, DMD) by trial: the mixture `GaussianMixture.example()`, its exact
denoiser as teacher, the same network (three layers of 128), Adam, batches of 512, 6000 samples against 6000 of the data;
the energy distance between two draws of the data is 0.0008:

| method | 1 evaluation | 2 | 4 |
| --- | --- | --- | --- |
| consistency, 4000 updates | 0.0015 | 0.0012 | 0.0008 |
| distribution matching, 3000 updates | 0.127 | 0.048 | 0.083 |
| the teacher itself, DDIM | 0.986 | 0.166 | 0.039 |
| the teacher itself, Heun | 0.986 | 0.166 | 0.021 |

The teacher needs 32 evaluations of DDIM (0.0017) or 16 of Heun (0.0013) for the student's one. Distribution matching must
keep a second denoiser on the student's heels, and moved about instead of settling. It was tried in one setting
(`benchmarks/distill.py`), without the regression and adversarial terms with which it is reported to do well on images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perrin.core.denoiser import Denoiser
from perrin.core.layout import Layouts
from perrin.core.losses import squared_error
from perrin.core.noise import Noise
from perrin.core.plan import Plan
from perrin.core.processes import Composite, Gaussian, State
from perrin.core.replay import Mode
from perrin.core.sampling import sample


def _gaussian(process: Composite, name: str) -> Gaussian:
    field = process.fields[name]
    if not isinstance(field, Gaussian):
        raise TypeError(f"expected a Gaussian field, but {name!r} is {type(field).__name__}")
    return field


@dataclass(frozen=True, kw_only=True, eq=False)
class ConsistencyLoss:
    """Consistency distillation on a grid of times (Song et al. 2023, algorithm 2).

    Arguments:
        teacher: the denoiser whose ODE is distilled.
        process: of Gaussian fields, and `Clean` ones, which stay as they are.
        times: rising, `[n + 1]`, from 0 (σ = 0) or a little above to the first time of sampling.
    """

    teacher: Denoiser
    process: Composite
    times: Tensor

    def __call__(
        self,
        student: Denoiser,
        target: Denoiser,
        x_0: State,
        index: Tensor,
        noise: Noise,
        layouts: Layouts,
        *,
        condition: Any = None,
    ) -> Tensor:
        """The loss per sample, `[B]`.

        Arguments:
            student: trained.
            target: `f⁻`, the student itself or its moving average; no gradient flows through it.
            x_0: clean data.
            index: `[B]`, int64 in `1 … n`: the interval of each sample is `times[index − 1] … times[index]`.
            noise: corrupts the data.
        """
        t, s = self.times[index], self.times[index - 1]
        x_t = self.process.corrupt_state(x_0, t, noise, layouts)
        with torch.no_grad():
            d = self.teacher(x_t, t, condition=condition, layouts=layouts)
            x_s = x_t | {k: self._row(x_t[k], d[k], t, s, layouts, k) for k in d}
            half = self.teacher(x_s, s.maximum(self.times[1]), condition=condition, layouts=layouts)
            mean = {k: (d[k] + half[k]) / 2 for k in d}  # Heun's rule in the estimate: second order
            x_s = x_t | {k: self._row(x_t[k], mean[k], t, s, layouts, k) for k in d}
            wanted = target(x_s, s, condition=condition, layouts=layouts)
        made = student(x_t, t, condition=condition, layouts=layouts)
        total = t.new_zeros(t.shape)
        for name in made:
            total = total + squared_error(wanted[name], made[name], layouts[name])
        return total

    def _row(self, x: Tensor, d: Tensor, t: Tensor, s: Tensor, layouts: Layouts, name: str) -> Tensor:
        """DDIM's row from t to s."""
        schedule, layout = _gaussian(self.process, name).schedule, layouts[name]
        keep = schedule.sigma(s) / schedule.sigma(t)
        return layout.expand(keep, x) * x + layout.expand(schedule.alpha(s) - schedule.alpha(t) * keep, d) * d


def with_times(grid: Tensor, times: Sequence[float], *, apart: float = 0.18) -> Tensor:
    """A falling grid with `times` among its own, less those nearer to one of `times` than `apart` in `ln(t/(1 − t))`."""
    inner = torch.tensor([t for t in times if 0 < t < 1], dtype=grid.dtype).logit()
    ends = (grid <= 0) | (grid >= 1)
    near = ((grid.clamp(1e-12, 1 - 1e-12).logit().unsqueeze(1) - inner).abs() < apart).any(1) & ~ends
    return torch.cat((grid[~near], torch.tensor(times, dtype=grid.dtype))).unique().flip(0)


@torch.no_grad()
def paths(
    teacher: Denoiser,
    process: Composite,
    plan: Plan,
    times: Sequence[float],
    layouts: Layouts,
    noise: Noise,
    *,
    condition: Any = None,
    start: State | None = None,
    mode: Mode = "eager",
) -> State:
    """The teacher's samples and what they were at `times`, `[len(times) + 1, …]` for every Gaussian field, the end last.

    Arguments:
        plan: of a deterministic solver, whose times hold `times` (see `with_times`).
        times: falling; the first may be the plan's.
        start: the values of `Clean` fields.

    Raises:
        ValueError: the plan does not stop at one of the times, or draws noise.
    """
    stops = {plan.start, *(stage.stop for stage in plan.stages)}
    missing = [t for t in times if not any(abs(t - stop) < 1e-9 for stop in stops)]
    if missing:
        raise ValueError(f"expected times at which the plan stops, given {missing[0]:g}: see with_times")
    if any(getattr(row, "c", 0.0) for rows in plan.rows.values() for row in rows):
        raise ValueError(f"expected a plan that draws no noise, given one of {plan.solver}")
    x = process.prior_state(noise, layouts, time=plan.start, start=start)
    names = [k for k, field in process.fields.items() if isinstance(field, Gaussian)]
    kept: dict[float, State] = {plan.start: x}

    def keep(state: State, time: float) -> State:
        kept[time] = state  # a corrector comes back to its time: the last state counts
        return state

    end = sample(
        teacher, process, plan, layouts, noise, condition=condition, start=x, constraint=keep, mode=mode
    )
    chosen = [next(v for k, v in kept.items() if abs(k - t) < 1e-9) for t in times] + [end]
    return {name: torch.stack([state[name] for state in chosen]) for name in names}


@dataclass(frozen=True, kw_only=True, eq=False)
class PathLoss:
    """The mean of `√(d² + w²) − w` over a sample's numbers, with `d = f(x_t, t) − x_0` on the teacher's path.

    Arguments:
        width: w, below which the error is squared.
    """

    width: float = 0.1

    def __call__(
        self, student: Denoiser, x_t: State, t: Tensor, end: State, layouts: Layouts, *, condition: Any = None
    ) -> Tensor:
        """The loss per sample, `[B]`.

        Arguments:
            x_t: states of paths at the times `t` `[B]`, with the `Clean` fields.
            end: the same paths' ends.
        """
        made = student(x_t, t, condition=condition, layouts=layouts)
        total = t.new_zeros(t.shape)
        for name in made:
            d = made[name] - end[name]
            mean = layouts[name].mean((d.square() + self.width**2).sqrt() - self.width)
            total = total + mean.reshape(len(mean), -1).mean(1)
        return total


@torch.no_grad()
def few_step(
    student: Denoiser,
    process: Composite,
    times: Tensor | list[float],
    layouts: Layouts,
    noise: Noise,
    *,
    condition: Any = None,
    start: State | None = None,
) -> State:
    """Sample a student in `len(times)` evaluations: `x ← α_s f(x, t) + σ_s ξ` from each time to the next, then `f` itself.

    Arguments:
        times: falling, all above 0.
        start: the values of `Clean` fields.
    """
    steps = torch.as_tensor(times, dtype=torch.float64).tolist()
    x = process.prior_state(noise, layouts, time=steps[0], start=start)
    dtype = next((v.dtype for v in x.values() if v.is_floating_point()), torch.float32)
    batch = next(iter(layouts.values())).batch
    for k, time in enumerate(steps):
        t = torch.full((batch,), time, dtype=dtype, device=next(iter(x.values())).device)
        found = student(x, t, condition=condition, layouts=layouts, previous=None)
        x = {**x, **found}
        if k + 1 < len(steps):
            for name, v in found.items():
                field, layout = _gaussian(process, name), layouts[name]
                s = torch.full_like(t, steps[k + 1])
                xi = field.project(noise.normal(layout, field.features, field=name, step=1 + k), layout).to(
                    v.dtype
                )
                x[name] = (
                    layout.expand(field.schedule.alpha(s), v) * v
                    + layout.expand(field.schedule.sigma(s), v) * xi
                )
    return x

"""Dormand–Prince with an error control of its own for every sample.

It has no table, because it chooses its times as it goes; it solves the probability-flow ODE `dx/dt = A_t x + B_t D` from
t = 1 (or `start_time`) to `stop`, and ends with the estimate there. Every sample has its own time and step: the network is
evaluated on the whole batch at a vector of times, a step is accepted or not sample by sample, and a sample that has arrived
stands still. So no sample's path depends on its neighbours. The loop asks the device once for each step whether all have
arrived, which the loop of plans never does.

References: Dormand and Prince 1980 (the pair 5(4), first same as last); Hairer, Nørsett, Wanner 1993, II.4 (step control).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perrin.core.denoiser import Denoiser
from perrin.core.layout import Layout, Layouts
from perrin.core.noise import Noise
from perrin.core.plan import PlanError
from perrin.core.processes import Composite, Gaussian, Process, State

_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Difference between the solutions of order 5 and 4."""


@dataclass(frozen=True)
class Adaptive:
    """What `sample_adaptive` returns.

    Arguments:
        state: the samples.
        nfe: network evaluations made; each is of the whole batch.
        accepted, rejected: steps of each sample, `[B]`.
    """

    state: State
    nfe: int
    accepted: Tensor
    rejected: Tensor


@torch.no_grad()
def sample_adaptive(
    denoiser: Denoiser,
    process: Process,
    layouts: Layouts,
    noise: Noise,
    *,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    start: State | None = None,
    start_time: float = 1.0,
    stop: float = 1e-3,
    denoise: bool = True,
    condition: Any = None,
    max_steps: int = 1000,
) -> Adaptive:
    """Draw samples by Dormand–Prince 5(4).

    The error of a step is the root mean square over the sample's elements of `e / (atol + rtol max(|x|, |x_new|))`, the
    largest over the fields; a step with error at most 1 is accepted, and the next one is `0.9 error^{−1/5}` times as long,
    between 0.2 and 5.

    Arguments:
        process: a `Gaussian`, or a composite of nothing else.
        rtol, atol: tolerances, relative and in the data's unit.
        start, start_time: the state to start from and its time, in place of a draw from the prior.
        stop: where to end, above 0.
        denoise: return the estimate at `stop` (one evaluation more) instead of the state there.
        max_steps: steps of the slowest sample before giving up.

    Raises:
        PlanError: a field has no probability-flow ODE, or `max_steps` did not suffice.
    """
    composite = process if isinstance(process, Composite) else Composite(fields={"x": process})
    for name, field in composite.fields.items():
        if not isinstance(field, Gaussian):
            raise PlanError(
                f"expected Gaussian fields, which have a probability-flow ODE; {name!r} is {field}"
            )
    fields = {k: p for k, p in composite.fields.items() if isinstance(p, Gaussian)}
    if not 0 < stop < start_time:
        raise PlanError(f"expected 0 < stop < start_time, given {stop} and {start_time}")
    x = dict(start) if start is not None else composite.prior_state(noise, layouts, time=start_time)
    first = next(iter(x.values()))
    batch = next(iter(layouts.values())).batch
    nfe = 0

    def slope(x: State, t: Tensor) -> State:
        nonlocal nfe
        nfe += 1
        estimate = denoiser(x, t, condition=condition, layouts=layouts)
        out = {}
        for k, p in fields.items():
            s, sigma = p.schedule, p.schedule.sigma(t)
            a = s.sigma_rate(t) / sigma
            b = s.alpha_rate(t) - s.alpha(t) * a
            out[k] = layouts[k].expand(a, x[k]) * x[k] + layouts[k].expand(b, x[k]) * estimate[k]
            out[k] = p.project(out[k], layouts[k])
        return out

    t = torch.full((batch,), start_time, dtype=first.dtype, device=first.device)
    h = torch.full_like(t, 0.02 * (start_time - stop))
    accepted = torch.zeros(batch, dtype=torch.int64, device=first.device)
    rejected = torch.zeros_like(accepted)
    k1 = slope(x, t)
    for _ in range(max_steps):
        left = t - stop
        active = left > 0
        if not bool(active.any()):
            break
        last = h >= left
        step = torch.where(last, left, h)
        stages, y = [k1], x
        for c, row in zip(_C[1:], _A, strict=True):
            y = {k: _combine(x[k], step, row, [s[k] for s in stages], layouts[k]) for k in fields}
            stages.append(slope(y, t - c * step))
        error = torch.zeros_like(t)
        for k in fields:
            e = _combine(torch.zeros_like(x[k]), step, _E, [s[k] for s in stages], layouts[k])
            scaled = (e / (atol + rtol * torch.maximum(x[k].abs(), y[k].abs()))).square()
            mean = layouts[k].mean(scaled)
            error = torch.maximum(error, mean.reshape(batch, -1).mean(dim=1).sqrt())
        good = active & (error <= 1)
        arrived = good & last
        t = torch.where(arrived, torch.full_like(t, stop), torch.where(good, t - step, t))
        for k in fields:
            keep = layouts[k].expand(good, x[k])
            x = {**x, k: torch.where(keep, y[k], x[k])}
            k1 = {**k1, k: torch.where(keep, stages[-1][k], k1[k])}
        factor = (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
        h = torch.where(active, step * factor, h)
        accepted += good
        rejected += active & ~good
    else:
        raise PlanError(
            f"expected at most {max_steps} steps: raise max_steps or the tolerances, or start lower"
        )
    if denoise:
        nfe += 1
        estimate = denoiser(x, t, condition=condition, layouts=layouts)
        x = {**x, **{k: p.project(estimate[k], layouts[k]) for k, p in fields.items()}}
    return Adaptive(x, nfe, accepted, rejected)


def _combine(x: Tensor, step: Tensor, row: tuple[float, ...], slopes: list[Tensor], layout: Layout) -> Tensor:
    """`x − step · Σ row_j k_j` (time falls)."""
    total = torch.zeros_like(x)
    for c, k in zip(row, slopes, strict=False):
        if c:
            total.add_(k, alpha=c)
    return x - layout.expand(step, x) * total

"""`Clean`: a field that is never noised, such as a condition that the network sees next to the noised fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perrin.core.layout import Layout
from perrin.core.noise import Noise
from perrin.core.plan import Row, Stage
from perrin.core.processes.base import Process
from perrin.core.schedules import Schedule
from perrin.core.solvers import Solver


@dataclass(frozen=True)
class NoNoise(Schedule):
    """`α = 1`, `σ = 0` at every time. It has no `t(λ)`."""

    limit = math.inf

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def alpha_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def time(self, lam: Tensor) -> Tensor:
        raise ValueError("expected the schedule of a noised field: a clean one is the same at all times")


@dataclass(frozen=True, kw_only=True)
class Clean(Process):
    """A condition: `x_t = x_0` at every time, for a field of any dtype.

    Its rows are `None`; `sample` takes its value from `start`, and the denoiser need not return an estimate of it.
    """

    schedule: Schedule = NoNoise()

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Noise, layout: Layout, *, name: str) -> Tensor:
        return self.project(x_0, layout)

    def diffuse(
        self, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, layout: Layout, *, name: str, step: int
    ) -> Tensor:
        return x_t

    def prior(self, noise: Noise, layout: Layout, *, name: str, time: float = 1.0) -> Tensor:
        raise ValueError(
            f"expected a value of field {name!r}, which is a condition and has no prior: "
            f"pass start={{{name!r}: …}} to sample"
        )

    def rows(self, solver: Solver, stages: Sequence[Stage], *, decode: bool) -> list[Row]:
        return [None] * len(stages)

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
        return x

    def takes_order(self, order: int) -> bool:
        return True  # it has no error of any order

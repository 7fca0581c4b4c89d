"""Predictions: what a network's output `y` means.

Every target in use is a linear mix of data and noise, `y = a x_0 + b z`. With `x_t = α x_0 + σ z` one formula recovers

    E[x_0] = (b x_t − σ y) / (α b − σ a)

and replaces a converter for every pair of targets. A zero determinant `α b − σ a` means that `y` says nothing about the
data at that time (eps at t = 1 of rectified flow, for instance); it is found when a sampler is planned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from perrin.core.schedules import Schedule

Coefficient = Callable[[Schedule, Tensor], Tensor]


@dataclass(frozen=True)
class Prediction:
    """A target `y = a_t x_0 + b_t z`, given by its two coefficients as functions of the schedule and time."""

    name: str
    a: Coefficient
    b: Coefficient

    def target(self, schedule: Schedule, t: Tensor, x_0: Tensor, z: Tensor) -> Tensor:
        """`y` for clean data and noise; `t` broadcasts against them."""
        return self.a(schedule, t) * x_0 + self.b(schedule, t) * z

    def x0(self, schedule: Schedule, t: Tensor, x_t: Tensor, y: Tensor) -> Tensor:
        """The estimate of the clean data that the output `y` at `x_t` stands for."""
        b, sigma = self.b(schedule, t), schedule.sigma(t)
        return (b * x_t - sigma * y) / self.determinant(schedule, t)

    def determinant(self, schedule: Schedule, t: Tensor) -> Tensor:
        """`α b − σ a`; zero where the output does not determine the data."""
        return schedule.alpha(t) * self.b(schedule, t) - schedule.sigma(t) * self.a(schedule, t)


def _zero(_: Schedule, t: Tensor) -> Tensor:
    return torch.zeros_like(t)


def _one(_: Schedule, t: Tensor) -> Tensor:
    return torch.ones_like(t)


X0 = Prediction("x0", _one, _zero)
EPS = Prediction("eps", _zero, _one)
V = Prediction("v", lambda s, t: -s.sigma(t), lambda s, t: s.alpha(t))
FLOW = Prediction("flow", lambda s, t: s.alpha_rate(t), lambda s, t: s.sigma_rate(t))
SCORE = Prediction("score", _zero, lambda s, t: -1 / s.sigma(t))

PREDICTIONS = {p.name: p for p in (X0, EPS, V, FLOW, SCORE)}
"""Predictions by the name that configuration files use."""

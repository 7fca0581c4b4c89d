"""Clocks: a field's own time as a function of the time that all fields share.

A `Clock` is a strictly rising map `c` of [0, 1] onto itself. `Clocked(schedule, clock)` is the schedule `α(c(t)), σ(c(t))`,
so that nothing else need know of clocks. With `c(t) < t` a field is ahead of the others: sampling settles it earlier.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from perrin.core.schedules import Schedule


class Clock(ABC):
    """A strictly rising, differentiable map `c` with `c(0) = 0` and `c(1) = 1`; frozen dataclasses compare and print."""

    @abstractmethod
    def time(self, t: Tensor) -> Tensor:
        """The field's own time `c(t)`."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """`dc/dt`."""

    @abstractmethod
    def shared(self, time: Tensor) -> Tensor:
        """The inverse: the shared time at which the field's own is `time`."""


@dataclass(frozen=True)
class PowerClock(Clock):
    """`c(t) = t^p`: `p > 1` settles the field earlier than the others, `p < 1` later."""

    exponent: float

    def __post_init__(self) -> None:
        if not self.exponent > 0:
            raise ValueError(f"expected exponent > 0, given {self.exponent}")

    def time(self, t: Tensor) -> Tensor:
        return t**self.exponent

    def rate(self, t: Tensor) -> Tensor:
        return self.exponent * t ** (self.exponent - 1)

    def shared(self, time: Tensor) -> Tensor:
        return time ** (1 / self.exponent)


@dataclass(frozen=True)
class RationalClock(Clock):
    """`c(t) = t / (t + k (1 − t))`: `k > 1` settles the field earlier, `k < 1` later; smooth at both ends.

    It multiplies the odds `t / (1 − t)` by `1/k`, so on `RectifiedFlow` it moves `λ` by `log k`. Defined on [0, 1] only.
    """

    factor: float

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"expected factor > 0, given {self.factor}")

    def time(self, t: Tensor) -> Tensor:
        return t / (t + self.factor * (1 - t))

    def rate(self, t: Tensor) -> Tensor:
        return self.factor / (t + self.factor * (1 - t)) ** 2

    def shared(self, time: Tensor) -> Tensor:
        return self.factor * time / (1 + (self.factor - 1) * time)


@dataclass(frozen=True)
class Clocked(Schedule):
    """`schedule` read on `clock`: `α(c(t))`, `σ(c(t))`. Asked for times in [0, 1] only."""

    schedule: Schedule
    clock: Clock

    def alpha(self, t: Tensor) -> Tensor:
        return self.schedule.alpha(self.clock.time(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self.schedule.sigma(self.clock.time(t))

    def alpha_rate(self, t: Tensor) -> Tensor:
        return self.schedule.alpha_rate(self.clock.time(t)) * self.clock.rate(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self.schedule.sigma_rate(self.clock.time(t)) * self.clock.rate(t)

    def time(self, lam: Tensor) -> Tensor:
        return self.clock.shared(self.schedule.time(lam))


def checked(clock: Clock) -> Clock:
    """The same clock, or a `ValueError` unless it rises strictly from 0 to 1."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    c = clock.time(t)
    if abs(float(c[0])) > 1e-9 or abs(float(c[-1]) - 1) > 1e-9 or not bool((c[1:] > c[:-1]).all()):
        raise ValueError(
            f"expected a clock that rises strictly from 0 at t = 0 to 1 at t = 1, given {clock} with {c[::20].tolist()}"
        )
    return clock

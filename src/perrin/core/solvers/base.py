"""What a solver is, and the numbers that every table is made of.

Notation: a row goes from time `t` to `s < t`; `D` estimates the clean data; `λ = log(α/σ)`, `h = λ_s − λ_t > 0`.

With stochasticity `τ` the reverse SDE has the exact solution (Lu et al. 2022; Xue et al. 2023)

    x_s = (σ_s/σ_t) e^{−τ²h} x_t + α_s ∫_0^1 H e^{−H(1−θ)} D(λ_t + θ h) dθ + σ_s √(1 − e^{−2τ²h}) ξ,   H = (1 + τ²) h.

`τ = 0` is the probability-flow ODE, `τ = 1` the SDE of the forward process. A method is a choice of polynomial for `D(θ)`,
and `moments` holds the integrals that it needs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from perrin.core.plan import Affine, PlanError, Stage
from perrin.core.schedules import Schedule

_points: ContextVar[dict[tuple[int, float], tuple[Schedule, Point]] | None] = ContextVar(
    "points", default=None
)


@contextmanager
def points_remembered() -> Iterator[None]:
    """Inside, a schedule is asked for each time once. A plan asks for most of them several times."""
    token = _points.set({})
    try:
        yield
    finally:
        _points.reset(token)


@dataclass(frozen=True)
class Point:
    """A schedule's values at one time, as Python floats."""

    alpha: float
    sigma: float
    alpha_rate: float
    sigma_rate: float

    @classmethod
    def at(cls, schedule: Schedule, t: float) -> Point:
        known = _points.get()
        if known is not None and (id(schedule), t) in known:
            return known[id(schedule), t][1]
        u = torch.tensor(t, dtype=torch.float64)
        point = cls(
            *(float(f(u)) for f in (schedule.alpha, schedule.sigma, schedule.alpha_rate, schedule.sigma_rate))
        )
        if known is not None:
            known[id(schedule), t] = (
                schedule,
                point,
            )  # the schedule is held, so that its identity stays taken
        return point

    @classmethod
    def remember(cls, schedule: Schedule, times: Tensor) -> None:
        """Inside `points_remembered`: ask for all of `times` (float64) in one go."""
        known = _points.get()
        if known is None:
            return
        values = (schedule.alpha, schedule.sigma, schedule.alpha_rate, schedule.sigma_rate)
        for t, *v in zip(times.tolist(), *(f(times).tolist() for f in values), strict=True):
            known[id(schedule), t] = (schedule, cls(*v))

    @property
    def lam(self) -> float:
        if self.alpha <= 0:
            return -math.inf
        return math.inf if self.sigma <= 0 else math.log(self.alpha / self.sigma)

    @property
    def drift(self) -> tuple[float, float]:
        """`A` and `B` of the probability-flow ODE `dx/dt = A x + B D`: `A = σ′/σ`, `B = α′ − α σ′/σ`."""
        a = self.sigma_rate / self.sigma if self.sigma > 0 else math.inf
        return a, self.alpha_rate - self.alpha * a


def shrink(p: Point, q: Point) -> float:
    """`e^{−h} = (σ_s/α_s) / (σ_t/α_t)` from `p` at t to `q` at s; 0 from pure noise and to clean data."""
    return p.alpha * q.sigma / (q.alpha * p.sigma)


def forward(p: Point, q: Point, noise: float = 1.0) -> Affine:
    """The corruption from `p` to the noisier `q`: `x ← (α_q/α_p) x + √(σ_q² − (α_q σ_p/α_p)²) ξ`."""
    a = q.alpha / p.alpha
    return Affine(a, (), noise * math.sqrt(max(0.0, q.sigma**2 - (a * p.sigma) ** 2)))


def moments(h: float, count: int) -> list[float]:
    """`w_k = ∫_0^1 H e^{−H(1−θ)} θ^k dθ = H k! φ_{k+1}(−H)` for k below `count`."""
    if math.isinf(h):  # all the weight is at the end
        return [1.0] * count
    if h > 2:
        w = [-math.expm1(-h)]
        for k in range(1, count):
            w.append(1 - k * w[-1] / h)
        return w
    # upwards the recurrence cancels where h is small; the alternating series of the highest does not, nor does the way down
    k = count - 1
    term = total = h / (k + 1)
    j = 1
    while abs(term) > 1e-17 * total:
        term *= -h / (k + 1 + j)
        total += term
        j += 1
    w = [total]
    for k in range(count - 1, 0, -1):
        w.append(h * (1 - w[-1]) / k)
    return w[::-1]


def quadrature(nodes: Sequence[float], w: Sequence[float]) -> list[float]:
    """Weights `b_j` with `Σ_j b_j θ_j^k = w_k`: the integral of the Lagrange polynomial through `nodes`."""
    if len(nodes) == 1:
        return [w[0]]
    if len(nodes) == 2:
        b = (w[1] - nodes[0] * w[0]) / (nodes[1] - nodes[0])
        return [w[0] - b, b]
    out = []
    for j, node in enumerate(nodes):
        basis = [1.0]  # coefficients of ℓ_j, lowest power first
        for i, other in enumerate(nodes):
            if i != j:
                scale = 1 / (node - other)
                basis = [
                    scale * (low - other * high)
                    for low, high in zip([0.0, *basis], [*basis, 0.0], strict=True)
                ]
        out.append(sum(c * v for c, v in zip(basis, w, strict=True)))
    return out


class Solver(ABC):
    """A method: which stages it needs and the row of each."""

    order: int = 1
    """Order of convergence on smooth problems with steps even in λ and both ends away from 0 and 1."""
    stochastic: bool = False

    @property
    def name(self) -> str:
        """The class's name and its settings, as shown in `repr(plan)`."""
        return repr(self)

    def intervals(self, nfe: int) -> int:
        """How many grid intervals `nfe` network evaluations pay for."""
        if nfe < 1:
            raise PlanError(f"expected at least one network evaluation, given {nfe}")
        return nfe

    def for_nfe(self, nfe: int) -> Solver:
        """The same method, set so that `intervals(nfe)` intervals cost exactly `nfe` evaluations."""
        return self

    def stages(self, times: Tensor, schedule: Schedule) -> list[Stage]:
        """One evaluation for each interval, at its start."""
        t = times.tolist()
        return [Stage(time=t[i], start=t[i], stop=t[i + 1]) for i in range(len(t) - 1)]

    @abstractmethod
    def rows(self, stages: Sequence[Stage], schedule: Schedule) -> list[Affine]:
        """A Gaussian field's row for each stage."""

"""Multistep methods in λ: one table for DPM-Solver++, exponential Adams–Bashforth, UniPC and SA-Solver.

The estimates `D` at this time and the ones before are interpolated by a polynomial in λ, whose integral (`solvers.base`) is
exact. A *corrector* does the last interval once more with the new estimate among its nodes. It has the same `a` and the same
noise as the predictor, so its result differs from the predictor's by estimates only:

    x^c = x^p + Σ_j δ_j D_j,   and the next row is   a (x^p + Σ_j δ_j D_j) + Σ_j b_j D_j = a x^p + Σ_j (a δ_j + b_j) D_j.

So a predictor–corrector costs one row and one evaluation for each interval, like any other method.

What limits the order: the first row can only be first order, an error `O(h²)` made once, so a method that starts plainly has
global order 2 at most. Correcting the first row (`startup="corrected"`) makes that error `O(h³)` without an evaluation more,
and order 3 is reached. Order 4 would need a start that costs more evaluations: `ExpAB(order=4)` and `UniPC(order=3)` have
smaller errors than the methods below them, but order 3. All orders need steps of nearly equal lengths in λ; the rows next to
pure noise (λ = −∞) and to clean data (λ = ∞) are first order.

References: Lu et al. 2022, "DPM-Solver++"; Zhao et al. 2023, "UniPC"; Xue et al. 2023, "SA-Solver"; Zhang and Chen 2023,
"DEIS"; Hochbruck and Ostermann 2010, "Exponential integrators".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from perrin.core.plan import Affine, PlanError, Stage
from perrin.core.schedules import Schedule
from perrin.core.solvers.base import Point, Solver, moments, quadrature, shrink

STARTUPS = ("plain", "corrected")


class Multistep(Solver):
    """The common table. A subclass names its orders, its stochasticity and the moments that it changes."""

    startup: str = "plain"
    taper: bool = False

    @property
    def predictor_order(self) -> int:
        """Number of estimates in the predictor's polynomial."""
        return self.order

    @property
    def corrector_order(self) -> int:
        """Number of estimates, the new one included, in the corrector's polynomial; 0 is no corrector."""
        return 0

    def stochasticity(self, t: float) -> float:
        """`τ` of the interval that starts at `t`."""
        return 0.0

    def moments(self, h: float, count: int, *, corrector: bool) -> list[float]:
        """The moments to match, `h` being `H`; published methods of low order replace the highest."""
        return moments(h, count)

    def rows(self, stages: Sequence[Stage], schedule: Schedule) -> list[Affine]:
        points = [Point.at(schedule, s.start) for s in stages] + [Point.at(schedule, stages[-1].stop)]
        count = len(stages)
        steps = [math.inf if e == 0 else -math.log(e) for e in map(shrink, points, points[1:])]
        out: list[Affine] = []
        before: list[float] = []  # the predictor's weights in the row before, α included
        most = max(self.predictor_order, self.corrector_order, 2)
        for i, (p, q) in enumerate(pairwise(points)):
            h, tau2 = steps[i], self.stochasticity(stages[i].start) ** 2
            known = 1  # estimates that are a finite step apart
            while known <= i and known < most and math.isfinite(steps[i - known]):
                known += 1
            e = math.exp(-tau2 * h) if tau2 else 1.0
            a = q.sigma / p.sigma * e
            order = min(self.predictor_order, known) if math.isfinite(h) else 1
            if self.taper:
                order = min(order, count - i)
            back = [0.0, *accumulate(steps[i - j] for j in range(1, order))]
            weights = self._weights([-v / h for v in back], (1 + tau2) * h, corrector=False)
            predictor = [q.alpha * w for w in weights]
            b = list(predictor)
            for j, delta in enumerate(self._correction(i, steps, stages, p, before, known)):
                if j == len(b):
                    b.append(0.0)
                b[j] += a * delta
            c = q.sigma * math.sqrt(-math.expm1(-2 * tau2 * h)) if tau2 else 0.0
            out.append(Affine(a, tuple(b), c))
            before = predictor
        return out

    def _weights(self, nodes: list[float], h: float, *, corrector: bool) -> list[float]:
        return quadrature(nodes, self.moments(h, len(nodes), corrector=corrector))

    def _correction(
        self,
        i: int,
        steps: Sequence[float],
        stages: Sequence[Stage],
        p: Point,
        before: Sequence[float],
        known: int,
    ) -> list[float]:
        """`δ_j` of the interval that ended at stage i: the corrector's weights minus the predictor's."""
        order = self.corrector_order
        if i == 1 and self.startup == "corrected" and self.predictor_order > 2:
            order = max(order, 2)
        if order == 0 or known == 1:  # nothing before, or it began at pure noise
            return []
        h, tau2 = steps[i - 1], self.stochasticity(stages[i - 1].start) ** 2
        order = min(order, known, len(before) + 1) if self.taper else min(order, known)
        nodes = [1.0, 0.0, *(-v / h for v in accumulate(steps[i - j] for j in range(2, known)))][:order]
        weights = [p.alpha * w for w in self._weights(nodes, (1 + tau2) * h, corrector=True)]
        size = max(len(weights), len(before) + 1)
        new, old = (v + [0.0] * (size - len(v)) for v in (weights, [0.0, *before]))
        return [x - y for x, y in zip(new, old, strict=True)]


def _one_of(value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise PlanError(f"expected one of {allowed}, given {value!r}")


@dataclass(frozen=True)
class DPMSolverPP1M(Multistep):
    """DPM-Solver++ of first order: DDIM, or with `sde` its SDE form (Lu et al. 2022, eq. 17 and 18, one estimate).

    ODE: `x_s = (σ_s/σ_t) x + α_s (1 − e^{−h}) D`.
    SDE: `x_s = (σ_s/σ_t) e^{−h} x + α_s (1 − e^{−2h}) D + σ_s √(1 − e^{−2h}) ξ`, which is DDPM.
    """

    sde: bool = False

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.sde

    def stochasticity(self, t: float) -> float:
        return float(self.sde)


@dataclass(frozen=True)
class DPMSolverPP2M(Multistep):
    """DPM-Solver++(2M) in data prediction, or its SDE form (Lu et al. 2022, algorithm 2 and eq. 18).

    ODE: `x_s = (σ_s/σ_t) x + α_s (1 − e^{−h}) [(1 + 1/2r) D_0 − (1/2r) D_1]`, `r = h_previous / h`.
    SDE: `x_s = (σ_s/σ_t) e^{−h} x + α_s (1 − e^{−2h}) [same] + σ_s √(1 − e^{−2h}) ξ`.

    The first row, a row to σ = 0 and a row after a start without signal (λ = −∞) are first order.

    Arguments:
        sde: the SDE form.
        taper: lower the order to 1 on the last row even if it ends above σ = 0; steadier with few steps.
    """

    sde: bool = False
    taper: bool = False
    order = 2

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.sde

    def stochasticity(self, t: float) -> float:
        return float(self.sde)

    def moments(self, h: float, count: int, *, corrector: bool) -> list[float]:
        if count != 2:
            return moments(h, count)
        w = moments(h, 1)[0]
        return [w, w / 2]


@dataclass(frozen=True)
class DPMSolverPP3M(Multistep):
    """DPM-Solver++(3M), or its SDE form: the quadratic through three estimates (Lu et al. 2022, appendix).

    With `D(θ) = D_0 + d_1 θ + d_2 θ²` through the nodes,
    `x_s = (σ_s/σ_t) e^{−τ²h} x + α_s [w_0 D_0 + w_1 d_1 + w_2 d_2] + σ_s √(1 − e^{−2τ²h}) ξ`.

    The authors' code, diffusers and k-diffusion have half of `w_2 d_2` (they take the divided difference `d_2 = D″h²/2` for
    `D″h²`), which is second order. `curvature=0.5` does what they do.

    Arguments:
        sde: the SDE form.
        startup: `corrected` reaches order 3; `plain` is what other libraries do and has order 2.
        taper: lower the order to 2 and 1 on the last rows.
        curvature: factor on `w_2`; 1 is right.
    """

    sde: bool = False
    startup: str = "corrected"
    taper: bool = False
    curvature: float = 1.0

    def __post_init__(self) -> None:
        _one_of(self.startup, STARTUPS)

    @property
    def order(self) -> int:  # type: ignore[override]
        """3 for the ODE; 2, the weak order on Gaussian data, for the SDE and with another start-up, taper or curvature."""
        full = self.startup == "corrected" and self.curvature == 1 and not self.taper
        return 3 if full and not self.sde else 2

    @property
    def predictor_order(self) -> int:
        return 3

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.sde

    def stochasticity(self, t: float) -> float:
        return float(self.sde)

    def moments(self, h: float, count: int, *, corrector: bool) -> list[float]:
        w = moments(h, count)
        return [w[0], w[1], self.curvature * w[2]] if count == 3 else w


@dataclass(frozen=True)
class ExpAB(Multistep):
    """Exponential Adams–Bashforth in λ: `x_s = (σ_s/σ_t) x + α_s Σ_j D_j ∫ h e^{−h(1−θ)} ℓ_j(θ) dθ`; also known as DEIS.

    Arguments:
        steps: number of estimates, 1 to 4.
        startup: `plain` has order 2 at most; `corrected` has order 3 at most.
        taper: lower the order to 1 on the last rows.
    """

    steps: int = 3
    startup: str = "corrected"
    taper: bool = False

    def __post_init__(self) -> None:
        _one_of(self.startup, STARTUPS)
        if not 1 <= self.steps <= 4:
            raise PlanError(f"expected 1 to 4 estimates, given {self.steps}")

    @property
    def order(self) -> int:  # type: ignore[override]
        return min(self.steps, 3 if self.startup == "corrected" and not self.taper else 2)

    @property
    def predictor_order(self) -> int:
        return self.steps


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC-p with `B(h) = e^h − 1` ("B2", bh2): predictor of order p, corrector of order p + 1 (Zhao et al. 2023).

    Predictor and corrector are the integrals of the interpolating polynomials through p and p + 1 estimates, except that the
    polynomials of first degree take `w_1 = w_0 / 2`, as the authors do.

    Arguments:
        p: 1, 2 or 3. The order of convergence is p + 1, but 3 at most because of the first row.
        taper: lower p to 1 on the last rows; steadier with few steps.
    """

    p: int = 2
    taper: bool = False

    def __post_init__(self) -> None:
        if self.p not in (1, 2, 3):
            raise PlanError(f"expected p = 1, 2 or 3, given {self.p}")

    @property
    def order(self) -> int:  # type: ignore[override]
        return min(self.p + 1, 2 if self.taper else 3)

    @property
    def predictor_order(self) -> int:
        return self.p

    @property
    def corrector_order(self) -> int:
        return self.p + 1

    def moments(self, h: float, count: int, *, corrector: bool) -> list[float]:
        if count != 2:
            return moments(h, count)
        w = moments(h, 1)[0]
        return [w, w / 2]


@dataclass(frozen=True, kw_only=True)
class SASolver(Multistep):
    """SA-Solver: stochastic Adams with stochasticity τ (Xue et al. 2023, algorithm 1), in data prediction.

    `x_s = (σ_s/σ_t) e^{−τ²h} x + α_s Σ_j b_j D_j + σ_s √(1 − e^{−2τ²h}) ξ`, predictor and
    corrector with the same ξ. Two estimates take `w_1 = H/2`, as the authors do.

    Arguments:
        predictor: number of estimates in the predictor, 1 to 4.
        corrector: number of estimates in the corrector, the new one included; 0 is none.
        tau: stochasticity; 0 is the ODE, 1 the SDE of the forward process, more is allowed.
        interval: times between which to be stochastic; outside, τ = 0.
        taper: lower the order to 1 on the last rows.
    """

    predictor: int = 2
    corrector: int = 2
    tau: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    taper: bool = False

    def __post_init__(self) -> None:
        if not (1 <= self.predictor <= 4 and 0 <= self.corrector <= 4 and self.tau >= 0):
            raise PlanError(
                f"expected 1 to 4 predictor estimates, 0 to 4 corrector estimates and τ ≥ 0, "
                f"got {self.predictor}, {self.corrector} and {self.tau}"
            )

    @property
    def order(self) -> int:  # type: ignore[override]
        """3 at most for the ODE; 1 with τ > 0, though the weak order on Gaussian data comes near 2 for many steps."""
        if self.tau > 0:
            return 1
        return min(max(self.predictor, self.corrector), 2 if self.taper or self.corrector < 2 else 3)

    @property
    def predictor_order(self) -> int:
        return self.predictor

    @property
    def corrector_order(self) -> int:
        return self.corrector

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.tau > 0

    def stochasticity(self, t: float) -> float:
        return self.tau if self.interval[0] <= t <= self.interval[1] else 0.0

    def moments(self, h: float, count: int, *, corrector: bool) -> list[float]:
        w = moments(h, count)
        return [w[0], h / 2] if count == 2 else w

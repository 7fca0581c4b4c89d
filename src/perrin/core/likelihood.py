"""Likelihood by the probability-flow ODE, and what else its inverse gives: latent codes and interpolations.

In `y = x / α` and `ℓ = log(σ / α)`, with `ρ = σ / α`, the ODE is `dy/dℓ = y − D` (Song et al. 2021). It is solved in the
coordinates in which a Gaussian with the data's mean `m` and standard deviation `s` stands still,

    u = (y − m) / S,   S² = s² + ρ²,   du/dℓ = (s² / S²) u − (D − m) / S,

by the classical Runge–Kutta method with even steps in ℓ; the flow of data that are nearly Gaussian is nearly at rest. With
the instantaneous change of variables (Chen et al. 2018)

    log p(x_0) = log N(u_1; 0, 1) + ∫ [n s² / S² − α tr ∂D/∂x] dℓ − n log S_0,

where n is the number of dimensions and the prior has the moments of the data plus noise, not of the noise alone. Both
ends leave a small bias: about `½ ρ_0² Δp / p` nats at the clean one (the density is that of the data with noise `ρ_0`), and
`O((s / ρ_1)³)` at the other.

Everything is per sample. Densities of fields in a subspace are with respect to its orthonormal coordinates (of `Pairs`:
one coordinate for each unordered pair).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from perrin.core.denoiser import Denoiser
from perrin.core.layout import Layout, Layouts, Pairs
from perrin.core.noise import Noise
from perrin.core.processes import Clean, Composite, Gaussian, Process, State
from perrin.core.solvers import Point

Number = float | Tensor


class Trace(ABC):
    """How the trace of the denoiser's Jacobian is found: as the mean or sum of `vᵀ J v` over probes `v`."""

    @abstractmethod
    def probes(self, fields: Mapping[str, Gaussian], layouts: Layouts, like: State) -> Iterator[State]:
        """Probes whose sum of `vᵀ J v` is the trace, or has it as mean."""


@dataclass(frozen=True)
class ExactTrace(Trace):
    """Every coordinate in turn: one backward pass for each, at every evaluation. For some hundred dimensions at most."""

    def probes(self, fields: Mapping[str, Gaussian], layouts: Layouts, like: State) -> Iterator[State]:
        for name, process in fields.items():
            layout = layouts[name]
            for i in range(layout.count(prod(process.features))):
                flat = like[name].new_zeros(layout.batch, layout.count(prod(process.features)))
                flat[:, i] = 1
                yield {name: process.project(layout.place(flat, process.features), layout)}


@dataclass(frozen=True)
class Hutchinson(Trace):
    """Random signs, the same at all times: unbiased, with a standard error that falls as `1/√probes` (Hutchinson 1990).

    Arguments:
        noise: counter-based, so that a sample's number does not depend on its batch.
        count: the number of probes, each one backward pass at every evaluation.
    """

    noise: Noise
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"expected at least one probe, given {self.count}")

    def probes(self, fields: Mapping[str, Gaussian], layouts: Layouts, like: State) -> Iterator[State]:
        for k in range(self.count):
            out = {}
            for name, process in fields.items():
                u = self.noise.uniform(layouts[name], process.features, field=f"{name}/probe", step=k)
                sign = torch.where(u < 0.5, -1.0, 1.0).to(like[name].dtype) / math.sqrt(self.count)
                out[name] = process.project(sign, layouts[name])
            yield out


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Log-densities of clean states.

    Arguments:
        nats: `log p(x_0)` per sample, `[B]`.
        dimensions: the number of independent coordinates of each sample, `[B]`.
        latent: the state at the noisy end of the flow.
    """

    nats: Tensor
    dimensions: Tensor
    latent: State

    @property
    def bits_per_dimension(self) -> Tensor:
        """`−log₂ p(x_0) / n`, `[B]`. For data that were divided by `c` (8-bit images in [−1, 1]: 127.5), add `log₂ c`."""
        return -self.nats / (self.dimensions * math.log(2))


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbabilityFlow:
    """The deterministic flow between data and noise, both ways.

    Arguments:
        denoiser: `E[x_0 | x_t]` of every `Gaussian` field; differentiable for likelihoods.
        process: a `Gaussian`, or a `Composite` of `Gaussian` and `Clean` fields; a lone process is the field `"x"`.
        layouts: which rows belong to which sample, per field.
        mean, std: the data's, by field: 0 and 1 where not named. The better, the fewer steps and the smaller `rho_max` do.
        rho_min, rho_max: `σ/α` of the clock's field at the two ends, in the data's unit.
        steps: of the Runge–Kutta method; each costs four evaluations.
        condition: handed to the denoiser.

    Raises:
        TypeError: a field is neither `Gaussian` nor `Clean`.
    """

    denoiser: Denoiser
    process: Process
    layouts: Layouts
    mean: Mapping[str, Number] = field(default_factory=dict)
    std: Mapping[str, float] = field(default_factory=dict)
    rho_min: float = 1e-3
    rho_max: float = 80.0
    steps: int = 100
    condition: Any = None

    def __post_init__(self) -> None:
        for name, process in self._composite.fields.items():
            if not isinstance(process, Gaussian | Clean):
                raise TypeError(
                    f"expected Gaussian or Clean fields, but field {name!r} is {type(process).__name__}: "
                    f"it has no probability-flow ODE in x"
                )
        if not 0 < self.rho_min < self.rho_max:
            raise ValueError(f"expected 0 < rho_min < rho_max, given {self.rho_min} and {self.rho_max}")
        if self.steps < 1:
            raise ValueError(f"expected at least one step, given {self.steps}")

    @property
    def _composite(self) -> Composite:
        return self.process if isinstance(self.process, Composite) else Composite(fields={"x": self.process})

    @property
    def _fields(self) -> dict[str, Gaussian]:
        return {k: p for k, p in self._composite.fields.items() if isinstance(p, Gaussian)}

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser in one direction."""
        return 4 * self.steps

    def log_likelihood(self, x_0: State, trace: Trace | None = None) -> Likelihood:
        """`log p(x_0)`, with the exact trace by default."""
        level = math.log(self.rho_min)
        u = self._u(x_0, level, clean=True)
        u, integral = self._run(u, x_0, forward=True, trace=trace or ExactTrace())
        fields = self._fields
        n = {k: p.dimensions(self.layouts[k]).to(integral.dtype) for k, p in fields.items()}
        nats = integral
        for k in fields:
            scale = self._coefficients(level)[k].scale
            size = _per_sample(self.layouts[k], u[k].square())
            nats = nats - 0.5 * size - n[k] * (0.5 * math.log(2 * math.pi) + math.log(scale))
        total = sum(n.values(), torch.zeros_like(integral))
        return Likelihood(nats, total, self._x(u, x_0, math.log(self.rho_max)))

    def encode(self, x_0: State) -> State:
        """The noisy end of the flow that `x_0` lies on: `x_t` at `rho_max`, with `Clean` fields as they are."""
        u, _ = self._run(self._u(x_0, math.log(self.rho_min), clean=True), x_0, forward=True)
        return self._x(u, x_0, math.log(self.rho_max))

    def decode(self, latent: State) -> State:
        """The clean end of the flow: the inverse of `encode`."""
        u, _ = self._run(self._u(latent, math.log(self.rho_max)), latent, forward=False)
        return self._x(u, latent, math.log(self.rho_min), clean=True)

    def interpolate(self, x: State, y: State, weight: Number) -> State:
        """Clean states between `x` (`weight` 0) and `y` (`weight` 1, a number or `[B]`): the great circle between codes.

        Each field turns by the angle between the two codes of a sample, and its squared length changes evenly, so that a
        code stays as long as noise is.
        """
        level = math.log(self.rho_max)
        a, b = (self._u(self.encode(v), level) for v in (x, y))
        out = {}
        for k, layout in self._layouts():
            w = torch.as_tensor(weight, dtype=a[k].dtype, device=a[k].device).expand(layout.batch)
            dot, aa, bb = (_per_sample(layout, p * q) for p, q in ((a[k], b[k]), (a[k], a[k]), (b[k], b[k])))
            aa, bb = aa.sqrt().clamp(min=1e-30), bb.sqrt().clamp(min=1e-30)
            angle = torch.acos((dot / (aa * bb)).clamp(-1, 1))
            sine = torch.sin(angle)
            line = sine < 1e-6
            safe = torch.where(line, 1, sine)
            left = torch.where(line, 1 - w, torch.sin((1 - w) * angle) / safe)
            right = torch.where(line, w, torch.sin(w * angle) / safe)
            size = ((1 - w) * aa**2 + w * bb**2).sqrt()
            left, right = size * left / aa, size * right / bb
            out[k] = layout.expand(left, a[k]) * a[k] + layout.expand(right, b[k]) * b[k]
        return self.decode(self._x(out, x, level))

    # ------------------------------------------------------------------------------------------------- coordinates

    def _layouts(self) -> list[tuple[str, Layout]]:
        return [(k, self.layouts[k]) for k in self._fields]

    def _time(self, level: float) -> float:
        return float(self._composite.schedule.time(torch.tensor(-level, dtype=torch.float64)))

    def _coefficients(self, level: float) -> dict[str, _Coefficients]:
        """Of every field at the time when the clock's `log(σ/α)` is `level`."""
        t, composite = self._time(level), self._composite
        clock = _rate(Point.at(composite.schedule, t))
        out = {}
        for k, p in self._fields.items():
            at = Point.at(p.schedule, t)
            rho, std = at.sigma / at.alpha, self.std.get(k, 1.0)
            out[k] = _Coefficients(at.alpha, math.hypot(std, rho), std, _rate(at) / clock)
        return out

    def _mean(self, name: str) -> Number:
        return self.mean.get(name, 0.0)

    def _u(self, x: State, level: float, *, clean: bool = False) -> State:
        c = self._coefficients(level)
        return {
            k: p.project(
                (x[k] / (1.0 if clean else c[k].alpha) - self._mean(k)) / c[k].scale, self.layouts[k]
            )
            for k, p in self._fields.items()
        }

    def _x(self, u: State, rest: State, level: float, *, clean: bool = False) -> State:
        c = self._coefficients(level)
        moved = {
            k: p.project(
                (1.0 if clean else c[k].alpha) * (self._mean(k) + c[k].scale * u[k]), self.layouts[k]
            )
            for k, p in self._fields.items()
        }
        return {**rest, **moved}

    # -------------------------------------------------------------------------------------------------------- flow

    def _slope(
        self, u: State, rest: State, level: float, trace: Trace | None
    ) -> tuple[State, Tensor | float]:
        """`du/dℓ` and its divergence per sample."""
        c, fields = self._coefficients(level), self._fields
        with torch.set_grad_enabled(trace is not None):
            x = {k: v.detach() for k, v in self._x(u, rest, level).items()}
            if trace is not None:
                x = {k: v.requires_grad_() if k in fields else v for k, v in x.items()}
            like = next(iter(u.values()))
            batch = next(iter(self.layouts.values())).batch
            t = torch.full((batch,), self._time(level), dtype=like.dtype, device=like.device)
            estimate = self.denoiser(x, t, condition=self.condition, layouts=self.layouts)
            divergence: Tensor | float = 0.0
            if trace is not None:
                inputs = {k: x[k] for k in fields}
                for v in trace.probes(fields, self.layouts, u):
                    total = [
                        c[k].rate * c[k].alpha * _per_sample(self.layouts[k], estimate[k] * v[k]).sum()
                        for k in v
                    ]
                    gradients = torch.autograd.grad(
                        sum(total[1:], total[0]), list(inputs.values()), retain_graph=True, allow_unused=True
                    )
                    for k, g in zip(inputs, gradients, strict=True):
                        if k in v and g is not None:
                            both = 2 if isinstance(self.layouts[k], Pairs) else 1
                            divergence = divergence - both * _per_sample(self.layouts[k], g * v[k])
        slope = {}
        for k, p in fields.items():
            q, layout = c[k], self.layouts[k]
            still = (q.std / q.scale) ** 2
            pull = p.project(estimate[k].detach() - self._mean(k), layout)
            slope[k] = q.rate * (still * u[k] - pull / q.scale)
            if trace is not None:
                divergence = divergence + q.rate * still * p.dimensions(layout).to(u[k].dtype)
        return slope, divergence.detach() if isinstance(divergence, Tensor) else divergence

    @torch.no_grad()
    def _run(
        self, u: State, rest: State, *, forward: bool, trace: Trace | None = None
    ) -> tuple[State, Tensor]:
        """From one end to the other, and the integral of the divergence, `[B]`."""
        ends = [math.log(self.rho_min), math.log(self.rho_max)]
        start, stop = ends if forward else ends[::-1]
        h = (stop - start) / self.steps
        like = next(iter(u.values()))
        integral = like.new_zeros(next(iter(self.layouts.values())).batch)

        def moved(step: float, slope: State) -> State:
            return {k: v + step * slope[k] for k, v in u.items()}

        for i in range(self.steps):
            at = start + i * h
            k1, d1 = self._slope(u, rest, at, trace)
            k2, d2 = self._slope(moved(h / 2, k1), rest, at + h / 2, trace)
            k3, d3 = self._slope(moved(h / 2, k2), rest, at + h / 2, trace)
            k4, d4 = self._slope(moved(h, k3), rest, at + h, trace)
            u = {k: u[k] + h / 6 * (k1[k] + 2 * k2[k] + 2 * k3[k] + k4[k]) for k in u}
            integral = integral + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
        return u, integral


@dataclass(frozen=True)
class _Coefficients:
    """A field's `α`, `S`, `s` and `dℓ_field / dℓ_clock` at one time."""

    alpha: float
    scale: float
    std: float
    rate: float


def _rate(p: Point) -> float:
    """`dℓ/dt = σ′/σ − α′/α`."""
    return p.sigma_rate / p.sigma - p.alpha_rate / p.alpha


def _per_sample(layout: Layout, x: Tensor) -> Tensor:
    """The sum over a sample's rows and features, `[B]`."""
    return layout.sum(x).reshape(layout.batch, -1).sum(dim=1)

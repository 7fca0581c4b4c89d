"""Constraints: functions `(state, time) → state` that act on the state after each row of a plan.

They hold some elements where they must be and leave the rest to the sampler. `Inpaint` puts the known elements back at the
noise level of the moment; `Fixed` holds elements that are never noised. A constraint also takes the prior's state, so that
a run may start from `constraint(process.prior_state(…), 1.0)`. `Given` is a guide and no constraint: it corrects the
estimate, and leaves the state to the plan.

A field of zero centre of mass (`Gaussian(zero_com=True)`) has no absolute positions, so what is known of its rows `K` is
their shape, `y − ȳ`. The shape of `K` and everything else (the centroid of `K`, the other rows) are orthogonal parts of the
subspace, and noise is independent in the two: the shape can be held by itself, and the centroid of `K` is left to the
sampler, which finds with it where the centre of mass lies relative to `K`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from perrin.core.denoiser import Denoiser, check, passes
from perrin.core.layout import Dense, Layout, Layouts
from perrin.core.noise import Noise
from perrin.core.plan import Plan
from perrin.core.processes import Composite, Gaussian, Process, State
from perrin.core.sampling import Constraint


@dataclass(frozen=True)
class _At(Noise):
    """Another noise under names of its own, with a step that is a function of the time alone."""

    noise: Noise
    time: float

    def _step(self) -> int:
        return round(self.time * 2**31)

    def normal(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        return self.noise.normal(layout, features, field=f"{field}/inpaint", step=self._step())

    def uniform(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        return self.noise.uniform(layout, features, field=f"{field}/inpaint", step=self._step())


def _select(keep: Tensor, known: Tensor, x: Tensor) -> Tensor:
    if keep.dtype != torch.bool:
        raise TypeError(f"expected a bool mask, given {keep.dtype}")
    keep = keep.reshape(*keep.shape, *([1] * (x.ndim - keep.ndim)))
    return torch.where(keep, known.to(x.dtype), x)


def _zero_com(process: Process) -> bool:
    return isinstance(process, Gaussian) and process.zero_com


def _refuse_dense(name: str, process: Process, layout: Layout) -> None:
    if _zero_com(process) and isinstance(layout, Dense):
        raise ValueError(
            f"expected rows (Padded, Ragged) for field {name!r} of zero centre of mass, given a Dense layout"
        )


def _moved(known: Tensor, x: Tensor, keep: Tensor, layout: Layout) -> Tensor:
    """`known`, translated so that its rows `keep` have the centroid of those of `x`, sample by sample."""
    rows = keep.reshape(*keep.shape, *([1] * (x.ndim - keep.ndim)))
    apart = torch.where(rows, x - known, 0)
    shift = layout.sum(apart) / layout.sum(rows.to(x.dtype)).clamp(min=1)
    return known + layout._spread(shift, x)


@dataclass(frozen=True, kw_only=True, eq=False)
class Inpaint:
    """Hard inpainting by replacement: `x_s[keep] ← (α_s x_known + σ_s ξ)[keep]` (Song et al. 2021, appendix I.2).

    The noise is fresh at every time, a function of the sample's seed and the time. Any process serves: known elements are
    corrupted by its own `corrupt`, and are exact at t = 0.

    The rest never learns that the known elements are noisier copies of a fixed truth, so replacement alone is biased: of
    two numbers of correlation 0.8, one known to be 2, the other gets 0.95 ± 0.67 where 1.6 ± 0.6 is right (100 rows).
    `MMPS` with a `Mask` has no bias on such data.

    In a field of zero centre of mass the shape of the known rows is replaced and their centroid stays where it is (see the
    module): `x_s[keep] ← x̄_s + α_s (y − ȳ) + σ_s (ξ − ξ̄)`, bars for means over the known rows.

    Arguments:
        process: the composite of the state, or the process of the field `"x"`.
        known: clean values, by field; anything where `keep` is False. In any frame where only their shape matters.
        keep: bool, by field; the leading axes of the field (`[B, N]` holds whole rows, as zero centre of mass asks).
        noise: of the samples, such as the run's own.
        layouts: of the fields.
    """

    process: Process
    known: State
    keep: Mapping[str, Tensor]
    noise: Noise
    layouts: Layouts

    def __post_init__(self) -> None:
        for name in self.keep:
            _refuse_dense(name, self._field(name), self.layouts[name])

    def _field(self, name: str) -> Process:
        return self.process.fields[name] if isinstance(self.process, Composite) else self.process

    def __call__(self, x: State, time: float) -> State:
        out, noise = dict(x), _At(self.noise, time)
        for name, keep in self.keep.items():
            layout, clean = self.layouts[name], self.known[name]
            first = next(v for v in (x[name], *x.values(), torch.zeros(())) if v.is_floating_point())
            t = torch.full((layout.batch,), time, dtype=first.dtype, device=x[name].device)
            known = self._field(name).corrupt(clean, t, noise, layout, name=name)
            if _zero_com(self._field(name)):
                known = _moved(known, x[name], keep, layout)
            out[name] = _select(keep, known, x[name])
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Fixed:
    """Elements that keep their values at all times: `x[keep] ← values[keep]`, without noise.

    Right only for a model that was trained with them clean (a scaffold, a lead time, a boundary).

    Arguments:
        values: by field.
        keep: bool, by field; the leading axes of the field.
    """

    values: State
    keep: Mapping[str, Tensor]

    def __call__(self, x: State, time: float) -> State:
        return {**x, **{k: _select(keep, self.values[k], x[k]) for k, keep in self.keep.items()}}


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """A denoiser that has been told part of the answer: `D[keep] ← x_known[keep]`.

    The known elements then follow the exact bridge from their noise to their values, whatever the solver and its order, and
    arrive exactly; a network with self-conditioning is shown them clean. The law is that of `Inpaint` with one path of noise
    in place of fresh noise at each time, and so is the bias of the rest. With categories, some values can be ruled out
    and the others left to the denoiser.

    In a field of zero centre of mass the shape is told and the centroid of the known rows is the denoiser's.

    Arguments:
        denoiser: of the unconstrained data.
        process: the composite of the state.
        known: clean values, by field; anything where `keep` is False.
        keep: bool, by field; the leading axes of the field.
        allowed: bool, by categorical field, shaped as its logits: the categories that are not ruled out.
    """

    denoiser: Denoiser
    process: Composite
    known: State = field(default_factory=dict)
    keep: Mapping[str, Tensor] = field(default_factory=dict)
    allowed: Mapping[str, Tensor] = field(default_factory=dict)

    def check(self, plan: Plan) -> None:
        """As the denoiser."""
        check(self.denoiser, plan)

    @property
    def passes(self) -> int:
        """As the denoiser."""
        return passes(self.denoiser)

    def __call__(
        self, x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
    ) -> State:
        out = dict(self.denoiser(x, t, condition=condition, layouts=layouts, previous=previous))
        for name, keep in self.keep.items():
            process, layout = self.process.fields[name], layouts[name]
            _refuse_dense(name, process, layout)
            told = process.target(self.known[name], x[name], t, layout).to(out[name].dtype)
            if _zero_com(process):
                told = _moved(told, out[name], keep, layout)
            out[name] = _select(keep, told, out[name])
        for name, allowed in self.allowed.items():
            out[name] = out[name].masked_fill(~allowed, -torch.inf)
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown(Given):
    """As `Given`, and the denoiser is also shown what is known without noise, at every time.

    Of a Gaussian field's rows it sees `α_t x_known` (of zero centre of mass: that shape about the centroid in `x_t`), of
    categories of which one alone is allowed, that one. The denoiser was not trained on such a mixture of clean and noised
    elements, so this has no law to be exact for; but it no longer mistakes the noise of what is known for a reason to doubt
    it, which for a network is the larger error.
    """

    def __call__(
        self, x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
    ) -> State:
        seen = dict(x)
        for name, keep in self.keep.items():
            process, layout = self.process.fields[name], layouts[name]
            clean = self.known[name].to(x[name].dtype)
            if isinstance(process, Gaussian):
                clean = layout.expand(process.schedule.alpha(t), clean) * clean
            if _zero_com(process):
                clean = _moved(clean, x[name], keep, layout)
            seen[name] = _select(keep, clean, x[name])
        for name, allowed in self.allowed.items():
            seen[name] = torch.where(allowed.sum(-1) == 1, allowed.int().argmax(-1), seen[name])
        return super().__call__(seen, t, condition=condition, layouts=layouts, previous=previous)


def together(*constraints: Constraint) -> Constraint:
    """One constraint after the other."""

    def act(x: State, time: float) -> State:
        for constraint in constraints:
            x = constraint(x, time)
        return x

    return act

"""Constraints: functions `(state, time) → state` that act on the state after each row of a plan.

They hold some elements where they must be and leave the rest to the sampler. `Inpaint` puts the known elements back at the
noise level of the moment; `Fixed` holds elements that are never noised. A constraint also takes the prior's state, so that
a run may start from `constraint(process.prior_state(…), 1.0)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from perrin.core.layout import Layout, Layouts
from perrin.core.noise import Noise
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Inpaint:
    """Hard inpainting by replacement: `x_s[keep] ← (α_s x_known + σ_s ξ)[keep]` (Song et al. 2021, appendix I.2).

    The noise is fresh at every time, a function of the sample's seed and the time. Any process serves: known elements are
    corrupted by its own `corrupt`, and are exact at t = 0.

    The rest never learns that the known elements are noisier copies of a fixed truth, so replacement alone is biased: of
    two numbers of correlation 0.8, one known to be 2, the other gets 0.95 ± 0.67 where 1.6 ± 0.6 is right (100 rows).
    `MMPS` with a `Mask` has no bias on such data.

    Arguments:
        process: the composite of the state, or the process of the field `"x"`.
        known: clean values, by field; anything where `keep` is False.
        keep: bool, by field; the leading axes of the field (`[B, N]` holds whole rows).
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
            field = self._field(name)
            if isinstance(field, Gaussian) and field.zero_com:
                raise ValueError(
                    f"expected a field without a fixed centre of mass, but {name!r} has zero_com: what is known and what "
                    f"is not would drift apart; use a posterior guide with a Mask"
                )

    def _field(self, name: str) -> Process:
        return self.process.fields[name] if isinstance(self.process, Composite) else self.process

    def __call__(self, x: State, time: float) -> State:
        out, noise = dict(x), _At(self.noise, time)
        for name, keep in self.keep.items():
            layout, clean = self.layouts[name], self.known[name]
            first = next(v for v in (x[name], *x.values(), torch.zeros(())) if v.is_floating_point())
            t = torch.full((layout.batch,), time, dtype=first.dtype, device=x[name].device)
            known = self._field(name).corrupt(clean, t, noise, layout, name=name)
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


def together(*constraints: Constraint) -> Constraint:
    """One constraint after the other."""

    def act(x: State, time: float) -> State:
        for constraint in constraints:
            x = constraint(x, time)
        return x

    return act

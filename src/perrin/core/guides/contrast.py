"""Guides by contrast: a good estimate minus a worse one points towards what the worse one lacks.

Both guides here extrapolate from a reference estimate `D_0` to an estimate `D_1`,

    D = D_0 + w · (D_1 − D_0),

on posterior means and logits alike. `w = 1` is off. Between the two clean estimates this is the score's own rule
`s = s_0 + w (s_1 − s_0)`, because at one state and time the score is an affine function of the estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perrin.core.denoiser import Denoiser, check, passes
from perrin.core.layout import Layout, Layouts
from perrin.core.plan import Plan
from perrin.core.processes import State


def per_sample(x: Tensor, layout: Layout) -> Tensor:
    """The sum over all of a sample's elements, `[B]`."""
    total = layout.sum(x)
    return total.reshape(total.shape[0], -1).sum(dim=1)


def sample_std(x: Tensor, layout: Layout) -> Tensor:
    """The standard deviation over all of a sample's elements (padding left out), `[B]`."""
    one = per_sample(torch.ones_like(x), layout).clamp(min=1)
    mean = per_sample(x, layout) / one
    return (per_sample((x - layout.expand(mean, x)).square(), layout) / one).sqrt()


def extrapolate(
    reference: State,
    estimate: State,
    x: State,
    t: Tensor,
    layouts: Layouts,
    *,
    scale: float,
    interval: tuple[float, float],
    rescale: float = 0.0,
) -> State:
    """`D_0 + w (D_1 − D_0)`, with `w = 1` outside the interval; see `ClassifierFree` for the arguments."""
    inside = (t >= interval[0]) & (t <= interval[1])
    w = torch.where(inside, torch.full_like(t, scale), torch.ones_like(t))
    out: State = {}
    for k, good in estimate.items():
        layout = layouts[k]
        guided = reference[k] + layout.expand(w, good) * (good - reference[k])
        if rescale and x[k].is_floating_point():  # logits have no scale to keep
            ratio = sample_std(good, layout) / sample_std(guided, layout).clamp(min=1e-12)
            guided = guided * layout.expand(1 + rescale * (ratio - 1), guided)
        out[k] = guided
    return out


def _valid(interval: tuple[float, float], rescale: float = 0.0) -> None:
    if not interval[0] <= interval[1]:
        raise ValueError(f"expected an interval (low, high) of times, given {interval}")
    if not 0 <= rescale <= 1:
        raise ValueError(f"expected 0 ≤ rescale ≤ 1, given {rescale}")


@dataclass(frozen=True, kw_only=True)
class ClassifierFree:
    """Classifier-free guidance (Ho and Salimans 2022): `D = D_∅ + scale · (D_c − D_∅)`, on logits alike.

    `scale = 1` is off: use `classifier_free`, which then returns the denoiser itself and costs nothing.

    Arguments:
        denoiser: evaluated with the condition and with `null`.
        scale: 0 ignores the condition, 1 is the plain conditional model, above 1 exaggerates it.
        null: what stands for "no condition".
        interval: times between which to guide (Kynkäänniemi et al. 2024); elsewhere the scale is 1.
        rescale: `φ` in `D ← (1 − φ) D + φ D std(D_c) / std(D)` (Lin et al. 2024, eq. 15–16), with a standard deviation per
            sample over its own elements; real fields only.
    """

    denoiser: Denoiser
    scale: float
    null: Any = None
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    def __post_init__(self) -> None:
        _valid(self.interval, self.rescale)

    @property
    def passes(self) -> int:
        """Two evaluations of the denoiser."""
        return 2 * passes(self.denoiser)

    def check(self, plan: Plan) -> None:
        """Whatever the denoiser has against the plan."""
        check(self.denoiser, plan)

    def __call__(
        self, x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
    ) -> State:
        given = self.denoiser(x, t, condition=condition, layouts=layouts, previous=previous)
        free = self.denoiser(x, t, condition=self.null, layouts=layouts, previous=previous)
        return extrapolate(
            free, given, x, t, layouts, scale=self.scale, interval=self.interval, rescale=self.rescale
        )


def classifier_free(
    denoiser: Denoiser,
    scale: float,
    *,
    null: Any = None,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: float = 0.0,
) -> Denoiser:
    """The guided denoiser, or the denoiser itself when `scale == 1`."""
    if scale == 1:
        return denoiser
    return ClassifierFree(denoiser=denoiser, scale=scale, null=null, interval=interval, rescale=rescale)


@dataclass(frozen=True, kw_only=True)
class AutoGuidance:
    """A model guided by a weaker version of itself: `D = D_weak + scale · (D_good − D_weak)` (Karras et al. 2024).

    The weak model (smaller, or trained less) must make the same kind of errors, only larger. Diversity over conditions is
    kept, which classifier-free guidance loses.

    Arguments:
        denoiser: the good model.
        weak: the weaker one, given the same condition.
        scale: 1 is the good model alone (and still costs the weak evaluation), above 1 moves away from the weak one.
        interval: times between which to guide; elsewhere the scale is 1.
    """

    denoiser: Denoiser
    weak: Denoiser
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        _valid(self.interval)

    @property
    def passes(self) -> int:
        """One evaluation of each model."""
        return passes(self.denoiser) + passes(self.weak)

    def check(self, plan: Plan) -> None:
        """Whatever either denoiser has against the plan."""
        check(self.denoiser, plan)
        check(self.weak, plan)

    def __call__(
        self, x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
    ) -> State:
        good = self.denoiser(x, t, condition=condition, layouts=layouts, previous=previous)
        weak = self.weak(x, t, condition=condition, layouts=layouts, previous=previous)
        return extrapolate(weak, good, x, t, layouts, scale=self.scale, interval=self.interval)

"""Guides: functions from denoiser to denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perrin.core.denoiser import Denoiser, check
from perrin.core.layout import Layouts
from perrin.core.plan import Plan
from perrin.core.processes import State


@dataclass(frozen=True, kw_only=True)
class ClassifierFree:
    """Classifier-free guidance (Ho and Salimans 2022): `D = D_∅ + scale · (D_c − D_∅)`, on logits alike.

    `scale = 1` is off: use `classifier_free`, which then returns the denoiser itself and costs nothing.

    Arguments:
        denoiser: evaluated with the condition and with `null`.
        scale: 0 ignores the condition, 1 is the plain conditional model, above 1 exaggerates it.
        null: what stands for "no condition".
        interval: times between which to guide (Kynkäänniemi et al. 2024); elsewhere the scale is 1.
    """

    denoiser: Denoiser
    scale: float
    null: Any = None
    interval: tuple[float, float] = (0.0, 1.0)

    def check(self, plan: Plan) -> None:
        """Whatever the denoiser has against the plan."""
        check(self.denoiser, plan)

    def __call__(
        self, x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
    ) -> State:
        given = self.denoiser(x, t, condition=condition, layouts=layouts, previous=previous)
        free = self.denoiser(x, t, condition=self.null, layouts=layouts, previous=previous)
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        scale = torch.where(inside, torch.full_like(t, self.scale), torch.ones_like(t))
        return {k: free[k] + layouts[k].expand(scale, free[k]) * (given[k] - free[k]) for k in given}


def classifier_free(
    denoiser: Denoiser, scale: float, *, null: Any = None, interval: tuple[float, float] = (0.0, 1.0)
) -> Denoiser:
    """The guided denoiser, or the denoiser itself when `scale == 1`."""
    if scale == 1:
        return denoiser
    return ClassifierFree(denoiser=denoiser, scale=scale, null=null, interval=interval)

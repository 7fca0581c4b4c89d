"""Power-function averages of weights, and averages of any width after training (Karras et al. 2024, EDM2, section 3).

After step t the average with exponent γ is

    θ̂_t = ∫_0^t p_{t,γ}(τ) θ(τ) dτ,    p_{t,γ}(τ) = (γ + 1) τ^γ / t^{γ+1},

which needs no warm-up and forgets at a rate proportional to the time trained: `θ̂ ← β θ̂ + (1 − β) θ` with
`β = (1 − 1/t)^{γ+1}`. Its relative width, the standard deviation of p over t, is

    σ_rel = √((γ + 1) / ((γ + 2)² (γ + 3))).

A run keeps two averages, of widths 0.05 and 0.10, and saves snapshots of both. Any other width is then the combination
`Σ_i x_i θ̂_i` of snapshots whose profile is nearest to the wanted one in least squares: `A x = b` with `A_ij = ⟨p_i, p_j⟩`,
`b_i = ⟨p_i, p⟩` and, for `m = min(t_i, t_j)`,

    ⟨p_i, p_j⟩ = (γ_i + 1)(γ_j + 1) / (γ_i + γ_j + 1) · m^{γ_i + γ_j + 1} / (t_i^{γ_i + 1} t_j^{γ_j + 1}).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WIDTHS = (0.05, 0.10)
"""The widths that a run tracks."""

_LARGEST = 1 / math.sqrt(12)  # γ = 0: the plain mean


def exponent(width: float) -> float:
    """`γ ≥ 0` of the relative width `σ_rel`, in (0, 0.288]."""
    if not 0 < width <= _LARGEST + 1e-12:
        raise ValueError(f"expected a relative width in (0, {_LARGEST:.4f}], given {width}")
    low, high = 0.0, 2 / width  # σ_rel falls with γ, and is below 1/γ
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if relative_width(middle) > width else (low, middle)
    return (low + high) / 2


def relative_width(gamma: float) -> float:
    """`σ_rel` of the exponent γ."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def decay(step: int, gamma: float) -> float:
    """`β` of the update that makes `θ̂` after step `step` (1, 2, …); 0 at the first, which copies the weights."""
    if step < 1:
        raise ValueError(f"expected a step of at least 1, given {step}")
    return (1 - 1 / step) ** (gamma + 1)


class PowerAverage:
    """Running averages of a model's parameters, one for each width. The step is an argument; nothing is counted here.

    Arguments:
        parameters: by name, `dict(model.named_parameters())`. Floating-point ones are averaged, in float32 at least.
        widths: `σ_rel` of each average.
    """

    def __init__(self, parameters: Mapping[str, Tensor], widths: Sequence[float] = WIDTHS) -> None:
        self.widths = tuple(widths)
        self.gammas = tuple(exponent(w) for w in self.widths)
        self.averages: list[dict[str, Tensor]] = [
            {k: _wide(v) for k, v in parameters.items() if v.is_floating_point()} for _ in self.widths
        ]

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Take in the weights after step `step` (1, 2, …)."""
        for gamma, average in zip(self.gammas, self.averages, strict=True):
            live = [parameters[k].detach().to(v.dtype) for k, v in average.items()]
            torch._foreach_lerp_(list(average.values()), live, 1 - decay(step, gamma))

    def snapshots(self, step: int) -> list[Snapshot]:
        """Copies of the averages, to be kept."""
        return [
            Snapshot(step=step, width=width, weights={k: v.clone() for k, v in average.items()})
            for width, average in zip(self.widths, self.averages, strict=True)
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """An average of width `width` after step `step`."""

    step: int
    width: float
    weights: Mapping[str, Tensor]


def inner(t_i: Tensor, gamma_i: Tensor, t_j: Tensor, gamma_j: Tensor) -> Tensor:
    """`⟨p_i, p_j⟩`, by logarithms, because `t^{γ+1}` overflows; arguments are float64 and broadcast."""
    total = gamma_i + gamma_j + 1
    power = total * torch.log(torch.minimum(t_i, t_j)) - (gamma_i + 1) * t_i.log() - (gamma_j + 1) * t_j.log()
    return (gamma_i + 1) * (gamma_j + 1) / total * torch.exp(power)


def coefficients(
    steps: Sequence[int], widths: Sequence[float], *, step: int, width: float
) -> tuple[Tensor, float]:
    """The weights `x_i` of the snapshots, `[n]` in float64, and the relative error `|Σ x_i p_i − p| / |p|` of the profile.

    Arguments:
        steps, widths: of the snapshots.
        step, width: of the average wanted; snapshots after `step` are of little use to it.
    """
    t = torch.tensor([float(s) for s in steps], dtype=torch.float64)
    gamma = torch.tensor([exponent(w) for w in widths], dtype=torch.float64)
    end, g = (torch.tensor(v, dtype=torch.float64) for v in (float(step), exponent(width)))
    a, b = inner(t[:, None], gamma[:, None], t, gamma), inner(t, gamma, end, g)
    scale = a.diagonal().sqrt()  # profiles of unit norm: better conditioned
    solved = torch.linalg.lstsq(a / scale / scale[:, None], (b / scale)[:, None], driver="gelsd").solution[
        :, 0
    ]
    x, norm = solved / scale, inner(end, g, end, g)
    gap = (x @ a @ x - 2 * x @ b + norm) / norm
    return x, math.sqrt(max(0.0, float(gap)))


def reconstruct(snapshots: Sequence[Snapshot], *, width: float, step: int | None = None) -> dict[str, Tensor]:
    """The average of relative width `width` after step `step` (the last snapshot's by default), by name."""
    if not snapshots:
        raise ValueError("expected at least one snapshot, given none")
    end = max(s.step for s in snapshots) if step is None else step
    x, _ = coefficients([s.step for s in snapshots], [s.width for s in snapshots], step=end, width=width)
    out: dict[str, Tensor] = {}
    for name, first in snapshots[0].weights.items():
        total = sum((c * s.weights[name].double() for c, s in zip(x.tolist(), snapshots)), torch.zeros(()))
        out[name] = total.to(first.dtype)
    return out


@torch.no_grad()
def load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy averaged weights into a model's parameters."""
    for name, p in model.named_parameters():
        if name in weights:
            p.copy_(weights[name])


def track(parameters: Iterable[Tensor], width: float) -> Tensor:
    """The average of a whole trajectory `θ(1), θ(2), …` at once; for tests and small studies."""
    gamma, out = exponent(width), torch.zeros(())
    for step, theta in enumerate(parameters, start=1):
        out = torch.lerp(torch.zeros_like(theta) if step == 1 else out, theta, 1 - decay(step, gamma))
    return out


def _wide(v: Tensor) -> Tensor:
    return v.detach().to(torch.promote_types(v.dtype, torch.float32)).clone()

"""Training losses: corrupt, denoise, compare with the truth.

For a Gaussian field the loss is `w(t) |D − x_0|²`, averaged over the sample's elements; for a categorical one the cross
entropy. With the head's own weight (the default) it is uniform in the network's output, which for `EDMHead` is EDM's
weighting and for `PredictionHead(FLOW)` is flow matching.

A weighting is always that of the clean-data error, whatever the network predicts, because `|y − ŷ|² = (det/σ)² |x_0 −
D|²` with the prediction's determinant. So the loss of each prediction in the literature is a weighting here:

| weighting | `w(t)` |
| --- | --- |
| `uniform()` | `1` |
| `in_prediction(p)` | `(α b − σ a)² / σ²`: plain squared error of eps (`SNR`), v, flow, … |
| `min_snr(γ)` | `min(SNR, γ)` |
| `edm(σ_d)` | `(σ̃² + σ_d²) / (σ̃ σ_d)²`, `σ̃ = σ/α` |
| `in_snr(w)` | `½ SNR · w(ℓ) · |dℓ/dt|` with `ℓ = log SNR = 2 λ`: the same integral over ℓ for every schedule |

`in_snr` is the invariant form of Kingma and Gao (2023, eq. 6), `½ ∫ w(ℓ) |ε − ε̂|² dℓ`, with `cosine_weight`,
`logit_normal_weight` or `edm_weight` for `w`. Times may instead be drawn with a density (`sample_times`,
`sample_times_edm`); a density of times and a weight of the same shape have the same expected loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from perrin.core.denoiser import Denoiser, NetworkDenoiser
from perrin.core.layout import Layout, Layouts
from perrin.core.predictions import Prediction
from perrin.core.processes import Categorical, State
from perrin.core.schedules import Schedule

Weighting = Callable[[Tensor, Schedule], Tensor]


def min_snr(gamma: float = 5.0) -> Weighting:
    """`min(SNR, γ)` on the clean-data error (Hang et al. 2023)."""

    def weight(t: Tensor, schedule: Schedule) -> Tensor:
        return (schedule.alpha(t) / schedule.sigma(t)).square().clamp(max=gamma)

    return weight


def uniform() -> Weighting:
    """The clean-data error itself."""
    return lambda t, schedule: torch.ones_like(t)


def in_prediction(prediction: Prediction) -> Weighting:
    """The plain squared error of a prediction, `|y − ŷ|² = ((α b − σ a)/σ)² |x_0 − D|²`: of eps it is the SNR, of x0 it
    is 1."""

    def weight(t: Tensor, schedule: Schedule) -> Tensor:
        return (prediction.determinant(schedule, t) / schedule.sigma(t)).square()

    return weight


def edm(sigma_data: float = 0.5) -> Weighting:
    """`(σ̃² + σ_d²) / (σ̃ σ_d)²`, `σ̃ = σ/α` (Karras et al. 2022, table 1): where `α = 1`, what `EDMHead` asks for."""

    def weight(t: Tensor, schedule: Schedule) -> Tensor:
        ratio = (schedule.sigma(t) / schedule.alpha(t)).square()
        return (ratio + sigma_data**2) / (ratio * sigma_data**2)

    return weight


def in_snr(w: Callable[[Tensor], Tensor]) -> Weighting:
    """`½ SNR · w(ℓ) · |dℓ/dt|`, `ℓ = log SNR`, so that the mean over uniform t is `½ ∫ w(ℓ) |ε − ε̂|² dℓ` for any schedule.

    Kingma and Gao 2023, "Understanding diffusion objectives as the ELBO with simple data augmentation", eq. 6.
    """

    def weight(t: Tensor, schedule: Schedule) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        rate = 2 * (schedule.alpha_rate(t) / alpha - schedule.sigma_rate(t) / sigma)
        return 0.5 * (alpha / sigma).square() * w(2 * schedule.lam(t)) * rate.abs()

    return weight


def cosine_weight(log_snr: Tensor) -> Tensor:
    """`sech(ℓ/2) / π`: the plain eps error with the cosine schedule and uniform times (Nichol and Dhariwal 2021)."""
    return 1 / (math.pi * torch.cosh(log_snr / 2))


def logit_normal_weight(mean: float = 0.0, std: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Rectified flow with `logit t ~ N(mean, std²)` (Esser et al. 2024): flow matching's `e^{−ℓ/2}` over uniform t, tilted.

    On a rectified flow `ℓ = −2 logit t`, `|v − v̂|² = |ε − ε̂|² / (1 − t)²`, and the density of ℓ is normal with mean
    `−2 mean` and standard deviation `2 std`, so `w(ℓ) = 2 N(ℓ; −2 mean, 4 std²) (1 + e^{−ℓ/2})²`.
    """

    def w(log_snr: Tensor) -> Tensor:
        density = torch.exp(-0.5 * ((log_snr + 2 * mean) / (2 * std)).square())
        return 2 * density / (2 * std * (2 * math.pi) ** 0.5) * (1 + torch.exp(-log_snr / 2)).square()

    return w


def edm_weight(mean: float = -1.2, std: float = 1.2, sigma_data: float = 0.5) -> Callable[[Tensor], Tensor]:
    """EDM's noise levels `ln σ̃ ~ N(mean, std²)` and its weighting together: `2 N(ℓ; −2 mean, 4 std²) (e^{−ℓ} + σ_d²) /
    σ_d²`."""

    def w(log_snr: Tensor) -> Tensor:
        density = torch.exp(-0.5 * ((log_snr + 2 * mean) / (2 * std)).square()) / (
            2 * std * (2 * math.pi) ** 0.5
        )
        return 2 * density * (torch.exp(-log_snr) + sigma_data**2) / sigma_data**2

    return w


def sample_times(u: Tensor, *, distribution: str = "uniform", low: float = 1e-3, high: float = 1.0) -> Tensor:
    """Training times from uniform numbers `[B]`.

    Arguments:
        distribution: `uniform`; `low_noise` is Beta(1, 2) reflected towards the data, density `2 (1 − t)`; `logit_normal`;
            `cosine`, the times of a rectified flow that have the signal-to-noise ratios of the cosine schedule at uniform
            times, `t = sin θ / (sin θ + cos θ)`, `θ = π u / 2`.
        low, high: the ends of the range.
    """
    if distribution == "uniform":
        t = u
    elif distribution == "low_noise":
        t = 1 - torch.sqrt(1 - u)
    elif distribution == "logit_normal":
        t = torch.sigmoid(torch.erfinv((2 * u - 1).clamp(-1 + 1e-6, 1 - 1e-6)) * 2**0.5)
    elif distribution == "cosine":
        theta = 0.5 * math.pi * u
        t = torch.sin(theta) / (torch.sin(theta) + torch.cos(theta))
    else:
        raise ValueError(
            f"expected 'uniform', 'low_noise', 'logit_normal' or 'cosine', given {distribution!r}"
        )
    return low + (high - low) * t


def sample_times_edm(
    u: Tensor,
    schedule: Schedule,
    *,
    mean: float = -1.2,
    std: float = 1.2,
    low: float = 1e-3,
    high: float = 1.0,
) -> Tensor:
    """Training times with `ln(σ/α) ~ N(mean, std²)` (Karras et al. 2022), from uniform numbers `[B]`; clamped to [low,
    high].

    On a rectified flow that is logit-normal, with `logit t ~ N(mean, std²)`.
    """
    z = torch.erfinv((2 * u - 1).clamp(-1 + 1e-6, 1 - 1e-6)) * 2**0.5
    return schedule.time(-(mean + std * z)).clamp(low, high)


def stratified(u: Tensor) -> Tensor:
    """Uniform numbers spread evenly over the batch: `(i + u_0) / B mod 1` from one number. Lowers the loss's variance."""
    n = u.shape[0]
    return (torch.arange(n, device=u.device, dtype=u.dtype) / n + u[0]) % 1.0


def self_conditioned(
    denoiser: Denoiser,
    x_t: State,
    t: Tensor,
    *,
    own: bool,
    layouts: Layouts,
    condition: Any = None,
) -> State:
    """An estimate for training with self-conditioning (Chen et al. 2023): made twice if `own`, the second time with the
    first.

    No gradient flows through the first. Take `own` in half of the steps, the same on every rank, and hand `sample`
    `self_condition=True`.
    """
    previous: State | None = None
    if own:
        with torch.no_grad():
            first = denoiser(x_t, t, condition=condition, layouts=layouts, previous=None)
            previous = {k: v.detach() for k, v in first.items()}
    return denoiser(x_t, t, condition=condition, layouts=layouts, previous=previous)


@dataclass(frozen=True, kw_only=True)
class DenoisingLoss:
    """The weighted sum of the fields' losses.

    Arguments:
        field_weights: factor for each field; 1 where not named.
        weightings: a weighting of Gaussian fields in place of the head's own.
        cap: the largest weight, which keeps the smallest times from dominating.
    """

    field_weights: Mapping[str, float] = field(default_factory=dict)
    weightings: Mapping[str, Weighting] = field(default_factory=dict)
    cap: float = float("inf")

    def __call__(
        self, denoiser: NetworkDenoiser, x_0: State, estimate: State, t: Tensor, layouts: Layouts
    ) -> dict[str, Tensor]:
        """`{"loss": total, field: its part, …}`, each the mean over the batch, for an estimate made at time `t`.

        `x_0` holds what the estimate should be: the clean fields, or for a field on a torus or of rotations
        `process.target(x_0, x_t, t, layout)`. A field without estimate (a condition) has no part.
        """
        parts: dict[str, Tensor] = {}
        for name, process in denoiser.process.fields.items():
            if name not in estimate:
                continue
            if isinstance(process, Categorical):
                per_sample = categorical_error(x_0[name], estimate[name], layouts[name])
            else:
                per_sample = squared_error(x_0[name], estimate[name], layouts[name])
                weighting = self.weightings.get(name, denoiser.heads[name].weight)
                per_sample = per_sample * weighting(t, process.schedule).clamp(max=self.cap)
            parts[name] = per_sample.mean()
        total = sum(
            (self.field_weights.get(k, 1.0) * v for k, v in parts.items()), torch.zeros((), device=t.device)
        )
        return {"loss": total, **parts}


def squared_error(x_0: Tensor, estimate: Tensor, layout: Layout) -> Tensor:
    """Mean squared error per sample, `[B]`."""
    mean = layout.mean((estimate - x_0).square())
    return mean.reshape(mean.shape[0], -1).mean(dim=1)


def categorical_error(x_0: Tensor, logits: Tensor, layout: Layout) -> Tensor:
    """Mean cross entropy per sample, `[B]`, in nats."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nll = -torch.log_softmax(wide, dim=-1).gather(-1, x_0.unsqueeze(-1)).squeeze(-1)
    mean = layout.mean(nll)
    return mean.reshape(mean.shape[0], -1).mean(dim=1)

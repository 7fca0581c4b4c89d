"""Training losses: corrupt, denoise, compare with the truth.

For a Gaussian field the loss is `w(t) |D − x_0|²`, averaged over the sample's elements; for a categorical one the cross
entropy. With the head's own weight (`weighting="network"`) it is uniform in the network's output, which for `EDMHead` is
EDM's weighting and for `PredictionHead(FLOW)` is flow matching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from perrin.core.denoiser import NetworkDenoiser
from perrin.core.layout import Layout, Layouts
from perrin.core.processes import Categorical, State
from perrin.core.schedules import Schedule

Weighting = Callable[[Tensor, Schedule], Tensor]


def min_snr(gamma: float = 5.0) -> Weighting:
    """`min(SNR, γ)` on the clean-data error (Hang et al. 2023)."""

    def weight(t: Tensor, schedule: Schedule) -> Tensor:
        return (schedule.alpha(t) / schedule.sigma(t)).square().clamp(max=gamma)

    return weight


def sample_times(u: Tensor, *, distribution: str = "uniform", low: float = 1e-3, high: float = 1.0) -> Tensor:
    """Training times from uniform numbers `[B]`.

    Arguments:
        distribution: `uniform`; `low_noise` is Beta(1, 2) reflected towards the data, density `2 (1 − t)`; `logit_normal`.
        low, high: the ends of the range.
    """
    if distribution == "uniform":
        t = u
    elif distribution == "low_noise":
        t = 1 - torch.sqrt(1 - u)
    elif distribution == "logit_normal":
        t = torch.sigmoid(torch.erfinv((2 * u - 1).clamp(-1 + 1e-6, 1 - 1e-6)) * 2**0.5)
    else:
        raise ValueError(f"expected 'uniform', 'low_noise' or 'logit_normal', given {distribution!r}")
    return low + (high - low) * t


def stratified(u: Tensor) -> Tensor:
    """Uniform numbers spread evenly over the batch: `(i + u_0) / B mod 1` from one number. Lowers the loss's variance."""
    n = u.shape[0]
    return (torch.arange(n, device=u.device, dtype=u.dtype) / n + u[0]) % 1.0


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
        """`{"loss": total, field: its part, …}`, each the mean over the batch, for an estimate made at time `t`."""
        parts: dict[str, Tensor] = {}
        for name, process in denoiser.process.fields.items():
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

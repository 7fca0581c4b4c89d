"""Fields of a flow from sparse or blurred measurements, by the core's posterior guides.

The measured encoded field is `e(ω′) = e(ω) + s x` for the change x that the model samples, so a measurement `A e(ω′) + n` of
noise `τ` is one of x: `y = (A e(ω′) + n − A e(ω))/s = A x + n/s`. A flow's vorticity is measured itself, a density by its
`ln(ρ + 0.1)`. The guide is MMPS with a single iteration: the derivative of a trained network is
not quite symmetric, and more iterations of conjugate gradients then grow its error (measured: 1 is stable, 5 are not). The
sampler is stochastic, which forgets such errors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from perrin.core import CounterNoise, Denoiser, Dense, NetworkDenoiser, sample_seeds
from perrin.core.guides.operators import Blur, LinearOperator, Mask
from perrin.core.guides.posterior import MMPS, Measurement
from perrin.modalities.particle.flow.model import CHANGE, FlowModel
from perrin.modalities.particle.staged import SamplingOptions


def operator(size: int, every: int, blur: float | None) -> LinearOperator:
    """Every n-th point in both directions, or all of them blurred by a Gaussian of that width in points."""
    if blur is not None:
        return Blur.gaussian(blur, min(int(3 * blur) + 1, (size - 1) // 2))
    keep = torch.zeros(1, size, size, dtype=torch.bool)
    keep[:, ::every, ::every] = True
    return Mask(keep)


def posterior(
    model: FlowModel,
    before: Tensor,
    truth: Tensor,
    seeds: Tensor,
    numbers: Tensor,
    options: SamplingOptions,
    *,
    every: int,
    blur: float | None,
    noise: float,
    seed: int,
) -> Tensor:
    """Draws of the field given the one before and a measurement that is made here of the truth.

    Arguments:
        before, truth: `[B, n, n]`.
        seeds: of the draws.
        numbers: of the fields, `[B]`: draws of one field share its measurement's noise.
        noise: τ, in units of the encoded field's standard deviation.
    """
    c = model.config
    a = operator(c.size, every, blur)
    std = noise * c.scale / c.change
    shape = (1, c.size, c.size)
    error = CounterNoise(sample_seeds(seed, numbers)).normal(
        Dense(len(before)), shape, field="measured", step=0
    )
    y = a(((c.kind.encode(truth) - c.kind.encode(before)) / c.change).unsqueeze(1)) + std * a_seen(a, error)
    measurement = Measurement(operator=a, y=y.to(model.device), std=std)
    schedule = model.network.process.fields[CHANGE].schedule

    def guided(denoiser: NetworkDenoiser) -> Denoiser:
        return MMPS(denoiser=denoiser, schedule=schedule, measurement=measurement, field=CHANGE, iterations=1)

    make: Callable[[NetworkDenoiser], Denoiser] = guided
    return model.next(before, seeds, options, make)


def a_seen(a: LinearOperator, error: Tensor) -> Tensor:
    """The measurement's error: at the seen points of a mask, everywhere else."""
    return a(error) if isinstance(a, Mask) else error

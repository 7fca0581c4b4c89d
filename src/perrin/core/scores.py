"""Fair scores of ensembles, on tensors: what generative models of any field are judged by.

    fair CRPS    (1/M) Σ|x_i − y| − (1/2M(M−1)) ΣΣ|x_i − x_j|

is unbiased for the distribution that the M members were drawn from, so that ensembles of different sizes can be compared; a
single member's is its absolute error.

References: Ferro 2014, "Fair scores for ensemble forecasts"; Zamo and Naveau 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fair_crps(members: Tensor, truth: Tensor) -> Tensor:
    """The fair CRPS at each place, in the unit of the field.

    Arguments:
        members: `[M, ...]`.
        truth: `[...]`.
    """
    count = len(members)
    error = members - truth
    distance = error.abs().mean(0)
    if count == 1:
        return distance
    weight = 2.0 * torch.arange(1, count + 1, dtype=error.dtype, device=error.device) - count - 1
    pairs = 2 * torch.tensordot(weight, error.sort(dim=0).values, dims=1)
    return distance - pairs / (2 * count * (count - 1))

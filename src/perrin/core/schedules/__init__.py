"""Schedules: `x_t = α_t x_0 + σ_t z` for `t ∈ [0, 1]`, 0 is data and 1 is noise.

A schedule gives `α_t` and `σ_t`, their rates `α′_t` and `σ′_t` in closed form, `λ_t = log(α_t / σ_t)` and its inverse
`t(λ)`. Plans are made in float64 on the CPU, so the methods take and return tensors of any floating dtype.
"""

from perrin.core.schedules.base import Schedule
from perrin.core.schedules.closed import (
    EDM,
    VE,
    Cosine,
    LinearVP,
    Polynomial,
    Power,
    RectifiedFlow,
    ScaledLinear,
)
from perrin.core.schedules.discrete import Discrete, cosine_betas, linear_betas, scaled_linear_betas
from perrin.core.schedules.wrapped import Shifted, ZeroTerminalSNR

SCHEDULES: dict[str, type[Schedule]] = {
    "linear_vp": LinearVP,
    "scaled_linear": ScaledLinear,
    "cosine": Cosine,
    "polynomial": Polynomial,
    "ve": VE,
    "edm": EDM,
    "rectified_flow": RectifiedFlow,
    "power": Power,
    "discrete": Discrete,
    "shifted": Shifted,
    "zero_terminal_snr": ZeroTerminalSNR,
}
"""Schedules by the name that configuration files use."""

__all__ = [
    "EDM",
    "SCHEDULES",
    "VE",
    "Cosine",
    "Discrete",
    "LinearVP",
    "Polynomial",
    "Power",
    "RectifiedFlow",
    "ScaledLinear",
    "Schedule",
    "Shifted",
    "ZeroTerminalSNR",
    "cosine_betas",
    "linear_betas",
    "scaled_linear_betas",
]

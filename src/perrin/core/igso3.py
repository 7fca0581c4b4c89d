"""IGSO(3): the heat kernel of rotations, what Brownian motion with variance `ε²` per axis (radians²) makes of the identity.

With respect to the uniform distribution its density depends on the angle ω only (Nikolayev and Savyolova 1997; Leach et al.
2022):

    f(ω; ε) = Σ_l (2l + 1) e^{−l (l + 1) ε² / 2} sin((l + ½) ω) / sin(ω / 2),     E[1 + 2 cos ω] = 3 e^{−ε²},

and ω itself has the density `f(ω) (1 − cos ω) / π`. For small ε the series is slow, and its Poisson sum, the heat kernel
with windings, is fast (both are exact):

    f(ω; ε) = √(2π) ε⁻³ e^{ε²/8} Σ_k (−1)^k (ω + 2πk) e^{−(ω + 2πk)² / 2ε²} / sin(ω / 2).

At `ε = 1`, where they are exchanged, ten terms of the first and windings −1, 0, 1 of the second reach 1e-16. Everything is
computed in float64 and elementwise; ε broadcasts against ω.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SWITCH = 1.0
_DEGREE = 9  # of the series at ε ≥ 1: 21 e^{−55} is left out
_MOMENTS = 12  # terms of sin(y/2) in the distribution function at ε ≤ 1: 8^{−12} / 12! is left out
_NEWTON = 8


def _split(omega: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    omega, eps = torch.broadcast_tensors(omega.double(), eps.double())
    return omega, eps.clamp(min=1e-6, max=_SWITCH), eps.clamp(min=_SWITCH), eps < _SWITCH


def _series(eps: Tensor) -> tuple[Tensor, Tensor]:
    """`a_l = (2l + 1) e^{−l(l+1)ε²/2}` and `c_m` of `f = Σ_m c_m cos mω`, both `[..., L + 1]`."""
    l = torch.arange(_DEGREE + 1, device=eps.device, dtype=eps.dtype)
    a = (2 * l + 1) * torch.exp(-0.5 * l * (l + 1) * eps[..., None] ** 2)
    tail = a.flip(-1).cumsum(-1).flip(-1)
    return a, torch.cat((tail[..., :1], 2 * tail[..., 1:]), dim=-1)


def _windings(omega: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """`B`, the sum over windings divided by its term k = 0, and `B′ / (B ω)`."""
    w = omega.clamp(min=1e-3)  # B is even in ω and 1 to 1e-7 there
    a = 2 * math.pi / eps**2
    g, h = torch.exp(-a * (math.pi - w)), torch.exp(-a * (math.pi + w))
    e = g * -torch.expm1(-2 * a * w) / w  # (g − h)/ω
    b = 1 - (g + h) + 2 * math.pi * e
    rate = -a * (g - h) + 2 * math.pi * (a * (g + h) - e) / w
    return b, rate / (b * w)


def log_density(omega: Tensor, eps: Tensor) -> Tensor:
    """`log f(ω; ε)` with respect to the uniform distribution, in nats, for `ω ∈ [0, π]` and `ε > 0`."""
    omega, near, far, small = _split(omega, eps)
    sinc = torch.where(omega > 0, torch.sin(omega / 2) / (omega / 2).clamp(min=1e-30), 1)
    scale = math.log(2 * math.sqrt(2 * math.pi)) - 3 * torch.log(near) + near**2 / 8
    heat = scale - torch.log(sinc) - 0.5 * (omega / near) ** 2 + torch.log(_windings(omega, near)[0])
    c = _series(far)[1]
    m = torch.arange(_DEGREE + 1, device=omega.device, dtype=omega.dtype)
    series = torch.log((c * torch.cos(m * omega[..., None])).sum(-1))
    return torch.where(small, heat, series)


def tangent_gain(omega: Tensor, eps: Tensor) -> Tensor:
    """`ε² (d log f / dω) / ω`: the tangent `ε² ∇ log f` at `Exp(v)` is this times `v`. About `−1 + ε²/12` near 0."""
    omega, near, far, small = _split(omega, eps)
    flat = omega < 0.1
    w2 = torch.where(flat, omega, 0) ** 2
    w = torch.where(flat, 1, omega)
    curved = torch.where(
        flat,
        1 / 12 + w2 / 720 * (1 + w2 / 42 * (1 + w2 / 40)),
        (1 / w - 0.5 / torch.tan(w / 2)) / w,
    )
    heat = near**2 * (curved + _windings(omega, near)[1]) - 1
    c = _series(far)[1]
    m = torch.arange(_DEGREE + 1, device=omega.device, dtype=omega.dtype)
    angle = m * omega[..., None]
    sinc = torch.where(omega[..., None] > 0, torch.sin(angle) / omega[..., None].clamp(min=1e-30), m)
    series = -(far**2) * (m * c * sinc).sum(-1) / (c * torch.cos(angle)).sum(-1)
    return torch.where(small, heat, series)


def _chi(r: Tensor) -> list[Tensor]:
    """`M_n = ∫_0^r x^{2n} e^{−x²/2} dx` for n = 1 … , by `M_{n+1} = (2n + 1) M_n − r^{2n+1} e^{−r²/2}`."""
    e, out = torch.exp(-0.5 * r**2), []
    m = math.sqrt(math.pi / 2) * torch.erf(r / math.sqrt(2))
    power = r
    for n in range(_MOMENTS):
        m = (2 * n + 1) * m - power * e
        power = power * r**2
        out.append(m)
    return out


def cdf(omega: Tensor, eps: Tensor) -> Tensor:
    """The probability of an angle below `ω`, for `ω ∈ [0, π]`.

    Large ε: `[ω − sin ω + Σ_{l≥1} a_l (sin lω / l − sin (l+1)ω / (l+1))] / π`. Small ε: with `sin(y/2)` as its power series,
    each winding is a sum of incomplete moments of the normal distribution.
    """
    omega, near, far, small = _split(omega, eps)
    heat = torch.zeros_like(omega)
    ends = [(y / near).clamp(max=40.0) for y in (omega, 2 * math.pi - omega, 2 * math.pi + omega)]
    factor = math.sqrt(2 / math.pi) * torch.exp(near**2 / 8)
    for j, (p, q, r) in enumerate(zip(*(_chi(end) for end in ends), strict=True)):
        heat = heat + factor * (p - q + r)
        factor = factor * -(near**2) / (4 * (2 * j + 2) * (2 * j + 3))
    a, _ = _series(far)
    l = torch.arange(1, _DEGREE + 2, device=omega.device, dtype=omega.dtype)
    sines = torch.sin(l * omega[..., None]) / l
    series = (omega - sines[..., 0] + (a[..., 1:] * (sines[..., :-1] - sines[..., 1:])).sum(-1)) / math.pi
    return torch.where(small, heat, series)


def angle_density(omega: Tensor, eps: Tensor) -> Tensor:
    """The density of ω on `[0, π]`, per radian."""
    return torch.exp(log_density(omega, eps)) * 2 * torch.sin(omega.double() / 2) ** 2 / math.pi


def quantile(u: Tensor, eps: Tensor) -> Tensor:
    """The angle below which a fraction `u ∈ (0, 1)` lies: the inverse of `cdf` by Newton's method inside a bracket.

    It starts from the Wilson–Hilferty quantile of the chi distribution with three degrees of freedom. Zero where `ε = 0`.
    """
    u, scale = torch.broadcast_tensors(u.double(), eps.double().clamp(min=1e-6))
    z = math.sqrt(2) * torch.erfinv(2 * u - 1)
    chi = torch.sqrt(3 * (25 / 27 + z * math.sqrt(2 / 27)).clamp(min=0) ** 3)
    flat = torch.minimum((6 * math.pi * u) ** (1 / 3), math.pi - 0.5 * math.pi * (1 - u))  # uniform rotations
    start = torch.maximum(chi, (3 * math.sqrt(math.pi / 2) * u) ** (1 / 3)) * scale
    low, high = torch.zeros_like(u), torch.full_like(u, math.pi)
    omega = torch.where(scale < 1.2, start, flat).clamp(max=0.98 * math.pi)
    for _ in range(_NEWTON):
        error = cdf(omega, scale) - u
        low, high = torch.where(error < 0, omega, low), torch.where(error < 0, high, omega)
        moved = omega - error / angle_density(omega, scale).clamp(min=1e-300)
        inside = (moved >= low) & (moved <= high)
        omega = torch.where(inside, moved, 0.5 * (low + high))
    return torch.where(eps > 0, omega, 0)

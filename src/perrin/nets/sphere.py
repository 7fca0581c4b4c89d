"""Spherical harmonics on latitude–longitude grids, and padding that knows the sphere.

A real field of degree up to L − 1 is, at latitude φ and longitude λ,

    f(φ, λ) = Re Σ_m (2 − [m = 0]) e^{imλ} Σ_l a_lm P_lm(sin φ),        0 ≤ m ≤ l < L,

with P_lm normalised over the unit sphere (`∫ |P_lm e^{imλ}|² dΩ = 1`) and the phase (−1)^m of Condon and Shortley.
Coefficients are complex tensors `[..., L, L]`, indexed l then m, zero for m > l. The power of degree l,

    S_l = (|a_l0|² + 2 Σ_{m>0} |a_lm|²) / 4π,        Σ_l S_l = mean of f² over the sphere,

does not change when the sphere is rotated. The forward transform is the area-weighted least-squares fit, order by order: on
Gauss latitudes that is Gauss's quadrature, and on equiangular ones it recovers twice the degree that quadrature would. P_lm
follows the three-term recurrence in l (Holmes & Featherstone 2002), good in float64 to L about 1900.
Tables take 16 L² n bytes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from perrin.errors import PerrinError


def gauss_latitudes(rows: int) -> tuple[Tensor, Tensor]:
    """Latitudes (degrees, south to north) and weights (sum 2) of Gauss–Legendre quadrature in sin φ, by Newton's method.

    Arguments:
        rows: how many.
    """
    k = torch.arange(rows, 0, -1, dtype=torch.float64)
    x = torch.cos(math.pi * (k - 0.25) / (rows + 0.5))
    for _ in range(8):
        previous, value = torch.ones_like(x), x.clone()
        for l in range(2, rows + 1):
            previous, value = value, ((2 * l - 1) * x * value - (l - 1) * previous) / l
        slope = rows * (previous - x * value) / (1 - x**2)
        x = x - value / slope
    return torch.rad2deg(torch.asin(x)), 2 / ((1 - x**2) * slope**2)


def equiangular_latitudes(rows: int, *, poles: bool) -> tuple[Tensor, Tensor]:
    """Equally spaced latitudes (degrees, south to north) and the weights (sum 2) of their quadrature in sin φ.

    With the poles these are Clenshaw and Curtis' weights, without them Fejér's first, half a step off the poles; both are
    exact for polynomials of degree below `rows`.

    Arguments:
        rows: how many.
        poles: whether the first and last row are the poles.
    """
    step = math.pi / (rows - 1 if poles else rows)
    theta = (torch.arange(rows, dtype=torch.float64) + (0 if poles else 0.5)) * step
    degree = torch.arange(0, rows, 2, dtype=torch.float64)
    integral = 2 / (1 - degree**2)  # of cos(kθ) over sin θ dθ
    cosines = torch.cos(theta[:, None] * degree)
    scale = torch.full((len(degree),), 2.0 / (rows - 1 if poles else rows), dtype=torch.float64)
    scale[0] /= 2
    if poles and (rows - 1) % 2 == 0:
        scale[-1] /= 2
    weight = cosines @ (integral * scale)
    if poles:
        weight[[0, -1]] /= 2
    return torch.rad2deg(theta - math.pi / 2), weight


def legendre(degree: int, latitude: Tensor) -> Tensor:
    """Normalised associated Legendre functions P_lm(sin φ), `[L, L, n]` (l, m, row), float64.

    Arguments:
        degree: L, one more than the highest degree.
        latitude: φ in degrees, `[n]`.
    """
    phi = torch.deg2rad(latitude.to(torch.float64))
    x, s = torch.sin(phi), torch.cos(phi)
    table = x.new_zeros(degree, degree, len(x))
    sectoral = torch.full_like(x, math.sqrt(1 / (4 * math.pi)))
    for l in range(degree):
        table[l, l] = sectoral
        if l:
            m = torch.arange(l, dtype=torch.float64)[:, None]
            a = torch.sqrt((4.0 * l * l - 1) / (l * l - m * m))
            b = torch.sqrt(((l - 1.0) ** 2 - m * m).clamp(min=0) / (4 * (l - 1.0) ** 2 - 1))
            table[l, :l] = a * (x * table[l - 1, :l] - (b * table[l - 2, :l] if l > 1 else 0))
        sectoral = -sectoral * s * math.sqrt((2 * l + 3) / (2 * l + 2))
    return table


class SphericalHarmonics(nn.Module):
    """The transform between a grid and its coefficients.

    Arguments:
        latitude: degrees, `[n]`, south to north or north to south.
        columns: the number of equally spaced longitudes around the whole circle.
        degree: L; by default the largest that the grid determines, the lesser of n (less one with the poles among the
            rows, where all but m = 0 vanish) and (columns + 1) / 2.
        weight: area weights of the rows, `[n]`; by default cos φ. Where the grid determines the coefficients with no
            rest (a field of degree below L), any will do.
        first: the longitude of the first column, degrees.

    Raises:
        PerrinError: the grid does not determine coefficients of that degree.
    """

    P: Tensor
    Q: Tensor
    phase: Tensor

    def __init__(
        self,
        latitude: Tensor,
        columns: int,
        degree: int | None = None,
        *,
        weight: Tensor | None = None,
        first: float = 0.0,
    ) -> None:
        super().__init__()
        polar = int((latitude.abs() > 90 - 1e-6).sum())
        limit = min(len(latitude) - polar // 2, (columns + 1) // 2)
        self.degree = limit if degree is None else degree
        self.columns = columns
        if not 1 <= self.degree <= limit:
            raise PerrinError(
                f"expected 1 to {limit} degrees on a grid of {len(latitude)} × {columns}, given {self.degree}"
            )
        table = legendre(self.degree, latitude)
        if weight is None:
            weight = torch.cos(torch.deg2rad(latitude.to(torch.float64)))
            weight = weight + (weight.abs() < 1e-9) * weight.max() / (
                8 * len(weight)
            )  # a pole is a small cap
        self.register_buffer("P", table.transpose(0, 1).contiguous(), persistent=False)  # [m, l, n]
        self.register_buffer("Q", _fit(self.P, weight.to(torch.float64)), persistent=False)
        angle = math.radians(first) * torch.arange(self.degree, dtype=torch.float64)
        self.register_buffer("phase", torch.polar(torch.ones_like(angle), angle), persistent=False)

    def forward(self, field: Tensor) -> Tensor:
        """Coefficients `[..., L, L]` of a real field `[..., n, columns]`."""
        waves = torch.fft.rfft(field, norm="forward")[..., : self.degree]
        return _mix(self.Q, waves * self.phase.conj().to(waves.dtype), "mln,...nmc->...lmc")

    def inverse(self, coefficients: Tensor) -> Tensor:
        """The field `[..., n, columns]` of coefficients `[..., L, L]`."""
        waves = _mix(self.P, coefficients, "mln,...lmc->...nmc")
        return torch.fft.irfft(waves * self.phase.to(waves.dtype), n=self.columns, norm="forward")


def _fit(table: Tensor, weight: Tensor) -> Tensor:
    """For each order m the matrix `[l, n]` that fits coefficients to a row's waves: (√W P)⁺ √W."""
    root = torch.sqrt(weight)
    out = torch.zeros_like(table)
    for m in range(len(table)):
        out[m, m:] = torch.linalg.pinv((table[m, m:] * root).T, rtol=1e-13) * root
    return out


def _mix(table: Tensor, waves: Tensor, rule: str) -> Tensor:
    """A real table times complex numbers."""
    parts = torch.view_as_real(waves.contiguous())
    return torch.view_as_complex(torch.einsum(rule, table.to(parts.dtype), parts).contiguous())


def power(coefficients: Tensor) -> Tensor:
    """The power S_l of each degree, `[..., L]`, of coefficients `[..., L, L]`."""
    square = coefficients.abs() ** 2
    return (2 * square.sum(-1) - square[..., 0]) / (4 * math.pi)


def laplacian(coefficients: Tensor) -> Tensor:
    """Coefficients of ∇²f on the unit sphere: −l (l + 1) a_lm."""
    l = torch.arange(coefficients.shape[-1], device=coefficients.device, dtype=coefficients.real.dtype)
    return coefficients * (-l * (l + 1))[:, None]


def isotropic(white: Tensor, spectrum: Tensor) -> Tensor:
    """Coefficients of isotropic Gaussian noise whose power has the expectation `spectrum`.

    Each point of the field has variance Σ_l S_l; it is E[a_l0²] = E|a_lm|² = 4π S_l / (2l + 1).

    Arguments:
        white: independent standard normal numbers, `[..., L²]`: for each l in turn a_l0, then real and imaginary parts.
        spectrum: S_l, `[L]`.
    """
    degree = len(spectrum)
    l = torch.arange(degree, device=white.device, dtype=white.dtype)
    scale = torch.sqrt(4 * math.pi * spectrum.to(white) / (2 * l + 1))[:, None]
    below = torch.tril_indices(degree, degree, -1, device=white.device)
    at, m = below[0], below[1] + 1  # every (l, m) with 1 ≤ m ≤ l
    out = torch.zeros(*white.shape[:-1], degree, degree, 2, dtype=white.dtype, device=white.device)
    first = torch.arange(degree, device=white.device) ** 2
    out[..., :, 0, 0] = white[..., first]
    for part in (0, 1):
        out[..., at, m, part] = white[..., at * at + 2 * m - 1 + part] / math.sqrt(2)
    return torch.view_as_complex(out) * scale


def pad_sphere(
    field: Tensor, rows: int, columns: int, *, vector: bool = False, poles: bool = False
) -> Tensor:
    """Pad a grid as the sphere continues it: around the circle, and over a pole to the opposite meridian.

    Components of vectors, towards east and north, change sign over a pole.

    Arguments:
        field: `[..., n, columns of the grid]`, the whole sphere, an even number of columns.
        rows, columns: how much to add at each side.
        vector: whether the field is a component of a vector along the meridian or the circle of latitude.
        poles: whether the first and last row are the poles themselves.

    Raises:
        PerrinError: an odd number of columns, or more padding than there is grid.
    """
    n, width = field.shape[-2:]
    skip = 1 if poles else 0
    if width % 2 or rows + skip > n or columns > width:
        raise PerrinError(
            f"expected an even number of columns and less padding than grid, given {n} × {width} with {rows}, {columns}"
        )
    over = torch.roll(field, width // 2, dims=-1) * (-1 if vector else 1)
    low = over[..., skip : rows + skip, :].flip(-2)
    high = over[..., n - rows - skip : n - skip, :].flip(-2)
    tall = torch.cat([low, field, high], dim=-2)
    return torch.cat([tall[..., width - columns :], tall, tall[..., :columns]], dim=-1)


class VectorHarmonics(nn.Module):
    """Vectors on the sphere as stream function ψ and velocity potential χ.

        u = −∂ψ/∂φ + (∂χ/∂λ)/cos φ,        v = (∂ψ/∂λ)/cos φ + ∂χ/∂φ

    on the unit sphere (divide by the radius); the vorticity is ∇²ψ and the divergence ∇²χ (`laplacian`). Derivatives come
    from ladder formulas that hold at the poles too. The forward transform is a least-squares fit, as in
    `SphericalHarmonics`.

    Arguments:
        latitude, columns, degree: as there; the default degree is one less where rows limit it.

    Raises:
        PerrinError: the grid does not determine coefficients of that degree.
    """

    D: Tensor
    E: Tensor
    F: Tensor

    def __init__(self, latitude: Tensor, columns: int, degree: int | None = None) -> None:
        super().__init__()
        limit = min(len(latitude) - 1, (columns + 1) // 2)
        self.degree = limit if degree is None else degree
        self.columns = columns
        if not 2 <= self.degree <= limit:
            raise PerrinError(
                f"expected 2 to {limit} degrees on a grid of {len(latitude)} × {columns}, given {self.degree}"
            )
        D, E = _derivatives(self.degree, latitude)
        root = torch.sqrt(
            torch.cos(torch.deg2rad(latitude.to(torch.float64))).clamp(min=1e-2 / len(latitude))
        )
        fit = D.new_zeros(self.degree, 2 * self.degree, 2 * len(latitude))
        for m in range(self.degree):
            k = max(m, 1)  # a constant has no gradient
            d, e = (t[m, k:] * root for t in (D, E))
            matrix = torch.cat([torch.cat([-d, -e], 1), torch.cat([e, d], 1)])  # of ψ and iχ: to u and iv
            pinv = torch.linalg.pinv(matrix.T, rtol=1e-13) * torch.cat([root, root])
            fit[m, k : self.degree], fit[m, self.degree + k :] = pinv.chunk(2)
        self.register_buffer("D", D, persistent=False)
        self.register_buffer("E", E, persistent=False)
        self.register_buffer("F", fit, persistent=False)

    def forward(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of ψ and χ, `[..., L, L]`, of the components towards east and north, `[..., n, columns]`."""
        waves = [torch.fft.rfft(x, norm="forward")[..., : self.degree] for x in (u, v)]
        both = _mix(self.F, torch.cat([waves[0], 1j * waves[1]], dim=-2), "mln,...nmc->...lmc")
        psi, chi = both.chunk(2, dim=-2)
        return psi, -1j * chi

    def inverse(self, psi: Tensor, chi: Tensor) -> tuple[Tensor, Tensor]:
        """The components (u, v) of coefficients of ψ and χ."""

        def up(x: Tensor) -> Tensor:
            return _mix(self.D, x, "mln,...lmc->...nmc")

        def along(x: Tensor) -> Tensor:
            return _mix(self.E, x, "mln,...lmc->...nmc")

        u, v = along(1j * chi) - up(psi), along(1j * psi) + up(chi)
        return torch.fft.irfft(u, n=self.columns, norm="forward"), torch.fft.irfft(
            v, n=self.columns, norm="forward"
        )


def _derivatives(degree: int, latitude: Tensor) -> tuple[Tensor, Tensor]:
    """∂P_lm/∂φ and m P_lm / cos φ, `[m, l, n]` each, without division by cos φ."""
    table = legendre(degree + 1, latitude)  # [l, m, n]
    l = torch.arange(degree, dtype=torch.float64)[:, None, None]
    m = torch.arange(degree, dtype=torch.float64)[None, :, None]
    here = table[:degree]
    right = here[:, 1 : degree + 1]  # m + 1
    left = torch.cat([-here[:, 1:2], here[:, : degree - 1]], 1)  # m − 1; P_l,−1 = −P_l1
    D = (
        ((l + m) * (l - m + 1)).clamp(min=0).sqrt() * left
        - ((l - m) * (l + m + 1)).clamp(min=0).sqrt() * right
    ) / 2
    before = torch.cat([torch.zeros_like(here[:1]), here[:-1]])  # l − 1
    right = before[:, 1 : degree + 1]
    left = torch.cat([-before[:, 1:2], before[:, : degree - 1]], 1)
    ratio = torch.sqrt((2 * l + 1) / (2 * l - 1).clamp(min=1)) / 2
    E = -ratio * (
        ((l - m) * (l - m - 1)).clamp(min=0).sqrt() * right
        + ((l + m) * (l + m - 1)).clamp(min=0).sqrt() * left
    )
    E[:, 0] = 0
    mask = torch.tril(torch.ones(degree, degree, dtype=torch.float64))[..., None]
    return (D * mask).transpose(0, 1).contiguous(), (E * mask).transpose(0, 1).contiguous()

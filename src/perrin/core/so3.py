"""Rotations as unit quaternions `q = (w, x, y, z)`, `[..., 4]`, and rotation vectors `v = ω n`, `[..., 3]`, in radians.

    Exp(v) = (cos ω/2, n sin ω/2),     Log(q) = 2 atan2(|xyz|, w) · xyz / |xyz|,     ω ∈ [0, π].

`q` and `−q` are the same rotation; `canonical` takes `w ≥ 0`. All functions have finite first and second derivatives at the
identity (series there), and are accurate near π (no arccosine, no trace, no SVD).
"""

from __future__ import annotations

import torch
from torch import Tensor


def multiply(p: Tensor, q: Tensor) -> Tensor:
    """The rotation `p q`: first `q`, then `p`."""
    a, b, c, d = p.unbind(-1)
    w, x, y, z = q.unbind(-1)
    return torch.stack(
        (
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ),
        dim=-1,
    )


def inverse(q: Tensor) -> Tensor:
    """The inverse rotation (the conjugate of a unit quaternion)."""
    return torch.cat((q[..., :1], -q[..., 1:]), dim=-1)


def canonical(q: Tensor) -> Tensor:
    """The same rotation with unit norm and `w ≥ 0`; zero (padding) stays zero."""
    n2 = q.square().sum(-1, keepdim=True)
    q = q * torch.rsqrt(torch.where(n2 > 0, n2, 1))
    return torch.where(q[..., :1] < 0, -q, q)


def exp(v: Tensor) -> Tensor:
    """The rotation by the angle `|v|` about `v`: `[..., 3]` to `[..., 4]`."""
    square = v.square().sum(-1, keepdim=True)
    small = square < 1e-3
    s = torch.where(small, square, 0)
    half = 0.5 * torch.sqrt(torch.where(small, 1, square))
    cos = torch.where(small, 1 - s / 8 * (1 - s / 48 * (1 - s / 120 * (1 - s / 224))), torch.cos(half))
    sinc = torch.where(small, 0.5 - s / 48 * (1 - s / 80 * (1 - s / 168)), torch.sin(half) / (2 * half))
    return torch.cat((cos, sinc * v), dim=-1)


def log(q: Tensor) -> Tensor:
    """The rotation vector of a unit quaternion, of length at most π: `[..., 4]` to `[..., 3]`."""
    q = torch.where(q[..., :1] < 0, -q, q)
    w, xyz = q[..., :1], q[..., 1:]
    n2 = xyz.square().sum(-1, keepdim=True)
    small = n2 < 1e-3
    w_near = torch.where(small & (w > 0), w, 1)  # padding is (0, 0, 0, 0)
    s = torch.where(small, n2, 0) / w_near**2
    series = 2 / w_near * (1 - s * (1 / 3 - s * (1 / 5 - s * (1 / 7 - s * (1 / 9 - s / 11)))))
    n = torch.sqrt(torch.where(small, 1, n2))
    return torch.where(small, series, 2 * torch.atan2(n, w) / n) * xyz


def angle(q: Tensor) -> Tensor:
    """`ω ∈ [0, π]` of a unit quaternion, `[...]`."""
    return 2 * torch.atan2(q[..., 1:].norm(dim=-1), q[..., 0].abs())


def to_matrix(q: Tensor) -> Tensor:
    """Rotation matrices `[..., 3, 3]`."""
    w, x, y, z = q.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def from_matrix(m: Tensor) -> Tensor:
    """Unit quaternions of rotation matrices `[..., 3, 3]`: the largest of four equal expressions, so that none divides by
    a small number."""
    d = m.diagonal(dim1=-2, dim2=-1)
    x, y, z = d.unbind(-1)
    skew = torch.stack(
        (m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]), dim=-1
    )
    xy, xz, yz = (m[..., i, j] + m[..., j, i] for i, j in ((0, 1), (0, 2), (1, 2)))
    u, v, w = skew.unbind(-1)
    candidates = torch.stack(  # row i is 4 q_i q
        (
            torch.stack((1 + x + y + z, u, v, w), dim=-1),
            torch.stack((u, 1 + x - y - z, xy, xz), dim=-1),
            torch.stack((v, xy, 1 - x + y - z, yz), dim=-1),
            torch.stack((w, xz, yz, 1 - x - y + z), dim=-1),
        ),
        dim=-2,
    )
    best = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = candidates.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    return canonical(row)


def rotate(q: Tensor, v: Tensor) -> Tensor:
    """Vectors `v` `[..., 3]`, rotated by `q` `[..., 4]`."""
    u = 2 * torch.linalg.cross(q[..., 1:], v)
    return v + q[..., :1] * u + torch.linalg.cross(q[..., 1:], u)

"""Optimal transport for flow matching: which noise goes with which data.

Straight paths between independent pairs cross, and the model learns their mean. Pairs that are matched within the batch
cross less, so that the learnt flow is straighter and needs fewer steps (Tong et al. 2024; Pooladian et al. 2023):

    min_π Σ_i c(x_i, z_{π(i)})

- `assignment`: the exact minimum by shortest augmenting paths (Jonker and Volgenant 1987), `O(B³)`; for batches up to a few
  hundred, on the CPU.
- `sinkhorn`: the entropic plan (Cuturi 2013), on any device, and `draw_pairs` from it.
- `superpose`, `align`: for point clouds, the cost modulo rotation and permutation (Klein et al. 2023; Song et al. 2023). The
  rotation is the quaternion of the largest eigenvalue of Horn's 4 × 4 matrix (Horn 1987): always proper, no SVD.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def squared_distances(x: Tensor, z: Tensor) -> Tensor:
    """`c_ij = |x_i − z_j|²`, `[B, B]`, over all of a sample's elements."""
    return torch.cdist(x.flatten(1), z.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").square()


def assignment(cost: Tensor) -> Tensor:
    """The permutation π, `[n]` int64, that minimises `Σ_i cost[i, π(i)]`, exactly.

    Row after row is added by a shortest augmenting path (Dijkstra on reduced costs `c_ij − u_i − v_j ≥ 0`), which keeps the
    dual variables feasible. About 0.1 s for n = 256.

    Arguments:
        cost: `[n, n]`, finite.
    """
    n = cost.shape[0]
    if cost.shape != (n, n) or not bool(torch.isfinite(cost).all()):
        raise ValueError(f"expected a finite square matrix of costs, given shape {tuple(cost.shape)}")
    c: list[list[float]] = cost.detach().double().cpu().tolist()
    u, v = [0.0] * n, [0.0] * n
    column_of, row_of = [-1] * n, [-1] * n
    for start in range(n):
        shortest, before = [math.inf] * n, [-1] * n
        todo = list(range(n))  # columns not yet in the tree
        done: list[int] = []
        row, length, sink = start, 0.0, -1
        while sink < 0:
            line, shift = c[row], length - u[row]
            best, best_at = math.inf, -1
            for k, j in enumerate(todo):
                d = line[j] + shift - v[j]
                if d < shortest[j]:
                    shortest[j], before[j] = d, row
                if shortest[j] < best or (shortest[j] == best and row_of[j] < 0):
                    best, best_at = shortest[j], k
            length, j = best, todo[best_at]
            todo[best_at] = todo[-1]
            todo.pop()
            done.append(j)
            if row_of[j] < 0:
                sink = j
            else:
                row = row_of[j]
        u[start] += length
        for j in done:
            if j != sink:
                u[row_of[j]] += length - shortest[j]
            v[j] -= length - shortest[j]
        j = sink
        while True:
            row = before[j]
            row_of[j], column_of[row], j = row, j, column_of[row]
            if row == start:
                break
    return torch.tensor(column_of, dtype=torch.int64, device=cost.device)


def sinkhorn(cost: Tensor, *, epsilon: float = 0.05, iterations: int = 200) -> Tensor:
    """The plan `P_ij = e^{f_i + g_j − c_ij/ε}` with all sums 1/n, by alternating scaling of logarithms.

    Arguments:
        cost: `[n, n]`.
        epsilon: the entropy's weight, relative to the mean cost.
    """
    n = cost.shape[0]
    k = -cost / (epsilon * cost.mean().clamp(min=1e-30))
    f = g = cost.new_zeros(n)
    for _ in range(iterations):
        f = -torch.logsumexp(k + g, dim=1) - math.log(n)
        g = -torch.logsumexp(k + f[:, None], dim=0) - math.log(n)
    return torch.exp(k + f[:, None] + g)


def draw_pairs(plan: Tensor, u: Tensor) -> Tensor:
    """A column for each row of a transport plan, drawn with the uniform numbers `u` `[n]`; `[n]` int64."""
    edges = (plan / plan.sum(dim=1, keepdim=True)).cumsum(dim=1)
    return torch.searchsorted(edges, u[:, None], right=True)[:, 0].clamp(max=plan.shape[1] - 1)


def pair(x_0: Tensor, z: Tensor) -> Tensor:
    """The noise `z`, reordered so that `Σ_i |x_i − z_i|²` is the least over all orders; `[B, …]` both."""
    return z[assignment(squared_distances(x_0, z))]


def superpose(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """The rotations `R` `[B, 3, 3]` that minimise `Σ_n |x_n − R y_n|²`, for centred clouds `[B, N, 3]`.

    With `S = Σ_n y_n x_nᵀ` the best unit quaternion is the eigenvector of the largest eigenvalue of a symmetric 4 × 4 matrix
    linear in S. It is a rotation also where the best orthogonal matrix is a reflection.

    Arguments:
        mask: `[B, N]`, True for real points.
    """
    if mask is not None:
        y = y.masked_fill(~mask[..., None], 0)
        x = x.masked_fill(~mask[..., None], 0)
    s = torch.einsum("bni,bnj->bij", y, x).double()
    xx, xy, xz, yx, yy, yz, zx, zy, zz = s.flatten(1).unbind(1)
    horn = torch.stack(
        (
            *(xx + yy + zz, yz - zy, zx - xz, xy - yx),
            *(yz - zy, xx - yy - zz, xy + yx, zx + xz),
            *(zx - xz, xy + yx, yy - xx - zz, yz + zy),
            *(xy - yx, zx + xz, yz + zy, zz - xx - yy),
        ),
        dim=1,
    ).reshape(-1, 4, 4)
    q = torch.linalg.eigh(horn)[1][..., -1]
    return rotation(q).to(x.dtype)


def rotation(q: Tensor) -> Tensor:
    """The rotation matrices `[B, 3, 3]` of unit quaternions `(w, x, y, z)`, `[B, 4]`."""
    w, x, y, z = q.unbind(-1)
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(rows, dim=-1).reshape(*q.shape[:-1], 3, 3)


def align(
    x: Tensor, z: Tensor, mask: Tensor | None = None, *, kinds: Tensor | None = None, rounds: int = 5
) -> Tensor:
    """The noise clouds `z`, permuted and rotated towards the data `x`: `[B, N, 3]`, both centred.

    Alternates the exact permutation for the present rotation and the exact rotation for the present permutation, so the
    cost `Σ_n |x_n − R z_{π(n)}|²` never rises; it stops in a local minimum, as in the paper. Gaussian noise stays
    Gaussian, because its law is invariant and the whole batch is averaged over orientations.

    Arguments:
        mask: `[B, N]`, True for real points, which keep to themselves.
        kinds: `[B, N]`, integers; only points of the same kind change places. Leave it out where kinds are noised as well.
        rounds: of the alternation.
    """
    b, n, _ = x.shape
    mask = torch.ones(b, n, dtype=torch.bool, device=x.device) if mask is None else mask
    mine = torch.where(mask, torch.zeros_like(mask, dtype=torch.int64) if kinds is None else kinds + 1, -1)
    z = z @ superpose(x, z, mask).transpose(1, 2)
    for _ in range(rounds):
        cost = (x[:, :, None] - z[:, None]).square().sum(-1)
        apart = mine[:, :, None] != mine[:, None]
        cost = cost.masked_fill(~(mask[:, :, None] & mask[:, None]), 0.0)
        cost = torch.where(apart, cost.amax(dim=(1, 2), keepdim=True) * n + 1.0, cost)
        order = torch.stack([assignment(c) for c in cost])
        order = torch.where(mask, order, torch.arange(n, device=x.device))
        z = z.gather(1, order[..., None].expand_as(z))
        z = z @ superpose(x, z, mask).transpose(1, 2)
    return z.masked_fill(~mask[..., None], 0)


def pair_clouds(x_0: Tensor, z: Tensor, *, rounds: int = 2) -> Tensor:
    """Equivariant mini-batch transport for clouds of one size `[B, N, 3]`: `pair` by the cost modulo rotation, then `align`.

    The pairing's own cost takes points in their given order, `|x|² + |z|² − 2 max_R ⟨x, R z⟩`; only the pairs found are
    permuted.
    """
    b = len(x_0)
    left = x_0[:, None].expand(b, b, *x_0.shape[1:]).reshape(b * b, *x_0.shape[1:])
    right = z[None].expand(b, b, *z.shape[1:]).reshape(b * b, *z.shape[1:])
    turned = right @ superpose(left, right).transpose(1, 2)
    cost = (left - turned).square().sum(dim=(1, 2)).reshape(b, b)
    return align(x_0, z[assignment(cost)], rounds=rounds)

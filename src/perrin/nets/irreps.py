"""An E(3)-equivariant message-passing network written with e3nn: irreps, spherical harmonics, tensor products.

A node carries `d x 0e + c x 1o + q x 2e`: scalars, polar vectors and symmetric traceless tensors. The letter is the parity:
under inversion `e` stays and `o` turns its sign, so that mirror images are treated alike by construction. In a block
(Thomas et al. 2018; Batzner et al. 2022, NequIP):

1. two learned coordinate sets `P = v W` give each edge two vectors `r_ij = P_j − P_i`, and these spherical harmonics
   `Y_l(r / |r|)`, l = 0, 1, 2;
2. the message is `m_ij = Σ_paths w_ij (x_j ⊗ Y(r_ij))`: a depthwise tensor product ("uvu") whose weights per path and
   channel are a perceptron of pair features and distances;
3. messages are summed, mixed within each irrep (`o3.Linear`), and pass a `Gate`: SiLU for scalars, and for the rest a
   product with the sigmoid of further scalars;
4. perceptrons on scalars and inner products update `h`, and on `[e_ij, h_i, h_j, |r_ij|]` the pair features `e_ij`.

Only invariants meet anything nonlinear. Compared with a transformer on scalars and vectors, tensors of l = 2 are new,
and products that mix orders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from e3nn import o3
from e3nn.nn import Gate
from torch import Tensor, nn
from torch.nn import functional as F

from perrin.nets.graph import Edges

_MODULATIONS = 6
_SETS = 2  # where the molecule is, and where it is thought to go
_L = (0, 1, 2)


class IrrepsBlock(nn.Module):
    """One block over rows `[R]` and edges `[E]`; see the module's text.

    Arguments:
        width, vectors, tensors: multiplicities `d`, `c`, `q` of 0e, 1o and 2e on a node.
        pair_width: `p`, features per edge.
        pair_hidden: hidden width of both perceptrons on edges.
        channels: multiplicity of each irrep in a message.
    """

    def __init__(
        self, *, width: int, vectors: int, tensors: int, pair_width: int, pair_hidden: int, channels: int
    ) -> None:
        super().__init__()
        self.sizes = (width, 3 * vectors, 5 * tensors)
        node = o3.Irreps(f"{width}x0e + {vectors}x1o + {tensors}x2e")
        sent = o3.Irreps(f"{channels}x0e + {channels}x1o + {channels}x2e")
        edge = o3.Irreps(f"{_SETS}x0e + {_SETS}x1o + {_SETS}x2e")
        self.modulation = nn.Parameter(torch.zeros(_MODULATIONS, width))
        self.node_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.pair_norm = nn.LayerNorm(pair_width)
        self.coordinates = o3.Linear(f"{vectors}x1o", f"{_SETS}x1o")
        self.send = o3.Linear(node, sent)

        paths = [
            (i, j, out)
            for i, (_, a) in enumerate(sent)
            for j, (_, b) in enumerate(edge)
            for out in a * b
            if out in node
        ]
        received = o3.Irreps([(channels, out) for *_, out in paths])
        received, place, _ = received.sort()
        self.product = o3.TensorProduct(
            sent,
            edge,
            received,
            [(i, j, place[k], "uvu", True) for k, (i, j, _) in enumerate(paths)],
            shared_weights=False,
            internal_weights=False,
        )
        self.radial = nn.Sequential(
            nn.Linear(pair_width + 2 * _SETS, pair_hidden),
            nn.SiLU(),
            nn.Linear(pair_hidden, self.product.weight_numel),
        )
        self.gate = Gate(
            f"{width}x0e",
            [F.silu],
            f"{vectors + tensors}x0e",
            [torch.sigmoid],
            f"{vectors}x1o + {tensors}x2e",
        )
        self.receive = o3.Linear(received.simplify(), self.gate.irreps_in)
        self.keep = o3.Linear(node, self.gate.irreps_in)
        self.update = o3.Linear(self.gate.irreps_out, node)

        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp_in = nn.Linear(width + vectors + tensors, 2 * width)
        self.mlp_out = nn.Linear(2 * width, width)
        self.left = nn.Linear(width, pair_hidden)
        self.right = nn.Linear(width, pair_hidden, bias=False)
        self.pair_in = nn.Linear(pair_width + _SETS, pair_hidden, bias=False)
        self.pair_out = nn.Linear(pair_hidden, pair_width)
        with torch.no_grad():
            self.update.weight.mul_(0.1)
            for layer in (self.mlp_out, self.pair_out):
                nn.init.zeros_(layer.bias)
                nn.init.normal_(layer.weight, std=0.02)

    def forward(
        self, h: Tensor, v: Tensor, q: Tensor, e: Tensor, time: Tensor, edges: Edges
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`h` `[R, d]`, `v` `[R, 3c]`, `q` `[R, 5q]`, `e` `[E, p]`, `time` `[B, 6, d]`."""
        modulation = (time + self.modulation)[edges.sample]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation.unbind(1)
        e_norm = self.pair_norm(e)

        # 1. spherical harmonics of the edges
        p = self.coordinates(v).unflatten(-1, (_SETS, 3))
        r = p[edges.source] - p[edges.target]  # [E, S, 3]
        d = (r.square().sum(-1) + 1e-8).sqrt()
        y = o3.spherical_harmonics(_L, r / d.unsqueeze(-1), normalize=False, normalization="component")
        y = torch.cat([part.flatten(1) for part in y.split([2 * l + 1 for l in _L], dim=-1)], dim=-1)

        # 2. messages, and 3. what they do to a node
        x = torch.cat((self.node_norm(h) * (1 + scale_1) + shift_1, _unit(v, 3), _unit(q, 5)), dim=-1)
        weight = self.radial(torch.cat((e_norm, d, 1 / (1 + d)), dim=-1)) * edges.valid[:, None]
        messages = self.product(self.send(x)[edges.source], y, weight)
        received = edges.sum(messages) * edges.degree(h.dtype).rsqrt()
        update = self.update(self.gate(self.receive(received) + self.keep(x)))
        dh, dv, dq = update.split(self.sizes, dim=-1)
        h, v, q = h + gate_1 * dh, v + dv, q + dq

        # 4. perceptrons on invariants
        squares = torch.cat((_squares(v, 3), _squares(q, 5)), dim=-1)
        x = torch.cat((self.mlp_norm(h) * (1 + scale_2) + shift_2, squares / (1 + squares)), dim=-1)
        h = h + gate_2 * self.mlp_out(F.silu(self.mlp_in(x)))
        hidden = self.pair_in(torch.cat((e_norm, d), dim=-1))
        hidden = hidden + self.left(h)[edges.target] + self.right(h)[edges.source]
        return h, v, q, e + self.pair_out(F.silu(hidden))


class IrrepsNetwork(nn.Module):
    """A stack of `IrrepsBlock`; a `perrin.nets.graph.Trunk`. Computes in at least float32, also under autocast.

    Arguments:
        neighbours: `k`, edges into each row at most; graphs of up to `k + 1` rows are complete.
        depth: number of blocks; time_width: width of the time embedding; the rest are those of `IrrepsBlock`.
    """

    def __init__(
        self,
        *,
        neighbours: int = 32,
        depth: int = 8,
        width: int = 256,
        vectors: int = 32,
        tensors: int = 16,
        pair_width: int = 64,
        pair_hidden: int = 128,
        channels: int = 16,
        time_width: int = 128,
    ) -> None:
        super().__init__()
        self.neighbours, self.tensors = neighbours, tensors
        self.time = nn.Linear(time_width, _MODULATIONS * width)
        nn.init.normal_(self.time.weight, std=0.02)
        with torch.no_grad():  # gates start open, scales and shifts at rest
            self.time.bias.zero_()
            self.time.bias.view(_MODULATIONS, width)[[2, 5]] = 1.0
        self.blocks = nn.ModuleList(
            IrrepsBlock(
                width=width,
                vectors=vectors,
                tensors=tensors,
                pair_width=pair_width,
                pair_hidden=pair_hidden,
                channels=channels,
            )
            for _ in range(depth)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> IrrepsNetwork:
        """Wigner's 3j symbols are constants: after a change of precision they are exact again, not rounded twice."""
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            found = re.search(r"_w3j_(\d)_(\d)_(\d)$", name)
            if found and not buffer.is_meta:
                a, b, c = map(int, found.groups())
                buffer.copy_(o3.wigner_3j(a, b, c, dtype=torch.float64))
        return self

    def graph(self, mask: Tensor, positions: Sequence[Tensor], bonds: Tensor) -> Edges:
        """Bonded rows, then the nearest ones."""
        return Edges.nearest(mask, positions, bonds, self.neighbours)

    def compile_blocks(self) -> None:
        """Nothing: e3nn generates the code of its tensor products itself."""

    def rows(
        self, h: Tensor, v: Tensor, e: Tensor, time: Tensor, edges: Edges
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Over rows in any layout: `h` `[R, d]`, `v` `[R, 3, c]`, `e` `[E, p]`, `time` `[B, time_width]`."""
        modulation = self.time(time).reshape(time.shape[0], _MODULATIONS, -1)
        v = v.transpose(1, 2).flatten(1)  # e3nn's order: vector by vector
        q = v.new_zeros(len(v), 5 * self.tensors)
        for block in self.blocks:
            h, v, q, e = block(h, v, q, e, modulation, edges)
        return h, v.unflatten(-1, (-1, 3)).transpose(1, 2), e

    def forward(
        self, h: Tensor, v: Tensor, e: Tensor, time: Tensor, graph: Edges
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `perrin.nets.graph.Trunk`."""
        batch, n, _ = h.shape
        kind, rows = v.dtype, v.transpose(1, 2).flatten(0, 1)
        with torch.autocast(device_type=h.device.type, enabled=False):
            h, v, e = self.rows(h.flatten(0, 1).to(kind), rows, e.to(kind), time.to(kind), graph)
        return h.unflatten(0, (batch, n)), v.unflatten(0, (batch, n)).transpose(1, 2), e


def _squares(x: Tensor, size: int) -> Tensor:
    """Squared lengths `[R, m]` of `[R, m · size]`, m irreps of one dimension."""
    return x.unflatten(-1, (-1, size)).square().sum(-1)


def _unit(x: Tensor, size: int) -> Tensor:
    """Irreps `[R, m · size]` over the root of one plus their mean squared length, per row."""
    return x / (1 + _squares(x, size).mean(-1, keepdim=True)).sqrt()

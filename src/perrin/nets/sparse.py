"""An E(3)-equivariant network on edges, with torch-geometric: memory O(edges), for large graphs.

It is `EquivariantTransformer` written as message passing: the same three streams and the same four moves, but attention,
vector messages and pair features live on the edges of `perrin.nets.graph.Edges` only. One more input, the mean of the
nodes of the molecule, carries what no edge does.

torch-geometric's `MessagePassing` wants three things: `message` says what goes along an edge (`x_j` is its source's
row), `aggr` how a row adds up what arrives, `propagate` does it. None of its compiled companions is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

from perrin.nets.graph import Edges

_MODULATIONS = 6


class SparseBlock(MessagePassing):
    """One block over rows `[R]` and edges `[E]`; its arguments are those of `EquivariantBlock`."""

    def __init__(
        self,
        *,
        width: int,
        vectors: int,
        pair_width: int,
        heads: int,
        sets: int,
        pair_hidden: int,
        gathered: int,
    ) -> None:
        super().__init__(aggr="sum", node_dim=0)
        self.heads, self.sets, self.gathered = heads, sets, gathered
        self.modulation = nn.Parameter(torch.zeros(_MODULATIONS, width))
        self.node_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.pair_norm = nn.LayerNorm(pair_width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.from_pair = nn.Linear(pair_width, heads + sets + gathered)
        self.out = nn.Linear(width + heads * gathered, width)

        self.coordinates = nn.Linear(vectors, sets, bias=False)
        self.vector_out = nn.Linear(sets, vectors, bias=False)

        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.vector_in = nn.Linear(vectors, 2 * vectors, bias=False)
        self.whole = nn.Linear(width, 2 * width, bias=False)
        self.mlp_in = nn.Linear(width + vectors, 2 * width)
        self.mlp_out = nn.Linear(2 * width, width + vectors)
        self.vector_mix = nn.Linear(vectors, vectors, bias=False)

        self.left = nn.Linear(width, pair_hidden)
        self.right = nn.Linear(width, pair_hidden, bias=False)
        self.pair_in = nn.Linear(pair_width + sets + heads, pair_hidden, bias=False)
        self.pair_out = nn.Linear(pair_hidden, pair_width)
        for layer in (self.out, self.mlp_out, self.pair_out):
            nn.init.zeros_(layer.bias)
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.vector_out, self.vector_mix, self.whole):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(
        self, h: Tensor, v: Tensor, e: Tensor, time: Tensor, edges: Edges
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`h` `[R, d]`, `v` `[R, 3, c]`, `e` `[E, p]`, `time` `[B, 6, d]`."""
        rows, width = h.shape
        target, source = edges.target, edges.source
        modulation = (time + self.modulation)[edges.sample]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation.unbind(1)

        # 1. attention over the edges into each row
        x = self.node_norm(h) * (1 + scale_1) + shift_1
        q, k, value = self.qkv(x).reshape(rows, 3, self.heads, -1).unbind(1)
        e_norm = self.pair_norm(e)
        bias, weight, gathered = self.from_pair(e_norm).split((self.heads, self.sets, self.gathered), dim=-1)
        similarity = (q[target] * k[source]).sum(-1) * q.shape[-1] ** -0.5  # [E, H]
        logits = (similarity + bias).to(torch.promote_types(v.dtype, torch.float32))
        logits = logits.masked_fill(~edges.valid[:, None], -1e9)
        attention = softmax(logits, target, num_nodes=rows) * edges.valid[:, None]

        # 2. vectors move along differences of coordinate sets, in full precision
        with torch.autocast(device_type=h.device.type, enabled=False):
            p = self.coordinates(v)  # [R, 3, S]
            difference = p[target] - p[source]
            distance = (difference.square().sum(1) + 1e-8).sqrt()  # [E, S]
            w = weight.to(p.dtype) * edges.valid[:, None] / (1 + distance)
            moves = (w.unsqueeze(1) * difference).flatten(1)
            messages = self.propagate(
                torch.stack((source, target)),
                value=value.to(p.dtype),
                attention=attention,
                gathered=gathered.to(p.dtype),
                moves=moves,
                size=(rows, rows),
            )
            found, moved = messages.split((width + self.heads * self.gathered, 3 * self.sets), dim=-1)
            v = v + self.vector_out(moved.unflatten(-1, (3, self.sets)))
        h = h + gate_1 * self.out(found.to(x.dtype))

        # 3. a perceptron on scalars, inner products of vectors, and the mean of the molecule
        x = self.mlp_norm(h) * (1 + scale_2) + shift_2
        with torch.autocast(device_type=h.device.type, enabled=False):
            first, second = self.vector_in(v).chunk(2, dim=-1)
            inner = (first * second).sum(1)
            inner = inner / (1 + inner.abs())
        hidden = self.mlp_in(torch.cat((x, inner.to(x.dtype)), dim=-1))
        hidden = hidden + self.whole(edges.mean(x))[edges.sample]
        y = self.mlp_out(F.silu(hidden))
        update, gate = y.split((width, inner.shape[-1]), dim=-1)
        h = h + gate_2 * update
        with torch.autocast(device_type=h.device.type, enabled=False):
            v = v + self.vector_mix(first * gate.to(v.dtype).unsqueeze(1))

        # 4. edges
        z = torch.cat((e_norm, distance.to(e_norm.dtype), similarity.to(e_norm.dtype)), dim=-1)
        hidden = self.pair_in(z) + self.left(h)[target] + self.right(h)[source]
        e = e + self.pair_out(F.silu(hidden))
        return h, v, e

    def message(self, value_j: Tensor, attention: Tensor, gathered: Tensor, moves: Tensor) -> Tensor:
        """`[E, d + H g + 3 S]`: the source's values and the edge's features, weighted by attention; the moves."""
        values = (attention.unsqueeze(-1) * value_j).flatten(1)
        pairs = (attention.unsqueeze(-1) * gathered.unsqueeze(1)).flatten(1)
        return torch.cat((values, pairs, moves), dim=-1)


class SparseNetwork(nn.Module):
    """A stack of `SparseBlock`; a `perrin.nets.graph.Trunk`.

    Arguments:
        neighbours: `k`, edges into each row at most; graphs of up to `k + 1` rows are complete.
        depth, time_width: as in `EquivariantTransformer`, and the rest too.
    """

    def __init__(
        self,
        *,
        neighbours: int = 32,
        depth: int = 8,
        width: int = 256,
        vectors: int = 32,
        pair_width: int = 64,
        heads: int = 8,
        sets: int = 16,
        pair_hidden: int = 128,
        gathered: int = 16,
        time_width: int = 128,
    ) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.time = nn.Linear(time_width, _MODULATIONS * width)
        nn.init.normal_(self.time.weight, std=0.02)
        with torch.no_grad():  # gates start open, scales and shifts at rest
            self.time.bias.zero_()
            self.time.bias.view(_MODULATIONS, width)[[2, 5]] = 1.0
        self.blocks = nn.ModuleList(
            SparseBlock(
                width=width,
                vectors=vectors,
                pair_width=pair_width,
                heads=heads,
                sets=sets,
                pair_hidden=pair_hidden,
                gathered=gathered,
            )
            for _ in range(depth)
        )

    def graph(self, mask: Tensor, positions: Sequence[Tensor], bonds: Tensor) -> Edges:
        """Bonded rows, then the nearest ones."""
        return Edges.nearest(mask, positions, bonds, self.neighbours)

    def compile_blocks(self) -> None:
        """Nothing: the kernels that bound this network's speed are gathers and sums over edges."""

    def rows(
        self, h: Tensor, v: Tensor, e: Tensor, time: Tensor, edges: Edges
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Over rows in any layout: `h` `[R, d]`, `v` `[R, 3, c]`, `e` `[E, p]`, `time` `[B, time_width]`."""
        modulation = self.time(time).reshape(time.shape[0], _MODULATIONS, -1)
        for block in self.blocks:
            h, v, e = block(h, v, e, modulation, edges)
        return h, v, e

    def forward(
        self, h: Tensor, v: Tensor, e: Tensor, time: Tensor, graph: Edges
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `perrin.nets.graph.Trunk`."""
        batch, n, _ = h.shape
        h, v, e = self.rows(h.flatten(0, 1), v.transpose(1, 2).flatten(0, 1), e, time, graph)
        return h.unflatten(0, (batch, n)), v.unflatten(0, (batch, n)).transpose(1, 2), e

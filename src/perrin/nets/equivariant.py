"""An E(3)-equivariant transformer over atoms (scalars and vectors) and pairs.

Three streams run side by side, padded to N rows:

- `h` `[B, N, d]`: invariant node features;
- `v` `[B, 3, N, c]`: c vectors per node, equivariant under rotation and reflection. Channels are positions-like: a shift of
  the molecule is removed beforehand by centring;
- `e` `[B, N, N, p]`: invariant pair features.

A block lets them speak to each other in passes over the pair tensor that are as few as possible, because its memory
traffic, not arithmetic, bounds the speed:

1. attention over `h` with a bias from `e`; the same attention weights gather pair features (`Σ_j a_ij e_ij`);
2. vectors move along differences of learned coordinate sets `P = v W`: `Δv_i = Σ_j w_ij (P_i − P_j) / (1 + |P_i − P_j|)`,
   with `w_ij` read from `e`. Written out per set, nothing of shape `[B, N, N, 3, c]` is ever stored;
3. a perceptron on `[h, |v|]` updates `h` and gates `v`;
4. a perceptron on `[e_ij, h_i, h_j, |P_i − P_j|, q_i·k_j]` updates `e`.

Only inner products and norms enter invariant features, so the network commutes with rotations, reflections and
permutations exactly, and gives a molecule and its mirror image the same features. Where stereochemistry matters, ask for
pseudoscalars: triple products `χ = s · u (a × b) · c` of learned vectors join step 3, with `u(x) = x / (1 + |x|)` and a
handedness s. A mirror turns the sign of the product: with s = 1 the network commutes with proper rotations only; with a
given s that is turned too (a label such as R or S), with reflections again; with s = 0 it is blind to them.

Time enters by scale and shift of the norms, from one shared projection with a learned offset per
block ("adaLN-single", Chen et al. 2024).

Coordinates, distances and vector updates are computed in at least float32 also under bf16 autocast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perrin.nets.graph import Complete, Graph

_MODULATIONS = 6


class EquivariantBlock(nn.Module):
    """One block; see the module's text.

    Arguments:
        width: `d`, scalar features per node.
        vectors: `c`, vectors per node.
        pair_width: `p`, features per pair.
        heads: attention heads.
        sets: learned coordinate sets whose distances and differences the block uses.
        pair_hidden: hidden width of the pair update.
        gathered: pair features that attention gathers per head.
        pseudoscalars: triple products of learned vectors per node; 0 for none.
    """

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
        pseudoscalars: int = 0,
    ) -> None:
        super().__init__()
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
        self.triple = nn.Linear(vectors, 3 * pseudoscalars, bias=False) if pseudoscalars else None
        self.mlp_in = nn.Linear(width + vectors + pseudoscalars, 2 * width)
        self.mlp_out = nn.Linear(2 * width, width + vectors)
        self.vector_mix = nn.Linear(vectors, vectors, bias=False)

        self.left = nn.Linear(width, pair_hidden)
        self.right = nn.Linear(width, pair_hidden, bias=False)
        self.pair_in = nn.Linear(pair_width + sets + heads, pair_hidden, bias=False)
        self.pair_out = nn.Linear(pair_hidden, pair_width)
        for layer in (self.out, self.mlp_out, self.pair_out):
            nn.init.zeros_(layer.bias)
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.normal_(self.vector_out.weight, std=0.02)
        nn.init.normal_(self.vector_mix.weight, std=0.02)

    def forward(
        self,
        h: Tensor,
        v: Tensor,
        e: Tensor,
        time: Tensor,
        mask: Tensor,
        handedness: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`h` `[B, N, d]`, `v` `[B, 3, N, c]`, `e` `[B, N, N, p]`, `time` `[B, 6, d]`, `mask` `[B, N]` bool;
        `handedness` broadcasts with `[B, N, 1]`, and 1 is meant where it is not given."""
        batch, n, width = h.shape
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (time + self.modulation).unsqueeze(2).unbind(1)

        # 1. attention, with a bias from the pairs and a gathering of pair features
        x = self.node_norm(h) * (1 + scale_1) + shift_1
        q, k, value = self.qkv(x).reshape(batch, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        e_norm = self.pair_norm(e)
        bias, weight, gathered = self.from_pair(e_norm).split((self.heads, self.sets, self.gathered), dim=-1)
        similarity = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B, H, N, N]
        logits = similarity + bias.permute(0, 3, 1, 2)
        logits = logits.masked_fill(~mask[:, None, None, :], -1e9 if logits.dtype != torch.float16 else -1e4)
        attention = torch.softmax(logits, dim=-1).to(value.dtype)
        from_nodes = (attention @ value).transpose(1, 2).reshape(batch, n, width)
        from_pairs = (attention.transpose(1, 2) @ gathered.to(value.dtype)).reshape(
            batch, n, -1
        )  # [B, N, H·g]
        h = h + gate_1 * self.out(torch.cat((from_nodes, from_pairs), dim=-1))

        # 2. vectors move along differences of coordinate sets, in full precision
        with torch.autocast(device_type=h.device.type, enabled=False):
            p = self.coordinates(v)  # [B, 3, N, S]
            difference = p.unsqueeze(3) - p.unsqueeze(2)  # fused away: [B, 3, N, N, S]
            distance = (difference.square().sum(1) + 1e-8).sqrt()  # [B, N, N, S]
            w = weight.to(p.dtype) * mask[:, None, :, None].to(p.dtype) / (1 + distance)
            moved = (w.unsqueeze(1) * difference).sum(3)
            v = v + self.vector_out(moved)

        # 3. a perceptron on scalars and the norms of vectors; it gates a mix of the vectors
        x = self.mlp_norm(h) * (1 + scale_2) + shift_2
        with torch.autocast(device_type=h.device.type, enabled=False):
            first, second = self.vector_in(v).chunk(2, dim=-1)
            inner = (first * second).sum(1)
            inner = inner / (1 + inner.abs())
            features = [x, inner.to(x.dtype)]
            if self.triple is not None:
                a, b, c = self.triple(v).chunk(3, dim=-1)
                chiral = (torch.linalg.cross(a, b, dim=1) * c).sum(1)
                chiral = chiral / (1 + chiral.abs())
                features.append((chiral if handedness is None else chiral * handedness).to(x.dtype))
        y = self.mlp_out(F.silu(self.mlp_in(torch.cat(features, dim=-1))))
        update, gate = y.split((width, inner.shape[-1]), dim=-1)
        h = h + gate_2 * update
        with torch.autocast(device_type=h.device.type, enabled=False):
            v = v + self.vector_mix(first * gate.to(v.dtype).unsqueeze(1))

        # 4. pairs
        z = torch.cat(
            (e_norm, distance.to(e_norm.dtype), similarity.permute(0, 2, 3, 1).to(e_norm.dtype)), dim=-1
        )
        hidden = self.pair_in(z)
        hidden += self.left(h).unsqueeze(2)  # in place: one pass over the pairs less, each
        hidden += self.right(h).unsqueeze(1)
        e = e + self.pair_out(F.silu(hidden, inplace=not torch.is_grad_enabled()))
        return h, v, e


class EquivariantTransformer(nn.Module):
    """A stack of `EquivariantBlock` with one shared time projection.

    Arguments:
        depth: number of blocks; the rest are those of `EquivariantBlock`.
        time_width: width of the time embedding given to `forward`.
    """

    def __init__(
        self,
        *,
        depth: int = 8,
        width: int = 256,
        vectors: int = 32,
        pair_width: int = 64,
        heads: int = 8,
        sets: int = 16,
        pair_hidden: int = 128,
        gathered: int = 16,
        time_width: int = 128,
        pseudoscalars: int = 0,
    ) -> None:
        super().__init__()
        self.time = nn.Linear(time_width, _MODULATIONS * width)
        nn.init.normal_(self.time.weight, std=0.02)
        with torch.no_grad():  # gates start open, scales and shifts at rest
            self.time.bias.zero_()
            self.time.bias.view(_MODULATIONS, width)[[2, 5]] = 1.0
        self.blocks = nn.ModuleList(
            EquivariantBlock(
                width=width,
                vectors=vectors,
                pair_width=pair_width,
                heads=heads,
                sets=sets,
                pair_hidden=pair_hidden,
                gathered=gathered,
                pseudoscalars=pseudoscalars,
            )
            for _ in range(depth)
        )

    def compile_blocks(self) -> None:
        """Compile the repeated block, once for every shape it meets, and never the unrolled stack."""
        import torch._dynamo

        for name in (
            "recompile_limit",
            "cache_size_limit",
        ):  # the newer and the older name; two graphs for each shape
            if hasattr(torch._dynamo.config, name):
                setattr(torch._dynamo.config, name, 64)
        for block in self.blocks:
            block.compile(dynamic=False)

    def graph(self, mask: Tensor, positions: Sequence[Tensor], bonds: Tensor) -> Complete:
        """All pairs."""
        return Complete(mask)

    def forward(
        self,
        h: Tensor,
        v: Tensor,
        e: Tensor,
        time: Tensor,
        graph: Graph,
        handedness: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`time` is `[B, time_width]`; the others as in `EquivariantBlock`."""
        modulation = self.time(time).reshape(time.shape[0], _MODULATIONS, -1)
        for block in self.blocks:
            h, v, e = block(h, v, e, modulation, graph.mask, handedness)
        return h, v, e

"""A plain transformer whose blocks are told a condition: sets (no positions, a mask) and patches (positions added outside).

With `(γ, β, g) = Linear(c)` of the condition `c`, each half of a block is

    x ← x + g ⊙ F((1 + γ) ⊙ LayerNorm(x) + β),        F attention, then a perceptron;

`g` starts at zero, so that a fresh block is the identity (Peebles and Xie 2023, adaLN-Zero). Without positions it commutes
with permutations of the rows. Attention is written out where there is a mask or a bias of pairs, in softmax of float32: sets
are small, and every shape can then be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perrin.nets.linear import linear


class AdaptiveBlock(nn.Module):
    """One block.

    Arguments:
        width: of a row.
        heads: of attention.
        condition: width of the condition.
        expansion: of the perceptron.
    """

    def __init__(self, width: int, heads: int, condition: int, expansion: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"expected a width that is a multiple of the heads, given {width} and {heads}")
        self.heads = heads
        self.modulation = nn.Linear(condition, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(expansion * width, width),
        )
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x` `[B, N, width]`, `c` `[B, condition]`; `bias` `[B, heads or 1, N, N]` is added to the logits."""
        g1, b1, o1, g2, b2, o2 = linear(self.modulation, c).unsqueeze(1).chunk(6, dim=-1)
        x = x + o1 * self._attention(_normed(x) * (1 + g1) + b1, bias)
        up, _, down = self.mlp
        h = linear(up, _normed(x) * (1 + g2) + b2, gelu=True)
        return x + o2 * linear(down, h)

    def _attention(self, x: Tensor, bias: Tensor | None) -> Tensor:
        b, n, w = x.shape
        q, k, v = (
            linear(self.qkv, x).reshape(b, n, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        if bias is None:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            logits = (q @ k.transpose(-1, -2)).float() * (w // self.heads) ** -0.5 + bias
            y = torch.softmax(logits, dim=-1).to(v.dtype) @ v
        return linear(self.out, y.transpose(1, 2).reshape(b, n, w))


class AdaptiveTransformer(nn.Module):
    """`depth` blocks, and a last normalisation that is told the condition too."""

    def __init__(self, depth: int, width: int, heads: int, condition: int, expansion: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AdaptiveBlock(width, heads, condition, expansion) for _ in range(depth))
        self.last = nn.Linear(condition, 2 * width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, c: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `AdaptiveBlock.forward`."""
        for block in self.blocks:
            x = block(x, c, bias)
        g, b = self.last(c).unsqueeze(1).chunk(2, dim=-1)
        return _normed(x) * (1 + g) + b

    def compile_blocks(self) -> None:
        """Compile the repeated block, once for every shape it meets, and never the unrolled stack."""
        for block in self.blocks:
            block.compile(dynamic=False)


class AdaptiveMLP(nn.Module):
    """`x + g ⊙ Linear(SiLU(Linear((1 + γ) ⊙ LayerNorm(x) + β)))`, at first the identity."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(condition, 3 * width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """`x` `[B, width]`, `c` `[B, condition]`."""
        g, b, o = linear(self.modulation, c).chunk(3, dim=-1)
        h = F.silu(linear(self.up, _normed(x) * (1 + g) + b))
        return x + o * linear(self.down, h)


class ResidualMLP(nn.Module):
    """A perceptron for vectors, told a condition in every block."""

    def __init__(self, depth: int, width: int, condition: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AdaptiveMLP(width, condition) for _ in range(depth))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """See `AdaptiveMLP.forward`."""
        for block in self.blocks:
            x = block(x, c)
        return x


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])

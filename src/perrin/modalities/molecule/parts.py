"""Parts of a molecule that are given to the network without noise, atom by atom.

Three flags say what is known of an atom:

- `typed`: its element and formal charge;
- `bonded`: its bonds to all other atoms with this flag, and that there is none to the rest of them;
- `placed`: its position relative to all other atoms with this flag.

Everything typed and bonded is a molecular graph, and sampling is conformer generation; a fragment with all three is an
edit; the heavy atoms with all three, the placing of hydrogens.

The state is noised as ever, what is given included. The network is shown the known values in place of the noised ones:
types, charges and bonds as they are, and of the placed atoms their true shape, moved to where their centroid is in the
noised state. In a space of zero centre of mass, shape and centroid of the placed atoms are orthogonal, with independent
noise; so nothing that bears on the answer is hidden, and the posterior mean is a function of what is shown. The estimate
is corrected likewise: what is known is not predicted, nor does it enter the loss, but the centroid does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from perrin.core import State
from perrin.modalities.molecule.fields import BONDS, CHARGES, POSITIONS, TYPES

FLAGS = ("typed", "bonded", "placed")
_SURE = 30.0
"""Logit of a known category, over 0 for the others: a cross entropy of e⁻³⁰."""


def centred_on(known: Tensor, x: Tensor, placed: Tensor) -> Tensor:
    """`x` `[B, N, 3]` with the rows `placed` `[B, N]` in the shape that they have in `known`, about their centroid in x."""
    rows = placed.unsqueeze(-1)
    count = rows.sum(1, keepdim=True).clamp(min=1).to(x.dtype)
    apart = torch.where(rows, x - known.to(x.dtype), 0).sum(1, keepdim=True) / count
    return torch.where(rows, known.to(x.dtype) + apart, x)


def pairs(flag: Tensor) -> Tensor:
    """`[B, N]` to `[B, N, N]`: where both have it."""
    return flag.unsqueeze(2) & flag.unsqueeze(1)


def shown(x: State, condition: Mapping[str, Any]) -> State:
    """What the network sees in place of the state `x`, whose positions have unit scale where there is no noise."""
    known, typed, bonded, placed = condition["known"], *(condition[k] for k in FLAGS)
    return {
        **x,
        POSITIONS: centred_on(known[POSITIONS], x[POSITIONS], placed),
        TYPES: torch.where(typed, known[TYPES], x[TYPES]),
        CHARGES: torch.where(typed, known[CHARGES], x[CHARGES]),
        BONDS: torch.where(pairs(bonded), known[BONDS], x[BONDS]),
    }


def corrected(estimate: State, condition: Mapping[str, Any]) -> State:
    """The estimate (positions, and logits) with what is known in place of what was predicted."""
    known, typed, bonded, placed = condition["known"], *(condition[k] for k in FLAGS)
    out = {**estimate, POSITIONS: centred_on(known[POSITIONS], estimate[POSITIONS], placed)}
    for name, where in ((TYPES, typed), (CHARGES, typed), (BONDS, pairs(bonded))):
        logits = estimate[name]
        sure = _SURE * F.one_hot(known[name].long(), logits.shape[-1]).to(logits.dtype)
        out[name] = torch.where(where.unsqueeze(-1), sure, logits)
    return out


@dataclass(frozen=True, kw_only=True)
class PartsLaw:
    """How parts are drawn in training.

    Arguments:
        none: share of molecules without anything given.
        graph: … with the whole graph given; of these, `pinned` have the positions of a fragment too.
        fragment: … with a connected fragment.
        complement: … with all but a connected fragment, so that what is given may be in pieces.
        scaffold: … with the ring systems and what links them (a molecule without rings: a fragment).
        heavy: … with all heavy atoms. What is left of the shares has nothing given but the elements.
        pinned: see `graph`.
        hydrogens: share of the partial ones in which the other hydrogens are known as such.
    """

    none: float = 0.45
    graph: float = 0.2
    fragment: float = 0.12
    complement: float = 0.1
    scaffold: float = 0.08
    heavy: float = 0.03
    pinned: float = 0.15
    hydrogens: float = 0.7

    def draw(
        self, x_0: State, mask: Tensor, *, hydrogen: int | None, most: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Flags `[B, N]` for clean molecules.

        Arguments:
            hydrogen: the category of hydrogen; `None` for a vocabulary without.
            most: heavy atoms of the largest molecule.
        """
        batch, n = mask.shape

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=mask.device)

        light = (x_0[TYPES] == hydrogen) & mask if hydrogen is not None else torch.zeros_like(mask)
        heavy = mask & ~light
        adjacent = (x_0[BONDS] > 0) & pairs(mask)
        among_heavy = adjacent & pairs(heavy)
        count = heavy.sum(1)
        target = 1 + (uniform(batch) * (count - 1).clamp(min=0)).long()  # 1 … count − 1
        grown = grow(heavy, among_heavy, target, uniform(batch, n), steps=most)
        core = two_core(heavy, among_heavy, steps=most)
        cyclic = core.any(1, keepdim=True)

        edges = torch.tensor(
            [self.none, self.graph, self.fragment, self.complement, self.scaffold, self.heavy],
            device=mask.device,
        ).cumsum(0)
        kind = torch.bucketize(uniform(batch), edges, right=True)[:, None]
        chosen = torch.where(kind == 3, heavy & ~grown, grown)
        chosen = torch.where((kind == 4) & cyclic, core, chosen)
        chosen = torch.where(kind == 5, heavy, chosen)
        # hydrogens of given atoms: none, all, or those of atoms that a coin picks
        full = torch.where(
            uniform(batch, 1) < 1 / 3, uniform(batch, n) < 0.5, (uniform(batch, 1) < 0.5).expand(batch, n)
        )
        own = light & (adjacent & (chosen & full & (kind != 5)).unsqueeze(1)).any(2)
        part = (chosen | own) & (kind >= 2) & (kind <= 5)
        graph = mask & (kind == 1)
        pinned = (grown | (light & (adjacent & grown.unsqueeze(1)).any(2))) & (
            uniform(batch, 1) < self.pinned
        )
        named = light & (kind >= 2) & (kind <= 5) & (uniform(batch, 1) < self.hydrogens)
        return {
            "typed": graph | part | named | (mask & (kind == 6)),
            "bonded": graph | part,
            "placed": part | (graph & pinned),
        }


def grow(heavy: Tensor, adjacent: Tensor, target: Tensor, score: Tensor, *, steps: int) -> Tensor:
    """Connected sets of `target` `[B]` atoms: from the best of `heavy` on, the best neighbour joins, `[B, N]` bool.

    Arguments:
        adjacent: `[B, N, N]`, among heavy atoms.
        score: distinct numbers above 0, `[B, N]`.
        steps: enough for the largest target.
    """
    rows = torch.arange(heavy.shape[1], device=heavy.device)
    score = score + 1e-3  # above 0
    best = torch.where(heavy, score, 0.0).argmax(1, keepdim=True)
    out = (rows == best) & heavy
    for size in range(1, steps):
        near = (adjacent & out.unsqueeze(1)).any(2) & ~out
        value = torch.where(near, score, 0.0)
        top = value.argmax(1, keepdim=True)
        out = out | ((rows == top) & near & (target > size)[:, None])
    return out


def two_core(heavy: Tensor, adjacent: Tensor, *, steps: int) -> Tensor:
    """What is left when atoms with at most one neighbour are taken away, again and again: rings and their linkers."""
    out = heavy
    for _ in range(steps):
        degree = (adjacent & pairs(out)).sum(2)
        out = out & (degree > 1)
    return out


def everything(known: State, mask: Tensor) -> dict[str, Any]:
    """A condition in which all molecules' graphs are given, for conformers."""
    return {"known": dict(known), "typed": mask, "bonded": mask, "placed": torch.zeros_like(mask)}


def none_given(state: State, mask: Tensor) -> dict[str, Any]:
    """A condition in which nothing is given."""
    empty = torch.zeros_like(mask)
    return {"known": dict(state), **dict.fromkeys(FLAGS, empty)}


def flags_of(batch: Mapping[str, Tensor], fields: Sequence[str]) -> dict[str, Any]:
    """The condition that a training batch holds: its flags, and the clean state as what is known."""
    return {k: batch[k] for k in FLAGS} | {"known": {k: batch[f"x_0.{k}"] for k in fields}}

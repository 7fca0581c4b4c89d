"""The molecule denoiser: embeddings, a trunk, and a head for each field.

The trunk is a `perrin.nets.graph.Trunk`; what is before and behind it is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perrin.core import EDMHead, Layouts, LogitsHead, NetworkDenoiser, Padded, State
from perrin.errors import PerrinError, install
from perrin.modalities.molecule import BACKBONES
from perrin.modalities.molecule.fields import (
    BOND_ORDERS,
    BONDS,
    CHARGES,
    POSITIONS,
    TYPES,
    Vocabulary,
    molecule_process,
)
from perrin.modalities.molecule.parts import FLAGS, centred_on, none_given, pairs, shown
from perrin.modalities.molecule.properties import Range, ranges_from_json
from perrin.nets import EquivariantTransformer, IntervalEmbedding, RadialBasis, TimeEmbedding
from perrin.nets.graph import Trunk


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which trunk, and its sizes.

    Arguments:
        depth … time_width: see `EquivariantTransformer`; `radial` is the size of the basis of distances.
        backbone: `transformer` (`EquivariantTransformer`), `e3nn` (`IrrepsNetwork`; `gathered` channels in a message,
            no heads and sets) or `sparse` (`SparseNetwork`).
        neighbours: edges into each atom at most; larger molecules have bonds to their nearest atoms only (not the
            transformer).
        tensors: irreps of l = 2 on each atom (e3nn).
        pseudoscalars: see `EquivariantBlock` (transformer).
        self_condition: whether the network is given its estimate before (Chen et al. 2023).
        conditions: names of properties that may be wished for, see `perrin.modalities.molecule.properties`.
        parts: whether parts of the molecule may be given, see `perrin.modalities.molecule.parts`.
    """

    depth: int = 8
    width: int = 256
    vectors: int = 32
    pair_width: int = 64
    heads: int = 8
    sets: int = 16
    pair_hidden: int = 128
    gathered: int = 16
    radial: int = 32
    time_width: int = 128
    self_condition: bool = True
    backbone: str = "transformer"
    neighbours: int = 32
    tensors: int = 16
    pseudoscalars: int = 0
    conditions: tuple[str, ...] = ()
    parts: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", tuple(self.conditions))  # JSON has lists
        if len(set(self.conditions)) < len(self.conditions):
            raise ValueError(f"expected each condition once, given {', '.join(self.conditions)}")
        if self.backbone not in BACKBONES:
            raise ValueError(f"expected a backbone ({', '.join(BACKBONES)}), given {self.backbone!r}")
        if self.neighbours < 1:
            raise ValueError(f"expected at least 1 neighbour, given {self.neighbours}")
        if self.pseudoscalars and self.backbone != "transformer":
            raise ValueError(f"expected the transformer for pseudoscalars, given {self.backbone!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain values. What came later is left out while it says nothing, so that older readers know all names."""
        late = ("self_condition", "backbone", "neighbours", "tensors", "pseudoscalars", "conditions", "parts")
        idle = {f.name for f in fields(self) if f.name in late and getattr(self, f.name) == f.default}
        return {k: x for k, x in asdict(self).items() if k not in idle}


@dataclass(frozen=True, kw_only=True)
class MoleculeConfig:
    """Everything that a bundle's `config.json` says about a molecule model.

    Arguments:
        ranges: the properties `network.conditions` in the training data, in that order.
    """

    vocabulary: Vocabulary
    network: NetworkConfig = field(default_factory=NetworkConfig)
    bond_exponent: float = 1.0
    type_exponent: float = 1.0
    ranges: tuple[Range, ...] = ()

    def __post_init__(self) -> None:
        if tuple(r.name for r in self.ranges) != self.network.conditions:
            raise ValueError(
                f"expected the ranges of {', '.join(self.network.conditions) or 'nothing'}, given those of "
                f"{', '.join(r.name for r in self.ranges) or 'nothing'}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        out = asdict(self) | {"network": self.network.to_json()}
        return {k: x for k, x in out.items() if k != "ranges" or x}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MoleculeConfig:
        """The inverse of `to_json`. Raises `TypeError` or `KeyError` when a name is unknown or missing."""
        rest = {k: x for k, x in data.items() if k not in ("vocabulary", "network", "ranges")}
        return cls(
            vocabulary=Vocabulary.from_json(data["vocabulary"]),
            network=NetworkConfig(**data["network"]),
            ranges=ranges_from_json(data.get("ranges", ())),
            **rest,
        )


class MoleculeNetwork(nn.Module):
    """`(fields, t) → outputs per field`; equivariant under rotations, reflections and permutations.

    What it is told beside the state is `condition`, a mapping: `intervals` `[B, P, 2]` of a network with `conditions`;
    `known` (a clean state) and the flags of `parts`, of a network with parts. What is left out is not wished for, not known.

    With `pseudoscalars`, under reflections only if `condition["handedness"]` turns its sign with them: `[B]` or `[B, N]`,
    1 where it is not given and 0 to be blind to it.

    Input fields are those of `perrin.modalities.molecule.fields`, with positions scaled by their head; `previous`, the
    estimate before, is used when given to a network with self-conditioning.
    """

    def __init__(self, config: NetworkConfig, *, types: int, charges: int) -> None:
        super().__init__()
        self.config, self.types, self.charges = config, types, charges
        c = config
        self.time = TimeEmbedding(c.time_width)
        self.radial = RadialBasis(c.radial)
        looks = 2 if c.self_condition else 1  # at the state, and at the estimate before
        self.looks = looks
        flags = (len(FLAGS), 2) if c.parts else (0, 0)  # of atoms, of pairs; the last columns, see `widen`
        self.node_in = nn.Linear(looks * (types + charges + 1) + flags[0], c.width)
        self.time_in = nn.Linear(c.time_width, c.width, bias=False)
        self.vector_in = nn.Linear(looks, c.vectors, bias=False)
        self.pair_in = nn.Sequential(
            nn.Linear(looks * (BOND_ORDERS + c.radial + 1) + flags[1], c.pair_hidden),
            nn.SiLU(),
            nn.Linear(c.pair_hidden, c.pair_width),
        )
        self.condition_in = (
            IntervalEmbedding(len(c.conditions), c.time_width, hidden=c.width) if c.conditions else None
        )
        self.trunk = build_trunk(c)
        self.node_out = nn.Sequential(nn.LayerNorm(c.width), nn.Linear(c.width, types + charges))
        self.position_out = nn.Linear(c.vectors, 1, bias=False)
        self.pair_out = nn.Sequential(
            nn.LayerNorm(c.pair_width),
            nn.Linear(c.pair_width, c.pair_width),
            nn.SiLU(),
            nn.Linear(c.pair_width, BOND_ORDERS),
        )

    def forward(
        self,
        fields: State,
        t: Tensor,
        *,
        condition: Any = None,
        layouts: Layouts,
        previous: State | None = None,
    ) -> State:
        """See the class.

        Raises:
            ValueError: the condition has what the network is not made for.
        """
        rows = layouts[POSITIONS]
        assert isinstance(rows, Padded)
        mask = rows.mask
        told = self._check(condition)
        dtype = fields[POSITIONS].dtype
        given = (told if "known" in told else none_given(fields, mask)) if self.config.parts else None
        if given is not None:
            fields = shown(fields, given)
        x = fields[POSITIONS]
        node = [_one_hot(fields[TYPES], self.types, dtype), _one_hot(fields[CHARGES], self.charges, dtype)]
        previous = previous if self.looks == 2 else None
        before: list[Tensor] = []
        if previous is not None:
            before = [torch.softmax(previous[k].to(dtype), dim=-1) for k in (TYPES, CHARGES, BONDS)]
            last = previous[POSITIONS].to(dtype)
            if given is not None:  # the estimate before knew as much
                last = centred_on(given["known"][POSITIONS], last, given["placed"])
                before = [
                    torch.where(w.unsqueeze(-1), _one_hot(given["known"][k], p.shape[-1], dtype), p)
                    for k, w, p in zip(
                        (TYPES, CHARGES, BONDS),
                        (given["typed"], given["typed"], pairs(given["bonded"])),
                        before,
                        strict=True,
                    )
                ]
        seen = [x] if previous is None else [x, last]
        graph = self.trunk.graph(mask, seen, fields[BONDS])
        pair = [_one_hot(graph.select(fields[BONDS]), BOND_ORDERS, dtype)]
        if self.looks == 2:
            if previous is None:
                seen += [torch.zeros_like(x)]
                node += [torch.zeros_like(n) for n in node]
                pair += [torch.zeros_like(pair[0])]
            else:
                node += before[:2]
                pair += [graph.select(before[2])]
            node += [x.new_full((*x.shape[:2], 1), float(previous is not None))]
        node += [(rows.rows().to(dtype) / 16.0)[:, None, None].expand(*x.shape[:2], 1)]

        distances = [graph.distance(y) for y in seen]
        pair += [self.radial(d) for d in distances] + [torch.log1p(d).unsqueeze(-1) for d in distances]
        if given is not None:
            node += [given[k].to(dtype).unsqueeze(-1) for k in FLAGS]
            both = torch.stack([pairs(given[k]) for k in FLAGS[1:]], dim=-1)
            pair += [graph.select(both).to(dtype)]
        time = self.time(t.to(dtype))
        if self.condition_in is not None and "intervals" in told:
            time = time + self.condition_in(told["intervals"], time).to(time.dtype)
        h = self.node_in(torch.cat(node, dim=-1)) + self.time_in(time).unsqueeze(1)
        v = self.vector_in(torch.stack(seen, dim=-1)).transpose(1, 2)  # [B, 3, N, c]
        e = self.pair_in(torch.cat(pair, dim=-1))

        h, v, e = self.trunk(h, v.to(dtype), e, time, graph, **self._more(told))

        types, charges = self.node_out(h).split((self.types, self.charges), dim=-1)
        with torch.autocast(device_type=x.device.type, enabled=False):
            moved = self.position_out(v).squeeze(-1).transpose(1, 2)  # [B, N, 3]
        bonds = graph.logits(self.pair_out(graph.symmetric(e)))
        return {
            POSITIONS: rows.center(moved.to(dtype)),
            TYPES: types.to(dtype),
            CHARGES: charges.to(dtype),
            BONDS: bonds.to(dtype),
        }

    def _check(self, condition: Any) -> Mapping[str, Any]:
        """The condition, or a `ValueError` where the network is not made for it."""
        told: Mapping[str, Any] = condition if isinstance(condition, Mapping) else {}
        if "handedness" in told and not self.config.pseudoscalars:
            raise ValueError("expected a network with pseudoscalars for a handedness, given one without")
        if "known" in told and not self.config.parts:
            raise ValueError("expected a network with parts for what is known, given one without")
        if "intervals" in told and told["intervals"].shape[1] != len(self.config.conditions):
            raise ValueError(
                f"expected intervals of {len(self.config.conditions)} properties, given {told['intervals'].shape[1]}"
            )
        return told

    def _more(self, told: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the trunk is told beside the molecule."""
        if "handedness" not in told:
            return {}
        handedness: Tensor = told["handedness"]
        return {"handedness": handedness.reshape(len(handedness), -1, 1)}


def _one_hot(index: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return F.one_hot(index.long(), size).to(dtype)


def build_trunk(c: NetworkConfig) -> Trunk:
    """The trunk of a configuration.

    Raises:
        PerrinError: the package that it is written with is not installed.
    """
    sizes: dict[str, Any] = {
        "depth": c.depth,
        "width": c.width,
        "vectors": c.vectors,
        "pair_width": c.pair_width,
        "pair_hidden": c.pair_hidden,
        "time_width": c.time_width,
    }
    attention = {"heads": c.heads, "sets": c.sets, "gathered": c.gathered}
    try:
        if c.backbone == "e3nn":
            from perrin.nets.irreps import IrrepsNetwork

            return IrrepsNetwork(**sizes, neighbours=c.neighbours, tensors=c.tensors, channels=c.gathered)
        if c.backbone == "sparse":
            from perrin.nets.sparse import SparseNetwork

            return SparseNetwork(**sizes, **attention, neighbours=c.neighbours)
    except ModuleNotFoundError as error:
        raise PerrinError(
            f"expected the package {(error.name or '').partition('.')[0]} for the backbone {c.backbone!r}, found none: "
            f"{install('molecule')}"
        ) from error
    return EquivariantTransformer(**sizes, **attention, pseudoscalars=c.pseudoscalars)


def build_denoiser(config: MoleculeConfig) -> NetworkDenoiser:
    """A fresh denoiser for a configuration, on the CPU in float32."""
    vocabulary = config.vocabulary
    process = molecule_process(
        vocabulary, bond_exponent=config.bond_exponent, type_exponent=config.type_exponent
    )
    network = MoleculeNetwork(config.network, types=len(vocabulary.elements), charges=len(vocabulary.charges))
    heads = {
        POSITIONS: EDMHead(sigma_data=1.0),
        TYPES: LogitsHead(),
        CHARGES: LogitsHead(),
        BONDS: LogitsHead(),
    }
    return NetworkDenoiser(network, process, heads)

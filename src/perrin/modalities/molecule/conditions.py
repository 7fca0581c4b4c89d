"""What a network is told beside the state, chosen before it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from perrin.modalities.molecule.dataset import Bucket
from perrin.modalities.molecule.network import MoleculeConfig
from perrin.modalities.molecule.properties import Table, measure, standardise
from perrin.modalities.molecule.qm9_prepare import PROPERTIES


def with_inputs(
    config: MoleculeConfig, buckets: Sequence[Bucket], names: Sequence[str], *, parts: bool, data: bool
) -> tuple[MoleculeConfig, Table | None]:
    """The configuration with conditions and parts, and the molecules that sizes are drawn from.

    Arguments:
        names: of the buckets' values; those that `config` has already come first, and keep their ranges.
        parts: whether parts can be given; what `config` has, stays.
        data: whether the values are the user's data items, which have no unit.

    Raises:
        PerrinError: a property has fewer than two different values.
    """
    network = replace(config.network, conditions=tuple(names), parts=parts or config.network.parts)
    if not names:
        return replace(config, network=network), None
    values = torch.cat([b.values for b in buckets if b.values is not None])
    fresh = list(names)[len(config.ranges) :]
    new = measure(
        fresh,
        {} if data else {k: unit for k, (_, unit) in PROPERTIES.items()},
        values[:, len(config.ranges) :],
    )
    ranges = (*config.ranges, *new)
    sizes = torch.cat([b.mask.sum(1) for b in buckets])
    table = Table.choose(sizes, standardise(values, ranges))
    return replace(config, network=network, ranges=ranges), table

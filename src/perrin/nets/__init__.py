"""Reusable networks. They know nothing of files, data sets or noise schedules."""

from perrin.nets.equivariant import EquivariantBlock, EquivariantTransformer
from perrin.nets.features import RadialBasis, TimeEmbedding

__all__ = ["EquivariantBlock", "EquivariantTransformer", "RadialBasis", "TimeEmbedding"]

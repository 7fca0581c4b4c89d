"""Reusable networks. They know nothing of files, data sets or noise schedules.

`perrin.nets.irreps` (e3nn) and `perrin.nets.sparse` (torch-geometric) are imported by whoever needs them: they take
seconds to load.
"""

from perrin.nets.equivariant import EquivariantBlock, EquivariantTransformer
from perrin.nets.features import IntervalEmbedding, RadialBasis, TimeEmbedding
from perrin.nets.graph import Complete, Edges, Graph, Trunk

__all__ = [
    "Complete",
    "Edges",
    "EquivariantBlock",
    "EquivariantTransformer",
    "Graph",
    "IntervalEmbedding",
    "RadialBasis",
    "TimeEmbedding",
    "Trunk",
]

"""What generated molecules are worth, by two protocols that are never mixed, **lookup** and **bonds**, and by further
measures.

See `perrin.modalities.molecule.metrics.lookup` and `…metrics.bonds` for the protocols' definitions; `…metrics.relax`,
`posebusters`, `fcd`, `geometry` and `composition` for the measures, which `Measures` chooses; `evaluate` for the
numbers.
"""

from perrin.modalities.molecule.metrics.measures import Measures, measure
from perrin.modalities.molecule.metrics.reference import Reference, qm9_reference
from perrin.modalities.molecule.metrics.relax import RelaxOptions
from perrin.modalities.molecule.metrics.report import PROTOCOLS, PUBLISHED, evaluate, format_table, tables

__all__ = [
    "PROTOCOLS",
    "PUBLISHED",
    "Measures",
    "Reference",
    "RelaxOptions",
    "evaluate",
    "format_table",
    "measure",
    "qm9_reference",
    "tables",
]

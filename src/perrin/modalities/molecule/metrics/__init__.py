"""What generated molecules are worth, by two protocols that are never mixed: **lookup** and **bonds**.

See `perrin.modalities.molecule.metrics.lookup` and `…metrics.bonds` for their definitions, `evaluate` for
the numbers.
"""

from perrin.modalities.molecule.metrics.report import PROTOCOLS, PUBLISHED, evaluate, format_table, tables

__all__ = ["PROTOCOLS", "PUBLISHED", "evaluate", "format_table", "tables"]

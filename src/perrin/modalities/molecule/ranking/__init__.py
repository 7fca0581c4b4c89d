"""Ranking of molecules: descriptors, xTB, filters, duplicates, known molecules, diversity.

`rank(molecules, RankOptions(by="qed,-sa", where=("MW<150",)))` is `perrin rank` in Python.
"""

from perrin.modalities.molecule.ranking.columns import COLUMNS, Column, descriptors
from perrin.modalities.molecule.ranking.diverse import pick_diverse
from perrin.modalities.molecule.ranking.identity import Known, read_known
from perrin.modalities.molecule.ranking.rank import Ranked, RankOptions, rank
from perrin.modalities.molecule.ranking.table import write_table
from perrin.modalities.molecule.ranking.wishes import Key, Where, parse_keys, parse_where

__all__ = [
    "COLUMNS",
    "Column",
    "Key",
    "Known",
    "RankOptions",
    "Ranked",
    "Where",
    "descriptors",
    "parse_keys",
    "parse_where",
    "pick_diverse",
    "rank",
    "read_known",
    "write_table",
]

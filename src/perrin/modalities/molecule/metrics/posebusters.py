"""Plausibility by PoseBusters, configuration `mol_fast` (Buttenschoen, Morris and Deane, Chem. Sci. 15, 3130 (2024)).

The checks are those of the installed package's file `mol_fast.yml`, unchanged; in 0.6 they are: it loads, RDKit
sanitises it, InChI can be made, one fragment, no radicals, bond lengths and angles within 25 % of the bounds of
distance geometry, no internal clash (30 %; both without hydrogens), flat aromatic rings and double bonds (0.25 Å),
and no flat saturated six-ring. The energy ratio of `mol` is not part of `mol_fast`. The molecule is given as it is,
hydrogens included and not sanitised, as the package itself reads an SDF. A molecule passes when every check does. A
check that cannot be made, because RDKit finds the valences wrong, is not passed; but each check's own rate is that
among the molecules for which it was made.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from perrin.modalities.molecule.metrics.packages import require
from perrin.modalities.molecule.metrics.statistics import Metrics, proportion
from perrin.modalities.molecule.structure import Molecule

CONFIG = "mol_fast"
_CHUNK = 50
_WORK: dict[str, Any] = {}


def bust(
    molecules: Sequence[Molecule],
    *,
    workers: int = 1,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[tuple[str, ...], np.ndarray]:
    """Run the checks.

    Returns:
        names of the checks, and `[molecules, checks]`, int8: 1 passed, 0 not passed, −1 could not be made.

    Raises:
        PerrinError: the package `posebusters` is not there, or a molecule has no bonds (`None`).
    """
    from perrin.run.pool import map_unordered

    require("posebusters", "the plausibility checks")
    starts = range(0, len(molecules), _CHUNK)
    found: dict[int, tuple[tuple[str, ...], np.ndarray]] = {}
    for start, result in map_unordered(
        _run, starts, workers=workers, setup=_setup, arguments=(list(molecules),)
    ):
        found[start] = result
        advance(len(result[1]))
    names = found[0][0] if found else ()
    return names, np.concatenate([found[s][1] for s in starts]) if found else np.zeros((0, 0), dtype=np.int8)


def bust_metrics(names: Sequence[str], passed: np.ndarray) -> Metrics:
    """The share that passes every check, then each check's own among the molecules for which it was made."""
    metrics: Metrics = {"all": proportion(np.all(passed == 1, axis=1))}
    return metrics | {name: proportion(passed[passed[:, k] >= 0, k] == 1) for k, name in enumerate(names)}


def _setup(molecules: list[Molecule]) -> None:
    from posebusters import PoseBusters

    _WORK.update(molecules=molecules, checks=PoseBusters(config=CONFIG, max_workers=0))


def _run(start: int) -> tuple[tuple[str, ...], np.ndarray]:
    from perrin.modalities.molecule.chem import to_rdkit

    mols = [to_rdkit(molecule) for molecule in _WORK["molecules"][start : start + _CHUNK]]
    with _silent():
        table = _WORK["checks"].bust(mols)
    values = table.to_numpy(dtype=object)
    made = np.array([[isinstance(v, bool | np.bool_) for v in row] for row in values])
    return tuple(map(str, table.columns)), np.where(made, values == True, -1).astype(np.int8)  # noqa: E712 (objects)


@contextmanager
def _silent() -> Iterator[None]:
    """The package sends RDKit's messages to Python's logging, whose stream it resets; both are put back as they were."""
    import rdkit

    logger, handler = logging.getLogger("rdkit"), rdkit.log_handler
    level, stream = logger.level, handler.stream
    logger.setLevel(logging.CRITICAL + 1)
    handler.stream = (
        sys.stderr
    )  # that of the last call may be closed, and the package then reports false failures
    try:
        yield
    finally:
        logger.setLevel(level)
        handler.stream = stream

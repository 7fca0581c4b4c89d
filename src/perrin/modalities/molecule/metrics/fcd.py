r"""Fréchet ChemNet distance (Preuer et al., J. Chem. Inf. Model. 58, 1736 (2018)), of SMILES alone: no geometry is
looked at.

With mean `μ` and covariance `C` of ChemNet's 512 last activations,

    FCD = |μ_g − μ_r|² + Tr(C_g + C_r − 2 (C_g C_r)^{1/2}).

The network is the one that the package `fcd` ships; its SMILES are padded to 350 letters as the package does. The
trace of the root is the sum of the singular values of `C_g^{1/2} C_r^{1/2}`, in float64: exact to rounding where few
molecules make the covariances singular.

Protocol of JODO (Huang et al., arXiv:2305.12347, `evaluation/mose_metric.py` of its repository), which published
0.138 on QM9 for 10,000 samples: the *different* SMILES, canonical, without stereochemistry and with implicit
hydrogens, of the molecules that RDKit sanitises (fragments stay together, joined by a dot), against the different
SMILES of a *test* split of 10 % of QM9 (13,083 molecules). The split's members differ from JODO's, its size does not.
FCD falls with the number of samples: compare at equal n only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perrin.errors import PerrinError
from perrin.modalities.molecule.metrics.packages import require
from perrin.modalities.molecule.structure import Molecule

_CHUNK = 128
_WORK: dict[str, Any] = {}

Statistics = tuple[np.ndarray, np.ndarray]
"""Mean `[512]` and covariance `[512, 512]`."""


def fcd_smiles(molecules: Sequence[Molecule]) -> list[str]:
    """The different SMILES of the molecules that RDKit sanitises, sorted.

    Raises:
        PerrinError: a molecule has no bonds (`None`).
    """
    from perrin.modalities.molecule.chem import canonical_smiles, sanitize, to_rdkit

    mols = (sanitize(to_rdkit(molecule)) for molecule in molecules)
    found = {canonical_smiles(mol) for mol in mols if mol is not None}
    return sorted(smiles for smiles in found if smiles)


def statistics(
    smiles: Sequence[str],
    *,
    workers: int = 1,
    cache: Path | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Statistics:
    """Mean and covariance of ChemNet's activations, in processes of one thread each.

    Arguments:
        smiles: at least two; their order does not matter, repeats count.
        cache: a folder in which the result is kept, under a name made from the SMILES and the package's version.

    Raises:
        PerrinError: fewer than two SMILES, or the package `fcd` is not there.
    """
    from perrin.run.pool import map_unordered

    version = require("fcd", "the Fréchet ChemNet distance")
    if len(smiles) < 2:
        raise PerrinError(
            f"expected at least 2 different valid molecules for the Fréchet ChemNet distance, given {len(smiles)}"
        )
    ordered = sorted(smiles)
    key = hashlib.sha256("\n".join([version, *ordered]).encode()).hexdigest()[:32]
    path = cache / f"{key}.npz" if cache else None
    if path and (kept := _read(path)):
        advance(len(ordered))
        return kept
    starts = range(0, len(ordered), _CHUNK)
    parts: dict[int, np.ndarray] = {}
    for start, part in map_unordered(_run, starts, workers=workers, setup=_setup, arguments=(ordered,)):
        parts[start] = part
        advance(len(part))
    activations = np.concatenate([parts[start] for start in starts]).astype(np.float64)
    result = activations.mean(0), np.cov(activations.T)
    if path:
        _write(path, result)
    return result


def frechet(a: Statistics, b: Statistics) -> float:
    """The squared Fréchet distance of two normal distributions."""
    (mu_a, cov_a), (mu_b, cov_b) = a, b
    cross = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum()
    return float(np.square(mu_a - mu_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)


def _setup(smiles: list[str]) -> None:
    import fcd

    _WORK.update(smiles=smiles, model=fcd.load_ref_model())


def _run(start: int) -> np.ndarray:
    import torch
    from fcd.utils import SmilesDataset

    chunk = SmilesDataset(_WORK["smiles"][start : start + _CHUNK], warn=False)
    letters = torch.tensor(np.stack([chunk[i] for i in range(len(chunk))]), dtype=torch.float32)
    with torch.inference_mode():
        return np.asarray(_WORK["model"](letters.transpose(1, 2)).numpy())


def _read(path: Path) -> Statistics | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["mean"], file["covariance"]
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _write(path: Path, result: Statistics) -> None:
    from perrin.run.atomic import atomic_path

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, mean=result[0], covariance=result[1])

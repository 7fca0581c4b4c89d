"""Jets in JetNet's form: HDF5 with JetNet's dataset names, NPZ, or ROOT.

`particles` `[N, 30, 4]`: η_rel, φ_rel (radians), pT_rel (each relative to its jet) and a mask of 0 and 1, hardest first;
`jets` `[N, 4]`: pT (GeV), η, mass (GeV) and the number of constituents before the cut to 30. In HDF5 the two are named
`particle_features` and `jet_features`, as in JetNet's files (Kansal et al. 2021, arXiv:2106.11535). In ROOT
they are the tree `jets`, one entry a jet: `jet_pt`, `jet_eta`, `jet_mass`, `jet_num_particles`, and the jagged branches
`part_etarel`, `part_phirel` and `part_ptrel`, which need no mask.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError
from perrin.modalities.particle.hdf5 import new_hdf5, open_hdf5
from perrin.modalities.particle.root import SUFFIX, needed, read_tree, write_tree
from perrin.run.atomic import atomic_path

WIDTH = 30
CLASSES = ("gluon", "quark", "top")
SUFFIXES = (".h5", ".hdf5", ".npz", ".root")
PARTICLE_NAMES = ("etarel", "phirel", "ptrel", "mask")
JET_NAMES = ("pt", "eta", "mass", "num_particles")


@dataclass(frozen=True)
class Jets:
    """A set of jets; see the module's text for the columns.

    Arguments:
        particles: `[N, 30, 4]`, float32.
        jets: `[N, 4]`, float32.
    """

    particles: NDArray[np.float32]
    jets: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.jets)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which rows are particles, `[N, 30]`."""
        return self.particles[..., 3] > 0

    def take(self, rows: slice | NDArray[np.intp]) -> Jets:
        """Some of the jets."""
        return Jets(self.particles[rows], self.jets[rows])


def check_jets(jets: Jets, source: object) -> Jets:
    """The jets, if they are jets.

    Raises:
        PerrinError: wrong shapes, numbers that are not finite, momenta below zero, or a jet without particles.
    """
    p, j = jets.particles, jets.jets
    if p.ndim != 3 or p.shape[1:] != (WIDTH, 4) or j.shape != (len(p), 4):
        raise PerrinError(
            f"expected jets [N, {WIDTH}, 4] and [N, 4] in {source}, given {list(p.shape)} and {list(j.shape)}: "
            "write η_rel, φ_rel, pT_rel, mask and pT, η, mass, number of constituents"
        )
    if len(p) == 0:
        raise PerrinError(f"expected at least one jet in {source}, given none: check how it was made")
    for what, bad in (
        ("finite numbers", ~(np.isfinite(p).all((1, 2)) & np.isfinite(j).all(1))),
        ("pT_rel of at least 0", (p[..., 2] < 0).any(1)),
        ("a jet pT above 0 GeV and a mass of at least 0", (j[:, 0] <= 0) | (j[:, 2] < 0)),
        ("jets with at least one particle", ~(p[..., 3] > 0).any(1)),
    ):
        if bad.any():
            raise PerrinError(
                f"expected {what} in {source}, but {bad.sum()} of {len(p)} jets differ, the first is number "
                f"{int(bad.argmax())}: leave them out"
            )
    return jets


def read_jets(path: str | Path, limit: int | None = None) -> Jets:
    """The jets of a file.

    Raises:
        PerrinError: it cannot be read, is something else, or holds what `check_jets` refuses.
    """
    if Path(path).suffix.lower() == ".npz":
        try:
            with np.load(path, allow_pickle=False) as data:
                names = [k for k in ("particles", "jets") if k not in data]
                arrays = {} if names else {k: data[k] for k in ("particles", "jets")}
        except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or "no NPZ, or a damaged one"
            raise PerrinError(f"expected jets in {path}, given {reason}: check the file") from error
        if names:
            raise PerrinError(f"expected arrays particles and jets in {path}, given none named {names[0]!r}")
        p, j = arrays["particles"], arrays["jets"]
    elif Path(path).suffix.lower() == SUFFIX:
        p, j = _from_tree(path, limit)
    else:
        with open_hdf5(path) as file:
            names = [k for k in ("particle_features", "jet_features") if k not in file]
            if names:
                raise PerrinError(
                    f"expected datasets particle_features and jet_features in {path}, given none named {names[0]!r}: "
                    "is it a file of jets?"
                )
            p, j = file["particle_features"][:limit], file["jet_features"][:limit]
    if p.dtype.kind not in "fiu" or j.dtype.kind not in "fiu":
        raise PerrinError(f"expected numbers in {path}, given {p.dtype} and {j.dtype}")
    if p.ndim == 3 and p.shape[1:] == (WIDTH, 3):  # without a mask, as JetNet's metrics take them
        p = np.concatenate([p, (np.linalg.norm(p, axis=-1, keepdims=True) > 0)], -1)
    made = Jets(np.asarray(p[:limit], dtype=np.float32), np.asarray(j[:limit], dtype=np.float32))
    return check_jets(made, path)


def check_suffix(path: str | Path) -> None:
    """Raise a `PerrinError` unless jets can be written to a file of that name."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise PerrinError(f"expected a file of jets ({', '.join(SUFFIXES)}), given {path}: change its suffix")


def write_jets(path: str | Path, jets: Jets, words: dict[str, str] | None = None) -> None:
    """Write jets, atomically; HDF5, NPZ or ROOT by the suffix."""
    check_suffix(path)
    if Path(path).suffix.lower() == ".npz":
        with atomic_path(path) as temporary, open(temporary, "wb") as out:
            np.savez_compressed(out, particles=jets.particles, jets=jets.jets)
        return
    if Path(path).suffix.lower() == SUFFIX:
        with atomic_path(path) as temporary:
            write_tree(temporary, "jets", _branches(jets), "; ".join((words or {}).values()))
        return
    with new_hdf5(path) as file:
        for name, data, columns in (
            ("particle_features", jets.particles, PARTICLE_NAMES),
            ("jet_features", jets.jets, JET_NAMES),
        ):
            found = file.create_dataset(name, data=data, compression="gzip", compression_opts=4, shuffle=True)
            found.attrs["columns"] = list(columns)
        for key, value in (words or {}).items():
            file.attrs[key] = value


def _branches(jets: Jets) -> dict[str, Any]:
    """Branches of the tree `jets`."""
    ak = needed("awkward")
    count = jets.mask.sum(1)
    columns = {
        k: ak.unflatten(jets.particles[..., i][jets.mask], count) for i, k in enumerate(PARTICLE_NAMES[:3])
    }
    return {f"jet_{k}": jets.jets[:, i].copy() for i, k in enumerate(JET_NAMES)} | {"part": ak.zip(columns)}


def _from_tree(path: str | Path, limit: int | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The arrays of a tree `jets`: of longer jets the 30 particles of the largest pT_rel."""
    ak = needed("awkward")
    names = [f"part_{k}" for k in PARTICLE_NAMES[:3]]
    tree = read_tree(path, "jets", [*(f"jet_{k}" for k in JET_NAMES), *names], limit)
    try:
        order = ak.argsort(tree[names[2]], ascending=False, stable=True)
        rows = [ak.pad_none(tree[k][order], WIDTH, clip=True) for k in names]
        mask = ~ak.to_numpy(ak.is_none(rows[0], axis=1))
        p = np.stack([*(ak.to_numpy(ak.fill_none(r, 0.0)) for r in rows), mask], -1)
        j = np.stack([ak.to_numpy(tree[f"jet_{k}"]) for k in JET_NAMES], -1)
    except (TypeError, ValueError) as error:  # of another shape or kind
        raise PerrinError(
            f"expected branches of numbers in the tree jets in {path}, given others: part_* are jagged, jet_* are not"
        ) from error
    return p.reshape(-1, WIDTH, 4), j

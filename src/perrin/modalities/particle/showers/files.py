"""Showers in CaloChallenge's HDF5 layout: `incident_energies` `[N, 1]` and `showers` `[N, 6480]`, both in MeV.

Or ROOT: the tree `showers` with branches `incident_energies` and `showers` `[6480]`, one entry a shower.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError
from perrin.modalities.particle.hdf5 import new_hdf5, open_hdf5
from perrin.modalities.particle.root import SUFFIX, read_tree, write_tree
from perrin.modalities.particle.showers.geometry import VOXELS
from perrin.run.atomic import atomic_path

NAMES = ("incident_energies", "showers")
SUFFIXES = (".h5", ".hdf5", ".root")


@dataclass(frozen=True)
class Showers:
    """A set of showers.

    Arguments:
        incident: energies of the incident particles, `[N]`, MeV.
        voxels: deposited energies, `[N, 6480]`, MeV.
    """

    incident: NDArray[np.float32]
    voxels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.incident)

    def take(self, rows: slice | NDArray[np.intp]) -> Showers:
        """Some of the showers."""
        return Showers(self.incident[rows], self.voxels[rows])


def read_showers(path: str | Path, limit: int | None = None) -> Showers:
    """The showers of a file.

    Raises:
        PerrinError: it cannot be read, or holds something else: another number of voxels, negative energies, NaN.
    """
    if Path(path).suffix.lower() == SUFFIX:
        return check_showers(_from_tree(path, limit), path)
    with open_hdf5(path) as file:
        missing = [k for k in NAMES if k not in file]
        if missing:
            raise PerrinError(
                f"expected datasets {NAMES[0]} and {NAMES[1]} (CaloChallenge) in {path}, given none named {missing[0]!r}: "
                "is it a file of showers?"
            )
        shape, count = file["showers"].shape, file["incident_energies"].shape
        if len(shape) != 2 or shape[1] != VOXELS:
            raise PerrinError(
                f"expected showers [N, {VOXELS}] (45 layers, 16 angles, 9 radii) in {path}, given {list(shape)}: "
                "it is another detector's file"
            )
        if count not in ((shape[0], 1), (shape[0],)):
            raise PerrinError(
                f"expected incident_energies [{shape[0]}, 1] in {path}, given {list(count)}: one for each shower"
            )
        if shape[0] == 0:
            raise PerrinError(f"expected at least one shower in {path}, given none: check how it was made")
        if "f" != file["showers"].dtype.kind != "i" or "f" != file["incident_energies"].dtype.kind != "i":
            raise PerrinError(f"expected numbers in {path}, given {file['showers'].dtype}")
        voxels = np.asarray(file["showers"][:limit], dtype=np.float32)
        incident = np.asarray(file["incident_energies"][:limit], dtype=np.float32).reshape(-1)
    return check_showers(Showers(incident, voxels), path)


def check_showers(showers: Showers, source: object) -> Showers:
    """The showers, if their numbers are energies.

    Raises:
        PerrinError: NaN or infinity, a negative energy, or an incident energy that is not above 0.
    """
    for what, values, bad in (
        ("finite energies", showers.voxels, ~np.isfinite(showers.voxels).all(1)),
        ("energies of at least 0 MeV", showers.voxels, (showers.voxels < 0).any(1)),
        (
            "finite incident energies above 0 MeV",
            showers.incident,
            ~(np.isfinite(showers.incident) & (showers.incident > 0)),
        ),
    ):
        if bad.any():
            raise PerrinError(
                f"expected {what} in {source}, but {bad.sum()} of {len(values)} showers differ, the first is number "
                f"{int(bad.argmax())}: leave them out"
            )
    return showers


def check_suffix(path: str | Path) -> None:
    """Raise a `PerrinError` unless showers can be written to a file of that name."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise PerrinError(
            f"expected a file of showers ({', '.join(SUFFIXES)}), given {path}: change its suffix"
        )


def write_showers(path: str | Path, showers: Showers, words: dict[str, str] | None = None) -> None:
    """Write showers in CaloChallenge's layout, atomically; HDF5 or ROOT by the suffix."""
    check_suffix(path)
    if Path(path).suffix.lower() == SUFFIX:
        with atomic_path(path) as temporary:
            columns = dict(zip(NAMES, (showers.incident, showers.voxels), strict=True))
            write_tree(temporary, "showers", columns, "; ".join((words or {}).values()))
        return
    with new_hdf5(path) as file:
        for name, data in zip(NAMES, (showers.incident.reshape(-1, 1), showers.voxels), strict=True):
            file.create_dataset(name, data=data, compression="gzip", compression_opts=4, shuffle=True)
        for key, value in (words or {}).items():
            file.attrs[key] = value


def _from_tree(path: str | Path, limit: int | None) -> Showers:
    tree = read_tree(path, "showers", NAMES, limit)
    try:
        incident, voxels = (np.asarray(tree[k], dtype=np.float32) for k in NAMES)
    except (TypeError, ValueError) as error:  # jagged, or no numbers
        raise PerrinError(f"expected numbers [N] and [N, {VOXELS}] in {path}, given others") from error
    if voxels.ndim != 2 or voxels.shape[1] != VOXELS or incident.shape != voxels.shape[:1]:
        raise PerrinError(
            f"expected showers [N, {VOXELS}] (45 layers, 16 angles, 9 radii) in {path}, given {list(voxels.shape)}: "
            "it is another detector's file"
        )
    if not len(voxels):
        raise PerrinError(f"expected at least one shower in {path}, given none: check how it was made")
    return Showers(incident, voxels)

"""Jets from other people's events: HepMC 2 and 3 through pyhepmc, Les Houches files through pylhe and Pythia.

An event is clustered as the recipe's own are (`pythia.hardest`): anti-kT over all visible final particles, the two hardest
jets if their pT lies in the range. A Les Houches event ends with partons, so Pythia showers and hadronises it first (Monash
tune); pylhe counts the events and says what is wrong with a file, which Pythia would do at length.

References: Verbytskyi et al. 2019, arXiv:1912.08005 (HepMC3); Alwall et al. 2006, arXiv:hep-ph/0609017 (Les Houches files).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from perrin.errors import PerrinError
from perrin.modalities.particle.jets.files import WIDTH, Jets
from perrin.modalities.particle.jets.pythia import (
    TUNE,
    check_packages,
    columns,
    hardest,
    pythia_seed,
    silent,
    visible,
)
from perrin.modalities.particle.root import needed

HEPMC = (".hepmc", ".hepmc2", ".hepmc3", ".hepmc.gz", ".hepmc2.gz", ".hepmc3.gz")
LHE = (".lhe", ".lhe.gz")
INVISIBLE = (12, 14, 16, 18, 39, 1000022, 1000039)
"""Neutrinos, graviton, lightest neutralino, gravitino: what Pythia counts as invisible, hidden valleys left out."""


def clustered(
    path: str | Path,
    count: int,
    *,
    pt: tuple[float, float],
    radius: float,
    seed: int = 0,
) -> tuple[Jets, int]:
    """The first `count` jets of a file of events, in the file's order, or as many as there are; and the events read.

    Arguments:
        pt: range of the jets' transverse momenta, GeV.
        radius: of anti-kT.
        seed: of Pythia's showers, for Les Houches files.

    Raises:
        PerrinError: a package is missing, the file cannot be read, or it has no such jet.
    """
    check_packages("fastjet")
    import fastjet._swig as fj

    definition = fj.JetDefinition(fj.antikt_algorithm, radius)
    particles = np.zeros((count, WIDTH, 4), dtype=np.float32)
    jets = np.zeros((count, 4), dtype=np.float32)
    done = events = 0
    for momenta in read_events(path, seed):
        events += 1
        with silent():
            for jet in hardest(momenta, fj, definition, pt):
                if done < count:
                    particles[done], jets[done] = columns(jet, fj)
                    done += 1
        if done == count:
            break
    if not done:
        raise PerrinError(
            f"expected jets of {pt[0]:g} to {pt[1]:g} GeV in {path}, given none in {events} events: change --pt"
        )
    return Jets(particles[:done], jets[:done]), events


def read_events(path: str | Path, seed: int = 0) -> Iterator[np.ndarray]:
    """Momenta `[n, 4]` (px, py, pz, E, GeV) of the visible final particles, event by event.

    Raises:
        PerrinError: as `clustered` does.
    """
    name = Path(path).name.lower()
    if not name.endswith((*HEPMC, *LHE)):
        raise PerrinError(
            f"expected a file of events ({', '.join((*HEPMC, *LHE))}), given {path}: change its name"
        )
    if not Path(path).is_file():
        raise PerrinError(f"expected a file of events, given {path}, which is not there: check the path")
    return _hepmc(path) if name.endswith(HEPMC) else _les_houches(path, seed)


def _hepmc(path: str | Path) -> Iterator[np.ndarray]:
    pyhepmc = needed("pyhepmc")
    count = 0
    try:
        with pyhepmc.open(str(path)) as file:
            for event in file:
                event.set_units(pyhepmc.Units.GEV, pyhepmc.Units.MM)
                p = event.numpy.particles
                kept = (p.status == 1) & ~np.isin(np.abs(p.pid), INVISIBLE)
                momenta = np.stack([p.px, p.py, p.pz, p.e], 1)[kept]
                if not np.isfinite(momenta).all():
                    raise PerrinError(
                        f"expected finite momenta in {path}, given NaN or infinity in event {count}"
                    )
                count += 1
                yield momenta
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise _unreadable(path, "HepMC", count, error) from error
    if not count:
        raise _unreadable(path, "HepMC", 0, "no event in it")


def _les_houches(path: str | Path, seed: int) -> Iterator[np.ndarray]:
    pylhe = needed("pylhe")
    check_packages("pythia8mc")
    import pythia8mc

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # pylhe warns of broken XML and goes on
            count = pylhe.LHEFile.count_events(str(path))
            first = next(iter(pylhe.LHEFile.fromfile(str(path)).events), None)
    except Exception as error:  # whatever its XML parser raises
        raise _unreadable(path, "Les Houches", 0, error) from error
    if not count or first is None:
        raise _unreadable(path, "Les Houches", 0, "no event in it")
    with silent():
        generator = pythia8mc.Pythia("", False)
        words = ("Beams:frameType = 4", f"Beams:LHEF = {path}", *TUNE)
        good = all(
            generator.readString(line)
            for line in (*words, f"Random:seed = {pythia_seed(seed, Path(path).name, 0)}")
        )
        good = good and generator.init()
    if not good:
        raise PerrinError(f"expected events that Pythia can shower in {path}, which it refuses: check them")
    for _ in range(count):
        with silent():
            more = generator.next()
        if more:
            yield visible(generator.event)
        elif generator.infoPython().atEndOfFile():
            return


def _unreadable(path: str | Path, kind: str, count: int, error: object) -> PerrinError:
    words = " ".join(str(error).split())[:120]
    return PerrinError(
        f"expected a whole {kind} file, given {path}, which cannot be read after {count} events ({words}): get it again"
    )

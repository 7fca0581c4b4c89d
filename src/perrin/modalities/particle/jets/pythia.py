"""Jets from Pythia 8 and FastJet: the recipe that gives JetNet30's jets.

Proton–proton at 13 TeV, Monash tune, partons of transverse momentum 990 to 1010 GeV (undecayed pairs, as JetNet's narrow
window about 1 TeV); all visible final particles are clustered by anti-kT with R = 0.4; the two hardest jets of an event
are kept if 0.8 < pT < 1.6 TeV; of each the 30 hardest constituents. Top quarks decay to hadrons only.

Chunk k of a class is made by an own instance of Pythia with a seed from (seed, class, k), so jet i depends on the seed and
on i alone, and work that was stopped goes on at a chunk.

References: Sjöstrand et al. 2015 (Pythia 8.2); Skands et al. 2014 (Monash); Cacciari, Salam, Soyez 2008 (anti-kT), 2012
(FastJet); Kansal et al. 2021 (JetNet, arXiv:2106.11535).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from perrin.errors import PerrinError, install
from perrin.modalities.particle.jets.files import CLASSES, WIDTH, Jets

CHUNK = 500
"""Jets that one instance of Pythia makes."""

TUNE = ("Print:quiet = on", "Tune:pp = 14", "Random:setSeed = on")
"""Monash."""
_COMMON = (
    *TUNE,
    "Beams:eCM = 13000.",
    "PhaseSpace:pTHatMin = 990.",
    "PhaseSpace:pTHatMax = 1010.",
)
_HARD = {
    "gluon": ("HardQCD:gg2gg = on", "HardQCD:qqbar2gg = on"),
    "quark": ("HardQCD:qq2qq = on", "HardQCD:gg2qqbar = on", "HardQCD:qqbar2qqbarNew = on"),
    "top": (
        "Top:gg2ttbar = on",
        "Top:qqbar2ttbar = on",
        "24:onMode = off",
        "24:onIfAny = 1 2 3 4 5",
    ),
}
LOW, HIGH, RADIUS = 800.0, 1600.0, 0.4


def pythia_seed(seed: int, kind: str, chunk: int) -> int:
    """Pythia's seed of a chunk, 1 to 900,000,000."""
    word = hashlib.sha256(f"{seed}/{kind}/{chunk}".encode()).digest()
    return int.from_bytes(word[:8], "big") % 900_000_000 + 1


def check_packages(*names: str) -> None:
    """Raise a `PerrinError` unless these (both, if none is named) of Pythia and FastJet are installed."""
    for name in names or ("pythia8mc", "fastjet"):
        try:
            with silent():  # FastJet greets
                __import__(name)
        except ImportError as error:
            raise PerrinError(
                f"expected the package {name}, found none that works ({error}): {install('jets')}"
            ) from error


def make_chunk(kind: str, seed: int, chunk: int, count: int = CHUNK) -> Jets:
    """`count` jets of chunk number `chunk`.

    Arguments:
        kind: `gluon`, `quark` (light) or `top`.
        seed: of the run.
    """
    import fastjet._swig as fj
    import pythia8mc

    if kind not in CLASSES:
        raise PerrinError(f"expected a class of jets ({', '.join(CLASSES)}), given {kind!r}")
    generator = pythia8mc.Pythia("", False)
    for line in (*_COMMON, *_HARD[kind], f"Random:seed = {pythia_seed(seed, kind, chunk)}"):
        if not generator.readString(line):
            raise PerrinError(
                f"expected a Pythia that knows {line!r}, given another version: use pythia8mc 8.317"
            )
    definition = fj.JetDefinition(fj.antikt_algorithm, RADIUS)
    particles = np.zeros((count, WIDTH, 4), dtype=np.float32)
    jets = np.zeros((count, 4), dtype=np.float32)
    with silent():
        if not generator.init():
            raise PerrinError("expected Pythia to start, but it failed: check its installation")
        done = 0
        while done < count:
            if not generator.next():
                continue
            for jet in hardest(visible(generator.event), fj, definition):
                if done < count:
                    particles[done], jets[done] = columns(jet, fj)
                    done += 1
    return Jets(particles, jets)


def visible(event: Any) -> np.ndarray:
    """Momenta `[n, 4]` (px, py, pz, E, GeV) of an event's visible final particles."""
    kept = [(p.px(), p.py(), p.pz(), p.e()) for p in event if p.isFinal() and p.isVisible()]
    return np.array(kept).reshape(-1, 4)


def hardest(
    momenta: np.ndarray, fj: Any, definition: Any, pt: tuple[float, float] = (LOW, HIGH)
) -> Iterator[Any]:
    """Those of an event's two hardest jets whose pT lies between two numbers, GeV."""
    inputs = [fj.PseudoJet(*p) for p in momenta.tolist()]
    clusters = fj.ClusterSequence(inputs, definition)
    yield from (
        jet for jet in fj.sorted_by_pt(clusters.inclusive_jets(pt[0]))[:2] if pt[0] < jet.pt() < pt[1]
    )


def columns(jet: Any, fj: Any) -> tuple[np.ndarray, np.ndarray]:
    """A jet's rows `[30, 4]` and its four numbers, as in `Jets`."""
    parts = fj.sorted_by_pt(jet.constituents())
    rows = np.zeros((WIDTH, 4))
    for row, p in zip(rows, parts[:WIDTH], strict=False):
        row[:] = p.eta() - jet.eta(), jet.delta_phi_to(p), p.pt() / jet.pt(), 1
    return rows, np.array([jet.pt(), jet.eta(), max(jet.m(), 0.0), len(parts)])


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what compiled code prints to standard output."""
    keep, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        os.dup2(keep, 1)
        os.close(keep)
        os.close(null)

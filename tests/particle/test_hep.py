"""Events and files of high-energy physics, each against the library that its people use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perrin.cli import main
from perrin.errors import PerrinError
from perrin.modalities.particle.commands import kind_of
from perrin.modalities.particle.jets.events import clustered, read_events
from perrin.modalities.particle.jets.files import Jets, read_jets, write_jets
from perrin.modalities.particle.jets.pythia import HIGH, LOW, make_chunk
from perrin.modalities.particle.showers.files import Showers, read_showers, write_showers

WINDOW = (LOW, HIGH)


def _pythia(seed: int) -> object:
    pythia8mc = pytest.importorskip("pythia8mc")
    from perrin.modalities.particle.jets.pythia import _COMMON, _HARD, pythia_seed

    generator = pythia8mc.Pythia("", False)
    for line in (*_COMMON, *_HARD["top"], f"Random:seed = {pythia_seed(seed, 'top', 0)}"):
        generator.readString(line)
    generator.init()
    return generator


def _hepmc(path: Path, events: int, unit: str = "GEV", change: Callable | None = None) -> None:
    """Pythia's events as HepMC3, neutrinos and one decayed particle among them."""
    h = pytest.importorskip("pyhepmc")
    generator, scale = _pythia(3), {"GEV": 1.0, "MEV": 1000.0}[unit]
    with h.open(str(path), "w") as file:
        for number in range(events):
            while not generator.next():  # type: ignore[attr-defined]
                pass
            event = h.GenEvent(getattr(h.Units, unit), h.Units.MM)
            event.event_number = number
            vertex = h.GenVertex()
            for pz in (6500.0, -6500.0):
                vertex.add_particle_in(h.GenParticle((0, 0, scale * pz, scale * 6500.0), 2212, 4))
            finals = [p for p in generator.event if p.isFinal()]  # type: ignore[attr-defined]
            for k, p in enumerate(finals):
                momentum = [scale * x for x in (p.px(), p.py(), p.pz(), p.e())]
                vertex.add_particle_out(h.GenParticle(momentum, p.id(), 1))
                if k == 0:
                    vertex.add_particle_out(h.GenParticle([10 * x for x in momentum], 23, 2))
            event.add_vertex(vertex)
            file.write(event)


@pytest.mark.parametrize("unit", ["GEV", "MEV"])
def test_jets_of_hepmc_are_those_of_the_recipe(tmp_path: Path, unit: str) -> None:
    pytest.importorskip("fastjet")
    path = tmp_path / "top.hepmc"
    _hepmc(path, 12, unit)
    found, events = clustered(path, 10, pt=WINDOW, radius=0.4)
    want = make_chunk("top", 3, 0, 10)  # the same seed: the same events
    assert events <= 12
    np.testing.assert_allclose(found.particles, want.particles, atol=2e-6)
    np.testing.assert_allclose(found.jets, want.jets, rtol=2e-5, atol=1e-3)


def test_hepmc_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastjet")
    path, out = tmp_path / "top.hepmc3", tmp_path / "jets.h5"
    _hepmc(path, 4)
    words = ["data", "particle/jets", "--file", str(path), "--pt", "100..1600", "-n", "100", "-o", str(out)]
    assert main(words) == 0
    assert "the 100 asked for are not there" in capsys.readouterr().out
    jets = read_jets(out)
    assert 4 <= len(jets) <= 8
    with pytest.raises(PerrinError, match="none in 4 events: change --pt"):
        clustered(path, 10, pt=(5000.0, 6000.0), radius=0.4)


def _les_houches(path: Path, events: int, good: bool = True) -> list[np.ndarray]:
    """gg → gg of two partons of about 1 TeV, written by pylhe; the partons' momenta."""
    lhe = pytest.importorskip("pylhe")
    rng, made, kept = np.random.default_rng(0), [], []
    for _ in range(events):
        pt, phi, eta = rng.uniform(990, 1010), rng.uniform(-np.pi, np.pi), rng.uniform(-1, 1)
        p = np.array([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)])
        other = p * [-1, -1, -1, 1]
        beam = p[3]
        rows = (
            (21, -1, 0, 0, 501, 502, 0.0, 0.0, beam, beam),
            (21, -1, 0, 0, 503, 501, 0.0, 0.0, -beam, beam),
            (21, 1, 1, 2, 503, 504, *p),
            (21, 1, 1, 2, 504, 502, *other),
        )
        info = lhe.LHEEventInfo(nparticles=4, pid=1, weight=1.0, scale=pt, aqed=0.0075, aqcd=0.09)
        particles = [lhe.LHEParticle(*row, 0.0, 0.0, 9.0) for row in rows]
        made.append(lhe.LHEEvent(eventinfo=info, particles=particles))
        kept.append(p)
    init = lhe.LHEInit(
        initInfo=lhe.LHEInitInfo(2212, 2212, 6500.0, 6500.0, 0, 0, 0, 0, 3, 1),
        procInfo=[lhe.LHEProcInfo(1.0, 0.1, 1.0, 1)],
        generators=[],
    )
    lhe.LHEFile(init=init, events=made).tofile(str(path))
    return kept


def test_les_houches_partons_become_jets_along_them(tmp_path: Path) -> None:
    pytest.importorskip("fastjet")
    pytest.importorskip("pythia8mc")
    lhe = pytest.importorskip("pylhe")
    path = tmp_path / "gg.lhe"
    partons = _les_houches(path, 20)
    back = list(lhe.LHEFile.fromfile(str(path)).events)
    assert len(back) == 20
    assert back[3].particles[2].px == pytest.approx(partons[3][0], rel=1e-5)
    momenta = list(read_events(path, seed=1))
    assert len(momenta) == 20
    turns = []
    for seen, parton in zip(momenta, partons):
        assert abs(seen.sum(0)[3] - 13000) < 1500  # all of both protons but what neutrinos take
        across = seen[:, :2] @ parton[:2] / np.hypot(*parton[:2])
        turns.append(np.abs(across).sum() / np.hypot(*seen[:, :2].T).sum())
    assert np.median(turns) > 0.85  # the showers go where the partons went; 0.64 is what no direction gives
    jets, events = clustered(path, 100, pt=WINDOW, radius=0.4, seed=1)
    again, _ = clustered(path, 100, pt=WINDOW, radius=0.4, seed=1)
    np.testing.assert_array_equal(jets.particles, again.particles)
    assert events == 20
    assert len(jets) > 20
    assert 20 < jets.jets[:, 3].mean() < 120
    assert 40 < jets.jets[:, 2].mean() < 200


def test_bad_events_are_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("fastjet")
    pytest.importorskip("pyhepmc")
    garbage, lhe, whole = tmp_path / "a.hepmc", tmp_path / "a.lhe", tmp_path / "b.hepmc"
    garbage.write_text("not events\n")
    lhe.write_text("<LesHouchesEvents version='3.0'>\n<oops>\n")
    for path, words in (
        (garbage, "whole HepMC file"),
        (tmp_path / "none.hepmc", "not there"),
        (tmp_path / "a.txt", "expected a file of events"),
        (lhe, "whole Les Houches file"),
    ):
        if path is lhe:
            pytest.importorskip("pylhe")
        with pytest.raises(PerrinError, match=words) as caught:
            list(read_events(path))
        assert "\n" not in str(caught.value)
    _hepmc(whole, 1)
    assert len(list(read_events(whole))) == 1


@pytest.mark.parametrize("extra", ["--class top", "--radius 0", "--pt 5..2"])
def test_options_of_events_are_checked(tmp_path: Path, extra: str) -> None:
    out = tmp_path / "x.h5"
    words = ["data", "particle/jets", "--file", str(tmp_path / "a.hepmc"), "-o", str(out), *extra.split()]
    assert main(words) == 2
    assert main(["data", "particle/jets", "--class", "top", "--pt", "1..2", "-o", str(out)]) == 2
    assert not out.exists()


def test_neutrinos_are_not_seen(tmp_path: Path) -> None:
    h = pytest.importorskip("pyhepmc")
    event = h.GenEvent(h.Units.GEV, h.Units.MM)
    vertex = h.GenVertex()
    vertex.add_particle_in(h.GenParticle((0, 0, 100, 100), 2212, 4))
    for pid in (211, -14, 22):
        vertex.add_particle_out(h.GenParticle((1, 2, 3, 4), pid, 1))
    event.add_vertex(vertex)
    with h.open(str(tmp_path / "e.hepmc"), "w") as file:
        file.write(event)
    (seen,) = read_events(tmp_path / "e.hepmc")
    np.testing.assert_allclose(seen, [[1, 2, 3, 4]] * 2)


def test_uproot_reads_our_trees(tmp_path: Path, jets: Jets, showers: Showers) -> None:
    uproot = pytest.importorskip("uproot")
    write_jets(tmp_path / "j.root", jets, {"generator": "toy"})
    write_showers(tmp_path / "s.root", showers)
    with uproot.open(tmp_path / "j.root") as file:
        tree = file["jets"]
        assert tree.num_entries == len(jets)
        assert tree.title == "toy"
        rows = tree["part_ptrel"].array(library="np")
        assert [len(row) for row in rows] == jets.mask.sum(1).tolist()
        np.testing.assert_array_equal(rows[7], jets.particles[7, jets.mask[7], 2])
        np.testing.assert_array_equal(tree["jet_mass"].array(library="np"), jets.jets[:, 2])
    with uproot.open(tmp_path / "s.root") as file:
        np.testing.assert_array_equal(file["showers/showers"].array(library="np"), showers.voxels)
    found, energies = read_jets(tmp_path / "j.root"), read_showers(tmp_path / "s.root", limit=5)
    np.testing.assert_array_equal(found.particles, jets.particles)
    np.testing.assert_array_equal(found.jets, jets.jets)
    np.testing.assert_array_equal(energies.voxels, showers.voxels[:5])
    assert (kind_of(tmp_path / "j.root"), kind_of(tmp_path / "s.root")) == ("jets", "showers")


def test_longer_jets_keep_their_hardest_thirty(tmp_path: Path) -> None:
    uproot, ak = pytest.importorskip("uproot"), pytest.importorskip("awkward")
    rng = np.random.default_rng(0)
    count = np.array([50, 3])
    columns = {k: ak.unflatten(rng.random(53).astype("f4"), count) for k in ("etarel", "phirel", "ptrel")}
    numbers = {f"jet_{k}": np.array([900.0, 1000.0]) for k in ("pt", "eta", "mass", "num_particles")}
    with uproot.recreate(tmp_path / "j.root") as file:
        part = ak.zip(columns)
        file.mktree("jets", {**dict.fromkeys(numbers, np.float64), "part": part.type.content})
        file["jets"].extend({**numbers, "part": part})
    found = read_jets(tmp_path / "j.root")
    assert found.mask.sum(1).tolist() == [30, 3]
    want = np.sort(np.asarray(columns["ptrel"][0]))[::-1][:30]
    np.testing.assert_array_equal(found.particles[0, :, 2], want)


def test_bad_trees_are_refused_in_one_line(tmp_path: Path, showers: Showers) -> None:
    uproot = pytest.importorskip("uproot")
    (tmp_path / "a.root").write_text("no tree")
    with uproot.recreate(tmp_path / "b.root") as file:
        file.mktree("showers", {"incident_energies": np.float64, "showers": np.dtype((np.float64, (10,)))})
        file["showers"].extend({"incident_energies": np.ones(3), "showers": np.ones((3, 10))})
    with uproot.recreate(tmp_path / "c.root") as file:
        file.mktree("jets", {"jet_pt": np.float64})
        file["jets"].extend({"jet_pt": np.ones(3)})
    negative = showers.voxels.copy()
    negative[2, 7] = -1
    write_showers(tmp_path / "d.root", Showers(showers.incident, negative))
    for read, name, words in (
        (read_showers, "a", "cannot be read as one"),
        (read_showers, "b", "another detector"),
        (read_jets, "c", "given none named 'jet_eta'"),
        (read_jets, "none", "not there"),
        (read_showers, "d", "at least 0 MeV.*number 2"),
    ):
        with pytest.raises(PerrinError, match=words) as caught:
            read(tmp_path / f"{name}.root")
        assert "\n" not in str(caught.value)

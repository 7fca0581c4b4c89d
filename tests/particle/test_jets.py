"""Jets: polynomials, observables, FPND, files, Pythia, and the model at toy size."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from perrin.errors import PerrinError
from perrin.modalities.particle.jets.efp import connected_graphs, efps, graph_sets
from perrin.modalities.particle.jets.evaluate import evaluate_jets
from perrin.modalities.particle.jets.files import Jets, check_jets, read_jets, write_jets
from perrin.modalities.particle.jets.fpnd import ParticleNet, activations, fpnd, real_statistics
from perrin.modalities.particle.jets.model import JetModel, jet_config, jet_features, make_task, training_data
from perrin.modalities.particle.jets.network import JetConfig, NetworkConfig, build, layouts_for
from perrin.modalities.particle.jets.observables import momentum, relative_mass, w1_polynomials
from perrin.modalities.particle.quantiles import from_normal, knots, to_normal
from perrin.modalities.particle.staged import SamplingOptions
from perrin.train import Trainer, TrainOptions

SMALL = NetworkConfig(depth=2, width=32, heads=4, condition=32, pair=8, first_depth=2, first_width=64)


def test_there_are_as_many_graphs_as_energyflow_has() -> None:
    # Komiske et al. 2017, table 1: connected 1, 2, 5, 12, 33 and all 1, 3, 8, 23, 66 for 1 to 5 edges
    assert [len(connected_graphs(d)) for d in range(1, 6)] == [1, 2, 5, 12, 33]
    assert len(graph_sets(4)) == 1 + 1 + 3 + 8 + 23


def test_polynomials_are_their_sums() -> None:
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(0, 0.1, (2, 4)), rng.normal(0, 0.1, (2, 4)), rng.random((2, 4))], -1)
    theta = np.sqrt(((x[:, :, None, :2] - x[:, None, :, :2]) ** 2).sum(-1))
    found = efps(x)
    for column, pieces in enumerate(graph_sets()):
        want = np.ones(2) if pieces else x[..., 2].sum(1)
        for graph in pieces:
            size = 1 + max(max(e) for e in graph)
            total = np.zeros(2)
            for place in product(range(4), repeat=size):
                term = np.prod([x[:, i, 2] for i in place], axis=0)
                for a, b in graph:
                    term = term * theta[:, place[a], place[b]]
                total += term
            want = want * total
        np.testing.assert_allclose(found[:, column], want, rtol=1e-10)
    assert w1_polynomials(found).shape == (2, 5)


def test_polynomials_are_energyflows() -> None:
    # energyflow 1.4.0: EFPSet(("d<=", 4), measure="hadr", beta=1, normed=None, coords="ptyphim") of these three particles
    x = np.array([[[0.1, 0.0, 0.5], [-0.1, 0.2, 0.3], [0.0, -0.15, 0.2]]])
    d01, d02, d12 = np.hypot(0.2, 0.2), np.hypot(0.1, 0.15), np.hypot(0.1, 0.35)
    pair = 2 * (0.5 * 0.3 * d01 + 0.5 * 0.2 * d02 + 0.3 * 0.2 * d12)
    triangle = 6 * 0.5 * 0.3 * 0.2 * d01 * d02 * d12
    found = efps(x)[0]
    assert np.isclose(found, pair, rtol=1e-12).any()
    assert np.isclose(found, triangle, rtol=1e-12).any()
    assert np.isclose(found, pair**4, rtol=1e-12).any()


def test_mass_of_two_particles() -> None:
    # m² = 2 pT₁ pT₂ (cosh Δη − cos Δφ)
    x = np.array([[[0.1, 0.2, 0.6], [-0.2, 0.1, 0.4]]])
    want = np.sqrt(2 * 0.6 * 0.4 * (np.cosh(0.3) - np.cos(0.1)))
    assert relative_mass(x)[0] == pytest.approx(want, rel=1e-12)
    boosted = x + np.array([1.3, 0.4, 0])  # a boost along the beam and a turn leave it
    assert relative_mass(boosted)[0] == pytest.approx(want, rel=1e-9)
    assert np.hypot(*momentum(x)[0, :2]) == pytest.approx(np.hypot(*momentum(boosted)[0, :2]))


def test_particle_net_is_the_plain_sum_over_neighbours() -> None:
    torch.manual_seed(0)
    net = ParticleNet().eval().requires_grad_(False)
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 30, 3)
    h = x
    for number, edge in enumerate(net.edge_nets):
        rows = []
        for jet in h:
            distance = torch.cdist(jet[:, :2], jet[:, :2]) if number == 0 else torch.cdist(jet, jet)
            order = distance.argsort(1)[:, 1:17]
            rows.append(
                torch.stack(
                    [
                        edge.model(torch.cat((jet[i].expand(16, -1), jet[order[i]] - jet[i]), 1)).mean(0)
                        for i in range(30)
                    ]
                )
            )
        h = torch.cat((torch.stack(rows), h), -1)
    torch.testing.assert_close(net(x), net.fc1(h.mean(1)), rtol=1e-4, atol=1e-4)
    turned = torch.randperm(30)
    torch.testing.assert_close(net(x[:, turned]), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(find_spec("jetnet") is None, reason="FPND reads files of jetnet 0.2.5")
def test_fpnd_reads_jetnets_resources(jets: Jets) -> None:
    assert activations(jets.particles[:4]).shape == (4, 256)
    for kind in ("gluon", "quark", "top"):
        mean, cov = real_statistics(kind)
        assert mean.shape == (256,)
        np.testing.assert_allclose(cov, cov.T, atol=1e-12)
    assert fpnd(jets.particles, "gluon") > 1  # toy jets are no jets


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_files_keep_jets(tmp_path: Path, jets: Jets, suffix: str) -> None:
    path = tmp_path / f"jets{suffix}"
    write_jets(path, jets, {"generator": "test"})
    found = read_jets(path)
    np.testing.assert_array_equal(found.particles, jets.particles)
    np.testing.assert_array_equal(found.jets, jets.jets)


def _changed(base: Jets, **changes: object) -> Jets:
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_bad_jets_are_refused_in_one_line(jets: Jets) -> None:
    nan, negative, empty = jets.particles.copy(), jets.particles.copy(), jets.particles.copy()
    nan[3, 0, 0], negative[4, 0, 2], empty[5] = np.nan, -0.1, 0
    for bad, words in (
        (_changed(jets, particles=nan), "finite numbers.*number 3"),
        (_changed(jets, particles=negative), "at least 0.*number 4"),
        (_changed(jets, particles=empty), "at least one particle.*number 5"),
        (_changed(jets, particles=jets.particles[:, :20]), "expected jets"),
        (jets.take(slice(0)), "at least one jet"),
        (_changed(jets, jets=-jets.jets), "pT above 0"),
    ):
        with pytest.raises(PerrinError, match=words) as caught:
            check_jets(bad, "file")
        assert "\n" not in str(caught.value)


def test_normal_and_back() -> None:
    x = torch.randn(5000, 2, dtype=torch.float64).exp()
    q = knots(x, 129)
    z = to_normal(x, q)
    torch.testing.assert_close(from_normal(z, q), x, rtol=1e-3, atol=1e-3)
    assert z.std(0).tolist() == pytest.approx([1, 1], abs=0.03)
    assert torch.isfinite(to_normal(torch.tensor([[-5.0, 1e9]]), q)).all()


def test_the_network_commutes_with_permutations(jets: Jets) -> None:
    config = jet_config({"top": jets}, SMALL)
    torch.manual_seed(0)
    model = build(config)
    for p in model.parameters():
        p.data.normal_(0, 0.1)
    task = make_task(model, config, training_data({"top": jets}, config), batch=8, seed=0)
    _, batch = task.prepare(0, generator=torch.Generator().manual_seed(0), rank=0, world=1)
    state = {k: batch[f"second.x_t.{k}"] for k in ("particles", "jet", "class", "mask")}
    state["mask"] = torch.ones_like(state["mask"])
    layouts = layouts_for({}, state)[1]
    turn = torch.randperm(30)
    a = model.second(state, batch["second.t"], layouts=layouts)["particles"]
    b = model.second(state | {"particles": state["particles"][:, turn]}, batch["second.t"], layouts=layouts)[
        "particles"
    ]
    torch.testing.assert_close(b, a[:, turn], rtol=1e-4, atol=1e-5)


def test_padding_is_neither_seen_nor_changed(jets: Jets) -> None:
    config = jet_config({"top": jets}, SMALL)
    model = build(config)
    for p in model.parameters():
        p.data.normal_(0, 0.1)
    mask = (torch.arange(30) < 7)[None]
    state = {
        "particles": torch.randn(1, 30, 3),
        "jet": torch.randn(1, 6),
        "class": torch.ones(1, 1),
        "mask": mask,
    }
    layouts = layouts_for({}, state)[1]
    a = model.second(state, torch.tensor([0.3]), layouts=layouts)["particles"]
    other = state | {"particles": torch.where(mask[..., None], state["particles"], torch.tensor(7.0))}
    b = model.second(other, torch.tensor([0.3]), layouts=layouts)["particles"]
    torch.testing.assert_close(a[:, :7], b[:, :7])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, jets: Jets) -> JetModel:
    sets = {"gluon": jets, "top": jets}
    config = jet_config(sets, SMALL)
    torch.manual_seed(0)
    model = build(config)
    task = make_task(model, config, training_data(sets, config), batch=64, seed=0)
    options = TrainOptions(steps=60, batch=64, lr=2e-3, warmup=5, log_every=20, save_every=30)
    last = Trainer(task, options, tmp_path_factory.mktemp("jets"), accelerator="cpu").run()
    assert last["loss"] < 2.2
    assert JetConfig.from_json(config.to_json()) == config
    return JetModel(model.eval().requires_grad_(False), config, SamplingOptions(steps=6, first_steps=6))


def test_a_jet_does_not_depend_on_its_batch(trained: JetModel) -> None:
    a, b = trained.sample(12, kind="top", batch=12), trained.sample(5, kind="top", batch=2)
    np.testing.assert_allclose(a.particles[:5], b.particles, atol=2e-5)
    np.testing.assert_allclose(a.jets[:5], b.jets, rtol=1e-5)
    check_jets(a, "samples")
    assert (np.diff(a.particles[..., 2], axis=1) <= 0).all()


def test_momenta_add_up_to_what_was_drawn_for_the_jet(trained: JetModel, jets: Jets) -> None:
    found, data = (
        np.hypot(*momentum(x.particles)[:, :2].T) for x in (trained.sample(40, kind="top", batch=40), jets)
    )
    assert found.min() > data.min() - 1e-4
    assert found.max() < data.max() + 1e-4


def test_ranges_are_kept(trained: JetModel) -> None:
    found = trained.sample(20, kind="gluon", pt=(900, 1300), mass=(50, 120)).jets
    assert found[:, 0].min() >= 900 - 1e-2
    assert found[:, 0].max() <= 1300 + 1e-2
    assert found[:, 2].min() >= 50 - 1e-3
    assert found[:, 2].max() <= 120 + 1e-3


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"kind": "charm"}, "one of gluon, top"),
        ({"pt": (10, 20)}, "--pt within"),
        ({"mass": (90, 80)}, "--mass within"),
    ],
)
def test_what_cannot_be_had_is_refused(trained: JetModel, asked: dict, words: str) -> None:
    with pytest.raises(PerrinError, match=words):
        trained.sample(2, **asked)


def test_the_report_has_truth_beside(jets: Jets) -> None:
    result = evaluate_jets(jets.take(slice(60)), jets.take(slice(60, 180)))
    assert result["samples"] == 60
    assert {"W1M (relative mass)", "W1EFP (mean of 5)", "FPD", "KPD"} <= set(result["metrics"])
    with pytest.raises(PerrinError, match="at least 20"):
        evaluate_jets(jets.take(slice(5)), jets)


def test_features_have_their_meaning(jets: Jets) -> None:
    x = jet_features(jets).numpy()
    np.testing.assert_allclose(np.exp(x[:, 0]), jets.jets[:, 0], rtol=1e-5)
    np.testing.assert_allclose(
        x[:, 4] * np.exp(x[:, 2]) / np.exp(x[:, 0]), relative_mass(jets.particles), rtol=1e-5
    )


@pytest.mark.skipif(not (find_spec("pythia8mc") and find_spec("fastjet")), reason="needs Pythia and FastJet")
def test_pythia_gives_jets_of_the_recipe() -> None:
    from perrin.modalities.particle.jets.pythia import make_chunk

    found = make_chunk("top", 3, 0, count=60)
    check_jets(found, "Pythia")
    assert found.jets[:, 0].min() > 800
    assert found.jets[:, 0].max() < 1600
    again = make_chunk("top", 3, 0, count=20)
    np.testing.assert_array_equal(
        again.particles, found.particles[:20]
    )  # the first jets of more are the same
    # 10,000 jets of the recipe: mass 138.9 GeV (deviation 37.6), 64.6 constituents (17.4)
    assert found.jets[:, 2].mean() == pytest.approx(138.9, abs=4 * 37.6 / 60**0.5)
    assert found.jets[:, 3].mean() == pytest.approx(64.6, abs=4 * 17.4 / 60**0.5)
    total = momentum(found.particles.astype(float))
    assert (np.hypot(*total[:, :2].T) <= 1.0 + 1e-6).all()

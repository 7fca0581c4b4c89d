"""The property network sees neither frame nor order, its guide is a probability, and it learns what can be known exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("rdkit")

import numpy as np
from scipy import stats
from test_network import VOCABULARY

from perrin.bundle import read_bundle, write_bundle
from perrin.core import State
from perrin.core.guides import RegressorGuide
from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.dataset import buckets_from_molecules
from perrin.modalities.molecule.fields import POSITIONS, encode
from perrin.modalities.molecule.predictor import (
    Predictor,
    PredictorConfig,
    PredictorTask,
    mean_absolute_errors,
)
from perrin.modalities.molecule.properties import Range, measure, nothing
from perrin.train import Trainer, TrainOptions

INF = float("inf")
RANGES = tuple(
    Range(name=n, unit="", mean=m, std=s, low=0.0, high=9.0)
    for n, m, s in (("alpha", 70.0, 8.0), ("mu", 2.7, 1.5), ("gap", 0.25, 0.05))
)
CONFIG = PredictorConfig(
    vocabulary=VOCABULARY, ranges=RANGES, noisy=True, depth=2, width=32, vectors=8, pair_width=16, heads=4, sets=4,
    pair_hidden=16, gathered=4, radial=8, time_width=16,
)  # fmt: skip
SMILES = ("CCO", "c1ccoc1C", "CC#N", "OC[C@H](O)C")


@pytest.fixture(scope="module")
def model() -> Predictor:
    torch.manual_seed(0)
    model = Predictor(CONFIG).double().requires_grad_(False)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, dtype=p.dtype) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.2))
    return model


@pytest.fixture(scope="module")
def batch() -> tuple[State, Tensor, Tensor]:
    state, mask = encode([add_geometry(s) for s in SMILES], VOCABULARY, width=14)
    x = {k: v.double() if k == POSITIONS else v for k, v in state.items()}
    return x, torch.linspace(0.0, 0.5, len(mask), dtype=torch.float64), mask


def test_predictions_do_not_depend_on_frame_order_hand_or_padding(
    model: Predictor, batch: tuple[State, Tensor, Tensor]
) -> None:
    x, t, mask = batch
    plain = model(x, t, mask)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    order = torch.tensor([2, 0, 1, *range(3, 14)])
    wide = {k: torch.cat((v, torch.full_like(v[:, :2], 3)), 1) for k, v in x.items() if v.shape[1:2] == (14,)}
    for other in (
        model({**x, POSITIONS: x[POSITIONS] @ q}, t, mask),
        model({**x, POSITIONS: -x[POSITIONS]}, t, mask),
        model({k: v[:, order] for k, v in x.items()}, t, mask),
        model(wide, t, torch.cat((mask, torch.zeros_like(mask[:, :2])), 1)),
    ):
        for a, b in zip(plain, other, strict=True):
            assert torch.allclose(a, b, atol=1e-9)


def test_the_dipole_is_never_below_zero(model: Predictor, batch: tuple[State, Tensor, Tensor]) -> None:
    x, _, mask = batch
    assert bool((model.predict(x, mask)[:, 1] >= 0).all())


def test_the_guide_is_the_probability_of_a_logistic_law(
    model: Predictor, batch: tuple[State, Tensor, Tensor]
) -> None:
    x, t, mask = batch
    y, scale = (v.numpy() for v in model(x, t, mask))
    wish = nothing(len(mask), 3).double()
    assert torch.equal(model.log_density(wish, mask)(x, t), torch.zeros(len(mask), dtype=torch.float64))
    wish[0, 0] = torch.tensor([-0.3, 0.9])
    wish[1, 1, 0] = 0.4
    wish[2, 2, 1] = -0.2
    wish[3, 0] = 0.7
    law = [stats.logistic(y[b], np.exp(scale[b])) for b in range(4)]
    expected = [
        np.log(law[0].cdf(0.9) - law[0].cdf(-0.3))[0],
        law[1].logsf(0.4)[1],
        law[2].logcdf(-0.2)[2],
        law[3].logpdf(0.7)[0],
    ]
    assert np.allclose(model.log_density(wish, mask)(x, t).numpy(), expected, atol=1e-9)
    # and it has a gradient wherever ends are open
    given = x[POSITIONS].clone().requires_grad_()
    model.log_density(wish, mask)({**x, POSITIONS: given}, t).sum().backward()
    assert given.grad is not None
    assert bool(torch.isfinite(given.grad).all())
    assert float(given.grad.abs().max()) > 0
    assert (
        RegressorGuide(
            denoiser=lambda *a, **k: {}, log_density=model.log_density(wish, mask), schedules={}
        ).scale
        == 1
    )


def test_the_loss_is_the_likelihood_and_its_parts_the_absolute_errors(model: Predictor) -> None:
    molecules = [
        replace(add_geometry(s), properties={"alpha": 60.0 + k, "mu": 1.0 + k, "gap": 0.2})
        for k, s in enumerate(SMILES)
    ]
    buckets = buckets_from_molecules(molecules, VOCABULARY, ("alpha", "mu", "gap"))
    task = PredictorTask(model, CONFIG, buckets, batch=4, seed=0)
    key, prepared = task.prepare(0, generator=torch.Generator().manual_seed(0), rank=0, world=1)
    prepared = {k: v.double() if v.is_floating_point() else v for k, v in prepared.items()}
    losses = task.loss(model, key, prepared)
    y, scale = model(prepared, prepared["t"], prepared["mask"])
    z = prepared["z"].numpy()
    nll = -stats.logistic(y.numpy(), np.exp(scale.numpy())).logpdf(z)
    assert float(losses["loss"]) == pytest.approx(nll.mean(), rel=1e-6)
    assert float(losses["mu"]) == pytest.approx(np.abs(y.numpy() - z)[:, 1].mean(), rel=1e-6)


def test_it_learns_the_number_of_atoms_and_the_moment_of_point_charges(tmp_path: Path) -> None:
    """Two properties that are known exactly: a sum over atoms, and the length of Σ q_i x_i."""
    charge = {1: 0.2, 6: -0.1, 7: -0.5, 8: -0.6}
    molecules = []
    for smiles in (
        "CCO",
        "c1ccoc1C",
        "CC#N",
        "OCC(O)C",
        "CCN",
        "C1CC1O",
        "CC(=O)C",
        "NCC=O",
        "CCCO",
        "C#CCO",
    ):
        m = add_geometry(smiles)
        q = np.array([charge[z] for z in m.numbers.tolist()])
        q -= q.mean()
        moment = float(np.linalg.norm(q @ (m.positions - m.positions.mean(0))))
        molecules.append(replace(m, properties={"alpha": float(len(m)), "mu": moment}))
    buckets = buckets_from_molecules(molecules, VOCABULARY, ("alpha", "mu"))
    ranges = measure(("alpha", "mu"), {}, torch.cat([b.values for b in buckets if b.values is not None]))
    config = replace(CONFIG, ranges=ranges, noisy=False)
    torch.manual_seed(0)
    model = Predictor(config)
    before = mean_absolute_errors(model, buckets)
    task = PredictorTask(model, config, buckets, batch=10, seed=0)
    options = TrainOptions(
        steps=250, batch=10, lr=3e-3, warmup=20, cooldown=0.5, ema=0.9, log_every=100, save_every=1000
    )
    Trainer(task, options, tmp_path, accelerator="cpu").run()
    after = mean_absolute_errors(model, buckets)
    assert after["alpha"][0] < 0.1 * before["alpha"][0]
    assert after["mu"][0] < 0.15 * before["mu"][0]
    write_bundle(
        tmp_path / "b",
        modality="molecule",
        model=config.to_json(),
        weights=dict(model.named_parameters()),
        card="",
    )
    again = Predictor.from_bundle(read_bundle(tmp_path / "b"))
    state, mask = buckets[0].take(torch.arange(len(buckets[0])))
    assert torch.allclose(again.predict(state, mask), model.predict(state, mask), rtol=5e-3, atol=5e-2)


def test_another_bundle_is_refused(tmp_path: Path) -> None:
    write_bundle(
        tmp_path / "b", modality="molecule", model={"kind": "other"}, weights={"a": torch.zeros(1)}, card=""
    )
    with pytest.raises(PerrinError, match="property network"):
        Predictor.from_bundle(read_bundle(tmp_path / "b"))

"""Every backbone learns, and goes through training, bundles and sampling by the same code."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

import perrin
from perrin.bundle import read_bundle, write_bundle
from perrin.cli import main
from perrin.core import GeneratorNoise
from perrin.errors import PerrinError
from perrin.modalities.molecule import BACKBONES
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.dataset import buckets_from_molecules
from perrin.modalities.molecule.fields import layouts_for
from perrin.modalities.molecule.files import read_molecules
from perrin.modalities.molecule.model import SamplingOptions
from perrin.modalities.molecule.network import MoleculeConfig, NetworkConfig, build_denoiser
from perrin.modalities.molecule.sources import _count
from perrin.modalities.molecule.task import MoleculeTask

SMILES = ("CO", "C#N", "CN", "C=O", "CF", "CC", "C=C", "N")
SMALL = NetworkConfig(
    depth=2,
    width=64,
    vectors=16,
    pair_width=32,
    heads=4,
    sets=8,
    pair_hidden=32,
    gathered=8,
    radial=16,
    time_width=32,
    tensors=4,
    neighbours=5,
)


@pytest.fixture(scope="module")
def molecules() -> list:
    return [add_geometry(smiles) for smiles in SMILES]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_eight_molecules_are_learnt_by_heart(molecules: list, backbone: str) -> None:
    """One corrupted batch: the loss falls to less than a fifth."""
    config = MoleculeConfig(vocabulary=_count(molecules), network=replace(SMALL, backbone=backbone))
    torch.manual_seed(0)
    denoiser = build_denoiser(config)
    buckets = buckets_from_molecules(molecules, config.vocabulary)
    assert len(buckets) == 1
    task = MoleculeTask(denoiser, config, buckets, batch=8, seed=0)
    x_0, mask = buckets[0].take(torch.arange(8))
    t = torch.linspace(0.1, 0.6, 8)
    noise = GeneratorNoise(torch.Generator().manual_seed(0))
    x_t = denoiser.process.corrupt_state(x_0, t, noise, layouts_for(mask))
    batch = {"t": t, "mask": mask}
    batch |= {f"x_0.{k}": v for k, v in x_0.items()} | {f"x_t.{k}": v for k, v in x_t.items()}
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        found = task.loss(denoiser, (0, False), batch)["loss"]
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        losses.append(float(found.detach()))
    assert losses[-1] < 0.2 * losses[0], (losses[0], losses[-1])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_bundles(molecules: list, backbone: str, tmp_path: Path) -> None:
    """Written, loaded and sampled from; a molecule does not depend on its batch."""
    config = MoleculeConfig(vocabulary=_count(molecules), network=replace(SMALL, backbone=backbone))
    torch.manual_seed(0)
    denoiser = build_denoiser(config)
    write_bundle(
        tmp_path / "model",
        modality="molecule",
        model=config.to_json(),
        weights=dict(denoiser.named_parameters()),
        card="",
        sampling=SamplingOptions(steps=3).to_json(),
    )
    model = perrin.load(tmp_path / "model")
    assert model.config == config
    for name, p in model.denoiser.named_parameters():
        assert torch.equal(p, dict(denoiser.named_parameters())[name].half().float())
    (one,), several = model.sample(1, seed=3), model.sample(6, seed=3, batch=5)
    assert np.array_equal(one.positions, several[0].positions)
    assert np.array_equal(one.numbers, several[0].numbers)
    assert np.array_equal(one.bonds, several[0].bonds)


@pytest.mark.parametrize("backbone", ["e3nn", "sparse"])
def test_the_command_line_trains_and_samples(backbone: str, tmp_path: Path) -> None:
    data, out = tmp_path / "mine.smi", tmp_path / "run"
    data.write_text("\n".join(SMILES) + "\n")
    train = f"train molecule/qm9 --data {data} --backbone {backbone} --steps 2 --batch 4 --out {out}"
    assert main(train.split()) == 0
    assert read_bundle(out).config["model"]["network"]["backbone"] == backbone
    assert main(f"sample {out} -n 3 --steps 2 -o {tmp_path}/a.sdf --workers 2".split()) == 0
    assert len(read_molecules(tmp_path / "a.sdf")) == 3
    assert main(f"evaluate {tmp_path}/a.sdf".split()) == 0


def test_another_backbone_than_the_bundle_has_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.smi").write_text("CO\n")
    words = f"train molecule/qm9 --from molecule/qm9 --data {tmp_path}/mine.smi --backbone e3nn --out {tmp_path}/run"
    assert main(words.split()) == 2
    assert "expected the backbone of molecule/qm9 (transformer), given e3nn" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_bundle_with_an_unknown_backbone_is_an_error(molecules: list, tmp_path: Path) -> None:
    config = MoleculeConfig(vocabulary=_count(molecules), network=SMALL).to_json()
    config["network"]["backbone"] = "resnet"
    write_bundle(
        tmp_path / "model", modality="molecule", model=config, weights={"x": torch.zeros(1)}, card=""
    )
    with pytest.raises(PerrinError, match="given 'resnet'"):
        perrin.load(tmp_path / "model")


def kept(backbone: str, atoms: int) -> int:
    """Bytes that autograd keeps of one forward pass, each storage once; no noise in it."""
    vocabulary = _count([add_geometry("CO")])
    config = replace(SMALL, depth=3, backbone=backbone, neighbours=12)
    denoiser = build_denoiser(MoleculeConfig(vocabulary=vocabulary, network=config))
    layouts = layouts_for(torch.ones(1, atoms, dtype=torch.bool))
    state = denoiser.process.prior_state(GeneratorNoise(torch.Generator().manual_seed(0)), layouts)
    found: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = denoiser(state, torch.tensor([0.5]), layouts=layouts)
    weights = {p.untyped_storage().data_ptr() for p in denoiser.parameters()}
    del out
    return sum(size for place, size in found.items() if place not in weights)


@pytest.mark.parametrize(("backbone", "power"), [("transformer", 2), ("e3nn", 1), ("sparse", 1)])
def test_memory_grows_with_edges(backbone: str, power: int) -> None:
    """Twice the atoms: twice the memory with edges to neighbours, four times with all pairs."""
    growth = kept(backbone, 160) / kept(backbone, 80)
    assert growth == pytest.approx(2**power, rel=0.05)


def test_the_transformer_needs_neither_package() -> None:
    script = (
        "import sys\nsys.modules.update({'e3nn': None, 'torch_geometric': None})\n"
        "import perrin\nprint(len(perrin.load('molecule/qm9').sample(1, steps=1)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout == "1\n", found.stderr

"""The command line's particle side: files come out whole, and bad input is one line and exit code 2."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import h5py
import numpy as np
import pytest
from toys import refused, toy_jets, toy_showers

from perrin.bundle import write_bundle
from perrin.cli import main
from perrin.modalities.particle.flow import model as flows
from perrin.modalities.particle.flow.files import Trajectories, read_flow, write_flow
from perrin.modalities.particle.jets import model as jets
from perrin.modalities.particle.jets import network as jet_network
from perrin.modalities.particle.jets.files import read_jets, write_jets
from perrin.modalities.particle.showers import model as showers
from perrin.modalities.particle.showers import network as shower_network
from perrin.modalities.particle.showers.files import read_showers, write_showers
from perrin.modalities.particle.staged import SamplingOptions

pytestmark = pytest.mark.skipif(
    "particle" not in {p.name for p in metadata.entry_points(group="perrin.modalities")},
    reason="an older installation does not know the modality: make env",
)

SAMPLING = SamplingOptions(steps=2, first_steps=2).to_json()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("particle")
    found = toy_showers(50)
    write_showers(path / "showers.h5", found)
    small = shower_network.NetworkConfig(
        depth=1, width=16, heads=2, condition=16, channels=2, patch=(9, 16, 3), first_depth=1, first_width=16
    )
    config = showers.shower_config(found, small)
    _bundle(path / "s", "showers", config, dict(shower_network.build(config).named_parameters()))
    write_jets(path / "jets.h5", toy_jets(120))
    tiny = jet_network.NetworkConfig(
        depth=1, width=16, heads=2, condition=16, pair=4, first_depth=1, first_width=16
    )
    jet_config = jets.jet_config({"gluon": toy_jets(60), "top": toy_jets(60)}, tiny)
    _bundle(path / "j", "jets", jet_config, dict(jet_network.build(jet_config).named_parameters()))
    w = np.random.default_rng(0).normal(size=(3, 4, 16, 16)).astype(np.float32)
    flow = Trajectories(w - w.mean((2, 3), keepdims=True), 0.2, {"wave": 4})
    write_flow(path / "flow.h5", flow)
    flow_config = flows.flow_config(flow, flows.NetworkConfig(widths=(8, 8), blocks=1, condition=16))
    _bundle(path / "f", "flow", flow_config, dict(flows.build(flow_config).named_parameters()))
    return path


def _bundle(path: Path, kind: str, config: object, weights: dict) -> None:
    model = {"kind": kind, **config.to_json()}  # type: ignore[attr-defined]
    write_bundle(path, modality="particle", model=model, weights=weights, card="toy", sampling=SAMPLING)


def test_showers_are_sampled_into_calochallenges_layout(folder: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "out.h5", tmp_path / "out.html"
    words = ["sample", str(folder / "s"), "-n", "5", "--energy", "5..20GeV", "-o", str(out), "--workers", "1"]
    assert main([*words, "--view", str(page)]) == 0
    with h5py.File(out) as file:
        assert set(file) == {"incident_energies", "showers"}
        assert file["showers"].shape == (5, 6480)
        energies = file["incident_energies"][:]
    assert energies.shape == (5, 1)
    assert ((energies >= 5000) & (energies <= 20000)).all()
    assert "<svg" in page.read_text()
    record = json.loads((tmp_path / "out.h5.run.json").read_text())
    assert record["result"]["samples"] == 5
    assert not (tmp_path / "out.h5.partial").exists()
    more = tmp_path / "more.h5"
    assert (
        main(
            ["sample", str(folder / "s"), "-n", "8", "--energy", "5..20GeV", "-o", str(more), "--batch", "3"]
        )
        == 0
    )
    np.testing.assert_array_equal(read_showers(more).incident[:5], read_showers(out).incident)


def test_jets_are_sampled(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "top.h5"
    assert (
        main(["sample", str(folder / "j"), "-n", "6", "--class", "top", "--pt", "900..1300", "-o", str(out)])
        == 0
    )
    found = read_jets(out)
    assert len(found) == 6
    assert found.jets[:, 0].min() >= 899.9


def test_flows_are_simulated_and_inverted(folder: Path, tmp_path: Path) -> None:
    out, start = tmp_path / "s.h5", str(folder / "flow.h5")
    words = ["simulate", str(folder / "f"), "--from", start, "-n", "2", "--intervals", "3", "-o", str(out)]
    assert main(words) == 0
    assert read_flow(out).values.shape == (6, 4, 16, 16)
    assert main(["evaluate", str(out), "--like", start]) == 0
    back = tmp_path / "i.h5"
    assert main(["invert", str(folder / "f"), "--measured", start, "-n", "2", "-o", str(back)]) == 0
    assert read_flow(back).values.shape == (6, 2, 16, 16)
    assert (
        main(["invert", str(folder / "f"), "--measured", start, "-n", "1", "--blur", "1", "-o", f"{back}.h5"])
        == 0
    )
    assert main(["view", str(out), "--beside", start, "-o", str(tmp_path / "p.html")]) == 0


def test_files_are_evaluated_beside_truth(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "e.json"
    s, j = str(folder / "showers.h5"), str(folder / "jets.h5")
    assert main(["evaluate", s, "--like", s, "--no-classifier", "--json", str(found)]) == 0
    assert "truth vs truth" in capsys.readouterr().out
    metrics = json.loads(found.read_text())["metrics"]
    assert metrics["W1 depth"]["value"] == 0  # the same showers
    assert main(["evaluate", j, "--like", j, "--no-classifier"]) == 0
    assert "W1M" in capsys.readouterr().out


def test_training_goes_on_and_gives_a_bundle(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", "particle/kolmogorov", "--data", str(folder / "flow.h5"), "--from", str(folder / "f")]
    assert main([*words, "--out", str(out), "--steps", "2", "--batch", "2", "--threads", "1"]) == 0
    assert main(["simulate", str(out), "--from", str(folder / "flow.h5"), "-n", "1", "--intervals", "1",
                 "--steps", "2", "-o", str(tmp_path / "x.h5")]) == 0  # fmt: skip
    assert main(["train", "particle/showers", "--data", str(folder / "showers.h5"), "--from", str(folder / "s"),
                 "--out", str(tmp_path / "s"), "--steps", "2", "--batch", "4", "--threads", "1"]) == 0  # fmt: skip
    data = f"gluon={folder / 'jets.h5'},top={folder / 'jets.h5'}"
    assert main(["train", "particle/jets", "--data", data, "--from", str(folder / "j"), "--out", str(tmp_path / "j"),
                 "--steps", "2", "--batch", "4", "--threads", "1"]) == 0  # fmt: skip


def test_files_of_showers_are_joined(folder: Path, tmp_path: Path) -> None:
    one, out = str(folder / "showers.h5"), tmp_path / "both.h5"
    assert main(["data", "particle/showers", "--file", one, "--file", one, "-o", str(out)]) == 0
    assert len(read_showers(out)) == 100


def test_trajectories_are_made_and_do_not_depend_on_their_number(tmp_path: Path) -> None:
    few, many = tmp_path / "few.h5", tmp_path / "many.h5"
    words = [
        "data",
        "particle/kolmogorov",
        "--times",
        "2",
        "--interval",
        "0.02",
        "--grid",
        "16",
        "--viscosity",
        "0.02",
    ]
    assert main([*words, "-n", "2", "-o", str(few), "--workers", "1"]) == 0
    assert main([*words, "-n", "3", "-o", str(many), "--workers", "1"]) == 0
    np.testing.assert_array_equal(read_flow(many).values[:2], read_flow(few).values)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("sample {f}/s -n 2 -o {t}/x.h5 --energy 0.1..2GeV", "expected --energy within"),
        ("sample {f}/s -n 2 -o {t}/x.h5 --energy 5..900GeV", "expected --energy within"),
        ("sample {f}/s -n 2 -o {t}/x.h5 --energy 9..5GeV", "expected --energy such as"),
        ("sample {f}/s -n 2 -o {t}/x.h5 --energy hot", "expected --energy such as"),
        ("sample {f}/s -n 2 -o {t}/x.txt", "expected a file of showers"),
        ("sample {f}/s -n 0 -o {t}/x.h5", "expected -n of at least 1"),
        ("sample {f}/s -n 2 -o {t}/x.h5 --class top", "expected options of showers"),
        ("sample {f}/j -n 2 -o {t}/x.h5 --class charm", "one of gluon, top, given 'charm'"),
        ("sample {f}/j -n 2 -o {t}/x.h5 --class top --energy 5GeV", "expected options of jets"),
        ("sample {f}/j -n 2 -o {t}/x.h5 --class top --pt 5..9", "expected --pt within"),
        ("sample {f}/f -n 2 -o {t}/x.h5", "for perrin simulate and invert"),
        ("simulate {f}/s -n 2 --from {f}/flow.h5 -o {t}/x.h5", "for perrin sample"),
        ("simulate {f}/f -n 2 -o {t}/x.h5", "expected --from"),
        ("invert {f}/f -n 2 --measured {f}/flow.h5 --noise 0 -o {t}/x.h5", "--noise and --blur above 0"),
        ("evaluate {f}/showers.h5", "expected --like"),
        ("evaluate {f}/showers.h5 --like {f}/jets.h5", "expected showers in"),
        ("evaluate {f}/none.h5 --like {f}/jets.h5", "does not exist"),
        ("evaluate {f}/jets.h5 --like {f}/jets.h5 --class charm", "expected a class"),
        ("data particle/jets --class charm -o {t}/x.h5", "expected --class"),
        ("data particle/rain -o {t}/x.h5", "expected particle/jets"),
        ("data particle/kolmogorov --interval 0.03 -n 2 -o {t}/x.h5", "whole steps"),
        ("train particle/jets --data top --out {t}/run", "expected --data CLASS=FILE"),
        ("train particle/showers --out {t}/run", "expected --data"),
        ("view {f}/s/model.safetensors", "expected a file that 'perrin view' works with"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    refused(words.format(f=folder, t=tmp_path), told, tmp_path, capsys)

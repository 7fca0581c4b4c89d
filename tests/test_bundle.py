"""Bundles: what is written comes back, and whatever is wrong with one is said in one line."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import perrin
from perrin.bundle import CARD, CONFIG, FORMAT, WEIGHTS, is_bundle, read_bundle, write_bundle
from perrin.errors import PerrinError
from perrin.modalities import find_bundle

pytest.importorskip("rdkit")

from perrin.modalities.molecule.fields import Vocabulary
from perrin.modalities.molecule.model import MoleculeModel
from perrin.modalities.molecule.network import MoleculeConfig, NetworkConfig, build_denoiser

TINY = NetworkConfig(
    depth=1,
    width=8,
    vectors=4,
    pair_width=8,
    heads=2,
    sets=2,
    pair_hidden=8,
    gathered=2,
    radial=4,
    time_width=8,
)
VOCABULARY = Vocabulary(
    elements=(1, 6),
    charges=(0,),
    position_scale=1.5,
    type_counts=(4.0, 1.0),
    charge_counts=(5.0,),
    bond_counts=(6.0, 4.0, 0.0, 0.0),
    size_counts=((5, 1),),
)
MODEL = MoleculeConfig(vocabulary=VOCABULARY, network=TINY)


def tiny_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return dict(build_denoiser(MODEL).named_parameters())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(
        tmp_path / "tiny",
        modality="molecule",
        model=MODEL.to_json(),
        weights=tiny_weights(),
        card="# tiny\n",
        sampling={"steps": 2},
    )


def zipped(folder: Path, inside: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, inside + file.name)
    return path


def change(folder: Path, **entries: Any) -> None:
    """Change entries of `config.json`, or of the model in it (`model__key`)."""
    config = json.loads((folder / CONFIG).read_text())
    for key, value in entries.items():
        *path, last = key.split("__")
        place = config
        for word in path:
            place = place[word]
        place.pop(last) if value is None else place.__setitem__(last, value)
    (folder / CONFIG).write_text(json.dumps(config))


def set_weights(folder: Path, data: bytes) -> None:
    """Replace the weights and make the hash fit."""
    (folder / WEIGHTS).write_bytes(data)
    change(folder, weights_sha256=hashlib.sha256(data).hexdigest())


def test_what_is_written_comes_back(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == sorted((WEIGHTS, CONFIG, CARD))
    bundle = read_bundle(folder)
    assert bundle.modality == "molecule"
    assert bundle.card == "# tiny\n"
    assert bundle.config["format"] == FORMAT
    assert bundle.config["sampling"] == {"steps": 2}
    assert MoleculeConfig.from_json(bundle.config["model"]) == MODEL
    assert bundle.sha256 == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    weights = bundle.weights()
    for name, value in tiny_weights().items():
        assert weights[name].dtype == torch.float32
        assert torch.equal(weights[name], value.detach().half().float())
    assert {v.dtype for v in load_file(folder / WEIGHTS).values()} == {torch.float16}


def test_whoever_may_read_other_files_may_read_it(folder: Path) -> None:
    (folder / "plain").write_text("")
    assert len({stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}) == 1


@pytest.mark.parametrize("inside", ["", "tiny/"])
def test_a_zip_is_a_bundle(folder: Path, inside: str) -> None:
    path = zipped(folder, inside)
    assert is_bundle(path)
    bundle = read_bundle(path)
    assert bundle.config == read_bundle(folder).config
    assert bundle.data == read_bundle(folder).data
    assert bundle.card == "# tiny\n"
    assert len(perrin.load(path).sample(1)[0]) == 5


def test_a_card_may_be_missing(folder: Path) -> None:
    (folder / CARD).unlink()
    assert read_bundle(folder).card == ""


def test_rewriting_replaces_and_leaves_nothing_else(folder: Path) -> None:
    before = read_bundle(folder).sha256
    weights = {k: v + 1 for k, v in tiny_weights().items()}
    write_bundle(folder, modality="molecule", model=MODEL.to_json(), weights=weights, card="second")
    assert read_bundle(folder).sha256 != before
    assert read_bundle(folder).card == "second"
    assert sorted(p.name for p in folder.iterdir()) == sorted((WEIGHTS, CONFIG, CARD))


def wrong_hash(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def cut_off(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def damaged_json(folder: Path) -> None:
    (folder / CONFIG).write_text('{"format": ')


def not_text(folder: Path) -> None:
    (folder / CONFIG).write_bytes(b"\xff\xfe\x00")


READING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a changed byte": (wrong_hash, "SHA-256"),
    "half of the weights": (cut_off, "SHA-256"),
    "weights missing": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS),
    "configuration missing": (lambda f: (f / CONFIG).unlink(), CONFIG),
    "everything missing": (shutil.rmtree, CONFIG),
    "damaged JSON": (damaged_json, "JSON"),
    "no text": (not_text, "JSON"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), FORMAT),
    "another format": (lambda f: change(f, format="perrin-bundle-9"), "perrin-bundle-9"),
    "no model": (lambda f: change(f, model=None), "model"),
    "no hash": (lambda f: change(f, weights_sha256=None), "weights_sha256"),
}


@pytest.mark.parametrize("case", READING)
def test_a_damaged_bundle_is_refused(folder: Path, case: str) -> None:
    spoil, word = READING[case]
    spoil(folder)
    with pytest.raises(PerrinError, match=r"^expected .*") as caught:
        read_bundle(folder)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_zip_is_refused(folder: Path) -> None:
    path = zipped(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PerrinError, match="expected a bundle with"):
        read_bundle(path)
    data = bytearray(whole)
    start = data.index(b"model.safetensors") + len(b"model.safetensors")
    data[start + 40 : start + 240] = bytes(200)  # inside the compressed weights
    path.write_bytes(data)
    with pytest.raises(PerrinError, match="expected a bundle with"):
        read_bundle(path)


def other_names() -> dict[str, torch.Tensor]:
    return {f"other.{k}": v for k, v in tiny_weights().items()}


def other_shapes() -> dict[str, torch.Tensor]:
    return {k: v.new_zeros((*v.shape[:-1], v.shape[-1] + 1)) for k, v in tiny_weights().items()}


@pytest.mark.parametrize("weights", [other_names, other_shapes, dict])
def test_weights_of_another_model_are_refused(
    folder: Path, weights: Callable[[], dict[str, torch.Tensor]]
) -> None:
    write_bundle(folder, modality="molecule", model=MODEL.to_json(), weights=weights(), card="")
    with pytest.raises(PerrinError, match=r"expected the weights .* to fit its config.json"):
        perrin.load(folder)


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "a wider network": {"model__network__width": 16},
    "a deeper network": {"model__network__depth": 2},
    "fewer heads": {"model__network__heads": 1},
    "more elements": {"model__vocabulary__elements": [1, 6, 7], "model__vocabulary__type_counts": [4, 1, 1]},
    "an impossible size": {"model__network__width": -1},
    "an unknown option": {"model__network__colour": 3},
    "no vocabulary": {"model__vocabulary": None},
    "no elements": {"model__vocabulary__elements": None},
    "an unknown solver": {"sampling__solver": "magic"},
    "an unknown sampling option": {"sampling__speed": 3},
    "another modality": {"modality": "cooking"},
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_configuration_of_another_model_is_refused(folder: Path, case: str) -> None:
    change(folder, **CONFIGURATIONS[case])
    with pytest.raises(PerrinError, match=r"^expected ") as caught:
        perrin.load(folder)
    assert "\n" not in str(caught.value)


class Trap:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["pickle", "torch", "text"])
def test_nothing_is_unpickled(folder: Path, tmp_path: Path, kind: str) -> None:
    sprung = tmp_path / "sprung"
    file = tmp_path / "weights.bin"
    if kind == "torch":
        torch.save({"trap": Trap(sprung)}, file)
    else:
        file.write_bytes(pickle.dumps(Trap(sprung)) if kind == "pickle" else b"no weights at all")
    set_weights(folder, file.read_bytes())
    with pytest.raises(PerrinError, match="expected safetensors"):
        perrin.load(folder)
    assert not sprung.exists()


def test_a_well_made_file_of_other_tensors_is_refused(folder: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    set_weights(folder, (tmp_path / "a.safetensors").read_bytes())
    with pytest.raises(PerrinError, match="fit its config"):
        perrin.load(folder)


def test_names_and_paths_find_bundles(folder: Path, tmp_path: Path) -> None:
    assert find_bundle("molecule/qm9").joinpath(CONFIG).is_file()
    assert find_bundle(folder) == folder
    for reference in ("molecule/none", "cooking/qm9", str(tmp_path), "qm9", ""):
        with pytest.raises(PerrinError, match=r"^expected a bundle.*perrin list"):
            find_bundle(reference)


def test_the_shipped_bundle_is_whole() -> None:
    bundle = read_bundle(find_bundle("molecule/qm9"))
    model = MoleculeModel.from_bundle(bundle)
    assert model.sha256 == bundle.sha256
    assert len(bundle.card.splitlines()) > 3, "the card says what data, licence and metrics are"
    assert all(torch.isfinite(p).all() for p in model.denoiser.parameters())
    assert not model.denoiser.training

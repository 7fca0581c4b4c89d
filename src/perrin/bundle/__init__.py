"""Bundles: a model in a folder (or one zip) of three files.

- `model.safetensors`: weights, in half precision;
- `config.json`: format, modality, the SHA-256 of the weights, the model's configuration, defaults for sampling;
- `card.md`: data and their licence, metrics and the command that reproduces them.

Weights are never unpickled. The hash ties configuration and weights together.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perrin.errors import PerrinError
from perrin.run.atomic import write_json, write_tensors, write_text

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = "perrin-bundle-1"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "card.md"


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been read and checked.

    Arguments:
        path: folder or zip file.
        config: the content of `config.json`.
        card: the text of `card.md`.
        data: the bytes of `model.safetensors`.
    """

    path: Path
    config: Mapping[str, Any]
    card: str
    data: bytes

    @property
    def modality(self) -> str:
        """The modality that can load it."""
        return str(self.config["modality"])

    @property
    def sha256(self) -> str:
        """The hash of the weights."""
        return str(self.config["weights_sha256"])

    def weights(self) -> dict[str, Tensor]:
        """The weights by name, float32.

        Raises:
            PerrinError: the file is not safetensors.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return {k: v.float() for k, v in load(self.data).items()}
        except SafetensorError as error:
            raise PerrinError(
                f"expected safetensors weights in {self.path}, given a damaged file ({error})"
            ) from error


def is_bundle(path: str | Path) -> bool:
    """Whether there is something at `path` that looks like a bundle."""
    path = Path(path)
    return (path / CONFIG).is_file() or (path.suffix == ".zip" and path.is_file())


def read_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle.

    Raises:
        PerrinError: a file is missing or damaged, the format is unknown, or the weights are not those of the configuration.
    """
    path = Path(path)
    config = read_config(path)
    data = _member(path, WEIGHTS)
    found = hashlib.sha256(data).hexdigest()
    if found != config["weights_sha256"]:
        raise PerrinError(
            f"expected weights with SHA-256 {config['weights_sha256'][:12]}… in {path}, found {found[:12]}…: "
            "the bundle is damaged or mixed from two, get it again"
        )
    try:
        card = _member(path, CARD).decode("utf-8", errors="replace")
    except PerrinError:
        card = ""
    return Bundle(path, config, card, data)


def read_config(path: str | Path) -> dict[str, Any]:
    """Read and check a bundle's `config.json` alone.

    Raises:
        PerrinError: it is missing or damaged, or the format is unknown.
    """
    path = Path(path)
    raw = _member(path, CONFIG)
    try:
        config = json.loads(raw)
    except ValueError as error:
        raise PerrinError(f"expected JSON in {path / CONFIG}, given a damaged file ({error})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        given = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise PerrinError(
            f"expected a bundle of format {FORMAT} in {path}, given {given!r}: update perrin or the bundle"
        )
    missing = [k for k in ("modality", "weights_sha256", "model") if k not in config]
    if missing:
        raise PerrinError(
            f"expected {', '.join(missing)} in {path / CONFIG}, given none: the bundle is incomplete"
        )
    return config


def _member(path: Path, name: str) -> bytes:
    try:
        if path.suffix == ".zip" and path.is_file():
            with zipfile.ZipFile(path) as archive:
                inside = [n for n in archive.namelist() if n == name or n.endswith("/" + name)]
                if not inside:
                    raise FileNotFoundError(name)
                return archive.read(min(inside, key=len))
        return (path / name).read_bytes()
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # a damaged or locked zip
        raise PerrinError(f"expected a bundle with {name} in {path}, found none: check the path") from error


def write_bundle(
    folder: str | Path,
    *,
    modality: str,
    model: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    card: str,
    **more: Any,
) -> Path:
    """Write a bundle; floating weights are stored as float16.

    Arguments:
        folder: made if need be; the three files are replaced, each atomically, the configuration last.
        modality: who can load it.
        model: the model's configuration.
        weights: by name.
        card: the text of `card.md`.
        more: further entries of `config.json` (`sampling`, `training`).
    """
    import torch

    folder = Path(folder)
    half = {
        k: v.detach().cpu().to(torch.float16 if v.is_floating_point() else v.dtype).contiguous()
        for k, v in weights.items()
    }
    write_tensors(folder / WEIGHTS, half)
    sha = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    write_text(folder / CARD, card)
    write_json(
        folder / CONFIG,
        {"format": FORMAT, "modality": modality, "weights_sha256": sha, "model": dict(model), **more},
    )
    return folder


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Copy weights into a module's parameters, or say in one line why they do not fit.

    Raises:
        PerrinError: a name or a shape differs; nothing has been copied then.
    """
    import torch

    own = dict(module.named_parameters())
    wrong = sorted(set(own) ^ set(weights)) or [k for k in own if own[k].shape != weights[k].shape]
    if wrong:
        raise PerrinError(
            f"expected the weights in {source} to fit its config.json, but {len(wrong)} differ ({wrong[0]}): "
            "the bundle is damaged or mixed from two, get it again"
        )
    with torch.no_grad():
        for k, p in own.items():
            p.copy_(weights[k])


def tuples(words: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a configuration, read from JSON, which has lists where Python has tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in words.items()}

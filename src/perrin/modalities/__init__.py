"""Modalities: plug-ins that register through the entry point group `perrin.modalities`.

A modality is an object with the interface of `Modality`. The module that the entry point names must import quickly (no
torch at its top): the command line imports it to learn the modality's arguments. Ours register in the same way as anybody
else's, and none imports another.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from perrin.errors import PerrinError

if TYPE_CHECKING:
    from perrin.bundle import Bundle
    from perrin.run.shards import ShardedJob

GROUP = "perrin.modalities"


class Modality(ABC):
    """What a plug-in supplies.

    Class attributes:
        name: the first part of `molecule/qm9`.
        summary: one line for `perrin list`.
        suffixes: files that `perrin evaluate`, `perrin rank`, `perrin verify` and `perrin view` bring to this modality.
    """

    name: str
    summary: str
    suffixes: tuple[str, ...] = ()

    @abstractmethod
    def bundle_folder(self) -> Path:
        """The folder that holds the bundles that ship with the plug-in, one folder each."""

    @abstractmethod
    def add_arguments(self, verb: str, parser: ArgumentParser) -> None:
        """Add this modality's own options of a verb to the common ones."""

    @abstractmethod
    def load(self, bundle: Bundle, *, device: str = "cpu") -> Any:
        """The model of a bundle: an object with `sample(n, seed=…)`."""

    def sample(self, arguments: Namespace) -> None:
        """`perrin sample`; `arguments` has target, n, out, seed, steps, solver, batch, device, workers, dry_run, argv."""
        self._refuse("sample")

    def train(self, arguments: Namespace) -> None:
        """`perrin train`."""
        self._refuse("train")

    def edit(self, arguments: Namespace) -> None:
        """`perrin edit`; `arguments` has file, model and those of `sample` but the target."""
        self._refuse("edit")

    def vary(self, arguments: Namespace) -> None:
        """`perrin vary`; `arguments` as for `edit`."""
        self._refuse("vary")

    def conformers(self, arguments: Namespace) -> None:
        """`perrin conformers`; `arguments` as for `edit`."""
        self._refuse("make conformers")

    def simulate(self, arguments: Namespace) -> None:
        """`perrin simulate`; `arguments` as for `sample`."""
        self._refuse("simulate")

    def invert(self, arguments: Namespace) -> None:
        """`perrin invert`; `arguments` as for `sample`."""
        self._refuse("invert")

    def evaluate(self, arguments: Namespace) -> None:
        """`perrin evaluate`."""
        self._refuse("evaluate")

    def rank(self, arguments: Namespace) -> None:
        """`perrin rank`; `arguments` has file, out, by, where, top, workers, argv."""
        self._refuse("rank")

    def view(self, arguments: Namespace) -> None:
        """`perrin view`."""
        self._refuse("view")

    def data(self, arguments: Namespace) -> None:
        """`perrin data`; `arguments` has target and out."""
        self._refuse("prepare data")

    def forecast(self, arguments: Namespace) -> None:
        """`perrin forecast`; `arguments` has target, out, members, seed, device, workers, argv."""
        self._refuse("forecast")

    def assimilate(self, arguments: Namespace) -> None:
        """`perrin assimilate`; `arguments` as for `forecast`."""
        self._refuse("assimilate")

    def verify(self, arguments: Namespace) -> None:
        """`perrin verify`; `arguments` has file, truth and json."""
        self._refuse("verify")

    def shards(self, verb: str, arguments: Namespace) -> ShardedJob | None:
        """How `perrin submit` cuts a verb's work; `None`: it runs whole, as one job. `arguments` are those of the verb."""
        return None

    def _refuse(self, verb: str) -> NoReturn:
        raise PerrinError(f"expected a modality that can {verb}, given {self.name}, which cannot")

    def requirements(self) -> Iterable[str]:
        """Import names of the packages that the modality needs, for `perrin doctor`."""
        return ()

    def bundles(self) -> list[str]:
        """Names of the bundles that ship with the plug-in."""
        folder = self.bundle_folder()
        return sorted(p.parent.name for p in folder.glob("*/config.json")) if folder.is_dir() else []

    def read_config(self, bundle: str) -> dict[str, Any]:
        """The `config.json` of one of them, without its weights."""
        text = (self.bundle_folder() / bundle / "config.json").read_text(encoding="utf-8")
        content: dict[str, Any] = json.loads(text)
        return content


def names() -> list[str]:
    """Names of the installed modalities, without importing them."""
    return sorted({point.name for point in metadata.entry_points(group=GROUP)})


def modality(name: str) -> Modality:
    """The modality of that name.

    Raises:
        PerrinError: it is not installed, or fails to import.
    """
    points = {point.name: point for point in metadata.entry_points(group=GROUP)}
    if name not in points:
        known = ", ".join(sorted(points)) or "none"
        raise PerrinError(f"expected an installed modality ({known}), given {name!r}: see 'perrin list'")
    try:
        found = points[name].load()
    except ImportError as error:
        raise PerrinError(
            f"modality {name!r} cannot be imported ({error}): pip install 'perrin[{name}]'"
        ) from error
    assert isinstance(found, Modality)
    return found


def modalities() -> dict[str, Modality]:
    """All installed modalities; one that fails to import is left out with a warning that names its package."""
    out = {}
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name):
        try:
            out[point.name] = point.load()
        except Exception as error:
            package = point.dist.name if point.dist else point.value
            warnings.warn(
                f"modality {point.name!r} of package {package} cannot be loaded: {error}", stacklevel=2
            )
    return out


def find_bundle(reference: str | Path) -> Path:
    """The folder or file of a bundle named `modality/name`, or given by its path.

    Raises:
        PerrinError: there is none.
    """
    from perrin.bundle import is_bundle

    text = str(reference)
    if is_bundle(text):
        return Path(text)
    if (Path(text) / "checkpoint.safetensors").is_file():
        raise PerrinError(
            f"expected a finished run, given {text}, which has only a checkpoint: call its train command again"
        )
    head, _, tail = text.partition("/")
    if tail and head in names():
        found = modality(head)
        if tail in found.bundles():
            return found.bundle_folder() / tail
        known = ", ".join(f"{head}/{b}" for b in found.bundles()) or "none"
        raise PerrinError(
            f"expected a bundle ({known}) or the path of one, given {text!r}: see 'perrin list'"
        )
    raise PerrinError(
        f"expected a bundle's name, such as molecule/qm9, or its folder, given {text!r}: see 'perrin list'"
    )


def modality_of(reference: str) -> Modality:
    """The modality that answers for `modality/name`, or for a bundle at a path."""
    from perrin.bundle import is_bundle, read_bundle

    head = reference.partition("/")[0]
    if head in names() and not is_bundle(reference):
        return modality(head)
    return modality(read_bundle(find_bundle(reference)).modality)


def modality_for_file(path: str | Path) -> Modality:
    """The modality that claims a file's suffix.

    Raises:
        PerrinError: none does.
    """
    path = Path(path)
    suffix = (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()
    for candidate in modalities().values():
        if suffix in candidate.suffixes:
            return candidate
    known = sorted(s for m in modalities().values() for s in m.suffixes)
    raise PerrinError(f"expected a file of a known kind ({', '.join(known)}), given {path}")


def load(reference: str | Path, *, device: str = "cpu") -> Any:
    """Load a model: `perrin.load("molecule/qm9")`, or the path of a bundle.

    Arguments:
        reference: `modality/name`, or a bundle's folder or zip.
        device: where to put it.

    Raises:
        PerrinError: there is no such bundle, it is damaged, or its modality is not installed.
    """
    from perrin.bundle import read_bundle

    bundle = read_bundle(find_bundle(reference))
    return modality(bundle.modality).load(bundle, device=device)

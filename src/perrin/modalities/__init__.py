"""Modalities: plug-ins that register through the entry point group `perrin.modalities`.

A modality is an object with the interface of `Modality`. The module that the entry point names must import quickly (no
torch at its top): the command line imports it to learn the modality's arguments. Ours register in the same way as anybody
else's, and none imports another.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from perrin.errors import PerrinError, install

if TYPE_CHECKING:
    from perrin.bundle import Bundle
    from perrin.run.shards import ShardedJob

GROUP = "perrin.modalities"

BUNDLE_VERBS = ("sample", "simulate", "invert", "forecast", "downscale", "assimilate")
"""Verbs whose first word is a bundle."""


class Modality(ABC):
    """What a plug-in supplies.

    Class attributes:
        name: the first part of `molecule/qm9`.
        summary: one line for `perrin list`.
        suffixes: files that `perrin evaluate`, `perrin rank`, `perrin verify` and `perrin view` bring to this modality.
        instead: for verbs on files that it has not, the command that does as much, with `{file}` for the file.
    """

    name: str
    summary: str
    suffixes: tuple[str, ...] = ()
    instead: Mapping[str, str] = MappingProxyType({})

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
        self._refuse("conformers")

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
        self._refuse("data")

    def forecast(self, arguments: Namespace) -> None:
        """`perrin forecast`; `arguments` has target, out, members, seed, device, workers, argv."""
        self._refuse("forecast")

    def downscale(self, arguments: Namespace) -> None:
        """`perrin downscale`; `arguments` as for `forecast`, and file."""
        self._refuse("downscale")

    def assimilate(self, arguments: Namespace) -> None:
        """`perrin assimilate`; `arguments` as for `forecast`."""
        self._refuse("assimilate")

    def correct(self, arguments: Namespace) -> None:
        """`perrin correct`; `arguments` has file and out."""
        self._refuse("correct")

    def verify(self, arguments: Namespace) -> None:
        """`perrin verify`; `arguments` has file, truth and json."""
        self._refuse("verify")

    def outputs(self, verb: str, arguments: Namespace) -> list[Path]:
        """Files that a verb will write, the main one first: they are looked at before any work (`perrin.run.outputs`).

        Raises:
            PerrinError: a name is none for an output.
        """
        if verb == "train":  # makes a folder, and goes on in it
            return []
        if verb == "view" and not arguments.out:
            return [page_beside(arguments.file)]
        for page in (arguments.out if verb == "view" else None, getattr(arguments, "view", None)):
            if page and Path(page).suffix.lower() not in (".html", ".htm"):
                raise PerrinError(f"expected a page's name that ends in .html, given {page}: change it")
        given = (getattr(arguments, name, None) for name in ("out", "view", "html", "json"))
        return [Path(name) for name in given if name]

    def shards(self, verb: str, arguments: Namespace) -> ShardedJob | None:
        """How `perrin submit` cuts a verb's work; `None`: it runs whole, as one job. `arguments` are those of the verb."""
        return None

    def supports(self, verb: str) -> bool:
        """Whether the modality has a verb of its own, for one bundle or file at least."""
        return getattr(type(self), verb) is not getattr(Modality, verb)

    def works(self, verb: str, model: Mapping[str, Any]) -> bool:
        """Whether a verb that it supports works with a bundle of this `model` configuration; with all, by default."""
        return True

    def _refuse(self, verb: str) -> NoReturn:
        raise PerrinError(refusal(verb, self.name))

    def requirements(self) -> Iterable[str]:
        """Import names of the packages that the modality needs, for `perrin doctor`."""
        return ()

    def bundles(self) -> list[str]:
        """Names of the bundles that ship with the plug-in."""
        folder = self.bundle_folder()
        return sorted(p.parent.name for p in folder.glob("*/config.json")) if folder.is_dir() else []


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
        raise PerrinError(f"modality {name!r} cannot be imported ({error}): {install(name)}") from error
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
    known = [modality(head)] if head in names() else list(modalities().values())
    if head in names() and tail in known[0].bundles():
        return known[0].bundle_folder() / tail
    bundles = ", ".join(f"{m.name}/{b}" for m in known for b in m.bundles()) or "none ships"
    first = "the bundle comes first, then the file; " if Path(text).is_file() else ""
    raise PerrinError(
        f"expected a bundle ({bundles}) or the path of one, given {text!r}: {first}see 'perrin list'"
    )


def modality_of(reference: str) -> Modality:
    """The modality that answers for `modality/name`, or for a bundle at a path."""
    from perrin.bundle import is_bundle, read_config

    head = reference.partition("/")[0]
    if head in names() and not is_bundle(reference):
        return modality(head)
    return modality(str(read_config(find_bundle(reference))["modality"]))


def modality_for_file(path: str | Path, verb: str = "view") -> Modality:
    """The modality that has a verb for files of this suffix.

    Raises:
        PerrinError: none does.
    """
    suffix = _suffix(path)
    for candidate in modalities().values():
        if suffix in candidate.suffixes and candidate.supports(verb):
            return candidate
    raise PerrinError(refusal(verb, str(path) or "none"))


def _suffix(path: str | Path) -> str:
    """Of a file, compressed or not."""
    name = Path(path)
    return (name.with_suffix("") if name.suffix.lower() == ".gz" else name).suffix.lower()


def page_beside(path: str | Path) -> Path:
    """Where `perrin view` writes, unless told."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).with_suffix(".html")


def refusal(verb: str, given: str) -> str:
    """What to say of a bundle, a modality or a file that a verb does not work with: those that it works with."""
    able = [m for m in modalities().values() if m.supports(verb)]
    if verb in BUNDLE_VERBS:
        known = [n for m in able for b in m.bundles() if verb in bundle_verbs(n := f"{m.name}/{b}")]
        own = bundle_verbs(given) if given.partition("/")[2] else []
        other = f", which is for perrin {' and '.join(own)}" if own else ""
        words = f"a bundle that 'perrin {verb}' works with ({', '.join(known) or 'none ships'}), given {given}{other}"
        return f"expected {words}: see 'perrin list'"
    if verb in ("data", "train"):
        words = (
            f"a modality that 'perrin {verb}' works with ({', '.join(m.name for m in able)}), given {given}"
        )
        return f"expected {words}: see 'perrin {verb} --help'"
    kinds = ", ".join(suffix for m in able for suffix in m.suffixes)
    others = [
        m.instead[verb] for m in modalities().values() if _suffix(given) in m.suffixes and verb in m.instead
    ]
    remedy = f"say '{others[0].format(file=given)}'" if others else "choose another"
    if not others and given != "none" and not Path(given).exists():
        given, remedy = f"{given}, which does not exist", "give the name of such a file"
    return f"expected a file that 'perrin {verb}' works with ({kinds}), given {given}: {remedy}"


def bundle_verbs(reference: str) -> list[str]:
    """The verbs that a bundle works with."""
    from perrin.bundle import read_config

    config = read_config(find_bundle(reference))
    found = modality(str(config["modality"]))
    return [v for v in BUNDLE_VERBS if found.supports(v) and found.works(v, config["model"])]


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

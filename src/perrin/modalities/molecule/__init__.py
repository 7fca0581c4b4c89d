"""Molecules: 3D structures with bonds. The command line imports this module, so it imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perrin.modalities import Modality

if TYPE_CHECKING:
    from perrin.bundle import Bundle
    from perrin.modalities.molecule.model import MoleculeModel
    from perrin.modalities.molecule.predictor import Predictor
    from perrin.run.shards import ShardedJob

PROTOCOLS = ("lookup", "bonds", "both")
BACKBONES = ("transformer", "e3nn", "sparse")


class MoleculeModality(Modality):
    """See `perrin.modalities.Modality`."""

    name = "molecule"
    summary = "small molecules in 3D with bonds and charges (QM9: H, C, N, O, F)"
    suffixes = (".sdf", ".xyz", ".extxyz", ".smi", ".smiles", ".csv")

    def bundle_folder(self) -> Path:
        """The bundles in the package."""
        return Path(__file__).parent / "bundles"

    def requirements(self) -> Iterable[str]:
        """RDKit for chemistry, ASE for XYZ, plotly for pages."""
        return ("rdkit", "ase", "plotly")

    def add_arguments(self, verb: str, parser: ArgumentParser) -> None:
        """The molecule options."""
        group = parser.add_argument_group("molecule")
        if verb in ("sample", "edit", "vary"):
            group.add_argument(
                "--want",
                action="append",
                metavar="WISH",
                help="a property that the molecules shall have, such as 'gap<0.2 Ha', 'mu=2..3 D' or 'alpha=75'; may be "
                "given several times (bundles trained with --conditions)",
            )
            group.add_argument(
                "--guidance-scale",
                type=float,
                metavar="X",
                help="how much to exaggerate the wishes: 1 not at all, at half the cost (default: the bundle's)",
            )
            group.add_argument(
                "--candidates",
                type=int,
                metavar="N",
                help="start so many of each molecule, and keep what a property network finds nearest to the wishes "
                "(default: the bundle's; 1 is off)",
            )
            group.add_argument(
                "--guide",
                metavar="BUNDLE",
                help="the property network for --candidates (default: the bundle's)",
            )
        if verb == "sample":
            group.add_argument(
                "--balance",
                type=int,
                metavar="N",
                help="draw N molecules for each one, up to 8, and keep one of them such that all together hold what the "
                "training data hold; not with --want (default: the bundle's, which is 1, off, for molecule/qm9)",
            )
            group.add_argument(
                "--atoms",
                metavar="N[-M]",
                help="atoms per molecule, hydrogens included, or a range; "
                "drawn from the training data by default",
            )
            group.add_argument(
                "--temperature",
                type=float,
                metavar="T",
                help="of types, charges and bonds: below 1 favours the probable (default: the bundle's)",
            )
            group.add_argument(
                "--self-condition",
                choices=("on", "off"),
                help="hand the network its estimate before (default: the bundle's)",
            )
            group.add_argument(
                "--precision",
                choices=("32-true", "bf16-mixed"),
                default="32-true",
                help="of matrix products (default 32-true)",
            )
            group.add_argument(
                "--mode",
                choices=("eager", "compile", "graph"),
                default="eager",
                help="how the network is run: replayed as a CUDA graph, or that with its blocks compiled (default eager)",
            )
            group.add_argument("--view", metavar="FILE.html", help="also write a page with 3D views")
            group.add_argument("--evaluate", action="store_true", help="also print the metrics table")
        elif verb == "edit":
            group.add_argument(
                "--keep",
                metavar="WHAT",
                required=True,
                help="heavy atoms to keep, by their numbers in the file (1-6,9) or as a SMARTS that matches in one place; "
                "several fragments are linked",
            )
            group.add_argument(
                "--anchors",
                metavar="WHAT",
                help="kept atoms to grow from, as for --keep, or the word cut for those that lose a neighbour; "
                "by default every one with a hydrogen or a lost neighbour. The others keep their hydrogens",
            )
            group.add_argument(
                "--add",
                metavar="N[-M]",
                help="heavy atoms to add, hydrogens not counted; by default drawn, up to the data's usual size",
            )
            group.add_argument(
                "--tries",
                type=int,
                default=20,
                metavar="N",
                help="draws for one molecule at most: what is invalid, in pieces or of wrong valence is drawn again "
                "(default 20)",
            )
        elif verb == "vary":
            group.add_argument(
                "--strength",
                type=float,
                default=0.4,
                metavar="X",
                help="how far to go back into the noise, 0 (the same molecule) to 1 (a new one); default 0.4",
            )
        elif verb == "conformers":
            group.add_argument(
                "--tries",
                type=int,
                default=20,
                metavar="N",
                help="draws for one conformer at most: what has another stereochemistry or a broken geometry is drawn again "
                "(default 20)",
            )
            group.add_argument(
                "--xtb", action="store_true", help="GFN2-xTB energies; conformers are sorted by them"
            )
        elif verb == "train":
            group.add_argument("--data", metavar="FILE", help="own molecules, SDF or SMILES, in place of QM9")
            group.add_argument("--limit", type=int, metavar="N", help="use only N molecules of the data")
            group.add_argument(
                "--conditions",
                metavar="NAMES",
                help="properties that can be wished for later, with commas: alpha,gap,homo,lumo,mu,cv of QM9, or data items "
                "of --data",
            )
            group.add_argument(
                "--parts",
                action="store_true",
                help="train with parts of molecules given, for perrin edit and perrin conformers",
            )
            group.add_argument(
                "--rollouts",
                type=float,
                metavar="SHARE",
                help="share of the steps that learn from the model's own sound samples, such as 0.5; with --from; "
                "wants a GPU",
            )
            group.add_argument(
                "--backbone",
                choices=BACKBONES,
                help="the network: transformer (default), e3nn (irreps; slow, to learn from) or sparse "
                "(torch-geometric; for large molecules); with --from, the bundle's",
            )
        elif verb == "evaluate":
            group.add_argument(
                "--protocol",
                choices=PROTOCOLS,
                help="lookup: bonds from distances; bonds: bonds of the file, "
                "strict valences; both where the file has bonds",
            )
            group.add_argument(
                "--groups",
                type=int,
                metavar="K",
                help="cut the file into K parts, such as seeds, and give the standard error over them",
            )
            group.add_argument(
                "--relax",
                type=int,
                nargs="?",
                const=500,
                metavar="N",
                help="relax N molecules of each group (default 500) by GFN2-xTB: energy drop and RMSD",
            )
            group.add_argument(
                "--fmax", type=float, metavar="X", help="… until no force is above X eV/Å (default 0.01)"
            )
            group.add_argument(
                "--posebusters",
                type=int,
                nargs="?",
                const=0,
                metavar="N",
                help="PoseBusters' checks mol_fast, of N molecules of each group (default all)",
            )
            group.add_argument(
                "--fcd", action="store_true", help="Fréchet ChemNet distance to the data's test split"
            )
            group.add_argument(
                "--geometry",
                action="store_true",
                help="bond lengths, angles, dihedrals and composition against the data's test split",
            )
            group.add_argument("--all", action="store_true", help="all of these, and --like qm9")
            group.add_argument(
                "--floor", action="store_true", help="also measure real molecules, for comparison"
            )
            group.add_argument(
                "--subset-seed",
                type=int,
                default=0,
                metavar="N",
                help="which molecules --relax N draws (default 0)",
            )
            group.add_argument("--workers", type=int, help="processes (default: the cores there are)")
        elif verb == "rank":
            group.add_argument(
                "--predict",
                action="store_true",
                help="polarisability, gap, HOMO, LUMO, dipole moment and heat capacity by the property network that ships",
            )
            group.add_argument("--predict-by", metavar="BUNDLE", help="… by another property network")
            group.add_argument(
                "--xtb", action="store_true", help="GFN2-xTB energy, gap, orbitals and dipole of the geometry"
            )
            group.add_argument(
                "--diverse", type=int, metavar="K", help="keep K different ones (MaxMin, Morgan fingerprints)"
            )
            group.add_argument(
                "--reference", metavar="NAME", help="flag known molecules: qm9, or a file .sdf, .smi or .csv"
            )
            group.add_argument(
                "--duplicates",
                default="mark",
                help="mark or drop what equals an earlier molecule (default mark)",
            )
            group.add_argument(
                "--known", default="mark", help="mark or drop what is in --reference (default mark)"
            )
        elif verb == "view":
            group.add_argument(
                "--reference",
                metavar="NAME",
                help="histograms beside these molecules: qm9, a file, or none (default: the data of the bundle)",
            )

    def outputs(self, verb: str, arguments: Namespace) -> list[Path]:
        """A ranking is beside the file that is ranked, unless told. What is edited has bonds, what has conformers positions.

        Raises:
            PerrinError: the file's suffix is one that cannot be written.
        """
        from perrin.modalities.molecule.files import WRITABLE_SUFFIXES, check_suffix

        edited = (".sdf",)
        suffixes = {"edit": edited, "vary": edited, "conformers": (".sdf", ".xyz", ".extxyz")}
        if verb in ("sample", *suffixes):
            check_suffix(arguments.out, suffixes.get(verb, WRITABLE_SUFFIXES))
        if verb == "rank" and not arguments.out:
            return [ranked_beside(arguments.file)]
        return super().outputs(verb, arguments)

    def works(self, verb: str, model: Mapping[str, Any]) -> bool:
        """A property network makes no molecules."""
        return model.get("kind") != "properties"

    def load(self, bundle: Bundle, *, device: str = "cpu") -> MoleculeModel | Predictor:
        """The model of a bundle."""
        from perrin.modalities.molecule.model import MoleculeModel
        from perrin.modalities.molecule.predictor import KIND, Predictor

        if bundle.config["model"].get("kind") == KIND:
            return Predictor.from_bundle(bundle, device=device)
        return MoleculeModel.from_bundle(bundle, device=device)

    def sample(self, arguments: Namespace) -> None:
        """Generate molecules into a file."""
        from perrin.modalities.molecule import commands

        commands.sample(arguments)

    def edit(self, arguments: Namespace) -> None:
        """Make molecules around a kept part."""
        from perrin.modalities.molecule import edit_commands

        edit_commands.edit(arguments)

    def vary(self, arguments: Namespace) -> None:
        """Make molecules like given ones."""
        from perrin.modalities.molecule import edit_commands

        edit_commands.vary(arguments)

    def conformers(self, arguments: Namespace) -> None:
        """Draw positions for given molecules."""
        from perrin.modalities.molecule import conformer_command

        conformer_command.conformers(arguments)

    def train(self, arguments: Namespace) -> None:
        """Train on QM9 or on the user's molecules."""
        from perrin.modalities.molecule import commands

        commands.train(arguments)

    def shards(self, verb: str, arguments: Namespace) -> ShardedJob | None:
        """Molecules are sampled in shards by their numbers; other verbs run whole."""
        if verb != "sample":
            return None
        from perrin.modalities.molecule.shards import SampleShards

        return SampleShards(arguments)

    def evaluate(self, arguments: Namespace) -> None:
        """Compute the metrics of a file."""
        from perrin.modalities.molecule import commands

        commands.evaluate(arguments)

    def rank(self, arguments: Namespace) -> None:
        """Filter, sort and pick molecules."""
        from perrin.modalities.molecule.ranking import command

        command.run(arguments)

    def view(self, arguments: Namespace) -> None:
        """Write a page."""
        from perrin.modalities.molecule import commands

        commands.view(arguments)


def ranked_beside(path: str | Path) -> Path:
    """Where `perrin rank` writes, unless told."""
    return Path(path).with_name(f"{Path(path).stem}.ranked.sdf")


MODALITY = MoleculeModality()

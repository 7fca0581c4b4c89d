"""Particle physics and flows. The command line imports this module, so it imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perrin.modalities import Modality

if TYPE_CHECKING:
    from perrin.bundle import Bundle

PRESETS = ("showers", "jets", "kolmogorov", "nbody", "plasma")


class ParticleModality(Modality):
    """See `perrin.modalities.Modality`."""

    name = "particle"
    summary = "calorimeter showers, jets, flows and bodies that attract each other: data, metrics and models"
    suffixes = (".h5", ".hdf5", ".npz", ".root")

    def bundle_folder(self) -> Path:
        """The bundles in the package."""
        return Path(__file__).parent / "bundles"

    def requirements(self) -> Iterable[str]:
        """h5py for files, SciPy for metrics."""
        return ("h5py", "scipy")

    def add_arguments(self, verb: str, parser: ArgumentParser) -> None:
        """The particle options."""
        group = parser.add_argument_group("particle")
        if verb == "sample":
            group.add_argument(
                "--energy", metavar="A..B", help="showers: incident energy, 10GeV or a range 1..50GeV"
            )
            group.add_argument("--class", dest="kind", metavar="NAME", help="jets: gluon, quark or top")
            group.add_argument("--pt", metavar="A..B", help="jets: range of transverse momentum, GeV")
            group.add_argument("--mass", metavar="A..B", help="jets: range of mass, GeV")
            _speed(group)
            group.add_argument("--view", metavar="FILE.html", help="also write a page of plots")
        elif verb in ("simulate", "invert"):
            if verb == "simulate":
                group.add_argument(
                    "--from",
                    dest="start",
                    metavar="FILE",
                    help="states to start from, the first times of it",
                )
                group.add_argument(
                    "--intervals", type=int, default=10, metavar="N", help="how far (default 10)"
                )
            else:
                group.add_argument(
                    "--measured",
                    metavar="FILE",
                    help="flow whose states are measured, at its last two times",
                )
                group.add_argument(
                    "--every",
                    type=int,
                    default=4,
                    metavar="N",
                    help="seen are every N-th point (default 4)",
                )
                group.add_argument(
                    "--blur", type=float, metavar="X", help="or all points, blurred over X points"
                )
                group.add_argument(
                    "--noise", type=float, default=0.05, metavar="X", help="of the measurement (0.05)"
                )
            _speed(group)
        elif verb == "data":
            group.add_argument("--class", dest="kind", metavar="NAME", help="jets: gluon, quark or top")
            group.add_argument(
                "-n",
                type=int,
                help="jets, or trajectories (default: 1000; of nbody and plasma 100, of md 10)",
            )
            group.add_argument("--seed", type=int, default=0, help="default 0")
            group.add_argument("--workers", type=int, help="processes (default: the cores there are)")
            group.add_argument(
                "--file",
                metavar="FILE",
                action="append",
                help="showers: CaloChallenge files to join; jets: events to cluster, HepMC or Les Houches",
            )
            group.add_argument(
                "--pt", metavar="A..B", help="jets of --file: their pT, GeV (default 800..1600)"
            )
            group.add_argument(
                "--radius", type=float, metavar="R", help="jets of --file: of anti-kT (default 0.4)"
            )
            _fields(group)
        elif verb == "train":
            group.add_argument(
                "--data",
                metavar="FILE",
                help="own data: showers or flows in HDF5; jets: CLASS=FILE,CLASS=FILE",
            )
            group.add_argument("--limit", type=int, metavar="N", help="use only N samples of the data")
        elif verb == "evaluate":
            group.add_argument(
                "--class", dest="kind", metavar="NAME", help="jets: gluon, quark or top, for FPND"
            )
            group.add_argument(
                "--splits",
                type=int,
                default=1,
                metavar="N",
                help="trainings of each classifier (default 1)",
            )
            group.add_argument(
                "--no-classifier",
                action="store_true",
                help="leave out the classifiers, which are slow",
            )
        elif verb == "view":
            group.add_argument("--beside", metavar="FILE", help="plots beside this truth")

    def load(self, bundle: Bundle, *, device: str = "cpu") -> Any:
        """The model of a bundle: a `ShowerModel`, `JetModel` or `FlowModel` (of densities and plasmas too)."""
        from perrin.modalities.particle import models

        return models.load(bundle, device=device)

    def works(self, verb: str, model: Mapping[str, Any]) -> bool:
        """Showers and jets are sampled; flows go on from given states, and all but plasmas are inverted."""
        if verb == "invert" and model.get("field") == "phase_space":
            return False
        return (model.get("kind") == "flow") == (verb != "sample")

    def sample(self, arguments: Namespace) -> None:
        """Generate showers or jets into a file."""
        from perrin.modalities.particle import sampling

        sampling.sample(arguments)

    def simulate(self, arguments: Namespace) -> None:
        """Trajectories of a flow, a density of bodies or a plasma."""
        from perrin.modalities.particle import flow_commands

        flow_commands.simulate(arguments)

    def invert(self, arguments: Namespace) -> None:
        """Fields of a flow from measurements."""
        from perrin.modalities.particle import flow_commands

        flow_commands.invert(arguments)

    def train(self, arguments: Namespace) -> None:
        """Train on the user's data."""
        from perrin.modalities.particle import training

        training.train(arguments)

    def evaluate(self, arguments: Namespace) -> None:
        """Metrics of a file against a truth."""
        from perrin.modalities.particle import commands

        commands.evaluate(arguments)

    def view(self, arguments: Namespace) -> None:
        """Write a page of plots."""
        from perrin.modalities.particle import commands

        commands.view(arguments)

    def data(self, arguments: Namespace) -> None:
        """Make data with simulators."""
        from perrin.modalities.particle import commands

        commands.data(arguments)


def _fields(group: _ArgumentGroup) -> None:
    """Options of trajectories; which data set takes which, and their defaults, is in `chunks.DATA`."""
    group.add_argument("--grid", type=int, help="kolmogorov, nbody, plasma: points along a side (default 32)")
    group.add_argument(
        "--times",
        type=int,
        help="kolmogorov, nbody, plasma, md: states in a trajectory (default 41, of nbody 9)",
    )
    group.add_argument(
        "--interval",
        type=float,
        help="between states: kolmogorov 0.2; nbody 0.2 in ln a, the last is at a = 1; plasma 1/ω_p; md 50 fs",
    )
    group.add_argument("--viscosity", type=float, help="kolmogorov: default 0.005")
    group.add_argument("--dimensions", type=int, choices=(1, 2, 3), help="nbody: default 2")
    group.add_argument(
        "--bodies",
        type=int,
        help="nbody: along a side, and cells of the mesh (256, 128, 64 in 1, 2, 3 dimensions); plasma: electrons (32768); "
        "md: atoms (108)",
    )
    group.add_argument("--box", type=float, help="nbody: side of the box, Mpc/h (128)")
    group.add_argument("--sigma8", type=float, help="nbody: linear rms in spheres of 8 Mpc/h at a = 1 (0.8)")
    group.add_argument(
        "--particles", action="store_true", help="nbody, plasma: keep positions and velocities too"
    )
    group.add_argument("--case", choices=("two-stream", "landau"), help="plasma: default two-stream")
    group.add_argument(
        "--wave", type=float, help="plasma: wave number of the box (two-stream 0.306, landau 0.5)"
    )
    group.add_argument(
        "--thermal", type=float, help="plasma, two-stream: spread over the streams' speed (0.1)"
    )
    group.add_argument("--system", choices=("argon", "copper"), help="md: default argon")
    group.add_argument("--temperature", type=float, help="md: K (argon 94.4, copper 300)")
    group.add_argument("--ensemble", choices=("nve", "nvt"), help="md: default nve")


def _speed(group: _ArgumentGroup) -> None:
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


MODALITY = ParticleModality()

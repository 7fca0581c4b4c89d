"""The command line: `perrin VERB TARGET …`.

Only the standard library is imported here, and the modality that a command names; torch comes when work starts.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from perrin import __version__
from perrin.errors import PerrinError, check_counts

if TYPE_CHECKING:
    from perrin.modalities import Modality

VERBS = {
    "sample": "generate: perrin sample molecule/qm9 -n 1000 -o out.sdf",
    "edit": "keep a part and make the rest anew: perrin edit lead.sdf --keep c1ccccc1 -n 20 -o ideas.sdf",
    "vary": "samples like given ones: perrin vary lead.sdf --strength 0.4 -n 20 -o similar.sdf",
    "conformers": "3D ensembles of given molecules: perrin conformers molecules.smi -n 20 -o out.sdf",
    "simulate": "trajectories from given states: perrin simulate particle/kolmogorov --from start.h5 -n 16 -o runs.h5",
    "invert": "what was measured, made whole: perrin invert particle/kolmogorov --measured m.h5 -n 16 -o fields.h5",
    "data": "prepare data: perrin data weather/sst --file sst.nc -o sst5.nc",
    "train": "train, resume, fine-tune on own data: perrin train molecule/qm9 --out runs/a",
    "evaluate": "the field's metrics, as a table and JSON: perrin evaluate out.sdf --like qm9",
    "rank": "filter, sort and pick: perrin rank out.sdf --by qed,-sa --where 'MW<150'",
    "forecast": "an ensemble from a state: perrin forecast weather/sst --file sst.nc --members 50 -o ens.zarr",
    "downscale": "fine fields from coarse ones: perrin downscale weather/rain coarse.nc --members 20 -o fine.nc",
    "assimilate": "states from observations: perrin assimilate weather/sst --observations obs.csv -o post.nc",
    "correct": "a simulation without its bias: perrin correct sim.nc --reference obs.nc -o fixed.nc",
    "verify": "a forecast's scores: perrin verify ensemble.nc analysis.nc --json scores.json",
    "view": "one self-contained HTML page: perrin view out.sdf",
    "submit": "the same work as a Slurm array: perrin submit sample molecule/qm9 -n 1000000 --shards 200 -o run/",
    "run": "look after what was submitted: perrin run status|resume|merge run/",
    "rerun": "run again what a run.json records: perrin rerun out.sdf.run.json",
    "list": "what is installed",
    "doctor": "whether it works here",
}

_TARGETS = ("sample", "simulate", "invert", "data", "train", "forecast", "downscale", "assimilate")
"""Verbs whose first word names a modality; that of others is a file."""

_WRITERS = (
    "sample", "edit", "vary", "conformers", "simulate", "invert", "data", "evaluate", "rank", "forecast", "downscale",
    "assimilate", "correct", "verify", "view",
)  # fmt: skip
"""Verbs whose outputs may be there already; `train` goes on in its folder."""

_SYSTEM = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.EIO,
    errno.ENAMETOOLONG,
}
"""Troubles of the machine, not of Perrin: told in one line."""


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise ArgumentTypeError(f"not a whole number from 0 to 2^63 − 1: {text!r}")
    return int(text)


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        verb = self.prog.partition(" ")[2]
        _, lacks, names = message.partition("the following arguments are required: ")
        if lacks:
            raise PerrinError(f"expected {names}, given none: see 'perrin {verb} --help'")
        _, lacks, words = message.partition("unrecognized arguments: ")
        if lacks:
            raise PerrinError(
                f"expected no more words, given {words}: leave that out, or see 'perrin {verb} --help'"
            )
        wrong = re.fullmatch(r"argument (\S+): invalid (int|float) value: (.*)", message)
        if wrong:
            kind = "a whole number" if wrong[2] == "int" else "a number"
            raise PerrinError(f"expected {kind} for {wrong[1]}, given {wrong[3]}: see 'perrin {verb} --help'")
        choice = re.fullmatch(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            known = choice[3].replace("'", "").split(", ")
            remedy = _meant(choice[2], known) or f"see 'perrin {verb} --help'"
            raise PerrinError(f"expected {', '.join(known)} for {choice[1]}, given {choice[2]}: {remedy}")
        raise PerrinError(f"expected other arguments ({message}): see 'perrin {verb} --help'")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0; 2 for an error the user can mend; 128 + signal when stopped."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        done = _run(argv)
        sys.stdout.flush()  # so that a full disk or a closed pipe is met here
        return done
    except PerrinError as error:
        print(f"perrin: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("perrin: stopped; the same command goes on from what is done", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `perrin … | head`
        _discard_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _SYSTEM:
            raise
        _discard_output()
        where = f" {error.filename}" if error.filename else ""
        print(f"perrin: expected to read and write{where}, given: {error.strerror}", file=sys.stderr)
        return 2
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        print(f"perrin: {error}{_come_back(int(code) - 128)}", file=sys.stderr)
        return int(code)


def _come_back(number: int) -> str:
    """After USR1 or USR2 in a Slurm job: have it run again. What happened, for the message."""
    if "SLURM_JOB_ID" not in os.environ:
        return ""
    from perrin.run import slurm

    if number not in slurm.REQUEUE:
        return ""
    name = slurm.requeue()
    return f"; Slurm runs {name} again" if name else "; Slurm could not be asked to run it again"


def _discard_output() -> None:
    """What is still in the buffer of standard output cannot be written."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # it is not a file
        return


def _run(argv: list[str]) -> int:
    if len(argv) == 2 and argv[0] == "help":
        argv = [argv[1], "--help"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"perrin {__version__}")
        return 0
    verb, rest = argv[0], _joined(argv[1:])
    if verb not in VERBS:
        raise PerrinError(_unknown(verb))
    if verb == "doctor":
        from perrin.cli.doctor import doctor

        return doctor(_parser(verb).parse_args(rest))
    if verb in ("list", "rerun"):
        from perrin.cli import tools

        return int(
            getattr(tools, verb if verb != "list" else "list_installed")(_parser(verb).parse_args(rest))
        )
    if verb in ("submit", "run"):
        from perrin.cli import jobs

        with _terminate_as_interrupt():
            return int(getattr(jobs, verb)(rest, _parser(verb)))
    execute(argv)
    return 0


def parse(argv: Sequence[str]) -> tuple[Modality, Namespace]:
    """The modality that a command concerns, and the command's arguments.

    Raises:
        PerrinError: it is not a command with a modality, or an argument is wrong.
    """
    from perrin.modalities import BUNDLE_VERBS, bundle_verbs, modality_of, refusal

    verb, rest = argv[0], _joined(list(argv[1:]))
    if verb not in VERBS:
        raise PerrinError(_unknown(verb))
    found, given = _modality(verb, rest)
    if not found.supports(verb):
        raise PerrinError(refusal(verb, given))
    parser = _parser(verb)
    found.add_arguments(verb, parser)
    _check(parser, rest, given)
    parsed = parser.parse_args(rest)
    parsed.argv = [word for word in argv if word != "--overwrite"]  # what a record repeats
    check_counts(**{name: getattr(parsed, name, None) for name in ("n", "batch", "workers", "members")})
    if verb not in _TARGETS and not os.path.exists(parsed.file):
        raise PerrinError(f"expected a file, given {parsed.file}, which does not exist: check the path")
    if verb == "train" and parsed.start and (other := modality_of(parsed.start)) is not found:
        raise PerrinError(
            f"expected --from with a bundle of {found.name}, given {parsed.start}, one of {other.name}"
        )
    if verb in BUNDLE_VERBS and verb not in bundle_verbs(parsed.target):
        raise PerrinError(refusal(verb, parsed.target))
    return found, parsed


def execute(argv: Sequence[str]) -> None:
    """Run a command of a modality; errors and interruptions are raised."""
    from perrin.run.outputs import check_outputs, is_recorded, record_path

    found, parsed = parse(argv)
    outputs = found.outputs(argv[0], parsed)
    dry = getattr(parsed, "dry_run", False)
    if not dry:
        check_outputs(outputs, parsed)
    with _terminate_as_interrupt():
        getattr(found, argv[0])(parsed)
    if not dry and outputs and outputs[0].exists() and not is_recorded(outputs[0], parsed):
        from perrin.run.record import record, write_record

        write_record(record_path(outputs[0]), record(argv[0], parsed))


def _meant(word: str, known: Sequence[str]) -> str:
    """A question after the nearest known word, or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(word, known, 1)
    return f"did you mean {near[0]}?" if near else ""


def _unknown(word: str) -> str:
    """What to say of a word in place of a verb."""
    remedy = _meant(word, list(VERBS)) or "see 'perrin --help'"
    if "/" in word:
        remedy = f"the command comes first, such as 'perrin sample {word}'"
    return f"expected a command ({', '.join(VERBS)}), given {word!r}: {remedy}"


def _check(parser: ArgumentParser, words: list[str], given: str = "") -> None:
    """Say whose an option is that the parser does not know."""
    from perrin.cli.options import check_options

    check_options(parser, words, [*_TARGETS, *(v for v in _WRITERS if v not in _TARGETS)], _parser, given)


def _joined(words: list[str]) -> list[str]:
    """`--by -sa` as `--by=-sa`: argparse would take the key for an option."""
    out: list[str] = []
    for word in words:
        if out and out[-1] == "--by" and len(word) > 2 and word[0] == "-" and word[1] != "-":
            out[-1] = f"--by={word}"
        else:
            out.append(word)
    return out


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(
        [
            f"Perrin {__version__}: diffusion models for molecules, weather, particles, and for what plugs in.",
            "",
            "usage: perrin COMMAND …",
            "",
            *lines,
            "",
            "'perrin COMMAND --help' explains one command.",
        ]
    )


def _parser(verb: str) -> ArgumentParser:
    parser = _Parser(
        prog=f"perrin {verb}",
        description=VERBS[verb],
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if verb in ("sample", "edit", "vary", "conformers", "simulate", "invert"):
        if verb in ("sample", "simulate", "invert"):
            parser.add_argument("target", help="a bundle: modality/name, or the path of one")
        else:
            parser.add_argument("file", help="what to start from")
            parser.add_argument(
                "--model",
                metavar="BUNDLE",
                help="modality/name, or the path of a bundle (default: the shipped one)",
            )
        each = {
            "vary": " from each molecule of the file",
            "conformers": " of each molecule of the file",
            "simulate": " from each state",
            "invert": " for each field",
        }
        parser.add_argument("-n", type=int, required=True, help=f"how many samples{each.get(verb, '')}")
        parser.add_argument(
            "-o", "--out", required=True, metavar="FILE", help="where to; the suffix chooses the format"
        )
        parser.add_argument(
            "--seed", type=_seed, default=0, help="sample i depends on it and on i alone (default 0)"
        )
        parser.add_argument(
            "--batch", type=int, help="samples at a time: changes speed and memory, not the samples"
        )
        parser.add_argument(
            "--steps", type=int, help="network evaluations per sample (default: the bundle's; an edit's own)"
        )
        parser.add_argument("--solver", help="a solver of perrin.core.SOLVERS (default: the bundle's)")
        parser.add_argument("--device", help="auto, cpu or cuda (default auto)")
        parser.add_argument("--workers", type=int, help="processes on the CPU (default: the cores there are)")
        parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    elif verb == "data":
        parser.add_argument("target", help="modality/name, such as weather/sst")
        parser.add_argument("-o", "--out", required=True, metavar="FILE", help="where to")
    elif verb == "train":
        parser.add_argument("target", help="modality/preset, such as molecule/qm9")
        parser.add_argument(
            "--out", required=True, metavar="DIR", help="the run's folder; the same command again goes on"
        )
        parser.add_argument("--from", dest="start", metavar="BUNDLE", help="start from a bundle's weights")
        parser.add_argument("--steps", type=int, help="optimizer steps in all")
        parser.add_argument(
            "--minutes", type=float, help="budget of time, restarts included; the rate falls to 0 by then"
        )
        parser.add_argument("--batch", type=int, help="samples per step (default 512 on a GPU, 32 on a CPU)")
        parser.add_argument(
            "--accumulate",
            type=int,
            default=1,
            metavar="N",
            help="work on a batch in N parts, for less memory",
        )
        parser.add_argument(
            "--optimizer", choices=("adamw", "muon"), help="default muon on a GPU, adamw on a CPU"
        )
        parser.add_argument(
            "--lr",
            type=float,
            help="peak learning rate (default 2e-3 for muon, 1e-3 for adamw, 2e-4 from a bundle)",
        )
        parser.add_argument(
            "--ema-std",
            metavar="X,Y",
            help="relative widths of power-function averages to keep for later (0.05,0.10)",
        )
        parser.add_argument("--seed", type=_seed, default=0, help="of weights, batches and noise (default 0)")
        parser.add_argument("--device", help="auto, cpu or cuda (default auto)")
        parser.add_argument(
            "--devices",
            default="1",
            help="GPUs of this machine, or auto for all (default 1); not needed under torchrun or srun",
        )
        parser.add_argument(
            "--threads",
            type=int,
            help="threads on a CPU; fewer are faster on a busy machine (default: torch's)",
        )
        parser.add_argument(
            "--log-every", type=int, metavar="N", help="steps between metrics (default 50, on a CPU 10)"
        )
        parser.add_argument(
            "--save-every",
            type=int,
            default=1000,
            metavar="N",
            help="steps between checkpoints (default 1000)",
        )
    elif verb == "evaluate":
        parser.add_argument("file", help="what was generated")
        parser.add_argument("--like", metavar="NAME", help="reference data for novelty, such as qm9")
        parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    elif verb == "rank":
        parser.add_argument("file", help="what was generated")
        parser.add_argument(
            "-o", "--out", metavar="FILE", help="where to; the suffix chooses the format (default: beside)"
        )
        parser.add_argument(
            "--by",
            metavar="KEYS",
            help="properties with commas, the largest first; -NAME is the smallest first",
        )
        parser.add_argument(
            "--where", action="append", metavar="FILTER", help="such as 'QED>0.5'; may be given several times"
        )
        parser.add_argument("--top", type=int, metavar="N", help="keep the best N")
        parser.add_argument("--workers", type=int, help="processes (default: the cores there are)")
    elif verb in ("forecast", "downscale", "assimilate"):
        parser.add_argument("target", help="a bundle: modality/name, or the path of one")
        if verb == "downscale":
            parser.add_argument("file", metavar="COARSE", help="the coarse fields")
        parser.add_argument(
            "-o", "--out", required=True, metavar="FILE", help="where to; the suffix chooses the format"
        )
        parser.add_argument("--members", type=int, default=50, metavar="M", help="how many (default 50)")
        parser.add_argument(
            "--seed", type=_seed, default=0, help="member k depends on it and on k alone (default 0)"
        )
        parser.add_argument("--device", help="auto, cpu or cuda (default auto)")
        parser.add_argument("--workers", type=int, help="processes on the CPU (default: the cores there are)")
    elif verb == "correct":
        parser.add_argument("file", help="what was simulated")
        parser.add_argument(
            "-o", "--out", required=True, metavar="FILE", help="where to; the suffix chooses the format"
        )
    elif verb == "verify":
        parser.add_argument("file", metavar="FORECAST", help="the forecast, or an ensemble of them")
        parser.add_argument("truth", metavar="TRUTH", help="what happened, at the same places")
        parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    elif verb == "view":
        parser.add_argument("file", help="what was generated")
        parser.add_argument("-o", "--out", metavar="FILE.html", help="where to (default: beside the file)")
    elif verb == "rerun":
        parser.add_argument("file", help="a run.json")
    if verb in _WRITERS:
        parser.add_argument(
            "--overwrite",
            action="store_true",
            help="replace an output that another command made, or nobody knows who",
        )
    return parser


def _modality(verb: str, rest: list[str]) -> tuple[Modality, str]:
    """The modality that a command concerns, and the word that says so.

    The first word may name it, so that `--help` shows its options alone. Else the options of all modalities are read, to
    find the word; where two have an option of one name, the later one's description is shown.
    """
    from perrin.modalities import modalities, modality, modality_for_file, modality_of, names

    word = rest[0] if rest and not rest[0].startswith("-") else ""
    head = word.partition("/")[0]
    if verb in _TARGETS and "/" in word and head in names():
        return modality(head), word
    parser = _parser(verb)
    parser.conflict_handler = "resolve"
    for each in modalities().values():
        each.add_arguments(verb, parser)
    _check(parser, rest)
    parsed = parser.parse_args(rest)
    if verb in _TARGETS:
        return modality_of(parsed.target), parsed.target
    return modality_for_file(parsed.file, verb), parsed.file


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM, USR1 and USR2 end work as Ctrl-C does, with nothing left half-written (training has its own handler)."""
    from perrin.run.signals import Interrupted, stops

    def handler(number: int, frame: object) -> None:
        for other in numbers:  # once: what saves the work must not be interrupted
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(number, "stopped; the same command goes on from what is done")

    numbers = [n for n in stops() if n != signal.SIGINT]
    before = {n: signal.signal(n, handler) for n in numbers}
    try:
        yield
    finally:
        for n, old in before.items():
            signal.signal(n, old)


if __name__ == "__main__":
    sys.exit(main())

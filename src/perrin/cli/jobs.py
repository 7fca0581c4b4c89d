"""`perrin submit` and `perrin run`: any verb's work as shards, on Slurm or on this machine."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perrin.errors import PerrinError, check_counts, counted

if TYPE_CHECKING:
    from perrin.run.shards import RunFolder, ShardedJob

NOT_SUBMITTED = ("submit", "run", "list", "doctor", "rerun")
"""Verbs that are no work."""

ACTIONS = {
    "status": "what is done, at work, waiting, held or damaged",
    "resume": "go on: what is neither done nor in the queue is submitted again, damaged shards are made again",
    "merge": "one output of all shards",
    "shard": "make some shards: what an array's task calls",
    "work": "make shards until none is free; may run on any number of machines at once",
}


def submit(arguments: Sequence[str], parser: ArgumentParser) -> int:
    """`perrin submit VERB … --shards N -o DIR`."""
    from perrin.run.shards import RunFolder, cut

    parser.add_argument(
        "--shards", type=int, metavar="N", help="how many parts the work is cut into (default 1)"
    )
    parser.add_argument("-o", "--out", metavar="DIR", help="the run's folder, made anew")
    parser.add_argument(
        "--run", metavar="DIR", help="the run's folder, where -o is to name the output itself"
    )
    parser.add_argument(
        "--engine",
        choices=("slurm", "local", "none"),
        default="slurm",
        help="local: the same shards on this machine; none: make the folder, for a job of your own (default slurm)",
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="local: at a time (default: the cores there are)"
    )
    parser.add_argument("--throttle", type=int, metavar="N", help="slurm: tasks at a time (default: all)")
    parser.add_argument(
        "--slurm",
        default="",
        metavar="'WORDS'",
        help="options of sbatch: --slurm='-p gpu -t 2:00:00 --gpus=1'",
    )
    parser.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="slurm: a shell line before the work: --setup 'module load cuda'; may be given several times",
    )
    parser.add_argument(
        "--launcher",
        metavar="'WORDS'",
        help="slurm: what starts Python: 'apptainer exec --nv perrin.sif python'",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script and stop")
    a, verb_words = parser.parse_known_args(_with_values(list(arguments)))
    if not verb_words or verb_words[0] in NOT_SUBMITTED or verb_words[0].startswith("-"):
        given = verb_words[0] if verb_words else "none"
        raise PerrinError(
            f"expected a command to submit, given {given}: perrin submit sample molecule/qm9 -n 1000 --shards 8 -o run/"
        )
    check_counts(shards=a.shards, processes=a.processes, throttle=a.throttle)
    if not (a.run or a.out):
        raise PerrinError("expected -o with the run's folder, given none: add -o run/")
    out = Path(a.run or a.out)
    if out.exists() and not out.is_dir():
        raise PerrinError(f"expected a folder for -o, given the file {out}: choose another name")
    if a.engine == "slurm" and not a.dry_run:
        _need_sbatch()
    if a.out and not a.run and verb_words[0] in ("evaluate", "verify"):
        raise PerrinError(
            f"expected --run with '{verb_words[0]}', which has no -o, given -o: write --run {a.out}"
        )
    argv = [*verb_words, *(["--out", a.out] if a.out else [])]
    job, whole = _job(argv, named=bool(a.run))
    if whole and argv[0] != "train" and not a.run:
        raise PerrinError(
            f"expected --run DIR with '{argv[0]}', which is not cut into shards, given none: add --run run/"
        )
    shards = cut(job.total, a.shards or 1, job.align)
    settings = {
        "throttle": a.throttle, "options": a.slurm, "setup": a.setup, "launcher": a.launcher, "whole": whole,
        "title": "perrin " + shlex.join(["submit", *arguments]),
    }  # fmt: skip
    if a.dry_run:
        print(_script(out.resolve(), "perrin-00000000", len(shards), settings), end="")
        return 0
    folder = RunFolder.create(
        out, job, shards, argv=argv, cwd=os.getcwd(), engine=a.engine, processes=a.processes, slurm=settings
    )
    _start(folder, a.engine, a.processes)
    return 0


def run(arguments: Sequence[str], parser: ArgumentParser) -> int:
    """`perrin run status|resume|merge|shard|work DIR`."""
    width = max(map(len, ACTIONS))
    parser.epilog = "\n".join(f"  {name:<{width}}  {text}" for name, text in ACTIONS.items())
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("folder", metavar="DIR", help="the run's folder")
    parser.add_argument("numbers", nargs="*", type=int, metavar="N", help="shard: which")
    parser.add_argument("-o", "--out", metavar="FILE", help="merge: where to (default: in the folder)")
    parser.add_argument(
        "--overwrite", action="store_true", help="merge: replace an output that is of something else"
    )
    parser.add_argument(
        "--engine", choices=("slurm", "local"), help="resume: by other means than it was submitted"
    )
    parser.add_argument("--processes", type=int, metavar="N", help="resume: local processes at a time")
    a = parser.parse_intermixed_args(list(arguments))
    from perrin.run.shards import RunFolder

    folder = RunFolder(a.folder)
    if a.action == "shard" and not a.numbers:
        raise PerrinError("expected the number of a shard, given none: perrin run shard DIR 0")
    if a.action != "shard" and a.numbers:
        raise PerrinError(f"expected no further words for '{a.action}', given {a.numbers[0]}")
    if a.action == "status":
        return _status(folder)
    if a.action == "resume":
        return _resume(folder, a.engine, a.processes)
    if a.action == "merge":
        return _merge(folder, a.out, a.overwrite)
    job = _job_of(folder)
    if a.action == "work":
        folder.work(job)
        return 0
    for number in a.numbers:
        shard = folder.shard(number)
        if _rank():  # of several ranks the first keeps the books
            job.write(shard, folder.path, folder.scratch(shard))
        elif not folder.run(job, shard):
            print(f"shard {number} is done already")
    return 0


def _with_values(words: list[str]) -> list[str]:
    """`--slurm X` as `--slurm=X`: argparse would take a value that starts with a dash for an option."""
    out: list[str] = []
    for word in words:
        if out and out[-1] in ("--slurm", "--setup", "--launcher"):
            out[-1] += f"={word}"
        else:
            out.append(word)
    return out


def _job(argv: list[str], *, named: bool) -> tuple[ShardedJob, bool]:
    """The verb's job, and whether it is one that is not cut; `named`: its output is another than the run's folder."""
    from perrin.cli import parse
    from perrin.run.outputs import check_outputs

    modality, arguments = parse(argv)
    if named:
        check_outputs(modality.outputs(argv[0], arguments), arguments)
    job = modality.shards(argv[0], arguments)
    return job or _whole(argv), job is None


def _whole(argv: Sequence[str]) -> ShardedJob:
    """A command that is not cut: one item, made by the command itself, which knows how to go on."""
    from perrin.run.shards import Shard, ShardedJob

    class Whole(ShardedJob):
        total = 1
        items_name = "commands"

        def identity(self) -> dict[str, Any]:
            return {"argv": list(argv)}

        def write(self, shard: Shard, folder: Path, scratch: Path) -> None:
            from perrin.cli import execute

            execute(list(argv))

        def digest(self, shard: Shard, folder: Path) -> str:
            return ""

        def merge(self, shards: Sequence[Shard], folder: Path, output: Path | None) -> Path:
            raise PerrinError(
                f"expected a run of several shards, given one of 'perrin {argv[0]}': nothing to merge"
            )

    return Whole()


def _job_of(folder: RunFolder) -> ShardedJob:
    """The job of a run's folder, checked to be the one that was submitted."""
    argv, where = folder.content["argv"], folder.content["cwd"]
    if os.path.isdir(where):
        os.chdir(where)  # so that relative paths of the command mean what they meant
    from perrin.cli import parse

    modality, arguments = parse(argv)
    job: ShardedJob = modality.shards(argv[0], arguments) or _whole(argv)
    folder.check_identity(job)
    return job


def _start(folder: RunFolder, engine: str, processes: int | None, indices: str | None = None) -> None:
    if engine == "none":
        each = f"'perrin run shard {_short(folder)} N' makes one, 'perrin run work {_short(folder)}' all that are free"
        print(f"{counted(len(folder.missing()), 'shards')} to make: {each}")
        return
    if engine == "local":
        from perrin.run.local import run_locally

        run_locally(folder, processes)
        print(f"{_done(folder)}; perrin run merge {_short(folder)}")
        return
    from perrin.run import slurm
    from perrin.run.atomic import write_text

    (folder.path / "logs").mkdir(exist_ok=True)
    path = folder.path / "job.sh"
    write_text(path, _script(folder.path, folder.name, len(folder.shards), folder.content["slurm"]))
    number = slurm.submit(path, None if folder.content["slurm"]["whole"] else indices)
    print(f"submitted {folder.name} as Slurm job {number}; perrin run status {_short(folder)}")


def _script(folder: Path, name: str, shards: int, settings: dict[str, Any]) -> str:
    from perrin.run.slurm import script

    return script(folder, name, shards=shards, **settings)


def _need_sbatch() -> None:
    import shutil

    if shutil.which("sbatch") is None:
        raise PerrinError(
            "expected Slurm's sbatch on this machine, found none: submit from a login node, or use --engine local"
        )


def _status(folder: RunFolder) -> int:
    from perrin.run import slurm
    from perrin.run.shards import numbers

    tasks = slurm.queue(folder.name) if folder.content["engine"] == "slurm" else None
    queued = {task.index: task for task in tasks or ()}
    lines: list[str] = []
    groups: dict[str, list[Any]] = {}
    seconds = 0.0
    for shard in folder.shards:
        receipt = folder.receipt(shard)
        task = queued.get(shard.number)
        if receipt:
            groups.setdefault("done", []).append(shard)
            seconds += receipt["seconds"]
        elif owner := folder.at_work(shard):
            groups.setdefault("at work", []).append(shard)
            lines.append(
                f"{shard.number}: at work on {owner['host']} ({task.name if task else owner['pid']})"
            )
        elif task and task.held:
            groups.setdefault("held", []).append(shard)
            lines.append(f"{shard.number}: {task.reason}; 'scontrol release {task.name}' lets it go")
        elif task:
            groups.setdefault("in the queue", []).append(shard)
        elif folder.scratch(shard).is_dir():
            groups.setdefault("stopped", []).append(shard)
            lines.append(f"{shard.number}: stopped{_last_word(folder, shard.number)}")
        else:
            groups.setdefault("to do", []).append(shard)
    total, made = folder.content["items"], sum(len(s.items) for s in groups.get("done", ()))
    print(f"perrin {shlex.join(folder.content['argv'])}")
    print(
        f"{made} of {counted(total, folder.content['items_name'])}, {counted(len(folder.shards), 'shards')}"
    )
    for name, shards in groups.items():
        print(f"  {name:<12}  {len(shards):>5}  {numbers(shards)}")
    for line in lines[:20]:
        print(f"  {line}")
    if seconds:
        print(f"  {made / seconds:.2f} {folder.content['items_name']}/s in each process")
    if folder.content["engine"] == "slurm" and tasks is None:
        print("  Slurm's queue cannot be asked from here")
    if "stopped" in groups or ("to do" in groups and not queued):
        print(f"perrin run resume {_short(folder)}")
    elif len(groups.get("done", ())) == len(folder.shards):
        print(f"perrin run merge {_short(folder)}")
    return 0


def _last_word(folder: RunFolder, number: int) -> str:
    from perrin.run.local import last_line

    word = last_line(folder.path / "logs" / f"{number}.log")
    return f" ({word[:120]})" if word else ""


def _resume(folder: RunFolder, engine: str | None, processes: int | None) -> int:
    from perrin.run import slurm
    from perrin.run.shards import numbers, ranges

    engine = engine or folder.content["engine"]
    if engine == "slurm":
        _need_sbatch()
    job = _job_of(folder)
    with folder.lock("resume", f"the resumption of {folder.path}"):
        damaged = [s for s in folder.shards if folder.receipt(s) and not folder.intact(job, s)]
        for shard in damaged:
            folder.forget(shard)
        if damaged:
            print(f"damaged shards are made again: {numbers(damaged)}", file=sys.stderr)
        missing = folder.missing()
        if not missing:
            print(f"{_done(folder)}; perrin run merge {_short(folder)}")
            return 0
        if engine == "slurm":
            queued = {task.index for task in slurm.queue(folder.name) or ()}
            again = [s.number for s in missing if s.number not in queued]
            if queued:
                print(f"in the queue already: {ranges(sorted(queued))}")
            if again:
                _start(folder, engine, processes, ranges(again))
            return 0
        _start(folder, engine, processes or folder.content["processes"])
    return 0


def _merge(folder: RunFolder, out: str | None, overwrite: bool) -> int:
    from perrin.run.outputs import check_free, check_place

    output = Path(out).absolute() if out else None
    job = _job_of(folder)  # in the folder where the run was submitted
    named = output or _named(folder)
    if named is not None and not folder.content["slurm"]["whole"]:
        check_place(named)
        manifest = str(folder.path / "manifest.json")
        check_free(named, lambda content: content.get("manifest") == manifest, overwrite=overwrite)
    path = folder.merge(job, output)
    print(f"{counted(folder.content['items'], folder.content['items_name'])} in {path}")
    return 0


def _named(folder: RunFolder) -> Path | None:
    """The output that the submitted command names, where that is not the run's folder itself."""
    argv: list[str] = folder.content["argv"]
    out = Path(argv[argv.index("--out") + 1]).absolute() if "--out" in argv else folder.path
    return None if out == folder.path else out


def _done(folder: RunFolder) -> str:
    made = sum(len(s.items) for s in folder.shards) - sum(len(s.items) for s in folder.missing())
    return f"{made} of {counted(folder.content['items'], folder.content['items_name'])} made"


def _short(folder: RunFolder) -> str:
    """The folder as one would type it."""
    try:
        return str(folder.path.relative_to(Path.cwd()))
    except ValueError:
        return str(folder.path)


def _rank() -> int:
    """This process's number among those of one job, from torchrun or srun."""
    for name in ("RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 0

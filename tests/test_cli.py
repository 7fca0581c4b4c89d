"""The command line: quick to start, one clear line for whatever is wrong, nothing half-written, work that goes on."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

pytest.importorskip("rdkit")

import perrin
from perrin.cli import VERBS, main
from perrin.errors import PerrinError, counted
from perrin.modalities import find_bundle
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.files import read_molecules, write_sdf
from perrin.run.atomic import atomic_path
from perrin.run.signals import Interrupted

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PERRIN = (sys.executable, "-m", "perrin")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command runs in a folder of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder, with its content."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))
    }


def run(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PERRIN, *words], capture_output=True, text=True, env=ENVIRONMENT, timeout=120, **more
    )  # type: ignore[call-overload, no-any-return]


# start-up


@pytest.mark.parametrize(
    "command",
    [
        "", "--help", "--version", "sample --help", "sample molecule/qm9 --help", "evaluate --help", "list",
        # what is wrong with a command is said at once, too
        "smaple", "sample --steps x", "sample molecule/qm9 -n 4 -o out.sdf --steps x", "sample molecule/none -n 4 -o a.sdf",
        "sample molecule/qm9 -n 0 -o a.sdf", "sample molecule/qm9 -n 4 -o new/a.sdf", "simulate molecule/qm9 -n 4 -o a.h5",
        "edit missing.sdf --keep 1 -n 4 -o a.sdf", "forecast weather/sst -o a.txt", "verify a.nc b.nc", "view a.nc",
    ],
)  # fmt: skip
def test_nothing_heavy_is_imported(command: str) -> None:
    script = (
        "import sys\nimport perrin\nfrom perrin.cli import main\n"
        f"try:\n    main({command.split()!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'rdkit', 'xarray', 'rich', 'safetensors'} & set(sys.modules)), file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT)
    assert found.stderr.splitlines()[-1] == "[]"


def test_help_is_the_manual(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == main(["help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in VERBS)
    with pytest.raises(SystemExit):
        main(["help", "sample"])
    assert "usage: perrin sample" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"perrin {perrin.__version__}\n"
    with pytest.raises(SystemExit) as caught:
        main(["sample", "molecule/qm9", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("-n", "--seed", "--steps", "--atoms", "--view"))


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in ("submit", "run")])
def test_every_verb_has_a_page(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Two modalities may have an option of the same name."""
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"usage: perrin {verb}" in capsys.readouterr().out


# what is wrong is said in one line


def broken_hash(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def broken_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["network"]["width"] = 128
    (folder / "config.json").write_text(json.dumps(config))


def other_modality(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "modality": "cooking"}))


@pytest.fixture
def given(here: Path) -> Path:
    """Files that commands of the table below are given."""
    write_sdf(here / "good.sdf", [add_geometry("CCO"), add_geometry("C")])
    text = (here / "good.sdf").read_text()
    (here / "cut.sdf").write_text(text[: len(text) // 3])
    (here / "text.sdf").write_text("this is\nno\nSDF\n")
    (here / "empty.sdf").write_text("")
    (here / "bytes.sdf").write_bytes(b"\xff\xfe\x00\x01")
    (here / "element.sdf").write_text(text.replace(" C  ", " Xq ", 1))
    (here / "sulfur.sdf").write_text(text.replace(" C  ", " S  ").replace(" O  ", " S  "))
    (here / "bare.xyz").write_text("1\n\nHe 0 0 0\n")
    (here / "bad.smi").write_text("C1CC\n")
    for name in ("folder.sdf", "folder.html", "folder.h5", "folder.zarr"):
        (here / name).mkdir()
    (here / "empty.npz").write_bytes(b"")
    (here / "one.smi").write_text("CCO\n")
    with h5py.File(here / "other.h5", "w") as file:
        file["showers"] = [0.0]
    (here / "old.html").write_text("a page of somebody\n")
    (here / "plain").write_text("a file\n")
    (here / "old.nc").write_text("a forecast of somebody\n")
    (here / "plain.json").write_text("{}")
    (here / "loop.json").write_text(json.dumps({"argv": ["rerun", "loop.json"]}))
    changed = {"path": "plain.json", "sha256": "0" * 64}
    (here / "changed.json").write_text(json.dumps({"argv": ["list"], "source": changed}))
    source = find_bundle("molecule/qm9")
    for name, spoil in (
        ("hash", broken_hash),
        ("config", broken_config),
        ("modality", other_modality),
        ("missing", lambda f: (f / "model.safetensors").unlink()),
        ("json", lambda f: (f / "config.json").write_text("{")),
    ):
        shutil.copytree(source, here / f"bundle-{name}")
        spoil(here / f"bundle-{name}")
    (here / "bundle.zip").write_bytes(b"PK no zip")
    with zipfile.ZipFile(here / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    return here


SAMPLE = "sample molecule/qm9 -n 4 -o out.sdf --steps 1"
TRAIN = "train molecule/qm9 --data good.sdf --out run --steps 1"
WRONG = {
    # command: a word that the line must have
    "smaple molecule/qm9": "smaple",
    "--magic": "--magic",
    "sample": "target",
    "sample molecule/qm9 -o out.sdf": "-n",
    "sample molecule/qm9 -n 4": "--out",
    "sample molecule/qm9 -n four -o out.sdf": "four",
    "sample molecule/qm9 -n 0 -o out.sdf": "at least 1, given 0",
    "sample molecule/qm9 -n -3 -o out.sdf": "given -3",
    f"{SAMPLE} --magic": "--magic",
    "sample molecule/none -n 4 -o out.sdf": "molecule/qm9",
    "sample cooking/soup -n 4 -o out.sdf": "cooking/soup",
    "sample nowhere -n 4 -o out.sdf": "nowhere",
    "sample molecule -n 4 -o out.sdf": "(molecule/qm9, ",
    "sample particle/kolmogorov -n 4 -o out.h5": "which is for perrin simulate and invert",
    "simulate molecule/qm9 --from a.h5 -n 4 -o out.h5": "particle/nbody, particle/plasma), given molecule/qm9",
    "simulate --from a.h5 molecule/qm9 -n 4 -o out.h5": "particle/nbody, particle/plasma), given molecule/qm9",
    "invert particle/plasma --measured m.h5 -n 2 -o out.h5": "which is for perrin simulate",
    "invert weather/sst --measured m.h5 -n 2 -o out.h5": "(particle/kolmogorov, particle/nbody), given weather/sst",
    "assimilate particle/kolmogorov --observations a.csv -o out.nc": "works with (weather/sst)",
    "forecast molecule/qm9 --months 3 -o out.nc": "weather/speedy-diffusion, weather/sst), given molecule/qm9",
    "data molecule/qm9 -o out.sdf": "works with (particle, weather), given molecule/qm9",
    "rank fields.nc": "works with (.sdf,",
    "verify good.sdf good.sdf": "works with (.nc,",
    "view old.nc -o new.html": "expected a NetCDF file or Zarr store, given old.nc",
    "evaluate old.nc": "given old.nc: say 'perrin verify old.nc TRUTH'",
    "evaluate fields.h5 --fcd": "given --fcd, which 'perrin evaluate' (molecule) takes: leave it out",
    # what a hasty newcomer writes
    "edit one.smi --keep '[Pt]' -n 2 -o a.sdf": "given '[Pt]', which is nowhere in it: correct it, or give atom numbers",
    "edit one.smi -n 2 -o a.sdf": "expected --keep, given none: see 'perrin edit --help'",
    "edit CCO --keep 1 -n 2 -o a.sdf": "given CCO, which does not exist: give the name of such a file",
    "smaple -n 4": "given 'smaple': did you mean sample?",
    "submit molecule/qm9 -n 10 -o run": "the command comes first, such as 'perrin sample molecule/qm9'",
    "molecule/qm9 -n 10 -o a.sdf": "the command comes first, such as 'perrin sample molecule/qm9'",
    "downscale old.nc weather/rain -o a.nc": "given 'old.nc': the bundle comes first, then the file",
    "view good.sdf extra": "expected no more words, given extra: leave that out",
    "forecast weather/speedy --days 1.5 -o a.nc": "expected a whole number for --days, given '1.5'",
    "sample particle/showers --energy 10TeV -n 2 -o a.h5": "within 1..50 GeV, given 10000..10000 GeV",
    "sample particle/showers --energy lots -n 2 -o a.h5": "given 'lots': give one number or two, ascending, in GeV",
    "sample particle/jets --class higgs -n 2 -o a.h5": "one of gluon, quark, top, given 'higgs': choose one",
    "simulate particle/kolmogorov --from other.h5 -n 2 -o a.h5": "in other.h5, given showers: 'perrin data particle/kolmog",
    "invert particle/kolmogorov -n 2 -o a.h5": "given none: name an HDF5 file",
    "train weather/rain --out run": "weather/rain and weather/sst-fine are made by weather/downscale",
    # an option of another verb or modality: whose it is
    "sample weather/sst --want gap -n 3 -o a.sdf": "which is for perrin forecast and assimilate",
    "sample particle/showers --want gap -n 3 -o a.h5": "(molecule), 'perrin edit' (molecule) and 'perrin vary'",
    "forecast --keep": "expected an option of 'perrin forecast', given --keep, which 'perrin edit' (molecule) takes",
    "forecast weather/sst --keep=c -o a.nc": "option of 'perrin forecast weather/sst', given --keep, which 'perrin edit'",
    "forecast weather/sst -n 5 -o a.nc": "given -n: did you mean --members?",
    "forecast weather/sst --member 5 -o a.nc": "given --member: did you mean --members?",
    "sample molecule/qm9 -n4 --output out.sdf": "given --output: did you mean --out?",
    "sample molecule/qm9 -n4 --days 3 -o out.sdf": "which 'perrin data' (weather) and 'perrin forecast' (weather) take",
    "downscale weather/rain good.nc --magic 3 -o a.nc": "given --magic: leave it out, or see 'perrin downscale --help'",
    "sample . -n 4 -o out.sdf": "perrin list",
    "sample bundle-hash -n 4 -o out.sdf": "SHA-256",
    "sample bundle-config -n 4 -o out.sdf": "fit its config.json",
    "sample bundle-modality -n 4 -o out.sdf": "cooking",
    "sample bundle-missing -n 4 -o out.sdf": "model.safetensors",
    "sample bundle-json -n 4 -o out.sdf": "JSON",
    "sample bundle.zip -n 4 -o out.sdf": "config.json",
    "sample other.zip -n 4 -o out.sdf": "config.json",
    "sample molecule/qm9 -n 4 -o folder.sdf": "directory",
    "sample molecule/qm9 -n 4 -o folder.sdf/": "directory",
    "sample molecule/qm9 -n 4 -o .": "suffix",
    "sample molecule/qm9 -n 4 -o out.pdf": "out.pdf",
    "sample molecule/qm9 -n 4 -o out": ".sdf",
    "sample molecule/qm9 -n 4 -o plain/out.sdf": "given the file plain",
    "sample molecule/qm9 -n 4 -o /proc/nowhere/out.sdf": "/proc/nowhere",
    f"sample molecule/qm9 -n 4 -o {'long' * 80}.sdf": "File name too long",
    "sample molecule/qm9 -n 4 -o out.sdf --steps 0": "at least 1 step, given 0",
    "sample molecule/qm9 -n 4 -o out.sdf --solver magic": "magic",
    f"{SAMPLE} --atoms 99": "3 to 29 atoms",
    f"{SAMPLE} --atoms 0": "--atoms",
    f"{SAMPLE} --atoms 20-10": "20-10",
    f"{SAMPLE} --atoms many": "many",
    f"{SAMPLE} --batch 0": "--batch",
    f"{SAMPLE} --workers 0": "--workers",
    f"{SAMPLE} --workers -2": "--workers",
    f"{SAMPLE} --seed -1": "--seed",
    f"{SAMPLE} --seed 99999999999999999999": "--seed",
    f"{SAMPLE} --device tpu": "tpu",
    "evaluate missing.sdf": "missing.sdf",
    "evaluate cut.sdf": "record 1",
    "evaluate text.sdf": "text.sdf",
    "evaluate empty.sdf": "empty.sdf",
    "evaluate bytes.sdf": "bytes.sdf",
    "evaluate folder.sdf": "folder.sdf",
    "evaluate plain": ".sdf",
    "evaluate bad.smi": "line 1",
    "evaluate good.sdf --like zinc": "zinc",
    "evaluate good.sdf --groups 0": "--groups",
    "evaluate good.sdf --protocol magic": "magic",
    "evaluate good.sdf --json folder.sdf": "directory",
    "evaluate good.sdf --relax 0": "at least 1 molecule",
    "evaluate good.sdf --relax 1 --fmax nan": "above 0",
    "evaluate good.sdf --fmax 0.1": "--relax",
    "evaluate good.sdf --posebusters -1": "PoseBusters",
    "evaluate good.sdf --floor": "--floor",
    "evaluate good.sdf --subset-seed -1": "--subset-seed",
    "evaluate good.sdf --workers 0": "--workers",
    "evaluate bare.xyz --fcd": "bonds",
    "view missing.sdf": "missing.sdf",
    "view good.sdf -o folder.html": "directory",
    "view good.sdf -o page.pdf": "ends in .html, given page.pdf",
    "sample molecule/qm9 -n 4 -o out.sdf --view page.pdf": "ends in .html, given page.pdf",
    "train molecule/qm9 --data good.sdf --from weather/sst --out run": "a bundle of molecule, given weather/sst",
    "evaluate empty.npz --like empty.npz": "no NPZ",
    "evaluate folder.h5 --like folder.h5": "a directory",
    "data particle/kolmogorov --interval nan -o out.h5": "whole steps",
    "rank good.sdf --by ''": "properties with commas",
    "verify folder.zarr folder.zarr": "is it a store?",
    "assimilate weather/sst --observations none.csv -o out.nc": "none.csv (No such file or directory)",
    "train weather/sst --data old.nc --steps 0 --out run": "--steps of at least 1",
    "submit evaluate good.sdf -o run --engine local": "write --run run",
    "run status plain": "given plain (Not a directory)",
    # what would be lost, or go where nobody looks for it
    "sample molecule/qm9 -n 4 -o good.sdf": "given good.sdf, which this command did not make",
    "sample molecule/qm9 -n 4 -o out.sdf --view old.html": "--overwrite, given old.html",
    "sample molecule/qm9 -n 4 -o 'a b'/c/out.sdf": "mkdir -p 'a b/c'",
    "sample molecule/qm9 -n 4 -o out.sdf --view new/page.html": "mkdir -p new",
    "evaluate good.sdf --json /dev/null": "which is a device",
    "evaluate good.sdf --json plain.json": "--overwrite, given plain.json",
    "evaluate good.sdf --json new/good.json": "mkdir -p new",
    "view good.sdf -o old.html": "--overwrite, given old.html",
    "rank good.sdf -o text.sdf": "--overwrite, given text.sdf",
    "vary good.sdf -n 1 -o good.sdf --overwrite": "another file than the input",
    "edit good.sdf --keep 1 -n 1 -o text.sdf": "--overwrite, given text.sdf",
    "conformers good.sdf -n 1 -o text.sdf": "--overwrite, given text.sdf",
    "forecast weather/sst -o old.nc": "--overwrite, given old.nc",
    "data weather/sst --file a.nc -o old.nc": "--overwrite, given old.nc",
    "data particle/showers --file good.sdf --file old.nc -o old.nc": "another file than the input",
    "data particle/kolmogorov -o new/a.h5": "mkdir -p new",
    "verify old.nc old.nc --json plain.json": "--overwrite, given plain.json",
    "train molecule/soup --out run": "--data",
    "train molecule/qm9 --data good.sdf": "--out",
    "train molecule/qm9 --data missing.sdf --out run": "missing.sdf",
    "train molecule/qm9 --data element.sdf --out run": "Xq",
    "train molecule/qm9 --data cut.sdf --out run": "record 1",
    "train molecule/qm9 --data bare.xyz --out run": "bonds",
    "train molecule/qm9 --data good.sdf --out plain": "plain",
    "train molecule/qm9 --data sulfur.sdf --from molecule/qm9 --out run": "16",
    "train molecule/qm9 --data good.sdf --from nowhere --out run": "nowhere",
    "train molecule/qm9 --data good.sdf --from bundle-hash --out run": "SHA-256",
    "train molecule/qm9 --data good.sdf --steps 0 --out run": "--steps",
    f"{TRAIN} --batch 0": "--batch",
    f"{TRAIN} --lr 0": "learning rate",
    f"{TRAIN} --lr nan": "learning rate",
    f"{TRAIN} --log-every 0": "--log-every",
    f"{TRAIN} --limit 0": "--limit",
    f"{TRAIN} --seed 99999999999999999999": "--seed",
    f"{TRAIN} --devices many": "many",
    f"{TRAIN} --devices 0": "devices",
    "rerun missing.json": "missing.json",
    "rerun plain.json": "plain.json",
    "rerun loop.json": "loop.json",
    "rerun changed.json": "expected plain.json as it was",
    "list everything": "everything",
}


def one_line(text: str) -> str:
    assert text.startswith("perrin: expected "), text
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    return text


@pytest.mark.parametrize("command", WRONG)
def test_what_is_wrong_is_said_in_one_line(
    given: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    before = files(given)
    assert main(shlex.split(command)) == 2
    captured = capfd.readouterr()
    assert WRONG[command] in one_line(captured.err)
    assert files(given) == before, "nothing is left behind"


def test_it_is_so_for_a_process_too(here: Path) -> None:
    found = run("sample", "molecule/qm9", "-n", "0", "-o", "out.sdf")
    assert (found.returncode, found.stdout) == (2, "")
    assert "at least 1, given 0" in one_line(found.stderr)
    assert files(here) == {}


# full disks


def full_when(wanted: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def full(source: str, target: str) -> None:
        if wanted(str(target)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)


def test_a_disk_that_is_full_from_the_start(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny(here)
    full_when(lambda _: True, monkeypatch)
    assert main(SAMPLE.split()) == 2
    assert "No space left on device" in one_line(capfd.readouterr().err)
    assert not any(p.is_file() for p in here.rglob("*"))
    assert main(["train", "molecule/qm9", "--out", "run", "--data", str(data)]) == 2
    assert "No space left on device" in one_line(capfd.readouterr().err)
    assert not any(p.is_file() for p in (here / "run").rglob("*"))


def tiny(folder: Path) -> Path:
    write_sdf(folder.parent / "tiny.sdf", [add_geometry("CO")])
    return folder.parent / "tiny.sdf"


@pytest.mark.parametrize("name", ["out.sdf", "out.sdf.run.json"])
def test_a_disk_that_is_full_at_the_end(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What was sampled is kept; the same command needs only write it."""
    with monkeypatch.context() as context:
        full_when(lambda target: target.endswith("/" + name) or target == name, context)
        assert main(SAMPLE.split()) == 2
    captured = capfd.readouterr().err.splitlines()
    assert captured[-1].startswith("perrin: expected to write out.sdf")
    assert "No space left on device" in captured[-1]
    assert not (here / name).exists()
    assert not list(here.rglob("*.tmp"))
    assert main(SAMPLE.split()) == 0
    assert "all from unfinished work" in capfd.readouterr().out
    assert set(files(here)) == {"out.sdf", "out.sdf.run.json"}
    assert len(read_molecules("out.sdf")) == 4


def test_what_libraries_say_of_a_full_disk_is_one_line(here: Path) -> None:
    """HDF5 says it among many lines, and without a number."""
    words = "unable to write\n, errno = 28, error message = 'No space left on device', buf = 0x55fa"
    with pytest.raises(PerrinError, match="met: No space left on device; free some space"), atomic_path("a"):
        raise OSError(words)
    with pytest.raises(PerrinError, match="met: other words; free"), atomic_path("a"):
        raise OSError("other\nwords")
    assert files(here) == {}


def test_a_disk_that_is_full_in_training(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full_when(lambda target: target.endswith("checkpoint.safetensors"), monkeypatch)
    command = [
        "train",
        "molecule/qm9",
        "--out",
        "run",
        "--data",
        str(tiny(here)),
        "--steps",
        "1",
        "--batch",
        "1",
    ]
    assert main(command) == 2
    assert "No space left on device" in capfd.readouterr().err.splitlines()[-1]
    assert set(files(here)) == {"run", "run/run.json", "run/metrics.jsonl"}


def test_a_full_disk_behind_standard_output() -> None:
    with open("/dev/full", "w") as full:
        found = subprocess.run([*PERRIN, "list"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 2
    assert "No space left on device" in one_line(found.stderr)


def test_a_reader_that_leaves() -> None:
    process = subprocess.Popen([*PERRIN, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    assert process.stderr is not None
    assert process.stderr.read() == ""


# what works


def test_list_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("molecule ") for line in lines)
    assert "  molecule/qm9" in lines
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "fails" not in out
    assert "ok    molecule/qm9" in out
    assert f"perrin {perrin.__version__}" in out


def test_doctor_finds_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from perrin.modalities.molecule import MoleculeModality

    monkeypatch.setattr(MoleculeModality, "requirements", lambda self: ("rdkit", "no_such_package"))
    assert main(["doctor"]) == 2
    assert (
        "missing no_such_package; install the extra molecule: pip install 'perrin[molecule]', or '.[molecule]' in a clone"
        in capsys.readouterr().out
    )


def test_a_dry_run_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SAMPLE.split(), "--dry-run"]) == 0
    assert capsys.readouterr().out.strip()
    assert files(here) == {}


def test_sampling_records_what_it_did_and_runs_again(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest", "of", "no", "meaning"])
    words = [*SAMPLE.split(), "--seed", "5", "--atoms", "9-12"]
    assert main(words) == 0
    record = json.loads((here / "out.sdf.run.json").read_text())
    assert record["verb"] == "sample"
    assert record["argv"] == words
    assert record["arguments"]["seed"] == 5
    assert record["sampling"]["steps"] == 1
    assert record["bundle"]["sha256"] == perrin.load("molecule/qm9").sha256
    assert record["versions"]["perrin"] == perrin.__version__
    first = (here / "out.sdf").read_bytes()
    assert {len(m) for m in read_molecules("out.sdf")} <= {9, 10, 11, 12}
    for _ in range(2):  # what a rerun writes runs again, too
        (here / "out.sdf").unlink()
        capsys.readouterr()
        assert main(["rerun", "out.sdf.run.json"]) == 0
        assert capsys.readouterr().out.startswith("perrin sample molecule/qm9 -n 4")
        assert (here / "out.sdf").read_bytes() == first
        assert json.loads((here / "out.sdf.run.json").read_text())["argv"] == words


def test_options_may_stand_before_the_target(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("sample --steps 1 --atoms 9 -n 1 -o a.sdf molecule/qm9".split()) == 0  # noqa: SIM905
    assert [len(m) for m in read_molecules("a.sdf")] == [9]
    assert capsys.readouterr().out.startswith("1 molecule in a.sdf")


def test_things_are_counted() -> None:
    things = {"molecules": "molecule", "trajectories": "trajectory", "entries": "entry", "runs": "run"}
    assert [counted(1, many) for many in things] == [f"1 {one}" for one in things.values()]
    assert [counted(0, many) for many in things] == [f"0 {many}" for many in things]


def test_evaluating_and_viewing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sdf(here / "good.sdf", [add_geometry("CCO"), add_geometry("C")])
    assert main(["evaluate", "good.sdf", "--json", "good.json"]) == 0
    content = json.loads((here / "good.json").read_text())
    assert set(content["protocols"]) == {"lookup", "bonds"}
    assert content["protocols"]["bonds"]["metrics"]["valid_connected"]["value"] == 1.0
    assert "bonds" in capsys.readouterr().out
    pytest.importorskip("tblite")
    assert main("evaluate good.sdf --protocol bonds --relax 2 --fmax 0.1 --json relaxed.json".split()) == 0  # noqa: SIM905
    relaxed = json.loads((here / "relaxed.json").read_text())["measures"]["relax"]
    assert relaxed["settings"]["count"] == 2
    assert 0 < relaxed["metrics"]["rmsd"]["value"] < 0.5
    assert "kcal/mol" in capsys.readouterr().out
    assert main(["view", "good.sdf"]) == 0
    assert "<html" in (here / "good.html").read_text(encoding="utf-8").lower()


def test_a_view_and_metrics_with_the_sample(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SAMPLE.split(), "--view", "page.html", "--evaluate"]) == 0
    assert set(files(here)) == {"out.sdf", "out.sdf.run.json", "page.html"}
    assert "lookup" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz"])
def test_other_formats(here: Path, suffix: str) -> None:
    assert main(f"sample molecule/qm9 -n 3 --steps 1 -o out{suffix}".split()) == 0
    assert len(read_molecules(f"out{suffix}")) == 3


# what is there already


def test_a_command_replaces_what_it_made_itself(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "sample molecule/qm9 -n 2 --steps 1 --atoms 9 -o out.sdf --view page.html".split()  # noqa: SIM905
    other = [*words, "--seed", "1"]
    assert main(words) == 0
    first = files(here)

    def refused(*words: str) -> str:
        before = files(here)
        capsys.readouterr()
        assert main(words) == 2
        assert files(here) == before
        return one_line(capsys.readouterr().err)

    assert "which 'perrin sample molecule/qm9 -n 2" in refused(*other)
    assert main(words) == 0
    # the same settings in other words: what changes speed alone is none
    again = "sample --batch 7 --steps 1 --workers 1 --out out.sdf --atoms 9 -n 2 molecule/qm9"
    assert main(again.split()) == 0
    assert files(here)["out.sdf"] == first["out.sdf"]
    assert main(words) == 0, "that command had no page, and a page is replaced by another"
    assert main(["view", "out.sdf", "-o", "page.html"]) == 0
    (here / "own.html").write_text("<html>mine</html>")
    assert "--overwrite, given own.html" in refused("view", "out.sdf", "-o", "own.html")
    (here / "own.html").unlink()
    assert main([*other, "--overwrite"]) == 0
    assert files(here)["out.sdf"] != first["out.sdf"]
    record = json.loads((here / "out.sdf.run.json").read_text())
    assert record["argv"] == other, "a rerun takes no liberties"
    assert main(other) == 0

    with open("out.sdf", "a") as file:
        file.write("\n")
    assert "which has changed since this command made it" in refused(*other)
    (here / "out.sdf.run.json").unlink()
    assert "which this command did not make" in refused(*other)
    assert main([*other, "--dry-run"]) == 0, "it writes nothing"


def test_every_output_has_a_record(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sdf(here / "good.sdf", [add_geometry("CCO"), add_geometry("C")])
    outputs = {
        "view good.sdf": "good.html",
        "evaluate good.sdf --json good.json": "good.json",
        "rank good.sdf": "good.ranked.sdf",
        "vary good.sdf --strength 0 -n 1 -o like.sdf": "like.sdf",
    }
    for command, name in outputs.items():
        for _ in range(2):
            assert main(command.split()) == 0
        record = json.loads((here / f"{name}.run.json").read_text())
        assert record["argv"] == command.split()
        capsys.readouterr()
        assert main(["rerun", f"{name}.run.json"]) == 0
        assert capsys.readouterr().out.startswith(f"perrin {command}\n")
        changed = f"{command} --workers 1 --top 1" if command.startswith("rank") else None
        if changed:
            assert main(changed.split()) == 2
            assert "which 'perrin rank good.sdf' made" in one_line(capsys.readouterr().err)


# stopping and going on

LONG = "sample molecule/qm9 -n 64 --seed 7 --steps 20 --batch 16"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "out.sdf"
    assert main([*LONG.split(), "--workers", "1", "-o", str(out)]) == 0
    return out.read_bytes()


def hear_interrupts() -> None:
    """Whoever runs the tests in the background may have SIGINT ignored, which children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def group(leader: int) -> list[int]:
    """Living processes of a process group, as Linux lists them."""
    out = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(number) == leader and state != "Z":
            out.append(int(path.parent.name))
    return out


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("number", "workers", "to_all"),
    [
        pytest.param(signal.SIGTERM, 1, False, id="TERM-1-parent"),
        pytest.param(signal.SIGINT, 2, True, id="INT-2-group"),
        pytest.param(signal.SIGINT, 1, True, id="INT-1-group", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, False, id="TERM-2-parent", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, True, id="TERM-2-group", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 2, False, id="INT-2-parent", marks=pytest.mark.slow),
    ],
)
def test_stopped_work_goes_on(
    here: Path, uninterrupted: bytes, number: signal.Signals, workers: int, to_all: bool
) -> None:
    """A signal to the parent alone, or to all as a terminal and Slurm send it."""
    words = [*LONG.split(), "--workers", str(workers), "-o", "out.sdf"]
    process = subprocess.Popen(
        [*PERRIN, *words],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    partial = here / "out.sdf.partial"
    stop = time.monotonic() + 60
    while not list(partial.glob("*.safetensors")) and time.monotonic() < stop:
        time.sleep(0.005)
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == "perrin: stopped; the same command goes on from what is done\n"
    stop = time.monotonic() + 5
    while group(process.pid) and time.monotonic() < stop:
        time.sleep(0.02)
    assert group(process.pid) == [], "no worker is left"
    assert [p.name for p in here.iterdir()] == ["out.sdf.partial"]
    kept = sorted(p.name for p in partial.iterdir())
    assert kept.pop() == "key.json"
    assert kept
    assert all(name.endswith(".safetensors") for name in kept)

    assert main(words) == 0
    assert (here / "out.sdf").read_bytes() == uninterrupted
    assert set(files(here)) == {"out.sdf", "out.sdf.run.json"}


class Stop:
    """Interrupts this process after some parts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, parts: int, error: BaseException) -> None:
        from perrin.run.partial import PartialStore

        save = PartialStore.save

        def counted(store: PartialStore, *more: object) -> None:
            nonlocal parts
            if parts == 0:
                raise error
            parts -= 1
            save(store, *more)  # type: ignore[arg-type]

        monkeypatch.setattr(PartialStore, "save", counted)


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (Interrupted(15, "stopped"), 143)], ids=["INT", "TERM"]
)
def test_unfinished_work_is_of_one_kind(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
) -> None:
    words = "sample molecule/qm9 -n 8 --steps 1 --batch 2 -o out.sdf".split()  # noqa: SIM905
    with monkeypatch.context() as context:
        Stop(context, 2, error)
        assert main(words) == code
    before = files(here)
    assert len(before) == 1 + 1 + 2
    capsys.readouterr()
    for change, told in (
        (["--seed", "1"], "(seed 0, given 1)"),
        (["--steps", "2"], "(steps 1, given 2)"),
        (["--atoms", "9"], "(atoms none, given 9)"),
        (["--seed", "1", "--steps", "2"], "(seed 0, given 1; steps 1, given 2)"),
    ):
        assert main([*words, *change]) == 2
        assert f"with other settings {told}" in one_line(capsys.readouterr().err)
        assert files(here) == before
    words[words.index("8")] = "12"  # more of the same is welcome
    assert main([*words, "--batch", "5"]) == 0
    found = (here / "out.sdf").read_bytes()
    assert set(files(here)) == {"out.sdf", "out.sdf.run.json"}
    assert main([*words[:-1], "again.sdf"]) == 0
    assert (here / "again.sdf").read_bytes() == found


def test_work_that_never_began_does_not_stand_in_the_way(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as context:
        Stop(context, 0, KeyboardInterrupt())
        assert main(SAMPLE.split()) == 130
    assert main([*SAMPLE.split(), "--seed", "1"]) == 0
    assert set(files(here)) == {"out.sdf", "out.sdf.run.json"}


def test_a_damaged_part_is_made_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "sample molecule/qm9 -n 8 --steps 1 --batch 2 -o out.sdf".split()  # noqa: SIM905
    assert main([*words[:-1], "whole.sdf"]) == 0
    with monkeypatch.context() as context:
        Stop(context, 2, KeyboardInterrupt())
        assert main(words) == 130
    part = next((here / "out.sdf.partial").glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-9])
    assert main(words) == 0
    assert (here / "out.sdf").read_bytes() == (here / "whole.sdf").read_bytes()

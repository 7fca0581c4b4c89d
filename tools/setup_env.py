"""Create or update `.venv`: torch first, then the locked packages, then perrin itself (editable).

`make env` calls this with the machine's own Python; it needs the standard library only. Packages are
installed by uv, ten times faster than pip, which pip fetches at the version in `constraints.txt`.

torch is chosen here and nowhere else, so that nothing in the dependency tree can change it. In this order:

1. the torch of the environment, or of the Python that runs this file, when it is recent enough;
2. a wheel in a folder that pip is told to look in (`find-links`);
3. the CUDA build, when `nvidia-smi` finds a GPU;
4. the CPU build.

Variables: `PERRIN_TORCH` is a version specifier in place of `>=2.6` (CI sets `==2.13.0`), and
`PERRIN_TORCH_BACKEND` replaces the choice between 3 and 4 by a name that uv knows (`cpu`, `cu128`, `auto`).

With the argument `peers` it installs `tests/core/peers.txt` into `.peers` instead (`make peers`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PEERS = ROOT / ".peers"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"
SPECIFIER = os.environ.get("PERRIN_TORCH", ">=2.6")
TORCH_TEST = "import torch; print(torch.__version__)"


def succeeds(*command: str | Path) -> bool:
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def output(*command: str | Path) -> str:
    """What a command prints, stripped; the empty string where it fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def say(text: str) -> None:
    print(f"perrin env: {text}", flush=True)


def pip_setting(name: str) -> str:
    """A setting of pip's configuration files or environment, of which uv reads neither."""
    return os.environ.get("PIP_" + name.upper().replace("-", "_")) or output(
        sys.executable, "-m", "pip", "config", "get", f"global.{name}"
    )


def uv_environment() -> dict[str, str]:
    env = {**os.environ, "VIRTUAL_ENV": str(VENV)}
    for setting, variable, separator in (
        ("find-links", "UV_FIND_LINKS", ","),
        ("index-url", "UV_DEFAULT_INDEX", " "),
        ("cert", "SSL_CERT_FILE", " "),
    ):
        value = pip_setting(setting)
        if value and variable not in env:
            env[variable] = separator.join(value.split())
    return env


def create_venv() -> None:
    """An empty environment that works: kept if there is one, made anew if its Python is gone."""
    if not succeeds(PYTHON, "-c", "pass"):
        say(f"creating {VENV.name} with Python {sys.version.split()[0]}")
        venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(VENV)
    if succeeds(PYTHON, "-m", "uv", "--version"):
        return
    options = ["install", "--quiet", "--disable-pip-version-check", "--constraint", str(CONSTRAINTS), "uv"]
    if succeeds(sys.executable, "-m", "pip", "--python", PYTHON, *options):
        return
    if succeeds(PYTHON, "-m", "ensurepip") and succeeds(PYTHON, "-m", "pip", *options):
        return
    raise SystemExit(
        "perrin env: expected a Python with pip or ensurepip and a package index that answers; "
        f"{sys.executable} could not install uv. On Debian and Ubuntu: apt-get install python3-venv"
    )


def satisfies(version: str) -> bool:
    """Whether a torch of this version may be kept: the exact one asked for, else at least 2.6."""
    numbers = version.split("+")[0]
    if SPECIFIER.startswith("=="):
        return numbers == SPECIFIER.removeprefix("==")
    return tuple(int(part) for part in numbers.split(".")[:2]) >= (2, 6)


def borrow_torch() -> str:
    """Show the environment the base Python's packages, behind its own, if a good torch is among them."""
    if Path(sys.prefix).resolve() == VENV:
        return ""
    version = output(sys.executable, "-c", TORCH_TEST)
    if not version or not satisfies(version):
        return ""
    if not succeeds(PYTHON, "-c", f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"):
        return ""
    folders = [path for path in sys.path if path.rstrip("/").endswith(("site-packages", "dist-packages"))]
    site = output(PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    Path(site, "base_torch.pth").write_text("\n".join(folders) + "\n")
    return output(PYTHON, "-c", TORCH_TEST)


def local_folders(env: dict[str, str]) -> list[Path]:
    entries = env.get("UV_FIND_LINKS", "").split(",")
    folders = [Path(entry.removeprefix("file://")) for entry in entries if entry]
    return [folder for folder in folders if folder.is_dir() and any(folder.glob("torch-*.whl"))]


def install_torch(uv: Sequence[str | Path], env: dict[str, str]) -> None:
    version = output(PYTHON, "-c", TORCH_TEST)
    if version and satisfies(version):
        say(f"torch {version} is there already")
        return
    version = borrow_torch()
    if version:
        say(f"torch {version} of {sys.prefix} is used as it is")
        return
    locked = ("--constraint", CONSTRAINTS)
    for folder in local_folders(env):
        local = ("--no-deps", "--no-index", "--find-links", folder, f"torch{SPECIFIER}")
        if subprocess.run([*uv, "--quiet", *local], env=env, stderr=subprocess.DEVNULL).returncode == 0:
            version = output(PYTHON, "-c", "from importlib.metadata import version; print(version('torch'))")
            say(f"torch {version} from {folder}")
            subprocess.run([*uv, *locked, f"torch=={version}"], env=env, check=True)
            return
    backend = os.environ.get("PERRIN_TORCH_BACKEND") or ("auto" if succeeds("nvidia-smi") else "cpu")
    say(f"downloading torch{SPECIFIER} ({'the CUDA build for this GPU' if backend == 'auto' else backend})")
    subprocess.run([*uv, *locked, "--torch-backend", backend, f"torch{SPECIFIER}"], env=env, check=True)


def install_perrin(uv: Sequence[str | Path], env: dict[str, str]) -> None:
    """Everything but torch, which is left out of the resolution altogether."""
    with tempfile.TemporaryDirectory() as folder:
        excludes = Path(folder, "excludes.txt")
        excludes.write_text("torch\n")
        locked = ("--constraint", CONSTRAINTS, "--build-constraint", CONSTRAINTS, "--excludes", excludes)
        subprocess.run([*uv, *locked, "--editable", f"{ROOT}[dev]"], env=env, check=True)


def install_peers(uv: Sequence[str | Path], env: dict[str, str]) -> None:
    """Other libraries' samplers, for `pytest -m peers`: all pinned, none of them in `.venv`."""
    shutil.rmtree(PEERS, ignore_errors=True)
    listed = ("--no-deps", "--target", PEERS, "--requirement", ROOT / "tests" / "core" / "peers.txt")
    subprocess.run([*uv, "--quiet", *listed], env=env, check=True)


def main() -> None:
    start = time.monotonic()
    create_venv()
    env = uv_environment()
    uv = (PYTHON, "-m", "uv", "pip", "install")
    try:
        if sys.argv[1:] == ["peers"]:
            install_peers(uv, env)
        else:
            install_torch(uv, env)
            install_perrin(uv, env)
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            "perrin env: uv could not install a package (its message is above). Without a network, put the "
            "wheels in a folder and name it: pip config set global.find-links FOLDER"
        ) from error
    say(f"ready in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()

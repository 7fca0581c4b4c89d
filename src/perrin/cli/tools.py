"""`perrin list`, `perrin doctor` and `perrin rerun`."""

from __future__ import annotations

import importlib.util
import json
import shlex
import tempfile
from argparse import Namespace
from pathlib import Path

from perrin.errors import PerrinError
from perrin.modalities import modalities


def list_installed(a: Namespace) -> int:
    """Modalities and the bundles that ship with them."""
    for name, modality in modalities().items():
        print(f"{name:<12} {modality.summary}")
        for bundle in modality.bundles():
            print(f"  {name}/{bundle}")
    return 0


def doctor(a: Namespace) -> int:
    """Check Python packages, torch, devices, modalities and the cache folder; exit 0 when all is well, else 2."""
    from perrin.run.pool import cpu_count
    from perrin.run.record import versions

    ok = True
    print("  ".join(f"{k} {v}" for k, v in versions().items()))
    try:
        import torch

        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        print(f"ok    torch: {cpu_count()} CPU cores, GPUs: {', '.join(devices) or 'none'}")
    except Exception as error:
        ok = False
        print(f"fails torch: {error}")
    for name, modality in modalities().items():
        missing = [p for p in modality.requirements() if importlib.util.find_spec(p) is None]
        ok &= not missing
        print(
            f"{'fails' if missing else 'ok   '} {name}: "
            + (
                f"missing {', '.join(missing)}; pip install 'perrin[{name}]'"
                if missing
                else "packages are there"
            )
        )
        for bundle in modality.bundles():
            ok &= _check_bundle(f"{name}/{bundle}")
    try:
        with tempfile.NamedTemporaryFile():
            print("ok    temporary files can be written")
    except OSError as error:
        ok = False
        print(f"fails temporary files: {error}")
    return 0 if ok else 2


def _check_bundle(reference: str) -> bool:
    from perrin.bundle import read_bundle
    from perrin.modalities import find_bundle

    try:
        bundle = read_bundle(find_bundle(reference))
    except PerrinError as error:
        print(f"fails {reference}: {error}")
        return False
    print(f"ok    {reference}: {len(bundle.data) / 1e6:.1f} MB, hash as stated")
    return True


def rerun(a: Namespace) -> int:
    """Run the command that a `run.json` records."""
    from perrin.cli import main

    try:
        content = json.loads(Path(a.file).read_text(encoding="utf-8"))
        argv = [str(word) for word in content["argv"]]
    except OSError as error:
        raise PerrinError(
            f"expected a run.json that Perrin wrote, given {a.file} ({error.strerror})"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise PerrinError(f"expected a run.json that Perrin wrote, given another file, {a.file}") from error
    if argv[:1] == ["rerun"]:
        raise PerrinError(f"expected a run.json with a command to run, given {a.file}, which names itself")
    print("perrin " + shlex.join(argv), flush=True)
    return main(argv)

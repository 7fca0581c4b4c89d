"""Run the commands of `docs/particle/bodies.md` and draw its pictures.

    python docs/make_bodies.py [--folder DIR]

The page's `sh` blocks are run in order, but for those that train; files of `--folder` that are there already are kept.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from perrin.modalities.particle.bodies.plasma import cold_growth
from perrin.modalities.particle.bodies.view import pairs
from perrin.modalities.particle.flow.densities import power
from perrin.modalities.particle.flow.files import read_flow

HERE = Path(__file__).parent
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = "import sys; from perrin.cli import main; sys.exit(main(sys.argv[1:]))"


def run(folder: Path) -> None:
    """The page's commands, those whose output is not there yet."""
    for block in BLOCK.findall((HERE / "particle" / "bodies.md").read_text(encoding="utf-8")):
        for line in block.strip().splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["perrin", "train"] or (
                "-o" in words and (folder / words[words.index("-o") + 1]).exists()
            ):
                continue
            subprocess.run([sys.executable, "-c", COMMAND, *words[1:]], cwd=folder, check=True)


def densities(folder: Path, path: Path) -> None:
    """A start, the solver's end, two draws of the model, and the power of all."""
    truth, runs = read_flow(folder / "test.h5"), read_flow(folder / "runs.h5")
    members = int(runs.words["members"])
    start, end = truth.values[0, 0], truth.values[0, -1]
    fields = [("start, a = 0.2", start), ("solver, a = 1", end)]
    fields += [(f"model, draw {k + 1}", runs.values[k, -1]) for k in range(2)]
    figure, axes = plt.subplots(1, 5, figsize=(13, 2.9), constrained_layout=True)
    for axis, (name, field) in zip(axes, fields):
        axis.imshow(np.log(field + 0.1), cmap="magma", vmin=-2.3, vmax=2.3, origin="lower")
        axis.set_title(name, fontsize=10)
        axis.set_xticks([]), axis.set_yticks([])
    k = np.arange(1, 17)
    curves = (
        ("start", truth.values[:, 0], "0.6", "-"),
        ("solver", truth.values[:, -1], "k", "-"),
        ("model", runs.values[:, -1], "tab:red", "--"),
    )
    for name, x, colour, line in curves:
        p = power(torch.from_numpy(x) - 1).mean(0)[1:].numpy()
        axes[4].loglog(k, p * 2 * np.pi * k**2, color=colour, ls=line, label=name)
    lost = np.exp(2 * (truth.values.shape[1] - 1) * truth.interval)
    p = power(torch.from_numpy(truth.values[:, 0]) - 1).mean(0)[1:].numpy()
    axes[4].loglog(k, lost * p * 2 * np.pi * k**2, color="0.6", ls=":", label="linear theory")
    axes[4].set_title("power per ln k", fontsize=10)
    axes[4].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"{path}: {members} members, {len(truth)} truths")


def others(folder: Path, path: Path) -> None:
    """Phase space of two streams, growth of the field, and the structure of liquid argon."""
    figure, axes = plt.subplots(1, 5, figsize=(13, 2.9), constrained_layout=True)
    with h5py.File(folder / "plasma.h5") as file:
        f, time, top = file["phase_space"][0], file["time"][:], float(file.attrs["top"])
        box = float(file.attrs["box"])
        for axis, t in zip(axes, (0, 25, 40)):
            axis.imshow(
                f[t], cmap="viridis", origin="lower", extent=(0, box, -top, top), aspect="auto", vmax=8
            )
            axis.set_title(f"two streams, ω_p t = {time[t]:.0f}", fontsize=10)
    with h5py.File(folder / "cold.h5") as file:
        field, time, wave = file["electric_field"][0], file["time"][:], float(file.attrs["wave"])
        hat = np.abs(np.fft.rfft(field, axis=1)[:, 1])
        axes[3].semilogy(time, hat, "k", label="electric field")
        middle = int(np.argmax(hat > 0.2 * hat.max()))
        axes[3].semilogy(
            time, hat[middle] * np.exp(cold_growth(wave) * (time - time[middle])), "r--", label="theory"
        )
        axes[3].set_ylim(0.5 * hat.min(), 2 * hat.max())
        axes[3].set_title("growth of cold streams", fontsize=10)
        axes[3].legend(fontsize=7)
    with h5py.File(folder / "argon.h5") as file:
        edges, g = pairs(file["positions"][:], file["cell"][:], 160)
    axes[4].stairs(g, edges, color="k")
    axes[4].axvline(3.7, color="r", ls="--", lw=1, label="Rahman 1964: 3.7 Å")
    axes[4].set_title("liquid argon, g(r), Å", fontsize=10)
    axes[4].legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder")
    parser.add_argument("--drawn", action="store_true", help="draw what the folder has, and run nothing")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(a.folder or temporary)
        if not a.drawn:
            run(folder)
        densities(folder, HERE / "images" / "particle-density.png")
        others(folder, HERE / "images" / "particle-bodies.png")


if __name__ == "__main__":
    main()

"""One self-contained HTML page of plots: histograms of observables, mean profiles, a few samples; SVG, no script."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError
from perrin.run.atomic import write_text

Array = NDArray[np.float64]
_W, _H, _M = 300, 170, 34
_BLUE, _GREY = "#2864b4", "#888888"


@dataclass(frozen=True)
class Curve:
    """Values over a line of x: drawn as steps."""

    x: Array
    ours: Array
    truth: Array | None


def write_page(path: str | Path, file: str | Path, beside: str | Path | None) -> None:
    """A page for a file of showers, jets, flows or bodies, with the truth's plots beside if given.

    Raises:
        PerrinError: the files cannot be read, or hold different things.
    """
    from perrin.modalities.particle.commands import kind_of

    kind = kind_of(file)
    if beside is not None and kind_of(beside) != kind:
        raise PerrinError(f"expected {kind} in {beside} as in {file}, given {kind_of(beside)}")
    names = [str(file)] + ([str(beside)] if beside else [])
    from perrin.modalities.particle.bodies.view import atoms, densities, plasmas

    plot = {
        "showers": _showers,
        "jets": _jets,
        "flow": _flow,
        "density": densities,
        "phase space": plasmas,
        "bodies": atoms,
    }
    plots = plot[kind](names)
    legend = f'<span style="color:{_BLUE}">■</span> {html.escape(Path(file).name)}'
    if beside:
        legend += f' &nbsp; <span style="color:{_GREY}">■</span> {html.escape(Path(beside).name)}'
    write_text(
        path,
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="generator" content="perrin view">'
        f"<title>{html.escape(Path(file).name)}</title><style>body{{font:14px sans-serif;margin:20px;max-width:1300px}}"
        "figure{display:inline-block;margin:8px}figcaption{text-align:center}svg{background:#fff}</style></head><body>"
        f"<h1>{kind}: {html.escape(Path(file).name)}</h1><p>{legend}</p>{''.join(plots)}</body></html>\n",
    )


def histogram(name: str, ours: Array, truth: Array | None, bins: int = 40) -> str:
    """A figure of one observable, as densities."""
    both = ours if truth is None else np.concatenate([ours, truth])
    low, high = np.quantile(both, (0.001, 0.999))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    curves = [np.histogram(v, edges)[0] / max(len(v), 1) for v in (ours, truth) if v is not None]
    return figure(name, Curve(edges, curves[0], curves[1] if len(curves) > 1 else None))


def figure(name: str, curve: Curve, log: bool = False) -> str:
    """A figure of steps."""
    rows = [r for r in (curve.truth, curve.ours) if r is not None]
    if log:
        floor = (
            min(r[r > 0].min() for r in rows if (r > 0).any()) if any((r > 0).any() for r in rows) else 1.0
        )
        rows = [np.log10(np.maximum(r, floor)) for r in rows]
    low = min(min(float(r.min()) for r in rows), 0.0) if not log else min(float(r.min()) for r in rows)
    high = max(float(r.max()) for r in rows)
    high = high if high > low else low + 1
    a, b = float(curve.x[0]), float(curve.x[-1])

    def place(x: float, y: float) -> str:
        return f"{_M + (x - a) / (b - a) * (_W - _M - 8):.1f},{_H - 24 - (y - low) / (high - low) * (_H - 40):.1f}"

    parts = []
    for r, colour in zip(rows, (_GREY, _BLUE) if len(rows) > 1 else (_BLUE,)):
        points = [place(float(curve.x[k + d]), float(v)) for k, v in enumerate(r) for d in (0, 1)]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(points)}"/>'
        )
    top = f"10^{high:.1f}" if log else f"{high:.3g}"
    text = (
        f'<text x="{_M}" y="{_H - 8}" font-size="11">{a:.3g}</text>'
        f'<text x="{_W - 8}" y="{_H - 8}" font-size="11" text-anchor="end">{b:.3g}</text>'
        f'<text x="2" y="14" font-size="11">{top}</text>'
        f'<line x1="{_M}" y1="{_H - 24}" x2="{_W - 8}" y2="{_H - 24}" stroke="#ccc"/>'
    )
    return (
        f'<figure><svg width="{_W}" height="{_H}">{"".join(parts)}{text}</svg>'
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
    )


def image(name: str, values: Array, signed: bool = False) -> str:
    """A figure of a field `[rows, columns]`, as rectangles of colour."""
    rows, columns = values.shape
    size = max(2, min(6, 300 // max(rows, columns)))
    top = float(np.abs(values).max()) or 1.0
    cells = []
    for i in range(rows):
        for j in range(columns):
            v = float(values[i, j]) / top
            if signed:
                c = (
                    (255, int(255 * (1 - v)), int(255 * (1 - v)))
                    if v > 0
                    else (int(255 * (1 + v)), int(255 * (1 + v)), 255)
                )
            else:
                c = (int(255 * (1 - v)), int(255 * (1 - 0.6 * v)), 255 - int(75 * v))
            if v:
                cells.append(
                    f'<rect x="{j * size}" y="{i * size}" width="{size}" height="{size}" fill="rgb{c}"/>'
                )
    svg = f'<svg width="{columns * size}" height="{rows * size}">{"".join(cells)}</svg>'
    return f"<figure>{svg}<figcaption>{html.escape(name)}</figcaption></figure>"


def _showers(names: list[str]) -> list[str]:
    from perrin.modalities.particle.showers.features import features
    from perrin.modalities.particle.showers.files import read_showers
    from perrin.modalities.particle.showers.geometry import ANGLES, LAYERS, RADIAL_BIN, RADII

    sets = [read_showers(n) for n in names]
    seen = [features(s) for s in sets]
    out = []
    for name, values in (
        ("deposited / incident energy", [f.response for f in seen]),
        ("incident energy (GeV)", [f.incident / 1000 for f in seen]),
        ("depth of the centre (layers)", [f.depth for f in seen]),
        ("width across (mm)", [(f.width_eta * f.layers).sum(1) / np.maximum(f.total, 1e-9) for f in seen]),
        ("share of empty voxels", [f.sparsity.mean(1) for f in seen]),
        ("log10 voxel energy (MeV)", [np.log10(s.voxels[s.voxels > 0][:2_000_000]) for s in sets]),
    ):
        out.append(histogram(name, *_pair(values)))
    grids = [
        (s.voxels / s.incident[:, None]).mean(0, dtype=np.float64).reshape(LAYERS, ANGLES, RADII)
        for s in sets
    ]
    for name, axes, x in (
        ("mean energy / incident by layer", (1, 2), np.arange(LAYERS + 1.0)),
        ("… by radius (mm)", (0, 1), RADIAL_BIN * np.arange(RADII + 1.0)),
        ("… by angle (sixteenths)", (0, 2), np.arange(ANGLES + 1.0)),
    ):
        out.append(figure(name, Curve(x, *_pair([g.sum(axes) for g in grids])), log=len(x) == LAYERS + 1))
    for k in range(min(4, len(sets[0]))):
        grid = sets[0].voxels[k].reshape(LAYERS, ANGLES, RADII).sum(1)
        side = np.concatenate([grid[:, ::-1], grid], 1).T
        out.append(
            image(f"shower {k}, {sets[0].incident[k] / 1000:.1f} GeV: log(1 + E), along", np.log1p(side))
        )
    return out


def _jets(names: list[str]) -> list[str]:
    from perrin.modalities.particle.jets.files import read_jets
    from perrin.modalities.particle.jets.observables import jet_observables, particle_observables

    sets = [read_jets(n) for n in names]
    out = []
    for read in (jet_observables, particle_observables):
        seen = [read(s) for s in sets]
        for name in seen[0]:
            values = [np.log10(s[name].clip(1e-6)) if name == "pT_rel" else s[name] for s in seen]
            out.append(histogram("log10 pT_rel" if name == "pT_rel" else name, *_pair(values)))
    edges = np.linspace(-0.4, 0.4, 41)
    for name, s in zip(names, sets):
        rows = s.particles[s.mask]
        mean = np.histogram2d(rows[:, 1], rows[:, 0], bins=[edges, edges], weights=rows[:, 2])[0] / len(s)
        out.append(image(f"mean pT_rel in (η, φ), log: {Path(name).name}", np.log1p(1e4 * mean)))
    return out


def _flow(names: list[str]) -> list[str]:
    import torch

    from perrin.modalities.particle.flow.files import read_flow
    from perrin.modalities.particle.flow.solver import energy, spectrum

    sets = [read_flow(n).values for n in names]
    tensors = [torch.from_numpy(s[:, -1]).double() for s in sets]
    spectra = [spectrum(t).mean(0).numpy()[1:-1] for t in tensors]
    out = [
        histogram("vorticity", *_pair([s[:, -1].ravel()[:500_000].astype(np.float64) for s in sets])),
        histogram("energy", *_pair([energy(t).numpy() for t in tensors])),
        figure(
            "energy by wave number, log10",
            Curve(np.arange(1.0, len(spectra[0]) + 2), *_pair(spectra)),
            log=True,
        ),
    ]
    for k in range(min(3, len(sets[0]))):
        for t in (0, sets[0].shape[1] - 1):
            out.append(image(f"run {k}, time {t}", sets[0][k, t].astype(np.float64), signed=True))
    return out


def _pair(values: list[Array]) -> tuple[Array, Array | None]:
    return values[0], values[1] if len(values) > 1 else None

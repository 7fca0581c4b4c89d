"""FPND: the Fréchet distance between activations of a ParticleNet on generated jets and on the real JetNet30 jets.

The weights of the ParticleNet and the mean and covariance of its activations on real jets come with the package `jetnet`
0.2.5 (`pip install --no-deps jetnet==0.2.5`); the package itself is not imported, its files are read. So jets are compared
with a public data set that need not be downloaded. FPND is meant for 50,000 jets; a smaller sample gives a larger value
(about 0.02 more at 10,000), so compare at the same number only.

References: Kansal et al. 2021, arXiv:2106.11535 (FPND); Qu and Gouskos 2020, arXiv:1902.08570 (ParticleNet).
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perrin.errors import PerrinError
from perrin.modalities.particle.metrics.distances import frechet

_LARGEST = (1.6211985349655151, 0.520724892616272, 0.8934717178344727)
"""What η_rel, φ_rel and pT_rel are divided by; ½ is then taken off pT_rel."""
_LETTER = {"gluon": "g", "quark": "q", "top": "t"}
_NEIGHBOURS = 16


class _EdgeNet(nn.Module):
    """Three linear layers with batch normalisation, of pairs `(x_i, x_j − x_i)`; the mean over the neighbours j.

    For inference: the first layer is `(A − B) x_i + B x_j`, done once per particle, and batch normalisation, affine then, is
    merged into the layer before it.
    """

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for size in (2 * inside, outside, outside):
            parts += [nn.Linear(size, outside), nn.BatchNorm1d(outside), nn.ReLU()]
        self.model = nn.Sequential(*parts)

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        b, n, k = neighbours.shape
        (w, c), *rest = (_merged(self.model[i], self.model[i + 1]) for i in (0, 3, 6))
        own, far = w.chunk(2, dim=1)
        near = x @ (own - far).T + c
        there = (x @ far.T).reshape(b * n, -1)
        rows = (neighbours + n * torch.arange(b, device=x.device)[:, None, None]).reshape(-1)
        y = (there[rows].reshape(b, n, k, -1) + near.unsqueeze(2)).relu_().reshape(b * n * k, -1)
        for w, c in rest:
            y = torch.addmm(c, y, w.T).relu_()
        return y.reshape(b, n, k, -1).mean(2)


def _merged(linear: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return linear.weight * scale[:, None], (linear.bias - norm.running_mean) * scale + norm.bias


class ParticleNet(nn.Module):
    """The network of `jetnet`: three edge convolutions over the 16 nearest, first in (η, φ), then among features."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 64, 128, 256)
        inputs = np.cumsum(widths).tolist()
        self.edge_nets = nn.ModuleList(_EdgeNet(i, w) for i, w in zip(inputs, widths[1:]))
        self.fc1 = nn.Sequential(nn.Linear(inputs[-1], 256))
        self.fc2 = nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Activations `[B, 256]` of jets `[B, 30, 3]`, normalised."""
        for number, net in enumerate(self.edge_nets):
            seen = x[..., :2] if number == 0 else x
            distance = torch.cdist(seen, seen, compute_mode="donot_use_mm_for_euclid_dist")
            distance.diagonal(dim1=1, dim2=2).fill_(float("inf"))
            x = torch.cat((net(x, distance.topk(_NEIGHBOURS, largest=False).indices), x), -1)
        return self.fc1(x.mean(1))


MISSING = "the package jetnet 0.2.5, whose network it takes, is not installed: uv pip install --no-deps jetnet==0.2.5"


def available() -> bool:
    """Whether `jetnet` is here."""
    return find_spec("jetnet") is not None


def resources() -> Path:
    """The folder of `jetnet`'s files.

    Raises:
        PerrinError: the package is not installed.
    """
    spec = find_spec("jetnet")
    places = list(spec.submodule_search_locations or ()) if spec else []
    folder = Path(places[0]) / "evaluation/fpnd_resources/jetnet/30_particles" if places else Path()
    if not places or not (folder / "pnet_state_dict.pt").is_file():
        raise PerrinError(f"expected FPND's network, found none: {MISSING}")
    return folder


@lru_cache
def _network() -> ParticleNet:
    weights = torch.load(resources() / "pnet_state_dict.pt", map_location="cpu", weights_only=True)
    net = ParticleNet()
    own = net.state_dict()
    net.load_state_dict({k: v for k, v in weights.items() if k in own})  # convolutions are there twice
    return net.eval().requires_grad_(False)


@lru_cache
def real_statistics(kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean `[256]` and covariance `[256, 256]` of the activations on real JetNet30 jets of a class.

    Raises:
        PerrinError: `jetnet` is not installed.
    """
    folder, letter = resources(), _LETTER[kind]
    return np.loadtxt(folder / f"{letter}_mu.txt"), np.loadtxt(folder / f"{letter}_sigma.txt")


def activations(particles: NDArray[np.float32], batch: int = 50) -> NDArray[np.float64]:
    """Activations `[N, 256]` of jets `[N, 30, ≥ 3]`; rows that are no particles are zero."""
    x = torch.as_tensor(np.asarray(particles)[..., :3], dtype=torch.float32)
    x = x / torch.tensor(_LARGEST) - torch.tensor([0.0, 0.0, 0.5])
    net = _network()
    with torch.inference_mode():
        return torch.cat([net(part) for part in x.split(batch)]).double().numpy()


def fpnd(particles: NDArray[np.float32], kind: str) -> float:
    """FPND of jets of a class (`gluon`, `quark` or `top`) to the real ones.

    Arguments:
        particles: `[N, 30, ≥ 3]`: η_rel, φ_rel, pT_rel.
    """
    return fpnd_of(activations(particles), kind)


def fpnd_of(seen: NDArray[np.float64], kind: str) -> float:
    """The same from activations."""
    return frechet(*real_statistics(kind), seen.mean(0), np.cov(seen, rowvar=False))

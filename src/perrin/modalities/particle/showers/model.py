"""A trained shower model: how energies become what the networks see and back, how it is sampled and trained.

First stage, given the incident energy E: the response R = Σ e / E and the shares f_l of the 45 layers, as

    x_0 = (R / R̄ − 1) √(E / GeV) / s,        x_l = (log f_l − μ_l) / σ_l.

Second stage, given those: `v = log(e / cut)` of each voxel, less its mean at that layer and radius. A layer or voxel
without energy has the value that lies 1.5 below the cut; what comes out more than 0.75 below the cut is empty. So empty and
least energies are apart, and no energy arises between 0 and the cut. In the end each layer's voxels are scaled to
the layer's energy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perrin.core import CounterNoise, Dense, State, sample, sample_seeds
from perrin.errors import PerrinError, check_count
from perrin.modalities.particle.showers.files import Showers
from perrin.modalities.particle.showers.geometry import ANGLES, CUT, LAYERS, RADII, VOXELS
from perrin.modalities.particle.showers.network import (
    ENERGY,
    LAYER,
    TOLD,
    VOXEL,
    NetworkConfig,
    ShowerConfig,
    build,
    layouts_for,
)
from perrin.modalities.particle.staged import LossConfig, ParticleModel, SamplingOptions, Staged, StagedTask

GAP = 1.5
"""How far below the cut an empty voxel or layer is put, in logarithms."""


def logarithms(voxels: Tensor) -> Tensor:
    """v of voxels or layers, MeV, of any shape; empty ones have `−GAP`."""
    return torch.where(voxels > 0, (voxels.clamp(min=CUT) / CUT).log(), torch.full_like(voxels, -GAP))


def shower_config(showers: Showers, network: NetworkConfig | None = None, chunk: int = 2000) -> ShowerConfig:
    """A configuration for a training set: scales from the data."""
    e = torch.from_numpy(showers.incident).double()
    layer, v_sum, v_square = [], torch.zeros(LAYERS, RADII, dtype=torch.float64), 0.0
    for begin in range(0, len(showers), chunk):
        part = torch.from_numpy(showers.voxels[begin : begin + chunk]).reshape(-1, LAYERS, ANGLES, RADII)
        layer.append(part.sum((2, 3), dtype=torch.float64))
        v_sum += logarithms(part).double().sum((0, 2))
    mean = v_sum / (len(showers) * ANGLES)
    for begin in range(0, len(showers), chunk):
        part = torch.from_numpy(showers.voxels[begin : begin + chunk]).reshape(-1, LAYERS, ANGLES, RADII)
        v_square += float((logarithms(part).double() - mean[:, None]).square().sum())
    layers = torch.cat(layer)
    total = layers.sum(1)
    ratio = total / e
    centre = float(ratio.mean())
    spread = float(((ratio / centre - 1) * (e / 1000).sqrt()).std())
    shares = _log_shares(layers, total)
    low, high = float(showers.incident.min()) / 1000, float(showers.incident.max()) / 1000
    return ShowerConfig(
        energy=(math.floor(100 * low) / 100, math.ceil(100 * high) / 100),
        response=(centre, spread),
        share_mean=tuple(shares.mean(0).tolist()),
        share_std=tuple(shares.std(0).clamp(min=0.1).tolist()),
        voxel_mean=tuple(mean.tolist()),
        voxel_std=math.sqrt(v_square / (len(showers) * VOXELS)),
        network=network or NetworkConfig(),
    )


def _log_shares(layers: Tensor, total: Tensor) -> Tensor:
    """log f_l, `[N, 45]`; an empty layer's is `GAP` below that of the cut."""
    return logarithms(layers) + math.log(CUT) - total.unsqueeze(1).log()


class Scales:
    """A configuration's numbers as tensors on a device; encodes and decodes."""

    def __init__(self, config: ShowerConfig, device: torch.device | str = "cpu") -> None:
        def tensor(x: Any) -> Tensor:
            return torch.tensor(x, dtype=torch.float32, device=device)

        self.share_mean, self.share_std = tensor(config.share_mean), tensor(config.share_std)
        self.voxel_mean = tensor(config.voxel_mean).unsqueeze(1)  # [45, 1, 9]
        self.voxel_std, self.response = config.voxel_std, config.response
        low, high = (math.log(x) for x in config.energy)
        self.log_middle, self.log_width = (low + high) / 2, max((high - low) / 2, 1e-3) / math.sqrt(3)

    def energy(self, incident: Tensor) -> Tensor:
        """The condition `[N, 1]` of incident energies, MeV: of mean 0 and deviation 1 for log-uniform ones."""
        return (((incident / 1000).log() - self.log_middle) / self.log_width).unsqueeze(1).float()

    def encode_layers(self, layers: Tensor, incident: Tensor) -> Tensor:
        """The 46 numbers of layer energies `[N, 45]`, MeV."""
        total = layers.sum(1).clamp(min=CUT)
        ratio = (total / incident / self.response[0] - 1) * (incident / 1000).sqrt() / self.response[1]
        shares = (_log_shares(layers, total) - self.share_mean) / self.share_std
        return torch.cat([ratio.unsqueeze(1), shares], 1).float()

    def decode_layers(self, x: Tensor, incident: Tensor) -> Tensor:
        """Layer energies `[N, 45]`, MeV, float64: 0, or at least the cut."""
        x = x.double()
        incident = incident.double()
        ratio = self.response[0] * (1 + x[:, 0] * self.response[1] / (incident / 1000).sqrt())
        total = (ratio * incident).clamp(min=CUT).unsqueeze(1)
        share = (x[:, 1:] * self.share_std + self.share_mean).exp()
        share = torch.where(share * total < CUT * math.exp(-GAP / 2), torch.zeros_like(share), share)
        layers = total * share / share.sum(1, keepdim=True).clamp(min=1e-12)
        return torch.where(layers > 0, layers.clamp(min=CUT), layers)

    def encode_voxels(self, voxels: Tensor) -> Tensor:
        """What the network sees of voxels `[N, 45, 16, 9]`, MeV."""
        return (logarithms(voxels) - self.voxel_mean) / self.voxel_std

    def decode_voxels(self, x: Tensor, layers: Tensor) -> Tensor:
        """Voxels `[N, 45, 16, 9]`, MeV, float64, that add up to `layers` `[N, 45]`: 0, or at least about the cut."""
        v = (x * self.voxel_std + self.voxel_mean).double().flatten(2)
        e = torch.where(v < -GAP / 2, torch.zeros_like(v), CUT * v.clamp(min=0).exp())
        best = torch.nn.functional.one_hot(v.argmax(-1), v.shape[-1]).to(v) * CUT
        e = torch.where((e.sum(-1, keepdim=True) > 0), e, best)
        for _ in range(3):
            e = e * (layers / e.sum(-1).clamp(min=1e-12)).unsqueeze(-1)
            least = torch.where(best > 0, e, torch.zeros_like(e))  # the hottest voxel stays
            e = torch.where(e < 0.999 * CUT, least, e)
        e = e * (layers / e.sum(-1).clamp(min=1e-12)).unsqueeze(-1)
        return e.reshape(len(x), LAYERS, ANGLES, RADII)


def make_task(
    model: Staged,
    config: ShowerConfig,
    data: Mapping[str, Tensor],
    *,
    batch: int,
    seed: int,
    loss: LossConfig | None = None,
) -> StagedTask:
    """The training task; showers are turned by whole angles and mirrored at random, which leaves their distribution.

    Arguments:
        data: `incident` `[N]` and `voxels` `[N, 6480]` in MeV, of any floating type.
    """
    scales: dict[torch.device, Scales] = {}

    def encode(rows: dict[str, Tensor], generator: torch.Generator) -> tuple[State, State]:
        device = rows["incident"].device
        if device not in scales:
            scales[device] = Scales(config, device)
        s = scales[device]
        incident = rows["incident"].float()
        voxels = rows["voxels"].float().reshape(-1, LAYERS, ANGLES, RADII)
        turn = torch.randint(0, ANGLES, (len(voxels), 1), generator=generator, device=device)
        sign = torch.randint(0, 2, (len(voxels), 1), generator=generator, device=device) * 2 - 1
        source = (turn + sign * torch.arange(ANGLES, device=device)) % ANGLES
        voxels = voxels.gather(2, source[:, None, :, None].expand_as(voxels))
        energy, layers = s.energy(incident), s.encode_layers(voxels.sum((2, 3)), incident)
        return {LAYER: layers, ENERGY: energy}, {VOXEL: s.encode_voxels(voxels), TOLD: layers, ENERGY: energy}

    network: Any = model.second.network
    return StagedTask(
        model,
        config.to_json(),
        data,
        encode,
        layouts_for,
        batch=batch,
        seed=seed,
        loss=loss,
        compiled=network.trunk.compile_blocks,
    )


def training_data(showers: Showers) -> dict[str, Tensor]:
    """Tensors for `make_task`."""
    return {"incident": torch.from_numpy(showers.incident), "voxels": torch.from_numpy(showers.voxels)}


class ShowerModel(ParticleModel[Staged, ShowerConfig]):
    """A shower model; arguments as of `ParticleModel`."""

    kind = "showers"

    @staticmethod
    def parts(data: Mapping[str, Any]) -> tuple[Staged, ShowerConfig]:
        """See `ParticleModel`."""
        config = ShowerConfig.from_json(data)
        return build(config), config

    def incident(
        self, indices: Sequence[int], seed: int, energy: tuple[float, float] | None = None
    ) -> Tensor:
        """Incident energies of showers of a run, `[n]`, MeV: log-uniform in a range, each by its own seed.

        Arguments:
            energy: the range in GeV; by default the training data's.

        Raises:
            PerrinError: the range is none, or leaves that of the training data.
        """
        low, high = self.config.energy
        a, b = energy or (low, high)
        if not (math.isfinite(a) and math.isfinite(b) and 0 < a <= b):
            raise PerrinError(
                f"expected --energy above 0 such as {low:g}..{high:g}GeV, given {a:g}..{b:g} GeV"
            )
        if a < low * 0.999 or b > high * 1.001:
            raise PerrinError(
                f"expected --energy within {low:g}..{high:g} GeV, given {a:g}..{b:g} GeV: "
                "the model has seen no others"
            )
        noise = CounterNoise(sample_seeds(seed, torch.tensor(list(indices))), dtype=torch.float64)
        u = noise.uniform(Dense(len(indices)), (1,), field="incident", step=0)[:, 0]
        return 1000 * torch.exp(math.log(a) + (math.log(b) - math.log(a)) * u)

    def run(
        self,
        indices: Sequence[int],
        seed: int,
        energy: tuple[float, float] | None = None,
        options: SamplingOptions | None = None,
    ) -> Showers:
        """Showers number `indices` of a run; shower i depends on (seed, i) and the range of energies, on nothing else."""
        options = options or self.sampling
        incident = self.incident(indices, seed, energy).to(self.device)
        seeds = sample_seeds(seed, torch.tensor(list(indices))).to(self.device)
        scales = Scales(self.config, self.device)
        told = scales.energy(incident)
        first, second = self.network.first, self.network.second
        layouts = layouts_for({ENERGY: told}, {})
        noise = CounterNoise(seeds)
        with self._settings():
            plan = options.plan(first, first=True)
            given: State = {ENERGY: told}
            x = sample(first, first.process, plan, layouts[0], noise, start=given, mode=self.mode)[LAYER]
            layers = scales.decode_layers(x, incident)
            start: State = {TOLD: scales.encode_layers(layers, incident), ENERGY: told}
            plan = options.plan(second)
            y = sample(second, second.process, plan, layouts[1], noise, start=start, mode=self.mode)[VOXEL]
        voxels = scales.decode_voxels(y, layers).flatten(1)
        return Showers(incident.float().cpu().numpy(), voxels.float().cpu().numpy())

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        energy: tuple[float, float] | None = None,
        batch: int = 50,
        **options: Any,
    ) -> Showers:
        """Generate showers in this process.

        Arguments:
            n: how many.
            seed: of the run; shower i is the same for every `n` and, to rounding, for every `batch`.
            energy: range of incident energies, GeV, drawn log-uniformly.
            batch: showers run together.
            options: changes to `SamplingOptions`, such as `steps=16`.

        Raises:
            PerrinError: `n` below 1, energies out of range.
        """
        check_count(n, "n")
        chosen = self.sampling.changed(**options)
        parts = [
            self.run(range(begin, min(begin + batch, n)), seed, energy, chosen)
            for begin in range(0, n, batch)
        ]
        return Showers(np.concatenate([p.incident for p in parts]), np.concatenate([p.voxels for p in parts]))

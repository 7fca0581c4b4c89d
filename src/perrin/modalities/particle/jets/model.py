"""A trained jet model: what it is told, how it is sampled, and the data that it is trained on.

First a jet's six numbers are drawn given its class: pT (GeV), η, mass (GeV), number of constituents, and the mass and pT of
its 30 hardest particles relative to the jet's. Then the particles given those. A range for pT or mass is kept by drawing a
jet's numbers again until they are inside, so that what is drawn is the model's own distribution, conditioned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perrin.core import CounterNoise, State, sample, sample_seeds
from perrin.core.replay import Mode
from perrin.errors import PerrinError, check_count
from perrin.modalities.particle.jets.files import WIDTH, Jets
from perrin.modalities.particle.jets.network import (
    JET,
    KIND,
    MASK,
    PARTICLES,
    JetConfig,
    NetworkConfig,
    build,
    layouts_for,
)
from perrin.modalities.particle.jets.observables import momentum, relative_mass
from perrin.modalities.particle.quantiles import from_normal, knots, to_normal
from perrin.modalities.particle.staged import LossConfig, ParticleModel, SamplingOptions, Staged, StagedTask

_TRIES = 200
_STRIDE = 1 << 40
"""Between the seeds of the draws of one jet's numbers."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What jets are asked for.

    Arguments:
        kind: the class.
        pt, mass: ranges in GeV.
    """

    kind: str
    pt: tuple[float, float] | None = None
    mass: tuple[float, float] | None = None


def jet_features(jets: Jets) -> Tensor:
    """The six numbers, `[N, 6]`, float64; the number of constituents is still whole."""
    p = jets.particles.astype(np.float64)
    total = momentum(p)
    pt, eta, mass, count = jets.jets.astype(np.float64).T
    ratio = relative_mass(p) * pt / np.maximum(mass, 1e-3)
    rows = np.stack(
        [np.log(pt), eta, np.log(np.maximum(mass, 1e-3)), count, ratio, np.hypot(*total[:, :2].T)], 1
    )
    return torch.from_numpy(rows)


def jet_config(sets: Mapping[str, Jets], network: NetworkConfig | None = None) -> JetConfig:
    """A configuration for classes of jets: quantiles and scales from the data."""
    tables, logs = [], []
    for jets in sets.values():
        x = _spread(jet_features(jets), torch.Generator().manual_seed(0))
        both = torch.cat([x, x * torch.tensor([1, -1, 1, 1, 1, 1.0])])  # η and −η are equally likely
        tables.append([[float(f"{v:.9g}") for v in row] for row in knots(both, 129).tolist()])
        logs.append(np.log(jets.particles[..., 2][jets.mask].clip(1e-6)))
    log = np.concatenate(logs)
    return JetConfig(
        classes=tuple(sets),
        knots=tuple(tables),
        log_pt=(float(log.mean()), float(log.std())),
        network=network or NetworkConfig(),
    )


def _spread(x: Tensor, generator: torch.Generator) -> Tensor:
    """The whole number of constituents made continuous by half a unit to either side."""
    x = x.clone()
    x[:, 3] += torch.rand(len(x), generator=generator, dtype=x.dtype) - 0.5
    return x


def training_data(sets: Mapping[str, Jets], config: JetConfig, seed: int = 0) -> dict[str, Tensor]:
    """Tensors for `make_task`: `particles` `[N, 30, 3]`, `jet` `[N, 6]`, `class` `[N]`, `count` `[N]`."""
    parts: dict[str, list[Tensor]] = {PARTICLES: [], JET: [], KIND: [], "count": []}
    for number, kind in enumerate(config.classes):
        jets = sets[kind]
        generator = torch.Generator().manual_seed(seed)
        z = to_normal(_spread(jet_features(jets), generator), torch.tensor(config.knots[number]))
        p = torch.from_numpy(jets.particles)
        x = torch.stack([p[..., 0], p[..., 1], p[..., 2]], -1).float()
        log = (x[..., 2].clamp(min=1e-6).log() - config.log_pt[0]) / config.log_pt[1]
        x = torch.stack([x[..., 0] / config.angle_scale, x[..., 1] / config.angle_scale, log], -1)
        mask = p[..., 3] > 0
        parts[PARTICLES].append(x * mask[..., None])
        parts[JET].append(z)
        parts[KIND].append(torch.full((len(jets),), number))
        parts["count"].append(mask.sum(1))
    return {k: torch.cat(v) for k, v in parts.items()}


def make_task(
    model: Staged,
    config: JetConfig,
    data: Mapping[str, Tensor],
    *,
    batch: int,
    seed: int,
    loss: LossConfig | None = None,
) -> StagedTask:
    """The training task; jets are mirrored in η and φ at random, which leaves their distribution as it is."""
    count = len(config.classes)

    def encode(rows: dict[str, Tensor], generator: torch.Generator) -> tuple[State, State]:
        x, z = rows[PARTICLES], rows[JET]
        device = x.device
        signs = torch.randint(0, 2, (len(x), 2), generator=generator, device=device) * 2.0 - 1
        one = torch.ones_like(signs[:, :1])
        x = x * torch.cat([signs, one], 1).unsqueeze(1)
        z = z * torch.cat([one, signs[:, :1], one, one, one, one], 1)
        kind = torch.nn.functional.one_hot(rows[KIND], count).to(x.dtype)
        mask = torch.arange(WIDTH, device=device) < rows["count"].unsqueeze(1)
        return {JET: z, KIND: kind}, {PARTICLES: x, JET: z, KIND: kind, MASK: mask}

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


class JetModel(ParticleModel[Staged, JetConfig]):
    """A jet model; arguments as of `ParticleModel`."""

    kind = "jets"

    @staticmethod
    def parts(data: Mapping[str, Any]) -> tuple[Staged, JetConfig]:
        """See `ParticleModel`."""
        config = JetConfig.from_json(data)
        return build(config), config

    def check(self, wish: Wish) -> int:
        """The number of the class.

        Raises:
            PerrinError: an unknown class, or ranges that are none or hold no jet of the training data.
        """
        if wish.kind not in self.config.classes:
            raise PerrinError(
                f"expected --class with one of {', '.join(self.config.classes)}, given {wish.kind!r}: choose one of them"
            )
        number = self.config.classes.index(wish.kind)
        for name, given, row, log in (("--pt", wish.pt, 0, True), ("--mass", wish.mass, 2, True)):
            if given is None:
                continue
            q = self.config.knots[number][row]
            low, high = (float(np.exp(v)) if log else v for v in (q[0], q[-1]))
            if not given[0] < given[1] or given[1] <= low or given[0] >= high:
                raise PerrinError(
                    f"expected {name} within {low:.0f}..{high:.0f} GeV for {wish.kind} jets, given "
                    f"{given[0]:g}..{given[1]:g}: that is what the model was trained on"
                )
        return number

    def run(
        self, indices: Sequence[int], seed: int, wish: Wish, options: SamplingOptions | None = None
    ) -> Jets:
        """Jets number `indices` of a run; jet i depends on (seed, i) and on what is asked for, on nothing else.

        Raises:
            PerrinError: as `check` does, or the ranges hold fewer than about one jet in 100.
        """
        number, options = self.check(wish), options or self.sampling
        seeds = sample_seeds(seed, torch.tensor(list(indices))).to(self.device)
        kind = torch.nn.functional.one_hot(
            torch.full((len(seeds),), number, device=self.device), len(self.config.classes)
        ).float()
        table = torch.tensor(self.config.knots[number], dtype=torch.float64, device=self.device)
        with self._settings():
            z = self._first(seeds, kind, table, wish, options)
            values = from_normal(z, table)
            count = values[:, 3].round().clamp(1, 10_000)
            mask = torch.arange(WIDTH, device=self.device) < count.clamp(max=WIDTH).unsqueeze(1)
            start: State = {JET: z, KIND: kind, MASK: mask}
            layouts = layouts_for({}, start)[1]
            plan = options.plan(self.network.second)
            state = sample(
                self.network.second,
                self.network.second.process,
                plan,
                layouts,
                CounterNoise(seeds),
                start=start,
                mode=self.mode,
            )
        return self._decode(state[PARTICLES], mask, values, count)

    def _first(
        self, seeds: Tensor, kind: Tensor, table: Tensor, wish: Wish, options: SamplingOptions
    ) -> Tensor:
        plan = options.plan(self.network.first, first=True)
        out, left = torch.zeros(len(seeds), table.shape[0], device=seeds.device), torch.arange(len(seeds))
        for attempt in range(_TRIES):
            rows = left.to(seeds.device)
            mask = torch.ones(len(rows), WIDTH, dtype=torch.bool, device=seeds.device)
            layouts = layouts_for({}, {MASK: mask})[0]
            noise = CounterNoise(seeds[rows] + attempt * _STRIDE)
            first = self.network.first
            mode: Mode = "eager" if attempt else self.mode  # later draws are fewer, each time another shape
            start: State = {KIND: kind[rows]}
            z = sample(first, first.process, plan, layouts, noise, start=start, mode=mode)[JET]
            out[rows] = z
            values = from_normal(z, table)
            inside = torch.ones(len(rows), dtype=torch.bool, device=seeds.device)
            for row, given in ((0, wish.pt), (2, wish.mass)):
                if given is not None:
                    inside &= (values[:, row].exp() >= given[0]) & (values[:, row].exp() <= given[1])
            left = left[~inside.cpu()]
            if not len(left):
                return out
        raise PerrinError(
            f"expected ranges that hold at least one {wish.kind} jet in 100 or so, given narrower ones: widen --pt or --mass"
        )

    def _decode(self, x: Tensor, mask: Tensor, values: Tensor, count: Tensor) -> Jets:
        """Particles by falling pT. Their momenta are scaled to the sum that the first stage has drawn.

        A jet of at most 30 constituents has all of them here, so that they add up to its own momentum; left to the network,
        they do to 2 %, by which a classifier knows them.
        """
        c = self.config
        eta, phi = (x[..., k] * c.angle_scale for k in (0, 1))
        pt = torch.exp((x[..., 2] * c.log_pt[1] + c.log_pt[0]).clamp(max=0.0))
        pt = pt.double() * mask
        total = torch.hypot((pt * phi.cos()).sum(1), (pt * phi.sin()).sum(1))
        pt = (pt * (values[:, 5] / total.clamp(min=1e-6)).unsqueeze(1)).to(eta)
        rows = torch.stack([eta, phi, pt, torch.ones_like(pt)], -1) * mask.unsqueeze(-1)
        order = rows[..., 2].argsort(dim=1, descending=True, stable=True)
        rows = rows.gather(1, order.unsqueeze(-1).expand_as(rows))
        jet = torch.stack([values[:, 0].exp(), values[:, 1], values[:, 2].exp(), count], -1)
        return Jets(rows.float().cpu().numpy(), jet.float().cpu().numpy())

    def sample(self, n: int, *, seed: int = 0, kind: str = "gluon", batch: int = 256, **options: Any) -> Jets:
        """Generate jets in this process.

        Arguments:
            n: how many.
            seed: of the run; jet i is the same for every `n` and, to rounding, for every `batch`.
            kind: the class.
            batch: jets run together.
            options: `pt=(900, 1000)`, `mass=(60, 100)` in GeV, or changes to `SamplingOptions`, such as `steps=16`.

        Raises:
            PerrinError: `n` below 1, an unknown class, ranges without jets.
        """
        check_count(n, "n")
        wish = Wish(kind=kind, pt=options.pop("pt", None), mass=options.pop("mass", None))
        chosen = self.sampling.changed(**options)
        parts = [
            self.run(range(begin, min(begin + batch, n)), seed, wish, chosen) for begin in range(0, n, batch)
        ]
        return Jets(np.concatenate([p.particles for p in parts]), np.concatenate([p.jets for p in parts]))

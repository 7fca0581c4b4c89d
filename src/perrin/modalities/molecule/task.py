"""The molecule task: what the trainer trains."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from perrin.core import DenoisingLoss, GeneratorNoise, NetworkDenoiser, State
from perrin.core.losses import sample_times_edm, stratified
from perrin.modalities.molecule.dataset import Bucket
from perrin.modalities.molecule.fields import BONDS, CHARGES, POSITIONS, TYPES, layouts_for
from perrin.modalities.molecule.network import MoleculeConfig
from perrin.modalities.molecule.parts import FLAGS, PartsLaw, corrected, flags_of
from perrin.modalities.molecule.properties import IntervalLaw, standardise
from perrin.train import BatchPlan

_GOLDEN = 0.618033988749895


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the fields and the distribution of training times.

    Arguments:
        positions, types, charges, bonds: field weights. Positions are weighted uniformly in the network's output
            (`EDMHead`), categories by plain cross entropy.
        time_mean, time_std: times are drawn so that `ln(σ/α)` of the positions is normal with these. The default covers the
            times between which types and bonds are decided (0.2 to 0.5) and those at which bond lengths are (below).
        broad: share of the molecules whose times are uniform in place of that: at the late times of large noise, where
            what a molecule is made of is decided, and with it whether a wish is met.
        self_condition: fraction of steps in which a network with self-conditioning sees its own estimate, made at
            the same state and time (Chen et al. 2022, arXiv:2208.04202).
        t_min: the smallest time trained on.
        intervals, parts: how wishes and given parts are drawn, for networks that take them.
    """

    positions: float = 1.0
    types: float = 0.25
    charges: float = 0.25
    bonds: float = 2.0
    time_mean: float = -1.3
    time_std: float = 1.3
    self_condition: float = 0.5
    t_min: float = 1e-3
    broad: float = 0.0
    intervals: IntervalLaw = field(default_factory=IntervalLaw)
    parts: PartsLaw = field(default_factory=PartsLaw)


class MoleculeTask:
    """Buckets of molecules, a denoiser and its loss.

    Arguments:
        denoiser: made by `build_denoiser(config)`.
        config: the model's.
        buckets: the training data; of a network with conditions, with values of `config.ranges`.
        batch: molecules per step over all processes.
        seed: of the order of the batches.
        loss: weights and times.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        config: MoleculeConfig,
        buckets: Sequence[Bucket],
        *,
        batch: int,
        seed: int,
        loss: LossConfig | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.loss_config = loss or LossConfig()
        network = config.network
        loss = self.loss_config
        named = (("intervals", network.conditions), ("parts", network.parts), ("broad", loss.broad))
        idle = {k for k, used in named if not used}
        self.config = {
            "model": config.to_json(),
            "loss": {k: v for k, v in asdict(loss).items() if k not in idle},
            "molecules": sum(map(len, buckets)),
            "data": _fingerprint(buckets),
        }
        self.ranges, self.with_parts = config.ranges, network.parts
        if self.ranges and any(b.values is None or b.values.shape[1] != len(self.ranges) for b in buckets):
            raise ValueError(f"expected values of {len(self.ranges)} properties in every bucket")
        elements = config.vocabulary.elements
        self.hydrogen = elements.index(1) if 1 in elements else None
        self.most = [int(_heavy(b, self.hydrogen).max()) for b in buckets] if self.with_parts else []
        self.buckets = list(buckets)
        self.self_conditioned = config.network.self_condition
        self.plan = BatchPlan([len(b) for b in buckets], batch, seed)
        c = self.loss_config
        weights = {POSITIONS: c.positions, TYPES: c.types, CHARGES: c.charges, BONDS: c.bonds}
        self.criterion = DenoisingLoss(field_weights=weights)

    def to(self, device: torch.device) -> None:
        """Move the buckets."""
        self.buckets = [b.to(device) for b in self.buckets]

    def compile(self) -> None:
        """Compile the repeated block."""
        self.denoiser.network.trunk.compile_blocks()  # type: ignore[union-attr, operator]

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[Hashable, dict[str, Tensor]]:
        """See `perrin.train.Task`. The key is (bucket, whether the network sees its own estimate)."""
        c = self.loss_config
        number, index = self.plan(step)
        x_0, mask = self.buckets[number].take(index.to(generator.device, non_blocking=True))
        noise, layouts = GeneratorNoise(generator), layouts_for(mask)
        u = stratified(torch.rand(len(index), generator=generator, device=generator.device))
        t = sample_times_edm(
            u,
            self.denoiser.process.fields[POSITIONS].schedule,
            mean=c.time_mean,
            std=c.time_std,
            low=c.t_min,
            high=0.999,
        )
        if c.broad:
            late = torch.rand(len(index), generator=generator, device=generator.device) < c.broad
            t = torch.where(late, u.clamp(c.t_min, 0.999), t)
        x_t = self.denoiser.process.corrupt_state(x_0, t, noise, layouts)
        chance = c.self_condition if self.self_conditioned else 0.0
        own = (step * _GOLDEN) % 1.0 < chance  # evenly spread, the same on every rank
        batch = {"t": t, "mask": mask}
        batch |= {f"x_0.{k}": v for k, v in x_0.items()} | {f"x_t.{k}": v for k, v in x_t.items()}
        values = self.buckets[number].values
        if self.ranges and values is not None:
            z = standardise(values[index.to(values.device)], self.ranges)
            batch["intervals"] = c.intervals.draw(z, generator)
        if self.with_parts:
            batch |= c.parts.draw(
                x_0, mask, hydrogen=self.hydrogen, most=self.most[number], generator=generator
            )
        return (number, own), {k: v[rank::world] for k, v in batch.items()}

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `perrin.train.Task`."""
        assert isinstance(key, tuple)
        x_t, told = self._inputs(batch)
        previous: State | None = None
        if key[1]:
            with torch.no_grad():
                previous = model(x_t, batch["t"], **told)
        return self._scored(model(x_t, batch["t"], previous=previous, **told), batch, told, self.criterion)

    def _inputs(self, batch: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        """The noised state of a batch, and the layouts and condition that go with it."""
        layouts = layouts_for(batch["mask"])
        condition: dict[str, Any] = {}
        if "intervals" in batch:
            condition["intervals"] = batch["intervals"]
        if FLAGS[0] in batch:
            condition |= flags_of(batch, tuple(layouts))
        more = {"condition": condition} if condition else {}
        return state_of(batch, "x_t", layouts), {"layouts": layouts, **more}

    def _scored(
        self, estimate: State, batch: Mapping[str, Tensor], told: Mapping[str, Any], criterion: DenoisingLoss
    ) -> dict[str, Tensor]:
        """Losses of an estimate, which takes over what is known."""
        layouts, condition = told["layouts"], told.get("condition", {})
        if "known" in condition:
            estimate = corrected(estimate, condition)
        return criterion(self.denoiser, state_of(batch, "x_0", layouts), estimate, batch["t"], layouts)


def state_of(batch: Mapping[str, Tensor], part: str, fields: Iterable[str]) -> State:
    """The fields `part.name` of a batch."""
    return {k: batch[f"{part}.{k}"] for k in fields}


def _heavy(bucket: Bucket, hydrogen: int | None) -> Tensor:
    """Heavy atoms of each molecule."""
    heavy = bucket.mask if hydrogen is None else bucket.mask & (bucket.state[TYPES] != hydrogen)
    return heavy.sum(1)


def _fingerprint(buckets: Sequence[Bucket]) -> str:
    """A hash of the training data, by which a run knows its own."""
    found = hashlib.sha256()
    for bucket in buckets:
        for name in sorted(bucket.state):
            found.update(bucket.state[name].cpu().contiguous().numpy().tobytes())
        if bucket.values is not None:
            found.update(bucket.values.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]

"""The next state of a flow, of a density of bodies, or of a plasma's phase space, as a conditional diffusion model.

The change of the encoded field over one interval, `(e(ω′) − e(ω))/s`, is sampled given `e(ω)/σ`; `fields.py` says what the
encoding is, what the change is counted from where that is not the state itself, what is conserved whatever the network
says, and by which symmetries training moves the data. Of a flow the mean is kept and the grid's highest wave left out; a
velocity is made of the vorticity through the streamfunction (`solver.velocity`), so it has no divergence. Of a density the
mass is kept, of phase space charge, momentum and energy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perrin.core import (
    Clean,
    Composite,
    CounterNoise,
    Denoiser,
    DenoisingLoss,
    Dense,
    EDMHead,
    Gaussian,
    GeneratorNoise,
    Layouts,
    NetworkDenoiser,
    State,
    sample,
    sample_seeds,
)
from perrin.core.losses import sample_times_edm, stratified
from perrin.errors import PerrinError
from perrin.modalities.particle.flow.fields import Field, field_of
from perrin.modalities.particle.flow.files import Trajectories
from perrin.modalities.particle.staged import (
    LossConfig,
    ParticleModel,
    SamplingOptions,
    fingerprint,
    full_precision,
)
from perrin.nets import TimeEmbedding
from perrin.nets.periodic import PeriodicUNet, downsampled
from perrin.run.pool import one_thread
from perrin.train import BatchPlan

CHANGE, NOW = "change", "now"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of the U-Net."""

    widths: tuple[int, ...] = (48, 96, 128)
    blocks: int = 2
    condition: int = 128

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Everything that a bundle's `config.json` says about a flow model.

    Arguments:
        size: points along each side.
        interval: between two states.
        scale, change: standard deviations of the encoded field and of its change over an interval.
        wave: of the force, for shifts along y.
        words: the flow's parameters.
        network: sizes.
        field: a name of `fields.FIELDS`.
    """

    size: int
    interval: float
    scale: float
    change: float
    wave: int = 4
    words: Mapping[str, Any] = dataclass_field(default_factory=dict)
    network: NetworkConfig = dataclass_field(default_factory=NetworkConfig)
    field: str = "vorticity"

    def __post_init__(self) -> None:
        self.kind  # noqa: B018 - raises where there is none
        if not downsampled(self.network.widths, self.size):
            raise ValueError(
                f"expected a grid that can be halved {len(self.network.widths) - 1} times, given {self.size}"
            )

    @property
    def kind(self) -> Field:
        """How the field is encoded, and what it conserves."""
        return field_of(self.field, self.words, self.interval)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FlowConfig:
        """The inverse. Raises `TypeError` or `KeyError` when a name is unknown or missing."""
        more = {k: v for k, v in data.items() if k not in ("network", "kind")}
        return cls(network=NetworkConfig(**data["network"]), **more)


def flow_config(data: Trajectories, network: NetworkConfig | None = None) -> FlowConfig:
    """A configuration for trajectories.

    Raises:
        PerrinError: there are fewer than two times, or there is no model of such a field.
    """
    if data.values.shape[1] < 2:
        raise PerrinError("expected trajectories of at least 2 times to train on, given 1")
    kind, fields = field_of(data.name, data.words, data.interval), torch.from_numpy(data.values)
    w = kind.encode(fields).numpy()
    base, unit = kind.expected(fields[:, :-1])
    return FlowConfig(
        field=data.name,
        size=w.shape[-1],
        interval=data.interval,
        scale=float(w.std()),
        change=float(((torch.from_numpy(w[:, 1:]) - base) / unit).numpy().std()),
        wave=int(data.words.get("wave", 4)),
        words={k: v for k, v in data.words.items() if isinstance(v, int | float | str) and k != "seed"},
        network=network or NetworkConfig(),
    )


class FlowNetwork(nn.Module):
    """`(change at noise t, state now, t) → output` that such a field's change can have."""

    def __init__(self, c: NetworkConfig, kind: Field) -> None:
        super().__init__()
        self.kind = kind
        self.time = TimeEmbedding(c.condition)
        self.body = PeriodicUNet(1 + kind.channels, 1, c.widths, c.blocks, c.condition)

    def forward(
        self, fields: State, t: Tensor, *, condition: Any, layouts: Layouts, previous: Any = None
    ) -> State:
        x = fields[CHANGE]
        y = self.body(torch.cat((x, fields[NOW]), 1), self.time(t))
        with full_precision(x):
            return {CHANGE: self.kind.held(y.float())}


def build(config: FlowConfig) -> NetworkDenoiser:
    """A fresh denoiser, on the CPU in float32."""
    n = config.size
    process = Composite(fields={CHANGE: Gaussian(features=(1, n, n)), NOW: Clean()})
    return NetworkDenoiser(FlowNetwork(config.network, config.kind), process, {CHANGE: EDMHead()})


def layouts_for(now: Tensor) -> Layouts:
    """Layouts of a batch."""
    dense = Dense(len(now), now.device)
    return {CHANGE: dense, NOW: dense}


class FlowTask:
    """What the trainer trains (`perrin.train.Task`).

    Arguments:
        denoiser, config: the model.
        data: the trajectories.
        batch, seed: samples per step, and of their order.
    """

    def __init__(
        self, denoiser: NetworkDenoiser, config: FlowConfig, data: Trajectories, *, batch: int, seed: int
    ) -> None:
        self.denoiser, self.model_config = denoiser, config
        self.fields = torch.from_numpy(data.values)
        self.times = data.values.shape[1]
        count = len(data) * (self.times - 1)
        self.loss_config = LossConfig(mean=-1.0, std=1.6)
        mark = fingerprint({"vorticity": self.fields})
        self.config = {
            "model": config.to_json(),
            "loss": asdict(self.loss_config),
            "samples": count,
            "data": mark,
        }
        self.plan, self.criterion = BatchPlan([count], batch, seed), DenoisingLoss()

    def to(self, device: torch.device) -> None:
        """Move the data."""
        self.fields = self.fields.to(device)

    def compile(self) -> None:
        """Nothing: convolutions are few and large."""

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[Hashable, dict[str, Tensor]]:
        """See `perrin.train.Task`."""
        c, device = self.model_config, generator.device
        index = self.plan(step)[1].to(device)
        run, time = index // (self.times - 1), index % (self.times - 1)
        pair = torch.stack([self.fields[run, time], self.fields[run, time + 1]], 1).float()
        kind = c.kind
        before, after = kind.moved(pair, generator, c.wave).unbind(1)
        base, unit = kind.expected(before)
        now = kind.seen(before, c.scale)
        change = ((kind.encode(after) - base) / (c.change * unit)).to(after).unsqueeze(1)
        u = stratified(torch.rand(len(index), generator=generator, device=device))
        schedule, loss = self.denoiser.process.schedule, self.loss_config
        t = sample_times_edm(u, schedule, mean=loss.mean, std=loss.std, low=loss.t_min, high=0.9999)
        x_0: State = {CHANGE: change, NOW: now}
        x_t = self.denoiser.process.corrupt_state(x_0, t, GeneratorNoise(generator), layouts_for(now))
        batch = {"t": t, "clean": change, "noised": x_t[CHANGE], "now": now}
        return "all", {k: v[rank::world].contiguous() for k, v in batch.items()}

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `perrin.train.Task`."""
        layouts = layouts_for(batch["now"])
        estimate = model({CHANGE: batch["noised"], NOW: batch["now"]}, batch["t"], layouts=layouts)
        clean: State = {CHANGE: batch["clean"], NOW: batch["now"]}
        return self.criterion(self.denoiser, clean, estimate, batch["t"], layouts)


class FlowModel(ParticleModel[NetworkDenoiser, FlowConfig]):
    """A flow model; arguments as of `ParticleModel`."""

    kind = "flow"

    @staticmethod
    def parts(data: Mapping[str, Any]) -> tuple[NetworkDenoiser, FlowConfig]:
        """See `ParticleModel`."""
        config = FlowConfig.from_json(data)
        return build(config), config

    def check(
        self,
        fields: np.ndarray,
        interval: float | None = None,
        words: Mapping[str, Any] | None = None,
    ) -> None:
        """Raise a `PerrinError` unless these are fields of the model's grid, and of its interval and flow where known.

        Arguments:
            fields: `[N, n, n]`.
            interval: between the states.
            words: the flow's parameters, as a file has them; those that the model is tied to are compared.
        """
        n, kind = self.config.size, self.config.kind
        if fields.ndim != 3 or fields.shape[1:] != (n, n) or not len(fields):
            raise PerrinError(f"expected {kind.name} [N, {n}, {n}] to start from, given {list(fields.shape)}")
        if not np.isfinite(fields).all():
            raise PerrinError(f"expected finite {kind.name} to start from, given NaN or infinity")
        if kind.nonnegative and fields.min() < 0:
            raise PerrinError(f"expected {kind.name} of at least 0 to start from, given {fields.min():g}")
        if interval and abs(interval / self.config.interval - 1) > 1e-3:
            raise PerrinError(
                f"expected states {self.config.interval:g} apart, which the model was trained on, given {interval:g}"
            )
        what = "flow" if kind.name == "vorticity" else kind.name
        for name in kind.parameters:
            own, given = self.config.words.get(name), (words or {}).get(name)
            if isinstance(own, int | float) and isinstance(given, int | float) and not _alike(own, given):
                raise PerrinError(
                    f"expected a {what} of {name} {own:g}, which the model was trained on, given {given:g}"
                )

    def next(
        self,
        now: Tensor,
        seeds: Tensor,
        options: SamplingOptions | None = None,
        guided: Callable[[NetworkDenoiser], Denoiser] | None = None,
    ) -> Tensor:
        """The states one interval later, `[B, n, n]`, one draw for each row of `now`.

        Arguments:
            now: `[B, n, n]`.
            seeds: `[B]`; the draw of a row depends on its seed and state only.
            guided: makes a guided denoiser of the model's, for measurements.
        """
        options, c = options or self.sampling, self.config
        now = now.to(self.device)
        state: State = {NOW: c.kind.seen(now.float(), c.scale)}
        plan = options.plan(self.network)
        denoiser: Denoiser = guided(self.network) if guided else self.network
        x = sample(
            denoiser,
            self.network.process,
            plan,
            layouts_for(state[NOW]),
            CounterNoise(seeds.to(self.device)),
            start=state,
            mode=self.mode,
        )[CHANGE]
        return c.kind.advance(now, x.squeeze(1), c.change)

    def simulate(
        self,
        start: np.ndarray,
        intervals: int,
        *,
        members: int = 1,
        seed: int = 0,
        batch: int = 64,
        **options: Any,
    ) -> np.ndarray:
        """Trajectories from states: `[N, members, intervals + 1, n, n]`, float32, the start first.

        Arguments:
            start: `[N, n, n]`.
            intervals: how many.
            options: changes to `SamplingOptions`, such as `steps=16`.
            members: draws from each state; draw number `i · members + m` depends on the seed, its number and its state.
            batch: fields run together.

        Raises:
            PerrinError: fields of another grid, or NaN; intervals or members below 1.
        """
        self.check(start)
        if intervals < 1 or members < 1:
            raise PerrinError(
                f"expected intervals and members of at least 1, given {intervals} and {members}"
            )
        chosen = self.sampling.changed(**options)
        now = torch.from_numpy(np.repeat(start, members, 0)).float()
        seeds = sample_seeds(seed, range(len(now)))
        out = [now]
        with one_thread():
            for step in range(intervals):
                later = sample_seeds(_mixed(seed, step), range(len(now))) ^ seeds
                parts = [
                    self.next(a.to(self.device), b, chosen).cpu()
                    for a, b in zip(now.split(batch), later.split(batch))
                ]
                now = torch.cat(parts)
                out.append(now)
        whole = torch.stack(out, 1).numpy()
        return whole.reshape(len(start), members, intervals + 1, *start.shape[1:])


def _alike(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-3 * max(abs(a), abs(b))


def _mixed(seed: int, step: int) -> int:
    """A seed for one step of a trajectory."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:7], "big")

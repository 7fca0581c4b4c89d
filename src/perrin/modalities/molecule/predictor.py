"""Properties of molecules in 3D by a network: the evaluator of conditional generation, and a guide.

    y_k = f_k({(z_i, x_i)})        in standard units, from elements and positions alone

Bonds are not looked at, so the prediction does not depend on what a generator says of them. The trunk is an
`EquivariantTransformer`; the readout is invariant and of a kind that fits the property:

- *sums* over atoms for what grows with the molecule (polarisability, heat capacity);
- *dipole*: `|Σ_i (q_i x_i + v_i)|` with charges of sum zero and vectors `v_i` (Schütt et al. 2021, PaiNN, eq. 14);
- *means* over atoms, through a perceptron, for the rest (orbital energies).

A network can be trained on noised molecules at all times too (`noisy`), with a scale of its error; then

    log p(lo ≤ y ≤ hi | x_t),   y | x_t ~ Logistic(ŷ(x_t, t), s(x_t, t)),

is a guide (`perrin.core.guides.RegressorGuide`). Logistic, because its distribution function has no underflow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perrin.bundle import Bundle
from perrin.core import Composite, GeneratorNoise, Padded, State
from perrin.core.losses import sample_times_edm, stratified
from perrin.errors import PerrinError
from perrin.modalities.molecule.dataset import Bucket
from perrin.modalities.molecule.fields import (
    POSITIONS,
    TYPES,
    Vocabulary,
    layouts_for,
    molecule_process,
    padded,
)
from perrin.modalities.molecule.model import filled, make_units
from perrin.modalities.molecule.properties import Range, ranges_from_json, standardise
from perrin.modalities.molecule.structure import Molecule
from perrin.nets import Complete, EquivariantTransformer, RadialBasis, TimeEmbedding
from perrin.run.pool import one_thread
from perrin.train import BatchPlan

SUMS = ("alpha", "cv", "zpve", "u0", "u298", "h298", "g298", "r2")
KIND = "properties"


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Which properties, and the sizes of the network (`EquivariantTransformer`).

    Arguments:
        ranges: the properties, in the training data.
        noisy: whether it is trained on noised molecules too.
    """

    vocabulary: Vocabulary
    ranges: tuple[Range, ...]
    noisy: bool = False
    depth: int = 6
    width: int = 256
    vectors: int = 32
    pair_width: int = 64
    heads: int = 8
    sets: int = 16
    pair_hidden: int = 128
    gathered: int = 16
    radial: int = 64
    time_width: int = 128

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PredictorConfig:
        """The inverse of `to_json`."""
        v: dict[str, Any] = {k: tuple(x) if isinstance(x, list) else x for k, x in data["vocabulary"].items()}
        v["size_counts"] = tuple((int(n), int(c)) for n, c in v["size_counts"])
        rest = {k: x for k, x in data.items() if k not in ("kind", "vocabulary", "ranges")}
        return cls(vocabulary=Vocabulary(**v), ranges=ranges_from_json(data["ranges"]), **rest)


class Predictor(nn.Module):
    """See the module.

    Arguments:
        config: properties and sizes.
        sha256: of the bundle's weights.
        errors: mean absolute errors on molecules that it was not trained on, in the properties' units.
    """

    def __init__(
        self, config: PredictorConfig, *, sha256: str = "", errors: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.config, self.sha256, self.errors = config, sha256, dict(errors or {})
        c = config
        names = [r.name for r in c.ranges]
        self.types = len(c.vocabulary.elements)
        self.time = TimeEmbedding(c.time_width)
        self.radial = RadialBasis(c.radial)
        self.node_in = nn.Linear(self.types + 1, c.width)
        self.vector_in = nn.Linear(1, c.vectors, bias=False)
        self.pair_in = nn.Sequential(
            nn.Linear(c.radial + 1, c.pair_hidden), nn.SiLU(), nn.Linear(c.pair_hidden, c.pair_width)
        )
        self.trunk = EquivariantTransformer(
            depth=c.depth, width=c.width, vectors=c.vectors, pair_width=c.pair_width, heads=c.heads, sets=c.sets,
            pair_hidden=c.pair_hidden, gathered=c.gathered, time_width=c.time_width,
        )  # fmt: skip
        self.norm = nn.LayerNorm(c.width)
        self.atom = nn.Sequential(nn.Linear(c.width, c.width), nn.SiLU(), nn.Linear(c.width, len(names)))
        self.charge = nn.Linear(c.width, 1)
        self.vector = nn.Linear(c.vectors, 1, bias=False)
        self.whole = nn.Sequential(nn.Linear(c.width, c.width), nn.SiLU(), nn.Linear(c.width, len(names)))
        self.spread = nn.Linear(c.width, len(names)) if c.noisy else None
        self.register_buffer("sums", torch.tensor([n in SUMS for n in names]), persistent=False)
        self.register_buffer("dipole", torch.tensor([n == "mu" for n in names]), persistent=False)
        zero = [-r.mean / r.std if r.name == "mu" else 0.0 for r in c.ranges]  # no dipole, in standard units
        self.register_buffer("zero", torch.tensor(zero, dtype=torch.float32), persistent=False)

    sums: Tensor
    dipole: Tensor
    zero: Tensor

    def forward(self, x: State, t: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and the log of their scales, each `[B, P]`, in standard units.

        Arguments:
            x: positions (centred, over `position_scale`) and types; other fields are not looked at.
            t: the time that they are noised to, `[B]`; 0 for clean molecules.
            mask: `[B, N]`.
        """
        rows = Padded(mask)
        positions, dtype = x[POSITIONS], x[POSITIONS].dtype
        graph = Complete(mask)
        kinds = F.one_hot(x[TYPES].long(), self.types).to(dtype)
        size = (rows.rows().to(dtype) / 16.0)[:, None, None].expand(*mask.shape, 1)
        d = graph.distance(positions * self.config.vocabulary.position_scale)  # Å
        e = self.pair_in(torch.cat((self.radial(d), torch.log1p(d).unsqueeze(-1)), dim=-1))
        h = self.node_in(torch.cat((kinds, size), dim=-1))
        v = self.vector_in(positions.unsqueeze(-1)).transpose(1, 2)
        h, v, _ = self.trunk(h, v.to(dtype), e, self.time(t.to(dtype)), graph)
        h = self.norm(h)
        with torch.autocast(device_type=h.device.type, enabled=False):
            h = h.to(dtype)
            mean = rows.mean(h)
            summed = rows.sum(self.atom(h)) / 16.0
            charge = rows.center(self.charge(h))  # [B, N, 1], of sum zero
            moment = rows.sum(charge * positions + self.vector(v).squeeze(-1).transpose(1, 2))
            norm = (moment.square().sum(-1, keepdim=True) + 1e-6).sqrt()
            own = self.whole(mean)
            y = torch.where(self.dipole, norm + self.zero.to(dtype), torch.where(self.sums, summed, own))
            scale = torch.zeros_like(y) if self.spread is None else self.spread(mean)
        return y, scale.clamp(-6.0, 3.0)

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, device: str = "cpu") -> Predictor:
        """Build it and load its weights.

        Raises:
            PerrinError: the bundle is of another kind, or its weights do not fit.
        """
        if bundle.config["model"].get("kind") != KIND:
            raise PerrinError(f"expected a property network in {bundle.path}, given a bundle of another kind")
        try:
            model = cls(
                PredictorConfig.from_json(bundle.config["model"]),
                sha256=bundle.sha256,
                errors=bundle.config.get("training", {}).get("errors"),
            )
            model.load_state_dict(bundle.weights())
        except (TypeError, KeyError, ValueError, RuntimeError) as error:
            raise PerrinError(
                f"expected a property network in {bundle.path}, given a damaged or mixed one: get it again"
            ) from error
        return model.eval().requires_grad_(False).to(device)

    def predict(self, x: State, mask: Tensor) -> Tensor:
        """Properties of clean molecules, `[B, P]`, in their own units, float64."""
        y, _ = self(x, torch.zeros(len(mask), dtype=x[POSITIONS].dtype, device=mask.device), mask)
        mean = torch.tensor([r.mean for r in self.config.ranges], dtype=torch.float64, device=y.device)
        std = torch.tensor([r.std for r in self.config.ranges], dtype=torch.float64, device=y.device)
        return y.double() * std + mean

    @torch.no_grad()
    def of(self, molecules: Sequence[Molecule], *, batch: int = 256) -> Tensor:
        """Properties of molecules, `[M, P]`, in their own units, on the CPU; NaN for what has unknown elements.

        A molecule's row does not depend on the others: molecules of one width go together, in batches that are filled up
        (see `perrin.modalities.molecule.model`), on one thread of a CPU.
        """
        c = self.config.vocabulary
        out = torch.full((len(molecules), len(self.config.ranges)), torch.nan, dtype=torch.float64)
        fit = [i for i, m in enumerate(molecules) if set(m.numbers.tolist()) <= set(c.elements) and len(m)]
        device = next(self.parameters()).device
        with one_thread() if device.type == "cpu" else nullcontext():
            for unit in make_units([(i, len(molecules[i])) for i in fit], batch=batch):
                some = [molecules[unit.indices[k]] for k in filled(len(unit.indices))]
                x, types, mask = (torch.from_numpy(v).to(device) for v in padded(some, c, width=unit.width))
                found = self.predict({POSITIONS: x, TYPES: types}, mask)
                out[list(unit.indices)] = found[: len(unit.indices)].cpu()
        return out

    def log_density(self, intervals: Tensor, mask: Tensor) -> Callable[[State, Tensor], Tensor]:
        """`log p(lo ≤ y ≤ hi | x_t)` for `RegressorGuide`; a point is its density.

        Arguments:
            intervals: `[B, P, 2]` in standard units, ±inf for an open end.
            mask: `[B, N]`.
        """

        def value(x: State, t: Tensor) -> Tensor:
            y, scale = self(x, t, mask)
            s = scale.exp()
            inside = torch.zeros_like(y)  # log F(high) + log F(−low), F = sigmoid
            for k, sign in ((0, -1.0), (1, 1.0)):
                closed = torch.isfinite(intervals[..., k])
                end = (torch.where(closed, intervals[..., k], 0.0) - y) / s
                inside = inside + torch.where(closed, F.logsigmoid(sign * end), 0.0)
            # log(F(high) − F(low)) = log F(high) + log F(−low) + log(1 − e^{(low − high)/s})
            width = intervals[..., 1] - intervals[..., 0]
            finite = torch.isfinite(width) & (width > 0)
            band = torch.where(finite, torch.log(-torch.expm1(-torch.where(finite, width, 1.0) / s)), 0.0)
            return (inside + torch.where(width == 0, -scale, band)).sum(-1)

        return value


@dataclass(frozen=True, kw_only=True)
class PredictorLoss:
    """Mean absolute error in standard units; of a noisy network, the negative log likelihood of a logistic law.

    Arguments:
        clean: share of clean molecules in the batches of a noisy network.
        time_mean, time_std: of the times of the others, as in `LossConfig`; later than there, when candidates are chosen.
        jitter: standard deviation of noise on the positions of clean molecules, Å: geometries of a generator are not minima.
    """

    clean: float = 0.4
    time_mean: float = -0.6
    time_std: float = 1.6
    jitter: float = 0.0


class PredictorTask:
    """What `perrin.train.Trainer` trains: see `MoleculeTask`.

    Arguments:
        model: fresh.
        config: of the model.
        buckets: with values of `config.ranges`.
        batch, seed: as for `MoleculeTask`.
    """

    def __init__(
        self,
        model: Predictor,
        config: PredictorConfig,
        buckets: Sequence[Bucket],
        *,
        batch: int,
        seed: int,
        loss: PredictorLoss | None = None,
    ) -> None:
        if any(b.values is None or b.values.shape[1] != len(config.ranges) for b in buckets):
            raise ValueError(f"expected values of {len(config.ranges)} properties in every bucket")
        self.denoiser, self.settings, self.loss_config = model, config, loss or PredictorLoss()
        self.buckets = list(buckets)
        self.plan = BatchPlan([len(b) for b in buckets], batch, seed)
        self.process: Composite = molecule_process(config.vocabulary, bond_exponent=1.0, type_exponent=1.0)
        values = [b.values for b in buckets if b.values is not None]
        found = hashlib.sha256(b"".join(v.cpu().contiguous().numpy().tobytes() for v in values))
        self.config = {
            "model": config.to_json(),
            "loss": asdict(self.loss_config),
            "molecules": sum(map(len, buckets)),
            "data": found.hexdigest()[:16],
        }

    def to(self, device: torch.device) -> None:
        """Move the buckets."""
        self.buckets = [b.to(device) for b in self.buckets]

    def compile(self) -> None:
        """Compile the repeated block."""
        self.denoiser.trunk.compile_blocks()

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[Hashable, dict[str, Tensor]]:
        """See `perrin.train.Task`."""
        c = self.loss_config
        number, index = self.plan(step)
        bucket = self.buckets[number]
        x, mask = bucket.take(index.to(generator.device, non_blocking=True))
        assert bucket.values is not None
        z = standardise(bucket.values[index.to(bucket.values.device)], self.settings.ranges)
        t = torch.zeros(len(index), device=mask.device)
        if self.settings.noisy:
            u = stratified(torch.rand(len(index), generator=generator, device=mask.device))
            late = sample_times_edm(
                u, self.process.fields[POSITIONS].schedule, mean=c.time_mean, std=c.time_std, high=0.999
            )
            clean = torch.rand(len(index), generator=generator, device=mask.device) < c.clean
            t = torch.where(clean, 0.0, late)
            x = self.process.corrupt_state(x, t, GeneratorNoise(generator), layouts_for(mask))
        if c.jitter:
            noise = torch.randn(x[POSITIONS].shape, generator=generator, device=mask.device)
            x = {**x, POSITIONS: x[POSITIONS] + noise * (c.jitter / self.settings.vocabulary.position_scale)}
        batch = {"t": t, "mask": mask, "z": z, POSITIONS: x[POSITIONS], TYPES: x[TYPES]}
        return number, {k: v[rank::world] for k, v in batch.items()}

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `perrin.train.Task`."""
        y, scale = model({k: batch[k] for k in (POSITIONS, TYPES)}, batch["t"], batch["mask"])
        known = torch.isfinite(batch["z"])
        apart = torch.where(known, y - batch["z"], 0.0)
        error = apart.abs()
        if self.settings.noisy:
            a = error / scale.exp()
            error = torch.where(known, a + 2 * F.softplus(-a) + scale, 0.0)
        count = known.sum(0).clamp(min=1)
        names = [r.name for r in self.settings.ranges]
        parts = dict(zip(names, (apart.abs().sum(0) / count).unbind(0), strict=True))
        return {"loss": (error.sum(0) / count).mean(), **parts}


def mean_absolute_errors(
    model: Predictor, buckets: Sequence[Bucket], *, batch: int = 1024
) -> dict[str, tuple[float, float]]:
    """MAE of each property in its own unit, and its standard error, over molecules with known values."""
    device = next(model.parameters()).device
    rows = []
    with torch.no_grad():
        for bucket in buckets:
            assert bucket.values is not None
            own = bucket.to(device)
            for index in torch.arange(len(bucket), device=device).split(batch):
                x, mask = own.take(index)
                rows.append((model.predict(x, mask) - bucket.values.to(device)[index]).abs().cpu())
    errors = torch.cat(rows)
    out = {}
    for r, column in zip(model.config.ranges, errors.unbind(1), strict=True):
        known = column[torch.isfinite(column)]
        out[r.name] = (float(known.mean()), float(known.std() / len(known) ** 0.5))
    return out

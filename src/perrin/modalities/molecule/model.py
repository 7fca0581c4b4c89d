"""A trained molecule model: sizes, batches, sampling.

Molecules of one width, their number of atoms rounded up to even, are sampled together, and each batch is filled up to an
even number, at least four, by repeating its last molecule. So every matrix has an even number of rows, four or more, and
with that the CPU kernels that were tried (MKL, AVX-512) give a molecule the same bits whatever the batch. On GPUs results
agree to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from perrin.bundle import Bundle
from perrin.core import (
    SOLVERS,
    Categorical,
    Composite,
    CounterNoise,
    Dense,
    NetworkDenoiser,
    Padded,
    Plan,
    PlanError,
    Solver,
    State,
    plan_steps,
    sample,
    sample_seeds,
)
from perrin.core.grids import logit_normal, logit_normal_share, power
from perrin.core.replay import Mode
from perrin.errors import PerrinError
from perrin.modalities.molecule.fields import decode, layouts_for
from perrin.modalities.molecule.network import MoleculeConfig, build_denoiser
from perrin.modalities.molecule.structure import Molecule
from perrin.run.pool import one_thread

_QUANTUM, _LEAST = 2, 4


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How to sample; a bundle's `config.json` gives the defaults under `sampling`.

    Arguments:
        steps: network evaluations.
        solver: a name in `perrin.core.SOLVERS`.
        grid: `power`, times `t = u^exponent` for even u; or `logit-normal`, quantiles of a normal `logit t`.
        exponent: of the power grid; above 1 is finer near the data.
        mean, std: of the logit-normal grid.
        start: the first time; below 1 for solvers that need some signal there.
        decode: take the most probable category in the last step instead of drawing one.
        temperature: of types, charges and bonds; see `perrin.core.Categorical`.
        self_condition: hand a network that can use it its estimate before.
    """

    steps: int = 50
    solver: str = "sde-dpmpp-2m"
    grid: str = "power"
    exponent: float = 2.0
    mean: float = -1.4
    std: float = 1.6
    start: float = 1.0
    decode: bool = True
    temperature: float = 1.0
    self_condition: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise PerrinError(f"expected at least 1 step, given {self.steps}")
        if self.solver not in SOLVERS:
            raise PerrinError(f"expected a solver ({', '.join(SOLVERS)}), given {self.solver!r}")
        if not self.temperature > 0:
            raise PerrinError(f"expected a temperature above 0, given {self.temperature}")
        if self.grid not in ("power", "logit-normal"):
            raise PerrinError(f"expected the grid power or logit-normal, given {self.grid!r}")

    def plan(self, denoiser: NetworkDenoiser, solver: Solver | None = None) -> Plan:
        """The rows, by another solver than the named one if given.

        Raises `PerrinError` where solver, schedule and grid do not go together.
        """
        method = solver or SOLVERS[self.solver]
        times = partial(power, exponent=self.exponent, start=self.start)
        if self.grid == "logit-normal":
            times = partial(logit_normal, mean=self.mean, std=self.std, start=self.start)
        try:
            return plan_steps(denoiser.process, method, self.steps, grid=times, decode=self.decode)
        except PlanError as error:
            raise PerrinError(str(error)) from error

    def share(self, t: float) -> float:
        """The share of the steps from `t = 1` that lie below `t`."""
        if self.grid == "logit-normal":
            return logit_normal_share(t, mean=self.mean, std=self.std)
        return t ** (1 / self.exponent)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Unit:
    """Samples of one width that are run together: their numbers in the run, and their numbers of atoms."""

    indices: tuple[int, ...]
    atoms: tuple[int, ...]

    @property
    def width(self) -> int:
        """Padded number of atoms; a function of each sample's own size."""
        return _width(self.atoms[0])


def make_units(samples: Iterable[tuple[int, int]], *, batch: int) -> list[Unit]:
    """Pairs (number in the run, atoms) as units of at most `batch` samples of one width, large ones first."""
    groups: dict[int, list[tuple[int, int]]] = {}
    for number, atoms in samples:
        groups.setdefault(_width(atoms), []).append((number, atoms))
    out = []
    for width in sorted(groups, reverse=True):
        for k in range(0, len(groups[width]), batch):
            members = groups[width][k : k + batch]
            out.append(Unit(tuple(i for i, _ in members), tuple(n for _, n in members)))
    return out


def filled(count: int) -> list[int]:
    """Rows `0 … count − 1`, and the last one repeated up to an even number of at least four; see the module's text."""
    return [*range(count), *[count - 1] * max(-count % _QUANTUM, _LEAST - count)]


class MoleculeModel:
    """A denoiser, what it can express, and how it is sampled.

    Arguments:
        denoiser: in evaluation mode, on its device.
        config: the model's configuration.
        sampling: defaults.
        name: shown in files.
        sha256: of the bundle's weights.
        precision: `32-true`, or `bf16-mixed` for matrix products in bfloat16 (coordinates stay in float32).
        mode: how the network is run: `eager`, `compile` or `graph`; see `perrin.core.replay`.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        config: MoleculeConfig,
        sampling: SamplingOptions,
        *,
        name: str = "",
        sha256: str = "",
        precision: str = "32-true",
        mode: Mode = "eager",
    ) -> None:
        self.denoiser, self.config, self.sampling = denoiser, config, sampling
        self.name, self.sha256 = name, sha256
        self.precision, self.mode = precision, mode

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, device: str = "cpu") -> MoleculeModel:
        """Build the network of a bundle and load its weights.

        Raises:
            PerrinError: the configuration is not a molecule model's, or the weights do not fit it.
        """
        try:
            config = MoleculeConfig.from_json(bundle.config["model"])
            sampling = SamplingOptions(**bundle.config.get("sampling", {}))
            denoiser = build_denoiser(config)
        except (TypeError, KeyError, ValueError, RuntimeError) as error:
            raise PerrinError(
                f"expected a molecule model's configuration in {bundle.path}, given another: {error}"
            ) from error
        load_weights(denoiser, bundle.weights(), source=str(bundle.path))
        denoiser.eval().requires_grad_(False)
        return cls(denoiser.to(device), config, sampling, name=bundle.path.name, sha256=bundle.sha256)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    def options(self, **changes: Any) -> SamplingOptions:
        """The defaults with some values changed; `None` leaves a value as it is."""
        return replace(self.sampling, **{k: v for k, v in changes.items() if v is not None})

    def sizes(self, seed: int, count: int, atoms: tuple[int, int] | None = None, *, first: int = 0) -> Tensor:
        """Atoms of samples `first … first + count − 1`, `[count]`: drawn from the training data, each by its own seed.

        Arguments:
            atoms: the smallest and largest number allowed.
            first: the first sample.

        Raises:
            PerrinError: the training data have no molecule in the range.
        """
        low, high = atoms or (1, self.config.vocabulary.max_atoms)
        table = [(n, c) for n, c in self.config.vocabulary.size_counts if low <= n <= high]
        if not table:
            known = [n for n, _ in self.config.vocabulary.size_counts]
            raise PerrinError(f"expected {min(known)} to {max(known)} atoms, given {low} to {high}")
        weights = torch.tensor([float(c) for _, c in table], dtype=torch.float64)
        edges = torch.cumsum(weights / weights.sum(), 0)
        noise = CounterNoise(sample_seeds(seed, range(first, first + count)), dtype=torch.float64)
        u = noise.uniform(Dense(count), (1,), field="size", step=0)[:, 0]
        row = torch.bucketize(u, edges, right=True).clamp(max=len(table) - 1)
        return torch.tensor([n for n, _ in table])[row]

    def units(self, sizes: Tensor, *, batch: int, done: Sequence[int] = (), first: int = 0) -> list[Unit]:
        """Samples not yet done, in batches of one size, large ones first so that workers finish together.

        Arguments:
            sizes: atoms of the samples `first`, `first + 1`, ….
            batch: samples in a batch, at most.
            done: numbers of those to leave out, counted from `first`.
        """
        skip = set(done)
        samples = [(first + i, atoms) for i, atoms in enumerate(sizes.tolist()) if i not in skip]
        return make_units(samples, batch=batch)

    def run_unit(self, unit: Unit, seed: int, options: SamplingOptions) -> list[Molecule]:
        """Sample one unit. Sample i depends on (seed, i) and its number of atoms, on nothing else."""
        state, mask = self.run_state(unit, seed, options)
        names = [f"{self.name}-{seed}-{i}" for i in unit.indices]
        return [m.heavy_first() for m in decode(state, mask, self.config.vocabulary, names)]

    def run_state(self, unit: Unit, seed: int, options: SamplingOptions) -> tuple[State, Tensor]:
        """The same as tensors on the model's device: the state of the samples, and the mask of their atoms, `[b, n]`."""
        count = len(unit.indices)
        rows = filled(count)
        seeds = sample_seeds(seed, torch.tensor(unit.indices)[rows]).to(self.device)
        mask = Padded.from_sizes(torch.tensor(unit.atoms)[rows], unit.width).mask.to(self.device)
        plan = options.plan(self.denoiser)
        half = self.precision == "bf16-mixed"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            state: State = sample(
                self.denoiser,
                tempered(self.denoiser.process, options.temperature),
                plan,
                layouts_for(mask),
                CounterNoise(seeds),
                self_condition=options.self_condition and self.config.network.self_condition,
                mode=self.mode,
            )
        return {k: v[:count] for k, v in state.items()}, mask[:count]

    def sample(
        self, n: int, *, seed: int = 0, batch: int = 64, atoms: tuple[int, int] | None = None, **options: Any
    ) -> list[Molecule]:
        """Generate molecules in this process, on one thread of a CPU (`perrin sample` uses all cores).

        Arguments:
            n: how many.
            seed: of the run; molecule i is the same for every `n` and `batch`.
            batch: molecules run together.
            atoms: smallest and largest number of atoms.
            options: changes to `SamplingOptions`, such as `steps=20`.

        Raises:
            PerrinError: `n` below 1, an unknown solver, no such size.
        """
        out: list[Molecule | None] = [None] * check_count(n, "n")
        check_count(batch, "batch")
        for unit, molecules in self.iterate(
            self.units(self.sizes(seed, n, atoms), batch=batch), seed, self.options(**options)
        ):
            for i, molecule in zip(unit.indices, molecules, strict=True):
                out[i] = molecule
        return [m for m in out if m is not None]

    def iterate(
        self, units: Sequence[Unit], seed: int, options: SamplingOptions
    ) -> Iterator[tuple[Unit, list[Molecule]]]:
        """Units with their molecules, one after another."""
        for unit in units:
            with one_thread() if self.device.type == "cpu" else nullcontext():
                molecules = self.run_unit(unit, seed, options)
            yield unit, molecules


def tempered(process: Composite, temperature: float) -> Composite:
    """The same process with its categories drawn at a temperature."""
    fields = {
        k: replace(p, temperature=temperature) if isinstance(p, Categorical) else p
        for k, p in process.fields.items()
    }
    return replace(process, fields=fields)


def _width(atoms: int) -> int:
    return atoms + atoms % 2


def check_count(value: int, name: str) -> int:
    """The value, or a `PerrinError` unless it is at least 1."""
    if value < 1:
        raise PerrinError(f"expected {name} of at least 1, given {value}")
    return value


def load_weights(denoiser: NetworkDenoiser, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Copy weights in, or say in one line why they do not fit."""
    own = dict(denoiser.named_parameters())
    wrong = sorted(set(own) ^ set(weights)) or [k for k in own if own[k].shape != weights[k].shape]
    if wrong:
        raise PerrinError(
            f"expected the weights in {source} to fit its config.json, but {len(wrong)} differ ({wrong[0]}): "
            "the bundle is damaged or mixed from two, get it again"
        )
    with torch.no_grad():
        for k, p in own.items():
            p.copy_(weights[k])

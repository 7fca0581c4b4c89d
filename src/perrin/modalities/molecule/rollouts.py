"""Learning from the model's own successful paths.

In training a network sees noised data, in sampling the states that its own draws lead to, and there its small errors meet:
types and bonds that are each likely and together impossible. So part of the steps are trained on states of the sampler's own
paths: molecules are drawn with few and many steps, those whose graph is `sound` are kept, and of each a few states on
its way are shown to the network, with the estimate before as the sampler had it, and what came out of them as the answer.
Over paths that end well, the mean of the answer given the state is the estimate of the process that is conditioned on
ending well (Doob's transform), and among its states are those where a step went wrong and was put right. Compare DAgger
(Ross et al. 2011, arXiv:1011.0686) and reward-ranked fine-tuning (Dong et al. 2023, arXiv:2304.06767).

What is kept is a little narrower than what was drawn. Two things hold against that: the other steps, on the data; and what
is kept is weighted so that on average it holds as many atoms of each element, multiple bonds, rings and atoms in each of the
commoner surroundings as the data (`tilted`). Look at the variety of the samples, and not only at their validity, after
training with it.

Paths of few evaluations end in the right graph long before they end in a good geometry. Their ends are noised a little and
denoised in small steps (`RolloutLaw.polished`), and it is that geometry that the states on the way are to lead to.

To a network that takes given parts (`perrin.modalities.molecule.parts`), parts of molecules of the data are given in half
of the paths, but no whole graphs, of which nothing can go wrong here.

To a network that takes wishes for properties, paths are shown without any, unless there is a `label`, a property network
that says what came out. Then paths are drawn with wishes, and learnt from with wishes that what came out fulfils, whatever
was wished for (hindsight: Andrychowicz et al. 2017, arXiv:1707.01495), drawn as for data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from perrin.core import DenoisingLoss, GeneratorNoise, Layouts, NetworkDenoiser, State, sample
from perrin.core.replay import GraphedDenoiser
from perrin.errors import PerrinError
from perrin.modalities.molecule.balance import common_surroundings, features, pieces, tilted
from perrin.modalities.molecule.dataset import Bucket
from perrin.modalities.molecule.fields import BONDS, CHARGES, POSITIONS, TYPES, layouts_for
from perrin.modalities.molecule.metrics.tensors import sound
from perrin.modalities.molecule.model import SamplingOptions, tempered
from perrin.modalities.molecule.network import MoleculeConfig
from perrin.modalities.molecule.parts import FLAGS, corrected, pairs
from perrin.modalities.molecule.properties import standardise
from perrin.modalities.molecule.task import LossConfig, MoleculeTask, state_of

_SHARE = 0.7548776662466927
"""Spreads the steps that learn from paths evenly, and not in step with those of self-conditioning."""
_POLISH: dict[str, Any] = {"start": 0.06, "steps": 6}
"""From there on, a molecule gets its geometry, and keeps its graph (in 99 of 100)."""
_PARTS = ("x_0", "x_t", "previous")
"""Of a record: what came out, what the network saw, and its estimate before."""


@dataclass(frozen=True, kw_only=True)
class RolloutLaw:
    """How paths are made, and how much is learnt from them.

    Arguments:
        share: of the training steps that are on paths; the others are on data.
        evaluations: of the paths, one number after another, so that the network knows the states of few steps and of many.
        temperatures: pairs (temperature, below which time) of the categories, one after another.
        molecules: drawn at a time, of which the sound ones are kept.
        visits: states kept of each.
        every: training steps after which all paths are made anew, by the moving average of the weights.
        positions: weight of the positions' loss on paths; the model's own geometry is no better than itself.
        match: whether what is kept is weighted towards the contents of the data, for each number of evaluations apart.
        polished: paths of at most so many evaluations end in a geometry made in small steps; 0 is none.
    """

    share: float = 0.5
    evaluations: tuple[int, ...] = (16, 20, 25, 33, 50)
    temperatures: tuple[tuple[float, float], ...] = ((1.0, 1.0), (0.3, 0.4))
    molecules: int = 60_000
    visits: int = 5
    every: int = 3_500
    positions: float = 0.5
    match: bool = True
    polished: int = 12

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"expected a share of steps on paths between 0 and 1, given {self.share}")
        if min(self.molecules, self.visits, self.every, *self.evaluations) < 1:
            raise ValueError("expected counts of at least 1")


class RolloutTask(MoleculeTask):
    """`MoleculeTask` of which a share of the steps is on the model's own paths.

    Arguments:
        law: see `RolloutLaw`.
        sampling: solver and times of the paths; their number of evaluations and temperatures are the law's.
        half: whether paths are made in bfloat16, as they are trained in.
        label: says the properties of molecules (state, mask), `[B, P]`, in the data's units: see the module.

    Raises:
        PerrinError: the network has no self-conditioning, or takes no wishes and there is a label.
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
        law: RolloutLaw | None = None,
        sampling: SamplingOptions | None = None,
        half: bool = False,
        label: Callable[[State, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(denoiser, config, buckets, batch=batch, seed=seed, loss=loss)
        if label is not None and not self.ranges:
            raise PerrinError(
                "expected a network that takes wishes for paths with a label, given one without"
            )
        if not self.self_conditioned:
            raise PerrinError(
                "expected a network with self-conditioning to learn from its paths, given one without"
            )
        self.law, self.sampling, self.half = law or RolloutLaw(), sampling or SamplingOptions(), half
        self.label = label
        self.vocabulary = config.vocabulary
        self.config["rollouts"] = asdict(self.law)
        self.teacher = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        self.made = -1  # at which step the paths were made
        self.records: list[dict[str, Tensor]] = []
        self.weights: list[Tensor] = []
        self.accepted: dict[tuple[int, float], float] = {}
        weights = dict(self.criterion.field_weights)
        weights[POSITIONS] *= self.law.positions
        self.on_paths = DenoisingLoss(field_weights=weights)
        parts = self.loss_config.parts
        idle = parts.none + parts.graph
        self.parts_law = replace(parts, none=0.0, graph=0.0, fragment=parts.fragment + idle)
        self._data: dict[int, tuple[Tensor, Tensor]] = {}  # see `_wanted`
        self._given: dict[int, dict[str, Any]] = {}  # by bucket; a CUDA graph knows its condition by identity

    def to(self, device: torch.device) -> None:
        """Move the buckets and the network that makes the paths."""
        super().to(device)
        self.teacher.to(device)

    def compile(self) -> None:
        """Compile the repeated block of both."""
        super().compile()
        self.teacher.network.trunk.compile_blocks()  # type: ignore[union-attr, operator]

    def refresh(self, step: int, average: Mapping[str, Tensor]) -> None:
        """Make the paths anew when their time has come, with the average of the weights so far."""
        if step % self.law.every == 0 and step != self.made:
            self._collect(step, average)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs to make the same paths again."""
        made = {"step": torch.tensor(self.made)}
        return made | dict(self.teacher.named_parameters()) if self.made >= 0 else {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Make them again, from `tensors`."""
        if tensors:
            self._collect(int(tensors["step"]), tensors)

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[Hashable, dict[str, Tensor]]:
        """See `MoleculeTask`. The key of a batch of paths is (bucket, "paths")."""
        number, index = self.plan(step)
        held = self.records[number] if self.records else {}
        if (step * _SHARE) % 1.0 >= self.law.share or not held:
            return super().prepare(step, generator=generator, rank=rank, world=world)
        pick = torch.multinomial(self.weights[number], len(index), replacement=True, generator=generator)
        batch = {k: v[pick] for k, v in held.items() if k != "evaluations"}
        if "values" in batch:
            z = standardise(batch.pop("values"), self.ranges)
            batch["intervals"] = self.loss_config.intervals.draw(z, generator)
        return (number, "paths"), {k: _wide(v[rank::world]) for k, v in batch.items()}

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `MoleculeTask`."""
        assert isinstance(key, tuple)
        if key[1] != "paths":
            return super().loss(model, key, batch)
        x_t, told = self._inputs(batch)
        estimate = model(x_t, batch["t"], previous=state_of(batch, "previous", told["layouts"]), **told)
        return self._scored(estimate, batch, told, self.on_paths)

    @torch.no_grad()
    def _collect(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Replace the records by those of paths that are a function of the seed, the step and the weights."""
        for name, p in self.teacher.named_parameters():
            p.copy_(weights[name])
        device = self.buckets[0].mask.device
        generator = torch.Generator(device=device).manual_seed(self.plan.seed * 1_000_003 + step)
        fast = GraphedDenoiser(self.teacher) if device.type == "cuda" else self.teacher
        total = sum(map(len, self.buckets))
        self.records = []
        share: dict[tuple[int, float], list[Tensor]] = {}
        turn = 0
        for number, bucket in enumerate(self.buckets):
            rows: list[dict[str, Tensor]] = []
            size = min(self.plan.batch, len(bucket))
            for _ in range(max(1, round(self.law.molecules * len(bucket) / total / size))):
                evaluations = self.law.evaluations[turn % len(self.law.evaluations)]
                cold = self.law.temperatures[turn // len(self.law.evaluations) % len(self.law.temperatures)]
                turn += 1
                index = torch.randint(len(bucket), (size,), generator=generator, device=device)
                x_0, mask = bucket.take(index)
                told: dict[str, Any] = {}
                if self.with_parts:
                    told = self._parts(number, x_0, mask, turn % 2 == 0, generator)
                if self.label is not None and bucket.values is not None:
                    z = standardise(bucket.values[index], self.ranges)
                    told["intervals"] = self.loss_config.intervals.draw(z, generator)
                given = self._held(number, told) if told else None
                found, good = self._paths(fast, mask, evaluations, cold, generator, given)
                rows += found
                share.setdefault((evaluations, cold[0]), []).append(good)
            some = any(len(r["t"]) for r in rows)
            self.records.append({k: torch.cat([r[k] for r in rows]) for k in rows[0]} if some else {})
        self.weights = [self._weights(number, held) for number, held in enumerate(self.records)]
        self.accepted = {k: float(torch.cat(v).float().mean()) for k, v in share.items()}
        self.made = step

    def _polished(
        self, fast: Any, end: State, mask: Tensor, generator: torch.Generator, given: Mapping[str, Any] | None
    ) -> tuple[State, Tensor]:
        """The molecules with a geometry made in small steps, and which kept their graph, `[B]`."""
        plan = replace(self.sampling, temperature=1.0, tempered_below=1.0, **_POLISH).plan(self.teacher)
        noise, layouts, process = GeneratorNoise(generator), layouts_for(mask), self.teacher.process
        t = torch.full((len(mask),), plan.start, device=mask.device)
        out: State = sample(
            _Recorder(fast, set()),
            process,
            plan,
            layouts,
            noise,
            start=process.corrupt_state(end, t, noise, layouts),
            condition=given,
            self_condition=True,
        )
        atoms = (out[TYPES] == end[TYPES]) & (out[CHARGES] == end[CHARGES]) | ~mask
        return out, atoms.all(1) & ((out[BONDS] == end[BONDS]) | ~pairs(mask)).flatten(1).all(1)

    def _wanted(self, number: int) -> tuple[Tensor, Tensor]:
        """Of the data of one bucket, the common surroundings and the mean of the features; found once."""
        if number not in self._data:
            bucket = self.buckets[number]
            data = [(bucket.state, bucket.mask)]
            common = common_surroundings(pieces(data), self.vocabulary)
            every = [features(*part, self.vocabulary, common) for part in pieces(data)]
            self._data[number] = common, torch.cat(every).mean(0)
        return self._data[number]

    def _weights(self, number: int, held: Mapping[str, Tensor]) -> Tensor:
        """Of the records of one bucket."""
        if not held:
            return torch.ones(0)
        if not self.law.match:
            return torch.ones_like(held["t"])
        common, mean = self._wanted(number)
        state = {k: held[f"x_0.{k}"] for k in (TYPES, CHARGES, BONDS)}
        found = pieces([(state, held["mask"])])
        every = torch.cat([features(*part, self.vocabulary, common) for part in found])
        weights = torch.ones_like(held["t"])
        for evaluations in held[
            "evaluations"
        ].unique():  # each apart: what few have too little of, many may have too much of
            same = held["evaluations"] == evaluations
            weights[same] = tilted(every[same], mean)
        return weights

    def _parts(
        self, number: int, x_0: State, mask: Tensor, some: bool, generator: torch.Generator
    ) -> dict[str, Any]:
        """A condition with parts of molecules, or with none."""
        flags = {k: torch.zeros_like(mask) for k in FLAGS}
        if some:
            flags = self.parts_law.draw(
                x_0, mask, hydrogen=self.hydrogen, most=self.most[number], generator=generator
            )
        return {"known": x_0, **flags}

    def _held(self, number: int, told: dict[str, Any]) -> dict[str, Any]:
        """The condition in the same tensors for all batches of a bucket."""
        if number not in self._given:
            self._given[number] = copy.deepcopy(told)
        held = self._given[number]
        for k, v in told.items():
            for name, x in v.items() if isinstance(v, dict) else ():
                held[k][name].copy_(x)
            if isinstance(v, Tensor):
                held[k].copy_(v)
        return held

    def _paths(
        self,
        fast: Any,
        mask: Tensor,
        evaluations: int,
        cold: tuple[float, float],
        generator: torch.Generator,
        given: Mapping[str, Any] | None,
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Records of the sound ones of one batch, and which are sound, `[B]`."""
        options = SamplingOptions(
            **{
                **asdict(self.sampling),
                "steps": evaluations,
                "temperature": cold[0],
                "tempered_below": cold[1],
            }
        )
        plan = options.plan(self.teacher)
        turns = torch.randperm(evaluations - 1, generator=generator, device=mask.device)[: self.law.visits]
        recorder = _Recorder(fast, {1 + k for k in turns.tolist()})  # the first has no estimate before
        autocast = torch.autocast(mask.device.type, torch.bfloat16) if self.half else nullcontext()
        with autocast:
            end: State = sample(
                recorder,
                tempered(self.teacher.process, *cold),
                plan,
                layouts_for(mask),
                GeneratorNoise(generator),
                condition=given,
                self_condition=True,
            )
            good = sound(end, mask, self.vocabulary)
            if evaluations <= self.law.polished:
                end, kept = self._polished(fast, end, mask, generator, given)
                good &= kept
        same = {
            "mask": mask[good],
            "evaluations": torch.full_like(mask[good, 0], evaluations, dtype=torch.int16),
        }
        if self.with_parts and given:
            same |= {k: given[k][good] for k in FLAGS}
        if self.label is not None:
            same["values"] = self.label(end, mask)[good]
        rows = [
            {**same, "t": t[good]}
            | {
                f"{part}.{k}": _narrow(k, v)[good]
                for part, state in zip(_PARTS, (end, x, previous), strict=True)
                for k, v in state.items()
            }
            for x, t, previous in recorder.seen
        ]
        return rows, good


class _Recorder:
    """A denoiser that keeps what it was given in some of its calls, and whose estimates have what is known."""

    passes = 1

    def __init__(self, denoiser: Any, turns: set[int]) -> None:
        self.denoiser, self.turns, self.turn = denoiser, turns, 0
        self.seen: list[tuple[State, Tensor, State]] = []

    def __call__(
        self, x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
    ) -> State:
        if self.turn in self.turns and previous is not None:
            self.seen.append((x, t, previous))
        self.turn += 1
        out: State = self.denoiser(x, t, condition=condition, layouts=layouts, previous=previous)
        return corrected(out, condition) if condition and "known" in condition else out


def _narrow(name: str, x: Tensor) -> Tensor:
    """Categories as int8 and logits in half precision: there are hundreds of thousands."""
    if name == POSITIONS:
        return x.float()
    return x.half() if x.is_floating_point() else x.to(torch.int8)


def _wide(x: Tensor) -> Tensor:
    if x.dtype == torch.int8:
        return x.long()
    return x.float() if x.dtype == torch.float16 else x

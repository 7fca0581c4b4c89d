"""Few-step students on a mixture in the plane: paths, consistency distillation and distribution matching.

    python benchmarks/distill.py teacher
    python benchmarks/distill.py paths --updates 1000
    python benchmarks/distill.py consistency --updates 4000
    python benchmarks/distill.py matching --updates 3000

Prints the energy distance of 6000 samples to 6000 draws of the data, for 1, 2 and 4 evaluations. The table in
`perrin.core.distill` was made by these commands on one thread of a CPU.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from perrin.core import (
    DDIM,
    Composite,
    CounterNoise,
    Denoiser,
    Dense,
    EDMHead,
    Gaussian,
    GeneratorNoise,
    Heun,
    NetworkDenoiser,
    RectifiedFlow,
    State,
    UniPC,
    make_plan,
    plan_steps,
    sample,
    sample_seeds,
)
from perrin.core.distill import ConsistencyLoss, PathLoss, few_step, paths, with_times
from perrin.core.grids import power
from perrin.core.testing import GaussianMixture

BATCH, COUNT = 512, 6000
DATA, SCHEDULE = GaussianMixture.example(torch.float32), RectifiedFlow()
PROCESS = Composite(fields={"x": Gaussian(features=(2,), schedule=SCHEDULE)})
TEACHER, LAYOUTS = DATA.denoiser(SCHEDULE), {"x": Dense(BATCH)}
TIMES = ([0.999], [0.999, 0.6], [0.999, 0.8, 0.5, 0.25])


class Net(nn.Module):
    """Three layers of 128 on the state and eight functions of time."""

    def __init__(self) -> None:
        super().__init__()
        sizes, layers = (10, 128, 128, 128), []
        for i in range(3):
            layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(128, 2))

    def forward(self, x: State, t: Tensor, **_: Any) -> State:
        waves = [torch.cos(k * math.pi * t) for k in range(1, 5)]
        clock = torch.stack((*waves, t**0.25, t, t**4, torch.ones_like(t)), dim=1)
        return {"x": self.layers(torch.cat((x["x"], clock), dim=1))}


def network() -> NetworkDenoiser:
    return NetworkDenoiser(Net(), PROCESS, {"x": EDMHead(sigma_data=1.2)})


def energy_distance(x: Tensor) -> float:
    y = DATA.sample(COUNT, torch.Generator().manual_seed(5))
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def report(student: Denoiser, updates: int, began: float) -> None:
    noise, layouts = CounterNoise(sample_seeds(0, range(COUNT))), {"x": Dense(COUNT)}
    found = [energy_distance(few_step(student, PROCESS, t, layouts, noise)["x"].detach()) for t in TIMES]
    cells = "  ".join(f"{v:.4f}" for v in found)
    print(f"{updates:6d} updates, {time.time() - began:4.0f} s: {cells}", flush=True)


def cooled(optimizer: torch.optim.Optimizer, rate: float, done: float) -> None:
    """The rate is constant for the first half and falls to zero in the second."""
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1.0, 2 * (1 - done))


def learn(student: nn.Module, target: nn.Module, optimizer: torch.optim.Optimizer, value: Tensor) -> None:
    """One update of the student, and of the average that follows it."""
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    with torch.no_grad():
        for a, b in zip(target.parameters(), student.parameters(), strict=True):
            a.lerp_(b, 0.05)


def consistency(updates: int) -> None:
    generator, began = torch.Generator().manual_seed(1), time.time()
    student, noise, n = network(), GeneratorNoise(generator), 32
    target = copy.deepcopy(student)
    times = 0.999 * torch.linspace(0, 1, n + 1) ** 1.5
    loss = ConsistencyLoss(teacher=TEACHER, process=PROCESS, times=times)
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    for i in range(updates):
        cooled(optimizer, 1e-3, i / updates)
        index = torch.randint(1, n + 1, (BATCH,), generator=generator)
        x_0 = {"x": DATA.sample(BATCH, generator)}
        value = loss(student, target, x_0, index, noise, LAYOUTS).mean()
        learn(student, target, optimizer, value)
        if (i + 1) % max(1, updates // 4) == 0:
            report(target, i + 1, began)


def by_paths(updates: int) -> None:
    """20,000 paths of UniPC on 38 times; the student's own six times are among them."""
    generator, began, count = torch.Generator().manual_seed(1), time.time(), 20_000
    times = sorted({t for row in TIMES for t in row}, reverse=True)
    plan = make_plan(PROCESS, UniPC(3), with_times(power(32, exponent=1.5, start=0.999), times, apart=0.0))
    noise = CounterNoise(sample_seeds(3, range(count)))
    found = paths(TEACHER, PROCESS, plan, times, {"x": Dense(count)}, noise)["x"]
    print(f"paths: {plan.nfe} evaluations of the teacher each, {time.time() - began:.0f} s")
    student, loss, levels = network(), PathLoss(), torch.tensor(times)
    target, optimizer = copy.deepcopy(student), torch.optim.Adam(student.parameters(), 2e-3)
    for i in range(updates):
        cooled(optimizer, 2e-3, i / updates)
        level = torch.randint(0, len(times), (BATCH,), generator=generator)
        row = torch.randint(0, count, (BATCH,), generator=generator)
        x_t, end = {"x": found[level, row]}, {"x": found[-1, row]}
        value = loss(student, x_t, levels[level], end, LAYOUTS).mean()
        learn(student, target, optimizer, value)
        if (i + 1) % max(1, updates // 4) == 0:
            report(target, i + 1, began)


def matching(updates: int) -> None:
    """`∇ = (D_fake − D_teacher) / |f − D_teacher|` at a random noise level; `D_fake` learns the student's outputs."""
    generator, began = torch.Generator().manual_seed(1), time.time()
    student, fake, noise = network(), network(), GeneratorNoise(generator)
    for model in (student, fake):  # both start as the teacher
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(updates // 8):
            t = torch.rand(BATCH, generator=generator) * 0.998 + 0.001
            x = PROCESS.corrupt_state({"x": DATA.sample(BATCH, generator)}, t, noise, LAYOUTS)
            wanted, made = (d(x, t, layouts=LAYOUTS)["x"] for d in (TEACHER, model))
            optimizer.zero_grad()
            (made - wanted).square().mean().backward()
            optimizer.step()
    of_student = torch.optim.Adam(student.parameters(), 5e-4, betas=(0.0, 0.99))
    of_fake = torch.optim.Adam(fake.parameters(), 1e-3, betas=(0.0, 0.99))
    starts = torch.tensor(TIMES[-1])
    for i in range(updates):
        t = starts[torch.randint(0, len(starts), (BATCH,), generator=generator)]
        x = PROCESS.corrupt_state({"x": DATA.sample(BATCH, generator)}, t, noise, LAYOUTS)
        made = student(x, t, layouts=LAYOUTS)["x"]
        clean = made.detach()
        for _ in range(2):
            tau = torch.rand(BATCH, generator=generator) * 0.97 + 0.02
            noisy = PROCESS.corrupt_state({"x": clean}, tau, noise, LAYOUTS)
            error = (fake(noisy, tau, layouts=LAYOUTS)["x"] - clean).square().mean(dim=1)
            of_fake.zero_grad()
            (error * (1 / tau**2).clamp(max=25)).mean().backward()
            of_fake.step()
        cooled(of_student, 5e-4, i / updates)
        tau = torch.rand(BATCH, generator=generator) * 0.97 + 0.02
        with torch.no_grad():
            noisy = PROCESS.corrupt_state({"x": clean}, tau, noise, LAYOUTS)
            real, wrong = (d(noisy, tau, layouts=LAYOUTS)["x"] for d in (TEACHER, fake))
            size = (clean - real).square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-3)
            aim = clean - (wrong - real) / size
        of_student.zero_grad()
        (0.5 * (made - aim).square().mean()).backward()
        of_student.step()
        if (i + 1) % max(1, updates // 4) == 0:
            report(student, i + 1, began)


def teacher(_: int) -> None:
    again = DATA.sample(COUNT, torch.Generator().manual_seed(6))
    print(f"two draws of the data: {energy_distance(again):.4f}")
    noise = CounterNoise(sample_seeds(0, range(COUNT)))
    for solver in (DDIM(), Heun()):
        for nfe in (1, 2, 4, 8, 16, 32):
            plan = plan_steps(PROCESS, solver, nfe, start=0.999)
            x = sample(TEACHER, PROCESS, plan, {"x": Dense(COUNT)}, noise)["x"]
            print(f"{type(solver).__name__} {nfe:3d}: {energy_distance(x):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    runs = {"teacher": teacher, "paths": by_paths, "consistency": consistency, "matching": matching}
    parser.add_argument("method", choices=list(runs))
    parser.add_argument("--updates", type=int, default=4000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    runs[options.method](options.updates)


if __name__ == "__main__":
    main()

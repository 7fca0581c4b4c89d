"""Tables for the documentation, made by asking the code: every solver is planned for every process, and refusals are shown.

`python -m perrin.core.tables > docs/solvers.md` writes the page; a test checks that it is up to date.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from perrin.core.grids import uniform
from perrin.core.plan import PlanError, make_plan, plan_steps
from perrin.core.processes import Categorical, Composite, Gaussian, Process, Rotation, Torus
from perrin.core.schedules import EDM, SCHEDULES, Power
from perrin.core.solvers import DDIM, SOLVERS, Euler, Heun, Restart, Solver, TimeTravel

_START = 0.99


def processes() -> dict[str, Process]:
    """One process of each kind."""
    return {
        "Gaussian": Gaussian(features=(2,)),
        "Categorical": Categorical.uniform(3),
        "Torus": Torus(features=(1,)),
        "Rotation": Rotation(),
    }


def verdict(solver: Solver, process: Process) -> str:
    """What a plan makes of this pair: the order that the field is moved with, or why it is refused."""
    try:
        plan = make_plan(Composite(fields={"x": process}), solver, uniform(8, start=_START, stop=0.05))
    except (PlanError, TypeError, ValueError) as error:
        return f"refused: {error}".replace("|", "\\|")
    return "first order" if plan.notes else f"order {solver.order}"


def solver_table() -> str:
    """Solvers × processes as a Markdown table."""
    kinds = processes()
    lines = [
        "| name | solver | noise | evaluations for n intervals to 0 | " + " | ".join(kinds) + " |",
        "| --- " * (4 + len(kinds)) + "|",
    ]
    for name, solver in SOLVERS.items():
        cost = {n: make_plan(kinds["Gaussian"], solver, uniform(n, start=_START)).nfe for n in (8, 12)}
        slope = (cost[12] - cost[8]) // 4
        offset = cost[8] - 8 * slope
        shown = f"{slope if slope > 1 else ''}n" + (
            f" {'+' if offset > 0 else '−'} {abs(offset)}" if offset else ""
        )
        cells = [verdict(solver, process) for process in kinds.values()]
        kind = "yes" if solver.stochastic else "no"
        lines.append(
            f"| `{name}` | `{type(solver).__name__}` | {kind} | {shown} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def refusals() -> str:
    """What is refused, with the message that says why: known pairs, and any solver that cannot start from t = 1."""
    flow = Gaussian(features=(1,))
    root = Gaussian(features=(1,), schedule=Power(exponent=0.5))
    both = Composite(fields={"x": Gaussian(features=(1,), schedule=EDM()), "y": flow})
    asked: list[tuple[str, Callable[[], object]]] = [
        ("a start later than the schedule's last time", lambda: make_plan(flow, DDIM(), [1.5, 0.5, 0.0])),
        ("`Euler` where the rate is infinite", lambda: make_plan(root, Euler(), uniform(4))),
        (
            "churn past the end of another field's schedule",
            lambda: make_plan(both, Heun(churn=10.0), uniform(4)),
        ),
        (
            "a budget for two evaluations inside time travel",
            lambda: plan_steps(flow, TimeTravel(solver=Heun()), 8),
        ),
        ("the same inside restart", lambda: plan_steps(flow, Restart(solver=Heun()), 16)),
    ]
    for name, solver in SOLVERS.items():
        for key, schedule in SCHEDULES.items():
            field = Gaussian(features=(1,), schedule=schedule())
            asked.append((f"`{name}` with `{key}` from t = 1", partial(make_plan, field, solver, uniform(8))))
    lines = ["| asked | refused because |", "| --- | --- |"]
    for what, call in asked:
        try:
            call()
        except PlanError as error:
            lines.append(f"| {what} | " + str(error).replace("|", "\\|") + " |")
    return "\n".join(lines)


PAGE = """# Solvers

This page is made by `python -m perrin.core.tables > docs/solvers.md`, which plans every solver for every process.

A process that only knows first-order moves takes the same times at first order, and `repr(plan)` says so. The order is the
one reached on smooth problems with steps even in λ, away from pure noise and clean data, where rows are first order. For
solvers that draw noise it is the weak order on Gaussian data; `consistency` is for distilled models and does not converge
with a mean estimate. Three is the highest because the first row of a multistep method is corrected to third order and no
further: a better start costs more evaluations.

{processes}

`steps` asked through `plan_steps` is always the number of evaluations of the denoiser that are made and reported
(`plan.nfe`): a method of two evaluations for each interval takes the first one with one evaluation where the budget is even,
and solvers that insert rows make fewer of them. A guide makes more than one network pass in an evaluation;
`network_passes` says how many in all.

## What is refused

A plan that cannot be run is refused when it is made. A solver that the table does not name here starts from t = 1 with every
schedule.

{refused}

The adaptive solver, `perrin.core.solvers.adaptive.sample_adaptive`, has no table: it takes Gaussian fields only, and reports
the evaluations that it made.
"""


def page() -> str:
    """The whole page."""
    return PAGE.format(processes=solver_table(), refused=refusals())


if __name__ == "__main__":
    print(page(), end="")

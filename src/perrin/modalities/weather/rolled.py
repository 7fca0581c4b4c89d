"""What `perrin forecast`, `perrin assimilate` and `perrin downscale` end with."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import xarray as xr

from perrin.modalities.weather.forecast import Ensemble, Rollout, rollout
from perrin.run.outputs import record_path
from perrin.run.record import record, write_record


def rolled(
    verb: str,
    a: Namespace,
    model: Ensemble,
    starts: Sequence[Any],
    options: Rollout,
    words: dict[str, str],
    template: xr.Dataset,
) -> str:
    """Roll out, write the record beside it, and say how long it took.

    Arguments:
        verb, a: the command.
        model, starts, options, template: see `perrin.modalities.weather.forecast.rollout`.
        words: attributes of the file, but for its source, which is the bundle.
    """
    begin = time.perf_counter()
    source = f"perrin, bundle {a.target} ({model.sha256[:12]}), seed {a.seed}"
    there = rollout(model, starts, options, a.out, words | {"source": source}, template)
    seconds = time.perf_counter() - begin
    write_record(
        record_path(a.out),
        record(
            verb,
            a,
            bundle={"path": a.target, "sha256": model.sha256},
            result={"members": a.members, "starts": len(starts), "seconds": round(seconds, 2)},
        ),
    )
    return f"{seconds:.1f} s" + (f", {there} from unfinished work" if there else "")

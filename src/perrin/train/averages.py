"""Power-function averages on disk: the run's own, for an exact resume, and snapshots, for averages of any width later on.

With `TrainOptions.ema_std` the trainer keeps averages of these relative widths (`perrin.core.ema`) beside the exponential
one, and writes a snapshot of each at every `save_every` steps and at the end. Then, for a width between or near them,

    weights = ema.reconstruct(snapshots("runs/a"), width=0.07)
    ema.load(denoiser, weights)
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from perrin.core.ema import PowerAverage, Snapshot
from perrin.errors import PerrinError
from perrin.run.atomic import write_tensors

FOLDER = "averages"


def tensors(average: PowerAverage) -> dict[str, Tensor]:
    """What a checkpoint holds of the averages: `power.<width>.<parameter>`."""
    return {
        f"power.{w:g}.{k}": v
        for w, one in zip(average.widths, average.averages, strict=True)
        for k, v in one.items()
    }


def restore(average: PowerAverage, held: dict[str, Tensor], folder: Path) -> None:
    """Copy them back.

    Raises:
        PerrinError: the run was started with other widths, or with none.
    """
    with torch.no_grad():
        for name, v in tensors(average).items():
            if name not in held:
                raise PerrinError(
                    f"expected averages of width {', '.join(f'{w:g}' for w in average.widths)} in {folder}, where the run "
                    "was started with others or none: go on with its own --ema-std, or choose another --out"
                )
            v.copy_(held[name])


def write_snapshot(folder: Path, average: PowerAverage, step: int) -> None:
    """`averages/<step>.safetensors`."""
    held = {k: v.detach().cpu().contiguous() for k, v in tensors(average).items()}
    metadata = {"step": str(step), "widths": json.dumps(average.widths)}
    write_tensors(folder / FOLDER / f"{step:09d}.safetensors", held, metadata)


def snapshots(folder: str | Path) -> list[Snapshot]:
    """Every snapshot of a run, oldest first.

    Raises:
        PerrinError: there are none.
    """
    from safetensors import safe_open

    out = []
    for path in sorted((Path(folder) / FOLDER).glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            for width in json.loads(metadata["widths"]):
                prefix = f"power.{width:g}."
                names = [k for k in file.keys() if k.startswith(prefix)]  # noqa: SIM118
                weights = {k.removeprefix(prefix): file.get_tensor(k) for k in names}
                out.append(Snapshot(step=int(metadata["step"]), width=width, weights=weights))
    if not out:
        raise PerrinError(
            f"expected snapshots of averages in {folder}, found none: train with --ema-std 0.05,0.10"
        )
    return out


def averages(model: nn.Module, widths: tuple[float, ...]) -> PowerAverage | None:
    """Averages of the model's parameters, or `None` for no widths."""
    return PowerAverage(dict(model.named_parameters()), widths) if widths else None

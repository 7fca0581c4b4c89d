"""`perrin train particle/…`: a model from the user's data, resumable, with a budget in steps or minutes."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from perrin.errors import PerrinError, check_counts
from perrin.modalities.particle import PRESETS
from perrin.run.device import choose_device


def train(a: Namespace) -> None:
    """See the module's text."""
    import torch

    from perrin.bundle import load_weights, read_bundle, write_bundle
    from perrin.modalities import find_bundle
    from perrin.modalities.particle.staged import SamplingOptions
    from perrin.run.record import record, write_record
    from perrin.train import Trainer, TrainOptions

    preset = a.target.partition("/")[2]
    if preset not in PRESETS:
        raise PerrinError(f"expected particle/{', particle/'.join(PRESETS)}, given {a.target!r}")
    counts = {k: getattr(a, k) for k in ("steps", "batch", "threads", "log_every", "save_every", "limit")}
    check_counts(**counts)
    if not a.data:
        raise PerrinError(f"expected --data with what to train on, given none: {_HELP[preset]}")
    if a.threads:
        torch.set_num_threads(a.threads)
    device = choose_device(a.device)
    cuda = device.startswith("cuda")
    steps = a.steps or (10**9 if a.minutes else 5000)
    optimizer = a.optimizer or ("muon" if cuda else "adamw")
    options = TrainOptions(
        steps=steps,
        minutes=a.minutes,
        batch=a.batch or (512 if cuda else 64),
        optimizer=optimizer,
        lr=a.lr if a.lr is not None else (2e-4 if a.start else 1e-3),
        warmup=min(400, max(1, steps // 10)),
        cooldown=0.5,
        ema=0.999,
        seed=a.seed,
        precision="bf16-mixed" if cuda else "32-true",
        log_every=a.log_every or (50 if cuda else 10),
        save_every=a.save_every,
        compile=cuda and preset not in FIELDS,
        cuda_graphs=cuda,
    )
    base = read_bundle(find_bundle(a.start)) if a.start else None
    torch.manual_seed(a.seed)
    model, task, config, count = make(
        preset, a.data, a.limit, base.config["model"] if base else None, batch=options.batch, seed=a.seed
    )
    if base is not None:
        load_weights(model, base.weights(), source=str(base.path))
    out = Path(a.out)
    if out.exists() and not out.is_dir():
        raise PerrinError(f"expected a folder for --out, given the file {out}: choose another name")
    content = record("train", a, options=options.to_json())
    trainer = Trainer(task, options, out, accelerator="cuda" if cuda else "cpu", devices=a.devices)
    trainer.check()
    write_record(out / "run.json", content)
    last = trainer.run()
    if trainer.fabric.global_rank:
        return
    sampling = SamplingOptions(**base.config.get("sampling", {})) if base else SamplingOptions()
    names = ", ".join(Path(word.partition("=")[2] or word).name for word in a.data.split(","))
    card = (
        f"# {out.name}\n\nA model of {preset} trained on {count} samples of {names}"
        f"{', from ' + a.start if a.start else ''}.\n\nMetrics: none measured yet; `perrin evaluate` what it samples.\n"
    )
    write_bundle(
        out,
        modality="particle",
        model=config,
        weights=dict(model.named_parameters()),
        card=card,
        sampling=sampling.to_json(),
        training={"options": options.to_json(), "last": last},
    )
    print(f"bundle in {out}")
    print(f"last loss {last.get('loss', float('nan')):.4f}", file=sys.stderr)


FIELDS = {"kolmogorov": "vorticity", "nbody": "density", "plasma": "phase_space"}
"""Presets that the model of the next state is trained for, and their fields."""
_HELP = {
    "showers": "--data showers.h5 in CaloChallenge's layout",
    "jets": "--data gluon=g.npz,top=t.h5 with a file for each class",
    "kolmogorov": "--data flows.h5 made by perrin data particle/kolmogorov",
    "nbody": "--data densities.h5 made by perrin data particle/nbody",
    "plasma": "--data plasmas.h5 made by perrin data particle/plasma",
}


def make(
    preset: str, data: str, limit: int | None, old: Any, *, batch: int, seed: int
) -> tuple[Any, Any, dict[str, Any], int]:
    """Model, task, configuration for the bundle, and the number of samples.

    Arguments:
        old: a bundle's configuration to go on from, or `None`.

    Raises:
        PerrinError: data that cannot be used.
    """
    if old is not None:
        kind = old.get("kind")
        given = old.get("field", "vorticity") if kind == "flow" else kind
        if given != FIELDS.get(preset, preset):
            raise PerrinError(f"expected --from with a model of {preset}, given one of {given}")
    if preset == "showers":
        from perrin.modalities.particle.showers import model as showers
        from perrin.modalities.particle.showers.files import read_showers
        from perrin.modalities.particle.showers.network import ShowerConfig, build

        found = read_showers(data, limit)
        if len(found) < 2:
            raise PerrinError(f"expected at least 2 showers in {data}, given {len(found)}")
        config = ShowerConfig.from_json(old) if old else showers.shower_config(found)
        model = build(config)
        task = showers.make_task(model, config, showers.training_data(found), batch=batch, seed=seed)
        return model, task, {"kind": "showers", **config.to_json()}, len(found)
    if preset == "jets":
        from perrin.modalities.particle.jets import model as jets
        from perrin.modalities.particle.jets.files import CLASSES, read_jets
        from perrin.modalities.particle.jets.network import JetConfig
        from perrin.modalities.particle.jets.network import build as build_jets

        sets = {}
        for word in data.split(","):
            kind, _, path = word.partition("=")
            if kind not in CLASSES or not path:
                raise PerrinError(f"expected --data CLASS=FILE,… with {', '.join(CLASSES)}, given {word!r}")
            sets[kind] = read_jets(path, limit)
            if len(sets[kind]) < 2:
                raise PerrinError(f"expected at least 2 jets in {path}, given {len(sets[kind])}")
        jet_config = JetConfig.from_json(old) if old else jets.jet_config(sets)
        if set(jet_config.classes) != set(sets):
            raise PerrinError(f"expected data of {', '.join(jet_config.classes)}, given {', '.join(sets)}")
        jet_model = build_jets(jet_config)
        rows = jets.training_data(sets, jet_config)
        jet_task = jets.make_task(jet_model, jet_config, rows, batch=batch, seed=seed)
        return jet_model, jet_task, {"kind": "jets", **jet_config.to_json()}, sum(map(len, sets.values()))
    from perrin.modalities.particle.flow import model as flows
    from perrin.modalities.particle.flow.files import Trajectories, read_flow

    flow = read_flow(data)
    if flow.name != FIELDS[preset]:
        raise PerrinError(f"expected {FIELDS[preset]} in {data} for particle/{preset}, given {flow.name}")
    flow = Trajectories(flow.values[:limit], flow.interval, flow.words, flow.name, flow.begin)
    # those of bodies are for a CPU: the solver takes milliseconds
    sizes = (
        None if preset == "kolmogorov" else flows.NetworkConfig(widths=(32, 64, 96), blocks=1, condition=96)
    )
    try:
        flow_config = flows.FlowConfig.from_json(old) if old else flows.flow_config(flow, sizes)
    except ValueError as error:
        raise PerrinError(f"{error}: make data on another grid") from error
    if flow_config.size != flow.values.shape[-1]:
        raise PerrinError(f"expected fields of {flow_config.size} points, given {flow.values.shape[-1]}")
    denoiser = flows.build(flow_config)
    flow_task = flows.FlowTask(denoiser, flow_config, flow, batch=batch, seed=seed)
    return denoiser, flow_task, {"kind": "flow", **flow_config.to_json()}, flow_task.config["samples"]

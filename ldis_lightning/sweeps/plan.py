"""From the `sweep:` block of a config to the runs that it asks for, all of them checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint

from ldis_lightning.callbacks import Previews, ResultRows, ResultTable
from ldis_lightning.errors import UserError
from ldis_lightning.lightning_cli import LDISParser
from ldis_lightning.parse_errors import import_object
from ldis_lightning.resume import CHECKPOINTS
from ldis_lightning.sweeps.grid import Point, Sweep, baseline_of, expand
from ldis_lightning.sweeps.metrics import callbacks_of, check_metric
from ldis_lightning.sweeps.overrides import with_values
from ldis_lightning.sweeps.runs import Loader, Run, run_text

TRAINING_KEYS = (
    *("trainer.max_steps", "trainer.min_steps", "trainer.max_epochs", "trainer.min_epochs", "trainer.max_time"),
    *("trainer.overfit_batches", "trainer.limit_train_batches", "trainer.accumulate_grad_batches"),
    *("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm"),
    *("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "data.val_episodes"),
    *("model.class_path", "model.optimizer", "model.schedule", "model.losses", "model.dropout"),
    *("model.fine_tuning", "model.denoiser", "model.instruction.encoder"),
    *("data.train", "data.mixing", "data.batch_size", "data.batches_per_epoch", "data.fewest_references"),
    *("data.geometry", "data.augmentation", "data.window_shards", "data.damage"),
)
"""Keys that a test does not use, or cannot change in what was trained."""


@dataclass(frozen=True)
class Plan:
    """All that a sweep will run.

    Attributes:
        configs: the complete config of each point, in the order of `points`.
        trainings: the shared ones, one a seed; empty where every run trains.
        runs: of all points at all seeds, seed by seed.
        out: the folder of the sweep.
        parser: of `ldis fit`.
    """

    sweep: Sweep
    points: list[Point]
    configs: list[dict[str, Any]]
    baseline: Point | None
    trainings: list[Run]
    runs: list[Run]
    out: Path
    parser: LDISParser

    def config_of(self, run: Run) -> dict[str, Any]:
        """The complete config of a run; of a shared training the first point's, as far as it is trained."""
        return self.configs[self.points.index(run.point) if run.point else 0]

    def summary(self) -> dict[str, Any]:
        """What `sweep.yaml` holds."""
        return {
            "metric": self.sweep.metric,
            "mode": self.sweep.mode,
            "baseline": self.baseline.slug if self.baseline else None,
            "seeds": list(self.sweep.seeds),
            "shared_training": self.sweep.shared_training,
            "points": [
                {"slug": point.slug, "labels": dict(point.labels), "values": point.values} for point in self.points
            ],
        }


def plan_sweep(parser: LDISParser, base: Namespace, sweep: Sweep, out: Path) -> Plan:
    """Expand the grid, complete and check the config of every point, and lay out the runs.

    Args:
        parser: the parser of `ldis fit`.
        base: the sweep's config as it read it.
        out: the sweep's folder.

    Raises:
        UserError: the block makes no sense, a point's config has an unknown key or a wrong value, two points are the
            same, or a test of one does not log the metric.
    """
    points = expand(sweep)
    baseline = baseline_of(sweep, points)
    if sweep.shared_training:
        _check_shared(points)
    config = _base_config(parser, base)
    configs = [_completed(parser, with_values(config, point.values), point) for point in points]
    _check_different(points, configs)
    for point, own in zip(points, configs, strict=True):
        _prefixed(point, lambda own=own: check_metric(sweep.metric, own))
    trainings = _trainings(_completed(parser, config, None), sweep, out) if sweep.shared_training else []
    runs = plan_runs(points, configs, sweep, out)
    return Plan(sweep, points, configs, baseline, trainings, runs, out, parser)


def plan_runs(points: Sequence[Point], configs: Sequence[dict[str, Any]], sweep: Sweep, out: Path) -> list[Run]:
    """The runs of all points at all seeds, seed by seed."""
    runs = []
    for seed in sweep.seeds:
        trained = _training_folder(out, seed) / CHECKPOINTS / "last.ckpt" if sweep.shared_training else None
        for point, config in zip(points, configs, strict=True):
            folder = out / "points" / point.slug / f"seed-{seed}"
            command = f"ldis fit --config {folder / 'point.yaml'}"
            if trained is not None:
                command = f"ldis test --config {folder / 'point.yaml'} --ckpt_path {trained}"
            text = run_text(config, f"{point.slug}, seed {seed}. Run it alone: {command}", seed, folder)
            runs.append(Run(point, seed, folder, text, trained, *size(config)))
    return runs


def _trainings(config: dict[str, Any], sweep: Sweep, out: Path) -> list[Run]:
    if not any(_is_a(one, ModelCheckpoint) for one in callbacks_of(config)):
        raise UserError("sweep.shared_training needs checkpoints: remove `trainer.enable_checkpointing: false`")
    runs = []
    for seed in sweep.seeds:
        folder = _training_folder(out, seed)
        header = f"What all points share, seed {seed}. Run it alone: ldis fit --config {folder / 'point.yaml'}"
        text = run_text(config, header, seed, folder, score=False)
        runs.append(Run(None, seed, folder, text, None, *size(config)))
    return runs


def _training_folder(out: Path, seed: int) -> Path:
    return out / "training" / f"seed-{seed}"


def size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Machines, and ranks on each, as far as the config says: `auto` counts as one."""
    trainer = config["trainer"]
    devices = trainer.get("devices")
    if isinstance(devices, str) and devices.strip("[] ").replace(",", "").replace(" ", "").isdigit():
        devices = [part for part in devices.strip("[] ").split(",") if part] if "," in devices else int(devices)
    ranks = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 1
    return int(trainer.get("num_nodes") or 1), max(1, ranks)


# ---- Configs


def _base_config(parser: LDISParser, base: Namespace) -> dict[str, Any]:
    """The sweep's config without what is the sweep's, and with what the report needs of every run."""
    config = yaml.load(parser.dump(base, skip_none=False, skip_validation=True), Loader)
    for key in ("sweep", "extends"):  # the one is being carried out, the other was when the config was read
        config.pop(key, None)
    return config


def _completed(parser: LDISParser, config: dict[str, Any], point: Point | None) -> dict[str, Any]:
    """A config with the callbacks that every run has, and with the defaults of all components that it names."""
    config = {**config, "trainer": {**config["trainer"], "callbacks": _with_callbacks(config)}}
    parsed = _prefixed(point, lambda: parser.parse_object(config))
    complete = yaml.load(parser.dump(parsed, skip_none=False, skip_validation=True), Loader)
    for key in ("sweep", "extends"):
        complete.pop(key, None)
    return complete


def _with_callbacks(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The callbacks of a config and those that it lacks: the report needs them, and a checkpoint to go on from. All
    checkpoints lie in the run's own folder."""
    callbacks: list[dict[str, Any]] = [
        {"class_path": one} if isinstance(one, str) else dict(one) for one in callbacks_of(config)
    ]
    keepers = [one for one in callbacks if _is_a(one, ModelCheckpoint)]
    for keeper in keepers:
        keeper["init_args"] = {**(keeper.get("init_args") or {}), "dirpath": None}
    if keepers and not any(keeper["init_args"].get("save_last") for keeper in keepers):
        keepers[0]["init_args"]["save_last"] = True
    needed: list[tuple[type, dict[str, Any]]] = [(Previews, {}), (ResultTable, {}), (ResultRows, {})]
    if config["trainer"].get("enable_checkpointing") is not False:
        needed.insert(0, (ModelCheckpoint, {"save_last": True, "save_top_k": 0}))
    for kind, init_args in needed:
        if not any(_is_a(one, kind) for one in callbacks):
            component: dict[str, Any] = {"class_path": f"{kind.__module__}.{kind.__qualname__}"}
            callbacks.append({**component, "init_args": init_args} if init_args else component)
    return callbacks


def _is_a(component: Mapping[str, Any], kind: type) -> bool:
    name = str(component.get("class_path"))
    found = import_object(name)
    return issubclass(found, kind) if isinstance(found, type) else name == kind.__name__


# ---- Checks


def _prefixed(point: Point | None, do: Any) -> Any:
    """Do something, and name the point in the message if it is a mistake of the user's."""
    try:
        return do()
    except UserError as error:
        raise UserError(f"{error} (at the point {point.slug})" if point else str(error)) from error


def _check_different(points: Sequence[Point], configs: Sequence[dict[str, Any]]) -> None:
    seen: dict[str, Point] = {}
    for point, config in zip(points, configs, strict=True):
        other = seen.setdefault(yaml.safe_dump(config, sort_keys=True), point)
        if other is not point:
            raise UserError(f"sweep: two points are the same, with equal configs: {other.slug} and {point.slug}")


def _check_shared(points: Sequence[Point]) -> None:
    for point in points:
        for key in point.values:
            plain = ".".join(part for part in key.split(".") if part != "init_args")
            if found := next((one for one in TRAINING_KEYS if f"{plain}.".startswith(f"{one}.")), None):
                raise UserError(
                    f"sweep.shared_training: `{key}` changes the training ({found}), which the points would share; "
                    "remove it from the points, or `shared_training`"
                )

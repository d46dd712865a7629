"""The points of runs that no sweep planned: what their configs differ in."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ldis_lightning.errors import UserError
from ldis_lightning.sweeps.finished import (
    DAMAGE,
    FinishedRun,
    FinishedSweep,
    guess_mode,
    read_run,
)
from ldis_lightning.sweeps.grid import Point
from ldis_lightning.sweeps.labels import column_headings, value_labels

SEED = "seed_everything"
IGNORED = frozenset({SEED, "trainer.logger", "config", "ckpt_path", "extends", "sweep", "score_after_fit", "verbose"})
"""Dotted keys in which runs differ without being different experiments."""
PATHS = frozenset({"dirpath", "default_root_dir", "save_dir", "log_dir"})
"""Last parts of keys that say where a run writes."""
MOST_COLUMNS = 6
"""Configs that differ in more keys than these are told apart by their folders' names."""
_ABSENT = None  # a key that a config lacks counts as null, which is what it means in ours


def read_unplanned(folder: Path, metric: str | None = None) -> FinishedSweep:
    """Search a folder for runs with results and a config (`point.yaml`, or Lightning's `config.yaml`).

    Args:
        folder: to search, at any depth.
        metric: what the table will compare; default: the first mIoU of novel concepts, else of any set, that most runs
            have, else the first metric.

    Raises:
        UserError: there is no run with results and a config.
    """
    notes: list[str] = []
    found = [(run, config) for run, config in _runs_below(folder, notes)]
    if not found:
        because = f": {notes[0]}" if notes else ""
        raise UserError(
            f"no finished run in `{folder}`{because}; a run has its results.json, which testing writes, beside a config"
        )
    points = _points([config for _, config in found], [_short(run.folder, folder) for run, _ in found])
    runs: dict[tuple[str, int], FinishedRun] = {}
    for (run, config), point in zip(found, points, strict=True):
        seed = config.get(SEED)
        seed = seed if isinstance(seed, int) and not isinstance(seed, bool) else 0
        if (older := runs.get((point.slug, seed))) is not None:
            notes.append(f"{older.folder} and {run.folder} have the same config and seed; the later one counts")
        runs[point.slug, seed] = read_run(point, seed, run.folder)
    metric = metric or _metric(list(runs.values()))
    seeds = sorted({seed for _, seed in runs})
    unique = list({point.slug: point for point in points}.values())
    return FinishedSweep(folder, unique, seeds, metric, guess_mode(metric), None, runs, notes=notes)


def _runs_below(folder: Path, notes: list[str]) -> Iterator[tuple[FinishedRun, dict[str, Any]]]:
    """Finished runs, the earliest first, and their configs."""
    paths = sorted(folder.rglob("results.json"), key=lambda path: (path.stat().st_mtime, str(path)))
    for path in paths:
        run = read_run(Point("", {}), 0, path.parent)
        if not run.is_finished or run.config is None:
            notes.append(f"{path.parent} is left out: {run.problem or 'it has no config.yaml or point.yaml'}")
            continue
        try:
            config = yaml.load(run.config.read_text(encoding="utf-8"), yaml.CSafeLoader)
        except DAMAGE:
            config = None
        if isinstance(config, dict):
            yield run, config
        else:
            notes.append(f"{run.folder} is left out: {run.config.name} cannot be read")


def _points(configs: Sequence[dict[str, Any]], names: Sequence[str]) -> list[Point]:
    """The point of each config. Configs that differ in too much are named by their folders."""
    axes = differing(configs)
    values = [{key: column[i] for key, column in axes.items()} for i in range(len(configs))]
    if not axes:
        return [Point("all", {"runs": "all"})] * len(configs)
    if len(axes) > MOST_COLUMNS:
        first: dict[str, str] = {}
        texts = [
            first.setdefault(json.dumps(own, sort_keys=True, default=str), n)
            for own, n in zip(values, names, strict=True)
        ]
        return [Point(name.replace("/", "_"), {"run": name}, own) for name, own in zip(texts, values, strict=True)]
    headings = column_headings(list(axes))
    labels = {key: _labels(column) for key, column in axes.items()}
    points = []
    for i, own in enumerate(values):
        shown = {heading: labels[key][i] for heading, key in zip(headings, axes, strict=True)}
        points.append(Point(",".join(f"{heading}={label}" for heading, label in shown.items()), shown, own))
    return points


def _labels(column: Sequence[Any]) -> list[str]:
    """The label of each run's value; equal values share one."""
    texts = [json.dumps(value, sort_keys=True, default=str) for value in column]
    distinct = {text: value for text, value in zip(texts, column, strict=True)}
    label_of = dict(zip(distinct, value_labels(list(distinct.values())), strict=True))
    return [label_of[text] for text in texts]


def differing(configs: Sequence[Any], prefix: str = "") -> dict[str, list[Any]]:
    """The values by dotted key of everything in which configs differ, `init_args` left out of the keys.

    Two components of different classes differ as a whole; of the same class, in the arguments that differ. What says
    where a run writes, how it logs and which seed it had is left out.
    """
    if all(config == configs[0] for config in configs) or _is_ignored(prefix):
        return {}
    if not all(isinstance(config, dict) for config in configs) or len({_class(config) for config in configs}) > 1:
        if isinstance(configs[0], list) and not differing_lists(configs, prefix):
            return {}
        return {prefix: list(configs)}
    keys = dict.fromkeys(key for config in configs for key in config)
    axes: dict[str, list[Any]] = {}
    for key in keys:
        own = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
        children = [config.get(key, _ABSENT) for config in configs]
        if key == "init_args":  # a class with defaults alone may lack them
            children = [child or {} for child in children]
        axes |= differing(children, own)
    return axes


def differing_lists(configs: Sequence[Any], prefix: str) -> bool:
    """Whether lists differ in more than where their components write."""
    if not all(isinstance(config, list) and len(config) == len(configs[0]) for config in configs):
        return True
    return any(differing(entries, f"{prefix}.item") for entries in zip(*configs, strict=True))


def _is_ignored(key: str) -> bool:
    return key in IGNORED or key.rpartition(".")[2] in PATHS


def _class(config: Any) -> str | None:
    return str(config["class_path"]) if isinstance(config, Mapping) and "class_path" in config else None


def _short(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path != folder else path.name


def _metric(runs: Sequence[FinishedRun]) -> str:
    count: dict[str, int] = defaultdict(int)
    for run in runs:
        for name in run.metrics:
            count[name] += 1
    if not count:
        return "nothing"  # and `check_metric` says so
    best = max(count.values())
    names = sorted(name for name, times in count.items() if times == best)
    return next((n for n in names if n == "test/novel/miou"), next((n for n in names if n.endswith("miou")), names[0]))

"""Learning curves from the event files that TensorBoard's logger leaves in a run's folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ldis_lightning.sweeps.events import small_events
from ldis_lightning.sweeps.finished import FinishedRun, FinishedSweep

MOST_STEPS = 200
"""Points of a drawn curve: longer ones are averaged in as many equal stretches of steps."""


@dataclass
class RunCurves:
    """The scalars of a run.

    Attributes:
        scalars: value by step, by tag, steps ascending.
        seconds: from the first to the last event of each process that wrote some, summed: time spent running.
        problem: why some are missing, or "".
    """

    scalars: dict[str, dict[int, float]] = field(default_factory=dict)
    seconds: float = 0.0
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Curve:
    """A tag at a point: mean over seeds at S steps, and the lowest and highest seed. All (S,) float64."""

    step: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


def read_curves(paths: Sequence[Path]) -> RunCurves:
    """The scalars of a run's event files, which are in the order in which they were written.

    A resumed run starts again at its checkpoint: from its first step on, a later file replaces what an earlier one says
    of a tag.
    """
    curves = RunCurves()
    for path in paths:
        own, seconds, problem = _read_file(path)
        for tag, values in own.items():
            begin = min(values)
            kept = {step: value for step, value in curves.scalars.get(tag, {}).items() if step < begin}
            curves.scalars[tag] = kept | dict(sorted(values.items()))
        curves.seconds += seconds
        curves.problem = curves.problem or problem
    return curves


def _read_file(path: Path) -> tuple[dict[str, dict[int, float]], float, str]:
    """Scalars by tag and step, seconds from the first to the last event, and why some are missing."""
    scalars: dict[str, dict[int, float]] = {}
    begin = end = math.nan
    try:
        for event in small_events(path):
            begin, end = (event.wall_time if math.isnan(begin) else begin), event.wall_time
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    scalars.setdefault(value.tag, {})[int(event.step)] = float(value.simple_value)
    except Exception as error:  # protobuf's DecodeError, and whatever else damaged bytes lead to
        return scalars, 0.0, f"{path.name} is damaged ({type(error).__name__})"
    return scalars, 0.0 if math.isnan(begin) else max(0.0, end - begin), ""


def over_seeds(runs: Sequence[Mapping[int, float]]) -> Curve | None:
    """The curve of a tag over the seeds of a point; None where there is nothing.

    A step takes part where every seed that got so far has logged it, so that a seed that stopped early bends nothing.
    """
    runs = [{step: value for step, value in run.items() if math.isfinite(value)} for run in runs]
    runs = [run for run in runs if run]
    if not runs:
        return None
    steps = sorted({step for run in runs for step in run})
    columns, kept = [], []
    for step in steps:
        values = [run[step] for run in runs if step in run]
        if len(values) == sum(max(run) >= step for run in runs):
            kept.append(step)
            columns.append((sum(values) / len(values), min(values), max(values)))
    if not kept:
        return None
    mean, low, high = _thinned(np.array(columns).T)
    return Curve(_thinned(np.array([kept], np.float64))[0], mean, low, high, len(runs))


def _thinned(columns: np.ndarray) -> np.ndarray:
    """(K, S) -> (K, at most MOST_STEPS), neighbours averaged."""
    if columns.shape[1] <= MOST_STEPS:
        return columns
    parts = np.array_split(columns, MOST_STEPS, axis=1)
    return np.stack([part.mean(1) for part in parts], 1)


def training_folder(sweep: FinishedSweep, run: FinishedRun) -> Path:
    """Where a run's training wrote its events: its own folder, or that of the seed's one training."""
    return sweep.folder / "training" / f"seed-{run.seed}" if sweep.shared_training else run.folder


def curve_tags(sweep: FinishedSweep, tags: Sequence[str]) -> list[str]:
    """The tags worth a plot: the loss of training, and the metric as validation has it."""
    stage, _, rest = sweep.metric.partition("/")
    wanted = ["train/loss", f"val/{rest}" if stage == "test" else sweep.metric]
    found = [tag for tag in wanted if tag in tags]
    if not found:  # a module that logs other names
        found = [tag for tag in sorted(tags) if tag.startswith(("train", "loss"))][:1]
    return found

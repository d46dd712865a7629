"""A folder of finished runs as plain data: what `ldis sweep` has planned, and what there is of it by now.

Nothing here trusts a file: what is damaged or missing becomes a sentence that the report repeats, and only what leaves
nothing to report is an error.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from ldis_lightning.errors import UserError, first_line
from ldis_lightning.evaluation.rows import FILE_NAME, ResultRow
from ldis_lightning.suggestions import did_you_mean, some
from ldis_lightning.sweeps.grid import Point
from ldis_lightning.sweeps.logs import log_end

PLAN = "sweep.yaml"
Mode = Literal["max", "min"]
DAMAGE = (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError)
"""What reading a damaged file raises, be it JSON, YAML, UTF-8 or a number."""


@dataclass(frozen=True)
class FinishedRun:
    """A point at one seed, finished or not.

    Attributes:
        folder: where it keeps its files; it may not exist.
        config: the config that repeats it, or None where there is none.
        metrics: by name, NaN for what was not a number; empty unless it is finished.
        manifests: hash of the episodes by evaluation set, of the sets that were scored in full.
        problem: why there are no metrics; "" for a finished run.
    """

    point: Point
    seed: int
    folder: Path
    config: Path | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    manifests: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.point.slug}, seed {self.seed}"

    @property
    def is_finished(self) -> bool:
        """Whether it has results."""
        return not self.problem

    @property
    def event_files(self) -> list[Path]:
        """The curves' files, oldest first: TensorBoard names them by the second in which they were opened."""
        files = self.folder.glob("events.out.tfevents.*")
        return sorted((path for path in files if path.suffix != ".hparams"), key=lambda path: path.name)

    def facts(self) -> ResultRow | None:
        """The last row that its tests wrote, which says with which code and when; None where there is none."""
        try:
            lines = (self.folder / FILE_NAME).read_bytes().splitlines()
            return ResultRow.from_json(lines[-1]) if lines else None
        except DAMAGE:
            return None

    def log_end(self, lines: int = 12) -> str:
        """The end of its output, or ""."""
        return "\n".join(log_end(self.folder / "log.txt", lines))


@dataclass(frozen=True)
class FinishedSweep:
    """Everything that a report is made from.

    Attributes:
        folder: of the sweep.
        points: in the table's order, at least one.
        seeds: ascending or as the sweep lists them, at least one.
        metric: what the table compares.
        mode: whether a larger or a smaller metric is better.
        baseline: slug of the point that the others are compared with, or None.
        runs: by slug and seed; one for every point and seed that was planned.
        shared_training: each seed trained once, in `training/seed-N`, and the points are tests of it.
        notes: what could not be read, in sentences.
    """

    folder: Path
    points: Sequence[Point]
    seeds: Sequence[int]
    metric: str
    mode: Mode
    baseline: str | None
    runs: Mapping[tuple[str, int], FinishedRun]
    shared_training: bool = False
    notes: Sequence[str] = ()

    def runs_of(self, slug: str) -> list[FinishedRun]:
        """The finished runs of a point, in the order of the seeds."""
        runs = [self.runs.get((slug, seed)) for seed in self.seeds]
        return [run for run in runs if run is not None and run.is_finished]

    @property
    def unfinished(self) -> list[FinishedRun]:
        """What was planned and has no results."""
        return [run for run in self.runs.values() if not run.is_finished]

    @property
    def headings(self) -> list[str]:
        """The columns of the points' labels, in the order in which they appear."""
        return list(dict.fromkeys(heading for point in self.points for heading in point.labels))

    @property
    def metric_set(self) -> str | None:
        """The evaluation set of the metric, `novel` of `test/novel/miou`; None for a metric of another form."""
        parts = self.metric.split("/")
        return parts[1] if len(parts) == 3 and parts[0] == "test" else None


def read_sweep(
    folder: Path, metric: str | None = None, mode: Mode | None = None, baseline: str | None = None
) -> FinishedSweep:
    """Read a sweep's folder, or any folder with finished runs in it.

    Args:
        folder: with the `sweep.yaml` of `ldis sweep`; without one, runs are searched for below it and the points are
            what their configs differ in (`unplanned.py`).
        metric, mode, baseline: instead of the sweep's own. A baseline is a slug, or `heading=label` of one point.

    Raises:
        UserError: there is no such folder, `sweep.yaml` is damaged, no run has finished, no run has the metric, or no
            point is the baseline.
    """
    from ldis_lightning.sweeps.unplanned import read_unplanned

    if not folder.is_dir():
        raise UserError(f"`{folder}` is no folder; name the folder of a sweep, or one with finished runs in it")
    sweep = read_plan(folder) if (folder / PLAN).is_file() else read_unplanned(folder, metric)
    if not any(run.is_finished for run in sweep.runs.values()):
        raise UserError(f"no run in `{folder}` has finished: there is nothing to report yet")
    chosen = metric or sweep.metric
    check_metric(sweep, chosen)
    return FinishedSweep(
        **{
            **vars(sweep),
            "metric": chosen,
            "mode": mode or (sweep.mode if chosen == sweep.metric else guess_mode(chosen)),
            "baseline": find_point(sweep.points, baseline or sweep.baseline),
        }
    )


def check_metric(sweep: FinishedSweep, metric: str) -> None:
    """Raise a UserError where no finished run has the metric."""
    names = sorted({name for run in sweep.runs.values() for name in run.metrics})
    if metric not in names:
        raise UserError(
            f"no run in `{sweep.folder}` measured `{metric}`{did_you_mean(metric, names)}; there are {some(names, 8)}"
        )


def guess_mode(metric: str) -> Mode:
    """Losses, errors and false positives are better when smaller."""
    last = metric.rpartition("/")[2].lower()
    return "min" if any(word in last for word in ("loss", "error", "fpr")) else "max"


def find_point(points: Sequence[Point], name: str | None) -> str | None:
    """The slug of a point from its slug, a label that only it has, or some of its `heading=label,heading=label`.

    Raises:
        UserError: none or several fit.
    """
    slugs = [point.slug for point in points]
    if name is None or name in slugs:
        return name
    fitting = [point.slug for point in points if _fits(point, name)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(f"baseline: {len(fitting)} points are `{name}`, such as {some(fitting, 2)}; say more of it")
    raise UserError(f"baseline: no point is `{name}`{did_you_mean(name, slugs)}; the points are {some(slugs, 6)}")


def _fits(point: Point, name: str) -> bool:
    labels = {f"{heading}={label}" for heading, label in point.labels.items()}
    return name in point.labels.values() or set(name.split(",")) <= labels


def read_plan(folder: Path) -> FinishedSweep:
    """What `sweep.yaml` planned, and the runs that there are of it.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / PLAN
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        points = [_point(entry) for entry in _of(list, content, "points")]
        seeds = [_is(int, seed, "seeds") for seed in _of(list, content, "seeds")]
        metric = _of(str, content, "metric")
        mode = _of(str, content, "mode")
        baseline = content.get("baseline")
        if not points or not seeds or mode not in ("max", "min") or not isinstance(baseline, str | None):
            raise ValueError("points, seeds, mode or baseline are none")
        if len({point.slug for point in points}) < len(points):
            raise ValueError("two points share a slug")
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged ({first_line(error)}); run the same `ldis sweep` again to mend it"
        ) from error
    runs = {
        (point.slug, seed): read_run(point, seed, folder / "points" / point.slug / f"seed-{seed}")
        for point in points
        for seed in seeds
    }
    shared = content.get("shared_training") is True
    return FinishedSweep(folder, points, seeds, metric, cast(Mode, mode), baseline, runs, shared, _problems(runs))


def _problems(runs: Mapping[Any, FinishedRun]) -> list[str]:
    return [f"{run.name}: {run.problem}" for run in runs.values() if run.problem.startswith("damaged")]


def _point(entry: Any) -> Point:
    slug, labels = _of(str, entry, "slug"), _of(dict, entry, "labels")
    if slug in ("", ".", "..") or any(character in slug for character in "/\\\0"):  # it is the name of a folder
        raise ValueError(f"the slug {slug!r} is no name")
    values = entry.get("values")
    texts = {str(heading): str(label) for heading, label in labels.items()}
    return Point(slug, texts, values if isinstance(values, dict) else {})


def read_run(point: Point, seed: int, folder: Path) -> FinishedRun:
    """A run as far as there is one. Never raises for what lies in the folder: see `FinishedRun.problem`."""
    configs = (folder / "point.yaml", folder / "config.yaml")
    config = next((path for path in configs if path.is_file()), None)
    path = folder / "results.json"
    if not path.is_file():
        started = (folder / "log.txt").is_file() or next(folder.glob("events.out.tfevents.*"), None) is not None
        problem = "started, but not finished" if started else "not started"
        return FinishedRun(point, seed, folder, config, problem=problem)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        metrics = {str(name): _metric(value, name) for name, value in _of(dict, content, "metrics").items()}
        manifests = {str(name): _is(str, value, "manifests") for name, value in content.get("manifests", {}).items()}
    except (*DAMAGE, AttributeError) as error:
        problem = f"damaged: {path.name} cannot be read ({first_line(error)}); delete it and run the point again"
        return FinishedRun(point, seed, folder, config, problem=problem)
    return FinishedRun(point, seed, folder, config, metrics, manifests)


def _of(kind: type, content: Any, key: str) -> Any:
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f"it lacks `{key}`")
    return _is(kind, content[key], key)


def _is(kind: type, value: Any, key: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"`{key}` holds {value!r:.60}")
    return value


def _metric(value: Any, name: str) -> float:
    if value is None:
        return math.nan
    _is(cast(Callable, int | float), value, name)  # pyright: ignore[reportArgumentType]
    return float(value) if math.isfinite(value) else math.nan

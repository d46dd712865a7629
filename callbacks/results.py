"""The table at the end of a test, and the files that keep what it says."""

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ldis_lightning.callbacks.previews import Previews
from ldis_lightning.callbacks.runs import run_folder
from ldis_lightning.evaluation.rows import SCORE_NAMES
from ldis_lightning.evaluation.scores import SetResult
from ldis_lightning.files import write_atomically, write_text_atomically


class ResultTable(Callback):
    """At the end of a test prints one line an evaluation set, and writes `results.json` and `per_class.csv`.

    It reads `pl_module.results["test"]`, a `SetResult` by set name, which the module fills in `on_test_epoch_end` on
    every rank (`EpisodeScores.result` gathers over ranks; Lightning runs that hook before this callback's
    `on_test_end`). Every other metric that the module logged under `test/` goes into `results.json` as well. Class
    names are the datamodule's `class_names(set_name) -> {id: name}`, where it has them. The files lie in the run's
    folder.
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, then print, on rank 0."""
        folder = run_folder(trainer)  # on every rank: it is a collective call
        if not trainer.is_global_zero:
            return
        results: dict[str, SetResult] = getattr(pl_module, "results", {}).get("test", {})
        names = {name: class_names(trainer, name) for name in results}
        logged = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("test/")}
        write_results(folder / "results.json", results, names, logged, manifests(trainer, results))
        write_per_class(folder / "per_class.csv", results, names)
        console = Console()
        for table in result_tables(results):
            console.print(table)
        for path in [*preview_paths(trainer), folder / "results.json"]:
            console.print(short(path), soft_wrap=True, highlight=False, markup=False)


def result_tables(results: Mapping[str, SetResult]) -> list[Table]:
    """One line a set: its scores, the first with its interval, number of episodes, number of classes. Sets that are
    scored alike share a table."""
    tables: dict[tuple[str, ...], Table] = {}
    for name, result in results.items():
        scores = tuple(result.scores)
        if scores not in tables:
            tables[scores] = Table("set", title="test", title_justify="left")
            for heading in (*(SCORE_NAMES.get(score, score) for score in scores), "episodes", "classes"):
                tables[scores].add_column(heading, justify="right")
        first, *others = (f"{score:.4f}" for score in result.scores.values())
        episodes = str(result.episodes) if result.complete else f"{result.episodes} of {result.expected}"
        first += interval_text(result.intervals.get(result.headline))
        tables[scores].add_row(escape(name), escape(first), *others, episodes, str(len(result.per_class)))
    return list(tables.values())


def interval_text(interval: tuple[float, float] | None) -> str:
    """`" [0.66, 0.71]"`, or nothing."""
    return "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"


def write_results(
    path: Path,
    results: Mapping[str, SetResult],
    names: Mapping[str, Mapping[int, str]],
    logged: Mapping[str, float],
    manifests: Mapping[str, str],
) -> None:
    """Write everything as JSON, where NaN becomes null.

    Keys: metrics {"test/<set>/<score>": x}, intervals {"test/<set>/<score>": [low, high]}, per_class
    {set: {class: headline}}, episodes {set: n}, manifests {set: hash}.
    """
    metrics, intervals = dict(logged), {}
    for name, result in results.items():
        metrics |= {f"test/{name}/{score}": value for score, value in result.scores.items()}
        intervals |= {f"test/{name}/{score}": ends for score, ends in result.intervals.items()}
    per_class = {
        name: {label: _json_number(score) for label, score in labelled(result.per_class, names[name]).items()}
        for name, result in results.items()
    }
    content = {
        "metrics": {key: _json_number(value) for key, value in sorted(metrics.items())},
        "intervals": {key: [_json_number(end) for end in ends] for key, ends in sorted(intervals.items())},
        "per_class": per_class,
        "episodes": {name: result.episodes for name, result in results.items()},
        "manifests": dict(manifests),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text_atomically(path, text)


def write_per_class(path: Path, results: Mapping[str, SetResult], names: Mapping[str, Mapping[int, str]]) -> None:
    """Columns set, class_id, class_name, measure (the set's headline), score: one line a class of a set, by id. An
    undefined score is left empty."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(["set", "class_id", "class_name", "measure", "score"])
            for name, result in results.items():
                for class_id, score in result.per_class.items():
                    label = names[name].get(class_id, "")
                    lines.writerow([name, class_id, label, result.headline, "" if math.isnan(score) else score])

    write_atomically(path, write)


def labelled(per_class: Mapping[int, float], names: Mapping[int, str]) -> dict[str, float]:
    """Score by class name; by id where a class has no name, and by both where two share one."""
    count = Counter(names.get(class_id, str(class_id)) for class_id in per_class)

    def label(class_id: int) -> str:
        name = names.get(class_id, str(class_id))
        return name if count[name] == 1 else f"{name} ({class_id})"

    return {label(class_id): score for class_id, score in per_class.items()}


def class_names(trainer: Trainer, set_name: str) -> Mapping[int, str]:
    """The datamodule's class names of a set, empty where it has none."""
    source: Any = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    return source(set_name) if source is not None else {}


def manifests(trainer: Trainer, results: Mapping[str, SetResult]) -> dict[str, str]:
    """Hash of each set's list of episodes, of the sets of which every episode was scored."""
    drawn = getattr(getattr(trainer, "datamodule", None), "manifests", {})
    return {name: drawn[name].hash for name, result in results.items() if name in drawn and result.complete}


def preview_paths(trainer: Trainer) -> list[Path]:
    """The pictures that `Previews` has just written, if it takes part."""
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] (set in Trainer.__init__'s connectors)
    return [path for callback in callbacks if isinstance(callback, Previews) for path in callback.written]


def _json_number(value: float) -> float | None:
    """JSON has neither NaN nor infinities."""
    return value if math.isfinite(value) else None


def short(path: Path) -> str:
    """Relative to where the user is, if it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

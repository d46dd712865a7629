"""A line for every test of an evaluation set, with all that is needed to compare it with others or to repeat it."""

import csv
import statistics
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from ldis_lightning.callbacks.results import short
from ldis_lightning.callbacks.runs import run_folder
from ldis_lightning.evaluation.domains import domain
from ldis_lightning.evaluation.provenance import checkpoint_sha256, code_version
from ldis_lightning.evaluation.rows import FILE_NAME, ResultRow, describe
from ldis_lightning.evaluation.scores import SetResult
from ldis_lightning.files import write_atomically


class ResultRows(Callback):
    """At the end of a test appends a `ResultRow` for each evaluation set to `<run folder>/results.jsonl`.

    Beside it lie the episodes, `manifests/<set>.json`, and what was counted of each, `episodes/<set>.csv`. It reads
    `pl_module.results["test"]`, which the module fills on every rank, and the `EpisodeDataModule`; a set without a
    manifest gets no row. `ldis results` prints the rows.
    """

    def __init__(self) -> None:
        self._checkpoint: dict[str, str | None] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hash the checkpoint, on rank 0: now it is what was loaded, and most of it is still in memory."""
        if trainer.is_global_zero:
            self._checkpoint = checkpoint_facts(trainer.ckpt_path)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, on rank 0."""
        folder = run_folder(trainer)  # on every rank: it is a collective call
        data: Any = getattr(trainer, "datamodule", None)
        manifests = getattr(data, "manifests", {})
        results: dict[str, SetResult] = getattr(pl_module, "results", {}).get("test", {})
        if not trainer.is_global_zero or not any(name in manifests for name in results):
            return
        shared = {**self._checkpoint, **model_facts(pl_module), "code": code_version(), "time": now()}
        rows = []
        for name, result in results.items():
            if name in manifests:
                manifest, measure = manifests[name], data.scoreboard("test", name).measure
                keys = data.evaluation_sets[name].index.key
                manifest.save(folder / "manifests" / f"{name}.json")
                write_episodes(folder / "episodes" / f"{name}.csv", result, manifest, measure.columns, keys)
                facts = {**shared, "ceiling": ceiling(trainer, name)}
                rows.append(result_row(name, result, manifest, measure, data.trained_on, facts))
        append_rows(folder / FILE_NAME, rows)
        console = Console()
        console.print(short(folder / FILE_NAME), soft_wrap=True, highlight=False, markup=False)


def result_row(
    name: str, result: SetResult, manifest: Any, measure: Any, trained_on: Any, facts: dict[str, Any]
) -> ResultRow:
    """The row of a set.

    Args:
        name: of the set.
        result: what it came to.
        manifest: its episodes.
        measure: how it was scored.
        trained_on: names of the classes of training by data set, or None.
        facts: about the model and the test, by name of the row's field.
    """
    asked = {episode.class_id for episode in manifest.episodes}
    return ResultRow(
        set=name,
        dataset=manifest.dataset,
        index_hash=manifest.index_hash,
        protocol=manifest.protocol,
        settings=manifest.settings,
        rules=manifest.rules,
        manifest_hash=manifest.hash,
        references=manifest.references,
        treatment=manifest.treatment,
        episodes=result.episodes,
        expected=result.expected,
        measure=result.headline,
        higher_is_better=measure.higher_is_better,
        score=result.value,
        interval=result.intervals.get(result.headline),
        scores=result.scores,
        intervals=result.intervals,
        runs=over_runs([scores[result.headline] for scores in result.run_scores]),
        domain=domain(trained_on, manifest.dataset, [manifest.classes[class_id] for class_id in asked]),
        **facts,
    )


def ceiling(trainer: Trainer, name: str) -> float | None:
    """What `Ceiling` logged about a set, if it took part."""
    value = trainer.callback_metrics.get(f"test/{name}/ceiling")
    return None if value is None else float(value)


def over_runs(scores: list[float]) -> dict[str, float] | None:
    """Number, mean and standard deviation (n - 1) of the scores of several runs; None where there are not several."""
    if len(scores) < 2:
        return None
    mean = sum(scores) / len(scores)
    return {"count": len(scores), "mean": mean, "std": statistics.stdev(scores, mean)}


def checkpoint_facts(path: str | Path | None) -> dict[str, str | None]:
    """`checkpoint` and `checkpoint_sha256` of a row. A checkpoint that is no local file has a name alone."""
    if path is None:
        return {"checkpoint": None, "checkpoint_sha256": None}
    local = Path(path)
    return {"checkpoint": local.name, "checkpoint_sha256": checkpoint_sha256(local) if local.exists() else None}


def model_facts(pl_module: LightningModule) -> dict[str, str | None]:
    """`model` and `reference_fusion` of a row."""
    fusion = getattr(pl_module, "reference_fusion", None)
    return {"model": describe(pl_module), "reference_fusion": None if fusion is None else describe(fusion)}


def append_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """Add lines to a file. It is replaced as a whole, so that an interruption leaves it as it was and never half a
    line."""
    old = path.read_bytes() if path.is_file() else b""
    if old and not old.endswith(b"\n"):  # edited by hand
        old += b"\n"
    new = "".join(f"{row.to_json()}\n" for row in rows).encode()
    write_atomically(path, lambda temporary: temporary.write_bytes(old + new))


def write_episodes(
    path: Path, result: SetResult, manifest: Any, columns: Iterable[str], key: Callable[[int], str]
) -> None:
    """One line an episode, in the manifest's order: its number, the query's key, class, clip (number in the data set,
    -1 for an image) and run, whether it was scored, and what was counted.

    Args:
        path: the file.
        result: of the set.
        manifest: its episodes.
        columns: the measure's names of the counts.
        key: the key of a row of the data set's index.
    """
    table = manifest.table()
    per_run = max(1, len(manifest) // table.runs)

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(["episode", "query", "class_id", "clip", "run", "scored", *columns])
            for i, (episode, clip) in enumerate(zip(manifest.episodes, table.clip.tolist(), strict=True)):
                facts = (i, key(episode.query), episode.class_id, clip, i // per_run)
                lines.writerow([*facts, result.seen[i], *result.counts[i]])

    write_atomically(path, write)


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")

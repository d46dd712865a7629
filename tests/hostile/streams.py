"""A pass over a data set, as training and evaluation make it."""

from pathlib import Path
from typing import Any

from ldis_lightning.datamodules.episodes import EpisodeDataModule
from ldis_lightning.datamodules.evaluation_set import EvaluationSource
from ldis_lightning.datamodules.source import TrainingSource


def episodes(source: Path | str, training: bool, workers: int = 0, start_method: str | None = None) -> None:
    """A pass over all episodes of a folder."""
    if training:
        run(EpisodeDataModule(TrainingSource(str(source)), None, **_small(workers, start_method)), "fit")
    else:
        evaluate(EvaluationSource(str(source)), workers, start_method)


def evaluate(source: EvaluationSource, workers: int = 0, start_method: str | None = None) -> None:
    """A pass over all episodes of an evaluation set."""
    run(EpisodeDataModule(None, {"set": source}, **_small(workers, start_method)), "test")


def run(module: EpisodeDataModule, stage: str) -> None:
    """Read every batch of a stage."""
    module.setup(stage)
    for loader in [module.train_dataloader()] if stage == "fit" else module.test_dataloader():
        for _ in loader:
            pass
    module.teardown()


def _small(workers: int, start_method: str | None) -> dict[str, Any]:
    return {"image_size": 16, "batch_size": 2, "num_workers": workers, "start_method": start_method}

"""A model that only records what it is fed, and a script that trains it on two ranks."""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ldis_lightning.datamodules.episodes import EpisodeDataModule
from ldis_lightning.datamodules.evaluation_set import EvaluationSource
from ldis_lightning.datamodules.source import TrainingSource
from ldis_lightning.episode import EpisodeBatch

PICTURES = ("query_image", "query_mask", "reference_image", "reference_mask", "class_id", "seed")


def digests(batch: EpisodeBatch) -> list[str]:
    """One hash an episode, of all its tensors and of its meta data."""
    return [
        hashlib.sha256(
            b"".join(batch[name][i].contiguous().numpy().tobytes() for name in PICTURES)
            + repr(batch["meta"][i]).encode()
        ).hexdigest()
        for i in range(len(batch["seed"]))
    ]


class Recorder(LightningModule):
    """Keeps the digests of all batches. `fail_at`: the training step, counted by this process, that raises."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.trained: list[list[str]] = []
        self.validated: list[tuple[int, list[str], list[bool]]] = []
        self.fail_at = fail_at

    def training_step(self, batch: EpisodeBatch, batch_idx: int) -> Tensor:
        if len(self.trained) == self.fail_at:
            raise RuntimeError("the power is gone")
        self.trained.append(digests(batch))
        return self.weight * batch["query_image"].mean()

    def validation_step(self, batch: EpisodeBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validated.append((dataloader_idx, digests(batch), batch["valid"].tolist()))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def datamodule(folder: Path, **settings: Any) -> EpisodeDataModule:
    """Training and one evaluation set from the same folder."""
    sources = {"train": TrainingSource(str(folder)), "evaluation": {"all": EvaluationSource(str(folder))}}
    return EpisodeDataModule(**{**sources, "image_size": 16, "batch_size": 4, "batches_per_epoch": 5, **settings})


def trainer(callbacks: Iterable[Callback] = (), **settings: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    callbacks = list(callbacks)
    return Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        enable_checkpointing=bool(callbacks),
        **{"devices": 1, "max_epochs": -1, **quiet, **settings},
    )


def main(folder: str, out: str) -> None:
    """Train on two ranks; each writes what it saw to a file of its own."""
    model, data = Recorder(), datamodule(Path(folder), eval_batch_size=3, num_workers=1)
    run = trainer(devices=2, strategy="ddp", max_steps=7, val_check_interval=3)
    run.fit(model, data)
    seen = {"trained": model.trained, "validated": model.validated}
    (Path(out) / f"rank{run.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])

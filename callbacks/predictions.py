"""Predicted masks as files."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from ldis_lightning.callbacks.runs import run_folder, set_name, write_atomically
from ldis_lightning.evaluation.scoring import restore_logits


class PredictedMasks(Callback):
    """During `predict` writes every episode's mask as `<run folder>/predictions/<set>/<query>.<class>.png`.

    An 8-bit PNG of the query's original size: 255 the concept, 0 not. Every rank writes its own episodes.
    """

    def __init__(self) -> None:
        self._folder = Path()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the folder; on every rank, as that is a collective call."""
        self._folder = run_folder(trainer) / "predictions"

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the masks of a batch from the step's `{"logits": (B, H, W)}`."""
        folder = self._folder / set_name(trainer, dataloader_idx)
        for episode in batch["valid"].nonzero()[:, 0].tolist():
            meta = batch["meta"][episode]
            logits = restore_logits(outputs["logits"][episode], meta["content"], meta["original_size"])  # (H0, W0)
            mask = Image.fromarray(np.where(logits.cpu().numpy() > 0, 255, 0).astype(np.uint8))
            name = meta["class_name"] or f"class {int(batch['class_id'][episode])}"
            write_atomically(folder / file_name(meta["query_key"], name), mask.save)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the masks are."""
        rank_zero_info(f"The masks are in {self._folder}")


def file_name(key: str, class_name: str) -> str:
    """`clip/00001` and `wild cat` -> `clip_00001.wild_cat.png`; what is no letter, digit, dash or dot becomes `_`."""
    return ".".join([*(re.sub(r"[^\w.-]", "_", part) for part in (key, class_name)), "png"])

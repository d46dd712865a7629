from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ldis_lightning.callbacks import PredictedMasks
from ldis_lightning.callbacks.predictions import file_name


class LeftHalf(pl.LightningModule):
    """Predicts the left half of the square."""

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, torch.Tensor]:
        logits = torch.full((len(batch["valid"]), 8, 8), -1.0)
        logits[:, :, :4] = 1.0
        return {"logits": logits}


def test_masks_are_written_at_the_original_size_and_padding_is_not(tmp_path: Path) -> None:
    meta = {"content": (0, 0, 4, 8), "original_size": (20, 40), "class_name": "wild cat"}
    batch = {
        "valid": torch.tensor([True, False]),
        "class_id": torch.tensor([3, 3]),
        "meta": [{**meta, "query_key": "clip/00001"}, {**meta, "query_key": "padding"}],
    }
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[PredictedMasks()], barebones=False,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.predict(LeftHalf(), DataLoader([batch], batch_size=None))  # pyright: ignore[reportArgumentType]
    (path,) = tmp_path.rglob("*.png")
    assert path == tmp_path / "predictions" / "0" / "clip_00001.wild_cat.png"
    mask = np.asarray(Image.open(path))
    assert mask.shape == (20, 40)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[:, :20].all()
    assert not mask[:, 21:].any()


def test_no_key_leaves_the_folder() -> None:
    assert "/" not in file_name("../../etc/passwd", "a/b")

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from fake_clips import clip_steps, halves, make_step
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch.utils.data import DataLoader

from ldis_lightning.callbacks import Previews
from ldis_lightning.callbacks.previews import clip_picture, episode_picture
from ldis_lightning.callbacks.tiles import write_tiles
from ldis_lightning.episode import ClipBatch, EpisodeBatch
from ldis_lightning.errors import UserError


def make_batch(class_id: int = 1, valid: tuple[bool, ...] = (True, True, True), references: int = 1) -> dict[str, Any]:
    """A batch as it is on the device; every query is all concept."""
    count = len(valid)
    return {
        "query_image": torch.zeros(count, 3, 8, 8),
        "query_mask": torch.ones(count, 8, 8, dtype=torch.uint8),
        "reference_image": torch.zeros(count, references, 3, 8, 8),
        "reference_mask": torch.ones(count, references, 8, 8, dtype=torch.uint8),
        "class_id": torch.full((count,), class_id),
        "valid": torch.tensor(valid),
        "seed": torch.zeros(count, dtype=torch.int64),
        "meta": [{"class_name": f"class-{i}"} for i in range(count)],
    }


def loader(batches: Any) -> DataLoader:
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)


class Batches(pl.LightningDataModule):
    """Two evaluation sets of three batches each; the second one's first batch is all padding."""

    evaluation_names = ("seen", "novel")

    def train_dataloader(self) -> DataLoader:
        return loader([make_batch()] * 2)

    def val_dataloader(self) -> list[DataLoader]:
        empty = make_batch(valid=(False, False, False))
        sets = [[make_batch()] * 3, [empty, make_batch(2, (True, False, True)), make_batch(2)]]
        return [loader(batches) for batches in sets]

    test_dataloader = val_dataloader


class Oracle(pl.LightningModule):
    """Predicts everything."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        return self.weight

    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return {"logits": torch.ones(batch["query_mask"].shape)}

    test_step = validation_step


class Mute(Oracle):
    """Returns what modules without masks return."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.output

    test_step = validation_step


def make_trainer(folder: Path, previews: Previews, logger: Any = False, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=logger, callbacks=[previews], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def test_writes_one_picture_a_set_without_a_logger(tmp_path: Path) -> None:
    previews = Previews(episodes=4)
    make_trainer(tmp_path, previews).test(Oracle(), datamodule=Batches(), verbose=False)
    folder = tmp_path / "previews"
    assert previews.written == [folder / "test-seen-step0.png", folder / "test-novel-step0.png"]
    assert sorted(folder.iterdir()) == sorted(previews.written)  # and nothing temporary
    with Image.open(previews.written[0], formats=["PNG"]) as picture:
        assert picture.height > 4 * 128  # four rows of tiles


def test_draws_each_validation_but_not_the_sanity_check(tmp_path: Path) -> None:
    previews = Previews(episodes=1)
    trainer = make_trainer(tmp_path, previews, max_epochs=2, num_sanity_val_steps=2)
    trainer.fit(Oracle(), datamodule=Batches())
    names = {path.name for path in (tmp_path / "previews").iterdir()}
    assert names == {f"val-{name}-step{step}.png" for name in ("seen", "novel") for step in (2, 4)}


def test_draws_every_nth_validation(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Previews(episodes=1, every_n_val=2), max_epochs=3, num_sanity_val_steps=1)
    trainer.fit(Oracle(), datamodule=Batches())
    names = {path.name for path in (tmp_path / "previews").iterdir()}
    assert names == {f"val-{name}-step{step}.png" for name in ("seen", "novel") for step in (2, 6)}


def test_tensorboard_gets_the_same_picture(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    previews = Previews(episodes=1)
    logger = TensorBoardLogger(tmp_path, name="run")
    make_trainer(tmp_path, previews, logger).test(Oracle(), datamodule=Batches(), verbose=False)
    logger.finalize("success")
    assert previews.written[1] == Path(logger.log_dir) / "previews" / "test-novel-step0.png"
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["images"] == ["test/seen", "test/novel"]
    with Image.open(previews.written[1], formats=["PNG"]) as picture:
        image = events.Images("test/novel")[0]
        assert (image.width, image.height) == picture.size


@pytest.mark.parametrize("output", [None, torch.zeros(()), {"loss": torch.zeros(())}])
def test_a_module_without_logits_draws_nothing(tmp_path: Path, output: Any) -> None:
    previews = Previews()
    make_trainer(tmp_path, previews).test(Mute(output), datamodule=Batches(), verbose=False)
    assert previews.written == []
    assert not (tmp_path / "previews").exists()


def test_keeps_the_first_valid_episodes_of_each_set(tmp_path: Path) -> None:
    previews = Previews(episodes=4)
    make_trainer(tmp_path, previews).test(Oracle(), datamodule=Batches(), verbose=False)
    kept = {name: [episode.name for episode in episodes] for name, episodes in previews._collected.items()}
    assert kept["seen"] == ["class-0", "class-1", "class-2", "class-0"]
    assert kept["novel"] == ["class-0", "class-2", "class-0", "class-1"]  # the padding in between is skipped


def test_other_ranks_write_nothing_but_join_the_collective_call(tmp_path: Path) -> None:
    class Rank1(SimpleNamespace):
        asked = 0

        @property
        def log_dir(self) -> str:
            self.asked += 1  # Lightning broadcasts it: a rank that does not ask leaves the others waiting
            return str(tmp_path)

    trainer: Any = Rank1(is_global_zero=False, sanity_checking=False, loggers=[], global_step=3, datamodule=None)
    module: Any = None
    previews = Previews()
    previews.on_test_epoch_start(trainer, module)
    previews.on_test_batch_end(trainer, module, {"logits": torch.ones(3, 8, 8)}, make_batch(), 0)
    previews.on_test_epoch_end(trainer, module)
    previews.on_validation_epoch_end(trainer, module)
    assert trainer.asked == 2
    assert list(tmp_path.iterdir()) == []


def test_episode_picture_of_a_batch() -> None:
    batch = make_batch(class_id=9, references=5)
    batch["query_image"][1, 0] = -1.0
    batch["query_image"][1, 1] = 1.0
    batch["meta"][1] = {"class_name": ""}
    logits = torch.zeros(3, 8, 8)
    logits[1, 0, 0] = 0.5
    picture = episode_picture(EpisodeBatch(**batch), logits.to(torch.bfloat16), 1)
    assert picture.name == "class 9"
    assert len(picture.references) == 3
    assert picture.query.dtype == np.uint8
    assert picture.query[0, 0].tolist() == [0, 255, 128]
    assert picture.prediction.sum() == 1  # a logit of 0 is background
    assert picture.iou == 1 / 64


class Clips(pl.LightningDataModule):
    """One set: a step of padding, then three clips in steps of two frames."""

    evaluation_names = ("davis",)

    def val_dataloader(self) -> DataLoader:
        steps = [step for clip in ("bear", "camel", "dog") for step in clip_steps(clip, 5, 2)]
        return loader([make_step("bear", [], padding=2), *steps])

    test_dataloader = val_dataloader


class ClipOracle(Oracle):
    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return halves(batch)

    test_step = validation_step


@pytest.mark.parametrize(("episodes", "rows"), [(8, 3), (2, 2)])
def test_clips_give_one_row_each(episodes: int, rows: int, tmp_path: Path) -> None:
    previews = Previews(episodes=episodes)
    make_trainer(tmp_path, previews).test(ClipOracle(), datamodule=Clips(), verbose=False)
    kept = [(row.clip, row.frame) for row in previews._collected["davis"]]
    assert kept == [("bear", 2), ("camel", 2), ("dog", 2)][:rows]
    with Image.open(tmp_path / "previews" / "test-davis-step0.png", formats=["PNG"]) as picture:
        assert picture.height > rows * 128


def test_clip_picture_of_a_step() -> None:
    step = make_step("bear", [4, 9], first=1)
    step["query_image"][1, 0] = 1.0
    step["labels"][1] = 1
    picture = clip_picture(ClipBatch(**step), halves(step)["logits"], 1)
    assert (picture.clip, picture.frame, picture.concepts) == ("bear", 9, ["cat", "dog"])
    assert picture.query.shape == (4, 8, 3)  # the padding is cut off
    assert picture.query[0, 0].tolist() == [255, 128, 128]
    assert picture.truth.tolist() == [[1] * 8] * 4
    assert picture.prediction.tolist() == [[1] * 4 + [0] * 4] * 2 + [[1] * 4 + [2] * 4] * 2
    assert picture.prompt[0].shape == (10, 20, 3)
    assert picture.miou == (0.5 + 0) / 2


def test_a_test_leaves_the_squares_of_each_row_as_files(tmp_path: Path) -> None:
    make_trainer(tmp_path, Previews(episodes=4)).test(Oracle(), datamodule=Batches(), verbose=False)
    rows = json.loads((tmp_path / "tiles/novel/tiles.json").read_text())
    assert [row["name"] for row in rows] == ["class-0", "class-2", "class-0", "class-1"]  # without the padding
    assert [row["iou"] for row in rows] == [1.0] * 4  # everything is predicted, and everything is true
    for row in rows:
        assert list(row["files"]) == ["reference 1", "query", "truth", "prediction"]
        sizes = {Image.open(tmp_path / "tiles/novel" / name).size for name in row["files"].values()}
        assert sizes == {(160, 160)}


def test_squares_of_a_clip(tmp_path: Path) -> None:
    logits = torch.full((3, 2, 4, 8), -1.0)
    row = clip_picture(ClipBatch(**make_step("bear", frames=[1, 2, 3])), logits, 2)
    write_tiles(tmp_path, [row])
    (listed,) = json.loads((tmp_path / "tiles.json").read_text())
    assert listed["name"] == f"{row.clip}, frame {row.frame}"
    assert list(listed["files"]) == ["prompt", "query", "truth", "prediction"]
    assert all((tmp_path / name).is_file() for name in listed["files"].values())


def test_a_clip_without_its_first_frame_shows_a_reference() -> None:
    step = make_step("bear", [4])
    step["reference_mask"][0, 0, 2] = 1
    step["reference_mask"][0, 0, 3] = 255
    image, labels = clip_picture(ClipBatch(**step), halves(step)["logits"], 0).prompt
    assert image.shape == (8, 8, 3)
    assert labels.sum(1).tolist() == [0, 0, 8, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("option", ["episodes", "every_n_val"])
def test_zero_is_refused_by_name(option: str) -> None:
    with pytest.raises(UserError, match=f"Previews.{option} must be at least 1"):
        Previews(**{option: 0})


def test_the_root_folders_name_is_refused() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", "import callbacks"]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert process.returncode != 0
    assert "import ldis_lightning.callbacks instead of callbacks" in process.stderr

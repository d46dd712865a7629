import gc
import tracemalloc
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from fake_clips import clip_steps, halves, make_step
from PIL import Image
from torch.utils.data import DataLoader

from ldis_lightning.callbacks import PredictedMasks
from ldis_lightning.callbacks.movies import Gif
from ldis_lightning.callbacks.predictions import file_name
from ldis_lightning.errors import UserError


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


class ClipModule(pl.LightningModule):
    """Predicts `halves`, and runs into `fault` at its third step."""

    def __init__(self, fault: BaseException | None = None) -> None:
        super().__init__()
        self.fault = fault

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, torch.Tensor]:
        if batch_idx == 2 and self.fault is not None:
            raise self.fault
        return halves(batch)


def predict(folder: Path, steps: Iterable[dict[str, Any]], callback: PredictedMasks, fault: Any = None) -> Path:
    """Run Lightning's loop over one set of clips; returns the set's folder."""
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, default_root_dir=folder, callbacks=[callback], barebones=False,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    loader: Any = DataLoader(list(steps), batch_size=None, collate_fn=lambda step: step)  # pyright: ignore[reportArgumentType]
    trainer.predict(ClipModule(fault), loader, return_predictions=False)
    return folder / "predictions" / "0"


def hooks(callback: PredictedMasks, folder: Path, steps: Iterable[dict[str, Any]], finish: bool = True) -> None:
    """The same without Lightning's loop."""
    trainer: Any = SimpleNamespace(log_dir=str(folder), datamodule=None)
    module: Any = None
    callback.on_predict_start(trainer, module)
    for number, step in enumerate(steps):
        callback.on_predict_batch_end(trainer, module, halves(step), step, number)
    if finish:
        callback.on_predict_end(trainer, module)


def labels_of(path: Path) -> np.ndarray:
    with Image.open(path, formats=["PNG"]) as picture:
        return np.asarray(picture)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def frames_in(movie: Path) -> int:
    with Image.open(movie, formats=["GIF"]) as picture:
        return picture.n_frames  # pyright: ignore[reportAttributeAccessIssue]


def test_clips_become_label_maps_and_a_movie(tmp_path: Path) -> None:
    steps = [*clip_steps("bear", 5, 2), *clip_steps("a/b", 2, 2)]
    folder = predict(tmp_path, steps, PredictedMasks(movie="gif"))
    (other,) = {path.name for path in folder.iterdir() if path.is_dir()} - {"bear"}
    numbers = [f"bear/{number:05d}.png" for number in range(6)]
    assert listing(folder) == sorted(
        [*numbers, "bear.gif", f"{other}.gif", *(f"{other}/0000{i}.png" for i in range(3))]
    )
    assert (frames_in(folder / "bear.gif"), frames_in(folder / f"{other}.gif")) == (6, 3)

    prompt = labels_of(folder / "bear/00000.png")
    assert (prompt[:5] == 3).all()
    assert not prompt[5:9].any()
    assert (prompt[9] == 255).all()  # the annotation as it was given
    predicted = labels_of(folder / "bear/00004.png")
    assert predicted.shape == (10, 20)
    assert (predicted[:, :10] == 3).all()
    assert (predicted[6:, 11:] == 7).all()
    assert not predicted[:4, 11:].any()


def test_a_label_above_254_makes_the_clips_pngs_16_bit(tmp_path: Path) -> None:
    folder = predict(tmp_path, clip_steps("bear", 1, 2, values=(3, 1000)), PredictedMasks(movie="none"))
    assert listing(folder) == ["bear/00000.png", "bear/00001.png"]
    labels = labels_of(folder / "bear/00001.png")
    assert labels.dtype == np.uint16
    assert set(np.unique(labels)) == {0, 3, 1000}


def test_steps_that_are_all_padding_write_nothing(tmp_path: Path) -> None:
    steps = [*clip_steps("bear", 2, 2), make_step("bear", [], padding=2), make_step("none", [], padding=2)]
    folder = predict(tmp_path, steps, PredictedMasks(movie="gif"))
    assert listing(folder) == ["bear.gif", *(f"bear/0000{number}.png" for number in range(3))]
    assert frames_in(folder / "bear.gif") == 3


def test_pictures_at_the_original_size_are_shown_if_the_batch_has_them(tmp_path: Path) -> None:
    step = make_step("bear", [1], names=["cat"], values=[1], original=(480, 320))
    step["images_original"] = [np.full((480, 320, 3), (10, 200, 30), np.uint8)]
    step["query_image"][:] = 1.0
    callback = PredictedMasks(movie="gif")
    trainer: Any = SimpleNamespace(log_dir=str(tmp_path), datamodule=None)
    module: Any = None
    callback.on_predict_start(trainer, module)
    callback.on_predict_batch_end(trainer, module, {"logits": torch.full((1, 1, 8, 8), -1.0)}, step, 0)
    callback.on_predict_end(trainer, module)
    with Image.open(tmp_path / "predictions/0/bear.gif", formats=["GIF"]) as movie:
        assert movie.convert("RGB").getpixel((50, 50)) == (10, 200, 30)


@pytest.mark.parametrize("fault", [RuntimeError("boom"), KeyboardInterrupt()])
def test_an_interrupted_run_leaves_no_half_movie(fault: BaseException, tmp_path: Path) -> None:
    steps = [*clip_steps("done", 1, 2), *clip_steps("half", 9, 2)]
    with pytest.raises((RuntimeError, SystemExit)):
        predict(tmp_path, steps, PredictedMasks(movie="gif"), fault)
    written = listing(tmp_path / "predictions" / "0")
    assert [name for name in written if not name.endswith(".png")] == ["done.gif"]
    assert "half/00001.png" in written


def test_a_movie_takes_its_name_only_when_its_clip_is_complete(tmp_path: Path) -> None:
    hooks(PredictedMasks(movie="gif"), tmp_path, [*clip_steps("done", 2, 1), *clip_steps("open", 2, 1)], finish=False)
    folder = tmp_path / "predictions" / "0"
    assert (folder / "done.gif").exists()
    assert not (folder / "open.gif").exists()
    assert (folder / "open" / "00002.png").exists()


def test_clips_that_a_file_system_might_confuse_get_files_of_their_own(tmp_path: Path) -> None:
    names = ["bear", "Bear", "a b", "a_b", "../bear"]
    steps = [step for name in names for step in clip_steps(name, 1, 1)]
    steps += clip_steps("bear", 1, 1, context="other references")
    folder = predict(tmp_path, steps, PredictedMasks(movie="gif"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions"]
    assert len({path.name.casefold() for path in folder.glob("*.gif")}) == 6
    assert len(listing(folder)) == 6 * 3


def test_a_second_run_overwrites_the_first(tmp_path: Path) -> None:
    callback = PredictedMasks(movie="gif")
    for _ in range(2):
        hooks(callback, tmp_path, clip_steps("bear", 2, 2))
    assert len(listing(tmp_path)) == 4


@pytest.mark.parametrize("movie", ["gif", "mp4"])
def test_frames_do_not_pile_up(movie: Any, tmp_path: Path) -> None:
    if movie == "mp4":
        pytest.importorskip("av")
    alive: list[weakref.ref] = []

    def steps() -> Iterable[dict[str, Any]]:
        for number, step in enumerate(clip_steps("long", 40, 2)):
            alive.append(weakref.ref(step["query_image"]))
            yield step
            if number == 10:
                del step
                gc.collect()
                assert sum(ref() is not None for ref in alive) <= 1

    hooks(PredictedMasks(movie=movie), tmp_path, steps())
    assert len(alive) == 20


def test_a_long_clip_takes_no_more_memory_than_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gif, "least", 20)  # as the frames are: quick to draw
    monkeypatch.setattr(Gif, "MOST_FRAMES", 20)  # those that are left out are quicker still
    held: list[int] = []

    def steps() -> Iterable[dict[str, Any]]:
        for number, step in enumerate(clip_steps("long", 2000, 20)):
            if number == 70:
                tracemalloc.start()  # of the last 600 frames alone, for tracing is slow
            if number in (75, 99):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
            yield step

    try:
        hooks(PredictedMasks(movie="gif"), tmp_path, steps())
    finally:
        tracemalloc.stop()
    assert held[1] - held[0] < 40_000  # the labels alone of the frames between are 96,000 bytes
    assert len(listing(tmp_path)) == 2002


@pytest.mark.parametrize("options", [{"movie": "avi"}, {"fps": 0.0}, {"fps": 1000.0}, {"fps": float("nan")}])
def test_mistakes_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"PredictedMasks.{next(iter(options))}"):
        PredictedMasks(**options)

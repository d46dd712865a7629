"""Predicted masks as files."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor

from ldis_lightning.callbacks.clips import ClipFiles, named_apart, safe_name
from ldis_lightning.callbacks.movies import Gif, Movie, Mp4
from ldis_lightning.callbacks.pixels import Pixels, image_pixels
from ldis_lightning.callbacks.runs import run_folder, set_name
from ldis_lightning.episode import ClipBatch, EpisodeBatch, is_clip_batch
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.fusion import fuse_concepts
from ldis_lightning.evaluation.scoring import restore_logits
from ldis_lightning.files import write_atomically

MOVIES: dict[str, type[Movie] | None] = {"mp4": Mp4, "gif": Gif, "none": None}


class PredictedMasks(Callback):
    """During `predict` writes the predicted masks below `<run folder>/predictions/<set>/`. Every rank writes its own.

    An episode becomes `<query>.<class>.png`, 8 bits, of the query's original size: 255 the concept, 0 not.

    A clip becomes `<clip>/<frame>.png`, a frame each: the concepts fused (METHOD eq. 7) at the original size, as an
    indexed PNG whose pixels are the data set's own labels (16-bit grey where one is above 254); the frame that prompts
    the clip gets its annotation. `<clip>.mp4` or `<clip>.gif` shows the same over the pictures, and appears once its
    clip is complete. Frames are written as they arrive: a long clip takes no more memory than a short one.
    """

    def __init__(self, movie: Literal["mp4", "gif", "none"] = "mp4", fps: float = 15.0) -> None:
        """
        Args:
            movie: what to show a clip in: `mp4` (needs PyAV), `gif` (at most 480 pixels and 300 frames), `none`.
            fps: frames a second of the movie, from 0.1 to 240.

        Raises:
            UserError: one of them is none of these.
        """
        if movie not in MOVIES:
            raise UserError(f"PredictedMasks.movie must be one of {', '.join(MOVIES)}, got {movie!r}")
        if not 0.1 <= fps <= 240:
            raise UserError(f"PredictedMasks.fps must be from 0.1 to 240, got {fps}")
        self.movie = movie
        self.fps = fps
        self._folder = Path()
        self._clip: ClipFiles | None = None
        self._clip_key: tuple[int, str, str] | None = None  # set, clip, context
        self._named: dict[tuple[int, str], tuple[int, str, str]] = {}  # (set, file name) -> whose it is

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the folder; on every rank, as that is a collective call."""
        self._folder = run_folder(trainer) / "predictions"
        self._named = {}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write what the step predicted: `{"logits": (B, H, W)}` of episodes, `{"logits": (F, C, H, W)}` of a clip."""
        folder = self._folder / set_name(trainer, dataloader_idx)
        if is_clip_batch(batch):
            self._write_step(folder, dataloader_idx, outputs["logits"], batch)
        else:
            write_episodes(folder, outputs["logits"], batch)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the last clip, and say where the masks are."""
        self._finish_clip()
        rank_zero_info(f"The masks are in {self._folder}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no half movie behind; Lightning calls this when a run is interrupted, too."""
        clip, self._clip, self._clip_key = self._clip, None, None
        if clip is not None:
            clip.discard()

    def _write_step(self, folder: Path, dataloader_idx: int, logits: Tensor, batch: ClipBatch) -> None:
        frames = batch["valid"].nonzero()[:, 0].tolist()
        if not frames:
            return
        key = (dataloader_idx, batch["meta"][frames[0]]["clip"], batch["context"])
        if key != self._clip_key:
            self._finish_clip()
            self._clip, self._clip_key = self._new_clip(folder, key, batch), key
        assert self._clip is not None
        if "first_frame" in batch:
            first = batch["first_frame"]
            self._clip.add(first["frame"], first["image"], first["labels"], note="prompt")
        for frame, picture, labels in fused_frames(logits, batch, frames):
            self._clip.add(frame, picture, labels)

    def _new_clip(self, folder: Path, key: tuple[int, str, str], batch: ClipBatch) -> ClipFiles:
        clip = key[1]
        name = safe_name(clip)
        # Some file systems take `Cat` and `cat` for one; and a clip may be asked for twice, with other references.
        if self._named.setdefault((key[0], name.casefold()), key) != key:
            name = named_apart(name, f"{clip}\n{key[2]}")
        names, values = batch["class_names"], batch["label_values"]
        return ClipFiles(folder, name, clip, names, values, MOVIES[self.movie], self.fps)

    def _finish_clip(self) -> None:
        clip, self._clip, self._clip_key = self._clip, None, None
        if clip is not None:
            clip.finish()


def write_episodes(folder: Path, logits: Tensor, batch: EpisodeBatch) -> None:
    """A mask of each episode of a batch, from its logits (B, H, W)."""
    for episode in batch["valid"].nonzero()[:, 0].tolist():
        meta = batch["meta"][episode]
        restored = restore_logits(logits[episode], meta["content"], meta["original_size"])  # (H0, W0)
        mask = Image.fromarray(np.where(restored.cpu().numpy() > 0, 255, 0).astype(np.uint8))
        name = meta["class_name"] or f"class {int(batch['class_id'][episode])}"
        write_atomically(folder / file_name(meta["query_key"], name), mask.save)


def fused_frames(logits: Tensor, batch: ClipBatch, frames: list[int]) -> Iterator[tuple[int, Pixels, Pixels]]:
    """Number, picture (h, w, 3) and labels (H0, W0) uint8 of some frames of a step, one at a time.

    Args:
        logits: (F, C, H, W).
        batch: the step.
        frames: positions in the step.
    """
    for position in frames:
        meta = batch["meta"][position]
        restored = restore_logits(logits[position], meta["content"], meta["original_size"])  # (C, H0, W0)
        yield meta["frame"], frame_pixels(batch, position), fuse_concepts(restored[None])[0].cpu().numpy()


def frame_pixels(batch: ClipBatch, position: int) -> Pixels:
    """A frame's picture (h, w, 3): at its original size if the batch has it, else at the model's, without padding."""
    originals = batch.get("images_original")
    if originals is not None:
        return np.asarray(originals[position])
    top, left, height, width = batch["meta"][position]["content"]
    return image_pixels(batch["query_image"][position, :, top : top + height, left : left + width])


def file_name(key: str, class_name: str) -> str:
    """`clip/00001` and `wild cat` -> `clip_00001.wild_cat.png`; what is no letter, digit, dash or dot becomes `_`."""
    return ".".join([*(re.sub(r"[^\w.-]", "_", part) for part in (key, class_name)), "png"])

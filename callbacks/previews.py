"""Pictures of the first episodes of each evaluation set, after every validation and test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldis_lightning.callbacks.clip_drawing import ClipPicture, draw_clips
from ldis_lightning.callbacks.drawing import MAX_REFERENCES, EpisodePicture, draw_episodes
from ldis_lightning.callbacks.pixels import Pixels, image_pixels
from ldis_lightning.callbacks.runs import run_folder, set_name
from ldis_lightning.callbacks.tiles import write_tiles
from ldis_lightning.episode import ClipBatch, EpisodeBatch, is_clip_batch
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.fusion import fuse_concepts
from ldis_lightning.files import write_atomically


class Previews(Callback):
    """Writes `<run folder>/previews/<stage>-<set>-step<N>.png` and shows the same picture in TensorBoard.

    Each row is an episode: its references, the query, the true mask and the predicted one. It knows no model: it draws
    what the step returns, `{"logits": (B, H, W)}` with foreground where > 0, and nothing where no logits are returned.
    Of a set of clips each row is another clip: the frame that prompts it, and from `{"logits": (F, C, H, W)}` the last
    frame of its first step, all concepts in their colours. Rank 0 draws its own share, so that nothing is gathered.
    Sanity checks are not drawn. After a test the squares of each row are files of their own in
    `<run folder>/tiles/<set>`, for `ldis report`: see `write_tiles`.
    """

    def __init__(self, episodes: int = 8, every_n_val: int = 1) -> None:
        """
        Args:
            episodes: rows of a picture, at least 1.
            every_n_val: draw at every n-th validation, at least 1. Tests are always drawn.

        Raises:
            UserError: one of them is below 1.
        """
        for name, value in [("episodes", episodes), ("every_n_val", every_n_val)]:
            if value < 1:
                raise UserError(f"Previews.{name} must be at least 1, got {value}")
        self.episodes = episodes
        self.every_n_val = every_n_val
        self.written: list[Path] = []
        """The pictures of the latest validation or test, in the order of the sets."""
        self._validations = 0
        self._collected: dict[str, list[Any]] = {}  # set -> its EpisodePictures or ClipPictures

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation's episodes."""
        self._collected = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last test's episodes."""
        self._collected = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first episodes of each set, if this validation is to be drawn."""
        if self._validations % self.every_n_val == 0:
            self._collect(trainer, outputs, batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first episodes of each set."""
        self._collect(trainer, outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was kept."""
        if not trainer.sanity_checking:
            self._validations += 1
            self._write(trainer, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was kept."""
        self._write(trainer, "test")

    def _collect(self, trainer: Trainer, outputs: Any, batch: Any, dataloader_idx: int) -> None:
        """Copy what is still missing of a set's rows to the host; afterwards this costs nothing."""
        if not trainer.is_global_zero or not isinstance(outputs, dict) or "logits" not in outputs:
            return
        kept: list[Any] = self._collected.setdefault(set_name(trainer, dataloader_idx), [])
        missing = self.episodes - len(kept)
        if missing <= 0:
            return
        if is_clip_batch(batch):
            if batch["meta"][0]["clip"] not in {picture.clip for picture in kept}:
                last = batch["valid"].nonzero()[-1:, 0].tolist()
                kept.extend(clip_picture(batch, outputs["logits"], position) for position in last)
        else:
            chosen = batch["valid"].nonzero()[:missing, 0].tolist()
            kept.extend(episode_picture(batch, outputs["logits"], episode) for episode in chosen)

    def _write(self, trainer: Trainer, stage: str) -> None:
        """One picture a set. All ranks get here, because `run_folder` must be called on each."""
        folder = run_folder(trainer) / "previews"
        self.written = []
        for name, rows in self._collected.items():
            if not rows:
                continue
            picture = draw_rows(rows, f"{stage} / {name}, step {trainer.global_step}")
            path = folder / f"{stage}-{name}-step{trainer.global_step}.png"
            write_atomically(path, picture.save)
            self.written.append(path)
            if stage == "test":
                write_tiles(folder.parent / "tiles" / name, rows)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    pixels = np.asarray(picture)  # (height, width, 3)
                    logger.experiment.add_image(f"{stage}/{name}", pixels, trainer.global_step, dataformats="HWC")


def draw_rows(rows: Sequence[Any], title: str) -> Image.Image:
    """The picture of a set, whose rows are all `ClipPicture` or all `EpisodePicture`."""
    return draw_clips(rows, title) if isinstance(rows[0], ClipPicture) else draw_episodes(list(rows), title)


def episode_picture(batch: EpisodeBatch, logits: Tensor, episode: int) -> EpisodePicture:
    """Episode number `episode` of a batch on the device, with its logits (B, H, W), as host arrays."""
    images = batch["reference_image"][episode, :MAX_REFERENCES]  # (K, 3, h, w)
    masks = batch["reference_mask"][episode, :MAX_REFERENCES].cpu().numpy()  # (K, h, w)
    return EpisodePicture(
        name=batch["meta"][episode]["class_name"] or f"class {int(batch['class_id'][episode])}",
        references=[(image_pixels(image), mask) for image, mask in zip(images, masks, strict=True)],
        query=image_pixels(batch["query_image"][episode]),
        truth=batch["query_mask"][episode].cpu().numpy(),
        prediction=(logits[episode] > 0).cpu().numpy(),
    )


def clip_picture(batch: ClipBatch, logits: Tensor, position: int) -> ClipPicture:
    """Frame at `position` of a step on the device, with its logits (F, C, H, W), as host arrays without padding."""
    meta = batch["meta"][position]
    top, left, height, width = meta["content"]
    rows, columns = slice(top, top + height), slice(left, left + width)
    return ClipPicture(
        clip=meta["clip"],
        frame=meta["frame"],
        concepts=batch["class_names"],
        prompt=_prompt(batch),
        query=image_pixels(batch["query_image"][position, :, rows, columns]),
        truth=batch["labels"][position, rows, columns].cpu().numpy(),
        prediction=fuse_concepts(logits[position : position + 1, :, rows, columns])[0].cpu().numpy(),
    )


def _prompt(batch: ClipBatch) -> tuple[Pixels, NDArray[np.uint8]]:
    """The frame that prompts the clip; where it is not there, the first concept's first reference."""
    if "first_frame" in batch:
        return batch["first_frame"]["image"], batch["first_frame"]["labels"]
    mask = batch["reference_mask"][0, 0].cpu().numpy()  # (h, w)
    return image_pixels(batch["reference_image"][0, 0]), (mask == 1).astype(np.uint8)

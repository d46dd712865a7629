"""Protocols for clips: the first frame and its annotation prompt all later frames."""

from collections.abc import Iterator

import numpy as np

from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.pairing import FirstFrame
from ldis_lightning.datamodules.pools import Catalogue
from ldis_lightning.datamodules.protocol import CLIPS, Protocol
from ldis_lightning.datamodules.source import EVALUATION, Episode, even_subset, raw_bits, uniforms
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.measures import JAndF


class FirstFramePrompt(Protocol):
    """Clips: the first frame that shows a class prompts all later ones, with every class that it shows.

    Classes that appear only later were never asked for; their pixels are background. `episodes` of the source counts
    frames. K is 1.

    Attributes:
        skip_last: the last frame of a clip is not scored.
    """

    pairing = FirstFrame
    by_clip = True
    skip_last: bool = False

    def draw(self, catalogue: Catalogue, references: int) -> list[Episode]:
        """See `Protocol`."""
        index, source = catalogue.index, catalogue.source
        if index.kind == "images":
            raise UserError(f"{source.shards} holds images, and the protocol {self.name} needs clips.")
        wanted = self._classes_of_rows(catalogue)
        frames = [(clip, *frame) for clip, rows in _clips(index) for frame in self._frames(rows, wanted)]
        if not frames:
            raise UserError(
                f"{source.shards}: no clip has a labelled frame and another after it ({catalogue.rules()})."
            )
        kept = even_subset(len(frames), source.episodes, source.seed).tolist()
        return [episode for i in kept for episode in self._episodes(catalogue, wanted, *frames[i])]

    def _frames(self, rows: list[int], wanted: dict[int, list[int]]) -> list[tuple[int, int]]:
        """(prompt, query) rows of a clip's frames."""
        first = next((place for place, row in enumerate(rows) if row in wanted), len(rows))
        later = rows[first + 1 : -1] if self.skip_last else rows[first + 1 :]
        return [(rows[first], row) for row in later]

    def _classes_of_rows(self, catalogue: Catalogue) -> dict[int, list[int]]:
        """Row -> the classes that it shows and that may be asked for."""
        shown: dict[int, list[int]] = {}
        for class_id in catalogue.classes:
            for row in catalogue.members(class_id).rows.tolist():
                shown.setdefault(row, []).append(class_id)
        return shown

    def _episodes(
        self, catalogue: Catalogue, wanted: dict[int, list[int]], clip: int, prompt: int, query: int
    ) -> Iterator[Episode]:
        classes = wanted[prompt]
        key = (EVALUATION, catalogue.source.seed, CLIPS, clip, int(catalogue.index.frame[query]))
        seeds, draws = raw_bits((*key, 0), len(classes)) >> np.uint64(1), uniforms((*key, 1), len(classes))
        for class_id, seed, draw in zip(classes, seeds.tolist(), draws.tolist(), strict=True):
            shown = next(iter(catalogue.treatment.shown_classes(class_id, classes, draw)), None)
            if shown is None:
                raise UserError(
                    f"{catalogue.source.shards}: {catalogue.index.clip_name(clip)} shows one class alone, so the "
                    f"treatment {type(catalogue.treatment).__name__} has no other one to show."
                )
            yield Episode(query, (prompt,), class_id, seed, shown)


class DAVIS(FirstFramePrompt):
    """DAVIS, semi-supervised: J&F at the original size, the first and last frame of each clip left out.

    Args:
        skip_last: False predicts and scores the last frame too; for a server that wants a mask of every frame.
    """

    name = "davis"
    measure = JAndF()

    def __init__(self, skip_last: bool = True) -> None:
        self.skip_last = skip_last


class VSPW(FirstFramePrompt):
    """VSPW: every class of the first frame in all later ones, fused (eq. 7 of METHOD); mIoU at the original size."""

    name = "vspw"


def _clips(index: ShardIndex) -> Iterator[tuple[int, list[int]]]:
    """The clips of a data set: number and rows in the order of their frames."""
    order = np.lexsort((index.frame, index.clip))
    order = order[index.clip[order] >= 0]
    starts = np.flatnonzero(np.diff(index.clip[order], prepend=-1))
    for rows in np.split(order, starts[1:]):
        if len(rows):
            yield int(index.clip[rows[0]]), rows.tolist()

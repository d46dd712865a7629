"""Evaluation of clips: which rank segments which frames, and how they are read. Some frames at a time, so that memory
does not grow with the length of a clip.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch

from ldis_lightning.datamodules.decode import FrameReader, reference_mask
from ldis_lightning.datamodules.fetch import episode_meta
from ldis_lightning.datamodules.pools import describe
from ldis_lightning.datamodules.source import Episode
from ldis_lightning.datamodules.stream import this_worker
from ldis_lightning.datamodules.treatment import ReferenceTreatment
from ldis_lightning.episode import IGNORE_INDEX, ClipBatch, FirstFrame
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.squares import fit_square, keep_concept


class ClipStep(NamedTuple):
    """Some successive frames of a clip, each with one episode for each of the clip's concepts, in the same order."""

    frames: list[list[Episode]]
    first: int  # position in the manifest of the first episode
    opens: bool  # it is the first step of its clip
    valid: bool = True  # False: padding


@dataclass
class ClipSteps:
    """Source stage: whole clips are dealt to ranks, the longest first to whoever has the least to do.

    Every rank runs equally many steps: the last one is repeated, not valid, where it has fewer.

    Args:
        episodes: those of a manifest whose protocol goes by clips: frame by frame, in each all concepts of its prompt.
        batch_size: episodes of a step, at most; a step has one frame at least.
        rank, world: which share to take. Given explicitly, because spawned workers do not know it.
    """

    episodes: Sequence[Episode]
    batch_size: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        shares: list[list[ClipStep]] = [[] for _ in range(self.world)]
        clips = sorted(clip_steps(self.episodes, self.batch_size), key=len, reverse=True)
        for clip in clips:
            min(shares, key=len).extend(clip)
        self._length = max(map(len, shares))
        spare = clips[0][0]._replace(valid=False)
        self._steps = shares[self.rank] + [spare] * (self._length - len(shares[self.rank]))

    def __len__(self) -> int:
        """Number of steps."""
        return self._length

    def __call__(self) -> Iterator[ClipStep]:
        """Steps of this worker."""
        worker, workers = this_worker()
        yield from self._steps[worker::workers]


def clip_steps(episodes: Sequence[Episode], batch_size: int) -> list[list[ClipStep]]:
    """The steps of each clip, of at most so many episodes, but whole frames. Frames of one clip share their prompt."""
    clips: list[list[ClipStep]] = []
    position = 0
    for _, of_clip in groupby(episodes, lambda episode: episode.references):
        by_frame = [list(of_frame) for _, of_frame in groupby(of_clip, lambda episode: episode.query)]
        frames, steps = max(1, batch_size // len(by_frame[0])), []
        for start in range(0, len(by_frame), frames):
            part = by_frame[start : start + frames]
            steps.append(ClipStep(part, position, opens=start == 0))
            position += sum(map(len, part))
        clips.append(steps)
    return clips


@dataclass
class ClipFetch:
    """Stage that reads the frames and the prompt of each step and makes a `ClipBatch` of them.

    Args:
        reader: the data set.
        treatment: what is done to the references.
        size: side of the squares.
        originals: add `images_original`, on which predictions are drawn.
    """

    reader: FrameReader
    treatment: ReferenceTreatment
    size: int
    originals: bool = False
    _prompt: tuple[int, tuple[np.ndarray, np.ndarray]] | None = field(default=None, init=False, repr=False)

    def __call__(self, steps: Iterable[ClipStep]) -> Iterator[ClipBatch | UserError]:
        """Batches. A `UserError` is passed on instead of raised: a loader would bury it in the worker's traceback."""
        for step in steps:
            try:
                yield self.batch(step)
            except UserError as error:
                yield error

    def batch(self, step: ClipStep) -> ClipBatch:
        """Read one step.

        Raises:
            UserError: a picture cannot be read, or there are too many concepts for a label map.
        """
        concepts = step.frames[0]  # one episode a concept
        class_ids = [episode.class_id for episode in concepts]
        if len(class_ids) >= IGNORE_INDEX:
            raise UserError(f"{self._key(concepts[0])}: a clip may have 254 concepts, and this has {len(class_ids)}.")
        prompt = self._read_prompt(concepts[0].references[0])
        references = self._references(*prompt, [episode.reference_class for episode in concepts])
        frames = [self._frame(of_frame, class_ids) for of_frame in step.frames]
        images, labels, originals, pictures = zip(*frames, strict=True)
        names = self.reader.index.classes
        batch = ClipBatch(
            query_image=_stack(images).permute(0, 3, 1, 2).contiguous(),  # (F, 3, H, W)
            reference_image=_stack([image for image, _ in references]).permute(0, 3, 1, 2)[:, None].contiguous(),
            reference_mask=_stack([mask for _, mask in references])[:, None],  # (C, 1, h, w)
            class_id=torch.tensor(class_ids),
            position=torch.arange(len(frames) * len(class_ids)).view(len(frames), -1) + step.first,  # (F, C)
            seed=torch.tensor([[episode.seed for episode in of_frame] for of_frame in step.frames]),
            valid=torch.full((len(frames),), step.valid),
            labels=_stack(labels),
            labels_original=[torch.from_numpy(original) for original in originals],
            meta=[
                episode_meta(self.reader.index, of_frame[0], "", original, self.size)
                for of_frame, original in zip(step.frames, originals, strict=True)
            ],
            class_names=[names.get(class_id, str(class_id)) for class_id in class_ids],
            label_values=class_ids,
            context=self._context(concepts),
        )
        if self.originals:
            batch["images_original"] = list(pictures)
        if step.opens and step.valid:
            batch["first_frame"] = self._first_frame(concepts[0].references[0], prompt, class_ids)
        return batch

    def _read_prompt(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture and label map of a prompt. The last one is kept, as the steps of a clip follow each other."""
        if self._prompt is None or self._prompt[0] != row:
            image, labels = self.reader.read(row)
            for array in (image, labels):
                array.setflags(write=False)  # other steps will get the same
            self._prompt = row, (image, labels)
        return self._prompt[1]

    def _frame(self, episodes: list[Episode], class_ids: list[int]) -> tuple[np.ndarray, ...]:
        """Picture and labels as squares, then labels and picture at the original size."""
        image, labels = self.reader.read(episodes[0].query)
        coded = numbered(labels, class_ids)
        crop = fit_square(labels.shape, self.size)
        return crop.image(image, self.size), crop.labels(coded, self.size), coded, image

    def _references(
        self, image: np.ndarray, labels: np.ndarray, class_ids: list[int]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The prompt as the reference of each class: one picture, another mask."""
        crop = fit_square(labels.shape, self.size)
        picture = crop.image(image, self.size)
        cuts = [keep_concept(crop, labels, class_id, self.size) for class_id in class_ids]
        masks = [reference_mask(cut, class_id) for cut, class_id in zip(cuts, class_ids, strict=True)]
        return [self.treatment.apply(picture, mask) for mask in masks]

    def _first_frame(self, row: int, prompt: tuple[np.ndarray, np.ndarray], class_ids: list[int]) -> FirstFrame:
        image, labels = prompt
        index = self.reader.index
        return FirstFrame(
            image=image, labels=numbered(labels, class_ids), key=index.key(row), frame=int(index.frame[row])
        )

    def _context(self, concepts: list[Episode]) -> str:
        shown = [(episode.references, episode.reference_class) for episode in concepts]
        return f"{self.reader.index.hash} {shown} {describe(self.treatment)} {self.size}"

    def _key(self, episode: Episode) -> str:
        return self.reader.index.key(episode.query)


def numbered(labels: np.ndarray, class_ids: Sequence[int]) -> np.ndarray:
    """Label map -> 0 none of the classes, 1 .. C the classes in order, 255 ignore. Shape as given, uint8."""
    coded = np.zeros(labels.shape, np.uint8)
    for number, class_id in enumerate(class_ids, start=1):
        coded[labels == class_id] = number
    coded[labels == IGNORE_INDEX] = IGNORE_INDEX
    return coded


def _stack(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays))

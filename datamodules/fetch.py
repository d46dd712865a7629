"""From episodes, which are numbers, to batches of pixels."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from ldis_lightning.datamodules.damage import DamagedSample, Substitutes
from ldis_lightning.datamodules.decode import FrameReader, concept_mask, reference_mask
from ldis_lightning.datamodules.geometry import Picture, TrainingGeometry
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.source import Episode
from ldis_lightning.datamodules.treatment import ReferenceTreatment
from ldis_lightning.episode import EpisodeBatch, EpisodeMeta
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.squares import fit_square, keep_concept


class Step(NamedTuple):
    """The episodes of one step of one rank."""

    episodes: list[Episode]
    valid: list[bool]
    positions: list[int]  # in the stream of training, or in the manifest of an evaluation set; -1 for padding
    damaged: tuple[DamagedSample, ...] = ()  # what was met in reading it, and replaced


class Sample(NamedTuple):
    """One episode as arrays."""

    query_image: np.ndarray  # (H, W, 3) uint8
    query_mask: np.ndarray  # (H, W) uint8 {0, 1, 255}
    reference_image: list[np.ndarray]  # K of (H, W, 3) uint8
    reference_mask: np.ndarray  # (K, H, W) uint8 {0, 1}
    meta: EpisodeMeta
    query_mask_original: np.ndarray | None  # (H0, W0) uint8 {0, 1, 255}; None in training


@dataclass
class Fetch:
    """Stage that reads, decodes and cuts the episodes of each step. Yields steps with their samples.

    Args:
        readers: the data sets; `Episode.source` says which of them an episode is from.
        treatments: what is done to the references of each.
        size: side of the squares.
        geometry: None in evaluation: the whole picture, padded.
        substitutes: what takes the place of an episode with a damaged sample; None in evaluation: it is an error.
    """

    readers: list[FrameReader]
    treatments: list[ReferenceTreatment]
    size: int
    geometry: TrainingGeometry | None = None
    substitutes: Substitutes | None = None

    def __call__(self, steps: Iterable[Step]) -> Iterator[tuple[Step, list[Sample]] | UserError]:
        """Samples. A `UserError` is passed on instead of raised: a loader would bury it in the worker's traceback."""
        for step in steps:
            try:
                yield self.read(step)
            except UserError as error:
                yield error

    def read(self, step: Step) -> tuple[Step, list[Sample]]:
        """Read the episodes of a step.

        Returns:
            the step with the episodes that were read and the damaged samples that were met, and their samples.

        Raises:
            UserError: one of the pictures cannot be read, and there is no substitute for its episode.
        """
        if self.substitutes is None:
            return step, [self.sample(episode) for episode in step.episodes]
        found = [
            self.substitutes.read(episode, position, self.sample)
            for episode, position in zip(step.episodes, step.positions, strict=True)
        ]
        episodes, samples, damaged = zip(*found, strict=True)
        return step._replace(episodes=list(episodes), damaged=tuple(chain(*damaged))), list(samples)

    def sample(self, episode: Episode) -> Sample:
        """Read one episode.

        Raises:
            UserError: one of its pictures cannot be read.
        """
        reader = self.readers[episode.source]
        query = _picture(reader, episode.query, episode.class_id)
        image, labels = self._square(query, episode.class_id, episode.seed, role=0)
        references = [self._reference(episode, role, row) for role, row in enumerate(episode.references, start=1)]
        name = reader.index.classes.get(episode.class_id, str(episode.class_id))
        meta = episode_meta(reader.index, episode, name, query.labels, self.size)
        if self.geometry is not None:
            meta["content"] = (0, 0, self.size, self.size)
        return Sample(
            image,
            concept_mask(labels, episode.class_id),
            [image for image, _ in references],
            np.stack([mask for _, mask in references]),
            meta,
            concept_mask(query.labels, episode.class_id) if self.geometry is None else None,
        )

    def _square(self, picture: Picture, class_id: int, seed: int, role: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut a picture. Its role (0 the query, k the k-th reference) makes its random numbers its own."""
        if self.geometry is not None:
            return self.geometry(picture, class_id, self.size, np.random.default_rng([seed, role]))
        crop = fit_square(picture.labels.shape, self.size)
        return crop.image(picture.image, self.size), keep_concept(crop, picture.labels, class_id, self.size)

    def _reference(self, episode: Episode, role: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        shown = episode.reference_class
        picture = _picture(self.readers[episode.source], row, shown)
        image, labels = self._square(picture, shown, episode.seed, role)
        return self.treatments[episode.source].apply(image, reference_mask(labels, shown))


def episode_meta(index: ShardIndex, episode: Episode, class_name: str, original: np.ndarray, size: int) -> EpisodeMeta:
    """Where an episode came from, and where its query lies in a square as `fit_square` cuts it.

    Args:
        index: the data set.
        episode: rows of it.
        class_name: of what is asked for, "" where the query is asked for several classes.
        original: (H0, W0, ...) the query's picture or label map.
        size: side of the square.
    """
    row, whole = episode.query, fit_square(original.shape, size)
    clip = int(index.clip[row])
    return EpisodeMeta(
        dataset=index.name,
        query_key=index.key(row),
        reference_keys=[index.key(reference) for reference in episode.references],
        class_name=class_name,
        clip=index.clip_name(clip) if clip >= 0 else "",
        frame=int(index.frame[row]) if clip >= 0 else -1,
        original_size=(original.shape[0], original.shape[1]),
        content=(0, 0, whole.height, whole.width),
    )


def _picture(reader: FrameReader, row: int, class_id: int) -> Picture:
    image, labels = reader.read_lazily(row)
    if not (labels == class_id).any() and class_id in reader.index.classes_of_row(row)[0]:
        shard = reader.index.shard_paths[reader.index.shard[row]]
        reason = f"its mask does not show class {class_id}, which the index says it does: index the shards again."
        raise DamagedSample(shard, reader.index.key(row), reason)
    return Picture(image, labels, in_clip=bool(reader.index.clip[row] >= 0))


@dataclass
class Collate:
    """Stage that makes an `EpisodeBatch` of each step.

    Args:
        evaluation: add `position` and `query_mask_original`, which evaluation scores with.
    """

    evaluation: bool

    def __call__(self, steps: Iterable[tuple[Step, list[Sample]] | UserError]) -> Iterator[EpisodeBatch | UserError]:
        """Batches; errors are passed on."""
        for item in steps:
            yield item if isinstance(item, UserError) else self.batch(*item)

    def batch(self, step: Step, samples: list[Sample]) -> EpisodeBatch:
        """Stack the samples of a step."""
        batch = EpisodeBatch(
            query_image=_stack_pictures([sample.query_image for sample in samples]),  # (B, 3, H, W)
            query_mask=_stack([sample.query_mask for sample in samples]),  # (B, H, W)
            reference_image=_stack_pictures(
                [image for sample in samples for image in sample.reference_image]
            ).unflatten(0, (len(samples), -1)),  # (B, K, 3, H, W)
            reference_mask=_stack([sample.reference_mask for sample in samples]),  # (B, K, H, W)
            class_id=torch.tensor([episode.class_id for episode in step.episodes]),
            valid=torch.tensor(step.valid),
            seed=torch.tensor([episode.seed for episode in step.episodes]),
            meta=[sample.meta for sample in samples],
        )
        if self.evaluation:
            batch["position"] = torch.tensor(step.positions)
            batch["query_mask_original"] = [torch.from_numpy(sample.query_mask_original) for sample in samples]
        if step.damaged:
            batch["damaged"] = list(step.damaged)
        return batch


def _stack(arrays: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays))


def _stack_pictures(pictures: list[np.ndarray]) -> torch.Tensor:
    """N pictures (H, W, 3) -> (N, 3, H, W), contiguous."""
    height, width, channels = pictures[0].shape
    stacked = np.empty((len(pictures), channels, height, width), np.uint8)
    for number, picture in enumerate(pictures):
        stacked[number] = picture.transpose(2, 0, 1)
    return torch.from_numpy(stacked)

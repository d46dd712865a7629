"""From episodes, which are numbers, to batches of pixels."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ldis_lightning.datamodules.decode import FrameReader, concept_mask, reference_mask
from ldis_lightning.datamodules.geometry import Picture, TrainingGeometry, fit_square, keep_concept
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.source import Episode
from ldis_lightning.datamodules.treatment import ReferenceTreatment
from ldis_lightning.episode import EpisodeBatch, EpisodeMeta
from ldis_lightning.errors import UserError


class Step(NamedTuple):
    """The episodes of one step of one rank."""

    episodes: list[Episode]
    valid: list[bool]
    positions: list[int]  # in the manifest of an evaluation set, -1 for padding and in training


class Sample(NamedTuple):
    """One episode as arrays."""

    query_image: np.ndarray  # (H, W, 3) uint8
    query_mask: np.ndarray  # (H, W) uint8 {0, 1, 255}
    reference_image: np.ndarray  # (K, H, W, 3) uint8
    reference_mask: np.ndarray  # (K, H, W) uint8 {0, 1}
    meta: EpisodeMeta
    query_mask_original: np.ndarray  # (H0, W0) uint8 {0, 1, 255}


@dataclass
class Fetch:
    """Stage that reads, decodes and cuts the episodes of each step. Yields steps with their samples.

    Args:
        readers: the data sets; `Episode.source` says which of them an episode is from.
        treatments: what is done to the references of each.
        size: side of the squares.
        geometry: None in evaluation: the whole picture, padded.
    """

    readers: list[FrameReader]
    treatments: list[ReferenceTreatment]
    size: int
    geometry: TrainingGeometry | None = None

    def __call__(self, steps: Iterable[Step]) -> Iterator[tuple[Step, list[Sample]] | UserError]:
        """Samples. A `UserError` is passed on instead of raised: a loader would bury it in the worker's traceback."""
        for step in steps:
            try:
                yield step, [self.sample(episode) for episode in step.episodes]
            except UserError as error:
                yield error

    def sample(self, episode: Episode) -> Sample:
        """Read one episode.

        Raises:
            UserError: one of its pictures cannot be read.
        """
        reader = self.readers[episode.source]
        query = _picture(reader, episode.query)
        image, labels = self._square(query, episode.class_id, episode.seed, role=0)
        references = [self._reference(episode, role, row) for role, row in enumerate(episode.references, start=1)]
        return Sample(
            image,
            concept_mask(labels, episode.class_id),
            np.stack([image for image, _ in references]),
            np.stack([mask for _, mask in references]),
            self._meta(reader.index, episode, query.labels.shape),
            concept_mask(query.labels, episode.class_id),
        )

    def _square(self, picture: Picture, class_id: int, seed: int, role: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut a picture. Its role (0 the query, k the k-th reference) makes its random numbers its own."""
        if self.geometry is not None:
            return self.geometry(picture, class_id, self.size, np.random.default_rng([seed, role]))
        crop = fit_square(picture.labels.shape, self.size)
        return crop.image(picture.image, self.size), keep_concept(crop, picture.labels, class_id, self.size)

    def _reference(self, episode: Episode, role: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        shown = episode.reference_class
        picture = _picture(self.readers[episode.source], row)
        image, labels = self._square(picture, shown, episode.seed, role)
        return self.treatments[episode.source].apply(image, reference_mask(labels, shown))

    def _meta(self, index: ShardIndex, episode: Episode, original_size: tuple[int, ...]) -> EpisodeMeta:
        row = episode.query
        whole = fit_square(original_size, self.size)
        content = (self.size, self.size) if self.geometry is not None else (whole.height, whole.width)
        clip = int(index.clip[row])
        return EpisodeMeta(
            dataset=index.name,
            query_key=index.key(row),
            reference_keys=[index.key(reference) for reference in episode.references],
            class_name=index.classes.get(episode.class_id, str(episode.class_id)),
            clip=index.clip_names[clip] if clip >= 0 else "",
            frame=int(index.frame[row]) if clip >= 0 else -1,
            original_size=(original_size[0], original_size[1]),
            content=(0, 0, *content),
        )


def _picture(reader: FrameReader, row: int) -> Picture:
    image, labels = reader.read(row)
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
            query_image=_stack([sample.query_image for sample in samples]).permute(0, 3, 1, 2),  # (B, 3, H, W)
            query_mask=_stack([sample.query_mask for sample in samples]),  # (B, H, W)
            reference_image=_stack([sample.reference_image for sample in samples]).permute(0, 1, 4, 2, 3),
            reference_mask=_stack([sample.reference_mask for sample in samples]),  # (B, K, H, W)
            class_id=torch.tensor([episode.class_id for episode in step.episodes]),
            valid=torch.tensor(step.valid),
            seed=torch.tensor([episode.seed for episode in step.episodes]),
            meta=[sample.meta for sample in samples],
        )
        batch["query_image"] = batch["query_image"].contiguous()
        batch["reference_image"] = batch["reference_image"].contiguous()
        if self.evaluation:
            batch["position"] = torch.tensor(step.positions)
            batch["query_mask_original"] = [torch.from_numpy(sample.query_mask_original) for sample in samples]
        return batch


def _stack(arrays: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays))

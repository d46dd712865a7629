"""What our loader is measured against: the same episodes as one would write them with webdataset, and with a folder.

Both decode with Pillow, pair pictures that share a class, cut them as `RandomCrop` does and stack them to batches.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler
from torch.utils.data import default_collate as collate
from webdataset.autodecode import handle_extension
from webdataset.compat import WebDataset

from ldis_lightning.datamodules.geometry import RandomCrop

SHUFFLED = 64
"""Samples among which webdataset shuffles."""
PASS = 10**6
"""Episodes of a pass over a folder: workers start anew with every pass."""


class File(NamedTuple):
    """A picture in a folder."""

    image: Path
    mask: Path
    classes: list[int]


@dataclass
class Cut:
    """`RandomCrop` in terms of Pillow: draws scale and place until the class is there and fills not too much."""

    size: int
    rules: RandomCrop

    def __call__(self, image: Image.Image, labels: Image.Image, class_id: int) -> tuple[Tensor, Tensor]:
        """Picture and label map -> picture (3, S, S) uint8 and mask (S, S) uint8 {0, 1, 255}."""
        short, long = sorted(image.size)
        side, scale, box, cut = self.size, 1.0, (0.0, 0.0), np.zeros((0, 0))
        for _ in range(self.rules.tries):
            scale = self.size * np.random.uniform(*self.rules.ratio) * min(1 / short, self.rules.long_side / long)
            box = tuple(np.random.uniform(0, max(0, length - side / scale)) for length in image.size)
            cut = self._resized(labels, box, scale, Image.Resampling.NEAREST)
            counts = np.bincount(cut.ravel(), minlength=256)
            if counts[class_id] and counts[1:255].max() <= self.rules.max_cover * max(1, cut.size - counts[255]):
                break
        mask = np.full((side, side), 255, np.uint8)
        mask[: cut.shape[0], : cut.shape[1]] = (cut == class_id) + 255 * (cut == 255).astype(np.uint8)
        picture = np.full((side, side, 3), 128, np.uint8)
        picture[: cut.shape[0], : cut.shape[1]] = self._resized(image, box, scale, Image.Resampling.BILINEAR)
        if np.random.random() < self.rules.flip:
            picture, mask = picture[:, ::-1].copy(), mask[:, ::-1].copy()
        return torch.from_numpy(picture).permute(2, 0, 1), torch.from_numpy(mask)

    def _resized(self, image: Image.Image, corner: Sequence[float], scale: float, how: Any) -> np.ndarray:
        ends = [min(start + self.size / scale, length) for start, length in zip(corner, image.size, strict=True)]
        size = [min(self.size, round((e - s) * scale)) for s, e in zip(corner, ends, strict=True)]
        return np.asarray(image.resize((size[0], size[1]), how, (corner[0], corner[1], ends[0], ends[1])))


def webdataset_loader(urls: list[str], cut: Cut, references: int, batch_size: int, workers: int) -> Iterable[Any]:
    """An endless loader over shards: samples are decoded as they come, and those of one class become an episode."""
    pairing = _Pairing(cut, references)
    episodes = (
        WebDataset(urls, shardshuffle=len(urls))
        .shuffle(SHUFFLED)
        .decode(handle_extension("png", _label_map), "pil")
        .to_tuple("jpg", "png", "json")
        .compose(pairing)
        .batched(batch_size, collation_fn=collate)
        .repeat()
    )
    return DataLoader(episodes, batch_size=None, num_workers=workers)


@dataclass
class _Pairing:
    """Stage that makes an episode of every K + 1 samples of a class; each sample is of one of its classes."""

    cut: Cut
    references: int

    def __call__(self, samples: Iterable[tuple[Image.Image, Image.Image, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        waiting: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for image, labels, described in samples:
            if not described["class_ids"]:
                continue
            class_id = int(np.random.choice(described["class_ids"]))
            waiting[class_id].append(self.cut(image, labels, class_id))
            if len(waiting[class_id]) > self.references:
                yield _episode(waiting.pop(class_id), class_id)


def folder_loader(files: list[File], cut: Cut, references: int, batch_size: int, workers: int) -> Iterable[Any]:
    """A loader over the files of a folder in random order, whose pass is long, as in training."""
    episodes = _FolderEpisodes(files, cut, references)
    order = RandomSampler(episodes, replacement=True, num_samples=PASS)
    return DataLoader(episodes, batch_size, sampler=order, num_workers=workers)


class _FolderEpisodes(Dataset[dict[str, Any]]):
    """The episode of each file as a query, with other files of its class as references."""

    def __init__(self, files: list[File], cut: Cut, references: int) -> None:
        self.files, self.cut, self.references = files, cut, references
        self.of_class: dict[int, list[File]] = defaultdict(list)
        for file in files:
            for class_id in file.classes:
                self.of_class[class_id].append(file)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> dict[str, Any]:
        query = self.files[number]
        class_id = int(np.random.choice(query.classes))
        others = self.of_class[class_id]
        chosen = [query, *(others[i] for i in np.random.randint(0, len(others), self.references))]
        return _episode([self._read(file, class_id) for file in chosen], class_id)

    def _read(self, file: File, class_id: int) -> tuple[Tensor, Tensor]:
        with Image.open(file.image) as image, Image.open(file.mask) as labels:
            return self.cut(image.convert("RGB"), labels, class_id)


class Decoding(IterableDataset[int]):
    """Nothing but decoding: goes round JPEGs in memory without end and yields how many were decoded.

    Args:
        jpegs: the bytes of each.
        decode: makes pixels of them.
        batch_size: pictures between two results.
    """

    def __init__(self, jpegs: list[bytes], decode: Any, batch_size: int) -> None:
        self.jpegs, self.decode, self.batch_size = jpegs, decode, batch_size

    def __iter__(self) -> Iterator[int]:
        while True:
            for start in range(0, len(self.jpegs), self.batch_size):
                batch = self.jpegs[start : start + self.batch_size]
                for jpg in batch:
                    self.decode(jpg)
                yield len(batch)


def _episode(squares: list[tuple[Tensor, Tensor]], class_id: int) -> dict[str, Any]:
    """The first square is the query, the rest are references."""
    images, masks = zip(*squares, strict=True)
    query = {"query_image": images[0], "query_mask": masks[0], "class_id": class_id}
    return query | {"reference_image": torch.stack(images[1:]), "reference_mask": torch.stack(masks[1:])}


def _label_map(png: bytes) -> Image.Image:
    image = Image.open(BytesIO(png))
    image.load()
    return image

"""From a row of the index to pixels. Bytes come from elsewhere: they are only ever parsed as JPEG and PNG."""

import os
import struct
from collections import OrderedDict
from functools import partial

import numpy as np
from zlib_ng import zlib_ng

from ldis_lightning.datamodules.damage import DamagedSample
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.jpeg import Jpeg
from ldis_lightning.imaging.pictures import read_label_map

_OPEN_SHARDS = 64  # well below the usual limit of 1024 open files a process


class FrameReader:
    """Reads pictures and label maps of a data set by byte span, without touching the rest of a shard.

    A sample is whole or an error: its bytes must have the CRC-32 of the index, so that they cannot be another sample's,
    and its picture and label map the size of the index, before anything is unpacked.

    May be forked: reads carry their own position. Pickles as the index alone.
    """

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self._files: OrderedDict[int, int] = OrderedDict()  # shard -> file descriptor, least recently used first

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle without the open files."""
        return FrameReader, (self.index,)

    def __del__(self) -> None:
        """Close the open shards."""
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture (H, W, 3) uint8 and label map (H, W) uint8, or uint16 (0 none, 255 ignore), of a row.

        Raises:
            DamagedSample: its bytes are not those that were indexed, or not a JPEG and a label map of the right size.
            UserError: the shard cannot be opened.
        """
        jpeg, labels = self.read_lazily(row)
        return jpeg.decode(), labels

    def read_lazily(self, row: int) -> tuple[Jpeg, np.ndarray]:
        """As `read`, with a picture that is yet to be decoded: only then damage that was there when it was indexed is
        found.
        """
        height, width = self.index.size[row].tolist()
        error = partial(self._damaged, row)
        jpg = self._bytes(row, self.index.image_span[row], int(self.index.image_crc[row]), "image")
        png = self._bytes(row, self.index.mask_span[row], int(self.index.mask_crc[row]), "mask")
        return Jpeg(jpg, (height, width), error), self._labels(row, png, (height, width))

    def _labels(self, row: int, png: bytes, size: tuple[int, int]) -> np.ndarray:
        header = struct.unpack(">II", png[16:24]) if len(png) >= 24 else (0, 0)  # the first chunk of every PNG
        if header != (size[1], size[0]) and png.startswith(b"\x89PNG"):
            raise self._damaged(row, f"its mask is {header[0]} x {header[1]} pixels, its image {size[1]} x {size[0]}.")
        try:
            labels = read_label_map(png, "its mask")
        except UserError as reason:
            raise self._damaged(row, str(reason)) from reason
        if labels.shape != size:
            raise self._damaged(row, "the headers of its mask contradict each other.")
        return labels

    def _bytes(self, row: int, span: np.ndarray, crc: int, what: str) -> bytes:
        offset, length = span.tolist()
        try:
            data = os.pread(self._descriptor(row), length, offset)
        except OSError as error:  # such as a bad sector
            raise self._damaged(row, f"its {what} cannot be read: {error.strerror}.") from error
        if len(data) != length:
            raise self._damaged(row, f"the file ends inside its {what}: fetch or pack the shard again.")
        if zlib_ng.crc32(data) != crc:
            raise self._damaged(row, f"its {what} is not what was indexed (CRC-32): fetch or pack the shard again.")
        return data

    def _damaged(self, row: int, reason: str) -> DamagedSample:
        return DamagedSample(self.index.shard_paths[self.index.shard[row]], self.index.key(row), reason)

    def _descriptor(self, row: int) -> int:
        shard = int(self.index.shard[row])
        if shard not in self._files:
            if len(self._files) >= _OPEN_SHARDS:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = self._opened(shard)
        self._files.move_to_end(shard)
        return self._files[shard]

    def _opened(self, shard: int) -> int:
        for tries_left in (2, 1, 0):
            path = self.index.shard_file(shard)  # a remote one is fetched again if the cache has dropped it
            try:
                return os.open(path, os.O_RDONLY)
            except OSError as error:
                if not tries_left or not isinstance(error, FileNotFoundError):
                    raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        raise AssertionError("unreachable")


def concept_mask(labels: np.ndarray, class_id: int) -> np.ndarray:
    """Label map, uint8 or uint16 -> mask of one class, uint8: 1 the class, 0 others, 255 ignore. Shape as given."""
    mask = (labels == class_id).view(np.uint8)
    mask |= (labels == IGNORE_INDEX).view(np.uint8) * np.uint8(IGNORE_INDEX)
    return mask


def reference_mask(labels: np.ndarray, class_id: int) -> np.ndarray:
    """As `concept_mask`, but ignored pixels are background: whatever a reference does not mark is not the concept."""
    return (labels == class_id).view(np.uint8)

"""Pictures and label maps as bytes: what is read, what is refused."""

import struct
import zlib

import numpy as np
import pytest
from shard_samples import jpg, labels, png, png_of

from ldis_lightning.datamodules import pictures
from ldis_lightning.datamodules.pictures import inspect_pair, read_label_map
from ldis_lightning.errors import UserError


def test_pixels_are_counted_without_none_and_ignore():
    assert inspect_pair(jpg(), png((0, 7, 255, 9)), "x") == ((12, 16), {7: 48, 9: 48})


@pytest.mark.parametrize(
    ("picture", "mask", "message"),
    [
        (jpg((12, 12)), png(), "16 x 12 pixels, but its image 12 x 12"),
        (png(), png(), "image of x cannot be read as JPEG"),
        (jpg(), jpg(), "mask of x cannot be read as PNG"),
        (b"", png(), "cannot be read"),
        (jpg(), png()[:50], "mask of x"),
        (jpg(mode="CMYK"), png(), "CMYK"),
        (jpg(), png_of(np.zeros((12, 16, 3), np.uint8)), "RGB colours"),
        (jpg(), png_of(np.full((12, 16), 65535, np.uint16)), "label 65535: class ids are 1 to 65534"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", png(), "cannot be read as JPEG"),
    ],
)
def test_pairs_that_are_no_sample_are_refused(picture, mask, message):
    with pytest.raises(UserError, match=message):
        inspect_pair(picture, mask, "x")


def test_palettes_and_one_bit_masks_are_label_maps():
    assert np.array_equal(read_label_map(png_of(labels((0, 3, 255)), palette=True), "x"), labels((0, 3, 255)))
    assert np.array_equal(read_label_map(png_of(labels((0, 1)).astype(bool)), "x"), labels((0, 1)))


def test_grey_masks_of_few_bits_are_refused_because_pil_would_stretch_their_labels():
    header = b"\x89PNG\r\n\x1a\n" + _chunk(
        b"IHDR", bytes([0, 0, 0, 2, 0, 0, 0, 1, 2, 0, 0, 0, 0])
    )  # 2 x 1, 2 bits, grey
    data = _chunk(b"IDAT", zlib.compress(b"\x00\x50")) + _chunk(b"IEND", b"")
    with pytest.raises(UserError, match="2-bit grey"):
        read_label_map(header + data, "x")


def test_pictures_over_the_bound_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 12 * 16 - 1)
    with pytest.raises(UserError, match="image of x has 16 x 12 pixels"):
        inspect_pair(jpg(), png(), "x")
    with pytest.raises(UserError, match="mask of x has 16 x 12 pixels"):
        inspect_pair(jpg((1, 1)), png(), "x")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

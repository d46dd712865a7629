"""Pictures and label maps as bytes: what is read, what is refused."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from shard_samples import jpg, labels, png, png_of

from ldis_lightning.errors import UserError
from ldis_lightning.imaging import pictures
from ldis_lightning.imaging.pictures import (
    check_whole,
    class_pixels,
    inspect_pair,
    jpeg_size,
    read_label_map,
    shrink_pair,
    write_label_map,
)


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


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


PICTURE = Image.open(BytesIO(jpg((30, 50))))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # turned by a quarter, which the pixels, and so the label map, are not


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (jpg((30, 50)), (30, 50)),
        (jpg((7, 9), mode="L"), (7, 9)),
        (saved(PICTURE, "JPEG", progressive=True), (30, 50)),
        (saved(PICTURE, "JPEG", exif=EXIF, comment=b"\xff\xc0" * 9, dpi=(9, 9)), (30, 50)),
        (b"\xff\xd8\xff" + jpg((30, 50))[2:], (30, 50)),  # a fill byte: left to PIL
    ],
)
def test_sizes_are_those_that_pil_reads(data, size):
    assert jpeg_size(data, "x") == size
    assert Image.open(BytesIO(data)).size == size[::-1]


@pytest.mark.parametrize("data", [jpg()[:150], b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\x00\x00" * 9, jpg(mode="CMYK")])
def test_what_has_no_size(data):
    with pytest.raises(UserError, match="x "):
        jpeg_size(data, "x")


def test_a_jpeg_is_whole_if_its_end_is_there():
    whole = jpg((64, 64))
    check_whole(whole, "x")
    check_whole(whole + b"\0" * 9 + b"camera", "x")
    with pytest.raises(UserError, match="x is a damaged JPEG"):
        check_whole(whole[:-300], "x")


label_maps = arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 40))) | arrays(
    np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 30)), elements=st.integers(0, 65534)
)


@settings(deadline=None)
@given(label_map=label_maps)
def test_label_maps_are_read_as_they_were_written_and_as_pil_reads_them(label_map):
    data = write_label_map(label_map)
    assert np.array_equal(read_label_map(data, "x"), label_map)
    assert read_label_map(data, "x").dtype == label_map.dtype
    assert np.array_equal(np.asarray(Image.open(BytesIO(data))), label_map)
    assert np.array_equal(read_label_map(png_of(label_map), "x"), label_map), "with PIL's filters"


@settings(deadline=None)
@given(label_map=label_maps)
def test_pixels_of_classes_are_a_histogram(label_map):
    numbers, counts = np.unique(label_map, return_counts=True)
    expected = {int(n): int(c) for n, c in zip(numbers, counts, strict=True) if n not in (0, 255)}
    assert class_pixels(label_map, "x") == expected
    size, pixels = inspect_pair(jpg(label_map.shape), write_label_map(label_map), "x")
    assert (size, pixels) == (label_map.shape, expected)


def test_damage_inside_a_label_map_is_found():
    data = bytearray(png((0, 1, 2)))
    data[data.index(b"IDAT") + 12] ^= 0xFF
    with pytest.raises(UserError, match="x is a damaged PNG"):
        read_label_map(bytes(data), "x")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_label_map_of_many_bytes_is_read_too(kind):
    """Those of few are unpacked at once; the rest with a bound."""
    label_map = np.random.default_rng(0).integers(0, 255, (300, 301)).astype(kind) * (250 if kind == np.uint16 else 1)
    data = write_label_map(label_map)
    assert len(data) > pictures._SMALL
    assert np.array_equal(read_label_map(data, "x"), label_map)
    with pytest.raises(UserError, match="x is a damaged PNG"):
        read_label_map(data[:-5000], "x")


def test_a_label_map_that_unpacks_into_more_than_it_says_is_left_to_pil(monkeypatch):
    header = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", bytes([0, 0, 0, 2, 0, 0, 0, 1, 8, 0, 0, 0, 0]))
    bomb = header + _chunk(b"IDAT", zlib.compress(bytes(2**24))) + _chunk(b"IEND", b"")
    assert read_label_map(bomb, "x").tolist() == [[0, 0]]


def test_scaling_down_keeps_picture_and_label_map_together():
    halves = np.zeros((60, 40), np.uint16)
    halves[:, 20:] = 300
    picture, label_map = shrink_pair(jpg((60, 40)), write_label_map(halves), 10, "image", "mask")
    assert jpeg_size(picture, "x") == (15, 10)
    assert np.array_equal(read_label_map(label_map, "x"), np.repeat([[0, 300]], 5, axis=1).repeat(15, axis=0))
    assert shrink_pair(jpg(), png(), 12, "image", "mask") == (jpg(), png())
    with pytest.raises(UserError, match="mask is 16 x 12 pixels, but its image 40 x 60"):
        shrink_pair(jpg((60, 40)), png(), 10, "image", "mask")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

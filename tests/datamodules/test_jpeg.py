"""JPEGs that are decoded when they are wanted: whole or an error, and at a fraction of their size on demand."""

import time
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shard_samples import png

from ldis_lightning.datamodules import photo_like
from ldis_lightning.errors import UserError
from ldis_lightning.imaging import pictures
from ldis_lightning.imaging.jpeg import DIVISORS, MAX_SCANS, Jpeg

SIZE = (90, 130)
PIXELS, _ = photo_like.draw(np.random.default_rng(0), *SIZE)


def encoded(mode: str = "RGB", **options) -> bytes:
    stream = BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def jpeg(data: bytes, size: tuple[int, int] = SIZE) -> Jpeg:
    return Jpeg(data, size, UserError)


WHOLE, PROGRESSIVE = encoded(), encoded(progressive=True)
SCAN = WHOLE.index(b"\xff\xda") + 14  # where its coded pixels begin
FRAME = WHOLE.index(b"\xff\xc0")


def changed(place: int, content: bytes, data: bytes = WHOLE) -> bytes:
    return data[:place] + content + data[place + len(content) :]


@pytest.mark.parametrize(
    "data",
    [
        WHOLE,
        PROGRESSIVE,
        encoded("L"),
        encoded(subsampling=0),
        encoded(subsampling=1),
        encoded(restart_marker_rows=1),
        encoded(exif=Image.Exif(), comment=b"\xff\xc2\xff\xda" * MAX_SCANS),
        WHOLE + b"\0" * 99 + b"camera",
        WHOLE + WHOLE * 3,
    ],
)
def test_pixels_are_those_that_pillow_decodes(data):
    decoded = jpeg(data).decode()
    assert decoded.shape == jpeg(data).shape == (*SIZE, 3) and decoded.flags.writeable
    assert np.array_equal(decoded, np.asarray(Image.open(BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read as JPEG"),
        (b"\xff", "cannot be read as JPEG"),
        (b"\xff\xd8", "cannot be read as JPEG"),
        (png(size=SIZE), "cannot be read as JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 130 90\n", "cannot be read as JPEG"),
        (encoded("CMYK"), "is a JPEG of CMYK colours: convert it to RGB"),
        (changed(FRAME + 5, b"\xff\xdc\xff\xdc"), "is 65500 x 65500 pixels, where the index says 130 x 90"),
        (changed(FRAME + 5, b"\xff\xff\xff\xff"), "cannot be read as JPEG"),
        (changed(FRAME + 5, b"\x00\x00"), "cannot be read as JPEG"),  # the height would come after the pixels
        (changed(FRAME + 4, b"\x0c"), "precision 12"),
        (changed(FRAME + 1, b"\xc9"), "cannot be read as JPEG"),  # arithmetic coding
        (changed(FRAME + 1, b"\xc3"), "cannot be read as JPEG"),  # lossless
        (WHOLE[:SCAN] + bytes(range(256)) * 9, "cannot be read as JPEG"),
        (WHOLE[:-2], "cannot be read as JPEG"),
        (changed(SCAN + 100, b"\xff\xd9"), "cannot be read as JPEG"),
        (changed(SCAN + 100, WHOLE[SCAN:] * 2), "cannot be read as JPEG"),
    ],
)
def test_what_is_no_whole_picture_is_an_error(data, message):
    with pytest.raises(UserError, match=message):
        jpeg(data).decode()


@settings(deadline=None)
@given(end=st.integers(0, max(len(WHOLE), len(PROGRESSIVE)) - 3), divisor=st.sampled_from(DIVISORS))
def test_a_cut_picture_is_never_half_a_picture(end, divisor):
    for data in (WHOLE, PROGRESSIVE):
        with pytest.raises(UserError, match="cannot be read as JPEG"):
            jpeg(data[: min(end, len(data) - 3)]).decode(divisor)


def test_nothing_above_the_bound_is_looked_at(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", SIZE[0] * SIZE[1] - 1)
    with pytest.raises(UserError, match="its image has 130 x 90 pixels, more than"):
        jpeg(b"")


def test_a_progressive_bomb_costs_no_time():
    last = PROGRESSIVE.rindex(b"\xff\xda")
    start = time.monotonic()
    for repeats in (MAX_SCANS, 50_000):
        with pytest.raises(UserError, match="more than 100 scans: save it anew"):
            jpeg(PROGRESSIVE[:last] + PROGRESSIVE[last:-2] * repeats + PROGRESSIVE[-2:])
    with pytest.raises(UserError, match="cannot be read as JPEG"):  # fewer, but the same bits twice
        jpeg(PROGRESSIVE[:last] + PROGRESSIVE[last:-2] * 50 + PROGRESSIVE[-2:]).decode()
    assert time.monotonic() - start < 30


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)), divisor=st.sampled_from(DIVISORS), seed=st.integers(0, 9)
)
def test_a_fraction_has_the_pixels_that_it_should(shape, divisor, seed):
    stream = BytesIO()
    grey = int(np.random.default_rng(seed).integers(0, 256))
    Image.new("RGB", shape[::-1], (grey,) * 3).save(stream, "JPEG", quality=95)
    decoded = jpeg(stream.getvalue(), shape).decode(divisor)
    assert decoded.shape == (-(-shape[0] // divisor), -(-shape[1] // divisor), 3)
    assert np.abs(decoded.astype(int) - grey).max() <= 2


@pytest.mark.parametrize("divisor", [2, 4])
def test_a_fraction_is_the_picture_made_smaller(divisor):
    small = jpeg(WHOLE).decode(divisor)
    mean = np.asarray(Image.fromarray(jpeg(WHOLE).decode()).reduce(divisor)).astype(int)
    other = np.roll(mean, 1, axis=1)
    assert np.abs(small - mean).mean() < 3 < np.abs(small - other).mean()

"""What fuzzing has found, and two hundred mutations of every kind, through the oracles that fuzzing uses."""

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from mutations import BLOCK, join, npy, packed, split
from oracles import Indexes, Samples, Tars, encoded, small_pictures
from seeds import ALL_FITS, jpegs, mutate_index, mutate_sample, mutate_tar, pngs, samples, tars

from ldis_lightning.datamodules.index import COLUMNS


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    with small_pictures():
        yield


def replayed(target: Callable[[bytes], str], inputs: list[bytes], mutate: Callable[[Random, bytes], bytes]) -> Counter:
    """Outcomes of the inputs and of a mutation of each of a mutation of each, and so on."""
    outcomes = Counter(target(data) for data in inputs)
    for number in range(200 // len(inputs)):
        for place, data in enumerate(inputs):
            random = Random(1000 * number + place)
            for _ in range(1 + number % 3):
                data = mutate(random, data)
            outcomes[target(data)] += 1
    return outcomes


def test_samples(tmp_path: Path) -> None:
    outcomes = replayed(Samples(tmp_path), samples(), mutate_sample)
    assert {"read, indexed", "refused, not indexed", "refused, indexed"} <= outcomes.keys(), outcomes


def test_tars(tmp_path: Path) -> None:
    outcomes = replayed(Tars(tmp_path), tars()[::2], mutate_tar)
    assert {"indexed 2", "indexed 4", "refused"} <= outcomes.keys(), outcomes


def test_indexes(tmp_path: Path) -> None:
    target = Indexes(tmp_path)
    outcomes = replayed(target, [target.seed] * 8, mutate_index)
    assert {"used", "refused"} <= outcomes.keys(), outcomes


# ---- Findings


def test_a_narrow_picture_with_bytes_behind_it(tmp_path: Path) -> None:
    """PIL divided by the width that was asked of it, an eighth of the picture's."""
    narrow = encoded(np.zeros((4, 4, 3), np.uint8), "JPEG") + b"more"
    labels = encoded(np.zeros((4, 4), np.uint8), "PNG")
    assert Samples(tmp_path)(join(bytes([ALL_FITS]), narrow, labels)) == "read, indexed"


def test_a_profile_behind_the_pixels(tmp_path: Path) -> None:
    """PIL looked for a byte behind the end of a profile without a name, and raised an IndexError."""
    chunk = b"iCCP"
    profile = struct.pack(">I", 0) + chunk + struct.pack(">I", zlib.crc32(chunk))
    plain = pngs()[1]
    assert Samples(tmp_path)(join(bytes([ALL_FITS]), jpegs()[0], plain[:-12] + profile + plain[-12:])).startswith(
        "refused"
    )


def test_a_name_that_cannot_be_printed(tmp_path: Path) -> None:
    """It came into a message as it was, because another check came first."""
    data = bytearray(tars()[0])
    data[:3], data[156] = b"\x80\n\x1b", ord("2")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:BLOCK])
    assert Tars(tmp_path)(bytes(data)) == "refused"


def test_a_column_with_a_damaged_header(tmp_path: Path) -> None:
    """numpy takes it for Python, and raised an error of the tokenizer."""
    target = Indexes(tmp_path)
    flags, header, *columns = split(target.seed, 2 + len(COLUMNS))
    damaged = npy(np.zeros(1, np.int32)).replace(b"}", b"(", 1)
    columns[list(COLUMNS).index("clip")] = packed(damaged)
    assert target(join(flags, header, *columns)) == "refused"

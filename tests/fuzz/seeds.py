"""The inputs that fuzzing begins with, and how each kind of input is mutated."""

import tarfile
from functools import cache
from io import BytesIO
from random import Random

import numpy as np
from mutations import column, join, jpeg, json_text, packed, plain, png, split, tar, unpacked
from oracles import IMAGE_CRC_FITS, MASK_CRC_FITS, SIZE_FITS, encoded
from PIL import Image

from ldis_lightning.datamodules.index import COLUMNS
from ldis_lightning.imaging.pictures import write_label_map

SIZE = (12, 16)
ALL_FITS = IMAGE_CRC_FITS | MASK_CRC_FITS | SIZE_FITS


@cache
def jpegs() -> list[bytes]:
    """Every kind of JPEG that turns up: RGB, grey, progressive, with restarts, subsampled, with EXIF, CMYK."""
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    cmyk = BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "JPEG")
    return [
        encoded(pixels, "JPEG"),
        encoded(pixels[..., 0], "JPEG"),
        encoded(pixels, "JPEG", progressive=True),
        encoded(pixels, "JPEG", subsampling=0, optimize=True),
        encoded(pixels, "JPEG", restart_marker_blocks=1),
        encoded(pixels, "JPEG", exif=exif.tobytes(), comment=b"a comment"),
        encoded(pixels, "JPEG") + b"more",
        cmyk.getvalue(),
    ]


@cache
def pngs() -> list[bytes]:
    """Every kind of label map: ours, PIL's with filters, a palette, 16 bits, 1 bit."""
    labels = np.random.default_rng(0).integers(0, 5, SIZE).astype(np.uint8)
    labels[:2] = 255
    palette = Image.fromarray(labels)
    palette.putpalette(list(range(256)) * 3)
    written = BytesIO()
    palette.save(written, "PNG")
    return [
        write_label_map(labels),
        encoded(labels, "PNG"),
        written.getvalue(),
        write_label_map(labels.astype(np.uint16) * 100),
        encoded(labels > 2, "PNG"),
        encoded(np.stack([labels] * 3, axis=-1), "PNG"),
    ]


def samples() -> list[bytes]:
    """Inputs of `oracles.Samples`."""
    pictures, labels = jpegs(), pngs()
    pairs = [(picture, labels[0]) for picture in pictures] + [(pictures[0], label) for label in labels[1:]]
    whole = [join(bytes([ALL_FITS]), *pair) for pair in pairs]
    return [*whole, join(bytes([MASK_CRC_FITS]), *pairs[0]), join(bytes([IMAGE_CRC_FITS | 8]), *pairs[0])]


def mutate_sample(random: Random, data: bytes) -> bytes:
    """Another sample: other sums, another picture or another label map, from time to time one of the seeds."""
    flags, picture, label = split(data, 3)
    kind = random.randrange(20)
    if kind == 0:
        flags = random.randbytes(1)
    elif kind == 1:
        picture, label = random.choice(jpegs()), random.choice(pngs())
    elif kind < 11:
        picture, label = jpeg(random, picture), random.choice((label, *pngs()))
    else:
        picture, label = random.choice((picture, *jpegs())), png(random, label)
    if random.random() < 0.8:
        flags = bytes([ALL_FITS])  # a wrong sum is found before anything else is looked at
    return join(flags, picture, label)


def tars() -> list[bytes]:
    """Inputs of `oracles.Tars`: images, a clip, names of all kinds, in every format of tars."""
    picture, label = jpegs()[0], pngs()[0]
    images = {"a.jpg": picture, "a.png": label, "dir/b.jpeg": jpegs()[1], "dir/b.png": pngs()[3]}
    clip = {f"clip.{n:05d}.{ending}": data for n in range(2) for ending, data in (("jpg", picture), ("png", label))}
    described = b'{"class_ids": [1, 2], "class_names": ["cat", "dog"]}'
    others = {"a.json": described, "a.pkl": b"cos\nsystem\n(S'true'\ntR.", "README": b"", "x" * 120 + ".txt": b"long"}
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return [
        written
        for kind in formats
        for written in (_tar(images, kind), _tar(clip, kind), _tar(images | clip | others if kind else images, kind))
    ]


def _tar(members: dict[str, bytes], kind: int) -> bytes:
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    end = stream.tell()
    return stream.getvalue()[: -(-end // 512) * 512]


def mutate_tar(random: Random, data: bytes) -> bytes:
    """Another tar."""
    for _ in range(random.choice((1, 1, 2))):
        data = tar(random, data)
    return data


def mutate_index(random: Random, data: bytes) -> bytes:
    """Another header or other columns, mostly with sums that fit them."""
    flags, header, *columns = split(data, 2 + len(COLUMNS))
    if random.random() < 0.3:
        header = json_text(random, header)
    else:
        for _ in range(random.choice((1, 1, 2))):
            place = random.randrange(len(columns))
            columns[place] = packed(column(random, unpacked(columns[place])))
    flags = b"\1" if random.random() < 0.8 else plain(random, flags)
    return join(flags, header, *columns)

"""Packs PASCAL VOC 2012 as its owners distribute it, with the annotations of SBD for training.

The training set is the one that most papers call `trainaug`: VOC's 1,464 training images, and all of SBD's 11,355 that
are neither among these nor in VOC's validation set, 10,582 together. Where VOC has an annotation, it is taken; its
palette PNGs are stored byte for byte, with the borders of objects ignored (255). SBD has no such borders.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldis_lightning.datamodules.packing.mat_file import as_bytes, field_of_struct
from ldis_lightning.datamodules.packing.packer import Item, Packer, Survey
from ldis_lightning.datamodules.packing.trees import check_present, find_root, read_list
from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import write_label_map

SUMMARY = "PASCAL VOC 2012, for training with the annotations of SBD (10,582 / 1,449 pictures)"
TREE = """\
  SRC: VOCdevkit/VOC2012/{JPEGImages/*.jpg, SegmentationClass/*.png, ImageSets/Segmentation/{train,val}.txt},
       from VOCtrainval_11-May-2012.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2012/
  SBD: benchmark_RELEASE/dataset/{img/*.jpg, cls/*.mat, train.txt, val.txt},
       from benchmark.tgz of http://home.bharathh.info/pubs/codes/SBD/download.html
  Either may be given as the innermost of these folders or as one around it."""

TOTALS = {"train": 10_582, "val": 1_449}
CLASSES = {
    1: "aeroplane",
    2: "bicycle",
    3: "bird",
    4: "boat",
    5: "bottle",
    6: "bus",
    7: "car",
    8: "cat",
    9: "chair",
    10: "cow",
    11: "diningtable",
    12: "dog",
    13: "horse",
    14: "motorbike",
    15: "person",
    16: "pottedplant",
    17: "sheep",
    18: "sofa",
    19: "train",
    20: "tvmonitor",
}

_MOST_MAT_BYTES = 2**20  # SBD's have a few thousand


class Labelled(NamedTuple):
    """A picture and its annotation, a PNG of VOC or a .mat of SBD."""

    image: Path
    annotation: Path


class PascalPacker(Packer):
    """PASCAL VOC 2012; for its training split with SBD.

    Args:
        src: folder of the devkit, or one around it.
        split: train or val.
        sbd: folder of SBD, or one around it; needed for train.
    """

    name = "pascal"

    def __init__(self, src: Path, split: str, sbd: Path | None = None) -> None:
        self.src, self.split, self.sbd = src, split, sbd

    def survey(self) -> Survey:
        """List the pictures of the split.

        Raises:
            UserError: something is missing.
        """
        voc = find_root(self.src, ("VOC2012", "VOCdevkit/VOC2012"), "JPEGImages", TREE)
        lists = {split: read_list(voc / "ImageSets" / "Segmentation" / f"{split}.txt", TREE) for split in TOTALS}
        samples = {
            name: Labelled(voc / "JPEGImages" / f"{name}.jpg", voc / "SegmentationClass" / f"{name}.png")
            for name in lists[self.split]
        }
        skipped: Counter[str] = Counter()
        if self.split == "train":
            others = self._sbd_samples()
            skipped["pictures of SBD that are in VOC's validation set"] = sum(name in others for name in lists["val"])
            skipped["annotations of SBD where VOC has its own"] = sum(name in others for name in lists["train"])
            taken = {*lists["train"], *lists["val"]}
            samples |= {name: sample for name, sample in others.items() if name not in taken}
        check_present((file for sample in samples.values() for file in sample), TREE)
        items = [Item(name, (sample,)) for name, sample in sorted(samples.items())]
        return Survey(items, CLASSES, skipped, {f"pictures for {self.split}": (len(items), TOTALS[self.split])})

    def _sbd_samples(self) -> dict[str, Labelled]:
        if self.sbd is None:
            raise UserError(f"--split train needs --sbd, the folder of SBD's annotations.\n{TREE}")
        folder = find_root(self.sbd, ("dataset", "benchmark_RELEASE/dataset"), "cls", TREE)
        names = [name for split in TOTALS for name in read_list(folder / f"{split}.txt", TREE)]
        return {name: Labelled(folder / "img" / f"{name}.jpg", folder / "cls" / f"{name}.mat") for name in names}

    def read(self, part: Labelled) -> tuple[bytes, bytes]:
        """The picture, and the annotation as a PNG."""
        annotation = part.annotation.read_bytes()
        if part.annotation.suffix == ".mat":
            annotation = write_label_map(read_sbd(annotation, str(part.annotation)))
        return part.image.read_bytes(), annotation


def read_sbd(data: bytes, name: str) -> np.ndarray:
    """The class segmentation in a .mat file of SBD: field `Segmentation` of its struct `GTcls`.

    Args:
        data: the file.
        name: what to call it in messages.

    Returns:
        (H, W) uint8, 0 none, 1 to 20 the classes.

    Raises:
        UserError: it is no such file.
    """
    if len(data) > _MOST_MAT_BYTES:
        raise UserError(f"{name} has {len(data)} bytes, more than {_MOST_MAT_BYTES}: it is none of SBD's annotations.")
    try:
        field = field_of_struct(data, "GTcls", "Segmentation")
        labels = None if field is None else as_bytes(field)
    except ValueError as error:
        raise UserError(f"{name} cannot be read as a MATLAB file ({error}): is it damaged?") from error
    if field is None:
        raise UserError(f"{name} holds no struct GTcls with a field Segmentation: is it of SBD's folder cls?")
    if labels is None:
        raise UserError(f"{name}: its GTcls.Segmentation is no picture of bytes: is it of SBD's folder cls?")
    if ((labels > len(CLASSES)) & (labels != IGNORE_INDEX)).any():
        raise UserError(f"{name}: its GTcls.Segmentation holds other labels than 0 to {len(CLASSES)}.")
    return np.ascontiguousarray(labels)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `ldis data pack pascal` beside those of every packer."""
    parser.epilog = f"what to give:\n{TREE}"
    parser.add_argument("--split", required=True, choices=tuple(TOTALS), help="which pictures to pack")
    parser.add_argument("--sbd", type=Path, metavar="SBD", help="folder of SBD's annotations, for --split train")


def packer(args: Namespace) -> PascalPacker:
    """The packer that the parsed arguments ask for."""
    return PascalPacker(Path(args.src), args.split, args.sbd)

"""Packs FSS-1000 as its authors distribute it: a folder a class, with ten pictures and their masks.

The 240 test classes are those that the authors list. They list no others: for validation the draw of 240 is taken that
published work uses (see the files in splits/), and the other 520 are for training. Class ids are 1, 2, ... in the order
of the names of a split's classes.

A few masks of the distribution are larger than their picture, and one is a photograph (peregine_falcon/8.png). They are
read as published evaluations read them: thresholded at half and scaled to the picture, so that each class has its ten.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldis_lightning.datamodules.packing.convert import decode, one_class
from ldis_lightning.datamodules.packing.packer import Item, Packer, Survey
from ldis_lightning.datamodules.packing.trees import check_present, find_root, number_classes, read_list
from ldis_lightning.imaging.pictures import jpeg_size, nearest

SUMMARY = "FSS-1000: 520, 240 and 240 classes of ten pictures each"
TREE = """\
  SRC: fewshot_data/<class>/{1.jpg, 1.png, ..., 10.jpg, 10.png} of 1000 classes,
       from fewshot_data.zip of https://github.com/HKUSTCV/FSS-1000
  SRC may be fewshot_data or a folder around it."""

SPLITS = {"train": 520, "val": 240, "test": 240}
"""Split -> how many classes it has."""
PICTURES = 10  # of each class


class Masked(NamedTuple):
    """A picture, the mask of its class, and the class."""

    image: Path
    mask: Path
    class_id: int


class FSS1000Packer(Packer):
    """FSS-1000.

    Args:
        src: folder of the class folders, or one around it.
        split: train, val or test.
    """

    name = "fss1000"

    def __init__(self, src: Path, split: str) -> None:
        self.src, self.split = src, split

    def survey(self) -> Survey:
        """List the pictures of the split's classes.

        Raises:
            UserError: a file is missing.
        """
        root = find_root(self.src, ("fewshot_data", "fewshot_data/fewshot_data"), "*/1.jpg", TREE)
        present = {path.parent.name for path in root.glob("*/1.jpg")}
        classes = number_classes(sorted(classes_of_split(self.split, present)))
        items = [
            Item(f"{name}/{number}", (Masked(root / name / f"{number}.jpg", root / name / f"{number}.png", class_id),))
            for class_id, name in classes.items()
            for number in range(1, PICTURES + 1)
        ]
        check_present((path for item in items for path in item.parts[0][:2]), TREE)
        files = sum(len(list((root / name).iterdir())) for name in classes.values())
        skipped = Counter({"files that are none of 1.jpg, 1.png, ..., 10.png": files - 2 * len(items)})
        return Survey(items, classes, skipped, {f"classes for {self.split}": (len(classes), SPLITS[self.split])})

    def read(self, part: Masked) -> tuple[bytes, bytes]:
        """The picture, and the label map made of its mask."""
        jpg = part.image.read_bytes()
        mask = read_mask(part.mask.read_bytes(), jpeg_size(jpg, str(part.image)), str(part.mask))
        return jpg, one_class(mask, part.class_id)


def classes_of_split(split: str, present: set[str]) -> set[str]:
    """Those of the classes that belong to a split. What is in neither list is for training."""
    folder = Path(__file__).parent / "splits"
    listed = {name: present & {*read_list(folder / f"fss1000_{name}.txt", TREE)} for name in ("val", "test")}
    return listed[split] if split in listed else present - listed["val"] - listed["test"]


def read_mask(png: bytes, size: tuple[int, int], name: str) -> np.ndarray:
    """Decode a mask of FSS-1000: black and white, in grey or RGB, perhaps smoothed, perhaps of another size.

    Args:
        png: the file.
        size: (height, width) of the picture.
        name: what to call the mask in messages.

    Returns:
        size bool: from half of white on. Of a mask of 0 and 1, as some copies have them, 1.

    Raises:
        UserError: it is no PNG or damaged.
    """
    values = np.asarray(decode(png, "PNG", name).convert("L"))
    return nearest(values >= (128 if values.max() > 1 else 1), size)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `ldis data pack fss1000` beside those of every packer."""
    parser.epilog = f"what to give:\n{TREE}"
    parser.add_argument("--split", required=True, choices=tuple(SPLITS), help="which classes to pack")


def packer(args: Namespace) -> FSS1000Packer:
    """The packer that the parsed arguments ask for."""
    return FSS1000Packer(Path(args.src), args.split)

"""Packs VSPW as its owners distribute it, as clips; its 480p version has the same layout.

As the owners have it (README of their repository VSPW-dataset-download): label 0 is "others", 255 is void, 1 to 124 are
the classes, and neither 0 nor 255 counts in evaluation. So both become 255 here, and so do the stray values that a few
maps hold (its issue 3).
"""

import json
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path

import numpy as np

from ldis_lightning.datamodules.packing.datasets.clips import Frame, pair_frames
from ldis_lightning.datamodules.packing.engine import Item, Packer, Survey
from ldis_lightning.datamodules.packing.packer import sample_key
from ldis_lightning.datamodules.packing.trees import check_present, find_root, read_list
from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import read_label_map, write_label_map

SUMMARY = "VSPW, 124 classes, videos as clips"
TREE = """\
  SRC: VSPW/{data/<video>/{origin/*.jpg, mask/*.png}, {train,val,test}.txt, label_num_dic_final.json}, or VSPW_480p,
       from https://www.vspwdataset.com or https://github.com/VSPW-dataset/VSPW-dataset-download"""
VIDEOS = {"train": 2806, "val": 343, "test": 387}
CLASSES = 124


class Vspw(Packer):
    """VSPW. JPEG bytes are copied as they are.

    Args:
        src: the folder `VSPW` or `VSPW_480p`, or the one that holds it.
        split: train, val or test.
        count_others: pixels of "others" are 0 (none) instead of ignored: what is marked there counts as wrong.
    """

    def __init__(self, src: str | Path, split: str, count_others: bool = False) -> None:
        self.src, self.split, self.count_others = Path(src), split, count_others
        self.name = f"vspw-{split}"

    def survey(self) -> Survey:
        """List the frames of the split's videos.

        Raises:
            UserError: a list, a picture or an annotation is missing.
        """
        root = find_root(self.src, ("VSPW", "VSPW_480p"), "data", TREE)
        skipped, items, unlabelled = Counter[str](), list[Item](), list[Frame]()
        videos = read_list(root / f"{self.split}.txt", TREE)
        for video in videos:
            folder = root / "data" / video
            if not (folder / "origin").is_dir():
                unlabelled.append(Frame(folder / "origin", folder / "mask"))
                continue
            frames, missing = pair_frames(folder / "origin", folder / "mask", skipped)
            unlabelled += missing
            items.append(Item(sample_key(video), tuple(frames), is_clip=True, source=video))
        check_present((path for frame in unlabelled for path in frame), TREE)
        totals = {"videos": (len(videos), VIDEOS[self.split])}
        return Survey(items, read_classes(root / "label_num_dic_final.json"), skipped, totals)

    def read(self, part: Frame) -> tuple[bytes, bytes]:
        """The picture, and its label map with all that does not count set to 255."""
        png = part.mask.read_bytes()
        labels = read_label_map(png, str(part.mask))
        void = (labels > CLASSES) | ((labels == 0) & (not self.count_others))
        if (labels[void] != IGNORE_INDEX).any():
            png = write_label_map(np.where(void, np.uint8(IGNORE_INDEX), labels).astype(np.uint8))
        return part.image.read_bytes(), png


def read_classes(file: Path) -> dict[int, str]:
    """Class id -> name, from the owners' `label_num_dic_final.json` of names and numbers in quotes.

    Raises:
        UserError: the file is missing or does not hold them.
    """
    try:
        numbers = {int(number): name.replace("_", " ") for name, number in json.loads(file.read_text("utf-8")).items()}
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing. The tree should be\n{TREE}") from error
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read as class names and their numbers ({error}): unpack it again."
        ) from error
    if sorted(numbers) not in ([*range(CLASSES + 1)], [*range(1, CLASSES + 1)]):
        raise UserError(f"{file} does not number the classes 1 to {CLASSES}: unpack it again.")
    return {number: name for number, name in sorted(numbers.items()) if number}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `ldis data pack vspw` beside those of every packer."""
    parser.epilog = f"what to download:\n{TREE}"
    parser.add_argument("--split", choices=tuple(VIDEOS), required=True, help="which of the owners' lists to pack")
    parser.add_argument(
        "--count_others",
        action="store_true",
        help='let a mark on "others" count as wrong (default: ignored, as in the owners\' evaluation)',
    )


def packer(args: Namespace) -> Vspw:
    """The packer that the arguments of `ldis data pack vspw` describe."""
    return Vspw(args.src, args.split, args.count_others)

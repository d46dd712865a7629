"""Packs COCO 2014 or 2017 from the official JSON of its instances alone: 80 classes in the order of their ids."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ldis_lightning.datamodules.packing.coco_annotations import Instances
from ldis_lightning.datamodules.packing.coco_packer import InstancesPacker, add_crowds
from ldis_lightning.datamodules.packing.trees import find_root

SUMMARY = "COCO 2014 or 2017, from the official JSON of its instances"
TREE = """\
  SRC: {split}{year}/*.jpg and annotations/instances_{split}{year}.json,
       from {split}{year}.zip and annotations_trainval{year}.zip of https://cocodataset.org/#download"""

TOTALS = {
    (2014, "train"): (82_783, 82_081),
    (2014, "val"): (40_504, 40_137),
    (2017, "train"): (118_287, 117_266),
    (2017, "val"): (5_000, 4_952),
}
"""(year, split) -> pictures, and those of them that have annotations."""
CLASSES = 80


class CocoPacker(InstancesPacker):
    """COCO as it is distributed.

    Args:
        src: the folder of `annotations` and of the pictures' folders. They may lie in `images`.
        year: 2014 or 2017.
        split: train or val.
        crowds_are_classes: see `InstancesPacker`.
    """

    def __init__(self, src: Path, year: int, split: str, crowds_are_classes: bool = False) -> None:
        name, tree = f"{split}{year}", TREE.replace("{year}", str(year)).replace("{split}", split)
        file = Path("annotations") / f"instances_{name}.json"
        root = find_root(src, (), str(file), tree)
        images = root / "images" / name if (root / "images" / name).is_dir() else root / name
        super().__init__(root / file, images, crowds_are_classes, tree)
        self.name, self.published = f"coco{year}", TOTALS[year, split]

    def totals(self, instances: Instances) -> dict[str, tuple[int, int]]:
        """The counts of the official file."""
        found = {"pictures": instances.listed, "pictures with annotations": instances.annotated}
        found["classes"] = len(instances.classes)
        return {what: (found[what], count) for what, count in zip(found, (*self.published, CLASSES), strict=True)}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `ldis data pack coco` beside those of every packer."""
    parser.epilog = f"what to give:\n{TREE}\n  The pictures' folders may also lie in SRC/images."
    years, splits = (sorted({key[place] for key in TOTALS}) for place in (0, 1))
    parser.add_argument("--year", required=True, type=int, choices=years, help="which COCO")
    parser.add_argument("--split", required=True, choices=splits, help="which pictures to pack")
    add_crowds(parser)


def packer(args: Namespace) -> CocoPacker:
    """The packer that the parsed arguments ask for."""
    return CocoPacker(Path(args.src), args.year, args.split, args.crowds == "class")

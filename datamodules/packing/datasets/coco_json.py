"""Packs anyone's pictures whose instances are annotated in COCO's JSON format. Classes are numbered from 1, by id."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ldis_lightning.datamodules.packing.coco_packer import InstancesPacker, add_crowds

SUMMARY = "your own pictures, annotated in COCO's JSON format"
TREE = """\
  SRC: the JSON file, {images: [...], annotations: [...], categories: [...]}, see https://cocodataset.org/#format-data;
  --images: the folder in which the file_name of each of its images is.
  .jpg is stored byte for byte; .png, .bmp, .tif, .webp and .ppm become JPEG of quality 95."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `ldis data pack coco-json` beside those of every packer."""
    parser.epilog = f"what to give:\n{TREE}"
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the pictures")
    add_crowds(parser)


def packer(args: Namespace) -> InstancesPacker:
    """The packer that the parsed arguments ask for."""
    return InstancesPacker(Path(args.src), args.images, args.crowds == "class", TREE)

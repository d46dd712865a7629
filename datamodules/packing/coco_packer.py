"""What the packers of COCO's JSON format share: a file of instances and a folder of pictures."""

from argparse import ArgumentParser
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ldis_lightning.datamodules.index import sha256_of_file
from ldis_lightning.datamodules.packing.coco_annotations import Annotated, Instances, label_map, read_instances
from ldis_lightning.datamodules.packing.convert import CONVERTED, JPEG, read_jpeg
from ldis_lightning.datamodules.packing.packer import Item, Packer, Survey, sample_key
from ldis_lightning.datamodules.packing.trees import check_present
from ldis_lightning.imaging.pictures import write_label_map


class Part(NamedTuple):
    """A picture, and its place in `Instances.pictures`."""

    image: Path
    number: int


class InstancesPacker(Packer):
    """A file of instance annotations and a folder of pictures.

    Args:
        file: the JSON.
        images: the folder in which its `file_name`s are.
        crowds_are_classes: crowds get their class; by default they are ignored (255), save where an instance is.
        tree: what files there should be, for messages.

    Attributes:
        sha256: of the JSON, after `survey`.
    """

    def __init__(self, file: Path, images: Path, crowds_are_classes: bool = False, tree: str = "") -> None:
        self.file, self.images, self.crowds_are_classes, self.tree = file, images, crowds_are_classes, tree
        self.name, self.sha256 = file.stem, ""
        # Not in the parts, which the engine writes out as text to recognise a job. Workers inherit or unpickle it.
        self._pictures: list[Annotated] = []

    def survey(self) -> Survey:
        """Read the annotations and look for the pictures.

        Raises:
            UserError: see `read_instances`; or a picture is missing.
        """
        instances = read_instances(self.file)
        self.sha256, self._pictures = sha256_of_file(self.file), instances.pictures
        parts = [Part(self.images / picture.name, number) for number, picture in enumerate(instances.pictures)]
        check_present((part.image for part in parts), self.tree)
        items = [Item(key_of(picture.name), (part,)) for picture, part in zip(instances.pictures, parts, strict=True)]
        instances.skipped[CONVERTED] += sum(part.image.suffix.lower() not in JPEG for part in parts)
        return Survey(items, instances.classes, instances.skipped, self.totals(instances))

    def totals(self, instances: Instances) -> dict[str, tuple[int, int]]:
        """What to compare with published counts: what is counted -> (found, published). Here, nothing."""
        return {}

    def read(self, part: Part) -> tuple[bytes, bytes]:
        """The picture as JPEG, and its annotations as a label map."""
        labels = label_map(self._pictures[part.number], self.crowds_are_classes)
        return read_jpeg(part.image), write_label_map(labels)


def add_crowds(parser: ArgumentParser) -> None:
    """The option `--crowds` of packers of instances."""
    parser.add_argument(
        "--crowds",
        choices=("ignore", "class"),
        default="ignore",
        help="crowds of things that are not told apart: ignore them (255) or give them their class; "
        "instances lie above them either way (default: ignore)",
    )


def key_of(name: str) -> str:
    """The key of a picture: its file name without the ending, dots replaced, at which WebDataset would cut it."""
    return sample_key(str(PurePosixPath(name).with_suffix("")))

"""Packs people's own pictures: a folder of pictures and one of masks, or such a pair of folders for each class."""

from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from ldis_lightning.datamodules.packing.convert import CONVERTED, FORMATS, JPEG, one_class, read_jpeg, read_marked
from ldis_lightning.datamodules.packing.packer import Item, Packer, Survey, sample_key
from ldis_lightning.datamodules.packing.trees import check_present, number_classes
from ldis_lightning.errors import UserError

SUMMARY = "your own pictures: images/ and masks/ with equal names, or such folders for each class"
TREE = """\
  SRC/images/NAME.jpg and SRC/masks/NAME.png: masks are label maps (0 none, 255 ignore, else class ids), or, with
  --binary, whatever is not black is the one class;
  or SRC/CLASS/images/NAME.jpg and SRC/CLASS/masks/NAME.png: whatever is not black is that class.
  .jpg is stored byte for byte; .png, .bmp, .tif, .webp and .ppm become JPEG of quality 95."""
IMAGES, MASKS = "images", "masks"


class Masked(NamedTuple):
    """A picture and its mask."""

    image: Path
    mask: Path
    class_id: int  # what is not black in the mask; 0 where it is a label map


class FolderPacker(Packer):
    """A folder of pictures.

    Args:
        src: the folder.
        binary: whatever is not black in a mask is class 1. Does not matter where each class has its folder.
        skip_unlabelled: leave out pictures without a mask instead of refusing the folder.
    """

    def __init__(self, src: Path, binary: bool = False, skip_unlabelled: bool = False) -> None:
        self.src, self.binary, self.skip_unlabelled = src, binary, skip_unlabelled
        self.unlabelled_hint = "" if binary else " If 255 marks the thing to segment, use --binary."

    def survey(self) -> Survey:
        """Pair pictures and masks by their names.

        Raises:
            UserError: the folder is laid out otherwise, or a picture has no mask or not one alone.
        """
        skipped: Counter[str] = Counter()
        if _is_pair(self.src):
            items = self._items(self.src, "", int(self.binary), skipped)
            return Survey(items, {}, skipped)
        folders = sorted(path for path in self.src.iterdir() if _is_pair(path)) if self.src.is_dir() else []
        if not folders:
            what = "holds neither images and masks nor folders of them" if self.src.is_dir() else "is no folder"
            raise UserError(f"{self.src} {what}. It should be\n{TREE}")
        classes = number_classes([folder.name for folder in folders])
        items = [
            item
            for class_id, folder in zip(classes, folders, strict=True)
            for item in self._items(folder, f"{sample_key(folder.name)}/", class_id, skipped)
        ]
        return Survey(items, classes, skipped)

    def _items(self, folder: Path, prefix: str, class_id: int, skipped: Counter[str]) -> list[Item]:
        """The pictures of a pair of folders, and what is left out of it."""
        files = sorted((folder / IMAGES).iterdir())
        pictures = [path for path in files if path.suffix.lower() in (*JPEG, *FORMATS)]
        _check_distinct(pictures)
        masks = {path.name for path in (folder / MASKS).iterdir()}
        labelled = [path for path in pictures if f"{path.stem}.png" in masks]
        skipped["files in images that are no pictures"] += len(files) - len(pictures)
        skipped["files in masks without a picture"] += len(masks) - len(labelled)
        if self.skip_unlabelled:
            skipped["pictures without a mask"] += len(pictures) - len(labelled)
            pictures = labelled
        skipped[CONVERTED] += sum(path.suffix.lower() not in JPEG for path in pictures)
        samples = [Masked(path, folder / MASKS / f"{path.stem}.png", class_id) for path in pictures]
        check_present((sample.mask for sample in samples), f"{TREE}\n  --skip_unlabelled leaves such pictures out.")
        return [Item(f"{prefix}{sample_key(sample.image.stem)}", (sample,)) for sample in samples]

    def read(self, part: Masked) -> tuple[bytes, bytes]:
        """The picture as JPEG and its label map."""
        png = part.mask.read_bytes()
        if part.class_id:
            png = one_class(read_marked(png, str(part.mask)), part.class_id)
        return read_jpeg(part.image), png


def _is_pair(folder: Path) -> bool:
    return (folder / IMAGES).is_dir() and (folder / MASKS).is_dir()


def _check_distinct(pictures: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in pictures:
        if path.stem in seen:
            raise UserError(f"{seen[path.stem]} and {path.name} have the same name and would share a mask: rename one.")
        seen[path.stem] = path


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `ldis data pack folder` beside those of every packer."""
    parser.epilog = f"what to give:\n{TREE}"
    parser.add_argument("--binary", action="store_true", help="whatever is not black in a mask is class 1")
    parser.add_argument(
        "--skip_unlabelled", action="store_true", help="leave out pictures without a mask instead of refusing"
    )


def packer(args: Namespace) -> FolderPacker:
    """The packer that the parsed arguments ask for."""
    return FolderPacker(Path(args.src), args.binary, args.skip_unlabelled)
